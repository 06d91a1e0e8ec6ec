"""Tiles per second of `cut`, as a share of bare decode + encode of the same images by the same libraries.

    python bench/cut.py [--rounds 7] [--scenes 6]

One process, one thread. Bare: Pillow (or rasterio) decodes an image whole, every 512 px tile of it is encoded by Pillow
into memory, and that is all. `cut` does the same and also writes staged bytes and records; with `measure` it signs and
measures every tile and the whole image besides. Rounds alternate between the three, and the median of the ratios of
each round is printed. Bars: 0.85 with only encoding, 0.5 with every measure; goal 0.65.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from datakit.manifest import Collection, Layout
from datakit.run import kept_rows
from datakit.sample import Part, to_table
from datakit.sources import folder
from datakit.sources.scan import Scan, Source, label_table, listing
from datakit.sources.scenes import draw
from datakit.stages.cut import Cut
from datakit.stages.slice import Grid, Slice, grid

TILE_PX, SIDE_PX = 512, 2048


def make(folder: Path, kind: str, scenes: int) -> None:
    """Aerial-looking scenes of 2,048 px as files of one kind; `tile` is JPEG files of one tile each."""
    folder.mkdir()
    for n in range(scenes):
        pixels = draw(np.random.default_rng(n), "houses" if n % 2 else "farmland", SIDE_PX, SIDE_PX).pixels
        picture = Image.fromarray(pixels)
        if kind == "tile":
            for w in grid(SIDE_PX, SIDE_PX, TILE_PX):
                tile = picture.crop((w.left, w.top, w.left + w.width, w.top + w.height))
                tile.save(folder / f"{n}_{w.left}_{w.top}.jpg", quality=90)
        elif kind == "tif":
            shape = {"width": SIDE_PX, "height": SIDE_PX, "count": 3, "dtype": "uint8", "compress": "deflate"}
            with rasterio.open(folder / f"{n}.tif", "w", "GTiff", tiled=True, **shape) as raster:
                raster.write(np.moveaxis(pixels, -1, 0))
        else:
            picture.save(folder / f"{n}.{kind}", **({"quality": 90} if kind == "jpg" else {"compress_level": 3}))


def bare(folder: Path) -> int:
    """Decode every file whole and encode every tile; gives the number of tiles."""
    tiles = 0
    for path in sorted(folder.iterdir()):
        if path.suffix == ".tif":
            with rasterio.open(path) as raster:
                picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(raster.read(), 0, -1)))
        else:
            picture = Image.open(path)
            picture.load()
        for w in grid(*picture.size, TILE_PX):
            out = io.BytesIO()
            picture.crop((w.left, w.top, w.left + w.width, w.top + w.height)).save(out, "JPEG", quality=90)
            tiles += 1
    return tiles


def ours(data: Path, measure: bool) -> Callable[[], int]:
    """`cut` over the same files, records read and sliced beforehand."""
    layout = Layout(images=("**/*",))
    about = Collection(
        name="bench",
        title="",
        homepage="",
        licence="",
        modality="optical",
        bands=("red", "green", "blue"),
        layout=layout,
    )
    source = Source(name="bench", path=".", collection=about)
    found = list(folder.files(data))
    work = Path(tempfile.mkdtemp(dir=data.parent))
    (work / "labels").mkdir()
    import pyarrow.parquet as pq

    pq.write_table(label_table(source, found), work / "labels" / "none.parquet")
    part = Part(work / "bench-00000-x.parquet", work, work, {"bench": data})
    records = Scan(source=source, labels="none")(to_table(listing(source, found)), part)
    records = kept_rows(Slice(grid=Grid(size_px=TILE_PX))(records, part))
    stage = Cut(measure=measure, copy_jpeg=False)

    def once() -> int:
        aside = Path(tempfile.mkdtemp(dir=work))
        made = stage(records, Part(part.path, aside, work, part.roots))
        assert kept_rows(made).num_rows == records.num_rows
        return int(made.num_rows)

    return once


def seconds_per_tile(job: Callable[[], int]) -> float:
    start = time.perf_counter()
    tiles = job()
    return (time.perf_counter() - start) / tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scenes", type=int, default=6)
    args = parser.parse_args()
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    results = {}
    print(f"{'source files':34} {'bare ms':>8} {'encode':>7} {'measure':>8}   (tiles per second, bare = 1)")
    with tempfile.TemporaryDirectory() as name:
        for kind, title in KINDS.items():
            data = Path(name) / kind
            make(data, kind, args.scenes)
            jobs = (lambda data=data: bare(data), ours(data, False), ours(data, True))
            for job in jobs:
                job()  # kernels compiled, files in the page cache
            rounds = [[seconds_per_tile(job) for job in jobs] for _ in range(args.rounds)]
            encode = statistics.median(r[0] / r[1] for r in rounds)
            measured = statistics.median(r[0] / r[2] for r in rounds)
            base = statistics.median(r[0] for r in rounds) * 1e3
            print(f"{title:34} {base:8.2f} {encode:7.2f} {measured:8.2f}")
            results[kind] = {"bare_ms": round(base, 3), "encode": round(encode, 3), "measure": round(measured, 3)}
    machine = {"machine": platform.machine(), "python": platform.python_version(), "pillow": Image.__version__}
    print(json.dumps({"bench": "cut", "rounds": args.rounds, **machine, "share_of_bare": results}))


KINDS = {
    "jpg": "JPEG scenes, 2,048 px",
    "tile": "JPEG tiles, 512 px",
    "png": "PNG scenes, 2,048 px",
    "tif": "GeoTIFF scenes, tiled, deflate",
}

if __name__ == "__main__":
    main()
