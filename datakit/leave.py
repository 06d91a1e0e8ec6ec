"""What a build leaves in OUT: which samples, in which order, their tables, index, manifest and card."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import __version__, card, image, index
from .errors import StageError
from .manifest import Count, Manifest, Shard, SourceLeft
from .pictures import SCHEMA as PICTURES
from .pictures import PictureJob
from .recipe import Recipe
from .run import Funnel, sync
from .sample import SCHEMA, digest
from .stages.shards import PARTIAL, Rows, ShardJob, order, partial_path, written

NOT_LEFT = ["stamp", "offset", "packed_bytes", "packing", "crc", "staged", "staged_offset", "staged_bytes"]
NOT_OF_KEPT = ["dropped", "detail", "lost_to", "distance_bits"]
PLAN = ["id", "source", "split", "entropy_bits", "psnr_db", "staged", "staged_offset", "staged_bytes", "dropped"]
TIMINGS = "timings.json"


@dataclass
class Story:
    """What a build reads and what happened in it."""

    recipe: Recipe
    out: Path
    work: Path
    roots: dict[str, Path]  # where each source lies
    missing: tuple[str, ...]  # sources that are not on disk
    labels: dict[str, str] = field(default_factory=dict)  # digest of the label files by source
    funnels: dict[str, Funnel] = field(default_factory=dict)  # by stage, in order
    counts: Counter[str] = field(default_factory=Counter)  # of work done in this run
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    read_bytes: dict[str, Counter[str]] = field(default_factory=dict)  # by stage and source, in this run
    part_seconds: dict[str, dict[str, float]] = field(default_factory=dict)  # likewise, of all workers


@dataclass(frozen=True)
class Chosen:
    """The samples of the set, in its order, and those that `subset` left out with their reasons."""

    rows: Rows
    columns: pa.Table  # PLAN, of the same rows
    left_out: Rows
    reasons: list[str]
    funnel: Funnel


def choose(recipe: Recipe, parts: list[Path]) -> Chosen:
    """Which samples of the last parts the set has, and in which order; over columns, never over records."""
    tables, part, row = [], [], []
    for n, path in enumerate(parts):
        table = pq.read_table(path, columns=PLAN)
        stays = np.flatnonzero(pc.equal(table.column("dropped"), "").to_numpy())
        tables.append(table.take(pa.array(stays)).replace_schema_metadata(None))
        part.append(np.full(len(stays), n, np.int32))
        row.append(stays)
    columns = pa.concat_tables(tables)
    rows = Rows(tuple(parts), np.concatenate(part), np.concatenate(row).astype(np.int64))
    ids = columns.column("id").to_numpy()
    sources = columns.column("source").to_numpy()
    entropy = columns.column("entropy_bits").to_numpy().astype(float)
    reasons = recipe.subset.reasons(ids, sources, entropy, recipe.seed)
    by_order = order(ids, recipe.seed)
    stays, goes = by_order[reasons[by_order] == ""], by_order[reasons[by_order] != ""]
    funnel = Funnel(Counter(sources.tolist()), Counter(sources[stays].tolist()), Counter(sources[stays].tolist()))
    for source, reason in zip(sources[goes].tolist(), reasons[goes].tolist(), strict=True):
        funnel.dropped.setdefault(source, Counter())[reason] += 1
    funnel.check("subset")
    if not len(stays):
        raise StageError("nothing is left: every record was dropped. `datakit check` shows what each rule does")
    return Chosen(rows.take(stays), columns.take(pa.array(stays)), rows.take(goes), reasons[goes].tolist(), funnel)


def dropped_records(parts: dict[str, list[Path]], chosen: Chosen) -> pa.Table:
    """Every record that was left out, by any stage, with the stage's name; in order of source, name and window."""
    tables = []
    seen: set[Path] = set()
    for stage, paths in parts.items():
        for path in paths:
            if path in seen:  # a stage that the recipe leaves out passes its parts on
                continue
            seen.add(path)
            table = pq.read_table(path).replace_schema_metadata(None)
            lost = table.filter(pc.not_equal(table.column("dropped"), ""))
            tables.append(lost.append_column("stage", pa.array([stage] * lost.num_rows, pa.string())))
    if len(chosen.left_out):
        lost = chosen.left_out.read()
        lost = lost.set_column(SCHEMA.get_field_index("dropped"), SCHEMA.field("dropped"), pa.array(chosen.reasons))
        tables.append(lost.append_column("stage", pa.array(["subset"] * lost.num_rows, pa.string())))
    return pa.concat_tables(tables).sort_by([(n, "ascending") for n in ("source", "name", "key", "stage")])


def shard_jobs(recipe: Recipe, chosen: Chosen, out: Path, work: Path) -> list[ShardJob]:
    """The shards of each split, each with the digest of all that it is made of."""
    size = chosen.columns.column("staged_bytes").to_numpy()
    splits = chosen.columns.column("split").to_numpy()
    ids = chosen.columns.column("id").to_numpy()
    names = {recipe.shards.split} if recipe.shards.split else set(splits.tolist())
    jobs = []
    for split in sorted(names):
        members = np.arange(len(ids)) if recipe.shards.split else np.flatnonzero(splits == split)
        cuts = recipe.shards.cuts(int(size[members].sum()), len(members))
        for n, (low, high) in enumerate(pairwise(cuts)):
            name = f"{recipe.name}-{split or 'unsplit'}-{n:06d}.tar"
            rows = chosen.rows.take(members[low:high])
            made_of = [str(p.relative_to(work)) for p in rows.parts]
            which = hashlib.blake2b(ids[members[low:high]].tobytes()).hexdigest()
            made = digest(str(recipe.shards.VERSION), recipe.cut.encode.suffix, name, which, *made_of)
            sidecar = work / "shards" / f"{made}.parquet"
            jobs.append(ShardJob(name, split, recipe.cut.encode.suffix, rows, sidecar, out, work))
    (work / "shards").mkdir(exist_ok=True)
    (work / "pictures").mkdir(exist_ok=True)
    return jobs


def needed_bytes(shards: Sequence[ShardJob], pictures: Sequence[PictureJob]) -> dict[str, int]:
    """How far each staging file must reach for these shards and pictures to be made."""
    needed: dict[str, int] = {}
    for job in shards:
        for staged, end in staged_ends(job.rows).items():
            needed[staged] = max(needed.get(staged, 0), end)
    for sample in (s for job in pictures for s in job.samples if s.staged):
        needed[sample.staged] = max(needed.get(sample.staged, 0), sample.staged_offset + sample.staged_bytes)
    return needed


def staged_ends(rows: Rows) -> dict[str, int]:
    """The last byte of each staging file that these rows need."""
    table = rows.read().select(["staged", "staged_offset", "staged_bytes"])
    ends = pc.add(table.column("staged_offset"), table.column("staged_bytes"))
    last = table.append_column("end", ends).group_by("staged").aggregate([("end", "max")])
    return dict(zip(last.column("staged").to_pylist(), last.column("end_max").to_pylist(), strict=True))


def ends(jobs: Sequence[ShardJob], work: Path) -> list[dict[Path, int]]:
    """Before each shard, how far the staging files must reach for it and those before it."""
    reach: dict[Path, int] = {}
    out = []
    for job in jobs:
        for staged, end in staged_ends(job.rows).items():
            reach[work / staged] = max(reach.get(work / staged, 0), end)
        out.append(dict(reach))
    return out


def finish(
    story: Story, chosen: Chosen, jobs: list[ShardJob], dropped: pa.Table, pictures: list[PictureJob]
) -> Manifest:
    """Write the tables, the index and the card, then the manifest; remove what an earlier build left besides."""
    out, recipe = story.out, story.recipe
    shards = [written_shard(job) for job in jobs]
    for old in out.glob(f"{recipe.name}-*-[0-9][0-9][0-9][0-9][0-9][0-9].tar"):
        if old.name not in {s.name for s in shards}:
            old.unlink()
    members = (recipe.cut.encode.suffix, "json")
    write_samples(jobs, out, members)
    put(out, "dropped.parquet", lambda path: write_table(dropped.drop_columns(NOT_LEFT), path))
    small = [pq.read_table(job.path) for job in pictures]
    table = pa.concat_tables(small) if small else PICTURES.empty_table()
    put(out, "pictures.parquet", lambda path: write_table(table, path))
    manifest = Manifest(
        name=recipe.name,
        title=recipe.title,
        recipe=recipe.model_dump(mode="json"),
        recipe_digest=recipe.digest(),
        versions={"datakit": __version__, "pyarrow": pa.__version__, **image.versions()},
        sources=tuple(sources_left(story, chosen)),
        missing=story.missing,
        samples=sum(s.samples for s in shards),
        members=members,
        shards=tuple(shards),
        counts=tuple(counts(story.funnels)),
        files={},
    )
    put(out, "README.md", lambda path: path.write_text(card.text(manifest), encoding="utf-8"))
    names = ("README.md", "dropped.parquet", "index.arrow", "pictures.parquet", "samples.parquet")
    manifest = manifest.model_copy(update={"files": {name: sha256(out / name) for name in names}})
    put(out, TIMINGS, lambda path: path.write_text(timings(story)))
    shutil.rmtree(out / PARTIAL, ignore_errors=True)
    put(out, "manifest.json", lambda path: path.write_text(manifest.to_json(), encoding="utf-8"))
    shutil.rmtree(out / PARTIAL, ignore_errors=True)
    return manifest


def written_shard(job: ShardJob) -> Shard:
    about = written(job)
    if about is None:
        raise StageError(
            f"{job.out / job.name} is gone: something else removes files there. Run the same command again"
        )
    return Shard(**about)


def write_samples(jobs: list[ShardJob], out: Path, members: tuple[str, ...]) -> None:
    """samples.parquet and index.arrow, row for row in the order of the shards."""
    wanted = index.schema(members)
    rows, shards = [], []
    temporary = partial_path(out, "samples.parquet")
    writer = None
    for n, job in enumerate(jobs):
        table = pq.read_table(job.sidecar)
        about = written_shard(job)
        shards.append(about.model_dump(mode="json"))
        table = table.replace_schema_metadata(None).append_column("shard", pa.array([n] * table.num_rows, pa.int32()))
        split = about.split
        named = table.set_column(table.schema.get_field_index("split"), "split", pa.array([split] * table.num_rows))
        rows.append(named.select(wanted.names).cast(wanted))
        table = table.drop_columns([*NOT_LEFT, *NOT_OF_KEPT])
        writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
        writer.write_table(table)
    if writer:
        writer.close()
    sync(temporary)
    temporary.replace(out / "samples.parquet")
    put(out, "index.arrow", lambda path: index.write(pa.concat_tables(rows), path, shards))


def write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")


def put(out: Path, name: str, write: Callable[[Path], Any]) -> None:
    """Write a file aside, and give it its name when it is whole."""
    temporary = partial_path(out, name)
    write(temporary)
    sync(temporary)
    temporary.replace(out / name)


def sources_left(story: Story, chosen: Chosen) -> list[SourceLeft]:
    """What each source gave: samples, bytes and what encoding cost."""
    recipe = {s.name: s.collection for s in story.recipe.sources}
    source = chosen.columns.column("source").to_numpy()
    size = chosen.columns.column("staged_bytes").to_numpy()
    psnr = chosen.columns.column("psnr_db").to_numpy().astype(float)
    left = []
    for name in sorted(story.funnels["list"].came):
        about = recipe[name.partition("/")[0]]
        mine = source == name
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


def timings(story: Story) -> str:
    """The one file that may differ between two builds of the same."""
    plain = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "out": str(story.out),
        "work": str(story.work),
        "roots": {name: str(root) for name, root in sorted(story.roots.items())},
        "seconds": {k: round(v, 3) for k, v in story.seconds.items()},
        "worker_seconds": {k: {s: round(v, 3) for s, v in by.items()} for k, by in story.part_seconds.items()},
        "read_bytes": story.read_bytes,
        "work_done": dict(sorted(story.counts.items())),
    }
    return json.dumps(plain, indent=1) + "\n"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep_note(work: Path, name: str, out: Path, paths: Sequence[Path]) -> None:
    """Note which files of the work folder a build uses, so that `gc` leaves them: before they are made."""
    (work / "builds").mkdir(exist_ok=True)
    note = {"recipe": name, "out": str(out), "uses": sorted({str(p.relative_to(work)) for p in paths})}
    path = work / "builds" / f"{name}-{digest(str(out))}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(note))
    temporary.replace(path)
