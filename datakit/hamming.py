"""All pairs of 64-bit signatures within a few bits of each other, exactly.

By pigeonhole (Qin et al., GPH, ICDE 2018): the bits are dealt to m blocks, and two signatures within r bits differ by
at most t bits in some block, where the thresholds t add up to r + 1 - m. The table of a block holds the signatures
sorted by some bits of it, and bucket k is compared with every bucket k ^ flip, flip having at most t bits. A pair
belongs to the first table that would find it. r = 4 takes 3 blocks with t = 1, 1, 0.
"""

from __future__ import annotations

import itertools
import threading
from math import isqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import buckets
from .buckets import ONE_FIRST, PIECE, SMALLER_FIRST, Over, Rows, Side, Signatures, Table, threads
from .errors import TooManyPairs

Pairs = NDArray[np.int64]  # (M, 2)
MAX_RADIUS_BITS = 6
_BUCKETS = 1 << 12  # of a task: 200 kB at 6 signatures a bucket, which stay in the L2 cache
_BUFFER = 1 << 18  # pairs
_FEW = 32  # signatures, to which all others are compared sooner than they are sorted
_PRODUCT = 1 << 16  # comparisons that are not worth a table
_HEAVY = 1 << 21  # comparisons of two buckets, 0.3 ms, that are worth one
_DEPTH = 6  # of tables within tables
_MOST_KEY_BITS = 22


class Hits(NamedTuple):
    """What a scan found, by query, then row."""

    row: Rows
    query: Rows
    distance_bits: Rows


def distance(a: ArrayLike, b: ArrayLike) -> NDArray[np.uint8]:
    """Differing bits, elementwise."""
    return np.asarray(np.bitwise_count(np.bitwise_xor(np.asarray(a, np.uint64), np.asarray(b, np.uint64))))


def near_pairs(signatures: Signatures, radius_bits: int, max_pairs: int | None = None) -> Pairs:
    """All pairs i < j within the radius (0 to 6 bits), (M, 2), sorted; TooManyPairs if more than `max_pairs`."""
    return unpacked(_searched(_side(signatures), None, radius_bits, SMALLER_FIRST, max_pairs).all())


def near_between(one: Signatures, other: Signatures, radius_bits: int, max_pairs: int | None = None) -> Pairs:
    """All (i in one, j in other) within the radius (0 to 6 bits), (P, 2), sorted."""
    return unpacked(_searched(_side(one), _side(other), radius_bits, ONE_FIRST, max_pairs).all())


def packed_pairs(one: Side, other: Side | None, radius_bits: int, order: int, max_pairs: int) -> Signatures | None:
    """The pairs of rows as first << 32 | second, sorted; None if more than `max_pairs`. No `other`: pairs of `one`."""
    search = _searched(one, other, radius_bits, order, max_pairs)
    return None if search.full else search.all()


def unpacked(packed: Signatures) -> Pairs:
    pairs = np.empty((len(packed), 2), np.int64)
    np.right_shift(packed, np.uint64(32), out=pairs[:, 0], casting="unsafe")
    np.bitwise_and(packed, np.uint64(0xFFFFFFFF), out=pairs[:, 1], casting="unsafe")
    return pairs


def scan(signatures: Signatures, query: ArrayLike, radius_bits: int) -> Hits:
    """Every signature within any radius (0 to 64 bits) of one query or of several: all are compared."""
    queries = np.atleast_1d(np.asarray(query))
    check(64, radius_bits, signatures, queries)

    def look(piece: tuple[int, int]) -> Hits:
        q, at = piece
        count = buckets.count_near(signatures[at : at + PIECE], queries[q], np.uint64(radius_bits))
        rows, bits = np.empty(count, np.int64), np.empty(count, np.int64)
        if count:
            buckets.list_near(signatures[at : at + PIECE], queries[q], np.uint64(radius_bits), at, rows, bits)
        return Hits(rows, np.full(count, q), bits)

    pieces = itertools.product(range(len(queries)), range(0, len(signatures), PIECE))
    with threads(len(signatures) * len(queries)) as over:
        found = [Hits(*(np.zeros(0, np.int64),) * 3), *over(look, pieces)]
    return Hits(*(np.concatenate(part) for part in zip(*found, strict=True)))


def check(most_bits: int, radius_bits: int, *arrays: Signatures) -> None:
    for given in arrays:
        if given.dtype != np.uint64 or given.ndim != 1 or len(given) >= 1 << 32:
            raise ValueError(f"signatures are an array of {given.shape} {given.dtype}: (N,) uint64 is wanted")
    if not 0 <= radius_bits <= most_bits:
        raise ValueError(f"radius_bits is {radius_bits}: 0 to {most_bits} can be searched exactly")


def _side(signatures: Signatures) -> Side:
    return Side(signatures, np.arange(len(signatures), dtype=np.uint32))


def _searched(one: Side, other: Side | None, radius_bits: int, order: int, max_pairs: int | None) -> _Search:
    both = (one, other or one)
    check(MAX_RADIUS_BITS, radius_bits, *(side.signatures for side in both))
    search = _Search(both, radius_bits, order, max_pairs)
    with threads(max(len(side.rows) for side in both)) as over:
        search.run(*both, np.zeros((0, 2), np.uint64), over, 0)
    return search


class _Search:
    """A search, and the pairs that it has found so far."""

    def __init__(self, both: tuple[Side, Side], radius_bits: int, order: int, max_pairs: int | None) -> None:
        self.both, self.radius_bits, self.order, self.max_pairs = both, radius_bits, order, max_pairs
        blocks = min(3, radius_bits + 1)
        spare = radius_bits + 1 - blocks
        self.thresholds = [spare // blocks + (n < spare % blocks) for n in range(blocks)]
        self.found: list[Signatures] = []
        self.count, self.full, self.lock = 0, False, threading.Lock()

    def all(self) -> Signatures:
        """Every pair, packed, sorted."""
        if self.full:
            raise TooManyPairs(self.too_many())
        packed = np.concatenate([np.zeros(0, np.uint64), *self.found])
        self.found.clear()
        with threads(len(packed)) as over:
            return buckets.in_order(packed, max(int(side.rows.max(initial=0)) for side in self.both), over)

    def too_many(self) -> str:
        """Which signature has most neighbours, of those that occur most often and those in most of the pairs found."""
        one, other = (side.signatures for side in self.both)
        values, counts = np.unique(one, return_counts=True)
        pairs = unpacked(np.concatenate(self.found)[: 1 << 22])
        degree = np.bincount(pairs[:, 0], minlength=len(one))
        if self.order == SMALLER_FIRST:
            degree += np.bincount(pairs[:, 1], minlength=len(one))
        likely = np.unique(np.append(values[np.argsort(-counts)[:16]], one[np.argsort(-degree)[:16]]))
        near = [int(buckets.count_near(other, value, np.uint64(self.radius_bits))) for value in likely]
        value, count = likely[np.argmax(near)], max(near) - (self.order == SMALLER_FIRST)
        return (
            f"more than {self.max_pairs} pairs are within {self.radius_bits} bits: the largest cluster is around"
            f" signature {value:#018x} (row {int(np.argmax(one == value))}), which has {count} neighbours;"
            " leave such records out first, or lower the radius"
        )

    def run(self, one: Side, other: Side, priors: Signatures, over: Over, depth: int) -> None:
        """Find the pairs, unless for some n they differ by at most priors[n, 1] bits of the mask priors[n, 0]."""
        order = buckets.bits_by_use(one.signatures, other.signatures)
        sizes = sorted((len(one.rows), len(other.rows)))
        if sizes[0] <= _FEW or sizes[0] * sizes[1] <= _PRODUCT or depth == _DEPTH or not len(order):
            left, right = buckets.whole(one), None if other is one else buckets.whole(other)
            self.compare(left, right, np.zeros(1, np.int64), priors, 0, 1)
            return
        blocks = [order[n :: len(self.thresholds)] for n in range(len(self.thresholds))]
        lookup = buckets.put_in(np.concatenate(blocks))
        priors = np.stack([buckets.permuted(priors[:, 0].copy(), lookup, map), priors[:, 1]], axis=1)
        makers = [buckets.Maker(side, lookup, over) for side in ((one,) if other is one else (one, other))]
        top = 64
        for block, threshold in zip(blocks, self.thresholds, strict=True):
            bits = min(len(block), _MOST_KEY_BITS, (isqrt(sizes[0] * sizes[1]) // 8 or 1).bit_length() - 1)
            self.join([maker.table(top - bits, bits, over) for maker in makers], bits, threshold, priors, over, depth)
            if self.full:
                return
            mask = ((1 << bits) - 1) << (top - bits)
            priors = np.append(priors, np.array([[mask, threshold]], np.uint64), axis=0)
            top -= len(block)

    def join(self, tables: list[Table], bits: int, threshold: int, priors: Signatures, over: Over, depth: int) -> None:
        """Compare all buckets of one table, or of two; those that are too large by tables of their own."""
        one, other = tables[0], tables[1] if len(tables) > 1 else None
        chosen = (c for n in range(threshold + 1) for c in itertools.combinations(range(bits), n))
        flips = np.array([sum(1 << bit for bit in c) for c in chosen])

        def task(first: int) -> Pairs:
            return self.compare(one, other, flips, priors, first, min(first + _BUCKETS, 1 << bits), _HEAVY)

        heavy = np.concatenate(list(over(task, range(0, 1 << bits, _BUCKETS))))
        sides = []
        for k, partner in heavy.tolist():
            left = one.bucket(k)
            sides.append((left, left if other is None and k == partner else (other or one).bucket(partner)))
        large = [len(left.rows) + len(right.rows) > PIECE for left, right in sides]
        for left, right in itertools.compress(sides, large):
            self.run(left, right, priors, over, depth + 1)
        small = itertools.compress(sides, [not one for one in large])
        list(over(lambda both: self.run(both[0], both[1], priors, map, depth + 1), small))

    def compare(
        self,
        one: Table,
        other: Table | None,
        flips: Rows,
        priors: Signatures,
        first: int,
        stop: int,
        heavy: int = 1 << 62,
    ) -> Pairs:
        """Compare buckets k, first <= k < stop, with k ^ flip; gives the (k, k ^ flip) left out as too heavy."""
        sides = (*one.side, one.start, *(other or one).side, (other or one).start)
        at, packed = np.array([0, first, -1, -1]), np.empty(_BUFFER, np.uint64)
        left_out, met = np.empty((1024, 2), np.int64), [np.zeros((0, 2), np.int64)]
        how = np.array([self.radius_bits, other is None, self.order, heavy, first, stop])
        while at[0] < len(flips) and not self.full:
            n, h = buckets.join(*sides, flips, how, priors, at, packed, left_out)
            met.append(left_out[:h].copy())
            with self.lock:
                self.found.append(packed[:n].copy())
                self.count += n
                self.full = self.max_pairs is not None and self.count > self.max_pairs
        return np.concatenate(met)
