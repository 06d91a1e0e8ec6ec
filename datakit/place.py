"""Where pixels lie on the ground: footprints in WGS 84 and ground sampling distances, from what a raster says."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import GroundControlPoint, from_gcps
from rasterio.warp import transform as warp

from .sample import Sample, Window

CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1))  # right, down
NORTHMOST = 90 + 1e-9  # a latitude beyond the pole is no place, though degrees pass for any number
EQUATOR_M, ECCENTRICITY2 = 6_378_137.0, 6.694_379_990_14e-3  # WGS 84
Transform = tuple[float, ...]  # 6: x = a col + b row + c, y = d col + e row + f
Footprint = tuple[float, ...]  # lon, lat of the corners: top left, top right, bottom right, bottom left; or empty


def shifted(sample: Sample, window: Window, scale: float = 1.0) -> tuple[tuple[float, ...] | None, str]:
    """Transform and GCPs of a window of an image: the same ground for the same pixel, exactly.

    scale: px of the image that a px of the window spans; the window is in px of the image so reduced.
    """
    transform, gcps = sample.transform, sample.gcps
    if transform:
        a, b, c, d, e, f = transform
        a, b, d, e = a * scale, b * scale, d * scale, e * scale
        transform = (a, b, c + a * window.left + b * window.top, d, e, f + d * window.left + e * window.top)
    if gcps:
        points = json.loads(gcps)
        if scale != 1:
            points = [[col / scale, row / scale, *rest] for col, row, *rest in points]
        gcps = json.dumps([[col - window.left, row - window.top, *rest] for col, row, *rest in points])
    return transform, gcps


def footprints(sample: Sample, windows: Sequence[Window]) -> list[Footprint]:
    """Footprint of each window of an image; empty where a corner lies outside the domain of the projection."""
    transform = _affine(sample)
    if not sample.crs or transform is None:
        return [()] * len(windows)
    corners = [
        [_at(transform, w.left + right * w.width, w.top + down * w.height) for right, down in CORNERS] for w in windows
    ]
    at_once = _to_wgs84(sample.crs, [xy for each in corners for xy in each])
    if at_once is not None:
        return [_closed(at_once[n * 4 : n * 4 + 4]) for n in range(len(windows))]
    return [_closed(_to_wgs84(sample.crs, each) or []) for each in corners]  # one corner outside spoils a whole call


def outlines(crs: NDArray[Any], transforms: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Footprints of parts of many images, (M, 8); all zero where a corner lies outside of a projection's domain.

    crs: (M,) texts; transforms: (M, 6); boxes: (M, 4) left, top, width, height in px, of any fraction.
    """
    col, row = (boxes[:, None, :2] + np.array(CORNERS) * boxes[:, None, 2:]).transpose(2, 0, 1)
    a, b, c, d, e, f = transforms.T[:, :, None]
    corners = np.stack([a * col + b * row + c, d * col + e * row + f], axis=2)
    out = np.zeros((len(boxes), 8))
    for text in np.unique(crs[crs != ""]).tolist():
        rows = np.flatnonzero(crs == text)
        lonlat = mapped(text, "EPSG:4326", corners[rows].reshape(-1, 2)).reshape(-1, 8)
        inside = np.isfinite(lonlat).all(axis=1) & (np.abs(lonlat[:, 1::2]) <= NORTHMOST).all(axis=1)
        out[rows[inside]] = lonlat[inside]
    return out


def gsd_m(sample: Sample) -> float | None:
    """Ground sampling distance in metres at the centre of the image: the square root of the ground that a pixel covers.

    Measured on the WGS 84 ellipsoid, so that neither degrees nor the scale of a projection (Mercator's is 1 / cos of
    the latitude) distort it.
    """
    transform = _affine(sample)
    if not sample.crs or transform is None:
        return None
    col, row = sample.width / 2, sample.height / 2
    points = _to_wgs84(sample.crs, [_at(transform, *p) for p in ((col, row), (col + 1, row), (col, row + 1))])
    if not points or not _closed(points):
        return None
    (lon, lat), *others = points
    east, north = _metres_per_degree(lat)
    (ax, ay), (bx, by) = (((_turn(x - lon)) * east, (y - lat) * north) for x, y in others)
    area = abs(ax * by - ay * bx)
    return math.sqrt(area) if area > 0 else None


def mapped(source: str, target: str, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points of one CRS in another, both (n, 2); NaN where a point is outside of a projection's domain."""
    if source == target or not len(points):
        return points
    known = _crs(source) is not None and _crs(target) is not None
    moved = _warped(source, target, points.tolist()) if known else None
    if moved is None and known and len(points) > 1:  # one point outside spoils a whole call
        half = len(points) // 2
        return np.concatenate([mapped(source, target, points[:half]), mapped(source, target, points[half:])])
    out = np.array(moved, np.float64) if moved is not None else np.full(points.shape, np.nan)
    out[~np.isfinite(out).all(axis=1)] = np.nan
    return out


def whole_turn(crs: str) -> float:
    """What 360 degrees of longitude are in the units of a geographic CRS; 0 for any other."""
    known = _crs(crs)
    return 2 * math.pi / float(known.units_factor[1]) if known is not None and known.is_geographic else 0.0


def _metres_per_degree(latitude: float) -> tuple[float, float]:
    """Lengths of a degree of longitude and of latitude: the radii of curvature of the ellipsoid."""
    sine = math.sin(math.radians(latitude))
    flat = 1 - ECCENTRICITY2 * sine * sine
    prime = EQUATOR_M / math.sqrt(flat)
    meridian = EQUATOR_M * (1 - ECCENTRICITY2) / flat**1.5
    return math.radians(prime * math.cos(math.radians(latitude))), math.radians(meridian)


def _turn(degrees: float) -> float:
    """An angle in -180..180, so that the date line is no step."""
    return (degrees + 180) % 360 - 180


def _at(transform: Transform, col: float, row: float) -> tuple[float, float]:
    """Where a point of the image, in px, lies in its CRS."""
    a, b, c, d, e, f = transform
    return a * col + b * row + c, d * col + e * row + f


def _affine(sample: Sample) -> Transform | None:
    """What maps pixels to the CRS, six numbers; for GCPs the one that fits them best, if any does."""
    if sample.transform or not sample.gcps:
        return sample.transform
    points = json.loads(sample.gcps)
    if not _spread_out(points):
        return None
    return tuple(from_gcps([GroundControlPoint(row=r, col=c, x=x, y=y, z=z) for c, r, x, y, z in points])[:6])


def _spread_out(points: list[list[float]]) -> bool:
    """Whether points (col, row, x, y, z) can be fitted: GDAL gives memory as it found it for those that cannot."""
    if len(points) < 2 or not all(math.isfinite(v) for point in points for v in point):
        return False
    cols, rows, xs, ys, _ = zip(*points, strict=True)
    if min(max(values) - min(values) for values in (cols, rows, xs, ys)) < 1e-9:
        return False
    col, row = sum(cols) / len(points), sum(rows) / len(points)
    across = sum((c - col) ** 2 for c in cols) * sum((r - row) ** 2 for r in rows)
    both = sum((c - col) * (r - row) for c, r in zip(cols, rows, strict=True))
    return len(points) == 2 or across - both * both > 1e-9 * across  # two are taken for an image that is not rotated


@lru_cache(maxsize=1024)
def _crs(text: str) -> Any:
    try:
        return CRS.from_user_input(text) if text else None
    except CRSError:
        return None


def _to_wgs84(crs: str, points: list[tuple[float, float]]) -> list[tuple[float, float]] | None:
    """Points in lon, lat; None where one of them is outside of the projection's domain."""
    return None if _crs(crs) is None else _warped(crs, "EPSG:4326", points)


def _warped(source: str, target: str, points: Sequence[Sequence[float]]) -> list[tuple[float, float]] | None:
    """Points of one CRS, which PROJ knows, in another; None where one of them is outside of a projection's domain."""
    try:
        xs, ys = warp(_crs(source), _crs(target), [x for x, _ in points], [y for _, y in points])
    except (RasterioError, CPLE_BaseError, CRSError):
        return None
    return list(zip(xs, ys, strict=True))


def _closed(lonlat: list[tuple[float, float]]) -> Footprint:
    flat = tuple(float(v) for point in lonlat for v in point)
    inside = all(math.isfinite(lon) and abs(lat) <= NORTHMOST for lon, lat in lonlat)
    return flat if inside else ()
