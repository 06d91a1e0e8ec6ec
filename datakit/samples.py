"""The records that a build left, those kept or another table: columns of all, a piece at a time, or of some, by row."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .errors import ShardError
from .remote import Root, root_of
from .stages.shards import Rows

NAME = "samples.parquet"


class Samples:
    """The records of the build at `out`, in the order of its index; of its table `name`, if that is another. What lies
    in a store is fetched, and kept for as long as this is.
    """

    def __init__(self, out: str | Root, name: str = NAME) -> None:
        where = root_of(out)
        self.where = (where if where.is_dir() else where.parent) / name
        try:
            self.path = self._here()
            self.schema = pq.read_schema(self.path)
        except (OSError, pa.ArrowException) as exc:
            raise ShardError(f"{self.where}: {exc}. Build the set again to rewrite it") from None

    def _here(self) -> Path:
        """The path itself, or a copy of what lies in a store."""
        if isinstance(self.where, Path):
            return self.where
        folder = Path(tempfile.mkdtemp(prefix="datakit-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        (folder / self.where.name).write_bytes(self.where.read_bytes())
        return folder / self.where.name

    def __len__(self) -> int:
        return int(pq.read_metadata(self.path).num_rows)

    def pieces(self, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
        """Columns of all records by row group, each with the number of its first row."""
        begin = 0
        try:
            with pq.ParquetFile(self.path) as file:
                for n in range(file.num_row_groups):
                    table = file.read_row_group(n, columns)
                    yield begin, table
                    begin += table.num_rows
        except (OSError, KeyError, pa.ArrowException) as exc:
            raise ShardError(f"{self.where}: {exc}. Build the set again to rewrite it") from None

    def read(self, rows: NDArray[np.int64], columns: list[str] | None = None) -> pa.Table:
        """Columns of some records, in their order; of the file only the row groups that they lie in."""
        if not len(rows):
            table = self.schema.empty_table().replace_schema_metadata(None)
            return table.select(columns) if columns else table
        return Rows((self.path,), np.zeros(len(rows), np.int32), rows).read(columns)
