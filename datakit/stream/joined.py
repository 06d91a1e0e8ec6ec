"""Members that were added to a set after it was built: in tars of their own, row for row with the index."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import ShardError

FOLDER = "columns"
FORMAT = 1
SCHEMA = pa.schema([("id", pa.int64()), ("tar", pa.int32()), ("offset", pa.int64()), ("bytes", pa.int64())])


@dataclass(frozen=True)
class Joined:
    """One such member. Each array (N,), in the order of the index; the offset of a row that has none is -1."""

    name: str
    id: NDArray[np.int64]
    tars: list[dict[str, Any]]  # name (below the set's folder), samples, bytes, sha256
    tar: NDArray[np.int32]
    offset: NDArray[np.int64]
    bytes: NDArray[np.int64]


def write(path: Path, name: str, index: str, tars: list[dict[str, Any]], table: pa.Table) -> None:
    """Write where the values of a column lie. index: digest of the index that it belongs to."""
    said = {"format": str(FORMAT), "name": name, "index": index, "tars": json.dumps(tars)}
    table = table.cast(SCHEMA).combine_chunks().replace_schema_metadata(said)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(table.num_rows, 1))


def joined_to(folder: Path, index: str) -> dict[str, Joined]:
    """The columns of the set in a folder, by the name of the member. ShardError if one is of another index."""
    return {one.name: one for one in (read(path, index) for path in sorted((folder / FOLDER).glob("*.arrow")))}


def read(path: Path, index: str) -> Joined:
    """A column of the set whose index has this digest; ShardError if it is damaged, or of another."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        tars = json.loads(about["tars"])
    except (OSError, pa.ArrowException, KeyError, ValueError) as exc:
        raise ShardError(f"{path}: not a column ({exc}). Add it again, or remove it") from None
    if about.get("format") != str(FORMAT):
        raise ShardError(f"{path}: column format {about.get('format')}; this version reads {FORMAT}. Update datakit")
    if about["index"] != index:
        raise ShardError(
            f"{path}: was added to another index than the one that is there now. Add it again, or remove it"
        )
    ids, tar, offset, size = (table.column(name).combine_chunks().to_numpy() for name in SCHEMA.names)
    return Joined(about["name"], ids, tars, tar, offset, size)
