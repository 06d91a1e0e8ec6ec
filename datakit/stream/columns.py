"""What a batch has beside its images: labels, fields of the JSON, metres a pixel, whatever members there are."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .. import boxes
from ..errors import RecipeError
from . import seen
from .augment import Crop, View
from .decode import Decoder
from .device import together
from .mosaics import Mosaics
from .tars import Tars

PER_VIEW = ("gsd_m", "boxes", "mask", "twin")
TWIN = "jpg"  # member: the camera's JPEG beside a mosaic


class Columns:
    """Reads columns by name.

    label: an int of the member `cls`, or the JSON's text; by `classes`, names in the order of their numbers, that
    number, -1 where there is none. gsd_m: metres of a pixel of the view, NaN where unknown. boxes: a list of
    `datakit.boxes.Box` in px of the view. mask: (B, h, w) classes of the view's pixels, from `seg.png` or `mask.png`.
    twin: of camera RAW with views that change no colours, the JPEG beside it, (B, 3, h, w) uint8 of the same crop.
    captions: a list of texts. json: all fields. Any field of the JSON; any member by its suffix, as bytes. Of several
    views, gsd_m, boxes, mask and twin have one value each.
    """

    def __init__(
        self,
        names: Sequence[str],
        classes: Sequence[str] | None,
        views: tuple[View, ...],
        tars: Tars,
        raw: Mosaics | None = None,
    ) -> None:
        self.names, self.views, self.raw = tuple(names), views, raw
        self.numbers = None if classes is None else {name: n for n, name in enumerate(classes)}
        members = {*tars.members}
        self.mask = next((name for name in seen.MASKS if name in members), "")
        there = members | ({"mask"} if self.mask else set()) | ({"label"} if "cls" in members else set())
        self.needs_json = "json" in members and any(name not in there or name == "json" for name in names)
        self.decoder = Decoder()
        if "twin" in names and (raw is None or not views or TWIN not in members or any(any(v.colours) for v in views)):
            raise RecipeError(f"columns: twin: wants raw, views that leave colours as they are, and a member {TWIN}")
        for name in names:
            if name not in there and (not self.needs_json or name == "mask"):
                raise RecipeError(f"columns: {name}: samples of these tars have {', '.join(sorted(members))}")

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
        if name == "boxes":
            found = boxes.loads(text) if isinstance(text := fields.get("boxes", "[]"), str) else []
            found = self.raw.boxes(found, fields) if self.raw else found
            return [seen.boxes(found, v, c) for v, c in zip(self.views, crops, strict=True)] if self.views else [found]
        if name == "twin":
            return self.twins(tars, row, crops, fields)
        if name == "mask":
            return self.masks(tars, row, crops)
        if name == "captions" and isinstance(fields.get(name), str):
            return json.loads(fields[name])
        if name in tars.members:
            return tars.read(row, name) if tars.has(row, name) else b""
        if name not in fields and fields:
            raise RecipeError(f"columns: {name}: not in the JSON of {tars.where(row)}, which has {', '.join(fields)}")
        return fields.get(name)

    def masks(self, tars: Tars, row: int, crops: list[Crop]) -> list[Any]:
        """The mask through each view. Its size must be that of the image."""
        if not tars.has(row, self.mask):
            raise ValueError(f"no {self.mask}")
        classes = seen.mask_of(tars.read(row, self.mask))
        if not self.views:
            return [classes]
        return [seen.mask(classes, view, crop) for view, crop in zip(self.views, crops, strict=True)]

    def twins(self, tars: Tars, row: int, crops: list[Crop], fields: dict[str, Any]) -> list[Any]:
        """The JPEG of the frame that a view of camera RAW shows, through each view."""
        if self.raw is None or not tars.has(row, TWIN):
            raise ValueError(f"no {TWIN}")
        levels = self.decoder(tars.read(row, TWIN))
        frame = self.raw.size(fields)
        return [seen.twin(levels, view, crop, frame) for view, crop in zip(self.views, crops, strict=True)]

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
        if name in PER_VIEW:
            views = [
                self.of_view(name, [value and value[n] for value in values]) for n in range(max(len(self.views), 1))
            ]
            return views[0] if len(views) == 1 else torch.stack(views, 1) if name == "gsd_m" else views
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return torch.tensor(values)
        if name == "label" and all(isinstance(value, int | None) for value in values):
            return torch.tensor([-1 if value is None else value for value in values])
        return values

    def of_view(self, name: str, values: list[Any]) -> Any:
        if name == "gsd_m":
            return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)
        if name == "boxes":
            return [value or [] for value in values]
        like = next((value for value in values if value is not None), np.zeros((1, 1), np.uint8))
        return together([np.zeros_like(like) if value is None else value.copy() for value in values])
