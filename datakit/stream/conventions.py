"""The same shards and order in forms that others know: a map-style dataset and a sampler, a webdataset pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import webdataset
from torch.utils.data import Dataset, Sampler

from .device import ranks
from .loader import Loader
from .schedule import Remainder, Schedule
from .source import Source, opened


class Place(NamedTuple):
    """A position of an epoch: what an `OrderSampler` asks a `ShardDataset` for."""

    epoch: int
    position: int


class ShardDataset(Dataset[dict[str, Any]]):
    """Samples for `torch.utils.data.DataLoader`: a dict of image, id, key, crop and the columns that were asked for.

    dataset[place] is the very sample that a `Loader` of these options gives there, but with `repeats`: their windows
    are laid out for a batch size, which a dataset does not know. dataset[n] is the nth sample, whose random crop comes
    from torch's generator. options: of `Loader`. Each process opens the tars for itself.
    """

    def __init__(self, source: Source, **options: Any) -> None:
        self.source, self.options = source, {**options, "batch_size": 1, "threads": 1, "rank": 0, "world_size": 1}
        self._loader: Loader | None = None

    @property
    def loader(self) -> Loader:
        if self._loader is None:
            self._loader = Loader(self.source, **self.options)
        return self._loader

    def __len__(self) -> int:
        return len(self.loader.schedule(0))

    def __getitem__(self, place: Place | int) -> dict[str, Any]:
        if isinstance(place, Place):
            batch = self.loader.one(place.epoch, place.position)
        else:
            if not -len(self) <= place < len(self):
                raise IndexError(place)
            batch = self.loader.one(int(torch.randint(1 << 62, ())), place % len(self), in_turn=True)
        images = [view[0] for view in batch.images] if isinstance(batch.images, list) else batch.images[0]
        columns = {name: value[0] for name, value in batch.columns.items()}
        return {"image": images, "id": batch.ids[0], "key": batch.keys[0], "crop": batch.crops[0], **columns}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loader": None}


class OrderSampler(Sampler[Place]):
    """The order of a `Loader`, for a DataLoader over a `ShardDataset` with this batch_size; a rank gets its own part.

    Its iterators have a state: torchdata's StatefulDataLoader goes on at once, on as many ranks.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        batch_size: int,
        rank: int | None = None,
        world_size: int | None = None,
        remainder: Remainder = "drop",
    ) -> None:
        if remainder == "pad":
            raise ValueError("remainder: a DataLoader has no empty slots: drop or wrap")
        rank, world_size = ranks(rank, world_size)
        self.dataset, self.epoch = dataset, 0
        self.schedule = Schedule(dataset.loader.samples, batch_size, rank, world_size, 0, remainder)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.schedule) * self.schedule.batch_size

    def __iter__(self) -> Iterator[Place]:
        return Places(self.schedule, self.epoch)


class Places:
    """An iterator over the positions of a rank. Its state says how many were given."""

    def __init__(self, schedule: Schedule, epoch: int) -> None:
        self.schedule, self.epoch, self.given = schedule, epoch, 0

    def __iter__(self) -> Places:
        return self

    def __next__(self) -> Place:
        batch, slot = divmod(self.given, self.schedule.batch_size)
        if batch >= len(self.schedule):
            raise StopIteration
        self.given += 1
        return Place(self.epoch, self.schedule.position(batch, slot))

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.given = state["epoch"], state["given"]


def pipeline(source: Source, shuffle: int = 1000, seed: int = 0, **options: Any) -> Any:
    """A `webdataset.WebDataset` over the same tars, split by node and worker: add `.decode(…)`, `.map(…)`, ….

    shuffle: samples of its buffer; 0 leaves shards and samples in turn. options: of WebDataset. It keeps webdataset's
    own ways: an order that depends on the number of workers, and no state.
    """
    urls = [str(shard.path) for shard in opened(source).shards]
    given = {"nodesplitter": webdataset.split_by_node, "shardshuffle": len(urls) if shuffle else False, "seed": seed}
    dataset = webdataset.WebDataset(urls, **{**given, **options})
    return dataset.shuffle(shuffle, seed=seed) if shuffle else dataset
