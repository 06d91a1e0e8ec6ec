"""What a build leaves in OUT: which samples, in which order, their tables, index, manifest and card."""

from __future__ import annotations

import hashlib
import json
import math
import re
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import __version__, card, coco_left, croissant, image, index
from .bands import LEVELS, Sums
from .collect import Chosen
from .croissant import NAME as CROISSANT
from .croissant import SAMPLES
from .decide import STAGES, Decided
from .decisions import FILE as DECISIONS
from .disk import PARTIAL, becoming, close_out, sync
from .dropped import Dropped
from .errors import StageError
from .manifest import Count, Manifest, Shard, SourceLeft
from .pictures import SCHEMA as PICTURES
from .pictures import PictureJob
from .recipe import Recipe
from .remote import Root, root_of
from .run import Funnel
from .sample import digest
from .stages.cut import Cut
from .stages.shards import ShardJob, Tarred, notes_of, written
from .tally import Tally

NOT_LEFT = ["stamp", "offset", "packed_bytes", "packing", "crc", "staged", "staged_offset", "staged_bytes"]
NOT_LEFT += ["mask", "mask_bytes", "twin"]
NOT_OF_KEPT = ["dropped", "detail", "lost_to", "distance_bits", "turned"]
NOTES = tuple(f"{stage}.json" for stage in STAGES)
REPORTED = "duplicates.parquet"
TIMINGS = "timings.json"
FAILED = ".failed"  # suffix of the note of what stopped a build
BEFORE = f"{PARTIAL}/before.json"  # the manifest of the build that is being replaced


@dataclass
class Story:
    """What a build reads and what happened in it."""

    recipe: Recipe
    out: Root
    work: Path
    roots: dict[str, Root]  # where each source lies
    missing: tuple[str, ...]  # sources that are not on disk
    shards_before: set[str] = field(default_factory=set)  # that earlier builds of this recipe left in OUT
    labels: dict[str, str] = field(default_factory=dict)  # digest of the label files by source
    funnels: dict[str, Funnel] = field(default_factory=dict)  # by stage, in order
    counts: Counter[str] = field(default_factory=Counter)  # of work done in this run
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    read_bytes: dict[str, Counter[str]] = field(default_factory=dict)  # by stage and source, in this run
    part_seconds: dict[str, dict[str, float]] = field(default_factory=dict)  # likewise, of all workers
    outcomes: dict[str, Any] = field(default_factory=dict)  # what became of a person's decisions


def finish(
    story: Story, chosen: Chosen, decided: Decided, jobs: list[ShardJob], dropped: Dropped, pictures: list[PictureJob]
) -> Manifest:
    """Write the tables, the index and the card, then the manifest; remove what an earlier build left besides."""
    out, recipe = Out(story.out, story.work), story.recipe
    shards = [written_shard(job) for job in jobs]
    for name in story.shards_before - {s.name for s in shards}:
        (story.out / name).unlink(missing_ok=True)
    members = recipe.members()
    tally = write_samples(jobs, out, members, recipe.cut)
    out.put("dropped.parquet", lambda path: dropped.write(path, NOT_LEFT))
    notes = write_notes(decided, story.outcomes, out)
    sidecars = [job.sidecar for job in jobs]
    cocos = coco_left.coco_files(recipe, story.roots, story.labels, story.work, sidecars)
    for name, coco in cocos.items():
        out.put_text(name, json.dumps(coco))
    small = [pq.read_table(job.path) for job in pictures]
    table = pa.concat_tables(small) if small else PICTURES.empty_table()
    out.put("pictures.parquet", lambda path: write_table(table, path))
    manifest = Manifest(
        name=recipe.name,
        title=recipe.title,
        recipe=portable(recipe),
        recipe_digest=digest(json.dumps(portable(recipe), sort_keys=True)),
        versions={"datakit": __version__, "pyarrow": pa.__version__, **image.versions()},
        sources=tuple(sources_left(story, chosen)),
        missing=story.missing,
        samples=sum(s.samples for s in shards),
        members=members,
        shards=tuple(shards),
        counts=tuple(counts(story.funnels)),
        files={},
    )
    told = coco_left.told(recipe, story.roots, story.labels, story.work, [*cocos])
    found = decided.about | {"decisions": story.outcomes} | ({"coco": {"lines": told}} if told else {})
    out.put_text("README.md", card.text(manifest, found, tally))
    out.put_text(CROISSANT, croissant.text(manifest, tally, out.digests[SAMPLES]))
    names = ("README.md", CROISSANT, "dropped.parquet", "index.arrow", "pictures.parquet", SAMPLES, *notes, *cocos)
    manifest = manifest.model_copy(update={"files": {name: out.digests[name] for name in names}}).sealed()
    at = story.out, story.work, story.roots
    out.put_text(TIMINGS, timings(at, story.seconds, story.counts, story.part_seconds, story.read_bytes))
    out.put_text("manifest.json", manifest.to_json())
    close_out(story.out)
    return manifest


@dataclass
class Out:
    """Where a build leaves its files, and the sha256 of those it has left."""

    root: Root
    work: Path
    digests: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, write: Callable[[Path], Any]) -> None:
        """Write a file aside, and give it its name when it is whole."""
        with becoming(self.root / name, self.work) as path:
            write(path)
            with path.open("rb") as file:
                self.digests[name] = hashlib.file_digest(file, "sha256").hexdigest()

    def put_text(self, name: str, text: str) -> None:
        self.put(name, lambda path: path.write_text(text, encoding="utf-8"))


def shards_before(name: str, out: Root, work: Path) -> set[str]:
    """Names of the shards that earlier builds of a set left in OUT, whole or not: nobody else's are ever removed.

    StageError if another set lies there.
    """
    ours = re.compile(rf"{re.escape(name)}-(?:train-semi|\w*)-\d{{6}}\.tar")
    before = [path for path in (out / "manifest.json", out / BEFORE) if path.exists()]
    names = {note.stem for note in notes_of(work, out).glob("*.json") if ours.fullmatch(note.stem)}
    for path in before:
        there = Manifest.load(path)
        if there.name != name:
            raise StageError(f"{out} holds another set, {there.name}: name another folder with --out")
        names |= {shard.name for shard in there.shards}
    return names


def written_shard(job: Tarred) -> Shard:
    about = written(job)
    if about is None:
        raise StageError(
            f"{job.out / job.name} is gone: something else removes files there. Run the same command again"
        )
    return Shard(**about)


def write_samples(jobs: Sequence[Tarred], out: Out, members: tuple[str, ...], cut: Cut) -> Tally:
    """samples.parquet and index.arrow, row for row in the order of the shards; gives what the records add up to.

    cut: what measured them.
    """
    wanted = index.schema(members)
    levels = cut.encode.keeps_levels and not cut.shots
    tally = Tally(Sums(levels))
    rows: list[pa.Table] = []
    shards: list[dict[str, Any]] = []

    def write(path: Path) -> None:
        writer = None
        for n, job in enumerate(jobs):
            table, row, about = records_left(job, n, wanted)
            rows.append(row)
            shards.append(about)
            tally.add(table)
            table = table.replace_schema_metadata({LEVELS: b"1"} if levels else None)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
        if writer:
            writer.close()

    out.put(SAMPLES, write)
    out.put("index.arrow", lambda path: index.write(pa.concat_tables(rows), path, shards))
    return tally


def records_left(job: Tarred, number: int, wanted: pa.Schema) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """The records of a shard: as samples.parquet has them, as the index does, and what is said of the shard."""
    about = written_shard(job)
    table = pq.read_table(job.sidecar).replace_schema_metadata(None)
    table = table.append_column("shard", pa.array([number] * table.num_rows, pa.int32()))
    split = pa.array([about.split] * table.num_rows)
    named = table.set_column(table.schema.get_field_index("split"), "split", split)
    left = table.drop_columns([*NOT_LEFT, *NOT_OF_KEPT])
    return left, named.select(wanted.names).cast(wanted), about.model_dump(mode="json")


def write_notes(decided: Decided, outcomes: dict[str, Any], out: Out) -> list[str]:
    """The certificate, what dedup found, the duplicates that it only counted, and what became of a person's decisions;
    gives the names of the files.
    """
    notes = {f"{stage}.json": json.dumps(about, indent=1) + "\n" for stage, about in decided.about.items()}
    notes |= {DECISIONS: json.dumps(outcomes, indent=1) + "\n"} if outcomes else {}
    for name, text in notes.items():
        out.put_text(name, text)
    reported = decided.reported
    if reported is not None:
        out.put(REPORTED, lambda path: write_table(reported.drop_columns(["part", "row"]).sort_by("key"), path))
    for name in {*NOTES, DECISIONS, REPORTED} - {*notes} - ({REPORTED} if reported is not None else set()):
        (out.root / name).unlink(missing_ok=True)  # of an earlier build
    return [*notes, *([REPORTED] if reported is not None else [])]


def write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")


def sources_left(story: Story, chosen: Chosen) -> list[SourceLeft]:
    """What each source gave: samples, bytes and what encoding cost."""
    recipe = {s.name: s.collection for s in story.recipe.sources}
    source = chosen.columns.column("source").combine_chunks()
    names, source = source.dictionary.to_pylist(), source.indices.to_numpy()
    size = chosen.columns.column("staged_bytes").to_numpy()
    psnr = chosen.columns.column("psnr_db").to_numpy().astype(float)
    left = []
    for name in sorted(story.funnels["list"].came):
        about = recipe[name.partition("/")[0]]
        mine = source == (names.index(name) if name in names else -1)
        measured = psnr[mine & ~np.isnan(psnr)]
        left.append(
            SourceLeft(
                name=name,
                title=about.title,
                version=about.version,
                homepage=about.homepage,
                licence=about.licence,
                provider_terms=about.provider_terms,
                samples=int(mine.sum()),
                bytes=int(size[mine].sum()),
                mean_bytes=round(float(size[mine].mean()), 1) if mine.any() else 0.0,
                mean_psnr_db=round(math.fsum(measured) / len(measured), 2) if len(measured) else None,
                unmatched=story.funnels["list"].dropped.get(name, Counter())["unmatched"],
            )
        )
    return left


def counts(funnels: dict[str, Funnel]) -> list[Count]:
    """The funnels as rows, by stage and source."""
    return [
        Count(
            stage=stage,
            source=source,
            came=funnel.came[source],
            left=funnel.left[source],
            made=funnel.made[source],
            dropped=dict(sorted(funnel.dropped.get(source, Counter()).items())),
        )
        for stage, funnel in funnels.items()
        for source in sorted(funnel.came)
    ]


def timings(
    at: tuple[Root, Path, dict[str, Root]],
    seconds: dict[str, float],
    counts: Counter[str],
    part_seconds: dict[str, dict[str, float]],
    read_bytes: dict[str, Counter[str]],
) -> str:
    """The one file that may differ between two builds of the same. at: OUT, WORK, and where each source lies."""
    out, work, roots = at
    plain = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "out": str(out),
        "work": str(work),
        "roots": {name: str(root) for name, root in sorted(roots.items())},
        "seconds": {k: round(v, 3) for k, v in seconds.items()},
        "worker_seconds": {k: {s: round(v, 3) for s, v in by.items()} for k, by in part_seconds.items()},
        "read_bytes": read_bytes,
        "work_done": dict(sorted(counts.items())),
    }
    return json.dumps(plain, indent=1) + "\n"


def keep_note(work: Path, name: str, out: Root, paths: Sequence[Path], finished: bool) -> None:
    """Note which files of the work folder a build uses, so that `gc` leaves them: before they are made.

    finished: all of them are known. Until then what the last build used is used, too.
    """
    (work / "builds").mkdir(exist_ok=True)
    path = note_path(work, name, out)
    now = sorted({str(p.relative_to(work)) for p in paths})
    uses = set(now)
    if not finished and path.exists():
        uses |= set(json.loads(path.read_text())["uses"])
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"recipe": name, "out": str(out), "uses": sorted(uses), "now": now}))
    sync(temporary)
    temporary.replace(path)


def note_failure(work: Path, name: str, out: Root, error: str) -> None:
    """Note what stopped a build, beside the note of what it uses; "": nothing did."""
    path = note_path(work, name, out).with_suffix(FAILED)
    if error:
        path.parent.mkdir(exist_ok=True)
        path.write_text(error)
    else:
        path.unlink(missing_ok=True)


def note_path(work: Path, name: str, out: Root) -> Path:
    return work / "builds" / f"{name}-{digest(str(out))}.json"


def used_by_others(work: Path, name: str, out: Root) -> set[Path]:
    """What other builds with this work folder use."""
    notes = set((work / "builds").glob("*.json")) - {note_path(work, name, out)}
    return {work / used for note in notes for used in json.loads(note.read_text())["uses"]}


def portable(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data in which no folder of this machine stands."""
    plain: dict[str, Any] = recipe.model_dump(mode="json")
    for source in plain["sources"]:
        where = root_of(source["path"])
        source["path"] = source["path"] if isinstance(where, Path) and not where.is_absolute() else where.name
    plain["protect"]["lists"] = [Path(path).name for path in plain["protect"]["lists"]]
    for rule in plain["exclude"]["rules"]:
        if "file" in rule:
            rule["file"] = Path(rule["file"]).name
    return plain
