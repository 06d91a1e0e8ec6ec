"""Tiles of a build looked up among the parts of held-out images: a file of what was found for each part of the build.

All that is found is kept, by its numbers; what counts as shared is decided from them (`guard`), so that another
threshold looks at no pixel. A part that has its file is not looked at again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import contain, points, staging
from .aligned import Match
from .contain import Index
from .disk import aside, commit
from .errors import StageError
from .points import Gray
from .run import kept_rows
from .sample import Sample, Window, digest, from_table
from .scales import in_reduced
from .stages.protect import Protect, held_digest

FOLDER = "contain"  # below the work folder
HELD_TILES = 256  # decoded: two rows of a scene of 60,000 px
MOST_PX = 1 << 25  # of pictures looked up at once, about
LEAST_COVERED = 0.75  # of a seam, by tiles that are kept
LEAST_SHOWN = 0.05  # of what is found in a seam: the tile that has less does not show it
STAGED = [
    "key",
    "source",
    "name",
    "window",
    "width",
    "height",
    "scale",
    "staged",
    "staged_offset",
    "staged_bytes",
    "mask_bytes",
    "dropped",
]
ABOUT = b"datakit.contain"
FOUND = pa.schema([
    ("row", pa.int64()), ("list", pa.int32()), ("name", pa.string()),
    ("share", pa.float64()), ("held_share", pa.float64()), ("scale", pa.float64()), ("degrees", pa.float64()),
    ("mirrored", pa.bool_()), ("points", pa.int64()), ("correlation", pa.float64()),
])  # fmt: skip
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True)
class Shared:
    """What tiles share with held-out images: FOUND, whose rows are of the parts, and `part`; list: of the recipe's."""

    found: pa.Table
    counts: dict[str, int]  # tiles that were looked up, and those of too few points


@dataclass(frozen=True)
class Job:
    """A part of the build to look up."""

    part: Path
    path: Path  # of what is found
    work: Path
    index: Path


def files_of(spec: Protect, parts: Sequence[Path], work: Path) -> list[Path]:
    """Where what is found of each part lies, made or not; none where the recipe or its lists do not ask for it."""
    held = [path for path in spec.parts() if path]
    if not held:
        return []
    made_with = [str(contain.VERSION), str(points.VERSION), f"opencv {cv2.__version__}", *map(held_digest, held)]
    folder = work / FOLDER / digest(*made_with)
    return [folder / f"{part.stem}.parquet" for part in parts]


def needed(spec: Protect, parts: Sequence[Path], work: Path) -> dict[str, int]:
    """How far staging files must reach for the parts that were not looked up yet."""
    ends: dict[str, int] = {}
    for part, path in zip(parts, files_of(spec, parts, work), strict=False):
        if not path.exists():
            kept = kept_rows(pq.read_table(part, columns=STAGED))
            reach = kept.append_column("end", pc.add(kept.column("staged_offset"), kept.column("staged_bytes")))
            for row in reach.group_by("staged").aggregate([("end", "max")]).to_pylist():
                ends[row["staged"]] = max(ends.get(row["staged"], 0), row["end_max"])
    return ends


def look(spec: Protect, parts: Sequence[Path], work: Path, map: Map, say: Callable[[str], None]) -> Shared:
    """What the tiles of parts share with held-out images, as far as lists tell how parts of these look."""
    held, paths = spec.parts(), files_of(spec, parts, work)
    waiting = [(part, path) for part, path in zip(parts, paths, strict=False) if not path.exists()]
    if waiting:
        with aside(work) as folder:
            index = Index.build(folder / "index", [path for path in held if path])
            say(f"protect: looking for parts of {len(index.images):,} held-out images in {len(waiting):,} parts")
            waiting[0][1].parent.mkdir(parents=True, exist_ok=True)
            for _ in map(look_up, [Job(part, path, work, index.folder) for part, path in waiting]):
                pass
    tables, counts, numbers = [], Counter[str](), [n for n, path in enumerate(held) if path]
    for n, path in enumerate(paths):
        table = pq.read_table(path)
        counts += Counter(json.loads(table.schema.metadata[ABOUT]))
        of = np.array(numbers, np.int32)[table.column("list").to_numpy()]
        table = table.set_column(FOUND.get_field_index("list"), FOUND.field("list"), pa.array(of))
        tables.append(table.append_column("part", pa.array(np.full(len(of), n, np.int32))).replace_schema_metadata())
    empty = FOUND.empty_table().append_column("part", pa.array([], pa.int32()))
    return Shared(pa.concat_tables([empty, *tables]), {"tiles": counts["tiles"], "few_points": counts["few_points"]})


def look_up(job: Job) -> None:
    """Look up the tiles of a part, and leave what is found; `list` there is the number of the file of the index."""
    index, rows, counts = contain.opened(job.index), list[dict[str, Any]](), Counter[str]()
    table = pq.read_table(job.part, columns=STAGED)
    there = np.flatnonzero(pc.equal(table.column("dropped"), ""))
    tiles = zip(there.tolist(), from_table(table.take(pa.array(there))), strict=True)
    by_image = sorted(tiles, key=lambda t: (t[1].source, t[1].name, in_reduced(t[1])[1::-1]))
    with staging.StagedFiles(job.work) as staged:
        images = (list(some) for _, some in groupby(by_image, key=lambda t: (t[1].source, t[1].name)))
        pictures = (picture for some in images for picture in pictures_of(some, staged))
        for batch in batches(pictures):
            described = [(picture.gray, points.points_of(picture.gray)) for picture in batch]
            for picture, (_, mine) in zip(batch, described, strict=True):
                counts["tiles"] += not picture.seam
                counts["few_points"] += not picture.seam and len(mine) < contain.FEW_POINTS
            for found in index.search(described):
                image = index.images[found.image]
                rows += [
                    {**found.match._asdict(), "row": row, "share": share, "list": image["list"], "name": image["name"]}
                    for row, share in batch[found.query].shares(found.match)
                ]
    told = pa.Table.from_pylist(sorted(rows, key=lambda r: (r["row"], r["list"], r["name"])), schema=FOUND)
    with aside(job.work) as folder:
        commit(told.replace_schema_metadata({ABOUT: json.dumps(counts)}), job.path, folder)


def batches(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    """Pictures that are looked up at once."""
    batch: list[Picture] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == contain.BATCH or sum(one.gray.size for one in batch) > MOST_PX:
            yield batch
            batch = []
    if batch:
        yield batch


class Picture(NamedTuple):
    """A tile; or a seam, a window around the corner of a tile that tiles beside it go on from."""

    gray: Gray
    tiles: list[tuple[int, Window]]  # row, and where it lies in the picture
    seam: bool

    def shares(self, match: Match) -> Iterator[tuple[int, float]]:
        """The rows that show what was found, each with the share that it has of the tile."""
        if not self.seam:
            yield self.tiles[0][0], match.share
            return
        left, top, right, bottom = match.box
        for row, tile in self.tiles:
            across = min(right, tile.left + tile.width) - max(left, tile.left)
            down = min(bottom, tile.top + tile.height) - max(top, tile.top)
            if min(across, down) > 0 and across * down >= LEAST_SHOWN * (right - left) * (bottom - top):
                yield row, across * down / (tile.width * tile.height)


def pictures_of(tiles: list[tuple[int, Sample]], staged: staging.StagedFiles) -> Iterator[Picture]:
    """The tiles of an image, from top to bottom, and the seams between them: a grid may have cut a held-out image."""
    places = [in_reduced(sample) for _, sample in tiles]
    at = np.array(places).reshape(-1, 4)
    ends = at[:, :2] + at[:, 2:]

    @lru_cache(HELD_TILES)
    def gray(n: int) -> Gray:
        sample = tiles[n][1]
        decoded = points.decoded(staged.read(sample))
        if decoded is None:
            raise StageError(f"{sample.staged}: {sample.key} is no picture: delete that file and build again")
        return decoded

    for n, (row, _) in enumerate(tiles):
        yield Picture(gray(n), [(row, Window(0, 0, *places[n][2:]))], False)
        if (ends[n] == ends.max(axis=0)).any():
            continue
        low = ends[n] - at[n, 2:] // 2
        size = np.minimum(at[n, 2:], ends.max(axis=0) - low)
        those = np.flatnonzero(((at[:, :2] < low + size) & (ends > low)).all(axis=1)).tolist()
        pixels, covered = np.zeros(size[::-1], np.uint8), np.zeros(size[::-1], bool)
        for k in those:
            (left, top), (right, bottom) = np.maximum(at[k, :2], low) - low, np.minimum(ends[k], low + size) - low
            (x, y) = np.maximum(low - at[k, :2], 0)
            pixels[top:bottom, left:right] = gray(k)[y : y + bottom - top, x : x + right - left]
            covered[top:bottom, left:right] = True
        if covered.mean() >= LEAST_COVERED:
            shifts = [(k, *(at[k, :2] - low).tolist()) for k in those]
            yield Picture(pixels, [(tiles[k][0], Window(x, y, *places[k][2:])) for k, x, y in shifts], True)


def spelled(m: dict[str, Any]) -> str:
    """A row of FOUND in words."""
    turned = contain.turned(m["degrees"], m["mirrored"])
    way = f"scale {m['scale']:.2f}" + (f", {turned}" if turned else "")
    return (
        f"shares {m['share']:.0%} of it and {m['held_share']:.0%} of the held-out image; {way}; "
        f"{m['points']} points agree, pixels correlate by {m['correlation']:.2f}"
    )
