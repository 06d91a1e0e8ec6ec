"""Run a stage over the parts of a data set, once: what is on disk is complete and is not made again.

A part is a Parquet file of records, named <listing>-<digest>: the digest says all that it was made from. Parts are
made aside, written through to the disk, and renamed; what lies beside them (staged bytes) goes first.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .disk import aside, commit, sync
from .errors import StageError
from .sample import Part, Stage

T = TypeVar("T")
R = TypeVar("R")
FUNNEL = b"datakit.funnel"
IN_FLIGHT = 2  # parts per worker: one in hand, one waiting
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
    roots: dict[str, Path]


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
    kept = made.filter(pc.equal(made.column("dropped"), ""))
    lost = made.filter(pc.not_equal(made.column("dropped"), ""))
    one_to_one = kept.num_rows + lost.num_rows == came.num_rows
    left = kept if one_to_one else kept.group_by(["source", "name"]).aggregate([])
    funnel = Funnel(_count(came), _count(left), _count(kept))
    for row in lost.group_by(["source", "dropped"]).aggregate([([], "count_all")]).to_pylist():
        funnel.dropped.setdefault(row["source"], Counter())[row["dropped"]] = row["count_all"]
    return funnel


def _count(table: pa.Table) -> Counter[str]:
    rows = table.group_by("source").aggregate([([], "count_all")]).to_pylist()
    return Counter({row["source"]: row["count_all"] for row in rows})


def make_part(job: Job) -> Done:
    """Make one part and commit it."""
    start = time.perf_counter()
    came = kept_rows(pq.read_table(job.source))
    with aside(job.work) as folder:
        part = Part(job.path, folder, job.work, job.roots)
        made = job.stage(came, part)
        funnel = funnel_of(came, made)
        funnel.check(type(job.stage).__name__.lower())
        beside = sorted(p for p in folder.iterdir() if p.is_file())
        for file in beside:
            sync(file)
            file.replace(job.path.parent / file.name)
        write_part(made, job.path, folder, funnel)
    images = came.group_by(["source", "name"]).aggregate([("file_bytes", "max")])
    sums = images.group_by("source").aggregate([("file_bytes_max", "sum")]).to_pylist()
    read = Counter({row["source"]: row["file_bytes_max_sum"] for row in sums})
    return Done(job.path, funnel, part.counts, read, time.perf_counter() - start)


def kept_rows(table: pa.Table) -> pa.Table:
    """The rows that no stage has dropped."""
    return table.filter(pc.equal(table.column("dropped"), ""))


def write_part(table: pa.Table, path: Path, folder: Path, funnel: Funnel) -> None:
    """Write a part, with its counts in the metadata."""
    commit(table.replace_schema_metadata({FUNNEL: funnel.to_json()}), path, folder)


def read_done(path: Path) -> Done:
    """What a part on disk says of itself."""
    metadata = pq.read_schema(path).metadata or {}
    return Done(path, Funnel.from_json(metadata[FUNNEL]))


class Engine:
    """Does tasks, in any order: in this process (workers=0) or on a local Dask cluster of processes.

    The cluster starts with the first task, so that a build that has nothing left to do starts none.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._client: Any = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            cluster = self._client.cluster
            self._client.close()
            cluster.close()

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """task(item) of each item, in the order they end; a bounded number is in flight."""
        if self.workers == 0:
            with explained():
                yield from map(task, items)
            return
        waiting = iter(items)
        first = list(islice(waiting, self.workers * IN_FLIGHT))
        if not first:
            return
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        client = self._start()
        running = as_completed([client.submit(task, item, pure=False) for item in first])
        try:
            with explained():
                for future in running:
                    yield future.result()
                    future.release()
                    for item in islice(waiting, 1):
                        running.add(client.submit(task, item, pure=False))
        except KilledWorker as exc:
            raise StageError(f"workers died again and again on one part: too little memory? Use fewer ({exc})") from exc

    def _start(self) -> Any:
        if self._client is None:
            import dask
            from distributed import Client, LocalCluster

            settings = {
                "distributed.worker.multiprocessing-method": "spawn",  # LibRaw and GDAL deadlock or race under fork
                "distributed.scheduler.worker-saturation": 1.0,
                "distributed.nanny.environ": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            }
            with dask.config.set(settings):
                try:
                    cluster = LocalCluster(
                        n_workers=self.workers,
                        threads_per_worker=1,
                        dashboard_address="127.0.0.1:0",  # any free port: another cluster may have the usual one
                        memory_limit=0,
                        silence_logs=50,
                    )
                except RuntimeError as exc:  # a new process runs the caller's script again, down to this call
                    advice = "put the call under `if __name__ == '__main__':`, or pass workers=0"
                    raise StageError(f"the workers did not start: in a script, {advice} ({exc})") from exc
            self._client = Client(cluster)
        return self._client


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def explained() -> Iterator[None]:
    """Trouble with the disk as a StageError that says what to do."""
    try:
        yield
    except OSError as exc:
        what = TROUBLE.get(exc.errno or 0, exc.strerror or "the system said no")
        raise StageError(f"{what}: {exc.filename or exc}. Then run the same command again") from exc
