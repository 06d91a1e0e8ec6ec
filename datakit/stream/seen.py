"""What views show of an image's boxes and of its mask of classes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import boxes as shapes
from .. import ids
from ..boxes import Box
from ..sample import Window
from . import resample
from .augment import LEVELS, Crop, View, middle, middle_size
from .decode import Levels

MASKS = ("seg.png", "mask.png")  # members that hold classes, the first there is
Point = tuple[float, float]


def boxes(found: Sequence[Box], view: View, crop: Crop) -> list[Box]:
    """Boxes in px of the view. What it shows a part of keeps its corners outside; see `datakit.boxes.through`."""
    if view.resize_px is not None:
        height, width = middle_size(crop.height, crop.width, view.resize_px)
        left, top = middle(width, view.size_px), middle(height, view.size_px)
        whole = moved(found, lambda x, y: (x * width / crop.width, y * height / crop.height))
        return shapes.through(whole, Window(left, top, view.size_px, view.size_px))
    size = view.size_px

    def place(x: float, y: float) -> Point:
        x, y = x * size / crop.width, y * size / crop.height
        x = size - x if crop.flipped else x
        for _ in range(crop.turns):
            x, y = y, size - x
        return x, y

    return moved(shapes.through(found, Window(*crop[:4])), place)


def moved(found: Sequence[Box], place: Callable[[float, float], Point]) -> list[Box]:
    """Boxes with all their corners moved."""

    def through(points: tuple[float, ...]) -> tuple[float, ...]:
        pairs = zip(points[::2], points[1::2], strict=True)
        return tuple(round(value, shapes.DECIMALS) for x, y in pairs for value in place(x, y))

    return [replace(box, points=through(box.points), clipped=through(box.clipped)) for box in found]


def mask_of(data: bytes) -> NDArray[Any]:
    """Classes as a file stores them, (H, W): numbers of a palette, levels, or of colours ids (`datakit.ids`), int64."""
    with Image.open(io.BytesIO(data)) as picture:
        classes = np.asarray(picture)
    if classes.ndim == 3:
        return ids.of_colours(classes).astype(np.int64)
    return np.ascontiguousarray(classes, np.uint8 if classes.dtype in (np.bool_, np.uint8) else np.int32)


def twin(levels: Levels, view: View, crop: Crop, frame: tuple[int, int]) -> NDArray[Any]:
    """What a view shows of a picture (H, W, C) that has the frame of another of so many px, width and height, of which
    it shows `crop`: (C, size_px, size_px)."""
    across, down = levels.shape[1] / frame[0], levels.shape[0] / frame[1]
    left, top = round(crop.left * across), round(crop.top * down)
    right, bottom = round((crop.left + crop.width) * across), round((crop.top + crop.height) * down)
    own = crop._replace(left=left, top=top, width=max(right - left, 1), height=max(bottom - top, 1))
    out = np.empty((levels.shape[2], view.size_px, view.size_px), levels.dtype)
    view.render(levels, own, np.empty(0), LEVELS, out)
    return out


def mask(classes: NDArray[Any], view: View, crop: Crop) -> NDArray[Any]:
    """The classes that a view shows, (size_px, size_px): each px has that of the nearest."""
    if view.resize_px is not None:
        height, width = middle_size(classes.shape[0], classes.shape[1], view.resize_px)
        whole = np.empty((height, width), classes.dtype)
        resample.nearest(classes, 0, 0, classes.shape[1], classes.shape[0], False, whole)
        top, left = middle(height, view.size_px), middle(width, view.size_px)
        return whole[top : top + view.size_px, left : left + view.size_px]
    out = np.empty((view.size_px, view.size_px), classes.dtype)
    resample.nearest(classes, *crop[:4], bool(crop.flipped), out)
    return np.rot90(out, crop.turns)
