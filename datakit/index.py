"""Where every sample of a set lies in its tars: one memory-mapped Arrow file, a row a sample, O(1) access."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from .errors import ShardError

FORMAT = 2  # 2: it has a digest


def schema(members: tuple[str, ...]) -> pa.Schema:
    """Columns of an index of samples with these members: offsets are of payloads, in bytes from the tar's start."""
    fields = [("key", pa.large_string()), ("id", pa.int64()), ("shard", pa.int32())]
    for member in members:
        fields += [(f"{member}_offset", pa.int64()), (f"{member}_bytes", pa.int64())]
    return pa.schema([*fields, ("source", pa.large_string()), ("split", pa.large_string())])


def write(table: pa.Table, path: Path, shards: Sequence[dict[str, Any]]) -> None:
    """Write an index: rows in the order of the set, shard by shard, in one uncompressed record batch.

    shards: name (a path below the index's folder, or an absolute one), samples and bytes of each, and what else is
    known of it.
    """
    table = table.combine_chunks()
    said = json.dumps(list(shards), sort_keys=True)
    metadata = {"format": str(FORMAT), "shards": said, "digest": digest(table, said)}
    table = table.replace_schema_metadata(metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(table.num_rows, 1))


def load(path: Path) -> pa.Table:
    """The index at `path`, memory-mapped: a row is read from the disk when it is looked at."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowException) as exc:
        raise ShardError(f"{path}: not an index ({exc}). Build the set again to rewrite it") from None
    found = (table.schema.metadata or {}).get(b"format", b"").decode()
    if found != str(FORMAT):
        raise ShardError(f"{path}: index format {found or 'unknown'}; this version reads {FORMAT}. Update datakit")
    return table


def digest(table: pa.Table, shards: str) -> str:
    """32 hex digits of an index's rows, each column in one chunk, and of what it says of its shards."""
    state = xxhash.xxh3_128(shards.encode())
    for name in table.column_names:
        state.update(name.encode())
        for column in table.column(name).chunks:
            if pa.types.is_large_string(column.type):
                ends = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
                state.update(np.diff(ends).tobytes())
                state.update(memoryview(column.buffers()[2] or b"")[int(ends[0]) : int(ends[-1])])
            else:
                state.update(column.to_numpy(zero_copy_only=True).data)
    return state.hexdigest()
