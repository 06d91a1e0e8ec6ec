"""What a batch has beside its images: labels, fields of the JSON, metres a pixel, whatever members there are."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import RecipeError
from .augment import Crop, View
from .tars import Tars

COMPUTED = ("label", "gsd_m", "json")


class Columns:
    """Reads columns by name: "label", "gsd_m", a field of the JSON, "json" as a whole, or a member by its suffix.

    classes: names of labels in the order of their numbers; without it labels that are texts stay texts.
    """

    def __init__(
        self, names: Sequence[str], classes: Sequence[str] | None, views: tuple[View, ...], tars: Tars
    ) -> None:
        self.names, self.views = tuple(names), views
        self.numbers = None if classes is None else {name: n for n, name in enumerate(classes)}
        members = {*tars.members}
        self.needs_json = "json" in members and any(name not in members or name == "json" for name in names)
        for name in names:
            if not self.needs_json and name not in members and not (name == "label" and "cls" in members):
                raise RecipeError(f"columns: {name}: these tars have no JSON, only {', '.join(sorted(members))}")

    def __call__(self, tars: Tars, row: int, crops: list[Crop]) -> dict[str, Any]:
        """The values of one sample, whose views show `crops`."""
        fields: dict[str, Any] = {}
        if self.needs_json and tars.has(row, "json"):
            fields = json.loads(tars.read(row, "json"))
        return {name: self.value(name, tars, row, crops, fields) for name in self.names}

    def value(self, name: str, tars: Tars, row: int, crops: list[Crop], fields: dict[str, Any]) -> Any:
        if name == "json":
            return fields
        if name == "label":
            label = fields.get("label", "") if not tars.has(row, "cls") else int(tars.read(row, "cls"))
            return label if self.numbers is None or isinstance(label, int) else self.numbers.get(label, -1)
        if name == "gsd_m":
            return [self.gsd_m(fields, n, crop) for n, crop in enumerate(crops)]
        if name in tars.members:
            return tars.read(row, name) if tars.has(row, name) else b""
        if name not in fields and fields:
            raise RecipeError(f"columns: {name}: not in the JSON of {tars.where(row)}, which has {', '.join(fields)}")
        return fields.get(name)

    def gsd_m(self, fields: dict[str, Any], view: int, crop: Crop) -> float:
        """Metres a pixel of a view; NaN where they are not known."""
        stored = fields.get("gsd_m")
        if not isinstance(stored, int | float) or stored <= 0:
            return math.nan
        if not self.views:
            return float(stored)
        size = self.views[view]
        if size.resize_px is not None:
            return stored * min(crop.width, crop.height) / size.resize_px
        return stored * math.sqrt(crop.width * crop.height) / size.size_px

    def together(self, rows: list[dict[str, Any] | None]) -> dict[str, Any]:
        """Of each column the values of all samples: a tensor of numbers, or a list; None in an empty slot."""
        return {name: self.column(name, [row and row[name] for row in rows]) for name in self.names}

    def column(self, name: str, values: list[Any]) -> Any:
        if name == "gsd_m":
            views = max(len(self.views), 1)
            told = torch.tensor([value or [math.nan] * views for value in values], dtype=torch.float32)
            return told[:, 0] if views == 1 else told
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return torch.tensor(values)
        if name == "label" and all(isinstance(value, int | None) for value in values):
            return torch.tensor([-1 if value is None else value for value in values])
        return values
