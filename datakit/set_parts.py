"""What was added to a set after it was built: columns in their own tars, and overlays. Whether they fit it still."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .errors import DatakitError
from .findings import SHOWN, Verified
from .stages.shards import BLOCK
from .stream.joined import FOLDER, Joined, read
from .stream.overlay import KIND, Overlay
from .tar_check import Place, header

OVERLAYS = "overlays"
Ints = NDArray[np.int64]


def check_columns(told: Verified, table: pa.Table) -> None:
    """Each column: its file, its tars, and where the value of each row lies."""
    about = table.schema.metadata[b"digest"].decode()
    for path in sorted((told.out / FOLDER).glob("*.arrow")):
        todo = f"datakit add-column {told.out} {path.stem} --replace --from DIR    # the folder of its files"
        name = f"{FOLDER}/{path.name}"
        try:
            column = read(path, about)
        except DatakitError as exc:
            told.add(name, str(exc), todo)
            continue
        for file, what in _column(told, column, table):
            told.add(file or name, what, todo)


def _column(told: Verified, column: Joined, table: pa.Table) -> list[tuple[str, str]]:
    """What is wrong with a column: the file ("" is its own), and what it is."""
    wrong = []
    ids = table.column("id").to_numpy()
    rows = np.flatnonzero(column.offset >= 0)
    if len(column.offset) != len(ids) or not np.array_equal(column.id, ids):
        return [("", "its rows are not those of index.arrow")]
    if (column.tar[column.offset < 0] != -1).any() or (column.bytes[column.offset < 0] != 0).any():
        wrong.append(("", "rows without a value name a tar, or have bytes"))
    if len(rows) and not (column.tar[rows].min() >= 0 and column.tar[rows].max() < len(column.tars)):
        return [*wrong, ("", "rows name tars that it does not have")]
    for n, said in enumerate(column.tars):
        mine, path = rows[column.tar[rows] == n], told.out / said["name"]
        if not path.is_file():
            wrong.append((said["name"], "it is not there"))
        elif path.stat().st_size != said["bytes"]:
            wrong.append((said["name"], f"{path.stat().st_size:,} bytes, not {said['bytes']:,}"))
        elif told.deep and told.digest_of(said["name"]) != said["sha256"]:
            wrong.append((said["name"], "its sha256 is not the one that was written"))
        elif len(mine) != said["samples"]:
            wrong.append(("", f"{len(mine):,} rows lie in {said['name']}, which has {said['samples']:,} samples"))
        else:
            some = mine if told.deep else mine[[0, -1]]
            wrong += [("", what) for what in _headers(path, column, table, some)[:SHOWN]]
    return wrong


def _headers(path: Path, column: Joined, table: pa.Table, rows: Ints) -> list[str]:
    """Rows whose value does not begin where the column says."""
    wrong, keys = [], table.column("key").take(pa.array(rows)).to_pylist()
    with path.open("rb") as stream:
        for row, key in zip(rows.tolist(), keys, strict=True):
            place = Place(f"{key}.{column.name}", int(column.offset[row]), int(column.bytes[row]))
            if place.offset < BLOCK or place.size_bytes < 0 or place.offset + place.size_bytes > path.stat().st_size:
                wrong.append(f"{key}: lies outside {path.name}")
                continue
            stream.seek(place.offset - BLOCK)
            if stream.read(BLOCK) != header(place):
                wrong.append(f"{key}: does not begin at byte {place.offset - BLOCK} of {path.name}")
    return wrong


def check_overlays(told: Verified, table: pa.Table, given: Sequence[Path]) -> None:
    """Overlays of the set's own folder, and those that are named: that they can be read, and are of this set."""
    ids = table.column("id").to_numpy()
    for path in [*sorted((told.out / OVERLAYS).glob("*.parquet")), *given]:
        name = str(path.relative_to(told.out)) if path.is_relative_to(told.out) else str(path)
        todo = f"write {name} again with datakit.stream.Overlay.write, or remove it"
        try:
            listed = _ids(path)
        except (DatakitError, OSError, pa.ArrowException, KeyError) as exc:
            told.add(name, str(exc), todo)
            continue
        strange = listed[~np.isin(listed, ids)]
        if len(strange):
            told.add(name, f"{len(strange):,} of its {len(listed):,} ids are not of this set, as {strange[0]}", todo)


def _ids(path: Path) -> Ints:
    """The ids that an overlay lists, once it has been read as what it says it is."""
    if pq.read_schema(path).metadata and pq.read_schema(path).metadata.get(KIND) == b"split":
        names = pq.read_table(path, columns=["split"]).column("split").unique().to_pylist()
        return np.concatenate([np.zeros(0, np.int64), *(Overlay.split(path, name).ids for name in names)])
    return Overlay.of(path).ids
