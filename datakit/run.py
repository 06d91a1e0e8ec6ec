"""Run a stage over the parts of a data set, once: what is on disk is complete and is not made again.

A part is a Parquet file of records, named <listing>-<digest>: the digest says all that it was made from. Parts are
made aside, written through to the disk, and renamed; what lies beside them (staged bytes) goes first.
"""

from __future__ import annotations

import errno
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import alone
from .disk import aside, commit, sync
from .errors import StageError
from .hand import InHand, image_mark
from .remote import Root
from .sample import Part, Stage, digest

FUNNEL = b"datakit.funnel"
TROUBLE = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
    errno.ESTALE: "the network disk is gone",
}


@dataclass(frozen=True)
class Job:
    """One part to make."""

    stage: Stage
    source: Path  # the part that it is made from
    path: Path  # the part that it will be
    work: Path
    roots: dict[str, Root]
    retried: frozenset[str] = frozenset()  # reasons of drops that are not taken over from earlier parts
    some: frozenset[str] = frozenset()  # marks of the images to take; none: all
    pieces: tuple[Path, ...] = ()  # parts of some of its images each

    def images(self) -> list[InHand]:
        came = kept_rows(read_part(self.source))
        sources, names = (came.column(name).to_pylist() for name in ("source", "name"))
        return list(dict.fromkeys(map(InHand, sources, names, marks_of(came))))

    def only(self, some: Sequence[InHand], aside: Path) -> Job:
        """The same part of some images, to be left in `aside`."""
        marks = [image.mark for image in some]
        return replace(self, some=frozenset(marks), path=aside / f"{digest(*marks)}.parquet")

    def joined(self, pieces: Sequence[Path]) -> Job:
        return replace(self, pieces=tuple(pieces))


@dataclass
class Funnel:
    """Records by source: that came, that left, that were made of those, and that were dropped by reason."""

    came: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, other: Funnel) -> None:
        self.came += other.came
        self.left += other.left
        self.made += other.made
        for source, reasons in other.dropped.items():
            self.dropped[source] = self.dropped.get(source, Counter()) + reasons

    def check(self, stage: str) -> None:
        """StageError unless what came is what left and what was dropped."""
        for source in self.came | self.left:
            lost = self.came[source] - self.left[source] - sum(self.dropped.get(source, Counter()).values())
            if lost:
                raise StageError(f"{stage}: {source}: {lost} records neither left nor were dropped: a fault here")

    def to_json(self) -> str:
        return json.dumps([self.came, self.left, self.made, self.dropped], sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Funnel:
        came, left, made, dropped = json.loads(text)
        return cls(Counter(came), Counter(left), Counter(made), {s: Counter(r) for s, r in dropped.items()})


@dataclass
class Done:
    """A part that is on disk; counts and seconds are of this run, empty where it was there before."""

    path: Path
    funnel: Funnel
    counts: Counter[str] = field(default_factory=Counter)
    source_bytes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def funnel_of(came: pa.Table, made: pa.Table) -> Funnel:
    """What happened between two tables; a record that became several left once."""
    made = made.select(["source", "name", "dropped"])
    kept, lost = kept_rows(made), made.filter(pc.not_equal(made.column("dropped"), ""))
    one_to_one = kept.num_rows + lost.num_rows == came.num_rows
    left = kept if one_to_one else kept.group_by(["source", "name"], use_threads=False).aggregate([])
    funnel = Funnel(_count(came), _count(left), _count(kept))
    for row in lost.group_by(["source", "dropped"], use_threads=False).aggregate([([], "count_all")]).to_pylist():
        funnel.dropped.setdefault(row["source"], Counter())[row["dropped"]] = row["count_all"]
    return funnel


def _count(table: pa.Table) -> Counter[str]:
    return Counter({row["values"]: row["counts"] for row in pc.value_counts(table.column("source")).to_pylist()})


def make_part(job: Job) -> Done:
    """Make one part and commit it."""
    start = time.perf_counter()
    came = kept_rows(read_part(job.source))
    if job.some:
        came = came.filter(pa.array([mark in job.some for mark in marks_of(came)], pa.bool_()))
    with aside(job.work) as folder:
        part = Part(job.path, folder, job.work, job.roots, job.retried, job.pieces)
        made = around(job.stage, came, part, alone.blamed_of(job.path, job.work))
        funnel = funnel_of(came, made)
        funnel.check(type(job.stage).__name__.lower())
        beside = sorted(p for p in folder.iterdir() if p.is_file())
        for file in beside:
            sync(file)
            file.replace(job.path.parent / file.name)
        if not write_part(made, job.path, folder, funnel):
            funnel = read_done(job.path).funnel
    read: Counter[str] = Counter()
    sources, names, sizes = (came.column(name).to_pylist() for name in ("source", "name", "file_bytes"))
    for (source, _), size in dict(zip(zip(sources, names, strict=True), sizes, strict=True)).items():
        read[source] += size
    return Done(job.path, funnel, part.counts, read, time.perf_counter() - start)


def around(stage: Stage, came: pa.Table, part: Part, blamed: dict[str, tuple[str, str]]) -> pa.Table:
    """What a stage makes of records; it does not see those of blamed images, which are dropped."""
    if not blamed:
        return stage(came, part)
    whys = [blamed.get(mark) for mark in marks_of(came)]
    hit = pa.array([why is not None for why in whys], pa.bool_())
    lost = came.filter(hit)
    for column, said in zip(("dropped", "detail"), zip(*filter(None, whys), strict=True), strict=False):
        place = lost.schema.get_field_index(column)
        lost = lost.set_column(place, lost.schema.field(place), pa.array(said, pa.string()))
    return pa.concat_tables([stage(came.filter(pc.invert(hit)), part), lost], promote_options="default")


def marks_of(records: pa.Table) -> list[str]:
    """`hand.image_mark` of the image of each record."""
    columns = [records.column(name).to_pylist() for name in ("source", "name", "stamp", "file_bytes")]
    return [image_mark(*about) for about in zip(*columns, strict=True)]


def read_part(path: Path) -> pa.Table:
    """The records of a part."""
    with pq.ParquetFile(path) as file:
        return file.read(use_threads=False)


def kept_rows(table: pa.Table) -> pa.Table:
    """The rows that no stage has dropped."""
    keeps = pc.equal(table.column("dropped"), "")
    return table if pc.all(keeps, min_count=0).as_py() else table.filter(keeps)


def write_part(table: pa.Table, path: Path, folder: Path, funnel: Funnel) -> bool:
    """Write a part, with its counts in the metadata; one that is there stays, for others may have been made from it.

    Gives whether there was none.
    """
    return commit(table.replace_schema_metadata({FUNNEL: funnel.to_json()}), path, folder, once=True)


def read_done(path: Path) -> Done:
    """What a part on disk says of itself."""
    metadata = pq.read_schema(path).metadata or {}
    return Done(path, Funnel.from_json(metadata[FUNNEL]))


@contextmanager
def explained() -> Iterator[None]:
    """Trouble with the disk as a StageError that says what to do."""
    try:
        yield
    except OSError as exc:
        what = TROUBLE.get(exc.errno or 0, exc.strerror or "the system said no")
        raise StageError(f"{what}: {exc.filename or exc}. Then run the same command again") from exc
