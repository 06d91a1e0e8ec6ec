"""InfoBatch pruning: epochs leave out some of the samples that are learnt well, and others count for them.

Qin et al., InfoBatch, ICLR 2024 (arXiv 2303.04947), section 3: of the samples whose last loss was below the mean, a
share `ratio` is left out of the next epoch, drawn anew each time; the rest of them weigh 1 / (1 - ratio), so that the
gradient stays unbiased. Scores are kept by int64 id. What an epoch leaves out is a function of scores, seed and epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..sample import mix64
from ..stream import Overlay
from ..stream.order import key_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Gather = Callable[[Tensor], Tensor]  # (n,) of each rank to (ranks * n,), the same on all
_DRAWING = 0x1F83D9ABFB41BD6B  # apart from what the order takes of seed and epoch


@dataclass(frozen=True)
class Pruned:
    """What an epoch leaves out, and what counts more instead: ids, ascending. weight: of the latter."""

    dropped: Ints
    heavy: Ints
    weight: float

    def overlay(self, name: str | Path) -> Overlay | None:
        """For a loader; None where nothing is left out."""
        if not len(self.dropped):
            return None
        return Overlay(str(name), "drop", self.dropped, np.zeros(len(self.dropped)), 1.0)

    def weights(self, ids: Tensor) -> Tensor:
        """Of samples (B,) int64, (B,) float32 on their device."""
        if not len(self.heavy):
            return torch.ones(ids.shape, device=ids.device)
        wanted = ids.cpu().numpy()
        at = np.minimum(np.searchsorted(self.heavy, wanted), len(self.heavy) - 1)
        found = np.where(self.heavy[at] == wanted, np.float32(self.weight), np.float32(1))
        return torch.from_numpy(found).to(ids.device)


def prune(ids: Ints, scores: Floats, ratio: float, seed: int, epoch: int) -> Pruned:
    """What an epoch leaves out. ids: (N,); scores: (N,), the last loss of each, NaN where there is none yet."""
    known = ~np.isnan(scores)
    below = np.zeros(len(ids), bool)
    if known.any():
        below[known] = scores[known] < scores[known].mean(dtype=np.float64)
    learnt = ids[below]
    drawn = np.argsort(mix64(learnt, key_of(seed ^ _DRAWING, epoch)), kind="stable")
    out = np.zeros(len(learnt), bool)
    out[drawn[: int(ratio * len(learnt))]] = True
    return Pruned(np.sort(learnt[out]), np.sort(learnt[~out]), 1 / (1 - ratio))


class Scores:
    """The last loss of each sample, the same on all ranks once they are gathered. before: as the epoch began."""

    def __init__(self, ids: Ints) -> None:
        self.ids = np.unique(ids)
        self.values: Floats = np.full(len(self.ids), np.nan, np.float32)
        self.before = self.values.copy()
        self._new: list[tuple[Tensor, Tensor]] = []

    def note(self, ids: Tensor, losses: Tensor) -> None:
        """Losses of samples of this rank, (B,): on their device until they are gathered."""
        self._new.append((ids, losses.detach().float()))

    def gather(self, gather: Gather) -> None:
        """Take in what all ranks noted since; each as many batches, at the same step."""
        if not self._new:
            return
        ids, losses = (gather(torch.cat(column)).cpu().numpy() for column in zip(*self._new, strict=True))
        self._new.clear()
        real = np.isfinite(losses)
        order = np.lexsort((losses[real], ids[real]))  # of a sample that came twice, the largest: on any ranks
        self.values[np.searchsorted(self.ids, ids[real][order])] = losses[real][order]

    def begin(self) -> None:
        """An epoch begins, which leaves out samples by the losses that there are now."""
        self.before = self.values.copy()

    def state_dict(self) -> dict[str, Any]:
        found = {"ids": self.ids, "values": self.values, "before": self.before}
        return {name: torch.from_numpy(of) for name, of in found.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Those of ids that are there still."""
        ids = state["ids"].numpy()
        there = np.isin(ids, self.ids)
        for name, own in (("values", self.values), ("before", self.before)):
            own[:] = np.nan
            own[np.searchsorted(self.ids, ids[there])] = state[name].numpy()[there]
