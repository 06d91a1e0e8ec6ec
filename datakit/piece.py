"""Some rows of an image, or a window of it, with all that later steps ask of their pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .measure import Mask, Pixels


class Piece:
    """Some rows of an image, or a window: as an array, or as Pillow has it, whichever is asked for."""

    def __init__(
        self,
        pixels: Pixels | None,
        picture: Image.Image | None = None,
        valid: Mask | None = None,
        stored: bytes | None = None,
        levels: NDArray[Any] | None = None,
        narrowed: str = "",
        marks: Pixels | None = None,
        shot: Any = None,
    ) -> None:
        self._pixels, self._picture = pixels, picture
        self.valid = valid  # (h, w); None: all of it is
        self.stored = stored  # the file's own bytes, of a whole JPEG that any decoder shows alike
        self.levels = levels  # (h, w, bands) as the source has them, where they were asked for and are not `pixels`
        self.narrowed = narrowed  # JSON of the limits that made `pixels` of levels, see `Narrow.spelled`
        self._marks = marks
        self.shot = shot  # the `shots.Shot` that it is (a window) of

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
    def marked(self) -> Pixels:
        """What a collar is looked for in, (h, w, 3) uint8: pixels, or (see `pixels.marks_of`) what tells it better."""
        return self.pixels if self._marks is None else self._marks

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
        levels = None if self.levels is None else np.ascontiguousarray(self.levels[place])
        return Piece(pixels, picture, valid, levels=levels, narrowed=self.narrowed, shot=self.shot)
