"""Files of stores and web servers: fetched once for all processes of a machine, into a folder that stays below a cap.

What is fetched has a name of its own and, from the beginning, the size of the whole: it counts at once. It gets the
file's name when all of it is there and is what it must be; what a process that was killed left is removed by the next
that needs room. Who reads a sample holds a shared lock on its file, and no longer than that: processes that wait for
each other elsewhere never keep others from room. What nobody holds is removed, longest unused first, where a file needs
room. All locks are flock's, and end with their processes: no names in shared memory, none to clean up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .. import disk
from ..errors import ShardError
from ..remote import Facts, Remote
from ..sample import digest

PARTIAL = "partial-"  # before the name of a file that is being fetched
KNOWN = "known-"  # before the name of a note of what servers told
LOCKS = "locks"  # a folder; a file there locks all names whose digests begin alike
WAIT_S = 600.0  # for room that others hold
PAUSE_S = 0.2  # between looks for it
TOUCHED_S = 1.0  # a file that was used so long ago is marked as used again
_UNREACHED = {errno.ETIMEDOUT, errno.EPERM}  # the network is down, or there are no keys where there is none
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class File(NamedTuple):
    """A file as it must be: sha256 and stamp are checked where they are known."""

    url: Remote
    size_bytes: int
    sha256: str = ""
    stamp: str = ""

    @property
    def name(self) -> str:
        """Its name in a cache: files of one digest and name are one, wherever they come from."""
        known = self.sha256[:40] or digest(self.url.url, str(self.size_bytes), self.stamp)
        return f"{known}-{re.sub(r'[^A-Za-z0-9_.-]', '_', self.url.name)[-80:]}"


def lock_of(file: File) -> str:
    """The name of the lock of who fetches it: of some files that are one, of none more than 256."""
    return f"{file.name[:2]}.lock"


class Handle:
    """A file that is open, and held in the cache that it lies in, as long as someone has this."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class Stopped(Exception):
    """Nobody waits for the file any more."""


def user_folder() -> Path:
    """Where this user's caches lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datakit"


class Cache:
    """Files of stores on a disk of this machine, of `most_bytes` together at most, half-fetched ones included.

    folder: by default $XDG_CACHE_HOME/datakit/shards, else ~/.cache/datakit/shards. most_bytes: by default half of
    what the disk has left for it. offline: no server is asked; what is not in the cache is an error.
    """

    def __init__(
        self, folder: str | Path | None = None, most_bytes: int | None = None, *, offline: bool = False
    ) -> None:
        self.folder = user_folder() / "shards" if folder is None else Path(folder)
        self.offline = offline
        (self.folder / LOCKS).mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        self.most_bytes = (free + self.used_bytes()) // 2 if most_bytes is None else most_bytes

    def path(self, file: File) -> Path:
        """Where it lies, if it is there. It may vanish unless it is held."""
        return self.folder / file.name

    def used_bytes(self) -> int:
        return sum(size for _, size, _ in self.listed())

    def listed(self) -> list[tuple[int, int, Path]]:
        """(mtime in ns, size, path) of all files."""
        found = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                info = entry.stat()
                if entry.is_file():
                    found.append((info.st_mtime_ns, info.st_size, Path(entry.path)))
        return found

    def open(self, file: File) -> Handle:
        """The file, held. It is fetched if it is not there. ShardError names the URL where that is not possible."""
        begin = time.monotonic()
        while True:
            handle = self._held(file)
            if handle is None:
                with self._alone(lock_of(file)):
                    handle = self._held(file) or self._fetched(file, None)
            if handle is not None:
                return handle
            if time.monotonic() - begin > WAIT_S:
                raise ShardError(
                    f"{file.url}: no room for it within {WAIT_S:.0f} s: all of the {self.used_bytes():,} bytes in the "
                    f"cache {self.folder} are in use, {self.most_bytes:,} may be. Give it more, or another folder"
                )
            time.sleep(PAUSE_S)

    def fetch(self, file: File, stop: threading.Event) -> None:
        """Have the file there for later, unless there is no room or another one fetches it. stop: raises Stopped."""
        if self._held(file) is None:
            with self._alone(lock_of(file), wait=False) as alone:
                if alone and self._held(file) is None:
                    self._fetched(file, stop)

    def told(self, key: str, ask: Callable[[], dict[str, Facts]]) -> dict[str, Facts]:
        """Facts of files by URL, as servers tell them; where none can be reached, as they did before, with a warning.

        key: what is asked for.
        """
        note = self.folder / f"{KNOWN}{digest(key)}.json"
        before = {url: Facts(*one) for url, one in json.loads(note.read_text()).items()} if note.is_file() else None
        if self.offline:
            if before is None:
                raise ShardError(f"{key}: not in the cache {self.folder}, and offline=True")
            return before
        try:
            found = ask()
        except OSError as exc:
            if exc.errno not in _UNREACHED or before is None:
                raise ShardError(f"{exc.filename or key}: {exc.strerror}") from None
            warnings.warn(f"{key}: {exc.strerror}. What the cache {self.folder} has is used", stacklevel=2)
            return before
        if found != before:
            aside = note.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
            aside.write_text(json.dumps(found))
            aside.replace(note)
        return found

    def remove(self, file: File) -> None:
        self.path(file).unlink(missing_ok=True)

    def _held(self, file: File) -> Handle | None:
        """The file, if it is there: open, with a shared lock, as the one that was used last."""
        try:
            handle = Handle(os.open(self.path(file), os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            return None
        fcntl.flock(handle.number, fcntl.LOCK_SH)
        info = os.fstat(handle.number)
        if info.st_nlink and info.st_size != file.size_bytes:
            self.remove(file)
        elif info.st_nlink:  # else it was removed meanwhile
            if time.time() - info.st_mtime > TOUCHED_S:
                with contextlib.suppress(OSError):  # a cache of another user
                    os.utime(handle.number)
            return handle
        return None

    @contextmanager
    def _alone(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Nobody else is in such a context of this name. False: someone is, and `wait` is not set."""
        number = os.open(self.folder / LOCKS / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(number)
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(number, fcntl.LOCK_UN)  # closing does not do it where a process was forked meanwhile
            os.close(number)

    def _fetched(self, file: File, stop: threading.Event | None) -> Handle | None:
        """Fetch a file that nobody else does. None: there is no room."""
        if file.size_bytes > self.most_bytes:
            raise ShardError(
                f"{file.url}: its {file.size_bytes:,} bytes do not fit into the cache {self.folder} of "
                f"{self.most_bytes:,}: give cache=Cache(folder, most_bytes) more, or build with a smaller shards.max_mb"
            )
        if self.offline:
            raise ShardError(f"{file.url}: not in the cache {self.folder}, and offline=True")
        partial = self.folder / f"{PARTIAL}{file.name}"
        handle = self._room(file, partial)
        if handle is None:
            return None
        try:
            _download(file, Sink(handle.number, stop))
            os.fsync(handle.number)
            with self._alone("room"):
                partial.replace(self.path(file))
                fcntl.flock(handle.number, fcntl.LOCK_SH)
            disk.sync(self.folder)
            return handle
        except OSError as exc:
            raise self._trouble(file, exc) from None
        finally:
            partial.unlink(missing_ok=True)

    def _room(self, file: File, partial: Path) -> Handle | None:
        """A file of that size at `partial`, locked. None: what there is in the cache is in use."""
        with self._alone("room"):
            there = [(not path.name.startswith(PARTIAL), used, size, path) for used, size, path in self.listed()]
            used = sum(size for _, _, size, _ in there)
            for whole, _, size, path in sorted(there):  # first what is half-fetched, if nobody fetches it
                if whole and used + file.size_bytes <= self.most_bytes:
                    break
                if not path.name.startswith(KNOWN) and _removed(path):
                    used -= size
            if used + file.size_bytes > self.most_bytes:
                return None
            handle = Handle(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            fcntl.flock(handle.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(handle.number, file.size_bytes)
            return handle

    def _trouble(self, file: File, exc: OSError) -> ShardError:
        if exc.errno in _FULL and exc.filename != file.url.url:
            return ShardError(
                f"{file.url}: the disk of the cache {self.folder} takes no more ({exc.strerror}): "
                "give cache=Cache(folder, most_bytes) less, or a folder of another disk"
            )
        with contextlib.suppress(OSError):
            found = file.url.facts().size_bytes if exc.errno in (errno.ETIMEDOUT, errno.EIO) else file.size_bytes
            if found != file.size_bytes:
                return ShardError(
                    f"{file.url}: it has {found} bytes, not {file.size_bytes} as its index says. "
                    "It was cut short, or written again: bring back the tar, or make the index anew"
                )
        return ShardError(f"{file.url}: {exc.strerror}")


class Sink(io.FileIO):
    """A file that is written from its beginning, and the sha256 of it."""

    def __init__(self, number: int, stop: threading.Event | None) -> None:
        super().__init__(number, "wb", closefd=False)
        self.stop, self.hasher = stop, hashlib.sha256()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.hasher = hashlib.sha256()
        return super().seek(offset, whence)

    def write(self, data: Any) -> int:
        if self.stop is not None and self.stop.is_set():
            raise Stopped
        self.hasher.update(data)
        left = memoryview(data)
        while left:
            left = left[super().write(left) :]
        return len(data)


def _download(file: File, sink: Sink) -> None:
    """Fetch a file, twice if the first arrives damaged. OSError where it is not what it must be."""
    for _ in range(2):
        file.url.download(sink, Facts(file.size_bytes, file.stamp))
        if file.sha256 in ("", sink.hasher.hexdigest()):
            return
    raise OSError(
        errno.EILSEQ,
        f"its sha256 is {sink.hasher.hexdigest()}, not {file.sha256} as its index says. "
        "It was written again: bring back the tar, or make the index anew",
        file.url.url,
    )


def _removed(path: Path) -> bool:
    """Remove a file unless someone holds it."""
    try:
        number = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(number)
