"""Polygons of longitude and latitude: boxes that meet them, and their parts, over the date line and around poles."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from datakit.errors import DatakitError
from datakit.lonlat import areas, box_of, crosses, geometry, meets, pieces, rings
from datakit.place import footprints
from datakit.sample import Sample, Window

Points = list[tuple[float, float]]


def clipped(points: Points, box: tuple[float, float, float, float]) -> Points:
    """What of a convex polygon lies in a box: side by side, point by point."""
    west, south, east, north = box
    for axis, limit, sense in ((0, west, 1), (0, east, -1), (1, south, 1), (1, north, -1)):
        kept: Points = []
        for a, b in pairwise([points[-1], *points] if points else []):
            was, now = (a[axis] - limit) * sense >= 0, (b[axis] - limit) * sense >= 0
            if was != now:
                t = (limit - a[axis]) / (b[axis] - a[axis])
                kept.append((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])))
            kept += [b] if now else []
        points = kept
    return points


def area(points: Points) -> float:
    return abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in pairwise([*points, points[0]]))) / 2 if points else 0.0


def quad(lon: float, lat: float, across: float, down: float, angle: float) -> Points:
    """A rectangle about a point, turned: its corners, longitudes going on beyond 180."""
    cos, sin = np.cos(angle), np.sin(angle)
    corners = [(-across, down), (across, down), (across, -down), (-across, -down)]
    return [(lon + x * cos - y * sin, lat + x * sin + y * cos) for x, y in corners]


quads = st.builds(
    quad, st.floats(-180, 180), st.floats(-60, 60), st.floats(0.01, 20), st.floats(0.01, 20), st.floats(0, 6.3)
)
boxes = st.tuples(st.floats(-180, 180), st.floats(-80, 80), st.floats(0.01, 300), st.floats(0.01, 60))


def told(points: Points) -> Any:
    """As a projection tells them: longitudes within -180..180."""
    return np.array([[(lon + 180) % 360 - 180, lat] for lon, lat in points]).reshape(1, 8)


@given(quads, boxes)
def test_a_box_meets_what_it_shares_ground_with(points: Points, drawn: tuple[float, float, float, float]) -> None:
    west, south, across, up = drawn
    parts = [
        clipped([(x + 360 * n, y) for x, y in points], (west, south, west + across, south + up)) for n in range(-2, 3)
    ]
    shared = sum(map(area, parts))
    assume(shared > 1e-9 or not any(parts))
    east = (west + across + 180) % 360 - 180
    assume(abs(abs(east) - 180) > 1e-9)
    assert meets(rings(told(points)), (west, south, east, south + up)).tolist() == [shared > 1e-9]


@given(quads)
def test_parts_lie_within_the_date_line_and_are_all_there_is(points: Points) -> None:
    polygon = rings(told(points))
    parts = pieces(polygon[0])
    assert all(np.abs(part[:, 0]).max() <= 180 for part in parts)
    assert all(areas(part[None])[0] > 0 for part in parts)
    assert sum(float(areas(part[None])[0]) for part in parts) == pytest.approx(area(points), rel=1e-6, abs=1e-9)
    if not crosses(polygon)[0]:
        assert len(parts) == 1
    for part in parts:
        assert (np.diff(part, axis=0) != 0).any(axis=1).all()


def test_a_tile_over_the_date_line_is_cut_there() -> None:
    corners = np.array([179.0, 1, -179, 1, -179, -1, 179, -1])
    shape = geometry(corners)
    assert shape is not None
    assert shape["type"] == "MultiPolygon"
    spans = [(min(x for x, _ in ring), max(x for x, _ in ring)) for (ring,) in shape["coordinates"]]
    assert sorted(spans) == [(-180, -179), (179, 180)]
    polygon = rings(corners[None])
    assert meets(polygon, (-179.5, -0.5, -179.4, 0.5)).tolist() == [True]
    assert meets(polygon, (179.5, -0.5, -179.5, 0.5)).tolist() == [True]
    assert meets(polygon, (-170, -0.5, 170, 0.5)).tolist() == [False]


def test_what_does_not_cross_keeps_its_numbers_to_the_last_bit() -> None:
    corners = np.array([8.1234567890123, 50.3, 8.2234567890123, 50.3, 8.2, 50.1, 8.1, 50.1])
    shape = geometry(corners)
    assert shape is not None
    assert shape["type"] == "Polygon"
    (ring,) = shape["coordinates"]
    assert {tuple(point) for point in ring} == {tuple(point) for point in corners.reshape(4, 2).tolist()}
    assert ring[0] == ring[-1]
    assert len(ring) == 5


@pytest.mark.parametrize(("crs", "sign"), [("EPSG:3413", 1), ("EPSG:3031", -1)])
def test_a_tile_over_a_pole_holds_the_pole(crs: str, sign: int) -> None:
    scene = Sample(width=100, height=100, crs=crs, transform=(9000, 0, -450000, 0, -9000, 450000))
    (corners,) = footprints(scene, [Window(0, 0, 100, 100)])
    polygon = rings(np.array([corners]))
    for lon in range(-180, 180, 7):
        for near, inside in ((89.5, True), (80.0, False)):
            box = (lon, min(sign * near, sign * near + 0.01), min(lon + 0.5, 180), max(sign * near, sign * near + 0.01))
            assert meets(polygon, box).tolist() == [inside]
    (part,) = pieces(polygon[0])
    assert (part[:, 0].min(), part[:, 0].max()) == (-180, 180)
    assert areas(part[None])[0] > 0
    assert 90 * sign in part[:, 1]


def test_a_picture_of_the_whole_earth_meets_every_box() -> None:
    earth = rings(np.array([[-180.0, 90, 180, 90, 180, -90, -180, -90], [0.0, 90, 360, 90, 360, -90, 0, -90]]))
    for box in ((-180, -90, -179, -89), (10, 10, 11, 11), (179, 0, -179, 1)):
        assert meets(earth, box).tolist() == [True, True]
    assert [sum(float(areas(part[None])[0]) for part in pieces(each)) for each in earth] == [360 * 180] * 2


@pytest.mark.parametrize("wrong", [(0, 5, 1, 4), (-181, 0, 0, 1), (0, 0, 1, 91), (0, float("nan"), 1, 1)])
def test_a_box_that_is_none_is_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(DatakitError, match="W S E N"):
        box_of(wrong)
