"""Which rows to keep of those that look alike: stars around kept rows, not chains.

Rows come in order of preference. A row is dropped if it is near a kept row before it, and kept otherwise, so a row that
is itself dropped keeps nobody out. Rows are decided all at once from their pairs where these are few; else the first
rows are decided, as many as have few, the others near those of them that are kept are struck, and so on with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .buckets import LARGER_FIRST, ONLY_LARGER_OTHER, OTHER_FIRST, Side, popcount, take
from .hamming import MAX_RADIUS_BITS, check, packed_pairs
from .kernels import jit

Signatures = NDArray[np.uint64]
Rows = NDArray[np.int64]
Agree = Callable[..., NDArray[np.bool_]]  # (kept rows, rows), with signatures of several places also (places)
MOST_PLACES = 8
_ROW, _HEAD = np.uint64(35), np.uint64(3)  # a match: row << 35 | head << 3 | place
_ONE = np.uint64((1 << 29) - 1)
_AT_ONCE = 1 << 24  # signatures of several places that are searched for at once: 40 bytes each
_ASK = 1 << 20  # pairs of one call of `agree`
_ROUNDS = 6  # of asking only what surely matters
_SPARE = 1 << 16  # pairs beyond 4 a row


def stars(
    signatures: Signatures,
    radius_bits: int,
    agree: Agree | None = None,
    flat: NDArray[np.bool_] | None = None,
    digest: NDArray[Any] | None = None,
) -> tuple[Rows, NDArray[np.int8]]:
    """For each row, the most preferred kept row that it duplicates, itself if kept; and the place of that match.

    signatures: (N,) or (N, P): column 0 is the row as it is, column p the row turned by orientation p. A row duplicates
    a kept row k before it if for some p signatures[k, p] is within the radius of its signatures[row, 0] and
    agree(k, row), or agree(k, row, p) where there are places, says yes. Flat rows duplicate the first flat row of the
    same digest, and nothing else.
    """
    turned = signatures[:, None] if signatures.ndim == 1 else signatures
    if turned.ndim != 2 or not 1 <= turned.shape[1] <= MOST_PLACES or len(turned) > _ONE:
        raise ValueError(f"signatures are an array of {signatures.shape}: (N,) or (N, 1 to {MOST_PLACES}) is wanted")
    check(MAX_RADIUS_BITS, radius_bits, turned[:, 0])
    search = _Stars(turned, radius_bits, agree, signatures.ndim == 2)
    rows = np.arange(len(turned))
    if flat is not None and flat.any():
        if digest is None:
            raise ValueError("flat rows are told apart by their digests: none are given")
        search.kept[flat] = _first_of_equal(digest[flat], rows[flat])
        rows = rows[~flat]
    search.decide(rows)
    return search.kept, search.place


def keep_stars(
    signatures: Signatures,
    radius_bits: int,
    agree: Agree | None = None,
    flat: NDArray[np.bool_] | None = None,
    digest: NDArray[Any] | None = None,
) -> Rows:
    """For each row, the most preferred kept row that it duplicates: itself if kept."""
    return stars(signatures, radius_bits, agree, flat, digest)[0]


def _first_of_equal(digest: NDArray[Any], rows: Rows) -> Rows:
    if digest.ndim == 2:
        digest = np.ascontiguousarray(digest).view([("", digest.dtype)] * digest.shape[1])[:, 0]
    _, first, which = np.unique(digest, return_index=True, return_inverse=True)
    return rows[first[which]]


class _Stars:
    """What has been decided; kept[row] is the row itself while it is not dropped."""

    def __init__(self, signatures: Signatures, radius_bits: int, agree: Agree | None, with_places: bool) -> None:
        self.signatures, self.radius_bits = signatures, radius_bits
        self.agree, self.with_places = agree, with_places
        self.kept, self.place = np.arange(len(signatures)), np.zeros(len(signatures), np.int8)

    def decide(self, rows: Rows) -> None:
        """Decide rows, in ascending order, that are near no kept row before them all."""
        least = 64  # rows that have few pairs anyway
        while len(rows) > 1:
            count = len(rows)
            while (matches := self.matches(None, rows[:count], 4 * count + _SPARE)) is None:
                count = max(count // 4, min(least, count // 2))
            first, rows = rows[:count], rows[count:]
            self.settle(first, first, self.agreed(first, first, matches, True))
            rows = self.strike(first[self.kept[first] == first], rows)
            least = 4 * count  # large clusters are still there if all the others are too many

    def strike(self, heads: Rows, rows: Rows) -> Rows:
        """Drop the rows that duplicate a head: kept rows before them. Gives the others."""
        todo = [heads]
        while todo and len(rows):
            some = todo.pop()
            matches = self.matches(some, rows, (1 << 62) if len(some) == 1 else 4 * len(rows) + 16 * _SPARE)
            if matches is None:
                half = len(some) // 2
                todo += [some[half:], some[:half]]  # the first half next: what it drops, the other need not
            else:
                self.settle(some, rows, self.agreed(some, rows, matches, False))
                rows = rows[self.kept[rows] == rows]
        return rows

    def matches(self, heads: Rows | None, rows: Rows, most: int) -> Signatures | None:
        """Near pairs, by row, head and place; None if there are more than `most`. No heads: the rows, before others."""
        found = []
        for one, other, order in self.searches(heads, rows):
            pairs = packed_pairs(one, other, self.radius_bits, order, most)
            if pairs is None or len(pairs) > most:
                return None
            most -= len(pairs)
            found.append(pairs)
        return found[0] if len(found) == 1 else np.sort(np.concatenate(found))

    def searches(self, heads: Rows | None, rows: Rows) -> Iterator[tuple[Side, Side | None, int]]:
        """What to search for what, and the order of a pair. Places share a search: it sorts the rows once for all."""
        given, ones = self.side(rows, 0, 1), rows if heads is None else heads
        if heads is None:
            yield given, None, LARGER_FIRST
        step, places = max(1, _AT_ONCE // len(ones)), self.signatures.shape[1]
        for place in range(int(heads is None), places, step):
            one = self.side(ones, place, min(place + step, places))
            yield one, given, ONLY_LARGER_OTHER if heads is None else OTHER_FIRST

    def side(self, rows: Rows, first: int, stop: int) -> Side:
        """Signatures of rows at some places, numbered by row << 3 | place."""
        numbers = np.arange(len(rows), dtype=np.uint32)[:, None] << np.uint32(3) | np.arange(
            first, stop, dtype=np.uint32
        )
        return Side(take(self.signatures[:, first:stop], rows).ravel(), numbers.ravel())

    def agreed(self, heads: Rows, rows: Rows, matches: Signatures, same: bool) -> Signatures:
        """The matches, sorted, that `agree` says yes to; those that cannot matter are left out unasked.

        `same`: heads are the rows, and not yet decided. Only pairs with a head that is surely kept are asked for, the
        first of each row; after some rounds of that all that are left.
        """
        if self.agree is None:
            return matches
        told = []
        star = np.full(len(rows), len(heads))  # the first head known to be duplicated
        for _ in range(_ROUNDS):
            row, head = _row_head(matches)
            now = np.ones(len(matches), bool)
            if same:
                sure = star == len(heads)
                sure[row] = False
                now = sure[head]
            at = np.flatnonzero(now)
            first = at[np.append(True, row[at[1:]] != row[at[:-1]])[: len(at)]]
            only = np.full(len(rows), -1)
            only[row[first]] = head[first]
            now &= head == only[row]
            yes = self.ask(heads, rows, matches[now])
            told.append(yes)
            row_yes, head_yes = _row_head(yes)
            star[row_yes] = np.minimum(star[row_yes], head_yes)
            left = ~now & (head < star[row])
            if same:
                left &= star[head] == len(heads)
            matches = matches[left]
            if not len(matches):
                break
        told.append(self.ask(heads, rows, matches))
        return np.sort(np.concatenate(told))

    def ask(self, heads: Rows, rows: Rows, matches: Signatures) -> Signatures:
        """The matches that `agree` says yes to."""
        yes = np.zeros(len(matches), bool)
        for start in range(0, len(matches), _ASK):
            some = matches[start : start + _ASK]
            row, head = _row_head(some)
            places = ((some & np.uint64(7)).astype(np.int64),) if self.with_places else ()
            assert self.agree is not None
            yes[start : start + _ASK] = self.agree(heads[head], rows[row], *places)
        return matches[yes]

    def settle(self, heads: Rows, rows: Rows, matches: Signatures) -> None:
        _settle(heads, rows, matches, self.signatures, self.kept, self.place)


def _row_head(matches: Signatures) -> tuple[Rows, Rows]:
    return (matches >> _ROW).astype(np.int64), (matches >> _HEAD & _ONE).astype(np.int64)


@jit
def _settle(heads, rows, matches, signatures, kept, place):  # type: ignore[no-untyped-def]
    """Drop each row that matches a kept head: the first, by the place of least distance."""
    least = np.uint64(0)
    for m in range(matches.size):
        match = matches[m]
        row, head = rows[np.int64(match >> _ROW)], heads[np.int64(match >> _HEAD & _ONE)]
        p = np.int64(match & np.uint64(7))
        if kept[head] != head or (kept[row] != row and kept[row] != head):
            continue
        apart = popcount(signatures[head, p] ^ signatures[row, 0])
        if kept[row] == row or apart < least:
            kept[row], place[row], least = head, p, apart
