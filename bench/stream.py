"""Images a second from shards to batches, ours and peers in turn in one run; and what millions of rows cost a loader.

    python bench/stream.py [--quick] [--data DIR] [--rounds 5] [--peers dali,litdata,webdataset]

The task: tiles of 512 x 512 px, JPEG of quality 90, in the page cache; RandomResizedCrop(224, 0.2..1), a flip,
normalised float32 (64, 3, 224, 224), two workers (threads or processes, whichever a peer uses). Each run is a process
of its own that reads one epoch to warm up and times the next; runs of all peers take turns, a round after another, and
the median counts. Bilinear and bicubic, antialiased on both sides. Peers: NVIDIA DALI on the CPU, litdata (its own
chunks, which are written first), webdataset as its documentation has it; those that are not installed are left out and
named (`pip install 'datakit[peers]'`).

Bars: 1.5 times the faster of DALI and litdata, 2.2 times webdataset. With 13 million rows: at most 20 MB more private
memory than with 1,000, and 2 s from Loader(…) to the first batch.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

BATCH, CROP, WORKERS, SIDE = 64, 224, 2, 512
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = ("bilinear", "bicubic")
PACKAGES = {"datakit": "datakit", "dali": "nvidia.dali", "litdata": "litdata", "webdataset": "webdataset"}
ROWS = 13_000_000
Epoch = Callable[[], Iterable[Any]]


def ours(data: Path, kind: str) -> Epoch:
    from datakit.stream import Loader, mae

    loader = Loader(data / "tars", BATCH, transform=mae(CROP, interpolation=kind), threads=WORKERS)  # type: ignore[arg-type]
    return lambda: (batch.images for batch in loader)


def torchvision_of(kind: str, tensor: bool) -> Any:
    """Crop, resize, flip and normalise as torchvision's own documentation does it."""
    import torch
    from torchvision.transforms import InterpolationMode, v2

    how = InterpolationMode[kind.upper()]
    steps = [v2.RandomResizedCrop((CROP, CROP), SCALE, RATIO, how, antialias=True), v2.RandomHorizontalFlip()]
    ends = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return v2.Compose([*([] if tensor else [v2.ToImage()]), *steps, *ends])


def of_webdataset(data: Path, kind: str) -> Epoch:
    import webdataset

    tars = sorted(str(path) for path in (data / "tars").glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=100).shuffle(1000).decode("pil").to_tuple("jpg", "cls")
    dataset = dataset.map_tuple(torchvision_of(kind, False), int).batched(BATCH, partial=True)
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=WORKERS, persistent_workers=True)
    return lambda: (images for images, _ in loader)


def of_litdata(data: Path, kind: str) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset

    transform = torchvision_of(kind, True)

    class Tiles(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            return transform(super().__getitem__(index)["image"])

    dataset = Tiles(str(data / "litdata"), shuffle=True, drop_last=False)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)
    return lambda: iter(loader)


def of_dali(data: Path, kind: str) -> Epoch:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    tars = sorted(str(path) for path in (data / "tars").glob("*.tar"))
    how = types.INTERP_LINEAR if kind == "bilinear" else types.INTERP_CUBIC
    scaled = [[255 * v for v in of] for of in (MEAN, STD)]

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None)
    def made() -> Any:
        jpg, _ = fn.readers.webdataset(
            paths=tars, ext=["jpg", "cls"], random_shuffle=True, initial_fill=1000, name="in"
        )
        kept = {"random_area": list(SCALE), "random_aspect_ratio": list(RATIO)}
        image = fn.decoders.image_random_crop(jpg, device="cpu", output_type=types.RGB, **kept)
        image = fn.resize(image, size=[CROP, CROP], interp_type=how, antialias=True)
        flip = fn.random.coin_flip(probability=0.5)
        end = {"dtype": types.FLOAT, "output_layout": "CHW", "mean": scaled[0], "std": scaled[1]}
        return fn.crop_mirror_normalize(image, mirror=flip, **end)

    pipe = made()
    pipe.build()
    loader = DALIGenericIterator([pipe], ["x"], reader_name="in", last_batch_policy=LastBatchPolicy.PARTIAL)

    def epoch() -> Iterator[Any]:
        for one in loader:
            yield one[0]["x"]
        loader.reset()

    return epoch


PEERS = {"datakit": ours, "dali": of_dali, "litdata": of_litdata, "webdataset": of_webdataset}


def tile(n: int) -> bytes:
    """An aerial-looking picture with the noise of a sensor: about 100 kB."""
    from PIL import Image

    from datakit.sources.scenes import draw

    rng = np.random.default_rng(n)
    kinds = ("houses", "farmland", "river", "port", "works", "forest")
    pixels = draw(rng, kinds[n % len(kinds)], SIDE, SIDE).pixels
    noisy = pixels + rng.normal(0, 9, (SIDE, SIDE, 1)) + rng.normal(0, 2, pixels.shape)
    out = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def make(data: Path, tiles: int) -> None:
    """The tiles in tars of 512; what is there already is taken as it is."""
    (data / "tars").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(WORKERS) as pool:
        for first in range(0, tiles, 512):
            path = data / "tars" / f"{first // 512:03}.tar"
            if path.exists():
                continue
            made = pool.map(tile, range(first, min(first + 512, tiles)), chunksize=32)
            with tarfile.open(path.with_suffix(".part"), "w", format=tarfile.USTAR_FORMAT) as tar:
                for n, image in enumerate(made, first):
                    for name, content in ((f"{n:06}.jpg", image), (f"{n:06}.cls", str(n % 10).encode())):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
            path.with_suffix(".part").replace(path)


def jpegs(data: Path) -> Iterator[bytes]:
    for path in sorted((data / "tars").glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                if info.name.endswith(".jpg"):
                    yield tar.extractfile(info).read()  # type: ignore[union-attr]


def for_litdata(data: Path) -> None:
    """The same JPEGs in litdata's chunks."""
    if (data / "litdata" / "index.json").exists():
        return
    import litdata

    folder = data / "jpegs"
    folder.mkdir(exist_ok=True)
    for n, content in enumerate(jpegs(data)):
        (folder / f"{n:06}.jpg").write_bytes(content)
    paths = sorted(str(path) for path in folder.glob("*.jpg"))
    litdata.optimize(as_item, paths, str(data / "litdata"), chunk_bytes="64MB", num_workers=WORKERS)
    shutil.rmtree(folder)


def as_item(path: str) -> dict[str, Any]:
    from PIL import Image

    return {"image": Image.open(path)}


def run(peer: str, kind: str, data: Path) -> None:
    """One epoch to warm up, one that counts: as JSON on stdout."""
    warnings.simplefilter("ignore")
    epoch = PEERS[peer](data, kind)
    for counted in (False, True):
        images, began, cpu = 0, time.perf_counter(), cpu_s()
        for batch in epoch():
            if tuple(batch.shape[1:]) != (3, CROP, CROP) or "float32" not in str(batch.dtype):
                raise SystemExit(f"{peer}: a batch of {tuple(batch.shape)} {batch.dtype}")
            images += len(batch)
            if not counted and images == len(batch):
                look = {"mean": float(batch.mean()), "std": float(batch.std())}
    took, spent = time.perf_counter() - began, cpu_s() - cpu
    print(json.dumps({"images": images, "images_s": images / took, "cpu_ms": 1000 * spent / images, **look}))


def cpu_s() -> float:
    """CPU seconds of this process and of those that it started, also those that still run."""
    import psutil

    me = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (me, *me.children(recursive=True)))


def rounds(
    data: Path, peers: list[str], kinds: tuple[str, ...], count: int
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {(k, p): [] for k in kinds for p in peers}
    order = list(found)
    for n in range(count):
        for kind, peer in order if n % 2 == 0 else order[::-1]:
            command = [sys.executable, __file__, "--data", str(data), "--one", peer, "--kind", kind]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=env)
            if done.returncode:
                print(f"{peer} {kind}: failed\n{done.stderr[-2000:]}", flush=True)
                continue
            found[kind, peer].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {n}: {kind:9} {peer:11} {found[kind, peer][-1]['images_s']:7.0f} images/s", flush=True)
    return found


def table(found: dict[tuple[str, str], list[dict[str, Any]]]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    middle = {at: statistics.median(run["images_s"] for run in runs) for at, runs in found.items() if runs}
    for (kind, peer), speed in middle.items():
        runs = found[kind, peer]
        ratio = middle[kind, "datakit"] / speed
        cpu = statistics.median(run["cpu_ms"] for run in runs)
        spread = f"{min(run['images_s'] for run in runs):.0f} to {max(run['images_s'] for run in runs):.0f}"
        print(
            f"{kind:9} {peer:11} {speed:7.0f} images/s ({spread})  {cpu:5.2f} ms CPU an image   ours: {ratio:.2f} times"
        )
        results[f"{kind} {peer}"] = {"images_s": round(speed, 1), "cpu_ms": round(cpu, 3), "ours": round(ratio, 3)}
    return results


def large(data: Path, rows: int) -> Path:
    """An index of so many rows over the tars that are there, each listed again and again."""
    from datakit import index
    from datakit.stream.source import opened

    out = data / f"rows-{rows}" / "index.arrow"
    if out.exists():
        return out
    out.parent.mkdir()
    tars = opened(data / "tars")
    times = -(-rows // len(tars))
    table = pa.concat_tables([tars.table.replace_schema_metadata(None)] * times).combine_chunks()
    shard = np.repeat(np.arange(times, dtype=np.int32) * len(tars.shards), len(tars)) + np.tile(
        tars.column["shard"], times
    )
    table = table.set_column(2, "shard", pa.array(shard.astype(np.int32))).slice(0, rows)
    names = [
        {"name": str(s.path), "samples": s.samples, "bytes": s.size_bytes} for _ in range(times) for s in tars.shards
    ]
    counts = np.bincount(shard[:rows], minlength=len(names))
    index.write(table, out, [{**name, "samples": int(n)} for name, n in zip(names, counts, strict=True)])
    return out


def cost(path: Path) -> None:
    """Private memory of a loader's process, and seconds to the first batch, also from within an epoch: as JSON."""
    from datakit.stream import Loader, mae

    def private() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024

    def first(source: Path, position: int) -> float:
        began = time.perf_counter()
        loader = Loader(source, 16, transform=mae(CROP), threads=WORKERS)
        if position:
            loader.load_state_dict({**loader.state_dict(), "position": position})
        next(iter(loader))
        return time.perf_counter() - began

    first(path, 0)  # code is compiled, libraries are loaded
    times = {"first_s": first(path, 0), "resumed_s": first(path, len(Loader(path, 16)) // 2 * 16)}
    print(json.dumps({"private_bytes": private(), **{name: round(value, 3) for name, value in times.items()}}))


def costs(data: Path, rows: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for count in (1000, rows):
        command = [sys.executable, __file__, "--cost", str(large(data, count))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results[f"{count} rows"] = found = json.loads(done.stdout.splitlines()[-1])
        said = f"{found['private_bytes'] / 1e6:.0f} MB private, first batch {found['first_s']:.2f} s"
        print(f"{count:>10,} rows: {said}, resumed {found['resumed_s']:.2f} s", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of the tiles, one round, a tenth of the rows")
    parser.add_argument("--data", type=Path, help="keep the tiles here, and use those of a run before")
    parser.add_argument("--rounds", type=int, default=0, help="default: 5")
    parser.add_argument("--peers", default="dali,litdata,webdataset")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--one", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--kind", default=KINDS[0], help=argparse.SUPPRESS)
    parser.add_argument("--cost", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cost:
        return cost(args.cost)
    if args.one:
        return run(args.one, args.kind, args.data)
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or Path(folder)
        make(data, 512 if args.quick else 4096)
        peers = ["datakit", *args.peers.split(",")]
        missing = [peer for peer in peers if not is_there(PACKAGES[peer])]
        print("".join(f"{peer}: not installed, left out\n" for peer in missing), end="")
        peers = [peer for peer in peers if peer not in missing]
        if "litdata" in peers:
            for_litdata(data)
        found = rounds(data, peers, tuple(args.kinds.split(",")), args.rounds or (1 if args.quick else 5))
        results = table(found) | costs(data, ROWS // 10 if args.quick else ROWS)
    machine = {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    print(json.dumps({"bench": "stream", **machine, "results": results}))


def is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    main()
