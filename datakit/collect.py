"""From parts to a set: which samples it has, in which order, in which shards, and what was left out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .crowd import SAID
from .decide import Decided
from .errors import StageError
from .pictures import PictureJob
from .recipe import Recipe
from .remote import Root
from .run import Funnel
from .sample import SCHEMA, digest
from .stages.shards import Rows, ShardJob, order

PLAN = ["id", "source", "split", "entropy_bits", "psnr_db", "staged", "staged_offset", "staged_bytes", "dropped"]


@dataclass(frozen=True)
class Chosen:
    """The samples of the set, in its order, and those that `subset` left out with their reasons."""

    rows: Rows
    columns: pa.Table  # PLAN, of the same rows
    left_out: Rows
    reasons: list[str]
    funnel: Funnel
    changes: pa.Table  # what kept samples took over from exact duplicates


def choose(recipe: Recipe, parts: list[Path], decided: Decided) -> Chosen:
    """Which samples of the last parts the set has, and in which order; over columns, never over records."""
    tables, part, row = [], [], []
    gone = decided.gone()
    for n, path in enumerate(parts):
        table = pq.read_table(path, columns=PLAN)
        kept = pc.equal(table.column("dropped"), "").to_numpy().copy()
        kept[gone.get(n, [])] = False
        stays = np.flatnonzero(kept)
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
        raise StageError("nothing is left: `subset` leaves out every tile; raise its count, shares or caps")
    return Chosen(
        rows.take(stays),
        columns.take(pa.array(stays)),
        rows.take(goes),
        reasons[goes].tolist(),
        funnel,
        decided.changes,
    )


def dropped_records(parts: dict[str, list[Path]], decided: Decided, chosen: Chosen) -> pa.Table:
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
    for stage, gone in decided.lost.items():
        if gone.num_rows:
            lost = Rows(tuple(parts["measured"]), gone.column("part").to_numpy(), gone.column("row").to_numpy()).read()
            for name in SAID:
                lost = lost.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), gone.column(name))
            tables.append(lost.append_column("stage", pa.array([stage] * lost.num_rows, pa.string())))
    if len(chosen.left_out):
        lost = chosen.left_out.read()
        lost = lost.set_column(SCHEMA.get_field_index("dropped"), SCHEMA.field("dropped"), pa.array(chosen.reasons))
        tables.append(lost.append_column("stage", pa.array(["subset"] * lost.num_rows, pa.string())))
    return pa.concat_tables(tables).sort_by([(n, "ascending") for n in ("source", "name", "key", "stage")])


def shard_jobs(recipe: Recipe, chosen: Chosen, out: Root, work: Path) -> list[ShardJob]:
    """The shards of each split, each with the digest of all that it is made of."""
    size = chosen.columns.column("staged_bytes").to_numpy()
    splits = chosen.columns.column("split").to_numpy()
    ids = chosen.columns.column("id").to_numpy()
    names = {recipe.shards.split} if recipe.shards.split else set(splits.tolist())
    suffixes = recipe.shards.members(recipe.cut.encode.suffix, recipe.cut.masks)
    jobs = []
    for split in sorted(names):
        members = np.arange(len(ids)) if recipe.shards.split else np.flatnonzero(splits == split)
        cuts = recipe.shards.cuts(int(size[members].sum()), len(members))
        for n, (low, high) in enumerate(pairwise(cuts)):
            name = f"{recipe.name}-{split or 'unsplit'}-{n:06d}.tar"
            rows = chosen.rows.take(members[low:high])
            made_of = [str(p.relative_to(work)) for p in rows.parts]
            which = hashlib.blake2b(ids[members[low:high]].tobytes()).hexdigest()
            changes = chosen.changes.filter(pc.is_in(chosen.changes.column("id"), pa.array(ids[members[low:high]])))
            made_of.append(json.dumps(changes.to_pylist()))
            made = digest(str(recipe.shards.VERSION), *suffixes, name, which, *made_of)
            sidecar = work / "shards" / f"{made}.parquet"
            reach = staged_ends(chosen.columns.take(pa.array(members[low:high])))
            jobs.append(ShardJob(name, split, suffixes, rows, changes, reach, sidecar, out, work))
    (work / "shards").mkdir(exist_ok=True)
    (work / "pictures").mkdir(exist_ok=True)
    return jobs


def staged_ends(columns: pa.Table) -> dict[str, int]:
    """The last byte of each staging file that these samples need."""
    last = columns.append_column("end", pc.add(columns.column("staged_offset"), columns.column("staged_bytes")))
    last = last.group_by("staged").aggregate([("end", "max")])
    return dict(zip(last.column("staged").to_pylist(), last.column("end_max").to_pylist(), strict=True))


def needed_bytes(shards: Sequence[ShardJob], pictures: Sequence[PictureJob]) -> dict[str, int]:
    """How far each staging file must reach for these shards and pictures to be made."""
    needed: dict[str, int] = {}
    for job in shards:
        for staged, end in job.reach.items():
            needed[staged] = max(needed.get(staged, 0), end)
    for sample in (s for job in pictures for s in job.samples if s.staged):
        needed[sample.staged] = max(needed.get(sample.staged, 0), sample.staged_offset + sample.staged_bytes)
    return needed


def ends(jobs: Sequence[ShardJob], work: Path) -> list[dict[Path, int]]:
    """Before each shard, how far the staging files must reach for it and those before it."""
    reach: dict[Path, int] = {}
    out = []
    for job in jobs:
        for staged, end in job.reach.items():
            reach[work / staged] = max(reach.get(work / staged, 0), end)
        out.append(dict(reach))
    return out
