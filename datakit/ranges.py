"""Files of a store as streams, of which only those bytes are fetched that are read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .remote import Facts, Remote, Root

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_BYTES = 1 << 16  # of a header, or a list of members
KEPT_BLOCKS = 256  # 16 MB a process


@contextmanager
def opened(path: Root, known: Facts | None = None) -> Iterator[tuple[BinaryIO, Facts]]:
    """A stream that seeks, and what is known of the file, which a listing may have told already."""
    if isinstance(path, Path):
        with path.open("rb") as stream:
            about = os.fstat(stream.fileno())
            yield stream, Facts(about.st_size, str(about.st_mtime_ns))
        return
    known = known or path.facts()
    with opener(path, known) as open_it:
        yield io.BufferedReader(open_it()), known


@contextmanager
def opener(file: Remote, known: Facts) -> Iterator[Callable[[], Ranges]]:
    """What opens a file of a store as streams. What these fail to fetch is raised as the context ends.

    Libraries swallow what a stream raises, or raise something else.
    """
    failed: list[OSError] = []
    try:
        yield lambda: Ranges(file, known, failed)
    finally:
        if failed:
            raise failed[0]


class Ranges(io.RawIOBase):
    """A file of a store as a stream that seeks, in blocks that are fetched as they are needed."""

    def __init__(self, file: Remote, known: Facts, failed: list[OSError]) -> None:
        super().__init__()
        self.file, self.facts, self.failed = file, known, failed
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.facts.size_bytes}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._at + len(view), self.facts.size_bytes)
        if end <= self._at:
            return 0
        try:
            data = b"".join(self._pieces(end))
        except OSError as exc:
            self.failed.append(exc)
            raise
        view[: len(data)] = data
        self._at = end
        return len(data)

    def _pieces(self, end: int) -> Iterator[bytes]:
        if end - self._at > BLOCK_BYTES:
            yield piece(self.file, self.facts, self._at, end)
            return
        for n in range(self._at // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1):
            begin = n * BLOCK_BYTES
            yield block(self.file, self.facts, n)[max(self._at - begin, 0) : end - begin]


@lru_cache(maxsize=KEPT_BLOCKS)
def block(file: Remote, facts: Facts, n: int) -> bytes:
    return file.fetch(n * BLOCK_BYTES, min((n + 1) * BLOCK_BYTES, facts.size_bytes))


@lru_cache(maxsize=1)
def piece(file: Remote, facts: Facts, begin: int, end: int) -> bytes:
    """Some bytes of a file in this state; who asks for the same again at once does not fetch them again."""
    return file.fetch(begin, end)
