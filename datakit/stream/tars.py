"""The shards of a set by their index: where the members of each sample lie, and their bytes.

An index is memory-mapped, and tars are read by offset: what a process holds does not grow with the set.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .. import index
from ..errors import ShardError

HEADER = 512  # bytes before a member's payload
NAME = 100  # bytes of a name in a header; longer ones stand elsewhere
OPEN = 64  # tars that a thread keeps open
IMAGES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "jp2")  # suffixes, the first there is
_SIZE = re.compile(rb"[ ]*([0-7]+)[ \0]*")


@dataclass(frozen=True)
class Shard:
    """A tar of a set."""

    name: str
    path: Path
    samples: int
    size_bytes: int


class Tars:
    """Shards and their index, row for row. `digest`: of the index; `members`: suffixes of what samples have."""

    def __init__(self, table: pa.Table, folder: Path) -> None:
        about = table.schema.metadata
        self.table, self.folder, self.digest = table, folder, about[b"digest"].decode()
        self.shards = [
            Shard(s["name"], folder / s["name"], s["samples"], s["bytes"]) for s in json.loads(about[b"shards"])
        ]
        self.sizes: NDArray[np.int64] = np.array([shard.samples for shard in self.shards], np.int64)
        self.members = tuple(name[: -len("_offset")] for name in table.column_names if name.endswith("_offset"))
        self.images = tuple(sorted({*self.members} & {*IMAGES}, key=IMAGES.index))
        if table.num_rows != self.sizes.sum():
            raise ShardError(f"{folder}: the index has {table.num_rows} rows for {self.sizes.sum()} samples of shards")
        numbers = ["id", "shard", *(f"{m}_{what}" for m in self.members for what in ("offset", "bytes"))]
        self.column = {name: _numpy(table, name) for name in numbers}
        self.opened = threading.local()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        found: list[str] = self.table.column("key").take(pa.array(rows)).to_pylist()
        return found

    def where(self, row: int) -> str:
        """A sample by its key and its tar, for messages."""
        return f"{self.table.column('key')[row].as_py()} in {self.shard_of(row).name}"

    def shard_of(self, row: int) -> Shard:
        return self.shards[int(self.column["shard"][row])]

    def has(self, row: int, member: str) -> bool:
        return member in self.members and bool(self.column[f"{member}_offset"][row] >= 0)

    def image_of(self, row: int) -> str | None:
        """The suffix of a sample's image, if it has one."""
        return next((member for member in self.images if self.has(row, member)), None)

    def read(self, row: int, member: str) -> bytes:
        """The bytes of a member, whose header is compared with what the index says.

        OSError where the disk fails; ShardError where the tar is not what the index says.
        """
        offset, size = int(self.column[f"{member}_offset"][row]), int(self.column[f"{member}_bytes"][row])
        shard = self.shard_of(row)
        block = os.pread(self._handle(shard), HEADER + size, offset - HEADER)
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

    def _handle(self, shard: Shard) -> int:
        """An open tar: each thread has its own, so that none is closed under another's hands."""
        kept: OrderedDict[Path, Handle] | None = getattr(self.opened, "kept", None)
        if kept is None:
            kept = self.opened.kept = OrderedDict()
        handle = kept.pop(shard.path, None)
        if handle is None:
            handle = self._open(shard)
            if len(kept) >= OPEN:
                kept.popitem(last=False)
        kept[shard.path] = handle
        return handle.number

    def _open(self, shard: Shard) -> Handle:
        try:
            handle = Handle(shard.path)
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


class Handle:
    """A file that is open as long as someone holds this."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def opened(source: str | Path | Sequence[str | Path]) -> Tars:
    """The set at `source`: a build's folder, an index, or tars, which are indexed first if they are not yet."""
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix == ".arrow":
            return Tars(index.load(path), path.parent)
        if (path / "index.arrow").is_file():
            return Tars(index.load(path / "index.arrow"), path)
        source = [path]
    from .foreign import indexed

    return indexed([Path(one) for one in source])


def _numpy(table: pa.Table, name: str) -> NDArray[Any]:
    chunks = table.column(name).chunks
    kind = np.int32 if name == "shard" else np.int64
    return chunks[0].to_numpy(zero_copy_only=True) if chunks else np.empty(0, kind)
