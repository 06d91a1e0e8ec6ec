"""What a network sees of a mosaic: a frozen spec, applied at read time with the sample's own levels and pattern.

A sample keeps the sensor's numbers; black level, white level, white balance, matrix and gamma are choices of whoever
trains, and cost no new shards. Each step is linear up to `gamma`, in this order: black, planes, reduction, white, white
balance, matrix, gamma, clip, top.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from . import bayer
from .errors import RecipeError
from .raw import RawImage
from .sample import Spec, Window

FULL_SCALE = 65535
BYTE = 255  # what AODRaw's loaders divide by before they take the root
Planes = NDArray[Any]  # (C, h, w)


@dataclass(frozen=True)
class Camera:
    """What is known of the camera of a sample; positions are those of its mosaic."""

    cfa: str
    black: tuple[float, ...]
    white: float
    full: float  # highest number of its bits
    white_by_site: tuple[float, ...] = ()
    white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    matrix: tuple[float, ...] = (0.0,) * 9

    @classmethod
    def of(cls, text: str | Mapping[str, Any]) -> Camera:
        """Of the field `camera` of a sample's JSON; RecipeError where it says nothing."""
        plain = json.loads(text) if isinstance(text, str) and text else text
        if not isinstance(plain, Mapping):
            raise RecipeError("this sample has no `camera` in its JSON: it is no camera RAW")
        names = ("black", "white_by_site", "white_balance", "matrix")
        lists = {name: tuple(float(v) for v in plain[name]) for name in names}
        return cls(str(plain["cfa"]), white=float(plain["white"]), full=float(plain["full"]), **lists)  # type: ignore[arg-type]

    @classmethod
    def of_image(cls, image: RawImage) -> Camera:
        """Of a file."""
        full = float((1 << int(image.white).bit_length()) - 1)
        balance = (image.black, float(image.white), full, image.white_by_site, image.white_balance, image.matrix)
        return cls(image.cfa, *balance)


class View(Spec):
    """What becomes of a mosaic: (C, h, w) of 4 packed planes, or of 3 colours."""

    planes: Literal["packed", "demosaiced", "srgb"] = Field(
        "packed", description="red, green, blue, green at half size; R, G, B; or these in linear sRGB, balanced"
    )
    pattern: Literal["own", "RGGB"] = Field("own", description="RGGB: whatever it is, as AODRaw's scripts take it")
    black: Literal["subtract", "keep"] = "subtract"
    white: Literal["nominal", "per_channel", "measured", "full", "byte"] = Field(
        "nominal", description="what becomes 1: of the file, of each position, the highest sample, of all bits, 255"
    )
    white_balance: Literal["none", "camera", "gray"] = Field("none", description="gray: equal means of the colours")
    matrix: Literal["none", "camera"] = Field("none", description="camera: to linear sRGB, where the file knows it")
    gamma: float = Field(1.0, gt=0, description="its root is taken, of negative numbers with their sign")
    clip: tuple[float, float] | None = None
    top: float = Field(1.0, gt=0, description="what 1 becomes, as float32")
    scale: int = Field(1, ge=1, description="px of the planes to one px of the view, along each side")
    filter: Literal["area", "bilinear"] = Field("area", description="bilinear: no smoothing, as AODRaw reduces")
    dtype: Literal["float32", "uint16"] = Field("float32", description="uint16: 0 to 1 become 0 to 65535")

    @model_validator(mode="after")
    def _is_possible(self) -> View:
        if self.planes == "packed" and (self.matrix != "none" or (self.filter == "bilinear" and self.scale > 1)):
            raise ValueError("planes: packed: a matrix and bilinear reduction need three colours")
        return self

    @property
    def bands(self) -> int:
        return 4 if self.planes == "packed" else 3

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of what it shows of a mosaic, or of what is reduced already, of so many px."""
        half = 2 if self.planes == "packed" else 1
        return width // half // self.scale, height // half // self.scale

    def __call__(self, mosaic: NDArray[np.uint16], camera: Camera) -> Planes:
        """Of a mosaic, (H, W) uint16 -> (C, h, w). ValueError where its sides are odd and planes are packed."""
        if self.planes == "packed":
            if mosaic.shape[0] % 2 or mosaic.shape[1] % 2:
                raise ValueError(f"a mosaic of {mosaic.shape} has no four equal planes: crop it to even sides")
            return self.of_sites([mosaic[y::2, x::2] for y, x in bayer.SITES], camera)
        cfa, black = self._dark(camera)
        dark: Any = mosaic
        if len({*black.tolist()}) > 1:  # of each position its own, before they are mixed
            dark = bayer.normalise(mosaic, camera.black, np.array(camera.black) + 1)
            black[:] = 0
        planes = self._colours(dark, cfa)
        planes -= black[0]
        planes /= self._whites(camera, cfa, black, mosaic.max)[:, None, None]
        return self._shown(planes, camera)

    def of_sites(self, sites: Sequence[NDArray[np.uint16]] | NDArray[np.uint16], camera: Camera) -> Planes:
        """Packed planes of the four sites of a mosaic, as `codec.decode_planes` gives them: the quickest way."""
        cfa, black = self._dark(camera)
        whites = self._whites(camera, cfa, black, lambda: max(site.max() for site in sites))
        planes = np.empty((4, *sites[0].shape), np.float32)
        for n, (y, x) in enumerate(bayer.sites(cfa)):
            bayer.level(sites[2 * y + x], black[n], whites[n], planes[n])
        return self._shown(self._boxes(planes), camera)

    def _dark(self, camera: Camera) -> tuple[str, NDArray[np.float32]]:
        """The pattern that is taken, and what is subtracted from each packed plane."""
        cfa = camera.cfa if self.pattern == "own" else self.pattern
        black = bayer.packed_order(camera.black, cfa) if self.black == "subtract" else [0.0] * 4
        return cfa, np.array(black, np.float32)

    def of_reduced(self, levels: NDArray[np.uint16], camera: Camera) -> Planes:
        """Of colours that are demosaiced and reduced already, (H, W, 3) uint16 of full scale 65535 -> (3, h, w).

        RecipeError for packed planes, which they are no more.
        """
        if self.planes == "packed":
            raise RecipeError("planes: packed: these samples are demosaiced already; build with view=slices or full")
        planes = levels.transpose(2, 0, 1).astype(np.float32)
        planes *= np.float32(camera.full / FULL_SCALE)
        black = np.array(bayer.packed_order(camera.black, camera.cfa), np.float32)
        black = black if self.black == "subtract" else np.zeros(4, np.float32)
        planes -= np.array([black[0], (black[1] + black[3]) / 2, black[2]], np.float32)[:, None, None]
        dark = float(black.mean())
        planes /= self._whites(camera, camera.cfa, black, lambda: planes.max() + dark)[:, None, None]
        return self._shown(planes, camera)

    def _boxes(self, planes: Planes) -> Planes:
        """Means of boxes of scale x scale px."""
        if self.scale == 1:
            return planes
        bands, height, width = (planes.shape[0], *(side // self.scale for side in planes.shape[1:]))
        cut = planes[:, : height * self.scale, : width * self.scale]
        return np.asarray(cut.reshape(bands, height, self.scale, width, self.scale).mean(axis=(2, 4)))

    def _colours(self, mosaic: NDArray[Any], cfa: str) -> Planes:
        """R, G, B at the view's size."""
        height, width = mosaic.shape
        if self.scale == 1 or self.filter == "area":
            return self._boxes(bayer.demosaic(mosaic, cfa))
        place = Window(0, 0, width, height)
        return bayer.downsampled(mosaic, cfa, place, *self.size(width, height)).transpose(2, 0, 1).copy()

    def _whites(self, camera: Camera, cfa: str, black: NDArray[np.float32], highest: Callable[[], Any]) -> Planes:
        """What becomes 1, of each plane, above black: (C,). highest: the highest sample, black and all."""
        if self.white in ("full", "byte"):
            return np.full(self.bands, camera.full if self.white == "full" else BYTE, np.float32)
        dark = np.mean(bayer.packed_order(camera.black, cfa)) if self.black == "subtract" else 0.0
        four = np.full(4, camera.white, np.float32)
        if self.white == "per_channel" and camera.white_by_site:
            four = np.array(bayer.packed_order(camera.white_by_site, cfa), np.float32)
        elif self.white == "measured":
            four[:] = max(float(highest()), float(dark) + 1)
        four = four - (black if black.any() else np.float32(dark))
        return four if self.planes == "packed" else np.array([four[0], (four[1] + four[3]) / 2, four[2]], np.float32)

    def _shown(self, planes: Planes, camera: Camera) -> Planes:
        """The steps after white; changes `planes`."""
        balance = "camera" if self.planes == "srgb" and self.white_balance == "none" else self.white_balance
        if balance != "none":
            gains = np.array(camera.white_balance if balance == "camera" else gray_gains(planes), np.float32)
            planes *= (gains[[0, 1, 2, 1]] if len(planes) == 4 else gains)[:, None, None]
        if (self.matrix == "camera" or self.planes == "srgb") and any(camera.matrix):
            matrix = np.reshape(np.array(camera.matrix, np.float32), (3, 3))
            planes = sum(matrix[:, n, None, None] * planes[n] for n in range(3))  # in the order of `pretrain.develop`
        if self.gamma != 1:
            planes = np.sign(planes) * np.abs(planes) ** np.float32(1 / self.gamma)
        if self.clip is not None:
            planes = np.clip(planes, *self.clip)
        if self.dtype == "uint16":
            return np.clip(planes * FULL_SCALE + 0.5, 0, FULL_SCALE).astype(np.uint16)
        planes = planes if self.top == 1 else planes * np.float32(self.top)
        return np.ascontiguousarray(planes, np.float32)


def gray_gains(planes: Planes) -> tuple[float, float, float]:
    """Factors of R, G, B that make the means of the colours that of green; of what is no light, 1."""
    means = [float(plane.mean()) for plane in planes]
    red, green, blue = means[0], (means[1] + means[-1]) / 2 if len(means) == 4 else means[1], means[2]
    return (green / red if red > 0 else 1.0, 1.0, green / blue if blue > 0 else 1.0)


NAMED = {
    "packed": View(),
    "demosaiced": View(planes="demosaiced"),
    "srgb": View(planes="srgb", gamma=2.2, clip=(0, 1)),
    # the tensors of AODRaw's detectors, in RGB of 0 to 255, before mean and deviation of ImageNet
    "aodraw_downsampled": View(
        planes="demosaiced", pattern="RGGB", black="keep", white="full", gamma=2.2, top=255, scale=3, filter="bilinear"
    ),
    "aodraw_slices": View(planes="demosaiced", pattern="RGGB", black="keep", white="byte", gamma=2.2, top=255),
}


def view_of(given: str | View) -> View:
    """A view by its name, or itself; RecipeError if there is no such name."""
    if isinstance(given, View):
        return given
    if given not in NAMED:
        raise RecipeError(f"no view {given!r}: there are {', '.join(NAMED)}")
    return NAMED[given]
