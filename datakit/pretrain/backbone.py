"""Backbones of timm: made with weights from a file or timm's own, for other bands and for a stem of half the stride."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import RecipeError
from ..sample import Spec
from .exchange import load, named

OF_TIMM = "timm"  # weights that timm fetches, or has fetched
WITHIN = ("state_dict", "model")  # where files of other programs keep their weights
IN_FOLDER = "model.safetensors"  # of what `export` wrote
COLOURS = (0, 1, 2, 1)  # of packed planes: R, G, B, G


class Backbone(Spec):
    """A model of timm's."""

    model: str = Field(
        description="its name, with the tag of its weights where these are timm's: convnext_tiny.fb_in1k"
    )
    weights: str | None = Field(
        None, description="a file of a state dict or of safetensors, a folder that `export` wrote, or: timm"
    )
    arguments: dict[str, Any] = Field({}, description="of the model, beside size, bands and classes")

    @model_validator(mode="after")
    def _is_there(self) -> Backbone:
        if timm.models.get_pretrained_cfg(self.model, allow_unregistered=True) is None and not timm.is_model(
            self.model
        ):
            near = timm.list_models(f"*{self.model.split('_')[0].split('.')[0]}*")[:6]
            raise ValueError(f"model: {self.model}: timm has none of this name{'; it has ' * bool(near)}{named(near)}")
        return self

    @property
    def about(self) -> dict[str, Any]:
        """What timm tells of it: mean, std, first_conv, classifier, fixed_input_size, …"""
        known = timm.models.get_pretrained_cfg(self.model, allow_unregistered=True)
        return known.to_dict() if known is not None else dict(timm.create_model(self.model).pretrained_cfg)

    def made(self, side_px: int, classes: int, bands: int = 3, stride: int | None = None) -> nn.Module:
        """Without weights. classes: 0 leaves out the last layer. stride: of the stem, where it is not the model's."""
        arguments: dict[str, Any] = {**self.arguments, "num_classes": classes, "in_chans": bands}
        if self.about.get("fixed_input_size"):
            arguments["img_size"] = side_px
        if stride is not None:
            arguments["patch_size"] = stride
        try:
            found: nn.Module = timm.create_model(self.model, **arguments)
        except (TypeError, RuntimeError, ValueError, AssertionError) as exc:
            raise RecipeError(f"{self.model}: timm does not make it of {arguments}: {exc}") from None
        if not hasattr(found, "forward_intermediates") or not hasattr(found, "forward_head"):
            raise RecipeError(f"{self.model}: has no maps of features in timm: no forward_intermediates")
        return found

    def half_stride(self, side_px: int) -> int:
        """Half of that of the stem. RecipeError where timm does not make such a model of as many maps and layers."""
        with torch.device("meta"):
            model = self.made(side_px, 0)
        name = self.about["first_conv"]
        first = model.get_submodule(name) if isinstance(name, str) else None
        if not isinstance(first, nn.Conv2d) or first.kernel_size != first.stride or first.stride[0] % 2:
            raise RecipeError(f"{self.model}: its first layer is none of even patches, whose stride could be halved")
        half = int(first.stride[0]) // 2
        with torch.device("meta"):
            halved = self.made(side_px // 2, 0, stride=half)
        if halved.state_dict().keys() != model.state_dict().keys():
            raise RecipeError(
                f"{self.model}: with a stem of half the stride timm has other layers: take `packed: crop`"
            )
        return half

    def state(self) -> dict[str, Tensor]:
        """Its weights, as the file has them, by timm's names. RecipeError where there are none."""
        if self.weights is None:
            raise RecipeError(f"{self.model}: weights: none are named")
        if self.weights == OF_TIMM:
            try:
                return dict(timm.create_model(self.model, pretrained=True, **self.arguments).state_dict())
            except (RuntimeError, OSError, ValueError) as exc:
                raise RecipeError(f"{self.model}: timm does not get its weights: {exc}") from None
        return read(Path(self.weights))

    def loaded(self, side_px: int, classes: int | None, bands: int = 3, stride: int | None = None) -> nn.Module:
        """With its weights, all of them, if it has any. A stem of other bands or half the stride is made of that of the
        file so that what is gray and even looks the same to it. classes: None for those of the weights; a last layer of
        other classes begins anew."""
        if self.weights is None:
            return self.made(side_px, classes or 0, bands, stride)
        state, names = self.state(), self.about
        last, first = f"{names['classifier']}.", f"{names['first_conv']}.weight"
        there = len(state[f"{last}weight"]) if f"{last}weight" in state else 0
        model = self.made(side_px, there if classes is None else classes, bands, stride)
        if first in state:
            state[first] = stem(state[first], model.get_parameter(first).shape)
        if classes is not None and classes != there:
            own = {name: value for name, value in model.state_dict().items() if name.startswith(last)}
            state = {name: value for name, value in state.items() if not name.startswith(last)} | own
        load(model, state)
        return model


def read(path: Path) -> dict[str, Tensor]:
    """The weights in a file, of plain tensors alone. RecipeError where there are none."""
    path = path / IN_FOLDER if path.is_dir() else path
    if not path.is_file():
        raise RecipeError(f"weights: {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:
        said = str(exc).splitlines()
        raise RecipeError(f"weights: {path}: cannot be read as tensors alone: {said[0] if said else exc!r}") from None
    for name in WITHIN:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise RecipeError(f"weights: {path}: no state dict")
    return {name.removeprefix("module."): value for name, value in found.items()}


def stem(weight: Tensor, shape: torch.Size) -> Tensor:
    """A first layer's weights, (D, 3, k, k), for packed planes and for half the stride: of `shape`.

    Each green plane has half of green's; a px of half the resolution has the sum of those that lay in its place.
    """
    if weight.ndim != 4:
        return weight
    if weight.shape[1] == 3 and shape[1] == 4:
        weight = weight[:, COLOURS] * weight.new_tensor([1.0, 0.5, 1.0, 0.5])[:, None, None]
    if weight.shape[2] == 2 * shape[2]:
        weight = weight.reshape(*weight.shape[:2], shape[2], 2, shape[3], 2).sum((3, 5))
    return weight
