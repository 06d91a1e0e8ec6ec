"""Several sets as one: their rows after each other."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RecipeError
from ..sample import digest
from .tars import Shard, Tars

Plain = str | Path | Sequence[str | Path]


class Mix:
    """Sources of a loader with weights: {source: weight}, or pairs of these. A weight counts as one of an overlay."""

    def __init__(self, sources: Mapping[Any, float] | Sequence[tuple[Plain, float]]) -> None:
        pairs = sources.items() if isinstance(sources, Mapping) else sources
        self.sources = [(source, float(weight)) for source, weight in pairs]
        for source, weight in self.sources:
            if not 0 <= weight < np.inf:
                raise RecipeError(f"mix: {source}: weight {weight}: 0 or more")
        if not self.sources:
            raise RecipeError("mix: no sources")


class Mixed(Tars):
    """Sets and their weights as one set, whose rows and shards are theirs after each other."""

    def __init__(self, sets: Sequence[tuple[Tars, float]]) -> None:
        self.sets = [tars for tars, _ in sets]
        self.weights = [weight for _, weight in sets]
        self.starts = np.cumsum([0, *map(len, self.sets)])
        self.firsts = np.cumsum([0, *(len(tars.shards) for tars in self.sets)])  # shard of each
        self.shards = [shard for tars in self.sets for shard in tars.shards]
        self.sizes = np.concatenate([tars.sizes for tars in self.sets])
        self.members = tuple(dict.fromkeys(member for tars in self.sets for member in tars.members))
        self.images = tuple(dict.fromkeys(member for tars in self.sets for member in tars.images))
        self.digest = digest(*(tars.digest for tars in self.sets))
        self.cache = next((tars.cache for tars in self.sets if tars.cache is not None), None)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def parts(self) -> list[tuple[int, float, Tars]]:
        mine = zip(self.starts.tolist(), self.weights, self.sets, strict=False)
        return [(start + n, weight * w, part) for start, weight, tars in mine for n, w, part in tars.parts]

    def at(self, row: int) -> tuple[Tars, int]:
        """The set that a row is of, and its row there."""
        n = int(np.searchsorted(self.starts, row, "right")) - 1
        return self.sets[n], row - int(self.starts[n])

    def ids(self, rows: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        wanted = np.arange(len(self))[rows] if isinstance(rows, slice) else rows
        found = np.empty(len(wanted), np.int64)
        for start, _, tars in self.parts:
            here = (wanted >= start) & (wanted < start + len(tars))
            found[here] = tars.ids(wanted[here] - start)
        return found

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        return [key for row in rows.tolist() for tars, own in [self.at(row)] for key in tars.keys(np.array([own]))]

    def where(self, row: int) -> str:
        tars, own = self.at(row)
        return tars.where(own)

    def shard_of(self, row: int) -> Shard:
        tars, own = self.at(row)
        return tars.shard_of(own)

    def has(self, row: int, member: str) -> bool:
        tars, own = self.at(row)
        return tars.has(own, member)

    def image_of(self, row: int) -> str | None:
        tars, own = self.at(row)
        return tars.image_of(own)

    def read(self, row: int, member: str) -> bytes:
        tars, own = self.at(row)
        return tars.read(own, member)

    def fetch(self, number: int, stop: threading.Event) -> None:
        n = int(np.searchsorted(self.firsts, number, "right")) - 1
        self.sets[n].fetch(number - int(self.firsts[n]), stop)
