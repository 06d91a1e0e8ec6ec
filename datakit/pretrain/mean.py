"""A running mean of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mean:
    """Of what is trained in a module: value = decay * value + (1 - decay) * weight, after each step."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: one.detach().clone() for name, one in module.named_parameters() if one.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        for name, one in module.named_parameters():
            if name in self.values:
                self.values[name].lerp_(one, 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """By the names of the module's parameters."""
        return self.values

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.values.items():
            value.copy_(state[name])
