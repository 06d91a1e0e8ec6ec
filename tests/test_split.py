"""Geographic splits: sides by place, a buffer between them, held to brute force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from rasterio.transform import from_origin
from test_dedup import put
from worlds import geotiff, recipe_of, scene

import datakit
from datakit.errors import StageError
from datakit.footprints import EARTH_KM, near, on_sphere, overlap_shares
from datakit.manifest import Manifest
from datakit.place import footprints
from datakit.sample import SCHEMA, Sample, Window, to_table
from datakit.sides import BUFFER, UNPLACED, Split, block_of, middles
from datakit.stages.slice import grid

Floats = NDArray[np.float64]
SHARES = {"train": 0.7, "val": 0.2, "test": 0.1}
STEPS = 40  # points of a side


def outline(corners: Floats) -> Floats:
    """Points of the sphere along the sides of a footprint, great circles, (4 * STEPS, 3)."""
    quad = on_sphere(corners.reshape(4, 2))
    t = np.arange(STEPS)[:, None] / STEPS
    points = np.concatenate([quad[k] * (1 - t) + quad[(k + 1) % 4] * t for k in range(4)])
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def distance_km(one: Floats, other: Floats) -> tuple[float, float]:
    """Distance of two footprints, at most and at least: by points along their sides, 0 where they overlap."""
    if overlap_shares(one[None], other[None])[0] > 0:
        return 0.0, 0.0
    a, b = outline(one), outline(other)
    chord = np.sqrt(max(2 - 2 * float((a @ b.T).max()), 0))
    step = max(np.linalg.norm(np.diff(points, axis=0), axis=1).max() for points in (a, b))
    return 2 * EARTH_KM * np.arcsin(chord / 2), max(chord - step, 0) * EARTH_KM


def quads(rng: np.random.Generator, count: int, lon: float, lat: float, spread: float) -> Floats:
    """Rectangles of 0.2 to 2 km about places, turned; degrees of longitude are as narrow as the latitude makes them."""
    degree = EARTH_KM * np.pi / 180
    middle = rng.uniform(-spread, spread, (count, 1, 2))
    half = rng.uniform(0.1, 1.0, (count, 1, 2)) * [[[-1, 1], [1, 1], [1, -1], [-1, -1]]]
    angle = rng.uniform(0, 6.3, count)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    km = middle + half @ turn
    out = km / [degree * np.cos(np.radians(lat)), degree] + [lon, lat]
    out[..., 0] = (out[..., 0] + 180) % 360 - 180
    return out.reshape(count, 8)


places = st.sampled_from([(10.0, 50.0), (179.99, -17.0), (-180.0, 66.0), (0.0, 0.0), (30.0, 80.0)])


@settings(max_examples=25)
@given(places, st.integers(0, 2**32), st.sampled_from([0.0, 0.05, 0.7, 3.0]))
def test_what_is_near_is_what_brute_force_finds(place: tuple[float, float], seed: int, limit_km: float) -> None:
    rng = np.random.default_rng(seed)
    one, other = quads(rng, 6, *place, 5.0), quads(rng, 8, *place, 5.0)
    found = near(one, other, limit_km)
    for n, each in enumerate(other):
        bounds = [distance_km(mine, each) for mine in one]
        overlaps = any(overlap_shares(mine[None], each[None])[0] > 0 for mine in one)
        if overlaps or min(high for high, _ in bounds) < limit_km:
            assert found[n]
        elif min(low for _, low in bounds) > limit_km:
            assert not found[n]


def records(scenes: int, seed: int, spread_m: float, lon: float = 9.0) -> pa.Table:
    """Tiles of scenes strewn over a zone of UTM; one in eight has no place."""
    rng = np.random.default_rng(seed)
    samples = []
    zone = int((lon + 180) // 6) + 1
    for n in range(scenes):
        x, y = 500000 + rng.uniform(-spread_m, spread_m), 5400000 + rng.uniform(-spread_m, spread_m)
        place = {"crs": f"EPSG:{32600 + zone}", "transform": (5.0, 0.0, x, 0.0, -5.0, y)} if n % 8 else {}
        whole = Sample(source="air", name=f"{n}.tif", image_width=600, image_height=500, width=600, height=500, **place)
        windows = list(grid(600, 500, 256))
        for window, corners in zip(windows, footprints(whole, windows), strict=True):
            samples.append(tile(whole, window, corners))
    return to_table(samples)


def tile(whole: Sample, window: Window, corners: tuple[float, ...]) -> Sample:
    transform = whole.transform
    if transform:
        a, b, c, d, e, f = transform
        transform = (a, b, c + a * window.left, d, e, f + e * window.top)
    place = {"crs": whole.crs, "transform": transform, "window": window, "footprint": corners}
    return Sample(source=whole.source, name=whole.name, image_width=600, image_height=500, **place)


def of(table: pa.Table) -> tuple[list[str], Floats]:
    corners = [row or [0.0] * 8 for row in table.column("footprint").to_pylist()]
    return table.column("name").to_pylist(), np.array(corners)


@settings(max_examples=10, phases=[Phase.generate])  # a world is too large to be shrunk
@given(st.integers(0, 2**32), st.sampled_from(["block", "scene"]), st.sampled_from([0.0, 0.4, 2.0]))
def test_no_two_sides_are_near_and_scenes_are_whole(seed: int, by: str, buffer_km: float) -> None:
    table = records(12, seed, 6000)
    size = {"size_km": 4.0} if by == "block" else {}
    split = Split.model_validate({"by": by, "buffer_km": buffer_km, "shares": SHARES, **size})
    side, why = split.sides(table, seed)
    names, corners = of(table)
    placed = corners.any(axis=1)
    by_scene: dict[str, set[str]] = {}
    for name, each in zip(names, side.tolist(), strict=True):
        by_scene.setdefault(name, set()).add(each)
    assert all(len(sides) == 1 for sides in by_scene.values())
    assert set(why.tolist()) <= {"", BUFFER, UNPLACED}
    assert (why[~placed] == (UNPLACED if by == "block" else "")).all()
    assert (why[placed] != UNPLACED).all()
    kept = np.flatnonzero((why == "") & placed)
    n, m = np.array([(n, m) for n in kept for m in kept[kept > n] if side[n] != side[m]], np.int64).reshape(-1, 2).T
    assert (overlap_shares(corners[n], corners[m]) == 0).all()
    for one, other in zip(corners[n], corners[m], strict=True):
        assert distance_km(one, other)[0] >= buffer_km
    for n in np.flatnonzero(why == BUFFER).tolist():  # for nothing none goes
        rarer = kept[[SHARES[s] < SHARES[side[n]] for s in side[kept].tolist()]]
        least = [distance_km(corners[n], corners[m])[1] for m in rarer.tolist()]
        assert min(least) < max(buffer_km, 1e-9)


@given(st.integers(0, 2**32), st.sampled_from(["block", "scene"]))
def test_a_set_that_grows_keeps_its_sides(seed: int, by: str) -> None:
    large = records(24, seed, 30000)
    small = large.take(pa.array(np.flatnonzero(np.random.default_rng(seed).random(large.num_rows) < 0.4)))
    size = {"size_km": 10.0} if by == "block" else {}
    split = Split.model_validate({"by": by, "shares": SHARES, **size})
    told = [dict(zip(of(table)[0], split.sides(table, 5)[0].tolist(), strict=True)) for table in (large, small)]
    assert all(told[0][name] == side for name, side in told[1].items())


def test_sides_have_about_their_shares_and_seeds_differ() -> None:
    split = Split(by="scene", shares=SHARES)
    numbers = np.arange(20000, dtype=np.int64)
    sides = split.side_of(numbers, 0)
    for name, share in SHARES.items():
        assert np.mean(sides == name) == pytest.approx(share, abs=0.02)
    assert np.mean(sides == split.side_of(numbers, 1)) < 0.7


@given(st.floats(-180, 180), st.floats(-89, 89), st.sampled_from([1.0, 25.0, 300.0]))
def test_blocks_are_of_their_size_and_go_on_over_the_date_line(lon: float, lat: float, size_km: float) -> None:
    degree = EARTH_KM * np.pi / 180
    far = size_km * 2.1
    away = lon + far / (degree * np.cos(np.radians(min(abs(lat) + size_km / degree, 89.5))))
    (here, east, north) = block_of(np.array([[lon, lat], [away, lat], [lon, lat + 1.01 * size_km / degree]]), size_km)
    assert here != north
    if away < lon + 300:
        assert here != east
    (one, other) = block_of(np.array([[180.0, lat], [-180.0, lat]]), size_km)
    assert one == other


def test_all_tiles_tell_the_middle_of_their_scene() -> None:
    table = records(12, 3, 50000)
    middle = middles(table)
    names = np.array(of(table)[0])
    for name in set(names.tolist()):
        assert np.ptp(middle[names == name], axis=0).max() < 1.1e-7 or np.isnan(middle[names == name]).all()
    points = [[0, 0, 500000, 5400000, 0], [600, 0, 503000, 5400000, 0], [600, 500, 503000, 5397500, 0]]
    gcps = Sample(source="a", name="g", crs="EPSG:32632", gcps=json.dumps(points), image_width=600, image_height=500)
    plain = Sample(
        source="a",
        name="p",
        crs="EPSG:32632",
        transform=(5.0, 0, 500000, 0, -5.0, 5400000),
        image_width=600,
        image_height=500,
    )
    one, other = middles(to_table([gcps, plain]))
    assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"by": "block", "shares": SHARES}, {"by": "scene", "size_km": 3, "shares": SHARES},
        {"by": "scene", "shares": {"train": 1.0}}, {"by": "scene", "shares": {"a": 0.5, "b": 0.6}},
        {"by": "scene", "shares": {"a": 1.0, "b": 0.0}}, {"by": "scene", "shares": {"a-b": 0.5, "b": 0.5}},
        {"by": "block", "size_km": 0, "shares": SHARES}, {"by": "scene", "buffer_km": -1, "shares": SHARES},
    ],
)  # fmt: skip
def test_splits_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Split.model_validate(wrong)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes along a line of 13 km, a metre a pixel, 300 m of ground each; one picture without a place."""
    folder = tmp_path_factory.mktemp("split")
    for n in range(10):
        place = from_origin(500000 + 1400 * (n // 2) + 305 * (n % 2), 5400000, 1.0, 1.0)
        geotiff(folder / "air" / f"s{n}.tif", scene(500 + n, 300, 300), transform=place)
    put(folder / "air" / "nowhere.png", scene(520, 280, 280))
    return folder


def built(world: Path, name: str, **split: Any) -> Path:
    plain = recipe_of("air", exclude={"rules": []}, subset={"split": {"shares": {"train": 0.6, "val": 0.4}, **split}})
    datakit.build(plain, data=world, out=world / name, work=world / "work", workers=0)
    return world / name


@pytest.mark.parametrize("by", ["block", "scene"])
def test_a_build_has_shards_by_side(world: Path, by: str) -> None:
    size = {"size_km": 1.0} if by == "block" else {}
    out = built(world, by, by=by, buffer_km=0.5, **size)
    manifest = Manifest.load(out)
    assert {shard.split for shard in manifest.shards} == {"train", "val"}
    assert all(f"-{shard.split}-" in shard.name for shard in manifest.shards)
    samples, dropped = pq.read_table(out / "samples.parquet"), pq.read_table(out / "dropped.parquet").to_pylist()
    index = pa.ipc.open_file(out / "index.arrow").read_all()
    side = dict(zip(index.column("key").to_pylist(), index.column("split").to_pylist(), strict=True))
    rows = samples.to_pylist()
    scenes: dict[str, set[str]] = {}
    for row in rows:
        scenes.setdefault(row["name"], set()).add(side[row["key"]])
    assert all(len(sides) == 1 for sides in scenes.values())
    for n, one in enumerate(rows):
        for other in rows[:n]:
            if side[one["key"]] != side[other["key"]] and one["footprint"] and other["footprint"]:
                assert distance_km(*(np.array(row["footprint"]) for row in (one, other)))[0] >= 0.5
    (count,) = [count for count in manifest.counts if count.stage == "subset"]
    assert count.came == count.left + sum(count.dropped.values())
    reasons = {row["name"]: row["dropped"] for row in dropped}
    assert (reasons.get("nowhere.png") == UNPLACED) == (by == "block")
    assert sum(row["dropped"] == BUFFER for row in dropped) == count.dropped[BUFFER] > 0


def test_a_side_without_a_tile_stops_the_build(world: Path) -> None:
    with pytest.raises(StageError, match=r"no tile is left on (train|val)"):
        built(world, "one", by="block", size_km=5000.0)


def test_the_columns_that_a_split_reads_are_those_of_records() -> None:
    assert {"footprint", "transform", "gcps"} <= set(SCHEMA.names)
