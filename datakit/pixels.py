"""The pixels of an image, once, in rows from top to bottom, with what tells which of them are valid."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rasterio.windows import Window as RasterWindow

from . import files
from .image import COLOURS, FORMATS, GRAY, SWAPS_SIDES, WHOLE_PX, Narrow, orientation_behind
from .measure import Collar, Mask, Pixels
from .sample import Sample

DRIVERS = {name: name for name in ("GTiff", "PNG", "JPEG", "BMP", "WEBP", "GIF")} | {"JPEG2000": "JP2OpenJPEG"}
BLOCK_PX = 1 << 27  # of a raster's block at most: it is read as a whole
BAND_BYTES = 1 << 28
BAND_PX = 1 << 24  # of rasters, about this much at a time


class Piece:
    """Some rows of an image, or a window: as an array, or as Pillow has it, whichever is asked for."""

    def __init__(
        self,
        pixels: Pixels | None,
        picture: Image.Image | None = None,
        valid: Mask | None = None,
        stored: bytes | None = None,
    ) -> None:
        self._pixels, self._picture = pixels, picture
        self.valid = valid  # (h, w); None: all of it is
        self.stored = stored  # the file's own bytes, of a whole JPEG that any decoder shows alike

    @property
    def pixels(self) -> Pixels:
        """(h, w, 3) uint8."""
        if self._pixels is None:
            self._pixels = np.asarray(self._picture)
        return self._pixels

    @property
    def picture(self) -> Image.Image:
        if self._picture is None:
            self._picture = Image.fromarray(self.pixels)
        return self._picture

    @property
    def height(self) -> int:
        return len(self.pixels) if self._picture is None else self._picture.height

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1]) if self._picture is None else self._picture.width

    def window(self, left: int, top: int, width: int, height: int) -> Piece:
        """A part of it, in px from its top left corner."""
        if (left, top, height) == (0, 0, self.height) and width == self.width:
            return self
        place = np.s_[top : top + height, left : left + width]
        picture = self._picture.crop((left, top, left + width, top + height)) if self._picture else None
        pixels = np.ascontiguousarray(self._pixels[place]) if self._pixels is not None else None
        valid = None if self.valid is None or self.valid[place].all() else np.ascontiguousarray(self.valid[place])
        return Piece(pixels, picture, valid)


@dataclass(frozen=True)
class Reader:
    """The pixels of an image, once, from top to bottom."""

    root: Path  # of the collection
    scratch: Path
    narrow: Narrow | None = None
    max_pixels: int = 1 << 28  # of formats without blocks
    collars: bool = True  # False: nobody asks which pixels of images without nodata are valid

    def rows(self, sample: Sample) -> Iterator[Piece]:
        """The image that `sample` is (a window of), as shown, in pieces of full width.

        Gray comes as three equal bands. To be read within `quiet()`. Raises OSError and the like where it cannot be
        read, TooLarge, NotShown.
        """
        if sample.format == "GTiff" or sample.dtype != "uint8" or sample.bands not in (COLOURS, GRAY):
            yield from self._raster(sample)
        elif sample.image_width * sample.image_height <= WHOLE_PX:
            yield from self._pillow(sample)
        elif sample.orientation != 1 or sample.alpha or sample.format not in ("JPEG", "PNG", "BMP"):
            raise TooLarge(f"{sample.format} of over {WHOLE_PX} px that cannot be read by rows")
        elif sample.image_width * sample.image_height > self.max_pixels:
            raise TooLarge(f"over {self.max_pixels} px in a format without blocks")
        else:
            yield from self._raster(sample)

    def _pillow(self, sample: Sample) -> Iterator[Piece]:
        content = files.read(self.root, sample)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.load()
            if sample.format == "PNG" and orientation_behind(image) != sample.orientation:
                raise OSError("the orientation stands behind the pixels, where a header does not tell it")
            picture = ImageOps.exif_transpose(image) if sample.orientation != 1 else image
            if sample.alpha:
                layers = np.asarray(picture.convert("RGBA"))
                valid = layers[:, :, 3] > 0
                yield Piece(np.ascontiguousarray(layers[:, :, :3]), valid=None if valid.all() else valid)
                return
            stored = content if shows_alike(image, sample) else None
            picture = picture if picture.mode == "RGB" else picture.convert("RGB")
            picture.info = {}  # comments and profiles of a scene do not go into each of its tiles
            if picture.size != (sample.image_width, sample.image_height):
                raise OSError(f"{picture.width} x {picture.height} px, where the header said otherwise")
            piece = Piece(None, picture, stored=stored)
            if self.collars:
                piece.valid = Collar(picture.width).valid(piece.pixels, first=True, last=True)
            yield piece

    def _raster(self, sample: Sample) -> Iterator[Piece]:
        with (
            files.local(self.root, sample, self.scratch) as name,
            rasterio.open(name, driver=DRIVERS.get(sample.format)) as raster,
        ):
            block = raster.block_shapes[0]
            if block[0] * block[1] > BLOCK_PX:
                raise TooLarge(f"blocks of {block[1]} x {block[0]} px")
            picker = Picker.of(raster, sample, self.narrow)
            if sample.orientation != 1:
                yield self._turned(picker, raster, sample)
                return
            step = max(BAND_PX // raster.width // block[0], 1) * block[0]
            row_bytes = raster.width * len(picker.indexes) * np.dtype(sample.dtype).itemsize
            step = max(min(step, BAND_BYTES // row_bytes), 1)  # less than a block is read several times, but fits
            collar = Collar(raster.width) if self.collars and not picker.has_mask else None
            for top in range(0, raster.height, step):
                window = RasterWindow(0, top, raster.width, min(step, raster.height - top))
                piece = picker.read(raster, window)
                if collar:
                    piece.valid = collar.valid(piece.pixels, top == 0, top + step >= raster.height)
                yield piece

    def _turned(self, picker: Picker, raster: Any, sample: Sample) -> Piece:
        """A raster whose Orientation tag is not 1, as shown; GDAL reads it as stored."""
        if raster.width * raster.height > WHOLE_PX:
            raise TooLarge(f"over {WHOLE_PX} px, and turned by its orientation")
        piece = picker.read(raster, RasterWindow(0, 0, raster.width, raster.height))
        pixels = np.ascontiguousarray(turned(piece.pixels, sample.orientation))
        valid = None if piece.valid is None else np.ascontiguousarray(turned(piece.valid, sample.orientation))
        if self.collars and not picker.has_mask:
            valid = Collar(pixels.shape[1]).valid(pixels, first=True, last=True)
        return Piece(pixels, valid=valid)


def shows_alike(image: Image.Image, sample: Sample) -> bool:
    """Whether any decoder shows a file alike: an 8-bit JPEG of YCbCr or gray, not turned."""
    ycbcr = image.mode == "RGB" and image.info.get("adobe_transform", 1) != 0
    return sample.format == "JPEG" and sample.orientation == 1 and (ycbcr or image.mode == "L")


def turned(stored: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(h, w, …) as stored -> as shown, by EXIF orientation 1 to 8."""
    shown = stored.swapaxes(0, 1) if orientation in SWAPS_SIDES else stored
    shown = shown[::-1] if orientation in (3, 4, 7, 8) else shown
    return shown[:, ::-1] if orientation in (2, 3, 6, 7) else shown


class TooLarge(Exception):
    """An image that cannot be read within the memory of a worker: dropped as `larger_than`."""


class NotShown(Exception):
    """An image whose bands are no picture and that no `narrow` makes one; names the rule: `dtype` or `bands`."""


@dataclass(frozen=True)
class Picker:
    """Which bands of a raster are the picture, and what tells its valid pixels."""

    indexes: list[int]
    narrow: Narrow | None
    alpha: int  # band, or 0
    masked: bool  # has a mask of its own
    nodata: float | None
    palette: NDArray[np.uint8] | None  # (256, 4)

    @property
    def has_mask(self) -> bool:
        return bool(self.alpha or self.masked or self.nodata is not None or self.palette is not None)

    @classmethod
    def of(cls, raster: Any, sample: Sample, narrow: Narrow | None) -> Picker:
        names = sample.bands
        interpretation = [c.name for c in raster.colorinterp]
        alpha = interpretation.index("alpha") + 1 if "alpha" in interpretation else 0
        narrows = narrow is not None and narrow.fits(names)
        if sample.dtype != "uint8" and not narrows:
            raise NotShown("dtype")
        places = [n for n, colour in enumerate(interpretation, 1) if colour != "alpha"]  # of the bands named
        if "palette" in interpretation or names == GRAY:
            indexes = places[:1]
        elif narrow and narrows and names != COLOURS:
            indexes = [places[names.index(b)] for b in narrow.bands]
        elif set(names) >= set(COLOURS):
            indexes = [places[names.index(b)] for b in COLOURS]
        else:
            raise NotShown("bands")
        narrow = narrow if sample.dtype != "uint8" else None  # 8 bits are levels to show already
        flags = [f.name for f in raster.mask_flag_enums[indexes[0] - 1]]
        table = None
        if "palette" in interpretation:
            table = np.zeros((256, 4), np.uint8)
            for level, colour in raster.colormap(1).items():
                table[level] = colour
        return cls(indexes, narrow, alpha, "per_dataset" in flags and not alpha, raster.nodata, table)

    def read(self, raster: Any, window: RasterWindow) -> Piece:
        levels = np.moveaxis(raster.read(self.indexes, window=window), 0, -1)  # (h, W, bands)
        valid: Mask | None = None
        if self.nodata is not None:
            valid = ~(np.isnan(levels) if np.isnan(self.nodata) else levels == self.nodata).all(axis=2)
        if self.masked:
            valid = raster.read_masks(1, window=window) > 0
        if self.alpha:
            valid = raster.read(self.alpha, window=window) > 0
        if self.palette is not None:
            shown = self.palette[levels[:, :, 0]]
            levels, seen = shown[:, :, :3], shown[:, :, 3] > 0
            valid = seen if valid is None else valid & seen
        pixels = self.narrow(levels) if self.narrow else levels
        if pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        return Piece(np.ascontiguousarray(pixels), valid=None if valid is None or valid.all() else valid)
