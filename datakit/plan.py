"""What a build would do, without doing it: sources, licences, what is missing, rules, expected tiles, disk."""

from __future__ import annotations

import inspect
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from . import files
from .errors import SourceError
from .recipe import Recipe
from .run import funnel_of, kept_rows
from .sample import Part, from_table, mix64, to_table
from .sources import folder
from .sources.scan import Scan, Source, label_table, listing
from .tables import aligned

BYTES_PER_PX = {"jpeg": 0.4, "png": 2.2, "webp": 1.6}  # of aerial tiles; jpeg at quality 90
RECORD_BYTES = 1500  # a tile's records in the work folder and in OUT
SIDES_PX = (64, 128, 256, 512, 513, 1025)  # lower ends of the bins of the histogram


@dataclass
class Expected:
    """What one source will give, scaled up from the images whose headers were read."""

    images: int = 0
    looked_at: int = 0
    tiles: float = 0.0
    pixels: float = 0.0
    dropped: Counter[str] = field(default_factory=Counter)
    sides: Counter[int] = field(default_factory=Counter)


def check(recipe: Recipe, data: str | Path, allow_missing: bool = False, most: int = 2000) -> str:
    """The plan of a build as text; reads headers of at most `most` images a source, and writes nothing.

    SourceError if collections are not on disk and `allow_missing` is not set; its message ends the plan.
    """
    lines = [f"{recipe.name}: {recipe.title}", ""]
    expected: dict[str, Expected] = {}
    missing = []
    rows: list[tuple[str, ...]] = [("source", "images", "published", "unmatched", "licence", "where")]
    for source in recipe.sources:
        root = source.find(Path(data))
        about = source.collection
        if root is None:
            missing.append(source)
            rows.append((source.name, "-", f"{about.count or '-'}", "-", about.licence[:40], "not on disk"))
            continue
        found, expected[source.name] = look(recipe, source, root, most)
        images = f"{expected[source.name].images:,}"
        unmatched = f"{found['unmatched']:,}"
        rows.append((source.name, images, f"{about.count or '-'}", unmatched, about.licence[:40], str(root)))
    lines += [*aligned(rows), "", *stages(recipe), "", *outlook(expected, recipe.cut.encode.format)]
    if missing and not allow_missing:
        names = ", ".join(f"{s.name} ({s.collection.homepage})" for s in missing)
        text = "\n".join(lines)
        raise SourceError(f"{text}\nnot on disk: {names}. Fetch them, or leave them out with --allow-missing")
    return "\n".join(lines)


def look(recipe: Recipe, source: Source, root: Path, most: int) -> tuple[Counter[str], Expected]:
    """Drops while listing, by reason, and what the headers of up to `most` images promise."""
    found = list(folder.files(root))
    records = list(listing(source, found))
    images = [r for r in records if not r.dropped]
    order = np.argsort(mix64(np.array([r.id for r in images], np.int64), 0), kind="stable")[:most]
    some = to_table(images[n] for n in order.tolist())
    expected = Expected(images=len(images), looked_at=len(order))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "labels").mkdir()
        pq.write_table(label_table(source, found), work / "labels" / "look.parquet")
        part = Part(work / "part.parquet", work, work, {source.name: files.home(root)})
        for stage in (Scan(source=source, labels="look"), recipe.header_rules(), recipe.slice):
            if stage is None:
                continue
            came = kept_rows(some)
            some = stage(came, part)
            for reasons in funnel_of(came, some).dropped.values():
                expected.dropped += reasons
    scale = len(images) / max(len(order), 1)
    tiles = kept_rows(some)
    expected.tiles = tiles.num_rows * scale
    for tile in from_table(tiles):
        expected.pixels += tile.width * tile.height * scale
        expected.sides[bin_of(min(tile.width, tile.height))] += 1
    return Counter(r.dropped for r in records if r.dropped), expected


def bin_of(side_px: int) -> int:
    return max((low for low in SIDES_PX if low <= side_px), default=0)


def stages(recipe: Recipe) -> Iterator[str]:
    """What each stage will do, in words and numbers of the recipe."""
    for name, rules in (("exclude", recipe.header_rules().rules), ("measured", recipe.measured_rules().rules)):
        yield f"{name}: {len(rules)} rules, the first that matches drops"
        for rule in rules:
            values = rule.model_dump(mode="json", exclude={"rule"}, exclude_defaults=True)
            words = inspect.getdoc(type(rule)) or ""
            yield f"  {rule.rule:14} {', '.join(f'{k}={v}' for k, v in values.items()):32} {words.splitlines()[0]}"
        if name == "exclude":
            way = recipe.slice.model_dump(mode="json", exclude_none=True) if recipe.slice else "images pass whole"
            yield f"slice: {way}"
            yield f"cut: {recipe.cut.model_dump(mode='json', exclude_none=True)}"
    yield f"subset: {recipe.subset.model_dump(mode='json', exclude_none=True)}"
    yield f"shards: {recipe.shards.model_dump(mode='json')}"


def outlook(expected: dict[str, Expected], kind: str) -> Iterator[str]:
    """Expected tiles by source, sides of tiles, and disk; before rules over measured values and duplicates."""
    rows: list[tuple[str, ...]] = [("source", "looked at", "expected tiles", "header drops among those looked at")]
    sides: Counter[int] = Counter()
    for name, e in expected.items():
        drops = ", ".join(f"{reason} {n:,}" for reason, n in sorted(e.dropped.items()))
        rows.append((name, f"{e.looked_at:,} of {e.images:,}", f"{round(e.tiles):,}", drops))
        for side, n in e.sides.items():
            sides[side] += round(n * e.tiles / max(sum(e.sides.values()), 1))
    yield from aligned(rows)
    yield ""
    yield "shorter side of a tile, px (before measured rules):"
    ends = dict(zip(SIDES_PX, [*(high - 1 for high in SIDES_PX[1:]), None], strict=True))
    for low in sorted(sides):
        high = ends.get(low, 63)
        label = f"{low}" if high == low else f"{low} and more" if high is None else f"{low} to {high}"
        yield f"  {label:14} {sides[low]:>12,} {'#' * round(40 * sides[low] / max(sides.values()))}"
    tiles = sum(e.tiles for e in expected.values())
    size = sum(e.pixels for e in expected.values()) * BYTES_PER_PX[kind]
    yield ""
    work = size + tiles * RECORD_BYTES
    yield f"disk, estimated: {size / 1e9:,.2f} GB of shards in OUT, {work / 1e9:,.2f} GB in the work folder"
    yield "(records, and staged tiles, which --free deletes as shards are written)"
