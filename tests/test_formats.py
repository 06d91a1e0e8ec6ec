"""Students for other programs: equal features in plain restatements of mmpretrain's and mmdetection's modules."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datakit.errors import RecipeError
from datakit.pretrain.formats import ABOUT, CHECKPOINT, write_student

SHOWN = {"view": {"planes": "packed"}, "mean": [0.1] * 4, "std": [0.2] * 4, "input_size": [4, 64, 64]}


def trained(name: str, **arguments: Any) -> nn.Module:
    """A model of which no parameter is what it began as."""
    torch.manual_seed(3)
    model: nn.Module = timm.create_model(name, **arguments)
    for one in model.parameters():
        one.data += 0.1 * torch.randn_like(one)
    return model.eval()


def exported(model: nn.Module, path: Path, form: str) -> dict[str, Tensor]:
    """The backbone's weights, as a detector takes them."""
    write_student(path, model, form, SHOWN, "bicubic")
    found = torch.load(path / CHECKPOINT, weights_only=True)
    assert found["meta"] == json.loads((path / ABOUT).read_text())
    assert found["meta"]["view"] == SHOWN["view"]
    state = {k.removeprefix("backbone."): v for k, v in found["state_dict"].items() if k.startswith("backbone.")}
    assert {k for k in found["state_dict"] if not k.startswith("backbone.")} <= {"head.fc.weight", "head.fc.bias"}
    return state


class ConvNeXtBlock(nn.Module):
    """mmpretrain/models/backbones/convnext.py, ConvNeXtBlock with linear pointwise layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise_conv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.pointwise_conv1, self.pointwise_conv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise_conv(x).permute(0, 2, 3, 1))
        y = self.pointwise_conv2(F.gelu(self.pointwise_conv1(y))).permute(0, 3, 1, 2)
        return x + y * self.gamma.view(1, -1, 1, 1)


class Norm2d(nn.LayerNorm):
    """LN2d: over channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """mmpretrain's, with the last stage's output, its positions averaged before the last norm or not."""

    def __init__(self, bands: int, depths: list[int], widths: list[int]) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(bands, widths[0], 4, 4), Norm2d(widths[0], 1e-6))]
        for a, b in pairwise(widths):
            layers.append(nn.Sequential(Norm2d(a, 1e-6), nn.Conv2d(a, b, 2, 2)))  # type: ignore[arg-type]
        self.downsample_layers = nn.ModuleList(layers)
        stages = [nn.Sequential(*[ConvNeXtBlock(w) for _ in range(n)]) for n, w in zip(depths, widths, strict=True)]
        self.stages = nn.ModuleList(stages)
        self.norm3 = Norm2d(widths[-1], 1e-6)

    def forward(self, x: Tensor, gap: bool) -> Tensor:
        for before, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(before(x))
        x = x.mean((2, 3), keepdim=True) if gap else x
        out: Tensor = self.norm3(x)
        return out


@pytest.mark.parametrize(("bands", "conv_mlp"), [(3, False), (4, True)])
def test_convnext_for_mmpretrain(tmp_path: Path, bands: int, conv_mlp: bool) -> None:
    depths, widths = [1, 2, 1, 1], [8, 16, 24, 32]
    model = trained(
        "convnext_tiny", depths=depths, dims=widths, in_chans=bands, conv_mlp=conv_mlp, num_classes=5, ls_init_value=1.0
    )
    state = exported(model, tmp_path, "mmpretrain")
    other = ConvNeXt(bands, depths, widths).eval()
    other.load_state_dict(state)
    images = torch.randn(2, bands, 96, 96)
    with torch.no_grad():
        maps = model.forward_intermediates(images, intermediates_only=True)[-1]
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
        assert torch.allclose(other(images, gap=True).flatten(1), pooled, atol=1e-5)
        expected = F.layer_norm(maps.permute(0, 2, 3, 1), (32,), model.head.norm.weight, model.head.norm.bias, 1e-6)
        assert torch.allclose(other(images, gap=False).permute(0, 2, 3, 1), expected, atol=1e-5)
    assert float(expected.std()) > 0.1


class Attention(nn.Module):
    """mmdet/models/backbones/swin.py, WindowMSA."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        steps = torch.arange(window)
        one = (steps[:, None] * (2 * window - 1) + steps).reshape(1, -1)
        self.index = (one + one.T).flip(1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attention = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.index.reshape(-1)].view(length, length, -1).permute(2, 0, 1)
        attention = attention + bias
        if mask is not None:
            attention = attention.view(-1, len(mask), self.heads, length, length) + mask[None, :, None]
            attention = attention.view(n, self.heads, length, length)
        return self.proj((attention.softmax(-1) @ v).transpose(1, 2).reshape(n, length, width))


class Shifted(nn.Module):
    """ShiftWindowMSA: windows that are moved by half of one in every second block, whatever the map's size."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.w_msa, self.window, self.shift = Attention(width, heads, window), window, shift

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        window, shift = self.window, self.shift
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        mask = None
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
            parts = torch.zeros(1, *x.shape[1:3], 1)
            for n, rows in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
                for m, columns in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
                    parts[:, rows, columns] = 3 * n + m
            own = self.windows(parts).squeeze(-1)
            mask = torch.where(own[:, None] != own[:, :, None], -100.0, 0.0)
        made = self.w_msa(self.windows(x), mask).view(-1, window, window, x.shape[-1])
        across, down = x.shape[2] // window, x.shape[1] // window
        x = made.view(len(x), down, across, window, window, -1).permute(0, 1, 3, 2, 4, 5).reshape(x.shape)
        x = x.roll((shift, shift), (1, 2)) if shift else x
        return x[:, :height, :width]

    def windows(self, x: Tensor) -> Tensor:
        n, height, width, channels = x.shape
        parts = x.view(n, height // self.window, self.window, width // self.window, self.window, channels)
        return parts.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window**2, channels)


class Ffn(nn.Module):
    """mmcv's FFN with its identity added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.0))
        self.layers = nn.Sequential(first, nn.Linear(4 * width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, window: int, shift: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.ffn = Shifted(width, heads, window, window // 2 if shift else 0), Ffn(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Merging(nn.Module):
    """mmdet/models/layers/transformer/utils.py, PatchMerging: nn.Unfold, so that channels come first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        parts = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
        return self.reduction(self.norm(parts)).view(len(x), height // 2, width // 2, -1)


class Stage(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, window: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([SwinBlock(width, heads, window, n % 2 == 1) for n in range(depth)])
        self.downsample = None if last else Merging(width)


class Patches(nn.Module):
    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        self.projection, self.norm = nn.Conv2d(bands, width, 4, 4), nn.LayerNorm(width)


class SwinTransformer(nn.Module):
    """mmdet's: a merging layer ends the stage whose output is what came before it."""

    def __init__(self, bands: int, width: int, depths: list[int], heads: list[int], window: int) -> None:
        super().__init__()
        self.patch_embed = Patches(bands, width)
        stages = [
            Stage(width * 2**n, depth, heads[n], window, n == len(depths) - 1) for n, depth in enumerate(depths)
        ]  # fmt: skip
        self.stages = nn.ModuleList(stages)
        self.norm3 = nn.LayerNorm(width * 2 ** (len(depths) - 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of each stage, the last one normed: (B, h, w, C)."""
        x = self.patch_embed.norm(self.patch_embed.projection(x).permute(0, 2, 3, 1))
        maps = []
        for stage in self.stages:
            for block in stage.blocks:
                x = block(x)
            maps.append(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return [*maps[:-1], self.norm3(maps[-1])]


@pytest.mark.parametrize("bands", [3, 4])
def test_swin_for_mmdetection(tmp_path: Path, bands: int) -> None:
    """At sizes of which the last map is larger than a window: timm moves no windows where there is but one, mmdetection
    does."""
    depths, heads = [2, 2, 2, 2], [1, 2, 2, 4]
    model = trained(
        "swin_tiny_patch4_window7_224", depths=depths, num_heads=heads, embed_dim=8, window_size=4, img_size=256,
        in_chans=bands, num_classes=0,
    )  # fmt: skip
    state = exported(model, tmp_path, "mmdet")
    other = SwinTransformer(bands, 8, depths, heads, 4).eval()
    other.load_state_dict(state)
    images = torch.randn(1, bands, 256, 256)
    with torch.no_grad():
        last, found = model.forward_intermediates(images)
        maps = [one.permute(0, 2, 3, 1) for one in found]
        theirs = other(images)
    for one, two in zip(theirs, [*maps[:-1], last], strict=True):
        assert one.shape == two.shape
        assert torch.allclose(one, two, atol=1e-5)
        assert float(two.std()) > 0.05


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        ("resnet18", "mmpretrain", "no place for bn1"),
        ("convnextv2_atto", "mmpretrain", "grn"),
        ("convnext_atto", "mmdet", "mmdetection's SwinTransformer"),
        ("vit_tiny_patch16_224", "mmdet", "no place for blocks"),
        ("convnext_atto", "onnx", "there are timm, mmpretrain, mmdet"),
    ],
)
def test_models_that_a_program_does_not_have(tmp_path: Path, name: str, form: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        write_student(tmp_path, timm.create_model(name), form, SHOWN, "bicubic")
    assert not list(tmp_path.iterdir())
