"""One sample of a batch: read, decoded, cut, and put into its slot; another in its place where that is not possible."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ShardError
from . import augment
from .augment import Crop, Drawn, Scaled, View
from .decode import Decoder, Levels, Unreadable
from .jpeg import Box
from .mosaics import Mosaics, fields_of
from .ondevice import Encoded
from .overlay import Picked
from .repeats import Repeated, Shared
from .tars import Tars

Kind = tuple[int, np.dtype[Any], np.dtype[Any]]  # bands and dtype of all images, dtype of their pixels
Function = Callable[[Levels, np.random.Generator], Any]
STAGES = ("storage", "decode", "augment")
SHOWN = 20  # bad samples that an error lists


class Bad(NamedTuple):
    """A sample that could not be used."""

    row: int
    key: str
    shard: str
    reason: str  # no_image, unreadable, disk, shape, column
    detail: str


class Shown(NamedTuple):
    """A decoded image: its pixels, its width and height in px, and by how much it was decoded smaller than that."""

    levels: Levels
    width: int
    height: int
    by: int


class Unfit(Exception):
    """A sample that cannot be used: its reason and what is known of it."""


@dataclass
class Slots:
    """What a batch is made in. pixels: of each view (B, C, h, w); none where images are taken as they come."""

    positions: NDArray[np.int64]
    rows: NDArray[np.int64]  # what is there in the end; -1: an empty slot
    pixels: list[NDArray[Any]]
    crops: NDArray[np.int32]  # (B, V, 6), see Crop
    images: list[Any]  # where there are no pixels; or JPEGs that the device decodes
    columns: list[Any]
    bad: list[Bad] = field(default_factory=list)
    seconds: list[tuple[float, ...]] = field(default_factory=list)  # of a sample in each of STAGES


@dataclass
class Maker:
    """Makes the samples of one epoch."""

    tars: Tars
    order: Picked | Repeated
    views: tuple[View, ...]
    made: Scaled  # what threads make of levels
    scale: Scaled  # what levels become in the end
    function: Function | None
    columns: Callable[[Tars, int, list[Crop]], Any] | None
    decoder: Decoder
    kind: Kind | None  # None: images are taken as they come
    most_bad: int
    shared: Shared | None  # where samples are repeated
    raw: Mosaics | None = None  # what is made of camera RAW

    def fill(self, slots: Slots, low: int, high: int) -> None:
        """Make the samples of slots low..high."""
        for slot, drawn in zip(range(low, high), self.draw(slots.positions[low:high]), strict=True):
            if slots.rows[slot] >= 0:
                self.put(slots, slot, drawn)
            else:
                for pixels in slots.pixels:
                    pixels[slot] = 0

    def draw(self, positions: NDArray[np.int64]) -> list[Drawn]:
        return augment.draw(augment.keys_of(positions, self.order.key), len(self.views))

    def put(self, slots: Slots, slot: int, drawn: Drawn) -> None:
        """Make one sample, or the first good one of positions (p + k (N // 2 + 1)) mod N."""
        for tries in range(self.most_bad + 1):
            row = int(slots.rows[slot])
            try:
                return self.make(slots, slot, row, drawn)
            except Unfit as exc:
                slots.bad.append(self.bad(row, *exc.args))
            position = (int(slots.positions[slot]) + (tries + 1) * (self.order.samples // 2 + 1)) % self.order.samples
            slots.rows[slot] = self.order.at(position, 1)[0]
        raise too_many(slots.bad, self.most_bad)

    def make(self, slots: Slots, slot: int, row: int, drawn: Drawn) -> None:
        began = time.perf_counter()
        if not (crops := self.made_before(slots, slot, row)):
            shown, spent = self.image(row, drawn)
            crops = self.cut(slots, slot, shown, drawn)
            self.make_ahead(int(slots.positions[slot]), row, shown)
        else:
            spent = (0.0, 0.0)
        if self.columns is not None:
            try:
                slots.columns[slot] = self.columns(self.tars, row, crops)
            except (OSError, ValueError) as exc:
                raise Unfit("column", str(exc)) from None
        slots.seconds.append((*spent, time.perf_counter() - began - sum(spent)))

    def image(self, row: int, drawn: Drawn) -> tuple[Shown, tuple[float, float]]:
        """The image of a sample, with the seconds that reading and decoding took."""
        size: list[int] = []  # width, height and reduction, of an image that was decoded smaller

        def wanted(width: int, height: int) -> tuple[int, Box]:
            by, box = self.wanted(width, height, drawn)
            size[:] = width, height, by
            return by, box

        began = time.perf_counter()
        member = self.raw.member(self.tars) if self.raw else self.tars.image_of(row)
        if member is None:
            raise Unfit("no_image", "")
        try:
            data = self.tars.read(row, member)
            fields = fields_of(self.tars, row) if self.raw else {}
        except OSError as exc:
            raise Unfit("disk", str(exc)) from None
        read = time.perf_counter()
        try:
            if self.raw:
                levels = self.raw.levels(data, fields)
            else:
                levels = self.decoder(data, wanted if self.shared is None and self.views else None)
        except (Unreadable, ShardError, ValueError) as exc:
            raise Unfit("unreadable", str(exc)) from None
        if self.kind is not None and (levels.shape[2], levels.dtype) != self.kind[:2]:
            raise Unfit(
                "shape", f"{levels.shape[2]} bands of {levels.dtype}: others have {self.kind[0]} of {self.kind[1]}"
            )
        height, width = levels.shape[:2]
        whole = size if size and width < size[0] else (width, height, 1)
        return Shown(levels, *whole), (read - began, time.perf_counter() - read)

    def wanted(self, width: int, height: int, drawn: Drawn) -> tuple[int, Box]:
        """By how much smaller an image of so many px may be decoded for its views, and the px that they show."""
        pairs = [(view, view.crop_of(width, height, n)) for view, n in zip(self.views, drawn.numbers, strict=True)]
        crops = [crop for _, crop in pairs]
        right, bottom = max(c.left + c.width for c in crops), max(c.top + c.height for c in crops)
        box = min(c.left for c in crops), min(c.top for c in crops), right, bottom
        return min(view.reduction(crop) for view, crop in pairs), box

    def cut(self, slots: Slots, slot: int, shown: Shown, drawn: Drawn) -> list[Crop]:
        if isinstance(shown.levels, Encoded):
            pairs = zip(self.views, drawn.numbers, strict=True)
            crops = [view.crop_of(shown.width, shown.height, numbers) for view, numbers in pairs]
            slots.images[slot] = shown.levels.data
        elif self.views:
            crops = self.render(shown, drawn, [pixels[slot] for pixels in slots.pixels], self.made)
        else:
            crops = [Crop(0, 0, shown.width, shown.height)]
            if self.function is not None:
                slots.images[slot] = self.function(shown.levels.copy(), augment.generator(drawn.key))
            else:
                slots.images[slot] = np.ascontiguousarray(shown.levels.transpose(2, 0, 1))
        slots.crops[slot] = crops
        return crops

    def render(self, shown: Shown, drawn: Drawn, pixels: list[NDArray[Any]], made: Scaled) -> list[Crop]:
        """Make the views of a sample into `pixels`."""
        crops = []
        height, width = shown.levels.shape[:2]
        for view, numbers, out in zip(self.views, drawn.numbers, pixels, strict=True):
            crops.append(view.crop_of(shown.width, shown.height, numbers))
            crop = crops[-1] if shown.by == 1 else crops[-1].of_reduced(shown.by, width, height)
            view.render(shown.levels, crop, numbers, made, out)
        return crops

    def make_ahead(self, position: int, row: int, shown: Shown) -> None:
        """Make what later positions show of this image, while it is there."""
        if self.shared is None or not self.views:
            return
        positions = np.array(self.shared.wanted(position, row), np.int64)
        for later, drawn in zip(positions.tolist(), self.draw(positions), strict=True):
            shape, dtype = shown.levels.shape[2:], shown.levels.dtype
            pixels = [np.empty((*shape, view.size_px, view.size_px), dtype) for view in self.views]
            self.shared.keep(later, (pixels, self.render(shown, drawn, pixels, augment.LEVELS), row))

    def made_before(self, slots: Slots, slot: int, row: int) -> list[Crop]:
        """Put what was made ahead into its slot; nothing if there is none."""
        made = self.shared and self.shared.fetch(int(slots.positions[slot]))
        if not made or made[2] != row:
            return []
        for pixels, levels in zip(slots.pixels, made[0], strict=True):
            self.made.into(levels, pixels[slot])
        slots.crops[slot] = made[1]
        return made[1]

    def bad(self, row: int, reason: str, detail: str) -> Bad:
        (key,) = self.tars.keys(np.array([row]))
        return Bad(row, key, self.tars.shard_of(row).name, reason, detail)


def too_many(bad: list[Bad], most: int) -> ShardError:
    listed = "\n".join(f"  {one.shard}: {one.key}: {one.reason} {one.detail}" for one in bad[:SHOWN])
    more = f"\n  … and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return ShardError(
        f"{len(bad)} samples cannot be used, of {most} that max_bad_share allows in an epoch:\n{listed}{more}"
    )
