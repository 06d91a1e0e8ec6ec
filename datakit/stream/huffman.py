"""The Huffman codes of a baseline JPEG's scan (ITU-T T.81, whose sections are named below): bits to coefficients.

One table gives run, value and length of most coefficients at once, as in stb_image, and most often those of the next
one too: what takes time is that each look-up must wait for the one before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

from ..kernels import inlined, jit

LOOK = 10  # bits that are looked up at once: four tables are 32 kB, what the first cache has
WHOLE, END = 64, 128  # see `tabulate`
SLACK = 4096  # bytes after the data: what a damaged MCU may read before it is found out, six blocks of 64 times 4
_u64 = np.uint64
_TOP, _LAST, _WHOLE = _u64(64 - LOOK), _u64(63), _u64(WHOLE)
ZIGZAG = np.array(
    [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
     28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
     47, 55, 62, 63, *[64] * 192],
    np.uint64,
)  # fmt: skip


@jit
def tabulate(lengths, symbols, is_ac, table, longest):  # type: ignore[no-untyped-def]
    """Fill the tables of a Huffman code (T.81 C.2, F.2.2.3); False if it is none.

    table: what the next LOOK bits say, (1 << LOOK,) uint64.
        bits 0 to 5: their length; 6: WHOLE, if they have a value
        bits 8 to 15: `step`, how many coefficients on from the last one it is; END at the end of a block
        bits 32 to 47: the value
        bits 16 to 23 and 48 to 63: step and value of a second one; without one, 0 and the first once more
        bits 24 to 29: the length without a second one
    Where they are not whole, the value is the number of bits that it has, after them; where they do not even have the
    code, their length is 0.
    """
    code, at = 0, 0
    for length in range(1, 17):
        longest[length, 0], longest[length, 1] = -1, at - code
        for _ in range(lengths[length - 1]):
            if code >= 1 << length or at > 255:
                return False
            symbol = np.int64(symbols[at])
            step, size = ((symbol >> 4) + 1, symbol & 15) if is_ac else (0, symbol)
            if size > 15:
                return False
            if is_ac and size == 0:
                step = 16 if symbol == 0xF0 else END
            for rest in range(1 << max(LOOK - length, 0)) if length <= LOOK else range(0):
                value, entry = size, (step << 8) | length
                left = LOOK - length - size
                if left >= 0:
                    value = rest >> left & ((1 << size) - 1)
                    if size and value < 1 << (size - 1):
                        value -= (1 << size) - 1
                    entry = (step << 8) | WHOLE | (length + size) | (length + size) << 24
                value &= 0xFFFF
                table[code << (LOOK - length) | rest] = _u64(entry | value << 32 | value << 48)
            longest[length, 0] = code
            code, at = code + 1, at + 1
        code <<= 1
    longest[17, 0] = 1 << 62
    return True


@jit
def pair(table):  # type: ignore[no-untyped-def]
    """Put second values into a table of AC codes, where the bits that the first leaves are enough for one."""
    single = table.copy()
    for n in range(1 << LOOK):
        first = np.int64(single[n] & _u64(0xFFFFFFFF))
        length = first & 63
        if first & WHOLE and (first >> 8 & 255) != END and length < LOOK:
            second = np.int64(single[n << length & ((1 << LOOK) - 1)])
            if second & WHOLE and length + (second & 63) <= LOOK:
                entry = (first & 0x3F00FF40) | (length + (second & 63)) | (second >> 8 & 255) << 16
                values = (np.int64(single[n] >> _u64(32)) & 0xFFFF) << 32 | (second >> 32 & 0xFFFF) << 48
                table[n] = _u64(entry | values)


@intrinsic
def _eight(_context, data, at):  # type: ignore[no-untyped-def]
    """data[at : at + 8] as a number, the first byte highest. No bounds check."""

    def build(context: Any, b: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, b, args[0])
        place = b.bitcast(b.gep(array.data, [args[1]]), ir.IntType(64).as_pointer())
        return b.bswap(b.load(place, align=1))

    return types.uint64(data, types.int64), build


@intrinsic
def _put_eight(_context, out, at, number):  # type: ignore[no-untyped-def]
    """out[at : at + 8] = number, the highest byte first. No bounds check."""

    def build(context: Any, b: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, b, args[0])
        place = b.bitcast(b.gep(array.data, [args[1]]), ir.IntType(64).as_pointer())
        b.store(b.bswap(args[2]), place, align=1)
        return context.get_dummy_value()

    return types.void(out, types.int64, types.uint64), build


@jit
def clean(data, begin, out, restarts):  # type: ignore[no-untyped-def]
    """The scan without stuffed bytes (T.81 B.1.1.5) in out. Gives its length, -1 if it does not end as it should.

    restarts: where the data after each restart marker begins.
    """
    at, to, found, end = begin, 0, 0, len(data)
    ones, highs = _u64(0x0101010101010101), _u64(0x8080808080808080)
    while at < end:
        while at + 8 <= end:  # eight bytes at a time while none is FF
            inverse = ~_eight(data, at)
            if (inverse - ones) & ~inverse & highs:
                break
            _put_eight(out, to, ~inverse)
            at, to = at + 8, to + 8
        byte = data[at]
        out[to] = byte
        at, to = at + 1, to + 1
        if byte == 0xFF:
            after = data[at] if at < end else 0xFF
            at += 1
            if after == 0xD9:
                return to - 1
            if 0xD0 <= after <= 0xD7 and found < len(restarts) and after == 0xD0 + found % 8:
                to -= 1
                restarts[found] = to
                found += 1
            elif after != 0:
                return -1
    return -1


@inlined
def _long(bits, entry, longest, symbols, table, is_ac):  # type: ignore[no-untyped-def]
    """Value, step and length of what is not whole in its table; a step that ends nothing: there is no such code."""
    length, step, size = np.int64(entry & _u64(63)), np.int64(entry >> _u64(8)) & 255, np.int64(entry >> _u64(32)) & 15
    value = np.int64(0)
    if length == 0:
        length, step, size = np.int64(LOOK + 1), np.int64(100), np.int64(0)
        while length < 17 and np.int64(bits >> _u64(64 - length)) > longest[table, length, 0]:
            length += 1
        if length < 17:
            at = np.int64(bits >> _u64(64 - length)) + longest[table, length, 1]
            symbol = np.int64(symbols[table, at])
            step, size = ((symbol >> 4) + 1, symbol & 15) if is_ac else (np.int64(0), symbol)
            if is_ac and size == 0:
                step = np.int64(16 if symbol == 0xF0 else END)
    if size:
        value = np.int64(bits << _u64(length) >> _u64(64 - size))
        if value < 1 << (size - 1):
            value -= (1 << size) - 1
    return value, step, length + size


@inlined
def _more(data, pos, bits, left):  # type: ignore[no-untyped-def]
    """The reader with 56 bits or more: see `block`."""
    return pos + ((63 - left) >> 3), bits | _eight(data, pos) >> _u64(left), left | 56


@inlined
def block(data, pos, bits, left, tables, longest, symbols, table, coefs):  # type: ignore[no-untyped-def]
    """The coefficients of a block (T.81 F.2.2) in coefs (65,), which is 0; its DC is a difference.

    Gives the reader's new state, and whether the block is whole. pos: of the next byte; bits: `left` of them, the first
    highest. The end of a block, and what is damaged, write to the last of coefs.
    """
    pos, bits, left = _more(data, pos, bits, left)
    entry = tables[table, bits >> _TOP]
    value, length = np.int64(entry >> _u64(32)), np.int64(entry & _u64(63))
    k = _u64(0)
    if not entry & _WHOLE:
        value, step, length = _long(bits, entry, longest, symbols, table, False)
        k = _u64(step)
    coefs[0] = value
    bits <<= _u64(length)
    left -= length
    while k < _LAST:
        pos, bits, left = _more(data, pos, bits, left)
        for _ in range(56 // LOOK):
            entry = tables[table + 1, bits >> _TOP]
            if not entry & _WHOLE:  # it may take 31 bits
                pos, bits, left = _more(data, pos, bits, left)
                value, step, length = _long(bits, entry, longest, symbols, table + 1, True)
                k += _u64(step)
                coefs[ZIGZAG[k]] = value
                bits <<= _u64(length)
                left -= length
                break
            one = k + (entry >> _u64(8) & _u64(255))
            k = one + (entry >> _u64(16) & _u64(255))
            coefs[ZIGZAG[one]] = entry >> _u64(32)
            coefs[ZIGZAG[k]] = entry >> _u64(48)
            if k >= _LAST:
                used = entry & _u64(63)
                if one >= _LAST:  # what follows is of the next block
                    k, used = one, entry >> _u64(24) & _u64(63)
                bits <<= used
                left -= np.int64(used)
                break
            bits <<= entry & _u64(63)
            left -= np.int64(entry & _u64(63))
    return pos, bits, left, k == _LAST or k >= _u64(END)
