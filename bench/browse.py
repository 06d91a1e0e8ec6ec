"""How quick the page of a build is: `datakit browse`, asked over HTTP as a browser asks it.

    python bench/browse.py [--count 13200000] [--quick] [--folder DIR]

Makes what a build of so many records would leave: samples.parquet, dropped.parquet (one in 8), index.arrow,
manifest.json and sparse tars, in which the tiles that are looked at are written. Then it starts the command with an
empty cache, and asks for the first page with its 60 images, at once; for filters, each of them new; for pages far
behind, records, neighbours, the map; last, after a second start, for a filter again.
Beside it in the same run: pyarrow, which counts the same filters from the Parquet files; both must count the same.
Bars at 13.2 million: the first page under 1 s, a filter under 300 ms.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from made import PART, SOURCES, Made, records
from PIL import Image

from datakit import index
from datakit.leave import NOT_LEFT, NOT_OF_KEPT
from datakit.manifest import Count, Manifest, Shard, SourceLeft
from datakit.pictures import SCHEMA as PICTURES
from datakit.sample import key_id, mix64
from datakit.sources.scenes import draw
from datakit.stages.shards import BLOCK, header

FULL = 13_200_000
SHARD = 9000  # samples, of 3 parts
LOST = 8  # every so many parts were left out
REASONS = ("duplicate", "duplicate_scene", "flat", "dark", "valid_share", "protected", "unreadable")
COLUMNS = ("source", "dropped", "split", "entropy_bits", "sharpness", "luma_mean", "saturation", "valid_share")
RESULTS: dict[str, Any] = {}


def report(name: str, what: str, seconds: list[float], note: str = "") -> None:
    """The middle of several times, and the longest."""
    middle, most = statistics.median(seconds), max(seconds)
    print(f"{what:58} {middle * 1000:9.1f} ms   at most {most * 1000:9.1f}   {note}", flush=True)
    RESULTS[name] = {"median_ms": round(middle * 1000, 2), "max_ms": round(most * 1000, 2), "n": len(seconds)}


def tile() -> bytes:
    out = io.BytesIO()
    Image.fromarray(draw(np.random.default_rng(0), "houses", 512, 512).pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


@lru_cache(1)
def made_of(count: int) -> Made:
    """What it knows of all records is made once a process."""
    return Made(count)


def three(count: int, lost: bool, parts: list[int]) -> pa.Table:
    """Records of some parts, in another order; those that were left out have a reason."""
    made = made_of(count)
    table = pa.concat_tables([records(made, n) for n in parts]).combine_chunks()
    rows = np.concatenate([np.arange(n * PART, (n + 1) * PART) for n in parts])
    order = np.argsort(mix64(rows, 3))
    table, rows = table.take(pa.array(order)), rows[order]
    ids = pa.array([key_id(key) for key in table.column("key").to_pylist()])
    table = table.set_column(table.schema.get_field_index("id"), "id", ids)
    if not lost:
        return table.drop_columns([*NOT_LEFT, *NOT_OF_KEPT])
    reason = pa.array(REASONS).take(pa.array((mix64(rows, 90) % np.uint64(len(REASONS))).astype(np.int64)))
    table = table.set_column(table.schema.get_field_index("dropped"), "dropped", reason)
    return table.append_column("stage", pa.repeat(pa.scalar("dedup"), len(rows))).drop_columns(NOT_LEFT)


def tables(made: Made, lost: bool, pool: ProcessPoolExecutor) -> Iterator[pa.Table]:
    parts = [n for n in np.random.default_rng(2).permutation(made.parts).tolist() if (n % LOST == 0) == lost]
    yield from pool.map(partial(three, made.asked, lost), [parts[n : n + 3] for n in range(0, len(parts), 3)])


def make(made: Made, out: Path, jpeg: bytes) -> None:
    """What a build leaves; a sample takes the same bytes in each tar."""
    out.mkdir(parents=True)
    kept, lost, shards, rows = Counter[str](), Counter[tuple[str, str]](), [], []
    wanted = index.schema(("jpg", "json"))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        writer = None
        for n, table in enumerate(tables(made, False, pool)):
            name, size = f"made-train-{n:06d}.tar", table.num_rows * stride(jpeg) + 2 * BLOCK
            os.truncate(os.open(out / name, os.O_CREAT | os.O_RDWR), size)
            shards.append(Shard(name=name, split="train", samples=table.num_rows, bytes=size, sha256=""))
            rows.append(places(table, n, jpeg, wanted))
            kept.update(table.column("source").to_pylist())
            writer = writer or pq.ParquetWriter(out / "samples.parquet", table.schema, compression="zstd")
            writer.write_table(table)
        writer.close()
        index.write(pa.concat_tables(rows), out / "index.arrow", [shard.model_dump(mode="json") for shard in shards])
        del rows
        writer = None
        for table in tables(made, True, pool):
            both = zip(table.column("source").to_pylist(), table.column("dropped").to_pylist(), strict=True)
            lost.update(both)
            writer = writer or pq.ParquetWriter(out / "dropped.parquet", table.schema, compression="zstd")
            writer.write_table(table)
        writer.close()
    pq.write_table(PICTURES.empty_table(), out / "pictures.parquet")
    (out / "manifest.json").write_text(manifest(kept, lost, shards).sealed().to_json())


def manifest(kept: Counter[str], lost: Counter[tuple[str, str]], shards: list[Shard]) -> Manifest:
    about = {"title": "made", "version": None, "homepage": "", "licence": "CC0-1.0", "provider_terms": None, "bytes": 0}
    about |= {"mean_bytes": 0.0, "mean_psnr_db": None, "unmatched": 0}
    counts = []
    for name, *_ in SOURCES:
        gone = {why: n for (source, why), n in lost.items() if source == name}
        came = kept[name] + sum(gone.values())
        counts.append(Count(stage="dedup", source=name, came=came, left=kept[name], made=kept[name], dropped=gone))
    sources = tuple(SourceLeft(name=name, samples=kept[name], **about) for name, *_ in SOURCES)
    plain = {"name": "made", "title": "Made records", "recipe": {}, "recipe_digest": "", "versions": {}, "files": {}}
    plain |= {"missing": (), "samples": kept.total(), "members": ("jpg", "json")}
    return Manifest(sources=sources, shards=tuple(shards), counts=tuple(counts), **plain)


JSON = b'{"source": "made"}'


def padded(count: int) -> int:
    return -(-count // BLOCK) * BLOCK


def stride(jpeg: bytes) -> int:
    return 2 * BLOCK + padded(len(jpeg)) + padded(len(JSON))


def places(table: pa.Table, shard: int, jpeg: bytes, wanted: pa.Schema) -> pa.Table:
    """The rows of the index for a shard."""
    begin = np.arange(table.num_rows) * stride(jpeg)
    columns = {
        "key": table.column("key"),
        "id": table.column("id"),
        "shard": pa.repeat(pa.scalar(shard), table.num_rows),
        "jpg_offset": pa.array(begin + BLOCK),
        "jpg_bytes": pa.repeat(pa.scalar(len(jpeg)), table.num_rows),
        "json_offset": pa.array(begin + padded(len(jpeg)) + 2 * BLOCK),
        "json_bytes": pa.repeat(pa.scalar(len(JSON)), table.num_rows),
        "source": table.column("source"),
        "split": pa.repeat(pa.scalar("train"), table.num_rows),
    }
    return pa.table([columns[name].cast(wanted.field(name).type) for name in wanted.names], schema=wanted)


class Browse:
    """The command, running."""

    def __init__(self, out: Path, cache: Path) -> None:
        self.out, self.table = out, index.load(out / "index.arrow")
        self.jpeg, self.start = tile(), time.perf_counter()
        command = [sys.executable, "-m", "datakit.cli", "browse", str(out), "--no-open"]
        env = os.environ | {"XDG_CACHE_HOME": str(cache)}
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.up_s = time.perf_counter() - self.start

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path) as reply:
            data: bytes = reply.read()
        return data

    def ask(self, path: str) -> Any:
        return json.loads(self.get(path))

    def timed(self, path: str) -> tuple[float, Any]:
        start = time.perf_counter()
        data = self.get(path)
        return time.perf_counter() - start, data

    def plant(self, rows: list[int]) -> None:
        """Write samples into their tars, which are empty otherwise."""
        for row in rows:
            if row < self.table.num_rows:
                about = self.table.slice(row, 1).to_pylist()[0]
                with (self.out / f"made-train-{about['shard']:06d}.tar").open("r+b") as file:
                    for suffix, data in (("jpg", self.jpeg), ("json", JSON)):
                        file.seek(about[f"{suffix}_offset"] - BLOCK)
                        file.write(header(f"{about['key']}.{suffix}", len(data)) + data)

    def images(self, rows: list[dict[str, Any]]) -> float:
        """Seconds for the images of a page, six at once as browsers ask."""
        start = time.perf_counter()
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(self.get, [f"image/{one['row']}?side=256" for one in rows if one["image"]]))
        return time.perf_counter() - start

    def wait(self) -> float:
        while self.ask("columns")["missing"]:
            time.sleep(0.1)
        return time.perf_counter() - self.start

    def memory(self) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("RssAnon:")[1].split()[0]) * 1024

    def end(self) -> None:
        self.process.send_signal(2)
        assert self.process.wait(30) == 0


QUESTIONS: tuple[dict[str, Any], ...] = (
    {"source": ["satellite"]},
    {"reason": ["duplicate", "flat"]},
    {"entropy_bits": (4.2, 4.6)},
    {"source": ["chips", "classes"], "sharpness": (0.9, None)},
    {"reason": ["dark"], "valid_share": (None, 0.1)},
    {"source": ["scenes"], "reason": ["kept"], "split": ["train"], "luma_mean": (0.3, 0.5), "saturation": (0.2, None)},
    {"entropy_bits": (4.1, None), "sharpness": (0.1, 0.8), "luma_mean": (0.1, 0.9), "valid_share": (0.2, None)},
)
ROUNDS = 5


def spelled(question: dict[str, Any]) -> str:
    parts = []
    for name, wanted in question.items():
        if isinstance(wanted, list):
            parts += [f"{name}={one}" for one in wanted]
        else:
            parts.append(f"{name}={'' if wanted[0] is None else wanted[0]}..{'' if wanted[1] is None else wanted[1]}")
    return "&".join(parts)


def counted(out: Path, question: dict[str, Any]) -> int:
    """What pyarrow counts in the Parquet files."""
    total = 0
    for file, reason in (("samples.parquet", "kept"), ("dropped.parquet", None)):
        wanted: Any = pc.scalar(True)
        for name, values in question.items():
            if name == "reason" and reason:
                wanted = wanted & pc.scalar(reason in values)
            elif isinstance(values, list):
                wanted = wanted & pc.field({"reason": "dropped"}.get(name, name)).isin(values)
            else:
                low, high = values
                wanted = wanted & (pc.field(name) >= low) if low is not None else wanted
                wanted = wanted & (pc.field(name) <= high) if high is not None else wanted
        total += ds.dataset(out / file).count_rows(filter=wanted)
    return total


def moved(question: dict[str, Any], n: int) -> dict[str, Any]:
    """The same question with other numbers, so that no answer is remembered."""

    def move(wanted: Any) -> Any:
        if isinstance(wanted, list):
            return wanted
        return tuple(None if end is None else round(end + n * 0.001, 3) for end in wanted)

    return {name: move(wanted) for name, wanted in question.items()}


def filters(browse: Browse) -> None:
    every: list[float] = []
    ratios = []
    for n, question in enumerate(QUESTIONS):
        asked = [moved(question, k) for k in range(ROUNDS)]
        if asked[0] == asked[1]:  # only facets: asked with one more number, which all have
            asked = [{**question, "width": (1 + k, None)} for k in range(ROUNDS)]
        seconds, found = zip(*(browse.timed(f"rows?{spelled(one)}") for one in asked), strict=True)
        total = json.loads(found[0])["total"]
        start = time.perf_counter()
        there = counted(browse.out, asked[0])
        peer = time.perf_counter() - start
        assert there == total, (question, there, total)
        ratios.append(peer / statistics.median(seconds))
        every += seconds
        note = f"{total:,} match; pyarrow {peer:.2f} s, {ratios[-1]:.0f} times"
        report(f"filter {n}", f"filter: {spelled(question)[:48]}", list(seconds), note)
    report("filters", "all filters", every)
    RESULTS["pyarrow_times"] = [round(one, 1) for one in ratios]


def others(browse: Browse) -> None:
    """What else a page asks for."""
    rng, total = np.random.default_rng(5), browse.ask("rows?reason=kept")["total"]
    pages, drawn = [], []
    for _ in range(ROUNDS):
        seconds, data = browse.timed(f"rows?reason=kept&offset={int(rng.integers(0, total - 60))}")
        rows = json.loads(data)["rows"]
        browse.plant([one["row"] for one in rows])
        pages.append(seconds)
        drawn.append(browse.images(rows))
    report("page", "a page anywhere in an answer that is known", pages)
    report("images", "60 images out of tars, anywhere", drawn)
    records = [int(row) for row in rng.integers(0, browse.table.num_rows, ROUNDS)]
    browse.plant(records)
    gone = [int(row) for row in browse.table.num_rows + rng.integers(0, browse.table.num_rows // 10, ROUNDS)]
    report("record", "a record that was kept", [browse.timed(f"record/{row}")[0] for row in records])
    report("left_out", "a record that was left out", [browse.timed(f"record/{row}")[0] for row in gone])
    browse.get(f"neighbours/{records[0]}")  # numba compiles, or reads what it compiled
    report(
        "neighbours",
        "24 nearest by signature, in 8 orientations",
        [browse.timed(f"neighbours/{r}")[0] for r in records],
    )
    report("map", "the map of a filter", [browse.timed(f"density?sharpness=0.{k}..")[0] for k in range(1, 6)])
    keys = [browse.ask(f"record/{row}")["key"] for row in records]
    report("find", "a record by its key", [browse.timed(f"find?key={key}")[0] for key in keys])


def run(out: Path, cache: Path) -> None:
    browse = Browse(out, cache)
    try:
        rows = browse.ask("rows")["rows"]  # told before they are timed: only these tiles need be there
    finally:
        browse.end()
    browse.plant([one["row"] for one in rows])
    shutil.rmtree(cache)
    browse = Browse(out, cache)
    try:
        start = time.perf_counter()
        for path in ("", "page.css", "page.js", "icon.svg", "about", "rows"):
            browse.get(path)
        drawn = browse.images(rows)
        report(
            "first_page", "first page with its images, no cache", [time.perf_counter() - start], f"images {drawn:.2f} s"
        )
        report("up", "start of the command until it prints its address", [browse.up_s])
        cold, _ = browse.timed("rows?saturation=0.5..")
        report("cold", "a filter by a column that is not read yet", [cold])
        report("columns", "all columns read for the first time", [browse.wait()])
        size = sum(path.stat().st_size for path in cache.rglob("*.arrow"))
        RESULTS["cache_bytes"] = size
        print(f"cache: {size / 2**30:.2f} GiB")
        filters(browse)
        others(browse)
        RESULTS["own_bytes"] = browse.memory()
        print(f"memory of the server's own: {RESULTS['own_bytes'] / 2**30:.2f} GiB")
    finally:
        browse.end()
    browse = Browse(out, cache)
    try:
        report("again", "second start: the first filter", [browse.timed("rows?entropy_bits=4.3..&source=chips")[0]])
    finally:
        browse.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help=f"records; default {FULL:,}")
    parser.add_argument("--quick", action="store_true", help="a tenth of them")
    parser.add_argument("--folder", type=Path, help="keep them here, 500 B each, and use those of a run before")
    args = parser.parse_args()
    made = Made(args.count or (FULL // 10 if args.quick else FULL))
    with tempfile.TemporaryDirectory() as folder:
        work = args.folder or Path(folder)
        out, cache = work / "out", work / "cache"
        if not (out / "manifest.json").exists():
            shutil.rmtree(out, ignore_errors=True)
            start = time.perf_counter()
            make(made, out, tile())
            print(f"{made.count:,} records made in {time.perf_counter() - start:.0f} s", flush=True)
        shutil.rmtree(cache, ignore_errors=True)
        run(out, cache)
    machine = {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    versions = {"numpy": np.__version__, "pyarrow": pa.__version__}
    print(json.dumps({"bench": "browse", "count": made.count, **machine, **versions, "results": RESULTS}))


if __name__ == "__main__":
    main()
