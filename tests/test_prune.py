"""Pruning leaves out what InfoBatch does, the same at every try, and its epochs can be read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import lines, recorded

from datakit.errors import RecipeError
from datakit.pretrain import checkpoint
from datakit.pretrain.prune import Pruned, Scores, prune
from datakit.pretrain.train import pretrain
from datakit.stream import Loader, Overlay
from datakit.stream.replay import keys_of_step, state_of

scores = st.lists(st.integers(0, 80).map(lambda n: n / 8) | st.just(float("nan")), min_size=1, max_size=64)


def infobatch(ids: list[int], values: list[float], ratio: float) -> tuple[set[int], int]:
    """Which samples may be left out, and how many are: section 3.2 of the paper, one after another."""
    known = [value for value in values if value == value]
    if not known:
        return set(), 0
    mean = sum(known) / len(known)
    below = {one for one, value in zip(ids, values, strict=True) if value < mean}
    return below, int(ratio * len(below))


@given(scores, st.floats(0.01, 0.99), st.integers(0, 9), st.integers(0, 99))
def test_a_share_of_what_is_below_the_mean_is_left_out(
    values: list[float], ratio: float, seed: int, epoch: int
) -> None:
    ids = np.arange(len(values), dtype=np.int64) * 2**40 + 7  # ids of 63 bits: no float holds them
    done = prune(ids, np.array(values, np.float32), ratio, seed, epoch)
    below, count = infobatch(ids.tolist(), np.array(values, np.float32).tolist(), ratio)
    assert len(done.dropped) == count
    assert {*done.dropped.tolist()} | {*done.heavy.tolist()} == below
    assert not {*done.dropped.tolist()} & {*done.heavy.tolist()}
    order = np.random.default_rng(seed).permutation(len(ids))
    again = prune(ids[order], np.array(values, np.float32)[order], ratio, seed, epoch)
    assert again.dropped.tolist() == done.dropped.tolist()


def test_what_is_left_stands_for_what_is_left_out() -> None:
    """The expected gradient is that of all samples: over many epochs each counts as if it always came."""
    ids, values = np.arange(200, dtype=np.int64), np.linspace(0, 1, 200, dtype=np.float32)
    counted = np.zeros(200)
    for epoch in range(2000):
        done = prune(ids, values, 0.5, 3, epoch)
        weights = done.weights(torch.from_numpy(ids)).numpy()
        weights[done.dropped] = 0
        counted += weights
    assert np.allclose(counted / 2000, 1, atol=0.12)  # deviation of the mean: 0.022
    assert counted[:100].mean() == pytest.approx(2000)
    assert (counted[100:] == 2000).all()


def test_scores_are_by_id_and_outlive_a_checkpoint(tmp_path: Path) -> None:
    ids = np.array([2**62 + 3, 5, 2**62 + 1], np.int64)  # apart by less than a float32 or float64 tells
    kept = Scores(ids)
    kept.note(torch.tensor([2**62 + 1, 5]), torch.tensor([0.25, float("nan")]))
    kept.note(torch.tensor([2**62 + 3]), torch.tensor([0.5]))
    kept.gather(lambda values: values)
    assert kept.ids.tolist() == sorted(ids.tolist())
    assert np.array_equal(kept.values, np.array([np.nan, 0.25, 0.5], np.float32), equal_nan=True)
    torch.save(kept.state_dict(), tmp_path / "scores.pt")
    more = Scores(np.append(ids, 9))
    more.load_state_dict(torch.load(tmp_path / "scores.pt", weights_only=True))
    assert np.array_equal(more.values, np.array([np.nan, np.nan, 0.25, 0.5], np.float32), equal_nan=True)


def test_an_epoch_can_be_read_again(shards: Path, tmp_path: Path) -> None:
    """The overlay of an epoch gives a loader its samples; `datakit replay` names those of a step."""
    one = recorded(shards, tmp_path / "seen", prune={"ratio": 0.5, "until": 0.7}, budget={"epochs": 6})
    told = pretrain(one, tmp_path / "run", say=lambda _: None, accelerator="cpu")
    assert told["pruned"]
    seen = lines(tmp_path / "seen-1-0")
    log = lines(tmp_path / "run" / "log.jsonl")
    assert len(log) == len(seen) < 18
    written = sorted((tmp_path / "run" / "pruned").iterdir())
    assert [path.name for path in written] == [f"epoch-{n:05}.parquet" for n in (1, 2, 3, 4)]  # 5 of 6 is past 0.7
    states = [checkpoint.load(path) for path in checkpoint.there(tmp_path / "run" / "checkpoints")]
    steps = {state["step"]: state["feed"] for state in states}
    first = next(n for n, feed in steps.items() if (feed["epoch"], feed["step"]) == (3, 1))
    loader = Loader(shards, 8, transform=one.objective.loading().transform, overlay=written[2])
    loader.set_epoch(3)
    assert next(iter(loader)).keys == seen[first - 1]
    path = tmp_path / "run" / "checkpoints" / f"step-{first:09}.pt"
    rows = keys_of_step(state_of(path), str(shards), overlay=[written[2]])
    assert [row["key"] for row in rows] == seen[first - 1]
    assert Overlay.of(written[2]).kind == "drop"


def test_another_budget_leaves_an_epoch_as_it_began(shards: Path, tmp_path: Path) -> None:
    """It is past `until` of the new budget, and still reads what it read before."""
    more = {"prune": {"ratio": 0.5, "until": 0.5}, "checkpoint_every": 1, "keep": 99}
    pretrain(recorded(shards, budget={"epochs": 6}, **more), tmp_path, say=lambda _: None, accelerator="cpu")
    states = [checkpoint.load(path) for path in checkpoint.there(tmp_path / "checkpoints")]
    (step,) = (state["step"] for state in states if (state["feed"]["epoch"], state["feed"]["step"]) == (2, 1))
    one = recorded(shards, budget={"epochs": 3}, **more)
    options = {"resume": tmp_path / "checkpoints" / f"step-{step:09}.pt", "rescale": True, "accelerator": "cpu"}
    assert pretrain(one, tmp_path / "more", say=lambda _: None, **options)["steps"] > step


def test_heavy_samples_weigh_more_in_the_loss() -> None:
    done = Pruned(np.array([1]), np.array([4, 2**62]), 2.0)
    assert done.weights(torch.tensor([0, 4, 2**62, 2**62 - 1])).tolist() == [1, 2, 2, 1]
    assert Pruned(np.array([], np.int64), np.array([], np.int64), 2.0).overlay("x") is None


def test_pruning_and_repeats_exclude_one_another(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"set feeding\.repeats to 1"):
        recorded(shards, prune={}, feeding={"repeats": 2})
    with pytest.raises(RecipeError, match="batch: 32"):
        pretrain(recorded(shards, prune={}, batch=32), shards.parent / "none", say=lambda _: None, accelerator="cpu")
