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

from .. import image, measure
from ..image import Encode, Narrow, NotShown, Reader, TooLarge
from ..measure import Mask, Pixels
from ..sample import Part, Sample, Spec, Window, from_table, mix64, to_table
from ..staging import STAGED

SCENE_PX = 512  # scenes are signed on a box-reduced copy that is at least this wide and high, and less than 1,024
PSNR_ONE_IN = 8  # tiles are decoded again to measure what encoding cost


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
        done: list[Sample] = []
        with (part.aside / "spool").open("w+b") as spool:
            for _, group in groupby(from_table(records), key=image_of):
                windows = list(group)
                taken = before.take(windows)
                if taken is not None:
                    part.counts["images_carried_over"] += 1
                    done += [keep(spool, s, data) if data else s for s, data in taken]
                else:
                    part.counts["images_opened"] += 1
                    done += self.image(windows, part, spool)
            return stage(done, spool, part)

    def image(self, windows: list[Sample], part: Part, spool: BinaryIO) -> list[Sample]:
        """The windows of one image, their bytes in the spool; all of them dropped if it cannot be read through."""
        begin = spool.tell()
        try:
            return list(self._tiles(windows, part, spool))
        except TooLarge as exc:
            why, detail = "larger_than", str(exc)
        except NotShown as exc:
            why, detail = str(exc), "no picture, and the recipe does not say how to narrow it"
        except Exception as exc:  # a reader may raise anything on a broken file; whatever it is, it has a name
            if isinstance(exc, OSError) and exc.errno in image.DISK_TROUBLE:
                raise
            why, detail = "unreadable", image.reason(exc)
        spool.seek(begin)
        spool.truncate()
        return [sample.drop(why, detail) for sample in windows]

    def _tiles(self, windows: list[Sample], part: Part, spool: BinaryIO) -> Iterator[Sample]:
        first = windows[0]
        reader = Reader(part.root(first), part.aside, self.narrow, self.max_pixels)
        scene = Scene(first) if self.measure and first.window else None
        tiles: list[Sample] = []
        puzzle = Puzzle([s.window or Window(0, 0, s.width, s.height) for s in windows])
        for rows, valid in reader.rows(first):
            if scene:
                scene.add(rows)
            for n, pixels, mask in puzzle.add(rows, valid):
                tile, data = self._tile(windows[n], pixels, mask, reader)
                part.counts["tiles_encoded"] += 1
                tiles.append(keep(spool, tile, data))
        puzzle.check()
        part.counts["pixels_read"] += first.image_width * first.image_height
        signed = scene.fields() if scene else own_scene(tiles[0]) if self.measure else {}
        return iter([replace(tile, **signed) for tile in tiles])

    def _tile(self, sample: Sample, pixels: Pixels, valid: Mask | None, reader: Reader) -> tuple[Sample, bytes]:
        facts: dict[str, Any] = {}
        if self.measure:
            facts = measure.measure(pixels, valid)._asdict()
            phashes, thumbnail, digest = measure.sign(pixels)
            facts |= {"signatures": phashes, "thumbnail": thumbnail, "pixel_digest": digest}
        copied = reader.stored_jpeg(sample) if self.copy_jpeg and self.encode.format == "jpeg" else None
        if copied is not None:
            return replace(sample, copied=True, **facts), copied
        data = self.encode(pixels)
        if self.measure and int(mix64(np.array([sample.id]), 1)[0]) % PSNR_ONE_IN == 0:
            facts["psnr_db"] = measure.psnr_db(pixels, image.decode(data))
        return replace(sample, **facts), data


@dataclass
class Puzzle:
    """Puts windows together from the rows of an image, top to bottom; each leaves as soon as its last row is there."""

    windows: list[Window]

    def __post_init__(self) -> None:
        self.waiting = sorted(range(len(self.windows)), key=lambda n: self.windows[n].top, reverse=True)
        self.open: list[tuple[int, Pixels, Mask]] = []
        self.top = 0

    def add(self, rows: Pixels, valid: Mask | None) -> Iterator[tuple[int, Pixels, Mask | None]]:
        """Number, (h, w, 3) pixels and validity (None: all) of each window that these rows complete."""
        top, bottom = self.top, self.top + len(rows)
        self.top = bottom
        while self.waiting and self.windows[self.waiting[-1]].top < bottom:
            n = self.waiting.pop()
            w = self.windows[n]
            if w.top >= top and w.top + w.height <= bottom:
                place = np.s_[w.top - top : w.top - top + w.height, w.left : w.left + w.width]
                yield n, np.ascontiguousarray(rows[place]), mask_or_none(valid, place)
            else:
                self.open.append((n, np.empty((w.height, w.width, 3), np.uint8), np.ones((w.height, w.width), bool)))
        still = []
        for n, pixels, mask in self.open:
            w = self.windows[n]
            low, high = max(w.top, top), min(w.top + w.height, bottom)
            place = np.s_[low - top : high - top, w.left : w.left + w.width]
            pixels[low - w.top : high - w.top] = rows[place]
            if valid is not None:
                mask[low - w.top : high - w.top] = valid[place]
            if high == w.top + w.height:
                yield n, pixels, mask_or_none(mask, np.s_[:, :])
            else:
                still.append((n, pixels, mask))
        self.open = still

    def check(self) -> None:
        if self.open or self.waiting:
            raise OSError(f"the image ended at row {self.top}")


def mask_or_none(valid: Mask | None, place: Any) -> Mask | None:
    """Part of a mask; None when all of it is valid."""
    if valid is None or valid[place].all():
        return None
    return np.ascontiguousarray(valid[place])


class Scene:
    """Signs a whole image while its rows go by: on a copy reduced by whole boxes, to between 512 and 1,023 px."""

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


def own_scene(tile: Sample) -> dict[str, Any]:
    """The scene's columns of an image that passes whole: its own."""
    return dict(zip(SCENE, (tile.entropy_bits, tile.pixel_digest, tile.signatures, tile.thumbnail), strict=True))


def keep(spool: BinaryIO, sample: Sample, data: bytes) -> Sample:
    """The sample, with its bytes at the end of the spool."""
    offset = spool.tell()
    spool.write(data)
    return replace(sample, staged_offset=offset, staged_bytes=len(data))


def stage(done: list[Sample], spool: BinaryIO, part: Part) -> pa.Table:
    """Records in order of mix64(id), and the staging file beside them in that order."""
    order = np.argsort(mix64(np.array([s.id for s in done], np.int64), 0), kind="stable")
    rows = []
    name = str(part.path.with_suffix(STAGED).relative_to(part.work))
    with (part.aside / part.path.with_suffix(STAGED).name).open("wb") as file:
        for n in order.tolist():
            sample = done[n]
            if not sample.dropped:
                spool.seek(sample.staged_offset)
                sample = replace(sample, staged=name, staged_offset=file.tell())
                file.write(spool.read(sample.staged_bytes))
            rows.append(sample)
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

    def take(self, windows: list[Sample]) -> list[tuple[Sample, bytes]] | None:
        """Records with what was measured then and the bytes staged then, or None where pixels must be read."""
        staged, rows = self.images.get(mark(windows), (None, []))
        if staged is None:
            return None
        by_key = {row.key: row for row in rows}
        with staged.open("rb") as file:
            return [take_over(sample, by_key[sample.key], file) for sample in windows]


FOUND = ("psnr_db", "copied", "dropped", "detail")  # by `cut`, besides measures and signatures
SIGNED = ("pixel_digest", "signatures", "thumbnail")
SCENE = ("scene_entropy_bits", "scene_digest", "scene_signatures", "scene_thumbnail")
MEASURED = (*measure.Measures._fields, *SIGNED, *SCENE, *FOUND)


def take_over(now: Sample, then: Sample, staged: BinaryIO) -> tuple[Sample, bytes]:
    """The record as it is now, with what `cut` found then, and the tile's bytes."""
    staged.seek(then.staged_offset)
    return replace(now, **{n: getattr(then, n) for n in MEASURED}), staged.read(then.staged_bytes)
