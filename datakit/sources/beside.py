"""Side-cars: files beside an image that tell its place. World files, GDAL's `.aux.xml` (PAM), and `.prj`.

They are read here, for all formats, and alike in a folder, a zip and a tar: GDAL is kept from looking for them itself
(`image.GDAL`). What they say is taken in the order of GDAL's own reader of GeoTIFF: the `.aux.xml`, then the image
itself, then a world file. A `.prj` tells the CRS of a transform for which nothing else tells it.

A world file gives numbers without units: where no CRS is told, they are kept as the transform, and there is no ground
sampling distance and no footprint. Of an `.aux.xml` SRS, GeoTransform, GCPs and, for TIFF, the nodata level are read.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from xml.etree import ElementTree

from .. import files
from ..files import File
from ..image import SWAPS_SIDES, Header
from ..remote import Root
from ..sample import Sample
from . import geotiff

# .pgw, .pngw, .tfw, .tifw, .wld, …: the first and last letter of an image's suffix, or all of it, and "w"
SUFFIX = re.compile(r"\.(aux\.xml|prj|wld|[a-z0-9]{2,5}w)\Z", re.IGNORECASE)
MOST_BYTES = 1 << 24
UPSIDE_DOWN, MIRRORED = (3, 4, 7, 8), (2, 3, 6, 7)  # EXIF orientations: rows, or columns, from the other end
CRS_CODE = re.compile(r"(epsg|esri):\d+", re.IGNORECASE)


class Names(NamedTuple):
    """Names that the side-cars of an image may have, as `spelled`."""

    aux: str
    worlds: tuple[str, ...]  # the first that there is counts
    prj: str


def names_of(image: str) -> Names:
    """Names of the side-cars of an image, by its own name."""
    stem, suffix = posixpath.splitext(image)
    word = suffix[1:].lower()
    own = (f"{stem}.{word[0]}{word[-1]}w", f"{stem}.{word}w") if word else ()
    return Names(f"{image}.aux.xml", (*own, f"{stem}.wld"), f"{stem}.prj")


def spelled(name: str) -> str:
    """The name of a side-car with its suffix in small letters: any case is taken."""
    return SUFFIX.sub(lambda suffix: suffix[0].lower(), name)


def of_images(is_image: Callable[[str], bool], names: Iterable[str]) -> set[str]:
    """Which names are those of side-cars that lie beside an image."""
    names = list(names)
    sides: dict[str, list[str]] = {}
    for name in names:
        if SUFFIX.search(name):
            sides.setdefault(spelled(name), []).append(name)
    found: set[str] = set()
    for name in names if sides else ():
        if not SUFFIX.search(name) and is_image(name):
            aux, worlds, prj = names_of(name)
            found.update(side for each in (aux, *worlds, prj) for side in sides.get(each, ()))
    return found


def by_name(found: Mapping[str, File]) -> dict[str, File]:
    """The files among these that may be side-cars, by their names as `spelled`: of two, the one in small letters."""
    return {spelled(name): found[name] for name in sorted(found) if SUFFIX.search(name)}


def those_of(images: Iterable[Sample], found: Mapping[str, File]) -> list[File]:
    """The side-cars of some images; found: as `by_name` gives them."""
    names = (name for image in images for aux, worlds, prj in [names_of(image.name)] for name in (aux, *worlds, prj))
    return [found[name] for name in dict.fromkeys(names) if name in found]


class SideCars:
    """What side-cars say of images; one that cannot be read, or says nonsense, is counted and says nothing."""

    def __init__(self, root: Root, found: Mapping[str, File], counts: Counter[str]) -> None:
        """found: as `by_name` gives them; counts: where `side_cars_unreadable` is counted."""
        self._root, self._files, self._counts = root, found, counts

    def __call__(self, name: str, header: Header, own: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """The place of an image, as fields of `Sample`, and whether a side-car tells any of it.

        own: what the image itself says of its place. Side-cars are of the raster as stored, as GDAL takes them, which
        turns no picture: where the image is shown turned by its orientation, its place is turned as it is.
        """
        if not self._files:
            return own, False
        aux, worlds, prj = names_of(name)
        said = self._read(aux, lambda data: pam(data, header)) or {}
        if header.format != "GTiff":
            said.pop("nodata", None)  # only rasters are read by it
        told = said.keys() - {"nodata"}
        where = {**own, **said}
        if not where.get("transform") and not where.get("gcps"):
            found = (self._read(world, world_file) for world in worlds)
            transform = next((each for each in found if each), None)
            if transform:
                where["transform"], told = as_shown(transform, header), told | {"transform"}
        if where.get("transform") and not where.get("crs"):
            where["crs"] = self._read(prj, crs_of) or ""
        return where, bool(told) or bool(where.get("crs") and not own.get("crs"))

    def _read(self, name: str, parse: Callable[[bytes], Any]) -> Any:
        file = self._files.get(name)
        if file is None:
            return None
        try:
            if file.file_bytes > MOST_BYTES:
                raise ValueError("too large")
            return parse(files.read(self._root, file))
        except (ValueError, LookupError, ElementTree.ParseError, files.BadFile):  # LookupError: of an encoding
            self._counts["side_cars_unreadable"] += 1
            return None


def world_file(data: bytes) -> tuple[float, ...]:
    """The transform of a world file, whose last two numbers are the centre of the first pixel; else ValueError.

    Its lines are a, d, b, e, c, f of x = a col + b row + c, y = d col + e row + f; a decimal comma is taken, too.
    """
    words = data.decode("utf-8-sig").replace(",", ".").split()
    if len(words) != 6:
        raise ValueError(f"{len(words)} numbers, where a world file has 6")
    a, d, b, e, c, f = map(float, words)
    return checked((a, b, c - (a + b) / 2, d, e, f - (d + e) / 2))


def checked(transform: tuple[float, ...]) -> tuple[float, ...]:
    """A transform that maps pixels to an area; ValueError for any other."""
    a, b, _, d, e, _ = transform
    if not all(map(math.isfinite, transform)) or not math.isfinite(a * e - b * d) or a * e == b * d:
        raise ValueError(f"{transform} maps no pixel to the ground")
    return transform


def crs_of(data: bytes) -> str:
    """A CRS from WKT, that of ESRI too, or from `EPSG:n`. ValueError if PROJ does not know it."""
    text = data.decode("utf-8-sig").strip()
    if "[" not in text and not CRS_CODE.fullmatch(text):
        raise ValueError("expected WKT")
    return geotiff.crs_of(text)


def pam(data: bytes, header: Header) -> dict[str, Any]:
    """What an `.aux.xml` says of an image as shown, as fields of `Sample`; ValueError or ParseError if it is wrong."""
    if b"<!DOCTYPE" in data:  # entities could grow without end
        raise ValueError("expected XML without a DOCTYPE")
    root = ElementTree.fromstring(data)
    said: dict[str, Any] = {}
    srs, numbers, points = root.findtext("SRS"), root.findtext("GeoTransform"), root.find("GCPList")
    if numbers:
        c, a, b, f, d, e = map(float, numbers.split(","))
        said.update(transform=as_shown(checked((a, b, c, d, e, f)), header), gcps="")
    elif points is not None:
        found = [[float(p.get(key, 0)) for key in ("Pixel", "Line", "X", "Y", "Z")] for p in points.iter("GCP")]
        if not all(math.isfinite(v) for point in found for v in point):
            raise ValueError("a ground control point that is nowhere")
        said.update(transform=None, gcps=json.dumps([[*turned(p[0], p[1], header), *p[2:]] for p in found]))
        srs = srs or points.get("Projection") or points.findtext("SRS")
    if srs and srs.strip():
        said["crs"] = crs_of(srs.encode())
    if nodata := root.findtext("PAMRasterBand[@band='1']/NoDataValue"):
        said["nodata"] = float(nodata)
    return said


def as_shown(transform: tuple[float, ...], header: Header) -> tuple[float, ...]:
    """The transform of an image as stored, for the image as shown."""
    a, b, c, d, e, f = transform
    if header.orientation in SWAPS_SIDES:
        a, b, d, e = b, a, e, d
    if header.orientation in UPSIDE_DOWN:
        b, c, e, f = -b, c + b * header.height, -e, f + e * header.height
    if header.orientation in MIRRORED:
        a, c, d, f = -a, c + a * header.width, -d, f + d * header.width
    return a, b, c, d, e, f


def turned(col: float, row: float, header: Header) -> tuple[float, float]:
    """A point of an image as stored, px, in the image as shown."""
    if header.orientation in SWAPS_SIDES:
        col, row = row, col
    if header.orientation in UPSIDE_DOWN:
        row = header.height - row
    if header.orientation in MIRRORED:
        col = header.width - col
    return col, row
