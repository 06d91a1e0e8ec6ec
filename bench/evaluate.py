"""Scoring ImageNet-S: images per second of `Metrics.update`, seconds of `match`, and the plan of the largest set.

    python bench/evaluate.py [--rounds 7] [--plan]

`update`: masks of 500 x 400 px, 919 classes. Beside it, in the same rounds, the published way (an erosion for each
class of a mask, histograms for each size of objects; restated with OpenCV and numpy) and the limit: one pass of numpy
over both masks, the histogram of pairs of ids. `match`: 919 classes in 12,419 images, beside the one product of
matrices that it cannot do without. `--plan`: 1,281,167 names in tars of a tar are found, sorted into the splits of 919
and laid out in shards, by a process of its own whose peak memory is told; beside it, the reading of every header.
One thread. It needs 1.4 GB in the folder for temporary files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import cv2
import numpy as np

from datakit.evaluate.imagenet_s import Metrics, match
from datakit.sources.imagenet_s import MERGED, SEMI, list_names

CLASSES, IMAGES, HEIGHT, WIDTH = 919, 12_419, 400, 500
TRAIN, OF_CLASS, VAL, TEST = 1_281_167, 1_281, 12_419, 27_423
PLAN = """
import sys, time
from pathlib import Path
from datakit import kinds
from datakit.engine import Engine
from datakit.imagenet_build import Copying
from datakit.imagenet_s import find
folder, start = Path(sys.argv[1]), time.perf_counter()
recipe = kinds.load("imagenet_s", {"variant": 919})
sources = find(recipe, folder)
(folder / "work").mkdir()
jobs = Copying(recipe, sources, folder / "out", folder / "work", Engine(0), print, True).jobs()
seconds = time.perf_counter() - start
peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(sources.found["train"], len(jobs), seconds, peak / 2**20)
"""


def masks(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predictions and true masks: one to three objects, ignored rims."""
    rng, made = np.random.default_rng(0), []
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for _ in range(count):
        gt = np.zeros((HEIGHT, WIDTH), np.uint16)
        for number in rng.integers(1, CLASSES + 1, rng.integers(1, 4)):
            apart = np.hypot(x - rng.uniform(0, WIDTH), (y - rng.uniform(0, HEIGHT)) * rng.uniform(0.5, 2))
            radius = rng.uniform(20, 150)
            gt[apart < radius + 4] = 1000
            gt[apart < radius] = number
        pred = np.roll(gt, (5, -8), (0, 1))
        pred[pred == 1000] = rng.integers(0, CLASSES + 1)
        made.append((pred, gt))
    return made


def boundaries(ids: np.ndarray) -> np.ndarray:
    """As published: each class of a mask is eroded, what goes is its boundary, id + 1."""
    out = np.zeros(ids.shape, np.int32)
    times = max(round(0.03 * float(np.hypot(*ids.shape))), 1)
    for number in np.unique(ids):
        inside = (ids == number).astype(np.uint8)
        wide = cv2.copyMakeBorder(inside, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(wide, np.ones((3, 3), np.uint8), iterations=times)[1:-1, 1:-1]
        out[(inside - eroded) > 0] = int(number) + 1
    return out


def counts(pred: np.ndarray, gt: np.ndarray, most: int) -> np.ndarray:
    three = (pred, gt, pred[pred == gt])
    return np.stack([np.bincount(one[one < most], minlength=most) for one in three])


def published(pred: np.ndarray, gt: np.ndarray, sums: np.ndarray) -> None:
    """Adds what the published evaluator adds: areas and boundaries, of all and of each size of objects."""
    edges = boundaries(pred), boundaries(gt)
    valid = gt != 1000
    pred, gt, pred_edge, gt_edge = (one[valid] for one in (pred, gt, *edges))
    there, areas = np.unique(gt, return_counts=True)
    percent = np.ceil(100 * areas / len(gt))
    groups = [there, *([there[(there > 0) & (percent > low) & (percent <= high)]
                        for low, high in ((0, 5), (5, 25), (25, 50), (50, 100))])]  # fmt: skip
    for n, group in enumerate(groups):
        if len(group):
            rows = np.isin(gt, [0, *group])
            sums[0, n] += counts(pred[rows], gt[rows], CLASSES + 1)
            sums[1, n] += counts(pred_edge[rows], gt_edge[rows], CLASSES + 2)[:, 1:]


def update(rounds: int) -> dict[str, Any]:
    pairs = masks(24)
    ours, sums = Metrics(CLASSES), np.zeros((2, 5, 3, CLASSES + 1))
    jobs: dict[str, Callable[[Any, Any], Any]] = {
        "ours": ours.update,
        "published": lambda pred, gt: published(pred, gt, sums),
        "one pass": lambda pred, gt: np.bincount(gt.ravel() * np.int32(CLASSES + 1) + pred.ravel()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for n in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            for pred, gt in pairs:
                job(pred, gt)
            if n:  # the first compiles
                seconds[name].append((time.perf_counter() - start) / len(pairs))
    mid = {name: statistics.median(some) for name, some in seconds.items()}
    theirs = sums[0, 0]
    iou = theirs[2] / (theirs[0] + theirs[1] - theirs[2] + 1e-10) * 100
    assert abs(iou.mean() - ours.compute()["mIoU"]) < 1e-6, "they do not count the same"
    print(f"{'update, 500 x 400 px':28}{'images/s':>10}{'ms':>8}")
    for name, value in mid.items():
        print(f"  {name:26}{1 / value:10.0f}{value * 1e3:8.2f}")
    faster, share = mid["published"] / mid["ours"], mid["one pass"] / mid["ours"]
    print(f"  {faster:.1f} times the published way, {share:.2f} of one pass")
    return {name: round(1 / value, 1) for name, value in mid.items()}


def matching(rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    names = rng.permutation(CLASSES) + 1
    gts = [rng.integers(1, CLASSES + 1, rng.integers(1, 4)).tolist() for _ in range(IMAGES)]
    preds = [[int(names[c - 1]) for c in gt] + rng.integers(1, CLASSES + 1, 2).tolist() for gt in gts]
    there = np.zeros((2, IMAGES, CLASSES), np.float32)
    for which, sets in enumerate((preds, gts)):
        for n, some in enumerate(sets):
            there[which, n, np.array(some) - 1] = 1
    seconds: dict[str, list[float]] = {"ours": [], "one product": []}
    for _ in range(min(rounds, 3)):
        start = time.perf_counter()
        table = match(preds, gts, CLASSES)
        seconds["ours"].append(time.perf_counter() - start)
        start = time.perf_counter()
        there[0].T @ there[1]
        seconds["one product"].append(time.perf_counter() - start)
    assert all(table[int(names[c - 1])] == c for c in range(1, CLASSES + 1)), "a class was matched wrongly"
    mid = {name: statistics.median(some) for name, some in seconds.items()}
    print(f"match, {CLASSES} classes, {IMAGES:,} images: {mid['ours']:.2f} s")
    print(f"  the product of matrices alone {mid['one product']:.2f} s")
    return {name: round(value, 3) for name, value in mid.items()}


def make_names(folder: Path) -> None:
    """A tar of 1,000 tars with 1,281,167 members of 512 bytes, a flat tar of val, lists and no masks."""
    wnids = [*sorted({*MERGED, *MERGED.values()}), *(f"n{n:08d}" for n in range(20_000_001, 20_000_991))]
    listed = sorted(wnid for wnid in wnids if wnid not in MERGED)[:CLASSES]
    listed = sorted({*listed, *MERGED.values()})[:CLASSES]

    def header(name: str, size: int) -> bytes:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.USTAR_FORMAT)

    left = TRAIN
    with (folder / "ILSVRC2012_img_train.tar").open("wb") as out:
        for n, wnid in enumerate(wnids):
            count = min(OF_CLASS + (n < TRAIN - OF_CLASS * 1000), left)
            left -= count
            out.write(header(f"{wnid}.tar", count * 1024 + 1024))
            for k in range(count):
                out.write(header(f"{wnid}_{k}.JPEG", 512) + bytes(512))
            out.write(bytes(1024))
        out.write(bytes(1024))
    with (folder / "ILSVRC2012_img_val.tar").open("wb") as out:
        for n in range(1, 50_001):
            out.write(header(f"ILSVRC2012_val_{n:08d}.JPEG", 512) + bytes(512))
        out.write(bytes(1024))
    for variant in ("50", "300", "919"):
        mine = listed[: int(variant)]
        line = [f"{mine[n % len(mine)]}/ILSVRC2012_val_{n + 1:08d}.JPEG" for n in range(VAL + TEST)]
        lists = {"classes": mine, SEMI: [f"{wnid}/{wnid}_{k}.JPEG" for wnid in mine for k in range(10)]}
        lists |= {"validation": [f"{one} {one}" for one in line[:VAL]], "test": [f"{one} {one}" for one in line[VAL:]]}
        for what, name in list_names(variant).items():
            path = folder / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lists[what]))


def plan() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_names(folder)
        start = time.perf_counter()
        handle, at, read = os.open(folder / "ILSVRC2012_img_train.tar", os.O_RDONLY), 0, 0
        while at < os.fstat(handle).st_size:
            read += len(os.pread(handle, 512, at))
            at += 1024
        limit = time.perf_counter() - start
        os.close(handle)
        done = subprocess.run([sys.executable, "-c", PLAN, name], capture_output=True, text=True, check=True)
        train, jobs, seconds, peak = done.stdout.split()[-4:]
    print(f"plan of 919, {int(train):,} training images in {jobs} shards: {float(seconds):.1f} s,")
    print(f"  peak {float(peak):.2f} GiB; reading every header {limit:.1f} s")
    return {"seconds": round(float(seconds), 1), "peak_gib": round(float(peak), 2), "headers_s": round(limit, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--plan", action="store_true", help="also plan the largest set")
    args = parser.parse_args()
    results: dict[str, Any] = {"update_images_s": update(args.rounds), "match_s": matching(args.rounds)}
    if args.plan:
        results["plan"] = plan()
    machine = {"machine": platform.machine(), "python": platform.python_version(), "numpy": np.__version__}
    print(json.dumps({"bench": "evaluate", "rounds": args.rounds, **machine, **results}))


if __name__ == "__main__":
    main()
