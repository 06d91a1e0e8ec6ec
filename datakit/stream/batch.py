"""What a loader gives, and the memory that batches are made in."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray


@dataclass
class Batch:
    """Samples of one step of one rank.

    images: (B, C, H, W) float32 if normalised, else as stored (uint8, uint16); of several views a list of such tensors.
    ids: (B,) int64, -1 in an empty slot. mask: (B,) bool, False in an empty slot. crops: (B, V, 6) int32, what each
    view shows: left, top, width, height in px of the image; mirrored (0, 1), then quarter turns against the clock.
    columns: what was asked for, by name; `batch["label"]` is one of them.
    epoch, position: where the epoch stands once all ranks have had this batch.
    """

    images: Any
    ids: torch.Tensor
    keys: list[str]
    mask: torch.Tensor
    crops: torch.Tensor
    epoch: int
    position: int
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> Any:
        return self["label"]

    def __getitem__(self, name: str) -> Any:
        if name not in self.columns:
            raise KeyError(f"{name}: not asked for; this batch has {', '.join(self.columns) or 'no columns'}")
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.keys)


class Buffers:
    """Arrays that are used again once nobody holds them or a tensor made of them: fresh pages cost a tenth of the time.

    pinned: what a GPU can fetch by itself.
    """

    def __init__(self, pinned: bool) -> None:
        self.pinned = pinned
        self.made: dict[tuple[tuple[int, ...], str], list[NDArray[Any]]] = {}

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        there = self.made.setdefault((shape, np.dtype(dtype).name), [])
        for array in there:
            if sys.getrefcount(array) == _HELD:
                return array
        if self.pinned:  # torch has such a pool of its own, and knows when a copy is over
            return torch.empty(shape, dtype=getattr(torch, np.dtype(dtype).name), pin_memory=True).numpy()
        there.append(np.empty(shape, dtype))
        return there[-1]


def _held() -> int:
    """References to an array that a list holds and a loop looks at."""
    there = [np.empty(0)]
    return next(sys.getrefcount(array) for array in there)


_HELD = _held()
