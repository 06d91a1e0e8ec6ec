"""Predicted masks and what they are compared with: files of ids, and shards or folders of true ones."""

from __future__ import annotations

import io
import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import ids
from ..errors import SourceError
from ..remote import Remote, root_of
from ..stream.source import opened
from ..stream.tars import Tars
from .scores import IGNORE

SEG = "seg.png"
SUFFIXES = (".png", ".npy")
SHOWN = 10  # names in a message
METHOD = "method.txt"  # what the test server wants to know of a method, beside the masks
Mask = NDArray[Any]


@dataclass(frozen=True)
class Truth:
    """True masks by image: `name` of each in the official layout (class/image), and what reads it."""

    names: Mapping[str, str]  # by stem
    read: Callable[[str], Mask]  # of a stem: (H, W) ids
    size: Callable[[str], tuple[int, int]]  # of a stem: width, height in px of the image


def truth_of(source: str | Path, split: str = "validation", variant: str = "", masks: bool = True) -> Truth:
    """The masks of a split: of a build's shards, any WebDataset tars, or a folder of PNGs as the publisher's.

    masks: False takes images without masks, too (the test set). SourceError if there are none, or of another variant.
    """
    at = root_of(source)
    if isinstance(at, Path) and not at.exists():
        raise SourceError(f"{at}: no such file or folder. Give shards, or the folder of the true masks")
    if isinstance(at, Path) and at.is_dir() and not _has_tars(at):
        return _of_folder(at / f"{split}-segmentation" if (at / f"{split}-segmentation").is_dir() else at)
    if not isinstance(at, Remote) and variant:
        _check_variant(at if at.is_dir() else at.parent, variant)
    return _of_shards(opened(source), split, str(at), masks)


def _has_tars(folder: Path) -> bool:
    return (folder / "index.arrow").exists() or any(folder.glob("*.tar"))


def _check_variant(folder: Path, variant: str) -> None:
    note = folder / "imagenet_s.json"
    known = json.loads(note.read_text()).get("variant", variant) if note.exists() else variant
    if known != variant:
        raise SourceError(f"{folder}: is variant {known}, whose ids are other classes than those of {variant}")


def _of_folder(folder: Path) -> Truth:
    files = files_in(folder)
    names = {stem: str(path.relative_to(folder).with_suffix("")) for stem, path in files.items()}
    if not names:
        raise SourceError(f"{folder}: no PNG there")

    def size(stem: str) -> tuple[int, int]:
        with Image.open(files[stem]) as picture:
            return picture.size

    return Truth(names, lambda stem: read_prediction(files[stem]), size)


def _of_shards(tars: Tars, split: str, where: str, masks: bool) -> Truth:
    splits = tars.table.column("split").to_pylist() if "split" in tars.table.column_names else []
    told = split in splits
    rows = [n for n in range(len(tars)) if (not told or splits[n] == split) and (tars.has(n, SEG) or not masks)]
    keys = tars.keys(np.array(rows, np.int64))
    by_stem = dict(zip(keys, rows, strict=True))
    if not by_stem:
        raise SourceError(f"{where}: no sample of split {split} with a member {SEG}")

    def about(stem: str) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(tars.read(by_stem[stem], "json"))
        return said

    def size(stem: str) -> tuple[int, int]:
        said = about(stem)
        return int(said["width"]), int(said["height"])

    def read(stem: str) -> Mask:
        return ids.decode(tars.read(by_stem[stem], SEG))

    if "json" not in tars.members:
        return Truth({stem: stem for stem in by_stem}, read, lambda stem: read(stem).shape[::-1])
    return Truth({stem: str(about(stem).get("name", stem)).rpartition(".")[0] or stem for stem in by_stem}, read, size)


def files_in(folder: Path) -> dict[str, Path]:
    """Masks below a folder, by the stem of their names; SourceError where two have the same."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES and path.is_file():
            if path.stem in found:
                raise SourceError(f"{found[path.stem]} and {path}: two masks of one image. Remove one of them")
            found[path.stem] = path
    return found


def read_prediction(path: Path) -> Mask:
    """The ids in a PNG (R + 256 G) or a .npy, (H, W); SourceError names the file."""
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        return ids.decode(path.read_bytes())
    except (OSError, ValueError, SyntaxError) as exc:
        raise SourceError(f"{path}: {exc}") from None


def write_prediction(mask: Mask, path: str | Path, size: tuple[int, int] | None = None) -> None:
    """Write ids, (H, W), as the evaluators read them: an RGB PNG of R + 256 G, whole or not at all.

    size: (width, height) of the image in px; a mask of another size is brought to it, each px that of the nearest.
    SourceError if they are no ids.
    """
    path = Path(path)
    mask = np.asarray(mask)
    if size is not None and mask.ndim == 2 and mask.shape != size[::-1]:
        mask = nearest(mask, size[1], size[0])
    try:
        data = ids.encode(mask)
    except ValueError as exc:
        raise SourceError(f"{path}: {exc}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    aside.write_bytes(data)
    aside.replace(path)


def nearest(mask: Mask, height: int, width: int) -> Mask:
    """A mask at another size, (H, W) -> (height, width); px i is that at floor(i H / height), as PyTorch's nearest."""
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    return mask[np.ix_(rows, columns)]


def pairs(pred: Path, truth: Truth, say: Callable[[str], None]) -> dict[str, Path]:
    """The prediction of each image by stem, in the order of the truth. SourceError names those that are missing.

    Files that belong to no image are told by `say`, and left alone.
    """
    found = files_in(pred)
    extra = [str(found[stem].relative_to(pred)) for stem in sorted(found.keys() - truth.names.keys())]
    if extra:
        say(f"{len(extra):,} files of no image of the ground truth: {some_of(extra)}")
    missing = [f"{truth.names[stem]}.png" for stem in truth.names if stem not in found]
    if missing:
        told = f"; {len(extra):,} files of no image: {some_of(extra)}" if extra else ""
        raise SourceError(f"{pred}: {len(missing):,} predictions are missing: {some_of(missing)}{told}")
    return {stem: found[stem] for stem in truth.names}


def some_of(names: list[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def validate(folder: str | Path, images: Truth, num_classes: int) -> list[str]:
    """What a test server would refuse in a folder of predictions: a line each, none if all is well.

    It wants CLASS/IMAGE.png for every image and nothing else, RGB, ids 0 to C, each of the size of its image.
    """
    folder = Path(folder)
    wanted = {f"{name}.png": stem for stem, name in images.names.items()}
    there = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    wrong = [f"{name}: missing" for name in wanted if name not in there]
    wrong += [f"{name}: is no image of this split" for name in there if name not in wanted and name != METHOD]
    for name in (name for name in wanted if name in there):
        try:
            data = there[name].read_bytes()
            with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
                size = picture.size
            mask = ids.decode(data)
        except (OSError, ValueError, SyntaxError) as exc:
            wrong.append(f"{name}: {exc}")
            continue
        if size != (expected := images.size(wanted[name])):
            wrong.append(f"{name}: {size[0]} x {size[1]} px, the image has {expected[0]} x {expected[1]}")
        high = mask[(mask > num_classes) & (mask != IGNORE)]
        if high.size:
            wrong.append(f"{name}: id {high.flat[0]}, 0 to {num_classes} are classes")
    return wrong
