"""What two builds share: samples that look alike, by signature and thumbnail, in any orientation; counts by source."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import ShardError
from .looks import TILE, TURNS, Looks
from .samples import Samples
from .stages.protect import HeldOut, Matches, Protect


@dataclass(frozen=True)
class Compared:
    """OUT beside OTHER: the nearest in OTHER of each sample of OUT that looks like one, and the other way round."""

    one: pa.Table  # key, source
    other: pa.Table
    forth: Matches  # rows of OUT, entries of OTHER
    back: Matches  # rows of OTHER, entries of OUT
    equal: np.ndarray[Any, np.dtype[np.bool_]]  # of `forth`: pixel for pixel

    def told(self) -> dict[str, Any]:
        """Counts as plain data."""
        return {
            "samples": [self.one.num_rows, self.other.num_rows],
            "same_key": int(
                pc.sum(pc.is_in(self.one.column("key"), self.other.column("key").combine_chunks())).as_py() or 0
            ),
            "alike": [len(self.forth.row), len(self.back.row)],
            "equal_pixels": int(self.equal.sum()),
            "sources": {
                side: self._by_source(table, found)
                for side, table, found in (("out", self.one, self.forth), ("other", self.other, self.back))
            },
        }

    @staticmethod
    def _by_source(table: pa.Table, found: Matches) -> dict[str, dict[str, int]]:
        names = table.column("source")
        samples, alike = Counter(names.to_pylist()), Counter(names.take(pa.array(found.row)).to_pylist())
        return {name: {"samples": samples[name], "alike": alike[name]} for name in sorted(samples)}

    def pairs(self) -> pa.Table:
        """What `forth` holds: key, other, distance_bits, turned (how OTHER's is turned to look like OUT's), equal."""
        return pa.table(
            {
                "key": self.one.column("key").take(pa.array(self.forth.row)),
                "other": self.other.column("key").take(pa.array(self.forth.entry)),
                "distance_bits": pa.array(self.forth.bits),
                "turned": pa.array(TURNS).take(pa.array(self.forth.place)),
                "equal": pa.array(self.equal),
            }
        )


def compare(out: Samples, other: Samples, radius_bits: int = 4) -> Compared:
    """Compare two builds, 300 B a sample in memory. Flat pictures are alike where their pixels are equal."""
    spec = Protect(radius_bits=radius_bits)
    tables = [_read(samples) for samples in (out, other)]
    looks = [Looks.of(table) for table in tables]
    forth = spec.find(looks[0], HeldOut({}, tables[1]))
    back = spec.find(looks[1], HeldOut({}, tables[0]))
    equal = looks[0].digests[forth.row] == looks[1].digests[forth.entry]
    one, another = (table.select(["key", "source"]) for table in tables)
    return Compared(one, another, forth, back, equal)


def _read(samples: Samples) -> pa.Table:
    table = pa.concat_tables([piece for _, piece in samples.pieces(["key", "source", *TILE])])
    unmeasured = int(np.sum(np.asarray(pc.equal(pc.binary_length(table.column("pixel_digest")), 0))))
    if unmeasured:
        raise ShardError(f"{samples.where}: {unmeasured} samples have no signatures: build with cut.measure: true")
    return table
