"""The footprints of a build as GeoParquet 1.1: polygons as WKB, with the columns that a map is coloured by.

Written by the specification (opengeospatial/geoparquet, format-specs/geoparquet.md). Longitude and latitude of WGS 84
need no `crs`. A tile over the date line is a MultiPolygon that is cut there (RFC 7946, 3.1.9), and its box spans -180
to 180: a box with xmin over xmax, as RFC 7946 has it, is passed over by readers that compare numbers.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .locate import placed_corners
from .lonlat import Floats, areas, crosses, pieces, rings
from .samples import Samples

COLUMNS = ["key", "id", "source", "split", "name", "path", "label", "gsd_m", "acquired", "licences"]
SIDES = ("xmin", "ymin", "xmax", "ymax")
POLYGON, MULTIPOLYGON = 3, 6  # of WKB
_WKB = np.dtype([("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("xy", "<f8", (5, 2))])
_FIELDS = [
    pa.field("geometry", pa.binary()),
    pa.field("bbox", pa.struct([pa.field(side, pa.float64(), False) for side in SIDES])),
]


def write(samples: Samples, path: Path) -> dict[str, int]:
    """Write the footprints; gives how many tiles, and how many have no place and are left out."""
    fields = [samples.schema.field(name) for name in COLUMNS if name in samples.schema.names]
    names = [field.name for field in fields]
    count = {"tiles": 0, "without_place": 0}
    kinds: set[str] = set()
    bounds: list[Floats] = []
    aside = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(aside, pa.schema([*fields, *_FIELDS]), compression="zstd") as writer:
        for _, table in samples.pieces([*names, "footprint"]):
            rows, corners = placed_corners(table)
            count["tiles"] += len(rows)
            count["without_place"] += table.num_rows - len(rows)
            if len(rows):
                shapes, boxes, many = encoded(corners)
                kinds |= {("Polygon", "MultiPolygon")[each] for each in np.unique(many).tolist()}
                bounds += [boxes.reshape(-1, 2, 2)[:, 0].min(axis=0), boxes.reshape(-1, 2, 2)[:, 1].max(axis=0)]
                box = pa.StructArray.from_arrays([pa.array(side) for side in boxes.T], fields=list(_FIELDS[1].type))
                placed = table.select(names).take(pa.array(rows))
                writer.write_table(placed.append_column(_FIELDS[0], shapes).append_column(_FIELDS[1], box))
        total = [*np.min(bounds, axis=0).tolist(), *np.max(bounds, axis=0).tolist()] if bounds else None
        writer.add_key_value_metadata({"geo": json.dumps(about(sorted(kinds), total))})
    aside.replace(path)
    return count


def about(kinds: list[str], bounds: list[float] | None) -> dict[str, Any]:
    """What the key `geo` of the file's metadata says."""
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": kinds,
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": {side: ["bbox", side] for side in SIDES}},
    }
    column |= {"bbox": bounds} if bounds else {}
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def encoded(corners: Floats) -> tuple[pa.Array, Floats, NDArray[np.bool_]]:
    """Footprints (N, 8) as WKB against the clock, their boxes (N, 4), and which of them are in several parts (N,)."""
    polygons = rings(corners)
    quads = polygons[:, :4].copy()
    wrong = areas(quads) < 0
    quads[wrong] = quads[wrong, ::-1]
    plain = np.zeros(len(quads), _WKB)
    plain["order"], plain["kind"], plain["rings"], plain["points"] = 1, POLYGON, 1, 5
    plain["xy"][:, :4], plain["xy"][:, 4] = quads, quads[:, 0]
    boxes = np.concatenate([quads.min(axis=1), quads.max(axis=1)], axis=1)
    many = np.zeros(len(quads), bool)
    cut = np.flatnonzero(crosses(polygons))
    if not len(cut):
        offsets = np.arange(len(quads) + 1, dtype=np.int32) * _WKB.itemsize
        return pa.Array.from_buffers(pa.binary(), len(quads), [None, *map(pa.py_buffer, (offsets, plain))]), boxes, many
    shapes = [row.tobytes() for row in plain]
    for n in cut.tolist():
        parts = pieces(polygons[n]) or [quads[n]]  # one without area
        every = np.concatenate(parts)
        shapes[n], many[n] = spelled(parts), len(parts) > 1
        boxes[n] = [*every.min(axis=0), *every.max(axis=0)]
    return pa.array(shapes, pa.binary()), boxes, many


def spelled(parts: list[Floats]) -> bytes:
    """Polygons of one ring each, (K, 2), as WKB: a Polygon, or a MultiPolygon."""
    made = []
    for part in parts:
        closed = np.concatenate([part, part[:1]]).astype("<f8")
        made.append(struct.pack("<BIII", 1, POLYGON, 1, len(closed)) + closed.tobytes())
    return made[0] if len(made) == 1 else struct.pack("<BII", 1, MULTIPOLYGON, len(made)) + b"".join(made)
