"""What follows a run's progress: the learning rate. Progress is the share of the budget that is used up, 0..1."""

from __future__ import annotations

from collections.abc import Iterable
from math import cos, pi

from torch import nn

from ..stream.order import key_of

PER = 256  # samples of a step that a base learning rate is meant for (Goyal et al., arXiv 1706.02677, section 2.1)


def learning_rate(progress: float, peak: float, warmup: float, least: float = 0.0) -> float:
    """The rate at a share of the run: up in a line to `peak` over the share `warmup`, then half a cosine to `least`.

    He et al. (CVPR 2022, appendix A.1), by step and in shares of the run instead of epochs.
    """
    if progress < warmup:
        return peak * progress / warmup
    left = min((progress - warmup) / (1 - warmup), 1.0) if warmup < 1 else 1.0
    return least + (peak - least) * 0.5 * (1 + cos(pi * left))


def decayed(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, object]]:
    """Two groups for an optimiser, of all that is trained: what decays, and biases, norms and other vectors."""
    trained = [(name, one) for name, one in named if one.requires_grad]
    plain = [one for name, one in trained if one.ndim <= 1 or name.endswith(".bias")]
    there = {id(one) for one in plain}
    matrices = [one for _, one in trained if id(one) not in there]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def seed_of(seed: int, step: int, part: int) -> int:
    """The seed of all that is random in one part of one step: a run has no other state of random numbers."""
    return key_of(key_of(seed, step), part)
