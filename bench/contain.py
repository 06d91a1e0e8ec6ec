"""Parts of held-out images looked for in tiles: what each step costs, and the same pairs by brute force.

    python bench/contain.py [--held 20000] [--tiles 200] [--pairs 20] [--images DIR]

Tiles are JPEGs of 512 px, of drawn scenes or of windows of the images of a folder, none of which is held out. Held-out
images are as many drawn scenes as there are tiles, and beyond these their points with 20 to 60 of 256 bits flipped, so
that an index of any size has the uneven keys of real points. CPU time of one process. Peer: OpenCV's own way of the
same task, BFMatcher with cross-check over all pairs of points of two pictures, then findHomography by RANSAC, for each
of some planted crops (half of a held-out image, scale 0.5 to 2, 8 orientations) beside each held-out image and its
mirror image; 15 points that agree are a find.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from datakit.contain import BATCH, PARTS, Index, described
from datakit.looks import turn
from datakit.points import POINT, decoded, points_of
from datakit.sources.land import KINDS
from datakit.sources.scenes import draw

SIDE = 512
INLIERS = 15  # of the peer
RESULTS: dict[str, Any] = {}


def timed(job: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, and what came of it."""
    start = time.process_time()
    made = job()
    return time.process_time() - start, made


def report(name: str, what: str, value: float, unit: str, note: str = "") -> None:
    print(f"{what:58} {value:10.3f} {unit:14} {note}", flush=True)
    RESULTS[name] = round(value, 5)


def jpeg(pixels: Any, quality: int = 90) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "JPEG", quality=quality)
    return out.getvalue()


def scenes(first: int, count: int) -> list[Any]:
    kinds = list(KINDS)
    return [
        draw(np.random.default_rng(n), kinds[n % len(kinds)], SIDE, SIDE).pixels for n in range(first, first + count)
    ]


def windows(folder: Path) -> list[Any]:
    """Windows of 512 px of the images of a folder that Pillow reads as RGB."""
    found = []
    for path in sorted(folder.iterdir()):
        try:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError):
            continue
        places = [(y, x) for y in range(0, len(pixels) - 511, SIDE) for x in range(0, pixels.shape[1] - 511, SIDE)]
        found += [pixels[y : y + SIDE, x : x + SIDE] for y, x in places]
    return found


def held_out(base: list[Any], count: int, path: Path) -> None:
    """A file of PARTS: the pictures, then more of their points with bits flipped."""
    rng, whole = np.random.default_rng(5), {"image_size": [SIDE, SIDE], "window": [0, 0, SIDE, SIDE]}
    rows = [{**whole, **described(pixels)} for pixels in base]
    with pq.ParquetWriter(path, PARTS) as file:
        for begin in range(0, count, 1000):
            some = []
            for n in range(begin, min(begin + 1000, count)):
                row = dict(rows[n % len(rows)])
                if n >= len(rows):
                    for side in ("points", "mirrored"):
                        row[side] = flipped(np.frombuffer(row[side], POINT), rng).tobytes()
                some.append({**row, "name": f"{n}.png"})
            file.write_table(pa.Table.from_pylist(some, schema=PARTS))


def flipped(points: Any, rng: np.random.Generator) -> Any:
    """Points elsewhere, whose codes differ in 20 to 60 bits."""
    points = points.copy()
    share = rng.uniform(20, 60, len(points)) / 256
    bits = rng.random((len(points), 256)) < share[:, None]
    points["code"] ^= np.packbits(bits, axis=1).view("<u8")
    points["x"], points["y"] = rng.permutation(points["x"]), rng.permutation(points["y"])
    points["angle"] = rng.permutation(points["angle"])
    return points


def steps(tiles: list[bytes], index: Index) -> float:
    """Seconds a tile, step by step."""
    seconds, grays = timed(lambda: [decoded(data) for data in tiles])
    report("decode_ms", "decode", 1e3 * seconds / len(tiles), "ms a tile")
    total = seconds
    seconds, points = timed(lambda: [points_of(gray) for gray in grays])
    report(
        "points_ms", "points", 1e3 * seconds / len(tiles), "ms a tile", f"{np.mean([len(p) for p in points]):.0f} each"
    )
    total += seconds
    pictures = list(zip(grays, points, strict=True))
    index.tables, index.points  # noqa: B018  # mapped before the clock runs
    list(index.search(pictures[:BATCH]))
    seconds, found = timed(lambda: list(index.search(pictures)))
    strongest = max((f.match.correlation for f in found), default=0.0)
    note = f"{len(found)} candidates left, strongest correlation {strongest:.2f}"
    report("search_ms", f"search among {len(index.images):,} images", 1e3 * seconds / len(tiles), "ms a tile", note)
    total += seconds
    report("tiles_s", "all", len(tiles) / total, "tiles/s")
    report("hours_million", "a million tiles", total / len(tiles) * 1e6 / 3600, "core hours")
    return total / len(tiles)


def planted(base: list[Any]) -> list[tuple[int, Any]]:
    """Crops of half of each held-out picture, at other scales, turned and encoded again."""
    rng, cases = np.random.default_rng(6), []
    for n, pixels in enumerate(base):
        side, scale = int(np.ceil(SIDE * 0.5**0.5)), 2 ** rng.uniform(-1, 1)
        left, top = rng.integers(SIDE - side + 1, size=2)
        crop = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
        crop = crop.resize((round(side * scale),) * 2, Image.Resampling.BICUBIC)
        cases.append((n, decoded(jpeg(turn(np.asarray(crop)[None], int(rng.integers(8)))[0], 75))))
    return cases


def found_of(index: Index, cases: Any) -> set[tuple[int, str]]:
    """Number of the case, and name of the held-out image that it counts as sharing a part with."""
    found = index.search([(gray, points_of(gray)) for _, gray in cases])
    strong = (f for f in found if f.match.points >= 8 and f.match.correlation >= 0.8)
    return {(f.query, index.images[f.image]["name"]) for f in strong if max(f.match[:2]) >= 0.48}


def beside_brute_force(base: list[Any]) -> None:
    """The same crops among the same held-out images, by us and by OpenCV's brute force."""
    cases = planted(base)
    with tempfile.TemporaryDirectory() as name:
        held_out(base, len(base), Path(name) / "held.parts")
        index = Index.build(Path(name) / "index", [Path(name) / "held.parts"])
        list(index.search([(gray, points_of(gray)) for _, gray in cases[:2]]))

        runs = [timed(lambda: found_of(index, cases)) for _ in range(3)]
    mine, got = statistics.median(seconds for seconds, _ in runs), runs[0][1]
    orb = cv2.ORB.create(400, fastThreshold=7)
    grays = [decoded(jpeg(pixels, 95)) for pixels in base]
    theirs = [[orb.detectAndCompute(np.ascontiguousarray(g), None) for g in (gray, gray[:, ::-1])] for gray in grays]
    seconds, peer = timed(lambda: brute_force(cases, theirs, orb))
    wanted = {(n, f"{case}.png") for n, (case, _) in enumerate(cases)}
    for who, hits in (("ours", got), ("peer", peer)):
        note = f"{len(hits - wanted)} found that share nothing"
        report(f"recall_{who}", f"crops found, {who}", 100 * len(hits & wanted) / len(wanted), "%", note)
    pairs = len(cases) * len(base)
    report("ours_pair_us", "ours, a pair of pictures", 1e6 * mine / pairs, "us", "points of the crops included")
    report("peer_pair_us", "BFMatcher and findHomography", 1e6 * seconds / pairs, "us", "likewise")
    report("ratio", f"brute force takes, among {len(base)} held-out images", seconds / mine, "times as long")


def brute_force(cases: Any, held: Any, orb: Any) -> set[tuple[int, str]]:
    """Pairs of crop and held-out picture that OpenCV's matcher and homography find."""
    matcher, found = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True), set()
    for n, (_, gray) in enumerate(cases):
        corners, codes = orb.detectAndCompute(np.ascontiguousarray(gray), None)
        for number, sides in enumerate(held):
            for its, others in sides:
                pairs = matcher.match(codes, others) if codes is not None and others is not None else []
                if len(pairs) < INLIERS:
                    continue
                one = np.array([corners[p.queryIdx].pt for p in pairs])
                other = np.array([its[p.trainIdx].pt for p in pairs])
                _, inliers = cv2.findHomography(one, other, cv2.RANSAC, 4.0)
                if inliers is not None and inliers.sum() >= INLIERS:
                    found.add((n, f"{number}.png"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held", type=int, default=20_000, help="held-out images of the index")
    parser.add_argument("--tiles", type=int, default=200, help="tiles to look up, and scenes that are held out")
    parser.add_argument("--pairs", type=int, default=20, help="held-out images beside brute force")
    parser.add_argument("--images", type=Path, help="folder whose images are the tiles, in windows")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    print(
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, OpenCV {cv2.__version__}"
    )
    base = scenes(10_000, args.tiles)
    tiles = [jpeg(pixels) for pixels in (windows(args.images) if args.images else scenes(20_000, args.tiles))]
    folder = Path(tempfile.mkdtemp(prefix="datakit-"))
    try:
        held_out(base, args.held, folder / "held.parts")
        seconds, index = timed(lambda: Index.build(folder / "index", [folder / "held.parts"]))
        size = sum(path.stat().st_size for path in (folder / "index").iterdir())
        note = f"{len(index.points):,} points, keys of {index.bits} bits, {size / 2**30:.2f} GiB of files"
        report("build_s", f"index of {args.held:,} held-out images", seconds, "s", note)
        report(
            "list_kb", "a list's file of parts", (folder / "held.parts").stat().st_size / args.held / 1e3, "kB an image"
        )
        steps(tiles, index)
        cases = planted(base)
        hits = found_of(index, cases)
        share = 100 * len({n for n, (case, _) in enumerate(cases) if (n, f"{case}.png") in hits}) / len(cases)
        report("recall_large", f"crops found among {args.held:,} images", share, "%", f"of {len(cases)}")
    finally:
        shutil.rmtree(folder)
    beside_brute_force(base[: args.pairs])
    print(json.dumps({"bench": "contain", **RESULTS}))


if __name__ == "__main__":
    main()
