"""What the records of a set add up to, counted as they are written: bands, licences, columns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from .bands import Sums
from .licences import NAME, UNSTATED, distinct, spelled


@dataclass
class Tally:
    """Of all records that were added."""

    bands: Sums = field(default_factory=Sums)
    licences: Counter[str] = field(default_factory=Counter)  # samples under each; one may be under several
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))  # of the records

    def add(self, records: pa.Table) -> None:
        self.schema = records.schema
        if "band_count" in records.column_names:
            self.bands.add(records)
        numbers, lists = distinct(records.column(NAME))
        for names, count in zip(lists, np.bincount(numbers, minlength=len(lists)).tolist(), strict=True):
            self.licences.update(dict.fromkeys([name or UNSTATED for name in names or [UNSTATED]], count))

    def by_licence(self) -> dict[str, int]:
        """Samples by licence, the commonest first, each licence on one line."""
        found = sorted(self.licences.items(), key=lambda one: (-one[1], one[0]))
        return {spelled(name): count for name, count in found}
