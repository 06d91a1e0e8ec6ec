"""All pairs within a radius: the same as by comparing all with all."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit import buckets, hamming
from datakit.errors import StageError, TooManyPairs
from datakit.hamming import MAX_RADIUS_BITS, Pairs, Signatures, distance, near_between, near_pairs, scan

RADII = range(MAX_RADIUS_BITS + 1)
KINDS = ("random", "clusters", "consecutive", "low", "high", "equal", "ball")


def make(kind: str, count: int, seed: int) -> Signatures:
    """Signatures as they come, and as they should not."""
    rng = np.random.default_rng([seed, count])
    found = rng.integers(0, 1 << 64, count, dtype=np.uint64)
    if kind == "consecutive":
        return np.arange(count, dtype=np.uint64) + (found[:1] if count else np.uint64(0))
    if kind == "low":
        return found & np.uint64(0xFFF)
    if kind == "high":
        return found << np.uint64(52)
    if kind == "equal":
        return found[:3][rng.integers(0, 3, count)] if count > 2 else found
    if kind == "ball":
        return jittered(np.full(count, 0x8000F000, np.uint64), 9, rng)
    if kind == "clusters" and count:
        found = jittered(found[rng.integers(0, max(count // 8, 1), count)], 4, rng)
    return found | np.uint64(1 << 63)  # the bit of the DC term is always set


def jittered(signatures: Signatures, flips: int, rng: np.random.Generator) -> Signatures:
    for _ in range(flips):
        bit = np.uint64(1) << rng.integers(0, 64, len(signatures), dtype=np.uint64)
        signatures = signatures ^ np.where(rng.random(len(signatures)) < 0.7, bit, np.uint64(0))
    return signatures


def all_pairs(one: Signatures, other: Signatures, radius_bits: int) -> Pairs:
    return np.argwhere(np.bitwise_count(one[:, None] ^ other[None, :]) <= radius_bits)


def upper(pairs: Pairs) -> Pairs:
    return pairs[pairs[:, 0] < pairs[:, 1]]


@settings(deadline=None, max_examples=120)
@given(
    kind=st.sampled_from(KINDS),
    count=st.sampled_from((0, 1, 2, 3, 10, 60, 300, 1000)),
    radius_bits=st.sampled_from(RADII),
    seed=st.integers(0, 1 << 30),
)
def test_pairs_are_those_of_comparing_all(kind: str, count: int, radius_bits: int, seed: int) -> None:
    signatures = make(kind, count, seed)
    wanted = upper(all_pairs(signatures, signatures, radius_bits))
    found = near_pairs(signatures, radius_bits)
    assert found.dtype == np.int64
    assert found.shape == wanted.shape
    assert (found == wanted).all()


@settings(deadline=None, max_examples=80)
@given(
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    counts=st.tuples(st.sampled_from((0, 1, 7, 40, 400, 900)), st.sampled_from((0, 1, 7, 40, 400, 900))),
    radius_bits=st.sampled_from(RADII),
    seed=st.integers(0, 1 << 30),
)
def test_pairs_between_two_sets(kinds: tuple[str, str], counts: tuple[int, int], radius_bits: int, seed: int) -> None:
    one, other = make(kinds[0], counts[0], seed), make(kinds[1], counts[1], seed + 1)
    other[: len(one) // 3] = jittered(one, 3, np.random.default_rng(seed))[: len(other)][: len(one) // 3]
    wanted = all_pairs(one, other, radius_bits)
    found = near_between(one, other, radius_bits)
    assert found.shape == wanted.shape
    assert (found == wanted).all()


@pytest.mark.parametrize("radius_bits", RADII)
def test_every_pattern_of_errors_is_found(radius_bits: int) -> None:
    """Pairs at exactly the radius, in 20,000 random places each."""
    rng = np.random.default_rng(radius_bits)
    one = rng.integers(0, 1 << 64, 20_000, dtype=np.uint64)
    flips = np.argsort(rng.random((len(one), 64)), axis=1)[:, :radius_bits].astype(np.uint64)
    other = one ^ np.bitwise_or.reduce(np.uint64(1) << flips, axis=1, initial=0)
    assert (distance(one, other) == radius_bits).all()
    rows = np.arange(len(one))
    assert (near_between(one, other, radius_bits) == np.stack([rows, rows], axis=1)).all()
    together = near_pairs(np.append(one, other), radius_bits)
    assert (together == np.stack([rows, rows + len(one)], axis=1)).all()
    if radius_bits:
        assert not len(near_between(one, other, radius_bits - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_buckets_within_buckets(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a few signatures are too large a bucket, tables are made within tables, and each pair still comes once."""
    monkeypatch.setattr(hamming, "_HEAVY", 64)
    monkeypatch.setattr(hamming, "_PRODUCT", 64)
    monkeypatch.setattr(hamming, "_FEW", 1)
    monkeypatch.setattr(hamming, "_DEPTH", 2)
    monkeypatch.setattr(hamming, "_BUFFER", 16)
    signatures = make(kind, 200, 5)
    for radius_bits in (0, 2, 4):
        wanted = all_pairs(signatures, signatures, radius_bits)
        assert near_pairs(signatures, radius_bits).tolist() == upper(wanted).tolist()
        assert near_between(signatures, signatures.copy(), radius_bits).tolist() == wanted.tolist()


@pytest.mark.parametrize("count", [300_000, 550_000])
def test_any_number_of_threads(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    signatures = make("clusters", count, 1)
    some = signatures[::2]
    found = []
    for cores in (1, 2, 5):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        found.append((near_pairs(signatures, 4), near_between(some, signatures, 3), scan(signatures, some[:3], 20)))
    for pairs, between, hits in found[1:]:
        assert (pairs == found[0][0]).all()
        assert (between == found[0][1]).all()
        assert all((a == b).all() for a, b in zip(hits, found[0][2], strict=True))
    pairs = found[0][0]
    assert len(pairs) > count // 2
    assert (distance(signatures[pairs[:, 0]], signatures[pairs[:, 1]]) <= 4).all()
    keys = pairs[:, 0] * count + pairs[:, 1]
    assert (np.diff(keys) > 0).all()


def test_the_order_of_signatures_does_not_matter() -> None:
    signatures = make("clusters", 20_000, 2)
    order = np.random.default_rng(0).permutation(len(signatures))
    pairs = {tuple(sorted(pair)) for pair in order[near_pairs(signatures[order], 4)].tolist()}
    assert pairs == {tuple(pair) for pair in near_pairs(signatures, 4).tolist()}


def test_a_flip_of_the_same_bits_everywhere_changes_nothing() -> None:
    signatures = make("clusters", 20_000, 3)
    assert (near_pairs(signatures, 4) == near_pairs(signatures ^ np.uint64(0x123456789ABCDEF0), 4)).all()


def test_as_many_pairs_as_allowed() -> None:
    signatures = make("clusters", 2_000, 4)
    pairs = near_pairs(signatures, 4)
    assert (near_pairs(signatures, 4, max_pairs=len(pairs)) == pairs).all()
    with pytest.raises(TooManyPairs):
        near_pairs(signatures, 4, max_pairs=len(pairs) - 1)
    with pytest.raises(TooManyPairs):
        near_between(signatures, signatures, 4, max_pairs=10)
    assert issubclass(TooManyPairs, StageError)


def test_too_many_pairs_names_the_largest_cluster() -> None:
    rng = np.random.default_rng(0)
    signatures = rng.integers(0, 1 << 64, 30_000, dtype=np.uint64)
    signatures[1000:1900] = signatures[77]  # equal
    signatures[5000:5400] = signatures[78] ^ np.uint64(1) << np.arange(400, dtype=np.uint64) % 64
    with pytest.raises(TooManyPairs, match=re.escape(f"{signatures[77]:#018x} (row 77), which has 900 neighbours")):
        near_pairs(signatures, 4, max_pairs=100_000)
    near = jittered(np.full(3000, signatures[9], np.uint64), 2, rng)  # few equal, all near
    with pytest.raises(TooManyPairs, match="around signature") as error:
        near_pairs(np.append(signatures[:1000], near), 4, max_pairs=100_000)
    value, count = re.findall(r"signature (0x\w+) .* has (\d+) neighbours", str(error.value))[0]
    assert int((distance(near, np.uint64(int(value, 16))) <= 4).sum()) >= int(count) > 2_500


def test_many_equal_signatures_stop_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """300,000 equal ones have 45,000,000,000 pairs: few more than allowed are made."""
    made = []
    monkeypatch.setattr(hamming._Search, "too_many", lambda search: made.append(search.count) or "many")
    for signatures in (np.full(300_000, 7, np.uint64), np.append(np.full(300_000, 7, np.uint64), make("random", 9, 1))):
        with pytest.raises(TooManyPairs):
            near_pairs(signatures, 4, max_pairs=1_000_000)
    assert max(made) <= 1_000_000 + hamming._BUFFER * len(os.sched_getaffinity(0))


def test_equal_groups_far_apart_are_not_compared() -> None:
    """2 x 200,000 signatures in the same few buckets, 8 bits apart: 40,000,000,000 comparisons would take a minute."""
    one = np.append(np.full(200_000, 0, np.uint64), make("random", 20_000, 1))
    other = np.append(np.full(200_000, 0xFF << 40, np.uint64), make("random", 20_000, 2))
    assert not len(near_between(one, other, 4))


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    count=st.sampled_from((0, 1, 30, 500)),
    radius_bits=st.integers(0, 64),
    seed=st.integers(0, 1 << 30),
)
def test_scan_compares_all(kind: str, count: int, radius_bits: int, seed: int) -> None:
    signatures = make(kind, count, seed)
    queries = np.append(make("random", 2, seed + 1), signatures[:2])
    hits = scan(signatures, queries, radius_bits)
    assert (np.stack([hits.query, hits.row], axis=1) == all_pairs(queries, signatures, radius_bits)).all()
    assert (hits.distance_bits == distance(queries[hits.query], signatures[hits.row])).all()
    if count:
        alone = scan(signatures, signatures[0], radius_bits)
        assert (alone.row == hits.row[hits.query == 2]).all()


def test_wrong_input_is_refused() -> None:
    signatures = make("random", 10, 0)
    for radius_bits in (-1, 7):
        with pytest.raises(ValueError, match="0 to 6"):
            near_pairs(signatures, radius_bits)
        with pytest.raises(ValueError, match="0 to 6"):
            near_between(signatures, signatures, radius_bits)
    for wrong in (signatures.astype(np.int64), signatures[None], signatures.astype(float)):
        with pytest.raises(ValueError, match="uint64"):
            near_pairs(wrong, 2)
        with pytest.raises(ValueError, match="uint64"):
            near_between(signatures, wrong, 2)
        with pytest.raises(ValueError, match="uint64"):
            scan(wrong, signatures[0], 2)
    with pytest.raises(ValueError, match="0 to 64"):
        scan(signatures, signatures[0], 65)


def test_distance_counts_bits() -> None:
    assert distance(np.uint64(0), np.uint64((1 << 64) - 1)) == 64
    assert distance([0, 3], [1, 3]).tolist() == [1, 0]
    assert distance((1 << 64) - 1, 1 << 63) == 63


def test_strided_and_read_only_arrays() -> None:
    signatures = make("clusters", 2_000, 6)
    twice = np.repeat(signatures, 2)[::2]
    twice.setflags(write=False)
    assert (near_pairs(twice, 4) == near_pairs(signatures, 4)).all()
    assert (scan(twice, twice[0], 30).row == scan(signatures, signatures[0], 30).row).all()


@pytest.mark.parametrize("high", [1, 1 << 20, 1 << 63, (1 << 64) - 1])
def test_many_rows_are_put_in_order_and_gathered(high: int) -> None:
    """More than one thread sorts at once; however few of the high bits tell the numbers apart."""
    rng = np.random.default_rng(high % 1000)
    keys = rng.integers(0, high, buckets.PIECE + 1000, np.uint64, endpoint=True)
    by = buckets.argsort(keys)
    np.testing.assert_array_equal(np.sort(by), np.arange(len(keys)))
    np.testing.assert_array_equal(keys[by], np.sort(keys))
    columns = rng.integers(0, 9, (len(keys), 3))
    np.testing.assert_array_equal(buckets.take(columns[:, 1:], by), columns[by, 1:])
