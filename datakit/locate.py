"""From samples to the map and back: where keys lie in their sources and on the ground, and what lies in a box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .crowd import corners_of
from .licences import NAME as LICENCES
from .licences import Asked
from .lonlat import Box, geometry, meets, rings
from .sample import key_id
from .samples import Samples

PLACED = ["source", "name", "path", "window", "scale", "image_width", "image_height", "crs", "gsd_m", "acquired"]


def locate(samples: Samples, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Where each key comes from: `found`, source, path (file below the source's folder), window, polygon.

    window: left, top, width, height in px of the file's image. polygon: GeoJSON in WGS 84, None where the image has
    no place; what crosses the date line is cut there.
    """
    rows = rows_of(samples, keys)
    some = np.flatnonzero(rows >= 0)
    table = samples.read(rows[some], [*PLACED, "footprint"])
    corners = corners_of(table.column("footprint").combine_chunks())
    found = dict(zip(some.tolist(), range(len(some)), strict=True))
    for n, key in enumerate(keys):
        if n not in found:
            yield {"key": key, "found": False}
            continue
        row = found[n]
        about = table.slice(row, 1).drop_columns(["footprint"]).to_pylist()[0]
        about["window"] = about["window"] or [0, 0, about["image_width"], about["image_height"]]
        placed = len(table.column("footprint")[row].values or ()) == 8
        yield {"key": key, "found": True, **about, "polygon": geometry(corners[row]) if placed else None}


def rows_of(samples: Samples, keys: Sequence[str]) -> NDArray[np.int64]:
    """The row of each key, -1 where the build has none of it: (K,). Found by id, 8 B a sample, then by the key."""
    ids = np.array([key_id(key) for key in keys], np.int64)
    out = np.full(len(keys), -1, np.int64)
    by = np.argsort(ids, kind="stable")
    for begin, table in samples.pieces(["id"]):
        mine = table.column("id").to_numpy()
        there = np.flatnonzero(np.isin(mine, ids))
        for row, name in zip((begin + there).tolist(), mine[there].tolist(), strict=True):
            low, high = np.searchsorted(ids[by], [name, name + 1])
            out[by[low:high]] = row
    some = np.flatnonzero(out >= 0)
    named = samples.read(out[some], ["key"]).column("key").to_pylist()
    wrong = [n for n, key in zip(some.tolist(), named, strict=True) if keys[n] != key]
    out[wrong] = -1
    return out


def within(samples: Samples, box: Box) -> NDArray[np.int64]:
    """The rows of the samples whose footprint shares a point with a box (west, south, east, north): (M,), ascending."""
    found = [np.zeros(0, np.int64)]
    for begin, table in samples.pieces(["footprint"]):
        placed, corners = placed_corners(table)
        found.append(begin + placed[meets(rings(corners), box)])
    return np.concatenate(found)


def licensed(samples: Samples, names: Sequence[str]) -> NDArray[np.int64]:
    """The rows of the samples that are under one of these licences, names or patterns: (M,), ascending."""
    asked, found = Asked(names), [np.zeros(0, np.int64)]
    for begin, table in samples.pieces([name for name in (LICENCES,) if name in samples.schema.names]):
        found.append(begin + np.flatnonzero(asked.rows(table, samples.where)))
    return np.concatenate(found)


def placed_corners(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows of a table that have a footprint, (M,), and lon, lat of its corners, (M, 8)."""
    column = table.column("footprint").combine_chunks()
    rows = np.flatnonzero(np.asarray(column.value_lengths().fill_null(0)) == 8)
    return rows, corners_of(column.take(pa.array(rows)))
