"""Images: what their headers say, how they are encoded, and small pictures of them.

Pillow opens JPEG, PNG, WebP, BMP, GIF and JPEG 2000. GDAL (rasterio) opens TIFF, anything of 16 bits or unusual bands,
and what is too large to be held whole: see `pixels`.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import PIL
import rasterio
import scipy
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features
from pydantic import Field
from rasterio.io import MemoryFile

from . import codec, files
from .measure import Pixels
from .narrow import Narrow as Narrow
from .remote import Root
from .sample import Sample, Spec

WHOLE_PX = 1 << 26  # images up to this size go through Pillow: 4 bytes a pixel there, 6 while they become an array
COLOURS, GRAY = ("red", "green", "blue"), ("gray",)
GDAL = {
    "GDAL_CACHEMAX": 64,  # MB
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # an image is read alike in a folder and in an archive: see `beside`
    "GDAL_ALLOW_LARGE_LIBJPEG_MEM_ALLOC": "YES",  # progressive JPEGs are held whole; `max_pixels` bounds them
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",  # its short cut for 8 bits takes what a cut file lacks for pixels (GDAL 3.9+)
}
STRIP_ROWS = 64  # of a TIFF tile: a reader that wants a part of it inflates no more
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "JPEG2000")  # what Pillow opens here: others start programs
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # what a TIFF begins with
SWAPS_SIDES = (5, 6, 7, 8)  # EXIF orientations
_PILLOW_BANDS = {
    "1": "gray", "L": "gray", "LA": "gray", "La": "gray", "I": "gray", "F": "gray", "I;16": "gray", "I;16B": "gray",
    "P": "red green blue", "PA": "red green blue", "RGB": "red green blue", "RGBA": "red green blue",
    "RGBX": "red green blue", "RGBa": "red green blue", "YCbCr": "red green blue",
    "CMYK": "cyan magenta yellow black", "LAB": "lightness a b", "HSV": "hue saturation value",
}  # fmt: skip
_PILLOW_DTYPE = {"I": "int32", "F": "float32", "I;16": "uint16", "I;16B": "uint16"}


class Header(NamedTuple):
    """What the first bytes of an image say. Width and height are of the picture as shown, in px."""

    width: int
    height: int
    bands: tuple[str, ...]
    alpha: bool
    dtype: str
    format: str
    orientation: int = 1
    frames: int = 1


class Encode(Spec):
    """How tiles are stored: as 8-bit pictures, or (all others) as the levels of the source in all of its bands.

    tiff16: 8 or 16 bits of any number of named bands, deflated, without place or date. png16: the same of one or three.
    mosaic: the numbers of a camera RAW, see `codec`. npy: the arrays that AODRaw publishes of one.
    """

    format: Literal["jpeg", "png", "webp", "tiff16", "png16", "mosaic", "npy"] = "jpeg"
    quality: int = Field(90, ge=1, le=100, description="of JPEG; PNG and WebP are lossless")
    subsampling: Literal["4:2:0", "4:2:2", "4:4:4"] = "4:2:0"

    @property
    def most_px(self) -> int:
        """The longest side that the format can have."""
        return {"jpeg": 65_500, "webp": 16_383}.get(self.format, 1 << 30)

    @property
    def suffix(self) -> str:
        suffixes = {"jpeg": "jpg", "tiff16": "tif", "png16": "png", "mosaic": codec.SUFFIX}
        return suffixes.get(self.format, self.format)

    @property
    def keeps_levels(self) -> bool:
        """Whether tiles are stored as the source has them, not as the picture that they show."""
        return self.format in ("tiff16", "png16", "mosaic", "npy")

    def __call__(self, picture: Image.Image) -> bytes:
        """A picture as bytes."""
        out = io.BytesIO()
        if self.format == "jpeg":
            picture.save(out, "JPEG", quality=self.quality, subsampling=self.subsampling)
        elif self.format == "png":
            picture.save(out, "PNG", compress_level=6)
        else:
            picture.save(out, "WEBP", lossless=True, quality=50, method=2)
        return out.getvalue()

    def levels(self, levels: NDArray[Any], bands: tuple[str, ...]) -> bytes:
        """Levels of bands, (H, W, bands) uint8 or uint16, as bytes."""
        if self.format == "mosaic":
            return codec.encode(levels[:, :, 0])
        if self.format == "npy":
            return npy_of(levels)
        return tiff_of(levels, bands) if self.format == "tiff16" else png_of(levels)


def tiff_of(levels: NDArray[Any], bands: tuple[str, ...]) -> bytes:
    """(H, W, bands) uint8 or uint16 as a plain TIFF, the same bytes each time.

    Deflate and differences between neighbours are what any reader of TIFF knows, which is not so of zstd. The names of
    the bands are in GDAL's own tag (42112), which others skip: rasterio's `descriptions`.
    """
    height, width, count = levels.shape
    how = {"compress": "deflate", "predictor": 2, "interleave": "pixel", "blockysize": min(STRIP_ROWS, height)}
    shape = {"width": width, "height": height, "count": count, "dtype": levels.dtype.name}
    photometric = "rgb" if bands == COLOURS else "minisblack"
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", profile="GDALGeoTIFF", photometric=photometric, **shape, **how) as raster:
            if len(bands) == count:
                raster.descriptions = bands
            raster.write(np.ascontiguousarray(np.moveaxis(levels, -1, 0)))
        return bytes(memory.read())


def npy_of(levels: NDArray[Any]) -> bytes:
    """A mosaic, (H, W, 1) uint16, as AODRaw's slices are: (4, H/2, W/2) float32 by place, as if it were RGGB, in the
    order red, green, blue, green, and the levels as they are; a reduced picture, (H, W, 3) float32, as (3, H, W)."""
    planes = np.moveaxis(levels, -1, 0)
    if levels.shape[2] == 1:
        planes = np.stack([levels[y::2, x::2, 0] for y, x in ((0, 0), (0, 1), (1, 1), (1, 0))])
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(planes, np.float32))
    return out.getvalue()


def png_of(levels: NDArray[Any]) -> bytes:
    """(H, W, 1 or 3) uint8 or uint16 as PNG (W3C, 3rd edition), the same bytes each time.

    By hand, since Pillow writes no colours of 16 bits. All rows have the filter Up: for aerial pictures of 16 bits it
    comes within 3 % of the size that libpng's choice of a filter for each row gives, in two thirds of its time.
    """
    height, width, count = levels.shape
    rows = np.ascontiguousarray(levels).astype(f">u{levels.dtype.itemsize}").view(np.uint8).reshape(height, -1)
    filtered = np.full((height, 1 + rows.shape[1]), 2, np.uint8)  # each row begins with the number of its filter
    filtered[0, 1:], filtered[1:, 1:] = rows[0], rows[1:] - rows[:-1]
    header = struct.pack(">2I5B", width, height, levels.dtype.itemsize * 8, 2 if count == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.data, 6)), (b"IEND", b""))
    packed = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of the readers: what matters becomes a drop with its reason."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # rules and `max_pixels` bound sizes here
    try:
        with warnings.catch_warnings(), rasterio.Env(**GDAL):
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def pillow_header(image: Image.Image, head: bytes) -> Header:
    """Header facts of an image that Pillow opened; `head` is its first 32 bytes."""
    if image.mode not in _PILLOW_BANDS:
        raise OSError(f"mode {image.mode}")
    kind = image.format or ""
    frames = 1 if kind == "MPO" else int(getattr(image, "n_frames", 1))  # an MPO's further frames are views or previews
    width, height = image.size
    dtype = _PILLOW_DTYPE.get(image.mode, "uint8")
    if kind == "PNG" and head[24:25] == b"\x10":  # IHDR: 16 bits, which Pillow would narrow without a word
        dtype = "uint16"
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    bands = tuple(_PILLOW_BANDS[image.mode].split())
    stored = Header(width, height, bands, alpha, dtype, "JPEG" if kind == "MPO" else kind, frames=frames)
    return as_shown(stored, _orientation(image))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, from the header alone: Pillow's own `getexif` decodes a PNG's pixels to look behind."""
    exif = image.getexif() if image.format != "PNG" else Image.Exif()
    if image.format == "PNG" and "exif" in image.info:
        exif.load(image.info["exif"])
    elif image.format == "PNG" and "Raw profile type exif" in image.info:  # as ImageMagick writes it, in hexadecimal
        exif.load(bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:])))
    return _turn_of(exif)


def orientation_behind(image: Image.Image) -> int:
    """EXIF orientation of a decoded image, wherever in the file it stands."""
    return _turn_of(image.getexif())


def _turn_of(exif: Image.Exif) -> int:
    value = exif.get(0x0112, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def as_shown(header: Header, orientation: int) -> Header:
    """A header whose width and height are those of the picture as stored, turned."""
    if orientation in SWAPS_SIDES:
        header = header._replace(width=header.height, height=header.width)
    return header._replace(orientation=orientation)


def tiff_orientation(stream: BinaryIO) -> int:
    """Orientation of a TIFF by its tag 274, 1 to 8: GDAL does not look at it."""
    try:
        with Image.open(stream, formats=["TIFF"]) as image:
            return _turn_of(image.getexif())
    except (OSError, SyntaxError, ValueError):  # many bands, or a kind of TIFF that Pillow does not know
        return 1


def told_orientation(data: bytes) -> int | None:
    """The orientation, 1 to 8, that an image's file tells anywhere in it; None where it tells none."""
    try:
        with Image.open(io.BytesIO(data), formats=[*FORMATS, "TIFF"]) as image:
            exif = image.getexif()
            return _turn_of(exif) if 0x0112 in exif else None
    except (OSError, SyntaxError, ValueError):
        return None


def turned(stored: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(h, w, …) as stored -> as shown, by EXIF orientation 1 to 8."""
    shown = stored.swapaxes(0, 1) if orientation in SWAPS_SIDES else stored
    shown = shown[::-1] if orientation in (3, 4, 7, 8) else shown
    return shown[:, ::-1] if orientation in (2, 3, 6, 7) else shown


def decode(data: bytes) -> Pixels:
    """Pixels of a tile that `Encode` made: (H, W, 3) uint8."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        return np.asarray(picture.convert("RGB"))


def decode_levels(data: bytes) -> NDArray[Any]:
    """Levels of all bands of a TIFF or PNG, as stored: (H, W, bands)."""
    with MemoryFile(data) as memory, memory.open() as raster:
        return np.ascontiguousarray(np.moveaxis(raster.read(), 0, -1))


def preview(data: bytes, side_px: int) -> bytes | None:
    """A small JPEG of an encoded tile, at most side_px on a side; None where it cannot be read.

    TIFF, and PNG of 16 bits, are shown by their first three bands, stretched.
    """
    if data[:4] not in TIFF and (data[:4] != b"\x89PNG" or data[24:25] != b"\x10"):
        return _shrunk(data, side_px)
    try:
        with quiet(), MemoryFile(data) as memory, memory.open() as raster:
            return drawn(raster, side_px, stretch=raster.dtypes[0] != "uint8")
    except Exception:  # whatever is wrong with it: it is dropped already, with its reason
        return None


def _shrunk(data: bytes, side_px: int) -> bytes | None:
    try:
        with quiet(), Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            picture.draft("RGB", (side_px * 2, side_px * 2))
            if picture.width * picture.height > WHOLE_PX:
                return None
            small = ImageOps.exif_transpose(picture).convert("RGB")
            small.thumbnail((side_px, side_px))
            return Encode(quality=80)(small)
    except Exception:  # as above
        return None


def preview_of(root: Root, sample: Sample, scratch: Path, side_px: int) -> bytes | None:
    """A small JPEG of a source image of any type and bands (the first three, stretched); None where it has none."""
    try:
        if sample.format != "GTiff":
            return _shrunk(files.read(root, sample), side_px) if sample.file_bytes <= files.SMALL_BYTES else None
        with quiet(), files.local(root, sample, scratch) as name, rasterio.open(name) as raster:
            return drawn(raster, side_px, stretch=sample.dtype != "uint8")
    except Exception as exc:  # as above
        files.check_machine(exc, root, sample)
        return None


def drawn(raster: Any, side_px: int, stretch: bool) -> bytes:
    """A small JPEG of the first three bands of a raster; stretch: from the lowest level to the highest."""
    scale = min(side_px / max(raster.width, raster.height), 1.0)
    shape = (max(round(raster.height * scale), 1), max(round(raster.width * scale), 1))
    count = min(raster.count, 3) if raster.count != 2 else 1
    levels = np.moveaxis(raster.read(list(range(1, count + 1)), out_shape=(count, *shape)), 0, -1)
    levels = np.nan_to_num(levels.astype(np.float64))
    if stretch:
        low, high = float(levels.min()), float(levels.max())
        levels = (levels - low) * (255.0 / max(high - low, 1e-9))
    shown = np.clip(levels + 0.5, 0, 255).astype(np.uint8)
    return Encode(quality=80)(Image.fromarray(shown if count == 3 else shown[:, :, 0]).convert("RGB"))


def versions() -> dict[str, str]:
    """The libraries whose release may change a pixel."""
    return {
        "pillow": PIL.__version__,
        "libjpeg-turbo": features.version("libjpeg_turbo") or "",
        "zlib": features.version("zlib") or "",
        "webp": features.version("webp") or "",
        "gdal": rasterio.__gdal_version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        **{name: metadata.version(name) for name in ("opencv-python-headless", "rawpy", "zstandard")},
    }


def reason(exc: BaseException, *folders: Root) -> str:
    """What an exception says, in a line of at most 200 characters: the same wherever `folders` and the memory lie."""
    if isinstance(exc, UnidentifiedImageError):
        return "not an image of a known format"
    cause = exc.__cause__ if exc.__cause__ is not None else exc  # rasterio chains GDAL's own words
    text = " ".join(f"{type(exc).__name__}: {cause}".split())
    for folder in folders:
        for spelled in (str(folder.absolute()), str(folder)):
            text = text.replace(f"{spelled}/", "") if len(spelled) > 1 else text
    text = re.sub(r"/vsisubfile/\d+_\d+,|/vsiriopener_[0-9a-f]{32}/|/?tmp[a-z0-9_]{8}/| at 0x[0-9a-f]+", "", text)
    return text[:200]
