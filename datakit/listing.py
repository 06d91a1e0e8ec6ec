"""Lists the files of a source into parts. A file stays in the part that it first entered; new files form new parts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from . import disk, files, run
from .files import File
from .manifest import Collection
from .remote import Root
from .run import Funnel
from .sample import SCHEMA, Sample, digest, to_table
from .sources import folder
from .sources.joined import Named, may_be_one, stem_of
from .sources.lists import absent, read_lists, warning
from .sources.scan import NOWHERE, Source, label_table, listing, same_as, same_table

PART_IMAGES = 2048
PART_BYTES = 1 << 26  # of source files: a part in hand is what a crash costs, and a small set has work for all cores


@dataclass
class Images:
    """The images of a source, as other sources that have the same images need to know them."""

    names: list[str] = field(default_factory=list)  # of those here, whether they are read here or in another source
    read: dict[str, list[Named]] = field(default_factory=dict)  # by stem, those that are read here

    def noted(self, records: Iterable[Sample], about: Collection) -> Iterator[Sample]:
        """Records of a listing, passed on as they are."""
        for r in records:
            if not r.dropped or r.dropped == "same_images":
                self.names.append(r.name)
            if not r.dropped:
                self.read.setdefault(stem_of(r.name), []).append((r.name, about.split_of(r.name)))
            yield r

    def unclear(self, theirs: Mapping[str, list[Named]]) -> list[str]:
        """Images that are read here, though they may be some that another source, which has the same, reads."""
        known = ((name, split, theirs.get(stem, ())) for stem, those in self.read.items() for name, split in those)
        return [name for name, split, others in known if any(may_be_one(split, its) for _, its in others)]


def doubt(source: str, main: str, names: list[str]) -> str:
    """What it means that images may be those of another source, or not."""
    some = ", ".join(map(files.utf8, names[:3]))
    what = f"{len(names):,} image{'' if len(names) == 1 else 's'} may be of {main}, too, but folders leave open which"
    return f"{source}: {what}: read apart, no labels joined ({some})"


@dataclass(frozen=True)
class Listed:
    """The files of a source: its parts, in order, the digest of its label files, and the count."""

    parts: list[Path]
    labels: str
    funnel: Funnel
    images: Images  # empty if no other source has the same
    warnings: list[str]


def find_files(source: Source, root: Root, *not_in: Root) -> list[File]:
    """The files of a collection, but for those that its layout ignores, and for folders of our own in it."""
    ours = {folder.resolve() for folder in not_in}

    def skip(path: str) -> bool:
        return source.collection.layout.ignores(path) or (path.endswith("/") and (root / path).resolve() in ours)

    return list(folder.files(root, skip))


def list_source(
    source: Source,
    root: Root,
    work: Path,
    out: Root,
    theirs: Mapping[str, list[Named]] = NOWHERE,
    main: str = "",
    is_main: bool = False,
) -> Listed:
    """List a source; its parts lie in work/list. The folder that it lies in is part of what it is.

    theirs: by stem, images that `main` reads, another source that has the same images; is_main: this is it.
    """
    found, about, images = find_files(source, root, work, out), source.collection, Images()
    read_lists(about.splits, found, files.home(root))  # one that cannot be read is told before anything is done
    same = same_as(source, found, theirs)
    listed = listing(source, found, same)
    records = list(images.noted(listed, about) if theirs or is_main else listed)
    place = digest(str(root.resolve()), str(source.subfolder))
    home = work / "list" / f"{source.name}-{place}"
    home.mkdir(parents=True, exist_ok=True)
    entered = membership(home)
    new = [r for r in records if r.name not in entered]
    numbers = numbered(new, max(entered.values(), default=-1) + 1)
    with disk.aside(work) as aside:
        for number, names in groupby(sorted(numbers, key=lambda n: numbers[n]), key=lambda n: numbers[n]):
            disk.commit(name_table(list(names)), home / f"{number:05d}.names.parquet", aside)
        entered |= numbers
        parts, funnel = [], Funnel()
        by_part = sorted(records, key=lambda r: (entered[r.name], r.name, r.path))
        for number, group in groupby(by_part, key=lambda r: entered[r.name]):
            rows = list(group)
            text = json.dumps([[r.name, r.path, r.stamp, r.file_bytes, r.offset, r.packing, r.dropped] for r in rows])
            path = home / f"{source.name}-{place[:8]}_{number:05d}-{digest(place, text, *SCHEMA.names)}.parquet"
            if not path.exists():
                table = to_table(rows)
                run.write_part(table, path, aside, run.funnel_of(table, table))
            parts.append(path)
            funnel.add(run.read_done(path).funnel)
        here = same_table(images.names, same) if theirs else None
        labels = list_labels(label_table(source, found), here, place, work / "labels", aside)
    lost = absent(about.splits, found)
    warnings = [f"{source.name}: {warning(split, glob)}" for split, globs in lost.items() for glob in globs]
    open_ones = images.unclear(theirs)
    return Listed(parts, labels, funnel, images, [*warnings, *[doubt(source.name, main, open_ones)] * bool(open_ones)])


def list_labels(labels: pa.Table, images: pa.Table | None, place: str, folder: Path, aside: Path) -> str:
    """Keep where label files lie, and names of images that are read elsewhere; gives a digest of both."""
    names = [text for row in images.to_pylist() for text in row.values()] if images else []
    found = digest(place, json.dumps([list(row.values()) for row in labels.to_pylist()]), *names)
    folder.mkdir(exist_ok=True)
    if images:
        disk.commit(images, folder / f"{found}.images.parquet", aside)
    if not (folder / f"{found}.parquet").exists():
        disk.commit(labels, folder / f"{found}.parquet", aside)
    return found


def name_table(names: list[str]) -> pa.Table:
    """Names in a table."""
    return pa.table({"name": pa.array(names, pa.string())})


def membership(home: Path) -> dict[str, int]:
    """The part that each file entered, by name."""
    parts = sorted(home.glob("*.names.parquet"))
    return {n: int(p.name.split(".")[0]) for p in parts for n in pq.read_table(p).column("name").to_pylist()}


def numbered(new: list[Sample], number: int) -> dict[str, int]:
    """Part numbers of files that are in none yet, from `number` on."""
    out: dict[str, int] = {}
    images, size = 0, 0
    for record in new:
        if images and (images >= PART_IMAGES or size + record.file_bytes > PART_BYTES):
            number, images, size = number + 1, 0, 0
        out[record.name] = number
        images, size = images + 1, size + record.file_bytes
    return out
