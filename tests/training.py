"""A small objective that writes down what it sees, recipes for runs of seconds, and how to run them on ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datakit.pretrain.objective import Encoder, Loading, MeanStd, Objective
from datakit.pretrain.recipe import Pretrain
from datakit.stream import mae
from datakit.stream.batch import Batch

MASKED = {"kind": "selectivemae", "size": "tiny", "image_px": 32, "patch_px": 8, "decoder_depth": 1}
RUN = {"name": "run", "batch": 8, "log_every": 1, "checkpoint_every": 1, "keep": 9, "budget": {"epochs": 3}}
RATES = {"base_rate": 0.02, "warmup": 0.2, "clip": 1.0}


class Small(nn.Module):
    """Pixels from their mean colour, through one layer; noise makes it depend on the generator."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.layer, self.noise = nn.Linear(3, 3), noise

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.rand(len(images), 3, generator=generator)
        colours = images.mean((2, 3))
        return (self.layer(colours + self.noise * noise) - colours).square().mean(1)


class Recording(Objective):
    """Appends the keys of each batch to `file`-RANKS-RANK; those in `bad` have no loss that is a number."""

    kind: Literal["recording"] = "recording"
    file: str = ""
    bad: tuple[str, ...] = ()
    noise: float = 0.1

    def build(self) -> nn.Module:
        return Small(self.noise)

    def loading(self) -> Loading:
        return Loading(mae(16), ("label",))

    def losses(self, model: nn.Module, batch: Batch, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        if self.file:
            ranks, rank = (os.environ.get(*one) for one in (("WORLD_SIZE", "1"), ("RANK", "0")))
            with Path(f"{self.file}-{ranks}-{rank}").open("a") as out:
                out.write(json.dumps(batch.keys) + "\n")
        loss = model(batch.images, generator)
        bad = torch.tensor([key in self.bad for key in batch.keys])
        return {"loss": loss.masked_fill(bad, float("nan")), "colour": loss.detach()}

    def pictures(
        self, module: nn.Module, batch: Batch, progress: float, generator: torch.Generator, numbers: MeanStd
    ) -> NDArray[np.uint8]:
        return np.zeros((4, 4, 3), np.uint8)

    def encoder(self, module: nn.Module, numbers: MeanStd) -> Encoder:
        raise NotImplementedError

    def export(self, module: nn.Module, path: Path, numbers: MeanStd, form: str) -> None:
        path.mkdir(exist_ok=True)
        torch.save(module.state_dict(), path / "weights.pt")


class Recorded(Pretrain):
    objective: Recording  # type: ignore[assignment]


def recipe(data: Path, **changed: Any) -> Pretrain:
    """A run of the tiny SelectiveMAE."""
    return Pretrain.model_validate({**RUN, "data": str(data), "objective": MASKED, "optimiser": RATES, **changed})


def recorded(
    data: Path, file: Path | str = "", bad: tuple[str, ...] = (), noise: float = 0.1, **changed: Any
) -> Recorded:
    """A run that writes down its samples."""
    objective = {"file": str(file), "bad": bad, "noise": noise}
    return Recorded.model_validate({**RUN, "data": str(data), "objective": objective, "optimiser": RATES, **changed})


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def on_two_ranks(script: Path, *arguments: object) -> None:
    """Run a script under torchrun on two CPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    here = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    done = subprocess.run([*command, str(script), *map(str, arguments)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
