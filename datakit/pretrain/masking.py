"""Masked autoencoders as objectives: MAE, and SelectiveMAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import RecipeError
from ..stream.augment import Views
from ..stream.batch import Batch
from .mae import MAE
from .masked import SIZES
from .objective import Augment, Encoder, Loading, MeanAndStd, MeanStd, Objective
from .selectivemae import Curriculum, SelectiveMAE

SHOWN = 6  # samples of a picture
Size = Literal["tiny", "vit_s", "vit_b", "vit_l", "vit_h"]


class Masking(Objective):
    """What masked autoencoders have in common."""

    size: Size = Field("vit_b", description="of encoder and decoder, as the papers have them")
    image_px: int = Field(224, gt=0)
    patch_px: int | None = Field(None, gt=0, description="default: 16, of vit_h 14")
    bands: int = Field(3, gt=0)
    norm_pix_loss: bool = Field(True, description="pixels of each patch are normalised")
    augment: Augment = Augment()
    normalise: Literal["imagenet", "dataset"] | MeanAndStd = "imagenet"

    def arguments(self) -> dict[str, Any]:
        """Of the module's class."""
        sizes = {"patch_size": 16, **SIZES[self.size]}
        if self.patch_px is not None:
            sizes["patch_size"] = self.patch_px
        return {"img_size": self.image_px, "in_chans": self.bands, "norm_pix_loss": self.norm_pix_loss, **sizes}

    @model_validator(mode="after")
    def _patches_fit(self) -> Masking:
        patch_px = self.arguments()["patch_size"]
        if self.image_px % patch_px:
            raise ValueError(f"image_px: {self.image_px}: a multiple of the patch's {patch_px} px")
        try:
            with torch.device("meta"):
                self.build()
        except RecipeError as exc:
            raise ValueError(str(exc)) from None
        return self

    def loading(self) -> Loading:
        normalise = self.normalise if isinstance(self.normalise, str) else self.normalise.model_dump()
        return Loading(Views((self.augment.view(self.image_px),), normalise))

    def losses(self, model: nn.Module, batch: Batch, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": model(batch.images, progress, generator)}

    def pictures(
        self, module: nn.Module, batch: Batch, progress: float, generator: torch.Generator, numbers: MeanStd
    ) -> NDArray[np.uint8]:
        """A row a sample: what the encoder sees, what is thought to be there, the image itself."""
        made = module.reconstruct(batch.images[:SHOWN], progress, generator)  # type: ignore[operator]
        mean, std = (torch.tensor(of, device=made[0].device).view(-1, 1, 1) for of in numbers)
        columns = [((of * std + mean).clamp(0, 1) * 255).round().byte() for of in made]
        grid = torch.cat(columns, 3).permute(0, 2, 3, 1).flatten(0, 1)  # (B H, 3 W, C)
        return grid[..., [0, 1, 2] if self.bands >= 3 else [0, 0, 0]].cpu().numpy()

    def encoder(self, module: nn.Module, numbers: MeanStd) -> Encoder:
        return Encoder(Tokens(module), self.image_px, numbers, self.augment.interpolation)

    def export(self, module: nn.Module, path: Path, numbers: MeanStd, form: str) -> None:
        module.export_timm(path, *numbers, self.augment.interpolation)  # type: ignore[operator]


class Tokens(nn.Module):
    """All patches through the encoder: (B, C, H, W) to (B, 1 + L, D)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        everything = torch.arange(self.module.length, device=images.device).expand(len(images), -1)  # type: ignore[call-overload]
        return self.module.encode(images, everything)  # type: ignore[operator, no-any-return]


class MaskedAutoencoder(Masking):
    """MAE (He et al., CVPR 2022)."""

    kind: Literal["mae"]
    decoder_depth: int = Field(8, gt=0)
    mask_ratio: float = Field(0.75, gt=0, lt=1)

    def build(self) -> MAE:
        return MAE(**self.arguments(), decoder_depth=self.decoder_depth, mask_ratio=self.mask_ratio)


class SelectiveMaskedAutoencoder(Masking):
    """SelectiveMAE (Wang et al., ICCV 2025). The curriculum is in shares of the run."""

    kind: Literal["selectivemae"]
    decoder_depth: int = Field(12, gt=0)
    mask_ratio: float = Field(0.85, gt=0, lt=1)
    target_ratio: float = Field(0.25, gt=0, lt=1)
    selector: Literal["random", "hog", "hog_sampled"] = "random"
    boundaries: tuple[float, float] = Field((0.375, 0.75), description="shares of the run: near, then far, then random")
    smooth: float = Field(
        0.025, ge=0, description="share of the run before a boundary, over which one becomes the other"
    )

    def build(self) -> SelectiveMAE:
        chosen = {name: getattr(self, name) for name in ("decoder_depth", "mask_ratio", "target_ratio", "selector")}
        curriculum = Curriculum(self.boundaries, self.smooth)
        return SelectiveMAE(**self.arguments(), **chosen, curriculum=curriculum)

    def rate_factors(self) -> dict[str, float]:
        return {
            "one": 1.0,
            "target_by_mask": self.target_ratio / self.mask_ratio,
            "mask_by_target": self.mask_ratio / self.target_ratio,
        }
