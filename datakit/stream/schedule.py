"""Which positions of an epoch a rank's batches have: arithmetic alone, so that every rank has as many of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Remainder = Literal["drop", "pad", "wrap"]


@dataclass(frozen=True)
class Schedule:
    """Batches of one rank, from position `start` of an epoch on. A batch of all ranks together is world_size as large.

    remainder: what becomes of positions that fill no batch of all ranks. drop: they are left out. pad: slots beyond the
    last are empty. wrap: the epoch's first samples fill them.
    """

    samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    start: int = 0
    remainder: Remainder = "drop"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(f"batch_size {self.batch_size}, rank {self.rank} of {self.world_size}")
        if self.remainder not in get_args(Remainder):
            raise ValueError(f"remainder: {self.remainder!r}: one of {', '.join(get_args(Remainder))}")

    @property
    def together(self) -> int:
        """Samples of one batch of all ranks."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        left = max(self.samples - self.start, 0)
        return left // self.together if self.remainder == "drop" else -(-left // self.together)

    def position(self, batch: int, slot: int) -> int:
        """The position of one slot, which may lie behind the last sample."""
        position = self.start + batch * self.together + self.rank * self.batch_size + slot
        return position % self.samples if self.remainder == "wrap" else position

    def positions(self, batch: int) -> NDArray[np.int64]:
        """Positions of the batch's slots, (batch_size,); -1: an empty one."""
        first = self.start + batch * self.together + self.rank * self.batch_size
        wanted = np.arange(first, first + self.batch_size, dtype=np.int64)
        if self.remainder == "wrap":
            return wanted % self.samples
        return np.where(wanted < self.samples, wanted, -1)

    def has(self, position: int) -> bool:
        """Whether this rank's batches have a position."""
        return position >= self.start and (position - self.start) % self.together // self.batch_size == self.rank

    def end(self, batch: int) -> int:
        """Where the epoch stands once all ranks had this batch."""
        return min(self.start + (batch + 1) * self.together, self.samples)
