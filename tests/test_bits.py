"""More than 8 bits and more than 3 bands: tiles that keep every level, and pictures narrowed by the whole scene."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile
from rasterio.transform import from_origin
from worlds import digests, geotiff, recipe_of, scene, source_of, work_done

import datakit
from datakit import image, pixels
from datakit.engine import Engine
from datakit.errors import RecipeError
from datakit.image import Encode, Narrow
from datakit.measure import measure, sign
from datakit.narrow import Limits, Ranks
from datakit.pixels import Reader
from datakit.query import Query
from datakit.recipe import Recipe
from datakit.sample import Sample, Spec, Window
from datakit.signing import held_out
from datakit.sources.synth import make
from datakit.stages.cut import Cut

BANDS = ("blue", "green", "red", "nir", "swir_1")
PERCENTILES = {"bands": ["red", "green", "blue"], "percentiles": [2, 98], "over": "scene"}
RANGE = {"bands": ["red", "green", "blue"], "range": [100, 9000]}
ENDS = ("low", "high")
Levels = NDArray[Any]


def deep(seed: int, width: int, height: int, bands: int = 5, dtype: str = "uint16") -> Levels:
    """Levels of many bits, (height, width, bands): each band of its own brightness."""
    rng = np.random.default_rng(seed)
    picture = scene(seed, width, height).astype(np.int64)
    levels = [picture[:, :, n % 3] * (17 + 9 * n) + rng.integers(0, 40, (height, width)) for n in range(bands)]
    return np.dstack(levels).astype(dtype)


def read(data: bytes) -> Levels:
    """All bands of an encoded tile, (h, w, bands), by rasterio."""
    with image.quiet(), MemoryFile(data) as memory, memory.open() as raster:
        return np.moveaxis(raster.read(), 0, -1)


def members(out: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples of a build, by plain tarfile."""
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            found: dict[str, dict[str, bytes]] = {}
            for info in tar:
                key, _, suffix = info.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(info).read()  # type: ignore[union-attr]
        yield from found.items()


def many_bands(name: str = "deep", bands: tuple[str, ...] = BANDS) -> dict[str, Any]:
    plain = source_of(name)
    plain["collection"] |= {"modality": "multispectral", "bands": list(bands)}
    return plain


def recipe_for(*names: str, bands: tuple[str, ...] = BANDS, **stages: Any) -> Recipe:
    plain: dict[str, Any] = recipe_of(*names, **stages).model_dump(mode="json")
    plain["sources"] = [many_bands(n, bands) for n in names]
    plain["exclude"] = {"rules": [{"rule": "modality", "allow": ["optical", "multispectral"]}]}
    return Recipe.model_validate(plain)


def build(data: Path, out: Path, recipe: Recipe, **more: Any) -> list[dict[str, Any]]:
    """The rows of samples.parquet, with the members of each."""
    datakit.build(recipe, data=data, out=out, **{"workers": 0, **more})
    rows: list[dict[str, Any]] = pq.read_table(out / "samples.parquet").to_pylist()
    stored = dict(members(out))
    return [{**row, **stored[row["key"]], "json": json.loads(stored[row["key"]]["json"])} for row in rows]


# recipes/multispectral.yaml


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The embedded collection, and what recipes/multispectral.yaml makes of it."""
    folder = tmp_path_factory.mktemp("patches")
    make("opticalrs", folder / "data")
    datakit.build("recipes/multispectral.yaml", data=folder / "data", out=folder / "out", workers=0)
    return folder / "data" / "eurosat_ms", folder / "out"


def source_levels(path: Path) -> Levels:
    with image.quiet(), rasterio.open(path) as raster:
        return np.moveaxis(raster.read(), 0, -1)


def test_13_bands_come_back_bit_for_bit(patches: tuple[Path, Path]) -> None:
    data, out = patches
    seen = set()
    for _, sample in members(out):
        assert list(sample) == ["tif", "json"]
        about = json.loads(sample["json"])
        levels = read(sample["tif"])
        expected = source_levels(data / about["name"])
        assert (levels.shape, levels.dtype) == ((64, 64, 13), np.uint16)
        assert np.array_equal(levels, expected)
        assert len(json.loads(about["bands"])) == 13
        assert (about["dtype"], json.loads(about["bands"])[3]) == ("uint16", "red")
        seen.add(about["name"])
    assert len(seen) == 8 == len(list(data.rglob("*.tif")))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_13_bands_through_webdataset(patches: tuple[Path, Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset

    data, out = patches
    urls = [str(p) for p in sorted(out.glob("*.tar"))]
    set_ = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    seen = 0
    for sample in set_:
        name = json.loads(sample["json"])["name"]
        assert np.array_equal(read(sample["tif"]), source_levels(data / name))
        seen += 1
    assert seen == 8


def test_what_was_measured_is_the_named_bands_narrowed(patches: tuple[Path, Path]) -> None:
    data, out = patches
    for row in pq.read_table(out / "samples.parquet").to_pylist():
        levels = source_levels(data / row["name"])
        rgb = levels[:, :, [row["bands"].index(b) for b in ("red", "green", "blue")]]
        low, high = np.percentile(rgb.reshape(-1, 3), [2, 98], axis=0)
        shown = np.clip((rgb - low) * (255 / (high - low)) + 0.5, 0, 255).astype(np.uint8)
        signed = sign(shown)
        assert json.loads(row["narrowed"]) == {
            "bands": ["red", "green", "blue"], "low": low.tolist(), "high": high.tolist()
        }  # fmt: skip
        assert tuple(row["signatures"]) == signed.phashes
        assert row["thumbnail"] == signed.thumbnail
        assert row["pixel_digest"] not in (signed.digest, b"")  # of the levels of all bands
        assert row["entropy_bits"] == measure(shown, None).entropy_bits
        assert row["psnr_db"] is None
        assert not row["copied"]


def test_a_build_of_levels_can_be_asked(patches: tuple[Path, Path], tmp_path: Path) -> None:
    """By a picture of 8 bits, as its tiles were seen, and by a file of levels, which alone can be equal."""
    data, out = patches
    query = Query(out)
    for row in pq.read_table(out / "samples.parquet").to_pylist():
        levels, limits = source_levels(data / row["name"]), Limits(*(json.loads(row["narrowed"])[n] for n in ENDS))
        assert query.cut.narrow
        shown = query.cut.narrow(levels[:, :, [row["bands"].index(b) for b in ("red", "green", "blue")]], limits)
        Image.fromarray(shown).save(tmp_path / f"{row['key']}.png")
        found = query.spell(tmp_path / f"{row['key']}.png")
        assert {(hit["bits"], hit["equal"]) for hit in found if hit["key"] == row["key"]} == {(0, False)}
        found = query.spell(data / row["name"], source="eurosat_ms")
        assert {hit["key"] for hit in found if hit["equal"]} == {row["key"]}


def test_images_of_many_bands_are_signed_as_tiles_are(patches: tuple[Path, Path]) -> None:
    data, out = patches
    recipe = Recipe.load("recipes/multispectral.yaml")
    held = held_out(data, recipe, Engine(0), recipe.sources[0].collection)
    ours = {row["name"]: row for row in pq.read_table(out / "samples.parquet").to_pylist()}
    assert held.about["images"] == 8
    for row in held.entries.to_pylist():
        assert row["signatures"] == ours[row["name"]]["signatures"]
        assert row["pixel_digest"] == ours[row["name"]]["pixel_digest"]


# tiff16 and png16


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 1), (64, 65, 3), (200, 90, 13), (129, 64, 4), (70, 512, 2)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_levels_come_back_bit_for_bit(shape: tuple[int, int, int], dtype: str) -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    kinds = [Encode(format="tiff16")] + [Encode(format="png16")] * (shape[2] in (1, 3))
    for encode in kinds:
        with image.quiet():
            data = encode.levels(levels, image.COLOURS if shape[2] == 3 else BANDS)
            again = encode.levels(levels[::-1][::-1], image.COLOURS if shape[2] == 3 else BANDS)
        assert data == again
        assert np.array_equal(read(data), levels)
        assert read(data).dtype == dtype


@pytest.mark.parametrize("kind", ["tiff16", "png16"])
def test_pillow_opens_what_it_can(kind: Any) -> None:
    """Another reader than the one that wrote: Pillow takes 8-bit colours and gray of 8 and 16 bits."""
    rng = np.random.default_rng(1)
    for dtype, count in (("uint8", 3), ("uint8", 1), ("uint16", 1)):
        levels = rng.integers(0, np.iinfo(dtype).max, (40, 33, count), dtype)
        with image.quiet():
            data = Encode(format=kind).levels(levels, image.COLOURS if count == 3 else image.GRAY)
        with Image.open(io.BytesIO(data)) as opened:
            assert np.array_equal(np.asarray(opened).reshape(levels.shape), levels)


def test_a_plain_tiff_has_the_names_of_its_bands_but_no_place_and_no_date(patches: tuple[Path, Path]) -> None:
    """Tags of TIFF 6.0, and GDAL's 42112 for the names: no GeoTIFF (33550, …), no DateTime (306), no Software (305)."""
    baseline = {256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 338, 339, 42112}
    for _, sample in members(patches[1]):
        with image.quiet(), MemoryFile(sample["tif"]) as memory, memory.open() as raster:
            assert raster.crs is None
            assert raster.transform.is_identity
            assert (raster.nodata, raster.tags()) == (None, {})
            assert raster.descriptions == tuple(json.loads(json.loads(sample["json"])["bands"]))
        tags = tiff_tags(sample["tif"])
        assert tags <= baseline, tags - baseline


def tiff_tags(data: bytes) -> set[int]:
    """Tags of the first directory (TIFF 6.0, section 2), little-endian."""
    assert data[:4] == b"II*\0"
    begin = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[begin : begin + 2], "little")
    return {int.from_bytes(data[begin + 2 + 12 * n :][:2], "little") for n in range(count)}


@pytest.mark.parametrize("grid_px", [512, 100])
def test_windows_keep_their_levels(tmp_path: Path, grid_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "BAND_PX", 1 << 13)  # windows are put together from several pieces
    levels = deep(3, 300, 210)
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    geotiff(tmp_path / "deep" / "a.tif", levels, **layout)
    cut = {"encode": {"format": "tiff16"}, "narrow": PERCENTILES}
    rows = build(tmp_path, tmp_path / "out", recipe_for("deep", cut=cut, slice={"grid": {"size_px": grid_px}}))
    assert len(rows) == (1 if grid_px == 512 else 9)
    again = np.zeros_like(levels)
    for row in rows:
        left, top, width, height = row["json"]["window"]
        again[top : top + height, left : left + width] = read(row["tif"])
    assert np.array_equal(again, levels)


def test_alpha_is_left_out_and_marks_what_is_valid(tmp_path: Path) -> None:
    levels = deep(4, 120, 100, 4)
    alpha = np.full((100, 120, 1), 65535, np.uint16)
    alpha[:, :30] = 0
    path = tmp_path / "deep" / "a.tif"
    geotiff(path, np.dstack([levels, alpha]), photometric="minisblack")
    with rasterio.open(path, "r+") as raster:
        raster.colorinterp = [*raster.colorinterp[:4], ColorInterp.alpha]
    cut = {"encode": {"format": "tiff16"}, "narrow": PERCENTILES}
    (row,) = build(tmp_path, tmp_path / "out", recipe_for("deep", bands=BANDS[:4], cut=cut))
    assert np.array_equal(read(row["tif"]), levels)
    assert row["valid_share"] == 0.75
    rgb = levels[:, 30:, [2, 1, 0]].reshape(-1, 3)
    assert json.loads(row["narrowed"])["low"] == np.percentile(rgb, 2, axis=0).tolist()


def test_png16_takes_one_band_or_three(tmp_path: Path) -> None:
    three, one = deep(5, 90, 80, 3), deep(6, 90, 80, 1)
    geotiff(tmp_path / "deep" / "three.tif", three)
    cut: dict[str, Any] = {"encode": {"format": "png16"}, "narrow": RANGE}
    (row,) = build(tmp_path, tmp_path / "out", recipe_for("deep", bands=BANDS[:3], cut=cut))
    assert np.array_equal(read(row["png"]), three)
    geotiff(tmp_path / "gray" / "one.tif", one)
    cut["narrow"] = {"bands": ["gray"] * 3, "percentiles": [0, 100]}
    (row,) = build(tmp_path, tmp_path / "out1", recipe_for("gray", bands=("gray",), cut=cut))
    assert np.array_equal(read(row["png"]), one)
    assert json.loads(row["narrowed"])["high"] == [float(one.max())] * 3


@pytest.mark.parametrize("kind", ["tiff16", "png16"])
def test_pngs_of_16_bits_keep_theirs(tmp_path: Path, kind: str) -> None:
    """Read by GDAL, as stored; Pillow would narrow them without a word."""
    rgb, gray = deep(5, 200, 170, 3), deep(6, 200, 170, 1)
    (tmp_path / "rgb").mkdir()
    (tmp_path / "gray").mkdir()
    (tmp_path / "rgb" / "a.png").write_bytes(image.png_of(rgb))
    (tmp_path / "gray" / "a.png").write_bytes(image.png_of(gray))
    for name, levels, bands in (("rgb", rgb, ["red", "green", "blue"]), ("gray", gray, ["gray"] * 3)):
        cut = {"encode": {"format": kind}, "narrow": {"bands": bands, "percentiles": [2, 98]}}
        plain = recipe_for(name, bands=tuple(dict.fromkeys(bands)), cut=cut, slice={"grid": {"size_px": 64}})
        again = np.zeros_like(levels)
        for row in build(tmp_path, tmp_path / f"out_{name}", plain):
            left, top, width, height = row["json"]["window"]
            again[top : top + height, left : left + width] = read(row.get("tif") or row["png"])
        assert np.array_equal(again, levels)


def test_png16_drops_more_bands_by_name(tmp_path: Path) -> None:
    geotiff(tmp_path / "deep" / "five.tif", deep(5, 90, 80))
    geotiff(tmp_path / "rgb" / "three.tif", deep(5, 90, 80, 3))
    cut = {"encode": {"format": "png16"}, "narrow": PERCENTILES}
    plain = recipe_for("deep", cut=cut).model_dump(mode="json")
    plain["sources"].append(many_bands("rgb", BANDS[:3]))
    datakit.build(Recipe.model_validate(plain), data=tmp_path, out=tmp_path / "out", workers=0)
    (lost,) = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    assert (lost["name"], lost["dropped"]) == ("five.tif", "bands")
    assert "5 bands" in lost["detail"]
    assert pq.read_table(tmp_path / "out" / "pictures.parquet").num_rows == 1


def test_8_bits_pass_as_8_bits(tmp_path: Path) -> None:
    """A set of levels may have 8-bit pictures in it: as decoded, gray in one band."""
    folder = tmp_path / "files"
    folder.mkdir()
    picture = scene(7, 140, 100)
    Image.fromarray(picture).save(folder / "a.png")
    Image.fromarray(picture).save(folder / "b.jpg", quality=90)
    Image.fromarray(picture[:, :, 1]).save(folder / "c.png")
    Image.fromarray(picture).quantize(20).save(folder / "d.png")
    cut = {"encode": {"format": "tiff16"}, "narrow": PERCENTILES}
    plain = recipe_of("files", cut=cut, exclude={"rules": []})
    for row in build(tmp_path, tmp_path / "out", plain):
        with Image.open(folder / row["name"]) as opened:
            expected = np.asarray(opened if opened.mode == "L" else opened.convert("RGB"))
        levels = read(row["tif"])
        assert levels.dtype == np.uint8
        assert np.array_equal(levels, expected.reshape(100, 140, -1)), row["name"]
        assert row["narrowed"] == row["json"]["narrowed"] == ""


def test_other_types_are_dropped_as_dtype(tmp_path: Path) -> None:
    for dtype in ("int16", "float32", "uint32"):
        geotiff(tmp_path / "deep" / f"{dtype}.tif", deep(1, 70, 70, 5, dtype))
    geotiff(tmp_path / "deep" / "fine.tif", deep(1, 70, 70))
    cut = {"encode": {"format": "tiff16"}, "narrow": PERCENTILES}
    (row,) = build(tmp_path, tmp_path / "out", recipe_for("deep", cut=cut))
    assert row["name"] == "fine.tif"
    lost = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    assert [(r["name"], r["dropped"]) for r in lost] == [
        ("float32.tif", "dtype"), ("int16.tif", "dtype"), ("uint32.tif", "dtype")
    ]  # fmt: skip
    assert "tiles keep those of uint8 and uint16" in lost[0]["detail"]


def test_dropped_tiles_of_levels_have_pictures(tmp_path: Path) -> None:
    levels = deep(2, 300, 150)
    levels[:, :150] = 7
    geotiff(tmp_path / "deep" / "a.tif", levels)
    cut = {"encode": {"format": "tiff16"}, "narrow": RANGE}
    recipe = recipe_for("deep", cut=cut, slice={"grid": {"size_px": 150}}).model_dump(mode="json")
    recipe["exclude"]["rules"].append({"rule": "flat", "entropy_bits": 0.5})
    datakit.build(Recipe.model_validate(recipe), data=tmp_path, out=tmp_path / "out", workers=0)
    (picture,) = pq.read_table(tmp_path / "out" / "pictures.parquet").to_pylist()
    assert picture["dropped"] == "flat"
    with Image.open(io.BytesIO(picture["jpeg"])) as opened:
        assert opened.size == (128, 128)
    for kind, count in (("tiff16", 5), ("png16", 3), ("png16", 1), ("tiff16", 2)):
        with image.quiet():
            data = Encode.model_validate({"format": kind}).levels(deep(2, 300, 150)[:, :, :count], BANDS)
        small = image.preview(data, 64)
        assert small is not None
        with Image.open(io.BytesIO(small)) as opened:
            assert (opened.size, opened.mode) == ((64, 32), "RGB")
            assert np.asarray(opened).std() > 20
    assert image.preview(data[:60], 64) is None


def test_levels_need_narrow(tmp_path: Path) -> None:
    for kind in ("tiff16", "png16"):
        with pytest.raises(ValidationError, match="give `narrow`"):
            recipe_of("deep", cut={"encode": {"format": kind}})
    with pytest.raises(RecipeError, match="give `narrow`"):
        Recipe.load("recipes/multispectral.yaml", {"cut.narrow": None})


def test_the_same_bytes_with_workers_and_nothing_opened_twice(tmp_path: Path) -> None:
    for n in range(3):
        geotiff(tmp_path / "data" / "deep" / f"{n}.tif", deep(n, 260, 200))
    cut = {"encode": {"format": "tiff16"}, "narrow": PERCENTILES}
    recipe = recipe_for("deep", cut=cut, slice={"grid": {"size_px": 128}})
    build(tmp_path / "data", tmp_path / "one", recipe)
    build(tmp_path / "data", tmp_path / "two", recipe, workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    geotiff(tmp_path / "data" / "deep" / "1.tif", deep(9, 260, 200))
    build(tmp_path / "data", tmp_path / "one", recipe)
    assert work_done(tmp_path / "one")["images_opened"] == 1
    assert work_done(tmp_path / "one")["images_carried_over"] == 2
    build(tmp_path / "data", tmp_path / "fresh", recipe)
    assert digests(tmp_path / "one") == digests(tmp_path / "fresh")


# percentiles


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]),
    st.integers(1, 3000),
    st.integers(0, 2**32),
    st.sampled_from([(2, 98), (0, 100), (0.1, 99.9), (33.3, 50)]),
    st.sampled_from([1, 1000, 2**40]),
)
def test_ranks_are_numpys_percentiles(
    kind: str, count: int, seed: int, percentiles: tuple[float, float], spread: int
) -> None:
    dtype, rng = np.dtype(kind), np.random.default_rng(seed)
    if dtype.kind == "f":
        numbers = (rng.normal(size=count) * min(spread, 1000)).astype(dtype)
    else:
        info = np.iinfo(dtype)
        most = int(min(info.max, spread))
        numbers = rng.integers(max(info.min, -most), most, count, dtype, endpoint=True)
    ranks, passes, again = Ranks(dtype, percentiles), 0, True
    while again:
        for some in np.array_split(numbers, rng.integers(1, 5)):
            ranks.add(some)
        again, passes = ranks.narrow_down(), passes + 1
    assert passes == max(dtype.itemsize // 2, 1)
    wide = numbers.astype(np.float64) if dtype.kind == "f" else numbers
    assert ranks.values() == pytest.approx(tuple(np.percentile(wide, percentiles)), rel=1e-12)
    if dtype.itemsize <= 4:
        assert ranks.values() == tuple(np.percentile(wide, percentiles))


def limits_of(row: dict[str, Any]) -> Levels:
    plain = json.loads(row["narrowed"])
    return np.array([plain["low"], plain["high"]])


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int32", "float32", "float64"])
@pytest.mark.parametrize("nodata", [None, 0])
def test_limits_are_those_of_the_whole_scene(
    tmp_path: Path, dtype: str, nodata: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against numpy on the whole scene; every window has the limits of the scene, and its pixels follow from them."""
    monkeypatch.setattr(pixels, "BAND_PX", 1 << 13)
    levels = deep(8, 400, 300, 5, dtype)
    levels[:, 250:] //= 3  # a dark part: limits of a tile would differ
    if nodata is not None:
        levels[:60] = nodata
    geotiff(tmp_path / "deep" / "a.tif", levels, nodata=nodata)
    cut = {"encode": {"format": "png"}, "narrow": PERCENTILES}
    rows = build(tmp_path, tmp_path / "out", recipe_for("deep", cut=cut, slice={"grid": {"size_px": 150}}))
    rgb = levels[:, :, [2, 1, 0]]
    valid = np.ones(rgb.shape[:2], bool) if nodata is None else (rgb != nodata).any(axis=2)
    low, high = np.percentile(rgb[valid].astype(np.float64), [2, 98], axis=0)
    assert len(rows) == 6
    for row in rows:
        assert np.array_equal(limits_of(row), [low, high])
        left, top, width, height = row["json"]["window"]
        mine = rgb[top : top + height, left : left + width].astype(np.float64)
        expected = np.floor(np.clip((mine - low) * (255 / (high - low)) + 0.5, 0, 255))
        assert np.array_equal(image.decode(row["png"]), expected)
    assert len({row["narrowed"] for row in rows}) == 1


def test_windows_that_are_read_alone_have_the_limits_of_the_scene(tmp_path: Path) -> None:
    levels = deep(8, 200, 160)
    path = tmp_path / "a.tif"
    geotiff(path, levels, nodata=0, tiled=True, blockxsize=32, blockysize=32)
    facts = path.stat()
    sample = Sample(
        path="a.tif", file_bytes=facts.st_size, format="GTiff", dtype="uint16", bands=BANDS, nodata=0,
        width=200, height=160, image_width=200, image_height=160, scale=2.0,
    )  # fmt: skip
    reader = Reader(tmp_path, tmp_path, Narrow.model_validate(PERCENTILES), collars=False)
    low, high = np.percentile(levels[:, :, [2, 1, 0]].reshape(-1, 3), [2, 98], axis=0)
    with image.quiet(), reader.windows(sample) as read:
        piece = read(Window(50, 40, 60, 30))  # in px of the source, whatever the scale of the record
    mine = levels[40:70, 50:110][:, :, [2, 1, 0]].astype(float)
    assert np.array_equal(piece.pixels, np.floor(np.clip((mine - low) * (255 / (high - low)) + 0.5, 0, 255)))
    assert json.loads(piece.narrowed)["low"] == low.tolist()


def test_a_black_collar_has_no_say_in_the_limits(tmp_path: Path) -> None:
    levels = deep(8, 200, 160) + 500
    inside = levels[30:, 20:].copy()
    levels[:30], levels[:, :20] = 0, 0
    geotiff(tmp_path / "deep" / "a.tif", levels)
    cut = {"encode": {"format": "png"}, "narrow": PERCENTILES}
    (row,) = build(tmp_path, tmp_path / "out", recipe_for("deep", cut=cut))
    expected = np.percentile(inside[:, :, [2, 1, 0]].reshape(-1, 3), [2, 98], axis=0)
    assert np.array_equal(limits_of(row), expected)
    assert row["valid_share"] == 180 * 130 / (200 * 160)


def test_dark_sea_up_to_the_edge_is_no_collar(tmp_path: Path) -> None:
    """What percentiles make black is not therefore a collar: only levels of exactly 0 or of the type's highest are."""
    levels = deep(8, 200, 160) + 5000
    levels[:, :90] = np.random.default_rng(0).integers(300, 310, (160, 90, 5))
    geotiff(tmp_path / "deep" / "a.tif", levels)
    cut = {"encode": {"format": "png"}, "narrow": {**PERCENTILES, "percentiles": [50, 98]}}
    (row,) = build(tmp_path, tmp_path / "out", recipe_for("deep", cut=cut))
    assert (image.decode(row["png"])[:, :90] == 0).all()
    assert row["valid_share"] == 1.0


@pytest.mark.parametrize("fill", [0, 1234])
def test_a_scene_of_one_level_or_none(tmp_path: Path, fill: int) -> None:
    levels = np.full((80, 90, 5), fill, np.uint16)
    geotiff(tmp_path / "deep" / "a.tif", levels, nodata=0)
    cut = {"encode": {"format": "tiff16"}, "narrow": PERCENTILES}
    (row,) = build(tmp_path, tmp_path / "out", recipe_for("deep", cut=cut))
    assert np.array_equal(read(row["tif"]), levels)
    assert np.array_equal(limits_of(row), [[fill] * 3, [fill + 1] * 3])
    assert row["valid_share"] == float(fill > 0)
    assert row["luma_mean"] == 0.0


def test_what_is_no_number_has_no_rank(tmp_path: Path) -> None:
    levels = deep(8, 100, 90, 5, "float32")
    levels[:10], levels[10:20], levels[20:30] = np.nan, np.inf, -np.inf
    geotiff(tmp_path / "deep" / "a.tif", levels, nodata=np.nan)
    cut = {"encode": {"format": "png"}, "narrow": PERCENTILES}
    (row,) = build(tmp_path, tmp_path / "out", recipe_for("deep", cut=cut))
    rgb = levels[30:, :, [2, 1, 0]].reshape(-1, 3).astype(np.float64)
    assert np.array_equal(limits_of(row), np.percentile(rgb, [2, 98], axis=0))


def test_ranges_are_told_too(tmp_path: Path) -> None:
    geotiff(tmp_path / "deep" / "a.tif", deep(1, 90, 80))
    (row,) = build(tmp_path, tmp_path / "out", recipe_for("deep", cut={"narrow": RANGE}))
    assert row["narrowed"] == row["json"]["narrowed"]
    assert json.loads(row["narrowed"]) == {"bands": ["red", "green", "blue"], "low": [100.0] * 3, "high": [9000.0] * 3}


def test_8_bits_of_many_bands_keep_their_levels(tmp_path: Path) -> None:
    levels = (deep(1, 90, 80) >> 6).astype(np.uint8)
    geotiff(tmp_path / "deep" / "a.tif", levels, photometric="minisblack")
    cut = {"encode": {"format": "png"}, "narrow": PERCENTILES}
    (row,) = build(tmp_path, tmp_path / "out", recipe_for("deep", cut=cut))
    assert np.array_equal(image.decode(row["png"]), levels[:, :, [2, 1, 0]])
    assert row["narrowed"] == ""


def test_narrow_says_what_is_wrong() -> None:
    bands = ("red", "green", "blue")
    for wrong, why in (
        ({}, "either range or percentiles"),
        ({"range": (0, 1), "percentiles": (2, 98)}, "either range or percentiles"),
        ({"range": (5, 5)}, "must be below"),
        ({"percentiles": (98, 2)}, "must be below"),
        ({"percentiles": (-1, 98)}, "from 0 to 100"),
        ({"percentiles": (2, 98), "over": "tile"}, "scene"),
    ):
        with pytest.raises(ValidationError, match=why):
            Narrow.model_validate({"bands": bands, **wrong})
    narrow = Narrow(bands=bands, range=(10, 20))
    assert narrow(np.array([[[9, 10, 15], [20, 21, 15]]]), Limits((10.0,) * 3, (20.0,) * 3)).tolist() == [
        [[0, 0, 128], [255, 255, 128]]
    ]


# equal pixels are equal levels


def alike(seed: int, times: int, more: int) -> Levels:
    """Five bands of which three, shown by their own percentiles, make the same picture for all `times` and `more`."""
    levels = np.random.default_rng(seed).integers(0, 500, (80, 96, 5)).astype(np.uint16)
    levels[:, :, :3] = scene(1, 96, 80).astype(np.uint16) * times + more
    return levels


def dropped(out: Path) -> dict[str, str]:
    rows = pq.read_table(out / "dropped.parquet").to_pylist()
    return {row["name"]: row["dropped"] for row in rows}


@pytest.mark.parametrize("grid_px", [512, 64])
def test_tiles_of_other_levels_are_no_duplicates_however_alike_they_look(tmp_path: Path, grid_px: int) -> None:
    """Three bands are shown: alike to the last bit, and so are their whole scenes. Equal levels do go."""
    folder, elsewhere = tmp_path / "deep", {"transform": from_origin(700000, 5600000, 10, 10)}
    one = alike(1, 10, 100)
    other_bands = np.dstack([one[:, :, :3], alike(2, 1, 0)[:, :, 3:]])
    geotiff(folder / "a.tif", one)
    geotiff(folder / "b.tif", alike(2, 20, 900), **elsewhere)
    geotiff(folder / "c.tif", other_bands)
    geotiff(folder / "d.tif", one, compress="deflate", **elsewhere)
    cut = {"encode": {"format": "tiff16"}, "narrow": PERCENTILES}
    plain = recipe_for("deep", cut=cut, dedup={}, slice={"grid": {"size_px": grid_px}})
    rows = build(tmp_path, tmp_path / "out", plain)
    assert {row["name"] for row in rows} in ({"a.tif", "b.tif", "c.tif"}, {"d.tif", "b.tif", "c.tif"})
    assert len({tuple(row["signatures"]) for row in rows}) == (1 if grid_px == 512 else 4)  # they do look alike
    assert len(set(dropped(tmp_path / "out").values())) == 1
    assert "equal levels in all bands" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "dedup.json").read_text())["equal_levels"]
    eight = recipe_for("deep", cut={"narrow": PERCENTILES}, dedup={}, slice={"grid": {"size_px": grid_px}})
    assert len({row["name"] for row in build(tmp_path, tmp_path / "eight", eight)}) == 1


def test_labels_come_over_from_equal_levels_alone(tmp_path: Path) -> None:
    one = alike(1, 10, 100)
    geotiff(tmp_path / "deep" / "plain" / "a.tif", one)
    geotiff(tmp_path / "deep" / "port" / "b.tif", one, compress="deflate")
    geotiff(tmp_path / "deep" / "river" / "c.tif", np.dstack([one[:, :, :3], one[:, :, :2]]))
    plain = recipe_for("deep", cut={"encode": {"format": "tiff16"}, "narrow": PERCENTILES}, dedup={})
    rows = build(tmp_path, tmp_path / "out", plain)
    told = [also["label"] for row in rows for also in json.loads(row["also"])]
    assert len(rows) == 2
    assert told in (["plain"], ["port"])


def test_parts_of_pictures_are_kept_where_those_of_levels_are_not() -> None:
    """The digest of `cut` for 8 bits does not know of levels."""
    levels, picture = (Cut.model_validate({"encode": {"format": n}, "narrow": PERCENTILES}) for n in ("tiff16", "jpeg"))
    assert picture.digest("x") == Spec.digest(picture, "x")
    assert levels.digest("x") != Spec.digest(levels, "x")


def test_orientations_are_refused_where_levels_are_kept() -> None:
    with pytest.raises(ValidationError, match="orientations"):
        recipe_for("deep", cut={"encode": {"format": "tiff16"}, "narrow": PERCENTILES}, dedup={"orientations": True})


def test_a_list_of_pictures_protects_levels_by_their_looks(tmp_path: Path) -> None:
    """Flat ones it cannot: the certificate says so, and that a list signed by the recipe can."""
    flat = np.full((80, 96, 5), 300, np.uint16)
    geotiff(tmp_path / "held" / "a.tif", alike(1, 10, 100))
    geotiff(tmp_path / "held" / "flat.tif", flat)
    geotiff(tmp_path / "deep" / "a.tif", alike(1, 10, 100), **FAR)
    geotiff(tmp_path / "deep" / "flat.tif", flat, **FAR)
    geotiff(tmp_path / "deep" / "b.tif", deep(9, 96, 80), **FAR)
    plain = recipe_for("deep", cut={"encode": {"format": "tiff16"}, "narrow": PERCENTILES})
    eight = recipe_for("deep", cut={"narrow": PERCENTILES})
    for name, spec, gone in (("of_levels", plain, {"a.tif", "flat.tif"}), ("of_pictures", eight, {"a.tif"})):
        held = tmp_path / f"{name}.heldout"
        held_out(tmp_path / "held", spec, Engine(0), plain.sources[0].collection).save(held)
        protect = {"protect": {"lists": [str(held)]}}
        build(tmp_path, tmp_path / name, Recipe.model_validate(plain.model_dump(mode="json") | protect))
        assert set(dropped(tmp_path / name)) == gone
        note = json.loads((tmp_path / name / "protect.json").read_text())["lists"][0]["not_protected"]["note"]
        assert ("with --recipe of this build" in note) == (name == "of_pictures")


FAR = {"transform": from_origin(700000, 5600000, 10, 10)}


@pytest.mark.parametrize("same", [True, False])
def test_ground_is_shown_by_tiles_that_agree_in_all_bands(tmp_path: Path, same: bool) -> None:
    """Of a scene and a part of it: three bands are equal, the others decide."""
    whole = deep(3, 192, 128)
    part = whole[:64, :64].copy()
    part[:, :, 4] += 0 if same else 7
    geotiff(tmp_path / "deep" / "whole.tif", whole, **FAR)
    geotiff(tmp_path / "deep" / "part.tif", part, **FAR)
    cut = {"encode": {"format": "tiff16"}, "narrow": RANGE}
    plain = recipe_for("deep", cut=cut, same_place={}, slice={"grid": {"size_px": 64}})
    build(tmp_path, tmp_path / "out", plain)
    assert dropped(tmp_path / "out") == ({"part.tif": "same_place"} if same else {})
