"""Shards to batches on a device, in an order that seed and epoch alone tell: from any place in it, on any ranks."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import RecipeError, ShardError
from ..views import View as RawView
from . import ondevice
from .ahead import Ahead, check_room, read_bytes
from .augment import LEVELS, View, Views
from .batch import Batch, Buffers
from .cache import Cache
from .columns import Columns
from .decode import Decoder, Unreadable
from .device import Device, ranks, together
from .maker import STAGES, Bad, Function, Maker, Slots, too_many
from .mosaics import fields_of, mosaics_of
from .normalise import Counts, MeanStd, mean_std, scaled
from .order import InTurn, Order, score
from .overlay import RECORDS, Live, Overlay, Picked, licensed, overlays_of
from .repeats import Repeated, Shared
from .schedule import Remainder, Schedule
from .source import Source, opened
from .tars import Tars

CHUNK = 8  # samples that a thread makes at a time, at most
FORMAT = 1  # of the state


@dataclass
class Report:
    """What a loader gave so far. seconds: of all threads in storage, decode, augment; of the caller in copy, wait."""

    delivered: int = 0
    replaced: list[Bad] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*STAGES, "copy", "wait"), 0.0))

    def by_shard(self) -> dict[tuple[str, str], int]:
        """Samples that others replaced, by shard and reason."""
        return dict(sorted(Counter((bad.shard, bad.reason) for bad in self.replaced).items()))


def filled(source: Source, cache: Cache | str | Path | None) -> Tars:
    """The set that a loader reads; ShardError if it has no samples."""
    tars = opened(source, cache)
    if not len(tars):
        raise ShardError(f"{source}: no samples")
    return tars


def pictures(
    transform: Views | Function | None, tars: Tars, live: Live
) -> tuple[tuple[View, ...], MeanStd | None, Function | None]:
    """What is made of an image: views, normalised by these numbers; else what a function gives, or the image itself."""
    if isinstance(transform, Views):

        def samples() -> list[tuple[Path, Counts]]:
            return [(part.beside(RECORDS), partial(live.counts, start)) for start, _, part in tars.parts]

        return transform.views, mean_std(transform.normalise, samples), None
    if transform is not None and not callable(transform):
        raise RecipeError(f"transform: {transform!r}: Views, as mae() gives, a function of (image, rng), or None")
    return (), None, transform


class Loader:
    """Batches of the samples in `source`: a build's folder, an index, WebDataset tars, or a `Mix` of such.

    Iterating gives one epoch. What is given by URL is fetched into `cache`, a `Cache` or its folder. overlay: files
    that drop, keep, weight or split samples, see `Overlay`.

    batch_size: samples of a batch of this rank. transform: `mae()`, `multi_view(…)`, `evaluation()`, any `Views`; a
    function of (image: (H, W, C) uint8 or uint16, rng: np.random.Generator); None gives images as stored, of one size.
    columns, classes: see `Columns`. threads: that read and decode (default: a core each). shuffle: False gives the
    order of the set. remainder: of samples that fill no batch of all ranks: "drop" (default with shuffle), "pad"
    (default without), "wrap", see `Schedule`. block_bytes: shuffle by blocks of whole shards of so many bytes together,
    which of a remote set are 4 GB by default, the next fetched while one is used; the cache must have room for two.
    repeats: crops that an epoch has of each image, decoded once, spread over repeat_window batches, see `repeats`.
    raw: of camera RAW what a view makes of it, by name or as a `datakit.views.View`: "packed", "demosaiced", "srgb", …
    decode: "device" decodes JPEG there (nvJPEG), where cores are few: see `ondevice`.
    prefetch: batches that are made while one is used. max_bad_share: of the samples; if more cannot be used, the epoch
    ends in an error.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        seed: int = 0,
        transform: Views | Function | None = None,
        columns: Sequence[str] = (),
        classes: Sequence[str] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        threads: int | None = None,
        device: str | torch.device = "cpu",
        shuffle: bool = True,
        remainder: Remainder | None = None,
        block_bytes: int | None = None,
        repeats: int = 1,
        repeat_window: int = 64,
        prefetch: int = 2,
        max_bad_share: float = 0.01,
        overlay: str | Path | Overlay | Sequence[str | Path | Overlay] = (),
        licence: str | Sequence[str] = (),
        cache: Cache | str | Path | None = None,
        raw: str | RawView | None = None,
        decode: Literal["threads", "device"] = "threads",
    ) -> None:
        self.tars = filled(source, cache)
        self.batch_size, self.seed, self.shuffle, self.prefetch = batch_size, seed, shuffle, max(prefetch, 1)
        self.rank, self.world_size = ranks(rank, world_size)
        self.threads = threads or len(os.sched_getaffinity(0))
        self.device = Device(device, decode == "device")
        self.remainder: Remainder = remainder or ("drop" if shuffle else "pad")
        self.live = Live(self.tars, [*overlays_of(overlay), *licensed(self.tars, licence)])
        self.block = check_room(self.tars, self.live.sizes, block_bytes, shuffle)
        self.views, self.numbers, self.function = pictures(transform, self.tars, self.live)
        self.raw = mosaics_of(raw, crops=bool(self.views))
        self.columns = Columns(columns, classes, self.views, self.tars, self.raw)
        self.most_bad = max(int(max_bad_share * len(self.live)), 1)
        self.window = self.batch_size * self.world_size, -(-repeat_window // repeats) * repeats  # slots, batches
        self.decoder = ondevice.left(self.views, repeats, raw) if self.device.decodes else Decoder()
        self.repeats, self.buffers, self.told = repeats, Buffers(self.device.cuda), Report()
        self.epoch, self.position = 0, 0  # where the next iteration begins
        self._handed: tuple[int, int] | None = None  # epoch and position of the last batch, while an epoch lasts
        self._one: tuple[Any, ...] = (None, None)
        self._kind: tuple[int, np.dtype[Any]] | None = None
        self.schedule(0)  # tells what is wrong with its numbers

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on all ranks."""
        return len(self.schedule(0))

    @property
    def samples(self) -> int:
        """Positions of an epoch."""
        return len(self.live) * self.repeats

    def schedule(self, start: int) -> Schedule:
        return Schedule(self.samples, self.batch_size, self.rank, self.world_size, start, self.remainder)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration gives. One that a state was loaded for goes on where that was."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0
            self._handed = None

    def picked(self, epoch: int) -> Picked:
        """The order of an epoch in which no sample is repeated."""
        if not self.shuffle:
            return Picked(InTurn(len(self.live), self.seed, epoch), self.live)
        costs = read_bytes(self.tars, self.live.sizes)
        return Picked(Order(self.live.sizes, self.seed, epoch, self.block, costs), self.live)

    def order(self, epoch: int) -> Picked | Repeated:
        order, (slots, batches) = self.picked(epoch), self.window
        return order if self.repeats == 1 else Repeated(order, self.repeats, slots * batches, slots)

    def shuffle_score(self, batches: int = 1000) -> float:
        """How often two samples of a batch are of one shard, as a ratio to chance: 1 is as good as chance."""
        return score(self.picked(self.epoch).order, self.live.sizes, self.batch_size, batches)

    def __iter__(self) -> Iterator[Batch]:
        epoch, start, self.position = self.epoch, self.position, 0
        if not len(self) and self.samples:
            few = (
                f"{self.samples} samples are less than a batch of {self.batch_size} on each of {self.world_size} ranks"
            )
            warnings.warn(f'{few}: none is given. Make batch_size smaller, or remainder "wrap"', stacklevel=2)
        self._handed = epoch, start  # a state that is asked for before the first batch, or after its error, says so
        for batch in self.batches(epoch, start):
            self._handed = epoch, batch.position
            yield batch
        self.epoch, self.position, self._handed = epoch + 1, 0, None

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from a position on. Does not move the loader's own."""
        order, schedule = self.order(epoch), self.schedule(start)
        ahead = Ahead(self.tars, self.picked(epoch))
        maker = self.maker(order, schedule)
        waiting: deque[tuple[Slots, list[Future[None]]]] = deque()
        bad: set[int] = set()
        pool = ThreadPoolExecutor(self.threads, "datakit")
        chunk = max(min(CHUNK, self.batch_size // self.threads), 1)
        try:
            for number in range(len(schedule) + self.prefetch):
                if number < len(schedule):
                    ahead.at((schedule.end(number) - 1) // self.repeats)
                    slots = self.slots(maker, schedule.positions(number))
                    lows = range(0, self.batch_size, chunk)
                    made = [pool.submit(maker.fill, slots, n, min(n + chunk, self.batch_size)) for n in lows]
                    waiting.append((slots, made))
                if number >= self.prefetch:
                    slots, made = waiting.popleft()
                    self.wait(made)
                    bad |= {one.row for one in slots.bad}
                    if len(bad) > self.most_bad:
                        raise too_many([*self.told.replaced, *slots.bad], self.most_bad)
                    yield self.finished(maker, slots, epoch, schedule.end(number - self.prefetch))
        finally:
            ahead.close()
            if not sys.is_finalizing():  # then the threads have ended already
                pool.shutdown(cancel_futures=True)

    def one(self, epoch: int, position: int, in_turn: bool = False) -> Batch:
        """The batch of one position, made here; in_turn: of the set's order, without shuffling."""
        if (epoch, in_turn) != self._one[:2]:
            in_its_turn = Picked(InTurn(len(self.live), self.seed, epoch), self.live)
            order = in_its_turn if in_turn else self.order(epoch)
            self._one = epoch, in_turn, self.maker(order, None)
        slots = self.slots(self._one[2], np.array([position], np.int64))
        self._one[2].fill(slots, 0, 1)
        return self.finished(self._one[2], slots, epoch, position + 1)

    def wait(self, made: list[Future[None]]) -> None:
        began = time.perf_counter()
        for one in made:
            one.result()
        self.told.seconds["wait"] += time.perf_counter() - began

    def maker(self, order: Picked | Repeated, schedule: Schedule | None) -> Maker:
        """What makes the samples of an epoch."""
        views = self.views
        bands, levels = self.kind(order) if views else (0, np.dtype(np.uint8))
        scale = scaled(self.numbers, np.iinfo(levels).max)
        made, dtype = self.device.made_as(scale, levels)
        if views:
            scale.of(bands)  # tells where there are other bands than means
        columns = self.columns if self.columns.names else None
        kind = (bands, levels, dtype) if views else None
        shared = Shared(order, schedule.has) if schedule and isinstance(order, Repeated) else None
        return Maker(
            self.tars, order, views, made, scale, self.function, columns, self.decoder, kind, self.most_bad, shared,
            self.raw,
        )  # fmt: skip

    def kind(self, order: Picked | Repeated) -> tuple[int, np.dtype[Any]]:
        """Bands and dtype of images: of the first that can be read. RecipeError where sets of a mix differ."""
        if self._kind is None:
            self._kind = self.first_kind(order)
            for start, weight, _ in self.tars.parts if len(self.tars.parts) > 1 else ():
                with suppress(OSError, Unreadable):
                    kind = self.kind_of(start) if weight else None
                    if kind not in (None, self._kind):
                        told = " and ".join(f"{bands} bands of {dtype}" for bands, dtype in (self._kind, kind))
                        raise RecipeError(f"mix: {self.tars.where(start)}: {told} do not go into one batch")
        return self._kind

    def first_kind(self, order: Picked | Repeated) -> tuple[int, np.dtype[Any]]:
        bad: list[Bad] = []
        for position in range(min(self.most_bad + 1, order.samples)):
            row = int(order.at(position, 1)[0])
            try:
                if kind := self.kind_of(row):
                    return kind
            except (OSError, Unreadable) as exc:
                bad.append(Bad(row, self.tars.where(row), "", "unreadable", str(exc)))
        raise too_many(bad, self.most_bad)

    def kind_of(self, row: int) -> tuple[int, np.dtype[Any]] | None:
        """Bands and dtype of an image; None where the sample has none."""
        member = self.raw.member(self.tars) if self.raw else self.tars.image_of(row)
        if member is None:
            return None
        data = self.tars.read(row, member)
        levels = self.raw.levels(data, fields_of(self.tars, row)) if self.raw else self.decoder(data)
        return levels.shape[2], levels.dtype

    def slots(self, maker: Maker, positions: NDArray[np.int64]) -> Slots:
        """What a batch of these positions is made in."""
        size, views = len(positions), maker.views
        rows = np.full(size, -1, np.int64)
        there = positions >= 0
        first, count = (int(positions[there][0]), int(there.sum())) if there.any() else (0, 0)
        if count:
            until = min(first + count, maker.order.samples)
            found = maker.order.at(first, until - first)
            rows[there] = np.concatenate([found, maker.order.at(0, first + count - until)])
        pixels = []
        if maker.kind is not None:
            bands, _, dtype = maker.kind
            pixels = [self.buffers.take((size, bands, view.size_px, view.size_px), dtype) for view in views]
        crops = np.zeros((size, max(len(views), 1), 6), np.int32)
        return Slots(positions, rows, pixels, crops, [None] * size, [None] * size)

    def finished(self, maker: Maker, slots: Slots, epoch: int, position: int) -> Batch:
        """The batch that was made in `slots`."""
        began = time.perf_counter()
        there = slots.rows >= 0
        if slots.pixels:
            made = ondevice.made(maker, slots, self.device)
            images = [self.device.put(pixels, maker.scale, by) for pixels, by in zip(slots.pixels, made, strict=True)]
        else:
            images = [self.device.put(together(self.with_empty(maker, slots.images)), LEVELS)]
        self.device.ready(images)
        rows = np.maximum(slots.rows, 0)
        ids = np.where(there, self.tars.ids(rows), -1)
        keys = [key if real else "" for key, real in zip(self.tars.keys(rows), there.tolist(), strict=True)]
        columns = self.columns.together(slots.columns) if self.columns.names else {}
        self.count(slots, int(there.sum()), time.perf_counter() - began)
        return Batch(
            images if len(images) > 1 else images[0],
            torch.from_numpy(ids),
            keys,
            torch.from_numpy(there),
            torch.from_numpy(slots.crops),
            epoch,
            position,
            columns,
        )

    def with_empty(self, maker: Maker, images: list[Any]) -> list[Any]:
        """Images as they came, and zeros of their shape in empty slots."""
        like = next((image for image in images if image is not None), None)
        if like is None:  # the rank has none of the last samples
            spare = self.slots(maker, np.array([0], np.int64))
            maker.fill(spare, 0, 1)
            like = spare.images[0]
        empty = torch.zeros_like(torch.as_tensor(like))
        return [empty if image is None else image for image in images]

    def count(self, slots: Slots, delivered: int, copied_s: float) -> None:
        self.told.delivered += delivered
        self.told.replaced += slots.bad
        self.told.seconds["copy"] += copied_s
        for spent in slots.seconds:
            for stage, seconds in zip(STAGES, spent, strict=True):
                self.told.seconds[stage] += seconds

    def report(self) -> Report:
        """What was given so far, what was replaced and why, and where the time went."""
        return self.told

    def about(self) -> dict[str, Any]:
        """What the order depends on, apart from seed and epoch."""
        place = {"index": self.tars.digest, "overlay": self.live.digests, "samples": len(self.live)}
        return {**place, "shuffle": self.shuffle, "block": self.block, "repeats": self.repeats}

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: just behind the last batch that it gave, on any number of ranks."""
        epoch, position = self._handed or (self.epoch, self.position)
        mean, std = (list(of) for of in self.numbers or ((), ()))
        place = {"format": FORMAT, "seed": self.seed, "epoch": epoch, "position": position, "window": list(self.window)}
        place["together"] = self.batch_size * self.world_size  # samples of the last step
        return {**place, **self.about(), "mean": mean, "std": std}

    @staticmethod
    def options_of(state: dict[str, Any]) -> dict[str, Any]:
        """Options that give a loader the order of a state."""
        return {"shuffle": state["shuffle"], "block_bytes": state["block"], "repeats": state["repeats"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader stood. ShardError tells what is not as it was there."""
        if state.get("format") != FORMAT:
            raise ShardError(f"state of format {state.get('format')}: this version reads {FORMAT}")
        mine = {**self.about(), **{n: self.state_dict()[n] for n in ("mean", "std")}}
        changed = [f"{name} was {state[name]}, is {mine[name]}" for name in mine if state.get(name) != mine[name]]
        if changed:
            raise ShardError(f"this state is of another order of samples: {'; '.join(changed)}")
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        self.window = (state["window"][0], state["window"][1])  # of the batches that the order was laid out for
        self._handed = None
