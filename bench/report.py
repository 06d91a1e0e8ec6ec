"""The report of a build of a million records, beside the reading of the same columns and beside pandas.

    python bench/report.py [--count 1000000] [--folder DIR]

Makes what a build of so many records (`made`) leaves: decided as a build decides, written by what a build writes with,
but for the tars, in which only those samples have bytes that a report may show (256 px JPEGs); the rest are holes.
Then, each in a process of its own: `report`; the limit, which is to read the columns that it counts once, with
pyarrow, and nothing else; and the same counts by pandas, which holds the tables in memory and draws no pictures.
Bars for a million records: under 60 s and under 30 MB.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from made import LABELLED, PART, Made, heldout
from PIL import Image, ImageFilter
from scale import STEPS, Memory, make, recipe_of

from datakit import collect, disk, index, leave, pictures
from datakit.decide import Decided, Decider
from datakit.dropped import Dropped
from datakit.manifest import Manifest, Shard, SourceLeft
from datakit.rules import Dark
from datakit.run import Funnel
from datakit.sample import digest, mix64
from datakit.stages.exclude import Exclude

A_SHARD = 10_000
SAMPLE_BYTES = 40_000  # that the tars have room for, each
COLUMNS = {
    "samples": ["source", "id", "valid_share", "entropy_bits", "sharpness", "luma_mean", "luma_std", "saturation"],
    "dropped": ["source", "stage", "dropped", "id", "valid_share", "entropy_bits", "sharpness", "distance_bits"],
}


def jpegs(count: int = 64) -> list[bytes]:
    """Pictures of 256 px, of some detail."""
    rng, out = np.random.default_rng(0), []
    for _ in range(count):
        noise = Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).resize((256, 256))
        file = io.BytesIO()
        noise.filter(ImageFilter.GaussianBlur(2)).save(file, "JPEG", quality=85)
        out.append(file.getvalue())
    return out


def leave_build(made: Made, work: Path, out: Path) -> Manifest:
    """What a build of made records leaves, in `out`."""
    parts = make(made, work)
    recipe = recipe_of([heldout(made, work / "made.heldout")])
    recipe = recipe.model_copy(update={"exclude": Exclude(rules=(Dark(luma_mean=0.04),))})
    with disk.aside(work) as aside:
        roots = dict.fromkeys(LABELLED, work)
        decider = Decider(recipe, parts["measured"], roots, work, aside, map, lambda line: None, Counter())
        decided = decider(Counter({name: int(n) for name, n in made.came().items()}))
    chosen = collect.choose(recipe, parts["measured"], decided)
    dropped = collect.dropped_records(parts, decided, chosen, {path for step in STEPS for path in parts[step]})
    dropped.write(out / "dropped.parquet", leave.NOT_LEFT)
    write_pictures(dropped, out)
    keys = write_samples(chosen, out)
    shards = write_tars(chosen, keys, decided, out)
    for stage, about in decided.about.items():
        (out / f"{stage}.json").write_text(json.dumps(about))
    seconds = {"cut": 1000.0, "decide": 20.0, "shards": 100.0}
    noted: dict[str, Any] = {"date": "2026-01-01T00:00:00+00:00", "seconds": seconds, "worker_seconds": {}}
    (out / "timings.json").write_text(json.dumps({**noted, "read_bytes": {}, "work_done": {}}))
    return write_manifest(made, recipe, decided, chosen, shards, out)


def write_pictures(dropped: Dropped, out: Path) -> None:
    """pictures.parquet: of each source and reason as many as a build draws."""
    few, rows = jpegs(), []
    with tempfile.TemporaryDirectory() as folder:
        for job in pictures.picture_jobs(dropped, Path(folder), Path(folder), {}):
            for n, sample in enumerate(job.samples):
                row = {"key": sample.key, "source": sample.source, "stage": job.stage, "dropped": sample.dropped}
                rows.append({**row, "jpeg": few[n]})
    leave.write_table(pa.Table.from_pylist(rows, schema=pictures.SCHEMA), out / "pictures.parquet")


def write_samples(chosen: Any, out: Path) -> list[str]:
    """samples.parquet, a row group a shard; gives the keys."""
    writer, keys = None, []
    for begin in range(0, len(chosen.rows), A_SHARD * 10):
        rows = np.arange(begin, min(begin + A_SHARD * 10, len(chosen.rows)))
        table = chosen.rows.take(rows).read().drop_columns([*leave.NOT_LEFT, *leave.NOT_OF_KEPT])
        keys += table.column("key").to_pylist()
        writer = writer or pq.ParquetWriter(out / "samples.parquet", table.schema, compression="zstd")
        writer.write_table(table, row_group_size=A_SHARD)
    if writer:
        writer.close()
    return keys


def write_tars(chosen: Any, keys: list[str], decided: Decided, out: Path) -> list[Shard]:
    """Tars with the bytes of those samples that a report may show, and their index."""
    ids = chosen.columns.column("id").to_numpy()
    sources = chosen.columns.column("source").cast(pa.string())
    heads = {key for table in decided.lost.values() for key in table.column("lost_to").to_pylist()}
    shown = np.zeros(len(keys), bool)
    shown[np.argsort(mix64(ids, 0))[:2000]] = True
    shown |= np.array([key in heads for key in keys])
    few, offset = jpegs(), np.zeros(len(keys), np.int64)
    size, shard = np.zeros(len(keys), np.int64), np.arange(len(keys)) // A_SHARD
    shards = []
    for n, begin in enumerate(range(0, len(keys), A_SHARD)):
        rows = range(begin, min(begin + A_SHARD, len(keys)))
        name = f"made-train-{n:06d}.tar"
        with (out / name).open("wb") as file:
            for place, row in enumerate(rows):
                offset[row], size[row] = place * SAMPLE_BYTES + 512, len(few[row % len(few)])
                if shown[row]:
                    head = tarfile.TarInfo(f"{keys[row]}.jpg")
                    head.size = len(few[row % len(few)])
                    file.seek(place * SAMPLE_BYTES)
                    file.write(head.tobuf(tarfile.USTAR_FORMAT) + few[row % len(few)])
            file.truncate(len(rows) * SAMPLE_BYTES)
        about = {"samples": len(rows), "bytes": len(rows) * SAMPLE_BYTES, "sha256": digest(name)}
        shards.append(Shard(name=name, split="train", **about))
    wanted = index.schema(("jpg",))
    table = {"key": keys, "id": ids, "shard": shard, "jpg_offset": offset, "jpg_bytes": size, "source": sources}
    columns = {**table, "split": ["train"] * len(keys)}
    arrays = [
        value.cast(wanted.field(name).type).combine_chunks()
        if isinstance(value := columns[name], pa.ChunkedArray)
        else pa.array(value, wanted.field(name).type)
        for name in wanted.names
    ]
    told = [shard.model_dump(mode="json") for shard in shards]
    index.write(pa.table(arrays, schema=wanted), out / "index.arrow", told)
    return shards


def write_manifest(made: Made, recipe: Any, decided: Decided, chosen: Any, shards: list[Shard], out: Path) -> Manifest:
    came = Counter(
        dict(zip(made.names, (np.bincount(made.source, minlength=len(made.names)) * PART).tolist(), strict=True))
    )
    kept = Counter(made.came())
    funnels = {step: Funnel(came, came, came) for step in STEPS}
    dark = {name: Counter({"dark": came[name] - kept[name]}) for name in came if came[name] > kept[name]}
    funnels |= {"measured": Funnel(came, kept, kept, dark), **decided.funnels, "subset": chosen.funnel}
    left = Counter(chosen.columns.column("source").cast(pa.string()).to_pylist())
    sources = [
        SourceLeft(
            name=name,
            title=name,
            version=None,
            homepage="https://example.org",
            licence="CC-BY-4.0",
            provider_terms=None,
            samples=left[name],
            bytes=left[name] * SAMPLE_BYTES,
            mean_bytes=SAMPLE_BYTES,
            mean_psnr_db=None,
            unmatched=0,
        )
        for name in made.names
    ]
    plain = leave.portable(recipe)
    manifest = Manifest(
        name="made",
        title=f"{made.count:,} made records",
        recipe=plain,
        recipe_digest=digest(json.dumps(plain, sort_keys=True)),
        versions={"datakit": "bench"},
        sources=tuple(sources),
        missing=(),
        samples=len(chosen.rows),
        members=("jpg",),
        shards=tuple(shards),
        counts=tuple(leave.counts(funnels)),
        files={},
    ).sealed()
    (out / "manifest.json").write_text(manifest.to_json())
    return manifest


def run_report(out: Path) -> dict[str, Any]:
    from datakit.report import write

    return write(out)


def run_limit(out: Path) -> dict[str, Any]:
    size = 0
    for name, columns in COLUMNS.items():
        with pq.ParquetFile(out / f"{name}.parquet") as file:
            for n in range(file.num_row_groups):
                size += file.read_row_group(n, columns).nbytes
    return {"bytes": size}


def run_pandas(out: Path) -> dict[str, Any]:
    import pandas

    found = {}
    for name, columns in COLUMNS.items():
        table = pandas.read_parquet(out / f"{name}.parquet")
        found[name] = len(table.groupby([c for c in ("stage", "source", "dropped") if c in table]).size())
        for column in columns[2:]:
            if table[column].dtype.kind == "f":
                np.histogram(table[column].dropna(), 64)
    return found


RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {"report": run_report, "limit": run_limit, "pandas": run_pandas}


def one(name: str, out: Path) -> None:
    """Run one of RUNS in this process and print what it took."""
    memory, start = Memory(), time.perf_counter()
    memory.ask()
    made = RUNS[name](out)
    seconds = time.perf_counter() - start
    most, _ = memory.ask()
    print(json.dumps({"s": round(seconds, 2), "own_bytes": most, **made}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="records, kept and dropped together")
    parser.add_argument("--folder", type=Path, help="keep what is made here, and use that of a run before")
    parser.add_argument("--one", choices=sorted(RUNS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = args.folder or Path(folder)
        out = base / "out"
        if args.one:
            one(args.one, out)
            return
        if not (out / "manifest.json").exists():
            for name in ("decided", "out", "shards"):
                shutil.rmtree(base / name, ignore_errors=True)
            out.mkdir(parents=True)
            start = time.perf_counter()
            manifest = leave_build(Made(args.count), base, out)
            print(f"made: {manifest.samples:,} kept, in {time.perf_counter() - start:.1f} s", flush=True)
        results: dict[str, Any] = {}
        for name in ("limit", "pandas", "report"):
            command = [sys.executable, __file__, "--folder", str(base), "--one", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results[name] = json.loads(done.stdout.splitlines()[-1])
            said = results[name]
            print(f"{name:8} {said['s']:8.2f} s   {said['own_bytes'] / 2**20:8.0f} MiB at most", flush=True)
        report = results["report"]
        print(f"report: {report['bytes'] / 1e6:.1f} MB, {report['s'] / results['limit']['s']:.1f} times the limit, ")
        print(f"{report['s'] / results['pandas']['s']:.2f} times pandas without pictures, in ", end="")
        print(f"{report['own_bytes'] / results['pandas']['own_bytes']:.2f} of its memory")
        print(json.dumps({"bench": "report", "count": args.count, "results": results}))


if __name__ == "__main__":
    main()
