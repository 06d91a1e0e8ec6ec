"""What the page asks of a build, as plain data: which records match, all of one, what looks like it, where it lies."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..looks import BACK, PLACES, TURNS
from ..manifest import Manifest
from ..sample import key_id
from ..stream.source import opened
from .columns import KEPT, Columns
from .matches import BadQuestion, Finder, Question, Rows, question_of
from .pictures import Pictures

PAGE = 60  # records
MOST = 500
RADII = (14, 24, 64)  # bits: the next is looked in if too few were within the last
WORLD = (-180.0, -90.0, 180.0, 90.0)
CELLS = (180, 90)  # of the map of the world: 2 degrees
NOT_TOLD = ("thumbnail", "scene_thumbnail")  # pictures
SAFE = 1 << 53  # above it a number of JSON is not exact in a browser


class Missing(BadQuestion):
    """There is no such record, or it has no such picture."""


class Answers:
    """A build, opened to be asked. say: is told of trouble that stops nothing."""

    def __init__(self, out: Path, say: Any) -> None:
        self.out, self.manifest = out, Manifest.load(out)
        self.tars = opened(out)
        self.columns = Columns(out, self.tars, say)
        self.find = Finder(self.columns)
        self.pictures = Pictures(out, self.tars, self.columns)

    def about(self) -> dict[str, Any]:
        """What is known without reading a column: from the manifest."""
        manifest, columns = self.manifest, self.columns
        return {
            "name": manifest.name,
            "title": manifest.title,
            "out": str(self.out.resolve()),
            "kept": len(self.tars),
            "dropped": len(columns.dropped),
            "sources": [{"name": s.name, "title": s.title, "licence": s.licence} for s in manifest.sources],
            "facets": columns.facets,
            "measures": columns.measures,
            "has_places": "middle" in columns.more,
            "has_signatures": "signature" in columns.more,
        }

    def rows(self, asked: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Records that match, some at a time; `total` is how many there are."""
        question, offset, count = self._question(asked)
        if question == Question():  # the first page needs no column
            total = self.columns.count
            some = np.arange(min(offset, total), min(offset + count, total))
        else:
            matches = self.find(question)
            total, some = matches.total, matches.rows(offset, count)
        return {"total": total, "offset": offset, "rows": self.brief(some)}

    def _question(self, asked: Mapping[str, Sequence[str]]) -> tuple[Question, int, int]:
        rest = {name: values for name, values in asked.items() if name not in ("offset", "count")}
        offset = whole(asked, "offset", 0, self.columns.count)
        return question_of(rest, self.columns), offset, whole(asked, "count", PAGE, MOST)

    def brief(self, rows: Rows) -> list[dict[str, Any]]:
        """What the page shows of a record before it is opened."""
        columns, kept = self.columns, len(self.tars)
        keys = columns.keys(rows)
        first = self.tars.table.select(["source", "split"]).take(pa.array(rows[rows < kept])).to_pylist()
        told = dict(zip(rows[rows < kept].tolist(), first, strict=True))
        found = []
        for row, key in zip(rows.tolist(), keys, strict=True):
            if row < kept:
                found.append({"row": row, "key": key, **told[row], "reason": KEPT})
            else:
                said = {name: columns.coded(name) for name in ("source", "split", "reason")}
                found.append({"row": row, "key": key, **{n: c.values[c.codes[row]] for n, c in said.items()}})
            found[-1]["image"] = self.pictures.kind(row, key)
        return found

    def record(self, row: int) -> dict[str, Any]:
        """All that is known of a record; numbers that a browser cannot hold are texts."""
        full, kept = self._full(row), len(self.tars)
        (brief,) = self.brief(np.array([row]))
        known = {name: plain(value) for name, value in full.items() if name not in NOT_TOLD}
        said: dict[str, Any] = {**brief, "record": known, "members": [], "json": None, "polygon": polygon(full)}
        said["flags"] = {"signature": bool(full.get("signatures"))}
        if row < kept:
            tars = self.tars
            there = [m for m in tars.members if tars.has(row, m)]
            said["members"] = [{"name": m, "bytes": tars.size(row, m)} for m in there]
            said["shard"] = tars.shard_of(row).name
            said["images"] = self.pictures.members(row)
            if "json" in there:
                said["json"] = plain(json.loads(tars.read(row, "json")))
        said["lost_to"] = self.row_of(full.get("lost_to") or "")
        return said

    def _full(self, row: int) -> dict[str, Any]:
        if not 0 <= row < self.columns.count:
            raise Missing(f"no record {row}: there are {self.columns.count}, from 0")
        kept = len(self.tars)
        table = self.columns.samples if row < kept else self.columns.dropped
        return table.row(row if row < kept else row - kept)

    def row_of(self, key: str) -> int | None:
        """The record of a key, a kept one first; None where there is none. Found by id."""
        if not key:
            return None
        ids = (self.tars.column["id"], self.columns.numbers("id"))
        for begin, mine in zip((0, len(self.tars)), ids, strict=True):
            for row in np.flatnonzero(mine == key_id(key)) + begin:
                if self.columns.keys(np.array([row])) == [key]:
                    return int(row)
        return None

    def found(self, asked: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The record of the key that is asked for."""
        key = "".join(asked.get("key", ()))
        row = self.row_of(key)
        if row is None:
            raise Missing(f"no record has the key {key[:100]!r}")
        return {"row": row}

    def neighbours(self, row: int, asked: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The records that look most like one, nearest first, by signature in 8 orientations: all are compared.

        `bits`: distance of 64; `turned`: how that one is turned to look like this one. Of those equally far, the first.
        """
        from ..hamming import scan

        mine = self._full(row).get("signatures") or []
        if len(mine) != PLACES:
            raise Missing("this record has no signature: it was not measured")
        count = whole(asked, "count", 24, MOST)
        signatures = self.columns.numbers("signature")
        nearest: dict[int, tuple[int, int]] = {}
        for radius in RADII:
            hits = scan(signatures, np.array(mine, np.uint64), radius)
            by = np.lexsort([hits.query, hits.row, hits.distance_bits])
            rows = hits.row[by]
            _, first = np.unique(rows, return_index=True)  # of each row its best orientation
            by = by[np.sort(first)]
            by = by[(hits.row[by] != row) & (signatures[hits.row[by]] != 0)][:count]
            nearest = {int(hits.row[n]): (int(hits.distance_bits[n]), BACK[int(hits.query[n])]) for n in by}
            if len(nearest) == count:
                break
        told = self.brief(np.fromiter(nearest, np.int64, len(nearest)))
        return {"row": row, "compared": int(np.count_nonzero(signatures)) - 1} | {
            "rows": [{**one, "bits": nearest[one["row"]][0], "turned": TURNS[nearest[one["row"]][1]]} for one in told]
        }

    def density(self, asked: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """How matching records lie on the map: cells that have any, as column, line (from the north), count."""
        if "middle" not in self.columns.more:
            raise Missing("no record of this set has a place")
        box = box_of("".join(asked.get("box", ())))
        rest = {name: values for name, values in asked.items() if name != "box"}
        across, down = CELLS if box == WORLD else (48, 24)
        cells = self.find.density(question_of(rest, self.columns), box, across, down)
        lines, columns = np.nonzero(cells)
        told = np.stack([columns, lines, cells[lines, columns]], axis=1).tolist()
        return {"box": box, "across": across, "down": down, "cells": told}


def whole(asked: Mapping[str, Sequence[str]], name: str, default: int, most: int) -> int:
    """A whole number that is asked for."""
    texts = asked.get(name, ())
    if not texts:
        return default
    if len(texts) > 1 or not (texts[0].isascii() and texts[0].isdecimal()) or len(texts[0]) > 18:
        raise BadQuestion(f"{name}={texts[0][:40]}: write one whole number from 0 to {most}")
    if int(texts[0]) > most:
        raise BadQuestion(f"{name}={texts[0]}: {most} is the most")
    return int(texts[0])


def box_of(text: str) -> tuple[float, float, float, float]:
    """A box on the map from `west,south,east,north`; that of the world where none is given."""
    if not text:
        return WORLD
    try:
        west, south, east, north = map(float, text.split(","))
    except ValueError:
        west = south = east = north = math.nan
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90) or west == east:
        raise BadQuestion(f"box={text[:60]}: write WEST,SOUTH,EAST,NORTH in degrees")
    return west, south, east, north


def polygon(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The footprint of a record as GeoJSON, cut at the date line; None where it has no place."""
    from ..lonlat import geometry

    corners: NDArray[np.float64] = np.array(record.get("footprint") or [], np.float64)
    return geometry(corners) if len(corners) == 8 else None


def plain(value: Any) -> Any:
    """A value as JSON that a browser reads exactly."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int):
        return value if abs(value) < SAFE else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, Sequence):
        return [plain(one) for one in value]
    return str(value)
