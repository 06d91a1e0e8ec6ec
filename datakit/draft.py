"""The first draft of a manifest: what the files of a folder tell by themselves. A person completes it."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from . import files, hints, image, place
from .errors import RecipeError, SourceError
from .files import File
from .grouping import FIRST, Group, Groups, Index
from .manifest import NO_LABEL, Collection
from .masks import levels_in
from .ondisk import size, unpacked_by, walk
from .remote import Root
from .sample import IMAGE_SUFFIX, Sample
from .sources import beside
from .sources.scan import read_header
from .validate import validate

MOST_CLASSES = 64  # of a mask; more are no classes
PATHS = 6  # label files, or paths of them, that are written one by one
TODO = "# to complete:"


@dataclass
class Entry:
    """One entry of `labels`, and what a person must complete in it."""

    fields: dict[str, Any]
    todo: str = ""

    @property
    def line(self) -> str:
        inside = ", ".join(f"{key}: {_spelled(value)}" for key, value in self.fields.items())
        return f"    - {{{inside}}}" + (f" {TODO} {self.todo}" if self.todo else "")


@dataclass
class Content:
    """What some label files of a group hold."""

    group: Group
    kind: str
    files: list[tuple[str, bytes]]


def write(folder: Path, out: Path, name: str = "", most: int = 200) -> str:
    """The draft, written to a new file; RecipeError if there is one already."""
    if out.exists():
        raise RecipeError(f"{out}: is there already, and is not written over. Give another name with -o")
    text = draft(folder, name, most)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as exc:
        raise RecipeError(f"{out}: {exc.strerror}") from None
    return text


def draft(folder: Path, name: str = "", most: int = 200) -> str:
    """A manifest of the collection at `folder`, as YAML; of `most` images the headers are read.

    SourceError if there is no image.
    """
    everything, closed = walk(folder)
    root = files.home(folder)
    sides = beside.of_images(lambda name: bool(IMAGE_SUFFIX.search(name)), (f.name for f in everything))
    found = [file for file in everything if file.name not in sides]
    groups = Groups(found, root, max(most, FIRST))
    images = [g for g in groups.all if g.image and not g.is_mask] or [g for g in groups.all if g.image]
    if not images:
        raise SourceError(
            f"{folder}: no image among {len(found):,} files. Unpack archives that cannot be read in place"
        )
    contents = [looked_into(g, root) for g in groups.all if g not in images]
    index = index_of(groups, images, found, contents)
    said, read = entries(contents, index)
    said += class_folders(images)
    side_cars = beside.SideCars(root, beside.by_name({f.name: f for f in everything if f.name in sides}), Counter())
    seen, unread = headers(root, images, most, side_cars)
    slug = name or re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower()).strip("_")[:24].rstrip("_") or "mine"
    parts = (
        about(slug),
        facts(seen, unread),
        layout(images, contents, said, read),
        others(contents, closed),
        splits(images),
    )
    text = "\n".join(line for part in parts for line in part) + "\n"
    validate(Collection, yaml.safe_load(text), "--name: " + slug if name else str(folder))
    return text


def looked_into(group: Group, root: Root) -> Content:
    """What the files of a group hold, by what most of a few of them hold."""
    read = [(file.name, data) for file in group.some(FIRST) if (data := _bytes(root, file)) is not None]
    if group.image:
        return Content(group, "mask", read)
    kinds = Counter(hints.kind_of(name, data) for name, data in read)
    kinds.pop("", None)
    kind = kinds.most_common(1)[0][0] if kinds else ""
    return Content(group, kind, [(name, data) for name, data in read if hints.kind_of(name, data) == kind])


def _bytes(root: Root, file: File) -> bytes | None:
    try:
        return files.read(root, file) if file.file_bytes <= files.SMALL_BYTES else None
    except OSError:  # of one that cannot be read, a build will tell
        return None


def index_of(groups: Groups, images: list[Group], found: list[File], contents: list[Content]) -> Index:
    """The images that label files name, or are named after."""
    named: set[str] = set()
    for content in contents:
        for _, data in content.files:
            if content.kind in ("coco", "captions"):
                named.update(hints.files_named(content.kind, data))
            elif content.kind == "geojson":
                named.update(value for values in hints.properties(data).values() for value in values)
    labels = [name for content in contents for name, _ in content.files]
    return Index(groups, images, found, labels, {Path(name).name for name in named})


def entries(contents: list[Content], index: Index) -> tuple[list[Entry], set[str]]:
    """The entries of `labels`, and the globs of the label files that they read."""
    found: list[Entry] = []
    by_path: dict[tuple[str, str], list[tuple[str, bytes]]] = {}
    read: set[str] = set()
    for content in contents:
        many = of_many(content, index)
        paths = [] if many else paths_of(content, index)
        found += many
        for path in paths:
            by_path.setdefault((content.kind, path), []).extend(content.files)
        read |= {content.group.glob} if many or paths else set()
    for (kind, path), those in by_path.items():
        more, todo = _more(kind, [data for _, data in those])
        found.append(Entry({"kind": kind, "path": path, **more}, todo))
    return found, read


def of_many(content: Content, index: Index) -> list[Entry]:
    """Entries of files that say something of many images each."""
    if content.kind in ("coco", "captions"):
        return [_of_many(content.kind, name, data, index) for name, data in content.files[:PATHS]]
    if content.kind != "geojson":
        return []
    return [entry for name, data in content.files[:PATHS] if (entry := _geojson_of_many(name, data, index))]


def paths_of(content: Content, index: Index) -> list[str]:
    """How the path of a label file follows from that of its image; empty where no image belongs to any."""
    if content.kind in ("", "yolo"):
        return []
    pairs = [(image, name) for name, _ in content.files if (image := index.image_of(name))]
    ways = [hints.template(image, name) for image, name in pairs]
    from_image, by_folder, from_top = ({way[n] for way in ways} for n in (0, 1, 2))
    if len(from_image) == 1 and not any(map(hints.split_of, next(iter(from_image)).split("/"))):
        return sorted(from_image - {""})
    if len(by_folder) == 1 and "" not in by_folder:
        return sorted(by_folder)
    return sorted(from_top - {""} if len(from_top) <= PATHS else ())


def _of_many(kind: str, name: str, data: bytes, index: Index) -> Entry:
    for file in hints.files_named(kind, data):
        if image := index.named(file):
            folder = image.removesuffix(file.lstrip("./")).rstrip("/")
            return Entry({"kind": kind, "path": name, **({"images": folder} if folder else {})})
    return Entry({"kind": kind, "path": name}, "images: the folder that the names of images in it are relative to")


def _geojson_of_many(name: str, data: bytes, index: Index) -> Entry | None:
    """One GeoJSON for many images: a property names each image."""
    values = hints.properties(data)
    for key in values:
        image, value = next(((image, v) for v in values[key] if (image := index.named(v))), ("", ""))
        if image:
            folder = image.removesuffix(value.lstrip("./")).rstrip("/")
            entry = _geojson(data, values)
            return Entry(
                {**entry.fields, "path": name, "image": key, **({"images": folder} if folder else {})}, entry.todo
            )
    return None


def _geojson(data: bytes, values: dict[str, list[str]]) -> Entry:
    fields: dict[str, Any] = {"kind": "geojson", "path": ""}
    bounds = next((k for k, v in values.items() if re.fullmatch(r"-?[\d.]+(,\s*-?[\d.]+){3}", v[0])), "")
    words = ("class", "category", "label", "type", "type_id", "name")
    category = next((k for word in words for k in values if k.lower() in (word, f"{word}_name", f"{word}_id")), "")
    fields |= {"bounds": bounds} if bounds else {"coordinates": "pixel"} if hints.in_pixels(data) else {}
    fields |= {"category": category} if category else {}
    return Entry(fields, "check coordinates (map or pixel), and category: the property that gives the class")


def _more(kind: str, contents: list[bytes]) -> tuple[dict[str, Any], str]:
    """What else an entry of one file an image says: of masks their levels, of GeoJSON its properties."""
    if kind == "geojson":
        entry = _geojson(contents[0], hints.properties(contents[0]))
        return {key: value for key, value in entry.fields.items() if key not in ("kind", "path")}, entry.todo
    return _levels(contents) if kind == "mask" else ({}, "")


def _levels(contents: list[bytes]) -> tuple[dict[str, Any], str]:
    """The classes of masks, by level or by colour.

    White beside grays is a class, for which seg.png has no 255; 255 beside levels of classes is what has no label.
    """
    found = [levels_in(data) for data in contents]
    colours = {colour for _, those in found for colour in those}
    levels = {level for those, _ in found for level in those}
    if NO_LABEL in levels and not levels & set(range(1, MOST_CLASSES)):
        colours |= {(level, level, level) for level in levels}
    if colours and len(colours) <= MOST_CLASSES:
        named = {n: f"class_{n}" for n in range(len(colours))}
        by_level = {n: list(colour) for n, colour in enumerate(sorted(colours))}
        return {"classes": named, "colours": by_level}, "names of the classes, and their colours"
    named = {n: f"class_{n}" for n in sorted(levels) if 0 <= n < NO_LABEL}
    todo = "names of the classes; ignore: [levels that mean no label]" + ("; 255 means none" * (NO_LABEL in levels))
    return ({"classes": named} if 0 < len(named) <= MOST_CLASSES else {}), todo


def class_folders(images: list[Group]) -> list[Entry]:
    """That folders are classes, where `*` stands for the folders of images."""
    if not any(group.folder.endswith("*") for group in images):
        return []
    return [Entry({"kind": "class_folders"}, "remove if the folders are no classes; level: 2 for the folder above")]


def headers(
    root: Root, images: list[Group], most: int, side_cars: beside.SideCars
) -> tuple[list[Sample], Counter[str]]:
    """Images of all groups with their header facts, and how many could not be read, by reason."""
    seen, unread = [], Counter[str]()
    with tempfile.TemporaryDirectory() as name, image.quiet():
        for file in (f for group in images for f in group.some(max(most // len(images), 1))):
            sample = Sample(**{**asdict(file), "path": files.utf8(file.path)})
            try:
                header, where = read_header(root, sample, Path(name), ())
                where, _ = side_cars(file.name, header, where)
                seen.append(replace(sample, **header._asdict(), **where))
            except Exception as exc:  # whatever a reader raises on a broken file
                files.check_machine(exc, root, sample)
                unread[image.reason(exc, root, Path(name))] += 1
    return seen, unread


def about(slug: str) -> Iterator[str]:
    """What no file tells, for a person to complete."""
    yield "# A draft: complete what is marked, check the rest, then remove the marks."
    yield f"name: {_spelled(slug)}"
    yield f"title: {_spelled(slug)} {TODO} the full name"
    yield f"version: null {TODO} as the publisher numbers it"
    yield f'homepage: "" {TODO} https://…'
    yield f"licence: unstated {TODO} SPDX name, or the publisher's own words"
    yield f"provider_terms: null {TODO} terms of whoever took the pictures"
    yield f"citation: null {TODO} authors: title. Where, year."


def facts(seen: list[Sample], unread: Counter[str]) -> Iterator[str]:
    """What headers tell: bands, type, ground sampling distance."""
    counts = {n: Counter(getattr(s, n) for s in seen).most_common() for n in ("bands", "dtype", "format")}
    bands = counts["bands"][0][0] if seen else image.COLOURS
    named = not any(re.fullmatch(r"band\d+", band) for band in bands)
    modality = "optical" if bands in (image.COLOURS, image.GRAY) else "multispectral"
    modality = "sar" if set(bands) <= {"vv", "vh", "hh", "hv"} else modality
    yield f"modality: {modality} {TODO} or multispectral, hyperspectral, sar, infrared, elevation"
    yield f"platform: null {TODO} satellite, aerial, uav, oblique or mixed"
    formats = ", ".join(f"{name} {n:,}" for name, n in sorted(counts["format"]))
    yield f"# of {len(seen) + unread.total():,} headers: {formats or 'none could be read'}"
    yield from (f"# cannot be read: {n:,} ({reason})" for reason, n in unread.most_common(3))
    if seen:
        small, large = (fold(seen, key=lambda s: s.width * s.height) for fold in (min, max))
        yield f"# {small.width:,} x {small.height:,} to {large.width:,} x {large.height:,} px"
    yield from (f"# {n:,} have the bands {', '.join(other)}" for other, n in counts["bands"][1:4])
    yield f"bands: [{', '.join(bands)}]" + ("" if named else f" {TODO} their names: red, green, blue, nir, …")
    same = len(counts["dtype"]) == 1
    yield f"dtype: {counts['dtype'][0][0] if same else 'null # ' + ', '.join(f'{d} {n:,}' for d, n in counts['dtype'])}"
    gsd = [metres for s in seen if (metres := place.gsd_m(s))]
    if gsd:
        yield f"gsd_m: [{min(gsd):.3g}, {max(gsd):.3g}] # of the {len(gsd):,} that lie on the map"
    else:
        yield f"gsd_m: null {TODO} [finest, coarsest], metres per pixel"


def layout(images: list[Group], contents: list[Content], said: list[Entry], read: set[str]) -> Iterator[str]:
    """The globs of images and of label files, and how labels are read."""
    yield from ("layout:", "  images:")
    yield from (f"    - {_spelled(g.glob)} # {g.count:,} files, {size(g.bytes)}" for g in images)
    listed = [c for c in contents if c.kind not in ("", "yolo")]
    if listed:
        yield "  label_files:"
    for content in listed:
        lost = "" if content.group.glob in read else f"; {TODO[2:]} no image is named like them: which entry of labels?"
        yield f"    - {_spelled(content.group.glob)} # {content.group.count:,} files, {content.kind}{lost}"
    if said:
        yield "  labels:"
        yield from (entry.line for entry in said)


def others(contents: list[Content], closed: dict[str, int]) -> Iterator[str]:
    """What is left: files that say nothing that is read, archives that must be unpacked."""
    left = sorted((c for c in contents if c.kind in ("", "yolo")), key=lambda c: -c.group.count)
    for content in left[:PATHS]:
        what = "boxes of YOLO, which are not read" if content.kind == "yolo" else "neither images nor labels"
        yield f"# {content.group.count:,} files {json.dumps(content.group.glob)}: {what}"
    for path, n_bytes in closed.items():
        yield f"# not read: {json.dumps(path)} ({size(n_bytes)}): run `{unpacked_by(path)}` on it, then move it away"


def splits(images: list[Group]) -> Iterator[str]:
    """The splits that folders tell, with the counts of what is here, and the fields at the end."""
    named: dict[str, list[Group]] = {}
    for group in images:
        named.setdefault(group.split, []).append(group)
    untold = named.pop("", [])
    yield "splits:" if named else f"splits: {{}} {TODO} name: {{images: [globs], count: n}}"
    for split, groups in named.items():
        globs = ", ".join(_spelled(group.glob) for group in groups)
        yield f"  {split}: {{images: [{globs}], count: {sum(g.count for g in groups)}}} {TODO} as published"
    if named and untold:
        yield f"  # of no split: {', '.join(_spelled(group.glob) for group in untold)}"
    yield f"count: {sum(group.count for group in images)} {TODO} as published; this is what is here"
    yield f"role: pretrain {TODO} or evaluation, which no training set may take from"
    yield f"facts: {{}} {TODO} the page of each fact above: {{licence: https://…}}"
    yield 'note: ""'


def _spelled(value: Any) -> str:
    """A value as YAML on one line; text that could be taken for something else is quoted, what no file of YAML may hold
    (control characters, U+FFFE, bytes of names that are no UTF-8) is written as \\uXXXX.
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_spelled(v)}" for key, v in value.items()) + "}"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w./-]*", value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=isinstance(value, str) and not value.isprintable())
