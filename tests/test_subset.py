"""Subsets: nested, seeded, and never with more flat tiles than asked."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from datakit.sample import mix64
from datakit.stages.subset import Subset, over_cap

NAMES = ("dota", "fmow", "inria")
CAPS = (0.0, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.9)
World = tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float64]]


def world(count: int, seed: int, flat_share: float = 0.3) -> World:
    """Ids, sources and entropies of samples; a tenth is not measured."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(2**62, count, replace=False)
    sources = np.array(NAMES, object)[rng.integers(0, len(NAMES), count)]
    entropy = np.where(rng.random(count) < flat_share, rng.uniform(0, 4, count), rng.uniform(4, 8, count))
    entropy[rng.random(count) < 0.1] = np.nan
    return ids, sources, entropy


def kept(subset: Subset, of: World, seed: int = 0) -> set[int]:
    ids, *_ = of
    return set(ids[subset.reasons(*of, seed) == ""].tolist())


worlds = st.builds(world, st.integers(0, 200), st.integers(0, 2**32), st.floats(0, 1))


@given(worlds, st.integers(1, 250), st.integers(1, 250), st.sampled_from([None, *CAPS]), st.integers(0, 99))
def test_fewer_samples_are_among_more(of: World, one: int, other: int, cap: float | None, seed: int) -> None:
    capped = {} if cap is None else {"flat": cap}
    small, large = (kept(Subset(count=n, cap=capped), of, seed) for n in sorted((one, other)))
    assert small <= large <= kept(Subset(cap=capped), of, seed)
    assert len(large) == min(max(one, other), len(kept(Subset(cap=capped), of, seed)))


@given(worlds, st.floats(0.01, 1), st.floats(0.01, 1), st.sampled_from([None, *CAPS]))
def test_a_smaller_share_is_within_a_larger_one(of: World, one: float, other: float, cap: float | None) -> None:
    capped = {} if cap is None else {"flat": cap}
    small, large = (kept(Subset(share=share, cap=capped), of) for share in sorted((one, other)))
    assert small <= large
    assert len(large) == round(len(kept(Subset(cap=capped), of)) * max(one, other))


@given(worlds, st.integers(0, 90), st.integers(0, 90))
def test_fewer_of_a_source_are_among_more(of: World, one: int, other: int) -> None:
    small, large = (kept(Subset(per_source={"dota": n, "inria": 2 * n}), of) for n in sorted((one, other)))
    assert small <= large
    ids, sources, _ = of
    for name, most in (("dota", max(one, other)), ("inria", 2 * max(one, other)), ("fmow", len(ids))):
        assert len(large & set(ids[sources == name].tolist())) == min(most, np.count_nonzero(sources == name))


@given(st.lists(st.booleans(), max_size=300), st.sampled_from(CAPS) | st.floats(0, 0.99))
def test_the_flat_cap_holds_at_every_point_of_the_order_and_wastes_nothing(flat: list[bool], cap: float) -> None:
    """Sample by sample: a flat one stays if the share of flat ones so far, itself included, is within the cap."""
    most, flats, others, expected = Fraction(cap).limit_denominator(10**9), 0, 0, []
    for one in flat:
        over = one and Fraction(flats + 1, flats + 1 + others) > most
        expected.append(over)
        flats, others = flats + (one and not over), others + (not one)
        assert flats <= most * (flats + others)
    assert over_cap(np.array(flat, bool), cap).tolist() == expected


@settings(max_examples=50)
@given(worlds, st.sampled_from(CAPS), st.integers(1, 200))
def test_every_subset_obeys_the_cap(of: World, cap: float, count: int) -> None:
    ids, _, entropy = of
    chosen = np.isin(ids, list(kept(Subset(count=count, cap={"flat": cap}, per_source={"fmow": 20}), of)))
    assert np.count_nonzero(entropy[chosen] < 4.0) <= cap * np.count_nonzero(chosen) + 1e-9


def test_a_cap_is_exact_where_floating_point_is_not() -> None:
    flat = np.zeros(2000, bool)
    flat[[n for n in range(2000) if n % 20 == 19]] = True  # 1 in 20: exactly 0.05
    assert not over_cap(flat, 0.05).any()
    flat[18] = True
    assert over_cap(flat, 0.05).nonzero()[0].tolist() == [18, 19]  # 18 others allow none yet
    assert over_cap(np.ones(5, bool), 0.9999999999).all()  # nothing that is not flat comes first
    assert over_cap(np.zeros(0, bool), 0.1).tolist() == []


def test_the_order_is_that_of_the_hash_and_each_drop_has_its_reason() -> None:
    ids, sources, entropy = of = world(300, 1)
    subset = Subset(count=40, per_source={"dota": 30}, cap={"flat": 0.1})
    reasons = subset.reasons(*of, 5)
    ranked = sorted(range(300), key=lambda n: int(mix64(ids[n : n + 1], 5)[0]))
    dota = [n for n in ranked if sources[n] == "dota"]
    assert [reasons[n] == "subset_source" for n in dota] == [False] * 30 + [True] * (len(dota) - 30)
    rest = [n for n in ranked if reasons[n] != "subset_source"]
    over = over_cap(entropy[rest] < 4.0, 0.1)
    assert [reasons[n] == "subset_flat" for n in rest] == over.tolist()
    rest = [n for n in rest if reasons[n] != "subset_flat"]
    assert [reasons[n] for n in rest] == [""] * 40 + ["subset_count"] * (len(rest) - 40)


@given(worlds, st.integers(0, 2**32))
def test_the_order_of_the_records_changes_nothing(of: World, seed: int) -> None:
    subset = Subset(share=0.5, per_source={"dota": 20}, cap={"flat": 0.2})
    shuffled = np.random.default_rng(seed).permutation(len(of[0]))
    reasons = subset.reasons(*of, 3)
    assert reasons[shuffled].tolist() == subset.reasons(*(column[shuffled] for column in of), 3).tolist()


def test_seeds_choose_differently() -> None:
    of = world(400, 2)
    chosen = [kept(Subset(count=100), of, seed) for seed in range(4)]
    assert all(len(one & other) < 60 for one in chosen for other in chosen if one is not other)


def test_what_was_not_measured_is_not_flat() -> None:
    ids = np.arange(50)
    sources = np.full(50, "dota", object)
    assert kept(Subset(cap={"flat": 0.0}), (ids, sources, np.full(50, np.nan))) == set(range(50))
    assert kept(Subset(cap={"flat": 0.0}), (ids, sources, np.full(50, 3.9))) == set()
    assert kept(Subset(cap={"flat": 0.0}, flat_entropy_bits=3.9), (ids, sources, np.full(50, 3.9))) == set(range(50))


def test_without_wishes_all_are_kept() -> None:
    of = world(30, 3)
    assert kept(Subset(), of) == set(of[0].tolist())
    assert kept(Subset(count=5), world(0, 0)) == set()


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 5, "share": 0.5}, {"count": 0}, {"share": 0.0}, {"share": 1.5}, {"cap": {"dark": 0.1}},
        {"cap": {"flat": 1.0}}, {"cap": {"flat": -0.1}}, {"per_source": {"dota": -1}}, {"flat_entropy_bits": 9},
    ],
)  # fmt: skip
def test_wishes_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Subset.model_validate(wrong)
