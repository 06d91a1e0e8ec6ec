"""Stars: the same as deciding one row after the other."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hamming import KINDS, jittered, make

from datakit import stars as module
from datakit.hamming import distance
from datakit.stars import Agree, Rows, Signatures, keep_stars, stars


def one_by_one(
    signatures: Signatures,
    radius_bits: int,
    agree: Agree | None = None,
    flat: Any = None,
    digest: Any = None,
) -> tuple[Rows, Rows]:
    """What `stars` is to give, in the order in which it is defined."""
    turned = signatures if signatures.ndim == 2 else signatures[:, None]
    kept, place = np.arange(len(turned)), np.zeros(len(turned), np.int8)
    flat = np.zeros(len(turned), bool) if flat is None else flat
    heads: list[int] = []
    seen: dict[bytes, int] = {}
    for row in range(len(turned)):
        if flat[row]:
            kept[row] = seen.setdefault(digest[row].tobytes(), row)
            continue
        apart = distance(turned[heads], turned[row, 0])
        which, places = np.nonzero(apart <= radius_bits)
        ours = np.array(heads, np.int64)[which]
        if agree is not None and len(which):
            rows = np.full(len(ours), row)
            yes = agree(ours, rows, places) if signatures.ndim == 2 else agree(ours, rows)
            which, places, ours = which[yes], places[yes], ours[yes]
        if not len(which):
            heads.append(row)
            continue
        places = places[which == which[0]]
        kept[row] = ours[0]
        place[row] = places[np.argmin(apart[which[0], places])]
    return kept, place


class Asked:
    """Says yes to some pairs, and remembers what it was asked."""

    def __init__(self, share: float, salt: int = 1) -> None:
        self.share, self.salt, self.pairs, self.most = share, salt, 0, 0

    def __call__(self, kept: Rows, rows: Rows, places: Rows | None = None) -> Any:
        assert kept.dtype == rows.dtype == np.int64
        assert kept.shape == rows.shape
        assert (kept < rows).all()
        assert places is None or places.shape == rows.shape
        self.pairs += len(rows)
        self.most = max(self.most, len(rows))
        mixed = kept * 7919 + rows * 104729 + (0 if places is None else places * 1299709) + self.salt * 31
        return mixed % 1009 < self.share * 1009


@settings(deadline=None, max_examples=200)
@given(
    kind=st.sampled_from(KINDS),
    count=st.sampled_from((0, 1, 2, 9, 50, 200)),
    places=st.sampled_from((0, 1, 2, 8)),
    radius_bits=st.integers(0, 6),
    share=st.sampled_from((None, 0.0, 0.2, 0.7, 1.0)),
    flat_share=st.sampled_from((0.0, 0.0, 0.3, 1.0)),
    spare=st.sampled_from((0, 20, 1 << 16)),
    rounds=st.sampled_from((0, 1, 6)),
    seed=st.integers(0, 1 << 30),
)
def test_stars_are_those_of_one_row_after_the_other(
    kind: str,
    count: int,
    places: int,
    radius_bits: int,
    share: float | None,
    flat_share: float,
    spare: int,
    rounds: int,
    seed: int,
) -> None:
    """Whether decided from all pairs or by halves (`spare`), asking little at a time or all (`rounds`)."""
    rng = np.random.default_rng(seed)
    signatures = make(kind, count, seed)
    if places:
        columns = [signatures, *(jittered(rng.permutation(signatures), 3, rng) for _ in range(places - 1))]
        signatures = np.stack(columns, axis=1)
    agree = None if share is None else Asked(share)
    flat = rng.random(count) < flat_share
    digest = rng.integers(0, 5, (count, 2)).astype(np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SPARE", spare)
        patch.setattr(module, "_ROUNDS", rounds)
        patch.setattr(module, "_ASK", 100)
        kept, place = stars(signatures, radius_bits, agree, flat, digest)
    wanted, wanted_place = one_by_one(signatures, radius_bits, agree, flat, digest)
    assert kept.dtype == np.int64
    assert place.dtype == np.int8
    assert kept.tolist() == wanted.tolist()
    assert place.tolist() == wanted_place.tolist()
    assert agree is None or agree.most <= max(100, count * max(places, 1))  # the second: one_by_one asks a row at once


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_many_kept_rows_that_look_alike(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows near so many kept ones that these strike a few at a time: the first that agrees is the star."""
    monkeypatch.setattr(module, "_SPARE", 0)
    signatures = make("equal", 400, 0)
    kept, _ = stars(signatures, 2, Asked(share))
    assert kept.tolist() == one_by_one(signatures, 2, Asked(share))[0].tolist()


def test_stars_not_chains() -> None:
    """Each is 3 bits from the next: the second is dropped, so the third stays."""
    signatures = np.array([0, 0b111, 0b111111, 0b111111111], np.uint64)
    assert keep_stars(signatures, 3).tolist() == [0, 0, 2, 2]
    assert keep_stars(signatures[::-1], 3).tolist() == [0, 0, 2, 2]


def test_the_most_preferred_of_several_kept_rows() -> None:
    signatures = np.array([0b1111, 0b11110000, 0, 0b11], np.uint64)  # the third is 4 bits from both
    assert keep_stars(signatures, 4).tolist() == [0, 1, 0, 0]
    assert keep_stars(signatures, 4, lambda kept, rows: kept == 1).tolist() == [0, 1, 1, 3]


def test_the_place_of_least_distance_that_agrees() -> None:
    first = [0b111, 0b1, 0b10, 0b11]  # places at 3, 1, 1 and 2 bits from 0
    signatures = np.array([first, [0, 0xFF00, 0xFF00, 0xFF00]], np.uint64)
    assert [a.tolist() for a in stars(signatures, 3)] == [[0, 0], [0, 1]]
    assert stars(signatures, 3, lambda kept, rows, places: places != 1)[1].tolist() == [0, 2]
    assert stars(signatures, 3, lambda kept, rows, places: places % 3 == 0)[1].tolist() == [0, 3]
    kept, place = stars(signatures, 3, lambda kept, rows, places: places > 5)
    assert (kept.tolist(), place.tolist()) == ([0, 1], [0, 0])


def test_only_the_kept_row_is_turned() -> None:
    """Row 1 turned looks like row 0, row 0 turned does not look like row 1: no duplicate."""
    signatures = np.array([[0, 0xFFFF], [0xFFFF0000, 0]], np.uint64)
    assert keep_stars(signatures, 2).tolist() == [0, 1]
    assert keep_stars(signatures[::-1], 2).tolist() == [0, 0]


@pytest.mark.parametrize("digest", ["S16", "u8", "pair", "record"])
def test_flat_rows_match_on_their_digest_alone(digest: str) -> None:
    same = [1, 2, 1, 2, 1, 3]
    digests = {
        "S16": np.array([b"%d" % d for d in same], "S16"),
        "u8": np.array(same, np.uint64),
        "pair": np.array([[9, d] for d in same], np.uint64),
        "record": np.array([(d, 7) for d in same], [("high", "u8"), ("low", "u8")]),
    }[digest]
    flat = np.array([False, True, True, True, True, True])

    def never(kept: Rows, rows: Rows) -> Any:
        raise AssertionError("flat rows are not asked for")

    assert keep_stars(np.zeros(6, np.uint64), 4, never, flat, digests).tolist() == [0, 1, 2, 1, 2, 5]


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(KINDS), radius_bits=st.integers(0, 6), seed=st.integers(0, 1 << 30))
def test_laws(kind: str, radius_bits: int, seed: int) -> None:
    """Kept rows are no duplicates of each other, every dropped one is near its star, and the kept are kept again."""
    signatures = make(kind, 400, seed)
    kept = keep_stars(signatures, radius_bits)
    heads = np.flatnonzero(kept == np.arange(len(kept)))
    assert (kept[kept] == kept).all()
    assert (kept <= np.arange(len(kept))).all()
    assert (distance(signatures, signatures[kept]) <= radius_bits).all()
    assert (keep_stars(signatures[heads], radius_bits) == np.arange(len(heads))).all()
    both = np.append(signatures, signatures)  # what is there already is dropped
    assert (keep_stars(both, radius_bits)[len(kept) :] == kept).all()
    more = np.append(signatures, make("random", 50, seed))  # less preferred rows change nothing before them
    assert (keep_stars(more, radius_bits)[: len(kept)] == kept).all()


def test_any_order_where_clusters_are_apart() -> None:
    """Of clusters no wider than the radius one stays each, in whatever order they come."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 1 << 64, 3_000, dtype=np.uint64)
    cluster = rng.integers(0, len(centres), 20_000)
    signatures = jittered(centres[cluster], 2, rng)
    for order in (np.arange(len(cluster)), rng.permutation(len(cluster)), np.argsort(cluster)):
        kept = keep_stars(signatures[order], 4)
        assert (cluster[order][kept] == cluster[order]).all()
        assert (kept == np.arange(len(kept))).sum() == len(np.unique(cluster))


@pytest.mark.parametrize("cores", [1, 3])
def test_any_number_of_threads(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    signatures = make("clusters", 600_000, 1)
    wanted = keep_stars(signatures, 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert (keep_stars(signatures, 4) == wanted).all()


def test_many_equal_rows_cost_what_their_number_costs() -> None:
    """300,000 equal rows: one question a row, not 45,000,000,000."""
    agree = Asked(1)
    signatures = np.full(300_000, 7, np.uint64)
    assert not keep_stars(signatures, 4, agree).any()
    assert agree.pairs == len(signatures) - 1
    assert agree.most <= 1 << 20


@pytest.mark.parametrize("order", ["by cluster", "by value", "random"])
@pytest.mark.parametrize("flips", [2, 4])
def test_large_clusters(order: str, flips: int) -> None:
    """264 clusters of 5,000: a few questions a row, in any order of rows."""
    rng = np.random.default_rng(flips)
    signatures = jittered(np.repeat(rng.integers(0, 1 << 64, 264, dtype=np.uint64), 5_000), flips, rng)
    if order != "by cluster":
        signatures = np.sort(signatures) if order == "by value" else rng.permutation(signatures)
    agree = Asked(1)
    kept = keep_stars(signatures, 4, agree)
    heads = np.unique(kept)
    assert (distance(signatures, signatures[kept]) <= 4).all()
    assert len(heads) == 264 if flips == 2 else 264 < len(heads) < 100_000
    assert agree.pairs < 2 * len(signatures)


def test_rows_that_never_agree_are_asked_in_pieces() -> None:
    """3,000 equal rows that differ all the same: every pair is asked for once, never many at a time."""
    agree = Asked(0)
    signatures = np.full(3_000, 7, np.uint64)
    assert (keep_stars(signatures, 4, agree) == np.arange(3_000)).all()
    assert agree.pairs == 3_000 * 2_999 // 2
    assert agree.most <= 1 << 20


def test_wrong_input_is_refused() -> None:
    signatures = np.zeros(4, np.uint64)
    with pytest.raises(ValueError, match="digest"):
        keep_stars(signatures, 4, flat=np.array([True, False, False, False]))
    for radius_bits in (-1, 7):
        with pytest.raises(ValueError, match="0 to 6"):
            keep_stars(signatures, radius_bits)
    with pytest.raises(ValueError, match="uint64"):
        keep_stars(signatures.astype(np.int64), 4)
    with pytest.raises(ValueError, match="1 to 8"):
        keep_stars(np.zeros((4, 9), np.uint64), 4)
    assert keep_stars(signatures, 4, flat=np.zeros(4, bool)).tolist() == [0, 0, 0, 0]
