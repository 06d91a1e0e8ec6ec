"""What a collection says of its images: class, boxes, ground sampling distance, from the label files beside them."""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Callable
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

from ..boxes import DECIMALS, Box, rectangle, turned
from ..errors import SourceError
from ..manifest import ClassFolders, CocoJson, DotaText, Labels

_SHAPES = ("points", "polygon", "robndbox", "bndbox")  # in VOC files; the tighter one first


class Labelled(NamedTuple):
    """What is known of one image."""

    label: str  # class of the whole image; "" if it has none
    boxes: list[Box]  # px from the top left, as the label file has them
    gsd_m: float | None  # ground sampling distance of a pixel
    acquired: str  # ISO 8601; "" if unknown


class LabelReader:
    """Labels of images, by name. `read` gives the bytes of a file of the collection, or None where there is none.

    An image without a label file has no labels. A damaged label file is a SourceError: where, and what is expected.
    """

    def __init__(self, labels: tuple[Labels, ...], read: Callable[[str], bytes | None]) -> None:
        self._labels = labels
        self._read = read
        self._coco: dict[tuple[str, str], _Coco | str | None] = {}  # str: why the file cannot be used

    def __call__(self, name: str) -> Labelled:
        """Labels of the image `name`, a posix path within the collection; of several layouts the first that knows."""
        name = posixpath.normpath(name)
        found = [self._labelled(labels, name) for labels in self._labels]
        return Labelled(
            label=next((f.label for f in found if f.label), ""),
            boxes=[box for f in found for box in f.boxes],
            gsd_m=next((f.gsd_m for f in found if f.gsd_m is not None), None),
            acquired=next((f.acquired for f in found if f.acquired), ""),
        )

    def _labelled(self, labels: Labels, name: str) -> Labelled:
        if isinstance(labels, ClassFolders):
            folders = name.split("/")[:-1]
            return Labelled(folders[-labels.level] if labels.level <= len(folders) else "", [], None, "")
        path = _within(labels.path, name)
        boxes: list[Box] = []
        if path is not None and isinstance(labels, CocoJson):
            images = _within(labels.images or ".", name)
            coco = None if images is None else self._coco_file(path, images)
            boxes = coco.boxes(name) if coco else []
        elif path is not None and (data := self._read(path)) is not None:
            if isinstance(labels, DotaText):
                return _dota(path, data)
            boxes = [_voc_box(path, node) for node in _xml(path, data).iter("object")]
        return Labelled("", boxes, None, "")

    def _coco_file(self, path: str, images: str) -> _Coco | None:
        key = (path, images)
        if key not in self._coco:
            try:
                data = self._read(path)
                self._coco[key] = None if data is None else _Coco(path, data, images)
            except SourceError as exc:  # a file of a gigabyte is not parsed again for every image
                self._coco[key] = str(exc)
        coco = self._coco[key]
        if isinstance(coco, str):
            raise SourceError(coco)
        return coco


def _within(template: str, name: str) -> str | None:
    """A path within the collection; {dir}, {stem}, {name} are of the image: its folder, its file without and with
    suffix. None if the path climbs out of the collection."""
    file = posixpath.basename(name)
    values = {"dir": posixpath.dirname(name) or ".", "stem": posixpath.splitext(file)[0], "name": file}
    path = posixpath.normpath(re.sub(r"\{(dir|stem|name)\}", lambda token: values[token[1]], template))
    return None if path.startswith(("/", "../")) or path == ".." else path


def _number(where: str, value: object) -> float:
    """A finite number from text or from JSON."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise SourceError(f"{where}: expected a number, found {value!r:.40}")
    return number


def _dota(path: str, data: bytes) -> Labelled:
    """Labels of a DOTA text file: headers, then `x1 y1 x2 y2 x3 y3 x4 y4 class difficult`, an object a line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        number = 1 + data.count(b"\n", 0, exc.start)
        raise SourceError(f"{path}, line {number}: expected UTF-8 text, found byte {data[exc.start]:#04x}") from None
    boxes, gsd_m, acquired = [], None, ""
    for number, line in enumerate(re.split(r"\r\n?|\n", text), 1):
        where = f"{path}, line {number}"
        header, _, value = (word.strip() for word in line.partition(":"))
        match header.lower():
            case "" | "imagesource":
                pass
            case "gsd":
                gsd_m = None if value.lower() in ("", "null", "none", "nan") else _number(where, value)
                if gsd_m is not None and gsd_m <= 0:
                    raise SourceError(f"{where}: expected gsd:METRES above 0 or gsd:null, found {value!r:.40}")
            case "acquisition dates":
                acquired = value if re.fullmatch(r"\d{4}-\d\d-\d\d", value) else ""
            case _:
                boxes.append(_dota_box(where, line.split()))
    return Labelled("", boxes, gsd_m, acquired)


def _dota_box(where: str, words: list[str]) -> Box:
    if len(words) not in (9, 10) or not all(word.isdecimal() for word in words[9:]):
        line = " ".join(words)
        raise SourceError(f"{where}: expected x1 y1 x2 y2 x3 y3 x4 y4 class difficult (0 or 1), found {line!r:.80}")
    points = tuple(_number(where, word) for word in words[:8])
    return Box(words[8], points, difficult=words[9:] not in ([], ["0"]), kind="quad")


def _xml(path: str, data: bytes) -> ElementTree.Element:
    """The root of an XML file; each element's `line` attribute is the line it starts in."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda tag, _: builder.start(tag, {"line": str(parser.CurrentLineNumber)})
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        declared = re.match(rb"(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)", data)
        text = data.decode(declared[1].decode() if declared else "utf-8").removeprefix("\ufeff")
        # Searched in the very text that is parsed: entities are declared in a DOCTYPE only, and can grow without end
        before, doctype, _ = text.partition("<!DOCTYPE")
        if doctype:
            line = 1 + before.count("\n")
            raise SourceError(f"{path}, line {line}: expected XML without a DOCTYPE, which is not read: remove it")
        parser.Parse(text, True)
    except expat.ExpatError as exc:
        problem = expat.errors.messages[exc.code]
        raise SourceError(f"{path}, line {exc.lineno}: expected XML, found: {problem}") from None
    except (UnicodeError, LookupError) as exc:
        raise SourceError(f"{path}, line 1: expected text in UTF-8 or in the encoding it declares: {exc}") from None
    return builder.close()


def _voc_box(path: str, node: ElementTree.Element) -> Box:
    """The box of an <object> of a Pascal VOC file, or of its rotated relatives (roLabelImg, DIOR-R, FAIR1M)."""
    where = f"{path}, line {node.get('line')}"
    category = (node.findtext("name") or node.findtext("possibleresult/name") or "").strip()
    shape = next((found for tag in _SHAPES if (found := node.find(tag)) is not None), None)
    if not category or shape is None:
        raise SourceError(f"{where}: expected <name> and one of {', '.join(_SHAPES)} in <object>")
    if shape.tag == "bndbox":
        kind, points = "box", rectangle(*_values(path, shape, ("xmin", "ymin", "xmax", "ymax")))
    elif shape.find("cx") is not None:
        kind, points = "quad", turned(*_values(path, shape, ("cx", "cy", "w", "h", "angle")))
    else:
        points = _corners(path, shape)
        kind = "quad" if len(points) == 8 else "polygon"
    difficult = (node.findtext("difficult") or "").strip().lower() in ("1", "true")
    return Box(category, points, difficult, kind=kind)


def _values(path: str, node: ElementTree.Element, tags: tuple[str, ...]) -> list[float]:
    texts = {child.tag: (child.get("line"), (child.text or "").strip()) for child in node}
    if missing := [tag for tag in tags if tag not in texts]:
        raise SourceError(f"{path}, line {node.get('line')}: expected <{missing[0]}> in <{node.tag}>")
    return [_number(f"{path}, line {texts[tag][0]}", texts[tag][1]) for tag in tags]


def _corners(path: str, node: ElementTree.Element) -> tuple[float, ...]:
    """Corners given one by one: <point>x,y</point>, or <x1>, <y1>, … or <x_left_top>, <y_left_top>, … by turns."""
    axes = "".join(child.tag[:1] for child in node)
    words = [(child, word) for child in node for word in (child.text or "").strip().split(",")]
    points = tuple(_number(f"{path}, line {child.get('line')}", word) for child, word in words)
    if points[:2] == points[-2:]:  # FAIR1M gives the first corner again at the end
        points = points[:-2]
    if len(points) < 6 or len(points) % 2 or axes.replace("xy", "").strip("p"):
        where = f"{path}, line {node.get('line')}"
        raise SourceError(f"{where}: expected 3 or more corners in <{node.tag}>, x and y by turns")
    return points


class _Coco:
    """One COCO file, by image. Its dates are left alone: annotation tools write the day of their own work there."""

    def __init__(self, path: str, data: bytes, images: str) -> None:
        self._path = path
        try:
            plain = json.loads(data)
            places = {i["id"]: _coco_name(images, i["file_name"]) for i in plain["images"]}
            categories = {c["id"]: str(c["name"]) for c in plain.get("categories", [])}
            self._notes: dict[str, list[tuple[str | None, dict[str, Any]]]] = {}
            for note in plain.get("annotations", []):  # the files of test splits have none
                if note["image_id"] in places:
                    named = categories.get(note.get("category_id")), note
                    self._notes.setdefault(places[note["image_id"]], []).append(named)
        except (ValueError, RecursionError) as exc:
            raise SourceError(f"{path}, line {getattr(exc, 'lineno', 1)}: expected JSON: {exc}") from None
        except (KeyError, TypeError, AttributeError) as exc:
            wanted = "images (id, file_name), annotations (image_id, category_id, bbox), categories (id, name)"
            raise SourceError(f"{path}: expected lists of {wanted}; {type(exc).__name__}: {exc}") from None

    def boxes(self, name: str) -> list[Box]:
        """Boxes of one image: one for each polygon of its annotations, or for the bbox where there is none."""
        return [box for category, note in self._notes.get(name, []) for box in self._of(category, note)]

    def _of(self, category: str | None, note: dict[str, Any]) -> list[Box]:
        where = f"{self._path}, annotation {note.get('id')!r:.40}"
        if category is None:
            raise SourceError(f"{where}: category_id {note.get('category_id')!r:.40} is not among the categories")
        # AODRaw marks regions to leave out by a category of that name
        ignore = bool(note.get("iscrowd") or note.get("ignore")) or category == "ignore"
        shapes = note.get("segmentation")
        polygons = [shape for shape in shapes if shape] if isinstance(shapes, list) else []  # else: run lengths
        if polygons:
            return [Box(category, _coco_polygon(where, p), ignore=ignore, kind="polygon") for p in polygons]
        bbox = note.get("bbox")
        if not isinstance(bbox, list) or len(bbox) != 4:
            raise SourceError(f"{where}: expected bbox [x, y, width, height], found {bbox!r:.80}")
        x, y, width, height = (_number(where, v) for v in bbox)
        corners = rectangle(x, y, round(x + width, DECIMALS), round(y + height, DECIMALS))
        return [Box(category, corners, ignore=ignore, kind="box")]


def _coco_name(images: str, file_name: str) -> str:
    return posixpath.normpath(posixpath.join(images, file_name.replace("\\", "/")))


def _coco_polygon(where: str, shape: object) -> tuple[float, ...]:
    if not isinstance(shape, list) or len(shape) < 6 or len(shape) % 2:
        raise SourceError(f"{where}: expected segmentation [[x1, y1, x2, y2, x3, y3, …], …], found {shape!r:.80}")
    return tuple(_number(where, v) for v in shape)
