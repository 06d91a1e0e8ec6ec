"""Where batches go: the CPU as they are made, a GPU as levels that are normalised there on a stream of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .augment import Scaled

NONE: Mapping[int, Any] = MappingProxyType({})


class Device:
    """Puts the pixels of batches on a device. `cuda`: whether it is a GPU. decodes: images are made there."""

    def __init__(self, name: str | torch.device, decodes: bool = False) -> None:
        self.device, self.decodes = torch.device(name), decodes
        self.cuda = self.device.type == "cuda"
        self.stream = torch.cuda.Stream(self.device) if self.cuda else None  # type: ignore[no-untyped-call]

    def made_as(self, scaled: Scaled, levels: np.dtype[Any]) -> tuple[Scaled, np.dtype[Any]]:
        """How threads make pixels, and of which dtype: a GPU gets levels, a quarter of the bytes."""
        plain = scaled == Scaled() or self.cuda or self.decodes
        return (Scaled(), levels) if plain else (scaled, np.dtype(np.float32))

    def put(
        self, pixels: NDArray[Any] | torch.Tensor, scaled: Scaled, made: Mapping[int, Callable[[], torch.Tensor]] = NONE
    ) -> torch.Tensor:
        """(B, C, H, W) on the device; on a GPU the copy may still run: `ready` waits for it.

        made: makes the levels of some slots there, (C, H, W).
        """
        host = torch.as_tensor(pixels)
        if self.stream is None and not self.decodes:
            return host
        with torch.cuda.stream(self.stream):
            levels = host.to(self.device, non_blocking=True)
            for slot, make in made.items():
                levels[slot] = make()
            if scaled == Scaled():
                return levels
            mul, add = (torch.from_numpy(v).to(self.device).view(1, -1, 1, 1) for v in scaled.of(pixels.shape[1]))
            return levels.to(torch.float32).mul_(mul).add_(add)

    def ready(self, tensors: list[torch.Tensor]) -> None:
        """Let the stream that the caller computes on wait for what `put` began."""
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for tensor in tensors:
                tensor.record_stream(current)


def ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of ranks: as given, else of torch.distributed, else of torchrun's environment, else 0 of 1."""
    if rank is None and world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if rank is None or world_size is None:
        raise ValueError("rank and world_size: give both or neither")
    return rank, world_size


def together(values: list[Any]) -> torch.Tensor:
    """Arrays or tensors of one shape as one tensor. ValueError where shapes differ."""
    shapes = {tuple(np.shape(value)) for value in values}
    if len(shapes) > 1:
        raise ValueError(
            f"images of {len(shapes)} sizes in a batch, as {' and '.join(map(str, sorted(shapes)[:2]))}: "
            "give a transform that makes them equal"
        )
    return torch.stack([torch.as_tensor(value) for value in values])
