"""What a build decides about millions of records: held-out images, duplicates, subset, shards. No pixels are needed.

    python bench/scale.py [--count 13200000] [--quick] [--folder DIR]

Makes the records of a build's last step as it would leave them: Parquet parts of about 3,000 records in 5 sources, half
windows of scenes, half whole images. 10 % lie in clusters of copies, turned and altered, of up to 5,000; 300,000 of
13.2 million are flat, in groups of equal pixels; a held-out list has 12,500 entries. What is planted must be found.
Then it runs what a build runs: `Decider` (protect, dedup in 8 orientations), `choose`, `dropped_records`, `shard_jobs`,
and the writing of dropped.parquet and index.arrow. Memory is this process's own (RssAnon of /proc/self/status, sampled
every 20 ms) and with the files that it maps (VmHWM, reset before each step); mapped pages the system may take back.

Beside it in the same run: reading all columns of all parts once, and np.sort of as many signatures as there are.
Bars at 13.2 million on 2 cores: all that is planned under 180 s and 6 GiB, of which `stars` under 30 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from made import LABELLED, RULED, Made, heldout, write_part

from datakit import collect, disk, guard, index, leave, merge
from datakit.decide import Decider
from datakit.recipe import Recipe
from datakit.stages import dedup
from datakit.stages.shards import gather

FULL = 13_200_000
CORES = len(os.sched_getaffinity(0))
RESULTS: dict[str, Any] = {}
STEPS = ("list", "scan", "exclude", "slice", "cut")


def report(name: str, what: str, seconds: float, note: str = "", **numbers: Any) -> None:
    print(f"{what:52} {seconds:9.1f} s   {note}", flush=True)
    RESULTS[name] = {"s": round(seconds, 3), **numbers}


def cpu_s() -> float:
    """CPU seconds of this process so far."""
    return sum(os.times()[:2])


class Memory:
    """The most memory of this process since it was last asked: its own, and with the files that it maps; in bytes."""

    def __init__(self) -> None:
        self.own, self.since = 0, 0
        threading.Thread(target=self.watch, daemon=True).start()

    @staticmethod
    def status(what: str) -> int:
        text = Path("/proc/self/status").read_text()
        return int(text.split(f"{what}:")[1].split()[0]) * 1024

    def watch(self) -> None:
        while True:
            self.own = max(self.own, self.status("RssAnon"))
            time.sleep(0.02)

    def ask(self) -> tuple[int, int]:
        self.own = max(self.own, self.status("RssAnon"))
        most = self.own, self.status("VmHWM")
        self.own = 0
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        return most


class Clock:
    """Times steps; what runs within another step is told apart."""

    def __init__(self) -> None:
        self.memory, self.total, self.cpu_s = Memory(), 0.0, 0.0
        self.most = [0, 0]
        self.memory.ask()

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        start, cpu = time.perf_counter(), cpu_s()
        yield
        seconds, cpu = time.perf_counter() - start, cpu_s() - cpu
        own, mapped = self.memory.ask()
        self.most = [max(self.most[0], own), max(self.most[1], mapped)]
        self.total += seconds
        self.cpu_s += cpu
        said = f"{cpu:6.1f} s of CPU   {own / 2**30:5.2f} GiB, with mapped files {mapped / 2**30:5.2f}"
        report(name, what, seconds, said, cpu_s=round(cpu, 3), own_bytes=own, rss_bytes=mapped)

    def sum(self, name: str, what: str) -> None:
        """Tell all steps since the last sum."""
        own, mapped = self.most
        said = f"{self.cpu_s:6.1f} s of CPU   {own / 2**30:5.2f} GiB, with mapped files {mapped / 2**30:5.2f}"
        reads = round(self.total / RESULTS["read"]["s"], 2)
        report(name, what, self.total, said, cpu_s=self.cpu_s, own_bytes=own, rss_bytes=mapped, reads=reads)
        print(f"that is {reads} times reading every column once")
        self.total, self.cpu_s, self.most = 0.0, 0.0, [0, 0]

    def within(self, module: Any, name: str, title: str) -> None:
        """Tell each call of a function of a module."""
        function = getattr(module, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start, cpu = time.perf_counter(), cpu_s()
            made = function(*args, **kwargs)
            took, cpu = time.perf_counter() - start, cpu_s() - cpu
            size = f" of {len(args[0]):,}" if isinstance(args[0], np.ndarray) else ""
            report(
                f"{name}{size.replace(',', '')}", f"  of this, {title}{size}", took, f"{cpu:6.1f} s of CPU", cpu_s=cpu
            )
            return made

        setattr(module, name, timed)


def recipe_of(lists: list[Path]) -> Recipe:
    sources = [
        {
            "name": name,
            "path": name,
            "collection": {
                "name": name,
                "title": name,
                "homepage": "https://example.org",
                "licence": "CC-BY-4.0",
                "modality": "optical",
                "bands": ["red", "green", "blue"],
                "layout": {"images": ["**/*.jpg"]},
            },
        }
        for name in LABELLED
    ]
    plain = {
        "name": "made",
        "sources": sources,
        "slice": {"grid": {"size_px": 512}},
        "dedup": {"orientations": True},
        "protect": {"lists": [str(path) for path in lists]},
        "subset": {"share": 0.97, "cap": {"flat": 0.05}},
    }
    return Recipe.model_validate(plain)


def make(made: Made, work: Path) -> dict[str, list[Path]]:
    """The parts of every step; those before the last are links to parts in which no rule dropped a record.

    What is in `work` already is taken as it is.
    """
    for step in (*STEPS, "measured"):
        (work / step).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(CORES) as pool:
        last = list(pool.map(partial(write_part, made, work), range(made.parts), chunksize=8))
    parts = {step: [work / step / path.name for path in last] for step in (*STEPS, "measured")}
    clean = next(path for n, path in enumerate(last) if n % RULED)
    for link in (path for step in STEPS for path in parts[step]):
        if not link.exists():
            link.symlink_to(clean)
    return parts


def limits(parts: list[Path], count: int, clock: Clock) -> None:
    """What any program of this kind has to do: read the columns, and sort numbers of this many records."""
    with clock.step("read", f"limit: read every column of {len(parts):,} parts"):
        size = 0
        for path in parts:
            size += pq.ParquetFile(path).read().nbytes
    RESULTS["read"]["bytes"] = size
    numbers = np.random.default_rng(0).integers(0, 1 << 64, count, dtype=np.uint64)
    with clock.step("sort", f"limit: np.sort of {count:,} signatures"):
        np.sort(numbers, kind="stable")
    clock.total, clock.cpu_s, clock.most = 0.0, 0.0, [0, 0]


def plan(made: Made, parts: dict[str, list[Path]], lists: list[Path], work: Path, clock: Clock) -> None:
    """What a build does between its last step and its shards."""
    recipe, last, out = recipe_of(lists), parts["measured"], work / "out"
    out.mkdir()
    came = Counter({name: int(n) for name, n in made.came().items()})
    with disk.aside(work) as aside:
        roots = dict.fromkeys(LABELLED, work)
        decider = Decider(recipe, last, roots, work, aside, map, lambda line: None, Counter())
        with clock.step("crowd", "read how records and images look"):
            decider.crowd  # noqa: B018
        with clock.step("decide", "protect, dedup, and noting what they decided"):
            decided = decider(came)
        del decider
    made.check(decided, last)
    lost = {stage: table.num_rows for stage, table in decided.lost.items()}
    with clock.step("choose", "subset and order"):
        chosen = collect.choose(recipe, last, decided)
    clean = {path for step in STEPS for path in parts[step]}  # as a build knows from the counts of the parts
    with clock.step("dropped", "what was left out, in order"):
        dropped = collect.dropped_records(parts, decided, chosen, clean)
    with clock.step("shards", "shards"):
        jobs = collect.shard_jobs(recipe, chosen, out, work)
        collect.needed_bytes(jobs, [])
    with clock.step("free", "how far staging files must reach, with --free"):
        collect.ends(jobs)
    clock.sum("planning", "all that is planned")
    with clock.step("dropped_written", "dropped.parquet"):
        dropped.write(out / "dropped.parquet", leave.NOT_LEFT)
    with clock.step("one", "records of the first shard, read alone"):
        jobs[0].rows.read()
    groups = collect.gathers(jobs)
    if groups:
        with clock.step("group", f"records of the first {len(groups[0])} shards, of {len(groups)} such groups"):
            gather(groups[0])
    with clock.step("index", "index.arrow"):
        write_index(recipe, chosen, jobs, out)
    sizes = {"jobs": len(jobs), "samples": len(chosen.rows), "dropped": len(dropped), "lost": lost}
    print(json.dumps(sizes))
    RESULTS["sizes"] = sizes


def write_index(recipe: Recipe, chosen: Any, jobs: list[Any], out: Path) -> None:
    """The index, with made places: those in the tars are known once they are written."""
    wanted = index.schema(("jpg", "json"))
    keys = chosen.rows.read(["key"]).column("key")
    shard = np.repeat(np.arange(len(jobs), dtype=np.int32), [len(job.rows) for job in jobs])
    size = chosen.columns.column("staged_bytes")
    columns = {
        "key": keys,
        "id": chosen.columns.column("id"),
        "shard": pa.array(shard),
        **dict.fromkeys(("jpg_offset", "jpg_bytes", "json_offset", "json_bytes"), size),
        "source": chosen.columns.column("source"),
        "split": pa.repeat(pa.scalar(recipe.shards.split), len(shard)),
    }
    table = pa.table([columns[name].cast(wanted.field(name).type) for name in wanted.names], schema=wanted)
    index.write(table, out / "index.arrow", [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help=f"records; default {FULL:,}")
    parser.add_argument("--quick", action="store_true", help="a tenth of them")
    parser.add_argument("--folder", type=Path, help="keep them here, 750 B each, and use those of a run before")
    args = parser.parse_args()
    count = args.count or (FULL // 10 if args.quick else FULL)
    made = Made(count)
    with tempfile.TemporaryDirectory() as folder:
        work = args.folder or Path(folder)
        for name in ("decided", "out", "shards"):
            shutil.rmtree(work / name, ignore_errors=True)
        start = time.perf_counter()
        parts = make(made, work)
        lists = [heldout(made, work / "made.heldout")]
        report("made", f"{made.count:,} records made in {made.parts:,} parts", time.perf_counter() - start)
        clock = Clock()
        limits(parts["measured"], made.count, clock)
        for module, name, title in (
            (guard, "protect", "protect"),
            (merge, "dedup", "dedup"),
            (dedup, "stars", "stars"),
            (merge, "take_over", "what kept ones take over"),
        ):
            clock.within(module, name, title)
        plan(made, parts, lists, work, clock)
        clock.sum("written", "all that is written but the shards")
    machine = {"machine": platform.machine(), "cores": CORES, "python": platform.python_version()}
    versions = {"numpy": np.__version__, "pyarrow": pa.__version__}
    print(json.dumps({"bench": "scale", "count": made.count, **machine, **versions, "results": RESULTS}))


if __name__ == "__main__":
    main()
