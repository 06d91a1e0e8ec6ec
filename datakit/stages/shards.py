"""Plain WebDataset tars, the same bytes on any machine: order = ascending mix64(id, seed), one member list for all."""

from __future__ import annotations

import hashlib
import json
import tarfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from ..buckets import argsort
from ..disk import ahead, becoming, read_table
from ..errors import StageError
from ..hand import is_wanted
from ..manifest import MaskSource
from ..remote import Root, facts
from ..sample import Sample, Spec, digest, from_table, mix64
from ..staging import StagedFiles

BLOCK = 512  # bytes of a tar header, and what a payload is padded to
END = b"\0" * (2 * BLOCK)
SHARD = b"datakit.shard"
SEG, TXT, JPG = "seg.png", "txt", "jpg"  # members: the mask, the captions, the JPEG beside a mosaic
NO_TRANSFORM = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
PIECE = 1 << 16  # records that a thread puts in order
T = TypeVar("T")


class Shards(Spec):
    """How samples are spread over tars: as evenly as whole samples allow."""

    VERSION: ClassVar[int] = 2

    max_samples: int = Field(10_000, gt=0)
    max_mb: float = Field(1_000, gt=0, description="10^6 bytes of images")
    captions: bool = Field(False, description="every sample has a member txt, its captions one a line")
    split: str = Field(
        "train", pattern=r"^[A-Za-z0-9_]*$", description='name of the one split; "" keeps the splits of the sources'
    )

    def members(self, image: str, masks: bool, pair: bool = False) -> tuple[str, ...]:
        """The members of every sample, in the order they lie in a shard. image: the suffix of the images."""
        return (image, *[JPG] * pair, "json", *[SEG] * masks, *[TXT] * self.captions)

    def cuts(self, image_bytes: int, samples: int) -> list[int]:
        """Where shards begin and end: [0, …, samples]."""
        if not samples:
            return [0]
        shards = max(-(-samples // self.max_samples), -(-image_bytes // int(self.max_mb * 1e6)))
        shards = min(shards, samples)
        return [samples * n // shards for n in range(shards + 1)]


@dataclass(frozen=True)
class Rows:
    """Where records are: which of `parts`, and which row of it; both (N,), in the order of the set."""

    parts: tuple[Path, ...]
    part: NDArray[np.int32]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, chosen: NDArray[np.int64]) -> Rows:
        """Some of the rows, and only the parts that they are in."""
        part, used = self.part[chosen], self.used(chosen)
        number = np.zeros(len(self.parts), np.int32)
        number[used] = np.arange(len(used))
        return Rows(pick(self.parts, used), number[part], self.row[chosen])

    def used(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """The parts, by number, that some of the rows are in."""
        return np.flatnonzero(np.bincount(self.part[chosen], minlength=len(self.parts)))

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """The records, or some columns of them, in order; of each part only the row groups that are needed."""
        by_part = np.argsort(self.part.astype(np.min_scalar_type(len(self.parts))), kind="stable")  # 16 bits: by digits
        part = self.part[by_part]
        begins = np.flatnonzero(np.diff(part, prepend=-1))
        wanted = zip(part[begins].tolist(), np.split(self.row[by_part], begins[1:]), strict=True)
        tables = list(ahead(lambda some: _read_rows(self.parts[some[0]], some[1], columns), wanted))
        table = pa.concat_tables(tables)
        if np.array_equal(by_part, np.arange(len(self))):
            return table
        places = np.empty(len(self), np.int64)
        places[by_part] = np.arange(len(self))
        pieces = [places[begin : begin + PIECE] for begin in range(0, len(places), PIECE)]
        del tables
        table = table.combine_chunks()
        return pa.concat_tables(ahead(lambda some: table.take(pa.array(some)), pieces))


def pick(items: tuple[T, ...], places: NDArray[np.int64]) -> tuple[T, ...]:
    """Some items of many."""
    if len(places) == len(items):
        return items
    return itemgetter(*places.tolist())(items) if len(places) > 1 else tuple(items[n] for n in places.tolist())


def _read_rows(path: Path, rows: NDArray[np.int64], columns: list[str] | None) -> pa.Table:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        begins = np.cumsum([0, *(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))])
        groups = np.unique(np.searchsorted(begins, rows, side="right") - 1)
        table = file.read_row_groups(groups.tolist(), columns, use_threads=False)
    base = np.concatenate([np.arange(begins[g], begins[g + 1]) for g in groups.tolist()])
    return table.take(pa.array(np.searchsorted(base, rows))).replace_schema_metadata(None)


class Reach(NamedTuple):
    """How far staging files are needed."""

    files: tuple[str, ...]  # all that a build has
    end_bytes: NDArray[np.int64]  # of each; 0: not at all

    def needed(self) -> dict[str, int]:
        """Those that are."""
        some = np.flatnonzero(self.end_bytes)
        return {self.files[n]: end for n, end in zip(some.tolist(), self.end_bytes[some].tolist(), strict=True)}


@dataclass(frozen=True)
class Tarred:
    """One tar to write, whatever its samples are made from."""

    name: str
    split: str
    members: tuple[str, ...]  # of every sample
    sidecar: Path  # where the shard's records go: in the work folder
    out: Root
    work: Path


@dataclass(frozen=True)
class ShardJob(Tarred):
    """One shard of records; the first member is the image."""

    rows: Rows
    changes: pa.Table  # `id` and fields of some of them that differ from the records
    reach: Reach

    @property
    def gathered(self) -> Path:
        """Where its records are until it is written, if they were read with those of other shards."""
        return self.sidecar.with_suffix(".rows.parquet")


def gather(jobs: Sequence[ShardJob]) -> int:
    """Read the records of several shards at once, as each has a few of nearly every part; gives how many."""
    number: dict[Path, int] = {}
    of_jobs = [np.array([number.setdefault(path, len(number)) for path in job.rows.parts], np.int32) for job in jobs]
    part = np.concatenate([parts[job.rows.part] for parts, job in zip(of_jobs, jobs, strict=True)])
    table = Rows(tuple(number), part, np.concatenate([job.rows.row for job in jobs])).read()
    begin = 0
    for job in jobs:
        aside = job.gathered.with_name(f"{job.gathered.name}.{uuid.uuid4().hex}.tmp")
        pq.write_table(table.slice(begin, len(job.rows)), aside, compression="zstd", use_dictionary=False)
        aside.replace(job.gathered)
        begin += len(job.rows)
    return begin


def order(ids: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The order of a set; StageError if two samples have one id."""
    mixed = mix64(ids, seed)
    by = argsort(mixed)  # numbers that differ: any sort is stable
    mixed = mixed[by]
    if (mixed[1:] == mixed[:-1]).any():
        raise StageError("two samples have the same id: rename one of the sources, or report it as a fault")
    return by


def note_of(job: Tarred) -> Path:
    """Where the work folder notes what lies at a name in OUT: equal sizes do not make equal tars."""
    return notes_of(job.work, job.out) / f"{job.name}.json"


def notes_of(work: Path, out: Root) -> Path:
    return work / "written" / digest(str(out))


def seen(job: Tarred) -> list[Any]:
    """What tells one tar at this name from another without reading it."""
    return [job.sidecar.name, *facts(job.out / job.name)]


def written(job: Tarred) -> dict[str, Any] | None:
    """What is known of a shard that is there, or None if it has yet to be written."""
    note = note_of(job)
    if not job.sidecar.exists() or not note.exists():
        return None
    try:
        if note.read_text() != json.dumps(seen(job)):
            return None
    except FileNotFoundError:
        return None
    about: dict[str, Any] = json.loads(pq.read_schema(job.sidecar).metadata[SHARD])
    return about


def write_shard(job: ShardJob) -> dict[str, Any]:
    """Write one tar and the records in it; gives name, samples, bytes, sha256."""
    table = records_of(job)
    with StagedFiles(job.work) as staged:
        rest = job.members[1:]
        samples = ((s.key, [payload(m, s, staged, m in rest) for m in job.members]) for s in from_table(table))
        about, places = write_tar(job, samples)
    keep_records(job, table, about, places)
    job.gathered.unlink(missing_ok=True)
    return about


def write_tar(job: Tarred, samples: Iterable[tuple[str, Sequence[bytes]]]) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Write the tar of these samples: the key of each, and what its members hold, in their order.

    -> name, split, samples, bytes, sha256; offset and bytes of each member: (samples, members, 2)
    """
    hasher = hashlib.sha256()
    places: list[int] = []
    note_of(job).unlink(missing_ok=True)
    with becoming(job.out / job.name, job.work) as temporary, temporary.open("wb") as file:
        offset = 0
        for key, payloads in samples:
            for suffix, data in zip(job.members, payloads, strict=True):
                block = member(f"{key}.{suffix}", data)
                file.write(block)
                hasher.update(block)
                places += [offset + BLOCK, len(data)]
                offset += len(block)
        file.write(END)
        hasher.update(END)
        if not is_wanted():  # a later build may have written another shard of this name
            raise StageError(f"{job.name}: the build that it is for has ended")
    table = np.array(places, np.int64).reshape(-1, len(job.members), 2)
    about = {
        "name": job.name,
        "split": job.split,
        "samples": len(table),
        "bytes": offset + len(END),
        "sha256": hasher.hexdigest(),
    }
    return about, table


def keep_records(
    job: Tarred,
    table: pa.Table,
    about: dict[str, Any],
    places: NDArray[np.int64],
    more: Mapping[bytes, str] = MappingProxyType({}),
) -> None:
    """Leave the records of a shard in the work folder, with where their members lie; `more` goes into the metadata."""
    for n, suffix in enumerate(job.members):
        for k, what in enumerate(("offset", "bytes")):
            table = table.append_column(f"{suffix}_{what}", pa.array(places[:, n, k].copy()))
    table = table.replace_schema_metadata({SHARD: json.dumps(about), **more})
    aside = job.sidecar.with_name(f"{job.sidecar.name}.{uuid.uuid4().hex}.tmp")
    pq.write_table(table, aside, compression="zstd")
    aside.replace(job.sidecar)
    note_written(job)


def records_of(job: ShardJob) -> pa.Table:
    """The records of a shard, with what they took over."""
    if not job.gathered.exists():
        return changed(job.rows.read(), job.changes)
    return changed(read_table(job.gathered).replace_schema_metadata(None), job.changes)


def note_written(job: Tarred) -> None:
    note = note_of(job)
    note.parent.mkdir(parents=True, exist_ok=True)
    part_note = note.with_name(f"{note.name}.{uuid.uuid4().hex}.tmp")
    part_note.write_text(json.dumps(seen(job)))
    part_note.replace(note)


def payload(suffix: str, sample: Sample, staged: StagedFiles, beside: bool) -> bytes:
    """What a member of a sample holds. beside: it is not the image."""
    if suffix == "json":
        return sample_json(sample)
    if suffix == TXT:
        return "\n".join(" ".join(caption.split()) for caption in sample.captions).encode()
    return staged.read_mask(sample) if beside else staged.read(sample)


def changed(table: pa.Table, changes: pa.Table) -> pa.Table:
    """Records with the fields that `changes` gives for their ids."""
    if not changes.num_rows:
        return table
    place = pc.index_in(table.column("id"), value_set=changes.column("id").combine_chunks())
    for field in changes.schema:
        if field.name != "id":
            new, old = changes.column(field.name).to_pylist(), table.column(field.name).to_pylist()
            values = [before if at is None else new[at] for before, at in zip(old, place.to_pylist(), strict=True)]
            n = table.schema.get_field_index(field.name)
            table = table.set_column(n, table.schema.field(n), pa.array(values, field.type))
    return table


def member(name: str, data: bytes) -> bytes:
    """A tar member: ustar header, payload, padding. Nothing in it depends on who made it, or when."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + data + b"\0" * (-len(data) % BLOCK)


def mask_classes(sample: Sample) -> str:
    """JSON text of the names of the classes of `seg.png` by level; {} where none are known, or there is no mask."""
    classes = MaskSource.from_json(sample.mask).classes if sample.mask and sample.mask_bytes else {}
    return json.dumps({str(level): name for level, name in sorted(classes.items())})


def sample_json(sample: Sample) -> bytes:
    """What goes into a shard about a sample: the same keys in each, one type each, never null.

    Absent text is "", an unknown gsd_m is -1.0, no place is crs "" with the transform of pixels; lists of any length
    are JSON text. Readers that guess types from a few samples then guess right."""
    size = (sample.width, sample.height) if sample.scale == 1 else (sample.image_width, sample.image_height)
    plain = {
        "source": sample.source,
        "name": sample.name,
        "licences": json.dumps(list(sample.licences)),
        "width": sample.width,
        "height": sample.height,
        "image_width": sample.image_width,
        "image_height": sample.image_height,
        "window": list(sample.window or (0, 0, *size)),
        "crs": sample.crs,
        "transform": [float(v) for v in sample.transform or NO_TRANSFORM],
        "gcps": sample.gcps,
        "footprint": json.dumps(list(sample.footprint)),
        "gsd_m": float(-1.0 if sample.gsd_m is None else sample.gsd_m),
        "acquired": sample.acquired,
        "split": sample.split,
        "label": sample.label,
        "boxes": sample.boxes,
        "label_source": sample.label_source,
        "boxes_source": sample.boxes_source,
        "also": sample.also,
        "gsd_from": sample.gsd_from,
        "gsd_range_m": [float(v) for v in sample.gsd_range_m or (-1.0, -1.0)],
        "scale": float(sample.scale),
        "captions": json.dumps(list(sample.captions)),
        "bands": json.dumps(list(sample.bands)),
        "dtype": sample.dtype,
        "narrowed": sample.narrowed,
        "mask_classes": mask_classes(sample),
        "tags": json.dumps(list(sample.tags)),
        "image_id": sample.image_id,
        "camera": sample.camera,
        "pair_shift_px": float(-1.0 if sample.pair_shift_px is None else sample.pair_shift_px),
    }
    return json.dumps(plain, ensure_ascii=True, separators=(",", ":")).encode()
