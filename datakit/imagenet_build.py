"""A build of ImageNet-S: the samples of every split in their order, copied into shards, and what is left besides."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from . import __version__, croissant, disk, imagenet_card, index, leave
from .copies import CopyJob, bad_of, bytes_of, index_rows, write_copies
from .croissant import NAME as CROISSANT
from .croissant import SAMPLES
from .disk import close_out
from .engine import Engine
from .errors import StageError
from .imagenet_s import SHOWN, ImageNetS, Sources, neighbours
from .leave import BEFORE, TIMINGS, Out, written_shard
from .manifest import Count, Manifest, SourceLeft
from .remote import Root
from .run import Funnel, write_part
from .sample import digest
from .sources.imagenet_s import SEMI, WITH_MASKS, plain
from .stages.shards import SEG, note_of, order, written
from .tally import Tally

VERSION = 1  # raise it when other bytes come out for the same input
SOURCE = "imagenet_s"  # of all samples
ABOUT = "imagenet_s.json"
DROPPED = pa.schema([(name, pa.string()) for name in ("split", "name", "dropped", "detail")])


@dataclass
class Copying:
    """One build of ImageNet-S under way."""

    recipe: ImageNetS
    sources: Sources
    out: Root
    work: Path
    engine: Engine
    say: Callable[[str], None]
    allow_missing: bool
    seconds: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def run(self) -> Manifest:
        """Everything, in order. Shards that are there already are not written again."""
        self.tell()
        self.sources.check(self.allow_missing)
        before = leave.shards_before(self.recipe.name, self.out, self.work)
        jobs = self.jobs()
        uses = [path for job in jobs for path in (job.table, job.sidecar, note_of(job))]
        leave.keep_note(self.work, self.recipe.name, self.out, uses, finished=True)
        if (self.out / "manifest.json").exists():  # what follows is not whole until there is one again
            disk.set_aside(self.out / "manifest.json", self.out / BEFORE, self.work)
        self.write([job for job in jobs if written(job) is None], len(jobs))
        dropped = self.dropped(jobs)
        return self.finish(jobs, dropped, before)

    def tell(self) -> None:
        """What is known before anything is written."""
        for line in (*self.sources.notes, *(self.sources.problems if self.allow_missing else ())):
            self.say(f"warning: {line}")
        for other, folder in neighbours(self.out, self.recipe.variant).items():
            numbers = [f"{len(names):,} {how.replace('_', ' ')}" for how, names in self.sources.leaks[other].items()]
            what = f"{folder} is variant {other}; images of this one: {', '.join(numbers)}"
            self.say(f"warning: {what}. Do not tune on one variant and test on another")
        for split, n in self.sources.found.items():
            self.say(f"list: {split}: {n:,} samples")

    def jobs(self) -> list[CopyJob]:
        """The shards of each split, in ascending order of mix64(id, seed), with the digest of what it is made of."""
        start = time.monotonic()
        jobs = []
        for folder in (self.work / "list" / SOURCE, self.work / "shards"):
            folder.mkdir(parents=True, exist_ok=True)
        with disk.aside(self.work) as aside:
            for split in self.sources.found:
                table = in_order(self.sources.plan.tables.pop(split), self.recipe.seed)
                jobs += self.of_split(split, table, aside) if table.num_rows else []
        self.seconds["list"] = time.monotonic() - start
        return jobs

    def of_split(self, split: str, table: pa.Table, aside: Path) -> list[CopyJob]:
        """The shards of a split, whose samples a table has in their order; it is kept for those who write them."""
        recipe, places = self.recipe, list(pairwise(self.recipe.shards.cuts(int(bytes_of(table).sum()), len(table))))
        contents = [content(table.slice(low, high - low)) for low, high in places]
        path = self.work / "list" / SOURCE / f"{split}-{digest(*contents)}.parquet"
        if not path.exists():
            all_of_them = Counter({SOURCE: table.num_rows})
            write_part(table, path, aside, Funnel(all_of_them, all_of_them, all_of_them))
        members = ("jpg", *([SEG] if split in WITH_MASKS else []), "json", "cls")
        most_id = int(recipe.variant) if recipe.variant != "1k" else 0
        jobs = []
        for n, ((low, high), has) in enumerate(zip(places, contents, strict=True)):
            name = f"{recipe.name}-{split}-{n:06d}.tar"
            made = digest(SOURCE, str(VERSION), *members, recipe.variant, str(most_id), name, has)
            sidecar = self.work / "shards" / f"{made}.parquet"
            at, roots = (name, split, members, sidecar, self.out, self.work), self.sources.roots
            jobs.append(CopyJob(*at, path, low, high, recipe.variant, most_id, roots))
        return jobs

    def write(self, jobs: list[CopyJob], of: int) -> None:
        start = said = time.monotonic()
        for n, _ in enumerate(self.engine.map(write_copies, jobs), 1):
            self.counts["shards_written"] += 1
            if n == len(jobs) or time.monotonic() - said > 1.0:
                said = time.monotonic()
                left = (said - start) / n * (len(jobs) - n)
                self.say(f"shards: {n:,} of {len(jobs):,}" + (f", about {left:,.0f} s left" if left else ""))
        self.counts["shards_there"] = of - len(jobs)
        self.seconds["shards"] = time.monotonic() - start

    def dropped(self, jobs: list[CopyJob]) -> pa.Table:
        """What was left out, and why; StageError if something could not be read and that is not allowed."""
        bad = [(job.split, *one) for job in jobs for one in bad_of(job)]
        if bad and not self.allow_missing:
            lines = [f"  {split}: {name}: {reason}: {detail}" for split, name, reason, detail in bad[:SHOWN]]
            more = [f"  and {len(bad) - SHOWN:,} more"] if len(bad) > SHOWN else []
            advice = "Fetch these files again, or leave them out with --allow-missing"
            raise StageError("\n".join([f"{len(bad):,} samples cannot be read:", *lines, *more, advice]))
        rows = [(split, name, "missing", "") for split, names in self.sources.plan.missing.items() for name in names]
        columns = zip(*sorted([*rows, *bad]), strict=True) if rows or bad else [()] * len(DROPPED)
        return pa.table([pa.array(list(column), pa.string()) for column in columns], schema=DROPPED)

    def finish(self, jobs: list[CopyJob], dropped: pa.Table, before: set[str]) -> Manifest:
        """The tables, the index and the card, then the manifest; what an earlier build left besides is removed."""
        recipe, out = self.recipe, Out(self.out, self.work)
        shards = [written_shard(job) for job in jobs]
        for name in before - {shard.name for shard in shards}:
            (self.out / name).unlink(missing_ok=True)
        members = tuple(m for m in ("jpg", SEG, "json", "cls") if any(m in job.members for job in jobs))
        wanted = index.schema(members)
        rows = pa.concat_tables([index_rows(job, wanted, n, SOURCE) for n, job in enumerate(jobs)])
        said = [shard.model_dump(mode="json") for shard in shards]
        out.put("index.arrow", lambda path: index.write(rows, path, said))
        tally = Tally()
        out.put(SAMPLES, lambda path: self.write_samples(jobs, path, tally))
        out.put("dropped.parquet", lambda path: leave.write_table(dropped, path))
        out.put_text(ABOUT, json.dumps(self.about(), indent=1) + "\n")
        said_so = portable(recipe)
        manifest = Manifest(
            name=recipe.name,
            title=recipe.title,
            recipe=said_so,
            recipe_digest=digest(json.dumps(said_so, sort_keys=True)),
            versions={"datakit": __version__, "pyarrow": pa.__version__},
            sources=(self.left(rows),),
            missing=tuple(split for split, n in self.sources.expected.items() if self.sources.found.get(split, 0) < n),
            samples=sum(shard.samples for shard in shards if shard.split != SEMI),
            members=members,
            shards=tuple(shards),
            counts=tuple(self.counted(jobs)),
            files={},
        )
        out.put_text("README.md", imagenet_card.text(manifest, recipe, self.about()))
        out.put_text(CROISSANT, croissant.text(manifest, tally, out.digests[SAMPLES]))
        names = ("README.md", CROISSANT, "dropped.parquet", ABOUT, "index.arrow", SAMPLES)
        manifest = manifest.model_copy(update={"files": {name: out.digests[name] for name in sorted(names)}}).sealed()
        at = self.out, self.work, self.sources.roots
        out.put_text(TIMINGS, leave.timings(at, self.seconds, self.counts, {}, {}))
        out.put_text("manifest.json", manifest.to_json())
        close_out(self.out)
        return manifest

    def write_samples(self, jobs: list[CopyJob], path: Path, tally: Tally) -> None:
        """Every sample, in the order of the index, without where its members lie: the index says that."""
        writer, licences = None, pa.scalar([self.recipe.collection.licence], pa.list_(pa.string()))
        for n, job in enumerate(jobs):
            table = pq.read_table(job.sidecar).replace_schema_metadata(None)
            table = table.drop_columns([f"{member}_offset" for member in job.members])
            table = table.rename_columns([name.replace(".", "_") for name in table.column_names])
            if f"{SEG.replace('.', '_')}_bytes" not in table.column_names:
                table = table.append_column("seg_png_bytes", pa.array(np.zeros(table.num_rows, np.int64)))
            table = table.append_column("shard", pa.array(np.full(table.num_rows, n, np.int32)))
            table = table.append_column("licences", pa.repeat(licences, table.num_rows))
            table = table.select(sorted(table.column_names, key=COLUMNS.index))
            tally.add(table)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
        if writer:
            writer.close()

    def about(self) -> dict[str, Any]:
        """What imagenet_s.json says: lists, counts beside the published ones, what is missing, what variants share."""
        sources = self.sources
        return {
            "variant": self.recipe.variant,
            "lists": sources.files,
            "published": sources.expected,
            "found": sources.found,
            "missing": sources.plan.missing,
            "shared_with": sources.leaks,
            "notes": sources.notes,
        }

    def left(self, rows: pa.Table) -> SourceLeft:
        about = self.recipe.collection
        counted = np.asarray(rows.column("split")) != SEMI
        size = rows.column("jpg_bytes").to_numpy()[counted]
        return SourceLeft(
            name=SOURCE,
            title=self.recipe.title or about.title,
            version=about.version,
            homepage=about.homepage,
            licence=about.licence,
            provider_terms=about.provider_terms,
            samples=int(counted.sum()),
            bytes=int(size.sum()),
            mean_bytes=round(float(size.mean()), 1) if len(size) else 0.0,
            mean_psnr_db=None,
            unmatched=0,
        )

    def counted(self, jobs: list[CopyJob]) -> list[Count]:
        """Images that were found and used (train-semi, which is of train, apart), and samples that were written."""
        found = {f"{SOURCE}/{split}": n for split, n in self.sources.found.items()}
        used = sum(n for split, n in self.sources.found.items() if split != SEMI)
        rest = {"of_no_split": self.sources.plan.came - used} if self.sources.plan.came > used else {}
        counts = [
            Count(
                stage="list",
                source=SOURCE,
                came=self.sources.plan.came,
                left=used,
                made=sum(found.values()),
                dropped=rest,
            )
        ]
        for source, came in sorted(found.items()):
            reasons = Counter(
                reason for job in jobs if f"{SOURCE}/{job.split}" == source for _, reason, _ in bad_of(job)
            )
            kept = came - reasons.total()
            dropped = dict(sorted(reasons.items()))
            counts.append(Count(stage="shards", source=source, came=came, left=kept, made=kept, dropped=dropped))
        return counts


COLUMNS = [
    "key", "id", "shard", "split", "wnid", "imagenet_wnid", "class_id", "same_as", "name", "licences",
    "width", "height", "jpg_bytes", "seg_png_bytes", "json_bytes", "cls_bytes",
]  # fmt: skip


def in_order(table: pa.Table, seed: int) -> pa.Table:
    """Rows in ascending order of mix64(id, seed), column by column: a million are not held twice."""
    rows, columns, names = pa.array(order(table.column("id").to_numpy(), seed)), table.columns, table.column_names
    del table
    return pa.table([columns.pop(0).take(rows) for _ in names], names)


def content(table: pa.Table) -> str:
    """16 hex digits of the rows of a table, however its texts are held."""
    state = xxhash.xxh3_64()
    for batch in plain(table).combine_chunks().to_batches():
        state.update(batch.serialize())
    return state.hexdigest()


def portable(recipe: ImageNetS) -> dict[str, Any]:
    """A recipe as plain data in which neither a folder of this machine nor the layout on its disk stands."""
    return recipe.model_dump(mode="json", exclude={"imagenet", "annotations", "lists"})
