"""What a file that is no image may say of images: the kind of labels it holds, told by its content."""

from __future__ import annotations

import json
import posixpath
import re
from typing import Any
from xml.etree import ElementTree

SPLITS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}  # other names of a split
MASK_WORDS = {
    "mask", "masks", "label", "labels", "gt", "groundtruth", "seg", "segmentation", "segmentationclass", "annotation",
    "annotations", "ann", "target", "targets", "landcover", "lulc", "lbl", "msk",
}  # fmt: skip
TASKS = {"segmentation", "landcover", "lulc"}  # of a folder with images and labels, too: only directly above files
IMAGE_WORDS = {"image", "images", "img", "imgs", "jpegimages", "jpgimages", "photos", "rgb", "optical"}
KEPT_WORDS = {
    *IMAGE_WORDS, "ms", "nir", "sar", "dsm", "ndsm", "dem", "labeltxt", "labelxmls", "hbb", "obb", "json", "geojson",
    "geojsons", "xml", "txt", "captions", "imagesets",
}  # fmt: skip
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", b"BM", b"\0\0\0\x0cjP  ")
_SPLIT = re.compile(r"(?:^|[^a-z])(trainval|train|training|val|valid|validation|test|testing|unlabell?ed)(?![a-z])")
_TAIL = re.compile(r"[_-][A-Za-z]+\Z")


def is_image(head: bytes) -> bool:
    """Whether these first bytes are those of an image that is read."""
    return head.startswith(MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def split_of(folder: str) -> str:
    """The split that a folder's name tells, or ""."""
    found = _SPLIT.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", folder).lower())
    return SPLITS.get(found[-1], found[-1]) if found else ""


def is_kept(folder: str) -> bool:
    """Whether a folder's name means something, so that no `*` may take its place."""
    return folder.lower() in KEPT_WORDS or split_of(folder) != "" or is_mask(folder)


def is_mask(word: str) -> bool:
    """Whether a folder or the end of a file's name says that its images are labels."""
    return not MASK_WORDS.isdisjoint(_words(word))


def masks_below(folders: list[str]) -> bool:
    """Whether folders, the outermost first, say that the images in the last one are labels.

    The nearest that says anything counts: `masks/oslo` are labels, `labels/train` too, `segmentation/images` are none.
    A folder called masks says so even of images below it (iSAID's `Semantic_masks/images`).
    """
    for n, folder in enumerate(reversed(folders)):
        words = _words(folder)
        if MASK_WORDS & words and (n == 0 or not words <= TASKS):
            return True
        if words & IMAGE_WORDS:
            break
    return any(_words(folder) & {"mask", "masks"} for folder in folders)


def _words(name: str) -> set[str]:
    return {name.lower(), *re.split(r"[^a-z]+", name.lower())} - {""}


def tail_of(stem: str) -> str:
    """The word that a file's name ends in, with what parts it: `_sat` of 104_sat; or ""."""
    found = _TAIL.search(stem)
    return found[0] if found else ""


def kind_of(name: str, data: bytes) -> str:
    """The kind of labels in a file: that of a manifest, "yolo" (which is not read), or ""."""
    suffix = posixpath.splitext(name)[1].lower()
    try:
        if suffix == ".txt":
            return _text_kind(data.decode("utf-8-sig"))
        if suffix == ".xml" and b"<!DOCTYPE" not in data:
            root = ElementTree.fromstring(data)
            return "voc" if root.tag == "annotation" and root.find(".//object") is not None else ""
        if suffix in (".json", ".geojson"):
            return _json_kind(json.loads(data))
    except (ValueError, ElementTree.ParseError, RecursionError):
        return ""
    return ""


def _text_kind(text: str) -> str:
    rows = [line.split() for line in text.splitlines() if line.strip() and ":" not in line]
    if rows and all(len(row) in (9, 10) and _numbers(row[:8]) and not _numbers(row[8:9]) for row in rows):
        return "dota"
    return "yolo" if rows and all(len(row) >= 5 and _numbers(row) and row[0].isdecimal() for row in rows) else ""


def _numbers(words: list[str]) -> bool:
    return all(re.fullmatch(r"-?\d+\.?\d*(e[-+]?\d+)?", word) for word in words)


def _json_kind(plain: Any) -> str:
    if not isinstance(plain, dict):
        return ""
    if plain.get("type") == "FeatureCollection":
        return "geojson"
    if "bounding_boxes" in plain:
        return "fmow"
    first = next(iter(_dicts(plain.get("images"))), {})
    if "sentences" in first and "filename" in first:
        return "captions"
    return "coco" if "file_name" in first and "annotations" in plain else ""


def _dicts(plain: Any) -> list[dict[str, Any]]:
    return [entry for entry in plain if isinstance(entry, dict)] if isinstance(plain, list) else []


def files_named(kind: str, data: bytes) -> list[str]:
    """The first images that a COCO or captions file names."""
    key = {"coco": "file_name", "captions": "filename"}[kind]
    return [str(entry[key]) for entry in _dicts(json.loads(data).get("images"))[:20] if key in entry]


def properties(data: bytes) -> dict[str, list[str]]:
    """The first values of each property of a GeoJSON's features, as text."""
    values: dict[str, list[str]] = {}
    for feature in _dicts(json.loads(data).get("features"))[:200]:
        for key, value in (feature.get("properties") or {}).items():
            values.setdefault(str(key), []).append(str(value))
    return values


def in_pixels(data: bytes) -> bool:
    """Whether the coordinates of a GeoJSON can only be pixels: no CRS is named, and some are no degrees."""
    plain = json.loads(data)
    text = json.dumps([feature.get("geometry") for feature in _dicts(plain.get("features"))[:200]])
    return "crs" not in plain and any(abs(float(n)) > 180 for n in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text))


def template(image: str, label: str) -> tuple[str, str, str]:
    """How the path of a label file follows from its image's: relative to its folder; with the name of its folder; and
    from the collection's folder. An empty text where it does not.
    """
    stem, (end, suffix) = (
        posixpath.splitext(posixpath.basename(image))[0],
        posixpath.splitext(posixpath.basename(label)),
    )
    common = posixpath.commonprefix([stem, end])
    shared = len(stem) if common == stem else 1 + max(common.rfind("_"), common.rfind("-"))
    cut = len(stem) - shared
    if not shared or (cut and not tail_of(stem)):
        return "", "", ""
    file = ("{stem}" if not cut else f"{{stem:-{cut}}}") + end[shared:] + suffix
    there, here = posixpath.dirname(label), posixpath.dirname(image)
    above, last = posixpath.split(there)
    same = last and last == posixpath.basename(here)
    by_folder = posixpath.join(_way(here, above), "{folder}", file) if same and there != here else ""
    return posixpath.join(_way(here, there), file), by_folder, posixpath.join(there, file)


def _way(here: str, there: str) -> str:
    """The way from the folder of an image to another folder."""
    way = posixpath.relpath(there or ".", here or ".")
    return "{dir}" if way == "." else posixpath.join("{dir}", way)
