"""Files that are whole or not there: written aside, written through to the disk, then given their names."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 4096  # records; a shard reads only the groups that it needs
A = TypeVar("A")
B = TypeVar("B")


def commit(table: pa.Table, path: Path, folder: Path) -> None:
    """Write a table in `folder`, on the same disk, and give it its name when it is whole."""
    temporary = folder / path.name
    pq.write_table(table, temporary, compression="zstd", use_dictionary=False, row_group_size=ROW_GROUP)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def commit_text(text: str, path: Path, folder: Path) -> None:
    """Write a text in `folder`, on the same disk, and give it its name when it is whole."""
    temporary = folder / path.name
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def ahead(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """What a function makes of each item, in order; threads are a few items ahead."""
    workers = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[B]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def tables(paths: Iterable[Path], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Tables of Parquet files, in order. A thread a file takes a third of the time that a thread a column takes."""

    def read(path: Path) -> pa.Table:
        with pq.ParquetFile(path) as file:
            return file.read(columns, use_threads=False)

    return ahead(read, paths)


@contextmanager
def aside(work: Path) -> Iterator[Path]:
    """A folder of one's own below work/tmp, gone afterwards."""
    tmp = work / "tmp"
    tmp.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{socket.gethostname()}-{os.getpid()}-", dir=tmp))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(work: Path) -> None:
    """Remove what processes of this machine that are no more left aside."""
    ours = re.compile(rf"{re.escape(socket.gethostname())}-(\d+)-[^-]*")
    for folder in (work / "tmp").iterdir() if (work / "tmp").exists() else ():
        found = ours.fullmatch(folder.name)
        if found and not alive(int(found[1])):
            shutil.rmtree(folder, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that was killed and not yet waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
