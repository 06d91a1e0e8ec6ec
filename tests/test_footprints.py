"""Footprints that overlap: against shares counted point by point, near the date line and the poles, and at scale."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datakit.footprints import on_sphere, overlap_shares, overlapping

Floats = NDArray[np.float64]
STEPS = 60  # points along each side of a quadrilateral whose share is counted


def box(west: float, south: float, east: float, north: float) -> Floats:
    """A footprint: top left, top right, bottom right, bottom left."""
    return np.array([west, north, east, north, east, south, west, south])


def turned(lon: float, lat: float, across: float, down: float, angle: float) -> Floats:
    """A rectangle of so many degrees of arc around a point, turned on the ground: (8,) lon, lat."""
    corners = np.array([[-across, down], [across, down], [across, -down], [-across, -down]]) / 2
    sine, cosine = np.sin(angle), np.cos(angle)
    corners = corners @ np.array([[cosine, sine], [-sine, cosine]])
    place = np.stack([lon + corners[:, 0] / np.cos(np.radians(lat)), lat + corners[:, 1]], axis=1)
    return place.ravel()


def inside(points: Floats, quad: Floats) -> NDArray[np.bool_]:
    """Whether points of the sphere, (N, 3), are left, or right, of all sides of a quadrilateral, great circles."""
    corners = on_sphere(quad.reshape(4, 2))
    sides = [np.cross(corners[n], corners[(n + 1) % 4]) for n in range(4)]
    turns = np.stack([points @ side for side in sides])
    return (turns >= 0).all(axis=0) | (turns <= 0).all(axis=0)


def counted_share(one: Floats, other: Floats) -> float:
    """Share of the smaller of two footprints that lies in the other, by points spread over the smaller."""
    shares = []
    for a, b in ((one, other), (other, one)):
        corners = on_sphere(a.reshape(4, 2))
        u, v = ((n.ravel()[:, None] + 0.5) / STEPS for n in np.meshgrid(range(STEPS), range(STEPS)))
        top, bottom = corners[0] * (1 - u) + corners[1] * u, corners[3] * (1 - u) + corners[2] * u
        points = top * (1 - v) + bottom * v
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        area = np.linalg.norm(np.cross(corners[1] - corners[0], corners[3] - corners[0]))
        shares.append((area, inside(points, b).mean()))
    return min(shares)[1]


def pairs(one: list[Floats], other: list[Floats], share: float = 0.01) -> list[list[int]]:
    found: list[list[int]] = overlapping(np.array(one).reshape(-1, 8), np.array(other).reshape(-1, 8), share).tolist()
    return found


SIDE, ANGLE, SHIFT = st.floats(0.002, 0.02), st.floats(0, 3.14), st.floats(-0.012, 0.012)
SHAPE = st.tuples(SIDE, SIDE, ANGLE)
PLACE = st.tuples(st.sampled_from([-180.0, -179.999, -77.0, 0.0, 12.5, 179.998, 180.0]), st.floats(-84, 84))


@settings(deadline=None, max_examples=200)
@given(PLACE, SHAPE, SHAPE, SHIFT, SHIFT, st.sampled_from([0.01, 0.25, 0.7]), st.booleans())
def test_pairs_are_those_whose_share_is_counted(
    place: tuple[float, float],
    shape: tuple[float, float, float],
    other: tuple[float, float, float],
    east: float,
    north: float,
    share: float,
    mirrored: bool,
) -> None:
    lon, lat = place
    one = turned(lon, lat, *shape)
    two = turned(lon + east / np.cos(np.radians(lat)), lat + north, *other)
    if mirrored:  # corners the other way round
        two = two.reshape(4, 2)[::-1].ravel()
    counted = counted_share(one, two)
    assume(abs(counted - share) > 0.03)
    wanted = [[0, 0]] if counted > share else []
    wrapped = two + np.array([0, 0, 360, 0, -360, 0, 0, 0])  # the same places
    assert pairs([one], [two], share) == wanted
    assert pairs([two], [one], share) == wanted
    assert pairs([one], [wrapped], share) == wanted


def test_the_smaller_of_two_counts() -> None:
    large, small = box(10, 50, 11, 51), box(10.5, 50.5, 10.51, 50.51)
    assert pairs([large], [small], 1 - 1e-9) == [[0, 0]]
    assert pairs([small], [large], 1 - 1e-9) == [[0, 0]]


def test_or_the_larger_of_two_counts() -> None:
    large, small = np.array([box(10, 50, 11, 51)]), np.array([box(10.5, 50.5, 10.51, 50.51)])
    assert overlapping(large, small, 0.0002, of_larger=True).tolist() == []
    assert overlapping(large, small, 0.00009, of_larger=True).tolist() == [[0, 0]]
    assert overlapping(small, large, 0.00009, of_larger=True).tolist() == [[0, 0]]


def test_shares_pair_by_pair_are_those_that_pairs_are_found_by() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform([179.97, 60], [180.02, 60.05], (300, 2))
    one = np.array([turned(*c, *rng.uniform(0.002, 0.02, 2), rng.uniform(0, 3)) for c in corner])
    other = one[rng.permutation(300)] + np.tile([0.001, 0.0005], 4)
    i, j = (n.ravel() for n in np.meshgrid(range(300), range(300), indexing="ij"))
    shares = overlap_shares(one[i], other[j]).reshape(300, 300)
    for least in (0.01, 0.3, 0.6):
        assert overlapping(one, other, least).tolist() == np.argwhere(shares >= least).tolist()
    nowhere = np.zeros((2, 8))
    assert overlap_shares(np.stack([one[0], nowhere[0]]), np.stack([one[0] + 90, one[0]])).tolist() == [0, 0]


def test_many_pairs_take_no_loop() -> None:
    one = np.repeat(box(9, 48, 9.01, 48.01)[None], 300_000, axis=0)
    overlap_shares(one[:1], one[:1])  # compiles
    began = time.perf_counter()
    assert (overlap_shares(one, one + 0.001) > 0.5).all()
    assert time.perf_counter() - began < 3  # a loop takes 1 ms a pair: 300 s


def test_neighbours_that_touch_do_not_overlap() -> None:
    """Tiles of a grid share edges and corners to the last digit, or nearly."""
    step = 0.0046
    tiles = [
        box(7 + x * step, 48 + y * step, 7 + (x + 1) * step, 48 + (y + 1) * step) for y in range(4) for x in range(4)
    ]
    assert pairs(tiles, tiles) == [[n, n] for n in range(16)]


def test_what_overlaps_by_less_than_the_share_does_not_count() -> None:
    one = box(0, 0, 0.01, 0.01)
    assert pairs([one], [box(0.0098, 0, 0.0198, 0.01)], 0.01) == [[0, 0]]
    assert pairs([one], [box(0.0098, 0, 0.0198, 0.01)], 0.03) == []


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_across_the_date_line(share: float) -> None:
    west, east = box(179.995, 10, 180.005, 10.01), box(-180.004, 10, -179.996, 10.01)
    assert pairs([west], [east, box(179.9, 10, 179.99, 10.01)], share) == [[0, 0]]
    crossing = np.array([179.995, 10.01, -179.995, 10.01, -179.995, 10.0, 179.995, 10.0])
    assert pairs([crossing], [west, east], share) == [[0, 0], [0, 1]]
    assert pairs([crossing], [box(0, 10, 0.01, 10.01)], share) == []


def test_around_the_poles() -> None:
    """A tile that has the pole inside holds all longitudes."""
    for lat in (89.99, -89.99):
        pole = np.array([0, lat, 90, lat, 180, lat, 270, lat], float)
        near = box(43, min(lat, np.sign(lat) * 89.995), 47, max(lat, np.sign(lat) * 89.995))
        far = box(43, 89.0 if lat > 0 else -89.1, 47, 89.1 if lat > 0 else -89.0)
        assert pairs([pole], [near, far]) == [[0, 0]]


def test_a_footprint_without_an_area_overlaps_nothing() -> None:
    line, point = box(0, 0, 1, 0), box(5, 5, 5, 5)
    whole = [box(-1, -1, 2, 2), box(4, 4, 6, 6)]
    assert pairs([line, point], [*whole, line, point]) == []
    assert pairs(whole, [line, point]) == []


def test_none_have_no_pairs() -> None:
    one = [box(0, 0, 1, 1)]
    for pair in (([], one), (one, []), ([], [])):
        found = overlapping(*(np.array(q, float).reshape(-1, 8) for q in pair), 0.01)
        assert found.shape == (0, 2)


def test_pairs_are_sorted_and_each_is_told_once() -> None:
    rng = np.random.default_rng(3)
    quads = [turned(rng.uniform(0, 0.05), rng.uniform(0, 0.05), *rng.uniform(0.002, 0.03, 2), 1) for _ in range(40)]
    found = pairs(quads[:15], quads[15:])
    assert found == sorted(found)
    assert len({tuple(p) for p in found}) == len(found) > 20


def test_many_footprints_are_compared_as_one_by_one() -> None:
    """Of many sizes, from 50 m to 20 km, in one place."""
    rng = np.random.default_rng(4)

    def some(n: int) -> list[Floats]:
        sides = 10 ** rng.uniform(-3.3, -0.7, (n, 2))
        return [turned(rng.uniform(6, 7), rng.uniform(46, 47), *s, rng.uniform(0, 3)) for s in sides]

    one, other = some(30), some(40)
    found = {tuple(p) for p in pairs(one, other, 0.2)}
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            share = counted_share(a, b) if np.abs(a[:2] - b[:2]).max() < 0.6 else 0.0
            if abs(share - 0.2) > 0.05:
                assert ((i, j) in found) == (share > 0.2), (i, j, share)


def test_large_and_small_scenes_are_compared() -> None:
    """A mosaic of 20 degrees of arc, as an atlas has, and a tile in the middle and in a corner of it."""
    mosaic = box(0, 40, 20, 60)
    tiles = [box(10, 50, 10.01, 50.01), box(0.1, 40.1, 0.11, 40.11), box(30, 50, 30.01, 50.01)]
    assert pairs([mosaic], tiles) == [[0, 0], [0, 1]]


def test_one_large_footprint_does_not_make_all_others_look_near() -> None:
    """100,000 tiles and 2,000 held-out ones of which one is large: seconds, not hours."""
    rng = np.random.default_rng(5)

    def tiles(n: int) -> Any:
        lon, lat = rng.uniform(-170, 170, n), rng.uniform(-60, 60, n)
        west_south = np.stack([lon, lat], axis=1)
        corners = west_south[:, None] + np.array([[0, 0.01], [0.01, 0.01], [0.01, 0], [0, 0]])
        return corners.reshape(-1, 8)

    held, theirs = tiles(2000), tiles(100_000)
    held[7] = box(0, 0, 5, 5)
    start = time.perf_counter()
    found = overlapping(held, theirs, 0.01)
    assert time.perf_counter() - start < 20
    lon, lat = theirs[:, 0], theirs[:, 3]
    within = np.flatnonzero((lon >= 0) & (lon < 4.99) & (lat >= 0.01) & (lat < 4.99))
    assert set(within.tolist()) <= set(found[found[:, 0] == 7, 1].tolist())
    assert len(within) > 10
