"""Licences of samples, and which of them are asked for.

A sample has a list: its own collection's licence first, then those of collections that say something of the same image,
and of copies with equal pixels that it was kept instead of. It is under a licence that is asked for if any of them is:
the same pixels were offered on those terms, and a build that asks for it would have kept that copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import translate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .errors import RecipeError

UNSTATED = "unstated"  # what a collection says that says nothing
NAME = "licences"  # field of `Sample`
BETWEEN = "\x1f"  # no licence has it in its name


def spelled(licence: str) -> str:
    """A licence on one line: publishers' own words may have several."""
    return " ".join(licence.split())


class Asked:
    """Licences that are asked for: names, or patterns with * and ? as in CC-BY-*; capitals and blanks do not matter.

    "unstated" and "" are what only the very word asks for, no pattern.
    """

    def __init__(self, names: str | Iterable[str]) -> None:
        self.given = tuple(spelled(name) for name in ([names] if isinstance(names, str) else names))
        self.names = {name.lower() for name in self.given}
        self.patterns = [re.compile(translate(name)) for name in self.names if set(name) & set("*?[")]
        self.known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self.names)

    def includes(self, licence: str) -> bool:
        """Whether a licence is one of them."""
        if licence not in self.known:
            name = spelled(licence).lower() or UNSTATED
            fits = name != UNSTATED and any(pattern.match(name) for pattern in self.patterns)
            self.known[licence] = fits or name in self.names
        return self.known[licence]

    def any_of(self, licences: Sequence[str] | None) -> bool:
        """Whether one of a sample's licences is; a sample with none is under none that is stated."""
        return any(self.includes(name) for name in licences or (UNSTATED,))

    def rows(self, records: pa.Table, where: object) -> NDArray[np.bool_]:
        """Which records are under one of them, (N,). RecipeError where they do not tell."""
        if NAME not in records.column_names:
            raise RecipeError(f"{where}: its records have no licences. Build the set again")
        numbers, lists = distinct(records.column(NAME))
        fits = np.array([self.any_of(names) for names in lists], bool)
        out: NDArray[np.bool_] = fits[numbers]
        return out

    def met(self) -> str:
        """The licences that were looked at, each on one line."""
        return ", ".join(sorted({spelled(name) for name in self.known}))

    def __str__(self) -> str:
        return ", ".join(self.given)


def distinct(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[list[str]]]:
    """Lists of licences as numbers of those that occur, and these."""
    texts = pc.binary_join(column, BETWEEN).fill_null("").combine_chunks().dictionary_encode()
    lists = [text.split(BETWEEN) if text else [] for text in texts.dictionary.to_pylist()]
    return texts.indices.to_numpy(), lists
