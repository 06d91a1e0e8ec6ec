"""Shots: a camera RAW and the camera's own JPEG of it, as one image in the frame of the JPEG as it is shown.

Boxes are of the JPEG. The RAW is turned by its own orientation and cut to the JPEG's size about its middle, as the JPEG
lacks some pixels of its borders. Whether the two then show the same is seen by correlating small copies of both; by
how much they are shifted is measured on a grid of 5 x 5 places.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from . import bayer, files, raw
from .errors import NotBayer, SourceError
from .files import File
from .image import COLOURS, FORMATS, WHOLE_PX
from .kernels import jit
from .measure import Pixels
from .raw import RawImage
from .remote import Root
from .sample import Sample, Window

FORMAT, ARRAY = "RAW", "NPY"
FORMATS_OF_SHOTS = (FORMAT, ARRAY)
BANDS = ("mosaic",)
MOST_LOST_PX, MOST_LOST_SHARE = 64, 0.05  # of a side, that a JPEG may lack of its RAW: the larger of the two
THUMB_PX = 64  # longest side of the copies that are correlated
SAME_SCENE = 0.5  # least correlation of log luma; half turns and other pictures stay below, see LOG.md
GRID = 5  # places along each side at which the shift is measured
PATCH_PX, MOST_SHIFT_PX = 64, 16
CLEAR = 0.5  # least correlation at the best shift of a place that counts
FULL_SCALE = 65535
PUBLISHED_BITS = 2**14 - 1
ARRAY_BLACK = 512.0


class Conflict(Exception):
    """A RAW and a JPEG that do not show the same, or not the same way up: `orientation_conflict`."""


class NoBayer(Exception):
    """A RAW of another kind of sensor: `not_bayer`."""


@dataclass(frozen=True)
class Shot:
    """One shot in its frame: (H, W) of both pictures are equal."""

    whole: RawImage
    image: RawImage  # cut to the frame
    picture: Pixels  # (H, W, 3) uint8: the JPEG, or what the RAW shows where there is none
    stored: bytes | None  # the JPEG's own bytes, where any decoder shows them alike
    frame: tuple[int, int]  # left and top of the frame in the RAW as shown, px
    shifts: tuple[tuple[float, float], ...]  # right and down, px, of the JPEG against the RAW; NaN: not clear there

    @property
    def shift_px(self) -> float | None:
        """The largest shift of any place that is clear; None where none is, or there is no JPEG."""
        clear = [max(abs(x), abs(y)) for x, y in self.shifts if x == x]
        return max(clear) if clear else None

    def fields(self, sample: Sample) -> dict[str, Any]:
        """What is known of a record that is (a window of) it, as fields of `Sample`."""
        window = sample.window or Window(0, 0, sample.image_width, sample.image_height)
        return {"camera": self.camera_json(window), "pair_shift_px": self.shift_px}

    def camera_json(self, window: Window) -> str:
        """JSON of what is known of the camera, of a window of the frame: levels and colours by its own positions."""
        image = self.image
        by_site = [2 * ((window.top + y) % 2) + (window.left + x) % 2 for y, x in bayer.SITES]
        plain = {
            "cfa": "".join(image.cfa[n] for n in by_site),
            "black": [image.black[n] for n in by_site],
            "white": image.white,
            "full": full_level(image.white),
            "white_by_site": [image.white_by_site[n] for n in by_site] if image.white_by_site else [],
            "white_balance": list(image.white_balance),
            "matrix": list(image.matrix),
            "iso": image.iso,
            "exposure_s": image.exposure_s,
            "orientation": image.orientation,
            "make": image.make,
            "model": image.model,
            "frame": list(self.frame),
            "shifts_px": [[-1e9 if v != v else v for v in pair] for pair in self.shifts],
        }
        return json.dumps(plain)


def frame_of(shown: tuple[int, int], twin: tuple[int, int]) -> tuple[int, int]:
    """Left and top of the frame of a JPEG in its RAW, both as shown, (width, height) px. Conflict if it cannot be."""
    lost = [a - b for a, b in zip(shown, twin, strict=True)]
    if any(not 0 <= n <= max(MOST_LOST_PX, MOST_LOST_SHARE * side) for n, side in zip(lost, shown, strict=True)):
        sizes = f"{shown[0]} x {shown[1]} px of the RAW as shown, {twin[0]} x {twin[1]} px of the JPEG"
        raise Conflict(sizes)
    return lost[0] // 2, lost[1] // 2


def twin_of(sample: Sample) -> File | None:
    """Where the JPEG of a shot lies."""
    return File(**json.loads(sample.twin)) if sample.twin else None


def opened(root: Root, sample: Sample) -> Shot:
    """The shot that a record is (a window of). Raises Conflict, NoBayer, and OSError where one cannot be read."""
    try:
        whole = raw.read(files.read(root, sample))
    except NotBayer as exc:
        raise NoBayer(str(exc)) from None
    except SourceError as exc:
        raise OSError(str(exc)) from None
    height, width = whole.mosaic.shape
    frame = frame_of((width, height), (sample.image_width, sample.image_height))
    image = whole.crop(Window(*frame, sample.image_width, sample.image_height))
    file = twin_of(sample)
    if file is None:
        return Shot(whole, image, rendered(image), None, frame, ())
    content = files.read(root, file)
    with Image.open(io.BytesIO(content), formats=FORMATS) as opened_:
        if opened_.width * opened_.height > WHOLE_PX:
            raise OSError(f"{file.name}: over {WHOLE_PX} px")
        exif = opened_.getexif().get(0x0112, 1)
        alike = opened_.format == "JPEG" and opened_.mode == "RGB" and exif == 1
        picture = np.asarray(ImageOps.exif_transpose(opened_).convert("RGB"))
    check_same(image, picture)
    if picture.shape[:2] != image.mosaic.shape:
        raise OSError(f"{file.name}: {picture.shape[1]} x {picture.shape[0]} px, where its header said otherwise")
    check_same(image, picture)
    return Shot(whole, image, picture, content if alike else None, frame, shifts(image, picture))


def array_header(data: bytes) -> tuple[int, int, tuple[str, ...]]:
    """Width, height and bands of a published array, (4, H/2, W/2) or (3, h, w) float32. OSError if it is none."""
    planes = np.load(io.BytesIO(data), allow_pickle=False)
    if planes.ndim != 3 or planes.dtype != np.float32 or len(planes) not in (3, 4):
        raise OSError(f"an array of {planes.shape} {planes.dtype}, where AODRaw has (4 or 3, h, w) float32")
    height, width = (2 * side if len(planes) == 4 else side for side in planes.shape[1:])
    return width, height, BANDS if len(planes) == 4 else COLOURS


def of_array(root: Root, sample: Sample) -> tuple[Shot, NDArray[np.uint16]]:
    """A published array as a shot, and its levels: (H, W, 1) of a slice, put together again, or (h, w, 3) of a picture
    at a third, of full scale 65535. OSError where it is not what it must be.

    What it does not tell is taken as its makers take it: RGGB, 14 bits; black is Sony's usual 512.
    """
    planes = np.load(io.BytesIO(files.read(root, sample)), allow_pickle=False)
    black = (ARRAY_BLACK,) * 4
    if len(planes) == 4:
        if not (planes.min() >= 0 and planes.max() <= PUBLISHED_BITS and np.array_equal(planes, np.rint(planes))):
            raise OSError(f"numbers that are no {PUBLISHED_BITS.bit_length()} bits of a sensor")
        whole = np.empty((2 * planes.shape[1], 2 * planes.shape[2]), np.uint16)
        for plane, (y, x) in zip(planes, ((0, 0), (0, 1), (1, 1), (1, 0)), strict=True):
            whole[y::2, x::2] = plane
        image = RawImage(whole, black, PUBLISHED_BITS, "RGGB")
        return Shot(image, image, rendered(image), None, (0, 0), ()), whole[:, :, None]
    levels = np.clip(planes.transpose(1, 2, 0) * (FULL_SCALE / 255) + 0.5, 0, FULL_SCALE).astype(np.uint16)
    picture = (np.clip(planes.transpose(1, 2, 0) / 255, 0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)
    nothing = RawImage(np.zeros((2, 2), np.uint16), black, PUBLISHED_BITS, "RGGB")
    return Shot(nothing, nothing, np.ascontiguousarray(picture), None, (0, 0), ()), np.ascontiguousarray(levels)


def luma_of(image: RawImage) -> NDArray[np.float32]:
    """Luma of a RAW at half its size, (H/2, W/2), about 0..1: the mean of both greens, above black."""
    height, width = (side - side % 2 for side in image.mosaic.shape)
    greens = [n for n, colour in enumerate(image.cfa) if colour == "G"]
    total: NDArray[np.float32] = np.zeros((height // 2, width // 2), np.float32)
    for n in greens:
        y, x = bayer.SITES[n]
        total += image.mosaic[y:height:2, x:width:2].astype(np.float32) - np.float32(image.black[n])
    return np.asarray(total / np.float32(2 * (image.white - min(image.black))), np.float32)


def half_luma(picture: Pixels) -> NDArray[np.float32]:
    """Linear green of a picture at half its size, (H/2, W/2)."""
    height, width = (side - side % 2 for side in picture.shape[:2])
    green = picture[:height, :width, 1]
    total = green[::2, ::2].astype(np.float32) + green[1::2, ::2] + green[::2, 1::2] + green[1::2, 1::2]
    return np.asarray((total / np.float32(4 * 255)) ** np.float32(2.2), np.float32)


def small(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log luma in boxes, its longest side THUMB_PX or less than twice that."""
    step = max(max(luma.shape) // THUMB_PX, 1)
    height, width = (side // step * step for side in luma.shape)
    boxes = luma[:height, :width].reshape(height // step, step, width // step, step).mean(axis=(1, 3))
    logs: NDArray[np.float32] = np.log(np.maximum(boxes, 0) + np.float32(1e-3))
    return logs


def correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Pearson's, -1..1; 0 where either is flat."""
    a, b = one - one.mean(), other - other.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0


def check_same(image: RawImage, picture: Pixels) -> None:
    """Conflict unless the JPEG is the RAW the same way up: no other turn may fit better than none."""
    one, other = small(luma_of(image)), small(half_luma(picture))
    flat = min(float(one.std()), float(other.std())) < 0.02  # a fogged or covered lens tells no direction
    upright = correlation(one, other)
    turned = {n: correlation(one, bayer.turn(other, n)) for n in (2, 3, 4)}
    best = max(turned, key=lambda n: turned[n])
    if not flat and (turned[best] > upright + 0.05 or upright < SAME_SCENE):
        what = f"; turned by EXIF orientation {best}, {turned[best]:.2f}" if turned[best] > upright else ""
        raise Conflict(f"thumbnails of RAW and JPEG correlate by {upright:.2f}{what}")


def shifts(image: RawImage, picture: Pixels) -> tuple[tuple[float, float], ...]:
    """Shift of the JPEG against the RAW, right and down in px, at 5 x 5 places, row by row; NaN where it is not clear.

    Of patches of 64 px of the luma at half size, by the best correlation: to 2 px of the mosaic. In whole numbers, so
    that it is the same on every machine.
    """
    one, other = ((np.clip(luma, 0, 1) * 65535).astype(np.int64) for luma in (luma_of(image), half_luma(picture)))
    side = min(PATCH_PX, *one.shape)
    reach = min(MOST_SHIFT_PX // 2, side // 4)
    found = []
    for n in range(GRID):
        for m in range(GRID):
            top, left = (int((v + 0.5) / GRID * (length - side)) for v, length in zip((n, m), one.shape, strict=True))
            inner = one[top + reach : top + side - reach, left + reach : left + side - reach]
            right, down, score = _best_shift(inner, other[top : top + side, left : left + side], reach)
            found.append((2.0 * right, 2.0 * down) if score >= CLEAR else (float("nan"), float("nan")))
    return tuple(found)


@jit
def _best_shift(inner, around, reach):  # type: ignore[no-untyped-def]
    """Where in `around` a patch lies: right and down of the middle, and correlation there; the nearest of equals."""
    height, width = inner.shape
    count = height * width
    sum_in, squares_in = inner.sum(), (inner * inner).sum()
    spread = count * squares_in - sum_in * sum_in
    best, right, down = -2.0, 0, 0
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            total, squares, both = np.int64(0), np.int64(0), np.int64(0)
            for y in range(height):
                a, b = inner[y], around[y + reach + dy, reach + dx :]
                for x in range(width):
                    total += b[x]
                    squares += b[x] * b[x]
                    both += a[x] * b[x]
            size = np.sqrt(float(spread)) * np.sqrt(float(count * squares - total * total))
            score = float(count * both - sum_in * total) / size if size > 0 else 0.0
            nearer = abs(dx) + abs(dy) < abs(right) + abs(down)
            if score > best or (score == best and nearer):
                best, right, down = score, dx, dy
    return right, down, best


def rendered(image: RawImage) -> Pixels:
    """What a RAW shows, (H, W, 3) uint8: white-balanced, in sRGB if its matrix is known, its 99th percentile white."""
    rgb = raw.demosaic(image.mosaic, image.cfa)
    black = np.float32(np.mean(image.black))
    rgb -= black
    rgb *= np.reshape(np.array(image.white_balance, np.float32), (3, 1, 1)) / np.float32(image.white - black)
    if any(image.matrix):
        rgb = np.tensordot(np.reshape(np.array(image.matrix, np.float32), (3, 3)), rgb, 1)
    top = max(float(np.quantile(rgb[:, ::4, ::4], 0.99)), 1e-6)
    shown: Pixels = (np.clip(rgb / top, 0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(shown.transpose(1, 2, 0))


def reduced(shot: Shot, width: int, height: int, published: bool) -> NDArray[Any]:
    """A shot demosaiced and reduced, (height, width, 3), bilinear without smoothing, as AODRaw's script reduces.

    As 16 bits in which 65535 is the full scale of the camera's bits. published: as that script's own array, which takes
    the turned mosaic for RGGB: float32, 255 at 14 bits.
    """
    place = (*shot.frame, shot.image.mosaic.shape[1], shot.image.mosaic.shape[0])
    cfa = "RGGB" if published else shot.whole.cfa
    rgb = bayer.downsampled(shot.whole.mosaic, cfa, Window(*place), width, height)
    if published:
        return np.asarray(rgb / np.float32(PUBLISHED_BITS / 255))
    full: NDArray[np.uint16] = np.clip(
        rgb * np.float32(FULL_SCALE / full_level(shot.image.white)) + 0.5, 0, FULL_SCALE
    ).astype(np.uint16)
    return full


def full_level(white: int) -> int:
    """The highest number of as many bits as the white level needs: 16383 of 14 bits."""
    return int((1 << int(white).bit_length()) - 1)


def shrunk(picture: Pixels, width: int, height: int) -> Pixels:
    """A picture reduced as AODRaw's script reduces JPEGs: OpenCV's INTER_LINEAR."""
    import cv2

    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR))
