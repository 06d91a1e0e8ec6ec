"""Shards to batches on a device, in an order that seed and epoch alone tell: from any place in it, on any ranks."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import RecipeError, ShardError
from .ahead import Ahead, check_room, read_bytes
from .augment import LEVELS, View, Views
from .batch import Batch, Buffers
from .cache import Cache
from .columns import Columns
from .decode import Decoder, Unreadable
from .device import Device, ranks, together
from .maker import STAGES, Bad, Function, Maker, Slots, too_many
from .normalise import Counts, MeanStd, mean_std, scaled
from .order import InTurn, Order, score
from .overlay import Live, Overlay, Picked, overlays_of
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


class Pictures(NamedTuple):
    """What is made of an image: views, normalised by these numbers; else what a function gives, or the image itself."""

    views: tuple[View, ...] = ()
    numbers: MeanStd | None = None
    function: Function | None = None

    @classmethod
    def of(cls, transform: Views | Function | None, tars: Tars, live: Live) -> Pictures:
        if isinstance(transform, Views):

            def samples() -> list[tuple[Path, Counts]]:
                return [(part.beside("samples.parquet"), partial(live.counts, start)) for start, _, part in tars.parts]

            return cls(transform.views, mean_std(transform.normalise, samples))
        if transform is not None and not callable(transform):
            raise RecipeError(f"transform: {transform!r}: Views, as mae() gives, a function of (image, rng), or None")
        return cls(function=transform)


class Loader:
    """Batches of the samples in `source`: a build's folder, an index, WebDataset tars, or a `Mix` of such.

    Iterating gives one epoch. What is given by URL is fetched into `cache`, a `Cache` or its folder. overlay: files
    that drop, keep, weight or split samples, see `Overlay`.

    batch_size: samples of a batch of this rank. transform: `mae()`, `multi_view(…)`, `evaluation()`, any `Views`; a
    function of (image: (H, W, C) uint8 or uint16, rng: np.random.Generator); None gives images as stored, of one size.
    columns: see `Columns`. threads: that read and decode (default: a core each). shuffle: False gives the order of the
    set. remainder: of samples that fill no batch of all ranks: "drop" (default with shuffle), "pad" (default without),
    "wrap", see `Schedule`. block_bytes: shuffle by blocks of whole shards of so many bytes together, which of a remote
    set are 4 GB by default, the next fetched while one is used; the cache must have room for two. prefetch: batches
    that are made while one is used. max_bad_share: of the samples; if more cannot be used, the epoch ends in an error.
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
        prefetch: int = 2,
        max_bad_share: float = 0.01,
        overlay: str | Path | Overlay | Sequence[str | Path | Overlay] = (),
        cache: Cache | str | Path | None = None,
    ) -> None:
        self.tars = opened(source, cache)
        if not len(self.tars):
            raise ShardError(f"{source}: no samples")
        self.batch_size, self.seed, self.shuffle, self.prefetch = batch_size, seed, shuffle, max(prefetch, 1)
        self.rank, self.world_size = ranks(rank, world_size)
        self.threads = threads or len(os.sched_getaffinity(0))
        self.device = Device(device)
        self.remainder: Remainder = remainder or ("drop" if shuffle else "pad")
        self.live = Live(self.tars, overlays_of(overlay))
        self.block = check_room(self.tars, self.live.sizes, block_bytes, shuffle)
        self.transform = Pictures.of(transform, self.tars, self.live)
        self.columns = Columns(columns, classes, self.transform.views, self.tars)
        self.most_bad = max(int(max_bad_share * len(self.live)), 1)
        self.decoder, self.buffers = Decoder(), Buffers(self.device.cuda)
        self.epoch, self.position = 0, 0  # where the next iteration begins
        self.told = Report()
        self._handed: tuple[int, int] | None = None  # epoch and position of the last batch, while an epoch lasts
        self.schedule(0)  # tells what is wrong with its numbers

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on all ranks."""
        return len(self.schedule(0))

    def schedule(self, start: int) -> Schedule:
        return Schedule(len(self.live), self.batch_size, self.rank, self.world_size, start, self.remainder)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration gives. One that a state was loaded for goes on where that was."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0
            self._handed = None

    def order(self, epoch: int) -> Picked:
        if not self.shuffle:
            return Picked(InTurn(len(self.live), self.seed, epoch), self.live)
        costs = read_bytes(self.tars, self.live.sizes)
        return Picked(Order(self.live.sizes, self.seed, epoch, self.block, costs), self.live)

    def shuffle_score(self, batches: int = 1000) -> float:
        """How often two samples of a batch are of one shard, as a ratio to chance: 1 is as good as chance."""
        return score(self.order(self.epoch).order, self.live.sizes, self.batch_size, batches)

    def __iter__(self) -> Iterator[Batch]:
        epoch, start, self.position = self.epoch, self.position, 0
        for batch in self.batches(epoch, start):
            self._handed = epoch, batch.position
            yield batch
        self.epoch, self.position, self._handed = epoch + 1, 0, None

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from a position on. Does not move the loader's own."""
        order, schedule = self.order(epoch), self.schedule(start)
        ahead = Ahead(self.tars, order)
        maker = self.maker(order)
        waiting: deque[tuple[Slots, list[Future[None]]]] = deque()
        bad: set[int] = set()
        pool = ThreadPoolExecutor(self.threads, "datakit")
        chunk = max(min(CHUNK, self.batch_size // self.threads), 1)
        try:
            for number in range(len(schedule) + self.prefetch):
                if number < len(schedule):
                    ahead.at(schedule.end(number) - 1)
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

    def wait(self, made: list[Future[None]]) -> None:
        began = time.perf_counter()
        for one in made:
            one.result()
        self.told.seconds["wait"] += time.perf_counter() - began

    def maker(self, order: Picked) -> Maker:
        """What makes the samples of an epoch."""
        views, numbers, function = self.transform
        bands, levels = self.kind(order) if views else (0, "uint8")
        scale = scaled(numbers, np.iinfo(levels).max)
        made, dtype = self.device.made_as(scale, levels)
        if views:
            scale.of(bands)  # tells where there are other bands than means
        columns = self.columns if self.columns.names else None
        kind = (bands, levels, dtype) if views else None
        return Maker(self.tars, order, views, made, scale, function, columns, self.decoder, kind, self.most_bad)

    def kind(self, order: Picked) -> tuple[int, str]:
        """Bands and dtype of the set's images: of the first that can be read."""
        bad: list[Bad] = []
        for row in order.at(0, min(self.most_bad + 1, order.samples)):
            try:
                member = self.tars.image_of(int(row))
                if member is not None:
                    levels = self.decoder(self.tars.read(int(row), member))
                    return levels.shape[2], levels.dtype.name
            except (OSError, Unreadable) as exc:
                bad.append(Bad(int(row), self.tars.where(int(row)), "", "unreadable", str(exc)))
        raise too_many(bad, self.most_bad)

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
            images = [self.device.put(pixels, maker.scale) for pixels in slots.pixels]
        else:
            images = [self.device.put(together(slots.images), LEVELS)]
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
        return {**place, "shuffle": self.shuffle, "block": self.block}

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: just behind the last batch that it gave, on any number of ranks."""
        epoch, position = self._handed or (self.epoch, self.position)
        numbers = self.transform.numbers
        mean, std = (list(of) for of in numbers) if numbers else ([], [])
        place = {"format": FORMAT, "seed": self.seed, "epoch": epoch, "position": position}
        return {**place, **self.about(), "mean": mean, "std": std}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader stood. ShardError tells what is not as it was there."""
        if state.get("format") != FORMAT:
            raise ShardError(f"state of format {state.get('format')}: this version reads {FORMAT}")
        mine = {**self.about(), **{n: self.state_dict()[n] for n in ("mean", "std")}}
        changed = [f"{name} was {state[name]}, is {mine[name]}" for name in mine if state.get(name) != mine[name]]
        if changed:
            raise ShardError(f"this state is of another order of samples: {'; '.join(changed)}")
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        self._handed = None
