"""What was left out of a set, by any stage: why, in columns, and where the records are, in the parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .disk import ahead
from .sample import SCHEMA
from .stages.shards import Rows

SAID = ("dropped", "detail", "lost_to", "distance_bits", "turned")  # columns that say why
AT_ONCE = 1 << 15  # records that are read and written together: 1 kB each, several times


@dataclass(frozen=True)
class Dropped:
    """Records that were left out, in order of source, name and window."""

    rows: Rows
    said: pa.Table  # of the same rows: `id`, `source`, `stage`, and SAID, which the parts do not tell

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, some: NDArray[np.int64], without: Sequence[str] = ()) -> pa.Table:
        """Some of the records, by number, but for some columns: SCHEMA and `stage`."""
        wanted = [name for name in SCHEMA.names if name not in without]
        columns = [name for name in wanted if name not in SAID]
        table = self.rows.take(some).read(columns) if len(some) else SCHEMA.empty_table().select(columns)
        said = self.said.take(pa.array(some))
        for n, name in enumerate(wanted):
            if name in SAID:
                table = table.add_column(n, SCHEMA.field(name), said.column(name).cast(SCHEMA.field(name).type))
        return table.append_column("stage", said.column("stage").cast(pa.string()))

    def write(self, path: Path, without: Sequence[str] = ()) -> None:
        """Write all of them, a piece at a time: those of one source lie together, so a part is read once or twice."""
        rows = np.arange(len(self))
        pieces = [rows[begin : begin + AT_ONCE] for begin in range(0, max(len(rows), 1), AT_ONCE)]
        writer = None
        for table in ahead(lambda some: self.read(some, without), pieces):
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
        if writer:
            writer.close()
