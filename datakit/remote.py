"""Places that are no folders of this machine: object stores and web servers, through fsspec.

What a store fails to answer is asked again, for about a minute (WAITS_S, MOST_S). Then it is an OSError that tells of
the machine and of no file, as that of a disk which is gone. Keys, endpoints and the like are a matter of fsspec and of
its file systems: see docs/remote.md.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import posixpath
import re
import signal
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from .errors import SourceError

T = TypeVar("T")
WAITS_S = (0.5, 2.0, 8.0, 30.0)  # between tries
MOST_S = 60.0  # then no further try begins: s3fs has tries of its own in each, which take 2 s to 3 minutes
PIECE_BYTES = 1 << 25  # of a file, in one request
UNLISTED = {"http", "https"}  # servers that list no folders, and take no files
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_MD5 = re.compile(r"[0-9a-f]{32}")
_EXTRA = "'datakit[remote]'"
_PACKAGES = {"s3": _EXTRA, "s3a": _EXTRA, "http": _EXTRA, "https": _EXTRA, "gs": "gcsfs", "gcs": "gcsfs"}
_FINAL = {errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP}
_NO_DIGEST: set[str] = set()  # stores, and buckets of them, whose ETags look like MD5 and are something else


class Facts(NamedTuple):
    """What tells one state of a file from another without reading it."""

    size_bytes: int
    stamp: str  # mtime in ns; in a store its MD5 or ETag, else when it was last modified


@dataclass(frozen=True)
class Remote:
    """A file or a folder of a store, by its URL. It has those methods of a Path that sources and OUT are asked for."""

    url: str  # without a / at its end

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, path: str) -> Remote:
        return self if path == "." else Remote(f"{self.url}/{path}".rstrip("/"))

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0].lower()

    @property
    def top(self) -> Remote:
        """The bucket, or the server."""
        scheme, _, path = self.url.partition("://")
        return Remote(f"{scheme}://{path.partition('/')[0]}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> Remote:
        return self if self == self.top else Remote(self.url.rpartition("/")[0])

    def with_name(self, name: str) -> Remote:
        return self.parent / name

    def resolve(self) -> Remote:
        return self

    def absolute(self) -> Remote:
        return self

    def exists(self) -> bool:
        """Whether it is there. Of a folder that its server does not list, nobody knows: False."""
        return self._kind() != ""

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def iterdir(self) -> list[Remote]:
        """What lies in this folder; nothing where there is none."""
        try:
            names = self._asked(lambda fs, path: fs.ls(path, detail=False))
        except FileNotFoundError:
            return []
        begin = len(self._system()[1])
        inner = [name[begin:].strip("/") for name in names]  # of itself too, where a store marks folders
        return [self / name for name in inner if name]

    def _kind(self) -> str:
        try:
            info = self._asked(lambda fs, path: fs.info(path))
        except FileNotFoundError:
            return ""
        return "" if info.get("mimetype") == "text/html" else str(info["type"])  # a page that lists a folder

    def facts(self) -> Facts:
        return self._facts_of(self._asked(lambda fs, path: fs.info(path)))

    def _facts_of(self, info: dict[str, Any]) -> Facts:
        if not isinstance(info.get("size"), int):
            raise OSError(errno.EOPNOTSUPP, "the server does not tell its size: fetch it, and give the copy", self.url)
        if info.get("md5Hash"):  # of Google, whose ETags are no digests
            return Facts(info["size"], b64decode(info["md5Hash"]).hex())
        stamp = info.get("ETag") or info.get("etag") or ""
        for field in ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created"):
            stamp = stamp or info.get(field) or ""
        return Facts(info["size"], str(stamp).replace('"', ""))

    def below(self) -> dict[str, Facts]:
        """The files below this folder, by their path from here, from one listing (a request for every 1,000)."""
        found = self._asked(lambda fs, path: fs.find(path, detail=True))
        begin = len(self._system()[1]) + 1
        files = {name[begin:]: info for name, info in found.items() if info["type"] == "file"}
        return {path: self._facts_of(info) for path, info in files.items() if path and not path.endswith("/")}

    def fetch(self, begin: int, end: int) -> bytes:
        """The bytes from `begin` up to `end`, all of them."""

        def ask(fs: Any, path: str) -> bytes:
            data: bytes = fs.cat_file(path, start=begin, end=end)
            if len(data) > end - begin:  # the server gave all of it
                if begin:
                    raise OSError(errno.EOPNOTSUPP, WHOLE_ONLY, self.url)
                data = data[:end]
            if len(data) < end - begin:
                raise OSError(errno.EIO, f"{len(data)} bytes came of {end - begin} that were asked for")
            return data

        return self._asked(ask) if begin < end else b""

    def gives_parts(self) -> bool:
        """Whether parts of the file can be had: some web servers only ever give all of it."""

        def ask(fs: Any, path: str) -> bool:
            try:
                with fs.open(path, "rb", cache_type="none") as stream:
                    stream.seek(1)
                    stream.read(1)
            except ValueError:  # fsspec's way of saying so
                return False
            return True

        return self.scheme not in UNLISTED or self._asked(ask)

    def download(self, sink: BinaryIO, facts: Facts) -> None:
        """Write all of the file to `sink`, which is at its beginning; OSError unless it is what `facts` say.

        Its size always tells, and its MD5 where the stamp is one. What looks like an MD5 may be none, where a store
        encrypts: if two downloads agree, and the store still gives that stamp, it is taken for such.
        """
        found: list[str] = []
        for _ in range(2):
            digest = hashlib.md5(usedforsecurity=False)
            sink.seek(0)
            for begin in range(0, facts.size_bytes, PIECE_BYTES):
                data = self.fetch(begin, min(begin + PIECE_BYTES, facts.size_bytes))
                digest.update(data)
                sink.write(data)
            found.append(digest.hexdigest())
            known = _MD5.fullmatch(facts.stamp) and self.top.url not in _NO_DIGEST
            if not known or found[-1] == facts.stamp:
                return
        if self.facts() != facts:
            raise OSError(errno.EIO, "changed since it was listed", self.url)
        if found[0] != found[1]:
            raise OSError(errno.EIO, "arrives damaged, each time in another way: see to the network", self.url)
        _NO_DIGEST.add(self.top.url)

    def read_bytes(self, known: Facts | None = None) -> bytes:
        """All of the file. known: what a listing told of it, which it must be."""
        sink = io.BytesIO()
        self.download(sink, known or self.facts())
        return sink.getvalue()

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def put(self, file: Path) -> None:
        """Give the bytes of a file this name: all at once, for stores show what is put when all of it is there."""
        size_bytes = file.stat().st_size

        def ask(fs: Any, path: str) -> None:
            fs.put_file(str(file), path)
            there = fs.info(path)["size"]
            if there != size_bytes:
                raise OSError(errno.EIO, f"{there} bytes are there of {size_bytes} that were put")

        self._asked(ask)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._asked(lambda fs, path: fs.rm_file(path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def _system(self) -> tuple[Any, str]:
        """fsspec's file system, and what it calls this place. One a process, without a cache of listings."""
        try:
            from fsspec.core import url_to_fs

            fs, path = url_to_fs(self.url, use_listings_cache=False)
        except ImportError as exc:
            todo = f"pip install {_PACKAGES.get(self.scheme, 'it')}"
            raise SourceError(f"{self.url}: what reads {self.scheme}:// is not installed ({exc}). Run {todo}") from None
        except ValueError as exc:
            raise SourceError(f"{self.url}: {exc}. Give a path, or a URL that fsspec knows") from None
        return fs, str(path)

    def _asked(self, ask: Callable[[Any, str], T]) -> T:
        """What the store answers; OSError where it refuses, and where it cannot be reached again and again."""
        fs, path = self._system()
        with _clock_stopped():
            return self._asked_again(ask, fs, path)

    def _asked_again(self, ask: Callable[[Any, str], T], fs: Any, path: str) -> T:
        begin = time.monotonic()
        for wait_s in (*WAITS_S, 0.0):
            try:
                return ask(fs, path)
            except Exception as exc:  # file systems raise what their libraries do
                number, why = _trouble(exc)
                said, trouble = exc, OSError(number, why, self.url)
                if number in _FINAL or time.monotonic() - begin > MOST_S:
                    break
                time.sleep(wait_s)
        raise trouble from said


Root = Path | Remote
WHOLE_ONLY = "the server gives no parts of files, which reading an archive in place needs: fetch it, and give the copy"


def root_of(text: str | os.PathLike[str] | Root, below: Root = Path()) -> Root:
    """A path, or a URL, as what it stands for. below: the folder that a path which is not absolute begins at."""
    if isinstance(text, Remote):
        return text
    found = _URL.fullmatch(os.fspath(text))
    if not found:
        path = Path(text)
        if isinstance(below, Path):
            return below / path
        return path if path.is_absolute() else below / posixpath.normpath(path.as_posix())
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file":
        return Path(rest)
    if scheme in UNLISTED and re.search(r"[?#]|^[^/]*@", rest):
        raise SourceError(f"{text}: give the URL without a user, ? and #; docs/remote.md says where keys are read")
    return Remote(f"{scheme}://{rest.rstrip('/')}")


def facts(path: Root) -> Facts:
    """Size and stamp of a file, wherever it lies."""
    if isinstance(path, Remote):
        return path.facts()
    about = path.stat()
    return Facts(about.st_size, str(about.st_mtime_ns))


def may_be_folder(path: Root) -> bool:
    """Whether collections may lie there. A web server tells nothing of folders, and is believed."""
    return (isinstance(path, Remote) and path.scheme in UNLISTED) or path.exists()


@contextmanager
def _clock_stopped() -> Iterator[None]:
    """The time that one image may take by the clock (see `hand`) does not go on while a store is waited for."""
    left_s, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        if left_s:
            signal.setitimer(signal.ITIMER_REAL, left_s)


def _trouble(exc: Exception) -> tuple[int, str]:
    """The number of an error, and what to do: ENOENT, EPERM and EOPNOTSUPP are answers, ETIMEDOUT is none."""
    cause = exc.__cause__ if isinstance(exc, FileNotFoundError) and exc.__cause__ is not None else exc
    status = getattr(cause, "status", None)  # of aiohttp; fsspec calls all that goes wrong a file that is not found
    words = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
    if isinstance(exc, OSError) and exc.errno == errno.EOPNOTSUPP:
        return errno.EOPNOTSUPP, str(exc.strerror)
    if isinstance(exc, PermissionError) or status in (401, 403, 407) or "Credentials" in type(exc).__name__:
        return errno.EPERM, f"not allowed ({words}): give the keys of an account that may, as docs/remote.md says"
    answered = not isinstance(cause, OSError) and not type(cause).__module__.startswith(("aiohttp", "asyncio"))
    if isinstance(exc, FileNotFoundError) and (cause is exc or answered or status in (404, 410)):
        return errno.ENOENT, "no such object, or no such bucket"
    return errno.ETIMEDOUT, f"asked again and again in vain ({words}): see that network and server are up"
