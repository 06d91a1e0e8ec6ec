"""Numbers about pixels: signature, digest, thumbnail, entropy, sharpness, collars.

Integer sums and histograms throughout, so that the width of a CPU's vectors moves no threshold.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image
from scipy.fftpack import dct

from . import kernels

Pixels = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[np.bool_]  # (H, W), True = valid

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


BANDS = ("band_count", "band_sum", "band_sum_squares", "band_min", "band_max")  # fields by band


def sign(pixels: Pixels) -> Signature:
    """Signature of a picture: (H, W, 3) uint8, any size."""
    small = resize32(pixels)
    cells = small.reshape(8, 4, 8, 4, 3).astype(np.uint32).sum(axis=(1, 3))
    thumbnail = ((cells + 8) // 16).astype(np.uint8).tobytes()
    hasher = Hasher(*pixels.shape[:2])
    hasher.add(pixels)
    return Signature(phashes(small), thumbnail, hasher.digest())


class Hasher:
    """The digest of a picture, (H, W, 3) uint8, or of levels of named bands, whose rows come from top to bottom."""

    def __init__(self, height: int, width: int, bands: tuple[str, ...] = ()) -> None:
        self.shape, self.bands = (height, width), bands
        self.hash: xxhash.xxh3_128 | None = None

    def add(self, rows: NDArray[Any]) -> None:
        """The next rows: (h, W, 3) uint8, or (h, W, bands) of one type throughout."""
        if self.hash is None:
            levels = json.dumps([*self.shape, rows.dtype.name, self.bands]).encode()
            self.hash = xxhash.xxh3_128(levels if self.bands else np.array([*self.shape, 3], "<i8").tobytes())
        self.hash.update(np.ascontiguousarray(rows, rows.dtype.newbyteorder("<")).data)

    def digest(self) -> bytes:
        """16 bytes."""
        return self.hash.digest() if self.hash else b""


def digest(levels: NDArray[Any], bands: tuple[str, ...]) -> bytes:
    """The digest of levels of named bands, (H, W, bands)."""
    height, width = levels.shape[:2]
    hasher = Hasher(height, width, bands)
    hasher.add(levels)
    return hasher.digest()


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
    small: Pixels = kernels.resize32(np.ascontiguousarray(pixels), *_lanczos(width), *_lanczos(height))
    return small


def measure(pixels: Pixels, valid: Mask | None) -> Measures:
    """Measures of a tile over its valid pixels, (H, W, 3) uint8; valid None: all of them are."""
    height, width = pixels.shape[:2]
    histogram, bands, lap, spread = kernels.measure(np.ascontiguousarray(pixels), _NO_MASK if valid is None else valid)
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


def bands(levels: NDArray[Any], valid: Mask | None) -> dict[str, tuple[int, ...]]:
    """The fields of `Measures` that are by band, of levels: (H, W, bands) uint8 or uint16, over valid pixels."""
    sums, pixels = kernels.band_sums(np.ascontiguousarray(levels), _NO_MASK if valid is None else valid)
    found = [[int(pixels)] * levels.shape[2], *(sums if pixels else sums * 0).tolist()]
    return {name: tuple(values) for name, values in zip(BANDS, found, strict=True)}


def entropy(histogram: NDArray[np.int64]) -> float:
    """Entropy of a histogram in bits, rounded to 6 digits so that no libm moves it."""
    share = histogram[histogram > 0] / histogram.sum()
    return round(-math.fsum((share * np.log2(share)).tolist()) + 0.0, 6)


def psnr_db(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio of two pictures of one shape, dB, at most 99.0."""
    error = int(kernels.square_error(np.ascontiguousarray(one), np.ascontiguousarray(other)))
    return 99.0 if not error else round(min(10 * math.log10(255 * 255 * one.size / error), 99.0), 3)


def box_sums(rows: Pixels, factor: int) -> NDArray[np.uint32]:
    """Sums over factor x factor px: (h, W, 3) -> (ceil(h / factor), ceil(W / factor), 3); h a multiple, or the last."""
    sums: NDArray[np.uint32] = kernels.box_sums(np.ascontiguousarray(rows), factor)
    return sums


def box_means(sums: NDArray[np.uint32], size: tuple[int, int], factor: int) -> Pixels:
    """Means of `box_sums` of a (height, width) picture, rounded half up: uint8."""
    means: Pixels = kernels.box_means(sums, *size, factor)
    return means


class Collar:
    """Finds the black or white collar of an image whose rows come from top to bottom.

    A collar is what a straight run from the image's left, right or top edge (bottom too, where the image comes in one
    piece) covers. It begins within 2 levels of 0 or 255 in all bands and goes on within `tolerance`, as JPEG leaves it,
    as long as half of it is within those 2 levels: snow and dark sea have more texture than that. Fields that only look
    like one inside a picture are reached by no run.
    """

    def __init__(self, width: int, tolerance: int = 10) -> None:
        self.tolerance = tolerance
        self.runs = np.zeros((3, width), np.int32)  # from the top, by column: see `kernels.collar_down`

    def valid(self, rows: Pixels, first: bool, last: bool) -> Mask | None:
        """Which pixels of the next rows, (h, W, 3), are no collar: (h, W), or None when all are."""
        rows = np.ascontiguousarray(rows)
        collar = np.zeros(rows.shape[:2], np.bool_)
        found = kernels.collar_sides(rows, collar, self.tolerance)
        found += kernels.collar_down(rows, collar, self.runs, self.tolerance, first)
        if first and last:
            runs = np.zeros_like(self.runs)
            found += kernels.collar_down(rows[::-1], collar[::-1], runs, self.tolerance, True)
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
            fixed[out, x] = int(weight / total * (1 << kernels.BITS) + math.copysign(0.5, weight))
        first[out] = start
    used = int(np.flatnonzero(fixed.any(axis=0))[-1]) + 1
    return first, np.ascontiguousarray(fixed[:, :used])


def _lanczos3(x: float) -> float:
    if not -3.0 <= x < 3.0:
        return 0.0
    return _sinc(x) * _sinc(x / 3)


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(x * math.pi) / (x * math.pi)
