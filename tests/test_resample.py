"""Images reduced to one ground sampling distance: against a slow restatement in floating point, pixel by pixel."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.transform import from_origin
from worlds import digests, geotiff, recipe_of, scene, source_of, work_done

import datakit
from datakit import boxes, image, pixels, scales
from datakit import plan as plans
from datakit.errors import StageError
from datakit.recipe import Recipe
from datakit.sample import Sample, Window
from datakit.scales import Reducer, in_reduced, in_source, nearest, reduced_size
from datakit.stages.exclude import Exclude
from datakit.stages.slice import Slice

Levels = NDArray[Any]
Mask = NDArray[np.bool_]


def shares(k: int, scale: float, length: int) -> NDArray[np.float64]:
    """How much of each px of a row lies below px k of the reduced row."""
    begin, end, px = k * scale, min((k + 1) * scale, length), np.arange(length)
    return np.clip(np.minimum(px + 1, end) - np.maximum(px, begin), 0, 1)


def slow(
    levels: Levels, valid: Mask | None, size: tuple[int, int], scales_: tuple[float, float]
) -> tuple[Levels, Levels]:
    """Means over areas and the share of each that is valid, in float64, px by px. size: (width, height)."""
    height, width = levels.shape[:2]
    mask = np.ones((height, width), bool) if valid is None else valid
    means, seen = np.zeros((size[1], size[0], levels.shape[2])), np.zeros((size[1], size[0]))
    for y in range(size[1]):
        down = shares(y, scales_[1], height)
        rows = np.flatnonzero(down)
        for x in range(size[0]):
            across = shares(x, scales_[0], width)
            columns = np.flatnonzero(across)
            weight = np.outer(down[rows], across[columns])
            part, ours = levels[np.ix_(rows, columns)].astype(float), weight * mask[np.ix_(rows, columns)]
            seen[y, x] = ours.sum() / weight.sum()
            used = ours if ours.sum() > 0 else weight
            means[y, x] = (part * used[:, :, None]).sum(axis=(0, 1)) / used.sum()
    return means, seen


def agrees(found: Levels, means: Levels, within: float = 1.0) -> None:
    assert found.shape == means.shape
    assert np.abs(found.astype(float) - means).max() <= within


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.floats(1.011, 90),
    st.sampled_from([np.uint8, np.uint16]),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.integers(1, 9),
    st.integers(0, 2**32),
)
@example(64, 64, 2.0, np.uint8, 1.0, 3, 0)
@example(64, 64, 1024.0, np.uint16, 0.5, 3, 0)
def test_means_are_those_of_the_slow_way(
    width: int, height: int, scale: float, dtype: Any, share: float, pieces: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, np.iinfo(dtype).max, (height, width, 3), dtype, endpoint=True)
    valid = rng.random((height, width)) < share
    valid[: height // 3] = False  # some rows come without a mask, some with
    valid[height // 2 :] |= share > 0.5
    sample = Sample(image_width=width, image_height=height, scale=scale)
    reducer, found = Reducer(sample, width, height), []
    for n in range(pieces):
        rows = slice(height * n // pieces, height * (n + 1) // pieces)
        if rows.start < rows.stop:
            found += list(reducer.add(levels[rows], valid[rows]))
    size = reduced_size(width, height, scale)
    means, seen = slow(levels, valid, size, (scale, scale))
    made = np.concatenate([means_ for means_, _ in found])
    marks = np.concatenate([np.ones(m.shape[:2], bool) if v is None else v for m, v in found])
    agrees(made, means)
    clear = np.abs(seen - 0.5) > 1e-4
    assert np.array_equal(marks[clear], (seen >= 0.5)[clear])
    (whole,) = list(Reducer(sample, width, height).add(levels, valid))
    assert np.array_equal(whole[0], made)


def test_rows_may_come_in_any_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = scene(1, 301, 203)
    sample = Sample(image_width=301, image_height=203, scale=2.37)
    ((whole, _),) = Reducer(sample, 301, 203).add(levels, None)
    monkeypatch.setattr(scales, "BAND_LEVELS", 301 * 3 * 4)
    pieces = [means for means, _ in Reducer(sample, 301, 203).add(levels, None)]
    assert len(pieces) > 30
    assert np.array_equal(np.concatenate(pieces), whole)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 70_000), st.integers(1, 70_000), st.floats(1.0101, 1024), st.integers(1, 1024), st.data())
def test_windows_in_px_of_the_source_lead_back(
    width: int, height: int, scale: float, side: int, data: st.DataObject
) -> None:
    across, down = reduced_size(width, height, scale)
    assert abs(across - width / scale) <= 0.5 or across == 1
    w, h = min(side, across), min(side, down)
    window = Window(data.draw(st.integers(0, across - w)), data.draw(st.integers(0, down - h)), w, h)
    source = in_source(window, scale, width, height)
    assert source.left >= 0
    assert source.left + source.width <= width
    assert source.top + source.height <= height
    sample = Sample(width=w, height=h, image_width=width, image_height=height, window=source, scale=scale)
    assert in_reduced(sample) == window
    assert abs(source.left - window.left * scale) <= 0.5
    assert abs(source.width - w * scale) <= 1 or source.left + source.width == width
    px = nearest(window.left, w, scale, width)
    assert 0 <= px.min() <= px.max() < width
    assert source.left - 1 <= px[0]
    assert px[-1] <= source.left + source.width


# records


def image_of(gsd_m: float | None = 0.3, **fields: Any) -> Sample:
    known: dict[str, Any] = {
        "key": "a-b", "source": "a", "name": "b.tif", "width": 1000, "height": 700, "image_width": 1000,
        "image_height": 700, "gsd_m": gsd_m,
    }  # fmt: skip
    return Sample(**{**known, **fields})


def sliced(gsd_m: float, size_px: int = 256, gap_px: int = 0) -> Slice:
    return Slice.model_validate({"gsd_m": gsd_m, "grid": {"size_px": size_px, "gap_px": gap_px}})


@pytest.mark.parametrize("gsd_m", [None, 0.0, 0.5, 0.4999, 0.4951, 0.6, 5.0, -1.0])
def test_images_that_are_not_finer_stay_as_they_are(gsd_m: float | None) -> None:
    sample = image_of(gsd_m)
    plain = Slice.model_validate({"grid": {"size_px": 256}})
    assert sliced(0.5).tiles(sample) == plain.tiles(sample)


def test_a_grid_covers_the_reduced_image_as_it_would_any() -> None:
    scale = 0.5 / 0.3
    tiles = sliced(0.5, 256, 32).tiles(image_of())
    whole = image_of(width=600, height=420, image_width=600, image_height=420)
    plain = Slice.model_validate({"grid": {"size_px": 256, "gap_px": 32}}).tiles(whole)
    assert [in_reduced(t) for t in tiles] == [t.window for t in plain]
    covered = np.zeros((700, 1000), bool)
    for tile in tiles:
        assert tile.window
        assert (tile.width, tile.height) == (256, 256)
        assert tile.scale == scale
        assert tile.gsd_m == pytest.approx(0.5, rel=1e-12)
        assert abs(tile.window.width - tile.width * tile.scale) <= 1
        left, top, width, height = tile.window
        covered[top : top + height, left : left + width] = True
    assert covered.all()
    assert len({t.key for t in tiles}) == len(tiles)


def test_small_images_pass_whole_and_reduced() -> None:
    (tile,) = sliced(3.0).tiles(image_of())
    assert (tile.width, tile.height, tile.window, tile.key) == (100, 70, None, "a-b")
    assert tile.scale == pytest.approx(10)
    (tiny,) = sliced(100.0).tiles(image_of())
    assert (tiny.width, tiny.height) == (3, 2)
    (one,) = sliced(3.0).tiles(image_of(width=7, height=9, image_width=7, image_height=9))
    assert (one.width, one.height, one.dropped) == (1, 1, "")
    (less,) = sliced(3.0).tiles(image_of(width=4, height=900, image_width=4, image_height=900))
    assert (less.dropped, less.detail, less.width) == ("smaller_than", "1 x 90 px at 3.0 m", 4)  # 0.4 of a px wide
    (lost,) = sliced(400.0).tiles(image_of())
    assert lost.dropped == "larger_than"
    assert "gsd_m would be 0.3" in lost.detail


def test_random_windows_are_of_the_reduced_image() -> None:
    way = Slice.model_validate({"gsd_m": 0.6, "random": {"side_px": [64, 200], "whole_if_side_at_most_px": 100}})
    tiles = way.tiles(image_of())
    assert len(tiles) > 3
    for tile in tiles:
        assert 64 <= tile.width == tile.height <= 200
        window = in_reduced(tile)
        assert window.left + window.width <= 500
        assert window.top + window.height <= 350


def test_places_boxes_and_control_points_follow_exactly() -> None:
    shape = boxes.Box("car", boxes.rectangle(100, 60, 130, 90))
    points = [[0, 0, 9.0, 48.0, 0.0], [1000, 0, 9.1, 48.0, 0.0], [0, 700, 9.0, 47.9, 0.0]]
    transform = (0.3, 0.01, 500_000.0, -0.02, -0.3, 5_400_000.0)
    sample = image_of(
        crs="EPSG:32632", transform=transform, gcps=json.dumps(points), boxes=boxes.dumps([shape]), gsd_m=0.3
    )
    scale = 0.5 / 0.3
    a, b, c, d, e, f = transform
    seen = []
    for tile in sliced(0.5).tiles(sample):
        at = in_reduced(tile)
        assert tile.transform
        ta, tb, tc, td, te, tf = tile.transform
        for col, row in ((0, 0), (256, 0), (13.5, 200.25)):
            x, y = (at.left + col) * scale, (at.top + row) * scale
            assert ta * col + tb * row + tc == pytest.approx(a * x + b * y + c, abs=1e-6)
            assert td * col + te * row + tf == pytest.approx(d * x + e * y + f, abs=1e-6)
        cols = [[p[0] / scale - at.left, p[1] / scale - at.top, *p[2:]] for p in points]
        assert np.allclose(json.loads(tile.gcps), cols)
        for box in boxes.loads(tile.boxes):
            back = [(v + (at.left, at.top)[n % 2]) * scale for n, v in enumerate(box.points)]
            assert back == pytest.approx(shape.points, abs=1e-5)
            seen.append(box.iof)
        assert len(tile.footprint) == 8
    assert sum(seen) == pytest.approx(1.0)


def test_boxes_of_an_image_that_passes_whole_are_those_that_it_shows() -> None:
    """33 of 33.3 px are left: a box in the last third of a px is gone, one that reaches into it is clipped."""
    inside, edge, outside = (boxes.rectangle(*at) for at in ((3, 3, 9, 9), (90, 6, 100, 9), (99.2, 6, 100, 9)))
    seen = boxes.through([boxes.Box("car", points) for points in (inside, edge, outside)], Window(0, 0, 100, 90))
    sample = image_of(gsd_m=1.0, width=100, height=90, image_width=100, image_height=90, boxes=boxes.dumps(seen))
    (whole,) = sliced(3.0).tiles(sample)
    (window,) = Slice.model_validate({"gsd_m": 3.0, "grid": {"size_px": 33}}).tiles(sample)
    assert (whole.width, whole.height, whole.window) == (33, 30, None)
    found = boxes.loads(whole.boxes)
    assert [len(box.points) for box in found] == [8, 8]
    assert max(found[1].clipped[::2]) == 33
    assert found[1].iof == pytest.approx(0.9)
    assert whole.boxes == window.boxes == boxes.dumps(boxes.through(found, Window(0, 0, 33, 30)))


SIZE_RULES = [
    {"rule": "smaller_than", "side_px": 64},
    {"rule": "longer_than", "ratio": 5, "name": "strip"},
    {"rule": "bands", "allow": ["red", "green", "blue"]},
]


def test_rules_over_sizes_hold_again_for_what_is_reduced(tmp_path: Path) -> None:
    """0.5 m becomes 5 m: of 100 x 91 px are left 10 x 9. What is coarse already keeps its size."""
    data = tmp_path / "data"
    geotiff(data / "a" / "small.tif", scene(1, 100, 91))
    geotiff(data / "a" / "large.tif", scene(2, 700, 650))
    geotiff(data / "a" / "tiny.tif", scene(3, 70, 63))
    geotiff(data / "a" / "strip.tif", scene(4, 3464, 694))  # 4.99 times as long; of 347 x 69 px, 5.03 times
    geotiff(data / "a" / "coarse.tif", scene(5, 100, 91), transform=from_origin(500_000, 5_400_000, 5, 5))
    recipe = recipe_for("a", gsd_m=5.0).model_copy(update={"exclude": Exclude.model_validate({"rules": SIZE_RULES})})
    plan = plans.look(recipe, {"a": data / "a"}, 99)["a"]
    counts = {c.stage: c for c in datakit.build(recipe, data, tmp_path / "out", workers=0).counts}
    assert counts["exclude"].dropped == {"smaller_than": 1}
    assert counts["slice"].dropped == {"smaller_than": 1, "strip": 1}
    assert counts["slice"].came == counts["slice"].left + 2 == 4
    assert plan.tiles == counts["slice"].made == counts["cut"].came == 2
    assert plan.dropped == Counter(counts["exclude"].dropped) + Counter(counts["slice"].dropped)
    left = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    details = {row["name"]: row["detail"] for row in left if row["detail"]}
    assert details == {"small.tif": "10 x 9 px at 5.0 m", "strip.tif": "347 x 69 px at 5.0 m"}
    assert {row["name"]: row["width"] for row in left} == {"small.tif": 100, "tiny.tif": 70, "strip.tif": 3464}


def test_what_rules_drop_of_reduced_images_counts_for_their_share(tmp_path: Path) -> None:
    for n in range(4):
        geotiff(tmp_path / "data" / "a" / f"{n}.tif", scene(n, 640 if n else 100, 640))
    rule = {"rule": "smaller_than", "side_px": 60}
    plain = recipe_for("a", gsd_m=5.0).model_dump(mode="json")
    kept = Recipe.model_validate({**plain, "exclude": {"rules": [{**rule, "max_share": 0.3}]}})
    assert datakit.build(kept, tmp_path / "data", tmp_path / "out", workers=0).samples == 3
    stopped = Recipe.model_validate({**plain, "exclude": {"rules": [{**rule, "max_share": 0.2}]}})
    with pytest.raises(StageError, match="smaller_than dropped 1 of 4"):
        datakit.build(stopped, tmp_path / "data", tmp_path / "other", workers=0)


def test_a_recipe_that_reduces_nothing_slices_as_before() -> None:
    rules = {"rules": SIZE_RULES}
    plain = recipe_for("a", gsd_m=None).model_copy(update={"exclude": Exclude.model_validate(rules)})
    assert plain.slicing() is plain.slice
    assert recipe_for("a").slicing() == recipe_for("a").slice


def test_boxes_made_larger_and_smaller() -> None:
    box = boxes.Box("a", (1.0, 2.0, 3.0, 4.0, 5.0, 0.5), iof=0.5, clipped=(1.0, 2.0, 3.0), kind="quad")
    (half,) = boxes.scaled([box], 0.5)
    assert half == boxes.Box("a", (0.5, 1.0, 1.5, 2.0, 2.5, 0.25), iof=0.5, clipped=(0.5, 1.0, 1.5), kind="quad")
    assert boxes.scaled([half], 2.0) == [box]


# builds


def recipe_for(*names: str, gsd_m: float | None = 1.2, size_px: int = 128, **stages: Any) -> Recipe:
    cut = {"encode": {"format": "png"}, **stages.pop("cut", {})}
    plain = recipe_of(*names, slice={"grid": {"size_px": size_px}}, cut=cut, **stages).model_dump(mode="json")
    plain["slice"]["gsd_m"] = gsd_m
    plain["exclude"] = {"rules": []}
    return Recipe.model_validate(plain)


def members(out: Path) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    for path in sorted(out.glob("*.tar")):
        found: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, suffix = info.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(info).read()  # type: ignore[union-attr]
        yield from ((json.loads(one["json"]), one) for one in found.values())


def together(out: Path, name: str, decode: Any = image.decode) -> Levels:
    """The reduced image, put together from its tiles: where they overlap they are the same."""
    tiles = [(about, one) for about, one in members(out) if about["name"] == name]
    about = tiles[0][0]
    width, height = reduced_size(about["image_width"], about["image_height"], about["scale"])
    whole: Levels | None = None
    seen = np.zeros((height, width), bool)
    for about, one in tiles:
        pixels_ = decode(one.get("png") or one["tif"])
        left, top = (round(v / about["scale"]) for v in about["window"][:2])
        place = np.s_[top : top + about["height"], left : left + about["width"]]
        whole = np.zeros((height, width, pixels_.shape[2]), pixels_.dtype) if whole is None else whole
        assert np.array_equal(whole[place][seen[place]], pixels_[seen[place]])
        whole[place], seen[place] = pixels_, True
    assert seen.all()
    assert whole is not None
    return whole


SIZE = (331, 270)
LAYOUTS: dict[str, dict[str, Any]] = {
    "tiled": {"tiled": True, "blockxsize": 64, "blockysize": 64},
    "striped": {"blockysize": 7},
    "deflate": {"compress": "deflate", "blockysize": 100},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gsd_m", [1.2, 0.77, 3.1])
def test_tiles_are_the_slow_means_of_the_scene(
    tmp_path: Path, layout: str, gsd_m: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "BAND_PX", 1 << 13)  # rows come in many pieces
    picture = scene(1, *SIZE)
    geotiff(tmp_path / "a" / "scene.tif", picture, **LAYOUTS[layout])
    datakit.build(recipe_for("a", gsd_m=gsd_m, size_px=50), data=tmp_path, out=tmp_path / "out", workers=0)
    (about, _), *_ = members(tmp_path / "out")
    assert about["gsd_m"] == pytest.approx(gsd_m)
    assert about["scale"] == pytest.approx(gsd_m / 0.5, rel=1e-3)  # UTM is not quite true to scale
    size = reduced_size(*SIZE, about["scale"])
    means, _ = slow(picture, None, size, (about["scale"],) * 2)
    agrees(together(tmp_path / "out", "scene.tif"), means)


@pytest.mark.parametrize("kind", ["png", "jpg", "alpha", "turned"])
def test_plain_files_are_reduced_too(tmp_path: Path, kind: str) -> None:
    """Their distance is told by labels or manifests; here by a manifest."""
    (tmp_path / "a").mkdir()
    picture, valid = scene(2, 200, 150), None
    opened = Image.fromarray(picture)
    if kind == "jpg":
        opened.save(tmp_path / "a" / "x.jpg", quality=90)
        picture = np.asarray(Image.open(tmp_path / "a" / "x.jpg"))
    elif kind == "alpha":
        valid = np.random.default_rng(0).random((150, 200)) < 0.7
        Image.fromarray(np.dstack([picture, valid * np.uint8(255)])).save(tmp_path / "a" / "x.png")
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        opened.save(tmp_path / "a" / "x.png", exif=exif)
        picture = np.ascontiguousarray(np.rot90(picture, -1))
    else:
        opened.save(tmp_path / "a" / "x.png")
    plain = recipe_for("a", gsd_m=1.2, size_px=64).model_dump(mode="json")
    plain["sources"][0]["collection"]["gsd_m"] = [0.5, 0.5]
    datakit.build(Recipe.model_validate(plain), data=tmp_path, out=tmp_path / "out", workers=0)
    name = "x.jpg" if kind == "jpg" else "x.png"
    means, seen = slow(picture, valid, reduced_size(picture.shape[1], picture.shape[0], 2.4), (2.4, 2.4))
    agrees(together(tmp_path / "out", name), means)
    rows = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    for row in rows:
        left, top = (round(v / 2.4) for v in row["window"][:2])
        mine = seen[top : top + row["height"], left : left + row["width"]]
        assert row["valid_share"] == pytest.approx((mine >= 0.5).mean(), abs=0.002)


@pytest.mark.parametrize("piece_px", [1 << 24, 1 << 12])
def test_what_is_not_valid_is_not_averaged_in(tmp_path: Path, piece_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "BAND_PX", piece_px)
    picture = np.maximum(scene(3, *SIZE), 1)
    valid = np.ones(picture.shape[:2], bool)
    valid[:90, :] = False
    valid[:, 200:260] = False
    valid[np.random.default_rng(1).random(valid.shape) < 0.2] = False
    geotiff(tmp_path / "a" / "scene.tif", np.where(valid[:, :, None], picture, np.uint8(0)), nodata=0, blockysize=16)
    datakit.build(recipe_for("a", size_px=64), data=tmp_path, out=tmp_path / "out", workers=0)
    (about, _), *_ = members(tmp_path / "out")
    means, seen = slow(picture * valid[:, :, None], valid, reduced_size(*SIZE, about["scale"]), (about["scale"],) * 2)
    agrees(together(tmp_path / "out", "scene.tif"), means)
    for row in pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist():
        left, top = (round(v / row["scale"]) for v in row["window"][:2])
        mine = seen[top : top + row["height"], left : left + row["width"]]
        assert row["valid_share"] == (mine >= 0.5).mean()


def test_collars_are_found_before_reducing(tmp_path: Path) -> None:
    picture = np.maximum(scene(4, 320, 240), 20)
    picture[:, :110] = 0
    geotiff(tmp_path / "a" / "scene.tif", picture)
    datakit.build(recipe_for("a", size_px=200), data=tmp_path, out=tmp_path / "out", workers=0)
    (row,) = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    assert row["valid_share"] == pytest.approx(210 / 320, abs=0.01)
    assert row["band_min"][0] >= 20  # no black of the collar in a px at its edge


@pytest.mark.parametrize("how", [Resampling.average, Resampling.nearest])
def test_overviews_are_used_where_they_are_fine_enough(tmp_path: Path, how: Resampling) -> None:
    picture = scene(5, 801, 600)
    path = tmp_path / "a" / "scene.tif"
    geotiff(path, picture, tiled=True, blockxsize=128, blockysize=128)
    with rasterio.open(path, "r+") as raster:
        raster.build_overviews([2, 4, 8], how)
    overviews = {}
    for n, factor in enumerate((2, 4, 8)):
        with rasterio.open(path, overview_level=n) as raster:
            overviews[factor] = np.moveaxis(raster.read(), 0, -1)
    for gsd_m, factor in ((0.8, 1), (1.1, 2), (2.9, 4), (6.0, 8)):
        out = tmp_path / f"out{gsd_m}"
        datakit.build(recipe_for("a", gsd_m=gsd_m, size_px=100), data=tmp_path, out=out, workers=0)
        (about, _), *_ = members(out)
        source = overviews.get(factor, picture)
        step = [about["scale"] * source.shape[1] / 801, about["scale"] * source.shape[0] / 600]
        means, _ = slow(source, None, reduced_size(801, 600, about["scale"]), (step[0], step[1]))
        found = together(out, "scene.tif")
        agrees(found, means)
        if how == Resampling.average and factor > 1:  # and so they look as the scene itself would
            direct, _ = slow(picture, None, reduced_size(801, 600, about["scale"]), (about["scale"],) * 2)
            assert np.abs(found - direct).mean() < 3


def test_an_overview_without_a_mask_of_its_own_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a" / "scene.tif"
    picture = scene(6, 400, 300)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        geotiff(path, picture)
        with rasterio.open(path, "r+") as raster:
            raster.write_mask(np.arange(400)[None, :].repeat(300, 0) < 200)
            raster.build_overviews([2], Resampling.nearest)
    datakit.build(recipe_for("a", gsd_m=1.0, size_px=250), data=tmp_path, out=tmp_path / "out", workers=0)
    (row,) = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    assert row["valid_share"] == pytest.approx(0.5, abs=0.01)


def test_levels_are_reduced_and_then_shown(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    levels = (scene(7, 260, 200).astype(np.uint16) * 11)[:, :, [0, 1, 2, 0, 1]] + rng.integers(0, 50, (200, 260, 5))
    levels = levels.astype(np.uint16)
    geotiff(tmp_path / "deep" / "a.tif", levels)
    source = source_of("deep")
    source["collection"] |= {"bands": ["blue", "green", "red", "nir", "swir_1"], "modality": "multispectral"}
    narrow = {"bands": ["red", "green", "blue"], "percentiles": [1, 99]}
    plain = recipe_for("deep", size_px=70, cut={"encode": {"format": "tiff16"}, "narrow": narrow})
    recipe = Recipe.model_validate({**plain.model_dump(mode="json"), "sources": [source]})
    datakit.build(recipe, data=tmp_path, out=tmp_path / "out", workers=0)

    def read(data: bytes) -> Levels:
        with image.quiet(), MemoryFile(data) as memory, memory.open() as raster:
            return np.moveaxis(raster.read(), 0, -1)

    (about, _), *_ = members(tmp_path / "out")
    means, _ = slow(levels, None, reduced_size(260, 200, about["scale"]), (about["scale"],) * 2)
    agrees(together(tmp_path / "out", "a.tif", read), means)
    limits = json.loads(about["narrowed"])
    whole = np.percentile(levels[:, :, [2, 1, 0]].reshape(-1, 3), [1, 99], axis=0)  # of the scene as it is
    assert [limits["low"], limits["high"]] == whole.tolist()
    by_key = {row["key"]: row for row in pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()}
    assert len(by_key) == 4
    for row in by_key.values():
        assert row["narrowed"] == about["narrowed"]
    for said, one in members(tmp_path / "out"):
        low, high = whole
        stored = read(one["tif"])
        shown = (stored[:, :, [2, 1, 0]].astype(float) - low) * (255 / (high - low)) + 0.5
        luma = np.clip(shown, 0, 255).astype(np.uint8).astype(int) @ [19595, 38470, 7471] + 0x8000 >> 16
        row = next(r for r in by_key.values() if r["window"] == said["window"])
        assert row["luma_mean"] == pytest.approx(luma.mean(), rel=1e-12)
        assert row["band_sum"] == stored.reshape(-1, 5).sum(axis=0, dtype=np.int64).tolist()


def test_masks_are_taken_at_the_centres(tmp_path: Path) -> None:
    (tmp_path / "land" / "images").mkdir(parents=True)
    (tmp_path / "land" / "masks").mkdir()
    mask = np.random.default_rng(2).integers(0, 9, (SIZE[1], SIZE[0]), np.uint8)
    Image.fromarray(scene(8, *SIZE)).save(tmp_path / "land" / "images" / "a.png")
    Image.fromarray(mask).save(tmp_path / "land" / "masks" / "a.png")
    source = source_of("land")
    labels = [{"kind": "mask", "path": "{dir}/../masks/{stem}.png"}]
    source["collection"]["layout"] = {"images": ["images/*"], "label_files": ["masks/*"], "labels": labels}
    source["collection"]["gsd_m"] = [0.5, 0.5]
    for gsd_m, size_px in ((0.8, 70), (1.35, 50), (6.0, 64)):
        plain = recipe_for("land", gsd_m=gsd_m, size_px=size_px, cut={"masks": True}).model_dump(mode="json")
        out = tmp_path / f"out{gsd_m}"
        datakit.build(Recipe.model_validate({**plain, "sources": [source]}), data=tmp_path, out=out, workers=0)
        scale = gsd_m / 0.5
        for about, one in members(out):
            with Image.open(io.BytesIO(one["seg.png"])) as opened:
                found = np.asarray(opened)
            left, top = (round(v / scale) for v in about["window"][:2])
            expected = [
                [
                    mask[
                        min(math.floor((top + y + 0.5) * scale), SIZE[1] - 1),
                        min(math.floor((left + x + 0.5) * scale), SIZE[0] - 1),
                    ]
                    for x in range(about["width"])
                ]
                for y in range(about["height"])
            ]
            assert np.array_equal(found, expected)


def test_a_jpeg_is_copied_only_at_its_own_scale(tmp_path: Path) -> None:
    for name in ("fine", "same"):
        (tmp_path / name).mkdir()
        Image.fromarray(scene(9, 200, 150)).save(tmp_path / name / "a.jpg", quality=90)
    plain = recipe_for("fine", "same", gsd_m=1.0, size_px=256, cut={"encode": {"format": "jpeg"}})
    recipe = plain.model_dump(mode="json")
    for source, gsd_m in zip(recipe["sources"], (0.5, 1.0), strict=True):
        source["collection"]["gsd_m"] = [gsd_m, gsd_m]
    datakit.build(Recipe.model_validate(recipe), data=tmp_path, out=tmp_path / "out", workers=0)
    found = {about["source"]: (about, one["jpg"]) for about, one in members(tmp_path / "out")}
    assert found["same"][1] == (tmp_path / "same" / "a.jpg").read_bytes()
    about, data = found["fine"]
    assert image.decode(data).shape == (75, 100, 3)
    assert (about["width"], about["height"], about["window"], about["scale"]) == (100, 75, [0, 0, 200, 150], 2.0)


def test_the_same_bytes_with_workers_and_nothing_opened_twice(tmp_path: Path) -> None:
    for n in range(3):
        geotiff(tmp_path / "data" / "a" / f"{n}.tif", scene(n, 300, 260))
    recipe = recipe_for("a", gsd_m=0.8, size_px=100)
    datakit.build(recipe, data=tmp_path / "data", out=tmp_path / "one", workers=0)
    datakit.build(recipe, data=tmp_path / "data", out=tmp_path / "two", workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    geotiff(tmp_path / "data" / "a" / "1.tif", scene(20, 300, 260))
    datakit.build(recipe, data=tmp_path / "data", out=tmp_path / "one", workers=0)
    assert work_done(tmp_path / "one")["images_opened"] == 1
    assert work_done(tmp_path / "one")["images_carried_over"] == 2
    datakit.build(recipe, data=tmp_path / "data", out=tmp_path / "fresh", workers=0)
    assert digests(tmp_path / "one") == digests(tmp_path / "fresh")


BUILD = """
import re, sys
from pathlib import Path
import datakit
from datakit.recipe import Recipe
changes = {"slice.gsd_m": float(sys.argv[3]), "cut.measure": True}
recipe = Recipe.load("recipes/opticalrs_files.yaml", changes)
manifest = datakit.build(recipe, data=sys.argv[1], out=sys.argv[2], workers=0, free=True)
status = Path("/proc/self/status").read_text()
print(manifest.samples, int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("gsd_m", [0.8, 5.0])
def test_a_scene_of_144_megapixels_is_reduced_by_rows(tmp_path: Path, gsd_m: float) -> None:
    (tmp_path / "data").mkdir()
    side = 12_000
    rows = np.ascontiguousarray(np.moveaxis(np.tile(scene(1, 1000, 1000), (1, side // 1000, 1)), -1, 0))
    place = {"crs": CRS.from_epsg(32632), "transform": from_origin(300000, 5600000, 0.5, 0.5)}
    shape = {"width": side, "height": side, "count": 3, "dtype": "uint8", "compress": "deflate", "zlevel": 1}
    with rasterio.open(tmp_path / "data" / "scene.tif", "w", "GTiff", interleave="pixel", **place, **shape) as raster:
        for top in range(0, side, 1000):
            raster.write(rows, window=rasterio.windows.Window(0, top, side, 1000))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, tmp_path / "data", tmp_path / "out", str(gsd_m)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    samples, peak_bytes = map(int, done.stdout.split()[-2:])
    assert samples == math.ceil(side / (gsd_m / 0.5) / 512) ** 2
    assert peak_bytes < 0.7 * 2**30  # its pixels are 0.4 GiB, beside 0.25 of libraries
