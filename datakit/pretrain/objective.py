"""What a run trains: how it is built, what it wants of the loader, its losses, its pictures and what it leaves.

A new objective is one subclass of `Objective`, named in `recipe.Kinds`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..sample import Spec
from ..stream.augment import View, Views
from ..stream.batch import Batch
from ..stream.maker import Function
from ..views import View as RawView

MeanStd = tuple[Sequence[float], Sequence[float]]  # of each band, as shares of the highest level
Share = tuple[float, float]


class Augment(Spec):
    """How a view is cut from an image; see `datakit.stream.View`. Defaults: MAE's (He et al., appendix A.1)."""

    scale: Share = Field((0.2, 1.0), description="share of the image's area that a crop has")
    ratio: Share = Field((3 / 4, 4 / 3), description="width by height of a crop")
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    flip: float = Field(0.5, ge=0, le=1)
    turns: bool = Field(False, description="a random number of quarter turns")
    brightness: float = Field(0.0, ge=0, le=1)
    contrast: float = Field(0.0, ge=0, le=1)
    saturation: float = Field(0.0, ge=0, le=1)
    reduced: bool = Field(False, description="JPEG is decoded at a half, a quarter or an eighth where that is enough")

    @model_validator(mode="after")
    def _is_a_view(self) -> Augment:
        for name, (low, high), most in (("scale", self.scale, 1.0), ("ratio", self.ratio, float("inf"))):
            if not 0 < low <= high <= most:
                raise ValueError(f"{name}: [{low}, {high}]: least and most, above 0{' and up to 1' * (most == 1)}")
        return self

    def view(self, size_px: int) -> View:
        return View(size_px, **self.model_dump())


class MeanAndStd(Spec):
    """Numbers that levels are normalised by, one a band, as shares of the highest level."""

    mean: tuple[float, ...] = Field(min_length=1)
    std: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _of_the_same_bands(self) -> MeanAndStd:
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError("mean and std have one number a band, and std is above 0")
        return self


@dataclass(frozen=True)
class Loading:
    """What a loader is to give; see its arguments of these names."""

    transform: Views | Function | None
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    raw: RawView | None = None


@dataclass(frozen=True)
class Encoder:
    """A trained encoder, for evaluation. tokens: of (B, C, size_px, size_px) normalised images (B, 1 + L, D),
    the one of the class first; without gradients."""

    tokens: nn.Module
    size_px: int
    numbers: MeanStd
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


class Objective(Spec, ABC):
    """What is trained. Its fields are its YAML keys; `kind` tells which one it is."""

    kind: str
    forms: ClassVar[tuple[str, ...]] = ("timm",)  # in which it exports, the default first

    @abstractmethod
    def build(self) -> nn.Module:
        """The module, freshly initialised from torch's random numbers: forward gives losses, and all parameters that
        require gradients get some. `state_dict()` is what checkpoints hold; frozen parts need not be in it."""

    @abstractmethod
    def loading(self) -> Loading: ...

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of each sample, (B,) by name: "loss" is trained on, the others are logged.

        model: the module that `build` gave, perhaps wrapped: call it, and nothing inside. The batch is on the device;
        all that is random comes from `generator`, of the device, or from torch's own, which is seeded as well.
        """

    @abstractmethod
    def pictures(
        self, module: nn.Module, batch: Batch, progress: float, generator: torch.Generator, numbers: MeanStd
    ) -> NDArray[np.uint8]:
        """What the module makes of some samples, (H, W, 3)."""

    @abstractmethod
    def encoder(self, module: nn.Module, numbers: MeanStd) -> Encoder:
        """What is evaluated."""

    @abstractmethod
    def export(self, module: nn.Module, path: Path, numbers: MeanStd, form: str) -> None:
        """Write what other programs load, in one of `forms`."""

    def rate_factors(self) -> dict[str, float]:
        """Factors of the learning rate, by names that `optimiser.rate_factor` may take."""
        return {"one": 1.0}

    def described(self) -> dict[str, Any]:
        """All that the module is built from."""
        return self.model_dump(mode="json")
