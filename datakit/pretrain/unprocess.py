"""What a camera would have recorded of a picture: sRGB to RAW, as batches on any device, and back.

Brooks et al., "Unprocessing Images for Learned Raw Denoising", CVPR 2019: sections 3.1 to 3.5 are named below; numbers
without another source are those of its code (google-research/unprocessing). The steps of a camera are undone in turn:
tone curve, gamma, colour matrix, white balance and brightness. Then what light does: it is darker (`exposure`), sampled
by a Bayer pattern, noisy; and what the sensor does: it adds its black level, clips and counts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from ..sample import Spec

if TYPE_CHECKING:
    from ..raw import RawImage

Range = tuple[float, float]
GAMMA = 2.2  # 3.3
LEAST = 1e-8  # of what is raised to a power
AT_ONCE = 2  # pictures on a CPU: what is in between then stays in its cache
INFLECTION = 0.9  # 3.4: gray from which gains are undone less and less, so that white stays white
# 3.3: XYZ to the colours of four cameras, those of the Darmstadt Noise Dataset; linear sRGB to XYZ (D65)
XYZ_TO_CAMERA = (
    ((1.0234, -0.2969, -0.2266), (-0.5625, 1.6328, -0.0469), (-0.0703, 0.2188, 0.6406)),
    ((0.4913, -0.0541, -0.0202), (-0.6130, 1.3513, 0.2906), (-0.1564, 0.2151, 0.7183)),
    ((0.8380, -0.2630, -0.0639), (-0.2887, 1.0725, 0.2496), (-0.0627, 0.1427, 0.5438)),
    ((0.6596, -0.2079, -0.0562), (-0.4782, 1.3016, 0.1933), (-0.0970, 0.1581, 0.5181)),
)
RGB_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
Matrix = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


class Camera(Spec):
    """A kind of camera, and what is drawn for each picture. Defaults: the generic one of Brooks et al.

    Signals are shares of what saturates the sensor: 0 at `black`, 1 at `white`.
    """

    matrices: tuple[Matrix, ...] = Field(
        XYZ_TO_CAMERA, description="XYZ to camera; a random mix of them, with weights above 0 that add up to 1 (3.3)"
    )
    red: Range = Field((1.9, 2.4), description="white balance: the factor of red, of which it is drawn (3.4)")
    blue: Range = (1.5, 1.9)
    brightness: Range = Field((0.8, 0.1), description="mean and deviation of one over the brightening (3.4)")
    exposure: Range = Field((1.0, 1.0), description="factors of light, drawn from their logarithm; ours")
    shot: Range = Field((1e-4, 0.012), description="variance of a signal of 1, drawn from its logarithm (3.1)")
    read: tuple[float, float, float] = Field(
        (2.18, 1.20, 0.26), description="log(variance of a signal of 0) is a log(shot) + b, and this deviation (3.1)"
    )
    black: float = Field(512.0, ge=0, description="level of no light; of Sony's 14-bit files, those of AODRaw")
    white: float = 16383.0
    bits: int = Field(14, ge=8, le=16)

    @model_validator(mode="after")
    def _is_possible(self) -> Camera:
        for name in ("red", "blue", "exposure", "shot"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: [{low}, {high}]: least and most, above 0")
        if not self.black < self.white < 2**self.bits:
            raise ValueError(
                f"white: {self.white:g}: above black, and at most {2**self.bits - 1}, which {self.bits} bits have"
            )
        if not self.matrices:
            raise ValueError("matrices: at least one")
        return self


def from_raw(raw: RawImage, **changed: Any) -> Camera:
    """The camera of a file: its levels; its colours and white balance where it tells them. changed: other fields."""
    about: dict[str, Any] = {"black": sum(raw.black) / len(raw.black), "white": float(raw.white)}
    about["bits"] = max(int(raw.white).bit_length(), 8)
    if any(raw.matrix):
        to_srgb = np.array(raw.matrix, np.float64).reshape(3, 3)
        to_camera = np.linalg.inv(to_srgb) @ np.linalg.inv(np.array(RGB_TO_XYZ))
        about["matrices"] = (tuple(map(tuple, to_camera.tolist())),)
    if raw.white_balance != (1.0, 1.0, 1.0):
        red, _, blue = raw.white_balance
        about |= {"red": (red, red), "blue": (blue, blue)}
    return Camera(**about | changed)


@dataclass(frozen=True)
class Params:
    """What was drawn for the pictures of a batch. Variances are of signals, of which 1 saturates."""

    matrix: Tensor  # (B, 3, 3) float32: linear sRGB to white-balanced camera colours; rows add up to 1
    gains: Tensor  # (B, 3): what the camera multiplies R, G, B by: white balance times brightening
    exposure: Tensor  # (B,): share of the light
    shot: Tensor  # (B,): variance is shot * signal + read
    read: Tensor  # (B,)
    black: Tensor  # (B,)
    white: Tensor  # (B,)
    most: Tensor  # (B,): the highest level that its bits can tell

    def to(self, device: torch.device | str) -> Params:
        return Params(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def __len__(self) -> int:
        return len(self.exposure)

    def __getitem__(self, which: Any) -> Params:
        """Those of some pictures: a slice, or indices."""
        return Params(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


def sample_params(generator: torch.Generator | None, batch: int, camera: Camera | None = None) -> Params:
    """Draw what is random but the noise, for so many pictures, on the generator's device."""
    of = camera or Camera()
    device = generator.device if generator is not None else torch.device("cpu")

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator, device=device)

    def from_logarithm(low: float, high: float) -> Tensor:
        return torch.exp(uniform(float(np.log(low)), float(np.log(high))))

    def normal() -> Tensor:
        return torch.randn(batch, generator=generator, device=device)

    matrices = torch.tensor(of.matrices, dtype=torch.float64, device=device)
    weights = torch.rand(batch, len(matrices), generator=generator, device=device, dtype=torch.float64) + LEAST
    weights = weights / weights.sum(1, keepdim=True)
    matrix = torch.einsum("bn,nij->bij", weights, matrices) @ torch.tensor(
        RGB_TO_XYZ, dtype=torch.float64, device=device
    )
    matrix = matrix / matrix.sum(2, keepdim=True)
    mean, deviation = of.brightness
    brighter = 1 / (mean + deviation * normal()).clamp(min=mean / 4)
    gains = torch.stack([uniform(*of.red), torch.ones_like(brighter), uniform(*of.blue)], 1) * brighter[:, None]
    shot = from_logarithm(*of.shot)
    slope, offset, spread = of.read
    read = torch.exp(slope * torch.log(shot) + offset + spread * normal())
    black, white, most = (torch.full((batch,), v, device=device) for v in (of.black, of.white, 2.0**of.bits - 1))
    return Params(matrix.float(), gains, from_logarithm(*of.exposure), shot, read, black, white, most)


@dataclass(frozen=True)
class Raw:
    """What was recorded: levels, with all that is needed to understand them."""

    levels: Tensor  # (B, H, W) float32 in a pattern of RGGB; (B, 3, H, W) camera colours where no mosaic was asked for
    params: Params
    cfa: str = "RGGB"

    @property
    def signal(self) -> Tensor:
        """Levels less black, as shares of white less black; below 0 and above 1 as the noise has it."""
        black, white = (_beside(v, self.levels) for v in (self.params.black, self.params.white))
        return (self.levels - black) / (white - black)


def unprocess(
    srgb: Tensor,
    params: Params,
    generator: torch.Generator | None = None,
    mosaic: bool = True,
    noise: bool = True,
    quantise: bool = True,
) -> Raw:
    """What a camera would have recorded of pictures: (B, 3, H, W) in 0..1, or uint8, to levels of its sensor.

    Works on the device of the pictures, in float32; params must be there. generator: of the noise, of that device.
    mosaic: sampled in RGGB; H and W must be even. quantise: rounded to whole levels. ValueError for other shapes.
    """
    if srgb.ndim != 4 or srgb.shape[1] != 3 or len(srgb) != len(params):
        raise ValueError(f"expected ({len(params)}, 3, H, W), found {tuple(srgb.shape)}")
    if mosaic and (srgb.shape[2] % 2 or srgb.shape[3] % 2):
        raise ValueError(f"a mosaic of {srgb.shape[2]} x {srgb.shape[3]} px: both sides must be even")
    at_once = len(srgb) if srgb.device.type != "cpu" else AT_ONCE
    parts = range(0, len(srgb), at_once)
    some = [slice(n, n + at_once) for n in parts]
    made = [_levels(_record(linear(srgb[s]), params[s]), params[s], generator, mosaic, noise, quantise) for s in some]
    return Raw(torch.cat(made) if len(made) > 1 else made[0], params)


def _levels(
    signal: Tensor, params: Params, generator: torch.Generator | None, mosaic: bool, noise: bool, quantise: bool
) -> Tensor:
    """What the sensor makes of a signal (B, 3, H, W), which is overwritten."""
    if mosaic:
        signal = sampled(signal)
    if noise:
        deviation = (signal * _beside(params.shot, signal)).add_(_beside(params.read, signal)).sqrt_()
        signal.addcmul_(torch.randn(signal.shape, generator=generator, device=signal.device), deviation)
    black, white, most = (_beside(v, signal) for v in (params.black, params.white, params.most))
    levels = torch.minimum(signal.mul_(white - black).add_(black).clamp_(min=0), most, out=signal)
    return levels.round_() if quantise else levels


def linear(srgb: Tensor) -> Tensor:
    """Tone curve and gamma undone (3.2, 3.3): linear sRGB in 0..1, float32. uint8 by a table of its 256 levels."""
    if srgb.dtype == torch.uint8:
        table = linear(torch.arange(256, device=srgb.device) / 255)
        return table.take(srgb.long())
    toned = srgb.float().clamp(0, 1).mul_(-2).add_(1).asin_().div_(3).sin_().neg_().add_(0.5)
    return toned.clamp_(min=LEAST).pow_(GAMMA)


def _record(light: Tensor, params: Params) -> Tensor:
    """The signal of every colour, (B, 3, H, W) in 0..1: matrix, gains undone with highlights kept (3.4), exposure."""
    seen = torch.bmm(params.matrix, light.flatten(2)).view(light.shape)
    gains = (1 / params.gains)[:, :, None, None]
    bright = seen.mean(1, keepdim=True).sub_(INFLECTION).clamp_(min=0).div_(1 - INFLECTION).square_()
    safe = torch.maximum(bright + (1 - bright) * gains, gains)
    return seen.mul_(safe).clamp_(0, 1).mul_(_beside(params.exposure, seen))


def sampled(colours: Tensor) -> Tensor:
    """The colours that lie under a pattern of RGGB: (B, 3, H, W) -> (B, H, W)."""
    mosaic = colours[:, 1].clone()
    mosaic[:, 0::2, 0::2] = colours[:, 0, 0::2, 0::2]
    mosaic[:, 1::2, 1::2] = colours[:, 2, 1::2, 1::2]
    return mosaic


def demosaic(mosaic: Tensor) -> Tensor:
    """(B, H, W) in RGGB -> (B, 3, H, W): the mean of the 2 or 4 nearest samples, as `datakit.raw.demosaic`.

    Sums, and no convolution, which a GPU makes of 11 bits (TF32): too few for levels of 14. H, W >= 2, even.
    """
    wide = F.pad(mosaic[:, None], (1, 1, 1, 1), "reflect")[:, 0]
    rows, columns = wide[:, :-2, 1:-1] + wide[:, 2:, 1:-1], wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]  # beside each px
    corners = wide[:, :, :-2] + wide[:, :, 2:]
    cross, corners = (rows + columns) / 4, (corners[:, :-2] + corners[:, 2:]) / 4
    rows, columns = rows / 2, columns / 2
    rgb = mosaic[:, None].repeat(1, 3, 1, 1)
    for (y, x), red, green, blue in (
        ((0, 0), None, cross, corners),
        ((0, 1), columns, None, rows),
        ((1, 0), rows, None, columns),
        ((1, 1), corners, cross, None),
    ):
        for colour, found in enumerate((red, green, blue)):
            if found is not None:
                rgb[:, colour, y::2, x::2] = found[:, y::2, x::2]
    return rgb


def process(raw: Raw) -> Tensor:
    """What the camera would have shown: (B, 3, H, W) sRGB in 0..1. It inverts `unprocess`.

    Without mosaic, noise and rounding to 1e-5, where nothing was clipped and gray is below INFLECTION; with a mosaic,
    the samples are as they were.
    """
    params, signal = raw.params, raw.signal
    if signal.ndim == 3:
        signal = demosaic(signal)
    seen = signal * (params.gains / params.exposure[:, None])[:, :, None, None]
    light = torch.einsum("bij,bjhw->bihw", torch.linalg.inv(params.matrix), seen)
    gamma = light.clamp(LEAST, 1) ** (1 / GAMMA)
    return gamma * gamma * (3 - 2 * gamma)


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures in 0..1, dB, (B,)."""
    return -10 * torch.log10(((one - other) ** 2).flatten(1).mean(1))


def _beside(values: Tensor, pixels: Tensor) -> Tensor:
    """One number a picture, (B,), as it goes with its pixels."""
    return values.reshape(-1, *[1] * (pixels.ndim - 1))
