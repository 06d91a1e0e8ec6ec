"""What the engine costs beside the work itself.

    python bench/engine.py [--quick]

1. `cut` of the same scenes with two workers and with one, both clusters warm: bar 1.8 times.
2. Memory of a scheduler process after 100, 1,000 and 10,000 parts of 10 made records, by `Engine.map` and, beside it in
   the same run, by the plainest use of Dask (a futures list of all parts at once). Bars: less than 20 MB more at
   10,000 than at 100, and under 5 ms a part.
3. The engine's own cost a record: a stage that does nothing, over parts of 2,048 records (read, count, write, sync,
   rename); and listing. Bar: 30 microseconds.
4. Memory of a process that cuts 100,000 images: it must be flat after the first tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from PIL import Image

import datakit
from datakit import run
from datakit.disk import aside
from datakit.engine import Engine
from datakit.recipe import Recipe
from datakit.sample import Sample, key_id, make_key, to_table
from datakit.sources.scenes import draw
from datakit.stages.cut import Cut
from datakit.stages.exclude import Exclude

COPIES = 10  # of each scene: parts have 64 MB of files, and two workers need several
RESULTS: dict[str, Any] = {}


def report(name: str, what: str, value: float, unit: str, bar: str = "") -> None:
    print(f"{what:72} {value:10.2f} {unit:12} {bar}", flush=True)
    RESULTS[name] = round(value, 4)


def made_records(count: int, first: int = 0) -> pa.Table:
    names = [f"a/{n:08d}.jpg" for n in range(first, first + count)]
    keys = [make_key("made", name) for name in names]
    return to_table(
        Sample(key, key_id(key), "made", name, name, file_bytes=20_000, stamp="1", width=512, height=512)
        for key, name in zip(keys, names, strict=True)
    )


def made_parts(work: Path, parts: int, records: int) -> list[run.Job]:
    """Jobs whose sources are on disk; that of many parts is the same few files, so that making them takes no time."""
    (work / "list").mkdir(parents=True)
    (work / "none").mkdir()
    (work / "tmp").mkdir()
    sources = []
    with aside(work) as folder:
        for n in range(min(parts, 10)):
            table = made_records(records, n * records)
            path = work / "list" / f"made-0_{n}-x.parquet"
            run.write_part(table, path, folder, run.funnel_of(table, table))
            sources.append(path)
    nothing = Exclude()  # no rules
    return [
        run.Job(nothing, sources[n % len(sources)], work / "none" / f"made-0_{n}-y.parquet", work, {})
        for n in range(parts)
    ]


# 1. Two workers and one


def speedup(folder: Path, scenes: int, rounds: int) -> None:
    data = folder / "data" / "scenes"
    data.mkdir(parents=True)
    for n in range(scenes):
        pixels = draw(np.random.default_rng(n), ("houses", "port", "forest", "river")[n % 4], 1024, 1024).pixels
        Image.fromarray(pixels).save(data / f"{n:03d}.jpg", quality=92)
        for copy in range(1, COPIES):
            (data / f"{n:03d}_{copy}.jpg").write_bytes((data / f"{n:03d}.jpg").read_bytes())
    collection = {
        "name": "scenes",
        "title": "made scenes",
        "homepage": "https://example.org",
        "licence": "CC0-1.0",
        "modality": "optical",
        "bands": ["red", "green", "blue"],
        "layout": {"images": ["*.jpg"]},
    }
    recipe = Recipe.model_validate(
        {
            "name": "scenes",
            "sources": [{"name": "scenes", "path": "scenes", "collection": collection}],
            "slice": {"grid": {"size_px": 512}},
        }
    )
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for n in range(rounds):
        for workers in (1, 2) if n % 2 else (2, 1):
            out = folder / f"out{workers}"
            datakit.build(recipe, data.parent, out, workers=workers)
            seconds[workers].append(json.loads((out / "timings.json").read_text())["seconds"]["cut"])
            shutil.rmtree(out)
            shutil.rmtree(f"{out}.work")
    one, two = (statistics.median(seconds[workers]) for workers in (1, 2))
    report("cut_s_1", f"cut of {scenes * COPIES} JPEG scenes of 1,024 px, one worker", one, "s")
    report("cut_s_2", "the same, two workers", two, "s")
    report("cut_speedup", "one worker over two", one / two, "times", "bar 1.8")


# 2. The scheduler


@contextmanager
def cluster(folder: Path, workers: int = 2) -> Iterator[tuple[str, int]]:
    """Address and pid of a scheduler of its own."""
    where = folder / "scheduler.json"
    command = ["-m", "distributed.cli.dask_scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen([sys.executable, *command, "--scheduler-file", str(where)], **quiet)]
    while not where.exists():
        time.sleep(0.05)
    time.sleep(0.2)
    address = json.loads(where.read_text())["address"]
    options = [address, "--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", str(folder / "dask")]
    started += [
        subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_worker", *options], **quiet)
        for _ in range(workers)
    ]
    try:
        yield address, started[0].pid
    finally:
        for process in started:
            process.kill()
            process.wait()


def megabytes(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 1e6


def bounded(address: str, work: Path, jobs: list[run.Job]) -> None:
    with Engine(2, scheduler=address, work=work) as engine:
        assert sum(1 for _ in engine.map(run.make_part, jobs)) == len(jobs)


def all_at_once(address: str, work: Path, jobs: list[run.Job]) -> None:
    from distributed import Client, as_completed

    with Client(address) as client:
        futures = client.map(run.make_part, jobs, pure=False)
        assert sum(1 for future in as_completed(futures) if future.result()) == len(jobs)


def scheduler(folder: Path, sizes: tuple[int, ...]) -> None:
    for name, way in (("plain", all_at_once), ("ours", bounded)):
        most = {}
        for parts in sizes:
            here = folder / f"{name}{parts}"
            jobs = made_parts(here / "work", parts, 10)
            with cluster(here) as (address, pid):
                way(address, here / "work", jobs[:20])
                for job in jobs[:20]:
                    job.path.unlink()
                start = time.perf_counter()
                way(address, here / "work", jobs)
                seconds = time.perf_counter() - start
                most[parts] = megabytes(pid)
            report(f"scheduler_mb_{name}_{parts}", f"scheduler after {parts:,} parts, {name}", most[parts], "MB")
            report(f"part_ms_{name}_{parts}", "  each part of 10 records", seconds / parts * 1e3, "ms", "bar 5")
            shutil.rmtree(here)
        growth = most[sizes[-1]] - most[sizes[0]]
        report(f"growth_mb_{name}", f"  growth from {sizes[0]:,} to {sizes[-1]:,}", growth, "MB", "bar 20")


# 3. A record


def record(folder: Path, parts: int) -> None:
    jobs = made_parts(folder / "work", parts, 2048)
    run.make_part(jobs[0])
    start = time.perf_counter()
    for job in jobs[1:]:
        run.make_part(job)
    each = (time.perf_counter() - start) / ((parts - 1) * 2048)
    report("record_us", "a record through a stage that does nothing", each * 1e6, "microseconds", "bar 30")
    shutil.rmtree(folder / "work")


# 4. A worker


def worker(folder: Path, images: int) -> None:
    files = folder / "files"
    files.mkdir()
    rng = np.random.default_rng(0)
    base = draw(rng, "houses", 512, 512).pixels
    records = []
    for n in range(1000):
        left, top = rng.integers(0, 512 - 64, 2)
        Image.fromarray(base[top : top + 64, left : left + 64]).save(files / f"{n:04d}.jpg")
        size = (files / f"{n:04d}.jpg").stat().st_size
        key = make_key("made", f"{n:04d}.jpg")
        records.append(
            Sample(
                key, key_id(key), "made", f"{n:04d}.jpg", f"{n:04d}.jpg", size, "1", width=64, height=64,
                image_width=64, image_height=64, bands=("red", "green", "blue"), dtype="uint8", format="JPEG",
            )
        )  # fmt: skip
    work = folder / "work"
    for name in ("list", "cut", "tmp"):
        (work / name).mkdir(parents=True)
    table = to_table(records)
    source = work / "list" / "made-0_0-x.parquet"
    with aside(work) as here:
        run.write_part(table, source, here, run.funnel_of(table, table))
    cut = Cut()
    seen = []
    for n in range(images // 1000):
        path = work / "cut" / f"made-{n}_0-y.parquet"
        run.make_part(run.Job(cut, source, path, work, {"made": files}))
        path.unlink()
        for staged in path.parent.glob("*.staged"):
            staged.unlink()
        seen.append(megabytes(os.getpid()))
    tenth = len(seen) // 10
    early, late = statistics.median(seen[tenth : 2 * tenth]), statistics.median(seen[-tenth:])
    report("rss_mb_early", f"memory after {images // 10:,} images", early, "MB")
    report("rss_mb_late", f"memory after {images:,} images", late, "MB")
    report("rss_growth_mb", "  growth", late - early, "MB", "flat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    few = parser.parse_args().quick
    print(f"{platform.platform()}, Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores\n")
    with tempfile.TemporaryDirectory(prefix="datakit-bench-") as name:
        folder = Path(name)
        (folder / "speedup").mkdir()
        speedup(folder / "speedup", 24 if few else 96, 1 if few else 3)
        scheduler(folder, (100, 1000) if few else (100, 1000, 10_000))
        record(folder, 5 if few else 20)
        (folder / "worker").mkdir()
        worker(folder / "worker", 20_000 if few else 100_000)
    print(json.dumps(RESULTS))


if __name__ == "__main__":
    main()
