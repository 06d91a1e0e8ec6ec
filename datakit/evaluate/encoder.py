"""The encoder to evaluate: of a checkpoint of ours, of an exported folder, or any Vision Transformer of timm's."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ..errors import SourceError
from ..pretrain.objective import Encoder
from ..pretrain.trained import Trained


class Forward(nn.Module):
    """timm's tokens: (B, C, H, W) to (B, 1 + L, D)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        return tokens


def encoder_of(named: str | Path) -> Encoder:
    """The encoder of a checkpoint, of a folder that `export` wrote, or `timm:NAME` with its weights."""
    text = str(named)
    if not text.startswith("timm:") and not Path(text).is_dir():
        return Trained.load(Path(text)).encoder()
    name = text.removeprefix("timm:") if text.startswith("timm:") else f"local-dir:{text}"
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except (RuntimeError, OSError, ValueError) as exc:
        raise SourceError(f"{text}: timm makes no model of it: {exc}") from None
    if getattr(model, "num_prefix_tokens", 0) != 1:
        raise SourceError(f"{text}: only Vision Transformers with one class token have the tokens that are probed")
    about = resolve_model_data_config(model)
    how = "bilinear" if about["interpolation"] == "bilinear" else "bicubic"
    return Encoder(Forward(model.eval()), about["input_size"][-1], (about["mean"], about["std"]), how)  # type: ignore[arg-type]
