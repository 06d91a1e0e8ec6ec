"""What no run may learn from: samples of splits that others are judged by, told by what builds write of each sample."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow.parquet as pq

from ..errors import RecipeError
from ..stream import Loader
from ..stream.overlay import Live
from ..stream.tars import Tars

TABLE = "samples.parquet"  # of a build
CHUNK = 1 << 16
NAMED = 5  # keys that an error lists
Split = tuple[str, str]  # source, split


def refuse(loader: Loader, splits: Sequence[str]) -> None:
    """RecipeError where a sample that counts is of one of some splits, as "aodraw:test", whole or a slice of it.

    Splits are those of a build's samples.parquet; without it, of the samples' own JSON, which is read of sets on disks.
    """
    if not splits:
        return
    found: list[str] = []
    for start, _, part in loader.tars.parts:
        told = partial(tabled, part) if (part.beside(TABLE)).is_file() else partial(written, part)
        for first, names in told():
            found += among(loader.live, start, part, first, names, splits)
    if found:
        some = ", ".join(found[:NAMED])
        raise RecipeError(
            f"data: {len(found)} samples are of {', '.join(splits)}, by which models are judged: {some}. Build without "
            "them in include_evaluation, or leave them out by an overlay that drops them"
        )


def among(live: Live, start: int, part: Tars, first: int, names: Sequence[Split], splits: Sequence[str]) -> list[str]:
    """Keys of rows from `first` on that count, and are of these splits."""
    held = np.array([f"{source}:{split}" in splits for source, split in names])
    if not held.any():
        return []
    rows = np.flatnonzero(held & (live.counts(start, first, first + len(names)) > 0))
    return part.keys(first + rows)


def tabled(part: Tars) -> Iterator[tuple[int, list[Split]]]:
    """First row, and source and split of it and those that follow."""
    first = 0
    for batch in pq.ParquetFile(part.beside(TABLE)).iter_batches(CHUNK, columns=["source", "split"]):
        yield first, list(zip(*(batch.column(name).to_pylist() for name in ("source", "split")), strict=True))
        first += batch.num_rows


def written(part: Tars) -> Iterator[tuple[int, list[Split]]]:
    """The same of JSON; of tars in stores nothing, for all of them would be fetched at the start."""
    if "json" not in part.members or part.cache is not None:
        return
    for first in range(0, len(part), CHUNK):
        names = []
        for row in range(first, min(first + CHUNK, len(part))):
            fields = json.loads(part.read(row, "json")) if part.has(row, "json") else {}
            names.append((str(fields.get("source", "")), str(fields.get("split", ""))))
        yield first, names
