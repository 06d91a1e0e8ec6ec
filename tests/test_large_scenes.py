"""Scenes larger than the memory of a worker: read by rows, in a process of their own whose peak is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.windows import Window
from worlds import scene

BUILD = """
import json, re, sys
from pathlib import Path
import datakit
from datakit.recipe import Recipe
recipe = Recipe.load("recipes/opticalrs_files.yaml")
manifest = datakit.build(recipe, data=sys.argv[1], out=sys.argv[2], workers=0, free=True)
status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
print(json.dumps({"samples": manifest.samples, "peak_bytes": peak, "counts": manifest.model_dump()["counts"]}))
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
LAYOUTS = {
    "tiled": {"compress": "jpeg", "photometric": "ycbcr", "tiled": True, "blockxsize": 512, "blockysize": 512},
    "striped": {"compress": "deflate", "zlevel": 1, "interleave": "pixel"},
}


def make_scene(path: Path, side_px: int, layout: str) -> None:
    """A GeoTIFF of side_px x side_px px, written 1,000 rows at a time."""
    rows = np.ascontiguousarray(np.moveaxis(np.tile(scene(1, 1000, 1000), (1, side_px // 1000, 1)), -1, 0))
    place = {"crs": CRS.from_epsg(32632), "transform": from_origin(300000, 5600000, 0.5, 0.5)}
    shape = {"width": side_px, "height": side_px, "count": 3, "dtype": "uint8", "bigtiff": "yes"}
    with rasterio.open(path, "w", "GTiff", **place, **shape, **LAYOUTS[layout]) as raster:
        for top in range(0, side_px, 1000):
            raster.write(rows, window=Window(0, top, side_px, 1000))


def build_alone(data: Path, out: Path) -> dict[str, int]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", BUILD, data, out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    plain: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    return plain


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_scene_of_256_megapixels_takes_less_than_its_own_size_and_a_bit(tmp_path: Path, layout: str) -> None:
    (tmp_path / "data").mkdir()
    make_scene(tmp_path / "data" / "scene.tif", 16_000, layout)
    done = build_alone(tmp_path / "data", tmp_path / "out")
    assert done["samples"] == 32 * 32
    assert done["peak_bytes"] < 0.7 * 2**30  # its pixels are 0.72 GiB


@pytest.mark.soak
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_scene_of_60000_px_takes_less_than_two_gib(tmp_path: Path, layout: str) -> None:
    (tmp_path / "data").mkdir()
    make_scene(tmp_path / "data" / "scene.tif", 60_000, layout)
    done = build_alone(tmp_path / "data", tmp_path / "out")
    assert done["samples"] == 118 * 118
    assert done["peak_bytes"] < 2 * 2**30
