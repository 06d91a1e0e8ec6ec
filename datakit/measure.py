"""Numbers about pixels: signature, digest, thumbnail, entropy, sharpness, collars.

Integer sums and histograms throughout, so that the width of a CPU's vectors moves no threshold.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image
from scipy.fftpack import dct

Pixels = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[np.bool_]  # (H, W), True = valid

_BITS = 22  # Pillow's fixed-point resampling: 32 - 8 - 2 (src/libImaging/Resample.c, PRECISION_BITS)
_NO_MASK: Mask = np.zeros((0, 0), bool)
_LUMA = np.array([19595, 38470, 7471], np.uint32)
_LEVELS = np.arange(256, dtype=np.int64)
SIDE_PX = 32  # of the thumbnail that PHash looks at


class Signature(NamedTuple):
    """How a picture looks: what duplicates are found by."""

    phashes: tuple[int, ...]  # 8: bit 0 of the place = mirrored left-right, bit 1 = top-bottom, bit 2 = transposed
    thumbnail: bytes  # (8, 8, 3) uint8
    digest: bytes  # xxh3-128 of shape and pixels


class Measures(NamedTuple):
    """What rules look at; field names are those of `Sample`. Luma is Pillow's: (19595 R + 38470 G + 7471 B) / 2**16."""

    valid_share: float
    entropy_bits: float
    sharpness: float
    luma_mean: float
    luma_std: float
    saturation: float
    band_count: tuple[int, ...]
    band_sum: tuple[int, ...]
    band_sum_squares: tuple[int, ...]
    band_min: tuple[int, ...]
    band_max: tuple[int, ...]


def sign(pixels: Pixels) -> Signature:
    """Signature of a picture: (H, W, 3) uint8, any size."""
    small = resize32(pixels)
    cells = small.reshape(8, 4, 8, 4, 3).astype(np.uint32).sum(axis=(1, 3))
    hasher = xxhash.xxh3_128(np.array(pixels.shape, "<i8").tobytes())
    hasher.update(np.ascontiguousarray(pixels).data)
    return Signature(phashes(small), ((cells + 8) // 16).astype(np.uint8).tobytes(), hasher.digest())


def phash(pixels: Pixels) -> int:
    """PHash of a picture, (H, W, 3) uint8 -> 64 bits: bit for bit imagededup's `PHash().encode_image`."""
    return phashes(resize32(pixels))[0]


def phashes(small: Pixels) -> tuple[int, ...]:
    """PHash of the 8 flips and rotations of a (32, 32, 3) thumbnail: a flip negates every other DCT coefficient."""
    gray = (small.astype(np.uint32) @ _LUMA + 0x8000) >> 16  # as Pillow converts to "L"
    low = dct(dct(gray, axis=0), axis=1)[:8, :8]
    signs = np.where(np.arange(8) % 2, -1.0, 1.0)
    turned = np.empty((8, 64))
    for place in range(8):
        one = low * signs[None, :] if place & 1 else low
        one = one * signs[:, None] if place & 2 else one
        turned[place] = (one.T if place & 4 else one).ravel()
    median = np.sort(turned[:, 1:], axis=1)[:, 31]  # of 63: the DC term has a bit but no say
    bits = np.packbits(turned >= median[:, None], axis=1)
    return tuple(bits.view(">u8").ravel().tolist())


def resize32(pixels: Pixels) -> Pixels:
    """Pillow's `resize((32, 32), LANCZOS)` of (H, W, 3) uint8, bit for bit, at under half its time.

    Pillow resamples rows first unless columns first is cheaper, which no release does for a picture at least as
    wide as it is high; the others go to Pillow itself, as does what is not reduced at all.
    """
    height, width = pixels.shape[:2]
    if height > width or height <= SIDE_PX or width <= SIDE_PX:
        return np.asarray(Image.fromarray(pixels).resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS))
    small: Pixels = _resize32(np.ascontiguousarray(pixels), *_lanczos(width), *_lanczos(height))
    return small


def measure(pixels: Pixels, valid: Mask | None) -> Measures:
    """Measures of a tile over its valid pixels, (H, W, 3) uint8; valid None: all of them are."""
    height, width = pixels.shape[:2]
    histogram, bands, lap, spread = _measure(np.ascontiguousarray(pixels), _NO_MASK if valid is None else valid)
    count = int(histogram.sum())
    if not count:
        return Measures(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0))
    total, squares = int(histogram @ _LEVELS), int(histogram @ (_LEVELS * _LEVELS))
    n, s, q = (int(x) for x in lap)
    return Measures(
        valid_share=count / (height * width),
        entropy_bits=entropy(histogram),
        sharpness=(q - s * s / n) / n if n else 0.0,
        luma_mean=total / count,
        luma_std=math.sqrt(max(squares * count - total * total, 0)) / count,
        saturation=int(spread) / (255 * count),
        band_count=(count,) * 3,
        band_sum=tuple(bands[0].tolist()),
        band_sum_squares=tuple(bands[1].tolist()),
        band_min=tuple(bands[2].tolist()),
        band_max=tuple(bands[3].tolist()),
    )


def entropy(histogram: NDArray[np.int64]) -> float:
    """Entropy of a histogram in bits, rounded to 6 digits so that no libm moves it."""
    share = histogram[histogram > 0] / histogram.sum()
    return round(-math.fsum((share * np.log2(share)).tolist()) + 0.0, 6)


def psnr_db(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio of two pictures of one shape, dB, at most 99.0."""
    error = int(_square_error(np.ascontiguousarray(one), np.ascontiguousarray(other)))
    return 99.0 if not error else round(min(10 * math.log10(255 * 255 * one.size / error), 99.0), 3)


def box_sums(rows: Pixels, factor: int) -> NDArray[np.uint32]:
    """Sums over factor x factor px: (h, W, 3) -> (ceil(h / factor), ceil(W / factor), 3); h a multiple, or the last."""
    sums: NDArray[np.uint32] = _box_sums(np.ascontiguousarray(rows), factor)
    return sums


def box_means(sums: NDArray[np.uint32], size: tuple[int, int], factor: int) -> Pixels:
    """Means of `box_sums` of a (height, width) picture, rounded half up: uint8."""
    means: Pixels = _box_means(sums, *size, factor)
    return means


class Collar:
    """Finds the black or white collar of an image whose rows come from top to bottom.

    A collar is what a straight run from the image's left, right or top edge (bottom too, where the image comes in one
    piece) covers: it begins within 2 levels of 0 or 255 in all bands and stays within `tolerance`, as JPEG leaves it.
    Fields that only look like one inside a picture are reached by no run.
    """

    def __init__(self, width: int, tolerance: int = 10) -> None:
        self.tolerance = tolerance
        self.open = np.full(width, 3, np.uint8)  # by column: bit 0 a black run, bit 1 a white run from the top goes on

    def valid(self, rows: Pixels, first: bool, last: bool) -> Mask | None:
        """Which pixels of the next rows, (h, W, 3), are no collar: (h, W), or None when all are."""
        rows = np.ascontiguousarray(rows)
        collar = np.zeros(rows.shape[:2], np.bool_)
        found = _collar_sides(rows, collar, self.tolerance) + _collar_down(
            rows, collar, self.open, self.tolerance, first
        )
        if first and last:
            state = np.full(rows.shape[1], 3, np.uint8)
            found += _collar_down(rows[::-1], collar[::-1], state, self.tolerance, True)
        return ~collar if found else None


@lru_cache(maxsize=256)
def _lanczos(size: int) -> tuple[Any, ...]:
    """First input and weights (of 22 bits, 0 where there are fewer) of each of 32 outputs.

    Pillow's precompute_coeffs and normalize_coeffs_8bpc (src/libImaging/Resample.c), restated.
    """
    scale = max(size / SIDE_PX, 1.0)
    support = 3.0 * scale
    first = np.zeros(SIDE_PX, np.int64)
    fixed = np.zeros((SIDE_PX, math.ceil(support) * 2 + 1), np.int32)
    for out in range(SIDE_PX):
        centre = (out + 0.5) * size / SIDE_PX
        start = max(int(centre - support + 0.5), 0)
        stop = min(int(centre + support + 0.5), size)
        weights = [_lanczos3((x + start - centre + 0.5) / scale) for x in range(stop - start)]
        total = sum(weights)
        for x, weight in enumerate(weights):
            fixed[out, x] = int(weight / total * (1 << _BITS) + math.copysign(0.5, weight))
        first[out] = start
    used = int(np.flatnonzero(fixed.any(axis=0))[-1]) + 1
    return first, np.ascontiguousarray(fixed[:, :used])


def _lanczos3(x: float) -> float:
    if not -3.0 <= x < 3.0:
        return 0.0
    return _sinc(x) * _sinc(x / 3)


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(x * math.pi) / (x * math.pi)


_i32 = np.int32
_HALF = np.int32(1 << (_BITS - 1))
_RUN = 1000  # columns whose squares (of Laplacians: 1020**2) add up within 32 bits


def _jit(function: Any) -> Any:
    return nb.njit(cache=True, nogil=True)(function)


@_jit
def _resize32(rgb, left, across, top, down):  # type: ignore[no-untyped-def]
    """The casts keep numba from widening to 64 bits, at half the speed; sums stay below 255 * 1.4 * 2**22 < 2**31."""
    height, width = rgb.shape[0], rgb.shape[1]
    taps, steps = across.shape[1], down.shape[1]
    narrow = np.zeros((3, 32, height + steps), np.int32)
    plane = np.zeros((3, width + taps), np.int32)  # weights past the edge are 0
    for y in range(height):
        row = rgb[y].reshape(width * 3)
        p0, p1, p2 = plane[0], plane[1], plane[2]
        for x in range(width):
            p0[x], p1[x], p2[x] = row[3 * x], row[3 * x + 1], row[3 * x + 2]
        for o in range(32):
            w, x0 = across[o], left[o]
            q0, q1, q2 = p0[x0 : x0 + taps], p1[x0 : x0 + taps], p2[x0 : x0 + taps]
            s0, s1, s2 = _HALF, _HALF, _HALF
            for k in range(taps):
                s0 = _i32(s0 + _i32(q0[k] * w[k]))
                s1 = _i32(s1 + _i32(q1[k] * w[k]))
                s2 = _i32(s2 + _i32(q2[k] * w[k]))
            narrow[0, o, y] = min(max(s0 >> _BITS, 0), 255)
            narrow[1, o, y] = min(max(s1 >> _BITS, 0), 255)
            narrow[2, o, y] = min(max(s2 >> _BITS, 0), 255)
    small = np.empty((32, 32, 3), np.uint8)
    for c in range(3):
        for o in range(32):
            w = down[o]
            for x in range(32):
                q = narrow[c, x, top[o] : top[o] + steps]
                s: Any = _HALF
                for k in range(steps):
                    s = _i32(s + _i32(q[k] * w[k]))
                small[o, x, c] = min(max(s >> _BITS, 0), 255)
    return small


@_jit
def _measure(rgb, valid):  # type: ignore[no-untyped-def]
    """Luma histogram (256,); by band sum, squares, min, max; n, sum, squares of the Laplacian; sum of max - min."""
    height, width = rgb.shape[0], rgb.shape[1]
    masked = valid.shape[0] > 0
    counts = np.zeros((4, 256), np.int64)
    bands = np.zeros((4, 3), np.int64)
    bands[2] = 255
    luma = np.empty((height, width), np.uint8)
    plane = np.empty((3, width), np.uint8)
    spread = np.int64(0)
    for y in range(height):
        row = rgb[y].reshape(width * 3)
        n = 0
        for x in range(width):
            r, g, b = np.int32(row[3 * x]), np.int32(row[3 * x + 1]), np.int32(row[3 * x + 2])
            luma[y, x] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16
        if masked:
            for x in range(width):
                if valid[y, x]:
                    plane[0, n], plane[1, n], plane[2, n] = row[3 * x], row[3 * x + 1], row[3 * x + 2]
                    counts[0, luma[y, x]] += 1
                    n += 1
        else:
            n = width
            for x in range(width):
                plane[0, x], plane[1, x], plane[2, x] = row[3 * x], row[3 * x + 1], row[3 * x + 2]
            for x in range(width):
                counts[x & 3, luma[y, x]] += 1  # four tables: equal neighbours need not wait for each other
        for start in range(0, n, _RUN):
            stop = min(start + _RUN, n)
            p0, p1, p2 = plane[0, start:stop], plane[1, start:stop], plane[2, start:stop]
            for c in range(3):
                p = plane[c, start:stop]
                s, q, low, high = _i32(0), _i32(0), np.uint8(255), np.uint8(0)
                for x in range(p.shape[0]):
                    s = _i32(s + p[x])
                    q = _i32(q + _i32(p[x]) * _i32(p[x]))
                for x in range(p.shape[0]):
                    low, high = min(low, p[x]), max(high, p[x])
                bands[0, c] += s
                bands[1, c] += q
                bands[2, c] = min(bands[2, c], low)
                bands[3, c] = max(bands[3, c], high)
            s = _i32(0)
            for x in range(p0.shape[0]):
                s = _i32(s + _i32(max(p0[x], p1[x], p2[x])) - _i32(min(p0[x], p1[x], p2[x])))
            spread += s
    lap = np.zeros(3, np.int64)
    for y in range(1, height - 1):
        up, here, down = luma[y - 1], luma[y], luma[y + 1]
        if masked:
            for x in range(1, width - 1):
                if valid[y, x] and valid[y - 1, x] and valid[y + 1, x] and valid[y, x - 1] and valid[y, x + 1]:
                    v = np.int64(4) * here[x] - up[x] - down[x] - here[x - 1] - here[x + 1]
                    lap[0] += 1
                    lap[1] += v
                    lap[2] += v * v
        else:
            for start in range(1, width - 1, _RUN):
                stop = min(start + _RUN, width - 1)
                u, m, d = up[start:stop], here[start:stop], down[start:stop]
                before, after = here[start - 1 : stop - 1], here[start + 1 : stop + 1]
                s, q = _i32(0), _i32(0)
                for x in range(stop - start):
                    v = _i32(_i32(_i32(m[x]) << 2) - _i32(u[x]) - _i32(d[x]) - _i32(before[x]) - _i32(after[x]))
                    s, q = _i32(s + v), _i32(q + _i32(v * v))
                lap[1] += s
                lap[2] += q
            lap[0] += max(width - 2, 0)
    return counts.sum(axis=0), bands, lap, spread


@_jit
def _square_error(one, other):  # type: ignore[no-untyped-def]
    a, b = one.reshape(one.size), other.reshape(other.size)
    total = np.int64(0)
    for i in range(a.size):
        d = _i32(_i32(a[i]) - _i32(b[i]))
        total += np.int64(_i32(d * d))
    return total


@_jit
def _box_sums(rows, factor):  # type: ignore[no-untyped-def]
    height, width = rows.shape[0], rows.shape[1]
    sums = np.zeros(((height + factor - 1) // factor, (width + factor - 1) // factor, 3), np.uint32)
    column = np.zeros(width * 3, np.uint32)
    for top in range(0, height, factor):
        column[:] = 0
        for y in range(top, min(top + factor, height)):
            row = rows[y].reshape(width * 3)
            for i in range(width * 3):
                column[i] = np.uint32(column[i] + np.uint32(row[i]))
        cells = sums[top // factor]
        for cell in range(cells.shape[0]):
            r, g, b = np.uint32(0), np.uint32(0), np.uint32(0)
            for x in range(cell * factor, min((cell + 1) * factor, width)):
                r, g, b = r + column[3 * x], g + column[3 * x + 1], b + column[3 * x + 2]
            cells[cell, 0], cells[cell, 1], cells[cell, 2] = r, g, b
    return sums


@_jit
def _box_means(sums, height, width, factor):  # type: ignore[no-untyped-def]
    means = np.empty(sums.shape, np.uint8)
    for y in range(sums.shape[0]):
        for x in range(sums.shape[1]):
            area = np.uint32(min(factor, height - y * factor) * min(factor, width - x * factor))
            for c in range(3):
                means[y, x, c] = int((sums[y, x, c] + area // 2) / area)  # exact, and faster than dividing integers
    return means


@_jit
def _fill(r, g, b, within):  # type: ignore[no-untyped-def]
    """1: black, 2: white, 0: neither, in all three bands."""
    if r <= within and g <= within and b <= within:
        return 1
    if r >= 255 - within and g >= 255 - within and b >= 255 - within:
        return 2
    return 0


@_jit
def _collar_sides(rows, collar, tolerance):  # type: ignore[no-untyped-def]
    height, width = rows.shape[0], rows.shape[1]
    found = 0
    for y in range(height):
        for side in range(2):
            x, step = (0, 1) if side == 0 else (width - 1, -1)
            kind = _fill(rows[y, x, 0], rows[y, x, 1], rows[y, x, 2], 2)
            while kind and 0 <= x < width and _fill(rows[y, x, 0], rows[y, x, 1], rows[y, x, 2], tolerance) == kind:
                collar[y, x] = True
                found += 1
                x += step
    return found


@_jit
def _collar_down(rows, collar, going, tolerance, first):  # type: ignore[no-untyped-def]
    height, width = rows.shape[0], rows.shape[1]
    found = 0
    for x in range(width):
        if first:
            going[x] = _fill(rows[0, x, 0], rows[0, x, 1], rows[0, x, 2], 2)
        y = 0
        while y < height and going[x]:
            if _fill(rows[y, x, 0], rows[y, x, 1], rows[y, x, 2], tolerance) == going[x]:
                collar[y, x] = True
                found += 1
                y += 1
            else:
                going[x] = 0
    return found
