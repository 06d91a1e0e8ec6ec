"""Distance matching: masks from frozen features, by the nearest masked means of the few training images with masks.

Protocol: Gao et al. 2023 (ImageNet-S, section on distance matching); details as in LUSSeg/PASS, distance_matching/:
features are enlarged four times, a mean over each class of a mask, normalised; each px of an image takes the class that
its k nearest means vote for, with weights exp(cosine / T).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ..errors import SourceError
from .predictions import Truth, files_in, nearest, some_of, write_prediction
from .scores import IGNORE

NEIGHBOURS = 10
TEMPERATURE = 0.07
ENLARGED = 4
SEMI = "train-semi"
Features = NDArray[Any]  # (C, h, w) floats


class Bank:
    """Masked means and the class of each, 0 for other."""

    def __init__(self, means: torch.Tensor, classes: torch.Tensor) -> None:
        if len(means) == 0:
            raise SourceError("no masked mean: give features of images with masks")
        self.means, self.classes = functional.normalize(means.float(), dim=1), classes

    @classmethod
    def of(cls, pairs: Iterable[tuple[Features, NDArray[Any]]], enlarged: int = ENLARGED) -> Bank:
        """The bank of images: features (C, h, w) and mask (H, W) of each."""
        means, classes = [], []
        for features, mask in pairs:
            for number, mean in masked_means(features, mask, enlarged):
                classes.append(number)
                means.append(mean)
        return cls(torch.stack(means) if means else torch.empty(0, 0), torch.tensor(classes))

    def predict(
        self,
        features: Features,
        k: int = NEIGHBOURS,
        temperature: float = TEMPERATURE,
        enlarged: int = ENLARGED,
    ) -> NDArray[np.int64]:
        """Classes of the px of an image, (C, h, w) -> (enlarged h, enlarged w) ids."""
        wide = larger(features, enlarged)
        rows = functional.normalize(wide.flatten(1).T, dim=1)
        similar, which = (rows @ self.means.T).topk(min(k, len(self.means)), dim=1)
        votes = torch.zeros(len(rows), int(self.classes.max()) + 1)
        votes.scatter_add_(1, self.classes[which], (similar / temperature).exp())
        found: NDArray[np.int64] = votes.argmax(1).reshape(wide.shape[1:]).numpy()
        return found


def larger(features: Features, times: int) -> torch.Tensor:
    """Features so many times as large, bilinear: (C, h, w) -> (C, times h, times w)."""
    given = torch.from_numpy(np.ascontiguousarray(features, np.float32))
    if given.ndim != 3:
        raise SourceError(f"features of shape {tuple(given.shape)}: give (C, h, w)")
    size = (given.shape[1] * times, given.shape[2] * times)
    return given if times == 1 else functional.interpolate(given[None], size, mode="bilinear")[0]


def masked_means(features: Features, mask: NDArray[Any], enlarged: int = ENLARGED) -> list[tuple[int, torch.Tensor]]:
    """The mean of the features of each class in a mask, 0 among them: [(class, (C,)), …]; ignored px have none."""
    wide = larger(features, enlarged)
    small = nearest(mask, *wide.shape[1:])
    numbers = [number for number in np.unique(small).tolist() if number != IGNORE]
    return [(number, wide[:, torch.from_numpy(small == number)].mean(1)) for number in numbers]


def predict_all(
    embeddings: Path, semi: Truth, truth: Truth, split: str, pred: Path, say: Callable[[str], None]
) -> None:
    """Write the predictions of a split by distance matching. embeddings: `train-semi` and the split, of .npy each."""
    known, wanted = (features_of(embeddings / name, of) for name, of in ((SEMI, semi), (split, truth)))
    bank = Bank.of((np.load(path), semi.read(stem)) for stem, path in known.items())
    say(f"{len(bank.means):,} masked means of {len(known):,} images")
    for stem, path in wanted.items():
        write_prediction(bank.predict(np.load(path)), pred / f"{truth.names[stem]}.png", truth.size(stem))


def features_of(folder: Path, truth: Truth) -> dict[str, Path]:
    """The file of features of each image. SourceError names those that are missing."""
    found = files_in(folder)
    stems = {stem: stem if stem in found else stem.removesuffix("_semi") for stem in truth.names}
    missing = [f"{truth.names[stem]}.npy" for stem, name in stems.items() if name not in found]
    if missing:
        raise SourceError(f"{folder}: features of {len(missing):,} images are missing: {some_of(missing)}")
    return {stem: found[name] for stem, name in stems.items()}
