"""Boxes, quadrilaterals and polygons through a window, as JSON text, and as COCO. No pixels, no files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, pairwise
from typing import Any

import numpy as np

from .errors import ShardError
from .sample import Window
from .windows import starts

MIN_IOF = 0.7
MIN_IMAGE_SHARE = 0.6  # of a window, that an image smaller than it must fill
# Coordinates are kept to a millionth of a pixel. It removes what floats leave behind (123.4 - 100 is
# 23.400000000000006), so that a window of a window gives exactly what one window gives.
DECIMALS = 6
SHARE_DECIMALS = 9
FLAT_PX2 = 1e-5  # an area below this is the rounding of the sums that gave it

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """One object of an image: its corners in px of the record it belongs to, from the top left.

    `kind` is "box" (4 corners, sides along the axes), "quad" (4 corners) or "polygon", which is right for any shape.
    """

    category: str
    points: tuple[float, ...]  # x1, y1, x2, y2, …; the original corners: they may lie outside of a window
    difficult: bool = False
    ignore: bool = False  # neither object nor background: crowds, and what a window cuts too much from
    iof: float = 1.0  # share of its area that lies inside the record
    clipped: tuple[float, ...] = ()  # the corners of what lies inside; empty before any window
    kind: str = "polygon"


_KEYS = tuple(f.name for f in fields(Box))


def rectangle(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
    """The 4 corners of a rectangle along the axes, px."""
    return (left, top, right, top, right, bottom, left, bottom)


def turned(cx: float, cy: float, width: float, height: float, angle_rad: float) -> tuple[float, ...]:
    """The 4 corners of a rectangle about a centre, px, turned from x towards y (clockwise, as y goes down)."""
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    points: list[float] = []
    for x, y in (
        (-width / 2, -height / 2),
        (width / 2, -height / 2),
        (width / 2, height / 2),
        (-width / 2, height / 2),
    ):
        # rounded: cos and sin differ between C libraries in their last bit
        points += (_round(cx + x * cos - y * sin), _round(cy + x * sin + y * cos))
    return tuple(points)


def dumps(boxes: Iterable[Box]) -> str:
    """JSON text of boxes: a list of objects, all with the same keys in the same order, one type each."""
    rows = [
        {
            "category": box.category,
            "points": [float(v) for v in box.points],
            "difficult": box.difficult,
            "ignore": box.ignore,
            "iof": float(box.iof),
            "clipped": [float(v) for v in box.clipped],
            "kind": box.kind,
        }
        for box in boxes
    ]
    return json.dumps(rows, separators=(",", ":"), allow_nan=False)


def loads(text: str) -> list[Box]:
    """The boxes of a JSON text that `dumps` wrote."""
    try:
        return [_from_row(row) for row in json.loads(text)]
    except (ValueError, TypeError, AttributeError) as exc:
        found = text if len(text) <= 80 else text[:80] + "…"
        raise ShardError(f"not a list of boxes with the keys {', '.join(_KEYS)}: {exc}; found {found!r}") from None


def _from_row(row: dict[str, object]) -> Box:
    if set(row) != set(_KEYS):
        raise ValueError(f"a box has the keys {', '.join(row) or '(none)'}")
    box = Box(**row)  # type: ignore[arg-type]
    box = replace(box, points=tuple(map(float, box.points)), clipped=tuple(map(float, box.clipped)))
    if len(box.points) < 6 or len(box.points) % 2:
        raise ValueError(f"{len(box.points)} numbers are not 3 or more corners")
    return box


def through(boxes: Iterable[Box], window: Window, min_iof: float = MIN_IOF) -> list[Box]:
    """What a window shows of boxes, in px of the window.

    A box with less than `min_iof` of its original area inside is kept with `ignore`; one that shows nothing is gone.
    A box without area (a point, a line) is inside where its centre is. Corners stay original, so a window that lies
    inside another gives the same through it as directly, and `iof` is a share of the original area always.

    Shares are exact for every polygon that does not cross itself. The pieces that a concave polygon falls into stay
    one outline, joined along the window's edges; where a polygon crosses itself, turns of either sense cancel out.
    """
    found = (_cut(box, window, min_iof) for box in boxes)
    return [box for box in found if box is not None]


def scaled(boxes: Iterable[Box], factor: float, down: float | None = None) -> list[Box]:
    """Boxes of an image in px of the image made `factor` times as large, `down` times as high; shares stay."""
    factors = (factor, factor if down is None else down)

    def times(points: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(_round(v * factors[n % 2]) for n, v in enumerate(points))

    return [replace(box, points=times(box.points), clipped=times(box.clipped)) for box in boxes]


def by_window(boxes: Sequence[Box], windows: Iterable[Window], min_iof: float = MIN_IOF) -> list[list[Box]]:
    """What each of many windows shows of many boxes: `through` of each, which only looks at boxes near the window."""
    bounds = [(min(b.points[::2]), min(b.points[1::2]), max(b.points[::2]), max(b.points[1::2])) for b in boxes]
    left, top, right, bottom = np.array(bounds, np.float64).reshape(-1, 4).T
    shown = []
    for window in windows:
        # 1 px wider than the window: `_cut` rounds, and decides
        near = (right >= window.left - 1) & (left <= window.left + window.width + 1)
        near &= (bottom >= window.top - 1) & (top <= window.top + window.height + 1)
        shown.append(through([boxes[i] for i in np.flatnonzero(near).tolist()], window, min_iof))
    return shown


def _cut(box: Box, window: Window, min_iof: float) -> Box | None:
    xs = [_round(x - window.left) for x in box.points[::2]]
    ys = [_round(y - window.top) for y in box.points[1::2]]
    left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    if right < 0 or left > window.width or bottom < 0 or top > window.height:
        return None
    inside = left >= 0 and top >= 0 and right <= window.width and bottom <= window.height
    ring = list(zip(xs, ys, strict=True))
    clipped = ring if inside else _clip(ring, window, box.kind)
    area_px2 = _area_px2(ring)
    if area_px2 < FLAT_PX2:
        # half-open, so that of the windows that share an edge only one has it
        iof = float(0 <= (left + right) / 2 < window.width and 0 <= (top + bottom) / 2 < window.height)
    else:
        iof = 1.0 if inside else min(round(_area_px2(clipped) / area_px2, SHARE_DECIMALS), 1.0)
    if iof == 0:
        return None
    return Box(
        category=box.category,
        points=_flat(ring),
        difficult=box.difficult,
        ignore=box.ignore or iof < min_iof,
        iof=iof,
        clipped=_flat(clipped if inside else _tidy(clipped)),
        kind=box.kind,
    )


def _round(value: float) -> float:
    return round(value, DECIMALS) + 0.0  # -0.0 becomes 0.0


def _flat(ring: Iterable[Point]) -> tuple[float, ...]:
    return tuple(chain.from_iterable(ring))


def _area_px2(ring: Sequence[Point]) -> float:
    """Area of a polygon by the shoelace sum, taken from its first corner to keep the products small."""
    if not ring:
        return 0.0
    x0, y0 = ring[0]
    twice = 0.0
    for (ax, ay), (bx, by) in pairwise(ring[1:]):
        twice += (ax - x0) * (by - y0) - (bx - x0) * (ay - y0)
    return abs(twice) / 2


def _clip(ring: list[Point], window: Window, kind: str) -> list[Point]:
    """What of a polygon lies in (0, 0, width, height)."""
    if kind == "box":  # keeps its 4 corners, in their order
        return [(min(max(x, 0.0), float(window.width)), min(max(y, 0.0), float(window.height))) for x, y in ring]
    for axis, limit, sense in ((0, 0, 1), (0, window.width, -1), (1, 0, 1), (1, window.height, -1)):
        ring = _clip_half(ring, axis, float(limit), sense)
    return ring


def _clip_half(ring: list[Point], axis: int, limit: float, sense: int) -> list[Point]:
    """One step of Sutherland and Hodgman (1974): what of a polygon lies on one side of a line along an axis."""
    kept: list[Point] = []
    for i, corner in enumerate(ring):
        before = ring[i - 1]
        was_in, is_in = (before[axis] - limit) * sense >= 0, (corner[axis] - limit) * sense >= 0
        if was_in != is_in:
            along = (limit - before[axis]) / (corner[axis] - before[axis])
            across = before[1 - axis] + along * (corner[1 - axis] - before[1 - axis])
            kept.append((limit, across) if axis == 0 else (across, limit))
        if is_in:
            kept.append(corner)
    return kept


def _tidy(ring: list[Point]) -> list[Point]:
    """A polygon with rounded corners, none of them twice in a row: cutting at a corner gives it twice."""
    rounded = [(_round(x), _round(y)) for x, y in ring]
    kept = [corner for i, corner in enumerate(rounded) if corner != rounded[i - 1]]
    return kept if len(kept) >= 3 else rounded


def slice_coco(
    coco: dict[str, Any],
    size_px: int = 1280,
    gap_px: int = 300,
    iof: float = 0.4,
    even: bool = True,
    suffix: str = ".npy",
) -> dict[str, Any]:
    """The COCO of all slices of the images of a COCO, as AODRaw's published script writes it: a new dict.

    The rules are those of lzyhha/AODRaw, slice/slice_raw_images.py: windows by columns, a shifted one repeated where
    rounding to even pixels makes it so; a box with at least `iof` of its area inside is kept, one with less is a crowd
    behind all of these; a window without a box, or with crowds only, is left out. Ids count from 0. `area` and `bbox`
    are of what lies inside, whole numbers towards 0, right and bottom at most size - 1; the outline is not clipped.
    Slices are `size_px` wide and high even where the image ends before. ValueError for an image that fills no window.
    """
    if size_px % 2 and even:
        raise ValueError(f"size_px ({size_px}) must be even where windows begin at even pixels")
    notes: dict[Any, list[dict[str, Any]]] = {}
    for note in coco["annotations"]:
        notes.setdefault(note["image_id"], []).append(note)
    images: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in {image["id"]: image for image in coco["images"]}.values():
        for left, top in _slice_starts(image, size_px, gap_px, even):
            kept = _in_slice(notes.get(image["id"], []), left, top, size_px, iof)
            if all(crowd for _, crowd in kept):
                continue
            tail = f"__{size_px}__{left}___{top}"
            slice_ = {
                "id": len(images),
                "ori_id": image["id"],
                "x_start": left,
                "y_start": top,
                "slice_id": f"{image['id']}{tail}",
                "file_name": f"{image['file_name'].split('.')[0]}{tail}{suffix}",
                "height": size_px,
                "width": size_px,
                "tag": image.get("tag", []),
            }
            images.append(slice_)
            for note, crowd in kept:
                found.append(_slice_note(note, crowd, slice_, len(found)))
    return {"images": images, "type": "instance", "categories": coco["categories"], "annotations": found}


def _slice_starts(image: dict[str, Any], size_px: int, gap_px: int, even: bool) -> list[tuple[int, int]]:
    """Left and top of the slices of an image, by columns."""
    width, height = image["width"], image["height"]
    lefts, tops = starts(width, size_px, gap_px), starts(height, size_px, gap_px)
    if even:
        lefts, tops = [n - n % 2 for n in lefts], [n - n % 2 for n in tops]
    places = [(x, y) for x in lefts for y in tops if fills(width - x, height - y, size_px)]
    if not places:
        which = f"image {image['id']} ({image['file_name']}) of {width} x {height} px"
        raise ValueError(f"{which} fills {MIN_IMAGE_SHARE} of no window of {size_px} px: leave it out")
    return places


def fills(width: int, height: int, size_px: int) -> bool:
    """Whether an image of (width, height) px, from the corner of a window on, fills enough of it to be a slice."""
    return min(size_px, width) * min(size_px, height) > MIN_IMAGE_SHARE * size_px**2


def _in_slice(
    notes: list[dict[str, Any]], left: int, top: int, size_px: int, iof: float
) -> list[tuple[dict[str, Any], int]]:
    """The annotations that a slice shows, each with whether it is a crowd; those of too little share are last."""
    whole, part = [], []
    for note in notes:
        x, y, width, height = note["bbox"]
        across = min(x + width, left + size_px) - max(x, left)
        down = min(y + height, top + size_px) - max(y, top)
        if across > 0 and down > 0:
            share = across * down / float(np.float32((x + width - x) * (y + height - y)))  # float32 as published
            if share >= iof:
                whole.append((note, int(note.get("iscrowd", 0))))
            else:
                part.append((note, 1))
    return whole + part


def _slice_note(note: dict[str, Any], crowd: int, slice_: dict[str, Any], number: int) -> dict[str, Any]:
    """An annotation in px of a slice."""
    x, y, width, height = note["bbox"]
    x1, y1 = float(x) - slice_["x_start"], float(y) - slice_["y_start"]
    x2, y2 = float(x + width) - slice_["x_start"], float(y + height) - slice_["y_start"]
    outline = [int(v) for v in (x1, y1, x1, y2, x2, y2, x2, y1)]
    x1, y1 = max(0.0, x1), max(0.0, y1)
    across, down = min(slice_["width"] - 1, x2) - x1, min(slice_["height"] - 1, y2) - y1
    return {
        "segmentation": [outline],
        "area": int(across * down),
        "ignore": 0,
        "iscrowd": int(crowd == 1),
        "image_id": slice_["id"],
        "bbox": [int(v) for v in (x1, y1, across, down)],
        "category_id": int(note["category_id"]),
        "id": number,
    }
