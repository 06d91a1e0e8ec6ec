"""A mosaic as bytes without loss: (H, W) uint16 in, the same out; damaged bytes are an error, never a wrong picture.

A sample is told by the three decoded before it of its own colour site, left, above and above left, with the median
edge detector of LOCO-I (Weinberger et al. 2000, section III.A). What is left over is folded to 0, 1, 2, … and, in
blocks of 256, parted: the low bits, which are noise and cannot be packed, stay plain, as many as fit the block; the
rest is a byte a sample, which zstd's Huffman coder shortens. Both are undone at several samples a nanosecond.

    bytes = magic, H, W, bytes of the packed part (little-endian uint32 each), xxh3-64 of all the rest
            packed part: zstd frame of, for each block, its number of low bits, then all high bytes
            plain part: for each block, low bits times 16 words of 16 bits
"""

from __future__ import annotations

import struct
import threading
from typing import Any

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from .errors import ShardError
from .kernels import jit

SUFFIX = "raw"
MAGIC = b"DKM1"
HEAD = struct.Struct("<4sIIIQ")
BLOCK = 256  # samples; 16 lanes of 16, so that a word of every lane is one vector
LANES = 16
MOST_LOW_BITS = 13  # where the mean of a block is 2**15 or more
HIGH_BITS = 2  # of the mean of a block, below its first, go to the byte: packs best, of 0 to 4
MOST_SAMPLES = 1 << 30
SCRATCH_SAMPLES = 1 << 23
Mosaic = NDArray[np.uint16]

_own = threading.local()
_i32 = np.int32
# Matches in noise only cost: a long least match and a small table leave Huffman codes, which decode twice as fast
_PARAMETERS = {"strategy": zstandard.STRATEGY_FAST, "min_match": 7, "hash_log": 6, "window_log": 17}


def encode(mosaic: Mosaic) -> bytes:
    """Bytes of a mosaic: (H, W) uint16 -> bytes; the same on every machine with the same zstd."""
    if mosaic.ndim != 2 or mosaic.dtype != np.uint16 or not 0 < mosaic.size <= MOST_SAMPLES:
        raise ValueError(f"expected (H, W) uint16 of 1 to {MOST_SAMPLES} samples, found {mosaic.shape} {mosaic.dtype}")
    height, width = mosaic.shape
    if height % 2 or width % 2:
        mosaic = np.pad(mosaic, ((0, height % 2), (0, width % 2)), mode="edge")
    blocks = _blocks(height, width)
    high = np.empty(blocks * (BLOCK + 1), np.uint8)
    low = np.empty(blocks * BLOCK, np.uint16)
    words = _encode(mosaic, high[:blocks], high[blocks:], low)
    packer = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(**_PARAMETERS))
    packed = packer.compress(high.data)
    plain = low[:words].astype("<u2", copy=False).tobytes()
    head = HEAD.pack(MAGIC, height, width, len(packed), 0)[:-8]
    digest = xxhash.xxh3_64(head)
    digest.update(packed)
    digest.update(plain)
    return b"".join([head, struct.pack("<Q", digest.intdigest()), packed, plain])


def shape(data: bytes) -> tuple[int, int]:
    """(H, W) of an encoded mosaic, from its head; ShardError if it is none."""
    return _head(data)[:2]


def decode(data: bytes) -> Mosaic:
    """The mosaic of bytes that `encode` gave: (H, W) uint16. ShardError for any other bytes."""
    height, width = shape(data)
    planes = _planes(data)
    mosaic = np.empty((height, width), np.uint16)
    _join(planes, mosaic)
    return mosaic


def decode_planes(data: bytes) -> NDArray[np.uint16]:
    """Its four sites apart: (4, H/2, W/2) uint16, of rows and columns (0, 0), (0, 1), (1, 0), (1, 1); H, W even.

    It is what `decode` gives, without putting the sites together first.
    """
    height, width = shape(data)
    if height % 2 or width % 2:
        raise ValueError(f"{height} x {width} has no four equal planes: H and W must be even")
    return _planes(data)


def _planes(data: bytes) -> NDArray[np.uint16]:
    """The four sites apart; where H or W is odd, the last row or column of some is only there to fill them up."""
    height, width, low_bits, high, low = _parts(data)
    left = _scratch(high.size)
    _unfold(low_bits, high, low, left)
    planes = np.empty((4, (height + 1) // 2, (width + 1) // 2), np.uint16)
    _add_up(left, planes)
    return planes


def _scratch(samples: int) -> NDArray[np.uint16]:
    """Memory that a thread uses again: fresh pages of a window cost a tenth of its decoding."""
    if samples > SCRATCH_SAMPLES:
        return np.empty(samples, np.uint16)
    kept: NDArray[np.uint16] | None = getattr(_own, "scratch", None)
    if kept is None or len(kept) < samples:
        kept = _own.scratch = np.empty(samples, np.uint16)
    return kept[:samples]


def _blocks(height: int, width: int) -> int:
    return -(-4 * ((height + 1) // 2) * ((width + 1) // 2) // BLOCK)


def _head(data: bytes) -> tuple[int, int, int, int]:
    """Height, width, bytes of the packed part, and checksum."""
    if len(data) < HEAD.size or data[:4] != MAGIC:
        raise ShardError(f"not a mosaic: expected {MAGIC!r} and a head of {HEAD.size} bytes, found {bytes(data[:4])!r}")
    _, height, width, packed_bytes, checksum = HEAD.unpack_from(data)
    if not 0 < height * width <= MOST_SAMPLES:
        raise ShardError(f"not a mosaic: its head says {height} x {width}")
    return height, width, packed_bytes, checksum


def _parts(data: bytes) -> tuple[int, int, NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16]]:
    """Height, width, low bits by block, high bytes, words of low bits: of sizes that fit each other."""
    height, width, packed_bytes, checksum = _head(data)
    digest = xxhash.xxh3_64(data[: HEAD.size - 8])
    digest.update(memoryview(data)[HEAD.size :])
    if digest.intdigest() != checksum:
        raise ShardError(f"a mosaic of {height} x {width} is damaged: its checksum is not that of its bytes")
    blocks = _blocks(height, width)
    packed = memoryview(data)[HEAD.size : HEAD.size + packed_bytes]
    try:
        if zstandard.frame_content_size(packed) != blocks * (BLOCK + 1):
            raise ShardError("a mosaic is damaged: its packed part is of another size")
        high = np.frombuffer(zstandard.ZstdDecompressor().decompress(packed), np.uint8)
    except zstandard.ZstdError as exc:
        raise ShardError(f"a mosaic is damaged: {exc}") from None
    low_bits, high = high[:blocks], high[blocks:]
    words = LANES * int(low_bits.sum(dtype=np.int64))
    if low_bits.max() > MOST_LOW_BITS or len(data) != HEAD.size + packed_bytes + 2 * words:
        raise ShardError("a mosaic is damaged: its plain part is of another size")
    low = np.frombuffer(data, "<u2", count=words, offset=HEAD.size + packed_bytes)
    return height, width, low_bits, high, low.astype(np.uint16, copy=False)


@jit
def _encode(mosaic, low_bits, high, low):  # type: ignore[no-untyped-def]
    """Fills the low bits by block, the high bytes, and the words of low bits; gives how many words. H, W even."""
    height, width = mosaic.shape
    folded = np.zeros(high.size, np.uint16)
    n = 0
    for site in range(4):
        dy, dx = site // 2, site % 2
        for y in range(dy, height, 2):
            here, above = mosaic[y, dx::2], mosaic[max(y - 2, dy), dx::2]
            told = _i32(above[0]) if y >= 2 else _i32(0)
            for x in range(width // 2):
                if x > 0:
                    west = _i32(here[x - 1])
                    north, corner = (_i32(above[x]), _i32(above[x - 1])) if y >= 2 else (west, west)
                    told = max(min(west, north), min(max(west, north), _i32(west + north - corner)))
                left = _i32(np.int16(_i32(_i32(here[x]) - told)))
                folded[n + x] = np.uint16((left << 1) ^ (left >> 31))
            n += width // 2
    words = 0
    for b in range(low_bits.size):
        block = folded[b * 256 : b * 256 + 256]
        total, most = np.int64(0), np.int64(0)
        for i in range(256):
            total += block[i]
            most = max(most, np.int64(block[i]))
        bits = 0
        while (total >> 8) >> (bits + HIGH_BITS + 1) or most >> (bits + 8):
            bits += 1
        low_bits[b] = bits
        for i in range(256):
            high[b * 256 + i] = block[i] >> bits
        out = low[words : words + bits * 16]
        out[:] = 0
        mask = (1 << bits) - 1
        for step in range(16):
            word, shift = (step * bits) >> 4, (step * bits) & 15
            for lane in range(16):
                value = np.uint32(block[step * 16 + lane] & mask)
                if bits:
                    out[word * 16 + lane] |= np.uint16(value << shift)
                    if shift + bits > 16:
                        out[word * 16 + 16 + lane] |= np.uint16(value >> (16 - shift))
        words += bits * 16
    return words


@jit
def _unfold(low_bits, high, low, left):  # type: ignore[no-untyped-def]
    """What the sites differ by from what is told of them, as int16 in uint16, one block after the other."""
    words = 0
    plain = np.zeros(256, np.uint16)  # of a block whose samples have low bits; other blocks do not look
    for b in range(low_bits.size):
        bits = low_bits[b]
        mask, up = np.uint16((1 << bits) - 1), np.uint16(bits)
        source = low[words : words + bits * 16]
        for step in range(16 if bits else 0):
            word, shift = ((step * bits) >> 4) * 16, np.uint16((step * bits) & 15)
            to = step * 16
            if shift + bits > 16:
                rest = np.uint16(16) - shift
                for lane in range(16):
                    both = (source[word + lane] >> shift) | (source[word + 16 + lane] << rest)
                    plain[to + lane] = np.uint16(both) & mask
            else:
                for lane in range(16):
                    plain[to + lane] = np.uint16(source[word + lane] >> shift) & mask
        tops, out = high[b * 256 : b * 256 + 256], left[b * 256 : b * 256 + 256]
        for i in range(256):
            v = np.uint16((plain[i] & mask) | np.uint16(np.uint16(tops[i]) << up))
            out[i] = (v >> np.uint16(1)) ^ np.uint16(-(v & np.uint16(1)))
        words += bits * 16


@jit
def _next(west, north, corner, left):  # type: ignore[no-untyped-def]
    """A sample from those beside it and what it differs by."""
    told = max(min(west, north), min(max(west, north), _i32(west + north - corner)))
    return _i32(np.uint16(told + _i32(left)))


@jit
def _add_up(left, planes):  # type: ignore[no-untyped-def]
    """Sites from what they differ by. Each sample waits for the one before it: four sites go side by side, 2.3 x."""
    height, width = planes.shape[1], planes.shape[2]
    for y in range(height):
        a, b, c, d = planes[0, y], planes[1, y], planes[2, y], planes[3, y]
        n, size = y * width, height * width
        e, f, g, h = left[n:], left[size + n :], left[2 * size + n :], left[3 * size + n :]
        if y == 0:
            s = t = u = v = _i32(0)
            for x in range(width):
                s, t = _i32(np.uint16(s + _i32(e[x]))), _i32(np.uint16(t + _i32(f[x])))
                u, v = _i32(np.uint16(u + _i32(g[x]))), _i32(np.uint16(v + _i32(h[x])))
                a[x], b[x], c[x], d[x] = s, t, u, v
            continue
        i, j, k, m = planes[0, y - 1], planes[1, y - 1], planes[2, y - 1], planes[3, y - 1]
        s = o = _i32(i[0])
        t = p = _i32(j[0])
        u = q = _i32(k[0])
        v = r = _i32(m[0])
        for x in range(width):
            s, o = _next(s, _i32(i[x]), o, e[x]), _i32(i[x])
            t, p = _next(t, _i32(j[x]), p, f[x]), _i32(j[x])
            u, q = _next(u, _i32(k[x]), q, g[x]), _i32(k[x])
            v, r = _next(v, _i32(m[x]), r, h[x]), _i32(m[x])
            a[x], b[x], c[x], d[x] = s, t, u, v


@jit
def _join(planes, mosaic):  # type: ignore[no-untyped-def]
    height, width = mosaic.shape
    for y in range(height):
        row, one, two = mosaic[y], planes[y % 2 * 2, y // 2], planes[y % 2 * 2 + 1, y // 2]
        for x in range(width // 2):
            row[2 * x] = one[x]
            row[2 * x + 1] = two[x]
        if width % 2:
            row[width - 1] = one[width // 2]


def warm() -> None:
    """Compile the kernels, or load them from the disk, before threads do."""
    tiny: Any = np.arange(6, dtype=np.uint16).reshape(2, 3)
    decode(encode(tiny))
