"""One loop for all objectives: `datakit pretrain RECIPE`, alone or under torchrun.

What a step does is a function of the weights, the recipe and the number of the step: its samples come from the loader's
order, its random numbers from (seed, step). So a run that was killed goes on bit for bit, on as many ranks of CPUs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..disk import sync
from ..errors import RecipeError, ShardError, StageError
from ..stream.batch import Batch
from . import checkpoint
from .feed import Feed
from .log import Log, Meter
from .machine import Machine, Stop
from .mean import Mean
from .recipe import Pretrain
from .schedule import decayed, learning_rate, seed_of

SHOWN = 10  # keys of an error
INITIAL, PICTURED = -1, 1 << 32  # parts of a step that are no micro-batch
Say = Callable[[str], None]


def pretrain(
    recipe: Pretrain,
    out: str | Path,
    *,
    resume: str | Path | None = None,
    rescale: bool = False,
    accelerator: str = "auto",
    say: Say = print,
) -> dict[str, Any]:
    """Run a recipe; what is left in `out`, a folder that all ranks see: checkpoints/, log.jsonl, tensorboard/,
    pictures/, and at the end export/. Gives what the run came to.

    resume: "auto" goes on from the last checkpoint there is, or begins; else a checkpoint. rescale: go on by another
    budget, too, though learning rate and curriculum jump. accelerator: of Lightning Fabric: auto, cpu, cuda, mps.
    RecipeError where recipe and checkpoint do not agree; StageError where too many losses are no numbers.
    """
    machine = Machine(recipe.precision, accelerator)
    run = Run(recipe, Path(out), machine, say)
    run.resume(resume, rescale)
    try:
        return run.train()
    finally:
        run.close()
        machine.close()


class Part(NamedTuple):
    """A micro-batch of a step: keys, and losses of its samples by name, (B,)."""

    keys: list[str]
    losses: dict[str, Tensor]


class Told(NamedTuple):
    """What a step came to: mean losses; whether a loss or the gradient is no number; whether a rank is to stop."""

    losses: dict[str, float]
    bad: bool
    asked: bool


class Run:
    """A run of a recipe on this rank."""

    def __init__(self, recipe: Pretrain, out: Path, machine: Machine, say: Say) -> None:
        self.recipe, self.out, self.machine = recipe, out, machine
        self.say: Say = say if machine.first else _silent
        self.objective = recipe.objective
        self.feed = Feed(recipe, machine, self.out if machine.first else None)
        torch.manual_seed(seed_of(recipe.seed, 0, INITIAL))
        self.module = self.objective.build()
        self.model = machine.model(self.module, recipe.compile)
        settings = recipe.optimiser
        groups = decayed(self.module.named_parameters(), settings.weight_decay)
        self.optimizer = machine.adamw(groups, recipe.peak_rate, settings.betas)
        self.mean = Mean(self.module, recipe.ema) if recipe.ema else None
        self.step = self.skipped = 0
        self.meter = Meter()
        self.log: Log | None = None

    def resume(self, wanted: str | Path | None, rescale: bool) -> None:
        """Go on from a checkpoint: a path, "auto" for the last one, None for a run that begins."""
        folder = self.out / "checkpoints"
        found = checkpoint.there(folder)
        if wanted is None and found:
            raise RecipeError(
                f"{self.out}: holds a run at {found[-1].name}: go on with --resume auto, or give another --out"
            )
        state = None
        if wanted not in (None, "auto"):
            state = checkpoint.load(Path(str(wanted)))
        elif wanted == "auto" and found:
            state = self.newest(found)
        if state is not None:
            self.load(state, rescale)
            self.say(f"goes on at step {self.step}, {self.feed.seen} samples, {self.feed.progress:.1%} of the run")

    def newest(self, found: list[Path]) -> dict[str, Any]:
        """The last checkpoint that can be read. ShardError where none can."""
        for path in reversed(found):
            try:
                return checkpoint.load(path)
            except ShardError as exc:
                self.say(str(exc))
        raise ShardError(f"{found[-1].parent}: none of its {len(found)} checkpoints can be read")

    def load(self, state: dict[str, Any], rescale: bool) -> None:
        budgets = state["budget"], self.feed.budget
        checkpoint.agree(state["recipe"], self.recipe.model_dump(mode="json"), budgets, rescale)
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.machine.load_scaler(state["scaler"])
        if self.mean is not None:
            self.mean.load_state_dict(state["ema"])
        self.feed.load_state_dict(state["feed"], state["loader"])
        self.meter.load_state_dict(state["meter"])
        self.step, self.skipped = state["step"], state["skipped"]

    def save(self) -> None:
        """A checkpoint of the step that was done last; on all ranks."""
        state = {
            "recipe": self.recipe.model_dump(mode="json"),
            "budget": self.feed.budget,
            "feed": self.feed.state_dict(),
            "loader": self.feed.loader.state_dict(),
            "numbers": [list(of) for of in self.feed.numbers],
            "model": self.module.state_dict(),
            "ema": self.mean.state_dict() if self.mean else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.machine.scaler_state(),
            "rng": {"seed": self.recipe.seed, "step": self.step},  # all that random numbers come from, see `schedule`
            "meter": self.meter.state_dict(),
            "skipped": self.skipped,
        }
        if self.machine.first:
            checkpoint.save(self.out / "checkpoints", self.step, state, self.recipe.keep)
        self.machine.barrier()

    def train(self) -> dict[str, Any]:
        """Steps until the budget is used up, or a signal comes."""
        self.log = Log(self.out, self.step) if self.machine.first else None
        saved = self.step
        stopped = False
        self.meter.start()
        began, first = time.monotonic(), self.feed.seen
        with Stop() as stop:
            while self.feed.progress < 1 and not stopped:
                stopped = self.advance(stop)
                last = stopped or self.feed.progress >= 1
                if self.step % self.recipe.log_every == 0 or last:
                    self.tell()
                if self.step % self.recipe.checkpoint_every == 0 or last:
                    self.save()
                    saved = self.step
        seconds = time.monotonic() - began
        if not stopped and self.machine.first:
            self.export()
        return {
            "name": self.recipe.name,
            "out": str(self.out),
            "steps": self.step,
            "samples": self.feed.seen,
            "checkpoint": saved,
            "loss": self.meter.last,
            "skipped": self.skipped,
            "stopped": stopped,
            "images_per_s": round((self.feed.seen - first) / max(seconds, 1e-9), 2),
            "pruned": self.recipe.prune is not None,
        }

    def advance(self, stop: Stop) -> bool:
        """One step. Whether some rank was asked to stop."""
        progress = self.feed.progress
        settings = self.recipe.optimiser
        rate = learning_rate(progress, self.recipe.peak_rate, settings.warmup, settings.least_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = self.feed.accumulate
        done: list[Part] = []
        for n in range(parts):
            batch = self.batch()
            with self.machine.syncing(self.model, n == parts - 1):
                done.append(self.forward_backward(batch, progress, n, parts))
        norm = self.machine.clip(self.model, self.optimizer, settings.clip)
        told = self.together(done, norm, stop.asked)
        if not told.bad or self.machine.scaler is not None:  # a scaler skips by itself, and must be told of each step
            self.machine.update(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.add({"lr": rate} if told.bad else {**told.losses, "lr": rate})
        if told.bad:
            self.skip(done)
        elif self.mean is not None:
            self.mean.update(self.module)
        self.step += 1
        self.feed.done()
        self.picture(batch, progress)
        return told.asked

    def batch(self) -> Batch:
        """The next micro-batch, and how long it was waited for."""
        began = time.perf_counter()
        batch = self.feed.next()
        self.meter.waited_s += time.perf_counter() - began
        return batch

    def forward_backward(self, batch: Batch, progress: float, part: int, parts: int) -> Part:
        """Losses of a micro-batch, whose gradients are added to those of the step."""
        generator = self.seeded(part * self.machine.world_size + self.machine.rank)
        losses = self.objective.losses(self.model, batch, progress, generator)
        loss = losses["loss"]
        if loss.shape != (len(batch),):
            raise ValueError(f"{self.objective.kind}: losses of shape {tuple(loss.shape)} for {len(batch)} samples")
        self.feed.note(batch, loss)
        weights = self.feed.pruned.weights(batch.ids).to(loss.device)
        self.machine.backward((loss * weights).mean() / parts)
        return Part(batch.keys, {name: of.detach() for name, of in losses.items()})

    def seeded(self, part: int) -> torch.Generator:
        """A generator of the device, and torch's own numbers, for a part of this step."""
        seed = seed_of(self.recipe.seed, self.step, part)
        torch.manual_seed(seed)
        return torch.Generator(self.machine.device).manual_seed(seed)

    def together(self, done: list[Part], norm: Tensor, asked: bool) -> Told:
        """What the step came to on all ranks. The one place of a step that waits for the device."""
        names = sorted(done[0].losses)
        means = [torch.stack([part.losses[name].float().mean() for part in done]).mean() for name in names]
        bad = torch.stack([(~torch.isfinite(part.losses["loss"])).any() for part in done]).any()
        values = torch.stack([*means, norm, bad, torch.tensor(asked, device=norm.device)]).float()
        *losses, norm_, bad_, asked_ = self.machine.mean(values).tolist()
        found = dict(zip(names, losses, strict=True))
        if isfinite(norm_):
            return Told({**found, "grad_norm": norm_}, bad_ > 0, asked_ > 0)
        return Told(found, bad_ > 0 or self.machine.scaler is None, asked_ > 0)  # a scaler looks for its scale

    def skip(self, done: list[Part]) -> None:
        """Count a step that was skipped, and write down of which samples the loss was no number."""
        self.skipped += 1
        finite = [(part.keys, torch.isfinite(part.losses["loss"]).tolist()) for part in done]
        keys = self.machine.together(
            [key for keys, fine in finite for key, good in zip(keys, fine, strict=True) if not good]
        )
        named = ", ".join(keys[:SHOWN]) or "no sample alone"
        self.say(f"step {self.step}: loss or gradient is no number, step skipped: {named}")
        if self.machine.first:
            path = self.out / "nonfinite.jsonl"
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, "keys": keys}) + "\n")
            sync(path)
        if self.skipped > self.recipe.max_nonfinite:
            raise StageError(
                f"{self.skipped} steps were skipped for losses that are no numbers, more than max_nonfinite "
                f"{self.recipe.max_nonfinite}; the last, step {self.step}, for {named}. All are in "
                f"{self.out / 'nonfinite.jsonl'}; the last checkpoint is from before"
            )

    def tell(self) -> None:
        """A line of the log."""
        line = {
            "step": self.step,
            "epoch": self.feed.epoch,
            "samples": self.feed.seen,
            "progress": round(self.feed.progress, 6),
            **self.meter.take(self.recipe.batch),
            "skipped": self.skipped,
        }
        if self.recipe.prune:
            line["pruned"] = len(self.feed.pruned.dropped)
        if self.log is not None:
            self.log.write(line)
        loss = f"{line['loss']:.4f}" if "loss" in line else "-"
        speed = f"{line['images_per_s']:.1f} img/s{', pruned' * bool(self.recipe.prune)}, wait {line['wait_share']:.1%}"
        self.say(f"step {self.step} {self.feed.progress:.1%} loss {loss} {speed}")

    def picture(self, batch: Batch, progress: float) -> None:
        """What the module makes of some samples, every so many steps."""
        every = self.recipe.pictures_every
        if self.log is None or every is None or (self.step % every and self.feed.progress < 1):
            return
        with torch.no_grad(), self.machine.autocast():
            generator = self.seeded(PICTURED)
            self.log.picture(
                self.step, self.objective.pictures(self.module, batch, progress, generator, self.feed.numbers)
            )

    def close(self) -> None:
        """Let go of files and of what was made ahead."""
        self.feed.close()
        if self.log is not None:
            self.log.close()

    def export(self) -> None:
        """What other programs load: of the mean of the weights, if there is one."""
        if self.mean is not None:
            self.module.load_state_dict({**self.module.state_dict(), **self.mean.state_dict()})
        self.objective.export(self.module, self.out / "export", self.feed.numbers, self.objective.forms[0])


def _silent(_: str) -> None: ...
