"""Weights from elsewhere and for elsewhere: released checkpoints in, folders for timm out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from ..errors import RecipeError

# In SelectiveMAE's released checkpoints (commit 5270210, models_selectivemae.py), and never used: a network that was to
# give probabilities, a linear layer from before the decoder attended to the encoder's output, and filters of constants.
DEAD = ("get_token_probs.", "get_token_probs_linear.", "pos_embed_probs", "decoder_embed1.", "hog.")
SHORTER_SIDE = 0.875  # of an image that is resized to be evaluated, what is cut out: 224 of 256 px
NAMED = 6  # weights that an error lists
TIMM = {(384, 12, 6, 16): "vit_small", (768, 12, 12, 16): "vit_base", (1024, 24, 16, 16): "vit_large"}
TIMM[1280, 32, 16, 14] = "vit_huge"


def used(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a released checkpoint that its model makes use of; the checkpoint, or its `model`."""
    weights = state.get("model", state)
    return {name: value for name, value in weights.items() if not name.startswith(DEAD)}


def sizes(state: Mapping[str, Tensor], known: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Arguments of a model that has such weights. Square images, unless said otherwise; heads of the known sizes."""
    needed = ("patch_embed.proj.weight", "pos_embed", "mask_token", "decoder_pred.weight", "blocks.0.mlp.fc1.weight")
    if missing := [name for name in needed if name not in state]:
        raise RecipeError(f"weights: no {named(missing)}: not those of a whole autoencoder")
    embed_dim, in_chans, patch_size, _ = state["patch_embed.proj.weight"].shape
    decoder_dim, side = state["mask_token"].shape[-1], math.isqrt(state["pos_embed"].shape[1] - 1)
    of = next((size for size in known.values() if size["embed_dim"] == embed_dim), {})
    return {
        "img_size": side * patch_size,
        "patch_size": patch_size,
        "in_chans": in_chans,
        "embed_dim": embed_dim,
        "depth": blocks(state, "blocks."),
        "num_heads": of.get("num_heads", max(embed_dim // 64, 1)),
        "decoder_embed_dim": decoder_dim,
        "decoder_depth": blocks(state, "decoder_blocks."),
        "decoder_num_heads": max(decoder_dim // 32, 1),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
    }


def blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many layers there are whose weights' names begin so."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model its weights, all of them. RecipeError names those that are missing, left or of another shape."""
    own = model.state_dict()
    wrong = {
        "missing": own.keys() - state.keys(),
        "not known": state.keys() - own.keys(),
        "of another shape": {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape},
    }
    if any(wrong.values()):
        told = "; ".join(f"{what}: {named(names)}" for what, names in wrong.items() if names)
        raise RecipeError(f"weights are not those of {type(model).__name__}: {told}")
    model.load_state_dict(state)


def named(names: Iterable[str]) -> str:
    """Some names, the first of them if there are many."""
    every = sorted(names)
    return ", ".join(every[:NAMED]) + (f" and {len(every) - NAMED} more" if len(every) > NAMED else "")


def write_timm(
    path: Path,
    encoder: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    normalise: tuple[tuple[float, ...], tuple[float, ...]],
    interpolation: str,
) -> None:
    """A folder of model.safetensors and config.json; arguments are those of timm's VisionTransformer."""
    shape = tuple(arguments[name] for name in ("embed_dim", "depth", "num_heads", "patch_size"))
    architecture = f"{TIMM.get(shape, 'vit_base')}_patch{14 if shape in TIMM and shape[3] == 14 else 16}_224"
    config = {
        "architecture": architecture,
        "input_size": (arguments["in_chans"], *arguments["img_size"]),
        "fixed_input_size": True,
        "mean": normalise[0],
        "std": normalise[1],
        "interpolation": interpolation,
        "crop_pct": SHORTER_SIDE,
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    model = timm.create_model(architecture, pretrained_cfg=config, num_classes=0, **arguments)
    model.load_state_dict(encoder)
    timm.models.save_for_hf(model, path, model_args=dict(arguments), safe_serialization=True)
