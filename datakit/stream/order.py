"""Which sample comes at which position of an epoch: a pure function of seed, epoch and the shards' sample counts.

Nothing else shapes it, neither ranks nor workers nor what was read before; and no list of all samples is made.
Positions go through a keyed permutation: an alternating Feistel network over the least power of two that holds all of
them, walked again where it leads outside (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002),
with SplitMix64's finalizer (Steele et al. 2014) as its round function.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..sample import mix64

Positions = NDArray[np.int64]
ROUNDS = 8  # even, so that both halves end as wide as they began
SORTED = 256  # a domain up to here is sorted by hash: networks of a few bits reach only some of the permutations


def positions(
    sizes: NDArray[np.int64] | Sequence[int], seed: int, epoch: int, start: int, count: int, block: int | None = None
) -> Positions:
    """The samples at positions start .. start + count of an epoch, (count,) int64.

    sizes: (S,) live samples of each shard; a sample's number counts through the shards in this order. block: shuffle by
    blocks of shards that have at most so many samples (a larger shard is a block of its own); None: all at once.
    Costs O(count + S). ValueError where positions are not within 0 .. sum(sizes).
    """
    return Order(sizes, seed, epoch, block).at(start, count)


class Order:
    """The order of one epoch. `samples`: how many there are. costs: (S,) of shards, if `block` counts no samples."""

    def __init__(
        self,
        sizes: NDArray[np.int64] | Sequence[int],
        seed: int,
        epoch: int,
        block: int | None = None,
        costs: NDArray[np.int64] | None = None,
    ) -> None:
        sizes = np.asarray(sizes, np.int64).reshape(-1)
        if sizes.size and sizes.min() < 0:
            raise ValueError("sizes: a shard cannot have less than no sample")
        if block is not None and block < 1:
            raise ValueError(f"block: {block}: give what a block may have, 1 at least")
        self.key = key_of(seed, epoch)
        self.samples = int(sizes.sum())
        self.blocks: _Blocks | None = None
        if block is not None:
            self.blocks = _Blocks(sizes, self.key, block, sizes if costs is None else costs)

    def at(self, start: int, count: int) -> Positions:
        """The samples at positions start .. start + count."""
        if start < 0 or count < 0 or start + count > self.samples:
            raise ValueError(f"positions {start} to {start + count}: this epoch has {self.samples}")
        wanted = np.arange(start, start + count, dtype=np.int64)
        return permuted(wanted, self.samples, self.key) if self.blocks is None else self.blocks.at(wanted)


class InTurn:
    """The order of an epoch that is not shuffled. It has a key as any other, which random crops are drawn from."""

    def __init__(self, samples: int, seed: int, epoch: int) -> None:
        self.samples, self.key = samples, key_of(seed, epoch)

    def at(self, start: int, count: int) -> Positions:
        """The samples at positions start .. start + count."""
        return np.arange(start, start + count, dtype=np.int64)


class _Blocks:
    """Shards in a keyed order, some after another in a block, whose samples are shuffled together."""

    def __init__(self, sizes: NDArray[np.int64], key: int, block: int, costs: NDArray[np.int64]) -> None:
        self.key = key
        self.shards = permuted(np.arange(len(sizes), dtype=np.int64), len(sizes), key)
        self.first = np.concatenate([[0], np.cumsum(sizes)])[self.shards]  # sample of each of them
        self.ends = np.concatenate([[0], np.cumsum(sizes[self.shards])])  # positions where each begins, and the end
        spent = np.concatenate([[0], np.cumsum(costs[self.shards])])
        begins = [0]
        while begins[-1] < len(sizes):
            fits = int(np.searchsorted(spent, spent[begins[-1]] + block, "right")) - 1
            begins.append(max(fits, begins[-1] + 1))
        self.cuts = begins  # the first of the shards of each block, and the end
        self.begins = self.ends[begins]  # positions where each block begins, and the end

    def at(self, wanted: Positions) -> Positions:
        found = np.empty_like(wanted)
        which = np.searchsorted(self.begins, wanted, "right") - 1
        for n in np.unique(which):
            here = which == n
            low, high = int(self.begins[n]), int(self.begins[n + 1])
            inside = low + permuted(wanted[here] - low, high - low, key_of(self.key, int(n) + 1))
            shard = np.searchsorted(self.ends, inside, "right") - 1
            found[here] = self.first[shard] + inside - self.ends[shard]
        return found


def score(order: Order | InTurn, sizes: NDArray[np.int64], batch_size: int, batches: int = 1000) -> float:
    """How often two samples of a batch are of one shard, over how often they would be if each was drawn by chance.

    1 is as good as chance. Measured in so many batches of the epoch, evenly spread, or in all.
    """
    ends, samples = np.cumsum(sizes), int(sizes.sum())
    size = min(batch_size, samples)
    whole = samples // max(size, 1)
    same = 0
    taken = np.unique(np.linspace(0, whole - 1, min(batches, whole)).astype(np.int64)).tolist()
    for number in taken:
        shards = np.searchsorted(ends, order.at(number * size, size), "right")
        _, counts = np.unique(shards, return_counts=True)
        same += int((counts * (counts - 1)).sum())
    chance = float((sizes * (sizes - 1.0)).sum()) / max(samples * (samples - 1.0), 1.0)
    pairs = len(taken) * size * (size - 1)
    return same / pairs / chance if pairs and chance else 1.0


def key_of(seed: int, epoch: int) -> int:
    """A key of 64 bits."""
    return int(mix64(mix64(np.array([seed % 2**63], np.int64), 1).view(np.int64), epoch + 1)[0])


def permuted(numbers: Positions, domain: int, key: int) -> Positions:
    """Where a keyed permutation of 0 .. domain takes numbers of it, (N,) int64 -> (N,) int64."""
    if domain <= SORTED:
        whole = np.argsort(mix64(np.arange(domain, dtype=np.int64), key), kind="stable")
        return whole[numbers].astype(np.int64)
    bits = (domain - 1).bit_length()
    out = numbers.astype(np.uint64)
    walking = np.arange(len(out))
    while len(walking):
        out[walking] = _network(out[walking], bits, key)
        walking = walking[out[walking] >= domain]
    return out.astype(np.int64)


def _network(numbers: NDArray[np.uint64], bits: int, key: int) -> NDArray[np.uint64]:
    """A keyed permutation of the numbers of so many bits."""
    low = bits // 2
    widths = bits - low, low
    left, right = numbers >> np.uint64(low), numbers & np.uint64((1 << low) - 1)
    for n in range(ROUNDS):
        mixed = mix64(right.view(np.int64), key + n) & np.uint64((1 << widths[n % 2]) - 1)
        left, right = right, left ^ mixed
    return (left << np.uint64(low)) | right
