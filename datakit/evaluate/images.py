"""Labelled images of an evaluation set: class folders or shards, and the lists that split them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..errors import ShardError, SourceError
from ..sample import IMAGE_SUFFIX
from ..stream.source import INDEX, opened
from ..stream.tars import Tars

Rows = NDArray[np.int64]
SHOWN = 3  # names of an error


@dataclass(frozen=True)
class Images:
    """Images in a fixed order. names: paths in the set, or keys. labels: "" where there is none. read: the bytes of the
    nth. stamps: change when an image does."""

    where: str
    names: list[str]
    labels: list[str]
    read: Callable[[int], bytes]
    stamps: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def digest(self, rows: Rows) -> str:
        """Of some of the images."""
        state = xxhash.xxh3_128(self.where.encode())
        for row in rows.tolist():
            state.update(f"{self.names[row]}\0{self.stamps[row]}\n".encode())
        return state.hexdigest()


def images_of(source: str | Path) -> Images:
    """The set at `source`: a build, an index or tars; else a folder of class folders."""
    path = Path(source)
    named = "://" in str(source) or path.suffix in (".arrow", ".tar")
    if named or (path / INDEX).is_file() or any(path.glob("*.tar")):
        return of_shards(opened(source), str(source))
    if not path.is_dir():
        raise SourceError(f"{source}: no such folder")
    return of_folders(path)


def of_folders(folder: Path) -> Images:
    """Images below a folder, labelled by the folder that each lies in."""
    paths = sorted(path for path in folder.rglob("*") if IMAGE_SUFFIX.search(path.name) and path.is_file())
    if not paths:
        raise SourceError(f"{folder}: no shards, and no images in class folders")
    names = [path.relative_to(folder).as_posix() for path in paths]
    labels = ["" if path.parent == folder else path.parent.name for path in paths]
    stamps = [f"{about.st_size} {about.st_mtime_ns}" for about in (path.stat() for path in paths)]
    return Images(str(folder), names, labels, lambda row: paths[row].read_bytes(), stamps)


def of_shards(tars: Tars, where: str) -> Images:
    """Samples of shards: names and labels of their JSON, or keys, and their member `cls`."""
    names, labels = [], []
    keys = tars.keys(np.arange(len(tars), dtype=np.int64))
    for row, key in enumerate(keys):
        fields = json.loads(tars.read(row, "json")) if tars.has(row, "json") else {}
        names.append(key if is_window(fields) else str(fields.get("name") or key))  # windows share a name
        label = tars.read(row, "cls").decode().strip() if tars.has(row, "cls") else fields.get("label", "")
        labels.append(str(label))

    def read(row: int) -> bytes:
        member = tars.image_of(row)
        if member is None:
            raise ShardError(f"{tars.where(row)}: {keys[row]} has no image")
        return tars.read(row, member)

    return Images(where, names, labels, read, [f"{tars.digest} {key}" for key in keys])


@dataclass(frozen=True)
class Split:
    """Rows to learn from and rows to test on, with a number of a class for each row of the set, -1 where unknown."""

    train: Rows
    test: Rows
    numbers: Rows
    classes: tuple[str, ...]


def is_window(fields: dict[str, Any]) -> bool:
    """Whether a sample is a part of its image; a build gives whole images a window, too, which is all of them."""
    window = fields.get("window") or []
    return bool(window) and window != [0, 0, fields.get("image_width"), fields.get("image_height")]


def read_list(path: Path) -> list[tuple[str, str]]:
    """Pairs (path, label) of a published list, whose lines are `path label`; "" where a line has no label."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise SourceError(f"{path}: no list that can be read: {exc}") from None
    pairs = []
    for line in filter(None, map(str.strip, lines)):
        name, _, label = line.rpartition(" ") if not IMAGE_SUFFIX.search(line) else (line, "", "")
        pairs.append((name.strip().replace("\\", "/"), label))
    if not pairs:
        raise SourceError(f"{path}: no lines")
    return pairs


def listed(images: Images, train: Path, test: Path | None = None) -> Split:
    """The split of published lists; without one for the test, all other images that have a label are tested on."""
    pairs = [read_list(path) for path in (train, *filter(None, [test]))]
    places = Places(images.names)
    rows = [
        places.rows([name for name, _ in of], path) for of, path in zip(pairs, filter(None, (train, test)), strict=True)
    ]
    said = {
        row: label for of, at in zip(pairs, rows, strict=True) for (_, label), row in zip(of, at.tolist(), strict=True)
    }
    labels = agreed(images, said)
    known = np.array([bool(label) for label in labels])
    rest = np.setdiff1d(np.flatnonzero(known), rows[0])
    tested = rows[1] if test else rest
    both = np.intersect1d(rows[0], tested)
    if len(both):
        raise SourceError(f"{test}: {len(both)} of its images are in {train}, too, as {images.names[both[0]]}")
    return numbered(labels, rows[0], tested)


def drawn(images: Images, share: float, seed: int) -> Split:
    """A share of each class to learn from, at least one image, and the rest to test on."""
    labels, rng = np.array(images.labels), np.random.default_rng(seed)
    train: list[int] = []
    for label in sorted({*images.labels} - {""}):
        rows = rng.permutation(np.flatnonzero(labels == label))
        train += rows[: max(round(share * len(rows)), 1)].tolist()
    test = np.setdiff1d(np.flatnonzero(labels != ""), train)
    return numbered(images.labels, np.sort(np.array(train, np.int64)), test)


def numbered(labels: Sequence[str], train: Rows, test: Rows) -> Split:
    """Classes are those that are learnt. SourceError where there are not two, or nothing to test on."""
    classes = sorted({labels[row] for row in train.tolist()} - {""})
    if len(classes) < 2 or not len(test):
        raise SourceError(f"{len(classes)} classes in {len(train)} images to learn from, {len(test)} to test on")
    places = {name: n for n, name in enumerate(classes)}
    strange = sorted({labels[row] for row in test.tolist()} - {*classes})
    if strange:
        raise SourceError(f"test images are of classes that none is learnt of: {', '.join(strange[:SHOWN]) or 'none'}")
    return Split(train, test.astype(np.int64), np.array([places.get(label, -1) for label in labels]), tuple(classes))


def agreed(images: Images, said: dict[int, str]) -> list[str]:
    """Labels of all images: their own, else those that lists give. SourceError where the two tell different classes."""
    if not any(images.labels):
        return [said.get(row, "") for row in range(len(images))]
    meant: dict[str, set[str]] = defaultdict(set)
    for row, label in said.items():
        if label:
            meant[label].add(images.labels[row])
    names = [name for own in meant.values() for name in own]
    for label, own in meant.items():
        if len(own) > 1 or len(names) != len({*names}):
            raise SourceError(f"label {label} of the lists is {' and '.join(sorted(own)[:SHOWN])} in {images.where}")
    return images.labels


class Places:
    """Finds images by what lists call them: by the end of their paths, as much of it as both have."""

    def __init__(self, names: Sequence[str]) -> None:
        self.below: dict[str, list[int]] = defaultdict(list)
        self.parts = [parts_of(name) for name in names]
        for row, parts in enumerate(self.parts):
            self.below[parts[-1]].append(row)

    def rows(self, names: Sequence[str], path: Path) -> Rows:
        """The rows of a list's names. SourceError where one is not there, is several, or comes twice."""
        found = [list(self.matching(name)) for name in names]
        missing = [name for name, rows in zip(names, found, strict=True) if not rows]
        if missing:
            raise SourceError(f"{path}: {len(missing)} of its {len(names)} images are not in the set, as {missing[0]}")
        several = [name for name, rows in zip(names, found, strict=True) if len(rows) > 1]
        if several:
            raise SourceError(
                f"{path}: {several[0]} may be any of {len(found[names.index(several[0])])} images of the set"
            )
        rows = np.array([rows[0] for rows in found], np.int64)
        if len(np.unique(rows)) < len(rows):
            values, counts = np.unique(rows, return_counts=True)
            raise SourceError(
                f"{path}: {names[int(np.flatnonzero(rows == values[counts.argmax()])[0])]} is listed twice"
            )
        return rows

    def matching(self, name: str) -> Iterator[int]:
        wanted = parts_of(name)
        near = [row for row in self.below.get(wanted[-1], ()) if _ends_alike(self.parts[row], wanted)]
        exact = [row for row in near if self.parts[row] == wanted]
        return iter(exact or near)


def parts_of(name: str) -> tuple[str, ...]:
    """Folders and file of a path, the file without the suffix of an image."""
    *folders, file = name.strip("/").split("/")
    return (*folders, IMAGE_SUFFIX.sub("", file))


def _ends_alike(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    count = min(len(a), len(b))
    return a[-count:] == b[-count:]
