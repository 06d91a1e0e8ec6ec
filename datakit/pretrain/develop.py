"""Views of mosaics on the device: `datakit.views.View` in torch, for batches that `unprocess` has made."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import bayer, views
from ..errors import RecipeError
from ..views import BYTE, View
from .unprocess import Raw, demosaic


def check(view: View) -> View:
    """The view, if a network can learn from what it makes; else RecipeError."""
    if view.dtype != "float32":
        raise RecipeError(f"view: dtype: {view.dtype}: a network is shown float32")
    return view


def mosaic_px(view: View, side_px: int) -> int:
    """The side of a mosaic of which a view shows `side_px`."""
    return side_px * view.scale * (2 if view.planes == "packed" else 1)


def develop(raw: Raw, view: View) -> Tensor:
    """What a view shows of mosaics, (B, H, W) -> (B, C, h, w) float32: step by step as the View itself does it."""
    check(view)
    levels, params = raw.levels, raw.params
    if levels.ndim != 3:
        raise ValueError(f"expected a mosaic (B, H, W), found {tuple(levels.shape)}")
    black = params.black if view.black == "subtract" else torch.zeros_like(params.black)
    if view.planes == "packed":
        planes = boxes(pack(levels) - _wide(black), view.scale)
    else:
        planes = reduced(demosaic(levels), view) - _wide(black)
    planes = planes / _wide(_white(raw, view) - black)
    balance = "camera" if view.planes == "srgb" and view.white_balance == "none" else view.white_balance
    if balance != "none":
        gains = params.gains / params.gains[:, 1:2] if balance == "camera" else gray_gains(planes)
        planes = planes * (gains[:, [0, 1, 2, 1]] if planes.shape[1] == 4 else gains)[:, :, None, None]
    if view.matrix == "camera" or view.planes == "srgb":
        matrix = torch.linalg.inv(params.matrix)[..., None, None]
        planes = matrix[:, :, 0] * planes[:, :1] + matrix[:, :, 1] * planes[:, 1:2] + matrix[:, :, 2] * planes[:, 2:]
    if view.gamma != 1:
        planes = planes.sign() * planes.abs() ** (1 / view.gamma)
    if view.clip is not None:
        planes = planes.clamp(*view.clip)
    return planes * view.top


def pack(levels: Tensor) -> Tensor:
    """Red, green of the red rows, blue, green of the blue rows: (B, H, W) of RGGB -> (B, 4, H/2, W/2)."""
    return torch.stack([levels[:, y::2, x::2] for y, x in bayer.sites("RGGB")], 1)


def reduced(planes: Tensor, view: View) -> Tensor:
    """Colours at the view's size."""
    if view.scale == 1 or view.filter == "area":
        return boxes(planes, view.scale)
    size = [side // view.scale for side in planes.shape[2:]]
    return F.interpolate(planes, size=size, mode="bilinear", align_corners=False)


def boxes(planes: Tensor, scale: int) -> Tensor:
    """Means of boxes of scale x scale px; what fills no box is left out."""
    return planes if scale == 1 else F.avg_pool2d(planes, scale)


def gray_gains(planes: Tensor) -> Tensor:
    """Factors of R, G, B that make the means of the colours that of green: (B, 3)."""
    means = planes.mean((2, 3))
    green = means[:, [1, -1]].mean(1, keepdim=True) if planes.shape[1] == 4 else means[:, 1:2]
    factors = torch.where(means[:, :3] > 0, green / means[:, :3], torch.ones_like(means[:, :3]))
    factors[:, 1] = 1
    return factors


def _white(raw: Raw, view: View) -> Tensor:
    """The level that becomes 1, (B,), black included."""
    params = raw.params
    black = params.black if view.black == "subtract" else torch.zeros_like(params.black)
    if view.white == "full":
        return params.most + black  # numbers that are divided by whether black was subtracted or not
    if view.white == "byte":
        return BYTE + black
    if view.white == "measured":
        return torch.maximum(raw.levels.flatten(1).amax(1), black + 1)
    return params.white


def camera_of(raw: Raw, n: int) -> views.Camera:
    """What the file of a picture would tell of its camera."""
    params = raw.params
    gains, matrix = (params.gains[n] / params.gains[n, 1]).tolist(), torch.linalg.inv(params.matrix[n])
    black, white, most = (float(level[n]) for level in (params.black, params.white, params.most))
    balance = (float(gains[0]), 1.0, float(gains[2]))
    return views.Camera("RGGB", (black,) * 4, white, most, (), balance, tuple(matrix.flatten().tolist()))


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
