"""How well frozen features tell classes: k-NN, linear and attentive probes, over seeds and published splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import RecipeError
from ..pretrain.objective import Encoder
from .features import Features, features
from .heads import EPOCHS, Attentive, Linear, fitted, neighbours, predicted
from .images import Images, Split

Method = Literal["knn", "linear", "attentive"]
METHODS: tuple[Method, ...] = get_args(Method)
Pool = Literal["mean", "cls"]


@dataclass(frozen=True)
class Score:
    """Shares of test images that were told right, one a seed. chance: that of the most frequent class."""

    method: Method
    shares: tuple[float, ...]
    train: int
    test: int
    classes: int
    chance: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.shares))

    @property
    def deviation(self) -> float:
        """Of a sample of seeds; 0 for one."""
        return float(np.std(self.shares, ddof=1)) if len(self.shares) > 1 else 0.0

    def told(self) -> dict[str, Any]:
        return {**self.__dict__, "mean": self.mean, "deviation": self.deviation}


def probe(
    encoder: Encoder,
    images: Images,
    splits: Sequence[Split],
    *,
    methods: Sequence[Method] = METHODS,
    pool: Pool = "mean",
    epochs: int = EPOCHS,
    cache: Path | None = None,
    device: str = "cpu",
    batch_size: int = 64,
    say: Callable[[str], None] = print,
) -> list[Score]:
    """Scores of each method, on one split a seed. pool: what k-NN and the linear probe see of an image's tokens.

    cache: folder where features are kept; default: of the user's cache.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not splits:
        raise RecipeError(f"methods: {', '.join(unknown)}: there are {', '.join(METHODS)}; and give one split or more")
    rows = np.unique(np.concatenate([part for split in splits for part in (split.train, split.test)]))
    options: dict[str, Any] = {"tokens": "attentive" in methods, "device": device, "batch_size": batch_size, "say": say}
    found = features(encoder, images, rows, cache or default_cache(), **options)
    place = np.full(len(images), -1, np.int64)
    place[rows] = np.arange(len(rows))
    return [scored(method, found, splits, place, rows, pool, epochs, torch.device(device)) for method in methods]


def scored(
    method: Method,
    found: Features,
    splits: Sequence[Split],
    place: NDArray[np.int64],
    rows: NDArray[np.int64],
    pool: Pool,
    epochs: int,
    device: torch.device,
) -> Score:
    """What one method comes to. place: where features of a row of the set lie; rows: of which features there are."""
    shares = []
    for seed, split in enumerate(splits):
        train, test = place[split.train], place[split.test]
        numbers = torch.from_numpy(split.numbers[rows]).to(device)
        shares.append(right(method, found, train, test, numbers, len(split.classes), pool, seed, epochs))
    first = splits[0]
    tested = first.numbers[first.test]
    chance = float(np.bincount(tested, minlength=len(first.classes)).max() / len(tested))
    return Score(method, tuple(shares), len(first.train), len(first.test), len(first.classes), chance)


def right(
    method: Method,
    found: Features,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    numbers: torch.Tensor,
    classes: int,
    pool: Pool,
    seed: int,
    epochs: int,
) -> float:
    """The share of test rows that is told right."""
    device = numbers.device
    if method == "attentive":
        tokens = found.tokens
        if tokens is None:
            raise ValueError("attentive: features without tokens")

        def fetch(rows: NDArray[np.int64]) -> torch.Tensor:
            return torch.from_numpy(tokens[rows].astype(np.float32)).to(device)

        head = fitted(partial(Attentive, tokens.shape[2], classes), fetch, train, numbers, seed, epochs)
        told = predicted(head, fetch, test)
    else:
        pooled = torch.from_numpy(found.mean if pool == "mean" else found.cls).to(device)

        def fetch(rows: NDArray[np.int64]) -> torch.Tensor:
            return pooled[torch.from_numpy(rows).to(device)]

        if method == "knn":
            told = neighbours(fetch(train), numbers[torch.from_numpy(train).to(device)], fetch(test), classes)
        else:
            head = fitted(partial(Linear, pooled.shape[1], classes), fetch, train, numbers, seed, epochs)
            told = predicted(head, fetch, test)
    return float((told == numbers[torch.from_numpy(test).to(device)]).float().mean())


def default_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "datakit" / "features"
