"""Crop, resize, flip and normalise in one pass over the pixels of an image; the interpreter's lock is not held.

Antialiased resampling as Pillow and torchvision do it: a triangle or Keys' cubic (a = -0.5; "Cubic convolution
interpolation for digital image processing", 1981), as wide as the reduction, cut off at the edges of the crop and
normalised. Rows are made narrow before columns are made short, or the other way round, and rounded to levels between,
as Pillow 13 does (see `columns_first`), in float32 where Pillow has fixed point: within a level of it. No arithmetic is
reordered, so that pixels are the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..kernels import jit

BANDS = 4  # that are summed at a time: a vector of 128 bits
ROWS = 4  # whose sums share the loading of a weight
_f32 = np.float32
_whole, _vector = ir.IntType(32), ir.VectorType(ir.FloatType(), BANDS)


@intrinsic
def _weigh(_context, lines, start, step, weights, row, count, highest, out, at):  # type: ignore[no-untyped-def]
    """Levels of one px of 4 rows: out[r, at : at + 4] is the sum over k < count of

    lines[r, start + k * step :][:4] * weights[row, k], rounded and clipped to 0..highest. No bounds check. Written as
    LLVM vectors: numba's own loop over the bands stays scalar, and takes twice as long.
    """

    def build(context: Any, b: Any, signature: Any, args: Any) -> Any:
        lines, weights, out = (context.make_array(signature.args[n])(context, b, args[n]) for n in (0, 3, 7))
        width, length, next_row = (cgutils.unpack_tuple(b, array.shape)[1] for array in (weights, lines, out))
        weight = b.gep(weights.data, [b.mul(args[4], width)])
        places = [b.gep(lines.data, [b.add(args[1], b.mul(length, length.type(r)))]) for r in range(ROWS)]
        totals = [cgutils.alloca_once_value(b, ir.Constant(_vector, [0.5] * BANDS)) for _ in places]
        with cgutils.for_range(b, args[5]) as loop:
            every, beside = _every(b, b.load(b.gep(weight, [loop.index]))), b.mul(loop.index, args[2])
            for place, total in zip(places, totals, strict=True):
                four = b.load(b.bitcast(b.gep(place, [beside]), _vector.as_pointer()), align=4)
                b.store(b.fadd(b.load(total), b.fmul(four, every)), total)
        kind = ir.VectorType(context.get_data_type(signature.args[7].dtype), BANDS)
        lowest, most = ir.Constant(_vector, [0.0] * BANDS), _every(b, args[6])
        for r, total in enumerate(totals):
            level = b.load(total)
            level = b.select(b.fcmp_ordered(">", level, lowest), level, lowest)
            level = b.select(b.fcmp_ordered("<", level, most), level, most)
            to = b.gep(out.data, [b.add(args[8], b.mul(next_row, next_row.type(r)))])
            levels = b.trunc(b.fptosi(level, ir.VectorType(_whole, BANDS)), kind)
            b.store(levels, b.bitcast(to, kind.as_pointer()), align=1)
        return context.get_dummy_value()

    n = types.intp
    return types.void(lines, n, n, weights, n, n, types.float32, out, n), build


def _every(b: Any, value: Any) -> Any:
    """A vector of one value."""
    none = ir.Constant(_vector, ir.Undefined)
    one = b.insert_element(none, value, _whole(0))
    return b.shuffle_vector(one, none, ir.Constant(ir.VectorType(_whole, BANDS), [0] * BANDS))


@jit
def taps(size, wanted, cubic):  # type: ignore[no-untyped-def]
    """Of each of `wanted` px: the first of `size` px that it is made of, how many, and their weights."""
    scale = size / wanted
    stretch = max(scale, 1.0)
    support = (2.0 if cubic else 1.0) * stretch
    most = int(np.ceil(support)) * 2 + 1
    first, count = np.empty(wanted, np.int64), np.empty(wanted, np.int64)
    weights, raw = np.zeros((wanted, most), np.float32), np.empty(most, np.float64)
    for o in range(wanted):
        centre = (o + 0.5) * scale
        low, high = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), size)
        total = 0.0
        for k in range(low, high):
            x = abs((k - centre + 0.5) / stretch)
            if not cubic:
                w = max(1.0 - x, 0.0)
            elif x < 1.0:
                w = (1.5 * x - 2.5) * x * x + 1.0
            else:
                w = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 if x < 2.0 else 0.0
            raw[k - low] = w
            total += w
        for k in range(high - low):
            weights[o, k] = raw[k] / total
        first[o], count[o] = low, high - low
    return first, count, weights


@jit
def columns_first(width, height, cols, rows):  # type: ignore[no-untyped-def]
    """Whether columns are made short before rows are made narrow: Pillow 13's rule, found by trying; 12 never does."""
    return height > rows and height - rows > 2 * (width - cols)


@jit
def _sum_rows(levels, begin, first, count, weights, o, line):  # type: ignore[no-untyped-def]
    """Row o of the output: line (n,) float32, a half more than the weighted sum of rows of levels (h, begin + n…)."""
    y, n = first, len(line)
    for i in range(n):
        line[i] = _f32(0.5)
    k = 0
    while k + 1 < count[o]:
        w, v = weights[o, k], weights[o, k + 1]
        a, b = levels[y + k][begin : begin + n], levels[y + k + 1][begin : begin + n]
        for i in range(n):
            line[i] = line[i] + (_f32(a[i]) * w + _f32(b[i]) * v)
        k += 2
    if k < count[o]:
        w, a = weights[o, k], levels[y + k][begin : begin + n]
        for i in range(n):
            line[i] = line[i] + _f32(a[i]) * w


@jit
def _narrow(image, left, top, width, height, band, some, first, weights, count, narrow):  # type: ignore[no-untyped-def]
    """Rows of a window made as narrow as the output: bands band..band + some, into narrow (h + 3, cols * some + 4)."""
    bands, cols, n = image.shape[2], len(first), width * image.shape[2]
    highest = _f32(65535 if image.itemsize == 2 else 255)
    lines = np.zeros((ROWS, n + count * bands + BANDS), np.float32)  # what lies beyond the last px is weighed with 0
    for y in range(0, height, ROWS):
        for r in range(ROWS):
            levels = image[top + min(y + r, height - 1)].reshape(-1)[left * bands : left * bands + n]
            line = lines[r]
            for i in range(n):
                line[i] = levels[i]
        to = narrow[y : y + ROWS]
        for x in range(cols):
            _weigh(lines, first[x] * bands + band, bands, weights, x, count, highest, to, x * some)


@jit
def crop(image, left, top, width, height, flip, cubic, mul, add, out):  # type: ignore[no-untyped-def]
    """A window of an image, resized into `out`: level * mul[band] + add[band], of levels rounded and clipped.

    image: (H, W, C) uint8 or uint16, contiguous. out: (C, h, w) float32, or as the image (mul 1, add 0). The window
    must lie within the image; px, from its top left corner. flip: mirrored left to right.
    """
    bands, rows, cols = out.shape[0], out.shape[1], out.shape[2]
    highest = _f32(65535 if image.itemsize == 2 else 255)
    across, across_count, across_weights = taps(width, cols, cubic)
    if flip:
        across, across_weights = across[::-1].copy(), across_weights[::-1].copy()
    down, down_count, down_weights = taps(height, rows, cubic)
    most = across_count.max()  # of all px alike: weights beyond are 0, and a loop of one length is guessed right
    if columns_first(width, height, cols, rows):
        short, sums = np.empty((rows, width * bands), image.dtype), np.empty(width * bands, np.float32)
        flat = image.reshape(image.shape[0], -1)
        for o in range(rows):
            _sum_rows(flat, left * bands, top + down[o], down_count, down_weights, o, sums)
            to = short[o]
            for i in range(len(sums)):
                to[i] = min(max(np.floor(sums[i]), _f32(0)), highest)
        picture = short.reshape(rows, width, bands)
        for band in range(0, bands, BANDS):
            some = min(bands - band, BANDS)
            narrow = np.empty((rows + ROWS, cols * some + BANDS), image.dtype)
            _narrow(picture, 0, 0, width, rows, band, some, across, across_weights, most, narrow)
            for o in range(rows):
                for c in range(some):
                    px, m, s = out[band + c, o], mul[band + c], add[band + c]
                    for x in range(cols):
                        px[x] = _f32(narrow[o, x * some + c]) * m + s
        return
    for band in range(0, bands, BANDS):
        some = min(bands - band, BANDS)
        narrow, line = np.empty((height + ROWS, cols * some + BANDS), image.dtype), np.empty(cols * some, np.float32)
        _narrow(image, left, top, width, height, band, some, across, across_weights, most, narrow)
        for o in range(rows):
            _sum_rows(narrow, 0, down[o], down_count, down_weights, o, line)
            for c in range(some):
                to, m, s = out[band + c, o], mul[band + c], add[band + c]
                for x in range(cols):
                    to[x] = min(max(np.floor(line[x * some + c]), _f32(0)), highest) * m + s


@jit
def nearest(image, left, top, width, height, flip, out):  # type: ignore[no-untyped-def]
    """A window of an image of classes, (H, W) -> `out` (h, w): each px takes the value at its centre."""
    rows, cols = out.shape
    for o in range(rows):
        y = top + min(int((o + 0.5) * height / rows), height - 1)
        for x in range(cols):
            at = left + min(int((x + 0.5) * width / cols), width - 1)
            out[o, cols - 1 - x if flip else x] = image[y, at]


@jit
def turn_hue(levels, by):  # type: ignore[no-untyped-def]
    """Colours of (3, h, w) uint8 turned in place, by a share of the circle of HSV (Smith, SIGGRAPH 1978)."""
    rows, cols = levels.shape[1], levels.shape[2]
    for y in range(rows):
        for x in range(cols):
            r, g, b = _f32(levels[0, y, x]), _f32(levels[1, y, x]), _f32(levels[2, y, x])
            most, least = max(r, g, b), min(r, g, b)
            if most == least:
                continue
            span = most - least
            if most == r:
                hue = (g - b) / span
            elif most == g:
                hue = _f32(2) + (b - r) / span
            else:
                hue = _f32(4) + (r - g) / span
            hue = hue / _f32(6) + by
            hue = (hue - np.floor(hue)) * _f32(6)
            for c in range(3):  # each colour is a trapezoid over the circle, a third of it on from the one before
                k = (hue + _f32(5 - 2 * c)) % _f32(6)
                level = most - span * max(_f32(0), min(min(k, _f32(4) - k), _f32(1)))
                levels[c, y, x] = min(max(level + _f32(0.5), _f32(0)), _f32(255))


@jit
def jitter(levels, brightness, contrast, saturation, hue, first):  # type: ignore[no-untyped-def]
    """Colours of (3, h, w) uint8 changed in place, by factors of 1 and more or less: as torchvision's ColorJitter.

    hue: turned by so much of the circle, -0.5..0.5. first: which of brightness, contrast, saturation and hue (0 to 3)
    comes first; the others follow in turn. Each rounds.
    """
    rows, cols = levels.shape[1], levels.shape[2]
    for turn in range(4):
        which = (first + turn) % 4
        if which == 3:
            if hue != 0:
                turn_hue(levels, _f32(hue))
            continue
        factor = _f32(brightness if which == 0 else contrast if which == 1 else saturation)
        if factor == 1:
            continue
        mean = _f32(0)
        if which == 1:
            total = 0.0
            for y in range(rows):
                for x in range(cols):
                    total += 0.299 * levels[0, y, x] + 0.587 * levels[1, y, x] + 0.114 * levels[2, y, x]
            mean = _f32(np.floor(total / (rows * cols) + 0.5))
        for y in range(rows):
            for x in range(cols):
                r, g, b = _f32(levels[0, y, x]), _f32(levels[1, y, x]), _f32(levels[2, y, x])
                beside = mean
                if which == 2:
                    beside = _f32(0.299) * r + _f32(0.587) * g + _f32(0.114) * b
                rest = (_f32(1) - factor) * beside + _f32(0.5)
                levels[0, y, x] = min(max(r * factor + rest, _f32(0)), _f32(255))
                levels[1, y, x] = min(max(g * factor + rest, _f32(0)), _f32(255))
                levels[2, y, x] = min(max(b * factor + rest, _f32(0)), _f32(255))
