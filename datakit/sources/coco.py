"""COCO files: boxes, polygons and run lengths of many images.

What can be read without guessing is read: ids that are text in one list and numbers in the other, polygons of two
corners (they have no area) beside a bbox, a segmentation that is one flat polygon, run lengths without a bbox. What
cannot is told by the annotation's id, and drops its image: a category that is not in the list, a bbox that is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeGuard

from .. import shots
from ..boxes import Box, rectangle, scaled
from ..errors import SourceError
from ..sample import Sample
from .formats import Labelled, named, number, parsed, xywh

WANTED = "images (id, file_name), annotations (image_id, category_id, bbox), categories (id, name)"
CHARACTERS = range(48, 112)  # of compressed run lengths: 6 bits each


class Coco:
    """One COCO file, by image. Its dates are left alone: annotation tools write the day of their own work there."""

    def __init__(self, path: str, data: bytes, split: str = "", reduced: bool = False) -> None:
        """split: of the images that it lists. reduced: it is of smaller images, of the sizes that it gives."""
        self._path, self._split, self._reduced = path, split, reduced
        plain = parsed(path, data)
        self._listed: dict[str, dict[str, Any]] = {}  # images that it says more of than their boxes
        self._notes: dict[str, list[tuple[str | None, dict[str, Any]]]] = {}
        try:
            places = self._by_id([(i["id"], named(i["file_name"])) for i in plain["images"]])
            self._stems = {place.rpartition(".")[0]: place for place in places.values()}
            self._listed = {named(i["file_name"]): i for i in plain["images"] if split or reduced or "tag" in i}
            categories = self._by_id([(c["id"], str(c["name"])) for c in plain.get("categories", [])])
            notes = plain.get("annotations", [])  # the files of test splits have none
            for note in notes:
                if name := places.get(_spelled(note["image_id"])):
                    known = categories.get(_spelled(note.get("category_id"))), note
                    self._notes.setdefault(name, []).append(known)
        except (KeyError, TypeError, AttributeError) as exc:
            raise SourceError(f"{path}: expected lists of {WANTED}; {type(exc).__name__}: {exc}") from None
        if notes and not self._notes:
            found = f"{len(notes)} annotations, the first of image_id {notes[0]['image_id']!r:.40}"
            raise SourceError(f"{path}: no annotation is of one of its images: {found}")

    def _by_id(self, pairs: list[tuple[object, str]]) -> dict[str, str]:
        """What each id stands for. The same number as text and as a number must stand for the same."""
        found: dict[str, str] = {}
        own: dict[str, type] = {}
        for value, meaning in pairs:
            key = _spelled(value)
            if own.setdefault(key, type(value)) is not type(value) and found[key] != meaning:
                raise SourceError(f"{self._path}: id {key} is text and number, of {found[key]:.40} and {meaning:.40}")
            found[key] = meaning
        return found

    def of(self, image: Sample, name: str) -> Labelled:
        """Boxes of one image: one for each polygon of its annotations, or for the bbox where there is none."""
        if name.endswith(".npy") and name not in self._notes and name not in self._listed:
            name = self._stems.get(name.removesuffix(".npy"), name)  # AODRaw names arrays by the file they are of
        boxes = [box for category, note in self._notes.get(name, []) for box in self._of(category, note)]
        about = self._listed.get(name)
        if about is None:
            return Labelled(boxes=boxes)
        tags = about.get("tag", [])
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise SourceError(f"{self._path}, image {about['id']!r:.40}: expected tag [text, …], found {tags!r:.80}")
        size = about.get("width", image.width), about.get("height", image.height)
        if image.format == shots.FORMAT and not self._reduced and size != (image.width, image.height):
            where = f"{self._path}, image {about['id']!r:.40}"
            raise SourceError(
                f"{where}: boxes of {size[0]} x {size[1]} px, where it has {image.width} x {image.height}"
            )
        if self._reduced:
            across, down = (number(self._path, about.get(side)) for side in ("width", "height"))
            boxes = scaled(boxes, image.width / across, image.height / down)
        return Labelled(boxes=boxes, split=self._split, tags=tuple(tags), image_id=_spelled(about["id"]))

    def _of(self, category: str | None, note: dict[str, Any]) -> list[Box]:
        where = f"{self._path}, annotation {note.get('id')!r:.40}"
        if category is None:
            raise SourceError(f"{where}: category_id {note.get('category_id')!r:.40} is not among the categories")
        # AODRaw marks regions to leave out by a category of that name
        ignore = bool(note.get("iscrowd") or note.get("ignore")) or category == "ignore"
        shapes, bbox = note.get("segmentation"), note.get("bbox")
        if polygons := list(_polygons(where, shapes)):
            return [Box(category, points, ignore=ignore, kind="polygon") for points in polygons]
        if not bbox and isinstance(shapes, dict):
            corners = _bounds_of_runs(where, shapes)
            return [Box(category, corners, ignore=ignore, kind="box")] if corners else []
        return [Box(category, xywh(where, "bbox", bbox), ignore=ignore, kind="box")]


def _spelled(value: object) -> str:
    """An id, which some tools write as text, some as a number; "" where there is none."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
        raise TypeError(f"found {value!r:.40} for an id")
    return "" if value is None else str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _polygons(where: str, shapes: object) -> Iterator[tuple[float, ...]]:
    """Polygons of 3 or more corners; those of fewer have no area, and say no more than a bbox does."""
    if not isinstance(shapes, list):
        return  # none, or run lengths
    flat = bool(shapes) and not any(isinstance(shape, list) for shape in shapes)
    for shape in [shapes] if flat else shapes:
        if not isinstance(shape, list) or len(shape) % 2:
            raise SourceError(f"{where}: expected segmentation [[x1, y1, x2, y2, x3, y3, …], …], found {shape!r:.80}")
        if len(shape) >= 6:
            yield tuple(number(where, v) for v in shape)


def _bounds_of_runs(where: str, runs: dict[str, Any]) -> tuple[float, ...]:
    """The 4 corners of what run lengths cover, px; empty where they cover nothing.

    Runs of 0 and of 1 by turns, the first of 0, go down the columns of a mask of `size` [height, width].
    """
    size, counts = runs.get("size"), runs.get("counts")
    lengths = _unpacked(counts) if isinstance(counts, str) else counts
    if not _counts(size, 2) or not _counts(lengths) or sum(lengths) != math.prod(size):
        found = f"size {size!r:.40}, counts {counts!r:.40}"
        raise SourceError(f"{where}: expected run lengths that fill their size [height, width], found {found}")
    height: int = size[0]
    at = 0
    columns: list[int] = []
    rows: list[int] = []
    for n, length in enumerate(lengths):
        if n % 2 and length:
            first, last = divmod(at, height), divmod(at + length - 1, height)
            columns += [first[0], last[0]]
            rows += [first[1], last[1]] if first[0] == last[0] else [0, height - 1]
        at += length
    return rectangle(min(columns), min(rows), max(columns) + 1.0, max(rows) + 1.0) if columns else ()


def _counts(value: object, most: int | None = None) -> TypeGuard[list[int]]:
    """Whether these are whole numbers, none below 0; `most`: so many of them."""
    return isinstance(value, list) and most in (None, len(value)) and all(type(n) is int and n >= 0 for n in value)


def _unpacked(text: str) -> list[int] | None:
    """Run lengths as COCO's tools compress them; None where the text is none of theirs.

    5 bits a character, the lowest first; 32 says that more follow, 16 of the last one is the sign. From the third
    number on, each is the difference to the one before the last.
    """
    found: list[int] = []
    value = shift = 0
    for code in text.encode():
        if code not in CHARACTERS:
            return None
        bits = code - CHARACTERS.start
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            found.append(value + (found[-2] if len(found) > 2 else 0))
            value = shift = 0
    return found if not shift else None
