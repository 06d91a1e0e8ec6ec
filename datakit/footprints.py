"""Which footprints overlap or are near: quadrilaterals of lon, lat, compared on the sphere, which has no date line."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .kernels import jit

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
AT_ONCE = 1 << 16  # footprints that are looked up together
CORNERS = 32  # the most that a polygon may get while it is clipped: 4 become 8 at most, unless one is not convex
EARTH_KM = 6371.0088  # mean radius, IUGG; distances on the sphere are within 0.6 % of those on the ellipsoid
FAR = 0.5  # of the earth's radius: footprints larger than that (29 degrees) are not compared by their corners


def on_sphere(lonlat: Floats) -> Floats:
    """Points of the unit sphere: lon, lat in degrees, (…, 2) -> (…, 3)."""
    lon, lat = np.moveaxis(np.radians(lonlat), -1, 0)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def overlapping(one: Floats, other: Floats, least_share: float, of_larger: bool = False) -> Ints:
    """Pairs (of one, of other) whose overlap is at least that share of the smaller: (A, 8), (B, 8) -> (P, 2), sorted.

    Footprints are lon, lat of four corners in turn, convex. Areas are measured in the plane that touches the sphere in
    the middle of the first one. of_larger: that share of the larger of the two.
    """
    ours, theirs = (on_sphere(each.reshape(-1, 4, 2)) for each in (one, other))
    found = [np.zeros(0, np.int64)]
    for first, second in _near(ours, theirs):
        enough = _shares(ours, theirs, first, second, of_larger) >= least_share
        found.append(first[enough] << 32 | second[enough])  # 8 bytes a pair: there may be many
    packed = np.concatenate(found)
    del found
    packed.sort()
    pairs = np.empty((len(packed), 2), np.int64)
    pairs[:, 0], pairs[:, 1] = packed >> 32, packed & 0xFFFFFFFF
    return pairs


def overlap_shares(one: Floats, other: Floats) -> Floats:
    """Overlap of footprints, pair by pair, over the smaller of the two areas: (M, 8), (M, 8) -> (M,)."""
    ours, theirs = (on_sphere(each.reshape(-1, 4, 2)) for each in (one, other))
    (centre, radius), (middle, reach) = _balls(ours), _balls(theirs)
    near = (np.linalg.norm(centre - middle, axis=1) <= radius + reach) & (radius < FAR) & (reach < FAR)
    rows = np.flatnonzero(near)
    shares = np.zeros(len(one))
    shares[rows] = _shares(ours, theirs, rows, rows, False)
    return shares


def comparable(corners: Floats) -> NDArray[np.bool_]:
    """Which footprints, (N, 8), are small enough to be compared by their corners: (N,)."""
    out: NDArray[np.bool_] = _balls(on_sphere(corners.reshape(-1, 4, 2)))[1] < FAR
    return out


def near(one: Floats, other: Floats, limit_km: float) -> NDArray[np.bool_]:
    """Which of `other` overlap one of `one`, or are nearer to it than so many km: (A, 8), (B, 8) -> (B,).

    Distances are those of the nearest points, sides being great circles.
    """
    ours, theirs = (on_sphere(each.reshape(-1, 4, 2)) for each in (one, other))
    (centre, _), (middle, _) = _balls(ours), _balls(theirs)
    angle = limit_km / EARTH_KM
    chord = 2 * np.sin(angle / 2)
    out = np.zeros(len(other), bool)
    for first, second in _near(ours, theirs, float(chord)):
        out[second[np.linalg.norm(centre[first] - middle[second], axis=1) < chord]] = True
        for begin in range(0, len(first), AT_ONCE):
            some = slice(begin, begin + AT_ONCE)
            a, b = (rows[some][~out[second[some]]] for rows in (first, second))
            close = _shares(ours, theirs, a, b, False) > 0
            if limit_km:
                close |= np.minimum(_angles(ours[a], theirs[b]), _angles(theirs[b], ours[a])) < angle
            out[b[close]] = True
    return out


def _angles(points: Floats, quads: Floats) -> Floats:
    """The least angle between the corners of one quadrilateral and the sides of another, (M, 4, 3) each: (M,), rad."""
    least = np.full(len(points), np.inf)
    for k in range(4):
        a, b = quads[:, k, None], quads[:, (k + 1) % 4, None]
        pole = np.cross(a, b)
        length = np.linalg.norm(pole, axis=2)
        before = (np.cross(pole, a) * points).sum(axis=2) >= 0
        after = (np.cross(b, pole) * points).sum(axis=2) >= 0
        off = np.abs((points * pole).sum(axis=2)) / np.maximum(length, 1e-300)
        beside = np.where(before & after & (length > 0), np.arcsin(np.minimum(off, 1)), np.inf)
        corner = 2 * np.arcsin(np.minimum(np.linalg.norm(points - a, axis=2) / 2, 1))
        least = np.minimum(least, np.minimum(beside, corner).min(axis=1))
    return least


def _balls(corners: Floats) -> tuple[Floats, Floats]:
    """Centre (N, 3) and radius (N,) of balls around corners, (N, 4, 3)."""
    centre = corners.mean(axis=1)
    centre /= np.maximum(np.linalg.norm(centre, axis=1, keepdims=True), 1e-12)
    return centre, np.linalg.norm(corners - centre[:, None], axis=2).max(axis=1, initial=0.0)


def _near(ours: Floats, theirs: Floats, beyond: float = 0.0) -> Iterator[tuple[Ints, Ints]]:
    """Pairs whose balls meet, or are no farther apart than `beyond`.

    Ours are sorted into trees by size, so that a large one makes no others look near.
    """
    centre, radius = _balls(ours)
    middle, reach = _balls(theirs)
    level = np.frexp(radius)[1]
    for size in np.unique(level).tolist():
        mine = np.flatnonzero((level == size) & (radius < FAR))
        if not len(mine):
            continue
        tree = cKDTree(centre[mine])
        for start in range(0, len(theirs), AT_ONCE):
            some = np.arange(start, min(start + AT_ONCE, len(theirs)))
            some = some[reach[some] < FAR]
            found: Any = tree.query_ball_point(middle[some], reach[some] + 2.0**size + beyond)
            second = np.repeat(some, np.fromiter(map(len, found), np.int64, len(some)))
            first = mine[np.fromiter(chain.from_iterable(found), np.int64, len(second))]
            apart = np.linalg.norm(centre[first] - middle[second], axis=1)
            meet = apart <= radius[first] + reach[second] + beyond
            yield first[meet], second[meet]


def _shares(ours: Floats, theirs: Floats, first: Ints, second: Ints, of_larger: bool) -> Floats:
    """Overlap of quadrilaterals of points of the sphere, (N, 4, 3), pair by pair: 0 where one has no area."""
    areas = np.zeros((len(first), 3))
    _measure(ours, theirs, first, second, areas)
    whole = areas[:, 1:].max(axis=1) if of_larger else areas[:, 1:].min(axis=1)
    some = areas[:, 1:].min(axis=1) > 0
    shares: Floats = np.divide(areas[:, 0], whole, out=np.zeros(len(first)), where=some)
    return shares


@jit
def _measure(ours, theirs, first, second, areas):  # type: ignore[no-untyped-def]
    """Areas of what pairs of quadrilaterals share, of the one and of the other, in the plane that touches in the one.

    Clipped by one side after the other, after Sutherland and Hodgman (1974).
    """
    x, y, x2, y2 = np.empty(CORNERS), np.empty(CORNERS), np.empty(CORNERS), np.empty(CORNERS)
    bx, by = np.empty(4), np.empty(4)
    for n in range(first.size):
        one, other = ours[first[n]], theirs[second[n]]
        up = (one[0] + one[1] + one[2] + one[3]) / 4
        up /= np.sqrt(up[0] ** 2 + up[1] ** 2 + up[2] ** 2)
        east = np.array([-up[1], up[0], 0.0]) if abs(up[2]) < 0.9 else np.array([0.0, -up[2], up[1]])
        east /= np.sqrt(east[0] ** 2 + east[1] ** 2 + east[2] ** 2)
        north = np.cross(up, east)
        areas[n, 1] = abs(_flatten(one, up, east, north, x, y))
        areas[n, 2] = abs(_flatten(other, up, east, north, bx, by))
        size = 4
        for k in range(4):
            px, py, qx, qy = bx[k], by[k], bx[(k + 1) % 4], by[(k + 1) % 4]
            count = 0
            for m in range(size):
                o = (m + 1) % size
                da = (qx - px) * (y[m] - py) - (qy - py) * (x[m] - px)
                db = (qx - px) * (y[o] - py) - (qy - py) * (x[o] - px)
                if da >= 0 and count < CORNERS:
                    x2[count], y2[count] = x[m], y[m]
                    count += 1
                if (da < 0) != (db < 0) and count < CORNERS:
                    t = da / (da - db)
                    x2[count], y2[count] = x[m] + (x[o] - x[m]) * t, y[m] + (y[o] - y[m]) * t
                    count += 1
            x, y, x2, y2 = x2, y2, x, y
            size = count
        areas[n, 0] = max(_area(x, y, size), 0.0)


@jit
def _flatten(quad, up, east, north, x, y):  # type: ignore[no-untyped-def]
    """Put four points of the sphere into the plane, against the clock; gives their area."""
    for k in range(4):
        far = quad[k, 0] * up[0] + quad[k, 1] * up[1] + quad[k, 2] * up[2]
        x[k] = (quad[k, 0] * east[0] + quad[k, 1] * east[1] + quad[k, 2] * east[2]) / far
        y[k] = (quad[k, 0] * north[0] + quad[k, 1] * north[1] + quad[k, 2] * north[2]) / far
    area = _area(x, y, 4)
    if area <= 0:
        x[0], x[1], x[2], x[3] = x[3], x[2], x[1], x[0]
        y[0], y[1], y[2], y[3] = y[3], y[2], y[1], y[0]
    return area


@jit
def _area(x, y, size):  # type: ignore[no-untyped-def]
    """Area of a polygon, positive where corners go against the clock."""
    twice = 0.0
    for m in range(size):
        o = (m + 1) % size
        twice += x[m] * y[o] - x[o] * y[m]
    return twice / 2
