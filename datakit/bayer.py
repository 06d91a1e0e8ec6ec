"""Arithmetic of Bayer mosaics: planes, colours, levels, turns and windows that keep the pattern. No files.

A pattern is told by the colours at (0, 0), (0, 1), (1, 0), (1, 1), as "RGGB", or as rawpy's [[0, 1], [3, 2]].
Packed planes are always red, green of the red rows, blue, green of the blue rows, whatever the pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .kernels import jit
from .sample import Window

Mosaic = NDArray[np.uint16]
Cfa = str | Sequence[Sequence[int]] | NDArray[Any]
Levels = float | Sequence[float] | NDArray[Any]
Item = TypeVar("Item")

PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")
# By EXIF orientation 1..8: rows from the bottom (2), columns from the right (1), then rows and columns change places
# (4). It is LibRaw's `flip` (dcraw's flip_index).
FLIPS = (0, 1, 3, 2, 4, 6, 7, 5)
STRIP_ROWS = 256  # of a reduced picture
SITES = ((0, 0), (0, 1), (1, 0), (1, 1))


def pattern(cfa: Cfa) -> str:
    """A pattern as text: "RGGB" of itself, of [[0, 1], [3, 2]] and of [["R", "G"], ["G", "B"]]; else ValueError."""
    text = cfa if isinstance(cfa, str) else "".join(_letter(v) for v in np.asarray(cfa).ravel().tolist())
    if text.upper() not in PATTERNS:
        raise ValueError(f"{cfa!r} is no Bayer pattern: expected one of {', '.join(PATTERNS)}")
    return text.upper()


def _letter(value: Any) -> str:
    return {0: "R", 1: "G", 2: "B", 3: "G"}.get(value, "?") if not isinstance(value, str) else value


def sites(cfa: Cfa) -> tuple[tuple[int, int], ...]:
    """Row and column, 0 or 1, of red, green of the red row, blue, green of the blue row."""
    text = pattern(cfa)
    (ry, rx), (by, bx) = SITES[text.index("R")], SITES[text.index("B")]
    return (ry, rx), (ry, 1 - rx), (by, bx), (by, 1 - bx)


def pack(mosaic: NDArray[Any], cfa: Cfa) -> NDArray[Any]:
    """A mosaic as planes: (H, W) -> (4, H/2, W/2), red, green of the red rows, blue, green of the blue rows."""
    height, width = mosaic.shape
    if height % 2 or width % 2:
        raise ValueError(f"a mosaic of {height} x {width} has no four equal planes: crop it to even sides")
    return np.stack([mosaic[y::2, x::2] for y, x in sites(cfa)])


def unpack(planes: NDArray[Any], cfa: Cfa) -> NDArray[Any]:
    """The mosaic of packed planes: (4, H/2, W/2) -> (H, W); the inverse of `pack`."""
    if planes.ndim != 3 or len(planes) != 4:
        raise ValueError(f"expected (4, H/2, W/2), found {planes.shape}")
    mosaic = np.empty((2 * planes.shape[1], 2 * planes.shape[2]), planes.dtype)
    for plane, (y, x) in zip(planes, sites(cfa), strict=True):
        mosaic[y::2, x::2] = plane
    return mosaic


def packed_order(by_site: Sequence[Item], cfa: Cfa) -> list[Item]:
    """What is given by position of the pattern, in the order of packed planes."""
    return [by_site[2 * y + x] for y, x in sites(cfa)]


def demosaic(mosaic: NDArray[Any], cfa: Cfa) -> NDArray[np.float32]:
    """R, G, B of every pixel: (H, W) -> (3, H, W) float32, the mean of the 2 or 4 nearest samples of each colour.

    Past an edge the mosaic is mirrored about its outermost sample, which keeps the pattern: what is one colour inside
    is so at the edge. Values of 16 bits are exact. H, W >= 2.
    """
    if mosaic.ndim != 2 or min(mosaic.shape) < 2:
        raise ValueError(f"expected (H, W) of at least 2 x 2, found {mosaic.shape}")
    colours = np.array(["RGB".index(c) for c in pattern(cfa)]).reshape(2, 2)
    rgb = np.empty((3, *mosaic.shape), np.float32)
    _demosaic(mosaic, colours, rgb)
    return rgb


@jit
def _demosaic(mosaic, colours, rgb):  # type: ignore[no-untyped-def]
    height, width = mosaic.shape
    rows = np.empty((3, width + 2), np.float32)
    quarter, half = np.float32(0.25), np.float32(0.5)
    for y in range(height):
        for n in range(3):
            source = mosaic[abs(y + n - 1) if y + n - 1 < height else height - 2]
            for x in range(width):
                rows[n, x + 1] = source[x]
            rows[n, 0], rows[n, width + 1] = rows[n, 2], rows[n, width - 1]
        up, here, down = rows[0], rows[1], rows[2]
        at = 0 if colours[y % 2, 0] == 1 else 1  # columns of this row that are green
        colour = colours[y % 2, 1 - at]
        own, green, other = rgb[colour, y], rgb[1, y], rgb[2 - colour, y]
        for x in range(width):
            across, along = here[x] + here[x + 2], up[x + 1] + down[x + 1]
            is_green = (x & 1) == at
            own[x] = across * half if is_green else here[x + 1]
            green[x] = here[x + 1] if is_green else (along + across) * quarter
            other[x] = along * half if is_green else (up[x] + up[x + 2] + down[x] + down[x + 2]) * quarter


def downsampled(mosaic: NDArray[Any], cfa: Cfa, place: Window, width: int, height: int) -> NDArray[np.float32]:
    """A window of a mosaic, demosaiced and reduced to (height, width, 3) float32: bilinear, without smoothing.

    As PyTorch's `interpolate(..., mode="bilinear")` of `demosaic` of all of the mosaic, cut to the window first, in
    AODRaw's script downsample/downsample_raw_images.py, to a unit in the last place; a strip is in memory at a time.
    """
    left, top, across, down = place
    rows, row_shares = _taps(down, height)
    columns, column_shares = _taps(across, width)
    out = np.empty((height, width, 3), np.float32)
    for begin in range(0, height, STRIP_ROWS):
        end = min(begin + STRIP_ROWS, height)
        first, last = top + int(rows[begin]), top + int(rows[end - 1]) + 1
        low = max(first - 2, 0) // 2 * 2  # even, and a row beyond what is asked for, unless it is the first of all
        rgb = demosaic(mosaic[low : last + 2], cfa)
        _reduce(
            rgb, rows[begin:end] + (top - low), row_shares[begin:end], columns + left, column_shares, out[begin:end],
            top + down - 1 - low, left + across - 1,
        )  # fmt: skip
    return out


def _taps(length: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each px of a row reduced from `length` to `count`: the px that it begins in, and the share of the next."""
    scale = np.float64(np.float32(length) / np.float32(count))
    places = np.maximum(scale * (np.arange(count) + 0.5) - 0.5, 0).astype(np.float32)
    first = np.minimum(places.astype(np.int64), length - 1)
    return first, places - first.astype(np.float32)


@jit
def _reduce(rgb, rows, row_shares, columns, column_shares, out, last_row, last_column):  # type: ignore[no-untyped-def]
    for y in range(rows.size):
        up, down = rows[y], min(rows[y] + 1, last_row)
        v = row_shares[y]
        for x in range(columns.size):
            left, right = columns[x], min(columns[x] + 1, last_column)
            u = column_shares[x]
            # in PyTorch's order on a CPU, where a product that is added is not rounded before
            one, two = (np.float32(1) - v) * (np.float32(1) - u), (np.float32(1) - v) * u
            three, four = v * (np.float32(1) - u), v * u
            for c in range(3):
                total = np.float32(rgb[c, up, right] * two)
                total = np.float32(np.float64(rgb[c, up, left]) * one + total)
                total = np.float32(np.float64(rgb[c, down, left]) * three + total)
                out[y, x, c] = np.float32(np.float64(rgb[c, down, right]) * four + total)


def normalise(values: NDArray[Any], black: Levels, white: Levels) -> NDArray[np.float32]:
    """Black to 0 and white to 1, as float32 of the same shape: (values - black) / (white - black), not clipped.

    Noise below black stays below 0. One level for all, or, for (C, H, W), one for each plane, or, for a mosaic
    (H, W), four, of its positions (0, 0), (0, 1), (1, 0), (1, 1). ValueError unless white is above black.
    """
    planes = len(values) if values.ndim == 3 else 4
    blacks, whites = _levels(black, planes), _levels(white, planes)
    if not np.all(whites > blacks):
        raise ValueError(f"white must be above black: found black {black}, white {white}")
    out = np.empty(values.shape, np.float32)
    if values.ndim == 3:
        parts = [(values[n], out[n]) for n in range(planes)]
    elif values.ndim == 2 and len({*blacks.tolist()}) == len({*whites.tolist()}) == 1:
        parts = [(values, out)]
    elif values.ndim == 2:
        parts = [(values[y::2, x::2], out[y::2, x::2]) for y, x in SITES]
    else:
        raise ValueError(f"expected (H, W) or (C, H, W), found {values.shape}")
    for (part, result), low, high in zip(parts, blacks, whites, strict=False):
        np.subtract(part, low, out=result, dtype=np.float32)
        result /= high - low
    return out


@jit
def level(samples, black, white, out):  # type: ignore[no-untyped-def]
    """Fills `out`, (h, w) float32, with (samples - black) / white, in one pass; samples: (h, w) uint16."""
    for y in range(samples.shape[0]):
        here, there = samples[y], out[y]
        for x in range(samples.shape[1]):
            there[x] = (np.float32(here[x]) - black) / white


def _levels(levels: Levels, planes: int) -> NDArray[np.float32]:
    """As many levels as there are planes, (planes,) float32."""
    given = np.asarray(levels, np.float32).ravel()
    if len(given) not in (1, planes):
        raise ValueError(f"{len(given)} levels for {planes} planes: give one, or one for each")
    return np.broadcast_to(given, planes)


def turn(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """An array (H, W, ...) as it is shown by an EXIF orientation, 1..8: a view."""
    flip = flip_of(orientation)
    if flip & 2:
        array = array[::-1]
    if flip & 1:
        array = array[:, ::-1]
    return array.swapaxes(0, 1) if flip & 4 else array


def turned(mosaic: Mosaic, orientation: int) -> Mosaic:
    """A mosaic (H, W) as it is shown, a copy; transposed by blocks that fit a cache, in 0.4 of numpy's time."""
    view = turn(mosaic, orientation)
    if not flip_of(orientation) & 4:
        return np.array(view, order="C")
    out = np.empty(view.shape, mosaic.dtype)
    _copy(view, out)
    return out


@jit
def _copy(view, out):  # type: ignore[no-untyped-def]
    height, width = out.shape
    for top in range(0, height, 64):
        for left in range(0, width, 64):
            for y in range(top, min(top + 64, height)):
                for x in range(left, min(left + 64, width)):
                    out[y, x] = view[y, x]


def turn_sites(by_site: Sequence[Item], shape: tuple[int, int], orientation: int) -> list[Item]:
    """What is given by position of the pattern of an (H, W) array, of the array turned.

    The position that comes to (0, 0) is that of a corner, so it depends on whether H and W are odd.
    """
    flip = flip_of(orientation)
    found = []
    for row, column in SITES:
        y, x = (column, row) if flip & 4 else (row, column)
        y, x = shape[0] - 1 - y if flip & 2 else y, shape[1] - 1 - x if flip & 1 else x
        found.append(by_site[y % 2 * 2 + x % 2])
    return found


def flip_of(orientation: int) -> int:
    """LibRaw's number of an EXIF orientation; ValueError unless that is 1..8."""
    if not 1 <= orientation <= 8:
        raise ValueError(f"EXIF orientations are 1 to 8, found {orientation}")
    return FLIPS[orientation - 1]


def on_phase(window: Window) -> Window:
    """The window moved left and up by at most 1 px and shortened by at most 1 px, so that all its numbers are even."""
    return Window(*(v - v % 2 for v in window))
