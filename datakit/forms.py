"""A build in the folders that other trainers read: ImageFolder, COCO, DOTA, mmsegmentation, YOLO.

Images and masks are copied byte for byte, named after their keys. A folder is written aside and gets its name when it
is whole. What a form has no place for is left out and counted.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import cv2
import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from . import boxes
from .boxes import Box
from .errors import SourceError
from .licences import NAME as LICENCES
from .licences import Asked
from .masks import MEMBER
from .samples import Samples
from .stream.source import opened

COLUMNS = ["key", "source", "name", "label", "boxes", "width", "height", "gsd_m", "acquired"]
PICTURES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")  # suffixes that those trainers open
UNSPLIT = "all"  # folder of what has no split
NOT_A_NAME = re.compile(r"[/\\\0]|^\.+")  # in the name of a folder
Points = tuple[float, ...]


class Item(NamedTuple):
    """A sample with what a build says of it."""

    row: int
    split: str
    about: dict[str, Any]  # COLUMNS

    @property
    def boxes(self) -> list[Box]:
        return boxes.loads(self.about["boxes"])


class Build:
    """The samples of a build that are under one of some licences, all where none is asked for, and their bytes."""

    def __init__(self, out: str | Path, licence: Sequence[str] = ()) -> None:
        self.samples, self.tars = Samples(out), opened(out)
        if len(self.tars) != len(self.samples):
            raise SourceError(f"{out}: its index and samples.parquet differ in length. Build the set again")
        self.splits = self.tars.table.column("split")
        self.asked = Asked(licence)

    def pieces(self, columns: list[str]) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Columns of the records, a piece at a time, each with the rows that it has."""
        for begin, table in self.samples.pieces([*columns, *[LICENCES] * bool(self.asked)]):
            there = np.arange(table.num_rows)
            if self.asked:
                there = np.flatnonzero(self.asked.rows(table, self.samples.where))
                table = table.take(pa.array(there))
            yield begin + there, table

    def __iter__(self) -> Iterator[Item]:
        for rows, table in self.pieces(COLUMNS):
            splits = self.splits.take(pa.array(rows)).to_pylist()
            for row, split, about in zip(rows.tolist(), splits, table.to_pylist(), strict=True):
                yield Item(row, split or UNSPLIT, about)

    def categories(self) -> list[str]:
        """The names of what is boxed, sorted."""
        found: set[str] = set()
        for _, table in self.pieces(["boxes"]):
            for text in table.column("boxes").unique().to_pylist():
                found |= {box.category for box in boxes.loads(text)}
        return sorted(found)

    def copy_image(self, item: Item, stem: Path) -> Path:
        """Write the image of a sample beside `stem`, with its suffix; gives its path."""
        suffix = self.tars.image_of(item.row)
        if suffix not in PICTURES:
            raise SourceError(
                f"{item.about['key']}: its image is {suffix or 'none'}; these forms have {', '.join(PICTURES)}. "
                "For camera RAW there is `datakit export aodraw-mmdet`"
            )
        path = stem.with_name(f"{stem.name}.{suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.tars.read(item.row, suffix))
        return path


def export(form: str, out: str | Path, folder: Path, licence: Sequence[str] = ()) -> dict[str, int]:
    """Write a build in a form (a name of FORMS) into `folder`, which must be empty or not there; gives counts.

    licence: only samples under one of these, see `licences`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SourceError(f"{folder}: holds something already: name an empty folder, or one that is not there")
    build = Build(out, licence)
    aside = folder.with_name(f"{folder.name}.part-{uuid.uuid4().hex[:8]}")
    aside.mkdir(parents=True)
    try:
        counts = FORMS[form](build, aside)
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return dict(sorted(counts.items()))


def imagefolder(build: Build, folder: Path) -> Counter[str]:
    """SPLIT/CLASS/KEY.jpg, as torchvision's ImageFolder reads a split. Without a class: left out."""
    counts: Counter[str] = Counter()
    known: dict[str, str] = {}
    for item in build:
        label = item.about["label"]
        if not label:
            counts["without_label"] += 1
            continue
        name = NOT_A_NAME.sub("_", label)
        if known.setdefault(name, label) != label:
            raise SourceError(
                f"classes {known[name]!r} and {label!r} would share the folder {name}: rename one of them"
            )
        build.copy_image(item, folder / item.split / name / item.about["key"])
        counts["images"] += 1
    return counts


def coco(build: Build, folder: Path) -> Counter[str]:
    """SPLIT/KEY.jpg and annotations/instances_SPLIT.json, whose file names are below the split.

    What lies inside is told: bbox of all, segmentation of all but boxes. What is to be ignored is a crowd.
    """
    counts: Counter[str] = Counter()
    number = {name: n for n, name in enumerate(build.categories(), 1)}
    (folder / "annotations").mkdir()
    with ExitStack() as stack:
        files: dict[str, _Coco] = {}
        for item in build:
            if item.split not in files:
                path = folder / "annotations" / f"instances_{item.split}.json"
                files[item.split] = stack.enter_context(_Coco(path, number))
            name = build.copy_image(item, folder / item.split / item.about["key"]).name
            counts["images"] += 1
            counts += files[item.split].put(item, name)
    return counts


class _Coco:
    """A COCO file that grows while it is written: nothing of it is held."""

    def __init__(self, path: Path, number: dict[str, int]) -> None:
        self.path, self.number, self.images, self.notes = path, number, 0, 0

    def __enter__(self) -> _Coco:
        self.begun: TextIO = self.path.open("w", encoding="utf-8")
        self.rest: TextIO = self.path.with_suffix(".annotations").open("w+", encoding="utf-8")
        categories = [{"id": n, "name": name} for name, n in self.number.items()]
        self.begun.write(f'{{"categories": {json.dumps(categories)},\n"images": [')
        return self

    def put(self, item: Item, name: str) -> Counter[str]:
        about, counts = item.about, Counter[str]()
        self.images += 1
        size = {"width": about["width"], "height": about["height"]}
        more = {"key": about["key"], "source": about["source"]}
        self._write(self.begun, self.images, {"id": self.images, "file_name": name, **size, **more})
        for box in item.boxes:
            shape = np.array(box.clipped or box.points).reshape(-1, 2)
            low, high = shape.min(axis=0), shape.max(axis=0)
            across, down = (high - low).tolist()
            if across <= 0 or down <= 0:
                counts["without_area"] += 1
                continue
            plain = box.kind == "box"
            self.notes += 1
            note = {
                "id": self.notes,
                "image_id": self.images,
                "category_id": self.number[box.category],
                "bbox": [*low.tolist(), across, down],
                "area": across * down if plain else area_px2(shape),
                "segmentation": [] if plain else [shape.ravel().tolist()],
                "iscrowd": int(box.ignore),
                "ignore": int(box.ignore),
                "difficult": int(box.difficult),
            }
            self._write(self.rest, self.notes, note)
            counts["boxes"] += 1
        return counts

    @staticmethod
    def _write(file: TextIO, number: int, row: dict[str, Any]) -> None:
        file.write((",\n" if number > 1 else "\n") + json.dumps(row))

    def __exit__(self, *_: object) -> None:
        self.begun.write('\n],\n"annotations": [')
        self.rest.seek(0)
        shutil.copyfileobj(self.rest, self.begun)
        self.begun.write("\n]}\n")
        for file in (self.begun, self.rest):
            file.close()
        Path(self.rest.name).unlink()


def area_px2(shape: NDArray[np.float64]) -> float:
    """Area of a polygon, (K, 2), by the shoelace sum."""
    x, y = (shape - shape[0]).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def dota(build: Build, folder: Path) -> Counter[str]:
    """SPLIT/images/KEY.jpg and SPLIT/labelTxt/KEY.txt. Blanks in names become -, as in DOTA's own small-vehicle.

    The last number is 2 for what is to be ignored, as DOTA_devkit's ImgSplit marks what a tile cuts too much from, else
    1 for what is difficult. A polygon of other than four corners becomes the smallest rectangle around it.
    """
    counts: Counter[str] = Counter()
    names: dict[str, str] = {}
    for category in build.categories():
        name = dashed(category)
        if names.setdefault(name, category) != category:
            raise SourceError(f"classes {names[name]!r} and {category!r} are both {name} in DOTA's form: rename one")
    for item in build:
        about = item.about
        build.copy_image(item, folder / item.split / "images" / about["key"])
        counts["images"] += 1
        lines = [f"imagesource:{about['source']}"]
        lines += [f"gsd:{about['gsd_m']!r}"] if about["gsd_m"] else []
        for box in item.boxes:
            points, changed = quad_of(box.points)
            counts["polygons_to_rectangles"] += changed
            counts["boxes"] += 1
            spelled = [str(int(v)) if v.is_integer() else repr(v) for v in points]
            lines.append(" ".join([*spelled, dashed(box.category), "2" if box.ignore else str(int(box.difficult))]))
        path = folder / item.split / "labelTxt" / f"{about['key']}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return +counts


def dashed(category: str) -> str:
    """A name without blanks, which part the words of a line."""
    return re.sub(r"\s+", "-", category)


def quad_of(points: Points) -> tuple[Points, bool]:
    """Four corners of an object, and whether they had to be made of others: the smallest rectangle around them."""
    if len(points) == 8:
        return points, False
    corners = cv2.boxPoints(cv2.minAreaRect(np.array(points, np.float32).reshape(-1, 2)))
    return tuple(round(v, 3) for v in corners.ravel().tolist()), True


def mmseg(build: Build, folder: Path) -> Counter[str]:
    """img_dir/SPLIT/KEY.jpg, ann_dir/SPLIT/KEY.png (levels as stored, 255: no label), classes.json by source."""
    if MEMBER not in build.tars.members:
        raise SourceError(f"no sample has a {MEMBER}: build with cut.masks: true, or add it with `datakit add-column`")
    counts: Counter[str] = Counter()
    classes: dict[str, dict[str, str]] = {}
    for item in build:
        if not build.tars.has(item.row, MEMBER):
            counts["without_mask"] += 1
            continue
        key = item.about["key"]
        build.copy_image(item, folder / "img_dir" / item.split / key)
        mask = folder / "ann_dir" / item.split / f"{key}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes(build.tars.read(item.row, MEMBER))
        said = json.loads(build.tars.read(item.row, "json")).get("mask_classes", "{}")
        classes.setdefault(item.about["source"], {}).update(json.loads(said))
        counts["images"] += 1
    (folder / "classes.json").write_text(json.dumps(classes, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return counts


def yolo(build: Build, folder: Path) -> Counter[str]:
    """images/SPLIT/KEY.jpg, labels/SPLIT/KEY.txt (class, centre and size as shares of the image), and data.yaml.

    What is to be ignored is left out: there is no word for it.
    """
    counts: Counter[str] = Counter()
    number = {name: n for n, name in enumerate(build.categories())}
    splits: set[str] = set()
    for item in build:
        splits.add(item.split)
        build.copy_image(item, folder / "images" / item.split / item.about["key"])
        counts["images"] += 1
        size, lines = np.array([item.about["width"], item.about["height"]]), []
        for box in item.boxes:
            shape = np.clip(np.array(box.clipped or box.points).reshape(-1, 2), 0, size) / size
            low, high = shape.min(axis=0), shape.max(axis=0)
            why = "ignored" if box.ignore else "without_area" if (high <= low).any() else "boxes"
            counts[why] += 1
            if why == "boxes":
                numbers = " ".join(f"{v:.9f}" for v in ((low + high) / 2).tolist() + (high - low).tolist())
                lines.append(f"{number[box.category]} {numbers}\n")
        path = folder / "labels" / item.split / f"{item.about['key']}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
    plain = {**{split: f"images/{split}" for split in sorted(splits)}, "names": {n: name for name, n in number.items()}}
    (folder / "data.yaml").write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return counts


FORMS: dict[str, Callable[[Build, Path], Counter[str]]] = {
    "imagefolder": imagefolder,
    "coco": coco,
    "dota": dota,
    "mmseg": mmseg,
    "yolo": yolo,
}
