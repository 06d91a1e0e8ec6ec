"""A whole build on one page: collections go in at the top, shards come out at the bottom."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from . import collect, disk, files, image, kinds, leave, listing, lookup, origin, run, staging, trouble, undone
from .decide import Decided, Decider
from .engine import Engine
from .errors import SourceError, StageError
from .folders import STEPS, places
from .hand import Limits
from .imagenet_build import Copying
from .imagenet_s import ImageNetS, find
from .leave import BEFORE
from .manifest import Manifest
from .pictures import draw, picture_jobs
from .recipe import Recipe
from .remote import Remote, Root, root_of
from .run import Done, Funnel, Job
from .running import Places, running
from .sample import Spec, Stage, digest
from .sources.scan import Labels, Scan
from .stages.exclude import check_shares
from .stages.protect import NO_LIST, PARTS
from .stages.shards import ShardJob, gather, note_of, write_shard, written

Report = Callable[[str], None]


@dataclass
class Build(leave.Story):
    """One build under way."""

    engine: Engine = field(default_factory=lambda: Engine(0))
    say: Report = print
    read_parts: list[Path] = field(default_factory=list)  # of `scan` and `cut`, where images are opened
    clean: set[Path] = field(default_factory=set)  # parts in which no stage dropped a record
    clock: dict[str, tuple[float, float]] = field(default_factory=dict)  # when a step began, and last said something

    def run(self, free: bool, retry: Sequence[str] = ()) -> Manifest:
        """Everything, in order. What is on disk already is not done again."""
        self.warn()
        parts = self.name_steps(self.list_sources())
        if retry:
            trouble.retry(retry, {step: parts[step] for step in ("scan", "cut")}, self.work, self.say)
            parts = self.name_steps(parts["list"])
        uses = [p for paths in parts.values() for p in paths]
        uses += [self.work / "labels" / f"{name}.parquet" for name in self.labels.values()]
        leave.keep_note(self.work, self.recipe.name, self.out, uses, finished=False)
        for before, step in zip(("list", *STEPS), STEPS, strict=False):
            self.step(step, parts[before], parts[step])
            self.check_chain(before, step)
        if not +self.funnels["measured"].made:
            raise StageError(trouble.nothing_left(self.funnels))
        self.restage(parts, lookup.needed(self.recipe.protect, parts["measured"], self.work))
        decided = self.decide(parts["measured"])
        uses += decided.paths
        chosen = collect.choose(self.recipe, parts["measured"], decided)
        self.funnels["subset"] = chosen.funnel
        dropped = collect.dropped_records({step: parts[step] for step in ("list", *STEPS)}, decided, chosen, self.clean)
        self.outcomes = undone.outcomes(self.recipe.decisions, parts, chosen, dropped)
        for line in undone.lines(self.outcomes):
            self.say(line)
        jobs = collect.shard_jobs(self.recipe, chosen, self.out, self.work)
        with disk.aside(self.work) as aside:
            pictures = picture_jobs(dropped, self.work, aside, self.roots)
            waiting = [job for job in pictures if not job.path.exists()]
            unwritten = [job for job in jobs if written(job) is None]
            self.restage(parts, collect.needed_bytes(unwritten, waiting))
            uses += [job.sidecar for job in jobs] + [note_of(job) for job in jobs] + [job.path for job in pictures]
            leave.keep_note(self.work, self.recipe.name, self.out, uses, finished=True)
            if (self.out / "manifest.json").exists():  # what follows is not whole until there is one again
                disk.set_aside(self.out / "manifest.json", self.out / BEFORE, self.work)
            with self.timed("pictures"):
                for n, opened in enumerate(self.engine.map(draw, waiting), 1):
                    self.counts += Counter(pictures_opened=opened)
                    self.progress("pictures", n, len(waiting))
            self.write_shards(unwritten, free, parts["cut"])
        with self.timed("index"):
            return leave.finish(self, chosen, decided, jobs, dropped, pictures)

    def list_sources(self) -> list[Path]:
        """The files of every source, in parts; a file stays in the part that it first entered."""
        found: list[Path] = []
        images: dict[str, listing.Images] = {}
        self.funnels["list"] = Funnel()
        with self.timed("list"):
            for source in self.recipe.sources:
                if source.name not in self.roots:
                    continue
                main = self.recipe.main_of(source, self.roots)
                theirs = images[main.name].read if main else {}
                is_main = bool(self.recipe.joined_to(source, self.roots))
                root = self.roots[source.name]
                name = main.name if main else ""
                listed = listing.list_source(source, root, self.work, self.out, theirs, name, is_main)
                images[source.name] = listed.images
                self.labels[source.name] = listed.labels
                self.funnels["list"].add(listed.funnel)
                found += listed.parts
                self.say(f"list: {source.name}: {sum(listed.funnel.came.values()):,} files")
                for line in listed.warnings:
                    self.say(f"warning: {line}")
            self.funnels["list"].check("list")
        self.roots = {name: files.home(root) for name, root in self.roots.items()}
        if not found:
            raise SourceError(f"no source of {self.recipe.name} has any file: nothing to build")
        return found

    def stage_of(self, step: str, source: str) -> Stage | None:
        """What a step does to the parts of a source."""
        recipe = self.recipe
        stages: dict[str, Stage | None] = {
            "exclude": recipe.decisions.over(recipe.header_rules(), source),
            "slice": recipe.slicing(),
            "cut": recipe.cut,
            "measured": recipe.decisions.over(recipe.measured_rules(), source),
        }
        if step != "scan":
            return stages[step]
        mine = next(s for s in recipe.sources if s.name == source)
        others = recipe.joined_to(mine, self.roots)
        also = tuple(Labels(source=s, labels=self.labels[s.name]) for s in others)
        return Scan(source=mine, labels=self.labels[source], also=also)

    def name_steps(self, listed: list[Path]) -> dict[str, list[Path]]:
        """Where the parts of every step lie."""
        parts = {"list": listed}
        for before, step in zip(("list", *STEPS), STEPS, strict=False):
            parts[step] = self.name_parts(step, parts[before])
        return parts

    def name_parts(self, step: str, before: list[Path]) -> list[Path]:
        """Where the parts of a step lie: a name says the stage, its version, the libraries, and the part before."""
        paths = []
        libraries = [f"{k} {v}" for k, v in image.versions().items()] if step in ("scan", "cut") else []
        specs: dict[str, str] = {}
        again = trouble.again(self.work)
        for path in before:
            source = source_of(path)
            stage = self.stage_of(step, source)
            if stage is None:
                paths.append(path)
                continue
            if source not in specs:
                specs[source] = stage.digest(str(stage.VERSION), *libraries)
            spec = specs[source]
            listed, _, made_from = path.stem.rpartition("-")
            name = digest(spec, made_from, *again.get(f"{step}/{listed}", []))
            paths.append(self.work / step / spec / f"{listed}-{name}.parquet")
        return paths

    def step(self, name: str, before: list[Path], after: list[Path]) -> None:
        """Make the parts of a step that are not there."""
        funnel = Funnel()
        if before == after:
            return
        self.read_bytes[name], self.part_seconds[name] = Counter(), {}
        jobs, again = [], trouble.again(self.work)
        for source, path in zip(before, after, strict=True):
            stage = self.stage_of(name, source_of(path))
            if path.exists() or stage is None:
                self.add(funnel, run.read_done(path))
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                retried = frozenset(again.get(f"{name}/{path.stem.rpartition('-')[0]}", []))
                jobs.append(Job(stage, source, path, self.work, self.roots, retried))
        self.counts["parts_there"] += len(after) - len(jobs)
        with self.timed(name):
            for n, done in enumerate(self.engine.map(run.make_part, jobs), 1):
                self.count(name, done)
                self.add(funnel, done)
                self.progress(name, n, len(jobs))
        self.funnels[name] = funnel
        recipe = self.recipe
        steps = {"exclude": recipe.header_rules, "slice": recipe.size_rules, "measured": recipe.measured_rules}
        rules = steps[name]() if name in steps else None
        if rules:
            reasons: Counter[str] = sum(funnel.dropped.values(), Counter())
            check_shares(rules.rules, sum(funnel.came.values()), reasons)
        if name in ("scan", "cut"):
            self.read_parts += after
            trouble.check_readable(self.recipe.sources, self.funnels["scan"].came, self.read_parts)

    def add(self, funnel: Funnel, done: Done) -> None:
        funnel.add(done.funnel)
        self.clean |= set() if done.funnel.dropped else {done.path}

    def count(self, step: str, done: Done) -> None:
        self.counts["parts_made"] += 1
        self.counts += done.counts
        self.read_bytes[step] += done.source_bytes
        read = max(sum(done.source_bytes.values()), 1)
        for source, size in done.source_bytes.items():  # a part may hold sub-folders that count as sources
            mine = done.seconds * size / read
            self.part_seconds[step][source] = self.part_seconds[step].get(source, 0.0) + mine

    def check_chain(self, before: str, after: str) -> None:
        """StageError unless a step got all that the one before it made."""
        if after not in self.funnels:
            self.funnels[after] = self.passed(self.funnels[before])
        elif +self.funnels[before].made != +self.funnels[after].came:
            raise StageError(
                f"{after} got other records than {before} made: delete {self.work / after} and build again"
            )

    @staticmethod
    def passed(before: Funnel) -> Funnel:
        return Funnel(Counter(before.made), Counter(before.made), Counter(before.made))

    def decide(self, parts: list[Path]) -> Decided:
        """What goes because of what others look like, over the columns of the last parts."""
        with self.timed("decide"), disk.aside(self.work) as aside:
            engine_map, say = self.engine.map, self.say
            decider = Decider(self.recipe, parts, self.roots, self.work, aside, engine_map, say, self.counts)
            decided = decider(+self.funnels["measured"].made)
        for stage, funnel in decided.funnels.items():
            funnel.check(stage)
            self.funnels[stage] = funnel
        last = list(self.funnels.values())[-1]
        if not +last.made:
            raise StageError(trouble.nothing_left(self.funnels))
        return decided

    def warn(self) -> None:
        """What a held-out list cannot do for this build, or that there is none; RecipeError where it cannot be read."""
        grid = self.recipe.slice.model_dump(mode="json") if self.recipe.slice else None
        for held in self.recipe.protect.read():
            narrow = self.recipe.cut.narrow
            tiles, its_grid = held.about["tiles"], held.about["grid"]
            cuts = self.recipe.slice is not None and self.recipe.slice.grid is not None
            wrong = {
                f"tiles of {held.who} were cut on another grid than this recipe's": tiles and its_grid != grid,
                f"{held.who} has no tiles, and this recipe cuts some": cuts and its_grid is None,
                f"{held.who} was narrowed in another way": held.about["narrow"]
                != (narrow and narrow.model_dump(mode="json")),
            }
            for what in (words for words, holds in wrong.items() if holds):
                self.say(f"warning: {what}: sign it with this --recipe")
        for path, parts in zip(self.recipe.protect.lists, self.recipe.protect.parts(), strict=True):
            if self.recipe.protect.contain and parts is None:
                self.say(f"warning: {path}{PARTS} is not there: no parts of its images are looked for; sign them anew")
        if not self.recipe.protect.lists:
            self.say(f"warning: {NO_LIST}: `datakit protect sign` makes a list of one, --protect LIST compares with it")

    def restage(self, parts: dict[str, list[Path]], needed: dict[str, int]) -> None:
        """Cut the parts again whose staged bytes were freed but are needed after all."""
        missing = {staged: end for staged, end in needed.items() if not staging.is_whole(self.work, staged, end)}
        stems = {staging.part_of(staged) for staged in missing}
        jobs = []
        for source, path in zip(parts["slice"], parts["cut"], strict=True):
            if path.stem in stems:
                path.unlink(missing_ok=True)
                jobs.append(Job(self.recipe.cut, source, path, self.work, self.roots))
        with self.timed("cut"):
            for n, done in enumerate(self.engine.map(run.make_part, jobs), 1):
                self.count("cut", done)
                self.progress("cut again", n, len(jobs))
        other = {staging.part_of(s) for s, end in missing.items() if not staging.is_whole(self.work, s, end)}
        if other:
            trouble.renew(sorted(other), self.work)
            raise StageError(
                f"{len(other)} parts whose staged tiles were freed were cut again, and gave other tiles than before "
                "(an image that could not be read, or now can): run the same command again; what follows is made anew"
            )

    def write_shards(self, jobs: list[ShardJob], free: bool, cut: list[Path]) -> None:
        """Write what is not there; with `free` from the last to the first, cutting staged bytes off behind."""
        done: set[str] = set()
        others = leave.used_by_others(self.work, self.recipe.name, self.out)
        files = [staged for path in cut if path not in others for staged in staging.files_of(path)]
        ends = collect.ends(jobs) if free and jobs else []
        with self.timed("shards"):
            for n, _ in enumerate(self.engine.map(gather, groups := collect.gathers(jobs)), 1):
                self.progress("records of shards", n, len(groups))
            for n, about in enumerate(self.engine.map(write_shard, jobs[::-1] if free else jobs), 1):
                self.counts["shards_written"] += 1
                self.progress("shards", n, len(jobs))
                done.add(about["name"])
                while ends and jobs[len(ends) - 1].name in done:
                    ends.pop()
                    keep = ends[-1].needed() if ends else {}
                    staging.cut_off(files, {self.work / name: end for name, end in keep.items()})
        if free:
            staging.cut_off(files, {})

    def progress(self, step: str, done: int, total: int) -> None:
        """A line now and then: how far, and how long it will take."""
        now = time.monotonic()
        begin, said = self.clock.get(step, (now, 0.0))
        if done < total and now - said < 1.0:
            return
        left = (now - begin) / done * (total - done) if done < total else 0.0
        self.clock[step] = (begin, now)
        images = f", {self.counts['images_opened']:,} images opened" if step.startswith("cut") else ""
        self.say(f"{step}: {done:,} of {total:,} parts{images}" + (f", about {left:,.0f} s left" if left else ""))

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        start = time.monotonic()
        self.clock.setdefault(step, (start, 0.0))
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - start


def build(
    recipe: Recipe | ImageNetS | str | Path,
    data: str | Path | Remote,
    out: str | Path | Remote,
    work: str | Path | None = None,
    workers: int | None = None,
    allow_missing: bool = False,
    free: bool = False,
    say: Report | None = None,
    scheduler: str = "",
    memory_bytes: int = 0,
    timeout_s: float = 120.0,
    retry: Sequence[str] = (),
) -> Manifest:
    """Build the data set that a recipe describes; gives its manifest, which is also left in `out`.

    data: the folder that the collections lie in. out: where the shards go. work: where parts are kept for the next
    build, `out`.work if not given; a file is known by its collection's folder, its name, size and mtime. workers:
    processes, as many as there are cores if not given; 0: this process. scheduler: address of a Dask scheduler, whose
    workers are used instead. memory_bytes: for all workers of this machine, most of its memory if not given.
    timeout_s: CPU seconds that one image may take, beside 2 s a megapixel. retry: reasons of drops (`alone.FAILURES`)
    to try again. data, out and the path of a source may be URLs; where out is one, give work, which all workers see.
    Running it again after any interruption continues it. Errors: RecipeError, SourceError, StageError.
    """
    recipe = recipe if isinstance(recipe, Spec) else kinds.load(recipe)
    say = say or (lambda line: None)
    out, work = places(out, work)
    engine = {"scheduler": scheduler, "memory_bytes": memory_bytes, "limits": Limits(cpu_s=timeout_s), "say": say}
    if isinstance(recipe, ImageNetS):
        with run.explained():
            sources = find(recipe, root_of(data), out, work)
        with running(Places(recipe.name, out, work, sources.roots), False, workers, **engine) as started:
            manifest = Copying(recipe, sources, out, work, started, say, allow_missing).run()
            return origin.keep(manifest, recipe, data, allow_missing, out, work)
    with run.explained():
        roots, missing = find_sources(recipe, root_of(data), allow_missing)
    with running(Places(recipe.name, out, work, roots), free, workers, **engine) as started:
        before = leave.shards_before(recipe.name, out, work)
        manifest = Build(recipe, out, work, roots, missing, before, engine=started, say=say).run(free, retry)
        return origin.keep(manifest, recipe, data, allow_missing, out, work)


def find_sources(recipe: Recipe, data: Root, allow_missing: bool) -> tuple[dict[str, Root], tuple[str, ...]]:
    """Where each source lies, and the names of those that are not on disk; SourceError if that is not allowed."""
    places = {source.name: source.find(data) for source in recipe.sources}
    roots = {name: path for name, path in places.items() if path}
    missing = tuple(sorted(name for name, path in places.items() if not path))
    if missing and (not allow_missing or not roots):
        lines = [
            f"  {s.name}: {root_of(s.path, data)}" + (f"  ({s.collection.homepage})" if s.collection.homepage else "")
            for s in recipe.sources
            if s.name in missing
        ]
        advice = "Fetch them, correct --data, or leave them out with --allow-missing"
        raise SourceError("\n".join(["not on disk:", *lines, advice]))
    return roots, missing


def source_of(part: Path) -> str:
    """The source that a part belongs to: parts are named <source>-<place>_<number>-<digest>."""
    return part.stem.split("-")[0]
