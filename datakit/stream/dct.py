"""Coefficients of a JPEG to RGB: libjpeg's `jidctint.c`, `jdsample.c` ("fancy upsampling") and `jdcolor.c`, to the bit.

Of an image only what a crop needs is made. Loops are such that each becomes vectors: constants for shifts, no index
that might be negative for all the compiler knows, a loop a colour.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..kernels import jit

SIDE = 8  # px of a block
_u64, _i32 = np.uint64, np.int32
_ONE, _TWO = _u64(1), _u64(2)


@intrinsic
def inverse(_context, coefs, quants, component, plane, y, x):  # type: ignore[no-untyped-def]
    """The inverse DCT of coefs (64,) int16 times quants[component], as levels in plane[y : y + 8, x : x + 8].

    `jpeg_idct_islow` of libjpeg: Loeffler, Ligtenberg and Moschytz, ICASSP 1989, in 13 bits. Written as LLVM vectors.
    """

    def build(context: Any, b: Any, signature: Any, args: Any) -> Any:
        source, quant, to = (context.make_array(signature.args[n])(context, b, args[n]) for n in (0, 1, 3))
        stride = cgutils.unpack_tuple(b, to.shape)[1]
        narrow, wide = ir.VectorType(ir.IntType(16), SIDE), ir.VectorType(ir.IntType(32), SIDE)
        scale = b.gep(quant.data, [b.mul(args[2], args[2].type(64))])
        rows = []
        for n in range(SIDE):
            row = b.load(b.bitcast(b.gep(source.data, [args[2].type(8 * n)]), narrow.as_pointer()), align=2)
            by = b.load(b.bitcast(b.gep(scale, [args[2].type(8 * n)]), wide.as_pointer()), align=4)
            rows.append(b.mul(b.sext(row, wide), by))
        rows = _transposed(b, _pass(b, rows, 11))
        rows = _transposed(b, _pass(b, rows, 18))
        place = b.gep(to.data, [b.add(b.mul(args[4], stride), args[5])])
        bytes_ = ir.VectorType(ir.IntType(8), SIDE)
        low, high = _all(0), _all(255)
        for n, row in enumerate(rows):
            level = b.add(row, _all(128))
            level = b.select(b.icmp_signed("<", level, low), low, level)
            level = b.select(b.icmp_signed(">", level, high), high, level)
            where = b.gep(place, [b.mul(stride, stride.type(n))])
            b.store(b.trunc(level, bytes_), b.bitcast(where, bytes_.as_pointer()), align=1)
        return context.get_dummy_value()

    n = types.int64
    return types.void(coefs, quants, n, plane, n, n), build


def _all(value: int) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), SIDE), [value] * SIDE)


def _pass(b: Any, v: list[Any], shift: int) -> list[Any]:
    """One dimension of the inverse DCT, of eight lines at once, rounded and shifted to the right."""

    def times(value: Any, factor: float) -> Any:
        return b.mul(value, _all(round(factor * 8192)))

    def sum_of(*values: Any) -> Any:
        total = values[0]
        for value in values[1:]:
            total = b.add(total, value)
        return total

    z1 = times(b.add(v[2], v[6]), 0.541196100)
    t2, t3 = b.add(z1, times(v[6], -1.847759065)), b.add(z1, times(v[2], 0.765366865))
    t0, t1 = b.shl(b.add(v[0], v[4]), _all(13)), b.shl(b.sub(v[0], v[4]), _all(13))
    even = [b.add(t0, t3), b.add(t1, t2), b.sub(t1, t2), b.sub(t0, t3)]
    z5 = times(sum_of(v[7], v[3], v[5], v[1]), 1.175875602)
    z1, z2 = times(b.add(v[7], v[1]), -0.899976223), times(b.add(v[5], v[3]), -2.562915447)
    z3 = b.add(times(b.add(v[7], v[3]), -1.961570560), z5)
    z4 = b.add(times(b.add(v[5], v[1]), -0.390180644), z5)
    odd = [
        sum_of(times(v[1], 1.501321110), z1, z4),
        sum_of(times(v[3], 3.072711026), z2, z3),
        sum_of(times(v[5], 2.053119869), z2, z4),
        sum_of(times(v[7], 0.298631336), z1, z3),
    ]
    half = _all(1 << (shift - 1))
    out = [b.add(e, o) for e, o in zip(even, odd, strict=True)]
    out += [b.sub(e, o) for e, o in zip(even[::-1], odd[::-1], strict=True)]
    return [b.ashr(b.add(value, half), _all(shift)) for value in out]


def _transposed(b: Any, rows: list[Any]) -> list[Any]:
    """Eight vectors of eight, rows for columns: of each two that are 4, 2, 1 apart halves, quarters, eighths change."""
    for apart in (4, 2, 1):
        pairs = [(n, n + apart) for n in range(SIDE) if not n & apart]
        kept = [n if not n & apart else n - apart + SIDE for n in range(SIDE)]
        other = [n + apart if not n & apart else n + SIDE for n in range(SIDE)]
        for low, high in pairs:
            one, two = rows[low], rows[high]
            mask = ir.VectorType(ir.IntType(32), SIDE)
            rows[low] = b.shuffle_vector(one, two, ir.Constant(mask, kept))
            rows[high] = b.shuffle_vector(one, two, ir.Constant(mask, other))
    return rows


@jit
def _chroma(plane, y, width, height, wide, high, low, after, sums, line):  # type: ignore[no-untyped-def]
    """Chroma of px of a row of luma, those of chroma columns low..after, in line: a triangle over the nearest ones."""
    near = plane[min(y >> (high - 1), height - 1)]
    if wide == 1:
        line[low:after] = near[low:after]
        return
    first, end = max(low - 1, 0), min(after + 1, width)
    total = sums[first + 1 : end + 1]
    near = near[first:end]
    if high == 1:
        total[:] = near
    else:
        far = plane[max((y >> 1) - 1, 0) if y & 1 == 0 else min((y >> 1) + 1, height - 1)][first:end]
        for c in range(len(total)):
            total[c] = _i32(3) * _i32(near[c]) + _i32(far[c])
    if first == 0:
        sums[0] = sums[1]
    if end == width:
        sums[end + 1] = sums[end]
    before, here, behind = sums[low:after], sums[low + 1 : after + 1], sums[low + 2 : after + 2]
    to = line[2 * low : 2 * after]
    if high == 1:  # the shifts are constants: with a variable the loop takes four times as long
        for c in range(_u64(after - low)):
            to[c + c] = (_i32(3) * here[c] + before[c] + _i32(1)) >> _i32(2)
            to[c + c + _ONE] = (_i32(3) * here[c] + behind[c] + _i32(2)) >> _i32(2)
    else:
        for c in range(_u64(after - low)):
            to[c + c] = (_i32(3) * here[c] + before[c] + _i32(8)) >> _i32(4)
            to[c + c + _ONE] = (_i32(3) * here[c] + behind[c] + _i32(7)) >> _i32(4)


@jit
def colours(luma, blue, red, sizes, box, sums, lines, rgb, out):  # type: ignore[no-untyped-def]
    """RGB of the px of a box (left, top, right, bottom) in out (H, W, 3), from planes that have what it needs."""
    wide, high, components, width, height = sizes  # the last two of chroma that belongs to the image
    left, top, right, bottom = box
    low, after = left >> (wide - 1), ((right - 1) >> (wide - 1)) + 1
    of_blue, of_red = lines[0], lines[1]
    for y in range(top, bottom):
        line = luma[y][left:right]
        to = out[y].reshape(-1)[3 * left : 3 * right]
        if components == 1:
            _together(line, line, line, to)
            continue
        _chroma(blue, y, width, height, wide, high, low, after, sums, of_blue)
        _chroma(red, y, width, height, wide, high, low, after, sums, of_red)
        _rgb(line, of_blue[left:right], of_red[left:right], rgb, to)


@jit
def _rgb(luma, blue, red, rgb, out):  # type: ignore[no-untyped-def]
    """A row of colours from one of YCbCr. A loop a colour, and one to put them together: all four become vectors."""
    count, half, zero, most = len(luma), _i32(32768), _i32(0), _i32(255)
    red_line, green_line, blue_line = rgb[0], rgb[1], rgb[2]
    for x in range(count):
        level = _i32(luma[x]) + ((_i32(91881) * (red[x] - _i32(128)) + half) >> _i32(16))
        red_line[x] = min(max(level, zero), most)
    for x in range(count):
        less = _i32(22554) * (blue[x] - _i32(128)) + _i32(46802) * (red[x] - _i32(128))
        green_line[x] = min(max(_i32(luma[x]) + ((half - less) >> _i32(16)), zero), most)
    for x in range(count):
        level = _i32(luma[x]) + ((_i32(116130) * (blue[x] - _i32(128)) + half) >> _i32(16))
        blue_line[x] = min(max(level, zero), most)
    _together(red_line, green_line, blue_line, out)


@jit
def _together(red, green, blue, out):  # type: ignore[no-untyped-def]
    """Px from lines of their colours. Unsigned numbers: for all the compiler knows 3 x might be negative else."""
    for x in range(_u64(len(out) // 3)):
        at = x + x + x
        out[at] = red[x]
        out[at + _ONE] = green[x]
        out[at + _TWO] = blue[x]
