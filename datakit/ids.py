"""Masks of class ids as colours, as ImageNet-S stores them: id = R + 256 G, blue unused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LEVELS = 1 << 16


def of_colours(colours: NDArray[Any]) -> NDArray[np.uint16]:
    """(H, W, 3) uint8 -> (H, W) ids. ValueError where they are no ids: of other shape or type, or with blue in them.

    In 16 bits before anything is multiplied: uint8 * 256 overflows.
    """
    if colours.ndim != 3 or colours.shape[2] != 3 or colours.dtype != np.uint8:
        raise ValueError(f"a mask of {colours.dtype} {colours.shape}: ids are red + 256 green, of 8 bits")
    if colours[:, :, 2].any():
        raise ValueError("a mask with blue in it: ids are red + 256 green")
    wide = colours.astype(np.uint16)
    return wide[:, :, 0] + np.uint16(256) * wide[:, :, 1]


def to_colours(ids: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W) ids, 0 to 65,535 -> (H, W, 3) uint8."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "bui":
        raise ValueError(f"ids of {ids.dtype} {ids.shape}: give (H, W) integers")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < LEVELS:
        raise ValueError(f"ids from {ids.min()} to {ids.max()}: 0 to {LEVELS - 1} can be stored")
    return np.stack([ids % 256, ids // 256, np.zeros_like(ids)], axis=2).astype(np.uint8)


def decode(data: bytes) -> NDArray[np.uint16]:
    """The ids in a PNG, (H, W)."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        return of_colours(np.asarray(picture))


def encode(ids: NDArray[Any]) -> bytes:
    """A PNG of ids, (H, W)."""
    out = io.BytesIO()
    Image.fromarray(to_colours(ids)).save(out, "PNG")
    return out.getvalue()
