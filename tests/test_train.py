"""The loop: it goes on bit for bit whatever ended it, on other ranks with the same samples, and tells what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from math import cos, pi
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import MASKED, RUN, lines, on_two_ranks, recipe, recorded

from datakit.cli import main
from datakit.errors import RecipeError, ShardError, StageError
from datakit.pretrain import checkpoint
from datakit.pretrain.mae import MAE
from datakit.pretrain.recipe import Pretrain
from datakit.pretrain.schedule import decayed, learning_rate
from datakit.pretrain.train import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")

TIMES = {"images_per_s", "wait_share"}


class Killed(Exception): ...


def killed_at(step: int) -> Any:
    """A `say` that ends the run where it tells of a step: after its line of the log, before its checkpoint."""

    def say(line: str) -> None:
        if line.startswith(f"step {step} "):
            raise Killed

    return say


def quiet(_: str) -> None: ...


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def last(folder: Path) -> dict[str, Any]:
    return checkpoint.load(checkpoint.there(folder / "checkpoints")[-1])


def told(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines(folder / "log.jsonl")]


def script(folder: Path, plain: dict[str, Any]) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(plain))
    return [sys.executable, "-m", "datakit.cli", "pretrain", str(path), "--resume", "auto", "--accelerator", "cpu"]


@pytest.mark.parametrize("more", [{}, {"micro_batch": 2, "ema": 0.9, "log_every": 2, "prune": {"ratio": 0.5}}])
def test_a_run_that_is_killed_goes_on_bit_for_bit(shards: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    one = recipe(shards, **{**more, "budget": {"epochs": 4}})
    pretrain(one, tmp_path / "whole", say=quiet, accelerator="cpu")
    with pytest.raises(Killed):
        pretrain(one, tmp_path / "killed", say=killed_at(4), accelerator="cpu")
    with pytest.raises(Killed):
        pretrain(one, tmp_path / "killed", say=killed_at(8), resume="auto", accelerator="cpu")
    pretrain(one, tmp_path / "killed", say=quiet, resume="auto", accelerator="cpu")
    assert same(last(tmp_path / "whole"), last(tmp_path / "killed"))
    assert told(tmp_path / "whole") == told(tmp_path / "killed")


def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on(shards: Path, tmp_path: Path) -> None:
    """SIGKILL at any moment, then SIGTERM, each in a process of its own."""
    plain = {**recipe(shards, checkpoint_every=3, budget={"epochs": 5}).model_dump(mode="json")}
    plain |= {"objective": MASKED, "budget": {"epochs": 5}}
    command = [*script(tmp_path, plain), "--out", str(tmp_path / "ended")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ends = ((signal.SIGKILL, "step 5 ", -9), (signal.SIGTERM, "step 7 ", 0))
    for number, until, code in ends:
        with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=env) as child:
            assert child.stderr is not None
            for line in child.stderr:
                if line.startswith(until):
                    child.send_signal(number)
                    break
            out, rest = child.communicate()
        assert child.returncode == code, rest
    said = json.loads(out)
    assert said["stopped"]
    assert 7 <= said["steps"] < 15
    assert said["checkpoint"] == said["steps"] == last(tmp_path / "ended")["step"]
    one = Pretrain.load(tmp_path / "recipe.yaml")
    pretrain(one, tmp_path / "ended", say=quiet, resume="auto", accelerator="cpu")
    pretrain(one, tmp_path / "whole", say=quiet, accelerator="cpu")
    assert same(last(tmp_path / "whole"), last(tmp_path / "ended"))
    assert told(tmp_path / "whole") == told(tmp_path / "ended")


RANKED = """
import sys
from pathlib import Path
from training import recorded
from datakit.pretrain.train import pretrain

shards, out, seen = sys.argv[1:]
one = recorded(Path(shards), seen, noise=0, prune={"ratio": 0.5}, budget={"epochs": 6}, micro_batch=2)
pretrain(one, out, resume="auto", accelerator="cpu")
"""


def test_other_ranks_go_on_with_the_same_samples(shards: Path, tmp_path: Path) -> None:
    """Two ranks take over from one, in the middle of an epoch that leaves samples out."""
    more: dict[str, Any] = {"noise": 0.0, "prune": {"ratio": 0.5}, "budget": {"epochs": 6}, "micro_batch": 4}
    pretrain(recorded(shards, tmp_path / "one", **more), tmp_path / "a", say=quiet, accelerator="cpu")
    with pytest.raises(Killed):
        pretrain(recorded(shards, tmp_path / "two", **more), tmp_path / "b", say=killed_at(6), accelerator="cpu")
    (tmp_path / "ranked.py").write_text(RANKED)
    on_two_ranks(tmp_path / "ranked.py", shards, tmp_path / "b", tmp_path / "two")

    def steps(*files: str) -> list[set[str]]:
        """The keys of each step of 8 samples, of all ranks and micro-batches."""
        batches = [lines(tmp_path / name) for name in files]
        each = 8 // len(files) // len(batches[0][0])
        return [
            {key for of in batches for keys in of[n : n + each] for key in keys}
            for n in range(0, len(batches[0]), each)
        ]

    whole, begun, ended = steps("one-1-0"), steps("two-1-0"), steps("two-2-0", "two-2-1")
    assert begun[:5] + ended == whole
    a, b = last(tmp_path / "a"), last(tmp_path / "b")
    assert a["feed"]["seen"] == b["feed"]["seen"]
    kept = [sorted(path.name for path in (tmp_path / run / "pruned").iterdir()) for run in "ab"]
    assert kept[0] == kept[1]
    assert kept[0]
    for name in kept[0]:
        assert (tmp_path / "a" / "pruned" / name).read_bytes() == (tmp_path / "b" / "pruned" / name).read_bytes()


MASKED_RANKS = """
import sys
from pathlib import Path
from training import recipe
from datakit.pretrain.train import pretrain

one = recipe(Path(sys.argv[1]), budget={"samples": 16}, micro_batch=2, pictures_every=1, ema=0.5)
pretrain(one, sys.argv[2], accelerator="cpu")
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in name for name in threads), threads
"""


def test_autoencoders_train_on_ranks(shards: Path, tmp_path: Path) -> None:
    """All their parameters get gradients: torch's DDP looks for none that do not. No thread outlives their group."""
    (tmp_path / "ranked.py").write_text(MASKED_RANKS)
    on_two_ranks(tmp_path / "ranked.py", shards, tmp_path / "run")
    assert [line["samples"] for line in told(tmp_path / "run")] == [8, 16]
    assert len(list((tmp_path / "run" / "pictures").iterdir())) == 2
    assert (tmp_path / "run" / "export" / "config.json").exists()


def test_steps_are_the_same_in_micro_batches(shards: Path, tmp_path: Path) -> None:
    """The same samples and the same mean, whatever they are made in."""
    for micro in (8, 2):
        one = recorded(shards, tmp_path / f"seen{micro}", noise=0.0, micro_batch=micro)
        pretrain(one, tmp_path / str(micro), say=quiet, accelerator="cpu")
    first, second = ([key for keys in lines(tmp_path / f"seen{micro}-1-0") for key in keys] for micro in (8, 2))
    assert first == second
    for name, value in last(tmp_path / "8")["model"].items():
        assert torch.allclose(value, last(tmp_path / "2")["model"][name], atol=1e-6)


def test_a_loss_that_is_no_number_is_skipped_counted_and_named(shards: Path, tmp_path: Path) -> None:
    one = recorded(shards, bad=("s003",), max_nonfinite=2)
    said: list[str] = []
    with pytest.raises(StageError, match=r"3 steps were skipped.*s003"):
        pretrain(one, tmp_path / "bad", say=said.append, accelerator="cpu")
    found = lines(tmp_path / "bad" / "nonfinite.jsonl")
    assert [line["keys"] for line in found] == [["s003"]] * 3
    assert sum("step skipped: s003" in line for line in said) == 3
    first = found[0]["step"]
    before, after = (tmp_path / "bad" / "checkpoints" / f"step-{n:09}.pt" for n in (first, first + 1))
    if first:
        assert same(checkpoint.load(before)["model"], checkpoint.load(after)["model"])
    assert checkpoint.load(after)["skipped"] == 1
    done = pretrain(recorded(shards, bad=("s003",), max_nonfinite=3), tmp_path / "borne", say=quiet, accelerator="cpu")
    assert done["skipped"] == 3
    assert all(torch.isfinite(of).all() for of in last(tmp_path / "borne")["model"].values())


def test_another_budget_is_refused_unless_it_is_wanted(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        pretrain(recorded(shards), out, say=killed_at(5), accelerator="cpu")
    with pytest.raises(RecipeError, match=r"budget was 72 samples, is 144 samples.*--rescale-schedule"):
        pretrain(recorded(shards, budget={"epochs": 6}), out, resume="auto", say=quiet, accelerator="cpu")
    with pytest.raises(RecipeError, match="seed was 0, is 1"):
        pretrain(recorded(shards, seed=1), out, resume="auto", say=quiet, accelerator="cpu", rescale=True)
    with pytest.raises(RecipeError, match=r"holds a run.*--resume auto"):
        pretrain(recorded(shards), out, say=quiet, accelerator="cpu")
    same_budget = recorded(shards, budget={"samples": 72}, keep=1, log_every=2)  # said in other words
    assert pretrain(same_budget, out, resume="auto", say=quiet, accelerator="cpu")["samples"] == 72
    assert len(checkpoint.there(out / "checkpoints")) == 1
    more = pretrain(
        recorded(shards, budget={"samples": 96}), out, resume="auto", say=quiet, accelerator="cpu", rescale=True
    )
    assert more["samples"] == 96


def test_a_damaged_checkpoint_is_passed_over(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain(recorded(shards), out, say=quiet, accelerator="cpu")
    *_, before, newest = checkpoint.there(out / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:1000])
    said: list[str] = []
    pretrain(recorded(shards), out, say=said.append, resume="auto", accelerator="cpu")
    assert any(f"{newest}: no checkpoint, or damaged" in line for line in said)
    assert "goes on at step 8" in "\n".join(said)
    for path in checkpoint.there(out / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(ShardError, match="none of its"):
        pretrain(recorded(shards), out, say=quiet, resume="auto", accelerator="cpu")
    with pytest.raises(ShardError, match="no such checkpoint"):
        pretrain(recorded(shards), tmp_path / "x", say=quiet, resume=tmp_path / "no.pt", accelerator="cpu")
    assert before


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"recipe": {}, "model": {"w": torch.ones(3)}}, keep=1)
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(tmp_path, 2, {"recipe": {}, "model": {}, "no": (lambda: 0)}, keep=1)
    assert [path.name for path in checkpoint.there(tmp_path)] == ["step-000000001.pt"]
    assert torch.equal(checkpoint.load(checkpoint.there(tmp_path)[0])["model"]["w"], torch.ones(3))


@given(st.floats(0, 1), st.floats(0, 0.9), st.floats(1e-6, 1), st.floats(0, 1))
def test_the_learning_rate_rises_and_falls(progress: float, warmup: float, peak: float, share: float) -> None:
    least = share * peak
    rate = learning_rate(progress, peak, warmup, least)
    if progress < warmup:
        assert rate == pytest.approx(peak * progress / warmup)
    else:
        assert rate == pytest.approx(least + (peak - least) * (1 + cos(pi * (progress - warmup) / (1 - warmup))) / 2)
    assert learning_rate(warmup, peak, warmup, least) == pytest.approx(peak)
    assert learning_rate(1.0, peak, warmup, least) == pytest.approx(least)


def test_the_log_follows_the_schedule(shards: Path, tmp_path: Path) -> None:
    one = recorded(shards, budget={"samples": 80})
    pretrain(one, tmp_path, say=quiet, accelerator="cpu")
    rates = [line["lr"] for line in told(tmp_path)]
    assert rates == [learning_rate(n * 8 / 80, one.peak_rate, 0.2) for n in range(10)]
    assert [line["samples"] for line in told(tmp_path)] == [8 * n for n in range(1, 11)]
    line = lines(tmp_path / "log.jsonl")[-1]
    assert line["progress"] == 1
    assert {"loss", "colour", "grad_norm", "epoch", "skipped"} < {*line}
    assert line["images_per_s"] > 0
    assert 0 <= line["wait_share"] <= 1
    assert list((tmp_path / "tensorboard").iterdir())


def test_biases_and_norms_do_not_decay() -> None:
    model = MAE(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, decoder_embed_dim=16, decoder_num_heads=2
    )
    groups = decayed(model.named_parameters(), 0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    still: Any = groups[1]["params"]
    moved: Any = groups[0]["params"]
    assert groups[1]["weight_decay"] == 0
    assert len(still) + len(moved) == len(names)
    assert all(names[id(p)].endswith("bias") or "norm" in names[id(p)] for p in still)
    assert not any(names[id(p)].endswith("bias") or "norm" in names[id(p)] for p in moved)


def test_the_running_mean_is_that_of_the_weights(shards: Path, tmp_path: Path) -> None:
    pretrain(recorded(shards, ema=0.5), tmp_path, say=quiet, accelerator="cpu")
    states = [checkpoint.load(path) for path in checkpoint.there(tmp_path / "checkpoints")]
    for before, after in pairwise(states):
        for name, value in after["ema"].items():
            assert torch.allclose(value, (before["ema"][name] + after["model"][name]) / 2, atol=1e-7)
    exported = torch.load(tmp_path / "export" / "weights.pt", weights_only=True)
    assert torch.equal(exported["layer.weight"], states[-1]["ema"]["layer.weight"])


def test_half_precision_keeps_the_pixels(shards: Path, tmp_path: Path) -> None:
    for precision in ("float32", "bf16"):
        one = recipe(shards, precision=precision, budget={"epochs": 1}, pictures_every=2)
        pretrain(one, tmp_path / precision, say=quiet, accelerator="cpu")
    full, half = ([line["loss"] for line in told(tmp_path / name)] for name in ("float32", "bf16"))
    assert half == pytest.approx(full, rel=0.02)
    assert half != full
    assert len(list((tmp_path / "bf16" / "pictures").iterdir())) == 2


def test_every_wrong_field_is_told_at_once(tmp_path: Path) -> None:
    wrong = {
        **RUN,
        "data": "x",
        "objective": {**MASKED, "image_px": 33, "selector": "best", "maskratio": 0.5},
        "budget": {"samples": 5, "epochs": 1},
        "optimiser": {"warmup": 2},
        "batch": 0,
        "prune": {"ratio": 1},
        "colour": "red",
    }
    (tmp_path / "wrong.yaml").write_text(json.dumps(wrong))
    with pytest.raises(RecipeError) as error:
        Pretrain.load(tmp_path / "wrong.yaml")
    said = str(error.value)
    for part in (
        "selector",
        "maskratio",
        "budget: give samples or epochs",
        "base_rate",
        "warmup",
        "batch",
        "ratio",
        "colour",
    ):
        assert part in said, part
    (tmp_path / "grid.yaml").write_text(
        json.dumps(
            {
                **RUN,
                "data": "x",
                "objective": {**MASKED, "image_px": 33},
                "optimiser": {"base_rate": 1, "rate_factor": "one"},
            }
        )
    )
    with pytest.raises(RecipeError, match="image_px: 33"):
        Pretrain.load(tmp_path / "grid.yaml")
    with pytest.raises(RecipeError, match=r"rate_factor: target_by_mask: mae has one"):
        Pretrain.load("mae_b", {"optimiser.rate_factor": "target_by_mask"})
    with pytest.raises(RecipeError, match="bundled for pretraining are mae_b"):
        Pretrain.load("nothing")


def test_a_batch_that_ranks_cannot_share_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="batch: 8: not whole micro-batches of 3 on each of 1 ranks"):
        pretrain(recorded(shards, micro_batch=3), tmp_path, say=quiet, accelerator="cpu")
    with pytest.raises(RecipeError, match="batch: 32: the set has 31 samples"):
        pretrain(recorded(shards, batch=32), tmp_path, say=quiet, accelerator="cpu")
    with pytest.raises(RecipeError, match="accelerator tpu: this machine has cpu"):
        pretrain(recorded(shards), tmp_path, say=quiet, accelerator="tpu")


def test_the_bundled_recipes_are_those_of_the_papers() -> None:
    released, paper, baseline = (Pretrain.load(name) for name in ("selectivemae_b", "selectivemae_b_paper", "mae_b"))
    assert released.peak_rate == pytest.approx(3.53e-4, rel=1e-3)
    assert baseline.peak_rate == pytest.approx(1.2e-3)
    for one in (released, paper, baseline):
        assert (one.batch, one.budget.epochs, one.optimiser.weight_decay) == (2048, 800, 0.05)
        assert (one.objective.augment.scale, one.objective.augment.flip, one.prune) == ((0.2, 1.0), 0.5, None)
    assert (released.objective.selector, paper.objective.selector) == ("random", "hog")
    assert released.objective.boundaries == (0.375, 0.75)
    assert released.optimiser.warmup * 800 == pytest.approx(30)


def test_the_command_trains_and_exports(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    (tmp_path / "recipe.yaml").write_text(
        json.dumps({**RUN, "data": "nowhere", "objective": MASKED, "optimiser": {"base_rate": 0.01}})
    )
    command = ["pretrain", str(tmp_path / "recipe.yaml"), "--data", str(shards), "--out", str(tmp_path / "run")]
    assert main([*command, "--set", "budget.epochs=1", "--accelerator", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 24
    newest = checkpoint.there(tmp_path / "run" / "checkpoints")[-1]
    assert main(["export", "encoder", str(newest), str(tmp_path / "out")]) == 0
    models = [timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True) for name in ("out", "run/export")]
    first, second = (model.state_dict() for model in models)
    assert same(dict(first), dict(second))
    assert torch.equal(first["patch_embed.proj.weight"], checkpoint.load(newest)["model"]["patch_embed.proj.weight"])
    assert main(["export", "encoder", str(newest), str(tmp_path / "x"), "--format", "jax"]) == 1
    assert "format jax: selectivemae is exported as timm" in capsys.readouterr().err
    assert main(["export", "encoder", str(tmp_path / "recipe.yaml"), str(tmp_path / "x")]) == 1
    assert "no checkpoint" in capsys.readouterr().err
