"""The recipe for a folder of files on real satellite and aerial files (see the README beside them), file by file."""

from __future__ import annotations

import json
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine
from worlds import SHARED

import datakit
from datakit import boxes
from datakit.recipe import Recipe
from datakit.sample import Sample
from datakit.sources.labels import LabelReader
from datakit.stages.slice import grid

RS = SHARED / "rs"
pytestmark = pytest.mark.skipif(not RS.is_dir(), reason="the real test files are not at hand")
NARROW = {"cut.narrow": {"bands": ["red", "green", "blue"], "range": [0, 3000]}}


class Left:
    """Records that a build left, by file."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.kept: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.dropped: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in pq.read_table(out / "samples.parquet").to_pylist():
            self.kept[row["name"]].append(row)
        for row in pq.read_table(out / "dropped.parquet").to_pylist():
            self.dropped[row["name"]].append(row)

    def why(self, name: str) -> set[tuple[str, str]]:
        return {(row["stage"], row["dropped"]) for row in self.dropped[name]}

    def json(self, key: str) -> dict[str, Any]:
        with tarfile.open(self.out / "opticalrs_files-train-000000.tar") as tar:
            file = tar.extractfile(f"{key}.json")
            assert file is not None
            plain: dict[str, Any] = json.loads(file.read())
            return plain


def build(folder: Path, changes: dict[str, Any]) -> Left:
    out = folder / "out"
    datakit.build(Recipe.load("recipes/opticalrs_files.yaml", changes), data=RS, out=out, workers=0)
    return Left(out)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Left:
    return build(tmp_path_factory.mktemp("plain"), {})


@pytest.fixture(scope="module")
def narrowed(tmp_path_factory: pytest.TempPathFactory) -> Left:
    return build(tmp_path_factory.mktemp("narrowed"), NARROW)


def test_every_file_is_accounted_for(plain: Left) -> None:
    files = {p.name for p in RS.iterdir() if p.is_file()}
    assert files == set(plain.kept) | set(plain.dropped)
    assert set(plain.dropped) == {"corrupt.tif", "all-nodata.tif", "shade.tif"}


def test_a_file_that_opens_but_cannot_be_read_through(plain: Left) -> None:
    assert plain.why("corrupt.tif") == {("cut", "unreadable")}
    assert len(plain.dropped["corrupt.tif"]) == 4
    assert not plain.kept["corrupt.tif"]
    assert len(plain.kept["cogeo.tif"]) == 4  # the same file, whole


def test_sixteen_bits_go_by_dtype_and_their_nodata_when_narrowed(plain: Left, narrowed: Left) -> None:
    assert plain.why("all-nodata.tif") == {("exclude", "dtype")}
    assert narrowed.why("all-nodata.tif") == {("measured", "valid_share")}
    assert {row["valid_share"] for row in narrowed.dropped["all-nodata.tif"]} == {0.0}
    assert len(narrowed.dropped["all-nodata.tif"]) == len(grid(71, 2475, 512)) == 5


def test_one_band_goes_by_bands(plain: Left, narrowed: Left) -> None:
    assert plain.why("shade.tif") == narrowed.why("shade.tif") == {("exclude", "bands")}


def test_narrowing_leaves_eight_bits_alone(plain: Left, narrowed: Left) -> None:
    digests = [{r["key"]: r["pixel_digest"] for rows in left.kept.values() for r in rows} for left in (plain, narrowed)]
    assert digests[0] == digests[1]


def test_a_corner_outside_its_projection_is_no_crash(plain: Left) -> None:
    tiles = plain.kept["goes.tif"]
    assert len(tiles) == len(grid(542, 542, 512)) == 4
    assert all(row["footprint"] == [] for row in tiles)


def test_a_tile_maps_back_to_its_source_pixel(plain: Left) -> None:
    with rasterio.open(RS / "RGB.byte.tif") as raster:
        whole = raster.read()
        for row in plain.kept["RGB.byte.tif"]:
            about = plain.json(row["key"])
            left, top, width, height = about["window"]
            to_ground, to_pixel = Affine(*about["transform"]), ~raster.transform
            for col, line in ((0, 0), (width, 0), (width / 2 + 0.3, height / 3), (width, height)):
                x = to_ground.a * col + to_ground.b * line + to_ground.c
                y = to_ground.d * col + to_ground.e * line + to_ground.f
                back = (to_pixel.a * x + to_pixel.b * y + to_pixel.c, to_pixel.d * x + to_pixel.e * y + to_pixel.f)
                assert np.allclose(back, (left + col, top + line), atol=0.01)
            tile = whole[:, top : top + height, left : left + width]
            assert row["band_max"] == [int(v) for v in tile.max(axis=(1, 2))]
            assert row["valid_share"] == pytest.approx(float((tile != 0).any(axis=0).mean()))
            assert about["crs"] == "EPSG:32618"


@pytest.mark.parametrize("name", ["P0706", "P1888"])
def test_dota_images_are_sliced_with_their_boxes(plain: Left, name: str) -> None:
    with Image.open(RS / f"{name}.png") as image:
        size = image.size
    tiles = {tuple(row["window"]): row for row in plain.kept[f"{name}.png"]}
    assert set(tiles) == set(grid(*size, 512))
    read = LabelReader(
        *[s.collection.layout.labels for s in Recipe.load("recipes/opticalrs_files.yaml").sources], of_rs
    )
    said = read(Sample(name=f"{name}.png"))
    found = 0
    for window, row in tiles.items():
        shapes = boxes.loads(row["boxes"])
        left, top, width, height = window
        inside = [b for b in said.boxes if all(left <= x <= left + width for x in b.points[::2])
                  and all(top <= y <= top + height for y in b.points[1::2])]  # fmt: skip
        whole = [b for b in shapes if b.iof == 1.0]
        assert len(whole) >= len(inside)
        shifted = {tuple(np.add(b.points, [-left, -top] * (len(b.points) // 2)).round(6)) for b in inside}
        assert shifted <= {tuple(np.round(b.points, 6)) for b in whole}
        assert json.loads(row["boxes"]) == json.loads(plain.json(row["key"])["boxes"])
        found += len(shapes)
    assert found >= len(said.boxes) > 0
    assert all(row["gsd_m"] == said.gsd_m for row in tiles.values())


def of_rs(name: str) -> bytes | None:
    path = RS / name
    return path.read_bytes() if path.exists() else None


def test_a_jpeg_that_passes_whole_would_be_copied(tmp_path: Path) -> None:
    name = "389225main_sw_1965_1024.jpg"
    left = build(tmp_path, {"slice.grid.size_px": 1024})
    [row] = left.kept[name]
    assert row["copied"]
    with tarfile.open(left.out / "opticalrs_files-train-000000.tar") as tar:
        file = tar.extractfile(f"{row['key']}.jpg")
        assert file is not None
        assert file.read() == (RS / name).read_bytes()
