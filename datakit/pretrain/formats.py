"""A student's weights as timm, mmpretrain's ConvNeXt and mmdetection's SwinTransformer read them.

Names and layouts are those of open-mmlab/mmpretrain (mmpretrain/models/backbones/convnext.py) and of
open-mmlab/mmdetection (mmdet/models/backbones/swin.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..disk import becoming
from ..errors import RecipeError
from .exchange import SHORTER_SIDE, named

FORMS = ("timm", "mmpretrain", "mmdet")
PREFIX = "backbone."
CHECKPOINT, ABOUT = "backbone.pth", "config.json"  # of what is not for timm
State = dict[str, Tensor]
# Of timm's patches of a merging layer, laid by columns: those of mmdetection, by rows (0,0), (0,1), (1,0), (1,1)
BY_ROWS = [0, 2, 1, 3]
CONVNEXT = (
    (r"stem\.(\d)\.(\w+)", r"downsample_layers.0.\1.\2"),
    (r"stages\.(\d+)\.downsample\.(\d)\.(\w+)", r"downsample_layers.\1.\2.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.gamma", r"stages.\1.\2.gamma"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.(\w+)", r"stages.\1.\2.depthwise_conv.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.norm\.(\w+)", r"stages.\1.\2.norm.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc([12])\.(\w+)", r"stages.\1.\2.pointwise_conv\3.\4"),
    (r"head\.norm\.(\w+)", r"norm{last}.\1"),
)
SWIN = (
    (r"patch_embed\.proj\.(\w+)", r"patch_embed.projection.\1"),
    (r"patch_embed\.norm\.(\w+)", r"patch_embed.norm.\1"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.norm([12])\.(\w+)", r"stages.\1.blocks.\2.norm\3.\4"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.attn\.([\w.]+)", r"stages.\1.blocks.\2.attn.w_msa.\3"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"stages.\1.blocks.\2.ffn.layers.0.0.\3"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"stages.\1.blocks.\2.ffn.layers.1.\3"),
    (r"layers\.(\d+)\.downsample\.([\w.]+)", r"stages.{before \1}.downsample.\2"),
    (r"norm\.(\w+)", r"norm{last}.\1"),
)


def write_student(path: Path, model: nn.Module, form: str, about: Mapping[str, Any], interpolation: str) -> None:
    """A folder that another program loads. about: what the student is to be shown, which is written beside its weights.

    form: timm (model.safetensors and config.json, for "local-dir:PATH"); mmpretrain or mmdet (backbone.pth, whose names
    begin with `backbone.`, and config.json). RecipeError for a model that the program does not have.
    """
    if form == "timm":
        return write_timm(path, model, about, interpolation)
    makers: dict[str, Callable[[Mapping[str, Tensor]], State]] = {"mmpretrain": convnext, "mmdet": swin}
    if form not in makers:
        raise RecipeError(f"format: {form}: there are {', '.join(FORMS)}")
    state = {PREFIX + name: value.contiguous() for name, value in makers[form](model.state_dict()).items()}
    state |= {k: v for k, v in model.state_dict().items() if form == "mmpretrain" and k.startswith("head.fc.")}
    path.mkdir(parents=True, exist_ok=True)
    told = {"format": form, "architecture": model.pretrained_cfg["architecture"], **about}  # type: ignore[index]
    with becoming(path / CHECKPOINT, path) as aside:
        torch.save({"meta": told, "state_dict": state}, aside)
    with becoming(path / ABOUT, path) as aside:
        aside.write_text(json.dumps(told, indent=2), encoding="utf-8")
    return None


def write_timm(path: Path, model: nn.Module, about: Mapping[str, Any], interpolation: str) -> None:
    data = {name: about[name] for name in ("input_size", "mean", "std")}
    data |= {"interpolation": interpolation, "crop_pct": SHORTER_SIDE}
    told = {"datakit": {"view": about["view"]}}
    timm.models.save_for_hf(model, path, model_config=told, safe_serialization=True, data_config=data)


def renamed(state: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...], program: str) -> State:
    """By the first rule that fits each name. RecipeError where none does: another model."""
    last = max((int(found[1]) for name in state if (found := re.match(r"(?:stages|layers)\.(\d+)", name))), default=0)
    out: State = {}
    left = []
    for name, value in state.items():
        rule = next(((old, new) for old, new in rules if re.fullmatch(old, name)), None)
        if rule is None:
            left.append(name)
            continue
        told = re.sub(rule[0], rule[1], name).replace("{last}", str(last))
        told = re.sub(r"\{before (\d+)\}", lambda found: str(int(found[1]) - 1), told)
        out[told] = value
    if left or not out:
        raise RecipeError(f"format: {program} has no place for {named(left) or 'a model without weights'}")
    return out


def convnext(state: Mapping[str, Tensor]) -> State:
    """timm's ConvNeXt for mmpretrain: the norm of the head is that of the last stage's output."""
    body = {name: value for name, value in state.items() if not name.startswith("head.fc.")}
    made = renamed(body, CONVNEXT, "mmpretrain's ConvNeXt")
    return {k: v.flatten(1) if "pointwise" in k and k.endswith("weight") else v for k, v in made.items()}


def swin(state: Mapping[str, Tensor]) -> State:
    """timm's Swin for mmdetection: merging layers end the stage before, and see pixels by rows, channel by channel."""
    body = {name: value for name, value in state.items() if not name.startswith("head.")}
    made = renamed(body, SWIN, "mmdetection's SwinTransformer")
    return {name: merging(value) if ".downsample." in name else value for name, value in made.items()}


def merging(value: Tensor) -> Tensor:
    """Of inputs that are four patches after another, (…, 4 C), those of channels after another, (…, C 4)."""
    patches = value.reshape(*value.shape[:-1], 4, -1)[..., BY_ROWS, :]
    return patches.transpose(-1, -2).reshape(value.shape)
