"""ImageNet-S: its official lists, its masks, and which images of ImageNet-1k each split has.

Lists and rules: LUSSeg/ImageNet-S (data/, datapreparation/). The class of an image is that of the lists: it differs
from ImageNet's own for 5,223 of the validation and test images. Ids of a mask are ranks of the variant's classes, from
1, so they differ between variants.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import SourceError
from ..files import File
from ..remote import Root
from . import folder
from .imagenet import WNID, ids_of

Variant = Literal["50", "300", "919", "1k"]
MERGED = {  # of 919 alone: a class of ImageNet, and the one that its images belong to
    "n04356056": "n04355933",
    "n04493381": "n02808440",
    "n03642806": "n03832673",
    "n04008634": "n03773504",
    "n03887697": "n15075141",
}
SEMI = "train-semi"
WITH_MASKS = (SEMI, "validation")
WHERE = ("path", "stamp", "packing", "file_bytes", "offset", "packed_bytes", "crc")  # of `files.File`
ABOUT = ("key", "id", "split", "wnid", "imagenet_wnid", "class_id", "same_as", "name")
TEXTS, NUMBERS = WHERE[:3], WHERE[3:]
MASK = re.compile(r"(validation|train-semi)-segmentation/(n\d{8})/([^/]+)\.png\Z")
OF_VARIANT = re.compile(r"ImageNetS(\d+)(?!\d)")
LINE = re.compile(r"(n\d{8})/([^/\s]+)\.(?:JPEG|png)")


class Listed(NamedTuple):
    """An image that a list names."""

    stem: str
    imagenet_wnid: str
    wnid: str


@dataclass(frozen=True)
class Lists:
    """What the official lists of a variant say. files: lines and sha256 of each, by its name in the toolbox."""

    wnids: tuple[str, ...]  # sorted: the class id of one is its place, from 1
    splits: dict[str, list[Listed]]  # of train-semi, validation, test
    files: dict[str, dict[str, Any]]

    def sources(self, variant: str) -> dict[str, str]:
        """Classes of ImageNet whose images are in the training set, with the class that they have there."""
        merged = {one: other for one, other in MERGED.items() if variant == "919" and other in self.wnids}
        return {**{wnid: wnid for wnid in self.wnids}, **merged}


def list_names(variant: str) -> dict[str, str]:
    """The lists of a variant in the toolbox's folder `data`, by what they tell."""
    names = {"classes": f"categories/ImageNetS_categories_im{variant}.txt"}
    names |= {split: f"mapping/ImageNetS_im{variant}_mapping_{split}.txt" for split in ("validation", "test")}
    return {**names, SEMI: f"names/ImageNetSemi_im{variant}_train.txt"}


def read_lists(root: Root, variant: str) -> Lists:
    """The lists of a variant; SourceError names the file and the line that is wrong."""
    lines, files = {}, {}
    for what, name in list_names(variant).items():
        try:
            data = (root / name).read_bytes()
            lines[what] = data.decode("ascii").split("\n")
        except (OSError, UnicodeDecodeError) as exc:
            raise SourceError(f"{root / name}: {exc}. Clone github.com/LUSSeg/ImageNet-S again") from None
        lines[what] = [line.strip() for line in lines[what] if line.strip()]
        files[name] = {"lines": len(lines[what]), "sha256": hashlib.sha256(data).hexdigest()}
    wnids = tuple(sorted(lines.pop("classes")))
    if len(set(wnids)) < len(wnids) or not all(map(WNID.fullmatch, wnids)):
        raise SourceError(
            f"{root / list_names(variant)['classes']}: expected one class a line, each once, as n01443537"
        )
    known = frozenset(wnids)
    of = {}
    for split, some in lines.items():
        path = root / list_names(variant)[split]
        of[split] = [_line(path, line, known) for line in some]
    return Lists(wnids, of, files)


def _line(path: Root, line: str, wnids: frozenset[str]) -> Listed:
    """`SOURCE TARGET` of a mapping, both a folder of a class and a file; in other lists only the first tells."""
    words = [word for word in map(LINE.fullmatch, line.split(" ")) if word]
    if not 0 < len(words) == line.count(" ") + 1 <= 2:
        raise SourceError(f"{path}: {line!r}: expected class/image, once or twice. Clone the toolbox again")
    first, last = words[0], words[-1]
    if last[1] not in wnids or first[2] != last[2]:
        raise SourceError(f"{path}: {line!r}: {last[1]} is no class of this variant, or two images are named")
    wnid = first[2].partition("_")[0] if WNID.match(first[2]) else first[1]
    return Listed(first[2], wnid, last[1])


def masks(root: Root, variant: str) -> dict[tuple[str, str, str], File]:
    """The masks of a variant below a folder, or in its zips as downloaded: by split, class and image.

    What lies in a folder or a zip of another variant's name is left alone, and so are folders of images.
    """

    def skip(path: str) -> bool:
        above, _, name = path.rstrip("/").rpartition("/")
        if path.endswith("/"):
            return bool(WNID.fullmatch(name)) and not above.endswith("-segmentation")
        return not name.endswith(".png") and not (name.endswith(".zip") and OF_VARIANT.search(name))

    found = {}
    for file in folder.files(root, skip):
        known, of = MASK.search(file.name), OF_VARIANT.findall(file.path)
        if known and set(of) <= {variant}:
            found[known[1], known[2], known[3]] = file
    return found


@dataclass
class Plan:
    """Which samples each split has. Tables of ABOUT, WHERE, and of splits with masks the same as `mask_…`."""

    tables: dict[str, pa.Table] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)  # names of images, or of masks, by split
    came: int = 0  # images that there were to choose from


def plan(images: pa.Table, lists: Lists, found: Mapping[tuple[str, str, str], File], variant: str) -> Plan:
    """The samples of an ImageNet-S variant. images: see `imagenet.IMAGES`; found: its masks."""
    out, ids = Plan(came=images.num_rows), {wnid: n for n, wnid in enumerate(lists.wnids, 1)}
    for split, listed in lists.splits.items():
        place = pc.index_in(pa.array([one.stem for one in listed], pa.string()), images.column("stem").combine_chunks())
        there = place.is_valid().to_pylist()
        lost = [f"{one.wnid}/{one.stem}.JPEG" for one, is_there in zip(listed, there, strict=True) if not is_there]
        files = [found.get((split, one.wnid, one.stem)) for one in listed] if split in WITH_MASKS else []
        lost += [f"{one.wnid}/{one.stem}.png" for one, mask in zip(listed, files, strict=False) if mask is None]
        keep = [n for n, is_there in enumerate(there) if is_there and (not files or files[n] is not None)]
        some = [listed[n] for n in keep]
        rows = images.take(place.take(pa.array(keep, pa.int64())))
        stems = [one.stem for one in some]
        keys = pa.array([f"{stem}_semi" for stem in stems] if split == SEMI else stems, pa.string())
        same = stems if split == SEMI else [""] * len(stems)
        classes = [ids[one.wnid] for one in some]
        table = _table(rows, split, keys, [s.wnid for s in some], [s.imagenet_wnid for s in some], classes, same)
        out.tables[split] = _with_masks(table, [files[n] for n in keep]) if files else table
        out.missing[split] = lost
    sources = lists.sources(variant)
    out.tables = {"train": _train(images, sources, ids), **out.tables}
    absent = {*sources} - {*out.tables["train"].column("imagenet_wnid").unique().to_pylist()}
    out.missing["train"] = [f"{wnid}/*" for wnid in sorted(absent)]
    return out


def plan_1k(images: pa.Table, wnids: Mapping[str, str]) -> Plan:
    """All of ImageNet-1k: train, and val with the classes of `wnids` by stem, else of the folders that images are in.

    Class ids are those of everybody: ranks of the classes, from 0; -1 where the class is not known.
    """
    stems, parents = images.column("stem"), pc.unique(images.column("folder")).to_pylist()
    classes = {*pc.unique(pc.utf8_slice_codeunits(stems.filter(pc.starts_with(stems, "n")), 0, 9)).to_pylist()}
    classes |= {*wnids.values(), *filter(WNID.fullmatch, parents)}
    out, ids = Plan(came=images.num_rows), {wnid: n for n, wnid in enumerate(sorted(classes))}
    out.tables["train"] = _train(images, {wnid: wnid for wnid in sorted(classes)}, ids)
    rows = images.filter(pc.starts_with(stems, "I"))
    named = zip(rows.column("stem").to_pylist(), rows.column("folder").to_pylist(), strict=True)
    known = [wnids.get(stem) or (parent if parent in ids else "") for stem, parent in named]
    numbers = [ids.get(wnid, -1) for wnid in known]
    out.tables["val"] = _table(rows, "val", rows.column("stem"), known, known, numbers, [""] * len(known))
    return out


def _train(images: pa.Table, sources: Mapping[str, str], ids: Mapping[str, int]) -> pa.Table:
    """The training images of some classes; by columns, for there are over a million."""
    theirs, merged = (pa.array([*names], pa.string()) for names in (sources, sources.values()))
    place = pc.index_in(pc.utf8_slice_codeunits(images.column("stem"), 0, 9), theirs)
    rows, place = images.filter(place.is_valid()), place.drop_null().combine_chunks()
    numbers = pa.array([ids[wnid] for wnid in sources.values()], pa.int32()).take(place)
    own, other = (pa.DictionaryArray.from_arrays(place, names) for names in (merged, theirs))
    return _table(rows, "train", rows.column("stem"), own, other, numbers, pa.repeat("", rows.num_rows))


def _table(
    rows: pa.Table, split: str, keys: Any, wnids: Any, imagenet_wnids: Any, class_ids: Any, same_as: Any
) -> pa.Table:
    """Rows of images as samples of a split. name: as the official layout has it, whatever is on disk."""
    wnids = _few(wnids)
    file, folders = pc.binary_join_element_wise(rows.column("stem"), "JPEG", "."), wnids.cast(pa.string())
    return pa.table(
        {
            "key": keys,
            "id": ids_of(keys) if split == SEMI else rows.column("id"),
            "split": _few(pa.repeat(split, rows.num_rows)),
            "wnid": wnids,
            "imagenet_wnid": _few(imagenet_wnids),
            "class_id": pa.array(class_ids, pa.int32()),
            "same_as": _few(same_as),
            "name": pc.if_else(pc.equal(folders, ""), file, pc.binary_join_element_wise(folders, file, "/")),
            **{name: rows.column(name) for name in WHERE},
        }
    )


def _few(values: Any) -> Any:
    """Texts of which there are few, as numbers of these."""
    if isinstance(values, pa.DictionaryArray):
        return values
    texts = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, pa.string())
    return texts.dictionary_encode()


def plain(table: pa.Table) -> pa.Table:
    """A table whose texts are texts, and not numbers of these."""
    for n, kind in enumerate(table.schema):
        if pa.types.is_dictionary(kind.type):
            table = table.set_column(n, kind.name, table.column(n).cast(pa.string()))
    return table


def _with_masks(table: pa.Table, files: Iterable[File | None]) -> pa.Table:
    plain = [asdict(file) for file in files if file is not None]
    for name in WHERE:
        column = pa.array([one[name] for one in plain], pa.string() if name in TEXTS else pa.int64())
        table = table.append_column(f"mask_{name}", column)
    return table


def file_of(row: Mapping[str, Any], prefix: str = "") -> File:
    """Where the image of a row lies, or with `mask_` its mask."""
    return File(row["name"], **{name: row[prefix + name] for name in WHERE})


def shared(mine: Lists, other: Lists) -> dict[str, list[str]]:
    """Images that are in `test` here and in `validation` of another variant, and the other way round."""
    names = {
        who: {split: {one.stem for one in of} for split, of in lists.splits.items()}
        for who, lists in (("mine", mine), ("other", other))
    }
    return {
        "test_in_its_validation": sorted(names["mine"]["test"] & names["other"]["validation"]),
        "validation_in_its_test": sorted(names["mine"]["validation"] & names["other"]["test"]),
    }
