"""Devices, precision and ranks, by Lightning Fabric, and the signals that end a run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.optim import AdamW

from ..errors import RecipeError

HALF = {"bf16": "bf16-mixed", "fp16": "16-mixed"}


class Autocast(MixedPrecision):
    """Autocast that leaves a module's inputs alone: losses over pixels want all of their bits."""

    def convert_input(self, data: Any) -> Any:
        return data


class Machine:
    """The device of this rank, and what all ranks do together. Ranks are those of torchrun, one a device."""

    def __init__(self, precision: str = "float32", accelerator: str = "auto") -> None:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
        kind = accelerator_of(accelerator)
        plugin = Autocast(HALF[precision], kind) if precision in HALF else Precision()  # type: ignore[arg-type]
        strategy = DDPStrategy(gradient_as_bucket_view=True) if world > 1 else "auto"
        self.fabric = Fabric(
            accelerator=kind, devices=local, num_nodes=world // local, strategy=strategy, plugins=[plugin]
        )
        self.fabric.launch()
        self.device, self.rank, self.world_size = self.fabric.device, self.fabric.global_rank, self.fabric.world_size
        self.first = self.rank == 0
        self.threads = max(len(os.sched_getaffinity(0)) // local, 1)  # cores of this machine, shared by its ranks
        self.scaler: torch.amp.GradScaler | None = getattr(plugin, "scaler", None)
        self.fused = self.device.type == "cuda" and self.scaler is None

    def model(self, module: nn.Module, compiled: bool) -> nn.Module:
        """The module on the device, as ranks train it together. It shares its weights with `module`."""
        wrapped: nn.Module = self.fabric.setup_module(torch.compile(module) if compiled else module)  # type: ignore[arg-type]
        return wrapped

    def adamw(self, groups: list[dict[str, object]], rate: float, betas: tuple[float, float]) -> Any:
        return self.fabric.setup_optimizers(AdamW(groups, lr=rate, betas=betas, fused=self.fused or None))

    def syncing(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Where gradients of a micro-batch are made: ranks wait for one another in the last of a step alone."""
        if self.world_size == 1:
            return nullcontext()
        return self.fabric.no_backward_sync(model, enabled=not last)  # type: ignore[arg-type]

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def clip(self, model: nn.Module, optimizer: Any, most: float | None) -> Tensor:
        """Scale gradients down to a norm of at most `most`; their norm before."""
        largest = float("inf") if most is None else most
        norm = self.fabric.clip_gradients(model, optimizer, max_norm=largest, error_if_nonfinite=False)
        return torch.zeros((), device=self.device) if norm is None else norm

    def update(self, optimizer: Any) -> None:
        optimizer.step()

    def autocast(self) -> AbstractContextManager[Any]:
        return self.fabric.autocast()

    def mean(self, values: Tensor) -> Tensor:
        """Over ranks."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values / self.world_size

    def gather(self, values: Tensor) -> Tensor:
        """(n,) of each rank to (ranks * n,), rank after rank."""
        if self.world_size == 1:
            return values
        values = values.to(self.device).contiguous()
        out = values.new_empty(self.world_size * len(values))
        dist.all_gather_into_tensor(out, values)
        return out

    def together(self, texts: Sequence[str]) -> list[str]:
        """The texts of all ranks."""
        if self.world_size == 1:
            return list(texts)
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, list(texts))
        return [text for own in found for text in own]

    def barrier(self) -> None:
        self.fabric.barrier()

    def scaler_state(self) -> dict[str, Any]:
        return self.scaler.state_dict() if self.scaler else {}

    def load_scaler(self, state: dict[str, Any]) -> None:
        if self.scaler is not None:
            self.scaler.load_state_dict(state)

    def close(self) -> None:
        """Leave the other ranks."""
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def accelerator_of(wanted: str) -> str:
    """cpu, cuda or mps. RecipeError where it is not there."""
    there = ["cpu", *["cuda"] * torch.cuda.is_available(), *["mps"] * torch.backends.mps.is_available()]
    if wanted == "auto":
        return there[min(len(there), 2) - 1]
    if wanted not in there:
        raise RecipeError(f"accelerator {wanted}: this machine has {', '.join(there)}")
    return wanted


class Stop:
    """While it lasts, the first SIGTERM or SIGINT sets `asked`, and ends nothing; a second one is as ever."""

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def ask(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self.before[number])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
