"""From a build to the map and back: keys lead to the pixels of their source, footprints to GIS, boxes to keys."""

from __future__ import annotations

import io
import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from test_dedup import put
from worlds import geotiff, recipe_of, scene

import datakit
from datakit.cli import main
from datakit.errors import ShardError
from datakit.image import quiet
from datakit.lonlat import box_of
from datakit.samples import Samples
from datakit.stream.source import opened

Out = pytest.CaptureFixture[str]
FIJI = {"crs": "EPSG:4326", "transform": from_origin(179.99, -16.0, 0.0001, 0.0001)}  # 179.99 E to 179.99 W
PNG = {"cut": {"encode": {"format": "png"}}, "exclude": {"rules": []}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of a scene in UTM 32, one over the date line, and one without a place."""
    folder = tmp_path_factory.mktemp("locate")
    geotiff(folder / "air" / "utm" / "a.tif", scene(300, 600, 500))
    geotiff(folder / "air" / "fiji.tif", scene(301, 200, 160), **FIJI)
    put(folder / "air" / "nowhere.png", scene(302, 180, 160))
    datakit.build(recipe_of("air", **PNG), data=folder, out=folder / "out", workers=0)
    return folder


def lines(capsys: Out) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def keys_of(world: Path) -> list[str]:
    found: list[str] = pq.read_table(world / "out" / "samples.parquet").column("key").to_pylist()
    return found


def test_a_key_leads_to_its_pixels(world: Path, capsys: Out) -> None:
    """The file and the window that are told hold what the shard holds, px for px."""
    tars = opened(world / "out")
    keys = tars.keys(np.arange(len(tars)))
    assert main(["locate", str(world / "out"), *keys]) == 0
    found = lines(capsys)
    assert [one["key"] for one in found] == keys
    for row, about in enumerate(found):
        left, top, width, height = about["window"]
        stored = np.asarray(Image.open(io.BytesIO(tars.read(row, "png")))).transpose(2, 0, 1)
        with quiet(), rasterio.open(world / "air" / about["path"]) as raster:
            window = rasterio.windows.Window(left, top, width, height)
            assert (raster.read(window=window) == stored).all()
            if about["crs"]:
                x, y = raster.transform * (left + width / 2, top + height / 2)
                (lon,), (lat,) = rasterio.warp.transform(raster.crs, "EPSG:4326", [x], [y])
                assert meets_point(about["polygon"], lon, lat)
    nowhere = next(one for one in found if one["name"] == "nowhere.png")
    assert (nowhere["polygon"], nowhere["window"]) == (None, [0, 0, 180, 160])


def meets_point(shape: dict[str, Any], lon: float, lat: float) -> bool:
    """Whether a point lies in a GeoJSON shape: it sees an odd number of sides to its east."""
    polygons = [shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"]
    count = 0
    for (ring,) in polygons:
        for (ax, ay), (bx, by) in pairwise(ring):
            if (ay > lat) != (by > lat):
                count += ax + (lat - ay) / (by - ay) * (bx - ax) > (lon + 180) % 360 - 180
    return count % 2 == 1


def test_a_key_that_is_not_there_is_said(world: Path, capsys: Out) -> None:
    key = keys_of(world)[0]
    assert main(["locate", str(world / "out"), "air-nobody", key, key]) == 1
    printed = capsys.readouterr()
    assert [json.loads(line)["found"] for line in printed.out.splitlines()] == [False, True, True]
    assert "air-nobody" in printed.err
    assert main(["locate", str(world / "nothing"), key]) == 1
    with pytest.raises(ShardError, match=r"samples\.parquet"):
        Samples(world / "air")


def test_a_box_gives_the_samples_that_lie_there(world: Path, capsys: Out, tmp_path: Path) -> None:
    out = str(world / "out")
    for box, names in (
        (["8", "48", "10", "49"], {"utm/a.tif"}),
        (["179.995", "-17", "-179.999", "-15"], {"fiji.tif"}),
        (["-180", "-17", "-179.995", "-15"], {"fiji.tif"}),
        (["-179", "-17", "179", "-15"], set()),
        (["-180", "-90", "180", "90"], {"utm/a.tif", "fiji.tif"}),
    ):
        assert main(["query", out, "--bbox", *box]) == 0
        assert {one["path"] for one in lines(capsys)} == names, box
    assert main(["query", out, "--bbox", "8", "48", "10", "49", "-o", str(tmp_path / "some.parquet")]) == 0
    (told,) = lines(capsys)
    some, every = pq.read_table(tmp_path / "some.parquet"), pq.read_table(world / "out" / "samples.parquet")
    assert (some.num_rows, set(some.column("name").to_pylist())) == (told["samples"], {"utm/a.tif"})
    assert some.schema.names == every.schema.names
    assert main(["query", out, "--bbox", "0", "1", "2", "0"]) == 1
    assert "W S E N" in capsys.readouterr().err


def test_only_the_tiles_under_a_small_box_are_found(world: Path, capsys: Out) -> None:
    """A box of a few metres about the middle of each tile's own footprint finds that tile."""
    table = pq.read_table(world / "out" / "samples.parquet").to_pylist()
    for row in (row for row in table if row["name"] == "utm/a.tif"):
        lon, lat = np.array(row["footprint"]).reshape(4, 2).mean(axis=0)
        box = [lon - 1e-6, lat - 1e-6, lon + 1e-6, lat + 1e-6]
        assert main(["query", str(world / "out"), "--bbox", *(f"{v:.9f}" for v in box)]) == 0
        found = {one["key"] for one in lines(capsys)}
        spans = {
            r["key"]: np.array(r["footprint"]).reshape(4, 2) for r in table if r["footprint"] and r["crs"] == row["crs"]
        }
        around = {key for key, c in spans.items() if (c.min(0) <= (lon, lat)).all() and (c.max(0) >= (lon, lat)).all()}
        assert row["key"] in found <= around


def rings_in(data: bytes) -> list[list[tuple[float, float]]]:
    """The rings of a WKB Polygon or MultiPolygon."""
    _, kind = struct.unpack_from("<BI", data)
    at, count = 5, 1
    if kind == 6:
        (count,), at = struct.unpack_from("<I", data, 5), 9
    found = []
    for _ in range(count):
        if kind == 6 or at == 5:
            at += 0 if kind == 3 else 5
        rings, points = struct.unpack_from("<II", data, at)
        assert rings == 1
        found.append([struct.unpack_from("<2d", data, at + 8 + 16 * n) for n in range(points)])
        at += 8 + 16 * points
    assert at == len(data)
    return found


@pytest.fixture(scope="module")
def tiles(world: Path) -> Path:
    path = world / "map" / "tiles.parquet"
    assert main(["footprints", str(world / "out"), "-o", str(path)]) == 0
    return path


def test_the_file_is_geoparquet(tiles: Path, world: Path) -> None:
    """What the specification asks of its metadata, its shapes and their boxes, read with pyarrow alone."""
    file = pq.ParquetFile(tiles)
    geo = json.loads(file.metadata.metadata[b"geo"])
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["MultiPolygon", "Polygon"])
    assert (column["orientation"], column["edges"], "crs" in column) == ("counterclockwise", "planar", False)
    assert column["covering"]["bbox"] == {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}
    assert file.schema.column(file.schema.names.index("geometry")).physical_type == "BYTE_ARRAY"
    table = file.read()
    records = {row["key"]: row for row in pq.read_table(world / "out" / "samples.parquet").to_pylist()}
    assert {row["key"] for row in table.to_pylist()} == {key for key, row in records.items() if row["footprint"]}
    bounds = []
    for row in table.to_pylist():
        rings = rings_in(row["geometry"])
        every = np.array([point for ring in rings for point in ring])
        assert [*every.min(0), *every.max(0)] == [row["bbox"][side] for side in ("xmin", "ymin", "xmax", "ymax")]
        bounds.append([*every.min(0), *every.max(0)])
        corners = np.array(records[row["key"]]["footprint"]).reshape(4, 2)
        if row["name"] == "fiji.tif":
            assert len(rings) == 2
        else:
            assert {tuple(p) for p in rings[0]} == {tuple(p) for p in corners.tolist()}
        for ring in rings:
            assert ring[0] == ring[-1]
            assert sum(ax * by - bx * ay for (ax, ay), (bx, by) in pairwise(ring)) > 0
    lows, highs = np.array(bounds)[:, :2].min(0), np.array(bounds)[:, 2:].max(0)
    assert column["bbox"] == [*lows, *highs]


def test_geopandas_reads_it(tiles: Path) -> None:
    frame = geopandas.read_parquet(tiles)
    table = pq.read_table(tiles)
    assert frame.crs == "OGC:CRS84"
    assert frame.key.tolist() == table.column("key").to_pylist()
    assert frame.geometry.is_valid.all()
    assert set(frame.geometry.geom_type) == {"Polygon", "MultiPolygon"}
    assert set(geopandas.read_parquet(tiles, bbox=(8, 48, 10, 49)).name) == {"utm/a.tif"}
    assert set(geopandas.read_parquet(tiles, bbox=(-180, -17, -179.995, -15)).name) == {"fiji.tif"}


def test_a_build_without_places_gives_an_empty_map(tmp_path: Path, capsys: Out) -> None:
    put(tmp_path / "air" / "a.png", scene(303, 180, 160))
    datakit.build(recipe_of("air", **PNG), data=tmp_path, out=tmp_path / "out", workers=0)
    capsys.readouterr()
    assert main(["footprints", str(tmp_path / "out"), "-o", str(tmp_path / "tiles.parquet")]) == 0
    (told,) = lines(capsys)
    assert (told["tiles"], told["without_place"]) == (0, 1)
    geo = json.loads(pq.read_metadata(tmp_path / "tiles.parquet").metadata[b"geo"])
    assert geo["columns"]["geometry"]["geometry_types"] == []


def test_boxes_are_read_as_they_are_given() -> None:
    assert box_of((170.0, -20.0, -170.0, -10.0)) == (170.0, -20.0, -170.0, -10.0)
