"""Exports beside the packages that they are for: features of timm's model and of mmpretrain's or mmdetection's own.

    python bench/exported.py        (pip install mmengine mmcv-lite mmpretrain mmdet, in an environment of their own)

A ConvNeXt-T of timm with random weights is written for mmpretrain, a Swin-T for mmdetection; the packages load what
was written by its names, none missing and none left over, and all see the same pictures. Prints the largest difference
of each map as a share of its largest value. What does not install here is told. Reading: LOG.md.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from datakit.pretrain.formats import CHECKPOINT, PREFIX, write_student

SIDE_PX = 224
ABOUT = {"view": None, "mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, SIDE_PX, SIDE_PX]}


def convnext() -> tuple[nn.Module, nn.Module]:
    """timm's and mmpretrain's."""
    from mmpretrain.models.backbones import ConvNeXt

    return timm.create_model("convnext_tiny"), ConvNeXt("tiny", out_indices=(3,), gap_before_final_norm=False)


def swin() -> tuple[nn.Module, nn.Module]:
    """timm's and mmdetection's. Of the last stage, where the shift differs, see docs/pretraining.md."""
    from mmdet.models.backbones import SwinTransformer

    sizes = {"depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "out_indices": (0, 1, 2)}
    return timm.create_model("swin_tiny_patch4_window7_224"), SwinTransformer(embed_dims=96, drop_path_rate=0, **sizes)


@torch.no_grad()
def last_maps(ours: nn.Module, theirs: nn.Module, pictures: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The map of a ConvNeXt's last stage, normalised."""
    yield ours.head.norm(ours.forward_features(pictures)), theirs(pictures)[0]  # type: ignore[operator,union-attr]


@torch.no_grad()
def stage_maps(ours: nn.Module, theirs: nn.Module, pictures: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The maps of a Swin's first three stages. mmdetection normalises each, by weights that it alone has."""
    found = ours.forward_intermediates(pictures, indices=[0, 1, 2], intermediates_only=True)  # type: ignore[operator]
    for n, (one, other) in enumerate(zip(found, theirs(pictures), strict=True)):
        norm = getattr(theirs, f"norm{n}")
        yield norm(one.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), other


CASES = {"mmpretrain": (convnext, last_maps), "mmdet": (swin, stage_maps)}
NOT_TOLD = re.compile(r"norm[0123]\..*|.*relative_position_index")  # see `stage_maps`; and what is computed


def compared(form: str) -> list[float]:
    """The largest difference of each map, as a share of its largest value."""
    make, maps = CASES[form]
    torch.manual_seed(0)
    ours, theirs = make()
    for one in ours.parameters():  # layer scales of 1e-6 and biases of 0 would hide what is in the wrong place
        one.data.add_(0.02 * torch.randn_like(one))
    with tempfile.TemporaryDirectory() as folder:
        write_student(Path(folder), ours, form, ABOUT, "bicubic")
        state = torch.load(Path(folder) / CHECKPOINT, weights_only=True)["state_dict"]
    body = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    found = theirs.load_state_dict(body, strict=False)
    strange = [key for key in [*found.missing_keys, *found.unexpected_keys] if not NOT_TOLD.fullmatch(key)]
    assert not strange, strange
    ours.eval()
    theirs.eval()  # mmpretrain's gives nothing back
    pairs = maps(ours, theirs, torch.randn(2, 3, SIDE_PX, SIDE_PX))
    return [float((one - other).abs().max() / other.abs().max()) for one, other in pairs]


def main() -> None:
    scores: dict[str, list[float] | str] = {}
    for form in CASES:
        try:
            scores[form] = compared(form)
        except ImportError as exc:
            scores[form] = f"not here: {exc}"
        print(form, scores[form])
    print(json.dumps({"bench": "exported", "differences": scores}))


if __name__ == "__main__":
    main()
