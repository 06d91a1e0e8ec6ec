"""Held-out pictures that share only a part with another: their points looked up by hash, voted on, and put to the test.

A point's 256 bits are 16 keys; points that have a key in common and differ in few bits vote for a held-out picture, a
scale and a turn. Where enough votes agree, a similarity is fitted to them, all points are compared along it, and then
the pixels of the part that both show (`aligned`). The index lies in files that are mapped: all workers share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .aligned import Held, Match, match
from .points import LEVELS, POINT, Gray, Points, gray_of, halved, points_of

VERSION = 1  # raise it when other matches come of the same points
WORDS = 16  # of 16 bits in a code: each begins a key
LEAST_BITS, MOST_BITS = 16, 24  # of a key, so that a bucket has few points
NEXT = 5  # words on, from which keys of more than 16 bits take the rest
CROWDED = 32  # points in a bucket from which on it says nothing: rows of roofs, furrows
RADIUS_BITS = 48  # of 256; those of two points that have nothing in common differ in 128
NEAREST = 3  # points of the index that a point votes for
VOTES = 5  # points that must agree on picture, scale and turn
SCALES = LEVELS + 1  # bins, of two levels each: -7 to 7, and half a bin more
TURN = 16  # of 256: a bin of angles, of which each vote goes to two
QUALITY = 85  # of the small pictures that held-out parts are compared with
FEW_POINTS = 20  # of a picture: too few for a part of it to be found
BATCH = 64  # pictures looked up at once
Ints = NDArray[np.int64]

PARTS = pa.schema([
    ("name", pa.string()), ("image_size", pa.list_(pa.int64())), ("window", pa.list_(pa.int64())),
    ("points", pa.binary()), ("mirrored", pa.binary()), ("gray", pa.binary()),
])  # fmt: skip


def described(pixels: NDArray[np.uint8]) -> dict[str, bytes]:
    """Columns of PARTS that tell how a window looks, (H, W, 3) uint8: points (mirrored, too) and half-size luma."""
    gray = gray_of(pixels)
    _, small = cv2.imencode(".jpg", halved(gray), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    mirrored = points_of(np.ascontiguousarray(gray[:, ::-1]))
    return {"points": points_of(gray).tobytes(), "mirrored": mirrored.tobytes(), "gray": small.tobytes()}


class Found(NamedTuple):
    """A held-out picture that a picture shares a part with."""

    query: int  # which picture
    image: int  # of the index
    match: Match


@dataclass(frozen=True)
class Index:
    """Points of held-out pictures by their keys, in files of a folder: each picture twice, the second time mirrored."""

    folder: Path

    @classmethod
    def build(cls, folder: Path, files: Sequence[Path]) -> Index:
        """Write the index of files of PARTS, in which the windows of an image follow one another."""
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        images: list[dict[str, Any]] = []
        begins = [0]  # of the points of each version
        with (folder / "points").open("wb") as points, (folder / "grays").open("wb") as grays:
            for number, path in enumerate(files):
                for windows in _images(path):
                    first = windows[0]
                    images.append({
                        "list": number, "name": first["name"], "size": first["image_size"], "window": len(rows),
                    })  # fmt: skip
                    for mirrored in (False, True):
                        count = [points.write(placed(w, mirrored).tobytes()) // POINT.itemsize for w in windows]
                        begins.append(begins[-1] + sum(count))
                    for w in windows:
                        rows.append({"window": w["window"], "at": grays.tell(), "bytes": grays.write(w["gray"])})
        rest = {"images": images, "windows": rows}
        for name, some in rest.items():
            pq.write_table(pa.Table.from_pylist(some) if some else pa.table({}), folder / f"{name}.parquet")
        np.save(folder / "begins.npy", np.array(begins, np.int64))
        index = cls(folder)
        np.save(folder / "codes.npy", np.ascontiguousarray(index.points["code"]))
        index._hash()
        return index

    def _hash(self) -> None:
        """Write the table of each word: rows of points by key, and where each key begins."""
        for word in range(WORDS):
            keys = self.keys(self.codes, word)
            order = np.argsort(keys, kind="stable").astype(np.uint32)
            counts = np.bincount(keys, minlength=1 << self.bits)
            begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)
            np.save(self.folder / f"order-{word}.npy", order)
            np.save(self.folder / f"begin-{word}.npy", begins)

    @cached_property
    def points(self) -> Points:
        path = self.folder / "points"
        return np.memmap(path, POINT, "r") if path.stat().st_size else np.zeros(0, POINT)

    @cached_property
    def codes(self) -> NDArray[np.uint64]:
        """(N, 4), apart: a row of POINT is not aligned."""
        return np.asarray(np.load(self.folder / "codes.npy", mmap_mode="r"))

    @cached_property
    def bits(self) -> int:
        """Of a key: about one point a key."""
        return min(max(len(self.points).bit_length(), LEAST_BITS), MOST_BITS)

    @cached_property
    def begins(self) -> Ints:
        """Where the points of each version begin: version 2 n is image n, 2 n + 1 its mirror image."""
        return np.asarray(np.load(self.folder / "begins.npy"))

    @cached_property
    def tables(self) -> list[tuple[Any, Any]]:
        return [
            tuple(np.load(self.folder / f"{name}-{word}.npy", mmap_mode="r") for name in ("order", "begin"))
            for word in range(WORDS)
        ]

    @cached_property
    def images(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(self.folder / "images.parquet").to_pylist()
        return found

    @cached_property
    def windows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(self.folder / "windows.parquet").to_pylist()
        return found

    def keys(self, codes: NDArray[np.uint64], word: int) -> Ints:
        """The key of each code that begins at a word: (N, 4) -> (N,)."""
        words = np.ascontiguousarray(codes).view("<u2")
        keys: Ints = words[:, word].astype(np.int64)
        more = self.bits - 16
        return keys | ((words[:, (word + NEXT) % WORDS].astype(np.int64) & ((1 << more) - 1)) << 16) if more else keys

    def near(self, codes: NDArray[np.uint64]) -> tuple[Ints, Ints]:
        """Pairs (of codes, of points of the index) that share a key: of each code the few that differ least, sorted."""
        pairs = [np.zeros(0, np.uint64)]
        for word, (order, begin) in enumerate(self.tables):
            keys = self.keys(codes, word)
            low = begin[keys].astype(np.int64)
            count = begin[keys + 1] - low
            count[count > CROWDED] = 0
            row = np.repeat(np.arange(len(codes)), count)
            at = order[np.arange(len(row)) + np.repeat(low - np.cumsum(count) + count, count)]
            apart = np.bitwise_count(codes[row] ^ self.codes[at]).sum(axis=1, dtype=np.uint64)
            near = apart <= RADIUS_BITS
            row, at = row[near].astype(np.uint64), at[near].astype(np.uint64)
            pairs.append((row << np.uint64(40)) | (apart[near] << np.uint64(32)) | at)
        packed = distinct(np.concatenate(pairs))  # row << 40 | bits << 32 | point
        row = (packed >> np.uint64(40)).astype(np.int64)
        packed = packed[np.arange(len(row)) - np.searchsorted(row, row) < NEAREST]
        return (packed >> np.uint64(40)).astype(np.int64), (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)

    def held(self, version: int) -> Held:
        """A version of an image, as `aligned` compares it."""
        image = self.images[version // 2]
        last = version // 2 + 1
        end = self.images[last]["window"] if last < len(self.images) else len(self.windows)
        low, high = self.begins[version : version + 2].tolist()
        windows = range(image["window"], end)
        return Held(tuple(image["size"]), bool(version % 2), self.points[low:high], windows, self._gray, self._window)

    def _window(self, number: int) -> tuple[int, int, int, int]:
        left, top, width, height = self.windows[number]["window"]
        return left, top, width, height

    def _gray(self, number: int) -> bytes:
        about = self.windows[number]
        with (self.folder / "grays").open("rb") as file:
            file.seek(about["at"])
            return file.read(about["bytes"])

    def search(self, pictures: Sequence[tuple[Gray, Points]]) -> Iterator[Found]:
        """What pictures share with those of the index, in order: (their luma, (H, W) uint8, and their points)."""
        if not len(self.points):
            return
        for begin in range(0, len(pictures), BATCH):
            some = pictures[begin : begin + BATCH]
            points = np.concatenate([np.zeros(0, POINT), *(p for _, p in some)])
            owner = np.repeat(np.arange(len(some)), [len(p) for _, p in some])
            first = np.searchsorted(owner, np.arange(len(some)))
            for n, version, mine, its in self.votes(points, owner):
                gray, own = some[n]
                pairs = np.stack([mine - first[n], its - self.begins[version]], axis=1)
                found = match(gray, own, self.held(version), pairs)
                if found is not None:
                    yield Found(begin + n, version // 2, found)

    def votes(self, points: Points, owner: Ints) -> Iterator[tuple[int, int, Ints, Ints]]:
        """Pictures and versions that enough points agree on, each with the pairs of points that do, in order.

        owner: (N,) which picture each point is of. Bins of scale and turn overlap by half; the fullest one counts.
        """
        mine, its = self.near(np.ascontiguousarray(points["code"]))
        version = np.searchsorted(self.begins, its, "right") - 1
        level = points["level"][mine].astype(np.int64) - self.points["level"][its]
        angle = (points["angle"][mine].astype(np.int64) - self.points["angle"][its]) % 256
        group = owner[mine] * len(self.begins) + version
        fullest: dict[int, tuple[int, int, int]] = {}
        bins: list[tuple[Ints, Ints]] = []
        for shift in range(4):
            scale, turn = (level + LEVELS + shift % 2) // 2, (angle + shift // 2 * (TURN // 2)) % 256 // TURN
            of = (group * SCALES + scale) * (256 // TURN) + turn
            order = np.argsort(of, kind="stable")
            bins.append((order, of[order]))
            voters = distinct(of * max(len(points), 1) + mine) // max(len(points), 1)
            first = np.flatnonzero(np.diff(voters, prepend=-1))
            count = np.diff(first, append=len(voters))
            for n in np.flatnonzero(count >= VOTES).tolist():
                which = int(voters[first[n]])
                both = which // (SCALES * (256 // TURN))
                fullest[both] = max(fullest.get(both, (0, 0, 0)), (int(count[n]), shift, which))
        for both, (_, shift, which) in sorted(fullest.items()):
            order, of = bins[shift]
            agree = order[slice(*np.searchsorted(of, [which, which + 1]))]
            yield both // len(self.begins), both % len(self.begins), mine[agree], its[agree]


def distinct(numbers: NDArray[Any]) -> NDArray[Any]:
    """The distinct numbers, sorted; numpy's own way of late is three times as slow."""
    numbers = np.sort(numbers)
    return numbers[np.flatnonzero(np.concatenate([[True], numbers[1:] != numbers[:-1]]))] if len(numbers) else numbers


def turned(degrees: float, mirrored: bool) -> str:
    """How a held-out picture lies on another, in words; "" = as it is."""
    angle = round(degrees) % 360
    return ", ".join(["mirrored"] * mirrored + [f"turned {angle}"] * bool(angle))


@lru_cache(1)
def opened(folder: Path) -> Index:
    """The index in a folder, once a process."""
    return Index(folder)


def placed(window: dict[str, Any], mirrored: bool) -> Points:
    """Points of a window in px of its image, or of the mirrored image."""
    points = np.frombuffer(window["mirrored" if mirrored else "points"], POINT).copy()
    left, top, width, _ = window["window"]
    points["x"] += window["image_size"][0] - left - width if mirrored else left
    points["y"] += top
    return points


def _images(path: Path) -> Iterator[list[dict[str, Any]]]:
    """The windows of each image of a file of PARTS."""
    waiting: list[dict[str, Any]] = []
    for row in _rows(path):
        if waiting and row["name"] != waiting[0]["name"]:
            yield waiting
            waiting = []
        waiting.append(row)
    if waiting:
        yield waiting


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(64, columns=PARTS.names, use_threads=False):
            yield from batch.to_pylist()
