"""Small files that say which samples of a set count, and how often: applied as it is read, no tar is rewritten.

A weight w gives floor(w) copies of a sample, and one more if a hash of its id, 0..1, is below what is left of w: the
same ones in every epoch and for every seed. Weights of a sample multiply, and with that of its set in a mix.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from .. import disk
from ..errors import RecipeError, ShardError
from ..licences import NAME, Asked
from ..remote import Root, root_of
from ..sample import mix64
from .order import InTurn, Order
from .tars import Tars

Kind = Literal["drop", "keep", "weight", "split"]
KIND = b"datakit_overlay"  # what a file says of its kind
CHUNK = 1 << 20  # rows that are looked at together
MOST = 1 << 20  # copies of a sample
RECORDS = "samples.parquet"  # of a build
_WEIGHING = 0x6A09E667F3BCC909  # apart from what the order takes of ids

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Overlay:
    """Weights of samples by id: of those that are listed (M,), ascending, and of all others.

    From a Parquet file, or its URL, with a column `id`; of weights also `weight`, of splits `split`.
    """

    name: str  # the file
    kind: Kind
    ids: Ints
    weights: NDArray[np.float64]
    others: float

    @classmethod
    def drop(cls, path: str | Path) -> Overlay:
        """All but the samples that are listed."""
        return cls._read(path, "drop", "")

    @classmethod
    def keep(cls, path: str | Path) -> Overlay:
        """The samples that are listed, and no others."""
        return cls._read(path, "keep", "")

    @classmethod
    def weight(cls, path: str | Path) -> Overlay:
        """Samples that are listed count by their weights, others as they did."""
        return cls._read(path, "weight", "")

    @classmethod
    def split(cls, path: str | Path, name: str) -> Overlay:
        """The samples of a split, and no others."""
        return cls._read(path, "split", name)

    @classmethod
    def of(cls, path: str | Path) -> Overlay:
        """An overlay whose file says of which kind it is."""
        return cls._read(path, None, "")

    @classmethod
    def _read(cls, path: str | Path, kind: Kind | None, split: str) -> Overlay:
        table, kind = _table(root_of(path), kind, split)
        ids = table.column("id").to_numpy()
        weights = np.full(len(ids), float(kind != "drop"))
        if kind == "weight":
            weights = table.column("weight").to_numpy().astype(np.float64)
            if len(weights) and not (weights.min() >= 0 and weights.max() <= MOST):  # NaN is neither
                raise RecipeError(f"{path}: weights are numbers from 0 to {MOST}")
        ids, first, counts = np.unique(ids, return_index=True, return_counts=True)
        if kind == "weight" and len(counts) and counts.max() > 1:
            raise RecipeError(f"{path}: id {ids[counts.argmax()]} is listed {counts.max()} times: give it one weight")
        return cls(str(path), kind, ids, weights[first], float(kind in ("drop", "weight")))

    @staticmethod
    def write(
        path: str | Path, kind: Kind, ids: Sequence[int] | Ints, values: Sequence[Any] | NDArray[Any] | None = None
    ) -> Path:
        """Write an overlay of these ids; values: weights, or names of splits, one an id."""
        if kind not in get_args(Kind) or (values is None) == (kind in ("weight", "split")):
            raise RecipeError(f"overlay: {kind}: one of {', '.join(get_args(Kind))}; weight and split with values")
        columns = {"id": pa.array(np.asarray(ids, np.int64))}
        if values is not None:
            columns[kind] = pa.array(values, pa.float64() if kind == "weight" else pa.string())
        path = Path(path)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        pq.write_table(pa.table(columns).replace_schema_metadata({KIND: kind}), aside, compression="zstd")
        disk.sync(aside)
        aside.replace(path)
        return path

    @property
    def digest(self) -> str:
        """What it does, in words and in a digest of its ids and weights: files of other names or rows may agree."""
        state = xxhash.xxh3_64(self.ids.tobytes() + self.weights.tobytes())
        return f"{self.kind} of {len(self.ids)} ids {state.hexdigest()}"

    def find(self, ids: Ints) -> tuple[NDArray[np.bool_], Ints]:
        """Of each id, whether it is listed, and where."""
        at = np.minimum(np.searchsorted(self.ids, ids), max(len(self.ids) - 1, 0))
        return (self.ids[at] == ids if len(self.ids) else np.zeros(len(ids), bool)), at


def _table(path: Root, kind: Kind | None, split: str) -> tuple[pa.Table, Kind]:
    """The rows that count, and the kind. RecipeError tells what is wrong with the file."""
    if not path.is_file():
        raise RecipeError(f"overlay: {path}: no such file")
    try:
        file = pq.ParquetFile(path if isinstance(path, Path) else pa.BufferReader(path.read_bytes()))
    except pa.ArrowException as exc:
        raise RecipeError(f"overlay: {path}: not Parquet ({exc})") from None
    said = (file.schema_arrow.metadata or {}).get(KIND, b"").decode()
    wanted: Kind | None = kind or (said if said in ("drop", "keep", "weight") else None)
    if wanted is None and "weight" in file.schema_arrow.names and said == "":
        wanted = "weight"
    if wanted is None or (said and said != wanted):
        how = "Overlay.drop, .keep, .weight or .split(path, name)"
        raise RecipeError(f"overlay: {path}: it is {f'of kind {said}' if said else 'of no kind'}: read it by {how}")
    columns = ["id", *[wanted] * (wanted in ("weight", "split"))]
    missing = {*columns} - {*file.schema_arrow.names}
    if missing:
        raise RecipeError(f"overlay: {path}: no column {missing.pop()}, only {', '.join(file.schema_arrow.names)}")
    table = file.read(columns)
    if not pa.types.is_integer(table.schema.field("id").type) or any(c.null_count for c in table.columns):
        raise RecipeError(f"overlay: {path}: ids are whole numbers, and no value is missing")
    if wanted == "split":
        names = table.column("split").cast(pa.string()).to_numpy(zero_copy_only=False)
        table = table.filter(pa.array(names == split))
        if not len(table):
            raise RecipeError(f"overlay: {path}: no split {split!r}, only {', '.join(map(str, np.unique(names)[:9]))}")
    return table.set_column(0, "id", table.column("id").cast(pa.int64())), wanted


class Live:
    """The samples of a set that count, each as often as it does, in the set's order: their rows by their number.

    sizes: (S,) of each shard. digests: what the overlays do. Rows are kept as runs of equally many copies, or, where
    that takes more memory, one by one.
    """

    def __init__(self, tars: Tars, overlays: Sequence[Overlay]) -> None:
        self.digests = [overlay.digest for overlay in overlays]
        if any(weight != 1 for _, weight, _ in tars.parts):
            self.digests.insert(0, f"mix by {', '.join(f'{weight:g}' for _, weight, _ in tars.parts)}")
        ends = np.cumsum(tars.sizes)
        self.sizes = np.zeros(len(ends), np.int64)
        found: list[list[Ints]] = [[], [], []]
        listed = [np.zeros(len(overlay.ids), bool) for overlay in overlays]
        for low in range(0, len(tars), CHUNK) if self.digests else ():
            high = min(low + CHUNK, len(tars))
            copies = _copies(tars, overlays, listed, low, high)
            shards = np.searchsorted(ends, np.arange(low, high), "right")
            first = int(shards[0])
            counted = np.bincount(shards - first, copies).astype(np.int64)
            self.sizes[first : first + len(counted)] += counted
            for column, part in zip(found, _runs(copies, low), strict=True):
                column.append(part)
        if not self.digests:
            self.sizes, found = tars.sizes, [[np.array([n])] for n in (0, len(tars), 1)]
        self.start, lengths, self.copies = (np.concatenate(column or [np.empty(0, np.int64)]) for column in found)
        self.first: Ints = np.concatenate([[0], np.cumsum(lengths * self.copies)])  # number of each run's, and the end
        self.each: NDArray[np.uint32] | Ints | None = None
        self.tell(overlays, listed)
        if len(self) * (4 if len(tars) < 2**32 else 8) < len(self.start) * 3 * 8:
            self.spread(np.uint32 if len(tars) < 2**32 else np.int64)

    def spread(self, kind: Any) -> None:
        """Keep rows one by one."""
        each = np.empty(len(self), kind)
        for low in range(0, len(self), CHUNK):
            each[low : low + CHUNK] = self.rows(np.arange(low, min(low + CHUNK, len(self))))
        self.each = each
        self.start = self.copies = self.first = np.empty(0, np.int64)

    def tell(self, overlays: Sequence[Overlay], listed: Sequence[NDArray[np.bool_]]) -> None:
        """Warn of ids that the set does not have. RecipeError where it has none of an overlay's, or none is left."""
        for overlay, there in zip(overlays, listed, strict=True):
            if len(there) and not there.any():
                raise RecipeError(f"overlay: {overlay.name}: none of its {len(there)} ids is one of this set's")
            if not there.all():
                lost = overlay.ids[~there]
                warnings.warn(
                    f"overlay: {overlay.name}: {len(lost)} of its {len(there)} ids are not in this set, as {lost[0]}",
                    stacklevel=2,
                )
        if self.digests and not len(self):
            raise ShardError(f"no samples are left by {'; '.join(self.digests)}")

    def __len__(self) -> int:
        return int(self.first[-1]) if self.each is None else len(self.each)

    def rows(self, numbers: Ints) -> Ints:
        """Rows of live samples, by their numbers."""
        if self.each is not None:
            return self.each[numbers].astype(np.int64)
        run = np.searchsorted(self.first, numbers, "right") - 1
        found: Ints = self.start[run] + (numbers - self.first[run]) // self.copies[run]
        return found

    def number(self, row: int) -> int:
        """How many live samples come before a row."""
        if self.each is not None:
            return int(np.searchsorted(self.each, row))
        run = int(np.searchsorted(self.start, row, "right")) - 1
        if run < 0:
            return 0
        return int(min(self.first[run] + (row - self.start[run]) * self.copies[run], self.first[run + 1]))

    def counts(self, start: int, low: int, high: int) -> Ints:
        """How often each of the rows low .. high of a set counts, whose first row is `start`."""
        low, high = start + low, start + high
        numbers = np.arange(self.number(low), self.number(high), dtype=np.int64)
        return np.bincount(self.rows(numbers) - low, minlength=high - low)


def _copies(tars: Tars, overlays: Sequence[Overlay], listed: Sequence[NDArray[np.bool_]], low: int, high: int) -> Ints:
    """How often each of rows low .. high counts; ids of overlays that are met are marked as listed."""
    ids, weights = tars.ids(slice(low, high)), np.ones(high - low)
    for start, weight, _ in tars.parts:  # the last that begins before a row is the one it is of
        weights[max(start - low, 0) :] = weight
    for overlay, met in zip(overlays, listed, strict=True):
        found, at = overlay.find(ids)
        met[at[found]] = True
        if len(overlay.ids):
            weights *= np.where(found, overlay.weights[at], overlay.others)
        else:
            weights *= overlay.others
    whole = np.floor(weights)
    drawn = (mix64(ids, _WEIGHING) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (whole + (drawn < weights - whole)).astype(np.int64)


def _runs(copies: Ints, low: int) -> tuple[Ints, Ints, Ints]:
    """Runs of rows of equally many copies, but none: first row, length, copies."""
    begins = np.flatnonzero(np.diff(copies, prepend=-1))
    lengths = np.diff(begins, append=len(copies))
    there = copies[begins] > 0
    return begins[there] + low, lengths[there], copies[begins[there]]


class Picked:
    """An order of live samples as one of rows."""

    def __init__(self, order: Order | InTurn, live: Live) -> None:
        self.order, self.live = order, live
        self.samples, self.key = order.samples, order.key

    def at(self, start: int, count: int) -> Ints:
        """The rows at positions start .. start + count."""
        return self.live.rows(self.order.at(start, count))


def licensed(tars: Tars, names: str | Sequence[str]) -> list[Overlay]:
    """What leaves the samples that are under one of these licences, by the records beside each set; see `licences`.

    RecipeError where a set has no records, as tars of others, or no sample is left.
    """
    asked, goes = Asked(names), [np.zeros(0, np.int64)]
    for _, _, part in tars.parts if asked else ():
        path = part.beside(RECORDS)
        if not path.is_file():
            raise RecipeError(f"licence: {path} is not there; only a build tells the licences of its samples")
        file = pq.ParquetFile(path)
        for batch in file.iter_batches(CHUNK, columns=[n for n in ("id", NAME) if n in file.schema_arrow.names]):
            table = pa.table(batch)
            goes.append(table.column("id").to_numpy()[~asked.rows(table, path)])
    ids = np.unique(np.concatenate(goes))
    if len(ids) and len(ids) == len(tars):
        raise RecipeError(f"licence: no sample is under {asked}; there are {asked.met()}")
    return [Overlay(f"licence {asked}", "drop", ids, np.zeros(len(ids)), 1.0)] if len(ids) else []


def overlays_of(given: str | Path | Overlay | Sequence[str | Path | Overlay]) -> list[Overlay]:
    """Overlays as they are given: one or more, by path where the file says its kind."""
    several = [given] if isinstance(given, str | Path | Overlay) else given
    return [one if isinstance(one, Overlay) else Overlay.of(one) for one in several]
