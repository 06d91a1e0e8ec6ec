"""No image, however broken, ends a build: it is kept right or dropped by a name."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.transform import Affine

from datakit import files, image
from datakit.manifest import Collection, Layout
from datakit.run import funnel_of, kept_rows
from datakit.sample import Part, Sample, from_table, to_table
from datakit.sources import folder
from datakit.sources.scan import Scan, Source, label_table, listing
from datakit.sources.scenes import draw
from datakit.stages.cut import Cut
from datakit.stages.exclude import Exclude
from datakit.stages.slice import Slice

Picture = NDArray[np.uint8]
C = ColorInterp
SCENE: Picture = draw(np.random.default_rng(3), "houses", 120, 90).pixels
NAMES = {
    "unreadable", "unsafe", "dtype", "bands", "frames", "larger_than", "smaller_than", "label_unreadable",
}  # fmt: skip
RULES = (
    {"rule": "dtype", "allow": ["uint8"]},
    {"rule": "bands", "allow": ["red", "green", "blue"]},
    {"rule": "frames"},
    {"rule": "larger_than", "megapixels": 100},
)


def collection(bands: tuple[str, ...]) -> Collection:
    layout = Layout(images=("**/*",))
    about = {"title": "", "homepage": "", "licence": "", "modality": "optical"}
    return Collection.model_validate({"name": "files", "bands": bands, "layout": layout, **about})


class Built:
    """What Scan, the rules over header facts, Slice and Cut make of some files."""

    def __init__(
        self,
        contents: dict[str, bytes],
        rules: tuple[dict[str, Any], ...] = RULES,
        bands: tuple[str, ...] = ("red", "green", "blue"),
        grid_px: int = 512,
        **cut: Any,
    ) -> None:
        self.records: list[Sample] = []
        self.tiles: dict[str, bytes] = {}
        source = Source(name="files", path=".", collection=collection(bands))
        stages: tuple[Any, ...] = (
            Scan(source=source, labels="none"),
            Exclude.model_validate({"rules": rules}),
            Slice.model_validate({"grid": {"size_px": grid_px}}),
            Cut.model_validate({"encode": {"format": "png"}, **cut}),
        )
        with TemporaryDirectory() as name:
            root, work = Path(name, "root"), Path(name, "work")
            for path in (root, work / "labels", work / "parts", work / "aside"):
                path.mkdir(parents=True)
            for file, data in contents.items():
                (root / file).write_bytes(data)
            found = list(folder.files(root))
            pq.write_table(label_table(source, found), work / "labels" / "none.parquet")
            records = to_table(listing(source, found))
            for n, stage in enumerate(stages):
                part = Part(work / "parts" / f"files-{n}.parquet", work / "aside", work, {"files": files.home(root)})
                came, records = records, stage(kept_rows(records), part)
                funnel_of(kept_rows(came), records).check(type(stage).__name__)  # in = out + dropped
                self.records += [s for s in from_table(records) if s.dropped]
            kept = list(from_table(kept_rows(records)))
            self.records += kept
            (path,) = (work / "aside").glob("files-3.*.staged")
            staged = path.read_bytes()
            self.tiles = {s.key: staged[s.staged_offset : s.staged_offset + s.staged_bytes] for s in kept}
            assert sum(map(len, self.tiles.values())) == len(staged)
            assert list((work / "aside").iterdir()) == [path]  # nothing else is left lying
        assert {s.name for s in self.records} == set(contents)
        for record in self.records:
            assert record.dropped in NAMES | {""}, record
            assert len(record.detail) <= 200
            assert name not in record.detail

    def reasons(self) -> dict[str, str]:
        return {s.name: s.dropped for s in self.records}

    def pixels(self, name: str) -> Picture:
        """The picture as it was kept, from its one tile or its windows."""
        tiles = [s for s in self.records if s.name == name]
        assert {s.dropped for s in tiles} == {""}, [(s.dropped, s.detail) for s in tiles]
        out = np.zeros((tiles[0].image_height, tiles[0].image_width, 3), np.uint8)
        for tile in tiles:
            left, top, width, height = tile.window or (0, 0, tile.width, tile.height)
            shown = image.decode(self.tiles[tile.key])
            assert shown.shape == (height, width, 3) == (tile.height, tile.width, 3)
            out[top : top + height, left : left + width] = shown
        return out

    def one(self, name: str) -> Sample:
        (sample,) = (s for s in self.records if s.name == name)
        return sample


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def tiff(levels: NDArray[Any], mask: NDArray[np.bool_] | None = None, **options: Any) -> bytes:
    """A TIFF of (bands, H, W), made by GDAL."""
    colours, palette = options.pop("colours", None), options.pop("palette", None)
    count, height, width = levels.shape
    with image.quiet(), TemporaryDirectory() as name:
        path = Path(name, "a.tif")
        facts = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": levels.dtype}
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **facts, **options) as raster:
            raster.write(levels)
            if colours:
                raster.colorinterp = colours
            if palette:
                raster.write_colormap(1, palette)
            if mask is not None:
                raster.write_mask(mask)
        assert mask is None or not Path(name, "a.tif.msk").exists()
        return path.read_bytes()


RGB = Image.fromarray(SCENE)
BANDS = np.moveaxis(SCENE, -1, 0)
TILED = {"tiled": True, "blockxsize": 32, "blockysize": 32, "photometric": "RGB"}
WHOLE: dict[str, bytes] = {
    "a.jpg": saved(RGB, "JPEG", quality=85),
    "progressive.jpg": saved(RGB, "JPEG", quality=85, progressive=True),
    "a.png": saved(RGB, "PNG"),
    "a.webp": saved(RGB, "WEBP", lossless=True),
    "a.bmp": saved(RGB, "BMP"),
    "a.gif": saved(RGB, "GIF"),
    "tiled.tif": tiff(BANDS, **TILED),
    "deflated.tif": tiff(BANDS, **TILED, compress="deflate"),
    "striped.tif": tiff(BANDS, photometric="RGB", blockysize=16),
    "lzw.tif": saved(RGB, "TIFF", compression="tiff_lzw"),
    "jpeg.tif": tiff(BANDS, **TILED, compress="jpeg"),
    "big.tif": tiff(BANDS, **TILED, BIGTIFF="YES"),
}


def gray(levels: Picture) -> Picture:
    return np.repeat(levels[:, :, None], 3, axis=2)


def shown(data: bytes) -> Picture:
    """What Pillow shows."""
    with image.quiet():
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("grid_px", [512, 37])
def test_whole_files_are_kept_pixel_by_pixel(grid_px: int) -> None:
    built = Built(WHOLE, grid_px=grid_px)
    for name, data in WHOLE.items():
        if name == "jpeg.tif":
            with image.quiet(), rasterio.MemoryFile(data) as memory, rasterio.open(memory) as raster:
                expected = np.moveaxis(raster.read(), 0, -1)
        else:
            expected = shown(data)
        assert np.array_equal(built.pixels(name), expected), name
        if name not in ("a.jpg", "progressive.jpg", "jpeg.tif", "a.gif"):
            assert np.array_equal(expected, SCENE)


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_anywhere(name: str) -> None:
    data = WHOLE[name]
    rng = random.Random(name)
    ends = {0, 1, 2, 3, 4, 7, 8, 9, 31, 32, 33, len(data) - 1, *(rng.randrange(len(data)) for _ in range(24))}
    suffix = Path(name).suffix
    built = Built({f"{end}{suffix}": data[:end] for end in ends} | {name: data}, grid_px=64)
    assert {s.dropped for s in built.records if s.name == name} == {""}
    whole = built.pixels(name)
    for end in ends:
        here = [s for s in built.records if s.name == f"{end}{suffix}"]
        assert len({s.dropped for s in here}) == 1  # all of its windows go, or none
        if not here[0].dropped:  # what was lost was no pixel: the end marker, or what lies behind the last block
            assert np.array_equal(built.pixels(f"{end}{suffix}"), whole), (name, end)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_cut_short(name: str, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(WHOLE[name]) - 1))
    Built({name: WHOLE[name][:end]})


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1), st.booleans()
)
def test_bytes_that_were_changed(name: str, changes: list[tuple[float, int]], in_header: bool) -> None:
    data = bytearray(WHOLE[name])
    reach = min(len(data), 400) if in_header else len(data)
    for share, value in changes:
        data[min(int(share * reach), reach - 1)] = value
    Built({name: bytes(data)})


@pytest.mark.soak
def test_bytes_that_were_changed_for_long() -> None:
    rng = random.Random(2)
    others = {"palette.png": saved(RGB.quantize(16), "PNG", transparency=b"\0\x80\xff")} | ANIMATED | DEEP
    names = sorted({**WHOLE, **others})
    for _ in range(2000):
        name = rng.choice(names)
        data = bytearray({**WHOLE, **others}[name])
        reach = len(data) if rng.random() < 0.5 else min(len(data), 500)
        for _ in range(rng.choice((1, 1, 2, 3, 8, 40))):
            data[rng.randrange(reach)] = rng.choice((0, 1, 255, rng.randrange(256)))
        Built({name: bytes(data)}, rules=rng.choice(((), RULES)), grid_px=2000)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted({b"", *(data[:8] for data in WHOLE.values())})), st.binary(max_size=300))
def test_noise_behind_a_beginning(magic: bytes, noise: bytes) -> None:
    Built({"a.jpg": magic + noise})


def test_many_byte_flips_at_once() -> None:
    rng = random.Random(8)
    contents = {}
    for n in range(240):
        name = sorted(WHOLE)[n % len(WHOLE)]
        data = bytearray(WHOLE[name])
        reach = len(data) if n % 2 else min(len(data), 300)
        for _ in range(rng.choice((1, 1, 2, 8, 40))):
            data[rng.randrange(reach)] ^= 1 << rng.randrange(8)
        contents[f"{n}{Path(name).suffix}"] = bytes(data)
    built = Built(contents)
    assert len(built.reasons()) == 240
    assert set(built.reasons().values()) >= {"", "unreadable"}


def test_names_that_lie() -> None:
    kinds = sorted(WHOLE)
    suffixes = [Path(kinds[n - 5]).suffix for n in range(len(kinds))]
    contents = {f"{n}{suffix}": WHOLE[kind] for n, (kind, suffix) in enumerate(zip(kinds, suffixes, strict=True))}
    contents |= {"none": WHOLE["a.png"], "text.png": b"hello", "page.jpg": b"<html><body>404</body></html>"}
    contents |= {"doc.tif": b"%PDF-1.4\n%%EOF", "empty.jpg": b"", "zeros.png": bytes(5000), "nul.tif": b"II*\0"}
    built = Built(contents)
    for n, kind in enumerate(kinds):
        (name,) = (name for name in contents if name.startswith(f"{n}."))
        assert built.one(name).dropped == "", kind
    assert np.array_equal(built.pixels("none"), SCENE)
    for name in ("text.png", "page.jpg", "doc.tif", "empty.jpg", "zeros.png", "nul.tif"):
        assert built.one(name).dropped == "unreadable"
        assert built.one(name).detail


def test_one_pixel() -> None:
    one = Image.fromarray(SCENE[:1, :1])
    kinds = {"a.png": "PNG", "a.bmp": "BMP", "a.tif": "TIFF", "a.gif": "GIF", "a.jpg": "JPEG"}
    contents = {name: saved(one, kind) for name, kind in kinds.items()} | {"a.webp": saved(one, "WEBP", lossless=True)}
    built = Built(contents)
    for name, data in contents.items():
        assert np.array_equal(built.pixels(name), shown(data))
        assert built.one(name).entropy_bits == built.one(name).sharpness == 0.0


LONG = {"wide.png": (1, 900), "high.png": (900, 1)}


def test_one_pixel_wide() -> None:
    contents = {name: saved(Image.fromarray(np.full((*size, 3), 99, np.uint8)), "PNG") for name, size in LONG.items()}
    built = Built(contents, grid_px=64)
    for name, size in LONG.items():
        assert np.array_equal(built.pixels(name), np.full((*size, 3), 99, np.uint8))


def test_cmyk_jpeg_is_no_picture_whatever_the_rules() -> None:
    data = {"a.jpg": saved(RGB.convert("CMYK"), "JPEG", quality=95)}
    assert Built(data).reasons() == Built(data, rules=()).reasons() == {"a.jpg": "bands"}
    assert Built(data, rules=(), encode={"format": "jpeg"}).reasons() == {"a.jpg": "bands"}  # nor is it copied


def adobe_rgb(picture: Picture) -> bytes:
    """A JPEG whose three components are red, green and blue themselves."""
    return saved(Image.fromarray(picture), "JPEG", quality=95, keep_rgb=True)


def test_only_jpegs_that_any_decoder_shows_alike_are_copied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = {
        "plain.jpg": WHOLE["a.jpg"],
        "gray.jpg": saved(RGB.convert("L"), "JPEG"),
        "rgb.jpg": adobe_rgb(SCENE),
        "turned.jpg": saved(RGB, "JPEG", exif=exif),
        "named.png": WHOLE["a.jpg"],
        "a.png": WHOLE["a.png"],
    }
    built = Built(contents, rules=(), encode={"format": "jpeg"})
    copied = {name for name in contents if built.one(name).copied}
    assert copied == {"plain.jpg", "gray.jpg", "named.png"}
    for name in copied:
        assert built.tiles[built.one(name).key] == contents[name]
    assert np.array_equal(Built(contents, rules=()).pixels("rgb.jpg"), shown(contents["rgb.jpg"]))


def png16(levels: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits, (H, W) or (H, W, 3)."""
    height, width = levels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    chunks = [(b"IHDR", struct.pack(">2I5B", width, height, 16, 2 if levels.ndim == 3 else 0, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + t + c + struct.pack(">I", zlib.crc32(t + c)) for t, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


WIDE = SCENE.astype(np.uint16) * 12 + 100
DEEP: dict[str, bytes] = {
    "rgb.png": png16(WIDE),
    "gray.png": png16(WIDE[:, :, 1]),
    "gray.tif": saved(Image.fromarray(WIDE[:, :, 1]), "TIFF"),
    "rgb.tif": tiff(np.moveaxis(WIDE, -1, 0), photometric="RGB"),
    "float.tif": tiff(np.moveaxis(WIDE, -1, 0).astype(np.float32), photometric="RGB"),
    "signed.tif": tiff(np.moveaxis(WIDE, -1, 0).astype(np.int16), photometric="RGB"),
}


@pytest.mark.parametrize("rules", [RULES, ()])
def test_more_than_eight_bits_go_unless_narrowed(rules: tuple[dict[str, Any], ...]) -> None:
    assert Built(DEEP, rules=rules).reasons() == dict.fromkeys(DEEP, "dtype")


def test_more_than_eight_bits_narrowed() -> None:
    narrow = {"bands": ["red", "green", "blue"], "range": [100, 100 + 12 * 255]}
    for name in ("rgb.png", "rgb.tif", "float.tif", "signed.tif"):
        assert np.array_equal(Built({name: DEEP[name]}, rules=(), narrow=narrow).pixels(name), SCENE), name
    narrow = {"bands": ["gray", "gray", "gray"], "range": [100, 100 + 12 * 255]}
    for name in ("gray.png", "gray.tif"):
        kept = Built({name: DEEP[name]}, rules=(), bands=("gray",), narrow=narrow)
        assert np.array_equal(kept.pixels(name), gray(SCENE[:, :, 1])), name


def test_levels_that_are_no_numbers_are_narrowed_to_black() -> None:
    levels = np.moveaxis(WIDE, -1, 0).astype(np.float32)
    levels[:, :10] = np.nan
    levels[:, 10:20] = np.inf
    levels[:, 20:30] = -np.inf
    data = {"a.tif": tiff(levels, photometric="RGB", nodata=np.nan)}
    narrow = {"bands": ["red", "green", "blue"], "range": [100, 100 + 12 * 255]}
    kept = Built(data, rules=(), narrow=narrow)
    assert np.array_equal(kept.pixels("a.tif")[30:], SCENE[30:])
    assert kept.one("a.tif").valid_share == pytest.approx(80 / 90)
    assert (kept.pixels("a.tif")[20:30] == 0).all()


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(np.roll(SCENE, 20 * n, axis=1)) for n in range(3)]
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)


ANIMATED = {"a.gif": animated("GIF"), "a.webp": animated("WEBP"), "a.png": animated("PNG")}
PAGES = saved(RGB, "TIFF", save_all=True, append_images=[RGB.transpose(Image.Transpose.ROTATE_180)])


def test_moving_pictures_and_files_of_several_pages() -> None:
    contents = ANIMATED | {"pages.tif": PAGES}
    assert Built(contents).reasons() == dict.fromkeys(contents, "frames")
    kept = Built(contents, rules=())
    for name, data in contents.items():
        assert np.array_equal(kept.pixels(name), shown(data)), name  # the first frame


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("grid_px", [512, 50])
def test_exif_orientation(kind: str, grid_px: int) -> None:
    contents = {}
    for orientation in range(10):  # 0 and 9 mean nothing
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"WEBP": {"lossless": True}}.get(kind, {})
        contents[f"{orientation}.img"] = saved(RGB, kind, exif=exif, **options)
    built = Built(contents, grid_px=grid_px)
    for name, data in contents.items():
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        assert np.array_equal(built.pixels(name), np.asarray(upright)), name
        sample = next(s for s in built.records if s.name == name)
        assert (sample.image_width, sample.image_height) == upright.size
        assert sample.orientation == (int(name[0]) if name[0] in "12345678" else 1)


def test_broken_exif_is_no_orientation() -> None:
    good = saved(RGB, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
    for cut in range(20, 60, 3):
        Built({"a.jpg": good[:cut] + bytes([cut * 7 % 256]) + good[cut + 1 :]})
    for exif in (b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"nonsense" * 9):
        data = saved(RGB, "JPEG", exif=exif) if exif else saved(RGB, "JPEG")
        assert np.array_equal(Built({"a.jpg": data}).pixels("a.jpg"), shown(data))


def alpha_disc(levels: tuple[int, int] = (0, 255)) -> Picture:
    y, x = np.mgrid[:90, :120]
    return np.where((x - 60) ** 2 + (y - 45) ** 2 < 40**2, np.uint8(levels[1]), np.uint8(levels[0]))


def test_palettes() -> None:
    palette = RGB.quantize(64)
    clear = palette.copy()
    contents = {
        "opaque.png": saved(palette, "PNG"),
        "one-clear.png": saved(clear, "PNG", transparency=5),
        "many-clear.png": saved(clear, "PNG", transparency=bytes([0, 128, 255, 0, 7])),
        "clear.gif": saved(clear, "GIF", transparency=5),
        "opaque.gif": saved(palette, "GIF"),
        "few.png": saved(RGB.quantize(4), "PNG", bits=2),
        "palette.bmp": saved(palette, "BMP"),
    }
    built = Built(contents)
    for name, data in contents.items():
        layers = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
        assert np.array_equal(built.pixels(name), layers[:, :, :3]), name
        assert built.one(name).valid_share == pytest.approx((layers[:, :, 3] > 0).mean()), name
        assert built.one(name).bands == ("red", "green", "blue")
    assert built.one("opaque.png").valid_share == 1.0
    assert built.one("one-clear.png").valid_share < 1.0


def test_alpha() -> None:
    disc = Image.fromarray(alpha_disc((0, 200)))
    rgba, la = RGB.copy(), RGB.convert("L").convert("LA")
    rgba.putalpha(disc)
    la.putalpha(disc)
    contents = {
        "rgba.png": saved(rgba, "PNG"),
        "la.png": saved(la, "PNG"),
        "rgba.webp": saved(rgba, "WEBP", lossless=True, exact=True),
        "rgba.tif": tiff(
            np.moveaxis(np.asarray(rgba), -1, 0),
            colours=(ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha),
        ),
        "colour-key.png": saved(RGB, "PNG", transparency=tuple(SCENE[40, 40].tolist())),
        "gray-key.png": saved(RGB.convert("L"), "PNG", transparency=120),
    }
    built = Built(contents, rules=())
    for name, data in contents.items():
        layers = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
        assert np.array_equal(built.pixels(name), layers[:, :, :3]), name
        assert built.one(name).valid_share == pytest.approx((layers[:, :, 3] > 0).mean()), name
        assert built.one(name).alpha
    assert Built({"la.png": contents["la.png"]}).one("la.png").dropped == "bands"


def test_one_bit_and_gray() -> None:
    bits, level = RGB.convert("1"), RGB.convert("L")
    contents = {"1.png": saved(bits, "PNG"), "1.bmp": saved(bits, "BMP"), "l.png": saved(level, "PNG")}
    contents |= {"l.jpg": saved(level, "JPEG"), "l.tif": saved(level, "TIFF")}
    assert set(Built(contents).reasons().values()) == {"bands"}
    built = Built(contents, rules=())
    for name, data in contents.items():
        assert np.array_equal(built.pixels(name), shown(data)), name


HUGE_PX = 100_000


def huge_png() -> bytes:
    data = bytearray(WHOLE["a.png"])
    data[16:24] = struct.pack(">2I", HUGE_PX, HUGE_PX)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def huge_bmp() -> bytes:
    data = bytearray(WHOLE["a.bmp"])
    data[18:26] = struct.pack("<2i", HUGE_PX, HUGE_PX)
    return bytes(data)


def huge_tiff(name: str) -> bytes:
    """A TIFF whose first directory says 100,000 px a side."""
    data = bytearray(WHOLE[name])
    at = int.from_bytes(data[4:8], "little")
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(data[at : at + 2], "little"), 12):
        if int.from_bytes(data[entry : entry + 2], "little") in (256, 257):
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, HUGE_PX)
    return bytes(data)


HUGE: dict[str, Callable[[], bytes]] = {
    "a.png": huge_png,
    "a.bmp": huge_bmp,
    "tiled.tif": lambda: huge_tiff("tiled.tif"),
    "striped.tif": lambda: huge_tiff("striped.tif"),
    "lzw.tif": lambda: huge_tiff("lzw.tif"),
}


def test_headers_that_promise_the_moon() -> None:
    reasons = Built({name: make() for name, make in HUGE.items()}).reasons()
    assert set(reasons.values()) <= {"larger_than", "unreadable"}
    assert reasons["a.png"] == reasons["a.bmp"] == "larger_than"


@pytest.mark.parametrize("name", HUGE)
def test_headers_that_promise_the_moon_past_any_rule(name: str) -> None:
    reasons = Built({name: HUGE[name]()}, rules=(), grid_px=20_000).reasons()
    assert reasons[name] in ("larger_than", "unreadable")


def test_grids_of_too_many_windows() -> None:
    assert Built({"a.png": huge_png()}, rules=(), grid_px=8).reasons() == {"a.png": "larger_than"}


def test_two_bands() -> None:
    data = {"a.tif": tiff(BANDS[:2])}
    assert Built(data).reasons() == Built(data, rules=()).reasons() == {"a.tif": "bands"}


def test_four_bands_that_nobody_named() -> None:
    data = {"a.tif": tiff(np.concatenate([BANDS, BANDS[:1]]), photometric="MINISBLACK")}
    assert Built(data).reasons() == Built(data, rules=()).reasons() == {"a.tif": "bands"}


def test_a_mask_within_a_tiff() -> None:
    valid = alpha_disc() > 0
    built = Built({"a.tif": tiff(BANDS, mask=valid, **TILED)}, grid_px=64)
    assert np.array_equal(built.pixels("a.tif"), SCENE)
    for tile in built.records:
        assert tile.window
        left, top, width, height = tile.window
        assert tile.valid_share == pytest.approx(valid[top : top + height, left : left + width].mean())


def test_nodata_of_a_tiff() -> None:
    scene = SCENE.copy()
    scene[:30] = 0
    scene[50, 50] = (0, 90, 0)  # only where all bands are nodata is nothing
    built = Built({"a.tif": tiff(np.moveaxis(scene, -1, 0), photometric="RGB", nodata=0)})
    assert np.array_equal(built.pixels("a.tif"), scene)
    assert built.one("a.tif").valid_share == pytest.approx(60 / 90)


def test_palettes_of_tiffs() -> None:
    table = {n: (n * 7 % 256, 255 - n, n * 13 % 256, 255) for n in range(256)}
    levels = SCENE[:, :, 1]
    built = Built({"gdal.tif": tiff(levels[None], palette=table), "pillow.tif": saved(RGB.quantize(64), "TIFF")})
    colours = np.array([table[n][:3] for n in range(256)], np.uint8)
    assert np.array_equal(built.pixels("gdal.tif"), colours[levels])
    assert np.array_equal(built.pixels("pillow.tif"), np.asarray(RGB.quantize(64).convert("RGB")))
    assert {s.valid_share for s in built.records} == {1.0}


def test_places_that_make_no_sense_cost_an_image_its_place_alone() -> None:
    point = GroundControlPoint(row=1, col=1, x=5, y=5)
    contents = {
        "points.tif": tiff(BANDS, photometric="RGB", gcps=[point] * 4, crs="EPSG:4326"),
        "local.tif": tiff(
            BANDS, photometric="RGB", transform=Affine(1, 0, 5, 0, -1, 5), crs='LOCAL_CS["site",UNIT["metre",1]]'
        ),
        "nan.tif": tiff(BANDS, photometric="RGB", transform=Affine(float("nan"), 0, 5, 0, -1, 5), crs="EPSG:4326"),
        "pole.tif": tiff(BANDS, photometric="RGB", transform=Affine(1, 0, 0, 0, -1, 500), crs="EPSG:4326"),
    }
    built = Built(contents, grid_px=64)
    for name in contents:
        assert np.array_equal(built.pixels(name), SCENE), name
    assert {s.footprint for s in built.records} == {()}


def test_masks_are_seen_by_the_reader_as_gdal_sees_them() -> None:
    with (
        image.quiet(),
        rasterio.MemoryFile(tiff(BANDS, mask=alpha_disc() > 0)) as memory,
        rasterio.open(memory) as raster,
    ):
        assert MaskFlags.per_dataset in raster.mask_flag_enums[0]


def test_a_broken_image_takes_no_other_with_it() -> None:
    contents = {f"{n:03d}.png": WHOLE["a.png"] if n % 2 else WHOLE["a.png"][: 40 + 300 * n] for n in range(20)}
    built = Built(contents, grid_px=64)
    assert {n for n, why in built.reasons().items() if not why} == {n for n in contents if int(n[:3]) % 2}
    for name in contents:
        if int(name[:3]) % 2:
            assert np.array_equal(built.pixels(name), SCENE)


def test_bands_that_a_file_names_in_another_order() -> None:
    swapped = tiff(BANDS[::-1], photometric="MINISBLACK", colours=(C.blue, C.green, C.red))
    built = Built({"a.tif": swapped}, rules=())
    assert built.one("a.tif").bands == ("blue", "green", "red")
    assert np.array_equal(built.pixels("a.tif"), SCENE)


def test_alpha_may_be_any_band() -> None:
    disc = alpha_disc()
    first = tiff(np.concatenate([disc[None], BANDS]), colours=(C.alpha, C.red, C.green, C.blue))
    built = Built({"a.tif": first})
    assert np.array_equal(built.pixels("a.tif"), SCENE)
    assert built.one("a.tif").valid_share == pytest.approx((disc > 0).mean())


@pytest.mark.parametrize("grid_px", [512, 50])
def test_orientation_of_a_tiff(grid_px: int) -> None:
    contents = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        contents[f"{orientation}.tif"] = saved(RGB, "TIFF", exif=exif)
    built = Built(contents, grid_px=grid_px)
    for name, data in contents.items():
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert np.array_equal(built.pixels(name), np.asarray(upright)), name


def test_fewer_than_eight_bits_go_by_dtype() -> None:
    built = Built({"a.tif": tiff(SCENE[None, :, :, 1] >> 4, nbits=4)})
    assert built.reasons() == {"a.tif": "dtype"}
    assert Built({"a.tif": tiff(SCENE[None, :, :, 1] >> 4, nbits=4)}, rules=()).reasons() == {"a.tif": "dtype"}


def test_orientation_that_stands_behind_the_pixels_of_a_png() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(RGB, "PNG", exif=exif)
    at = data.index(b"eXIf") - 4
    chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
    end = data.index(b"IEND") - 4
    behind = data[:at] + data[at + len(chunk) : end] + chunk + data[end:]
    built = Built({"before.png": data, "behind.png": behind})
    assert built.reasons() == {"before.png": "", "behind.png": "unreadable"}
    assert "orientation" in built.one("behind.png").detail


def test_no_other_program_is_started_to_read_an_image() -> None:
    built = Built({"a.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"})
    assert built.reasons() == {"a.jpg": "unreadable"}
    assert Built({"a.png": saved(RGB, "PCX")}).reasons() == {"a.png": "unreadable"}
