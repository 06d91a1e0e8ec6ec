"""Shards of a store are fetched a block ahead of their use."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from ..errors import DatakitError, RecipeError
from ..remote import Remote
from .cache import Stopped
from .overlay import Picked
from .tars import Tars

FETCHERS = 4  # shards that are fetched at once
BLOCK_BYTES = 4_000_000_000  # of a remote set's blocks; not of the cache's size, for the order depends on it


class Ahead:
    """Fetches shards of the block that is read, then of the next one, while an epoch goes on."""

    def __init__(self, tars: Tars, order: Picked) -> None:
        self.tars = tars
        self.live = order.live.sizes
        blocks = getattr(order.order, "blocks", None)
        if blocks is not None:
            self.begins, self.cuts, self.shards = blocks.begins, blocks.cuts, blocks.shards
        else:  # shard by shard
            self.begins = np.concatenate([[0], np.cumsum(self.live)])
            self.cuts, self.shards = list(range(len(self.begins))), np.arange(len(self.live))
        self.until = 0  # blocks before it were asked for
        self.stop = threading.Event()
        self.pool = ThreadPoolExecutor(FETCHERS, "datakit-ahead") if is_far(tars) else None

    def at(self, position: int) -> None:
        """A position is read soon."""
        if self.pool is None:
            return
        block = int(np.searchsorted(self.begins, position, "right")) - 1
        until = min(block + 2, len(self.cuts) - 1)
        for ahead in range(max(self.until, block), until):
            for shard in self.of(ahead):
                self.pool.submit(self.fetch, shard)
        self.until = until

    def of(self, block: int) -> list[int]:
        """Shards of a block that have live samples."""
        shards = self.shards[self.cuts[block] : self.cuts[block + 1]]
        found: list[int] = shards[self.live[shards] > 0].tolist()
        return found

    def fetch(self, shard: int) -> None:
        with suppress(DatakitError, Stopped):  # whoever reads it tells what is wrong
            if not self.stop.is_set():
                self.tars.fetch(shard, self.stop)

    def close(self) -> None:
        self.stop.set()
        if self.pool is not None and not sys.is_finalizing():
            self.pool.shutdown(wait=False, cancel_futures=True)


def is_far(tars: Tars) -> bool:
    """Whether any shard is in a store."""
    return any(isinstance(shard.path, Remote) for shard in tars.shards)


def read_bytes(tars: Tars, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """What an epoch reads of each shard, (S,): all of it, or nothing where no sample is live."""
    whole = np.array([shard.size_bytes for shard in tars.shards], np.int64)
    return np.where(sizes > 0, whole, 0)


def check_room(tars: Tars, sizes: NDArray[np.int64], block_bytes: int | None, shuffle: bool) -> int | None:
    """What a block may have, if there are blocks. RecipeError where the cache cannot hold one and the next."""
    if tars.cache is None or not is_far(tars):
        return block_bytes
    block = BLOCK_BYTES if block_bytes is None else block_bytes
    costs = read_bytes(tars, sizes)
    need = min(2 * max(block if shuffle else 0, int(costs.max())), int(costs.sum()))
    need += sum(part.table.nbytes for _, _, part in tars.parts if part.cache is not None)  # held as long as it is open
    if need > tars.cache.most_bytes:
        raise RecipeError(
            f"block_bytes: {block:,}: the cache {tars.cache.folder} may have {tars.cache.most_bytes:,} bytes, and "
            f"{need:,} are read at a time, one block and the next: give a smaller block_bytes, or "
            "cache=Cache(folder, most_bytes) more. A block is shuffled as a whole: fewer bytes mix fewer shards"
        )
    return block if shuffle else None
