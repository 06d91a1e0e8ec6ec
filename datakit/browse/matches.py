"""Which records a question is about: facets they must have, ranges their numbers must lie in."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DatakitError
from .columns import Columns

BLOCK = 1 << 16  # rows whose flags and numbers stay in the cache of a core
REMEMBERED = 8  # questions whose answers are held, a byte a record each
Rows = NDArray[np.int64]


class BadQuestion(DatakitError):
    """What was asked cannot be: the words say why."""


class Question(NamedTuple):
    """facets: name and the values that will do. ranges: name, lowest and highest, both of them included."""

    facets: tuple[tuple[str, tuple[str, ...]], ...] = ()
    ranges: tuple[tuple[str, float, float], ...] = ()


def question_of(asked: Mapping[str, Sequence[str]], columns: Columns) -> Question:
    """The question that `source=air&reason=dark&reason=flat&entropy_bits=2..5` asks."""
    facets, ranges = [], []
    for name, values in sorted(asked.items()):
        if name in columns.facets:
            facets.append((name, tuple(sorted(set(values)))))
        elif name in columns.measures:
            if len(values) > 1:
                raise BadQuestion(f"{name}: one range can be asked for, not {len(values)}")
            ranges.append((name, *range_of(name, values[0])))
        else:
            raise BadQuestion(f"{name}: this set has {', '.join([*columns.facets, *columns.measures])}")
    return Question(tuple(facets), tuple(ranges))


def range_of(name: str, text: str) -> tuple[float, float]:
    """Two numbers from `2..5`, `..5` or `2..`."""
    low, dots, high = text.partition("..")
    try:
        found = float(low) if low else -math.inf, float(high) if high else math.inf
    except ValueError:
        found = math.nan, math.nan
    if not dots or not (low or high) or not found[0] <= found[1]:
        raise BadQuestion(f"{name}={text[:40]}: write LOW..HIGH, LOW.. or ..HIGH, as in {name}=0.5..2")
    return found


class Matches(NamedTuple):
    """The records that a question is about."""

    flags: NDArray[np.bool_]  # (N,)
    begins: Rows  # how many there are before each block, and in all

    @property
    def total(self) -> int:
        return int(self.begins[-1])

    def rows(self, offset: int, count: int) -> Rows:
        """Some of them, in order: only the blocks that they lie in are looked at."""
        found = [np.zeros(0, np.int64)]
        stop = min(offset + count, self.total)
        while offset < stop:
            block = int(np.searchsorted(self.begins, offset, side="right")) - 1
            mine = np.flatnonzero(self.flags[block * BLOCK : (block + 1) * BLOCK]) + block * BLOCK
            some = mine[offset - self.begins[block] :][: stop - offset]
            found.append(some)
            offset += len(some)
        return np.concatenate(found)


class Finder:
    """Answers questions about columns; remembers the last answers."""

    def __init__(self, columns: Columns) -> None:
        self.columns, self.lock = columns, threading.Lock()
        self.known: OrderedDict[Question, Matches] = OrderedDict()

    def __call__(self, question: Question) -> Matches:
        with self.lock:
            if question in self.known:
                self.known.move_to_end(question)
                return self.known[question]
        made = self._made(question)
        with self.lock:
            self.known[question] = made
            while len(self.known) > REMEMBERED:
                self.known.popitem(last=False)
        return made

    def _made(self, question: Question) -> Matches:
        count = self.columns.count
        wanted = [self._wanted(name, values) for name, values in question.facets]
        ranges = [(self.columns.numbers(name), low, high) for name, low, high in question.ranges]
        flags = np.ones(count, bool)
        counts = []
        for begin in range(0, count, BLOCK):
            here, some = slice(begin, begin + BLOCK), flags[begin : begin + BLOCK]
            for codes, will_do in wanted:
                some &= will_do.take(codes[here])
            for numbers, low, high in ranges:
                if low > -math.inf:
                    some &= numbers[here] >= low
                some &= numbers[here] <= high  # of what is not known, too: NaN is in no range
            counts.append(int(np.count_nonzero(some)))
        return Matches(flags, np.cumsum([0, *counts]))

    def _wanted(self, name: str, values: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The codes of a facet, and which of them will do."""
        column = self.columns.coded(name)
        places = {value: n for n, value in enumerate(column.values)}
        will_do = np.zeros(len(places), bool)
        for value in values:
            if value not in places:
                raise BadQuestion(f"no {name} {value[:80]!r} in this set")
            will_do[places[value]] = True
        return column.codes, will_do

    def density(self, question: Question, box: tuple[float, float, float, float], across: int, down: int) -> Rows:
        """How many matching records have their middle in each cell of a box on the map: (down, across), from the north.

        box: west, south, east, north in degrees; a west that is over the east lies over the date line.
        """
        west, south, east, north = box
        wide = (east - west) % 360 or 360.0
        middles, flags = self.columns.middles(), self(question).flags
        total = np.zeros(across * down, np.int64)
        for begin in range(0, len(flags), BLOCK):
            here = slice(begin, begin + BLOCK)
            some = middles[here][flags[here] & ~np.isnan(middles[here, 0])]
            x, y = some[:, 0] - np.float32(west), (north - some[:, 1]) * (down / (north - south))
            x = np.where(x < 0, x + 360, x) * (across / wide)
            inside = (x <= across) & (y >= 0) & (y <= down)
            columns = np.minimum(x[inside].astype(np.int64), across - 1)
            lines = np.minimum(y[inside].astype(np.int64), down - 1)
            total += np.bincount(lines * across + columns, minlength=across * down)
        return total.reshape(down, across)
