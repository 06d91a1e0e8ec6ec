"""JPEG decoded where the batch goes: by nvJPEG on a GPU, through torchvision; crops are resized there, too.

For machines with many GPUs and few cores. Boxes of crops, order and report are those of decoding in threads; pixels are
not the same bytes: nvJPEG's own inverse DCT and one rounding where Pillow has two make a level or two of difference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import RecipeError
from .augment import Crop, View, middle, middle_size
from .decode import Decoder, Levels, Wanted, tells_exif
from .device import Device
from .jpeg import header

if TYPE_CHECKING:
    from .maker import Maker, Slots


class Encoded(NamedTuple):
    """A JPEG that is left to the device, in the place of its pixels."""

    data: bytes
    shape: tuple[int, int, int]
    dtype: np.dtype[Any] = np.dtype(np.uint8)


class Left(Decoder):
    """Leaves plain JPEGs to the device; other images are decoded here."""

    def __call__(self, data: bytes, wanted: Wanted | None = None) -> Levels:
        about = header(data) if data[:2] == b"\xff\xd8" and not tells_exif(data) else None
        if about is None:
            return super().__call__(data, wanted)
        return Encoded(data, (about.height, about.width, 3))  # type: ignore[return-value]


def left(views: Sequence[View], repeats: int, raw: object) -> Left:
    """What leaves JPEG for the device; RecipeError for what is made of pixels in threads alone."""
    if not views or raw is not None or repeats > 1 or any(any(view.colours) for view in views):
        raise RecipeError(
            'decode: "device" is for views of JPEG: no function, camera RAW, repeats, brightness, contrast, saturation '
            'or hue; leave it at "threads"'
        )
    return Left()


def made(maker: Maker, slots: Slots, device: Device) -> list[dict[int, Callable[[], Tensor]]]:
    """For each view, what makes it on the device, by slot. What is not decoded there is made here, or replaced."""
    views: list[dict[int, Callable[[], Tensor]]] = [{} for _ in maker.views]
    places = [slot for slot, data in enumerate(slots.images) if data is not None]
    with torch.cuda.stream(device.stream):
        images = decoded([slots.images[slot] for slot in places], device.device)
    for slot, image in zip(places, images, strict=True):
        if image is None:
            (drawn,) = maker.draw(slots.positions[slot : slot + 1])
            replace(maker, decoder=Decoder()).put(slots, slot, drawn)
            continue
        for by, view, crop in zip(views, maker.views, slots.crops[slot].tolist(), strict=True):
            by[slot] = partial(shown, image, view, Crop(*crop))
    return views


def decoded(images: Sequence[bytes], device: torch.device) -> list[Tensor | None]:
    """(3, H, W) uint8 on the device of each JPEG; None for one that it does not decode."""
    if not images:
        return []
    from torchvision.io import ImageReadMode, decode_jpeg  # here: it takes seconds, and holds gloo's group past its end

    data = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in images]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torchvision 0.29: torchcodec is to have it some day
            return list(decode_jpeg(data, mode=ImageReadMode.RGB, device=device))
    except RuntimeError:  # it does not say which
        if len(images) == 1:
            return [None]
        return [one for image in images for one in decoded([image], device)]


def shown(image: Tensor, view: View, crop: Crop) -> Tensor:
    """What a view shows of an image: (3, H, W) -> (3, size_px, size_px) uint8."""
    if view.resize_px is not None:
        height, width = middle_size(image.shape[1], image.shape[2], view.resize_px)
        whole = resized(image, height, width, view)
        top, left = middle(height, view.size_px), middle(width, view.size_px)
        return whole[:, top : top + view.size_px, left : left + view.size_px]
    part = image[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    made = resized(part, view.size_px, view.size_px, view)
    return torch.rot90(made.flip(2) if crop.flipped else made, crop.turns, (1, 2))


def resized(image: Tensor, height: int, width: int, view: View) -> Tensor:
    levels = F.interpolate(image[None].float(), (height, width), mode=view.interpolation, antialias=True)
    return levels[0].round_().clamp_(0, 255).to(torch.uint8)
