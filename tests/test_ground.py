"""Which tiles share ground, against every pair looked at one by one; a hundred thousand of them in seconds."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform as warp

from datakit import ground, place
from datakit.sample import Sample, Window, to_table
from datakit.stages.slice import Slice

LOCAL = str(CRS.from_string("+proj=tmerc +lon_0=9 +k=0.9996 +x_0=500000 +ellps=WGS84 +units=m").to_wkt())


def image(name: str, left: float, top: float, width: int, height: int, crs: str = "EPSG:32632") -> Sample:
    """An image at 1 m, `left` and `top` m from an origin, right and down."""
    sample = Sample(
        source="s",
        name=name,
        width=width,
        height=height,
        image_width=width,
        image_height=height,
        crs=crs,
        transform=(1.0, 0.0, 500_000.0 + left, 0.0, -1.0, 5_400_000.0 - top),
    )
    return placed(sample)


def placed(sample: Sample) -> Sample:
    whole = Window(0, 0, sample.width, sample.height)
    sides = {"image_width": sample.width, "image_height": sample.height} if sample.window is None else {}
    return replace(sample, footprint=place.footprints(sample, [whole])[0], **sides)


def cut(samples: list[Sample], size_px: int) -> list[Sample]:
    stage = Slice.model_validate({"grid": {"size_px": size_px}})
    return [tile for sample in samples for tile in stage.tiles(sample)]


def on_the_ground(tile: Sample) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in m, for tiles of 1 m pixels."""
    assert tile.transform is not None
    left, top = round(tile.transform[2] - 500_000), round(5_400_000 - tile.transform[5])
    return left, top, left + tile.width, top + tile.height


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_pairs_of_tiles_as_each_with_each(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [
        image(
            f"{n}",
            *rng.integers(0, rng.choice([60, 3000]), 2).tolist(),
            *rng.integers(1, rng.choice([20, 60, 200]), 2).tolist(),
            crs=LOCAL if rng.random() < 0.5 else "EPSG:32632",
        )
        for n in range(int(rng.integers(1, 12)))
    ]
    tiles = cut(samples, 32)
    tiles = [tiles[n] for n in rng.permutation(len(tiles)) if rng.random() < 0.7]  # others were dropped before
    found, not_aligned = ground.overlaps(to_table(tiles))
    assert not_aligned == 0
    expected = {}
    for (i, one), (j, other) in combinations(enumerate(tiles), 2):
        a, b = on_the_ground(one), on_the_ground(other)
        begin, end = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
        if one.name != other.name and (end > begin).all():
            first, second = (i, j) if one.name < other.name else (j, i)
            corners = [begin - on_the_ground(tiles[n])[:2] for n in (first, second)]
            expected[first, second] = [*corners[0].tolist(), *corners[1].tolist(), *(end - begin).tolist()]
    columns = np.concatenate([found.at_first, found.at_second, found.size], axis=1)
    keys = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert dict(zip(keys, columns.tolist(), strict=True)) == expected
    assert len(keys) == len(expected)
    names = [(tiles[i].name, tiles[j].name) for i, j in keys]
    assert names == sorted(names)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 60))
def test_balls_that_meet_as_each_with_each(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(count, 3))
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    centre[count // 2 :] = centre[: count - count // 2]  # some stand in one place
    radius = np.exp(rng.uniform(-8, 1, count))
    found = [tuple(pair) for pairs in ground.neighbours(centre, radius) for pair in pairs.tolist()]
    apart = np.linalg.norm(centre[:, None] - centre[None], axis=2)
    i, j = np.nonzero(apart <= radius[:, None] + radius)
    assert sorted(found) == [(a, b) for a, b in zip(i.tolist(), j.tolist(), strict=True) if a < b]


def test_a_hundred_thousand_tiles_in_seconds() -> None:
    """A mosaic of 250 x 200 images, half of them in another spelling, and 1 in 50 again, shifted, in another source."""
    rng = np.random.default_rng(0)
    mosaic = [(x * 400, y * 400, 400, 400) for x in range(250) for y in range(200)]
    again = [(x + 100, y + 100, 300, 300) for x, y, _, _ in mosaic if rng.random() < 0.02]
    names = [f"m{n}" for n in range(len(mosaic))] + [f"z{n}" for n in range(len(again))]
    samples = [
        replace(
            Sample(
                source="s",
                name=name,
                width=width,
                height=height,
                crs=LOCAL if n % 2 else "EPSG:32632",
                transform=(1.0, 0.0, 400_000.0 + left, 0.0, -1.0, 5_400_000.0 - top),
            )
        )
        for n, (name, (left, top, width, height)) in enumerate(zip(names, mosaic + again, strict=True))
    ]
    corners = np.array([[left + a * w, top + b * h] for left, top, w, h in mosaic + again for a, b in place.CORNERS])
    lons, lats = warp(CRS.from_epsg(32632), CRS.from_epsg(4326), 400_000 + corners[:, 0], 5_400_000 - corners[:, 1])
    flat = np.stack([lons, lats], axis=1).reshape(-1, 8).tolist()
    halves = [Window(0, 0, 200, 400), Window(200, 0, 200, 400)]
    tiles = []
    for sample, footprint in zip(samples, flat, strict=True):
        for half in halves if sample.name[0] == "m" else [Window(0, 0, 300, 300)]:
            transform, _ = place.shifted(sample, half)
            tiles.append(
                replace(
                    sample,
                    window=half,
                    width=half.width,
                    height=half.height,
                    transform=transform,
                    footprint=tuple(footprint),
                )
            )
    assert len(tiles) > 100_000
    table = to_table(tiles)
    start = time.perf_counter()
    found, not_aligned = ground.overlaps(table)
    seconds = time.perf_counter() - start
    assert not_aligned == 0
    assert len(found) == 2 * len(again)
    assert seconds < 30  # 2 s where this was written


def test_grids_that_are_turned_alike() -> None:
    """Rotated by the same angle, 37 columns and 21 rows apart; the upper windows of one were dropped before."""
    c, s = math.cos(0.4), math.sin(0.4)
    one = replace(image("a", 0, 0, 100, 100), transform=(c, s, 500_000.0, s, -c, 5_400_000.0))
    transform, _ = place.shifted(one, Window(37, 21, 60, 60))
    other = placed(replace(one, name="b", width=60, height=60, transform=transform))
    tiles = [tile for tile in cut([placed(one)], 50) if tile.window and tile.window.top]
    found, not_aligned = ground.overlaps(to_table([*tiles, other]))
    assert not_aligned == 0
    assert {tuple(shift) for shift in found.shift.tolist()} == {(-37, -21)}
    assert sorted(found.size.tolist()) == [[13, 31], [47, 31]]


@pytest.mark.parametrize("crs", ["EPSG:3413", "EPSG:3031"])
def test_poles(crs: str) -> None:
    """The pole in the middle of one image, beside a corner of the other."""
    one = Sample(source="s", name="a", width=100, height=100, crs=crs, transform=(10.0, 0, -500.0, 0, -10.0, 500.0))
    other = replace(one, name="b", transform=(10.0, 0, -100.0, 0, -10.0, 100.0))
    found, _ = ground.overlaps(to_table([placed(one), placed(other)]))
    assert found.size.tolist() == [[60, 60]]
    assert found.at_first.tolist() == [[40, 40]]
    assert found.shift.tolist() == [[-40, -40]]


@pytest.mark.parametrize("start", [-180.0, 0.0, 150.0])
def test_maps_of_the_world(start: float) -> None:
    """Whole, by quarters, and one small scene."""
    world = Sample(source="s", name="a", width=360, height=180, crs="EPSG:4326", transform=(1.0, 0, start, 0, -1.0, 90))
    again = replace(world, name="b")
    part = replace(world, name="c", width=20, height=10, transform=(1.0, 0, start + 300.0, 0, -1.0, 50.0))
    whole = [placed(world), placed(again), placed(part)]
    found, not_aligned = ground.overlaps(to_table(whole))
    assert not_aligned == 0
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2)]
    assert found.size.tolist() == [[360, 180], [20, 10], [20, 10]]
    quarters = cut([placed(world)], 100)
    found, _ = ground.overlaps(to_table([*quarters, placed(part)]))
    assert found.size.prod(axis=1).sum() >= 200
    assert set(found.second.tolist()) == {len(quarters)}


def test_the_date_line_from_both_sides() -> None:
    """UTM zones 60 and 1 reach across it; geographic degrees are counted from either side."""
    step = 0.001
    one = Sample(source="s", name="a", width=100, height=50, crs="EPSG:4326", transform=(step, 0, 179.95, 0, -step, 10))
    other = replace(one, name="b", transform=(step, 0, -180.05, 0, -step, 10))  # the same place
    west = replace(one, name="c", transform=(step, 0, -180.0, 0, -step, 10))  # its eastern half, and more
    found, not_aligned = ground.overlaps(to_table([placed(one), placed(other), placed(west)]))
    assert not_aligned == 0
    assert found.size.tolist() == [[100, 50], [50, 50], [50, 50]]
    assert found.shift.tolist() == [[0, 0], [-50, 0], [-50, 0]]
    x, y = warp(CRS.from_epsg(4326), CRS.from_epsg(32660), [179.97], [9.97])
    utm = replace(one, name="d", crs="EPSG:32660", transform=(100.0, 0, x[0], 0, -100.0, y[0]))
    assert ground.overlaps(to_table([placed(one), placed(utm)]))[1] == 1


def test_what_takes_no_part() -> None:
    one = image("a", 0, 0, 50, 50)
    others = [
        image("b", 50, 0, 50, 50),  # touches
        replace(one, name="c", footprint=()),
        replace(one, name="d", crs=""),
        replace(one, name="e", transform=None, gcps="[[0, 0, 500000, 5400000, 0]]"),
        replace(one, name="f", transform=(0.0, 0.0, 500_000.0, 0.0, 0.0, 5_400_000.0)),
        replace(one, name="g", transform=(float("nan"), 0.0, 500_000.0, 0.0, -1.0, 5_400_000.0)),
        replace(one, name="h", crs="no such CRS"),
        replace(one, window=Window(0, 0, 50, 50)),  # of the same image
    ]
    found, not_aligned = ground.overlaps(to_table([one, *others]))
    assert len(found) == 0
    assert not_aligned == 0
    assert len(ground.overlaps(to_table([]))[0]) == 0


def test_a_coarse_image_below_a_fine_one_is_counted() -> None:
    fine, coarse = image("a", 10, 10, 20, 20), image("b", 0, 0, 50, 50)
    coarse = placed(replace(coarse, transform=(100.0, 0.0, 500_000.0, 0.0, -100.0, 5_400_000.0)))
    assert ground.overlaps(to_table([fine, coarse]))[1] == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1.01, 1.3, 2.0, 7.77]))
def test_reduced_tiles_are_where_they_were_made(seed: int, gsd_m: float) -> None:
    """Transforms lead back to px of the source, whatever the scale; pairs are those of the windows themselves."""
    rng = np.random.default_rng(seed)
    samples = [image(f"{n}", *rng.integers(0, 90, 2).tolist(), *rng.integers(30, 150, 2).tolist()) for n in range(3)]
    samples = [replace(sample, gsd_m=1.0) for sample in samples]
    stage = Slice.model_validate({"grid": {"size_px": 16}, "gsd_m": gsd_m})
    tiles = [tile for sample in samples for tile in stage.tiles(sample)]
    assert {tile.scale for tile in tiles} == {gsd_m if gsd_m > 1.01 else 1.0}
    found, not_aligned = ground.overlaps(to_table(tiles))
    assert not_aligned == 0
    expected = set()
    for (i, one), (j, other) in combinations(enumerate(tiles), 2):
        a, b = (in_metres(samples[int(tile.name)], tile) for tile in (one, other))
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        if one.name != other.name and width > 0 and height > 0:
            expected.add((i, j, width, height))
    assert set(zip(found.first.tolist(), found.second.tolist(), *found.size.T.tolist(), strict=True)) == expected


def in_metres(sample: Sample, tile: Sample) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the source px that a tile of an image of 1 m was made of."""
    window = tile.window or Window(0, 0, sample.width, sample.height)
    left, top, _, _ = on_the_ground(sample)
    return left + window.left, top + window.top, left + window.left + window.width, top + window.top + window.height


def test_tiles_reduced_by_more_or_by_less_are_no_pair() -> None:
    fine, coarse = (replace(image(name, 0, 0, 64, 64), gsd_m=gsd) for name, gsd in (("a", 1.0), ("b", 0.5)))
    stage = Slice.model_validate({"grid": {"size_px": 16}, "gsd_m": 2.0})
    tiles = [tile for sample in (fine, coarse) for tile in stage.tiles(sample)]
    assert {tile.scale for tile in tiles} == {2.0, 4.0}
    found, not_aligned = ground.overlaps(to_table(tiles))
    assert (len(found), not_aligned) == (0, 1)


def test_points_of_one_crs_in_another() -> None:
    """One point that has no place takes nothing from the others."""
    lonlat = np.array([[9.0, 48.0], [10.0, 91.0], [8.0, 47.0]])
    moved = place.mapped("EPSG:4326", "EPSG:32632", lonlat)
    assert np.isnan(moved).tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert moved[0].tolist() == pytest.approx([500_000.0, 5_316_300.0], abs=1.0)
    assert place.mapped("EPSG:32632", "EPSG:4326", moved[[0, 2]]) == pytest.approx(lonlat[[0, 2]], abs=1e-9)
    assert np.isnan(place.mapped("no such CRS", "EPSG:4326", lonlat)).all()
    assert place.mapped("EPSG:4326", "EPSG:32632", lonlat[:0]).shape == (0, 2)


def test_a_whole_turn() -> None:
    assert place.whole_turn("EPSG:4326") == pytest.approx(360.0, abs=1e-9)
    assert place.whole_turn("EPSG:4807") == pytest.approx(400.0, abs=1e-9)  # NTF (Paris), in grads
    assert place.whole_turn("EPSG:32632") == place.whole_turn("") == 0
