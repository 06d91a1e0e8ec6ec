"""Camera RAW in a loader: which member of a sample is read, and what a view makes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import codec, image
from ..boxes import Box, scaled
from ..errors import RecipeError
from ..views import Camera, View, view_of
from .decode import Levels
from .tars import Tars

MEMBERS = (codec.SUFFIX, "tif")


@dataclass(frozen=True)
class Mosaics:
    """Applies one view to samples of camera RAW."""

    view: View

    def member(self, tars: Tars) -> str:
        """The member that holds what the sensor counted."""
        found = next((suffix for suffix in MEMBERS if suffix in tars.members), "")
        if not found or "json" not in tars.members:
            there = ", ".join(sorted(tars.members))
            raise RecipeError(f"raw: samples have {there}: a mosaic is in `raw`, a reduced one in `tif`, beside `json`")
        return found

    def levels(self, data: bytes, fields: dict[str, Any]) -> Levels:
        """What the view shows, (h, w, C) float32 or uint16. fields: the sample's JSON."""
        camera = Camera.of(fields.get("camera", ""))
        if data[:4] == codec.MAGIC:
            height, width = codec.shape(data)
            if self.view.planes == "packed" and not height % 2 and not width % 2:
                planes = self.view.of_sites(codec.decode_planes(data), camera)
            else:
                planes = self.view(codec.decode(data), camera)
        else:
            with image.quiet():
                planes = self.reduced(camera, image.decode_levels(data))
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    def reduced(self, camera: Camera, levels: Levels) -> Levels:
        """Of a picture that was reduced when it was stored: `aodraw_downsampled` asks for that very scale."""
        view = self.view.model_copy(update={"scale": 1}) if self.view.scale == 3 else self.view
        if view.scale != 1:
            raise RecipeError(f"scale: {view.scale}: these samples are reduced to a third already; give 3 or 1")
        return view.of_reduced(levels, camera)

    def boxes(self, found: list[Box], fields: dict[str, Any]) -> list[Box]:
        """Boxes of a sample in px of the view."""
        width, height = int(fields["width"]), int(fields["height"])
        across, down = self.size(fields)
        return found if (across, down) == (width, height) else scaled(found, across / width, down / height)

    def size(self, fields: dict[str, Any]) -> tuple[int, int]:
        """Width and height of what the view shows of a sample."""
        stored_third = float(fields.get("scale", 1.0)) == 3.0
        view = self.view.model_copy(update={"scale": 1}) if stored_third else self.view
        return view.size(int(fields["width"]), int(fields["height"]))


def mosaics_of(view: str | View | None, crops: bool) -> Mosaics | None:
    """What applies a view, by its name or as it is. crops: random views are made of what it shows."""
    if view is None:
        return None
    found = Mosaics(view_of(view))
    if crops and found.view.dtype != "uint16":
        raise RecipeError("raw: float32 is for a function or for images as they come; crops need dtype: uint16")
    return found


def fields_of(tars: Tars, row: int) -> dict[str, Any]:
    """The JSON of a sample."""
    fields: dict[str, Any] = json.loads(tars.read(row, "json"))
    return fields
