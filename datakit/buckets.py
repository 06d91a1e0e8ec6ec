"""Signatures sorted into buckets by a few of their bits, and the loops that compare buckets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .kernels import jit, near8, near64

Signatures = NDArray[np.uint64]
Rows = NDArray[np.int64]
Over = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]  # `map`, or that of a pool of threads
# How a pair of rows, one and other, is written: one first; the smaller first; other first; the larger first; other
# first, and only if it is the larger. Odd ones are swapped to fit.
ONE_FIRST, SMALLER_FIRST, OTHER_FIRST, LARGER_FIRST, ONLY_LARGER_OTHER = range(5)
PIECE = 1 << 18  # signatures of a task
_LOW_BITS = 13  # sorted last, each part in the L2 cache; dealing to 256 parts before that takes 2 ns, to 1,024 6 ns


class Side(NamedTuple):
    """Signatures and their rows. In tables 8 more signatures follow, which may be read, to no effect."""

    signatures: Signatures
    rows: NDArray[np.uint32]


class Table(NamedTuple):
    """Signatures by key, a few bits of theirs: those of key k are start[k] to start[k + 1]."""

    side: Side
    start: Rows

    def bucket(self, k: int) -> Side:
        these = slice(self.start[k], self.start[k + 1])
        return Side(self.side.signatures[these], self.side.rows[these])


def whole(side: Side) -> Table:
    """One bucket of all."""
    padded = np.append(side.signatures, np.zeros(8, np.uint64))
    return Table(Side(padded, side.rows), np.array([0, len(side.rows)]))


def bits_by_use(one: Signatures, other: Signatures, sample: int = 1 << 11) -> Rows:
    """Bits that tell signatures apart, the best first: those in which two, one of each, are least often alike."""
    shares = []
    for signatures in (one, other):
        some = np.ascontiguousarray(signatures[:: len(signatures) // sample + 1], "<u8")
        ones = np.unpackbits(some.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        shares.append(ones.mean(axis=0) if len(some) else np.zeros(64))
    alike = shares[0] * shares[1] + (1 - shares[0]) * (1 - shares[1])
    return np.argsort(alike, kind="stable") if (alike < 1).any() else np.zeros(0, np.int64)


def put_in(order: Rows) -> Signatures:
    """(8, 256): what a value of a byte adds to a signature whose bits are put in this order, the first highest."""
    shift = np.empty(64, np.uint64)
    shift[order] = np.arange(63, -1, -1)
    bit, value = np.arange(8, dtype=np.uint64)[:, None], np.arange(256, dtype=np.uint64)
    lookup = np.bitwise_or.reduce((value >> bit & np.uint64(1)) << shift.reshape(8, 8, 1), axis=1)
    return np.asarray(lookup)


def permuted(signatures: Signatures, lookup: Signatures, over: Over) -> Signatures:
    out = np.empty(len(signatures), np.uint64)
    starts = range(0, len(out), PIECE)
    list(over(lambda at: _permute(signatures[at : at + PIECE], lookup, out[at : at + PIECE]), starts))
    return out


def in_order(packed: Signatures, rows: int, over: Over) -> Signatures:
    """Sorted pairs: dealt by the high bits of the first row, of `rows`, then each part by numpy."""
    if len(packed) <= PIECE:
        return np.sort(packed)
    shift, dealt = 32 + max(rows.bit_length() - 8, 0), np.empty_like(packed)
    bounds = _deal(packed, None, shift, 256, dealt, None, over)
    list(over(lambda part: dealt[bounds[part] : bounds[part + 1]].sort(), range(256)))
    return dealt


def _deal(keys: Signatures, rows: Any, shift: int, parts: int, out_keys: Signatures, out_rows: Any, over: Over) -> Rows:
    """Deal by the bits above `shift` to parts, in order; gives where each begins."""
    slices = [slice(at, at + 4 * PIECE) for at in range(0, len(keys), 4 * PIECE)]
    counts = np.zeros((len(slices), parts), np.int64)
    list(over(lambda n: _count_digits(keys[slices[n]], shift, counts[n]), range(len(slices))))
    begins = np.ascontiguousarray(np.cumsum(counts.T.ravel()).reshape(parts, len(slices)).T - counts)
    bounds = np.append(begins[0], len(keys))

    def place(n: int) -> None:
        if rows is None:
            _scatter_keys(keys[slices[n]], shift, begins[n], out_keys)
        else:
            _scatter(keys[slices[n]], rows[slices[n]], shift, begins[n], out_keys, out_rows)

    list(over(place, range(len(slices))))
    return bounds


def argsort(keys: Signatures) -> Rows:
    """Rows in order of keys, equal ones in any order: dealt by the high bits, then each part in the cache by numpy."""
    if len(keys) <= PIECE:
        return np.argsort(keys)
    dealt, rows, out = np.empty_like(keys), np.empty(len(keys), np.uint32), np.empty(len(keys), np.int64)
    shift = max(int(keys.max()).bit_length() - 8, 0)
    with threads(len(keys)) as over:
        bounds = _deal(keys, np.arange(len(keys), dtype=np.uint32), shift, 256, dealt, rows, over)

        def settle(part: int) -> None:
            begin, end = bounds[part : part + 2]
            out[begin:end] = rows[begin:end][np.argsort(dealt[begin:end])]

        list(over(settle, range(256)))
    return out


def take(array: NDArray[Any], rows: Rows) -> NDArray[Any]:
    """Some rows of an array, by threads: most of the time goes into waiting for the memory."""
    out = np.empty((len(rows), *array.shape[1:]), array.dtype)

    def some(at: int) -> None:
        out[at : at + PIECE] = array[rows[at : at + PIECE]]

    with threads(len(rows)) as over:
        list(over(some, range(0, len(rows), PIECE)))
    return out


@contextmanager
def threads(count: int) -> Iterator[Over]:
    """What maps over pieces: a thread a core if there is much to do."""
    workers = len(os.sched_getaffinity(0))
    if count <= PIECE or workers == 1:
        yield map
    else:
        with ThreadPoolExecutor(workers) as pool:
            yield pool.map


class Maker:
    """Makes the tables of one side in turn, each in the memory of the one before."""

    def __init__(self, side: Side, lookup: Signatures, over: Over) -> None:
        n = len(side.rows)
        self.given = Side(permuted(side.signatures, lookup, over), side.rows)
        self.dealt = Side(np.empty(n, np.uint64), np.empty(n, np.uint32))
        self.sorted = Side(np.zeros(n + 8, np.uint64), np.empty(n, np.uint32))

    def table(self, shift: int, bits: int, over: Over) -> Table:
        """Sorted by the `bits` above `shift`: dealt by the high ones of these, then each part by the low ones."""
        low = min(bits, _LOW_BITS)
        parts = 1 << (bits - low)
        source, bounds = self.given, np.array([0, len(self.given.rows)])
        if parts > 1:
            bounds, source = _deal(*self.given, shift + low, parts, *self.dealt, over), self.dealt
        start = np.empty((1 << bits) + 1, np.int64)
        start[-1] = bounds[-1]

        def settle(first: int) -> None:
            _settle(*source, bounds, first, min(first + 4, parts), shift, 1 << low, *self.sorted, start)

        list(over(settle, range(0, parts, 4)))
        return Table(self.sorted, start)


@jit
def popcount(v):  # type: ignore[no-untyped-def]
    """LLVM knows this idiom, and makes one instruction of it."""
    v = v - ((v >> np.uint64(1)) & np.uint64(0x5555555555555555))
    v = (v & np.uint64(0x3333333333333333)) + ((v >> np.uint64(2)) & np.uint64(0x3333333333333333))
    v = (v + (v >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (v * np.uint64(0x0101010101010101)) >> np.uint64(56)


@jit
def count_near(signatures, query, radius):  # type: ignore[no-untyped-def]
    count = 0
    for i in range(signatures.size):
        if popcount(signatures[i] ^ query) <= radius:
            count += 1
    return count


@jit
def list_near(signatures, query, radius, first, rows, bits):  # type: ignore[no-untyped-def]
    n = 0
    for i in range(signatures.size):
        apart = popcount(signatures[i] ^ query)
        if apart <= radius:
            rows[n], bits[n] = first + i, apart
            n += 1


@jit
def _permute(signatures, lookup, out):  # type: ignore[no-untyped-def]
    for i in range(signatures.size):
        s, put = signatures[i], np.uint64(0)
        for byte in range(8):
            put |= lookup[byte, np.int64((s >> np.uint64(8 * byte)) & np.uint64(255))]
        out[i] = put


@jit
def _count_digits(signatures, shift, counts):  # type: ignore[no-untyped-def]
    for i in range(signatures.size):
        counts[np.int64(signatures[i] >> np.uint64(shift)) & (counts.size - 1)] += 1


@jit
def _scatter(signatures, rows, shift, begins, out_signatures, out_rows):  # type: ignore[no-untyped-def]
    for i in range(signatures.size):
        digit = np.int64(signatures[i] >> np.uint64(shift)) & (begins.size - 1)
        at = begins[digit]
        out_signatures[at], out_rows[at] = signatures[i], rows[i]
        begins[digit] = at + 1


@jit
def _scatter_keys(keys, shift, begins, out):  # type: ignore[no-untyped-def]
    for i in range(keys.size):
        digit = np.int64(keys[i] >> np.uint64(shift)) & (begins.size - 1)
        out[begins[digit]] = keys[i]
        begins[digit] += 1


@jit
def _settle(signatures, rows, bounds, first, last, shift, digits, out_signatures, out_rows, start):  # type: ignore[no-untyped-def]
    """Sort parts first to last by digit, and say where each digit of each begins."""
    begins = np.empty(digits, np.int64)
    for part in range(first, last):
        begin, end = bounds[part], bounds[part + 1]
        begins[:] = 0
        _count_digits(signatures[begin:end], shift, begins)
        at = begin
        for digit in range(digits):
            count = begins[digit]
            begins[digit], start[part * digits + digit] = at, at
            at += count
        _scatter(signatures[begin:end], rows[begin:end], shift, begins, out_signatures, out_rows)


@jit
def _emit(x, row, b, b_rows, j, near, order, priors, packed, n):  # type: ignore[no-untyped-def]
    """Write down the pairs of a row and those of b[j : j + 8] that are near, if they are not found elsewhere."""
    lane = 0
    while near:
        if near & 1:
            apart, new = x ^ b[j + lane], True
            for p in range(priors.shape[0]):
                if popcount(apart & priors[p, 0]) <= priors[p, 1]:
                    new = False
            one, other = np.uint64(row), np.uint64(b_rows[j + lane])
            if order % 2 and other < one:
                one, other = other, one
            if new and (order != ONLY_LARGER_OTHER or one < other):
                if order <= SMALLER_FIRST:
                    packed[n] = (one << np.uint64(32)) | other
                else:
                    packed[n] = (other << np.uint64(32)) | one
                n += 1
        near >>= 1
        lane += 1
    return n


@jit
def join(a, a_rows, a_start, b, b_rows, b_start, flips, how, priors, at, packed, heavy):  # type: ignore[no-untyped-def]
    """Compare on from `at`: flip, k, and j and i within the buckets (-1: from their start). Gives how many pairs were
    written, and how many heavy buckets, when all is done or one of the two is full."""
    radius, same, order, most, first, stop = np.uint64(how[0]), how[1], how[2], how[3], how[4], how[5]
    n, h = 0, 0
    e, k, j, i = at[0], at[1], at[2], at[3]
    while e < flips.size:
        flip = flips[e]
        while k < stop:
            other = k ^ flip
            a0, a1, b0, b1 = a_start[k], a_start[k + 1], b_start[other], b_start[other + 1]
            if a0 == a1 or b0 == b1 or (same and other < k):
                k += 1
                continue
            if (a1 - a0) * (b1 - b0) > most:
                if h == heavy.shape[0]:
                    at[0], at[1], at[2], at[3] = e, k, -1, -1
                    return n, h
                heavy[h, 0], heavy[h, 1] = k, other
                h += 1
                k += 1
                continue
            diagonal = same and flip == 0
            if j < 0:
                j = b0
            while j < b1:
                inside = 255 if b1 - j >= 8 else (1 << (b1 - j)) - 1
                if i < 0:
                    i = a0
                last = min(a1, j + 7) if diagonal else a1
                looked = i  # rows before it: some of 8 are near
                while i < last:
                    if i >= looked and (j >= i + 8 or not same):  # else the two eights overlap
                        if not near64(a, i, b, j, radius):
                            i += 8
                            continue
                        looked = i + 8
                    near = near8(b, j, a[i], radius)
                    if near:
                        near &= inside
                        if diagonal and i >= j:
                            near = near >> (i - j + 1) << (i - j + 1)
                        if near:
                            if n + 8 > packed.size:
                                at[0], at[1], at[2], at[3] = e, k, j, i
                                return n, h
                            n = _emit(a[i], a_rows[i], b, b_rows, j, near, order, priors, packed, n)
                    i += 1
                i = -1
                j += 8
            j = -1
            k += 1
        k = first
        e += 1
    at[0], at[1], at[2], at[3] = e, k, -1, -1
    return n, h
