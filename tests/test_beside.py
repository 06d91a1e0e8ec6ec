"""Side-cars: world files, .aux.xml and .prj, against what GDAL itself makes of them; alike in folder, zip and tar."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections import Counter
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import from_gcps, from_origin
from worlds import geotiff, recipe_of, scene, source_of, work_done

import datakit
from datakit.listing import find_files
from datakit.place import footprints, gsd_m
from datakit.sample import Part, Sample, Window, from_table, to_table
from datakit.sources import beside
from datakit.sources.scan import Scan, Source, label_table, listing

UTM = CRS.from_epsg(32632)
ESRI = UTM.to_wkt(version="WKT1_ESRI")
WORLD = "0.5\n0\n0\n-0.5\n500000.25\n5399999.75\n"  # centre of the first px
CORNER = (0.5, 0.0, 500000.0, 0.0, -0.5, 5400000.0)
NODATA = '<PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand>'
SLANTED = "0.4\n0.1\n0.2\n-0.6\n500000\n5400000\n"
WIDTH, HEIGHT = 60, 40
FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "bmp": "BMP", "tif": "TIFF", "tiff": "TIFF"}


def aux(srs: str = "", transform: str = "", inner: str = "") -> str:
    place = (f"<SRS>{escape(srs)}</SRS>" if srs else "") + (
        f"<GeoTransform>{transform}</GeoTransform>" if transform else ""
    )
    return f"<PAMDataset>{place}{inner}</PAMDataset>"


def picture(kind: str, **more: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(scene(1, WIDTH, HEIGHT)).save(out, kind, **more)
    return out.getvalue()


def fill(folder: Path, content: dict[str, str | bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def scanned(root: Path, work: Path, **more: object) -> tuple[dict[str, Sample], Counter[str]]:
    """Records by name, and what was counted."""
    plain = source_of("own")
    plain["collection"] |= {"layout": {"images": ["**/*"] if more.get("all_files") else
                                       [f"**/*.{suffix}" for suffix in (*FORMATS, "PNG")]}}  # fmt: skip
    source = Source.model_validate(plain)
    found = find_files(source, root)
    (work / "labels").mkdir(parents=True)
    (work / "aside").mkdir()
    pq.write_table(label_table(source, found), work / "labels" / "t.parquet")
    part = Part(work / "part", work / "aside", work, {"own": root.parent if root.is_file() else root})
    listed = list(listing(source, found))
    read = from_table(Scan(source=source, labels="t")(to_table(s for s in listed if not s.dropped), part))
    return {s.name: s for s in [*read, *(s for s in listed if s.dropped)]}, part.counts


def only(root: Path, work: Path) -> Sample:
    (sample,) = scanned(root, work)[0].values()
    return sample


def test_names() -> None:
    assert beside.names_of("a.b/c.d.TIFF") == (
        "a.b/c.d.TIFF.aux.xml", ("a.b/c.d.tfw", "a.b/c.d.tiffw", "a.b/c.d.wld"), "a.b/c.d.prj")  # fmt: skip
    assert beside.names_of("c.jpg").worlds == ("c.jgw", "c.jpgw", "c.wld")
    assert beside.names_of("c.jpeg").worlds == ("c.jgw", "c.jpegw", "c.wld")
    assert beside.names_of("c.jp2").worlds == ("c.j2w", "c.jp2w", "c.wld")
    assert beside.names_of("c") == ("c.aux.xml", ("c.wld",), "c.prj")


PLACES = {
    "world": {".world": WORLD},
    "slanted": {".world": SLANTED},
    "comma": {".world": WORLD.replace(".", ",")},
    "aux": {".aux.xml": aux(UTM.to_wkt(), "500000, 0.5, 0, 5400000, 0, -0.5")},
    "srs beside a world file": {".world": WORLD, ".aux.xml": aux(UTM.to_wkt())},
    "points": {".aux.xml": aux(inner=f'<GCPList Projection="{escape(UTM.to_wkt(), quote=True)}">' + "".join(
        f'<GCP Id="" Pixel="{c}" Line="{r}" X="{500000 + c / 2}" Y="{5400000 - r / 2}"/>'
        for c, r in ((0, 0), (60, 0), (0, 40), (60, 40))) + "</GCPList>")},
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_places_are_those_that_gdal_reads(place: str, suffix: str, tmp_path: Path) -> None:
    own = {".world": f"a.{suffix[0]}{suffix[-1]}w", ".aux.xml": f"a.{suffix}.aux.xml"}
    fill(tmp_path / "in", {own[kind]: text for kind, text in PLACES[place].items()})
    fill(tmp_path / "in", {f"a.{suffix}": picture(FORMATS[suffix])})
    sample = only(tmp_path / "in", tmp_path / "work")
    with rasterio.open(tmp_path / "in" / f"a.{suffix}") as raster:
        points, crs = raster.gcps
        assert sample.crs == ("EPSG:32632" if (crs or raster.crs) == UTM else "")
        assert (sample.transform is None) == bool(points)
        assert sample.transform is None or sample.transform == pytest.approx(tuple(raster.transform)[:6], abs=1e-12)
        assert len(json.loads(sample.gcps or "[]")) == len(points)
    assert (sample.gsd_from, bool(sample.footprint)) == (("side_car", True) if sample.crs else ("", False))
    assert sample.gsd_m == (pytest.approx(0.5, rel=1e-3) if sample.crs else None)


WORLD_SUFFIXES = """
png pgw, png PGW, png pngw, png wld, png Wld, PNG pgw, jpg jgw, jpg jpgw, jpeg jgw, jpeg jpegw, bmp bpw, bmp bmpw,
tif tfw, tif tifw, tif TFW, tiff tfw, tiff tiffw
"""


@pytest.mark.parametrize("both", WORLD_SUFFIXES.strip().split(","))
def test_suffixes_of_world_files(both: str, tmp_path: Path) -> None:
    suffix, world = both.split()
    files = {f"x.y/a.{suffix}": picture(FORMATS[suffix.lower()]), f"x.y/a.{world}": WORLD, "x.y/a.PRJ": ESRI}
    found, counts = scanned(fill(tmp_path / "in", files), tmp_path / "work")
    (sample,) = found.values()
    assert (sample.crs, sample.transform, sample.gsd_from) == ("EPSG:32632", CORNER, "side_car")
    assert sample.footprint == footprints(sample, [Window(0, 0, WIDTH, HEIGHT)])[0] != ()
    assert not counts["side_cars_unreadable"]


def test_what_a_geotiff_says_goes_before_a_world_file_but_not_before_aux(tmp_path: Path) -> None:
    """As GDAL has it; a .prj counts only where nothing else tells the CRS of a transform."""
    other = CRS.from_epsg(32633)
    place = from_origin(400000, 5000000, 2, 2)
    for name in ("world", "aux"):
        geotiff(tmp_path / "in" / f"{name}.tif", scene(2, 64, 64), crs=other, transform=place)
    geotiff(tmp_path / "in" / "bare.tif", scene(2, 64, 64), crs=None, transform=place)
    more: dict[str, str | bytes] = {f"{name}.prj": ESRI for name in ("world", "bare", "crs_only")}
    more |= {"world.tfw": WORLD, "aux.tif.aux.xml": aux(UTM.to_wkt()), "crs_only.png": picture("PNG")}
    found, _ = scanned(fill(tmp_path / "in", more), tmp_path / "work")
    theirs = tuple(place)[:6]
    said = {name: (s.crs, s.transform, s.gsd_from) for name, s in found.items()}
    assert said == {
        "world.tif": ("EPSG:32633", theirs, "transform"),
        "aux.tif": ("EPSG:32632", theirs, "side_car"),
        "bare.tif": ("EPSG:32632", theirs, "side_car"),
        "crs_only.png": ("", None, ""),
    }
    for name in ("world", "aux"):
        with rasterio.open(tmp_path / "in" / f"{name}.tif") as raster:
            assert said[f"{name}.tif"][0] == f"EPSG:{raster.crs.to_epsg()}"


GARBAGE = {
    "a.pgw": ["", "1\n0\n0\n", "1 0 0 -1 5 5 5", "a\nb\nc\nd\ne\nf\n", "nan\n0\n0\n-1\n5\n5\n", "1\n0\n0\ninf\n5\n5\n",
              "0\n0\n0\n0\n5\n5\n", "2\n1\n2\n1\n5\n5\n", "1e300\n0\n0\n1e300\n5\n5\n", b"\xff\xfe\0\0\x80"],
    "a.prj": ["", "EPSG", "PROJCS[", 'GEOGCS["x"]', b"\xff\xff", "http://example.org/crs", "/etc/passwd"],
    "a.png.aux.xml": ["", "<PAM", "<PAMDataset><SRS>nowhere</SRS></PAMDataset>", aux(transform="1,2,3"),
                      aux(transform="0,0,0,0,0,0"), aux(transform="a,b,c,d,e,f"), '<!DOCTYPE a><PAMDataset/>',
                      '<?xml version="1.0" encoding="none"?><PAMDataset/>', b"\xff\xfe\0",
                      aux(inner='<GCPList><GCP Pixel="nan" Line="0" X="0" Y="0"/></GCPList>')],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in GARBAGE.items() for text in texts])
def test_garbage_is_counted_and_says_nothing(name: str, text: str | bytes, tmp_path: Path) -> None:
    files = {"a.png": picture("PNG"), **({"a.pgw": WORLD} if name == "a.prj" else {}), name: text}
    found, counts = scanned(fill(tmp_path / "in", files), tmp_path / "work")
    (sample,) = found.values()
    assert (sample.dropped, sample.crs, sample.gsd_m, sample.footprint, sample.gcps) == ("", "", None, (), "")
    assert sample.transform == (CORNER if name == "a.prj" else None)
    assert counts["side_cars_unreadable"] == 1


@given(st.one_of(st.binary(max_size=80), st.lists(st.floats(), min_size=5, max_size=7).map(
    lambda numbers: "\n".join(map(str, numbers)).encode())))  # fmt: skip
def test_a_world_file_is_a_transform_that_can_be_undone_or_nothing(data: bytes) -> None:
    try:
        a, b, c, d, e, f = beside.world_file(data)
    except ValueError:
        return
    assert np.isfinite([a, b, c, d, e, f]).all()
    assert a * e != b * d


def archives(files: Path, tmp_path: Path) -> dict[str, Path]:
    """The same files as a folder, in a stored and in a deflated zip, and in a tar."""
    roots = {kind: tmp_path / kind for kind in ("stored", "deflated", "tar")}
    for root in roots.values():
        root.mkdir()
    for kind, how in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(roots[kind] / "all.zip", "w", how) as archive:
            for path in sorted(p for p in files.rglob("*") if p.is_file()):
                archive.write(path, path.relative_to(files))
    with tarfile.open(roots["tar"] / "all.tar", "w") as tar:
        tar.add(files, ".")
    return {"folder": files, **roots}


LIES = ("path", "file_bytes", "stamp", "offset", "packed_bytes", "packing", "crc")


def test_folder_zip_and_tar_give_the_same_records(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {f"{n}/a.{s}": picture(FORMATS[s]) for n in range(3) for s in ("png", "jpg", "tif")}
    for s in ("png", "jpg", "tif"):
        world = f"a.{s[0]}{s[-1]}w"
        files |= {f"0/{world}": WORLD, "0/a.prj": ESRI, f"1/a.{world[2:].upper()}": WORLD}
        files |= {f"2/a.{s}.aux.xml": aux(UTM.to_wkt(), "500000,0.5,0,5400000,0,-0.5", NODATA)}
    files |= {"roads.prj": ESRI, "1/a.wld": "nonsense", "0/b.tfw": WORLD}
    folder = fill(tmp_path / "files", files)
    for name in ("mask", "overview"):  # GDAL would read the one's .msk and the other's .ovr, in a folder only
        geotiff(folder / f"{name}.tif", scene(3, 700, 600))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="NO"), rasterio.open(folder / "mask.tif", "r+") as raster:
        raster.write_mask(np.zeros((600, 700), np.uint8))
    assert (folder / "mask.tif.msk").exists()
    seen = {}
    for kind, root in archives(folder, tmp_path).items():
        found, counts = scanned(root, tmp_path / f"work-{kind}")
        plain = {name: replace(s, **{f: getattr(Sample(), f) for f in LIES}) for name, s in found.items()}
        seen[kind] = (plain, counts)
    for kind, both in seen.items():
        assert both == seen["folder"], kind
    plain, counts = seen["folder"]
    unmatched = {name for name, s in plain.items() if s.dropped}
    assert unmatched == {"roads.prj", "0/b.tfw", "mask.tif.msk"}
    assert counts["side_cars_unreadable"] == 0  # the .wld is not asked: another world file was there
    assert {s.gsd_from for name, s in plain.items() if name[0] in "02" and not s.dropped} == {"side_car"}
    assert {(s.crs, s.transform) for name, s in plain.items() if name[0] == "1" and not s.dropped} == {("", CORNER)}
    assert [s.nodata for name, s in sorted(plain.items()) if name[0] == "2"] == [None, None, 7.0]


def test_a_build_reads_archives_as_it_reads_folders(tmp_path: Path) -> None:
    """Down to the pixels: nodata of an .aux.xml, a mask and overviews beside a TIFF."""
    folder = tmp_path / "files"
    pixels = scene(4, 600, 500)
    pixels[:, :300] = 7
    geotiff(folder / "nodata.tif", pixels)
    geotiff(folder / "overview.tif", scene(5, 600, 500))
    geotiff(folder / "mask.tif", scene(6, 600, 500))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="NO"), rasterio.open(folder / "mask.tif", "r+") as raster:
        raster.write_mask(np.zeros((500, 600), np.uint8))
    with rasterio.Env(TIFF_USE_OVR="YES"), rasterio.open(folder / "overview.tif", "r+") as raster:
        raster.build_overviews([2])
    assert (folder / "overview.tif.ovr").exists()
    fill(folder, {"nodata.tif.aux.xml": aux(inner=NODATA)})
    rows = {}
    for kind, root in archives(folder, tmp_path).items():
        way = {"slice": {"grid": {"size_px": 256}, "gsd_m": 1.2}, "cut": {"encode": {"format": "png"}}}
        recipe = recipe_of("own", exclude={"rules": []}, **way)
        source = recipe.sources[0].model_copy(update={"path": str(root)})
        out = tmp_path / f"out-{kind}"
        datakit.build(recipe.model_copy(update={"sources": (source,)}), data=tmp_path, out=out, workers=0)
        columns = ["key", "valid_share", "pixel_digest", "scale"]
        rows[kind] = sorted(map(str, pq.read_table(out / "samples.parquet", columns=columns).to_pylist()))
    assert len(set(map(tuple, rows.values()))) == 1
    table = pq.read_table(tmp_path / "out-folder" / "samples.parquet").to_pylist()
    assert {round(row["valid_share"], 1) for row in table if row["name"] == "mask.tif"} == {1.0}
    assert [row["valid_share"] for row in table if row["name"] == "nodata.tif"] == [pytest.approx(0.5, abs=0.01)]


def test_a_file_among_images_that_tells_a_place_is_no_image(tmp_path: Path) -> None:
    found, _ = scanned(fill(tmp_path / "in", {"a.png": picture("PNG"), "a.pgw": WORLD, "b.pgw": WORLD}),
                       tmp_path / "work", all_files=True)  # fmt: skip
    assert {name: s.dropped for name, s in found.items()} == {"a.png": "", "b.pgw": "unreadable"}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["world", "aux", "points"])
def test_a_side_car_is_of_the_raster_as_stored(kind: str, orientation: int, tmp_path: Path) -> None:
    """Each px of the picture as shown lies where the px of the raster lies that GDAL, which turns none, puts there."""
    stored = np.arange(7 * 5, dtype=np.uint8).reshape(5, 7)
    exif = Image.Exif()
    exif[0x0112] = orientation
    text = {"world": ("a.pgw", SLANTED), "aux": ("a.png.aux.xml", aux(UTM.to_wkt(), "500000,0.4,0.2,5400000,0.1,-0.6")),
            "points": ("a.png.aux.xml", aux(inner="<GCPList>" + "".join(
                f'<GCP Pixel="{c}" Line="{r}" X="{9 + c}" Y="{50 - r}"/>' for c, r in ((0, 0), (7, 0), (0, 5), (7, 5))
            ) + "</GCPList>"))}[kind]  # fmt: skip
    fill(tmp_path / "in", {text[0]: text[1]})
    Image.fromarray(stored).save(tmp_path / "in" / "a.png", exif=exif)
    sample = only(tmp_path / "in", tmp_path / "work")
    with rasterio.open(tmp_path / "in" / "a.png") as raster, Image.open(tmp_path / "in" / "a.png") as image:
        assert (raster.read(1) == stored).all()
        shown = np.asarray(ImageOps.exif_transpose(image))
        assert (sample.height, sample.width) == shown.shape
        if kind == "points":
            points = [GroundControlPoint(r, c, x, y) for c, r, x, y, _ in json.loads(sample.gcps)]
            ours, theirs = from_gcps(points), from_gcps(raster.gcps[0])
        else:
            ours, theirs = rasterio.Affine(*sample.transform or ()), raster.transform
        for row, col in np.ndindex(shown.shape):
            at_row, at_col = divmod(int(shown[row, col]), 7)
            assert ours @ (col + 0.5, row + 0.5) == pytest.approx(theirs @ (at_col + 0.5, at_row + 0.5), abs=1e-6)


def test_windows_follow_as_those_of_a_geotiff(tmp_path: Path) -> None:
    pixels = scene(7, 300, 200)
    geotiff(tmp_path / "data/own/tif/a.tif", pixels)
    fill(tmp_path / "data/own/png", {"a.pgw": WORLD, "a.prj": ESRI})
    Image.fromarray(pixels).save(tmp_path / "data/own/png/a.png")
    recipe = recipe_of("own", dedup=None, slice={"grid": {"size_px": 64}, "gsd_m": 0.8})
    datakit.build(recipe, data=tmp_path / "data", out=tmp_path / "out", workers=0)
    columns = ["name", "window", "crs", "transform", "footprint", "gsd_m", "pixel_digest", "gsd_from"]
    rows = pq.read_table(tmp_path / "out" / "samples.parquet", columns=columns).to_pylist()
    by_kind: dict[str, list[dict[str, object]]] = {"png/a.png": [], "tif/a.tif": []}
    for row in sorted(rows, key=lambda row: row["window"]):
        by_kind[row.pop("name")].append(row)
    assert {row.pop("gsd_from") for row in by_kind["png/a.png"]} == {"side_car"}
    assert {row.pop("gsd_from") for row in by_kind["tif/a.tif"]} == {"transform"}
    assert by_kind["png/a.png"] == by_kind["tif/a.tif"] != []
    assert len(by_kind["png/a.png"]) > 3


def test_a_changed_side_car_is_read_again_and_no_pixel_is(tmp_path: Path) -> None:
    fill(tmp_path / "data/own", {"a.pgw": WORLD, "a.prj": ESRI})
    Image.fromarray(scene(8, 300, 200)).save(tmp_path / "data/own/a.png")
    recipe, seen = recipe_of("own"), []
    for text in (WORLD, WORLD, WORLD.replace("0.5\n", "0.25\n"), ""):
        if text != WORLD or not seen:
            (tmp_path / "data/own/a.pgw").write_text(text)
        datakit.build(recipe, data=tmp_path / "data", out=tmp_path / "out", workers=0)
        gsd = pq.read_table(tmp_path / "out" / "samples.parquet")["gsd_m"][0].as_py()
        done = work_done(tmp_path / "out")
        seen.append((gsd and round(gsd, 2), done.get("headers_read", 0), done.get("images_opened", 0)))
    assert seen == [(0.5, 1, 1), (0.5, 0, 0), (0.25, 1, 0), (None, 1, 0)]
    assert work_done(tmp_path / "out")["side_cars_unreadable"] == 1


def test_a_transform_without_a_crs_has_no_distance() -> None:
    assert gsd_m(Sample(width=9, height=9, transform=CORNER)) is None
