"""What a build left, counted piece by piece: distributions of measured values, places, licences, a few of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .crowd import corners_of
from .lonlat import rings
from .sample import mix64
from .samples import Samples

Floats = NDArray[np.float64]
Kind = tuple[str, ...]
BINS = 64
GRID = (360, 180)  # cells of the map: across, down
OUTLINES = 3000  # footprints up to which each is drawn
IDENTITY = ("id", "source", "stage", "dropped")


class Measure(NamedTuple):
    """A value that is measured or told of records, and how its distribution is drawn."""

    title: str
    low: float
    high: float
    log: bool
    columns: tuple[str, ...]
    of: Callable[..., Floats]

    def edges(self) -> Floats:
        """(BINS + 1,) ascending; what lies beyond is in the first or the last bin."""
        space = np.geomspace if self.log else np.linspace
        return np.asarray(space(self.low, self.high, BINS + 1), np.float64)


def _itself(column: Floats) -> Floats:
    return column


def _sides(tile: Floats, other: Floats, width: Floats, height: Floats) -> tuple[Floats, Floats]:
    """The longer and the shorter side of the image of each record, or of the record; NaN where it has no size."""
    wide, high = np.where(width > 0, width, tile), np.where(height > 0, height, other)
    long, short = np.maximum(wide, high), np.minimum(wide, high)
    return np.where(short > 0, long, np.nan), np.where(short > 0, short, np.nan)


def _side(*sizes: Floats) -> Floats:
    return _sides(*sizes)[1]


def _ratio(*sizes: Floats) -> Floats:
    long, short = _sides(*sizes)
    return long / short


def _megapixels(*sizes: Floats) -> Floats:
    long, short = _sides(*sizes)
    return long * short / 1e6


SIZE = ("width", "height", "image_width", "image_height")
MEASURES = {
    "valid_share": Measure("valid share", 0, 1, False, ("valid_share",), _itself),
    "entropy_bits": Measure("entropy of luma, bits", 0, 8, False, ("entropy_bits",), _itself),
    "sharpness": Measure("sharpness: variance of the Laplacian", 0.01, 1e5, True, ("sharpness",), _itself),
    "luma_mean": Measure("mean luma, 0 to 255", 0, 255, False, ("luma_mean",), _itself),
    "luma_std": Measure("deviation of luma", 0, 128, False, ("luma_std",), _itself),
    "saturation": Measure("saturation, 0 to 1", 0, 1, False, ("saturation",), _itself),
    "side_px": Measure("shorter side of the image, px", 8, 1e5, True, SIZE, _side),
    "ratio": Measure("longer side over shorter", 1, 100, True, SIZE, _ratio),
    "megapixels": Measure("megapixels of the image", 1e-3, 1e4, True, SIZE, _megapixels),
    "gsd_m": Measure("metres a pixel", 0.01, 1e3, True, ("gsd_m",), _itself),
    "pair_shift_px": Measure("shift of RAW and JPEG, px", 0, 16, False, ("pair_shift_px",), _itself),
    "distance_bits": Measure("bits between duplicates, of 64", -0.5, 63.5, False, ("distance_bits",), _itself),
}
ALWAYS = ("valid_share", "entropy_bits", "sharpness", "luma_mean", "luma_std", "saturation", "gsd_m", "distance_bits")


@dataclass
class Survey:
    """What is counted of a table in one pass."""

    counts: Counter[Kind] = field(default_factory=Counter)  # by stage, source and reason; by source of kept ones
    histograms: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # by measure, (BINS,)
    licences: Counter[str] = field(default_factory=Counter)
    placed: Counter[str] = field(default_factory=Counter)  # records with a place, by source
    box: tuple[float, float, float, float] | None = None  # of the middles of footprints: west, south, east, north
    few: dict[Kind, NDArray[np.int64]] = field(default_factory=dict)  # rows of lowest hash, of each kind


def survey(table: Samples, kind: Sequence[str], most: int) -> Survey:
    """Count a table. kind: columns that tell kinds apart, of each of which the `most` rows of lowest hash are told."""
    there = {*table.schema.names}
    measures = {name: one for name, one in MEASURES.items() if {*one.columns} <= there}
    columns = {*kind, "id", *(c for one in measures.values() for c in one.columns)}
    columns |= {"licences", "footprint", "source"} & there
    found, lowest = Survey(), Lowest(most)
    for begin, piece in table.pieces(sorted(columns)):
        codes, kinds = told_apart(piece, kind)
        found.counts.update({kinds[n]: int(count) for n, count in enumerate(np.bincount(codes, minlength=len(kinds)))})
        lowest.add(codes, kinds, mix64(piece.column("id").to_numpy(), 0), begin)
        for name, one in measures.items():
            values = one.of(*(numbers(piece.column(column)) for column in one.columns))
            found.histograms[name] = found.histograms.get(name, 0) + binned(values, one)
        if "licences" in there:
            joined = pc.binary_join(piece.column("licences"), " + ").value_counts().to_pylist()
            found.licences.update({one["values"] or "unstated": one["counts"] for one in joined})
        if "footprint" in there:
            _add_places(found, piece)
    found.few = lowest.rows()
    found.counts = +found.counts
    return found


def numbers(column: pa.ChunkedArray) -> Floats:
    """A column as float64; what is null is NaN."""
    return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)


def binned(values: Floats, measure: Measure) -> NDArray[np.int64]:
    """How many values lie in each bin; NaN in none."""
    values = np.clip(values[~np.isnan(values)], measure.low, measure.high)
    counts: NDArray[np.int64] = np.histogram(values, measure.edges())[0]
    return counts


def told_apart(piece: pa.Table, columns: Sequence[str]) -> tuple[NDArray[np.int64], list[Kind]]:
    """The number of each record's kind, (N,), and the kinds."""
    texts = pc.binary_join_element_wise(*(piece.column(name).cast(pa.string()) for name in columns), "\0")
    coded = texts.combine_chunks().dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64), [tuple(text.split("\0")) for text in coded.dictionary.to_pylist()]


class Lowest:
    """Of each kind the rows of lowest hash, as many as `most`: the same whatever the pieces."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: dict[Kind, NDArray[np.uint64]] = {}  # (2, M) hashes and rows

    def add(self, codes: NDArray[np.int64], kinds: list[Kind], hashes: NDArray[np.uint64], begin: int) -> None:
        """codes, hashes: (N,), of rows from `begin` on."""
        by = np.lexsort([hashes, codes])
        first = np.flatnonzero(np.diff(codes[by], prepend=-1))
        for rows in np.split(by, first[1:]) if len(by) else []:
            kind, rows = kinds[codes[rows[0]]], rows[: self.most]
            new = np.stack([hashes[rows], (rows + begin).astype(np.uint64)])
            both = np.concatenate([self.kept.get(kind, new[:, :0]), new], axis=1)
            self.kept[kind] = both[:, np.argsort(both[0], kind="stable")[: self.most]]

    def rows(self) -> dict[Kind, NDArray[np.int64]]:
        return {kind: both[1].astype(np.int64) for kind, both in sorted(self.kept.items())}


def middles(piece: pa.Table) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Records that have a footprint (M,), its ring (M, 7, 2) and its middle (M, 2): lon -180..180, lat."""
    column = piece.column("footprint").combine_chunks()
    rows = np.flatnonzero(np.asarray(column.value_lengths().fill_null(0)) == 8)
    outline = rings(corners_of(column.take(pa.array(rows))))
    middle = outline[:, :4].mean(axis=1) if len(rows) else np.zeros((0, 2))
    middle[:, 0] = (middle[:, 0] + 180) % 360 - 180
    return rows, outline, middle


def _add_places(found: Survey, piece: pa.Table) -> None:
    rows, _, middle = middles(piece)
    if len(rows):
        sources = piece.column("source").take(pa.array(rows)).value_counts().to_pylist()
        found.placed.update({one["values"]: one["counts"] for one in sources})
        low, high = middle.min(axis=0), middle.max(axis=0)
        if found.box:
            low, high = np.minimum(low, found.box[:2]), np.maximum(high, found.box[2:])
        found.box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))


@dataclass
class Places:
    """Where footprints lie: counts on a grid over `box`, or, if there are few, their outlines."""

    box: tuple[float, float, float, float]  # west, south, east, north
    cells: NDArray[np.int64]  # (GRID down, GRID across), north first
    outlines: Floats  # (M, 7, 2)


def places(table: Samples, found: Survey) -> Places | None:
    """The places of a table that was counted; None where there are none."""
    if found.box is None:
        return None
    west, south, east, north = found.box
    pad = max(0.05 * max(east - west, north - south), 0.002)
    box = (max(west - pad, -180.0), max(south - pad, -90.0), min(east + pad, 180.0), min(north + pad, 90.0))
    cells, outlines = np.zeros(GRID[::-1], np.int64), [np.zeros((0, 7, 2))]
    few = sum(found.placed.values()) <= OUTLINES
    for _, piece in table.pieces(["footprint"]):
        _, outline, middle = middles(piece)
        at = (middle - box[:2]) / (box[2] - box[0], box[3] - box[1])
        across, up = (np.clip((at[:, n] * GRID[n]).astype(np.int64), 0, GRID[n] - 1) for n in (0, 1))
        np.add.at(cells, (GRID[1] - 1 - up, across), 1)
        outlines += [outline] if few else []
    return Places(box, cells, np.concatenate(outlines))


def thresholds(recipe: dict[str, Any]) -> dict[str, list[tuple[str, float, bool]]]:
    """By measure: the reason that a rule drops for, its threshold, and whether it drops what is below that."""
    found: dict[str, list[tuple[str, float, bool]]] = {}
    rules = list(recipe.get("exclude", {}).get("rules", ()))
    random = (recipe.get("slice") or {}).get("random") or {}
    if random.get("min_valid_share"):
        rules.append({"rule": "valid_share", "min_share": random["min_valid_share"], "name": "min_valid_share"})
    if recipe.get("max_pair_shift_px") is not None:
        rules.append({"rule": "pair_shift", "max_px": recipe["max_pair_shift_px"]})
    for rule in rules:
        if rule["rule"] in RULES:
            measure, name, below = RULES[rule["rule"]]
            found.setdefault(measure, []).append((rule.get("name") or rule["rule"], float(rule[name]), below))
    if (recipe.get("subset") or {}).get("cap", {}).get("flat") is not None:
        flat = float(recipe["subset"]["flat_entropy_bits"])
        found.setdefault("entropy_bits", []).append(("subset_flat", flat, True))
    if recipe.get("dedup"):
        found["distance_bits"] = [("duplicate", recipe["dedup"]["radius_bits"] + 0.5, True)]
    return found


RULES = {  # measure, field of the rule that is the threshold, and whether it drops what is below
    "valid_share": ("valid_share", "min_share", True),
    "flat": ("entropy_bits", "entropy_bits", True),
    "blurred": ("sharpness", "sharpness", True),
    "dark": ("luma_mean", "luma_mean", True),
    "bright": ("luma_mean", "luma_mean", False),
    "gray": ("saturation", "saturation", True),
    "pair_shift": ("pair_shift_px", "max_px", False),
    "smaller_than": ("side_px", "side_px", True),
    "longer_than": ("ratio", "ratio", False),
    "larger_than": ("megapixels", "megapixels", False),
    "gsd_above": ("gsd_m", "gsd_m", False),
    "gsd_below": ("gsd_m", "gsd_m", True),
}
