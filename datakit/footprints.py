"""Which footprints overlap on the map: quadrilaterals of lon, lat, compared on the sphere, which has no date line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Point = tuple[float, float]
AT_ONCE = 1 << 16  # footprints that are looked up together
FAR = 0.5  # of the earth's radius: footprints larger than that (29 degrees) are not compared by their corners


def on_sphere(lonlat: Floats) -> Floats:
    """Points of the unit sphere: lon, lat in degrees, (…, 2) -> (…, 3)."""
    lon, lat = np.moveaxis(np.radians(lonlat), -1, 0)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def overlapping(one: Floats, other: Floats, least_share: float) -> Ints:
    """Pairs (of one, of other) whose overlap is at least that share of the smaller: (A, 8), (B, 8) -> (P, 2), sorted.

    Footprints are lon, lat of four corners in turn, convex. Areas are measured in the plane that touches the sphere in
    the middle of the first one.
    """
    ours, theirs = (on_sphere(each.reshape(-1, 4, 2)) for each in (one, other))
    pairs = [pair for pair in _near(ours, theirs) if _share(ours[pair[0]], theirs[pair[1]]) >= least_share]
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _balls(corners: Floats) -> tuple[Floats, Floats]:
    """Centre (N, 3) and radius (N,) of balls around corners, (N, 4, 3)."""
    centre = corners.mean(axis=1)
    centre /= np.maximum(np.linalg.norm(centre, axis=1, keepdims=True), 1e-12)
    return centre, np.linalg.norm(corners - centre[:, None], axis=2).max(axis=1, initial=0.0)


def _near(ours: Floats, theirs: Floats) -> Iterator[tuple[int, int]]:
    """Pairs whose balls meet. Ours are sorted into trees by size, so that a large one makes no others look near."""
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
            found: Any = tree.query_ball_point(middle[some], reach[some] + 2.0**size)
            for n, near in zip(some.tolist(), found, strict=True):
                for m in mine[near].tolist() if near else ():
                    if np.linalg.norm(centre[m] - middle[n]) <= radius[m] + reach[n]:
                        yield m, n


def _share(one: Floats, other: Floats) -> float:
    """Overlap of two quadrilaterals, (4, 3) points of the sphere, over the smaller area; 0 where one has none."""
    up = one.mean(axis=0)
    up /= np.linalg.norm(up)
    east = np.cross([0.0, 0.0, 1.0], up) if abs(up[2]) < 0.9 else np.cross([1.0, 0.0, 0.0], up)
    east /= np.linalg.norm(east)
    plane = np.stack([east, np.cross(up, east)])
    a, b = ([(float(x), float(y)) for x, y in (q @ plane.T) / (q @ up)[:, None]] for q in (one, other))
    a, b = (q if _area(q) > 0 else q[::-1] for q in (a, b))
    least = min(_area(a), _area(b))
    if least <= 0:
        return 0.0
    for p, q in zip(b, b[1:] + b[:1], strict=True):
        a = _clipped(a, p, q)
    return max(_area(a), 0.0) / least


def _area(polygon: list[Point]) -> float:
    """Signed area, positive where corners go against the clock."""
    turns = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in turns) / 2


def _clipped(polygon: list[Point], p: Point, q: Point) -> list[Point]:
    """The part of a polygon left of the line from p to q, after Sutherland and Hodgman (1974)."""

    def side(point: Point) -> float:
        return (q[0] - p[0]) * (point[1] - p[1]) - (q[1] - p[1]) * (point[0] - p[0])

    out: list[Point] = []
    for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        da, db = side(a), side(b)
        if da >= 0:
            out.append(a)
        if (da < 0) != (db < 0):
            t = da / (da - db)
            out.append((a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t))
    return out
