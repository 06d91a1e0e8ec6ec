"""Contact sheets of a build: what each rule removed, duplicates beside what was kept, protected beside held-out."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from . import codec, image
from .decisions import held
from .errors import DatakitError
from .locate import rows_of
from .looks import TURNS, turn
from .pictures import SIDE_PX
from .sample import make_key
from .samples import Samples
from .stream.source import opened
from .stream.tars import Tars
from .survey import MEASURES, RULES, Kind, Survey, told_apart
from .views import Camera, view_of

Row = dict[str, Any]
BUDGET = {"gone": 8_000_000, "groups": 3_000_000, "kept": 2_000_000}  # bytes of pictures
A_SHEET = 180  # tiles of one reason, of all sources
NAMED = 6  # without a picture, of one source and reason
GROUPS, MEMBERS = 48, 5
OF_RULE = {"modality": "modality", "dtype": "dtype", "bands": "bands", "format": "format", "split": "split"}
OF_RULE |= {"evaluation": "split", "licence": "licences", "frames": "frames", "gsd_unknown": "gsd_range_m"}
_SHOWN = ("key", "source", "name", "stage", "dropped", "detail", "lost_to", "distance_bits", "turned", "window")
_LOOKED_AT = ("thumbnail", "scene_thumbnail", *OF_RULE.values(), *(c for m in MEASURES.values() for c in m.columns))
SHOWN = [*dict.fromkeys((*_SHOWN, *_LOOKED_AT))]
LOOK_ALIKE = ("dedup", "same_place")  # stages


@dataclass
class Tile:
    """A record on a sheet."""

    key: str
    source: str
    stage: str
    reason: str
    name: str = ""
    said: str = ""  # the measured value, or why
    picture: str = ""  # a data: URL
    coarse: bool = False  # the picture is the 8 x 8 thumbnail
    mark: str = ""  # what a click decides: keep, drop, or nothing
    more: list[tuple[str, str]] = field(default_factory=list)  # 8 x 8 beside it: data: URL, what it is


def url(data: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def thumbnail(data: bytes | None, place: int = 0) -> str:
    """An (8, 8, 3) thumbnail, turned, as a picture; "" where there is none."""
    if not data:
        return ""
    pixels = turn(np.frombuffer(data, np.uint8).reshape(1, 8, 8, 3), place)[0]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return url(file.getvalue(), "png")


@dataclass
class Removed:
    """Rows of dropped.parquet that are shown, and the pictures that there are of them."""

    recipe: Row
    rows: dict[Kind, list[Row]]  # by stage, source and reason
    pictures: dict[tuple[str, str], bytes]  # by stage and key

    @classmethod
    def read(cls, recipe: Row, table: Samples, found: Survey, pictures: Samples) -> Removed:
        """found: of the table, by stage, source and reason."""
        kinds = [kind for kind, rows in found.few.items() for _ in rows]
        rows = np.concatenate([np.zeros(0, np.int64), *found.few.values()])
        there = [name for name in SHOWN if name in table.schema.names]
        by_kind: dict[Kind, list[Row]] = defaultdict(list)
        for kind, row in zip(kinds, table.read(rows, there).to_pylist(), strict=True):
            by_kind[kind].append(row)
        return cls(recipe, by_kind, dict(drawn(pictures, by_kind)))

    def tile(self, row: Row) -> Tile:
        why = held(self.recipe, row["stage"], row["dropped"])
        tile = Tile(row["key"], row["source"], row["stage"], row["dropped"], row["name"], self.value(row))
        tile.mark = "" if why or not row["key"] else "keep"
        if (data := self.pictures.get((row["stage"], row["key"]))) is not None:
            tile.picture = url(data)
        return tile

    def value(self, row: Row) -> str:
        """What a record went for, in words and numbers."""
        rules = {rule.get("name") or rule["rule"]: rule["rule"] for rule in self.recipe["exclude"]["rules"]}
        rule = rules.get(row["dropped"], row["dropped"].replace("min_valid_share", "valid_share"))
        if row["distance_bits"] is not None:
            return ", ".join(filter(None, [f"{row['distance_bits']} bits", row["turned"], row["detail"]]))
        if row["dropped"] == "subset_flat":
            return f"{row['entropy_bits']:.2f} bits of entropy"
        if rule in RULES and row["stage"] in ("exclude", "measured", "slice"):
            measure = MEASURES[RULES[rule][0]]
            values = [np.array([np.nan if row[c] is None else row[c]], np.float64) for c in measure.columns]
            return f"{RULES[rule][0]} {float(measure.of(*values)[0]):.4g}"
        if rule in OF_RULE and row["stage"] == "exclude":
            value = row[OF_RULE[rule]]
            return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        return "" if row["stage"] == "list" else str(row["detail"])

    def sheets(self) -> dict[tuple[str, str], list[Tile]]:
        """Tiles by stage and reason: of every source in turn, until the pictures are as large as they may be."""
        found: dict[tuple[str, str], list[Tile]] = defaultdict(list)
        left, bare = BUDGET["gone"], dict.fromkeys(self.rows, NAMED)
        waiting = {
            kind: [r for r in rows if r["stage"] not in (*LOOK_ALIKE, "protect")] for kind, rows in self.rows.items()
        }
        for several in zip_longest(*waiting.values()):
            for kind, row in zip(waiting, several, strict=True):
                sheet = found[kind[0], kind[2]] if row else []
                if row is None or len(sheet) >= A_SHEET:
                    continue
                data = self.pictures.get((row["stage"], row["key"]))
                if data is None:
                    bare[kind] -= 1
                if (bare[kind] >= 0) if data is None else len(data) <= left:
                    left -= len(data or b"")
                    sheet.append(self.tile(row))
        return {kind: sorted(tiles, key=lambda t: not t.picture) for kind, tiles in found.items() if tiles}

    def protected(self, thumbnails: dict[str, str]) -> list[Tile]:
        """Records that resemble held-out ones, each with its thumbnail and that of the held-out one, turned like it."""
        tiles = []
        for rows in zip_longest(*(rows for (stage, *_), rows in self.rows.items() if stage == "protect")):
            for row in filter(None, rows):
                tile, scene = self.tile(row), row["dropped"] == "protected_scene"
                tile.said = "; ".join(filter(None, [tile.said, row["lost_to"]]))
                if row["distance_bits"] is not None:
                    place = TURNS.index(row["turned"]) if row["turned"] in TURNS else 0
                    mine = thumbnail(row["scene_thumbnail" if scene else "thumbnail"])
                    theirs = thumbnail(base64.b64decode(thumbnails.get(row["lost_to"], "")), place)
                    said = f"held out, {row['turned'] or 'not turned'}"
                    tile.more = [(mine, "its image, 8 x 8" if scene else "itself, 8 x 8"), (theirs, said)]
                tiles.append(tile)
        return tiles[:A_SHEET]


def drawn(pictures: Samples, rows: dict[Kind, list[Row]]) -> Iterator[tuple[tuple[str, str], bytes]]:
    """The pictures of these rows, by stage and key."""
    wanted = {(row["stage"], row["key"]) for some in rows.values() for row in some}
    for _, table in pictures.pieces(["stage", "key", "jpeg"]):
        for batch in table.to_batches(max_chunksize=1024):
            stages, keys = (batch.column(name).to_pylist() for name in ("stage", "key"))
            for n, one in enumerate(zip(stages, keys, strict=True)):
                if one in wanted:
                    yield one, batch.column("jpeg")[n].as_py()


class Kept:
    """Pictures of kept samples, from their tars."""

    def __init__(self, out: Any, samples: Samples) -> None:
        self.samples, self.trouble = samples, 0
        self.tars: Tars | None = None
        try:
            self.tars = opened(str(out))
        except (DatakitError, OSError):
            self.trouble = 1

    def picture(self, row: int) -> bytes | None:
        """A small JPEG; None where there is none."""
        try:
            if self.tars is None or (member := self.tars.image_of(row)) is None:
                return None
            data = self.tars.read(row, member)
            return self.developed(row, data) if member == "raw" else image.preview(data, SIDE_PX)
        except (DatakitError, OSError):
            self.trouble += 1
            return None

    def developed(self, row: int, data: bytes) -> bytes:
        """A mosaic as its camera would show it."""
        about = Camera.of(self.samples.read(np.array([row]), ["camera"]).column("camera")[0].as_py())
        planes = view_of("srgb")(codec.decode(data), about)
        pixels = (np.clip(planes, 0, 1) * 255 + 0.5).astype(np.uint8)
        small = Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))
        small.thumbnail((SIDE_PX, SIDE_PX))
        return image.Encode(quality=80)(small)

    def sheet(self, found: Survey, mark: str) -> list[Tile]:
        """Samples of lowest hash of every source in turn. mark: what a click decides."""
        kinds = {kind[0]: rows.tolist() for kind, rows in found.few.items()}
        tiles: list[Tile] = []
        left = BUDGET["kept"]
        for several in zip_longest(*kinds.values()):
            here = [(source, row) for source, row in zip(kinds, several, strict=True) if row is not None]
            keys = self.samples.read(np.array([row for _, row in here], np.int64), ["key", "name"]).to_pylist()
            for (source, row), about in zip(here, keys, strict=True):
                data = self.picture(row)
                left -= len(data or b"")
                if left < 0:
                    return tiles
                if data:
                    tiles.append(Tile(about["key"], source, "kept", "kept", about["name"], "", url(data), mark=mark))
        return tiles

    def find(self, keys: Sequence[str]) -> dict[str, tuple[int, bool]]:
        """The rows of keys in the set, and whether the key is that of an image of which this is a tile."""
        wanted = [*dict.fromkeys(keys)]
        rows = rows_of(self.samples, wanted).tolist()
        found = {key: (row, False) for key, row in zip(wanted, rows, strict=True) if row >= 0}
        images = {key for key in wanted if key not in found}
        sources = pa.array({key.partition("-")[0] for key in images}, pa.string())
        for begin, table in self.samples.pieces(["source", "name"]) if images else ():
            base = pc.list_element(pc.split_pattern(table.column("source"), "/", max_splits=1), 0)
            some = np.flatnonzero(np.asarray(pc.is_in(base, sources)))
            codes, names = told_apart(table.take(pa.array(some)), ("source", "name"))
            first = zip(*np.unique(codes, return_index=True), strict=True)
            known = {names[int(n)]: begin + int(some[at]) for n, at in first}
            for (source, name), row in known.items():
                if (key := make_key(source, name)) in images:
                    found.setdefault(key, (row, True))
        return found


@dataclass
class Group:
    """Records that went because of one that was kept, and how many there are."""

    kept: list[Tile]
    members: list[Tile]
    count: int


def groups(removed: Removed, table: Samples, kept: Kept, largest: Sequence[str]) -> list[Group]:
    """Duplicates with what they went for. largest: keys of the kept ones of the largest groups, which come first."""
    by_head: dict[str, list[Row]] = {key: [] for key in largest}
    for several in zip_longest(*(rows for (stage, *_), rows in removed.rows.items() if stage in LOOK_ALIKE)):
        for row in several:
            if row and row["lost_to"]:
                by_head.setdefault(row["lost_to"], []).append(row)
    heads = [*by_head][:GROUPS]
    counts, members = members_of(table, heads)
    places = kept.find([key for head in heads for key in head.split(" ")[:3]])
    out, left = [], BUDGET["groups"]
    for head in heads:
        pictured = {row["key"]: row for row in by_head[head] if (row["stage"], row["key"]) in removed.pictures}
        others = [row for row in members[head] if row["key"] not in pictured]
        tiles = [member(removed, row) for row in [*pictured.values(), *others][:MEMBERS]]
        first = [head_tile(key, places.get(key), kept) for key in head.split(" ")[:3]]
        left -= sum(len(tile.picture) for tile in (*first, *tiles)) * 3 // 4
        if left < 0:
            break
        if tiles:
            out.append(Group(first, tiles, counts[head]))
    return out


def member(removed: Removed, row: Row) -> Tile:
    """A record that went because of another; by its thumbnail, if the build left no picture of it."""
    tile = removed.tile(row)
    if not tile.picture:
        tile.picture, tile.coarse = thumbnail(row["thumbnail"]), True
    return tile


def head_tile(key: str, place: tuple[int, bool] | None, kept: Kept) -> Tile:
    """The kept one of a group."""
    source = key.partition("-")[0]
    if place is None:
        return Tile(key, source, "kept", "kept", key, "left out by a later stage")
    data = kept.picture(place[0])
    said = "kept: a tile of this image" if place[1] else "kept"
    return Tile(key, source, "kept", "kept", key, said, url(data) if data else "", mark="" if place[1] else "drop")


def members_of(table: Samples, heads: Sequence[str]) -> tuple[dict[str, int], dict[str, list[Row]]]:
    """How many records went for each of these, and some of them: those of whole groups, if they are small."""
    counts = dict.fromkeys(heads, 0)
    rows: dict[str, list[int]] = {head: [] for head in heads}
    known = pa.array(heads, pa.string())
    for begin, piece in table.pieces(["stage", "lost_to"]):
        here = pc.and_(pc.is_in(piece.column("stage"), pa.array(LOOK_ALIKE)), pc.is_in(piece.column("lost_to"), known))
        some: NDArray[np.int64] = np.flatnonzero(np.asarray(here))
        for row, head in zip(some.tolist(), piece.column("lost_to").take(pa.array(some)).to_pylist(), strict=True):
            counts[head] += 1
            if len(rows[head]) < MEMBERS:
                rows[head].append(begin + row)
    flat = np.array([row for some in rows.values() for row in some], np.int64)
    there = [name for name in SHOWN if name in table.schema.names]
    found: dict[str, list[Row]] = {head: [] for head in heads}
    for row in table.read(flat, there).to_pylist():
        found[row["lost_to"]].append(row)
    return counts, found
