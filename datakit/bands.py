"""Means and deviations of bands, from the sums that records hold: no pixel is looked at, and nothing is rounded.

Of sets of pictures the bands are red, green and blue, 0..255, before encoding. Of sets that keep levels they are those
of the source by name, as stored. `LEVELS` in the metadata of samples.parquet says which of the two its records count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

SUMS = ("band_count", "band_sum", "band_sum_squares")  # fields of `Sample`
COLUMNS = ["source", "bands", "dtype", *SUMS]
PICTURE = ("red", "green", "blue")
LEVELS = b"datakit_levels"  # there, where sums are of the levels of all bands
BETWEEN = "\x1f"
LOW = (1 << 32) - 1
Ints = NDArray[np.int64]
Kind = tuple[str, str, tuple[str, ...]]  # source, type of the levels, bands


class Band(NamedTuple):
    """A band of a source, or of all: mean and deviation (of the population) of its valid pixels, in levels."""

    source: str  # "" = all
    band: str
    dtype: str
    samples: int
    pixels: int
    mean: float
    deviation: float

    @property
    def highest(self) -> int:
        """The highest level of its type."""
        return int(np.iinfo(self.dtype).max)


class Sums:
    """What records add up to, in whole numbers of any size. levels: their sums are of levels, see LEVELS."""

    def __init__(self, levels: bool = False) -> None:
        self.levels = levels
        self.found: dict[Kind, list[int]] = {}  # samples; then pixels, sum and sum of squares of each band
        self.unmeasured = 0

    @classmethod
    def of(cls, schema: pa.Schema) -> Sums:
        """Of records of this schema, with its metadata."""
        return cls(LEVELS in (schema.metadata or {}))

    def add(self, records: pa.Table, times: Ints | None = None) -> None:
        """Count records, COLUMNS of them; times: (N,) how often each of them counts."""
        times = np.ones(records.num_rows, np.int64) if times is None else times
        lists = [records.column(name).combine_chunks() for name in SUMS]
        bands = lists[0].value_lengths().fill_null(0).to_numpy().astype(np.int64)
        self.unmeasured += int(times[bands == 0].sum())
        named = self.named(records).combine_chunks().dictionary_encode()
        kinds, numbers = named.dictionary.to_pylist(), named.indices.to_numpy()
        alike = np.stack([numbers, bands, times], axis=1)  # what is summed together
        rows = np.flatnonzero((bands > 0) & (times > 0))
        rows = rows[np.lexsort(alike[rows].T)]
        begins = np.flatnonzero((np.diff(alike[rows], axis=0, prepend=-1) != 0).any(axis=1))
        for group in np.split(rows, begins[1:]) if len(rows) else ():
            kind, count, often = alike[group[0]].tolist()
            sums = [len(group)]
            for one in lists:
                begin = one.offsets.to_numpy()[group]
                column = one.values.to_numpy()[begin[:, None] + np.arange(count)]
                high, low = (column >> 32).sum(axis=0), (column & LOW).sum(axis=0)  # squares of a set pass 64 bits
                sums += [(h << 32) + part for h, part in zip(high.tolist(), low.tolist(), strict=True)]
            self.put(kind_of(kinds[kind], count), [often * number for number in sums])

    def join(self, other: Sums) -> None:
        """Add what other records add up to."""
        for kind, sums in other.found.items():
            self.put(kind, sums)
        self.unmeasured += other.unmeasured

    def put(self, kind: Kind, sums: list[int]) -> None:
        before = self.found.get(kind, [0] * len(sums))
        self.found[kind] = [b + s for b, s in zip(before, sums, strict=True)]

    def named(self, records: pa.Table) -> pa.ChunkedArray:
        """Source, type and bands of each record as one text."""
        none = pa.chunked_array([pa.array([""] * records.num_rows, pa.string())])
        source = records.column("source").cast(pa.string()) if "source" in records.column_names else none
        if not self.levels:
            return source
        bands = pc.binary_join(records.column("bands"), BETWEEN).fill_null("")
        return pc.binary_join_element_wise(source, records.column("dtype"), bands, BETWEEN)

    def bands(self) -> Iterator[Band]:
        """Every band of every source, by name of the source, then those of all by type and name."""
        overall: dict[tuple[str, str], NDArray[Any]] = {}
        for (source, dtype, names), (samples, *sums) in sorted(self.found.items()):
            for n, name in enumerate(names):
                one = np.array([samples, *sums[n :: len(names)]], object)
                yield _band(source, name, dtype, one)
                overall[dtype, name] = overall.get((dtype, name), 0) + one
        for (dtype, name), one in overall.items():
            yield _band("", name, dtype, one)

    def overall(self) -> list[Band]:
        """Those of all sources together."""
        return [band for band in self.bands() if not band.source]


def kind_of(named: str, count: int) -> Kind:
    """Source, type and bands of records that are named so and have so many bands; by number where names do not fit."""
    source, *said = named.split(BETWEEN)
    dtype, names = (said[0], tuple(said[1:])) if said else ("uint8", PICTURE)
    if len(names) != count or len({*names}) < count:
        names = tuple(str(n) for n in range(1, count + 1))
    return source, dtype, names


def _band(source: str, name: str, dtype: str, sums: NDArray[Any]) -> Band:
    samples, pixels, total, squares = sums.tolist()
    if not pixels:
        return Band(source, name, dtype, samples, 0, 0.0, 0.0)
    spread = pixels * squares - total * total  # of whole numbers: nothing cancels
    return Band(source, name, dtype, samples, pixels, total / pixels, math.sqrt(spread) / pixels)
