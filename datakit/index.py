"""Where every sample of a set lies in its tars: one memory-mapped Arrow file, a row a sample, O(1) access."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from .errors import ShardError

FORMAT = 1


def schema(members: tuple[str, ...]) -> pa.Schema:
    """Columns of an index of samples with these members: offsets are of payloads, in bytes from the tar's start."""
    fields = [("key", pa.large_string()), ("id", pa.int64()), ("shard", pa.int32())]
    for member in members:
        fields += [(f"{member}_offset", pa.int64()), (f"{member}_bytes", pa.int64())]
    return pa.schema([*fields, ("source", pa.large_string()), ("split", pa.large_string())])


def write(table: pa.Table, path: Path, shards: list[dict[str, Any]]) -> None:
    """Write an index: rows in the order of the set, in one uncompressed record batch."""
    metadata = {"format": str(FORMAT), "shards": json.dumps(shards, sort_keys=True)}
    table = table.replace_schema_metadata(metadata).combine_chunks()
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
