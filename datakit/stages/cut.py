"""The one pass over pixels: sign the whole image, cut every window, measure it, sign it and encode it.

A part leaves a staging file beside its records: the encoded tiles, one after the other, in order of mix64(id).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress, groupby
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray
from pydantic import Field, model_validator

from .. import boxes, files, image, measure
from ..errors import SourceError
from ..hand import holding
from ..image import WHOLE_PX, Encode, Narrow
from ..masks import LabelUnreadable, Masks, png_of
from ..measure import Mask, Pixels
from ..pixels import NotShown, Piece, Reader, TooLarge, levels_of
from ..sample import SCHEMA, Part, Sample, Spec, Window, from_table, mix64
from ..scales import in_reduced, reduced_size
from ..shots import FORMATS_OF_SHOTS
from ..staging import STAGED

SCENE_PX = 256  # scenes are signed on a copy reduced by whole boxes to at least this and less than twice this
PSNR_ONE_IN = 16  # tiles are decoded again to measure what encoding cost
SIGNED = ("signatures", "thumbnail", "pixel_digest")  # fields of `Sample`, as `measure.sign` gives them
SCENE = ("scene_entropy_bits", "scene_digest", "scene_signatures", "scene_thumbnail")
TILE = ("psnr_db", "narrowed", "camera", "pair_shift_px", "mask_bytes", "copied", "dropped", "detail")
FOUND = (*measure.Measures._fields, *SIGNED, *SCENE, *TILE)
TWIN = Encode(quality=95)  # cv2.imwrite's own, with which AODRaw's slices of JPEGs are written
Found = dict[str, Any]  # what `cut` finds of a tile: fields of `Sample`
REDUCED_PX = 1 << 22  # the most that the copy has, however long and thin the scene is
NOTHING = Sample()  # what is in a field of which nothing was found
LEVELS = 1 << 28  # of a tile in all of its bands
SPOOL_BYTES = 1 << 26  # of encoded tiles in memory, before they go to a file


class Cut(Spec):
    """Tiles as bytes, and every number that later rules look at."""

    VERSION: ClassVar[int] = 4
    LEVELS_VERSION: ClassVar[int] = 2  # raise it when only the output of tiles that keep levels changes

    encode: Encode = Encode()
    narrow: Narrow | None = None
    copy_jpeg: bool = Field(True, description="whole 8-bit JPEG files enter a jpeg set byte for byte")
    measure: bool = Field(True, description="false: only encode; rules over measured values then drop nothing")
    masks: bool = Field(False, description="every sample has a member seg.png, the mask of its window")
    shots: bool = Field(False, description="images are camera RAW, and look like their JPEGs; set by `view`")
    boxed: bool = Field(False, description="windows without a box are dropped as no_boxes; set by `view: slices`")
    pair: bool = Field(False, description="every sample of camera RAW has a member jpg, too; set by `domain: both`")
    max_pixels: int = Field(1 << 28, gt=0, description="larger images in formats without blocks are dropped")

    @model_validator(mode="after")
    def _can_be_seen(self) -> Cut:
        if self.pair and self.masks:
            raise ValueError("masks and domain: both: a sample has a mask or a JPEG beside its image, not both")
        if self.encode.keeps_levels and self.narrow is None and not self.shots:
            raise ValueError(
                f"{self.encode.format} keeps all levels: give `narrow`, for tiles are measured as a picture"
            )
        return self

    def digest(self, *more: str) -> str:
        """Parts of tiles that keep levels are made again with `LEVELS_VERSION`; those of pictures are not."""
        return super().digest(*more, *([f"levels {self.LEVELS_VERSION}"] if self.encode.keeps_levels else []))

    def __call__(self, records: pa.Table, part: Part) -> pa.Table:
        before = Earlier(part, self.masks)
        found: list[Found] = []  # of each record
        with SpooledTemporaryFile(SPOOL_BYTES, dir=str(part.aside)) as spool, image.quiet():
            for _, group in groupby(from_table(records), key=image_of):
                windows = list(group)
                taken = before.take(windows)
                if taken is not None:
                    part.counts["images_carried_over"] += 1
                    found += [keep(spool, then, data) for then, data in taken]
                else:
                    part.counts["images_opened"] += 1
                    with holding(windows[0]):
                        found += self.with_boxes(windows, part, spool)
            return stage(records, found, spool, part)

    def with_boxes(self, windows: list[Sample], part: Part, spool: IO[bytes]) -> list[Found]:
        """What is found of the windows of one image; with `boxed`, those of nothing but crowds are not looked at."""
        shows = [not self.boxed or any(not box.ignore for box in boxes.loads(w.boxes)) for w in windows]
        found = iter(self.image([*compress(windows, shows)], part, spool) if any(shows) else ())
        return [next(found) if it_does else {"dropped": "no_boxes"} for it_does in shows]

    def image(self, windows: list[Sample], part: Part, spool: IO[bytes]) -> list[Found]:
        """What is found of the windows of one image, their bytes in the spool.

        If the image cannot be read through, all of them are dropped.
        """
        begin = spool.tell()
        try:
            return self._tiles(windows, part, spool)
        except TooLarge as exc:
            why, detail = "larger_than", str(exc)
        except SourceError:  # a part of an archive is missing
            raise
        except LabelUnreadable as exc:
            why, detail = "label_unreadable", str(exc)[:200]
        except NotShown as exc:
            why, detail = exc.rule, exc.detail
        except Exception as exc:  # a reader may raise anything on a broken file; whatever it is, it has a name
            files.check_machine(exc, part.root(windows[0]), windows[0])
            why, detail = "unreadable", image.reason(exc, part.root(windows[0]), part.aside)
        spool.seek(begin)
        spool.truncate()
        return [{"dropped": why, "detail": detail} for _ in windows]

    def _tiles(self, windows: list[Sample], part: Part, spool: IO[bytes]) -> list[Found]:
        first = windows[0]
        if max(max(s.width, s.height) for s in windows) > self.encode.most_px:
            raise TooLarge(f"over {self.encode.most_px} px, the longest side of a {self.encode.format}")
        if max(s.width * s.height for s in windows) > WHOLE_PX:
            raise TooLarge(f"a tile of over {WHOLE_PX} px: give `slice`")
        levels = self.encode.keeps_levels
        if levels:
            self._check_bands(windows)
        self._check_kind(first)
        how = (part.aside, self.narrow, self.max_pixels, self.measure, levels, self.encode.format == "npy")
        reader = Reader(part.root(first), *how)
        scene = Scene(first, levels) if self.measure and first.window else None
        puzzle = Puzzle([in_reduced(s) for s in windows])
        tiles: dict[int, Found] = {}
        with Masks(part.roots, first, part.aside) as masks:
            for rows in reader.rows(first):
                if scene:
                    scene.add(rows)
                for n, piece in puzzle.add(rows):
                    found, data = self._tile(windows[n], piece)
                    beside = png_of(masks.tile(windows[n])) if self.masks else self._twin(piece) if self.pair else b""
                    tiles[n] = keep(spool, {**found, "mask_bytes": len(beside)}, data + beside)
        puzzle.check()
        part.counts["tiles_encoded"] += len(tiles)
        part.counts["pixels_read"] += first.image_width * first.image_height
        if self.measure:
            signed = scene.fields() if scene else own_scene(tiles[0])
            for found in tiles.values():
                found.update(signed)
        return [tiles[n] for n in range(len(windows))]

    def _check_kind(self, sample: Sample) -> None:
        """NotShown where a set of pictures meets camera RAW, or the other way round: a set has one kind."""
        if self.shots != (sample.format in FORMATS_OF_SHOTS):
            raise NotShown("no_camera_raw" if self.shots else "camera_raw", "`view` reads camera RAW, and no other")

    def _check_bands(self, windows: list[Sample]) -> None:
        """NotShown or TooLarge where tiles of all bands cannot be stored."""
        bands = len(windows[0].bands)
        if self.encode.format == "png16" and bands not in (1, 3):
            raise NotShown("bands", f"{bands} bands: a PNG holds one or three; use tiff16")
        if max(s.width * s.height for s in windows) * bands > LEVELS:
            raise TooLarge(f"a tile of over {LEVELS} levels in its {bands} bands: give `slice`")

    def _tile(self, sample: Sample, piece: Piece) -> tuple[Found, bytes]:
        """What is found of a tile, as fields of `Sample`, and its bytes."""
        levels = self.encode.keeps_levels
        found: Found = {"narrowed": piece.narrowed, **(measured(sample, piece, levels) if self.measure else {})}
        if piece.shot is not None:
            found.update(piece.shot.fields(sample))
        if levels:
            return found, self.encode.levels(levels_of(sample, piece), sample.bands)
        if piece.stored is not None and self.copy_jpeg and self.encode.format == "jpeg":
            return {**found, "copied": True}, piece.stored
        data = self.encode(piece.picture)
        if self.measure and sample.id % PSNR_ONE_IN == 0:  # ids are hashes
            found["psnr_db"] = measure.psnr_db(piece.pixels, image.decode(data))
        return found, data

    def _twin(self, piece: Piece) -> bytes:
        """The JPEG beside a mosaic: the camera's own bytes, or a window of its picture."""
        return piece.stored if piece.stored is not None and self.copy_jpeg else TWIN(piece.picture)


class Sign(Cut):
    """What `Cut` finds of images and of their windows, and no bytes."""

    encode: Encode = Encode(format="png")  # no side is too long

    @classmethod
    def as_in(cls, cut: Cut) -> Sign:
        """What a build finds: digests are of levels where its tiles keep them."""
        encode = Encode(format="tiff16" if cut.encode.keeps_levels else "png")
        return cls(narrow=cut.narrow, encode=encode, shots=cut.shots)

    def _check_kind(self, sample: Sample) -> None:
        """Any kind will do: a JPEG may be held out of a set of camera RAW."""

    def _tile(self, sample: Sample, piece: Piece) -> tuple[Found, bytes]:
        return measured(sample, piece, self.encode.keeps_levels), b""


def measured(sample: Sample, piece: Piece, levels: bool) -> Found:
    """What is measured of a tile, as a picture; levels: digest and sums by band are of the levels of all bands."""
    found: Found = measure.measure(piece.pixels, piece.valid)._asdict()
    found.update(zip(SIGNED, measure.sign(piece.pixels), strict=True))
    if levels:
        stored = levels_of(sample, piece)
        found["pixel_digest"] = measure.digest(stored, sample.bands)
        found.update(measure.bands(stored, piece.valid) if piece.shot is None else {})  # of a RAW: of what it shows
    return found


@dataclass
class Puzzle:
    """Puts windows together from the rows of an image, top to bottom; each leaves as soon as its last row is there."""

    windows: list[Window]

    def __post_init__(self) -> None:
        self.waiting = sorted(range(len(self.windows)), key=lambda n: self.windows[n].top, reverse=True)
        self.open: list[tuple[int, Pixels, Mask, NDArray[Any] | None]] = []
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
                levels = rows.levels
                held = None if levels is None else np.empty((w.height, w.width, levels.shape[2]), levels.dtype)
                mask = np.ones((w.height, w.width), bool)
                self.open.append((n, np.empty((w.height, w.width, 3), np.uint8), mask, held))
        still = []
        for n, pixels, mask, held in self.open:
            w = self.windows[n]
            low, high = max(w.top, top), min(w.top + w.height, bottom)
            place = np.s_[low - top : high - top, w.left : w.left + w.width]
            pixels[low - w.top : high - w.top] = rows.pixels[place]
            if rows.valid is not None:
                mask[low - w.top : high - w.top] = rows.valid[place]
            if held is not None and rows.levels is not None:
                held[low - w.top : high - w.top] = rows.levels[place]
            if high == w.top + w.height:
                valid = None if mask.all() else mask
                yield n, Piece(pixels, valid=valid, levels=held, narrowed=rows.narrowed)
            else:
                still.append((n, pixels, mask, held))
        self.open = still

    def check(self) -> None:
        if self.open or self.waiting:
            raise OSError(f"the image ended at row {self.top}")


class Scene:
    """Signs a whole image while its rows go by, on a reduced copy: its shorter side has 256 to 511 px."""

    def __init__(self, sample: Sample, levels: bool) -> None:
        self.sample, self.levels = sample, levels  # True: the digest is of the levels of all bands
        self.width, self.height = reduced_size(sample.image_width, sample.image_height, sample.scale)
        by_area = math.ceil(math.sqrt(self.width * self.height / REDUCED_PX))
        self.factor = max(min(self.width, self.height) // SCENE_PX, by_area, 1)
        self.hasher = measure.Hasher(self.height, self.width, sample.bands if levels else ())
        self.rest: Pixels | None = None  # rows that do not fill a box yet
        self.sums: list[Any] = []

    def add(self, piece: Piece) -> None:
        rows = piece.pixels
        self.hasher.add(levels_of(self.sample, piece) if self.levels else rows)
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


def own_scene(found: Found) -> Found:
    """The scene's columns of an image that passes whole: its own."""
    own = ("entropy_bits", "pixel_digest", "signatures", "thumbnail")
    return {scene: found[name] for scene, name in zip(SCENE, own, strict=True)}


def keep(spool: IO[bytes], found: Found, data: bytes) -> Found:
    """What was found of a tile, its bytes at the end of the spool; a dropped one has none."""
    if not found.get("dropped"):
        found.update(staged_offset=spool.tell(), staged_bytes=len(data))
        spool.write(data)
    return found


def stage(records: pa.Table, found: list[Found], spool: IO[bytes], part: Part) -> pa.Table:
    """Records with what was found of them, in order of mix64(id); their bytes in that order in a file beside them."""
    order = np.argsort(mix64(records.column("id").to_numpy(), 0), kind="stable")
    found = [found[n] for n in order.tolist()]
    hasher, kept = xxhash.xxh3_64(), [one for one in found if not one.get("dropped")]
    with (part.aside / "staged").open("wb") as file:
        for one in kept:
            spool.seek(one["staged_offset"])
            data = spool.read(one["staged_bytes"])
            one["staged_offset"] = file.tell()
            hasher.update(data)
            file.write(data)
    name = f"{part.path.stem}.{hasher.hexdigest()}{STAGED}"  # records of one making never look into another's
    (part.aside / "staged").rename(part.aside / name)
    for one in kept:
        one["staged"] = str((part.path.parent / name).relative_to(part.work))
    records = records.take(pa.array(order))
    for column in (*FOUND, "staged", "staged_offset", "staged_bytes"):
        place, none = SCHEMA.get_field_index(column), getattr(NOTHING, column)
        values = pa.array([one.get(column, none) for one in found], SCHEMA.field(place).type)
        records = records.set_column(place, SCHEMA.field(place), values)
    return records


def image_of(sample: Sample) -> tuple[str, str]:
    return sample.source, sample.name


def mark(windows: list[Sample], masks: bool) -> str:
    """What must be the same for the tiles of an image to be taken over: file, place in it, bands, windows, mask."""
    s = windows[0]
    file = [s.source, s.path, s.file_bytes, s.stamp, s.offset, s.bands, s.dtype, s.nodata, s.orientation, s.alpha]
    return json.dumps([file, s.scale, s.mask if masks else "", s.twin, sorted(list(w.window or ()) for w in windows)])


class Earlier:
    """What earlier parts of the same listing and the same spec hold: their images need not be opened again."""

    def __init__(self, part: Part, masks: bool) -> None:
        self.masks = masks  # are part of a tile
        self.images: dict[str, tuple[Path, list[Sample]]] = {}
        earlier = sorted(part.path.parent.glob(f"{part.path.stem.rpartition('-')[0]}-*.parquet"))
        for path in (*earlier, *part.pieces):
            rows = sorted(from_table(pq.read_table(path)), key=lambda s: (*image_of(s), s.key))
            staged = next((part.work / s.staged for s in rows if s.staged), path)
            end = max((s.staged_offset + s.staged_bytes for s in rows), default=0)
            if staged.exists() and staged.stat().st_size >= end:
                for _, group in groupby(rows, key=image_of):
                    windows = list(group)
                    if path in part.pieces or not any(row.dropped in part.retried for row in windows):
                        self.images[mark(windows, masks)] = (staged, windows)

    def take(self, windows: list[Sample]) -> list[tuple[Found, bytes]] | None:
        """What was found then and the bytes staged then, or None where pixels must be read."""
        staged, rows = self.images.get(mark(windows, self.masks), (None, []))
        if staged is None:
            return None
        by_key = {row.key: row for row in rows}
        with staged.open("rb") as file:
            taken = [take_over(by_key[sample.key], file) for sample in windows]
        whole = all(len(data) == then["staged_bytes"] for then, data in taken)
        return taken if whole else None  # it was freed, or cut short, since it was looked at


def take_over(then: Sample, staged: BinaryIO) -> tuple[Found, bytes]:
    """What `cut` found of a tile then, and the tile's bytes."""
    staged.seek(then.staged_offset)
    found = {name: getattr(then, name) for name in (*FOUND, "staged_bytes")}
    return found, staged.read(then.staged_bytes)
