"""Every label format, made on the spot from known boxes: read, through windows, and damaged in every way."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.warp import transform as warp
from worlds import geotiff

from datakit import files
from datakit.boxes import Box, by_window, dumps, loads, rectangle, through
from datakit.errors import ShardError, SourceError
from datakit.manifest import (
    Captions,
    CocoJson,
    Collection,
    DotaText,
    FmowJson,
    GeoJson,
    Layout,
    MaskRaster,
    MaskSource,
    VocXml,
)
from datakit.sample import Part, Sample, Window, from_table, to_table
from datakit.sources import folder
from datakit.sources.labels import Labelled, LabelReader
from datakit.sources.scan import Scan, Source, label_table, listing
from datakit.stages.slice import Grid, Slice
from datakit.windows import grid

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "rs"
UTM, LONLAT = "EPSG:32632", "EPSG:4326"
NORTH_UP = (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_400_000.0)
TURNED = (0.4, 0.3, 500_000.0, 0.3, -0.4, 5_400_000.0)
SCENE = Sample(name="images/P1.tif", width=300, height=200, crs=UTM, transform=NORTH_UP)
PIXELS = GeoJson(path="P1.geojson", coordinates="pixel", category="kind")
MAP = GeoJson(path="P1.geojson", category="kind")


def reader(labels: Any, texts: Mapping[str, object], there: Mapping[str, files.File] | None = None) -> LabelReader:
    """A reader of files made of text, bytes, or plain data as JSON."""
    data = {n: t if isinstance(t, bytes) else (t if isinstance(t, str) else json.dumps(t)).encode()
            for n, t in texts.items()}  # fmt: skip
    return LabelReader(labels if isinstance(labels, tuple) else (labels,), data.get, (there or {}).get)


def said(labels: Any, text: object, image: Sample = SCENE) -> Labelled:
    """Labels of an image beside the one label file of a layout."""
    return reader(labels, {"P1.geojson": text, "images/P1.json": text, "all.json": text})(image)


def feature(geometry: object, **properties: object) -> dict[str, object]:
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def polygon(*rings: list[Any]) -> dict[str, object]:
    return {"type": "Polygon", "coordinates": rings}


def collection(*features: object, **more: object) -> dict[str, object]:
    return {"type": "FeatureCollection", **more, "features": features}


def named(crs: str) -> dict[str, object]:
    return {"type": "name", "properties": {"name": crs}}


def pairs(points: tuple[float, ...]) -> list[tuple[float, float]]:
    return list(zip(points[::2], points[1::2], strict=True))


def closed(points: tuple[float, ...]) -> list[list[float]]:
    return [list(p) for p in (*pairs(points), points[:2])]


def on_map(points: tuple[float, ...], transform: tuple[float, ...], crs: str = UTM) -> list[list[float]]:
    """A closed ring of the map, by the plain formula and rasterio's own transformation."""
    a, b, c, d, e, f = transform
    xs = [a * x + b * y + c for x, y in closed(points)]
    ys = [d * x + e * y + f for x, y in closed(points)]
    return [list(p) for p in (zip(*warp(UTM, crs, xs, ys), strict=True) if crs != UTM else zip(xs, ys, strict=True))]


# Boxes with known corners: whole in a tile, over edges of tiles, over a corner, over the edge of the image.
TRUTH = [
    ("ship", rectangle(10, 12, 40, 31)),
    ("ship", rectangle(55, 50, 90, 77.5)),
    ("plane", (120.0, 80.0, 150.0, 95.0, 140.0, 118.0, 110.0, 103.0)),
    ("harbor", rectangle(250, 150, 320, 190)),
    ("plane", (60.0, 120.0, 68.5, 128.5, 60.0, 137.0, 51.5, 128.5)),
]


def as_dota() -> Labelled:
    lines = [f"{' '.join(map(str, points))} {name} 0" for name, points in TRUTH]
    return reader(DotaText(path="P1.txt"), {"P1.txt": "\n".join(["imagesource:GF", "gsd:0.5", *lines])})(SCENE)


def as_voc() -> Labelled:
    points = ["".join(f"<point>{x},{y}</point>" for x, y in closed(p)) for _, p in TRUTH]
    objects = [f"<object><possibleresult><name>{name}</name></possibleresult><points>{p}</points></object>"
               for (name, _), p in zip(TRUTH, points, strict=True)]  # fmt: skip
    return reader(VocXml(path="P1.xml"), {"P1.xml": f"<annotation>{''.join(objects)}</annotation>"})(SCENE)


def as_coco() -> Labelled:
    kinds = sorted({name for name, _ in TRUTH})
    notes = [{"id": n, "image_id": 7, "category_id": kinds.index(name), "segmentation": [list(p)], "bbox": [0, 0, 1, 1]}
             for n, (name, p) in enumerate(TRUTH)]  # fmt: skip
    plain = {"images": [{"id": 7, "file_name": "P1.tif"}], "annotations": notes,
             "categories": [{"id": n, "name": name} for n, name in enumerate(kinds)]}  # fmt: skip
    return reader(CocoJson(path="all.json", images="images"), {"all.json": plain})(SCENE)


def as_geojson_pixels() -> Labelled:
    return said(PIXELS, collection(*(feature(polygon(closed(p)), kind=name) for name, p in TRUTH)))


def as_geojson_map() -> Labelled:
    features = [feature(polygon(on_map(p, NORTH_UP, LONLAT)), kind=name) for name, p in TRUTH]
    return said(MAP, collection(*features, crs=named("urn:ogc:def:crs:OGC:1.3:CRS84")))


def as_fmow() -> Labelled:
    """Its boxes are along the axes: those that are not stay out."""
    straight = [(name, p) for name, p in TRUTH if p == rectangle(p[0], p[1], p[4], p[5])]
    notes = [{"ID": n, "category": name, "box": [p[0], p[1], p[4] - p[0], p[5] - p[1]]}
             for n, (name, p) in enumerate(straight)]  # fmt: skip
    return said(FmowJson(), {"gsd": 0.5, "bounding_boxes": notes})


WRITERS = [as_dota, as_voc, as_coco, as_geojson_pixels, as_geojson_map, as_fmow]


@pytest.mark.parametrize("written", WRITERS)
def test_boxes_are_what_was_written(written):
    found = written().boxes
    wanted = [t for t in TRUTH if written is not as_fmow or t[1] == rectangle(t[1][0], t[1][1], t[1][4], t[1][5])]
    assert [box.category for box in found] == [name for name, _ in wanted]
    for box, (_, points) in zip(found, wanted, strict=True):
        assert box.points == pytest.approx(points, abs=1e-5)
        assert box.points == points or written is as_geojson_map
    assert {box.kind for box in found} == {"quad"} if written in (as_dota, as_voc) else {"polygon", "box"}


def share_inside(points: tuple[float, ...], window: Window, step: float = 0.125) -> float:
    """Share of a convex polygon that lies in a window, by counting the points of a fine raster."""
    ring = np.array(pairs(points))
    (left, top), (right, bottom) = ring.min(axis=0), ring.max(axis=0)
    x, y = np.meshgrid(np.arange(left, right, step) + step / 2, np.arange(top, bottom, step) + step / 2)
    sides = [(bx - ax) * (y - ay) - (by - ay) * (x - ax)
             for (ax, ay), (bx, by) in zip(ring, np.roll(ring, -1, axis=0), strict=True)]  # fmt: skip
    of_polygon = np.all(np.array(sides) >= 0, axis=0) | np.all(np.array(sides) <= 0, axis=0)
    of_window = (x >= window.left) & (x < window.left + window.width)
    of_window &= (y >= window.top) & (y < window.top + window.height)
    return float((of_polygon & of_window).sum() / of_polygon.sum())


@pytest.mark.parametrize("written", WRITERS)
def test_boxes_go_through_windows_as_a_plain_count_says(written):
    boxes = list(written().boxes)
    windows = grid(SCENE.width, SCENE.height, 100, 20)
    assert len(windows) > 6
    stored = loads(dumps(through(boxes, Window(0, 0, SCENE.width, SCENE.height))))
    found = by_window(stored, windows)
    for window, inside in zip(windows, found, strict=True):
        shares = {n: share_inside(box.points, window) for n, box in enumerate(boxes)}
        seen = [(n, share) for n, share in shares.items() if share > 0.002]
        assert len(inside) == len(seen)
        for box, (n, share) in zip(inside, seen, strict=True):
            moved = [v - (window.left, window.top)[i % 2] for i, v in enumerate(boxes[n].points)]
            assert box.points == pytest.approx(moved, abs=2e-6)
            assert box.category == boxes[n].category
            assert box.iof == pytest.approx(share, abs=0.02)
            assert box.ignore == (box.iof < 0.7) or stored[n].ignore
            assert 0 <= min(box.clipped) <= max(box.clipped) <= 100


# GeoJSON


def test_xview_has_one_file_for_all_images():
    spec = GeoJson(path="all.json", coordinates="pixel", image="image_id", images="train_images",
                   bounds="bounds_imcoords", category="type_id", categories={"73": "Building"})  # fmt: skip
    far = polygon([[-90.5, 40.1], [-90.5, 40.2], [-90.4, 40.2], [-90.5, 40.1]])

    def row(image: str, bounds: object, kind: object) -> dict[str, object]:
        return feature(
            far, bounds_imcoords=bounds, image_id=image, type_id=kind, feature_id=1, cat_id="1", edited_by="a"
        )

    rows = [row("1036.tif", "2712,1145,2746,1177", 73), row("1395.tif", "1,2,3,4", 73), row("1036.tif", "", 73),
            row("1036.tif", [9, 4, 5, 8], 75), row("1036.tif", " 1, 2,3 ,4", 73.0), row("1040.tif", "bad", 73),
            row("1036.tif", "1,2,3,4", None)]  # fmt: skip
    asked: list[str] = []
    text = json.dumps(collection(*rows)).encode()
    read = LabelReader((spec,), lambda name: asked.append(name) or text)
    assert read(Sample(name="train_images/1036.tif")).boxes == [
        Box("Building", rectangle(2712, 1145, 2746, 1177), kind="box"),
        Box("75", rectangle(5, 4, 9, 8), kind="box"),  # a code without a name: xView has rows of 75 and 82
        Box("Building", rectangle(1, 2, 3, 4), kind="box"),
        Box("object", rectangle(1, 2, 3, 4), kind="box"),
    ]
    assert read(Sample(name="train_images/9.tif")).boxes == read(Sample(name="val_images/1036.tif")).boxes == []
    with pytest.raises(SourceError, match=r"all\.json, feature 6: expected xmin,ymin,xmax,ymax in bounds_imcoords"):
        read(Sample(name="train_images/1040.tif"))
    assert asked == ["all.json"]


def test_spacenet_has_a_file_of_buildings_for_each_image():
    """Heights, holes, several polygons in one, empty geometries of every spelling, and nothing at all."""
    parts = [rectangle(10, 10, 30, 30), rectangle(40, 10, 60, 30), rectangle(15, 15, 20, 20)]
    first, second, hole = (on_map(p, TURNED, LONLAT) for p in parts)
    high = [[x, y, 0.0] for x, y in first]
    nothing = [None, polygon(), polygon([]), {"type": "MultiPolygon", "coordinates": []},
               {"type": "MultiPolygon", "coordinates": [[]]}, {"type": "GeometryCollection", "geometries": []},
               {"type": "Point", "coordinates": []},
               {"type": "LineString", "coordinates": first[:2]}]  # fmt: skip
    spec = GeoJson(path="geojson/buildings_{stem:+15}.geojson", default="building")
    image = replace(SCENE, name="RGB-PanSharpen/RGB-PanSharpen_AOI_2_Vegas_img1.tif", transform=TURNED)

    def buildings(*geometries: object, crs: object = "urn:ogc:def:crs:OGC:1.3:CRS84") -> list[Box]:
        crs = named(crs) if isinstance(crs, str) else crs
        text = collection(*(feature(g, OBJECTID_1=0, FID_VEGAS=0) for g in geometries), crs=crs)
        path = "geojson/buildings_AOI_2_Vegas_img1.geojson"
        found = reader(spec, {path: text})(image).boxes
        assert {(b.category, b.kind) for b in found} <= {("building", "polygon")}
        return list(found)

    several = {"type": "MultiPolygon", "coordinates": [[first, hole], [second]]}
    for found in (
        buildings(polygon(first), polygon(second)),
        buildings(polygon(high, hole), polygon(second), crs=None),
        buildings(*nothing, several),
        buildings({"type": "GeometryCollection", "geometries": [polygon(first), None, polygon(second)]}),
        buildings(*(polygon(on_map(p, TURNED)) for p in parts[:2]), crs="urn:ogc:def:crs:EPSG::32632"),
    ):
        assert [b.points for b in found] == [pytest.approx(p, abs=1e-5) for p in parts[:2]]
    assert buildings() == buildings(*nothing) == []


def test_a_point_is_a_box_without_area_in_one_window_only():
    text = collection(feature({"type": "MultiPoint", "coordinates": [[100, 50], [12.5, 7, 3]]}, kind="tree"))
    boxes = list(said(PIXELS, text).boxes)
    assert boxes == [Box("tree", (100.0, 50.0) * 4, kind="box"), Box("tree", (12.5, 7.0) * 4, kind="box")]
    windows = [Window(x, y, 100, 50) for y in (0, 50, 100, 150) for x in (0, 100, 200)]
    found = by_window(loads(dumps(boxes)), windows)
    assert [len(inside) for inside in found] == [1, 0, 0, 0, 1, 0, *[0] * 6]
    assert found[4][0].points == (0.0, 0.0) * 4
    assert found[4][0].iof == 1.0


def test_the_date_line_is_no_edge():
    image = replace(SCENE, crs=LONLAT, transform=(0.01, 0.0, 179.0, 0.0, -0.01, 1.0))
    ring = [[-179.9, 0.5], [-179.8, 0.5], [-179.8, 0.4], [-179.9, 0.5]]
    (box,) = said(MAP, collection(feature(polygon(ring))), image).boxes
    assert box.points == pytest.approx((110, 50, 120, 50, 120, 60), abs=1e-9)
    square = [[179.1, 0.5], [179.2, 0.5], [179.2, 0.4], [179.1, 0.4], [179.1, 0.5]]
    three = said(MAP, collection(*(feature(polygon(r)) for r in (square, ring, square))), image).boxes
    assert [b.points[:2] for b in three] == [pytest.approx(p) for p in ((10, 50), (110, 50), (10, 50))]
    assert [len(b.points) for b in three] == [8, 6, 8]
    shifted = [[x + 360, y] for x, y in ring]
    assert said(MAP, collection(feature(polygon(shifted))), image).boxes[0].points == pytest.approx(box.points)


def test_what_the_image_projection_has_no_place_for_is_left_out():
    stereo = replace(SCENE, crs="+proj=geos +h=35785831 +lon_0=0", transform=(3000.0, 0.0, 0.0, 0.0, -3000.0, 0.0))
    here = polygon([[1, 0.0], [2, 0.0], [2, -1], [1, 0.0]])
    far = polygon([[179, 0], [178, 0], [178, 1], [179, 0]])
    found = said(MAP, collection(feature(far, kind="far"), feature(here, kind="here"), feature(far)), stereo).boxes
    assert [box.category for box in found] == ["here"]
    assert found[0].points[:2] == pytest.approx((37, 0), abs=0.5)


ANGLES = st.floats(0, 6.28)
CORNERS = st.lists(st.tuples(st.floats(-500, 1500), st.floats(-500, 1500)), min_size=3, max_size=9)


@given(CORNERS, st.floats(0.1, 30), ANGLES, st.booleans(), st.sampled_from(["EPSG:32632", "EPSG:4326", "EPSG:3857"]))
@settings(max_examples=60, deadline=None)
def test_what_is_drawn_on_the_image_comes_back_from_the_map(corners, gsd, angle, mirrored, crs):
    """Any affine transform, any CRS of the file: the corners come back within a thousandth of a pixel."""
    cos, sin = gsd * math.cos(angle), gsd * math.sin(angle)
    transform = (cos, -sin, 500_000.0, sin, cos, 5_400_000.0)
    if mirrored:
        transform = (cos, sin, 500_000.0, sin, -cos, 5_400_000.0)
    points = tuple(v for p in corners for v in p)
    if corners[0] == corners[-1]:
        return
    text = collection(feature(polygon(on_map(points, transform, crs))), crs=named(crs))
    (box,) = said(MAP, text, replace(SCENE, transform=transform)).boxes
    assert box.points == pytest.approx(points, abs=1e-3)


RING = [[1, 1], [9, 1], [9, 9], [1, 1]]
LONLATS = [[9.0, 48.7], [9.1, 48.7], [9.1, 48.8], [9.0, 48.7]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "FeatureCollection",\n "features": [{"type"', "P1.geojson, line 2: expected JSON"),
        ("", "line 1: expected JSON"),
        (b"\xff\xfe\xfd", "line 1: expected JSON"),
        ("[" * 100_000, "line 1: expected JSON"),
        ([], "expected a FeatureCollection with a list of features, found list"),
        (polygon(RING), "expected a FeatureCollection .* found keys type, coordinates"),
        ({"type": "FeatureCollection", "features": {"a": 1}}, "expected a FeatureCollection"),
        (collection(feature(None), 7), "feature 2: expected {geometry, properties}, found int"),
        (collection({"properties": [1], "geometry": None}), "feature 1: expected properties"),
        (collection(feature(polygon([[1, math.nan], [2, 2], [3, 3]]))), "feature 1: expected a number, found nan"),
        (collection(feature(polygon([[1, "x"], [2, 2], [3, 3]]))), "feature 1: expected a number, found 'x'"),
        (collection(feature(polygon([[1, 1e300], [2, 2], [3, 3]]))), r"expected a number, found 1e\+300"),
        (collection(feature(polygon([[1], [2, 2], [3, 3]]))), r"feature 1: expected a position \[x, y\], found \[1\]"),
        (collection(feature(polygon([1, 2, 3]))), "feature 1: expected a position"),
        (collection(feature({"type": "Polygon", "coordinates": [1, 2]})), "feature 1: expected rings"),
        (collection(feature({"type": "MultiPolygon", "coordinates": [7]})), "feature 1: expected rings"),
        (
            collection(feature(polygon(RING)), feature(polygon([[1, 1], [2, 2], [1, 1]]))),
            "feature 2: expected 3 or more",
        ),
        (collection(feature({"type": "Circle", "coordinates": [1, 2]})), "feature 1: expected a geometry"),
        (collection(feature({"type": "Polygon"})), "feature 1: expected a geometry"),
        (collection(feature([1, 2])), "feature 1: expected a geometry"),
        (collection(feature({"type": "GeometryCollection"})), "feature 1: expected geometries"),
        (
            collection(feature({"type": "GeometryCollection", "geometries": [{"type": "GeometryCollection"}]})),
            "feature 1: expected a geometry",
        ),
        (
            collection(feature(polygon(RING), kind=["a"])),
            r"feature 1: expected text or a number in kind, found \['a'\]",
        ),
        (collection(feature(polygon(RING), kind=True)), "feature 1: expected text or a number in kind, found True"),
    ],
)
def test_geojson_damage_is_told_by_file_and_feature(text, message):
    with pytest.raises(SourceError, match=message):
        said(PIXELS, text)


@pytest.mark.parametrize(
    ("crs", "ring", "image", "message"),
    [
        (None, LONLATS, replace(SCENE, crs=""), r"P1\.geojson: expected images/P1\.tif to have a place.* CRS none"),
        (None, LONLATS, replace(SCENE, transform=None), "to have a place.* transform None"),
        (None, LONLATS, replace(SCENE, transform=(1.0, 2.0, 0.0, 2.0, 4.0, 0.0)), "to have a place"),
        (None, on_map(rectangle(1, 1, 9, 9), NORTH_UP), SCENE, r"feature 1: expected longitude, latitude .*500000\.5"),
        (
            None,
            [[y, x + 90] for x, y in LONLATS],
            SCENE,
            r"expected longitude, latitude \(EPSG:4326\), found \[48.7, 99",
        ),
        (named("EPSG:4326"), [*RING[:2], [400, 1]], SCENE, r"expected longitude, latitude \(EPSG:4326\)"),
        (named("urn:nonsense"), LONLATS, SCENE, "expected a CRS that PROJ knows.*urn:nonsense"),
        (None, LONLATS, replace(SCENE, crs="nonsense"), "expected a CRS that PROJ knows.*'nonsense'"),
        ({"type": "link", "properties": {"href": "x"}}, LONLATS, SCENE, r"expected crs .*, found {'type': 'link'"),
        ("EPSG:4326", LONLATS, SCENE, "expected crs .* found 'EPSG:4326'"),
    ],
)
def test_a_place_that_cannot_be_is_told(crs, ring, image, message):
    with pytest.raises(SourceError, match=message):
        said(MAP, collection(feature(polygon(ring)), crs=crs), image)


@pytest.mark.parametrize(
    ("spec", "properties", "message"),
    [
        (GeoJson(path="all.json", image="image_id"), {}, "feature 2: expected the file name of an image in image_id"),
        (
            GeoJson(path="all.json", image="image_id"),
            {"image_id": 7},
            "feature 2: expected the file name of an image in image_id, found 7",
        ),
        (GeoJson(path="all.json", bounds="bb"), {"other": 1}, "feature 2: expected bb, found 'other'"),
        (GeoJson(path="all.json", bounds="bb"), {"bb": "1,2,3"}, "feature 2: expected xmin,ymin,xmax,ymax in bb"),
        (GeoJson(path="all.json", bounds="bb"), {"bb": {"a": 1}}, "feature 2: expected xmin,ymin,xmax,ymax in bb"),
        (GeoJson(path="all.json", bounds="bb"), {"bb": "1,2,3,nan"}, "feature 2: expected a number, found 'nan'"),
    ],
)
def test_properties_that_are_wrong_are_told(spec, properties, message):
    good = feature(None, image_id="images/P1.tif", bb="1,2,3,4")
    with pytest.raises(SourceError, match=rf"all\.json, {message}"):
        said(spec, collection(good, feature(None, **properties)))


KEYS = [
    "type", "features", "properties", "geometry", "geometries", "coordinates", "crs", "name", "images", "filename",
    "sentences", "raw", "split", "bounding_boxes", "category", "box", "gsd", "timestamp", "id", "file_name",
    "annotations", "categories", "bbox", "segmentation", "image_id", "category_id",
]  # fmt: skip
JSONS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=25,
)


@given(
    JSONS | st.fixed_dictionaries({"features": JSONS, "images": JSONS, "bounding_boxes": JSONS, "annotations": JSONS})
)
@settings(max_examples=300, deadline=None)
def test_any_json_is_read_or_refused(plain):
    many = (CocoJson(path="all.json"), Captions(path="all.json"), GeoJson(path="all.json", image="name"))
    for labels in (PIXELS, MAP, FmowJson(), GeoJson(path="all.json", bounds="name"), *many):
        for name in ("images/P1.tif", "0"):
            with contextlib.suppress(SourceError):
                found = said(labels, plain, replace(SCENE, name=name))
                assert isinstance(loads(dumps(through(found.boxes, Window(0, 0, 300, 200)))), list)
                assert all(isinstance(caption, str) for caption in found.captions)


@given(st.lists(st.tuples(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12)), min_size=3, max_size=6))
def test_far_corners_stay_finite(corners):
    text = collection(feature(polygon([list(c) for c in corners] + [[0.5, 0.25]])))
    assert all(0 <= box.iof <= 1 for box in through(said(PIXELS, text).boxes, Window(0, 0, 300, 200)))


# fMoW


def test_fmow():
    plain = {
        "img_filename": "airport_0_0_rgb.jpg", "gsd": 0.521, "timestamp": "2016-07-01T10:12:33Z", "utm": "32U",
        "bounding_boxes": [
            {"ID": -1, "category": "false_detection", "box": [3, 4, 10, 20]},
            {"ID": 4, "category": "airport", "raw_category": "Airport", "box": [10.5, 20, 100, 50.25]},
            {"ID": 5, "box": [1, 1, 2, 2]},
        ],
    }  # fmt: skip
    found = said(FmowJson(), plain)
    assert found.boxes == [
        Box("false_detection", rectangle(3, 4, 13, 24), kind="box"),
        Box("airport", rectangle(10.5, 20, 110.5, 70.25), kind="box"),
    ]
    assert (found.label, found.gsd_m, found.acquired) == ("airport", 0.521, "2016-07-01T10:12:33Z")
    bare = said(FmowJson(), {"gsd": None, "timestamp": "yesterday", "bounding_boxes": plain["bounding_boxes"][:1]})
    assert (bare.label, bare.gsd_m, bare.acquired, len(bare.boxes)) == ("", None, "", 1)
    assert said(FmowJson(), {}) == said(FmowJson(), {"gsd": 0}) == said(FmowJson(), {"gsd": math.nan})
    assert said(FmowJson(), {}) == Labelled(boxes=[])


def test_a_class_folder_goes_before_a_class_in_a_file():
    text = {"bounding_boxes": [{"category": "airport", "box": [1, 1, 2, 2]}]}
    layout = Layout.model_validate({"images": ["**"], "labels": [{"kind": "fmow"}, {"kind": "class_folders"}]})
    found = said(layout.labels, text)
    assert (found.label, found.boxes[0].category) == ("images", "airport")


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ('{"gsd": 1,', "images/P1.json, line 1: expected JSON"),
        ([1], r"images/P1.json: expected {gsd, timestamp, bounding_boxes: \[…\]}, found list"),
        ({"bounding_boxes": {"a": 1}}, "expected {gsd, timestamp, bounding_boxes"),
        ({"bounding_boxes": None}, "expected {gsd, timestamp, bounding_boxes"),
        ({"gsd": "fine"}, "images/P1.json, gsd: expected a number, found 'fine'"),
        ({"gsd": math.inf}, "gsd: expected a number, found inf"),
        ({"gsd": -0.5}, "gsd: expected metres a pixel above 0, or null, found -0.5"),
        ({"timestamp": 2016}, "timestamp: expected YYYY-MM-DDThh:mm:ssZ, found 2016"),
        ({"bounding_boxes": [7]}, "bounding box 1: expected {category, box}, found 7"),
        ({"bounding_boxes": [{"category": 7}]}, "bounding box 1: expected {category, box}"),
        ({"bounding_boxes": [{"category": "a"}]}, r"bounding box 1: expected box \[x, y, width, height\], found None"),
        ({"bounding_boxes": [{"category": "a", "box": [1, 2, 3, math.inf]}]}, "box 1: expected a number, found inf"),
    ],
)
def test_fmow_damage_is_told(plain, message):
    with pytest.raises(SourceError, match=message):
        said(FmowJson(), plain)


# captions


RSICD = Captions(path="all.json", images="images")


def test_rsicd():
    def entry(name: str, *texts: str, **more: object) -> dict[str, object]:
        return {"filename": name, "imgid": 0, "sentids": [0], **more,
                "sentences": [{"raw": t, "tokens": t.split(), "imgid": 0} for t in texts]}  # fmt: skip

    plain = {"dataset": "rsicd", "images": [
        entry("P1.tif", "many planes are parked .", " ", " a runway", "a runway", split="train"),
        entry("P2.tif", "other"), entry("P1.tif", "again", split="val"), {"filename": "P3.tif"}]}  # fmt: skip
    found = said(RSICD, plain)
    assert found.captions == ("many planes are parked .", "a runway", "a runway", "again")
    assert (found.split, found.label, found.boxes) == ("train", "", [])
    assert said(RSICD, plain, Sample(name="images/P2.tif")) == Labelled(boxes=[], captions=("other",))
    for name in ("images/P3.tif", "images/P4.tif", "P1.tif"):
        assert said(RSICD, plain, Sample(name=name)) == Labelled(boxes=[])


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ('{"images": [\n{"filename": "P1.tif", "sent', "all.json, line 2: expected JSON"),
        ([], "all.json: expected images: .*, found list"),
        ({"images": {}}, "expected images: .*, found keys images"),
        ({"images": [{}]}, "image 1: expected {filename, sentences}, found {}"),
        ({"images": [{"filename": "P2.tif"}, {"filename": 7}]}, "image 2: expected {filename, sentences}"),
        ({"images": [{"filename": "P1.tif", "sentences": "a text"}]}, "image 1: expected a list, found 'a text'"),
        ({"images": [{"filename": "P1.tif", "sentences": ["a text"]}]}, r"image 1: expected sentences \[{raw: text}"),
        ({"images": [{"filename": "P1.tif", "sentences": [{"raw": 7}]}]}, "image 1: expected sentences"),
        ({"images": [{"filename": "P1.tif", "split": "../x"}]}, "image 1: expected split of letters.*found '../x'"),
        ({"images": [{"filename": "P1.tif", "split": 1}]}, "image 1: expected split"),
    ],
)
def test_captions_damage_is_told(plain, message):
    with pytest.raises(SourceError, match=message):
        said(RSICD, plain)


# masks


FILE = files.File("images/P1_mask.png", "a.zip::P1_mask.png", 9, "17", 3, 8, "deflated", 77)


def test_a_mask_says_where_it_lies_and_what_its_levels_are():
    spec = MaskRaster(
        path="{dir}/{stem:-4}_mask.png", classes={1: "road", 0: "none"}, colours={1: (255, 0, 9)}, ignore=(7,)
    )
    read = reader(spec, {}, {FILE.name: FILE})
    found = read(Sample(name="images/P1_sat.jpg"))
    assert json.loads(found.mask) == {
        "file": asdict(FILE),
        "levels": None,
        "source": "",
        "threshold": None,
        "colours": {"255,0,9": 1},
        "ignore": [7],
        "classes": {"1": "road", "0": "none"},
    }
    back = MaskSource.from_json(found.mask)
    assert back == MaskSource(file=asdict(FILE), ignore=(7,), classes={1: "road", 0: "none"}, colours={1: (255, 0, 9)})
    assert files.File(**back.file) == FILE
    assert back.to_json() == found.mask
    assert read(Sample(name="images/P2_sat.jpg")).mask == ""
    plain = reader(MaskRaster(path="{dir}/P1_mask.png"), {}, {FILE.name: FILE})(SCENE).mask
    assert json.loads(plain)["colours"] is None
    assert MaskSource.from_json(plain) == MaskSource(file=asdict(FILE))


@pytest.mark.parametrize("packing", ["encrypted", "broken_link", "unsafe", "method 97"])
def test_a_mask_that_cannot_be_read_is_told(packing):
    read = reader(MaskRaster(path="m.png"), {}, {"m.png": replace(FILE, packing=packing)})
    with pytest.raises(SourceError, match=rf"m\.png: expected a raster that can be read in place, found: {packing}"):
        read(SCENE)


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '{"file": {}, "levels": {"1": 2}, "colours": null}',
                                  '{"file": {}, "levels": null, "colours": {"1,2": 3}}',
                                  '{"file": {}, "levels": null, "colours": null, "other": 1}'])  # fmt: skip
def test_a_damaged_mask_field_is_told(text):
    with pytest.raises(ShardError, match="expected the JSON of a mask"):
        MaskSource.from_json(text)


@given(st.dictionaries(st.integers(0, 255), st.text(max_size=9)),
       st.dictionaries(st.integers(0, 255), st.tuples(*[st.integers(0, 255)] * 3)),
       st.lists(st.integers(0, 255), max_size=5))  # fmt: skip
def test_a_mask_field_comes_back(classes, colours, ignore):
    one_each = {level: colour for colour, level in {c: n for n, c in colours.items()}.items()}
    mask = MaskSource(file=asdict(FILE), ignore=tuple(ignore), classes=classes, colours=one_each)
    assert MaskSource.from_json(mask.to_json()) == mask


# into records


def scanned(root: Path, work: Path, layout: dict[str, Any], **more: Any) -> dict[str, Sample]:
    """Records of a folder by name, as a build scans it."""
    about = {"name": "a", "title": "A", "homepage": "https://a", "licence": "L", "modality": "optical",
             "bands": ["red", "green", "blue"], "layout": layout, **more}  # fmt: skip
    source = Source(name="a", path=".", collection=Collection.model_validate(about))
    found = list(folder.files(root))
    for path in (work / "labels", work / "aside"):
        path.mkdir(parents=True, exist_ok=True)
    name = f"{len(list((work / 'labels').iterdir()))}"
    pq.write_table(label_table(source, found), work / "labels" / f"{name}.parquet")
    part = Part(path=work / "part", aside=work / "aside", work=work, roots={"a": root})
    records = to_table(s for s in listing(source, found) if not s.dropped)
    return {s.name: s for s in from_table(Scan(source=source, labels=name)(records, part))}


def picture(path: Path, size: tuple[int, int] = (60, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 99, 40)).save(path)


def test_records_know_what_labels_say(tmp_path):
    root, work = tmp_path / "root", tmp_path / "work"
    pixels = np.full((40, 60, 3), 90, np.uint8)
    geotiff(root / "images" / "placed.tif", pixels)
    for name in ("told.jpg", "plain.jpg", "lost.tif", "bad.jpg"):
        picture(root / "images" / name)
    picture(root / "masks" / "told_mask.png")
    (root / "json").mkdir()
    fmow = {
        "gsd": 0.7,
        "timestamp": "2016-07-01T10:12:33Z",
        "bounding_boxes": [{"category": "port", "box": [50, 1, 20, 9]}],
    }
    for name in ("placed", "told"):
        (root / "json" / f"{name}.json").write_text(json.dumps(fmow))
    (root / "json" / "bad.json").write_text("{")
    ring = polygon(on_map(rectangle(5, 5, 15, 10), NORTH_UP, LONLAT))
    for name in ("placed", "lost"):
        (root / "json" / f"{name}.geojson").write_text(json.dumps(collection(feature(ring))))
    captions = {"images": [{"filename": "told.jpg", "split": "val", "sentences": [{"raw": "a port"}]},
                           {"filename": "placed.tif", "split": "val", "sentences": []}]}  # fmt: skip
    (root / "captions.json").write_text(json.dumps(captions))
    layout = {"images": ["images/*"], "label_files": ["masks/*", "json/*", "*.json"], "labels": [
        {"kind": "fmow", "path": "json/{stem}.json"}, {"kind": "geojson", "path": "json/{stem}.geojson"},
        {"kind": "mask", "path": "masks/{stem}_mask.png", "classes": {1: "port"}},
        {"kind": "captions", "path": "captions.json", "images": "images"}]}  # fmt: skip
    splits = {"train": {"images": ["images/placed.tif"]}}

    found = scanned(root, work, layout, splits=splits, gsd_m=[0.3, 2.0])
    placed, told, plain = (found[f"images/{n}"] for n in ("placed.tif", "told.jpg", "plain.jpg"))
    assert (placed.gsd_from, placed.gsd_range_m, placed.split) == ("transform", (), "train")
    assert placed.gsd_m == pytest.approx(0.5, rel=1e-3)
    port, building = loads(placed.boxes)
    assert (port.iof, port.ignore, port.category) == (0.5, True, "port")
    assert (building.category, building.points) == ("object", pytest.approx(rectangle(5, 5, 15, 10), abs=1e-5))
    assert (told.gsd_m, told.gsd_from, told.gsd_range_m) == (0.7, "labels", ())
    assert (told.split, told.captions, told.label, told.acquired) == (
        "val",
        ("a port",),
        "port",
        "2016-07-01T10:12:33Z",
    )
    lies = files.File(**MaskSource.from_json(told.mask).file)
    assert files.read(root, lies) == (root / "masks" / "told_mask.png").read_bytes()
    assert (plain.gsd_m, plain.gsd_from, plain.gsd_range_m, plain.mask, plain.split) == (None, "", (0.3, 2.0), "", "")
    reasons = {n: (s.dropped, s.detail) for n, s in found.items() if s.dropped}
    assert set(reasons) == {"images/lost.tif", "images/bad.jpg"}
    assert reasons["images/bad.jpg"] == ("label_unreadable", reasons["images/bad.jpg"][1])
    assert "expected images/lost.tif to have a place" in reasons["images/lost.tif"][1]

    again = scanned(root, work, layout, gsd_m=[0.5, 0.5])["images/plain.jpg"]
    assert (again.gsd_m, again.gsd_from, again.gsd_range_m) == (0.5, "manifest", ())
    none = scanned(root, work, layout)["images/plain.jpg"]
    assert (none.gsd_m, none.gsd_from, none.gsd_range_m) == (None, "", ())

    tiles = Slice(grid=Grid(size_px=30)).tiles(told)
    assert len(tiles) == 4
    assert {(t.captions, t.mask, t.split, t.gsd_m) for t in tiles} == {(told.captions, told.mask, "val", 0.7)}


def test_a_changed_ground_sampling_distance_is_scanned_again():
    def digest(**more: Any) -> str:
        about = Collection(name="a", title="A", homepage="h", licence="L", modality="optical", bands=("red",),
                           layout=Layout(images=("*",)), **more)  # fmt: skip
        return Scan(source=Source(name="a", path=".", collection=about), labels="").digest()

    assert digest() == digest(note="better said") != digest(gsd_m=(0.5, 0.5)) != digest(gsd_m=(0.5, 1.0))


def test_label_files_with_undecodable_names_are_read(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    picture(root / "a.png")
    (root / os.fsdecode(b"a.png")).rename(root / os.fsdecode(b"caf\xe9.png"))
    (root / os.fsdecode(b"caf\xe9.txt")).write_text("1 1 2 1 2 2 1 2 ship 0")
    layout = {"images": ["*.png"], "label_files": ["*.txt"], "labels": [{"kind": "dota", "path": "{stem}.txt"}]}
    (sample,) = scanned(root, tmp_path / "work", layout).values()
    assert [box.category for box in loads(sample.boxes)] == ["ship"]


# the real file


def real() -> tuple[Sample, list[Box]]:
    if not (REAL / "labelTxt" / "P0706.txt").exists():
        pytest.skip("the sample labels are not beside this checkout")
    with Image.open(REAL / "P0706.png") as image:
        width, height = image.size
    image = Sample(name="P0706.png", width=width, height=height)
    read = LabelReader((DotaText(path="labelTxt/{stem}.txt"),), lambda name: (REAL / name).read_bytes())
    found = list(read(image).boxes)
    assert len(found) == 536
    boxes = through(found, Window(0, 0, width, height))
    return replace(image, boxes=dumps(boxes)), boxes


def test_every_real_box_is_whole_in_a_tile_of_a_grid_that_overlaps_enough():
    image, boxes = real()
    assert len(boxes) == 536
    longest = max(math.ceil(max(b.points[i::2]) - min(b.points[i::2])) for b in boxes for i in (0, 1))
    tiles = Slice(grid=Grid(size_px=longest + 100, gap_px=longest)).tiles(image)
    assert len(tiles) > 9
    whole = {tuple(v + (t.window.left, t.window.top)[i % 2] for i, v in enumerate(b.points))
             for t in tiles if t.window for b in loads(t.boxes) if b.iof == 1.0}  # fmt: skip
    assert whole == {b.points for b in boxes if b.iof == 1.0}
    assert len([b for b in boxes if b.iof == 1.0]) >= 530


def overlap(points: tuple[float, ...], window: Window) -> bool:
    """Whether a convex polygon and a window share area: no side of either has them apart (separating axes)."""
    ring = np.array(pairs(points))
    left, top, width, height = window
    other = np.array(pairs(rectangle(left, top, left + width, top + height)))
    sides = np.concatenate([np.roll(ring, -1, axis=0) - ring, np.roll(other, -1, axis=0) - other])
    for dx, dy in sides:
        ours, others = ring @ (-dy, dx), other @ (-dy, dx)
        if ours.max() <= others.min() or others.max() <= ours.min():
            return False
    return True


@pytest.mark.parametrize("size", [200, 333])
def test_real_boxes_of_tiles_without_overlap_are_as_many_as_a_plain_count(size):
    image, boxes = real()
    for tile in Slice(grid=Grid(size_px=size)).tiles(image):
        assert tile.window
        near = [box for box in boxes if overlap(box.points, tile.window)]
        inside = loads(tile.boxes)
        assert len(inside) == len(near)
        left, top, width, height = tile.window
        whole = [
            b for b in near if all(left <= x <= left + width and top <= y <= top + height for x, y in pairs(b.points))
        ]
        assert sum(box.iof == 1.0 for box in inside) == len(whole)
    windows = [Window(x, y, size, size) for y in range(0, image.height, size) for x in range(0, image.width, size)]
    shares = sum(box.iof for inside in by_window(boxes, windows) for box in inside)
    assert shares == pytest.approx(sum(box.iof for box in boxes), abs=1.0)


def test_boxes_in_px_are_of_the_picture_as_shown(tmp_path):
    """Of whichever orientation the file tells; the share of a box within the picture is of that one."""
    root, work = tmp_path / "root", tmp_path / "work"
    (root / "images").mkdir(parents=True)
    layout = {"images": ["images/*"], "label_files": ["all.json"], "labels": [
        {"kind": "coco", "path": "all.json", "images": "images"}]}  # fmt: skip
    names = [f"{n}.jpg" for n in range(1, 9)]
    for n, name in enumerate(names, 1):
        exif = Image.Exif()
        exif[0x0112] = n
        Image.new("RGB", (60, 40), (9, 99, 40)).save(root / "images" / name, exif=exif)
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    notes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [35, 5, 20, 10]} for n in range(8)]
    plain = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "c"}]}
    (root / "all.json").write_text(json.dumps(plain))
    found = scanned(root, work, layout)
    for n, name in enumerate(names, 1):
        (box,) = loads(found[f"images/{name}"].boxes)
        assert (box.points, box.iof) == (rectangle(35, 5, 55, 15), 0.25 if n > 4 else 1.0)  # 40 or 60 px wide
