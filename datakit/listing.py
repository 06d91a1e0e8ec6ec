"""Lists the files of a source into parts. A file stays in the part that it first entered; new files form new parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from . import disk, run
from .files import File
from .run import Funnel
from .sample import SCHEMA, Sample, digest, to_table
from .sources import folder
from .sources.joined import stem_of
from .sources.scan import NOWHERE, Source, label_table, listing

PART_IMAGES = 2048
PART_BYTES = 1 << 26  # of source files: a part in hand is what a crash costs, and a small set has work for all cores


@dataclass(frozen=True)
class Listed:
    """The files of a source: its parts, in order, the digest of its label files, and the count."""

    parts: list[Path]
    labels: str
    funnel: Funnel
    images: dict[str, set[str]]  # splits of its images by stem; empty if no other source has the same


def find_files(source: Source, root: Path, *not_in: Path) -> list[File]:
    """The files of a collection, but for those that its layout ignores, and for folders of our own in it."""
    ours = {folder.resolve() for folder in not_in}

    def skip(path: str) -> bool:
        return source.collection.layout.ignores(path) or (path.endswith("/") and (root / path).resolve() in ours)

    return list(folder.files(root, skip))


def list_source(
    source: Source,
    root: Path,
    work: Path,
    out: Path,
    elsewhere: Mapping[str, set[str]] = NOWHERE,
    is_main: bool = False,
) -> Listed:
    """List a source; its parts lie in work/list. The folder that it lies in is part of what it is.

    elsewhere: splits by stem of images that are read in another source that has the same images; is_main: this is it.
    """
    found = find_files(source, root, work, out)
    records = list(listing(source, found, elsewhere))
    place = digest(str(root.resolve()), str(source.subfolder))
    home = work / "list" / f"{source.name}-{place}"
    home.mkdir(parents=True, exist_ok=True)
    entered = membership(home)
    new = [r for r in records if r.name not in entered]
    numbers = numbered(new, max(entered.values(), default=-1) + 1)
    with disk.aside(work) as aside:
        for number, names in groupby(sorted(numbers, key=lambda n: numbers[n]), key=lambda n: numbers[n]):
            table = pa.table({"name": pa.array(list(names), pa.string())})
            disk.commit(table, home / f"{number:05d}.names.parquet", aside)
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
        here = sorted(r.name for r in records if not r.dropped or r.dropped == "same_images") if elsewhere else []
        labels_digest = list_labels(label_table(source, found), here, place, work / "labels", aside)
    images: dict[str, set[str]] = {stem: set(splits) for stem, splits in elsewhere.items()}
    for r in records if is_main else ():
        if not r.dropped:
            images.setdefault(stem_of(r.name), set()).add(source.collection.split_of(r.name))
    return Listed(parts, labels_digest, funnel, images)


def list_labels(labels: pa.Table, images: list[str], place: str, folder: Path, aside: Path) -> str:
    """Keep where label files lie, and names of images that are read elsewhere; gives a digest of both."""
    found = digest(place, json.dumps([list(row.values()) for row in labels.to_pylist()]), *images)
    folder.mkdir(exist_ok=True)
    if images:
        table = pa.table({"name": pa.array(images, pa.string())})
        disk.commit(table, folder / f"{found}.images.parquet", aside)
    if not (folder / f"{found}.parquet").exists():
        disk.commit(labels, folder / f"{found}.parquet", aside)
    return found


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
