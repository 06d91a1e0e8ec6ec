"""The records of a table, column by column, for rules that answer for all of them at once."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from numpy.typing import NDArray


class Columns:
    """The records of a table, a numpy array a field."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._arrays: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            self._arrays[name] = self.table.column(name).to_numpy()
        return self._arrays[name]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def texts(self, name: str) -> list[Any]:
        """Python values of a column: text, or lists of text."""
        values: list[Any] = self.table.column(name).to_pylist()
        return values

    def put(self, name: str, values: list[Any]) -> None:
        """Another column in place of one of that name."""
        place = self.table.schema.get_field_index(name)
        column = pa.array(values, self.table.schema.field(name).type)
        self.table = self.table.set_column(place, self.table.schema.field(name), column)
        self._arrays.pop(name, None)
