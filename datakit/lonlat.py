"""Footprints as polygons of longitude and latitude, told right over the date line and around a pole.

A footprint is lon, lat of four corners in turn, narrower than 180 degrees. Its sides are straight in degrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DatakitError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
CORNERS = 7  # of a ring: 4, the first again, and two at the pole that it goes around
Box = tuple[float, float, float, float]  # west, south, east, north


def box_of(numbers: Sequence[float]) -> Box:
    """West, south, east, north in degrees: -180 to 180 and -90 to 90. West over east: a box over the date line."""
    west, south, east, north = numbers
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
        said = " ".join(f"{number:g}" for number in numbers)
        raise DatakitError(
            f"--bbox {said}: give W S E N in degrees, longitudes from -180 to 180, latitudes -90 to 90, S up to N; "
            "where W is over E, the box lies over the date line"
        )
    return west, south, east, north


def rings(corners: Floats) -> Floats:
    """Corners with longitudes that go on over the date line, (N, 8) -> (N, 7, 2); the last joins the first.

    The first longitude is in -180..180. Corners that are not needed repeat the first one.
    """
    lon, lat = corners[:, 0::2], corners[:, 1::2]
    turns = -np.cumsum(np.rint(np.diff(lon, axis=1, append=lon[:, :1]) / 360), axis=1)  # 0.5 is 0: no turn
    turns = np.concatenate([np.zeros((len(lon), 1)), turns], axis=1) - np.rint(lon[:, :1] / 360)
    out = np.empty((len(corners), CORNERS, 2))
    out[:, :4, 1], out[:, 4:, 1] = lat, lat[:, :1]
    out[:, :5, 0] = lon[:, [0, 1, 2, 3, 0]] + 360 * turns
    whole = (np.ptp(out[:, :4, 0], axis=1) == 0) & (np.ptp(lon, axis=1) > 0)  # -180 to 180 is no line but the earth
    out[whole, :5, 0] = lon[whole][:, [0, 1, 2, 3, 0]]
    out[:, 5, 0], out[:, 6, 0] = out[:, 4, 0], out[:, 0, 0]
    polar = out[:, 4, 0] != out[:, 0, 0]
    out[polar, 5:, 1] = np.where(lat[polar].mean(axis=1) < 0, -90.0, 90.0)[:, None]
    return out


def areas(polygons: Floats) -> Floats:
    """Signed areas in square degrees, (N, K, 2) -> (N,): positive where corners go against the clock, y going up."""
    here, there = polygons - polygons[:, :1], np.roll(polygons, -1, axis=1) - polygons[:, :1]
    total: Floats = (here[..., 0] * there[..., 1] - there[..., 0] * here[..., 1]).sum(axis=1) / 2
    return total


def meets(polygons: Floats, box: Box) -> Bools:
    """Which polygons, as `rings` gives them, share a point with a box: (N, K, 2) -> (N,)."""
    west, south, east, north = box
    east += 360 if west > east else 0
    found = np.zeros(len(polygons), bool)
    for turn in (-360, 0, 360):  # polygons lie in -540..540, the box in -180..540
        found |= _meet(polygons, (west + turn, south, east + turn, north))
    return found


def _meet(polygons: Floats, box: Box) -> Bools:
    """Whether a side enters the box (after Liang and Barsky, 1984), or the box lies inside."""
    west, south, east, north = box
    lows, highs = polygons.min(axis=1), polygons.max(axis=1)
    near: Bools = (lows <= (east, north)).all(axis=1) & (highs >= (west, south)).all(axis=1)
    rows = np.flatnonzero(near)
    begin, end = polygons[rows], np.roll(polygons[rows], -1, axis=1)
    enters, leaves = np.zeros(begin.shape[:2]), np.ones(begin.shape[:2])
    for axis, low, high in ((0, west, east), (1, south, north)):
        at, step = begin[..., axis], end[..., axis] - begin[..., axis]
        with np.errstate(divide="ignore", invalid="ignore"):
            one, other = (low - at) / step, (high - at) / step
        flat, inside = step == 0, (at >= low) & (at <= high)
        first = np.where(flat, np.where(inside, 0.0, 2.0), np.minimum(one, other))
        last = np.where(flat, np.where(inside, 1.0, -1.0), np.maximum(one, other))
        enters, leaves = np.maximum(enters, first), np.minimum(leaves, last)
    met = (enters <= leaves).any(axis=1)
    near[rows] = met | _around(begin, end, west, south)
    return near


def _around(begin: Floats, end: Floats, x: float, y: float) -> Bools:
    """Whether polygons, given by their sides (N, K, 2), hold a point: it sees an odd number of sides to its east."""
    (ax, ay), (bx, by) = np.moveaxis(begin, -1, 0), np.moveaxis(end, -1, 0)
    spans = (ay > y) != (by > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = ax + (y - ay) / (by - ay) * (bx - ax)
    inside: Bools = (spans & (crossing > x)).sum(axis=1) % 2 == 1
    return inside


def crosses(polygons: Floats) -> Bools:
    """Which polygons, as `rings` gives them, have a part beyond -180 or 180, or a corner at a pole: (N,)."""
    lon = polygons[..., 0]
    out: Bools = (lon < -180).any(axis=1) | (lon > 180).any(axis=1) | (polygons[:, 5] != polygons[:, 0]).any(axis=1)
    return out


def pieces(polygon: Floats) -> list[Floats]:
    """The parts of one polygon within -180..180, (K, 2) each, against the clock, no corner twice (RFC 7946, 3.1.9)."""
    if polygon[4, 0] != polygon[0, 0]:
        return [_polar(polygon)]
    found = []
    for turn in (-360.0, 0.0, 360.0):
        part = _beside(_beside(np.add(polygon, (turn, 0.0)), -180.0, 1), 180.0, -1)
        part = part[(part != np.roll(part, 1, axis=0)).any(axis=1)]
        area = float(areas(part[None])[0]) if len(part) >= 3 else 0.0
        if area:
            found.append(part if area > 0 else part[::-1])
    return found


def _polar(polygon: Floats) -> Floats:
    """A polygon around a pole from -180 to 180, in one part: two would share a side."""
    pole = polygon[5, 1]
    corners = polygon[:4].copy()
    corners[:, 0] -= 360 * np.rint(corners[:, 0] / 360)
    corners = corners[np.argsort(corners[:, 0], kind="stable")]
    (east, low), (west, high) = corners[0], corners[-1]
    at = high + (180 - west) / (east + 360 - west) * (low - high)
    ring = np.array([(-180, at), *corners.tolist(), (180, at), (180, pole), (-180, pole)], np.float64)
    return ring if areas(ring[None])[0] > 0 else ring[::-1]


def _beside(polygon: Floats, limit: float, sense: int) -> Floats:
    """What of a polygon lies on one side of a meridian: a step of Sutherland and Hodgman (1974)."""
    kept: list[Any] = []
    for n, (x, y) in enumerate(polygon.tolist()):
        px, py = polygon[n - 1].tolist()
        if ((px - limit) * sense >= 0) != ((x - limit) * sense >= 0):
            kept.append((limit, py + (limit - px) / (x - px) * (y - py)))
        if (x - limit) * sense >= 0:
            kept.append((x, y))
    return np.array(kept, np.float64).reshape(-1, 2)


def geometry(corners: Floats) -> dict[str, Any] | None:
    """A footprint of four corners, (8,), as GeoJSON: a Polygon, or a MultiPolygon cut at the date line; None: empty."""
    parts = pieces(rings(corners.reshape(1, 8))[0])
    closed = [[[*part.tolist(), part[0].tolist()]] for part in parts]
    if not closed:
        return None
    one = len(closed) == 1
    return {"type": "Polygon" if one else "MultiPolygon", "coordinates": closed[0] if one else closed}
