"""`datakit doctor`, `replay` and `index`: what holds a loader up, what a step had, tars of others."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tars import SMALL, keys, sample, write_tar

from datakit.cli import main
from datakit.errors import RecipeError
from datakit.stream import Loader
from datakit.stream.doctor import diagnose

STALL_S = 0.02


def stalled(function: Any) -> Any:
    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(STALL_S)
        return function(*args, **kwargs)

    return slow


@pytest.mark.parametrize("stage", ["storage", "decode", "augment", "copy"])
def test_a_stall_is_named(shards: Path, stage: str) -> None:
    loader = Loader(shards, 4, transform=SMALL, threads=4)
    if stage == "augment":
        loader = Loader(shards, 4, transform=stalled(lambda image, rng: torch.zeros(3)), threads=4)
    if stage == "storage":
        loader.tars.read = stalled(loader.tars.read)  # type: ignore[method-assign]
    if stage == "decode":
        loader.decoder.jpeg = stalled(loader.decoder.jpeg)  # type: ignore[method-assign]
    if stage == "copy":
        loader.device.put = stalled(loader.device.put)  # type: ignore[method-assign]
    next(iter(loader))
    found = diagnose(loader, 1.0)
    assert found.bottleneck == stage
    assert found.shares[stage] > 0.5
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.images_s > 0
    assert str(found).count("\n") == 4
    assert 0.5 < found.score < 1.5


def test_a_set_of_one_batch_comes_again_and_again(shards: Path) -> None:
    found = diagnose(Loader(shards, 31, transform=SMALL), 0.5)
    assert found.images_s > 0
    assert sum(found.shares.values()) == pytest.approx(1)
    with pytest.raises(RecipeError, match="not one batch"):
        diagnose(Loader(shards, 64, transform=SMALL))


def test_doctor_prints_it(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(shards), "--batch-size", "4", "--threads", "1", "--seconds", "1"]) == 0
    out = capsys.readouterr().out
    assert "bottleneck: " in out
    assert json.loads(out.splitlines()[-1])["images_s"] > 0
    assert main(["doctor", "json:dumps"]) == 1
    assert main(["doctor", "json:nothing"]) == 1


@pytest.mark.parametrize("repeats", [1, 2])
def test_replay_prints_the_keys_of_any_step(
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    repeats: int,
) -> None:
    given: Any = {"transform": SMALL, "seed": 4, "block_bytes": 60_000, "world_size": 2, "repeats": repeats}
    ranks = [iter(Loader(shards, 3, rank=r, **given)) for r in range(2)]
    loader = Loader(shards, 3, rank=0, **given)
    begun = iter(loader)
    steps = [[key for rank in ranks for key in next(rank).keys] for _ in range(3)]
    for _ in range(3):
        next(begun)
    (tmp_path / "state.json").write_text(json.dumps(loader.state_dict()))
    torch.save({"model": {}, "loader": loader.state_dict()}, tmp_path / "checkpoint.pt")
    for name, more, step in (("state.json", [], 2), ("checkpoint.pt", ["--step", "1"], 1)):
        assert main(["replay", str(tmp_path / name), str(shards), *more]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["key"] for line in lines] == steps[step]
        assert [line["position"] for line in lines] == list(range(6 * step, 6 * step + 6))
    assert main(["replay", str(tmp_path / "state.json"), str(shards), "--step", "99"]) == 1
    assert "step 99: this epoch has" in capsys.readouterr().err
    other = write_tar(tmp_path / "other.tar", [m for n in range(8) for m in sample(n)])
    assert main(["replay", str(tmp_path / "state.json"), str(other)]) == 1
    (tmp_path / "broken.json").write_text("{}")
    assert main(["replay", str(tmp_path / "broken.json"), str(shards)]) == 1


def test_index_ahead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(2):
        write_tar(tmp_path / f"{n}.tar", [m for k in range(5) for m in sample(5 * n + k)])
    assert main(["index", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"index": str(tmp_path / "index.arrow"), "tars": 2, "samples": 10}
    assert len(Loader(tmp_path, 1)) == 10
    assert len(Loader(tmp_path / "index.arrow", 1)) == 10
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert len(keys(Loader(moved, 1, transform=SMALL))) == 10
    write_tar(tmp_path.with_name("elsewhere.tar"), sample(0))
    assert main(["index", str(moved), str(tmp_path.with_name("elsewhere.tar"))]) == 1
    assert "several folders" in capsys.readouterr().err
    (moved / "manifest.json").write_text("{}")
    assert main(["index", str(moved)]) == 1


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (["a.jpg", "b.jpg", "a.cls"], "members of a do not follow one another"),
        (["a.jpg", "a.JPG"], "two members a.jpg"),
    ],
)
def test_tars_that_readers_read_differently_are_refused(tmp_path: Path, members: list[str], said: str) -> None:
    from datakit.errors import ShardError

    path = write_tar(tmp_path / "odd.tar", [(name, b"x") for name in members])
    with pytest.raises(ShardError, match=said):
        Loader([path], 1)
