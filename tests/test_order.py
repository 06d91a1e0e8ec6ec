"""The order of an epoch: a permutation, the same however it is asked for, and as good as one that was drawn."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datakit.stream.order import Order, permuted, positions

SIZES = st.lists(st.integers(0, 400), min_size=0, max_size=12)
BLOCKS = st.none() | st.integers(1, 1500)
KEYS = st.integers(-(2**63), 2**64)


@settings(max_examples=200, deadline=None)
@given(sizes=SIZES, seed=KEYS, epoch=st.integers(0, 1000), block=BLOCKS)
def test_an_epoch_is_a_permutation(sizes: list[int], seed: int, epoch: int, block: int | None) -> None:
    whole = positions(sizes, seed, epoch, 0, sum(sizes), block)
    assert whole.dtype == np.int64
    assert sorted(whole.tolist()) == list(range(sum(sizes)))


@settings(max_examples=200, deadline=None)
@given(sizes=SIZES, seed=KEYS, block=BLOCKS, cuts=st.lists(st.integers(0, 5000), max_size=5))
def test_any_piece_is_a_piece_of_the_whole(sizes: list[int], seed: int, block: int | None, cuts: list[int]) -> None:
    total = sum(sizes)
    ends = sorted({0, total, *(cut % (total + 1) for cut in cuts)})
    pieces = [positions(sizes, seed, 3, a, b - a, block) for a, b in pairwise(ends)]
    assert (
        np.concatenate([np.empty(0, np.int64), *pieces]).tolist() == positions(sizes, seed, 3, 0, total, block).tolist()
    )


@settings(max_examples=100, deadline=None)
@given(sizes=SIZES, seed=KEYS, block=st.integers(1, 1500))
def test_a_block_is_as_many_whole_shards_as_fit(sizes: list[int], seed: int, block: int) -> None:
    order = Order(sizes, seed, 0, block)
    assert order.blocks is not None
    owners = np.repeat(np.arange(len(sizes)), sizes)[order.at(0, sum(sizes))].tolist()
    waiting = order.blocks.shards.tolist()
    assert sorted(waiting) == list(range(len(sizes)))
    while waiting:
        group = [waiting.pop(0)]
        while waiting and sum(sizes[shard] for shard in [*group, waiting[0]]) <= block:
            group.append(waiting.pop(0))
        samples = sum(sizes[shard] for shard in group)
        assert sorted(owners[:samples]) == sorted(shard for shard in group for _ in range(sizes[shard]))
        owners = owners[samples:]
    assert not owners


def test_it_is_keyed_by_seed_and_epoch() -> None:
    whole = {
        (seed, epoch): positions([300, 500], seed, epoch, 0, 800).tolist() for seed in range(4) for epoch in range(4)
    }
    assert len({tuple(order) for order in whole.values()}) == 16


def test_it_stays_what_it_is() -> None:
    """Runs resume from a position: another order would repeat samples in silence."""
    assert positions([700, 300], 7, 2, 0, 6).tolist() == FIXED
    assert positions([700, 300], 7, 2, 0, 6, block=700).tolist() == FIXED_BLOCKS


FIXED = [828, 142, 572, 152, 154, 270]
FIXED_BLOCKS = [933, 892, 789, 704, 825, 857]


@pytest.mark.parametrize("domain", [3, 4, 300])
def test_permutations_are_drawn_evenly(domain: int) -> None:
    """Of 3 and 4 numbers each permutation comes as often as others; of 300 each number goes everywhere as often."""
    draws = 12_000
    if domain < 5:
        seen = dict.fromkeys(permutations(range(domain)), 0)
        for key in range(draws):
            seen[tuple(permuted(np.arange(domain), domain, key).tolist())] += 1
        counts = np.array(list(seen.values()))
    else:
        counts = np.zeros((domain, domain), int)
        for key in range(draws // 4):
            counts[np.arange(domain), permuted(np.arange(domain), domain, key)] += 1
        counts = counts.reshape(-1)
    expected = counts.sum() / counts.size
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - counts.size) < 5 * np.sqrt(2 * counts.size), "chi-square is far from its mean"


def test_neighbours_do_not_stay_neighbours() -> None:
    order: NDArray[np.int64] = positions([100_000], 1, 0, 0, 100_000)
    steps = np.abs(np.diff(order))
    assert (steps == 1).sum() < 20
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02


def test_a_few_positions_of_very_many_cost_little() -> None:
    sizes = np.full(1000, 10**9)
    tracemalloc.start()
    found = positions(sizes, 5, 1, 10**12 - 64, 64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    assert len(set(found.tolist())) == 64
    assert found.min() >= 0
    assert found.max() < 10**12


def test_positions_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="positions 5 to 11: this epoch has 10"):
        positions([10], 0, 0, 5, 6)
    with pytest.raises(ValueError, match="give what a block may have"):
        Order([10], 0, 0, block=0)
    with pytest.raises(ValueError, match="less than no sample"):
        Order([10, -1], 0, 0)
