"""The one pass over pixels: sign the whole image, cut every window, measure it, sign it and encode it.

A part leaves a staging file beside its records: the encoded tiles, one after the other, in order of mix64(id).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import Field

from .. import files, image, measure
from ..image import Encode, Narrow
from ..measure import Mask, Pixels
from ..pixels import NotShown, Piece, Reader, TooLarge
from ..sample import Part, Sample, Spec, Window, from_table, mix64, to_table
from ..staging import STAGED

SCENE_PX = 256  # scenes are signed on a copy reduced by whole boxes to at least this and less than twice this
PSNR_ONE_IN = 16  # tiles are decoded again to measure what encoding cost
SIGNED = ("signatures", "thumbnail", "pixel_digest")  # fields of `Sample`, as `measure.sign` gives them
SCENE = ("scene_entropy_bits", "scene_digest", "scene_signatures", "scene_thumbnail")
FOUND = (*measure.Measures._fields, *SIGNED, *SCENE, "psnr_db", "copied", "dropped", "detail")
Tile = tuple[Sample, dict[str, Any]]  # a record, and what is found of it


class Cut(Spec):
    """Tiles as bytes, and every number that later rules look at."""

    VERSION: ClassVar[int] = 1

    encode: Encode = Encode()
    narrow: Narrow | None = None
    copy_jpeg: bool = Field(True, description="whole 8-bit JPEG files enter a jpeg set byte for byte")
    measure: bool = Field(True, description="false: only encode; rules over measured values then drop nothing")
    max_pixels: int = Field(1 << 28, gt=0, description="larger images in formats without blocks are dropped")

    def __call__(self, records: pa.Table, part: Part) -> pa.Table:
        before = Earlier(part)
        done: list[Tile] = []
        with (part.aside / "spool").open("w+b") as spool, image.quiet():
            for _, group in groupby(from_table(records), key=image_of):
                windows = list(group)
                taken = before.take(windows)
                if taken is not None:
                    part.counts["images_carried_over"] += 1
                    done += [keep(spool, sample, found, data) for sample, found, data in taken]
                else:
                    part.counts["images_opened"] += 1
                    done += self.image(windows, part, spool)
            return stage(done, spool, part)

    def image(self, windows: list[Sample], part: Part, spool: BinaryIO) -> list[Tile]:
        """The windows of one image, their bytes in the spool; all of them dropped if it cannot be read through."""
        begin = spool.tell()
        try:
            return self._tiles(windows, part, spool)
        except TooLarge as exc:
            why, detail = "larger_than", str(exc)
        except NotShown as exc:
            why, detail = str(exc), "no picture, and the recipe does not say how to narrow it"
        except Exception as exc:  # a reader may raise anything on a broken file; whatever it is, it has a name
            files.check_machine(exc, part.root(windows[0]), windows[0])
            why, detail = "unreadable", image.reason(exc, part.root(windows[0]), part.aside)
        spool.seek(begin)
        spool.truncate()
        return [(sample, {"dropped": why, "detail": detail}) for sample in windows]

    def _tiles(self, windows: list[Sample], part: Part, spool: BinaryIO) -> list[Tile]:
        first = windows[0]
        if max(max(s.width, s.height) for s in windows) > self.encode.most_px:
            raise TooLarge(f"over {self.encode.most_px} px, the longest side of a {self.encode.format}")
        reader = Reader(part.root(first), part.aside, self.narrow, self.max_pixels, collars=self.measure)
        scene = Scene(first) if self.measure and first.window else None
        puzzle = Puzzle([s.window or Window(0, 0, s.width, s.height) for s in windows])
        tiles: list[Tile] = []
        for rows in reader.rows(first):
            if scene:
                scene.add(rows.pixels)
            for n, piece in puzzle.add(rows):
                tiles.append(keep(spool, windows[n], *self._tile(windows[n], piece, reader)))
        puzzle.check()
        part.counts["tiles_encoded"] += len(tiles)
        part.counts["pixels_read"] += first.image_width * first.image_height
        if self.measure:
            signed = scene.fields() if scene else own_scene(tiles[0][1])
            for _, found in tiles:
                found.update(signed)
        return tiles

    def _tile(self, sample: Sample, piece: Piece, reader: Reader) -> tuple[dict[str, Any], bytes]:
        """What is found of a tile, as fields of `Sample`, and its bytes."""
        found: dict[str, Any] = {}
        if self.measure:
            found = measure.measure(piece.pixels, piece.valid)._asdict()
            found.update(zip(SIGNED, measure.sign(piece.pixels), strict=True))
        copied = reader.stored_jpeg(sample) if self.copy_jpeg and self.encode.format == "jpeg" else None
        if copied is not None:
            return {**found, "copied": True}, copied
        data = self.encode(piece.picture)
        if self.measure and int(mix64(np.array([sample.id]), 1)[0]) % PSNR_ONE_IN == 0:
            found["psnr_db"] = measure.psnr_db(piece.pixels, image.decode(data))
        return found, data


@dataclass
class Puzzle:
    """Puts windows together from the rows of an image, top to bottom; each leaves as soon as its last row is there."""

    windows: list[Window]

    def __post_init__(self) -> None:
        self.waiting = sorted(range(len(self.windows)), key=lambda n: self.windows[n].top, reverse=True)
        self.open: list[tuple[int, Pixels, Mask]] = []
        self.top = 0

    def add(self, rows: Piece) -> Iterator[tuple[int, Piece]]:
        """Number and pixels of each window that these rows complete."""
        top, bottom = self.top, self.top + rows.height
        self.top = bottom
        while self.waiting and self.windows[self.waiting[-1]].top < bottom:
            n = self.waiting.pop()
            w = self.windows[n]
            if w.top >= top and w.top + w.height <= bottom:
                yield n, rows.window(w.left, w.top - top, w.width, w.height)
            else:
                self.open.append((n, np.empty((w.height, w.width, 3), np.uint8), np.ones((w.height, w.width), bool)))
        still = []
        for n, pixels, mask in self.open:
            w = self.windows[n]
            low, high = max(w.top, top), min(w.top + w.height, bottom)
            place = np.s_[low - top : high - top, w.left : w.left + w.width]
            pixels[low - w.top : high - w.top] = rows.pixels[place]
            if rows.valid is not None:
                mask[low - w.top : high - w.top] = rows.valid[place]
            if high == w.top + w.height:
                yield n, Piece(pixels, valid=None if mask.all() else mask)
            else:
                still.append((n, pixels, mask))
        self.open = still

    def check(self) -> None:
        if self.open or self.waiting:
            raise OSError(f"the image ended at row {self.top}")


class Scene:
    """Signs a whole image while its rows go by, on a reduced copy: its shorter side has 256 to 511 px."""

    def __init__(self, sample: Sample) -> None:
        self.width, self.height = sample.image_width, sample.image_height
        self.factor = max(min(self.width, self.height) // SCENE_PX, 1)
        self.hasher = xxhash.xxh3_128(np.array((self.height, self.width, 3), "<i8").tobytes())
        self.rest: Pixels | None = None  # rows that do not fill a box yet
        self.sums: list[Any] = []

    def add(self, rows: Pixels) -> None:
        self.hasher.update(np.ascontiguousarray(rows).data)
        if self.rest is not None:
            rows = np.concatenate([self.rest, rows])
        whole = len(rows) // self.factor * self.factor
        self.rest = rows[whole:].copy() if whole < len(rows) else None
        if whole:
            self.sums.append(measure.box_sums(rows[:whole], self.factor))

    def fields(self) -> dict[str, Any]:
        """The scene's columns."""
        if self.rest is not None:
            self.sums.append(measure.box_sums(self.rest, self.factor))
        reduced = measure.box_means(np.concatenate(self.sums), (self.height, self.width), self.factor)
        signed = measure.sign(reduced)
        values = (measure.measure(reduced, None).entropy_bits, self.hasher.digest(), signed.phashes, signed.thumbnail)
        return dict(zip(SCENE, values, strict=True))


def own_scene(found: dict[str, Any]) -> dict[str, Any]:
    """The scene's columns of an image that passes whole: its own."""
    own = ("entropy_bits", "pixel_digest", "signatures", "thumbnail")
    return {scene: found[name] for scene, name in zip(SCENE, own, strict=True)}


def keep(spool: BinaryIO, sample: Sample, found: dict[str, Any], data: bytes) -> Tile:
    """A tile, its bytes at the end of the spool; a dropped one has none."""
    if not found.get("dropped"):
        found.update(staged_offset=spool.tell(), staged_bytes=len(data))
        spool.write(data)
    return sample, found


def stage(done: list[Tile], spool: BinaryIO, part: Part) -> pa.Table:
    """Records in order of mix64(id), and the staging file beside them in that order."""
    order = np.argsort(mix64(np.array([s.id for s, _ in done], np.int64), 0), kind="stable")
    rows = []
    staged = part.path.with_suffix(STAGED)
    name = str(staged.relative_to(part.work))
    with (part.aside / staged.name).open("wb") as file:
        for n in order.tolist():
            sample, found = done[n]
            if not found.get("dropped"):
                spool.seek(found["staged_offset"])
                found.update(staged=name, staged_offset=file.tell())
                file.write(spool.read(found["staged_bytes"]))
            rows.append(replace(sample, **found))
    (part.aside / "spool").unlink()
    return to_table(rows)


def image_of(sample: Sample) -> tuple[str, str]:
    return sample.source, sample.name


def mark(windows: list[Sample]) -> str:
    """What must be the same for the pixels of an image to be taken over: file, place in it, bands, windows."""
    s = windows[0]
    file = [s.source, s.path, s.file_bytes, s.stamp, s.offset, s.bands, s.dtype, s.nodata, s.orientation, s.alpha]
    return json.dumps([file, sorted(list(w.window or ()) for w in windows)])


class Earlier:
    """What earlier parts of the same listing and the same spec hold: their images need not be opened again."""

    def __init__(self, part: Part) -> None:
        self.images: dict[str, tuple[Path, list[Sample]]] = {}
        for path in sorted(part.path.parent.glob(f"{part.path.stem.rpartition('-')[0]}-*.parquet")):
            staged = path.with_suffix(STAGED)
            rows = sorted(from_table(pq.read_table(path)), key=lambda s: (*image_of(s), s.key))
            end = max((s.staged_offset + s.staged_bytes for s in rows), default=0)
            if staged.exists() and staged.stat().st_size >= end:
                for _, group in groupby(rows, key=image_of):
                    windows = list(group)
                    self.images[mark(windows)] = (staged, windows)

    def take(self, windows: list[Sample]) -> list[tuple[Sample, dict[str, Any], bytes]] | None:
        """Records, what was found then and the bytes staged then, or None where pixels must be read."""
        staged, rows = self.images.get(mark(windows), (None, []))
        if staged is None:
            return None
        by_key = {row.key: row for row in rows}
        with staged.open("rb") as file:
            return [take_over(sample, by_key[sample.key], file) for sample in windows]


def take_over(now: Sample, then: Sample, staged: BinaryIO) -> tuple[Sample, dict[str, Any], bytes]:
    """The record as it is now, what `cut` found then, and the tile's bytes."""
    staged.seek(then.staged_offset)
    return now, {name: getattr(then, name) for name in FOUND}, staged.read(then.staged_bytes)
