"""What is cut from an image, and what becomes of its colours: drawn from (seed, epoch, position) and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import RecipeError
from ..sample import mix64
from . import resample
from .decode import Levels

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRIES = 10  # of a random crop, before the middle is taken: as torchvision
DRAWS = 2 * TRIES + 9  # numbers that a view may ask for
Normalise = Literal["imagenet", "dataset"] | dict[str, Sequence[float]] | None


class Crop(NamedTuple):
    """What of an image a view shows: px from its top left corner, as shown. Mirrored first, then turned."""

    left: int
    top: int
    width: int
    height: int
    flipped: int = 0
    turns: int = 0  # quarter turns against the clock

    def of_reduced(self, by: int, width: int, height: int) -> Crop:
        """The same of an image decoded smaller, which has so many px."""
        left, top = min(self.left // by, width - 1), min(self.top // by, height - 1)
        w, h = min(max(self.width // by, 1), width - left), min(max(self.height // by, 1), height - top)
        return Crop(left, top, w, h, self.flipped, self.turns)


@dataclass(frozen=True)
class View:
    """One picture made of an image: a crop, resized to (size_px, size_px).

    scale: share of the image's area, of which the crop has a random one. ratio: width by height of the crop, drawn from
    its logarithm. flip: how often it is mirrored left to right, 0..1. turns: a random number of quarter turns.
    brightness, contrast, saturation: factors are drawn from 1 - x .. 1 + x; hue: turned by -x .. x of the circle, at
    most a half; 8-bit pictures in RGB only, as torchvision's ColorJitter.
    resize_px: not random; the image's shorter side becomes so long, and the middle is cut out. reduced: JPEG is decoded
    at a half, a quarter or an eighth where a random crop stays as large as the picture: faster, not quite the same.
    """

    size_px: int = 224
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    flip: float = 0.5
    turns: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    resize_px: int | None = None
    reduced: bool = False

    def __post_init__(self) -> None:
        if self.size_px < 1 or (self.resize_px is not None and self.resize_px < self.size_px):
            raise RecipeError(f"size_px: {self.size_px}: at least 1, and at most resize_px")
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise RecipeError(f"scale: {self.scale}, ratio: {self.ratio}: (least, most), of scale within 0..1")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise RecipeError(f"interpolation: {self.interpolation}: bilinear or bicubic")
        if not 0 <= self.flip <= 1 or min(self.colours) < 0 or max(self.colours) > 1:
            raise RecipeError("flip, brightness, contrast and saturation lie within 0..1")
        if not 0 <= self.hue <= 0.5:
            raise RecipeError(f"hue: {self.hue}: from 0 to 0.5, which is all colours")

    @property
    def colours(self) -> tuple[float, float, float, float]:
        return self.brightness, self.contrast, self.saturation, self.hue

    def crop_of(self, width: int, height: int, drawn: NDArray[np.float64]) -> Crop:
        """What it shows of an image of so many px, by numbers drawn from 0..1, (DRAWS,)."""
        if self.resize_px is not None:
            return Crop(0, 0, width, height)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        area = width * height
        flipped = int(drawn[-1] < self.flip)
        turns = int(drawn[-2] * 4) if self.turns else 0
        for n in range(TRIES):
            wanted = area * (self.scale[0] + drawn[2 * n] * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + drawn[2 * n + 1] * (high - low))
            w, h = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(drawn[-3] * (width - w + 1)), int(drawn[-4] * (height - h + 1))
                return Crop(left, top, w, h, flipped, turns)
        w, h = width, height
        if width < self.ratio[0] * height:
            h = max(round(width / self.ratio[0]), 1)
        elif width > self.ratio[1] * height:
            w = max(round(height * self.ratio[1]), 1)
        return Crop((width - w) // 2, (height - h) // 2, w, h, flipped, turns)

    def reduction(self, crop: Crop) -> int:
        """By how much an image may be decoded smaller for a crop: 1, 2, 4 or 8."""
        if not self.reduced or self.resize_px is not None:
            return 1
        return next((n for n in (8, 4, 2) if min(crop.width, crop.height) >= n * self.size_px), 1)

    def render(self, image: Levels, crop: Crop, drawn: NDArray[np.float64], scaled: Scaled, out: NDArray[Any]) -> None:
        """Make the picture: `out` is (C, size_px, size_px), float32, or levels as the image has them."""
        if self.resize_px is not None:
            self.render_middle(image, scaled, out)
        elif any(self.colours):
            levels = np.empty(out.shape, image.dtype)
            plain = replace(self, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
            plain.render(image, crop, drawn, LEVELS, levels)
            factors = 1 + (2 * drawn[-8:-5] - 1) * self.colours[:3]
            resample.jitter(levels, *factors, (2 * drawn[-9] - 1) * self.hue, int(drawn[-5] * 4))
            scaled.into(levels, out)
        elif crop.turns:
            upright = np.empty_like(out)
            self.cut(image, crop, scaled, upright)
            np.copyto(out, np.rot90(upright, crop.turns, (1, 2)))
        else:
            self.cut(image, crop, scaled, out)

    def render_middle(self, image: Levels, scaled: Scaled, out: NDArray[Any]) -> None:
        """Resize the whole image and take its middle, as torchvision's Resize and CenterCrop do."""
        height, width = middle_size(image.shape[0], image.shape[1], self.resize_px or self.size_px)
        whole = np.empty((out.shape[0], height, width), out.dtype)
        self.cut(image, Crop(0, 0, image.shape[1], image.shape[0]), scaled, whole)
        top, left = middle(height, self.size_px), middle(width, self.size_px)
        np.copyto(out, whole[:, top : top + self.size_px, left : left + self.size_px])

    def cut(self, image: Levels, crop: Crop, scaled: Scaled, out: NDArray[Any]) -> None:
        mul, add = scaled.of(out.shape[0])
        cubic = self.interpolation == "bicubic"
        resample.crop(image, crop.left, crop.top, crop.width, crop.height, bool(crop.flipped), cubic, mul, add, out)


def middle_size(height: int, width: int, resize_px: int) -> tuple[int, int]:
    """(height, width) of an image whose shorter side becomes resize_px."""
    if height <= width:
        return resize_px, int(resize_px * width / height)
    return int(resize_px * height / width), resize_px


def middle(length: int, size_px: int) -> int:
    """Where the middle begins: as torchvision rounds it."""
    return round((length - size_px) / 2)


@dataclass(frozen=True)
class Scaled:
    """Levels to numbers: level * mul + add, one of each for every band, or one for all."""

    mul: tuple[float, ...] = (1.0,)
    add: tuple[float, ...] = (0.0,)

    @lru_cache(maxsize=8)  # noqa: B019  (few are made, and they are small)
    def of(self, bands: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """For each band, (C,). RecipeError where there are other numbers of them."""
        if len(self.mul) not in (1, bands):
            raise RecipeError(f"normalise: {len(self.mul)} means for images of {bands} bands")
        mul, add = (np.array(of, np.float32) * np.ones(bands, np.float32) for of in (self.mul, self.add))
        return mul, add

    def into(self, levels: Levels, out: NDArray[Any]) -> None:
        """Make numbers of levels, (C, h, w)."""
        if self == LEVELS:
            return np.copyto(out, levels)
        mul, add = self.of(len(levels))
        np.multiply(levels, mul[:, None, None], out=out)
        np.add(out, add[:, None, None], out=out)
        return None


LEVELS = Scaled()


@dataclass(frozen=True)
class Views:
    """Pictures of each image, in this order; those of one size lie in one tensor if there are several."""

    views: tuple[View, ...] = (View(),)
    normalise: Normalise = "imagenet"


def mae(size_px: int = 224, normalise: Normalise = "imagenet", **changed: Any) -> Views:
    """Masked autoencoders' augmentation (He et al., CVPR 2022, appendix A.1): a random crop, bicubic, a flip."""
    return Views((View(size_px, **changed),), normalise)


def multi_view(
    size_px: int = 224,
    local_px: int = 96,
    locals_: int = 8,
    global_scale: tuple[float, float] = (0.4, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.4),
    normalise: Normalise = "imagenet",
    **changed: Any,
) -> Views:
    """Two global views and some local ones (DINO: Caron et al., ICCV 2021, section 3.1)."""
    wide, near = View(size_px, global_scale, **changed), View(local_px, local_scale, **changed)
    return Views((wide, wide, *[near] * locals_), normalise)


def evaluation(
    size_px: int = 224,
    resize_px: int = 256,
    interpolation: Literal["bilinear", "bicubic"] = "bicubic",
    normalise: Normalise = "imagenet",
) -> Views:
    """The image's middle: nothing is random."""
    return Views((View(size_px, interpolation=interpolation, flip=0.0, resize_px=resize_px),), normalise)


def keys_of(positions: NDArray[np.int64], key: int) -> NDArray[np.uint64]:
    """What all draws of samples come from: one number a position of an epoch, whose key this is."""
    return mix64(positions, key ^ 0x5D588B656C078965)  # apart from the numbers that the order takes from the key


class Drawn(NamedTuple):
    """What is random about a sample. key: its own number. numbers: (V, DRAWS) of 0..1, 1 excluded, for each view."""

    key: np.uint64
    numbers: NDArray[np.float64]


def draw(keys: NDArray[np.uint64], views: int) -> list[Drawn]:
    """The numbers of samples that have these keys."""
    counted = np.arange(views * DRAWS, dtype=np.uint64)
    mixed = mix64((counted + (keys * np.uint64(0x9E3779B97F4A7C15))[:, None]).view(np.int64), 0)
    numbers = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return [Drawn(key, own) for key, own in zip(keys, numbers.reshape(len(keys), views, DRAWS), strict=True)]


def generator(key: np.uint64) -> np.random.Generator:
    """The random numbers that a user's own function gets for a sample."""
    return np.random.Generator(np.random.Philox(key=int(key)))
