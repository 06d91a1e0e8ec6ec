"""Near-duplicate search beside its peers, on the same signatures, with the same pairs found.

    python bench/dedup.py [--quick] [--images DIR] [--sizes 100000 1000000 13000000]

Peers: imagededup's own search (`brute_force_cython`, all cores), FAISS's exact binary indexes (all cores; needs
faiss-cpu), `np.sort(kind="stable")` of the same array, and a plain join over 6 blocks (bench/peers/block_join.py).
Signatures: 90 % random and 10 % in clusters of at most 10, each at most 4 bits from the first; and pHashes of windows
of real images, each with 8 to 20 bits flipped at random, whose buckets are uneven.

Where a peer would take minutes, a sample of queries against all is timed and scaled, and the row says so; its pairs
are compared for these queries. Bars at radius 4: 1,000 x imagededup at 100,000; 10 x the best exact FAISS index at a
million; at 13 million at most 8 x the time of np.sort and 3 GiB.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers.block_join import join
from PIL import Image

from datakit import measure
from datakit.hamming import near_pairs, scan
from datakit.sources.scenes import draw
from datakit.stars import keep_stars

RADIUS_BITS = 4
CORES = len(os.sched_getaffinity(0))
RESULTS: dict[str, Any] = {}


def report(name: str, what: str, seconds: float | None, note: str = "", **numbers: Any) -> None:
    print(f"{what:62} {'' if seconds is None else f'{seconds:10.3f} s':12} {note}", flush=True)
    RESULTS[name] = {
        **({} if seconds is None else {"s": round(seconds, 4)}),
        **numbers,
        **({"note": note} if note else {}),
    }


def timed(job: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = job()
    return time.perf_counter() - start, made


def flipped(signatures: Any, flips: Any, rng: np.random.Generator) -> Any:
    for n in range(int(flips.max(initial=0))):
        bit = np.uint64(1) << rng.integers(0, 64, len(signatures), dtype=np.uint64)
        signatures = signatures ^ np.where(flips > n, bit, np.uint64(0))
    return signatures


def clustered(count: int) -> Any:
    """90 % random, 10 % in clusters of 2 to 10."""
    rng = np.random.default_rng([7, count])
    sizes = rng.integers(2, 11, count // 50)
    sizes = sizes[np.cumsum(sizes) <= count // 10]
    found = rng.integers(0, 1 << 64, count, dtype=np.uint64)
    near = np.repeat(found[: len(sizes)], sizes)
    found[: len(near)] = flipped(near, rng.integers(0, RADIUS_BITS + 1, len(near)), rng)
    return rng.permutation(found)


def jittered(base: Any, count: int) -> Any:
    """pHashes of windows, each with 8 to 20 flips."""
    rng = np.random.default_rng([8, count])
    return flipped(base[rng.integers(0, len(base), count)], rng.integers(8, 21, count), rng)


def pictures(folder: Path | None) -> list[Any]:
    """The images of a folder that Pillow reads as RGB, or six drawn scenes."""
    found = []
    for path in sorted(folder.iterdir()) if folder else []:
        try:
            with Image.open(path) as picture:
                if min(picture.size) >= 256 and picture.mode in ("RGB", "RGBA", "L"):
                    found.append(np.asarray(picture.convert("RGB")))
        except (OSError, SyntaxError, ValueError):
            continue
    kinds = ("houses", "farmland")
    return found or [draw(np.random.default_rng(n), kinds[n % 2], 2048, 2048).pixels for n in range(6)]


def window_phashes(images: list[Any], most: int, side_px: int = 256) -> Any:
    """pHashes of windows at offsets as close as makes about `most` of them."""
    area = sum((i.shape[0] - side_px + 1) * (i.shape[1] - side_px + 1) for i in images)
    step = max(1, int((area / most) ** 0.5))
    tiles = (
        image[y : y + side_px, x : x + side_px]
        for image in images
        for y in range(0, image.shape[0] - side_px + 1, step)
        for x in range(0, image.shape[1] - side_px + 1, step)
    )
    return np.array([measure.phash(np.ascontiguousarray(tile)) for tile in tiles], np.uint64)


def neighbours(pairs: Any, rows: Any) -> set[tuple[int, int]]:
    """(row, other) of some rows."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    wanted = np.zeros(max(int(both.max(initial=0)), int(rows.max())) + 1, bool)
    wanted[rows] = True
    return {(a, b) for a, b in both[wanted[both[:, 0]]].tolist()}


def ours(signatures: Any, rounds: int = 3) -> tuple[float, Any]:
    runs = [timed(lambda: near_pairs(signatures, RADIUS_BITS)) for _ in range(rounds)]
    return statistics.median(seconds for seconds, _ in runs), runs[0][1]


def beside_imagededup(count: int, queries: tuple[int, int]) -> None:
    from imagededup.handlers.search.retrieval import HashEval
    from imagededup.methods import PHash

    logging.disable(logging.INFO)
    signatures = clustered(count)
    seconds, pairs = ours(signatures, 5)
    names = {f"{n}": f"{value:016x}" for n, value in enumerate(signatures.tolist())}
    runs = []
    for some in queries:  # those of more are a multiple of its batches of 100 for every process
        chosen = dict(list(names.items())[:some])
        runs.append(
            timed(
                lambda chosen=chosen: HashEval(
                    test=names,
                    queries=chosen,
                    distance_function=PHash(verbose=False).hamming_distance,
                    verbose=False,
                    threshold=RADIUS_BITS,
                    search_method="brute_force_cython",
                    num_dist_workers=CORES,
                ).retrieve_results()
            )
        )
    found = {(int(a), int(b)) for a, others in runs[1][1].items() for b in others}
    assert found == neighbours(pairs, np.arange(queries[1])), "imagededup finds other pairs"
    each = (runs[1][0] - runs[0][0]) / (queries[1] - queries[0])
    whole = runs[0][0] + each * (count - queries[0])
    report(f"ours_{count}", f"{count:,}: datakit near_pairs", seconds, f"{len(pairs):,} pairs", pairs=len(pairs))
    note = f"{whole / seconds:,.0f} x ours; from {queries[0]} and {queries[1]} queries, {len(found):,} pairs equal"
    report("imagededup", f"{count:,}: imagededup brute_force_cython", whole, note, ratio=round(whole / seconds))


def beside_faiss(count: int, sample: int) -> None:
    signatures = clustered(count)
    seconds, pairs = ours(signatures)
    report(f"ours_{count}", f"{count:,}: datakit near_pairs", seconds, f"{len(pairs):,} pairs", pairs=len(pairs))
    try:
        import faiss
    except ImportError:
        report("faiss", f"{count:,}: FAISS", None, "faiss-cpu is not installed")
        return
    faiss.omp_set_num_threads(CORES)
    codes = signatures.view(np.uint8).reshape(count, 8)
    best, sample = float("inf"), min(sample, count)
    wanted = neighbours(pairs, np.arange(sample))
    for title, blocks, bits, flips in (("Flat", 0, 0, 0), ("", 3, 21, 1), ("", 4, 16, 1), ("", 5, 12, 0)):
        index = faiss.IndexBinaryMultiHash(64, blocks, bits) if blocks else faiss.IndexBinaryFlat(64)
        if blocks:
            title, index.nflip = f"MultiHash {blocks} x {bits}, nflip {flips}", flips
        build, _ = timed(lambda index=index: index.add(codes))
        some = sample if blocks else max(sample // 5, 1)
        search, (limits, _, ids) = timed(
            lambda index=index, some=some: index.range_search(codes[:some], RADIUS_BITS + 1)
        )
        rows = np.repeat(np.arange(some), np.diff(limits.astype(np.int64)))
        found = {(a, b) for a, b in zip(rows.tolist(), ids.tolist(), strict=True) if a != b}
        assert found == {pair for pair in wanted if pair[0] < some}, f"FAISS {title} finds other pairs"
        whole = build + search * count / some
        best = min(best, whole)
        note = f"{whole / seconds:,.1f} x ours; from {some:,} queries, their {len(found):,} pairs equal"
        report(f"faiss_{title}", f"{count:,}: FAISS IndexBinary{title}", whole, note, ratio=round(whole / seconds, 1))
        del index
    report(
        "faiss_best", f"{count:,}: best of FAISS", best, f"{best / seconds:,.1f} x ours", ratio=round(best / seconds, 1)
    )


def beside_sort(name: str, signatures: Any) -> None:
    """Ours beside a stable sort and the plain join, and the peak memory of ours in a process of its own."""
    rounds = []
    for _ in range(3):
        sort, _ = timed(lambda: np.sort(signatures, kind="stable"))
        mine, pairs = timed(lambda: near_pairs(signatures, RADIUS_BITS))
        rounds.append((sort, mine))
    sort, seconds = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(mine / sort for sort, mine in rounds)
    peak = peak_bytes(signatures)
    title = f"{len(signatures):,} {name}"
    note = f"{len(pairs):,} pairs; {ratio:.2f} x np.sort; peak {peak / 2**30:.2f} GiB"
    report(f"ours_{title}", f"{title}: datakit near_pairs", seconds, note, sorts=round(ratio, 3), peak_bytes=peak)
    report(f"sort_{title}", f"{title}: np.sort, stable", sort)
    join(signatures[:1000], RADIUS_BITS, CORES)
    whole, packed = timed(lambda: join(signatures, RADIUS_BITS, CORES))
    one, other = packed >> np.uint64(32), packed & np.uint64(0xFFFFFFFF)
    low, high = np.minimum(one, other), np.maximum(one, other)
    assert np.array_equal(
        np.sort(low << np.uint64(32) | high),
        pairs[:, 0].astype(np.uint64) << np.uint64(32) | pairs[:, 1].astype(np.uint64),
    )
    note = f"{whole / seconds:.1f} x ours; the same pairs"
    report(f"join_{title}", f"{title}: plain join, 6 blocks", whole, note, ratio=round(whole / seconds, 2))


def peak_bytes(signatures: Any) -> int:
    """VmHWM of a fresh process that loads the signatures and finds the pairs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signatures.npy"
        np.save(path, signatures)
        code = (
            "import sys, numpy; from datakit.hamming import near_pairs;"
            f"near_pairs(numpy.load(sys.argv[1]), {RADIUS_BITS}); print(open('/proc/self/status').read())"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout.split("VmHWM:")[1].split()[0]) * 1024


def same_phash(count: int) -> None:
    """measure.phash beside imagededup's PHash, on images of many sizes in memory."""
    from imagededup.methods import PHash

    peer = PHash(verbose=False)
    rng = np.random.default_rng(3)
    scenes = [draw(np.random.default_rng(n), kind, 1536, 1536).pixels for n, kind in enumerate(("houses", "farmland"))]
    crops = []
    for _ in range(count):
        width, height = np.exp(rng.uniform(np.log(8), np.log(1024), 2)).astype(int)
        y, x = rng.integers(0, 1537 - height), rng.integers(0, 1537 - width)
        crops.append(np.ascontiguousarray(scenes[rng.integers(0, 2)][y : y + height, x : x + width]))
    measure.phash(crops[0])
    tiles = [
        np.ascontiguousarray(s[y : y + 512, x : x + 512]) for s in scenes for y in (0, 512) for x in range(0, 512, 8)
    ]
    for title, images in (("8 to 1,024 px", crops), ("512 px", tiles)):
        theirs, expected = timed(lambda images=images: [int(peer.encode_image(image_array=i), 16) for i in images])
        mine, found = timed(lambda images=images: [measure.phash(i) for i in images])
        same = sum(a == b for a, b in zip(found, expected, strict=True))
        assert same == len(images), f"{len(images) - same} pHashes of {len(images)} differ from imagededup's"
        per_s = {"per_s": round(len(images) / mine), "their_per_s": round(len(images) / theirs)}
        note = f"{same:,} of {len(images):,} equal; {per_s['per_s']:,} images/s, imagededup {per_s['their_per_s']:,}"
        report(f"phash_{title}", f"measure.phash, {title}", mine, note, same=same, of=len(images), **per_s)


def rest(count: int) -> None:
    """keep_stars, and a linear scan."""
    signatures = clustered(count)
    seconds, kept = timed(lambda: keep_stars(signatures, RADIUS_BITS))
    heads = int((kept == np.arange(count)).sum())
    report("stars", f"{count:,} clustered: datakit keep_stars", seconds, f"{heads:,} kept", kept=heads)
    scan(signatures[:10], signatures[0], 0)
    seconds, hits = timed(lambda: scan(signatures, signatures[0], 12))
    report("scan", f"{count:,} clustered: datakit scan, one query", seconds, f"{len(hits.row):,} within 12 bits")
    size, clusters = (500, 64) if count < 1_000_000 else (5000, 264)
    rng = np.random.default_rng(0)
    near = np.repeat(rng.integers(0, 1 << 64, clusters, dtype=np.uint64), size)
    near = flipped(near, rng.integers(0, RADIUS_BITS + 1, len(near)), rng)
    for order, some in (("by cluster", near), ("random order", rng.permutation(near))):
        seconds, kept = timed(lambda some=some: keep_stars(some, RADIUS_BITS))
        heads = len(np.unique(kept))
        title = f"{clusters} clusters of {size:,}, {order}: datakit keep_stars"
        report(f"stars_{order}", title, seconds, f"{heads:,} kept of {len(some):,}", kept=heads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes of a minute")
    parser.add_argument("--sizes", type=int, nargs=3, metavar=("IMAGEDEDUP", "FAISS", "SORT"))
    parser.add_argument("--images", type=Path, help="a folder of images (default: ../shared/data/rs, or drawn scenes)")
    args = parser.parse_args()
    small, middle, large = args.sizes or (
        (20_000, 100_000, 1_000_000) if args.quick else (100_000, 1_000_000, 13_000_000)
    )
    warnings.simplefilter("ignore")
    near_pairs(clustered(2 * 10**5), RADIUS_BITS)
    near_pairs(clustered(1000), RADIUS_BITS)  # kernels compiled
    keep_stars(clustered(5000), RADIUS_BITS)
    beside_imagededup(small, (200, 400) if args.quick else (400, 1200))
    beside_faiss(middle, 10_000 if args.quick else 50_000)
    beside_sort("clustered", clustered(large))
    default = Path(__file__).parents[2] / "shared" / "data" / "rs"
    folder = args.images or (default if default.is_dir() else None)
    base = window_phashes(pictures(folder), 2_000 if args.quick else 20_000)
    print(f"{len(base):,} windows, {len(np.unique(base)):,} pHashes, of {folder or 'drawn scenes'}")
    for count in (middle, large):
        beside_sort("jittered pHashes", jittered(base, count))
    same_phash(500 if args.quick else 4000)
    rest(large)
    machine = {
        "machine": platform.machine(),
        "cores": CORES,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    print(json.dumps({"bench": "dedup", "quick": args.quick, **machine, "windows": len(base), "results": RESULTS}))


if __name__ == "__main__":
    main()
