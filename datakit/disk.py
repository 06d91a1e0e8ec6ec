"""Files that are whole or not there: written aside, written through to the disk, then given their names.

A file of OUT gets its name by a rename on a disk, by one put in a store.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from .remote import Remote, Root

PARTIAL = ".partial"  # folder in OUT of what is being written, while a build goes on
NEIGHBOURS = 8  # files that are looked at where one cannot be read
PIECE_BYTES = 1 << 20
ROW_GROUP = 4096  # records; a shard reads only the groups that it needs
FEW = 64  # records, up to which packing a table and unpacking it takes longer than all else about it
A = TypeVar("A")
B = TypeVar("B")


def commit(table: pa.Table, path: Path, folder: Path, once: bool = False) -> bool:
    """Write a table in `folder`, on the same disk, and give it its name when it is whole.

    once: where the name is taken already, what has it stays. Gives whether the name is ours.
    """
    temporary = folder / path.name
    packed = "zstd" if table.num_rows > FEW else "none"
    pq.write_table(table, temporary, compression=packed, use_dictionary=False, row_group_size=ROW_GROUP)
    sync(temporary)
    is_ours = True
    if once:
        is_ours = link(temporary, path)
    else:
        temporary.replace(path)
    sync(path.parent)
    return is_ours


def commit_text(text: str, path: Path, folder: Path) -> None:
    """Write a text in `folder`, on the same disk, and give it its name when it is whole."""
    temporary = folder / path.name
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


@contextmanager
def becoming(target: Root, work: Path) -> Iterator[Path]:
    """A name to write a file under, which is `target` when the context ends: all of it or, after an error, nothing.

    It lies beside its target on a disk, and in the work folder where the target is in a store.
    """
    if isinstance(target, Remote):
        with aside(work) as folder:
            yield folder / target.name
            target.put(folder / target.name)
        return
    folder = target.parent / PARTIAL
    folder.mkdir(exist_ok=True)
    temporary = folder / f"{target.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    try:
        yield temporary
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def open_out(out: Root, work: Path) -> None:
    """Mark OUT as a place that a build writes to. OSError where it cannot."""
    if isinstance(out, Path):
        (out / PARTIAL).mkdir(exist_ok=True)
        return
    with becoming(out / PARTIAL / "building", work) as mark:
        mark.touch()


def set_aside(file: Root, target: Root, work: Path) -> None:
    """Give a file of OUT another name."""
    if isinstance(file, Path) and isinstance(target, Path):
        file.replace(target)
        return
    with becoming(target, work) as copy:
        copy.write_bytes(file.read_bytes())
    file.unlink()


def close_out(out: Root) -> None:
    """Remove the mark, and what was left of earlier builds with it."""
    if isinstance(out, Path):
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
        return
    for path in (out / PARTIAL).below():
        (out / PARTIAL / path).unlink(missing_ok=True)


def link(temporary: Path, path: Path) -> bool:
    """Give a file a name that it alone may take; nothing happens where another file has it, which is False."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        if path.exists():
            return False
        temporary.replace(path)  # a disk that knows no links
    return True


def here() -> str:
    """This machine, and which of its process ids we see: containers may share a name."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}~{space.stat().st_ino}" if space.exists() else socket.gethostname()


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
    return ahead(lambda path: read_table(path, columns), paths)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A table of a Parquet file, column by column: to plan what to fetch takes a quarter of the time for a few."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        return file.read(columns, use_threads=False)


@contextmanager
def aside(work: Path) -> Iterator[Path]:
    """A folder of one's own below work/tmp, gone afterwards."""
    tmp = work / "tmp"
    tmp.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{here()}-{os.getpid()}-", dir=tmp))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(work: Path) -> None:
    """Remove what processes of this machine that are no more left aside."""
    ours = re.compile(rf"{re.escape(here())}-(\d+)-[^-]*")
    for folder in (work / "tmp").iterdir() if (work / "tmp").exists() else ():
        found = ours.fullmatch(folder.name)
        if found and not alive(int(found[1])):
            shutil.rmtree(folder, ignore_errors=True)


def is_hurt(path: Path) -> bool:
    """Whether a file cannot be read from its disk, and others of its folder can: all that are tried."""
    if _trouble(path, path.stat().st_size) != errno.EIO:
        return False
    with os.scandir(path.parent) as entries:
        others = list(islice((Path(e.path) for e in entries if e.is_file() and e.name != path.name), NEIGHBOURS))
    return bool(others) and not any(_trouble(other, 1) for other in others)


def _trouble(path: Path, count: int) -> int:
    """The error that reading so many bytes of a file gives, 0 if none; what is in memory does not count."""
    try:
        with path.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while stream.read(PIECE_BYTES) and stream.tell() < count:
                pass
    except OSError as exc:
        return exc.errno or errno.EIO
    return 0


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
