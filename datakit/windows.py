"""Window arithmetic: grids, random windows, overlaps. No pixels, no records."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np

from .sample import Window

TRIES = 100  # for a random window that overlaps the others too much


def grid(width: int, height: int, size_px: int, gap_px: int = 0, even: bool = False) -> list[Window]:
    """Windows of at most `size_px` that cover (width, height) px, row by row, neighbours sharing `gap_px`.

    The last of a row or column is moved back to fit. even: windows begin at even pixels, to keep a Bayer pattern's
    phase; a last odd row or column is then left out, and an image that is nothing else has no windows.
    """
    if size_px < 1 or not 0 <= gap_px < size_px:
        raise ValueError(f"size_px ({size_px}) must be positive, gap_px ({gap_px}) at least 0 and less than size_px")
    if even:
        if size_px % 2:
            raise ValueError(f"size_px ({size_px}) must be even where windows begin at even pixels")
        width, height = width - width % 2, height - height % 2
    lefts, tops = starts(width, size_px, gap_px), starts(height, size_px, gap_px)
    if even:
        if not width or not height:
            return []
        lefts, tops = sorted({n - n % 2 for n in lefts}), sorted({n - n % 2 for n in tops})
    return [Window(left, top, min(size_px, width), min(size_px, height)) for top in tops for left in lefts]


def starts(length_px: int, size_px: int, gap_px: int = 0) -> list[int]:
    """Where windows of `size_px` begin along `length_px`."""
    last = max(length_px - size_px, 0)
    return [*range(0, last, size_px - gap_px), last]


def scattered(
    rng: np.random.Generator,
    image_px: tuple[int, int],
    sides_px: tuple[int, int],
    law: Literal["uniform", "log_uniform"],
    crops: int,
    max_overlap_share: float,
) -> list[Window]:
    """Up to `crops` square windows at random in an image of (width, height) px, in order of top and left.

    Sides follow `law` between sides_px, cut to the image. The largest are placed first. A window that shares more than
    `max_overlap_share` of its own or another's area is placed anew, up to 100 times, then left out.
    """
    width, height = image_px
    low, high = (min(side, width, height) for side in sides_px)
    shares = rng.random(crops)
    sides = low * (high / low) ** shares if law == "log_uniform" else low + (high - low) * shares
    kept: list[Window] = []
    near: dict[tuple[int, int], list[Window]] = {}  # by square of the longest side: a window lies in at most 4 of them
    for side in sorted((round(float(s)) for s in sides), reverse=True):
        for _ in range(TRIES):
            left, top = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
            window = Window(left, top, side, side)
            squares = {(x // high, y // high) for x in (left, left + side) for y in (top, top + side)}
            others = {w for square in squares for w in near.get(square, ())}
            if window not in others and overlap_share(window, others) <= max_overlap_share:
                kept.append(window)
                for square in squares:
                    near.setdefault(square, []).append(window)
                break
    return sorted(kept, key=lambda w: (w.top, w.left, w.height))


def overlap_share(window: Window, others: Iterable[Window]) -> float:
    """Largest overlap of a window with any of others, over the smaller of the two areas: 0..1."""
    left, top, width, height = window
    most = 0.0
    for x, y, across, down in others:
        shared_x = min(x + across, left + width) - max(x, left)
        shared_y = min(y + down, top + height) - max(y, top)
        if shared_x > 0 and shared_y > 0:
            most = max(most, shared_x * shared_y / min(across * down, width * height))
    return most


def crops_per_area(width: int, height: int, sides_px: tuple[int, int], law: Literal["uniform", "log_uniform"]) -> int:
    """How many random windows have, on average, the area of the image, as long as they may overlap: at least 1."""
    low, high = (float(min(side, width, height)) for side in sides_px)
    if high <= low:
        mean = low * low
    elif law == "log_uniform":
        mean = (high**2 - low**2) / (2 * math.log(high / low))
    else:
        mean = (high**3 - low**3) / (3 * (high - low))
    return max(round(width * height / mean), 1)
