"""Where pixels lie on the ground: footprints in WGS 84 and ground sampling distances, from what a raster says."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import Affine, GroundControlPoint, from_gcps
from rasterio.warp import transform as warp

from .sample import Sample, Window

CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1))  # right, down
METRES_PER_DEGREE = 111_319.49  # of the equator, WGS 84
Footprint = tuple[float, ...]  # lon, lat of the corners: top left, top right, bottom right, bottom left; or empty


def shifted(sample: Sample, window: Window) -> tuple[tuple[float, ...] | None, str]:
    """Transform and GCPs of a window of an image: the same ground for the same pixel, exactly."""
    transform, gcps = sample.transform, sample.gcps
    if transform:
        a, b, c, d, e, f = transform
        transform = (a, b, c + a * window.left + b * window.top, d, e, f + d * window.left + e * window.top)
    if gcps:
        points = [[col - window.left, row - window.top, *rest] for col, row, *rest in json.loads(gcps)]
        gcps = json.dumps(points)
    return transform, gcps


def footprints(sample: Sample, windows: Sequence[Window]) -> list[Footprint]:
    """Footprint of each window of an image; empty where a corner lies outside the domain of the projection."""
    transform = _affine(sample)
    if not sample.crs or transform is None:
        return [()] * len(windows)
    corners = [
        [transform * (w.left + right * w.width, w.top + down * w.height) for right, down in CORNERS] for w in windows
    ]
    at_once = _to_wgs84(sample.crs, [xy for each in corners for xy in each])
    if at_once is not None:
        return [_closed(at_once[n * 4 : n * 4 + 4]) for n in range(len(windows))]
    return [_closed(_to_wgs84(sample.crs, each) or []) for each in corners]  # one corner outside spoils a whole call


def gsd_m(sample: Sample) -> float | None:
    """Ground sampling distance in metres at the centre of the image: the square root of a pixel's area."""
    transform = _affine(sample)
    crs = _crs(sample.crs)
    if transform is None or crs is None:
        return None
    area = abs(transform.a * transform.e - transform.b * transform.d)
    if crs.is_geographic:
        latitude = (transform * (sample.width / 2, sample.height / 2))[1]
        area *= METRES_PER_DEGREE**2 * max(math.cos(math.radians(latitude)), 0.0)
    else:
        try:
            area *= crs.linear_units_factor[1] ** 2
        except CRSError:
            return None
    return math.sqrt(area) if area > 0 else None


def _affine(sample: Sample) -> Any:
    if sample.transform:
        return Affine(*sample.transform)
    if sample.gcps:
        points = [GroundControlPoint(row=r, col=c, x=x, y=y, z=z) for c, r, x, y, z in json.loads(sample.gcps)]
        return from_gcps(points)
    return None


@lru_cache(maxsize=1024)
def _crs(text: str) -> Any:
    try:
        return CRS.from_user_input(text) if text else None
    except CRSError:
        return None


def _to_wgs84(crs: str, points: list[tuple[float, float]]) -> list[tuple[float, float]] | None:
    """Points in lon, lat; None where one of them is outside of the projection's domain."""
    if _crs(crs) is None:
        return None
    try:
        lons, lats = warp(_crs(crs), _crs("EPSG:4326"), [x for x, _ in points], [y for _, y in points])
    except (RasterioError, CPLE_BaseError):
        return None
    return list(zip(lons, lats, strict=True))


def _closed(lonlat: list[tuple[float, float]]) -> Footprint:
    flat = tuple(float(v) for point in lonlat for v in point)
    return flat if all(math.isfinite(v) for v in flat) else ()
