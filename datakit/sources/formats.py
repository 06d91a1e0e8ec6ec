"""Label files in JSON: GeoJSON, fMoW's, captions; of COCO see `coco`. What a reader gives of one image is a `Labelled`.

A file of many images knows each by its name relative to the folder that its names are relative to.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import place
from ..boxes import DECIMALS, Box, rectangle
from ..errors import SourceError
from ..manifest import GeoJson
from ..sample import Sample

WGS84 = "EPSG:4326"
FARTHEST = 1e12  # px, metres or degrees; beyond it areas would not be finite
FALSE_DETECTION = "false_detection"  # fMoW: a place that looked like an object and is none
Ring = list[tuple[float, float]]


class Labelled(NamedTuple):
    """What is known of one image."""

    label: str = ""  # class of the whole image
    boxes: Sequence[Box] = ()  # px from the top left of the picture as shown, as the label file has them
    gsd_m: float | None = None  # ground sampling distance of a pixel
    acquired: str = ""  # ISO 8601
    captions: tuple[str, ...] = ()
    mask: str = ""  # JSON of a `manifest.MaskSource`
    split: str = ""
    tags: tuple[str, ...] = ()
    image_id: str = ""  # in the COCO file that tells tags or split


def number(where: str, value: object) -> float:
    """A number from text or from JSON, finite and not beyond FARTHEST."""
    try:
        found = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not abs(found) <= FARTHEST:
        raise SourceError(f"{where}: expected a number, found {value!r:.40}")
    return found


def metres(where: str, value: object) -> float | None:
    """A ground sampling distance, "0.5" or "0.5m"; 0, NaN, null and nothing say that it is not known."""
    if str(value).strip().lower() in ("", "null", "none", "nan"):
        return None
    found = number(where, value.strip().removesuffix("m") if isinstance(value, str) else value)
    if found < 0:
        raise SourceError(f"{where}: expected metres a pixel above 0, or null, found {value!r:.40}")
    return found or None


def parsed(path: str, data: bytes) -> Any:
    """What a JSON file holds."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise SourceError(f"{path}, line {getattr(exc, 'lineno', 1)}: expected JSON: {exc}") from None


def named(file_name: str) -> str:
    """Name of an image that a label file names, relative to the folder that its names are relative to."""
    return posixpath.normpath(file_name.replace("\\", "/"))


def xywh(where: str, key: str, value: object) -> tuple[float, ...]:
    """The 4 corners of a box given as [x, y, width, height]."""
    if not isinstance(value, list) or len(value) != 4:
        raise SourceError(f"{where}: expected {key} [x, y, width, height], found {value!r:.80}")
    x, y, width, height = (number(where, v) for v in value)
    return rectangle(x, y, round(x + width, DECIMALS), round(y + height, DECIMALS))


class Features:
    """One GeoJSON file (RFC 7946, and the `crs` of the format before it, GeoJSON 2008), by image.

    A polygon is its outer ring: holes count as inside. Each polygon of a MultiPolygon is a box of its own. A point is
    a box without area. Lines have no extent that a box could tell: they are left out. So is what has no geometry, an
    empty one, or one outside of the domain of the image's projection.
    """

    def __init__(self, path: str, data: bytes, spec: GeoJson) -> None:
        self._path, self._spec = path, spec
        plain = parsed(path, data)
        self._crs = _crs(path, plain)
        self._notes: dict[str, list[tuple[int, object, object]]] = {}  # n-th feature, its class, its shape
        for n, feature in enumerate(_features(path, plain), 1):
            properties = feature.get("properties") or {}
            if not isinstance(properties, dict):
                raise SourceError(f"{path}, feature {n}: expected properties {{…}}, found {properties!r:.80}")
            name = ""
            if spec.image:
                image = properties.get(spec.image)
                if not isinstance(image, str):
                    raise SourceError(f"{path}, feature {n}: expected the file name of an image in "
                                      f"{spec.image}, found {image!r:.80}")  # fmt: skip
                name = named(image)
            if spec.bounds and spec.bounds not in properties:
                raise SourceError(f"{path}, feature {n}: expected {spec.bounds}, found {', '.join(properties)!r:.80}")
            shape = properties[spec.bounds] if spec.bounds else feature.get("geometry")
            self._notes.setdefault(name, []).append((n, properties.get(spec.category), shape))

    def of(self, image: Sample, name: str) -> Labelled:
        """Boxes of one image."""
        boxes: list[Box] = []
        rings: list[tuple[str, str, Ring]] = []  # where, class, corners
        for n, value, shape in self._notes.get(name if self._spec.image else "", []):
            where = f"{self._path}, feature {n}"
            category = self._category(where, value)
            if not self._spec.bounds:
                rings += [(where, category, ring) for ring in _rings(where, shape)]
            elif shape not in (None, "", []):  # xView has rows without
                boxes.append(Box(category, _bounds(where, self._spec.bounds, shape), kind="box"))
        if rings and self._spec.coordinates == "map":
            rings = self._on_image(image, rings)
        return Labelled(boxes=[*boxes, *(_ring_box(category, ring) for _, category, ring in rings)])

    def _category(self, where: str, value: object) -> str:
        """Class by the value of the property. A code that the manifest has no name for is its own name."""
        if value is None or value == "":
            return self._spec.default
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise SourceError(f"{where}: expected text or a number in {self._spec.category}, found {value!r:.80}")
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        return self._spec.categories.get(text, text)

    def _on_image(self, image: Sample, rings: list[tuple[str, str, Ring]]) -> list[tuple[str, str, Ring]]:
        """Rings on the map as rings in px of the image."""
        a, b, c, d, e, f = image.transform or (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        if not image.crs or a * e == b * d:
            found = f"CRS {image.crs or 'none'!s:.40}, transform {image.transform}"
            raise SourceError(
                f"{self._path}: expected {image.name} to have a place, for labels on the map; found {found}"
            )
        col, row = image.width / 2, image.height / 2
        centre = np.array([[a * col + b * row + c, d * col + e * row + f]])
        counts = [len(ring) for _, _, ring in rings]
        points = np.array([point for _, _, ring in rings for point in ring], np.float64)
        self._check(points, [where for where, _, ring in rings for _ in ring])
        moved = place.mapped(self._crs, image.crs, points)
        self._check_lost(points[np.isnan(moved[:, 0])], image.crs, centre)
        if turn := place.whole_turn(image.crs):  # the date line is no edge: a ring goes by whole turns to the image
            first = moved[np.repeat(np.cumsum([0, *counts[:-1]]), counts), 0]
            moved = moved + np.outer(turn * np.round((centre[0, 0] - first) / turn), [1, 0])
        x, y = moved[:, 0] - c, moved[:, 1] - f
        pixels = np.stack([e * x - b * y, a * y - d * x], axis=1) / (a * e - b * d)
        parts = zip(rings, np.split(pixels, np.cumsum(counts)[:-1]), strict=True)
        return [
            (where, category, list(map(tuple, part.tolist())))
            for (where, category, _), part in parts
            if (np.abs(part) <= FARTHEST).all()
        ]

    def _check(self, points: NDArray[np.float64], where: list[str]) -> None:
        """Degrees are degrees: metres, or pixels, that name no CRS would lie nowhere and tell nobody."""
        turn = place.whole_turn(self._crs)
        if not turn:
            return
        wrong = np.flatnonzero((np.abs(points) > np.array([turn, turn / 4]) * (1 + 1e-9)).any(axis=1))
        if len(wrong):
            found = points[wrong[0]].tolist()
            raise SourceError(f"{where[wrong[0]]}: expected longitude, latitude ({self._crs}), found {found}")

    def _check_lost(self, points: NDArray[np.float64], crs: str, centre: NDArray[np.float64]) -> None:
        """Points that the image's projection has no place for must have one on Earth, and so must the image."""
        for name, some in ((self._crs, points), (crs, centre)) if len(points) else ():
            if np.isnan(place.mapped(name, WGS84, some)).any():
                raise SourceError(f"{self._path}: expected a CRS that PROJ knows, and points of it; found {name!r:.80}")


def _crs(path: str, plain: Any) -> str:
    """The CRS that a GeoJSON file names, or WGS 84."""
    crs = plain.get("crs") if isinstance(plain, dict) else None
    if crs is None:
        return WGS84
    properties = crs.get("properties") if isinstance(crs, dict) else None
    name = properties.get("name") if isinstance(properties, dict) else None
    if not isinstance(name, str) or not name:
        raise SourceError(f"{path}: expected crs {{type: name, properties: {{name: …}}}}, found {crs!r:.80}")
    return name


def _features(path: str, plain: Any) -> list[dict[str, Any]]:
    features = plain.get("features") if isinstance(plain, dict) else None
    if not isinstance(features, list):
        raise SourceError(f"{path}: expected a FeatureCollection with a list of features, found {_short(plain)}")
    wrong = next(((n, f) for n, f in enumerate(features, 1) if not isinstance(f, dict)), None)
    if wrong:
        raise SourceError(f"{path}, feature {wrong[0]}: expected {{geometry, properties}}, found {_short(wrong[1])}")
    return features


def _short(value: object) -> str:
    """What a value is, for people, in a few words however large it is."""
    return f"keys {', '.join(map(str, list(value)[:8]))}" if isinstance(value, dict) else f"{type(value).__name__}"


def _rings(where: str, geometry: Any) -> Iterator[Ring]:
    """Outer rings, 3 or more corners each, and points of a geometry; see `Features`."""
    parts: Any = [geometry]
    if isinstance(geometry, dict) and geometry.get("type") == "GeometryCollection":
        parts = geometry.get("geometries")
    if not isinstance(parts, list):
        raise SourceError(f"{where}: expected geometries: […], found {geometry!r:.80}")
    for part in parts:
        kind, inside = (part.get("type"), part.get("coordinates")) if isinstance(part, dict) else (None, None)
        if part is None or kind in ("LineString", "MultiLineString"):
            continue
        if not isinstance(inside, list) or kind not in ("Point", "MultiPoint", "Polygon", "MultiPolygon"):
            wanted = "a geometry (Point, LineString, Polygon, Multi… or a collection of them, with coordinates)"
            raise SourceError(f"{where}: expected {wanted}, found {part!r:.80}")
        shapes = inside if kind.startswith("Multi") else [inside]
        for shape in [shape for shape in shapes if shape]:
            if kind.endswith("Point"):
                yield [_position(where, shape)]
            elif ring := _outer(where, shape):
                yield ring


def _outer(where: str, polygon: object) -> Ring:
    """The corners of a polygon's outer ring, the first not again at the end; empty where it is."""
    ring = polygon[0] if isinstance(polygon, list) else None
    if not isinstance(ring, list):
        raise SourceError(f"{where}: expected rings [[[x, y], …], …], found {polygon!r:.80}")
    corners = [_position(where, position) for position in ring]
    if len(corners) > 1 and corners[0] == corners[-1]:
        corners.pop()
    if ring and len(corners) < 3:
        raise SourceError(f"{where}: expected 3 or more corners, found {ring!r:.80}")
    return corners


def _position(where: str, position: object) -> tuple[float, float]:
    """x, y; a height is left out."""
    if not isinstance(position, list) or len(position) < 2:
        raise SourceError(f"{where}: expected a position [x, y], found {position!r:.80}")
    return number(where, position[0]), number(where, position[1])


def _bounds(where: str, key: str, value: object) -> tuple[float, ...]:
    """The 4 corners of bounds, text "xmin,ymin,xmax,ymax" or a list; the lower of two numbers is the minimum."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list) or len(words) != 4:
        raise SourceError(f"{where}: expected xmin,ymin,xmax,ymax in {key}, found {value!r:.80}")
    left, top, right, bottom = (number(where, word) for word in words)
    return rectangle(min(left, right), min(top, bottom), max(left, right), max(top, bottom))


def _ring_box(category: str, ring: Ring) -> Box:
    point = len(ring) == 1
    return Box(category, _flat(ring * 4 if point else ring), kind="box" if point else "polygon")


def _flat(ring: Ring) -> tuple[float, ...]:
    return tuple(v for point in ring for v in point)


def fmow(path: str, data: bytes) -> Labelled:
    """Labels of one of fMoW's JSON files. A box without a category, as in the challenge's test split, is left out.

    The image's class is that of its first box that is no false detection.
    """
    plain = parsed(path, data)
    notes = plain.get("bounding_boxes", []) if isinstance(plain, dict) else None
    if not isinstance(notes, list):
        raise SourceError(f"{path}: expected {{gsd, timestamp, bounding_boxes: […]}}, found {_short(plain)}")
    gsd_m = metres(f"{path}, gsd", plain.get("gsd"))
    timestamp = plain.get("timestamp") or ""
    if not isinstance(timestamp, str):
        raise SourceError(f"{path}, timestamp: expected YYYY-MM-DDThh:mm:ssZ, found {timestamp!r:.40}")
    boxes = []
    for n, note in enumerate(notes, 1):
        where = f"{path}, bounding box {n}"
        category = note.get("category", "") if isinstance(note, dict) else None
        if not isinstance(category, str):
            raise SourceError(f"{where}: expected {{category, box}}, found {note!r:.80}")
        if category:
            boxes.append(Box(category, xywh(where, "box", note.get("box")), kind="box"))
    label = next((box.category for box in boxes if box.category != FALSE_DETECTION), "")
    is_time = re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?", timestamp)
    return Labelled(label, boxes, gsd_m, timestamp if is_time else "")


class Captioned:
    """One file of captions, by image: RSICD's `images` with `filename`, `sentences` (`raw`) and perhaps `split`."""

    def __init__(self, path: str, data: bytes) -> None:
        self._path = path
        plain = parsed(path, data)
        entries = plain.get("images") if isinstance(plain, dict) else None
        if not isinstance(entries, list):
            raise SourceError(f"{path}: expected images: [{{filename, sentences}}, …], found {_short(plain)}")
        self._notes: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for n, entry in enumerate(entries, 1):
            name = entry.get("filename") if isinstance(entry, dict) else None
            if not isinstance(name, str):
                raise SourceError(f"{path}, image {n}: expected {{filename, sentences}}, found {entry!r:.80}")
            self._notes.setdefault(named(name), []).append((n, entry))

    def of(self, image: Sample, name: str) -> Labelled:
        """Captions and split of one image."""
        captions: list[str] = []
        splits: list[str] = []
        for n, entry in self._notes.get(name, []):
            where = f"{self._path}, image {n}"
            sentences, split = entry.get("sentences", []), entry.get("split") or ""
            texts = [s.get("raw") if isinstance(s, dict) else None for s in _listed(where, sentences)]
            if not all(isinstance(text, str) for text in texts):
                raise SourceError(f"{where}: expected sentences [{{raw: text}}, …], found {sentences!r:.80}")
            # It becomes part of the names of files, as the splits of a manifest do
            if not isinstance(split, str) or not re.fullmatch(r"[A-Za-z0-9_]*", split):
                raise SourceError(f"{where}: expected split of letters, digits and _, found {split!r:.40}")
            captions += [str(text).strip() for text in texts]
            splits.append(split)
        return Labelled(captions=tuple(filter(None, captions)), split=next(filter(None, splits), ""))


def _listed(where: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise SourceError(f"{where}: expected a list, found {value!r:.80}")
    return value
