"""The command: results on stdout, progress and errors on stderr, a mistake is a line and no traceback."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import datakit
from datakit.cli import main
from datakit.cli import size as size_of
from datakit.manifest import Manifest

Out = pytest.CaptureFixture[str]
COLLECTION: dict[str, Any] = {
    "name": "air",
    "title": "Air",
    "homepage": "https://example.org/air",
    "licence": "CC0-1.0",
    "modality": "optical",
    "bands": ["red", "green", "blue"],
    "layout": {"images": ["*.png"]},
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a recipe and three images, one of them flat."""
    data = tmp_path / "data" / "air"
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(2):
        Image.fromarray(rng.integers(0, 255, (96, 160, 3), np.uint8)).save(data / f"{n}.png")
    Image.new("RGB", (96, 96)).save(data / "flat.png")
    plain = {
        "name": "small",
        "title": "A small one",
        "sources": [{"name": "air", "path": "air", "collection": COLLECTION}],
        "exclude": {"rules": [{"rule": "flat", "entropy_bits": 0.5}]},
        "slice": {"grid": {"size_px": 96}},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(plain))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(capsys: Out, *argv: str) -> str:
    """What stderr says of a command that cannot be done: stdout has no result, and the first line is the message."""
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err[err.index("datakit: ") :].removeprefix("datakit: ").strip()


def refused(capsys: Out, *argv: str) -> str:
    """What stderr says of a command that is spelled wrong."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    return err.splitlines()[-1]


def test_build(world: Path, capsys: Out) -> None:
    command = ["build", "small.yaml", "--data", "data", "--workers", "0"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    *table, last = out.splitlines()
    result = json.loads(last)
    manifest = Manifest.load(world / "small")
    assert result["samples"] == manifest.samples == 4
    assert (result["name"], result["out"], result["shards"], result["missing"]) == ("small", "small", 1, [])
    assert result["bytes"] == (world / "small" / "small-train-000000.tar").stat().st_size
    assert result["work_done"]["images_opened"] == 3
    assert any(line.startswith("measured") and line.endswith("flat 1") for line in table)
    assert any(line.startswith("air") and line.endswith("CC0-1.0") for line in table)
    assert "list: air: 3 files" in err
    assert "cut: 1 of 1 parts, 3 images opened" in err
    assert not [line for line in table if "parts" in line]

    assert main(command) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "images_opened" not in again["work_done"]
    assert {**again, "work_done": {}, "seconds": 0} == {**result, "work_done": {}, "seconds": 0}


def test_build_takes_changes_and_folders(world: Path, capsys: Out) -> None:
    options = ["--out", "o", "--work", "w", "--set", "subset.count=1", "--set", "name=other", "--free"]
    assert main(["build", "small.yaml", "--data", "data", "--workers", "0", *options]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["samples"] == 1
    assert (world / "o" / "other-train-000000.tar").exists()
    assert not any(p.stat().st_size for p in (world / "w").rglob("*.staged"))


def test_check(world: Path, capsys: Out) -> None:
    before = sorted(world.rglob("*"))
    assert main(["check", "small.yaml", "--data", "data", "--most", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("small: A small one\n")
    assert "2 of 3" in out
    assert err == "looking at air\nreading headers of air\n"
    assert sorted(world.rglob("*")) == before


def test_check_prints_the_plan_before_it_fails(world: Path, capsys: Out) -> None:
    (world / "other").mkdir()
    assert main(["check", "small.yaml", "--data", "other"]) == 1
    out, err = capsys.readouterr()
    assert f"  air: {Path('other/air')}  https://example.org/air" in out
    assert err == "datakit: not on disk: air. Fetch them, correct --data, or leave them out with --allow-missing\n"


def test_status(world: Path, capsys: Out) -> None:
    assert main(["build", "small.yaml", "--data", "data", "--workers", "0", "--memory", "2GB"]) == 0
    capsys.readouterr()
    assert main(["status", "small.work"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert f"small -> {world / 'small'}: complete" in lines
    told = json.loads(last)
    assert told[0]["steps"]["cut"] == [1, 1]
    assert told[0]["steps"]["shards"] == [1, 1]
    assert told[0]["dropped"] == {"measured": {"flat": 1}}
    assert fails(capsys, "status", "data").startswith("data: not a work folder of datakit")


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 16 * 10**9), ("1.5 gib", 3 * 2**29), ("700", 700), ("2MB", 2 * 10**6)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_of(text) == size
    with pytest.raises(argparse.ArgumentTypeError, match="16GB or 500MB"):
        size_of(text + "x")


def test_gc(world: Path, capsys: Out) -> None:
    build = ["build", "small.yaml", "--data", "data", "--workers", "0"]
    assert main(build) == 0
    capsys.readouterr()
    assert main(["gc", "small.work"]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": 0, "bytes": 0}
    assert main([*build, "--set", "slice.grid.size_px=64"]) == 0
    capsys.readouterr()
    assert main(["gc", "small.work"]) == 0
    freed = json.loads(capsys.readouterr().out)
    assert freed["files"] > 0
    assert freed["bytes"] > 0
    assert main([*build, "--set", "slice.grid.size_px=64"]) == 0
    assert "parts_made" not in json.loads(capsys.readouterr().out.splitlines()[-1])["work_done"]


@pytest.mark.parametrize("verb", ["build", "check"])
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["nothing"],
            "nothing: no such file, and no bundled recipe has this name; bundled are aodraw, aodraw_published, ",
        ),
        (["small.yaml", "--data", "nowhere"], "nowhere: no such folder. Give with --data the one"),
        (["small.yaml", "--data", "data", "--set", "a"], "--set a: write key=value, as in slice.grid.size_px=256"),
        (
            ["small.yaml", "--data", "data", "--set", "cut.fast=1"],
            "small.yaml: 1 wrong\n  cut.fast: no such key; allowed",
        ),
    ],
)
def test_mistakes_are_told(world: Path, capsys: Out, verb: str, argv: list[str], message: str) -> None:
    assert fails(capsys, verb, *argv).startswith(message)
    assert not (world / "small").exists()


def test_missing_collections_stop_a_build(world: Path, capsys: Out) -> None:
    (world / "other").mkdir()
    message = fails(capsys, "build", "small.yaml", "--data", "other")
    assert "air: other/air  (https://example.org/air)" in message
    assert "--allow-missing" in message
    assert fails(capsys, "build", "small.yaml", "--data", "other", "--allow-missing")


def test_gc_of_what_is_no_work_folder(world: Path, capsys: Out) -> None:
    for name in ("data", "nowhere"):
        assert fails(capsys, "gc", name) == f"{name}: not a work folder of datakit"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["check", "one"], "datakit synth check needs OUT and DIR"),
        (["check", "one", "two", "three"], "datakit synth check needs OUT and DIR"),
        (["check", "nowhere", "data"], "nowhere: no such file. A build that did not finish has none"),
        (["opticalrs", "one", "two"], "datakit synth KIND needs one DIR"),
        (["marsrs", "one"], "no embedded collection 'marsrs'; there are: opticalrs, imagenet_s"),
    ],
)
def test_synth_with_wrong_arguments(world: Path, capsys: Out, argv: list[str], message: str) -> None:
    assert fails(capsys, "synth", *argv).startswith(message)
    assert not (world / "one").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bild"], "invalid choice: 'bild'"),
        (["build"], "the following arguments are required: recipe"),
        (["build", "a", "--workers", "-1"], "argument --workers: -1: give a whole number of at least 0"),
        (["build", "a", "--workers", "two"], "argument --workers: two: give a whole number of at least 0"),
        (["check", "a", "--most", "0"], "argument --most: 0: give a whole number of at least 1"),
        (["synth", "opticalrs"], "the following arguments are required: dirs"),
        (["synth", "opticalrs", "d", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
    ],
)
def test_commands_that_are_spelled_wrong(capsys: Out, argv: list[str], message: str) -> None:
    assert message in refused(capsys, *argv)


def test_version(capsys: Out) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"datakit {datakit.__version__}\n"


def test_without_arguments_help_is_shown(capsys: Out) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: datakit")
    assert all(verb in out for verb in ("build", "check", "synth", "gc"))


def test_the_installed_command(world: Path) -> None:
    command = Path(sys.executable).with_name("datakit")
    done = subprocess.run([command, "check", "small.yaml", "--data", "data"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "looking at air\nreading headers of air\n")
    assert "disk, estimated" in done.stdout
    shell = f"set -o pipefail; '{command}' check small.yaml --data data | head -1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.stdout == "small: A small one\n"
    assert "Traceback" not in done.stderr
