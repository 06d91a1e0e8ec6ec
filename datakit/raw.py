"""Camera RAW: the sensor's own numbers, with all that is needed to understand them. The only door of LibRaw.

A mosaic lies as the camera's JPEG is shown: the file's orientation is applied, and the pattern of colours and the
black levels follow it. A turned RGGB sensor is no longer RGGB; whoever reads it as such swaps red and blue with green.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .bayer import FLIPS, PATTERNS, SITES, Mosaic, demosaic, normalise, pack, turn_sites, turned, unpack
from .errors import NotBayer, SourceError
from .sample import RAW, Window

__all__ = ["RawImage", "demosaic", "normalise", "pack", "read", "unpack"]

SUFFIXES = tuple(f".{word}" for word in RAW.split(" "))
# Linear sRGB to XYZ at D65 (IEC 61966-2-1)
SRGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_LONGEST_PERIOD = 12  # px; X-Trans repeats after 6


@dataclass(frozen=True, eq=False)
class RawImage:
    """A Bayer RAW as the picture is shown. Positions of the pattern are (0, 0), (0, 1), (1, 0), (1, 1) of `mosaic`."""

    mosaic: Mosaic  # (H, W) uint16, the visible area
    black: tuple[float, ...]  # 4: level of no light, by position
    white: int  # nominal level of saturation
    cfa: str  # colour of each position, "RGGB", "BGGR", "GRBG" or "GBRG"
    white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)  # as shot: factors of R, G, B with G = 1
    matrix: tuple[float, ...] = (0.0,) * 9  # white-balanced R, G, B to linear sRGB, row by row; zeros: not known
    white_by_site: tuple[float, ...] = ()  # measured saturation by position, where the file gives it
    iso: float = 0.0  # 0: not known
    exposure_s: float = 0.0
    orientation: int = 1  # EXIF: how the file's own rows and columns lie; already applied to all of the above
    make: str = ""
    model: str = ""

    def crop(self, window: Window) -> RawImage:
        """A part of it, a view; from an odd left or top the pattern and the levels are those of what lies there."""
        left, top, width, height = window
        rows, columns = self.mosaic.shape
        if left < 0 or top < 0 or width < 1 or height < 1 or left + width > columns or top + height > rows:
            raise ValueError(f"{window} is not inside of {columns} x {rows} px")
        part = self.mosaic[top : top + height, left : left + width]
        moved = [2 * ((top + y) % 2) + (left + x) % 2 for y, x in SITES]
        return self._with(part, moved)

    def turned(self, orientation: int) -> RawImage:
        """It, turned by an EXIF orientation; pattern and levels follow."""
        height, width = self.mosaic.shape
        mosaic = turned(self.mosaic, orientation)
        return self._with(mosaic, turn_sites(range(4), (height, width), orientation))

    def _with(self, mosaic: Mosaic, moved: list[int]) -> RawImage:
        """It with another mosaic, at whose positions lies what lay at those of `moved`."""
        return replace(
            self,
            mosaic=mosaic,
            cfa="".join(self.cfa[n] for n in moved),
            black=tuple(self.black[n] for n in moved),
            white_by_site=tuple(self.white_by_site[n] for n in moved) if self.white_by_site else (),
        )


def read(path: str | Path | BinaryIO | bytes, upright: bool = True) -> RawImage:
    """A RAW file: its mosaic, (H, W) uint16, as shown, and what is known of it.

    path: a file, an open one, or its bytes. upright: False leaves the mosaic as the sensor lies.
    NotBayer for X-Trans, Foveon, monochrome and already demosaiced files; SourceError for what LibRaw cannot open.
    """
    import rawpy

    name = str(path) if isinstance(path, str | Path) else "a RAW file"
    data: Any = BytesIO(path) if isinstance(path, bytes) else path if hasattr(path, "read") else str(path)
    if isinstance(data, str) and not Path(data).is_file():
        raise SourceError(f"{name}: no such file")
    _one_thread()
    try:
        with rawpy.imread(data) as raw:
            found = _found(raw, name)  # its mosaic is LibRaw's own memory, gone when this closes
            if upright:
                found = replace(found.turned(found.orientation), orientation=found.orientation)
            else:
                found = replace(found, mosaic=found.mosaic.copy())
    except (rawpy.LibRawError, OSError) as exc:
        raise SourceError(f"{name}: LibRaw cannot open it: {_said(exc)}") from None
    make, model = _camera(data)
    return replace(found, make=make, model=model)


def header(data: BinaryIO) -> tuple[int, int, int]:
    """Width and height of a RAW file as shown, px, and its EXIF orientation, without its pixels; else SourceError."""
    import rawpy

    _one_thread()
    try:
        with rawpy.imread(data) as raw:
            sizes = raw.sizes
    except (rawpy.LibRawError, OSError) as exc:
        raise SourceError(f"LibRaw cannot open it: {_said(exc)}") from None
    size = (sizes.height, sizes.width) if sizes.flip & 4 else (sizes.width, sizes.height)
    return *size, FLIPS.index(sizes.flip) + 1


def is_raw(name: str) -> bool:
    """Whether a name is that of a camera RAW, by its suffix."""
    return name.lower().endswith(SUFFIXES)


def _said(exc: Exception) -> str:
    """LibRaw's own words, which come as bytes."""
    word = exc.args[0] if exc.args else ""
    return word.decode("ascii", "replace") if isinstance(word, bytes) else str(word)


def _found(raw: Any, name: str) -> RawImage:
    """What LibRaw says of an open file, as the sensor lies."""
    mosaic = raw.raw_image_visible
    if mosaic is None or mosaic.ndim != 2 or mosaic.dtype != np.uint16:
        raise NotBayer(f"{name}: not one number a pixel: a Foveon, linear or floating-point RAW, which is not read")
    sites = _channels(raw, name)
    names = raw.color_desc.decode("ascii", "replace")
    gains = [float(g) for g in raw.camera_whitebalance]
    green = gains[1] or 1.0
    known = gains[0] > 0 and gains[2] > 0
    whites = raw.camera_white_level_per_channel
    other = raw.other
    return RawImage(
        mosaic=mosaic,
        black=tuple(float(raw.black_level_per_channel[n]) for n in sites),
        white=int(raw.white_level),
        cfa="".join(names[n] for n in sites),
        white_balance=(gains[0] / green, 1.0, gains[2] / green) if known else (1.0, 1.0, 1.0),
        matrix=_matrix(raw.rgb_xyz_matrix[:3], raw.color_matrix[:, :3]),
        white_by_site=tuple(float(whites[n]) for n in sites) if whites and all(whites) else (),
        iso=float(other.iso_speed),
        exposure_s=float(other.shutter_speed),
        orientation=FLIPS.index(raw.sizes.flip) + 1,
    )


def _channels(raw: Any, name: str) -> list[int]:
    """LibRaw's number of the channel at each position of the visible area. NotBayer if it is no Bayer pattern."""
    top, left = raw.sizes.top_margin, raw.sizes.left_margin
    names = raw.color_desc.decode("ascii", "replace")
    if raw.raw_pattern is None:
        raise NotBayer(f"{name}: its sensor has no pattern of colours ({names}); only Bayer is read")
    across = range(_LONGEST_PERIOD)
    seen = [[raw.raw_color(top + y, left + x) for x in across] for y in across]
    sites = [seen[y][x] for y in (0, 1) for x in (0, 1)]
    pattern = "".join(names[n] if n < len(names) else "?" for n in sites)
    if pattern not in PATTERNS or any(seen[y][x] != sites[y % 2 * 2 + x % 2] for y in across for x in across):
        kind = "X-Trans" if raw.raw_pattern.shape == (6, 6) else f"a pattern of {pattern}"
        raise NotBayer(f"{name}: {kind}, not Bayer: only {', '.join(PATTERNS)} are read")
    return sites


def _matrix(from_xyz: NDArray[Any], own: NDArray[Any]) -> tuple[float, ...]:
    """White-balanced camera colours to linear sRGB, as dcraw derives it from LibRaw's table of cameras (XYZ at D65 to
    the camera's R, G, B); where that lacks the camera, the matrix that the file gives."""
    if not from_xyz.any():
        return tuple(float(v) for v in own.ravel())
    of_srgb = from_xyz.astype(float) @ SRGB_TO_XYZ
    of_srgb /= of_srgb.sum(axis=1, keepdims=True)  # white of sRGB is R = G = B
    return tuple(float(v) for v in np.linalg.inv(of_srgb).ravel())


@cache
def _openmp() -> Any:
    """The OpenMP runtime that rawpy's wheel brings; None where there is none."""
    import rawpy

    beside = Path(rawpy.__file__).parent.parent / "rawpy.libs"
    for path in sorted(beside.glob("libgomp*")) if beside.is_dir() else ():
        return ctypes.CDLL(str(path))
    return None


def _one_thread() -> None:
    """Keep LibRaw of this thread from starting others.

    A process that forked from one in which LibRaw had used threads waits for them for ever, and some decoders give
    other pixels with several (https://github.com/letmaik/rawpy/issues/265, https://github.com/LibRaw/LibRaw/issues/845).
    """
    runtime = _openmp()
    if runtime is not None:
        runtime.omp_set_num_threads(1)


def _camera(data: str | BinaryIO) -> tuple[str, str]:
    """Make and model of the camera, which rawpy does not tell: from the TIFF it is or holds; "" if unknown."""
    if isinstance(data, str):
        with Path(data).open("rb") as file:
            return _camera(file)
    data.seek(0)
    head = data.read(1 << 16)
    if head[:8] == b"FUJIFILM":
        return "FUJIFILM", head[0x1C:0x3C].split(b"\0")[0].decode("ascii", "replace").strip()
    start = head.find(b"CMT1") + 4 if b"ftyp" in head[:12] and b"CMT1" in head else 0  # CR3: a box holds a TIFF
    if head[start : start + 2] not in (b"II", b"MM"):
        return "", ""
    order = "<" if head[start : start + 2] == b"II" else ">"
    from PIL import Image

    exif = Image.Exif()
    try:
        tiff = head[start : start + 2] + (b"*\0" if order == "<" else b"\0*") + head[start + 4 :]
        exif.load(b"Exif\0\0" + tiff)
        values = [str(exif.get(tag, "")).strip(" \0") for tag in (0x010F, 0x0110)]
    except Exception:  # whatever a reader makes of a foreign header: the name of a camera is not worth an image
        return "", ""
    return values[0], values[1]
