"""The pixels of an image, once, in rows from top to bottom, with what tells which of them are valid."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rasterio.windows import Window as RasterWindow

from . import files, shots
from .image import COLOURS, FORMATS, GRAY, WHOLE_PX, Narrow, orientation_behind, turned
from .measure import Collar, Mask, Pixels
from .narrow import Limits
from .piece import Piece as Piece
from .remote import Root
from .sample import Sample, Window
from .scales import Reducer

DRIVERS = {name: name for name in ("GTiff", "PNG", "JPEG", "BMP", "WEBP", "GIF")} | {"JPEG2000": "JP2OpenJPEG"}
BLOCK_PX = 1 << 27  # of a raster's block at most: it is read as a whole
BAND_BYTES = 1 << 28
BAND_PX = 1 << 24  # of rasters, about this much at a time
NO_LIMITS = Limits((0.0,) * 3, (1.0,) * 3)


@dataclass(frozen=True)
class Reader:
    """The pixels of an image, once, from top to bottom."""

    root: Root  # of the collection
    scratch: Path
    narrow: Narrow | None = None
    max_pixels: int = 1 << 28  # of formats without blocks
    collars: bool = True  # False: nobody asks which pixels of images without nodata are valid
    levels: bool = False  # True: the levels of all bands come beside the picture that they make
    published: bool = False  # camera RAW is reduced to the arrays that AODRaw publishes

    def rows(self, sample: Sample) -> Iterator[Piece]:
        """The image that `sample` is (a window of), as shown, in pieces of full width.

        At its scale: a reduced image's rows are means over areas, through the nearest finer overview of a GeoTIFF that
        has some. Gray comes as three equal bands. To be read within `quiet()`. Raises OSError and the like where it
        cannot be read, TooLarge, NotShown.
        """
        if sample.format == shots.ARRAY:
            shot, levels = shots.of_array(self.root, sample)
            yield Piece(shot.picture, levels=levels, shot=shot)
        elif sample.format == shots.FORMAT:
            yield self._shot(sample)
        elif needs_raster(sample):
            yield from self._raster(sample)
        elif sample.image_width * sample.image_height <= WHOLE_PX:
            yield from self._pillow(sample)
        elif sample.orientation != 1 or sample.alpha or sample.format not in ("JPEG", "PNG", "BMP"):
            raise TooLarge(f"{sample.format} of over {WHOLE_PX} px that cannot be read by rows")
        elif sample.image_width * sample.image_height > self.max_pixels:
            raise TooLarge(f"over {self.max_pixels} px in a format without blocks")
        else:
            yield from self._raster(sample)

    @contextmanager
    def windows(self, sample: Sample) -> Iterator[Callable[[Window], Piece]]:
        """Reads windows of the image that `sample` is (a window of), each as it would be cut out of its rows.

        Of rasters, only the blocks below a window are read; any other image is held whole. Collars are not looked for,
        since only a whole image shows them: pixels are valid there. Raises as `rows` does. Whatever the scale of the
        sample is, windows are of the source's own px.
        """
        sample = replace(sample, scale=1.0)
        if needs_raster(sample) and sample.orientation == 1:
            with self._opened(sample) as (raster, picker):
                if (raster.width, raster.height) != (sample.image_width, sample.image_height):
                    raise OSError(f"{raster.width} x {raster.height} px, where the header said otherwise")
                yield lambda window: picker.read(raster, RasterWindow(*window))
        elif sample.image_width * sample.image_height > WHOLE_PX:
            raise TooLarge(f"{sample.format} of over {WHOLE_PX} px that cannot be read by windows")
        else:
            (whole,) = replace(self, collars=False).rows(sample)
            yield lambda window: whole.window(*window)

    def _shot(self, sample: Sample) -> Piece:
        """A camera RAW and its JPEG, whole, in the frame of the JPEG; at a scale, both reduced as AODRaw reduces."""
        try:
            shot = shots.opened(self.root, sample)
        except shots.Conflict as exc:
            raise NotShown("orientation_conflict", str(exc)) from None
        except shots.NoBayer as exc:
            raise NotShown("not_bayer", str(exc)) from None
        if sample.scale == 1:
            levels = shot.image.mosaic[:, :, None] if self.levels else None
            return Piece(shot.picture, stored=shot.stored, levels=levels, shot=shot)
        size = sample.width, sample.height
        levels = shots.reduced(shot, *size, self.published) if self.levels else None
        return Piece(shots.shrunk(shot.picture, *size), levels=levels, shot=shot)

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
                piece = Piece(np.ascontiguousarray(layers[:, :, :3]), valid=None if valid.all() else valid)
                yield from reduced([piece], sample, *picture.size)
                return
            stored = content if shows_alike(image, sample) else None
            picture = picture if picture.mode == "RGB" else picture.convert("RGB")
            picture.info = {}  # comments and profiles of a scene do not go into each of its tiles
            if picture.size != (sample.image_width, sample.image_height):
                raise OSError(f"{picture.width} x {picture.height} px, where the header said otherwise")
            piece = Piece(None, picture, stored=stored)
            if self.collars:
                piece.valid = Collar(picture.width).valid(piece.pixels, first=True, last=True)
            yield from reduced([piece], sample, *picture.size)

    @contextmanager
    def _opened(self, sample: Sample) -> Iterator[tuple[Any, Picker]]:
        with (
            files.local(self.root, sample, self.scratch) as name,
            rasterio.open(name, driver=DRIVERS.get(sample.format)) as raster,
        ):
            block = raster.block_shapes[0]
            if block[0] * block[1] > BLOCK_PX:
                raise TooLarge(f"blocks of {block[1]} x {block[0]} px")
            picker = Picker.of(raster, sample, self.narrow, self.levels).limited(raster)
            level = overview_of(raster, sample.scale) if sample.orientation == 1 else None
            if level is None:
                yield raster, picker
                return
            with rasterio.open(name, driver=DRIVERS.get(sample.format), overview_level=level) as overview:
                yield overview, picker

    def _raster(self, sample: Sample) -> Iterator[Piece]:
        with self._opened(sample) as (raster, picker):
            if sample.orientation != 1:
                piece = self._turned(picker, raster, sample)
                yield from reduced([piece], sample, piece.width, piece.height, picker)
            else:
                yield from reduced(self._rows(raster, picker), sample, raster.width, raster.height, picker)

    def _rows(self, raster: Any, picker: Picker) -> Iterator[Piece]:
        collar = Collar(raster.width) if self.collars and not picker.has_mask else None
        for window in picker.steps(raster):
            piece = picker.read(raster, window)
            if collar:
                top, bottom = window.row_off, window.row_off + window.height
                piece.valid = collar.valid(piece.marked, top == 0, bottom == raster.height)
            yield piece

    def _turned(self, picker: Picker, raster: Any, sample: Sample) -> Piece:
        """A raster whose Orientation tag is not 1, as shown; GDAL reads it as stored."""
        if raster.width * raster.height > WHOLE_PX:
            raise TooLarge(f"over {WHOLE_PX} px, and turned by its orientation")
        piece = picker.read(raster, RasterWindow(0, 0, raster.width, raster.height))

        def upright(stored: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if stored is None else np.ascontiguousarray(turned(stored, sample.orientation))

        valid = upright(piece.valid)
        if self.collars and not picker.has_mask:
            marked = turned(piece.marked, sample.orientation)
            valid = Collar(marked.shape[1]).valid(marked, first=True, last=True)
        return Piece(upright(piece.pixels), valid=valid, levels=upright(piece.levels), narrowed=piece.narrowed)


def overview_of(raster: Any, scale: float) -> int | None:
    """The coarsest overview that is still as fine as a scale, counted from 0; None where there is none.

    One whose mask has no overview of its own would not tell what is valid.
    """
    factors = raster.overviews(1) if raster.driver == "GTiff" else []
    fine = [n for n, factor in enumerate(factors) if factor <= scale]
    flags = [flag.name for flag in raster.mask_flag_enums[0]]
    masked = "per_dataset" in flags and "alpha" not in flags
    return max(fine, key=lambda n: factors[n]) if fine and not masked else None


def reduced(
    pieces: Iterable[Piece], sample: Sample, width: int, height: int, picker: Picker | None = None
) -> Iterator[Piece]:
    """The rows of an image of (width, height) px at the scale of the sample; those of one at its own scale as they are.

    Levels are reduced and then shown; a picture without levels is reduced itself.
    """
    if sample.scale == 1:
        yield from pieces
        return
    reducer = Reducer(sample, width, height)
    for piece in pieces:
        stack = piece.pixels if piece.levels is None else piece.levels
        for means, valid in reducer.add(stack, piece.valid):
            if piece.levels is None or picker is None:
                yield Piece(means, valid=valid, narrowed=piece.narrowed)
            else:
                pixels = picker.shown(picker.picture(means))
                yield Piece(pixels, valid=valid, levels=means, narrowed=piece.narrowed)


def needs_raster(sample: Sample) -> bool:
    """Whether Pillow would not do, however small the image is."""
    return sample.format == "GTiff" or sample.dtype != "uint8" or sample.bands not in (COLOURS, GRAY)


def levels_of(sample: Sample, piece: Piece) -> NDArray[Any]:
    """The levels of all bands of a piece, (h, w, bands); gray is one band, whatever it is shown as."""
    if piece.levels is not None:
        return piece.levels
    return piece.pixels[:, :, :1] if sample.bands == GRAY else piece.pixels


def shows_alike(image: Image.Image, sample: Sample) -> bool:
    """Whether any decoder shows a file alike: an 8-bit JPEG of YCbCr or gray, not turned."""
    ycbcr = image.mode == "RGB" and image.info.get("adobe_transform", 1) != 0
    return sample.format == "JPEG" and sample.orientation == 1 and (ycbcr or image.mode == "L")


class TooLarge(Exception):
    """An image that cannot be read within the memory of a worker: dropped as `larger_than`."""


class NotShown(Exception):
    """An image whose bands cannot be shown, or stored, as the recipe asks; names the rule: `dtype` or `bands`."""

    def __init__(self, rule: str, detail: str = "no picture, and the recipe does not say how to narrow it") -> None:
        super().__init__(rule)
        self.rule, self.detail = rule, detail


@dataclass(frozen=True)
class Picker:
    """Which bands of a raster are the picture, and what tells its valid pixels."""

    indexes: list[int]
    narrow: Narrow | None
    alpha: int  # band, or 0
    masked: bool  # has a mask of its own
    nodata: float | None
    palette: NDArray[np.uint8] | None  # (256, 4)
    keeps: list[int]  # bands whose levels come beside the picture; none: not asked for, or they are the picture
    limits: Limits = NO_LIMITS  # of `narrow`

    @property
    def has_mask(self) -> bool:
        return bool(self.alpha or self.masked or self.nodata is not None or self.palette is not None)

    @classmethod
    def of(cls, raster: Any, sample: Sample, narrow: Narrow | None, levels: bool = False) -> Picker:
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
        nodata = sample.nodata if sample.format == "GTiff" else raster.nodata  # an .aux.xml may tell it: see `beside`
        flags = [f.name for f in raster.mask_flag_enums[indexes[0] - 1]]
        table = None
        if "palette" in interpretation:
            table = np.zeros((256, 4), np.uint8)
            for level, colour in raster.colormap(1).items():
                table[level] = colour
        if levels and raster.dtypes[0] not in ("uint8", "uint16"):
            raise NotShown("dtype", f"levels of {raster.dtypes[0]}: tiles keep those of uint8 and uint16")
        keeps = places if levels and table is None else []
        return cls(indexes, narrow, alpha, "per_dataset" in flags and not alpha, nodata, table, keeps)

    def steps(self, raster: Any) -> Iterator[RasterWindow]:
        """Rows of a raster, some whole blocks at a time, top to bottom."""
        block = raster.block_shapes[0]
        step = max(BAND_PX // raster.width // block[0], 1) * block[0]
        row_bytes = raster.width * len(self.keeps or self.indexes) * np.dtype(raster.dtypes[0]).itemsize
        step = max(min(step, BAND_BYTES // row_bytes), 1)  # less than a block is read several times, but fits
        for top in range(0, raster.height, step):
            yield RasterWindow(0, top, raster.width, min(step, raster.height - top))

    def limited(self, raster: Any) -> Picker:
        """A picker that knows the limits of the scene; where they are percentiles, its rows go by for them."""
        if self.narrow is None:
            return self
        dtype = np.dtype(raster.dtypes[self.indexes[0] - 1])
        if dtype.kind == "c" and self.narrow.percentiles:
            raise NotShown("dtype", f"levels of {dtype} have no order")
        return replace(self, limits=self.narrow.limits(dtype, len(self.indexes), lambda: self._valid_levels(raster)))

    def _valid_levels(self, raster: Any) -> Iterator[tuple[NDArray[Any], ...]]:
        """The valid levels of each band of the picture, some rows at a time; those of a collar are not valid."""
        collar = None if self.has_mask else Collar(raster.width)
        for window in self.steps(raster):
            levels = np.moveaxis(raster.read(self.indexes, window=window), 0, -1)
            valid = self._valid(raster, window, levels)
            if collar:
                top, bottom = window.row_off, window.row_off + window.height
                valid = collar.valid(marks_of(levels), top == 0, bottom == raster.height)
            bands = (levels if valid is None else levels[valid]).reshape(-1, levels.shape[2]).T
            yield tuple(band[~self._is_nodata(band)] for band in bands)

    def _is_nodata(self, levels: NDArray[Any]) -> NDArray[np.bool_]:
        """Which levels are nodata themselves: a px is valid where one band has data, but only that one counts."""
        if self.nodata is None:
            return np.zeros(levels.shape, bool)
        return np.isnan(levels) if np.isnan(self.nodata) else np.asarray(levels == self.nodata)

    def _valid(self, raster: Any, window: RasterWindow, levels: NDArray[Any]) -> Mask | None:
        """What nodata, mask or alpha say of some rows; None where nothing does."""
        valid: Mask | None = None
        if self.nodata is not None:
            valid = np.asarray(~self._is_nodata(levels).all(axis=2))
        if self.masked:
            valid = raster.read_masks(1, window=window) > 0
        if self.alpha:
            valid = raster.read(self.alpha, window=window) > 0
        return valid

    def read(self, raster: Any, window: RasterWindow) -> Piece:
        stack = np.moveaxis(raster.read(self.keeps or self.indexes, window=window), 0, -1)  # (h, W, bands)
        levels = self.picture(stack)
        valid = self._valid(raster, window, levels)
        marks = marks_of(levels) if self.narrow and self.narrow.percentiles and not self.has_mask else None
        if self.palette is not None:
            shown = self.palette[levels[:, :, 0]]
            levels, seen = shown[:, :, :3], shown[:, :, 3] > 0
            valid = seen if valid is None else valid & seen
        return Piece(
            self.shown(levels),
            valid=None if valid is None or valid.all() else valid,
            levels=stack if self.keeps else None,
            narrowed=self.narrow.spelled(self.limits) if self.narrow else "",
            marks=marks,
        )

    def picture(self, stack: NDArray[Any]) -> NDArray[Any]:
        """Of what was read, the bands that are shown."""
        return stack[:, :, [self.keeps.index(n) for n in self.indexes]] if self.keeps else stack

    def shown(self, levels: NDArray[Any]) -> Pixels:
        """The picture that the levels of its bands make, (h, w, 3)."""
        pixels = self.narrow(levels, self.limits) if self.narrow else levels
        if pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        return np.ascontiguousarray(pixels)


def marks_of(levels: NDArray[Any]) -> Pixels:
    """What a collar is looked for in before levels are narrowed by their own percentiles, (h, w, 3) uint8.

    Exactly 0 is black, the highest level of the type is white, all else is between: narrowed, dark sea would be black.
    """
    marks: Pixels = np.full(levels.shape, 128, np.uint8)
    marks[levels == 0] = 0
    if levels.dtype.kind in "iu":
        marks[levels == np.iinfo(levels.dtype).max] = 255
    return marks if levels.shape[2] == 3 else np.repeat(marks[:, :, :1], 3, axis=2)
