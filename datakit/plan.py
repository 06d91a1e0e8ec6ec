"""What a build would do, without doing it: sources, licences, what is missing, rules, expected tiles, disk."""

from __future__ import annotations

import inspect
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from .listing import Images, doubt
from .ondisk import OnDisk, Watch, find, lines, size, unpacked_by
from .recipe import Recipe
from .remote import Remote, Root, root_of
from .run import funnel_of, kept_rows
from .sample import Part, Sample, Spec, from_table, mix64, to_table
from .sources.lists import read_lists
from .sources.scan import NOWHERE, Labels, Scan, Source, label_table, listing, same_as, same_table
from .stages.protect import NO_LIST
from .tables import aligned

# of 3 bands; jpeg at quality 90, mosaics as in LOG.md
BYTES_PER_PX = {"jpeg": 0.4, "png": 2.2, "webp": 1.6, "png16": 4.5, "tiff16": 4.5, "mosaic": 1.1, "npy": 4.0}
RECORD_BYTES = 3000  # a tile's records in the work folder
SAMPLE_BYTES = 3300  # headers, padding and JSON of a sample in its shard, and its rows in the tables
BATCH = 4096  # records that are ranked at once
SIDES_PX = (64, 128, 256, 512, 513, 1025)  # lower ends of the bins of the histogram


@dataclass
class Expected:
    """What one source will give: `images` counted; the rest of those whose headers were read."""

    images: int = 0  # that are read here
    main: str = ""  # source before it that has the same images: `same` of them are read there
    same: int = 0
    looked_at: int = 0
    tiles: int = 0
    encoded_px: int = 0
    copied_bytes: int = 0
    not_images: Counter[str] = field(default_factory=Counter)  # by reason, of all files
    dropped: Counter[str] = field(default_factory=Counter)
    sides: Counter[int] = field(default_factory=Counter)
    opened: int = 0  # images whose header and labels could be read
    unclear: list[str] = field(default_factory=list)  # that may be images of `main`, or not
    silent: Counter[tuple[str, str]] = field(default_factory=Counter)  # of these, by source that lacks them, and split
    there: OnDisk = field(default_factory=OnDisk)

    @property
    def scale(self) -> float:
        return self.images / max(self.looked_at, 1)

    @property
    def is_empty(self) -> bool:
        """Whether neither an image of it is read, nor its labels are joined to others."""
        return not self.images and not self.main

    @property
    def not_taken(self) -> str:
        """Files of this source that are not read in it, by reason."""
        words = counted(self.not_images)
        if not self.main:
            return words
        all_of_them = self.images + self.same
        where = f"{self.same:,} of {all_of_them:,} read there" if all_of_them else "labels alone, joined there"
        return ", ".join(filter(None, (f"same images as {self.main}: {where}", words)))


def check(
    recipe: Recipe,
    data: str | Path | Remote,
    allow_missing: bool = False,
    most: int = 2000,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[str]:
    """The plan of a build, line by line; reads headers of at most `most` images a source, and changes nothing.

    At its end, where the build itself would stop: SourceError if collections are not on disk and `allow_missing` is not
    set, or if there is no image at all.
    """
    recipe.measured_rules().digest()  # RecipeError if a rule names a file that is not there
    places = {source.name: source.find(root_of(data)) for source in recipe.sources}
    expected = look(recipe, {name: root for name, root in places.items() if root}, most, say)
    rows: list[tuple[str, ...]] = [("source", "images", "published", "licence", "where", "not taken, by its name")]
    for source in recipe.sources:
        about, e = source.collection, expected.get(source.name)
        found = (f"{e.images:,}", str(places[source.name]), e.not_taken) if e else ("-", "not on disk", "")
        published = "-" if about.count is None else f"{about.count:,}"
        rows.append((source.name, found[0], published, shorten(about.licence, 40, placeholder=" …"), *found[1:]))
    yield from (f"{recipe.name}: {recipe.title}", "", *aligned(rows), "")
    missing = [source for source in recipe.sources if source.name not in expected]
    if missing:
        yield "not on disk:"
        for source in missing:
            yield f"  {source.name}: {root_of(source.path, root_of(data))}  {source.collection.homepage}".rstrip()
        yield ""
    empty = [s for s in recipe.sources if s.name in expected and expected[s.name].is_empty]
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
    if not any(e.images for e in expected.values()):
        raise SourceError(f"no source of {recipe.name} has any image: nothing to build. Correct --data or the layout")


def may_be_read(expected: dict[str, Expected]) -> None:
    """SourceError, as a build raises it, if archives cannot be read in place."""
    for name, e in expected.items():
        for path in e.there.closed:
            todo = f"Run `{unpacked_by(path)}` on it, then move it away, or name it in the layout's `ignore`"
            raise SourceError(f"{name}: {path}: cannot be read in place. {todo}")


def look(
    recipe: Recipe, roots: Mapping[str, Root], most: int, say: Callable[[str], None] = lambda line: None
) -> dict[str, Expected]:
    """What the headers of up to `most` images of each source promise; which ones does not depend on their order.

    roots: where the sources that are on disk lie. As in a build, all are listed before any header is read: images that
    several of them have are read once, with the labels of all.
    """
    there = [source for source in recipe.sources if source.name in roots]
    with tempfile.TemporaryDirectory() as name:
        one = Look(recipe, roots, most, Path(name))
        (one.work / "labels").mkdir()
        for source in there:
            say(f"looking at {source.name}")
            one.list_files(source)
        for source in there:
            say(f"reading headers of {source.name}")
            one.read_headers(source)
    return one.expected


@dataclass
class Look:
    """A look at sources under way: at the names of all their files, then at the headers of some."""

    recipe: Recipe
    roots: Mapping[str, Root]
    most: int
    work: Path  # labels lie in it as in the work folder of a build
    expected: dict[str, Expected] = field(default_factory=dict)
    images: dict[str, Images] = field(default_factory=dict)  # of sources whose images others have too

    def list_files(self, source: Source) -> None:
        """Count the files of a source; keep records of up to `most` images, and where its label files are."""
        recipe, about, root = self.recipe, source.collection, self.roots[source.name]
        main, images = recipe.main_of(source, self.roots), Images()
        e = self.expected[source.name] = Expected(main=main.name if main else "")
        found, closed = find(source, root, Path(recipe.name), Path(f"{recipe.name}.work"))  # where a build would write
        theirs = self.images[main.name].read if main else NOWHERE
        same = same_as(source, found, theirs)
        records = listing(source, found, same)
        watch = Watch(about, found, closed, records, read_lists(about.splits, found, files.home(root)))
        is_main = bool(recipe.joined_to(source, self.roots))
        chosen = chosen_of(images.noted(watch, about) if main or is_main else watch, self.most, e)
        e.there, e.same = watch.there, e.not_images.pop("same_images", 0)
        pq.write_table(label_table(source, found), self.work / "labels" / f"{source.name}.parquet")
        pq.write_table(to_table(chosen), self.work / f"{source.name}.parquet")
        if main:
            pq.write_table(same_table(images.names, same), self.work / "labels" / f"{source.name}.images.parquet")
            e.unclear = images.unclear(theirs)
        elif is_main:
            self.images[source.name] = images

    def read_headers(self, source: Source) -> None:
        """Read what was chosen of a source, and cut it on paper."""
        e, homes = self.expected[source.name], {name: files.home(root) for name, root in self.roots.items()}
        also = tuple(Labels(source=other, labels=other.name) for other in self.recipe.joined_to(source, self.roots))
        part = Part(self.work / "part.parquet", self.work, self.work, homes)
        some = pq.read_table(self.work / f"{source.name}.parquet")
        some = kept(some, Scan(source=source, labels=source.name, also=also)(some, part), e.dropped)
        e.opened, e.silent = some.num_rows, part.silent
        way = self.recipe.slicing()
        for sample in from_table(kept(some, self.recipe.header_rules()(some, part), e.dropped)):
            for tile in way.tiles(sample) if way else [sample]:
                count_tile(tile, self.recipe, e)


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
            e = expected[source.name]
            yield from (f"  {line}" for line in (*lines(source.collection, e.there), *unlabelled(source.name, e)))
            if e.unclear:
                yield f"    {doubt(source.name, e.main, e.unclear)}"


def unlabelled(name: str, expected: Expected) -> Iterator[str]:
    """How many of the images that were read a source with labels says nothing of; a line for each source."""
    for source in dict.fromkeys(source for source, _ in expected.silent):
        splits = Counter({split: n for (other, split), n in expected.silent.items() if other == source})
        n, whose = splits.total(), "" if source == name else f" of {source}"
        told = f": {counted(splits)}" if any(splits) else ""
        yield f"  of {expected.opened:,} images read, {n:,} {'has' if n == 1 else 'have'} no label{whose}{told}"


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
    return ", ".join(f"{reason or 'in no split'} {n:,}" for reason, n in sorted(reasons.items()))
