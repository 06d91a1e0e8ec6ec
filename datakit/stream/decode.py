"""Bytes of an image to pixels. What decodes JPEG does not hold the interpreter's lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from .. import codec, image
from ..image import TIFF
from .jpeg import Box, Crops

Levels = NDArray[Any]
SIXTEEN = 16  # bits of a level of a PNG, at byte 24
_PNG = b"\x89PNG"
_EXIF_WITHIN = 1 << 12  # bytes from the beginning, where a JPEG tells how it is to be shown


Wanted = Callable[[int, int], tuple[int, Box]]  # by width and height: by how much smaller to decode; which px


class Unreadable(Exception):
    """An image that cannot be decoded: the words of its reader."""


class Decoder:
    """Gives (H, W, C) uint8 or uint16, contiguous, as shown; 8-bit pictures in RGB, whatever they are stored in.

    TIFF, and PNG of 16 bits, come with all their bands, a mosaic with its one. A thread decodes all its JPEGs into one
    buffer: what is given is good until it asks for the next.
    """

    def __init__(self) -> None:
        self.own = threading.local()

    def __call__(self, data: bytes, wanted: Wanted | None = None) -> Levels:
        """The pixels. wanted: tells of a JPEG's width and height by how much to decode it smaller (1, 2, 4 or 8), and

        of what is not decoded smaller, which px must be right. None: all.
        """
        try:
            levels = self.jpeg(data, wanted) if data[:2] == b"\xff\xd8" else self.other(data)
        except Exception as exc:
            raise Unreadable(image.reason(exc)) from None
        if levels.dtype not in (np.uint8, np.uint16):
            raise Unreadable(f"levels of {levels.dtype}: only uint8 and uint16 are read")
        return levels

    def jpeg(self, data: bytes, wanted: Wanted | None = None) -> Levels:
        """Our own decoder where a crop will do, or libjpeg-turbo; what that warns of is Pillow's to judge."""
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours not in ("CMYK", "YCCK"):
                by, box = wanted(width, height) if wanted and not tells_exif(data) else (1, None)
                if by == 1 and box and (levels := self.crops.decode(data, box)) is not None:
                    return levels
                size = height * width * 3
                buffer: NDArray[np.uint8] | None = getattr(self.own, "buffer", None)
                if buffer is None or len(buffer) < size:
                    buffer = self.own.buffer = np.empty(size, np.uint8)
                least = {"min_height": -(-height // by), "min_width": -(-width // by)} if by > 1 else {}
                return self.shown(simplejpeg.decode_jpeg(data, "RGB", buffer=buffer, **least), data)
        except ValueError:
            pass
        return self.shown(image.decode(data), data)

    @property
    def crops(self) -> Crops:
        """This thread's."""
        crops: Crops | None = getattr(self.own, "crops", None)
        if crops is None:
            crops = self.own.crops = Crops()
        return crops

    def shown(self, levels: Levels, data: bytes) -> Levels:
        if not tells_exif(data):
            return levels
        return np.ascontiguousarray(image.turned(levels, image.told_orientation(data) or 1))

    def other(self, data: bytes) -> Levels:
        if data[:4] == codec.MAGIC:
            return codec.decode(data)[:, :, None]
        if data[:4] in TIFF or (data[:4] == _PNG and data[24:25] == bytes([SIXTEEN])):
            with image.quiet():
                return image.decode_levels(data)
        return np.ascontiguousarray(image.decode(data))


def tells_exif(data: bytes) -> bool:
    """Whether a JPEG may tell how it is to be shown."""
    return data.find(b"Exif\0\0", 0, _EXIF_WITHIN) >= 0
