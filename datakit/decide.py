"""Which records go because of what others look like: protect, dedup and same_place, in that order.

They look at all records of the last parts at once, over columns. What each decided is kept in the work folder, and is
not decided again while the records, the lists and the stage's own fields stay the same.

same_place comes last: the tiles that cover another's ground must be there in the end. Were dedup to come after it, an
image could go as the duplicate of one whose tiles went because of it, and their ground would be in no tile at all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from . import disk, guard, image, lookup, merge
from .crowd import LOST, Crowd, read_crowd
from .inherit import CHANGES
from .merge import Merged
from .recipe import Recipe
from .remote import Root
from .run import Funnel
from .sample import Spec, digest
from .sources.scan import Source
from .stages.dedup import order
from .stages.protect import certificate
from .stages.same_place import NEEDS as PLACED
from .stages.same_place import covered, verdict_files

STAGES = ("protect", "dedup", "same_place")
FOLDER = "decided"  # below the work folder
VERSION = 2  # raise it when a decision changes for the same records
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@dataclass
class Decided:
    """What was decided, by stage: records that go (LOST), what is to be said, and what kept records took over."""

    lost: dict[str, pa.Table] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    changes: pa.Table = field(default_factory=CHANGES.empty_table)
    funnels: dict[str, Funnel] = field(default_factory=dict)
    reported: pa.Table | None = None  # duplicates that were only counted
    paths: list[Path] = field(default_factory=list)  # of the work folder

    def gone(self) -> dict[int, NDArray[np.int64]]:
        """Rows that go, by part."""
        tables = self.lost.values()
        if not sum(table.num_rows for table in tables):
            return {}
        part, row = (np.concatenate([t.column(name).to_numpy() for t in tables]) for name in ("part", "row"))
        order = np.argsort(part, kind="stable")
        parts, begins = np.unique(part[order], return_index=True)
        return dict(zip(parts.tolist(), np.split(row[order], begins[1:]), strict=True))


@dataclass
class Decider:
    """Decides, stage by stage; reads the records only if something is not known yet."""

    recipe: Recipe
    parts: Sequence[Path]
    roots: dict[str, Root]
    work: Path
    aside: Path
    map: Map
    say: Callable[[str], None]
    counts: Counter[str]

    def __call__(self, came: Counter[str]) -> Decided:
        """Decide, or remember. came: records kept so far, by source."""
        decided = Decided()
        (self.work / FOLDER).mkdir(exist_ok=True)
        known = digest(*(str(path.relative_to(self.work)) for path in self.parts))
        for stage in STAGES:
            spec = self.spec(stage)
            if spec is None:
                continue
            more = [*self.recipe.prefer, *map(told_by_names, self.recipe.sources), *image.versions().values()]
            more += [metadata.version(name) for name in ("torch", "torchvision", "imagededup")]
            more += self.recipe.decisions.known_by()
            known = spec.digest(known, str(VERSION), str(getattr(spec, "VERSION", 0)), *more)
            path = self.work / FOLDER / f"{stage}-{known}.parquet"
            changes = self.work / FOLDER / f"{stage}-{known}.changes.parquet"
            about = path.with_suffix(".json")
            if not (path.exists() and about.exists() and changes.exists()):
                made = self.decide(stage, decided)
                disk.commit(made.changes, changes, self.aside)
                disk.commit_text(json.dumps(made.about), about, self.aside)
                disk.commit(made.lost, path, self.aside)
            decided.paths += [path, about, changes, *self.caches(stage)]
            lost = pq.read_table(path)
            decided.about[stage] = json.loads(about.read_text())
            if stage == "dedup" and decided.about[stage]["action"] == "report":
                decided.reported, lost = lost, lost.slice(0, 0)
            if stage != "protect" and self.recipe.decisions.keep:
                goes, lost = lost, self.recipe.decisions.spare(lost)
                decided.about[stage] |= {"kept_by_decision": goes.num_rows - lost.num_rows}
            decided.lost[stage] = lost
            decided.changes = pq.read_table(changes).cast(CHANGES) if stage == "dedup" else decided.changes
            decided.funnels[stage] = funnel_of(came, lost)
            came = decided.funnels[stage].made
        decided.about.setdefault("protect", certificate(self.recipe.protect, [], {}, []))
        return decided

    def spec(self, stage: str) -> Spec | None:
        """The stage's fields; None if there is nothing to do."""
        found: Spec | None = getattr(self.recipe, stage)
        return None if stage == "protect" and not self.recipe.protect.lists else found

    def caches(self, stage: str) -> list[Path]:
        """Files of the work folder that make deciding again cheap."""
        if stage == "same_place" and self.recipe.same_place:
            cut = self.recipe.cut
            return verdict_files(self.recipe.same_place, cut.narrow, self.work, cut.encode.keeps_levels)
        if stage == "protect":
            return lookup.files_of(self.recipe.protect, self.parts, self.work)
        uses_cnn = stage == "dedup" and self.recipe.dedup and self.recipe.dedup.signature == "cnn"
        return [p for part in self.parts for p in (self.work / "cnn").glob(f"*/{part.name}")] if uses_cnn else []

    def decide(self, stage: str, decided: Decided) -> Merged:
        alive = self.alive(decided)
        if stage == "same_place":
            return self.same_place(alive)
        if stage == "dedup":
            return merge.dedup(self.recipe, self.crowd, alive, self.work, self.say)
        contain = self.recipe.protect.contain
        shared = lookup.look(self.recipe.protect, self.parts, self.work, self.map, self.say) if contain else None
        lost, about = guard.protect(self.recipe, self.crowd, alive, self.say, shared)
        return Merged(lost, about, CHANGES.empty_table())

    @cached_property
    def crowd(self) -> Crowd:
        return read_crowd(self.parts, self.recipe.sources, self.aside)

    def alive(self, decided: Decided) -> NDArray[np.bool_]:
        """Records that no stage has dropped so far, (N,)."""
        rows = self.crowd.rows  # in order of part and row
        alive = np.ones(len(rows), bool)
        begins = np.searchsorted(rows.part, np.arange(len(self.parts) + 1, dtype=np.int32))
        for part, gone in decided.gone().items():
            begin, end = begins[part : part + 2]
            alive[begin + np.searchsorted(rows.row[begin:end], gone)] = False
        return alive

    def same_place(self, alive: NDArray[np.bool_]) -> Merged:
        """Tiles whose ground kept tiles of other images show, too. Images are ranked as a whole: one covers another."""
        crowd, spec = self.crowd, self.recipe.same_place
        if spec is None:
            raise ValueError("the recipe has no same_place")
        nothing = Merged(LOST.empty_table(), {"not_aligned": 0}, CHANGES.empty_table())
        if not alive.any():
            return nothing
        rank = np.empty(len(crowd.first), np.int64)
        rank[order(crowd.image_facts, self.recipe.prefer)] = np.arange(len(rank))
        by = order(crowd.facts, self.recipe.prefer)
        by = by[np.argsort(rank[crowd.windows.image[by]], kind="stable")]
        by = by[alive[by]]
        by = by[np.asarray(pc.not_equal(crowd.rows.take(by).read(["crs"]).column("crs"), ""))]  # others have no place
        if not len(by):
            return nothing
        table = crowd.rows.take(by).read([*dict.fromkeys(["key", *PLACED])])
        counts: Counter[str] = Counter()
        cut = self.recipe.cut
        levels = cut.encode.keeps_levels
        goes = covered(spec, table, self.roots, self.work, self.map, counts, cut.narrow, levels)
        self.counts += counts
        keys = table.column("key").to_pylist()
        rows = by[np.array(list(goes), np.int64)]
        to = [" ".join(keys[k] for k in those) for those in goes.values()]
        lost = crowd.lost(rows, ["same_place"] * len(rows), to)
        return Merged(lost, {"not_aligned": counts["not_aligned"]}, CHANGES.empty_table())


def told_by_names(source: Source) -> str:
    """What a source's manifest says of places and acquisitions, which names of images tell."""
    about = source.collection.model_dump(mode="json", include={"name", "acquisition", "place", "twin_of"})
    return json.dumps([source.name, about], sort_keys=True)


def funnel_of(came: Counter[str], lost: pa.Table) -> Funnel:
    """What came, stayed and went, by source."""
    dropped: dict[str, Counter[str]] = {}
    for row in lost.group_by(["source", "dropped"]).aggregate([([], "count_all")]).to_pylist():
        dropped.setdefault(row["source"], Counter())[row["dropped"]] = row["count_all"]
    left = came - Counter({source: sum(reasons.values()) for source, reasons in dropped.items()})
    return Funnel(Counter(came), left, Counter(left), dropped)
