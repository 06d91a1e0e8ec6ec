"""Where pixels lie: footprints and ground sampling distances, checked against PROJ and plain trigonometry."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import from_gcps
from rasterio.warp import transform as warp

from datakit.place import footprints, gsd_m, shifted
from datakit.sample import Sample, Window
from datakit.sources import geotiff

EARTH_M = 6_371_000.0
GOES = (
    'PROJCS["geostationary",GEOGCS["GRS80",DATUM["unknown",SPHEROID["GRS80",6378137,298.257222096]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Geostationary_Satellite"],'
    'PARAMETER["central_meridian",-75],PARAMETER["satellite_height",35786023],PARAMETER["false_easting",0],'
    'PARAMETER["false_northing",0],UNIT["metre",1],EXTENSION["PROJ4","+proj=geos +lon_0=-75 +h=35786023 +x_0=0 +y_0=0 '
    '+ellps=GRS80 +units=m +no_defs +sweep=x"]]'
)


def image(
    crs: str, transform: tuple[float, ...] | None, width: int = 1000, height: int = 800, gcps: str = ""
) -> Sample:
    return Sample(width=width, height=height, crs=crs, transform=transform, gcps=gcps)


def whole(sample: Sample) -> Window:
    return Window(0, 0, sample.width, sample.height)


def sides_m(footprint: tuple[float, ...]) -> list[float]:
    """Lengths of the four sides on a sphere, m."""
    corners = [(math.radians(footprint[n]), math.radians(footprint[n + 1])) for n in range(0, 8, 2)]
    out = []
    for (lon, lat), (lon2, lat2) in zip(corners, corners[1:] + corners[:1], strict=True):
        half = math.sin((lat2 - lat) / 2) ** 2 + math.cos(lat) * math.cos(lat2) * math.sin((lon2 - lon) / 2) ** 2
        out.append(2 * EARTH_M * math.asin(math.sqrt(half)))
    return out


def test_utm() -> None:
    sample = image("EPSG:32633", (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_400.0))
    assert gsd_m(sample) == pytest.approx(0.5, rel=5e-4)  # the scale of UTM is 0.9996 in the middle
    (footprint,) = footprints(sample, [whole(sample)])
    assert footprint[0] == pytest.approx(15.0, abs=1e-9)
    xs, ys = warp(CRS.from_epsg(4326), CRS.from_epsg(32633), footprint[::2], footprint[1::2])
    assert xs == pytest.approx([500_000, 500_500, 500_500, 500_000], abs=1e-5)
    assert ys == pytest.approx([5_000_400, 5_000_400, 5_000_000, 5_000_000], abs=1e-5)
    assert sides_m(footprint) == pytest.approx([500, 400, 500, 400], rel=5e-3)


@pytest.mark.parametrize("latitude", [0.0, 48.0, -75.0])
def test_degrees_are_metres_on_the_ground(latitude: float) -> None:
    step = 1e-5
    sample = image("EPSG:4326", (step, 0.0, 10.0, 0.0, -step, latitude + 400 * step))
    east = 111_320 * math.cos(math.radians(latitude)) * step
    assert gsd_m(sample) == pytest.approx(math.sqrt(east * 111_130 * step), rel=6e-3)
    (footprint,) = footprints(sample, [whole(sample)])
    expected = (10.0, latitude + 400 * step, 10 + 1000 * step, latitude + 400 * step)
    assert footprint[:4] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("latitude", [0.0, 45.0, 60.0, -70.0])
def test_web_mercator_counts_true_metres(latitude: float) -> None:
    y = 6_378_137 * math.log(math.tan(math.pi / 4 + math.radians(latitude) / 2))
    sample = image("EPSG:3857", (2.0, 0.0, 1e6, 0.0, -2.0, y + 800))
    assert gsd_m(sample) == pytest.approx(2 * math.cos(math.radians(latitude)), rel=7e-3)
    (footprint,) = footprints(sample, [whole(sample)])
    assert sides_m(footprint)[0] / 1000 == pytest.approx(2 * math.cos(math.radians(latitude)), rel=7e-3)


def test_a_projection_in_feet() -> None:
    sample = image("EPSG:2263", (1.0, 0.0, 980_000.0, 0.0, -1.0, 200_000.0))  # New York, US survey feet
    assert gsd_m(sample) == pytest.approx(0.3048006, rel=1e-3)
    assert sides_m(footprints(sample, [whole(sample)])[0]) == pytest.approx([304.8, 243.84, 304.8, 243.84], rel=5e-3)


def test_a_rotated_transform() -> None:
    c, s = 0.8 * math.cos(0.4), 0.8 * math.sin(0.4)
    sample = image("EPSG:32633", (c, s, 500_000.0, s, -c, 5_000_000.0))
    assert gsd_m(sample) == pytest.approx(0.8, rel=5e-4)
    (footprint,) = footprints(sample, [whole(sample)])
    assert sides_m(footprint) == pytest.approx([800, 640, 800, 640], rel=5e-3)
    assert footprint[3] > footprint[1]  # the top edge rises to the right


def test_the_date_line_is_no_step() -> None:
    sample = image("EPSG:32601", (10.0, 0.0, 166_000.0, 0.0, -10.0, 10_000.0), 1000, 1000)  # around 180 degrees
    assert gsd_m(sample) == pytest.approx(10.0, rel=2e-3)
    over = image("EPSG:4326", (1e-4, 0.0, 179.95, 0.0, -1e-4, 0.05), 1000, 1000)
    assert gsd_m(over) == pytest.approx(11.1, rel=1e-2)


def gcps_of(transform: tuple[float, ...], points: list[tuple[float, float]]) -> str:
    a, b, c, d, e, f = transform
    return json.dumps([[x, y, a * x + b * y + c, d * x + e * y + f, 0.0] for x, y in points])


def test_ground_control_points_place_as_the_transform_that_they_fit() -> None:
    transform = (0.45, 0.1, 500_000.0, 0.08, -0.52, 5_000_000.0)
    points = [(0.5, 0.5), (999.5, 10.25), (500.0, 799.0), (20.0, 600.5), (700.0, 333.0)]
    exact = image("EPSG:32633", transform)
    fitted = image("EPSG:32633", None, gcps=gcps_of(transform, points))
    assert gsd_m(fitted) == pytest.approx(gsd_m(exact), rel=1e-6)
    windows = [whole(exact), Window(100, 200, 64, 64)]
    for one, other in zip(footprints(fitted, windows), footprints(exact, windows), strict=True):
        assert one == pytest.approx(other, abs=1e-9)


@pytest.mark.parametrize(
    "points",
    [
        [],
        [[1, 1, 5e5, 5e6, 0]],
        [[1, 1, 5e5, 5e6, 0]] * 4,
        [[n, 2 * n, 5e5 + n, 5e6 + n, 0] for n in range(5)],
        [[n, n * n, 5e5, 5e6 + n, 0] for n in range(5)],
        [[n, n * n, math.nan, 5e6 + n, 0] for n in range(5)],
        [[0, 5, 5e5, 5e6, 0], [9, 5, 5e5 + 9, 5e6 + 1, 0]],
    ],
)
def test_control_points_that_fit_nothing_place_nothing(points: list[list[float]]) -> None:
    sample = image("EPSG:32633", None, gcps=json.dumps(points))
    assert gsd_m(sample) is None
    assert footprints(sample, [whole(sample)]) == [()]


@pytest.mark.parametrize("crs", ["", "EPSG:32633"])
def test_what_is_placed_nowhere(crs: str) -> None:
    sample = image(crs, None if crs else (1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    assert gsd_m(sample) is None
    assert footprints(sample, [whole(sample), whole(sample)]) == [(), ()]


@pytest.mark.parametrize("crs", ["no such thing", 'LOCAL_CS["site grid",UNIT["metre",1]]', "EPSG:32633", "EPSG:4326"])
@pytest.mark.parametrize(
    "transform",
    [(math.nan, 0.0, 5e5, 0.0, -1.0, 5e6), (math.inf, 0.0, 5e5, 0.0, -1.0, 5e6), (1e300, 0.0, 5e5, 0.0, -1e300, 5e6)],
)
def test_nonsense_is_no_place(crs: str, transform: tuple[float, ...]) -> None:
    sample = image(crs, transform)
    assert gsd_m(sample) is None
    assert footprints(sample, [whole(sample)]) == [()]


def test_degrees_beyond_the_pole_are_no_place() -> None:
    sample = image("EPSG:4326", (0.1, 0.0, 0.0, 0.0, -0.1, 95.0), 100, 800)
    north, south = footprints(sample, [Window(0, 0, 100, 100), Window(0, 50, 100, 100)])
    assert north == ()
    assert len(south) == 8


def test_a_corner_outside_the_projection_empties_its_own_window_alone() -> None:
    step = 20_000.0
    sample = image(GOES, (step, 0.0, -270 * step, 0.0, -step, 270 * step), 540, 540)
    assert footprints(sample, [whole(sample)]) == [()]
    corner, middle, edge = footprints(
        sample, [Window(0, 0, 64, 64), Window(200, 240, 64, 64), Window(476, 476, 64, 64)]
    )
    assert corner == ()
    assert edge == ()
    assert len(middle) == 8
    assert -100 < middle[0] < -75
    assert footprints(sample, [Window(200, 240, 64, 64)]) == [pytest.approx(middle, abs=1e-9)]
    assert gsd_m(sample) == pytest.approx(step, rel=2e-2)  # below the satellite
    assert gsd_m(replace(sample, width=2, height=2)) is None


parameters = st.tuples(*[st.floats(-100, 100).filter(lambda v: abs(v) > 1e-2)] * 2, *[st.floats(-50, 50)] * 2)


@given(parameters, st.integers(0, 60_000), st.integers(0, 60_000), st.floats(0, 1024), st.floats(0, 1024))
def test_a_window_keeps_its_ground(
    steps: tuple[float, float, float, float], left: int, top: int, col: float, row: float
) -> None:
    (a, e, b, d), (c, f) = steps, (500_000.25, 4_999_999.75)
    sample = image("EPSG:32633", (a, b, c, d, e, f), gcps=json.dumps([[70.5, 80.25, 1.0, 2.0, 3.0]]))
    moved, gcps = shifted(sample, Window(left, top, 1024, 1024))
    assert moved is not None
    for at, whole_at in ((moved[:3], (a, b, c)), (moved[3:], (d, e, f))):
        here = at[0] * col + at[1] * row + at[2]
        there = whole_at[0] * (left + col) + whole_at[1] * (top + row) + whole_at[2]
        assert abs(here - there) <= 1e-6 * min(abs(a), abs(e), 1.0)
    assert json.loads(gcps) == [[70.5 - left, 80.25 - top, 1.0, 2.0, 3.0]]


def test_shifted_control_points_give_the_footprint_of_the_window() -> None:
    transform = (0.45, 0.1, 500_000.0, 0.08, -0.52, 5_000_000.0)
    sample = image("EPSG:32633", None, gcps=gcps_of(transform, [(0, 0), (999, 10), (500, 799), (20, 600), (700, 333)]))
    window = Window(300, 200, 256, 128)
    moved, gcps = shifted(sample, window)
    assert moved is None
    tile = replace(sample, width=256, height=128, gcps=gcps)
    assert footprints(tile, [whole(tile)])[0] == pytest.approx(footprints(sample, [window])[0], abs=1e-9)


def test_shifted_without_a_place() -> None:
    assert shifted(image("", None), Window(5, 5, 10, 10)) == (None, "")


def test_places_as_files_give_them(tmp_path: Path) -> None:
    points = [GroundControlPoint(row=r, col=c, x=20 + c * 1e-4, y=50 - r * 1e-4) for r, c in ((0, 0), (0, 90), (70, 5))]
    options = {"driver": "GTiff", "width": 100, "height": 80, "count": 3, "dtype": "uint8"}
    with rasterio.open(tmp_path / "gcps.tif", "w", gcps=points, crs="EPSG:4326", **options) as raster:
        raster.write(np.ones((3, 80, 100), np.uint8))
    with rasterio.open(
        tmp_path / "rotated.tif", "w", crs="EPSG:32633", transform=from_gcps(points), **options
    ) as raster:
        raster.write(np.ones((3, 80, 100), np.uint8))
    rgb = ("red", "green", "blue")
    header, where = geotiff.header(str(tmp_path / "gcps.tif"), rgb)
    sample = Sample(width=header.width, height=header.height, **where)
    assert sample.crs == "EPSG:4326"
    assert sample.transform is None
    assert len(json.loads(sample.gcps)) == 3
    assert footprints(sample, [whole(sample)])[0][:4] == pytest.approx((20, 50, 20.01, 50), abs=1e-9)
    _, where = geotiff.header(str(tmp_path / "rotated.tif"), rgb)
    assert where["transform"] == pytest.approx(tuple(from_gcps(points)[:6]), abs=0)
