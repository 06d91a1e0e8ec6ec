"""Camera RAW: bytes and speed of mosaics beside other codecs, and of reading a 24-megapixel file beside LibRaw alone.

    python bench/raw.py [--rounds 7] [--quick]

One core, one thread, process time, best of the rounds. Content: a scene of edges and texture, blurred as by a lens, in
14 bits with a black level of 512, shot noise at gains of 5, 1.25 and 0.2 electrons per DN and read noise of 2.5 to 4
DN, at means of 800 and 3,000 DN above black; seed fixed. MB/s are of the mosaic, 2 bytes a sample.

Bars: at least 1.25 times smaller than plain 14 bits on every setting and within 20 % of JPEG-LS; at least 500 MB/s to
a packed float tensor; faster than `np.load` of the published float32 .npy wherever storage gives 1 GB/s a core or
less; reading, packing and encoding all slices of a 24-megapixel file within 1.5 times of LibRaw's unpacking and the
codec's own time, and below 4 mosaics of memory.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["BLOSC_NTHREADS"] = "1"

import blosc2
import imagecodecs
import numpy as np
import rawpy
import zstandard
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from datakit import bayer, codec, dng, raw
from datakit.raw import RawImage
from datakit.views import NAMED, Camera
from datakit.windows import grid

SIDE_PX, BLACK, WHITE = 1280, 512, 16383
SETTINGS = [(gain, read, mean) for gain, read in ((5.0, 2.5), (1.25, 3.25), (0.2, 4.0)) for mean in (800, 3000)]
CAMERA = Camera("RGGB", (512.0,) * 4, WHITE, WHITE)
STORAGE_GB_S = 1.0
SHORT = 10  # times as many rounds of what takes milliseconds
Mosaic = NDArray[np.uint16]


def scene(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Luminance of mean 1: texture at three scales, and 60 rectangles."""
    light = np.zeros((height, width))
    for px, strength in ((64, 1.0), (16, 0.5), (4, 0.3)):
        light += strength * px * gaussian_filter(rng.standard_normal((height, width)), px, mode="wrap")
    for _ in range(60):
        y, x = rng.integers(0, height), rng.integers(0, width)
        down, across = rng.integers(8, height // 3), rng.integers(8, width // 3)
        light[y : y + down, x : x + across] += rng.normal(0, 0.7)
    light = gaussian_filter(light, 0.7)
    light = np.exp(0.6 * (light - light.mean()) / light.std())
    return np.asarray(light / light.mean())


def content(gain: float, read: float, mean: float, height: int = SIDE_PX, width: int = SIDE_PX) -> Mosaic:
    """A mosaic, (H, W) uint16 of 14 bits. gain: electrons per DN; read: DN; mean: DN above black."""
    rng = np.random.default_rng(1)
    light = scene(height, width, rng) * np.tile([[0.6, 1.0], [1.0, 0.5]], (height // 2, width // 2))
    light *= mean / light.mean()
    counted = rng.poisson(light * gain) / gain + rng.normal(0, read, light.shape)
    return np.clip(np.rint(counted + BLACK), 0, WHITE).astype(np.uint16)


def best(work: Callable[[], Any], rounds: int) -> float:
    """Seconds of process time, the least of some rounds after one that does not count."""
    work()
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return max(min(times), 1e-9)


def planes_of(mosaic: Mosaic) -> list[Mosaic]:
    return [np.ascontiguousarray(mosaic[y::2, x::2]) for y, x in bayer.SITES]


def each(encode: Callable[[Mosaic], bytes], decode: Callable[[bytes], Any]) -> tuple[Any, Any]:
    """A codec of pictures on the four planes."""
    return (lambda m: [encode(p) for p in planes_of(m)]), (lambda parts: [decode(part) for part in parts])


def deltas(mosaic: Mosaic) -> Mosaic:
    """Differences down each plane."""
    found = mosaic.copy()
    found[2:] -= mosaic[:-2]
    return found


def peers() -> dict[str, tuple[Any, Any]]:
    """Codecs by name: mosaic -> bytes (or four), and back to what it holds."""
    pack, zstd = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()
    blosc: dict[str, Any] = {
        "codec": blosc2.Codec.ZSTD,
        "clevel": 1,
        "filters": [blosc2.Filter.BITSHUFFLE],
        "nthreads": 1,
    }

    def packed14(mosaic: Mosaic) -> bytes:
        return bytes(imagecodecs.packints_encode(mosaic.ravel(), 14))

    def shuffled(mosaic: Mosaic) -> bytes:
        return bytes(blosc2.compress2(deltas(mosaic), typesize=2, **blosc))

    def unshuffled(data: bytes) -> Mosaic:
        found = np.frombuffer(blosc2.decompress2(data, nthreads=1), np.uint16).reshape(-1, SIDE_PX)
        pairs = found.reshape(len(found) // 2, 2, SIDE_PX)
        return np.cumsum(pairs, axis=0, dtype=np.uint16)

    return {
        "datakit.codec": (codec.encode, codec.decode),
        "14 bits": (packed14, lambda d: imagecodecs.packints_decode(d, "u2", 14, runlen=SIDE_PX**2)),
        "14 bits + zstd 3": (
            lambda m: pack.compress(packed14(m)),
            lambda d: imagecodecs.packints_decode(zstd.decompress(d), "u2", 14, runlen=SIDE_PX**2),
        ),
        "deltas, bit shuffle, zstd": (shuffled, unshuffled),
        "LJPEG": each(lambda p: imagecodecs.ljpeg_encode(p, bitspersample=14), imagecodecs.ljpeg_decode),
        "JPEG-LS": each(imagecodecs.jpegls_encode, imagecodecs.jpegls_decode),
        "JPEG XL, effort 1": each(
            lambda p: imagecodecs.jpegxl_encode(p, lossless=True, effort=1, numthreads=1),
            lambda d: imagecodecs.jpegxl_decode(d, numthreads=1),
        ),
    }


def size_of(data: Any) -> int:
    return len(data) if isinstance(data, bytes) else sum(map(len, data))


def compare(rounds: int) -> list[dict[str, Any]]:
    """Bytes and speed of every codec on every setting."""
    rows = []
    for gain, read, mean in SETTINGS:
        mosaic = content(gain, read, mean)
        for name, (encode, decode) in peers().items():
            data = encode(mosaic)
            seconds = best(lambda e=encode, m=mosaic: e(m), rounds), best(lambda d=decode, b=data: d(b), rounds)
            speeds = {"encode_mb_s": mosaic.nbytes / 1e6 / seconds[0], "decode_mb_s": mosaic.nbytes / 1e6 / seconds[1]}
            where = {"gain": gain, "read_noise": read, "mean": mean, "codec": name}
            rows.append({**where, "bits": 8 * size_of(data) / mosaic.size, **speeds})
        (setting,) = {(r["gain"], r["mean"]) for r in rows[-len(peers()) :]}
        print(f"{setting[0]} e/DN, mean {setting[1]} DN", file=sys.stderr, flush=True)
    return rows


def tensor(rounds: int) -> list[dict[str, Any]]:
    """From bytes to a packed float tensor, beside `np.load` of the published float32 array, by setting."""
    rows = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for gain, read, mean in SETTINGS:
            mosaic = content(gain, read, mean)
            data, path = codec.encode(mosaic), Path(folder, "a.npy")
            np.save(path, bayer.pack(mosaic, "RGGB").astype(np.float32))
            ours = best(lambda d=data: NAMED["packed"].of_sites(codec.decode_planes(d), CAMERA), SHORT * rounds)
            theirs = best(lambda p=path: np.load(p), SHORT * rounds)
            fewer, npy = path.stat().st_size - len(data), path.stat().st_size
            at = STORAGE_GB_S * 1e9
            rows.append(
                {
                    "gain": gain,
                    "mean": mean,
                    "mb_s": mosaic.nbytes / 1e6 / ours,
                    "npy_ratio": npy / len(data),
                    "break_even_gb_s": fewer / 1e9 / (ours - theirs) if ours > theirs else float("inf"),
                    "times_npy_at_1_gb_s": (theirs + npy / at) / (ours + len(data) / at),
                }
            )
    return rows


def slices_of(path: str) -> list[bytes]:
    """All windows of a file, read, cut and encoded."""
    image = raw.read(path)
    height, width = image.mosaic.shape
    return [codec.encode(image.crop(window).mosaic) for window in grid(width, height, 1280, 300, even=True)]


def whole_file(rounds: int, height: int, width: int) -> dict[str, Any]:
    """A 24-megapixel file: LibRaw's unpacking alone, the codec's own time, and all of it; peak memory of a process."""
    mosaic = content(1.25, 3.25, 3000, height, width)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder, "a.dng")
        shot = RawImage(mosaic, (512.0,) * 4, WHITE, "RGGB", make="bench", model="raw")
        path.write_bytes(dng.encode(replace(shot, orientation=8)))

        def unpack() -> None:
            with rawpy.imread(str(path)) as file:
                file.raw_image_visible  # noqa: B018 -- unpacked when it is asked for

        windows = grid(height, width, 1280, 300, even=True)
        turned = np.ascontiguousarray(np.rot90(mosaic))
        parts = [turned[w.top : w.top + w.height, w.left : w.left + w.width] for w in windows]
        alone = best(unpack, rounds)
        own = best(lambda: [codec.encode(part) for part in parts], rounds)
        ours = best(lambda: slices_of(str(path)), rounds)
        base, peak = (peak_of(which, path) for which in ("nothing", "slices"))
    told = {"libraw_s": alone, "codec_s": own, "read_pack_encode_s": ours, "ratio": ours / (alone + own)}
    return {**told, "windows": len(windows), "peak_mosaics": (peak - base) / mosaic.nbytes}


def peak_of(which: str, path: Path) -> int:
    """Peak memory, bytes, of a process that reads a file's slices, or only warms up as that does."""
    command = [sys.executable, __file__, "--peak", which, str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def peak(which: str, path: str) -> None:
    tiny = RawImage(np.arange(4096, dtype=np.uint16).reshape(64, 64), (0.0,) * 4, WHITE, "RGGB", orientation=8)
    codec.encode(raw.read(io.BytesIO(dng.encode(tiny))).mosaic)  # loads the libraries and the compiled loops
    if which == "slices":
        image = raw.read(path)
        height, width = image.mosaic.shape
        for window in grid(width, height, 1280, 300, even=True):
            codec.encode(image.crop(window).mosaic)
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        print(int(line.split()[1]) * 1024)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def tell(rows: list[dict[str, Any]], made: list[dict[str, Any]], file: dict[str, Any]) -> dict[str, bool]:
    """Prints the tables; gives which bars hold."""
    names = list(dict.fromkeys(row["codec"] for row in rows))
    by = {(row["gain"], row["mean"], row["codec"]): row for row in rows}
    heads = [f"{gain:g}/{mean}" for gain, _, mean in SETTINGS]
    print(f"bits a sample by gain (e/DN) and mean (DN)\n{'':26}" + "".join(f"{head:>10}" for head in heads))
    print(f"{'':26}" + "".join(f"{'':>10}" for _ in heads) + f"{'encode':>10}{'decode':>10}  MB/s, least")
    for name in names:
        mine = [by[gain, mean, name] for gain, _, mean in SETTINGS]
        speeds = [min(row[key] for row in mine) for key in ("encode_mb_s", "decode_mb_s")]
        cells = "".join(f"{row['bits']:10.2f}" for row in mine)
        print(f"{name:26}{cells}" + "".join(f"{speed:10.0f}" for speed in speeds))
    print(f"\nto a packed float tensor\n{'':26}" + "".join(f"{head:>10}" for head in heads))
    for key in ("mb_s", "npy_ratio", "break_even_gb_s", "times_npy_at_1_gb_s"):
        print(f"{key:26}" + "".join(f"{row[key]:10.2f}" for row in made))
    print("\na file of 24 megapixels: " + ", ".join(f"{key} {value:.3g}" for key, value in file.items()))
    ours = [by[gain, mean, "datakit.codec"]["bits"] for gain, _, mean in SETTINGS]
    jpegls = [by[gain, mean, "JPEG-LS"]["bits"] for gain, _, mean in SETTINGS]
    return {
        "1.25 times smaller than 14 bits": all(14 / bits >= 1.25 for bits in ours),
        "within 20 % of JPEG-LS": all(mine <= 1.2 * its for mine, its in zip(ours, jpegls, strict=True)),
        "500 MB/s to a tensor": all(row["mb_s"] >= 500 for row in made),
        "faster than np.load at 1 GB/s": all(row["times_npy_at_1_gb_s"] > 1 for row in made),
        "1.5 times of LibRaw and codec": file["ratio"] < 1.5,
        "below 4 mosaics": file["peak_mosaics"] < 4,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="3 rounds, a file of 6 megapixels")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        return peak(*args.peak)
    rounds = 3 if args.quick else args.rounds
    size = (2000, 3000) if args.quick else (4000, 6000)
    rows, made, file = compare(rounds), tensor(rounds), whole_file(rounds, *size)
    bars = tell(rows, made, file)
    for bar, holds in bars.items():
        print(f"{'holds' if holds else 'FAILS'}: {bar}")
    machine = {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()}
    print(json.dumps({"codecs": rows, "tensor": made, "file": file, "bars": bars, "machine": machine}))
    return None


if __name__ == "__main__":
    main()
