"""Two pictures put over each other: is what both show the same, point by point and pixel by pixel?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .points import STEP, Gray, Points, decoded, halved

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
BESIDE = 32  # points that a point is compared with: a corner is one on several levels
NEAR_PX = 4.0  # a point and its place in the other picture, px of the coarser of the two
AGREE_BITS = 72  # of 256, along a similarity that is known
LEAST_POINTS = 6  # that agree, below which pixels are not looked at
LEAST_PX = 24  # of a side of what both show, at the common scale
MOST_SCALE = 4.0
LEAST_CORRELATION = 0.3  # below which nothing is told
BLUR_PX = 1.0  # points place a picture to about a px
LIGHT_PX = 12.0  # what is wider than this is light, and not compared


@dataclass(frozen=True)
class Held:
    """A held-out image, maybe mirrored: its points, and the windows that its pixels lie in, at half their size."""

    size: tuple[int, int]  # width, height, px
    mirrored: bool
    points: Points  # in px of it
    windows: Sequence[int]
    gray: Callable[[int], bytes]
    window: Callable[[int], tuple[int, int, int, int]]

    def place(self, number: int) -> tuple[int, int, int, int]:
        """Left, top, width, height of a window, mirrored as the image is."""
        left, top, width, height = self.window(number)
        return (self.size[0] - left - width if self.mirrored else left), top, width, height

    def pixels(self, number: int) -> Gray | None:
        """Luma of a window, at half its size."""
        gray = decoded(self.gray(number))
        return gray[:, ::-1] if gray is not None and self.mirrored else gray


class Match(NamedTuple):
    """What a picture shares with a held-out image."""

    share: float  # of the picture
    held_share: float  # of the held-out image
    scale: float  # px of the picture a px of the held-out image
    degrees: float  # that the held-out image is turned clockwise to lie on the picture, after it was mirrored
    mirrored: bool
    points: int  # that agree
    correlation: float  # of the pixels of the part that both show, -1 to 1
    box: tuple[float, float, float, float]  # around that part: left, top, right, bottom in px of the picture


def match(gray: Gray, points: Points, held: Held, pairs: Ints) -> Match | None:
    """What a picture shares with a held-out image, from pairs of points that look alike; None if nothing.

    gray: (H, W) uint8; points: of it; pairs: (N, 2) rows of points and of held.points.
    """
    way = _fitted(points, held.points, pairs)
    for _ in range(2):
        if way is None:
            return None
        pairs = _along(way, points, held)
        way = _fitted(points, held.points, pairs)
    if way is None or len(pairs) < LEAST_POINTS:
        return None
    height, width = gray.shape
    outline = _mapped(way, _corners((0, 0, width, height)))
    both = _overlap(outline, (0, 0, *held.size))
    scale = _scale(way)  # px of the held-out image a px of the picture
    correlation = _correlation(gray, way, outline, held)
    if both <= 0 or correlation < LEAST_CORRELATION:
        return None
    degrees = math.degrees(math.atan2(-way[1, 0], way[0, 0]))
    shares = min(both / (width * height * scale**2), 1.0), min(both / (held.size[0] * held.size[1]), 1.0)
    back = cv2.invertAffineTransform(way)
    box = _box(_mapped(back, _corners((0, 0, *held.size))), (0, 0, width, height))
    return Match(*shares, 1 / scale, degrees % 360, held.mirrored, len(pairs), correlation, box)


def _fitted(points: Points, theirs: Points, pairs: Ints) -> Doubles | None:
    """The similarity that maps most points to their partners, (2, 3); None where there is none."""
    if len(pairs) < 3:
        return None
    mine, its = points[pairs[:, 0]], theirs[pairs[:, 1]]
    one, other = (np.stack([p["x"], p["y"]], axis=1) for p in (mine, its))
    coarse = max(float(np.median(STEP ** (its["level"].astype(float) - mine["level"]))), 1.0)
    way, _ = cv2.estimateAffinePartial2D(one, other, ransacReprojThreshold=NEAR_PX * coarse, maxIters=500)
    if way is None or not np.isfinite(way).all():
        return None
    return way if 1 / MOST_SCALE <= _scale(way) <= MOST_SCALE else None


def _scale(way: Doubles) -> float:
    return float(math.hypot(way[0, 0], way[1, 0]))


def _mapped(way: Doubles, xy: NDArray[Any]) -> Doubles:
    return np.asarray(xy @ way[:, :2].T + way[:, 2])


def _along(way: Doubles, points: Points, held: Held) -> Ints:
    """Pairs of points that lie on one another along a similarity, have its scale, and look alike: (N, 2).

    A point has one partner, that which looks most like it.
    """
    scale = _scale(way)
    near_px = NEAR_PX * max(scale, 1.0)
    xy = _mapped(way, np.stack([points["x"], points["y"]], axis=1).astype(np.float64))
    low, high = xy.min(axis=0) - near_px, xy.max(axis=0) + near_px
    x, y = held.points["x"], held.points["y"]
    some = np.flatnonzero((x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1]))
    theirs = np.asarray(held.points[some])
    if not len(theirs):
        return np.zeros((0, 2), np.int64)
    tree = cKDTree(np.stack([theirs["x"], theirs["y"]], axis=1))
    _, those = tree.query(xy, min(BESIDE, len(theirs)), distance_upper_bound=near_px)
    those = those.reshape(len(xy), -1)
    mine, rank = np.nonzero(those < len(theirs))
    its = those[mine, rank]
    levels = theirs["level"][its].astype(np.float64) - points["level"][mine]
    bits = np.bitwise_count(points["code"][mine] ^ theirs["code"][its]).sum(axis=1)
    alike = (np.abs(levels - math.log(scale, STEP)) <= 2) & (bits <= AGREE_BITS)
    mine, its, bits = mine[alike], its[alike], bits[alike]
    for column in (0, 1):  # one partner each, on either side
        by = np.lexsort((its, mine, bits, (mine, its)[column]))
        first = by[np.unique((mine, its)[column][by], return_index=True)[1]]
        mine, its, bits = mine[first], its[first], bits[first]
    return np.stack([mine, some[its]], axis=1)


def _overlap(outline: Doubles, box: tuple[float, float, float, float]) -> float:
    """Area that a convex outline, (4, 2), shares with a box of left, top, width, height."""
    return float(cv2.intersectConvexConvex(outline.astype(np.float32), _corners(box).astype(np.float32))[0])


def _box(outline: Doubles, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom around what a convex outline shares with a box."""
    _, both = cv2.intersectConvexConvex(outline.astype(np.float32), _corners(box).astype(np.float32))
    if both is None:
        return (0.0, 0.0, 0.0, 0.0)
    (left, top), (right, bottom) = both.reshape(-1, 2).min(axis=0).tolist(), both.reshape(-1, 2).max(axis=0).tolist()
    return left, top, right, bottom


def _corners(box: tuple[float, float, float, float]) -> Doubles:
    """The corners of left, top, width, height: (4, 2)."""
    left, top, width, height = box
    return np.array([[left, top], [left + width, top], [left + width, top + height], [left, top + height]], np.float64)


def _correlation(gray: Gray, way: Doubles, outline: Doubles, held: Held) -> float:
    """Correlation of the pixels that both show, in the window of the held-out image with most of them; 0 if too few.

    Both are brought to half the coarser of their scales.
    """
    area, window = max(((_overlap(outline, held.place(n)), -n) for n in held.windows), default=(0.0, 0))
    theirs = held.pixels(-window) if area > 0 else None
    if theirs is None:
        return 0.0
    left, top, width, height = held.place(-window)
    scale = _scale(way)
    mine, theirs = _reduced(halved(gray), scale), _reduced(theirs, 1 / scale)
    fine = [full / few for full, few in zip(gray.shape, mine.shape, strict=True)]
    down, across = (full / few for full, few in zip((height, width), theirs.shape, strict=True))
    # px of `mine` -> of the picture -> of the held-out image -> of `theirs`; centres of px lie at whole numbers
    to_picture = np.array([[fine[1], 0, fine[1] / 2 - 0.5], [0, fine[0], fine[0] / 2 - 0.5], [0, 0, 1]])
    to_theirs = np.array([[1 / across, 0, (0.5 - left) / across - 0.5], [0, 1 / down, (0.5 - top) / down - 0.5]])
    whole = to_theirs @ np.vstack([way, [0, 0, 1]]) @ to_picture
    size = theirs.shape[::-1]
    laid = cv2.warpAffine(mine.astype(np.float32), whole, size, flags=cv2.INTER_LINEAR)
    inside = cv2.warpAffine(np.ones(mine.shape, np.float32), whole, size, flags=cv2.INTER_LINEAR) > 0.999
    return correlated(laid, theirs.astype(np.float32), inside)


def _reduced(gray: Gray, scale: float) -> Gray:
    """A picture as it is, or reduced where the scale is less than 1."""
    if scale >= 1:
        return gray
    size = max(round(gray.shape[1] * scale), 1), max(round(gray.shape[0] * scale), 1)
    return np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), np.uint8)


def correlated(one: NDArray[np.float32], other: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """Correlation of two pictures, (H, W), where `inside`, without light and noise; 0 where that is too small."""
    if not inside.any() or min(np.ptp(where) + 1 for where in np.nonzero(inside)) < LEAST_PX:
        return 0.0
    weight = inside.astype(np.float32)
    light = cv2.GaussianBlur(weight, (0, 0), LIGHT_PX) + 1e-6
    flat = []
    for picture in (one, other):
        mean = cv2.GaussianBlur(picture * weight, (0, 0), LIGHT_PX) / light
        values = cv2.GaussianBlur((picture - mean) * weight, (0, 0), BLUR_PX)[inside]
        flat.append(values - values.mean())
    lengths = math.sqrt(float(flat[0] @ flat[0]) * float(flat[1] @ flat[1]))
    return float(flat[0] @ flat[1]) / lengths if lengths > 0 else 0.0
