"""From parts to a set: which samples it has, in which order, in which shards, and what was left out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from . import disk
from .decide import Decided
from .dropped import SAID, Dropped
from .errors import StageError
from .pictures import PictureJob
from .recipe import Recipe
from .remote import Root
from .run import Funnel, read_done
from .sample import SCHEMA, digest, mix64
from .sides import PLACED
from .stages.shards import Reach, Rows, ShardJob, order, pick

FEW = ("source", "split", "staged")  # texts of which there are few: kept as numbers
MOST_READS = 10_000  # of parts by all shards, 10 ms each
AT_ONCE = 1 << 17  # records that are read together: 1.3 kB each, several times
PLAN = [*FEW, "id", "entropy_bits", "psnr_db", "staged_offset", "staged_bytes"]


@dataclass(frozen=True)
class Chosen:
    """The samples of the set, in its order, and those that `subset` left out with their reasons."""

    rows: Rows
    columns: pa.Table  # PLAN, of the same rows
    left_out: Rows
    reasons: pa.Array
    funnel: Funnel
    changes: pa.Table  # what kept samples took over from exact duplicates


def choose(recipe: Recipe, parts: list[Path], decided: Decided) -> Chosen:
    """Which samples of the last parts the set has, and in which order; over columns, never over records."""
    rows, columns = kept_rows(parts, decided)
    ids, sources = columns.column("id").to_numpy(), names_of(columns.column("source"))
    entropy = columns.column("entropy_bits").to_numpy().astype(float)
    reasons, split, placed = np.full(len(ids), "", object), recipe.subset.split, None
    if split:
        placed = rows.read(PLACED)
        side, reasons = split.sides(placed, recipe.seed)
        at = columns.schema.get_field_index("split")
        columns = columns.set_column(at, "split", pa.array(side, pa.string()).dictionary_encode())
    left_in = np.flatnonzero(reasons == "")
    reasons[left_in] = recipe.subset.reasons(ids[left_in], sources[left_in], entropy[left_in], recipe.seed)
    reasons[left_in[np.isin(ids[left_in], recipe.decisions.ids())]] = ""
    by_order = order(ids, recipe.seed)
    out = np.asarray(reasons != "", bool)[by_order]
    stays, goes = by_order[~out], by_order[out]
    if not len(stays):
        raise StageError("nothing is left: `subset` leaves out every tile; raise its count, shares or caps")
    if split and placed is not None:
        split.check(placed.take(pa.array(stays)), side[stays])
    taken = disk.ahead(lambda column: column.take(pa.array(stays)), columns.columns)
    chosen, why = pa.table([*taken], columns.column_names), pa.array(reasons[goes], pa.string())
    left = counted(chosen.column("source"))
    funnel = Funnel(counted(columns.column("source")), left, Counter(left))
    lost = pa.table({"source": pa.array(sources[goes], pa.string()), "why": why}).group_by(["source", "why"])
    for one in lost.aggregate([([], "count_all")]).to_pylist():
        funnel.dropped.setdefault(one["source"], Counter())[one["why"]] = one["count_all"]
    funnel.check("subset")
    return Chosen(rows.take(stays), chosen, rows.take(goes), why, funnel, decided.changes)


def kept_rows(parts: list[Path], decided: Decided) -> tuple[Rows, pa.Table]:
    """The records of the last parts that no stage has dropped: where they are, and PLAN of them."""
    gone = decided.gone()

    def read(n: int) -> tuple[NDArray[np.int64], pa.Table]:
        table = disk.read_table(parts[n], [*PLAN, "dropped"])
        kept = np.array(pc.equal(table.column("dropped"), ""))
        kept[gone.get(n, [])] = False
        return np.flatnonzero(kept), as_numbers(table.select(PLAN).filter(pa.array(kept)), *FEW)

    row, tables = zip(*disk.ahead(read, range(len(parts))), strict=True)
    part = np.repeat(np.arange(len(parts), dtype=np.int32), [len(stays) for stays in row])
    columns = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    return Rows(tuple(parts), part, np.concatenate(row)), columns


def as_numbers(table: pa.Table, *names: str) -> pa.Table:
    """A table whose columns of those names are numbers of the texts that occur."""
    for name in names:
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, table.column(name).dictionary_encode())
    return table.replace_schema_metadata(None)


def names_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of few texts as an array of these, not of copies of them: (N,) object."""
    column = column.combine_chunks()
    names: NDArray[Any] = np.array(column.dictionary.to_pylist(), object)
    out: NDArray[Any] = names[column.indices.to_numpy()]
    return out


def counted(column: pa.ChunkedArray) -> Counter[str]:
    """How often each text occurs."""
    return Counter({one["values"]: one["counts"] for one in pc.value_counts(column).to_pylist()})


def dropped_records(
    parts: dict[str, list[Path]], decided: Decided, chosen: Chosen, clean: Container[Path] = ()
) -> Dropped:
    """Every record that was left out, by any stage, with the stage's name; in order of source, name and window.

    clean: parts in which no record is known to be dropped.
    """
    stages: dict[Path, str] = {}
    for stage, paths in parts.items():
        for path in paths:
            stages.setdefault(path, stage)  # a stage that the recipe leaves out passes its parts on
    stages = {path: stage for path, stage in stages.items() if path not in clean}
    by_rules = [path for path, lost in zip(stages, disk.ahead(loses, stages), strict=True) if lost]
    every = list(dict.fromkeys([*parts["measured"], *by_rules]))
    number = {path: n for n, path in enumerate(every)}
    tables = []
    for path, table in zip(by_rules, disk.tables(by_rules, SAID), strict=True):
        lost = np.flatnonzero(pc.not_equal(table.column("dropped"), ""))
        tables.append(said(table.take(pa.array(lost)), np.full(len(lost), number[path], np.int32), lost, stages[path]))
    for stage, gone in decided.lost.items():
        tables.append(said(gone, gone.column("part").to_numpy(), gone.column("row").to_numpy(), stage))
    out = chosen.left_out
    part = np.array([number[path] for path in out.parts], np.int32)[out.part]
    tables.append(said(pa.table({"dropped": chosen.reasons}), part, out.row, "subset"))
    return in_order(tuple(every), pa.concat_tables(tables).unify_dictionaries().combine_chunks())


def loses(path: Path) -> bool:
    """Whether the stage that made a part dropped records in it."""
    return bool(read_done(path).funnel.dropped)


def said(table: pa.Table, part: NDArray[np.int32], row: NDArray[np.int64], stage: str) -> pa.Table:
    """Why records go, and where they are. Of SAID, what the table does not have is as in a kept record."""
    n = len(row)
    for name in SAID:
        if name not in table.column_names:
            kind = SCHEMA.field(name).type
            none = pa.scalar("" if kind == pa.string() else None, kind)
            table = table.append_column(name, pa.repeat(none, n))
    table = table.select(SAID).append_column("stage", pa.repeat(pa.scalar(stage), n))
    table = table.append_column("part", pa.array(part)).append_column("row", pa.array(row))
    return as_numbers(table, "dropped", "turned", "stage")


def in_order(parts: tuple[Path, ...], table: pa.Table) -> Dropped:
    """Records that are told by `part` and `row`, in order of source, name, key and stage."""
    rows = Rows(parts, table.column("part").to_numpy(), table.column("row").to_numpy())
    names = rows.read(["id", "source", "name", "key"]) if len(rows) else SCHEMA.empty_table()
    table = table.drop_columns(["part", "row"]).append_column("id", names.column("id"))
    table = as_numbers(table.append_column("source", names.column("source")), "source").combine_chunks()
    keys = pa.table({name: rank(table.column(name)) for name in ("source", "stage")})
    keys = keys.append_column("name", names.column("name")).append_column("key", names.column("key"))
    by = pc.sort_indices(keys, [(n, "ascending") for n in ("source", "name", "key", "stage")])
    place = by.to_numpy().astype(np.int64)
    return Dropped(Rows(parts, rows.part[place], rows.row[place]), table.take(by))


def rank(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Numbers that sort as the few texts of a column do."""
    column = column.combine_chunks()
    ranks = np.empty(len(column.dictionary), np.int64)
    ranks[np.asarray(pc.sort_indices(column.dictionary), np.int64)] = np.arange(len(ranks))
    out: NDArray[np.int64] = ranks[column.indices.to_numpy()]
    return out


def shard_jobs(recipe: Recipe, chosen: Chosen, out: Root, work: Path) -> list[ShardJob]:
    """The shards of each split, each with the digest of all that it is made of."""
    size, ids = (chosen.columns.column(name).to_numpy() for name in ("staged_bytes", "id"))
    splits = chosen.columns.column("split").combine_chunks()
    one = "" if recipe.subset.split else recipe.shards.split
    names = [one] if one else sorted(counted(splits))
    suffixes = recipe.members()
    parts = tuple(str(p.relative_to(work)) for p in chosen.rows.parts)
    changes, reach = Changes(chosen.changes, ids, recipe.seed), Reaches(chosen.columns)
    jobs = []
    for split in names:
        members = np.arange(len(ids)) if one else np.flatnonzero(pc.equal(splits, split))
        cuts = recipe.shards.cuts(int(size[members].sum()), len(members))
        for n, (low, high) in enumerate(pairwise(cuts)):
            name, mine = f"{recipe.name}-{split or 'unsplit'}-{n:06d}.tar", members[low:high]
            changed = changes.of(mine)
            which = hashlib.blake2b(ids[mine].tobytes()).hexdigest()
            made_of = [*pick(parts, chosen.rows.used(mine)), json.dumps(changed.to_pylist())]
            made = digest(str(recipe.shards.VERSION), *suffixes, name, which, *made_of)
            sidecar = work / "shards" / f"{made}.parquet"
            rows = chosen.rows.take(mine)
            jobs.append(ShardJob(name, split, suffixes, sidecar, out, work, rows, changed, reach.of(mine)))
    (work / "shards").mkdir(exist_ok=True)
    (work / "pictures").mkdir(exist_ok=True)
    return jobs


def gathers(jobs: Sequence[ShardJob]) -> list[list[ShardJob]]:
    """Groups of shards whose records are to be read together; none where each on its own reads few parts."""
    groups: list[list[ShardJob]] = []
    if sum(len(job.rows.parts) for job in jobs) <= MOST_READS:
        return groups
    count = AT_ONCE
    for job in jobs:
        if not job.gathered.exists():
            if count + len(job.rows) > AT_ONCE:
                groups.append([])
                count = 0
            groups[-1].append(job)
            count += len(job.rows)
    return groups


class Changes:
    """What samples took over, by where they come in the set."""

    def __init__(self, changes: pa.Table, ids: NDArray[np.int64], seed: int) -> None:
        theirs = changes.column("id").to_numpy()
        places = np.searchsorted(mix64(ids, seed), mix64(theirs, seed))  # ascending: that is the order of the set
        there = np.flatnonzero(ids[np.minimum(places, len(ids) - 1)] == theirs)
        by = there[np.argsort(places[there], kind="stable")]
        self.table, self.rows, self.places = changes, by, places[by]

    def of(self, samples: NDArray[np.int64]) -> pa.Table:
        """Those of some samples, ascending, in the order of the table."""
        low, high = np.searchsorted(self.places, [samples[0], samples[-1] + 1])
        rows, places = self.rows[low:high], self.places[low:high]
        at = np.minimum(np.searchsorted(samples, places), len(samples) - 1)
        return self.table.take(pa.array(np.sort(rows[samples[at] == places])))


class Reaches:
    """Where the bytes of samples are staged."""

    def __init__(self, columns: pa.Table) -> None:
        staged = columns.column("staged").combine_chunks()
        self.files, self.file = tuple(staged.dictionary.to_pylist()), staged.indices.to_numpy()
        self.end_bytes = columns.column("staged_offset").to_numpy() + columns.column("staged_bytes").to_numpy()

    def of(self, samples: NDArray[np.int64]) -> Reach:
        """How far some samples need the staging files."""
        ends = np.zeros(len(self.files), np.int64)
        np.maximum.at(ends, self.file[samples], self.end_bytes[samples])
        return Reach(self.files, ends)


def needed_bytes(shards: Sequence[ShardJob], pictures: Sequence[PictureJob]) -> dict[str, int]:
    """How far each staging file must reach for these shards and pictures to be made."""
    needed = ends(shards)[-1].needed() if shards else {}
    for sample in (s for job in pictures for s in job.samples if s.staged):
        needed[sample.staged] = max(needed.get(sample.staged, 0), sample.staged_offset + sample.staged_bytes)
    return needed


def ends(jobs: Sequence[ShardJob]) -> list[Reach]:
    """With each shard, how far the staging files must reach for it and those before it."""
    both = np.maximum.accumulate([job.reach.end_bytes for job in jobs])
    return [Reach(job.reach.files, end) for job, end in zip(jobs, both, strict=True)]
