"""Loops over pixels, compiled by numba when first called and kept on disk. All arithmetic is in integers."""

from __future__ import annotations

import signal
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, event, types
from numba.extending import intrinsic

GRACE_PX = 8  # a JPEG block
PLAIN = 2  # levels from 0 or 255 that are black or white all the same
BITS = 22  # Pillow's fixed-point resampling: 32 - 8 - 2 (src/libImaging/Resample.c, PRECISION_BITS)
_i32 = np.int32
_HALF = np.int32(1 << (BITS - 1))
_RUN = 1000  # columns whose squares (of Laplacians: 1020**2) add up within 32 bits


class Untimed(event.Listener):  # type: ignore[misc]
    """Stops the timers of this process while numba compiles: that is no time of the image in hand."""

    TIMERS = (signal.ITIMER_PROF, signal.ITIMER_REAL)

    def __init__(self) -> None:
        self.left: list[list[float]] = []  # s of each timer; one function may be compiled for another

    def on_start(self, _: Any) -> None:
        self.left.append([signal.setitimer(timer, 0)[0] for timer in self.TIMERS])

    def on_end(self, _: Any) -> None:
        for timer, seconds in zip(self.TIMERS, self.left.pop(), strict=True):
            signal.setitimer(timer, seconds)


event.register("numba:compile", Untimed())


def jit(function: Any) -> Any:
    try:
        return nb.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written: compile every time
        return nb.njit(nogil=True)(function)


def inlined(function: Any) -> Any:
    """For functions called in an inner loop: a call counts the references to each array, by two atomic steps."""
    return nb.njit(inline="always")(function)


@jit
def _level(fixed):  # type: ignore[no-untyped-def]
    """A level of 0..255 from a sum in fixed point, clipped as Pillow clips it."""
    return min(max(fixed >> BITS, 0), 255)


@jit
def resize32(rgb, left, across, top, down):  # type: ignore[no-untyped-def]
    """The casts keep numba from widening to 64 bits, at half the speed; sums stay below 255 * 1.4 * 2**22 < 2**31."""
    height, width = rgb.shape[0], rgb.shape[1]
    taps, steps = across.shape[1], down.shape[1]
    narrow = np.zeros((3, 32, height + steps), np.int32)
    plane = np.zeros((6, width + taps), np.int32)  # weights past an edge are 0
    for y in range(0, height, 2):  # two rows share the loading of a weight; the one after an odd last is not used
        row, next_row = rgb[y].reshape(width * 3), rgb[min(y + 1, height - 1)].reshape(width * 3)
        p0, p1, p2, p3, p4, p5 = plane[0], plane[1], plane[2], plane[3], plane[4], plane[5]
        for x in range(width):
            p0[x], p1[x], p2[x] = row[3 * x], row[3 * x + 1], row[3 * x + 2]
        for x in range(width):
            p3[x], p4[x], p5[x] = next_row[3 * x], next_row[3 * x + 1], next_row[3 * x + 2]
        for o in range(32):
            w, x0 = across[o], left[o]
            q0, q1, q2 = p0[x0 : x0 + taps], p1[x0 : x0 + taps], p2[x0 : x0 + taps]
            q3, q4, q5 = p3[x0 : x0 + taps], p4[x0 : x0 + taps], p5[x0 : x0 + taps]
            s0, s1, s2, s3, s4, s5 = _HALF, _HALF, _HALF, _HALF, _HALF, _HALF
            for k in range(taps):
                s0, s3 = _i32(s0 + _i32(q0[k] * w[k])), _i32(s3 + _i32(q3[k] * w[k]))
                s1, s4 = _i32(s1 + _i32(q1[k] * w[k])), _i32(s4 + _i32(q4[k] * w[k]))
                s2, s5 = _i32(s2 + _i32(q2[k] * w[k])), _i32(s5 + _i32(q5[k] * w[k]))
            narrow[0, o, y], narrow[0, o, y + 1] = _level(s0), _level(s3)
            narrow[1, o, y], narrow[1, o, y + 1] = _level(s1), _level(s4)
            narrow[2, o, y], narrow[2, o, y + 1] = _level(s2), _level(s5)
    small = np.empty((32, 32, 3), np.uint8)
    for c in range(3):
        for o in range(32):
            w = down[o]
            for x in range(32):
                q = narrow[c, x, top[o] : top[o] + steps]
                s: Any = _HALF
                for k in range(steps):
                    s = _i32(s + _i32(q[k] * w[k]))
                small[o, x, c] = _level(s)
    return small


@jit
def measure(rgb, valid):  # type: ignore[no-untyped-def]
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


@jit
def band_sums(levels, valid):  # type: ignore[no-untyped-def]
    """Of (H, W, bands) uint8 or uint16, by band over valid pixels: sum, squares, min, max, (4, bands); how many px."""
    height, width, count = levels.shape
    masked = valid.shape[0] > 0
    bands = np.zeros((4, count), np.int64)
    bands[2] = 1 << 16
    pixels = np.int64(0)
    for y in range(height):
        for x in range(width):
            if masked and not valid[y, x]:
                continue
            pixels += 1
            for c in range(count):
                v = np.int64(levels[y, x, c])
                bands[0, c] += v
                bands[1, c] += v * v
                bands[2, c] = min(bands[2, c], v)
                bands[3, c] = max(bands[3, c], v)
    return bands, pixels


@jit
def square_error(one, other):  # type: ignore[no-untyped-def]
    a, b = one.reshape(one.size), other.reshape(other.size)
    total = np.int64(0)
    for i in range(a.size):
        d = _i32(_i32(a[i]) - _i32(b[i]))
        total += np.int64(_i32(d * d))
    return total


@jit
def box_sums(rows, factor):  # type: ignore[no-untyped-def]
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


@jit
def box_means(sums, height, width, factor):  # type: ignore[no-untyped-def]
    means = np.empty(sums.shape, np.uint8)
    for y in range(sums.shape[0]):
        for x in range(sums.shape[1]):
            area = np.uint32(min(factor, height - y * factor) * min(factor, width - x * factor))
            for c in range(3):
                means[y, x, c] = int((sums[y, x, c] + area // 2) / area)  # exact, and faster than dividing integers
    return means


@jit
def fill(r, g, b, within):  # type: ignore[no-untyped-def]
    """1: black, 2: white, 0: neither, in all three bands."""
    if r <= within and g <= within and b <= within:
        return 1
    if r >= 255 - within and g >= 255 - within and b >= 255 - within:
        return 2
    return 0


@jit
def goes_on(kind, r, g, b, tolerance, length, plain):  # type: ignore[no-untyped-def]
    """Whether a run of `length` px, of which `plain` are plainly black or white, takes in one more."""
    return fill(r, g, b, tolerance) == kind and (length < GRACE_PX or 2 * plain >= length)


@jit
def collar_sides(rows, collar, tolerance):  # type: ignore[no-untyped-def]
    """Mark the runs from left and right; gives pixels marked."""
    height, width = rows.shape[0], rows.shape[1]
    found = 0
    for y in range(height):
        for side in range(2):
            x, step = (0, 1) if side == 0 else (width - 1, -1)
            kind = fill(rows[y, x, 0], rows[y, x, 1], rows[y, x, 2], PLAIN)
            length, plain = 0, 0
            while kind and 0 <= x < width:
                r, g, b = rows[y, x, 0], rows[y, x, 1], rows[y, x, 2]
                if not goes_on(kind, r, g, b, tolerance, length, plain):
                    break
                collar[y, x] = True
                length += 1
                plain += 1 if fill(r, g, b, PLAIN) else 0
                x += step
            found += length
    return found


@jit
def collar_down(rows, collar, runs, tolerance, first):  # type: ignore[no-untyped-def]
    """Mark the runs from the top that go on; gives pixels marked. runs: (3, W): kind (0: ended), length, plain ones."""
    height, width = rows.shape[0], rows.shape[1]
    found = 0
    for x in range(width):
        if first:
            runs[0, x] = fill(rows[0, x, 0], rows[0, x, 1], rows[0, x, 2], PLAIN)
        for y in range(height):
            if not runs[0, x]:
                break
            r, g, b = rows[y, x, 0], rows[y, x, 1], rows[y, x, 2]
            if not goes_on(runs[0, x], r, g, b, tolerance, runs[1, x], runs[2, x]):
                runs[0, x] = 0
                break
            collar[y, x] = True
            found += 1
            runs[1, x] += 1
            runs[2, x] += 1 if fill(r, g, b, PLAIN) else 0
    return found


def _eight(context: Any, builder: Any, kind: Any, array: Any, position: Any) -> Any:
    """array[position : position + 8] as an LLVM vector; no bounds check."""
    place = builder.gep(context.make_array(kind)(context, builder, array).data, [position])
    return builder.load(builder.bitcast(place, ir.VectorType(ir.IntType(64), 8).as_pointer()), align=8)


def _apart(builder: Any, eight: Any, value: Any) -> Any:
    """By how many bits each of eight differs from a value."""
    one = builder.insert_element(ir.Constant(eight.type, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    same = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8))
    kind = ir.FunctionType(eight.type, [eight.type])
    count = cgutils.get_or_insert_function(builder.module, kind, "llvm.ctpop.v8i64")
    return builder.call(count, [builder.xor(eight, same)])


def _within(builder: Any, apart: Any, radius: Any) -> Any:
    limit = builder.insert_element(ir.Constant(apart.type, ir.Undefined), radius, ir.Constant(ir.IntType(32), 0))
    limits = builder.shuffle_vector(limit, limit, ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8))
    near = builder.icmp_unsigned("<=", apart, limits)
    return builder.zext(builder.bitcast(near, ir.IntType(8)), ir.IntType(64))


@intrinsic  # type: ignore[untyped-decorator]
def near8(_context: Any, array: Any, _position: Any, _value: Any, _radius: Any) -> Any:
    """Which of array[position : position + 8] are within `radius` bits of `value`: one bit each, the first lowest.

    Written as LLVM vectors: numba's own loop over 8 stays scalar, at 0.48 ns a comparison, not 0.08. No bounds check.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        eight = _eight(context, builder, signature.args[0], args[0], args[1])
        return _within(builder, _apart(builder, eight, args[2]), args[3])

    return types.int64(array, types.int64, types.uint64, types.uint64), build


@intrinsic  # type: ignore[untyped-decorator]
def near64(_context: Any, one: Any, _i: Any, other: Any, _j: Any, _radius: Any) -> Any:
    """Whether any of one[i : i + 8] is within `radius` bits of any of other[j : j + 8]: not 0. No bounds check."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = _eight(context, builder, signature.args[0], args[0], args[1])
        eight = _eight(context, builder, signature.args[2], args[2], args[3])
        least = None
        for lane in range(8):
            row = builder.extract_element(rows, ir.Constant(ir.IntType(32), lane))
            apart = _apart(builder, eight, row)
            least = apart if least is None else builder.select(builder.icmp_unsigned("<", apart, least), apart, least)
        return _within(builder, least, args[4])

    return types.int64(one, types.int64, other, types.int64, types.uint64), build
