"""Batches, epoch after epoch: how far a run is, what pruning leaves out, and where to go on.

A step takes `batch` consecutive positions of an epoch, whatever ranks and micro-batches share them: steps have the same
samples on any number of ranks. What is left at the end of an epoch and fills no step comes in no step of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import RecipeError, ShardError
from ..stream import Loader, Overlay, Views
from ..stream.batch import Batch
from ..stream.normalise import MeanStd
from . import held_out
from .machine import Machine
from .prune import Pruned, Scores, prune
from .recipe import Pretrain

EVERYTHING = Pruned(np.empty(0, np.int64), np.empty(0, np.int64), 1.0)


class Feed:
    """Micro-batches of one rank. `epoch`, `step`: the epoch, and steps of it that are done. `steps`: that it has.

    micro_batch: samples of this rank at once; `accumulate` of them are its part of a step. numbers: mean and deviation
    that images are normalised by. budget: of the run, in samples. folder: of the run, on its first rank.
    """

    def __init__(self, recipe: Pretrain, machine: Machine, folder: Path | None = None) -> None:
        self.recipe, self.machine, self.folder = recipe, machine, folder
        self.micro_batch, self.accumulate = split(recipe, machine.world_size)
        loading = recipe.objective.loading()
        self.loading, self.transform = loading, loading.transform
        self.epoch = self.step = self.seen = 0
        self.pruned, self.prunes = EVERYTHING, False
        self._batches: Iterator[Batch] | None = None
        self.loader = self.made(())
        held_out.refuse(self.loader, recipe.held_out)
        self.numbers: MeanStd = self.loader.numbers or ((0.0,), (1.0,))
        self.whole = self.steps = self.loader.samples // recipe.batch
        if not self.whole:
            raise RecipeError(f"batch: {recipe.batch}: the set has {self.loader.samples} samples, less than one step")
        if (
            isinstance(self.transform, Views) and self.loader.numbers is not None
        ):  # those of the whole set, whatever an epoch leaves out
            mean, std = self.numbers
            self.transform = Views(self.transform.views, {"mean": mean, "std": std})
        self.budget = recipe.budget.of(self.whole * recipe.batch)
        self.scores = Scores(self.ids()) if recipe.prune else None

    def made(self, pruned: tuple[Overlay, ...]) -> Loader:
        """A loader, of what an epoch leaves."""
        feeding = self.recipe.feeding.model_dump()
        feeding["threads"] = feeding["threads"] or self.machine.threads
        return Loader(
            self.recipe.source,
            self.micro_batch,
            seed=self.recipe.seed,
            transform=self.transform,
            columns=self.loading.columns,
            classes=self.loading.classes,
            raw=self.loading.raw,
            rank=self.machine.rank,
            world_size=self.machine.world_size,
            device=self.machine.device,
            remainder="drop",
            overlay=[*self.recipe.overlay, *pruned],
            licence=self.recipe.licence or (),
            **feeding,
        )

    def ids(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Of all samples that count."""
        live = self.loader.live
        return self.loader.tars.ids(live.rows(np.arange(len(live), dtype=np.int64)))

    @property
    def progress(self) -> float:
        """The share of the budget that is used up. What an epoch leaves out counts as seen: others stand for it."""
        passed = self.epoch * self.whole + self.step * self.whole / self.steps
        return passed * self.recipe.batch / self.budget

    def next(self) -> Batch:
        """The next micro-batch of this rank."""
        if self._batches is None:
            self._batches = iter(self.loader)
        return next(self._batches)

    def note(self, batch: Batch, losses: torch.Tensor) -> None:
        """Keep losses, (B,), where epochs leave out samples by them."""
        if self.scores is not None:
            self.scores.note(batch.ids, losses)

    def done(self) -> None:
        """A step is done, on all ranks; after the last one of an epoch the next begins."""
        self.step, self.seen = self.step + 1, self.seen + self.recipe.batch
        if self.step == self.steps:
            if self.scores is not None:
                self.scores.gather(self.machine.gather)
                self.scores.begin()
            self.close()
            self.enter(self.epoch + 1)

    def enter(self, epoch: int, prunes: bool | None = None) -> None:
        """Go to the beginning of an epoch, and tell what it leaves out. prunes: if it is known whether it does."""
        self.epoch, self.step = epoch, 0
        spec = self.recipe.prune
        if spec is not None and self.scores is not None:
            before, self.pruned = self.pruned, EVERYTHING
            self.prunes = self.progress < spec.until if prunes is None else prunes
            if self.prunes:
                self.pruned = prune(self.scores.ids, self.scores.before, spec.ratio, self.recipe.seed, epoch)
            overlay = self.pruned.overlay(f"epoch {epoch}")
            if overlay or len(before.dropped):
                self.loader = self.made((overlay,) if overlay else ())
            if overlay and self.folder is not None:
                (self.folder / "pruned").mkdir(parents=True, exist_ok=True)
                Overlay.write(self.folder / "pruned" / f"epoch-{epoch:05}.parquet", "drop", self.pruned.dropped)
        self.steps = self.loader.samples // self.recipe.batch
        if not self.steps:
            raise RecipeError(f"prune: epoch {epoch} has {self.loader.samples} samples left: less than one step")
        self.loader.set_epoch(epoch)

    def close(self) -> None:
        """Let go of what was made ahead."""
        batches, self._batches = self._batches, None
        if batches is not None:
            batches.close()  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """Where the run is. To be asked for on all ranks, between steps."""
        if self.scores is not None:
            self.scores.gather(self.machine.gather)
        scores = self.scores.state_dict() if self.scores else None
        place = {"epoch": self.epoch, "step": self.step, "seen": self.seen}
        return {**place, "prunes": self.prunes, "scores": scores}

    def load_state_dict(self, state: dict[str, Any], loader: dict[str, Any]) -> None:
        """Go on where a run was; loader: the state of its loader."""
        if self.scores is not None:
            self.scores.load_state_dict(state["scores"])
        self.enter(state["epoch"], state["prunes"])
        self.loader.load_state_dict(loader)
        self.step, self.seen = state["step"], state["seen"]
        if (self.loader.epoch, self.loader.position) != (self.epoch, self.step * self.recipe.batch):
            raise ShardError(
                f"the loader was at {self.loader.position} of epoch {self.loader.epoch}, not at step {self.step} of "
                f"epoch {self.epoch}: the checkpoint is not one of this run"
            )


def split(recipe: Pretrain, world_size: int) -> tuple[int, int]:
    """Samples that a rank has at once, and how often, in each step. RecipeError where they do not make the batch."""
    part, left = divmod(recipe.batch, world_size)
    micro = min(recipe.micro_batch or part, part)
    if left or part % micro:
        raise RecipeError(
            f"batch: {recipe.batch}: not whole micro-batches of {micro} on each of {world_size} ranks; "
            f"a multiple of {micro * world_size} is"
        )
    return micro, part // micro
