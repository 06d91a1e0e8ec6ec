"""The shards of a set by their index: where the members of each sample lie, and their bytes.

An index is memory-mapped, and tars are read by offset: what a process holds does not grow with the set.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import ShardError
from ..remote import Remote, Root, root_of
from .cache import Cache, File, Handle
from .joined import joined_to

HEADER = 512  # bytes before a member's payload
NAME = 100  # bytes of a name in a header; longer ones stand elsewhere
OPEN = 64  # tars that a thread keeps open
IMAGES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "jp2", "raw")  # suffixes, the first there is
_SIZE = re.compile(rb"[ ]*([0-7]+)[ \0]*")


@dataclass(frozen=True)
class Shard:
    """A tar of a set."""

    name: str
    path: Root
    samples: int
    size_bytes: int
    sha256: str = ""  # of a build's
    stamp: str = ""  # of others in a store


class Tars:
    """Shards and their index, row for row. `digest`: of the index; `members`: suffixes of what samples have.

    cache: where tars of stores are fetched to. beside: where a file is that lies by the index, for reading. Columns
    that were added to a set of a disk are members, too.
    """

    def __init__(
        self, table: pa.Table, folder: Root, cache: Cache | None = None, beside: Callable[[str], Path] | None = None
    ) -> None:
        about = table.schema.metadata
        self.table, self.folder, self.digest = table, folder, about[b"digest"].decode()
        self.shards = [shard_of(said, folder) for said in json.loads(about[b"shards"])]
        self.cache, self.beside = cache, beside or (lambda name: Path(str(folder), name))
        self.sizes: NDArray[np.int64] = np.array([shard.samples for shard in self.shards], np.int64)
        self.members = tuple(name[: -len("_offset")] for name in table.column_names if name.endswith("_offset"))
        self.images = tuple(sorted({*self.members} & {*IMAGES}, key=IMAGES.index))
        self.stored = self.members
        self.joined = joined_to(folder, self.digest) if isinstance(folder, Path) else {}
        self.members += tuple(name for name in self.joined if name not in self.members)
        if table.num_rows != self.sizes.sum():
            raise ShardError(f"{folder}: the index has {table.num_rows} rows for {self.sizes.sum()} samples of shards")
        numbers = ["id", "shard", *(f"{m}_{what}" for m in self.stored for what in ("offset", "bytes"))]
        self.column = {name: _numpy(table, name) for name in numbers}
        self.opened = threading.local()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def parts(self) -> list[tuple[int, float, Tars]]:
        """Sets that this one consists of: first row, weight, set."""
        return [(0, 1.0, self)]

    def ids(self, rows: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.column["id"][rows]
        return found

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        found: list[str] = self.table.column("key").take(pa.array(rows)).to_pylist()
        return found

    def where(self, row: int) -> str:
        """A sample by its key and its tar, for messages."""
        return f"{self.table.column('key')[row].as_py()} in {self.shard_of(row).name}"

    def shard_of(self, row: int) -> Shard:
        return self.shards[int(self.column["shard"][row])]

    def has(self, row: int, member: str) -> bool:
        return self._is_stored(row, member) or (member in self.joined and bool(self.joined[member].offset[row] >= 0))

    def _is_stored(self, row: int, member: str) -> bool:
        return member in self.stored and bool(self.column[f"{member}_offset"][row] >= 0)

    def _place(self, row: int, member: str) -> tuple[Shard, int, int]:
        """The tar, offset and bytes of a member: in the sample's shard, else in the tar of an added column."""
        if self._is_stored(row, member) or member not in self.joined:
            offset, size = self.column[f"{member}_offset"][row], self.column[f"{member}_bytes"][row]
            return self.shard_of(row), int(offset), int(size)
        added = self.joined[member]
        return shard_of(added.tars[int(added.tar[row])], self.folder), int(added.offset[row]), int(added.bytes[row])

    def image_of(self, row: int) -> str | None:
        """The suffix of a sample's image, if it has one."""
        return next((member for member in self.images if self.has(row, member)), None)

    def read(self, row: int, member: str) -> bytes:
        """The bytes of a member, whose header is compared with what the index says.

        OSError where the disk fails; ShardError where the tar is not what the index says.
        """
        shard, offset, size = self._place(row, member)
        handle = self._handle(shard)
        block = os.pread(handle.number, HEADER + size, offset - HEADER)
        said = _SIZE.match(block, 124, 136)
        if len(block) < HEADER + size:
            raise self._changed(shard, f"it ends at byte {offset - HEADER + len(block)}, within a sample")
        if block[124] < 128 and (said is None or int(said[1], 8) != size):
            raise self._changed(shard, f"no member of {size} bytes begins at byte {offset}")
        name = f"{self.table.column('key')[row].as_py()}.{member}".encode()
        found = block[:NAME].rstrip(b"\0")
        if len(name) <= NAME and not name.lower().endswith(found.decode(errors="replace").encode().lower()):
            raise self._changed(shard, f"at byte {offset} lies {found.decode(errors='replace')}, not {name.decode()}")
        return block[HEADER:]

    def size(self, row: int, member: str) -> int:
        """The bytes that a member has."""
        return self._place(row, member)[2]

    def fetch(self, number: int, stop: threading.Event) -> None:
        """Bring a shard into the cache, unless someone does it already or there is no room."""
        shard = self.shards[number]
        if self.cache is not None and isinstance(shard.path, Remote):
            self.cache.fetch(file_of(shard), stop)

    def _handle(self, shard: Shard) -> Handle:
        """An open tar: of a disk each thread has its own, so that none is closed under another's hands."""
        if isinstance(shard.path, Remote):
            if self.cache is None:
                raise ShardError(f"{shard.path}: an index on a disk of tars in a store: give the index's URL")
            return self.cache.open(file_of(shard))
        kept: OrderedDict[Root, Handle] | None = getattr(self.opened, "kept", None)
        if kept is None:
            kept = self.opened.kept = OrderedDict()
        handle = kept.pop(shard.path, None)
        if handle is None:
            handle = self._open(shard, shard.path)
            if len(kept) >= OPEN:
                kept.popitem(last=False)
        kept[shard.path] = handle
        return handle

    def _open(self, shard: Shard, path: Path) -> Handle:
        try:
            handle = Handle(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            raise ShardError(f"{shard.path} is not there: the index names it") from None
        size = os.fstat(handle.number).st_size
        if size != shard.size_bytes:
            raise self._changed(shard, f"it has {size} bytes, not {shard.size_bytes}")
        return handle

    def _changed(self, shard: Shard, what: str) -> ShardError:
        return ShardError(
            f"{shard.path}: {what}. It was cut short, or written again since it was indexed: "
            "bring back the tar, or make its index anew (`datakit index`, or the build)"
        )

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a set of tars is opened by each process for itself")


def shard_of(said: dict[str, Any], folder: Root) -> Shard:
    """A shard as an index names it."""
    known = {name: said[name] for name in ("sha256", "stamp") if name in said}
    return Shard(said["name"], root_of(said["name"], folder), said["samples"], said["bytes"], **known)


def file_of(shard: Shard) -> File:
    """A tar of a store, as it must be."""
    assert isinstance(shard.path, Remote)
    return File(shard.path, shard.size_bytes, shard.sha256, shard.stamp)


def _numpy(table: pa.Table, name: str) -> NDArray[Any]:
    chunks = table.column(name).chunks
    kind = np.int32 if name == "shard" else np.int64
    return chunks[0].to_numpy(zero_copy_only=True) if chunks else np.empty(0, kind)
