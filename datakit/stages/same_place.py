"""Drop tiles whose ground other tiles show with the same pixels: grids of two collections seldom align, pixels may.

Pixels are read in the source, before encoding, and only for pairs of tiles that were not compared before.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from .. import files, ground, image
from ..alone import blamed_of
from ..disk import aside, commit
from ..errors import SourceError
from ..ground import Ints, Overlaps
from ..hand import InHand, holding, mark_of
from ..image import Narrow
from ..measure import Mask
from ..pixels import Piece, Reader, levels_of
from ..remote import Root
from ..sample import Sample, Spec, Window, digest

FILE = ("source", "path", "file_bytes", "stamp", "offset")
LOOK = ("bands", "dtype", "format", "nodata", "orientation", "alpha")  # what pixels of a file depend on besides
SIZES = ("image_width", "image_height", "width", "height", "window")
READ = ("name", *FILE, "packed_bytes", "packing", "crc", *LOOK, *SIZES)
NEEDS = tuple(dict.fromkeys((*READ, *ground.NEEDS)))  # columns of the table that `covered` takes
FOLDER = "same_place"  # of verdicts, below the work folder
TASK_PX = 1 << 26  # of overlaps in one task, about
KEPT_PX = 1 << 24  # of tiles of one image that wait for their next neighbour
SAVED_AT_ONCE = 2048  # verdicts in a file


class SamePlace(Spec):
    """Tiles whose ground tiles of other images show with the same pixels. Only images with a transform take part.

    Tiles of reduced images (`slice.gsd_m`) are compared as what they were made of, in px of the source; those made of
    over 64 million px are not.
    """

    VERSION: ClassVar[int] = 3

    tolerance_levels: int = Field(
        0, ge=0, le=255, description="levels that pixels may differ by and still agree; in all bands that tiles keep"
    )
    # 1: then nothing is lost with a tile. One car in a tile of 512 px is less than 1 in 1000 of its pixels
    agree_share: float = Field(1.0, gt=0, le=1, description="share of the pixels valid in both tiles that must agree")
    covered_share: float = Field(1.0, gt=0, le=1, description="share of a tile's valid pixels that others must cover")

    def reading(self, narrow: Narrow | None, levels: bool) -> str:
        """Digest of what verdicts depend on besides the files: shares are applied to them, and are not in it."""
        shown = "levels" if levels else narrow.model_dump_json() if narrow else ""
        return digest(str(self.VERSION), str(self.tolerance_levels), shown, json.dumps(image.versions()))


class Verdict(NamedTuple):
    """What pixels say of two tiles that share ground, whichever of them is preferred."""

    both_px: int  # valid in both
    agree_px: int  # of these
    first_px: int  # valid in all of the first tile
    second_px: int
    both: bytes  # where those are in the shared part: bits, packed and deflated; empty where all of it is


@dataclass(frozen=True)
class Pair:
    """Two tiles to compare."""

    number: int
    windows: tuple[Window, Window]  # of their images
    begins: tuple[tuple[int, int], tuple[int, int]]  # where the shared part begins in each, column and row
    size: tuple[int, int]


@dataclass(frozen=True)
class How:
    """How tiles are read and compared."""

    roots: dict[str, Root]
    work: Path
    tolerance_levels: int
    narrow: Narrow | None
    levels: bool


@dataclass(frozen=True)
class Task:
    """Pairs of tiles of one image with tiles of others, one after the other."""

    first: Sample
    seconds: tuple[tuple[Sample, tuple[Pair, ...]], ...]
    how: How
    some: frozenset[str] = frozenset()  # marks of the images to open; none: all

    @property
    def work(self) -> Path:
        return self.how.work

    @property
    def path(self) -> Path:
        """What it is known by: nothing is left there."""
        others = [f"{mark_of(sample)} {pairs[0]}" for sample, pairs in self.seconds]
        return self.work / FOLDER / f"{digest(mark_of(self.first), *others, *sorted(self.some))}.parquet"

    def images(self) -> list[InHand]:
        """None: it has no pieces."""
        return []

    def only(self, some: Sequence[InHand], _: Path) -> Task:
        return replace(self, some=frozenset(image.mark for image in some))


@dataclass
class Compared:
    """What a task found; pairs of images that could not be read are missing."""

    verdicts: list[tuple[int, Verdict]] = field(default_factory=list)
    opened: int = 0


def covered(
    spec: SamePlace,
    tiles: pa.Table,
    roots: dict[str, Root],
    work: Path,
    map: Callable[[Callable[[Task], Compared], Iterable[Task]], Iterator[Compared]],
    counts: Counter[str],
    narrow: Narrow | None = None,
    levels: bool = False,
) -> dict[int, tuple[int, ...]]:
    """The tiles that go, by row, each with the rows that cover it; these all stay, and are in order of preference.

    tiles: columns NEEDS of the tiles kept so far, best first. map: that of an `Engine`. narrow: that of `cut`.
    levels: the levels of all bands are compared, as tiles keep them, and not the pictures that they make.
    A tile goes where others that were taken before it show its valid pixels. Which pixels are valid is told by nodata,
    alpha and masks; pixels of a collar (see `cut`) count as valid here, since only a whole image shows where it ends:
    a collar over another image's ground disagrees with it, and both tiles stay.
    """
    found, not_aligned = ground.overlaps(tiles)
    counts["not_aligned"] += not_aligned
    rows = np.unique(np.concatenate([found.first, found.second]))
    samples = dict(zip(rows.tolist(), samples_of(tiles.select(READ).take(pa.array(rows))), strict=True))
    known = Known(work, spec.reading(narrow, levels))
    keys = list(pair_keys(found, samples))
    verdicts = known.load(keys)
    counts["pairs_known"] += len(verdicts)
    new = np.array([n for n in range(len(found)) if n not in verdicts], np.int64)
    how = How(roots, work, spec.tolerance_levels, narrow, levels)
    for done in map(compare, tasks(found, new, samples, how)):
        counts["images_opened_same_place"] += done.opened
        counts["pairs_compared"] += len(done.verdicts)
        for number, verdict in done.verdicts:
            verdicts[number] = verdict
            known.add(keys[number], verdict)
    known.save()
    counts["pairs_not_compared"] += len(found) - len(verdicts)
    windows = {row: window_of(sample) for row, sample in samples.items()}
    return choose(spec, found, verdicts, {row: (w.height, w.width) for row, w in windows.items()})


def samples_of(table: pa.Table) -> Iterator[Sample]:
    """Samples of which only the columns READ are known."""
    for row in table.to_pylist():
        window = Window(*row["window"]) if row["window"] else None
        yield Sample(**{**row, "bands": tuple(row["bands"]), "window": window})


def window_of(sample: Sample) -> Window:
    """Where a tile lies in its image, in px of the source."""
    return sample.window or Window(0, 0, sample.image_width, sample.image_height)


def pair_keys(found: Overlaps, samples: dict[int, Sample]) -> Iterator[bytes]:
    """A key for each pair: the same files, windows and shift have the same one in any build."""
    marks = {n: json.dumps([*(getattr(s, f) for f in (*FILE, *LOOK)), window_of(s)]) for n, s in samples.items()}
    for first, second, (x, y) in zip(found.first.tolist(), found.second.tolist(), found.shift.tolist(), strict=True):
        yield hashlib.blake2b(f"{marks[first]}\n{marks[second]}\n{x} {y}".encode(), digest_size=16).digest()


def tasks(found: Overlaps, numbers: Ints, samples: dict[int, Sample], how: How) -> Iterator[Task]:
    """The pairs of those numbers in tasks: of one first image each, so that a task opens each of its images once."""
    names = {n: (s.source, s.name) for n, s in samples.items()}
    spent = np.cumsum(found.size[numbers].prod(axis=1)) // TASK_PX
    pairs = zip(numbers.tolist(), found.first[numbers].tolist(), found.second[numbers].tolist(), spent, strict=True)
    for _, some in groupby(pairs, key=lambda p: (names[p[1]], p[3])):
        mine = list(some)
        seconds = [
            (samples[those[0][2]], tuple(pair_of(found, n, samples) for n, *_ in those))
            for those in (list(group) for _, group in groupby(mine, key=lambda p: names[p[2]]))
        ]
        yield Task(samples[mine[0][1]], tuple(seconds), how)


def pair_of(found: Overlaps, n: int, samples: dict[int, Sample]) -> Pair:
    """One pair, for a task."""
    one, other = (window_of(samples[int(rows[n])]) for rows in (found.first, found.second))
    (x1, y1), (x2, y2), (width, height) = (a[n].tolist() for a in (found.at_first, found.at_second, found.size))
    return Pair(n, (one, other), ((x1, y1), (x2, y2)), (width, height))


def compare(task: Task) -> Compared:
    """Reads and compares the tiles of a task."""
    done, blamed = Compared(), blamed_of(task.path, task.work)
    with image.quiet(), aside(task.work) as scratch, TileReader(task.first, task, scratch, blamed) as ours:
        for sample, pairs in task.seconds:
            with TileReader(sample, task, scratch, blamed) as theirs:
                for pair in pairs:
                    one, other = ours.tile(pair.windows[0]), theirs.tile(pair.windows[1])
                    if one is not None and other is not None:
                        done.verdicts.append((pair.number, judge((one, other), (task.first, sample), pair, task.how)))
                done.opened += theirs.opened
        done.opened += ours.opened
    return done


def judge(tiles: tuple[Piece, Piece], of: tuple[Sample, Sample], pair: Pair, how: How) -> Verdict:
    """Compares what two tiles share. of: records of the images that they are from."""
    a, b = (tile.window(*begin, *pair.size) for tile, begin in zip(tiles, pair.begins, strict=True))
    width, height = pair.size
    both = np.ones((height, width), bool)
    for valid in (a.valid, b.valid):
        if valid is not None:
            both &= valid
    x, y = (levels_of(s, p) if how.levels else p.pixels for s, p in zip(of, (a, b), strict=True))
    agree = np.zeros_like(both)
    if not how.levels or (of[0].bands == of[1].bands and x.dtype == y.dtype):
        apart = np.maximum(x, y) - np.minimum(x, y)  # of unsigned numbers, without a borrow
        agree = (apart <= how.tolerance_levels).all(axis=2) & both
    both_px = int(np.count_nonzero(both))
    bits = b"" if both_px == both.size else zlib.compress(np.packbits(both).tobytes(), 1)
    return Verdict(both_px, int(np.count_nonzero(agree)), valid_px(tiles[0]), valid_px(tiles[1]), bits)


def valid_px(tile: Piece) -> int:
    return tile.width * tile.height if tile.valid is None else int(np.count_nonzero(tile.valid))


class TileReader:
    """The tiles of one image, opened when the first is asked for; the last few are kept."""

    def __init__(self, sample: Sample, task: Task, scratch: Path, blamed: Container[str]) -> None:
        how, mark = task.how, mark_of(sample)
        self.sample, self.root = sample, how.roots[sample.source.partition("/")[0]]
        self.reader = Reader(self.root, scratch, how.narrow, collars=False, levels=how.levels)
        self.opened = 0
        self.weight = max(len(sample.bands) * 2 // 3, 1) if how.levels else 1  # of a px, beside three bytes
        self._lasting = ExitStack()
        self._read: Callable[[Window], Piece] | None = None
        self._broken = mark in blamed or bool(task.some and mark not in task.some)
        self._kept: dict[Window, Piece | None] = {}
        self._kept_px = 0

    def __enter__(self) -> TileReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._lasting.close()

    def tile(self, window: Window) -> Piece | None:
        """A tile as shown; None where it cannot be read."""
        if window not in self._kept:
            with holding(self.sample):
                self._kept[window] = None if self._broken else self._tile(window)
            self._kept_px += window.width * window.height * self.weight
            while self._kept_px > KEPT_PX and len(self._kept) > 1:
                oldest = next(iter(self._kept))
                self._kept_px -= oldest.width * oldest.height * self.weight
                del self._kept[oldest]
        return self._kept[window]

    def _tile(self, window: Window) -> Piece | None:
        try:
            if self._read is None:
                self._read = self._lasting.enter_context(self.reader.windows(self.sample))
                self.opened += 1
            return self._read(window)
        except Exception as exc:  # a reader may raise anything on a broken file
            self._broken = self._read is None
            try:
                files.check_machine(exc, self.root, self.sample)
            except (FileNotFoundError, SourceError):  # it is gone: its tiles cover nothing, as if it were damaged
                if not self.root.exists():  # a disk is gone
                    raise
            return None


def choose(
    spec: SamePlace, found: Overlaps, verdicts: dict[int, Verdict], shapes: dict[int, tuple[int, int]]
) -> dict[int, tuple[int, ...]]:
    """The tiles that go and what covers them, row by row; shapes: (H, W) of each tile in px of the source."""
    agree = [n for n, v in verdicts.items() if v.both_px and v.agree_px >= spec.agree_share * v.both_px]
    numbers = np.array(sorted(agree), np.int64)
    first, second = found.first[numbers], found.second[numbers]
    later, earlier = np.maximum(first, second), np.minimum(first, second)
    by = np.lexsort((earlier, later))
    goes: dict[int, tuple[int, ...]] = {}
    pairs = zip(later[by].tolist(), earlier[by].tolist(), numbers[by].tolist(), strict=True)
    for row, those in groupby(pairs, key=lambda p: p[0]):
        seen: Mask = np.zeros(shapes[row], bool)
        seen_px, by_whom = 0, []
        for _, other, n in those:
            verdict, is_first = verdicts[n], bool(found.first[n] == row)
            if other in goes:
                continue
            (x, y), (width, height) = (found.at_first if is_first else found.at_second)[n], found.size[n]
            seen[y : y + height, x : x + width] |= unpacked(verdict.both, width, height)
            before, seen_px = seen_px, int(np.count_nonzero(seen))
            if seen_px > before:
                by_whom.append(other)
            if seen_px >= spec.covered_share * (verdict.first_px if is_first else verdict.second_px):
                goes[row] = tuple(by_whom)
                break
    return goes


def unpacked(bits: bytes, width: int, height: int) -> Mask:
    """The mask that a verdict holds, (height, width)."""
    if not bits:
        return np.ones((height, width), bool)
    flat = np.unpackbits(np.frombuffer(zlib.decompress(bits), np.uint8), count=width * height)
    return flat.reshape(height, width).astype(bool)


def verdict_files(spec: SamePlace, narrow: Narrow | None, work: Path, levels: bool = False) -> list[Path]:
    """Where verdicts lie that `covered` takes from the work folder or has left there."""
    return sorted((work / FOLDER).glob(f"{spec.reading(narrow, levels)}-*.parquet"))


SCHEMA = pa.schema([("pair", pa.binary(16)), *((n, pa.int64()) for n in Verdict._fields[:-1]), ("both", pa.binary())])


class Known:
    """Verdicts in the work folder, by key: Parquet files that are whole once they have their name."""

    def __init__(self, work: Path, reading: str) -> None:
        self.work, self.reading = work, reading
        self.waiting: list[dict[str, Any]] = []

    def load(self, keys: list[bytes]) -> dict[int, Verdict]:
        """What is known of pairs, by their number in `keys`."""
        numbers = {key: n for n, key in enumerate(keys)}
        out: dict[int, Verdict] = {}
        for path in sorted((self.work / FOLDER).glob(f"{self.reading}-*.parquet")) if keys else ():
            table = pq.read_table(path, schema=SCHEMA)
            asked = [(n, numbers[key]) for n, key in enumerate(table["pair"].to_pylist()) if key in numbers]
            rows = table.take(pa.array([n for n, _ in asked], pa.int64())).to_pylist()
            for (_, number), row in zip(asked, rows, strict=True):
                out[number] = Verdict(*(row[name] for name in Verdict._fields))
        return out

    def add(self, key: bytes, verdict: Verdict) -> None:
        """Keep a verdict; it is on the disk after the next `save`."""
        self.waiting.append({"pair": key, **verdict._asdict()})
        if len(self.waiting) >= SAVED_AT_ONCE:
            self.save()

    def save(self) -> None:
        if not self.waiting:
            return
        folder = self.work / FOLDER
        folder.mkdir(exist_ok=True)
        rows = sorted(self.waiting, key=lambda row: row["pair"])
        name = f"{self.reading}-{digest(*(row['pair'].hex() for row in rows))}.parquet"
        with aside(self.work) as scratch:
            commit(pa.Table.from_pylist(rows, schema=SCHEMA), folder / name, scratch)
        self.waiting.clear()
