"""Rasters of classes, cut as their images are: one level a class, 255 where nothing is labelled.

A mask is of its image as stored, or as shown, which is turned by its EXIF orientation. Its size tells, where the two
differ. Where they do not (a half turn, a mirror, a square), an orientation that the mask's own file tells is what it is
turned by; one that tells none is turned as its image is.

GDAL reads them all: it gives the numbers that a file stores, palette indices and levels of 1 to 4 bits too, where
Pillow gives colours or spreads them over 0 to 255.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.windows import Window as RasterWindow

from . import files, image
from .files import File
from .image import SWAPS_SIDES, WHOLE_PX
from .manifest import NO_LABEL, MaskSource
from .remote import Root
from .sample import Sample
from .scales import in_reduced, nearest

Classes = NDArray[np.uint8]  # (h, w)
Colour = tuple[int, int, int]
BEGINNINGS = {b"\x89PNG": "PNG", b"GIF8": "GIF", b"RIFF": "WEBP", **dict.fromkeys(image.TIFF, "GTiff")}
SHORT_BEGINNINGS = {b"BM": "BMP", b"\xff\xd8": "JPEG"}
BLOCK_PX = 1 << 24  # of the blocks of a mask that is too large to be held whole
BAND_PX = 1 << 22  # that are read and decoded at once
MEMBER = "seg.png"


def driver_of(head: bytes) -> str | None:
    """The reader of GDAL that may open what begins so."""
    return BEGINNINGS.get(head[:4]) or SHORT_BEGINNINGS.get(head[:2])


def levels_in(data: bytes) -> tuple[list[int], list[Colour]]:
    """The levels of a mask of one band, or the colours of one of three, as a build reads them; none where it cannot."""
    driver = driver_of(data)
    try:
        with image.quiet(), rasterio.MemoryFile(data) as memory, memory.open(driver=driver) as raster:
            shown = [n for n, kind in enumerate(raster.colorinterp, 1) if kind.name != "alpha"]
            if driver == "JPEG" or len(shown) not in (1, 3) or raster.width * raster.height > WHOLE_PX:
                return [], []
            found = np.unique(raster.read(shown).reshape(len(shown), -1), axis=1).T
    except Exception:  # of a damaged one, or one that is no raster, a build will tell
        return [], []
    if found.dtype.kind not in "iu":
        return [], []
    rows = [tuple(map(int, row)) for row in found]
    return ([], [(r, g, b) for r, g, b in rows]) if len(shown) == 3 else ([level for (level,) in rows], [])


class LabelUnreadable(Exception):
    """A mask that cannot be read, or is not of its image: the image's tiles are dropped as `label_unreadable`."""


def png_of(classes: Classes) -> bytes:
    """A mask as PNG, the same bytes each time."""
    out = io.BytesIO()
    Image.fromarray(classes).save(out, "PNG", compress_level=6)
    return out.getvalue()


class Masks:
    """The mask of one image, opened when its first tile is asked for; without one, nothing is labelled."""

    def __init__(self, roots: dict[str, Root], sample: Sample, scratch: Path) -> None:
        self.roots, self.image, self.scratch = roots, sample, scratch
        self.size = (sample.image_width, sample.image_height)
        self._lasting = ExitStack()
        self._read: Callable[[RasterWindow], Classes] | None = None

    def __enter__(self) -> Masks:
        return self

    def __exit__(self, *_: object) -> None:
        self._lasting.close()

    def tile(self, sample: Sample) -> Classes:
        """The mask of a tile, (height, width): of a reduced one the level below each centre. Raises LabelUnreadable."""
        if not self.image.mask:
            return np.full((sample.height, sample.width), NO_LABEL, np.uint8)
        source = MaskSource.from_json(self.image.mask)
        file, root = File(**source.file), self.roots[(source.source or self.image.source).partition("/")[0]]
        try:
            self._read = self._read or self._opened(root, file, source)
            return self._picked(self._read, sample)
        except LabelUnreadable:
            raise
        except Exception as exc:  # a reader may raise anything on a broken file; whatever it is, it has a name
            files.check_machine(exc, root, file)
            raise LabelUnreadable(f"{file.name}: {image.reason(exc, root, self.scratch)}") from exc

    def _picked(self, read: Callable[[RasterWindow], Classes], sample: Sample) -> Classes:
        """The px below the centres of a tile's px, read some rows at a time."""
        place = in_reduced(sample)
        rows = nearest(place.top, place.height, sample.scale, self.size[1])
        columns = nearest(place.left, place.width, sample.scale, self.size[0])
        left, width = int(columns[0]), int(columns[-1] - columns[0]) + 1
        step = max(int(BAND_PX / (width * sample.scale)), 1)
        picked = np.empty((len(rows), len(columns)), np.uint8)
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            top = int(some[0])
            levels = read(RasterWindow(left, top, width, int(some[-1]) - top + 1))
            picked[at : at + step] = levels[np.ix_(some - top, columns - left)]
        return picked

    def _opened(self, root: Root, file: File, source: MaskSource) -> Callable[[RasterWindow], Classes]:
        driver = driver_of(files.head(root, file, 4))  # GDAL may open only what it begins as
        if driver is None:
            raise LabelUnreadable(f"{file.name}: not an image of a known format")
        name = self._lasting.enter_context(files.local(root, file, self.scratch))
        raster = self._lasting.enter_context(rasterio.open(name, driver=driver))
        width, height = raster.width, raster.height
        orientation = self._orientation(root, file, (width, height))
        decoder = Decoder(raster, file.name, source)

        def read(window: RasterWindow) -> Classes:
            return decoder.classes(raster.read(decoder.indexes, window=window))

        block = raster.block_shapes[0]
        if width * height > WHOLE_PX:
            if orientation != 1:
                raise LabelUnreadable(f"{file.name}: over {WHOLE_PX} px, and turned by its orientation")
            if raster.driver == "GTiff" and block[0] * block[1] <= BLOCK_PX:
                return read
            raise LabelUnreadable(f"{file.name}: over {WHOLE_PX} px in a format without blocks")
        step = max(BAND_PX // width // block[0], 1) * block[0]
        bands = [read(RasterWindow(0, top, width, min(step, height - top))) for top in range(0, height, step)]
        whole = image.turned(np.concatenate(bands), orientation)
        return lambda window: whole[window.toslices()]

    def _orientation(self, root: Root, file: File, size: tuple[int, int]) -> int:
        """The EXIF orientation that turns the mask to its image as shown. LabelUnreadable if it has another size."""
        turn = self.image.orientation
        stored = self.size[::-1] if turn in SWAPS_SIDES else self.size
        if size == self.size != stored or turn == 1:
            turn = 1
        elif size == self.size:
            turn = image.told_orientation(files.read(root, file)) or turn
        if (size[::-1] if turn in SWAPS_SIDES else size) == self.size:
            return turn
        said = f"{size[0]} x {size[1]} px, where the image has {self.size[0]} x {self.size[1]}"
        raise LabelUnreadable(f"{file.name}: {said}")


class Decoder:
    """What the numbers of a raster of classes become."""

    def __init__(self, raster: Any, name: str, source: MaskSource) -> None:
        kinds = [c.name for c in raster.colorinterp]
        self.indexes = [n for n, kind in enumerate(kinds, 1) if kind != "alpha"]
        self.name, self.source = name, source
        dtype = np.dtype(raster.dtypes[0])
        self.table: NDArray[np.int64] | None = None  # (256, 3): colours of the palette, or grays of few bits
        if dtype.kind not in "iu":
            raise LabelUnreadable(f"{name}: levels of {dtype}, where classes are whole numbers")
        if len(self.indexes) not in ((1, 3) if source.colours else (1,)):
            raise LabelUnreadable(f"{name}: {len(self.indexes)} bands, where levels are one; give `colours`")
        if source.colours and dtype.itemsize > 1:
            raise LabelUnreadable(f"{name}: {dtype}, where colours are of 8 bits")
        if not all(0 <= level <= 255 for level in source.colours):
            raise LabelUnreadable(f"{name}: colours: a level is from 0 to 255")
        if source.colours and len(self.indexes) == 1 and dtype.itemsize == 1:
            bits = int(raster.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", "8"))
            gray = np.minimum(np.arange(256) * 255 // (2**bits - 1), 255)
            self.table = np.stack([gray] * 3, axis=1)
            for level, colour in raster.colormap(1).items() if kinds[0] == "palette" else ():
                self.table[level] = colour[:3]

    def classes(self, raw: NDArray[Any]) -> Classes:
        """(bands, h, w) as stored -> (h, w) levels of `seg.png`."""
        raw = self._by_colour(raw) if self.source.colours else raw[0]
        ignored = np.isin(raw, self.source.ignore)
        high = raw[~ignored & ((raw < 0) | (raw > 255))]
        if high.size:
            raise LabelUnreadable(f"{self.name}: level {high[0]}, where {MEMBER} holds 0 to 255")
        return np.where(ignored, NO_LABEL, raw).astype(np.uint8)

    def _by_colour(self, raw: NDArray[Any]) -> NDArray[np.int64]:
        if self.source.threshold is not None:
            raw = np.where(raw >= self.source.threshold, 255, 0).astype(raw.dtype)
        if self.table is not None:
            by_level: NDArray[np.int64] = self._levels_of(self.table.T)[raw[0]]
            return by_level
        return self._levels_of(np.broadcast_to(raw, (3, *raw.shape[1:])))

    def _levels_of(self, colours: NDArray[Any]) -> NDArray[np.int64]:
        """(3, …) colours -> levels; a colour that is not listed has no label."""
        red, green, blue = (band.astype(np.int64) for band in colours)
        found = np.full(red.shape, NO_LABEL, np.int64)
        for level, (r, g, b) in self.source.colours.items():
            found[(red == r) & (green == g) & (blue == b)] = level
        return found
