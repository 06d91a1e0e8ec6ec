"""Points of a picture and how it looks around them: what two pictures that share only a part have in common.

ORB (Rublee et al., ICCV 2011): corners on 8 levels of a pyramid, each with a direction and 256 bits that neither scale
nor turning changes. A mirrored picture has other bits: held-out pictures are described twice, as they are and mirrored.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

VERSION = 1  # raise it when other points come of the same pixels
POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("level", "u1"), ("angle", "u1"), ("code", "<u8", (4,))])  # packed
STEP = 1.2  # between two levels of the pyramid
LEVELS = 8
MOST = 400  # points of a cell
CELL_PX = 512
LEAST_PX = 48  # of a side: smaller pictures have no points
EDGE_PX = 19  # of a level, without points: the bits of a point are told by px up to 18 px away
CORNER_LEVELS = 7  # that a corner must stand out by; 20 is usual, and leaves fields and water without points
Points = NDArray[Any]  # (N,) POINT
Gray = NDArray[np.uint8]  # (H, W)


def points_of(gray: Gray) -> Points:
    """Points of a picture, (H, W) uint8 -> (N,) POINT: x and y in px, angle in 1/256 of a turn; at most 400 a cell."""
    height, width = gray.shape
    if min(height, width) < LEAST_PX:
        return np.zeros(0, POINT)
    orb = cv2.ORB.create(MOST, STEP, LEVELS, EDGE_PX, fastThreshold=CORNER_LEVELS)
    found = [np.zeros(0, POINT)]
    for top, bottom in cells(height):
        for left, right in cells(width):
            found.append(_cell(orb, gray[top:bottom, left:right], left, top))
    return np.concatenate(found)


def cells(side: int) -> list[tuple[int, int]]:
    """A side in equal parts of at most half as much again as a cell."""
    count = max(round(side / CELL_PX), 1)
    edges = [side * n // count for n in range(count + 1)]
    return list(pairwise(edges))


def _cell(orb: cv2.ORB, gray: Gray, left: int, top: int) -> Points:
    corners, codes = orb.detectAndCompute(np.ascontiguousarray(gray), None)
    points = np.zeros(len(corners), POINT)
    if corners:
        points["x"] = [corner.pt[0] + left for corner in corners]
        points["y"] = [corner.pt[1] + top for corner in corners]
        points["level"] = [corner.octave for corner in corners]
        points["angle"] = np.rint(np.array([corner.angle for corner in corners]) * (256 / 360)).astype(np.int64) % 256
        points["code"] = codes.view("<u8")
    return points


def gray_of(pixels: NDArray[np.uint8]) -> Gray:
    """Luma of (H, W, 3) uint8."""
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY), np.uint8)


def decoded(data: bytes) -> Gray | None:
    """Luma of an encoded picture as stored; None where it is no JPEG, PNG, WebP, … of 8 bits."""
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    gray = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if gray is None else np.asarray(gray, np.uint8)


def halved(gray: Gray) -> Gray:
    """The picture at half its size, by means of 2 x 2 px."""
    height, width = gray.shape
    return np.asarray(
        cv2.resize(gray, (max(width // 2, 1), max(height // 2, 1)), interpolation=cv2.INTER_AREA), np.uint8
    )
