"""What a collection says of its images: class, boxes, masks, captions, ground sampling distance, from its labels."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from xml.etree import ElementTree
from xml.parsers import expat

from ..boxes import Box, rectangle, turned
from ..errors import SourceError
from ..files import READABLE, BadFile, File
from ..manifest import (
    Captions,
    ClassFolders,
    CocoJson,
    DotaText,
    FmowJson,
    GeoJson,
    Labels,
    MaskRaster,
    MaskSource,
    Twin,
    VocXml,
)
from ..sample import Sample
from .coco import Coco
from .formats import Captioned, Features, Labelled, fmow, metres, number

__all__ = ["LabelReader", "Labelled"]

_SHAPES = ("points", "polygon", "robndbox", "bndbox")  # in VOC files; the tighter one first
TOKEN = re.compile(r"\{(dir|folder|stem|name)\}|\{stem:([+-])(\d+)\}")

Shared = CocoJson | GeoJson | Captions  # one file may be of many images
Index = Coco | Features | Captioned


class LabelReader:
    """Labels of images whose headers are known. `read` gives the bytes of a label file, `find` tells where they are;
    both give None where there is no such file.

    An image without a label file has no labels. A damaged label file is a SourceError: where, and what is expected.
    """

    def __init__(
        self,
        labels: tuple[Labels, ...],
        read: Callable[[str], bytes | None],
        find: Callable[[str], File | None] = lambda name: None,
        reduced: bool = False,
    ) -> None:
        """reduced: of COCO files that have one of images at a third beside them, that one is read."""
        # of several layouts the first that knows is taken, and a class folder goes before a class in a file
        self._labels = sorted(labels, key=lambda each: not isinstance(each, ClassFolders))
        self._read = read
        self._find = find
        self._reduced = reduced
        self._shared: dict[tuple[str, str], Index | str | None] = {}  # str: why the file cannot be used

    def __call__(self, image: Sample) -> Labelled:
        """Labels of an image; its name is a posix path within the collection."""
        name = posixpath.normpath(image.name)
        found: list[Labelled] = []
        read: set[str] = set()  # kinds of which an image has one file: further entries say where else it may lie
        for labels in self._labels:
            said = None if labels.kind in read else self._labelled(labels, image, name)
            if said is not None:
                found.append(said)
                read |= {labels.kind} if isinstance(labels, DotaText | VocXml) else set()
        return Labelled(
            label=next((f.label for f in found if f.label), ""),
            boxes=[box for f in found for box in f.boxes],
            gsd_m=next((f.gsd_m for f in found if f.gsd_m is not None), None),
            acquired=next((f.acquired for f in found if f.acquired), ""),
            captions=tuple(caption for f in found for caption in f.captions),
            mask=next((f.mask for f in found if f.mask), ""),
            split=next((f.split for f in found if f.split), ""),
            tags=next((f.tags for f in found if f.tags), ()),
            image_id=next((f.image_id for f in found if f.image_id), ""),
        )

    def open_shared(self) -> None:
        """Read the files of many images now, that no image is blamed for what they take."""
        for labels in self._labels:
            if isinstance(labels, CocoJson | GeoJson | Captions) and "{" not in labels.path:
                with suppress(SourceError, BadFile):  # said of each image that asks
                    self._index(labels, posixpath.normpath(labels.path))

    def twin(self, name: str) -> File | None:
        """The JPEG that a camera made of the same shot as the RAW of that name; the first that there is."""
        paths = (
            label_path(labels.path, posixpath.normpath(name)) for labels in self._labels if isinstance(labels, Twin)
        )
        return next((file for path in paths if path and (file := self._find(path))), None)

    def _labelled(self, labels: Labels, image: Sample, name: str) -> Labelled | None:
        """What one entry says of an image; None where there is no such file."""
        if isinstance(labels, Twin):
            return None  # it says nothing: see `twin`
        if isinstance(labels, ClassFolders):
            folders = name.split("/")[:-1]
            label = folders[-labels.level] if labels.level <= len(folders) else ""
            return Labelled("" if label in labels.skip else label)
        path = label_path(labels.path, name)
        if path is None:
            return None
        if isinstance(labels, MaskRaster):
            return Labelled(mask=self._mask(labels, path))
        if isinstance(labels, CocoJson | GeoJson | Captions):
            images = label_path(labels.images or ".", name)
            index = None if images is None else self._index(labels, path)
            return index.of(image, posixpath.relpath(f"/{name}", f"/{images}")) if index else None
        data = self._read(path)
        if data is None:
            return None
        if isinstance(labels, DotaText):
            return _dota(path, data)
        if isinstance(labels, FmowJson):
            return fmow(path, data)
        return Labelled(boxes=[_voc_box(path, node) for node in _xml(path, data).iter("object")])

    def _mask(self, labels: MaskRaster, path: str) -> str:
        file = self._find(path)
        if file is None:
            return ""
        if file.packing not in ("", "tar", *READABLE):
            raise SourceError(f"{path}: expected a raster that can be read in place, found: {file.packing}")
        said = {
            "ignore": labels.ignore,
            "classes": labels.classes,
            "colours": labels.colours,
            "threshold": labels.threshold,
        }
        return MaskSource(file=asdict(file), **said).to_json()

    def _index(self, labels: Shared, path: str) -> Index | None:
        """The labels of a file by image. A file of many images is kept: one of a gigabyte is not parsed for each."""
        if "{stem" in labels.path or "{name" in labels.path:
            return self._opened(labels, path)
        key = (labels.model_dump_json(exclude={"images"}), path)
        if key not in self._shared:
            try:
                self._shared[key] = self._opened(labels, path)
            except SourceError as exc:
                self._shared[key] = str(exc)
        index = self._shared[key]
        if isinstance(index, str):
            raise SourceError(index)
        return index

    def _opened(self, labels: Shared, path: str) -> Index | None:
        data = self._read(path)
        if data is None:
            return None
        if isinstance(labels, CocoJson) and labels.downsampled and self._reduced:
            reduced = self._read(labels.downsampled)
            if reduced is not None:
                return Coco(labels.downsampled, reduced, labels.split, reduced=True)
        if isinstance(labels, GeoJson):
            return Features(path, data, labels)
        return Coco(path, data, labels.split) if isinstance(labels, CocoJson) else Captioned(path, data)


def label_path(template: str, name: str) -> str | None:
    """A path within the collection; {dir}, {stem}, {name} are of the image: its folder, its file without and with
    suffix; {folder} is the last part of {dir}; {stem:-4} is the stem without its last 4 characters, {stem:+4} the one
    without its first 4.

    None if the path climbs out of the collection.
    """
    file = posixpath.basename(name)
    stem = posixpath.splitext(file)[0]
    folder = posixpath.dirname(name)
    values = {"dir": folder or ".", "folder": posixpath.basename(folder) or ".", "stem": stem, "name": file}

    def value(token: re.Match[str]) -> str:
        word, side, count = token.groups()
        if word:
            return values[word]
        return stem[int(count) :] if side == "+" else stem[: max(len(stem) - int(count), 0)]

    path = posixpath.normpath(TOKEN.sub(value, template))
    return None if path.startswith(("/", "../")) or path == ".." else path


def _dota(path: str, data: bytes) -> Labelled:
    """Labels of a DOTA text file: headers, then `x1 y1 x2 y2 x3 y3 x4 y4 class difficult`, an object a line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        n = 1 + data.count(b"\n", 0, exc.start)
        raise SourceError(f"{path}, line {n}: expected UTF-8 text, found byte {data[exc.start]:#04x}") from None
    boxes, gsd_m, acquired = [], None, ""
    for n, line in enumerate(re.split(r"\r\n?|\n", text), 1):
        where = f"{path}, line {n}"
        header, _, value = (word.strip() for word in line.partition(":"))
        match header.lower():
            case "" | "imagesource":
                pass
            case "gsd":
                gsd_m = metres(where, value)
            case "acquisition dates":
                acquired = value if re.fullmatch(r"\d{4}-\d\d-\d\d", value) else ""
            case _:
                boxes.append(_dota_box(where, line))
    return Labelled("", boxes, gsd_m, acquired)


def _dota_box(where: str, line: str) -> Box:
    """The box of a line, parted by blanks or by commas; whatever is not 0 is difficult, as 2 and -1 in later files."""
    words = line.split()
    if len(words) not in (9, 10) or "," in words[0]:
        words = re.split(r"\s*,\s*|\s+", line.strip().rstrip(", "))
    try:
        difficult = any(float(word) != 0 for word in words[9:])
    except ValueError:
        words = []
    if len(words) not in (9, 10) or not all(words):
        raise SourceError(f"{where}: expected x1 y1 x2 y2 x3 y3 x4 y4 class difficult (0 or 1), found {line!r:.80}")
    points = tuple(number(where, word) for word in words[:8])
    return Box(words[8], points, difficult=difficult, kind="quad")


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
    return [number(f"{path}, line {texts[tag][0]}", texts[tag][1]) for tag in tags]


def _corners(path: str, node: ElementTree.Element) -> tuple[float, ...]:
    """Corners given one by one: <point>x,y</point>, or <x1>, <y1>, … or <x_left_top>, <y_left_top>, … by turns."""
    corners = [child for child in node if child.tag != "angle"]  # which the corners tell
    axes = "".join(child.tag[:1] for child in corners)
    words = [(child, word) for child in corners for word in (child.text or "").strip().split(",")]
    points = tuple(number(f"{path}, line {child.get('line')}", word) for child, word in words)
    if points[:2] == points[-2:]:  # FAIR1M gives the first corner again at the end
        points = points[:-2]
    if len(points) < 6 or len(points) % 2 or axes.replace("xy", "").strip("p"):
        where = f"{path}, line {node.get('line')}"
        raise SourceError(f"{where}: expected 3 or more corners in <{node.tag}>, x and y by turns")
    return points
