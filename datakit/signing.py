"""How the images of a folder look: headers read, sliced and signed as a build does it, no bytes kept."""

from __future__ import annotations

import pickle
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import __version__, image, staging
from .alone import blamed_of
from .contain import PARTS, described
from .disk import commit
from .engine import Engine
from .errors import SourceError
from .files import File, home
from .hand import InHand, mark_of
from .listing import find_files
from .looks import SCENE, TILE
from .manifest import Collection, Layout
from .pixels import Piece
from .recipe import Recipe
from .remote import Root
from .run import kept_rows
from .sample import Part, Sample, Window, digest, from_table, to_table
from .scales import in_reduced, of_source, reduced_size
from .sources import beside
from .sources.folder import files
from .sources.lists import absent, read_lists
from .sources.scan import Scan, Source, file_table, listing
from .stages.cut import Found, Sign
from .stages.protect import ENTRY, HeldOut
from .stages.slice import Grid, Slice, cut_out, reduced

CHUNK = 64  # images a task
ANY_IMAGE = tuple(
    "**/*." + "".join(f"[{c}{c.upper()}]" for c in suffix)
    for suffix in ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "jp2")
)


@dataclass(frozen=True)
class Job:
    """Some images to sign."""

    number: int
    path: Path  # what it is known by: nothing is left there
    work: Path
    records: list[Sample]
    source: Source
    root: Root
    slice: Slice
    window: Window | None  # that one of each image, not those of `slice`
    cut: Sign
    side_cars: list[File]
    parts: Path | None = None  # folder to leave in how the windows look to `contain`

    def images(self) -> list[InHand]:
        """None: it has no pieces."""
        return []

    def only(self, some: Sequence[InHand], aside: Path) -> Job:
        marks = [image.mark for image in some]
        records = [record for record in self.records if mark_of(record) in marks]
        return replace(self, records=records, path=aside / f"{digest(*marks)}.parquet")


@dataclass(frozen=True)
class Signed:
    """Records of SCHEMA of what was signed, whole or in windows; `unsigned`: name and reason of every other."""

    records: pa.Table
    unsigned: list[tuple[str, str]]
    footprints: dict[str, tuple[float, ...]]  # of whole images, by name


class Describe(Sign):
    """What `Sign` finds, and how a window looks to `contain` as its bytes."""

    def _tile(self, sample: Sample, piece: Piece) -> tuple[Found, bytes]:
        found, _ = super()._tile(sample, piece)
        return found, pickle.dumps(described(piece.pixels))


def any_images(name: str, about: Collection | None = None) -> Source:
    """A folder of images of any kind as a source; `about` says which of its files are images, and their bands."""
    about = about or Collection(
        name="files",
        title="",
        homepage="",
        licence="unstated",
        modality="optical",
        bands=("red", "green", "blue"),
        layout=Layout(images=ANY_IMAGE),
    )
    layout = about.layout.model_copy(update={"labels": (), "label_files": ()})
    return Source(name=name, path=".", collection=about.model_copy(update={"layout": layout}))


def sign(
    source: Source,
    root: Root,
    found: list[File],
    slice: Slice,
    cut: Sign,
    engine: Engine,
    window: Window | None = None,
    parts: Path | None = None,
) -> Signed:
    """Sign the images among files, whole and in windows of `slice`, or one window of each; what cannot be is named.

    At the ground sampling distance of `slice`, as a build does: those of an unknown one at their own. parts: a folder
    for how the windows look to `contain`, where `cut` is `Describe`.
    """
    sides = beside.by_name({file.name: file for file in found})
    records = list(listing(source, found))
    unsigned = [(r.name, r.dropped) for r in records if r.dropped and r.dropped != "unmatched"]
    images = iter(r for r in records if not r.dropped)
    chunks = enumerate(iter(lambda: list(islice(images, CHUNK)), []))
    with tempfile.TemporaryDirectory(prefix="datakit-") as name:
        work = Path(name)
        (work / "tmp").mkdir()
        jobs = (
            Job(
                n,
                work / "signed" / f"{n}.parquet",
                work,
                some,
                source,
                home(root),
                slice,
                window,
                cut,
                beside_them,
                parts,
            )
            for n, some in chunks
            for beside_them in [beside.those_of(some, sides)]
        )
        done = sorted(engine.map(sign_some, jobs), key=lambda one: one[0])
    tables = [signed.records for _, signed in done] or [to_table([])]
    footprints = {name: place for _, signed in done for name, place in signed.footprints.items()}
    unsigned += [each for _, signed in done for each in signed.unsigned]
    return Signed(pa.concat_tables(tables), sorted(set(unsigned)), footprints)


def sign_some(job: Job) -> tuple[int, Signed]:
    """Sign the images of a job."""
    with tempfile.TemporaryDirectory(prefix="datakit-") as name:
        work = Path(name)
        aside = work / "aside"
        (work / "labels").mkdir()
        aside.mkdir()
        pq.write_table(file_table(job.side_cars), work / "labels" / "beside.parquet")
        part = Part(work / "part-0.parquet", aside, work, {job.source.name: job.root})
        blamed = blamed_of(job.path, job.work)
        table = to_table(record for record in job.records if mark_of(record) not in blamed)
        way = partial(one_window, job.slice, job.window) if job.window else job.slice
        stages: list[Any] = [Scan(source=job.source, labels="beside"), way, job.cut]
        unsigned = [(record.name, blamed[mark_of(record)][0]) for record in job.records if mark_of(record) in blamed]
        places: dict[str, tuple[float, ...]] = {}
        for stage in stages:
            table = stage(kept_rows(table), part)
            lost = table.filter(pc.not_equal(table.column("dropped"), ""))
            unsigned += zip(*(lost.column(c).to_pylist() for c in ("name", "dropped")), strict=True)
            if isinstance(stage, Scan):
                columns = (table.column(c).to_pylist() for c in ("name", "footprint"))
                places = {name: tuple(corners or ()) for name, corners in zip(*columns, strict=True)}
        if job.parts:
            commit(parts_of(kept_rows(table), aside), job.parts / f"{job.number:08d}.parquet", job.parts / "aside")
        return job.number, Signed(kept_rows(table), unsigned, places)


def parts_of(records: pa.Table, folder: Path) -> pa.Table:
    """How windows that `Describe` staged in `folder` look to `contain`, those of an image together."""
    rows = []
    with staging.StagedFiles(folder) as staged:
        for sample in sorted(from_table(records), key=lambda s: (s.name, in_reduced(s))):
            size = reduced_size(sample.image_width, sample.image_height, sample.scale)
            place = {"name": sample.name, "image_size": size, "window": in_reduced(sample)}
            rows.append({**place, **pickle.loads(staged.read(sample))})
    return pa.Table.from_pylist(rows, schema=PARTS)


def one_window(slice: Slice, window: Window, records: pa.Table, part: Part) -> pa.Table:
    """That window of each image, in px of the source; images that it does not fit into are dropped."""
    return to_table(windowed(slice, window, sample) for sample in from_table(records))


def windowed(slice: Slice, window: Window, sample: Sample) -> Sample:
    """A window of an image at the scale that `slice` gives it."""
    if window.left + window.width > sample.width or window.top + window.height > sample.height:
        return sample.drop("window lies outside of the image")
    try:
        scale = slice.scale(sample)
    except ValueError as exc:
        return sample.drop("larger_than", str(exc))
    exact = of_source(window, scale, sample.width, sample.height)
    return cut_out(reduced(sample, scale), window, [], (), exact)


def files_at(path: Path) -> list[File]:
    """A plain file as `sign` takes it, relative to its folder, with its side-cars."""
    names = beside.names_of(path.name)
    mine = {names.aux, *names.worlds, names.prj}
    found = list(files(path.parent, lambda name: name != path.name and beside.spelled(name) not in mine))
    if path.name not in {file.name for file in found}:
        raise SourceError(f"{path}: no such image. Give a file of a folder, not one within an archive")
    return found


def held_out(
    folder: Root,
    recipe: Recipe,
    engine: Engine,
    about: Collection | None = None,
    name: str = "",
    version: str = "",
    split: str = "",
    parts: Path | None = None,
) -> HeldOut:
    """A held-out list of an evaluation set that lies at `folder`: its images whole, and through the recipe's grid.

    parts: a file to write beside it, which `protect.contain` reads: points, and small gray pictures.

    about: the manifest of the collection, whose layout then says what is an image and, with `split`, of which split.
    Random windows of a recipe fall elsewhere in each image: such a list holds whole images alone.
    """
    source = any_images("heldout", about)
    found = find_files(source, folder)
    if about and split:
        found = of_split(found, about, split, folder)
    grid = recipe.slice if recipe.slice and recipe.slice.grid else None
    way = grid or Slice(grid=Grid(size_px=512), gsd_m=recipe.slice.gsd_m if recipe.slice else None)
    signed = signed_in_parts(source, folder, found, way, recipe, engine, parts)
    if not signed.records.num_rows:
        raise SourceError(f"{folder}: no image could be signed ({why_not(signed)})")
    whole = entries_of(signed, SCENE)
    tiles = entries_of(signed, TILE) if grid else ENTRY.empty_table()
    unsigned = [{"name": file, "why": why} for file, why in signed.unsigned]
    return HeldOut(
        {
            "name": name or (about.name if about else folder.resolve().name),
            "title": about.title if about else "",
            "version": version or (about.version or "" if about else ""),
            "split": split,
            "files": whole.num_rows + len({row["name"] for row in unsigned}),
            "images": whole.num_rows,
            "tiles": tiles.num_rows,
            "unsigned": unsigned,
            "grid": grid.model_dump(mode="json") if grid else None,
            "narrow": recipe.cut.narrow.model_dump(mode="json") if recipe.cut.narrow else None,
            "levels": recipe.cut.encode.keeps_levels,
            "versions": {"datakit": __version__, **image.versions()},
        },
        pa.concat_tables([whole, tiles]),
    )


def signed_in_parts(
    source: Source, root: Root, found: list[File], way: Slice, recipe: Recipe, engine: Engine, parts: Path | None
) -> Signed:
    """Sign images whole and in windows; parts: the file for how windows look to `contain`, if there shall be one."""
    if parts is None:
        return sign(source, root, found, way, Sign.as_in(recipe.cut), engine)
    parts.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{parts.name}-", dir=parts.parent) as name:
        folder = Path(name)
        (folder / "aside").mkdir()
        signed = sign(source, root, found, way, Describe.as_in(recipe.cut), engine, parts=folder)
        pieces = sorted(folder.glob("*.parquet"))
        with pq.ParquetWriter(folder / "whole", PARTS, compression="zstd") as file:
            for piece in pieces:
                file.write_table(pq.read_table(piece))
        (folder / "whole").replace(parts)
    return signed


def of_split(found: list[File], about: Collection, split: str, folder: Root) -> list[File]:
    """The files found in a folder but for images of other splits; SourceError if nothing there tells the split."""
    told = {name: (*spec.images, *spec.lists) for name, spec in about.splits.items()}
    if not told.get(split):
        known = ", ".join(name for name, globs in told.items() if globs) or "none"
        raise SourceError(
            f"{about.name} tells no split {split} by its files; it tells {known}. Name the split's folder"
        )
    lost = absent(about.splits, found).get(split, ())
    if lost:
        raise SourceError(f"{folder}: no list of split {split} on disk: {', '.join(lost)}. Put it there")
    lists = read_lists(about.splits, found, home(folder))
    return [
        file
        for file in found
        if about.kind(file.name) != "image" or (about.split_of(file.name) or lists(file.name)) == split
    ]


def why_not(signed: Signed) -> str:
    """Why images could not be signed, and what to do."""
    why = ", ".join(f"{reason} {n}" for reason, n in Counter(w for _, w in signed.unsigned).most_common(3))
    advice = "name the folder of the evaluation images; of images that are no plain pictures give --manifest"
    return f"{why or 'there is none'}: {advice}"


def entries_of(signed: Signed, columns: tuple[str, ...]) -> pa.Table:
    """Entries of a list, in order of name and window: of the images (`SCENE`), or of their windows (`TILE`)."""
    rows: list[dict[str, Any]] = []
    seen = set()
    for row in signed.records.select(["name", "window", *columns]).to_pylist():
        if row["name"] in seen if columns == SCENE else not row["window"]:
            continue
        seen.add(row["name"])
        looks = dict(zip(TILE, (row[c] for c in columns), strict=True))
        place = {"window": None, "footprint": list(signed.footprints.get(row["name"], ()))}
        if columns == TILE:
            place = {"window": row["window"], "footprint": []}
        rows.append({"name": row["name"], **place, **looks})
    return pa.Table.from_pylist(sorted(rows, key=lambda r: (r["name"], r["window"] or [])), schema=ENTRY)
