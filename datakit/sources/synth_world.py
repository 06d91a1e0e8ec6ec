"""Where the embedded collection is written: files, the truth about each, and the encodings that they come in."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from math import cos, radians, sin
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rasterio.io import MemoryFile

from .scenes import Scene, draw

Pixels = NDArray[Any]  # (H, W, bands), uint8 unless said otherwise
Corner = tuple[float, float]


class World:
    """Writes the files of the collections, and the truth about each."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.truth: list[dict[str, Any]] = []
        self.drawn: dict[tuple[str, str], tuple[str, int, int]] = {}  # kind, width, height of the scene of a file
        self.archives: dict[str, tuple[str, dict[str, bytes]]] = {}  # of a source: the archive, and its members

    def rng(self, *names: str) -> np.random.Generator:
        """A generator that depends on the seed and on names alone, not on what was made before."""
        mark = hashlib.blake2b("/".join(names).encode(), digest_size=8).digest()
        return np.random.default_rng([self.seed, int.from_bytes(mark, "big")])

    def scene(self, source: str, name: str, kind: str, size: tuple[int, int]) -> Scene:
        """The scene of a file, of a size (W, H)."""
        self.drawn[source, name] = (kind, *size)
        return draw(self.rng(source, name), kind, *size)

    def again(self, source: str, name: str) -> NDArray[np.uint8]:
        """The pixels of a scene that was drawn before."""
        kind, width, height = self.drawn[source, name]
        return draw(self.rng(source, name), kind, width, height).pixels

    def put(self, source: str, name: str, data: bytes, **facts: Any) -> None:
        """One file, and what is true of it: a scene that is kept, unless `facts` say otherwise."""
        self.truth.append({"source": source, "name": name, "what": "scene", "expect": "kept", **facts})
        if source in self.archives and name.startswith(self.archives[source][0].removesuffix(".zip") + "/"):
            self.archives[source][1][name] = data
            return
        path = self.folder / source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def show(self, source: str, name: str, pixels: Pixels, data: bytes | None = None, **facts: Any) -> None:
        """A picture, as `data` or encoded as its suffix asks, and what is true of it."""
        encode: dict[str, Callable[[Pixels], bytes]] = {"jpg": jpeg, "png": png, "tif": tiff}
        height, width = pixels.shape[:2]
        self.put(source, name, data or encode[name[-3:]](pixels), width=width, height=height, **facts)

    def pack(self) -> None:
        """Writes the archives, some members stored and some deflated."""
        for source, (archive, members) in self.archives.items():
            path = self.folder / source / archive
            path.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(path, "w") as opened:
                for i, name in enumerate(sorted(members)):
                    member = zipfile.ZipInfo(name, (2010, 10, 28, 0, 0, 0))
                    member.compress_type = zipfile.ZIP_DEFLATED if i % 3 else zipfile.ZIP_STORED
                    opened.writestr(member, members[name], compresslevel=1)


def jpeg(pixels: Pixels, quality: int = 88, **options: Any) -> bytes:
    """A picture as JPEG."""
    return saved(Image.fromarray(pixels), "JPEG", quality=quality, **options)


def png(pixels: Pixels, **options: Any) -> bytes:
    """A picture as PNG."""
    return saved(Image.fromarray(pixels), "PNG", compress_level=1, **options)


def tiff(pixels: Pixels) -> bytes:
    """A picture as plain TIFF."""
    return saved(Image.fromarray(pixels), "TIFF")


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A Pillow image of any mode as bytes."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def geotiff(pixels: Pixels, place: tuple[float, float, float], bands: tuple[str, ...] = (), **options: Any) -> bytes:
    """A GeoTIFF in UTM zone 33 N, of any type: `place` is easting, northing and metres a pixel; `bands` names bands."""
    east, north, gsd_m = place
    height, width, count = pixels.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": count, "dtype": pixels.dtype.name}
    profile |= {"crs": "EPSG:32633", "transform": rasterio.Affine(gsd_m, 0, east, 0, -gsd_m, north), **options}
    with rasterio.Env(GDAL_NUM_THREADS="1"), MemoryFile() as memory:
        with memory.open(**profile) as raster:
            raster.write(np.ascontiguousarray(np.moveaxis(pixels, 2, 0)))
            if bands:
                raster.descriptions = bands
        return bytes(memory.read())


def slanted(size: tuple[int, int], share: float, degrees: float) -> tuple[list[Corner], NDArray[np.bool_]]:
    """The part of an image (W, H) that a turned sensor saw: four corners in px, and its mask, (H, W)."""
    width, height = size
    c, s = cos(radians(degrees)), sin(radians(degrees))
    a, b = width * share / 2, height * share / 2
    corners = [
        (round(width / 2 + p * a * c - q * b * s, 1), round(height / 2 + p * a * s + q * b * c, 1))
        for p, q in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    mask = Image.new("1", size)
    ImageDraw.Draw(mask).polygon(corners, fill=1)
    return corners, np.asarray(mask)
