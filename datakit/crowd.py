"""All records that no stage has dropped, in columns: how they and their images look, and what ranks them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from . import disk
from .dropped import SAID
from .looks import SCENE, TILE, TURNS, Ints, Looks, fill, in_one, zeros
from .sample import KEY_CHARS, SCHEMA, key_id, make_key
from .sources.scan import Source
from .stages.dedup import Facts, Windows
from .stages.shards import Rows

LOSSY = ("JPEG", "WEBP")
NO_TIME = -(1 << 60)
RANK = [
    "id",
    "source",
    "name",
    "window",
    "width",
    "height",
    "image_width",
    "image_height",
    "label",
    "boxes",
    "format",
    "acquired",
]
LOST = pa.schema(
    [("part", pa.int32()), ("row", pa.int64()), *((n, SCHEMA.field(n).type) for n in ("key", "source", *SAID))]
)
NEEDS = ["key", *RANK, "footprint", "gsd_m", "valid_share", "sharpness", "dropped", *TILE, *SCENE]


@dataclass(frozen=True)
class Crowd:
    """N records, and the I images that they are of."""

    rows: Rows
    key: NDArray[np.bytes_]  # (N,)
    source: NDArray[Any]  # (N,) names
    facts: Facts  # of the records
    looks: Looks
    corners: NDArray[np.float64]  # (N, 8) lon, lat of footprints; all zero where there is none
    placed: NDArray[np.bool_]  # (N,) there is one
    windows: Windows  # their images, 0..I-1, and where in them they lie
    whole: NDArray[np.bool_]  # (N,) the record is its image
    image_facts: Facts
    image_looks: Looks
    first: Ints  # (I,) a record of each image
    taken_s: Ints  # (I,) when, in s since 1970 (UTC); NO_TIME where that is not known
    place: Ints  # (I,) a number for each place that names tell; -1 where they tell none
    acquisition: Ints  # (I,) likewise for the acquisition that images are products of

    def __len__(self) -> int:
        return len(self.rows)

    def there(self, alive: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which images have records among those alive: (N,) -> (I,)."""
        out = np.zeros(len(self.first), bool)
        out[self.windows.image[alive]] = True
        return out

    def texts(self, rows: Ints, *columns: str) -> list[dict[str, Any]]:
        """Columns of some records, from the parts."""
        found: list[dict[str, Any]] = self.rows.take(rows).read([*columns]).to_pylist() if len(rows) else []
        return found

    def footprints(self, rows: Ints) -> NDArray[np.float64]:
        """Lon, lat of the corners of some records, (M, 8); all zero where a record has no place."""
        return np.asarray(self.corners[rows])

    def at(self, parts: Ints, rows: Ints) -> Ints:
        """Which records lie in those rows of those parts: (M,), (M,) -> (M,)."""
        out = np.zeros(len(rows), np.int64)
        for part in np.unique(parts).tolist():
            begin, end = np.searchsorted(self.rows.part, [part, part + 1])
            mine = parts == part
            out[mine] = begin + np.searchsorted(self.rows.row[begin:end], rows[mine])
        return out

    def keys(self, rows: Ints) -> pa.Array:
        """Keys of some records."""
        return pa.array(self.key[rows], pa.binary()).cast(pa.string())

    def image_keys(self, images: Ints) -> list[str]:
        """Keys of images: of one in tiles, that which it had before it was sliced."""
        first = self.first[images]
        keys: NDArray[Any] = self.key[first].astype(object)
        cut = np.flatnonzero(~self.whole[first])
        names = self.texts(first[cut], "source", "name")
        keys[cut] = [make_key(row["source"], row["name"]).encode() for row in names]
        return [key.decode() for key in keys.tolist()]

    def lost(
        self,
        rows: Ints,
        dropped: Sequence[str],
        to: Sequence[str] | pa.Array,
        match: Match | None = None,
        detail: Sequence[str] = (),
    ) -> pa.Table:
        """A table of LOST, in order of rows. dropped: why each goes, to: what it loses to, match: how alike."""
        order = np.argsort(rows, kind="stable")
        none = pa.repeat(pa.scalar(""), len(rows))
        columns = {
            "part": self.rows.part[rows],
            "row": self.rows.row[rows],
            "key": self.keys(rows),
            "source": self.source[rows],
            "dropped": dropped,
            "detail": detail or none,
            "lost_to": to,
            "distance_bits": pa.nulls(len(rows), pa.int32()) if match is None else match.bits,
            "turned": none if match is None else pa.array(TURNS).take(pa.array(match.place)),
        }
        arrow = (pa.Array, pa.ChunkedArray)
        filled = {f: c if isinstance(c := columns[f.name], arrow) else pa.array(c, f.type) for f in LOST}
        return pa.table([*filled.values()], schema=LOST).take(pa.array(order))


class Match(NamedTuple):
    """How alike the rows of a table of LOST are to what they lose to."""

    bits: NDArray[np.int32]
    place: NDArray[np.int8]


def read_crowd(parts: Sequence[Path], sources: Sequence[Source], folder: Path) -> Crowd:
    """Read what is kept in the last parts; how things look goes to files in `folder`, mapped, not to memory.

    sources: in the recipe's order.
    """
    most = max(sum(disk.ahead(lambda path: int(pq.read_metadata(path).num_rows), parts)), 1)
    keys, corners = zeros((most,), f"S{KEY_CHARS}", folder), zeros((most, 8), "float64", folder)
    tiles, scenes = Looks.empty(most, folder / "tiles"), Looks.empty(most, folder / "scenes")
    rank = {source.name: n for n, source in enumerate(sources)}
    names = Names(sources)
    records, images = Filled(most), Filled(most)
    for number, part in enumerate(disk.ahead(lambda path: _part(path, rank), parts)):
        n, i = records.count, images.count
        tiles.put(n, part.looks)
        if part.records["placed"].any():
            fill(corners, n, part.corners)
        fill(keys, n, part.keys)
        scenes.put(i, part.image_looks)
        where = {"part": np.full(len(part.row), number, np.int32), "image": part.records["image"] + i}
        records.add({**part.records, **where, "row": part.row})
        images.add({**part.images, **names.read(part.named), "first": part.first + n})
    c, im = records.columns(), images.columns()
    return Crowd(
        rows=Rows(tuple(parts), c["part"], c["row"]),
        key=keys[: records.count],
        source=c["name_of_source"],
        facts=Facts(*(c[name] for name in Facts._fields)),
        looks=tiles.cut(records.count),
        corners=corners[: records.count],
        placed=c["placed"],
        windows=Windows(c["image"], c["window"]),
        whole=c["whole"],
        image_facts=Facts(*(im[name] for name in Facts._fields)),
        image_looks=scenes.cut(images.count),
        first=im["first"],
        taken_s=im["taken_s"],
        place=im["place"],
        acquisition=im["acquisition"],
    )


class Part(NamedTuple):
    """What is kept in one part: its N records, and their I images."""

    row: Ints  # (N,) where in the part they are
    keys: NDArray[np.bytes_]  # (N,)
    looks: Looks
    corners: NDArray[np.float64]  # (N, 8)
    records: dict[str, NDArray[Any]]
    first: Ints  # (I,) the first record of each image
    image_looks: Looks
    images: dict[str, NDArray[Any]]
    named: pa.Table  # what names and dates of images tell is read from


def _part(path: Path, rank: dict[str, int]) -> Part:
    table = disk.read_table(path, NEEDS)
    stays = np.flatnonzero(pc.equal(table.column("dropped"), ""))
    table = table if len(stays) == table.num_rows else table.take(pa.array(stays))
    corners = corners_of(in_one(table.column("footprint")))
    records = {**_records(table, rank), "placed": np.asarray(corners.any(axis=1))}
    first, images = _images(table, records)
    of_images = table if len(first) == table.num_rows else table.take(pa.array(first))
    return Part(
        stays,
        texts_of(table.column("key"), KEY_CHARS),
        Looks.of(table, TILE),
        corners,
        records,
        first,
        Looks.of(of_images, SCENE),
        images,
        of_images.select(["source", "name", "acquired"]),
    )


class Names:
    """What names and dates of images tell: numbers for places and acquisitions."""

    def __init__(self, sources: Sequence[Source]) -> None:
        about = {source.name: source.collection for source in sources}
        self.patterns = {name: {"place": c.place, "acquisition": c.acquisition} for name, c in about.items()}
        family = families({c.name: c.twin_of for c in about.values()})
        self.family = {name: family[c.name] for name, c in about.items()}
        self.known: dict[tuple[str, str, str], int] = {}

    def read(self, images: pa.Table) -> dict[str, Ints]:
        """Columns taken_s, place and acquisition of images."""
        source, dates = (in_one(images.column(n)).dictionary_encode() for n in ("source", "acquired"))
        taken_s = np.array([seconds_of(text) for text in dates.dictionary.to_pylist()], np.int64)
        columns = {"taken_s": taken_s[dates.indices.to_numpy()]}
        sources = [name.partition("/")[0] for name in source.dictionary.to_pylist()]
        for what in ("place", "acquisition"):
            columns[what] = np.full(images.num_rows, -1, np.int64)
            tells = np.array([self.patterns[name][what] is not None for name in sources], bool)
            rows = np.flatnonzero(tells[source.indices.to_numpy()])
            names = images.column("name").take(pa.array(rows)).to_pylist()
            of = [sources[n] for n in source.indices.to_numpy()[rows].tolist()]
            columns[what][rows] = [self.number(what, *about) for about in zip(of, names, strict=True)]
        return columns

    def number(self, what: str, source: str, name: str) -> int:
        pattern = self.patterns[source][what]
        found = pattern.search(name) if pattern else None
        if found is None or found[1] is None:
            return -1
        key = (what, self.family[source], found[1])
        return self.known.setdefault(key, len(self.known))


def families(twins: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """A name for the family of each collection: those of which one names the other as its twin, and theirs."""
    head = {name: name for some in (twins, *twins.values()) for name in some}

    def top(name: str) -> str:
        while head[name] != name:
            name = head[name]
        return name

    for name, others in twins.items():
        for other in others:
            low, high = sorted((top(name), top(other)))
            head[high] = low
    return {name: top(name) for name in twins}


@lru_cache(1 << 16)
def seconds_of(acquired: str) -> int:
    """The instant of an ISO date (its midnight) or time, in s since 1970; NO_TIME where there is none.

    UTC where no zone is named.
    """
    if not re.match(r"\d{4}-\d\d-\d\d", acquired):
        return NO_TIME
    try:
        when = datetime.fromisoformat(acquired)
    except ValueError:
        return NO_TIME
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())


def texts_of(column: pa.ChunkedArray, most: int) -> NDArray[np.bytes_]:
    """Texts of at most so many ASCII characters as an array."""
    padded = pc.utf8_rpad(in_one(column), most, "\0")
    out: NDArray[np.bytes_] = np.frombuffer(padded.buffers()[2], f"S{most}", len(padded))
    return out


def corners_of(column: pa.ListArray) -> NDArray[np.float64]:
    """Footprints of four corners, (N, 8); all zero where there is none."""
    out = np.zeros((len(column), 8))
    placed = np.asarray(pc.fill_null(pc.equal(pc.list_value_length(column), 8), False))
    out[placed] = column.filter(pa.array(placed)).flatten().to_numpy().reshape(-1, 8)
    return out


class Filled:
    """Columns that grow to at most so many rows, in place: small pieces of them would be left in the heap."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self.filled: dict[str, NDArray[Any]] = {}

    def add(self, columns: dict[str, NDArray[Any]]) -> None:
        for name, values in columns.items():
            if name not in self.filled:
                self.filled[name] = np.empty((self.most, *values.shape[1:]), values.dtype)
            self.filled[name][self.count : self.count + len(values)] = values
        self.count += len(values)

    def columns(self) -> dict[str, NDArray[Any]]:
        return {name: values[: self.count] for name, values in self.filled.items()}


def _records(table: pa.Table, rank: dict[str, int]) -> dict[str, NDArray[Any]]:
    """Columns of the records of one part."""

    def numbers(name: str, absent: float = 0.0) -> NDArray[np.float64]:
        values = table.column(name).to_numpy().astype(np.float64)
        return np.where(np.isnan(values), absent, values)

    source = in_one(table.column("source")).dictionary_encode()
    names, source = np.array(source.dictionary.to_pylist(), object), source.indices.to_numpy()
    width, height = table.column("width").to_numpy(), table.column("height").to_numpy()
    windows = in_one(table.column("window"))
    whole = np.asarray(pc.is_null(windows))
    window = np.stack([np.zeros_like(width), np.zeros_like(width), width, height], axis=1).astype(np.int32)
    window[~whole] = windows.filter(pa.array(~whole)).flatten().to_numpy().reshape(-1, 4)
    named = pc.binary_join_element_wise(table.column("source"), table.column("name"), "\0").combine_chunks()
    has_boxes = np.asarray(pc.not_equal(table.column("boxes"), "[]"))
    return {
        "id": table.column("id").to_numpy(),
        "source": np.array([rank[name.partition("/")[0]] for name in names.tolist()], np.int64)[source],
        "name_of_source": names[source],
        "labelled": np.asarray(pc.not_equal(table.column("label"), "")) | has_boxes,
        "px": width.astype(np.int64) * height,
        "sharpness": numbers("sharpness"),
        "gsd_m": numbers("gsd_m", np.inf),
        "valid_share": numbers("valid_share"),
        "lossless": ~np.asarray(pc.is_in(table.column("format"), pa.array(LOSSY))),
        "image": named.dictionary_encode().indices.to_numpy().astype(np.int64),
        "window": window,
        "whole": whole,
    }


def _images(table: pa.Table, mine: dict[str, NDArray[Any]]) -> tuple[Ints, dict[str, NDArray[Any]]]:
    """The first record of each image of a part, and columns of the images: an image is never in two parts."""
    image = mine["image"]
    _, first, counts = np.unique(image, return_index=True, return_counts=True)
    whole = mine["whole"][first]  # has the key of its image
    ids = mine["id"][first]
    names = table.select(["source", "name"]).take(pa.array(first[~whole])).to_pylist()
    ids[~whole] = [key_id(make_key(row["source"], row["name"])) for row in names]
    px = table.column("image_width").to_numpy().astype(np.int64) * table.column("image_height").to_numpy()

    def mean(name: str) -> NDArray[np.float64]:
        means: NDArray[np.float64] = np.bincount(image, mine[name], len(first)) / counts
        return means

    return first, {
        "id": ids,
        "source": mine["source"][first],
        "labelled": np.bincount(image, mine["labelled"], len(first)) > 0,
        "px": px[first],
        "sharpness": mean("sharpness"),
        "gsd_m": mine["gsd_m"][first],
        "valid_share": mean("valid_share"),
        "lossless": mine["lossless"][first],
    }
