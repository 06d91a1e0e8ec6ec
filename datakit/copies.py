"""Shards of files that are copied byte for byte from where they lie: images, and masks where there are some."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from . import files, ids, image
from .disk import ROW_GROUP
from .files import File
from .remote import Root
from .sources.imagenet_s import ABOUT, file_of, plain
from .stages.shards import SEG, Tarred, keep_records, write_tar

BAD = b"datakit.bad"  # of a sidecar: what was left out, as JSON [[name, reason, detail], …]
IGNORE = 1000  # id of a mask
Bad = list[tuple[str, str, str]]


@dataclass(frozen=True)
class CopyJob(Tarred):
    """One shard of files: rows [begin, end) of a table of the work folder, as `sources.imagenet_s.plan` makes it."""

    table: Path
    begin: int
    end: int
    variant: str
    most_id: int  # of masks, but for 1000
    roots: Mapping[str, Root]


def write_copies(job: CopyJob) -> dict[str, Any]:
    """Write one tar and its sidecar; gives name, samples, bytes, sha256. What cannot be read is left out, and noted."""
    rows = read_rows(job.table, job.begin, job.end)
    bad: Bad = []
    kept: list[int] = []
    sizes: list[tuple[int, int]] = []

    def samples() -> Iterator[tuple[str, list[bytes]]]:
        for n, row in enumerate(rows.to_pylist()):
            try:
                size, payloads = sample(job, row)
            except Unusable as exc:
                bad.append((row["name"], *exc.args))
                continue
            kept.append(n)
            sizes.append(size)
            yield row["key"], payloads

    with image.quiet():
        about, places = write_tar(job, samples())
    table = plain(rows.select(ABOUT)).take(pa.array(kept, pa.int64()))
    for k, name in enumerate(("width", "height")):
        table = table.append_column(name, pa.array([size[k] for size in sizes], pa.int32()))
    keep_records(job, table, about, places, {BAD: json.dumps(bad)})
    return about


def bad_of(job: CopyJob) -> Bad:
    """What a shard that is written had to leave out."""
    return [(name, reason, detail) for name, reason, detail in json.loads(pq.read_schema(job.sidecar).metadata[BAD])]


def read_rows(path: Path, begin: int, end: int) -> pa.Table:
    """Rows of a table in row groups of ROW_GROUP; only those that are needed are read."""
    with pq.ParquetFile(path) as file:
        first = begin // ROW_GROUP
        groups = range(first, min(-(-end // ROW_GROUP), file.num_row_groups))
        table = file.read_row_groups([*groups], use_threads=False)
    return table.slice(begin - first * ROW_GROUP, end - begin).replace_schema_metadata(None)


class Unusable(Exception):
    """A sample cannot be used: the reason, and a detail."""


def sample(job: CopyJob, row: Mapping[str, Any]) -> tuple[tuple[int, int], list[bytes]]:
    """Size in px, and what each member holds; Unusable where image or mask cannot be read, or do not fit."""
    with _named("unreadable", job.roots["imagenet"], file_of(row)) as data:
        size = size_of(data)
    payloads = {"jpg": data, "json": json_of(job.variant, row, size), "cls": str(row["class_id"]).encode()}
    if SEG in job.members:
        with _named("mask_unreadable", job.roots["masks"], file_of(row, "mask_")) as mask:
            check_mask(mask, size, job.most_id)
        payloads[SEG] = mask
    return size, [payloads[member] for member in job.members]


@contextmanager
def _named(reason: str, root: Root, file: File) -> Iterator[bytes]:
    """The bytes of a file, to be looked at; what is wrong with them becomes Unusable."""
    try:
        yield files.read(root, file)
    except (OSError, SyntaxError, ValueError) as exc:
        files.check_machine(exc, root, file)
        raise Unusable(reason, image.reason(exc, root)) from exc


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height in px as stored, from the header alone."""
    if not data:
        raise OSError("the file is empty")
    with Image.open(io.BytesIO(data), formats=image.FORMATS) as picture:
        return picture.size


def check_mask(data: bytes, size: tuple[int, int], most_id: int) -> None:
    """ValueError unless a mask is of its image's size and has ids of its variant."""
    mask = ids.decode(data)
    if mask.shape[::-1] != size:
        raise ValueError(f"a mask of {mask.shape[1]} x {mask.shape[0]} px, where the image has {size[0]} x {size[1]}")
    wrong = np.unique(mask[(mask > most_id) & (mask != IGNORE)])
    if wrong.size:
        raise ValueError(f"id {wrong[0]} in a mask: 0 to {most_id}, or {IGNORE}: is it of another variant?")


def json_of(variant: str, row: Mapping[str, Any], size: tuple[int, int]) -> bytes:
    """What goes into a shard about a sample: the same keys in each, one type each, never null."""
    said = {
        "variant": variant,
        "split": row["split"],
        "wnid": row["wnid"],
        "imagenet_wnid": row["imagenet_wnid"],
        "class_id": row["class_id"],
        "name": row["name"],
        "same_as": row["same_as"],
        "width": size[0],
        "height": size[1],
    }
    return json.dumps(said, ensure_ascii=True, separators=(",", ":")).encode()


def index_rows(job: CopyJob, wanted: pa.Schema, shard: int, source: str) -> pa.Table:
    """The rows of an index for one shard; members that its samples lack are at -1."""
    table = pq.read_table(job.sidecar)
    given = {"shard": shard, "source": source}

    def column(name: str) -> Any:
        if name in table.column_names:
            return table.column(name).cast(wanted.field(name).type)
        empty = given.get(name, -1 if name.endswith("_offset") else 0)
        return pa.repeat(pa.scalar(empty, wanted.field(name).type), table.num_rows)

    return pa.table([column(name) for name in wanted.names], schema=wanted)


def bytes_of(table: pa.Table) -> Any:
    """Bytes of image and mask of each row of a plan, (N,) int64."""
    total = table.column("file_bytes")
    if "mask_file_bytes" in table.column_names:
        total = pc.add(total, table.column("mask_file_bytes"))
    return total.to_numpy()
