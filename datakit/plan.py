"""What a build would do, without doing it: sources, licences, what is missing, rules, expected tiles, disk."""

from __future__ import annotations

import inspect
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import files
from .errors import SourceError
from .ondisk import OnDisk, Watch, find, lines, size, unpacked_by
from .recipe import Recipe
from .run import funnel_of, kept_rows
from .sample import Part, Sample, Spec, from_table, mix64, to_table
from .sources.scan import Scan, Source, label_table, listing
from .stages.protect import NO_LIST
from .tables import aligned

BYTES_PER_PX = {"jpeg": 0.4, "png": 2.2, "webp": 1.6, "png16": 4.5, "tiff16": 4.5}  # of 3 bands; jpeg at quality 90
RECORD_BYTES = 3000  # a tile's records in the work folder
SAMPLE_BYTES = 3300  # headers, padding and JSON of a sample in its shard, and its rows in the tables
BATCH = 4096  # records that are ranked at once
SIDES_PX = (64, 128, 256, 512, 513, 1025)  # lower ends of the bins of the histogram


@dataclass
class Expected:
    """What one source will give: `images` counted; the rest of those whose headers were read."""

    images: int = 0
    looked_at: int = 0
    tiles: int = 0
    encoded_px: int = 0
    copied_bytes: int = 0
    not_images: Counter[str] = field(default_factory=Counter)  # by reason, of all files
    dropped: Counter[str] = field(default_factory=Counter)
    sides: Counter[int] = field(default_factory=Counter)
    there: OnDisk = field(default_factory=OnDisk)

    @property
    def scale(self) -> float:
        return self.images / max(self.looked_at, 1)


def check(
    recipe: Recipe,
    data: str | Path,
    allow_missing: bool = False,
    most: int = 2000,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[str]:
    """The plan of a build, line by line; reads headers of at most `most` images a source, and changes nothing.

    At its end, where the build itself would stop: SourceError if collections are not on disk and `allow_missing` is not
    set, or if there is no image at all.
    """
    recipe.measured_rules().digest()  # RecipeError if a rule names a file that is not there
    roots = {source.name: source.find(Path(data)) for source in recipe.sources}
    expected: dict[str, Expected] = {}
    rows: list[tuple[str, ...]] = [("source", "images", "published", "licence", "where", "not taken, by its name")]
    for source in recipe.sources:
        root, about = roots[source.name], source.collection
        images, where, others = "-", "not on disk", ""
        if root is not None:
            say(f"looking at {source.name}")
            e = expected[source.name] = look(recipe, source, root, most)
            images, where, others = f"{e.images:,}", str(root), counted(e.not_images)
        published = "-" if about.count is None else f"{about.count:,}"
        rows.append((source.name, images, published, shorten(about.licence, 40, placeholder=" …"), where, others))
    yield from (f"{recipe.name}: {recipe.title}", "", *aligned(rows), "")
    missing = [source for source in recipe.sources if roots[source.name] is None]
    if missing:
        yield "not on disk:"
        for source in missing:
            yield f"  {source.name}: {Path(data) / source.path}  {source.collection.homepage}".rstrip()
        yield ""
    empty = [source for source in recipe.sources if source.name in expected and not expected[source.name].images]
    for source in empty:
        yield f"no image in {source.name}: its layout looks for {', '.join(source.collection.layout.images)}"
    if empty:
        yield ""
    if expected:
        yield from ("on disk, beside what the manifests say:", *beside(recipe, expected), "")
    yield from (*stages(recipe), "", *outlook(recipe, expected))
    if missing and not allow_missing:
        names = ", ".join(source.name for source in missing)
        raise SourceError(f"not on disk: {names}. Fetch them, correct --data, or leave them out with --allow-missing")
    may_be_read(expected)
    if len(empty) == len(expected):
        raise SourceError(f"no source of {recipe.name} has any image: nothing to build. Correct --data or the layout")


def may_be_read(expected: dict[str, Expected]) -> None:
    """SourceError, as a build raises it, if archives cannot be read in place."""
    for name, e in expected.items():
        for path in e.there.closed:
            todo = f"Run `{unpacked_by(path)}` on it, then move it away, or name it in the layout's `ignore`"
            raise SourceError(f"{name}: {path}: cannot be read in place. {todo}")


def look(recipe: Recipe, source: Source, root: Path, most: int) -> Expected:
    """What the headers of up to `most` images of a source promise; which ones does not depend on their order."""
    found, closed = find(source, root, Path(recipe.name), Path(f"{recipe.name}.work"))  # where a build would write
    expected = Expected()
    watch = Watch(source.collection, found, closed, listing(source, found))
    chosen = chosen_of(watch, most, expected)
    expected.there = watch.there
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "labels").mkdir()
        pq.write_table(label_table(source, found), work / "labels" / "look.parquet")
        part = Part(work / "part.parquet", work, work, {source.name: files.home(root)})
        some = to_table(chosen)
        for stage in (Scan(source=source, labels="look"), recipe.header_rules()):
            some = kept(some, stage(some, part), expected.dropped)
    for sample in from_table(some):
        for tile in recipe.slice.tiles(sample) if recipe.slice else [sample]:
            count_tile(tile, recipe, expected)
    return expected


def chosen_of(records: Iterable[Sample], most: int, expected: Expected) -> list[Sample]:
    """Up to `most` images, those that a permutation of ids puts first; all are counted, few are held."""
    chosen: list[Sample] = []
    passing = iter(records)
    while batch := list(islice(passing, BATCH)):
        expected.not_images.update(r.dropped for r in batch if r.dropped)
        images = [r for r in batch if not r.dropped]
        expected.images += len(images)
        chosen += images
        order = np.argsort(mix64(np.array([r.id for r in chosen], np.int64), 0), kind="stable")[:most]
        chosen = [chosen[n] for n in order.tolist()]
    expected.looked_at = len(chosen)
    return chosen


def beside(recipe: Recipe, expected: dict[str, Expected]) -> Iterator[str]:
    """What lies on disk of each source, beside what its manifest says."""
    for source in recipe.sources:
        if source.name in expected:
            yield from (f"  {line}" for line in lines(source.collection, expected[source.name].there))


def kept(came: pa.Table, made: pa.Table, dropped: Counter[str]) -> pa.Table:
    """The rows that a stage kept; the others are counted."""
    for reasons in funnel_of(came, made).dropped.values():
        dropped.update(reasons)
    return kept_rows(made)


def count_tile(tile: Sample, recipe: Recipe, expected: Expected) -> None:
    """Add a tile: a whole JPEG is copied into a set of JPEGs, all else is encoded."""
    if tile.dropped:
        expected.dropped[tile.dropped] += 1
        return
    expected.tiles += 1
    expected.sides[max((low for low in SIDES_PX if low <= min(tile.width, tile.height)), default=0)] += 1
    if recipe.cut.copy_jpeg and recipe.cut.encode.format == "jpeg" == tile.format.lower() and not tile.window:
        expected.copied_bytes += tile.file_bytes
    else:
        expected.encoded_px += tile.width * tile.height


def stages(recipe: Recipe) -> Iterator[str]:
    """What each stage will do, in words and numbers of the recipe."""
    yield from rules("exclude", recipe.header_rules().rules, "header facts")
    yield f"slice: {spelled(recipe.slice) if recipe.slice else 'images pass whole'}"
    yield f"cut: {spelled(recipe.cut)}"
    yield from rules("exclude", recipe.measured_rules().rules, "values that cut measures")
    yield f"prefer: {', '.join(recipe.prefer)}"
    lists = recipe.protect.read()
    yield f"protect: {spelled(recipe.protect)}" if lists else f"protect: {NO_LIST}"
    for held in lists:
        yield f"  {held.who}: {held.about['images']:,} images, {held.about['tiles']:,} tiles"
    yield f"dedup: {spelled(recipe.dedup) if recipe.dedup else 'no duplicate is looked for'}"
    yield f"same_place: {spelled(recipe.same_place) if recipe.same_place else 'not looked for'}"
    yield f"subset: {spelled(recipe.subset) or 'all samples'}"
    yield f"shards: {spelled(recipe.shards)}"


def rules(name: str, those: tuple[Any, ...], of: str) -> Iterator[str]:
    """The rules of a stage, each with its values and the first sentence of what it says of itself."""
    yield f"{name}, by {of}: " + ("the first rule that matches drops" if those else "no rules")
    rows = []
    for rule in those:
        first = re.split(r"(?<=\.)\s|\n\n", inspect.getdoc(type(rule)) or "")[0]
        rows.append((f"  {rule.rule}", spelled(rule, leave_out={"rule"}), " ".join(first.split())))
    width = max((len(values) for _, values, _ in rows if len(values) <= 40), default=0)
    for name, values, words in rows:
        yield f"{name:14}  {values:{width}}  {words}"


def spelled(spec: Spec, leave_out: set[str] | None = None) -> str:
    """The fields of a spec as `--set` takes them; those that are null or empty are left out."""
    return ", ".join(f"{key}={value}" for key, value in _fields(spec.model_dump(mode="json", exclude=leave_out)))


def _fields(plain: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{above}{key}.")
        elif isinstance(value, list):
            yield f"{above}{key}", f"[{', '.join(map(str, value))}]"
        elif value not in (None, ""):
            yield f"{above}{key}", str(value).lower() if isinstance(value, bool) else str(value)


def outlook(recipe: Recipe, expected: dict[str, Expected]) -> Iterator[str]:
    """Expected tiles by source, sides of tiles, and disk; before rules over measured values and duplicates."""
    rows: list[tuple[str, ...]] = [("source", "headers read", "expected tiles", "dropped by header, of those read")]
    sides: Counter[int] = Counter()
    for name, e in expected.items():
        read = f"{e.looked_at:,} of {e.images:,}"
        rows.append((name, read, f"{round(e.tiles * e.scale):,}", counted(e.dropped)))
        for side, n in e.sides.items():
            sides[side] += round(n * e.scale)
    yield from aligned(rows)
    if sides:
        yield from ("", "shorter side of a tile, px (before rules over measured values):")
    ends = dict(zip(SIDES_PX, [*(high - 1 for high in SIDES_PX[1:]), None], strict=True))
    for low in sorted(sides):
        high = ends.get(low, SIDES_PX[0] - 1)
        label = f"{low}" if high == low else f"{low} and more" if high is None else f"{low} to {high}"
        yield f"  {label:14} {sides[low]:>12,} {'#' * round(40 * sides[low] / max(*sides.values(), 1))}"
    tiles = sum(e.tiles * e.scale for e in expected.values())
    a_px = BYTES_PER_PX[recipe.cut.encode.format]
    work = sum((e.encoded_px * a_px + e.copied_bytes) * e.scale for e in expected.values())
    subset = recipe.subset
    taken = min(subset.count / max(tiles, 1), 1) if subset.count else subset.share or 1
    yield ""
    yield f"disk, estimated: {size(work * taken + tiles * taken * SAMPLE_BYTES)} of shards and tables in OUT,"
    yield f"{size(work + tiles * RECORD_BYTES)} in the work folder (staged tiles, freed by --free, and records)"


def counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in sorted(reasons.items()))
