"""Columns of all records of a build, the kept ones in the order of the index, then those that were left out.

A column is read from the tables of the build when it is first asked for, and lies in the user's cache from then on,
one Arrow file each, which is memory-mapped: nothing is ever written beside the build.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..disk import becoming
from ..errors import ShardError
from ..lonlat import CORNERS, rings
from ..looks import in_one
from ..sample import digest
from ..stream.cache import user_folder
from ..stream.tars import Tars

FORMAT = "1"
SAMPLES, DROPPED = "samples.parquet", "dropped.parquet"
FILES = ("manifest.json", "index.arrow", SAMPLES, DROPPED, "pictures.parquet")
KEPT = "kept"  # the reason of a record that was not left out
FACETS = ("source", "split", "reason", "label")
MEASURES = {  # what a column of numbers is
    "entropy_bits": "luma entropy, bits",
    "sharpness": "sharpness, variance of the Laplacian",
    "luma_mean": "luma, mean",
    "luma_std": "luma, deviation",
    "saturation": "saturation, 0 to 1",
    "valid_share": "valid pixels, share",
    "gsd_m": "ground sampling distance, m",
    "width": "width, px",
    "height": "height, px",
    "psnr_db": "PSNR of the encoded tile, dB",
    "pair_shift_px": "shift between RAW and JPEG, px",
    "distance_bits": "distance from what it lost to, bits",
}
BINS = 32  # of a histogram
SHOWN = 500  # values of a facet that are told, the commonest
Floats = NDArray[np.float64]


class Stopped(Exception):
    """The server ends: what is being read is not needed any more."""


class Coded(NamedTuple):
    """A column of texts: codes[n] is the place in `values` of what row n has."""

    values: list[str]
    codes: NDArray[Any]


class Table:
    """A Parquet file of the build. Its footer, some MB, is read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.metadata = pq.read_metadata(path)
        except (OSError, pa.ArrowException) as exc:
            raise ShardError(f"{path}: {exc}. Build the set again to rewrite it") from None
        self.names = self.metadata.schema.to_arrow_schema().names
        groups = range(self.metadata.num_row_groups)
        self.begins = np.cumsum([0, *(self.metadata.row_group(n).num_rows for n in groups)])

    def __len__(self) -> int:
        return int(self.metadata.num_rows)

    def pieces(self, name: str) -> Iterator[pa.Array]:
        """A column, a row group at a time."""
        for n in range(self.metadata.num_row_groups):
            yield self._group(n, [name]).column(0).combine_chunks()

    def row(self, number: int, columns: list[str] | None = None) -> dict[str, Any]:
        """One record; columns that the file has not are left out."""
        group = int(np.searchsorted(self.begins, number, side="right")) - 1
        wanted = self.names if columns is None else [name for name in columns if name in self.names]
        found: dict[str, Any] = self._group(group, wanted).slice(number - int(self.begins[group]), 1).to_pylist()[0]
        return found

    def _group(self, number: int, columns: list[str]) -> pa.Table:
        try:
            with pq.ParquetFile(self.path, metadata=self.metadata, memory_map=True) as file:
                return file.read_row_group(number, columns)
        except (OSError, pa.ArrowException) as exc:
            raise ShardError(f"{self.path}: {exc}. Build the set again to rewrite it") from None


class Columns:
    """The columns of the build at `out`, whose shards are `tars`. say: is told where the cache cannot be written."""

    def __init__(self, out: Path, tars: Tars, say: Callable[[str], None]) -> None:
        self.tars, self.say = tars, say
        self.samples, self.dropped = Table(out / SAMPLES), Table(out / DROPPED)
        if len(self.samples) != len(tars):
            raise ShardError(f"{out}: its index and {SAMPLES} differ in length. Build the set again")
        self.count = len(self.samples) + len(self.dropped)
        self.facets = [name for name in FACETS if name != "label" or self._has(name)]
        self.measures = [name for name in MEASURES if self._has(name)]
        self.more = ["key", "id", *(["signature"] if self._has("signatures") else [])]
        self.more += ["middle"] if self._has("footprint") else []
        self.held: dict[str, pa.Table] = {}
        self.decoded: dict[str, Coded] = {}
        self.locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self.stop = threading.Event()
        self.folder = cache_of(out, say)

    def _has(self, name: str) -> bool:
        return name in self.samples.names or name in self.dropped.names

    def read_all(self) -> None:
        """Every column, those that most questions are about first; until `stop` is set."""
        for name in (*self.facets, *self.more[:2], *self.measures, *self.more[2:]):
            if self.stop.is_set():
                return
            self.column(name)

    def coded(self, name: str) -> Coded:
        """A facet of every record."""
        if name not in self.decoded:
            column = in_one(self.column(name).column(0))
            self.decoded[name] = Coded(column.dictionary.to_pylist(), column.indices.to_numpy())
        return self.decoded[name]

    def numbers(self, name: str) -> NDArray[Any]:
        """A measure, NaN where it is not known: (N,) float64. Or `id` of those left out, int64; or `signature`, uint64,
        0 where none was measured."""
        found: NDArray[Any] = in_one(self.column(name).column(0)).to_numpy()
        return found

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        """Keys of records; of those left out by name, where they have none."""
        kept = rows < len(self.tars)
        found = dict(zip(rows[kept].tolist(), self.tars.keys(rows[kept]), strict=True))
        if not kept.all():
            lost = self.column("key").column(0).take(pa.array(rows[~kept] - len(self.tars))).to_pylist()
            found |= dict(zip(rows[~kept].tolist(), lost, strict=True))
        return [found[row] for row in rows.tolist()]

    def middles(self) -> NDArray[np.float32]:
        """Longitude and latitude of the middle of each footprint, NaN where there is none: (N, 2)."""
        column = in_one(self.column("middle").column(0))
        found: NDArray[np.float32] = column.values.to_numpy().reshape(-1, 2)
        return found

    def told(self) -> dict[str, Any]:
        """What is known of the columns that were read: values and how often they come, or range and histogram."""
        held = dict(self.held)
        names = [*self.facets, *self.measures]
        about = {name: json.loads(held[name].schema.metadata[b"about"]) for name in names if name in held}
        return {"columns": about, "missing": [n for n in (*names, *self.more) if n not in held]}

    def column(self, name: str) -> pa.Table:
        """A column as a table of one chunk, with what is known of it in its metadata."""
        with self.locks[name]:
            if name not in self.held:
                self.held[name] = self._found(name)
            return self.held[name]

    def _found(self, name: str) -> pa.Table:
        path = self.folder / f"{name}.arrow" if self.folder else None
        if path and path.is_file():
            try:
                return _mapped(path)
            except (OSError, pa.ArrowException):  # cut short by a full disk, say
                path.unlink(missing_ok=True)
        made = self._made(name)
        if path:
            try:
                with becoming(path, path.parent) as partial:
                    write(made, partial)
                return _mapped(path)
            except OSError as exc:
                self.say(f"warning: {exc}: what is read is held in memory")
                self.folder = None
        return made

    def _made(self, name: str) -> pa.Table:
        about: dict[str, Any] = {}
        if name in FACETS:
            made, about = self._texts(name)
        elif name in MEASURES:
            values = np.full(self.count, np.nan)
            self._fill(values, name, lambda piece: pc.fill_null(piece.cast(pa.float64()), np.nan).to_numpy())
            made, about = pa.array(values), histogram(values)
        elif name == "signature":
            values = np.zeros(self.count, np.uint64)
            self._fill(values, "signatures", first_signatures)
            made = pa.array(values)
        elif name == "middle":
            places = np.full((self.count, 2), np.nan, np.float32)
            self._fill(places, "footprint", middles_of)
            made = pa.FixedSizeListArray.from_arrays(pa.array(places.ravel()), 2)
        else:
            made = self._of_dropped(name)
        return pa.table({name: made}).replace_schema_metadata({"about": json.dumps(about)})

    def _fill(self, values: NDArray[Any], name: str, read: Callable[[pa.Array], NDArray[Any]]) -> None:
        """Fill an array with what `read` makes of a column, of the files that have it."""
        for table, begin in ((self.samples, 0), (self.dropped, len(self.samples))):
            for piece in self._pieces(table, name):
                values[begin : begin + len(piece)] = read(piece)
                begin += len(piece)

    def _pieces(self, table: Table, name: str) -> Iterator[pa.Array]:
        for piece in table.pieces(name) if name in table.names else ():
            if self.stop.is_set():
                raise Stopped
            yield piece

    def _texts(self, name: str) -> tuple[pa.Array, dict[str, Any]]:
        """A facet: codes as narrow as they can be, and how often each value comes."""
        known: dict[str, int] = {"": 0} if name == "label" else {}
        codes = np.zeros(self.count, np.int32)
        begin = 0
        for piece, count in self._text_pieces(name):
            if isinstance(piece, str):
                codes[begin : begin + count] = known.setdefault(piece, len(known))
            else:
                encoded = piece.fill_null("").dictionary_encode()
                places = [known.setdefault(value, len(known)) for value in encoded.dictionary.to_pylist()]
                codes[begin : begin + count] = np.array(places, np.int32)[encoded.indices.to_numpy()]
            begin += count
        counts = np.bincount(codes, minlength=len(known))
        names = list(known)
        most = np.argsort(-counts, kind="stable")[:SHOWN].tolist()
        values = [[names[n], int(counts[n])] for n in most if counts[n]]
        about = {"kind": "facet", "values": values, "of": int((counts > 0).sum())}
        indices = pa.array(codes.astype(np.min_scalar_type(max(len(known), 1))))
        return pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.large_string()), safe=False), about

    def _text_pieces(self, name: str) -> Iterator[tuple[pa.Array | str, int]]:
        """A facet in pieces: texts, or one text that so many rows share. The index knows what `samples` need not."""
        kept, lost = len(self.samples), len(self.dropped)
        if name == "reason":
            yield KEPT, kept
        elif name in ("source", "split"):
            yield from ((chunk, len(chunk)) for chunk in self.tars.table.column(name).chunks)
        elif name in self.samples.names:
            yield from ((piece, len(piece)) for piece in self._pieces(self.samples, name))
        else:
            yield "", kept
        column = "dropped" if name == "reason" else name
        if column in self.dropped.names:
            yield from ((piece, len(piece)) for piece in self._pieces(self.dropped, column))
        elif lost:  # a set of one source need not tell it
            sources = self.tars.table.column(name).unique().to_pylist() if name == "source" else []
            yield sources[0] if len(sources) == 1 else "", lost

    def _of_dropped(self, name: str) -> pa.Array:
        """`key` or `id` of those left out, who have no index."""
        kind = pa.large_string() if name == "key" else pa.int64()
        column = "name" if name == "key" and "key" not in self.dropped.names else name
        if column not in self.dropped.names:
            return pa.repeat(pa.scalar(-1, kind), len(self.dropped))
        pieces = [piece.cast(kind) for piece in self._pieces(self.dropped, column)]
        return pa.concat_arrays(pieces) if pieces else pa.array([], kind)


def write(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(table.num_rows, 1))


def _mapped(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def first_signatures(column: pa.ListArray) -> NDArray[np.uint64]:
    """The signature of the picture as it is; 0, which no picture has, where none was measured."""
    found = np.zeros(len(column), np.uint64)
    there = np.asarray(pc.fill_null(pc.greater(pc.list_value_length(column), 0), False))
    if there.any():
        some = column if there.all() else column.filter(pa.array(there))
        found[there] = some.flatten().to_numpy().reshape(len(some), -1)[:, 0]
    return found


def middles_of(column: pa.ListArray) -> NDArray[np.float32]:
    """Longitude, from -180 up to 180, and latitude of the middles of footprints: (N, 2)."""
    found = np.full((len(column), 2), np.nan, np.float32)
    there = np.asarray(pc.fill_null(pc.equal(pc.list_value_length(column), 8), False))
    if there.any():
        some = column if there.all() else column.filter(pa.array(there))
        middle = rings(some.flatten().to_numpy().reshape(-1, 8))[:, : CORNERS - 3].mean(axis=1)
        middle[:, 0] -= 360 * np.floor((middle[:, 0] + 180) / 360)
        found[there] = middle
    return found


def histogram(values: Floats) -> dict[str, Any]:
    """Lowest and highest of the numbers, how many there are, and how they are spread over BINS equal parts of that."""
    known = values[np.isfinite(values)]
    if not len(known):
        return {"kind": "measure", "known": 0}
    low, high = float(known.min()), float(known.max())
    counts, _ = np.histogram(known, BINS, (low, high if high > low else low + 1))
    return {"kind": "measure", "known": len(known), "low": low, "high": high, "counts": counts.tolist()}


def facts(out: Path) -> list[str]:
    """What changes when a set is built again: size and time of its files."""
    told = []
    for name in FILES:
        try:
            about = (out / name).stat()
            told.append(f"{name} {about.st_size} {about.st_mtime_ns} {about.st_ino}")
        except FileNotFoundError:
            told.append(name)
    return told


def cache_of(out: Path, say: Callable[[str], None]) -> Path | None:
    """Where the columns of this very set are kept; those of what lay there before it are removed."""
    place = user_folder() / "browse" / f"{out.resolve().name}-{digest(str(out.resolve()))}"
    mine = place / digest(FORMAT, *facts(out))
    try:
        mine.mkdir(parents=True, exist_ok=True)
        for other in place.iterdir():
            if other != mine:
                shutil.rmtree(other, ignore_errors=True)
    except OSError as exc:
        say(f"warning: {exc}: what is read is held in memory")
        return None
    return mine
