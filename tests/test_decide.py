"""What goes because of what others look like: in which order, decided once, remembered, and counted."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_dedup import ALL, SLICE, chain, check_law, kept, lost, put, read
from worlds import digests, recipe_of, scene, work_done, write_recipe

import datakit
from datakit.cli import main
from datakit.crowd import LOST
from datakit.decide import funnel_of
from datakit.errors import StageError
from datakit.folders import gc
from datakit.manifest import Manifest
from datakit.recipe import Recipe

NAMES = ("first", "second")
LEAK = scene(1, 180, 160)


def recipe(**stages: Any) -> Recipe:
    return recipe_of(*NAMES, **{"exclude": ALL, "slice": SLICE, "prefer": ["source"], **stages})


def build(data: Path, out: Path, work: Path, free: bool = False, **stages: Any) -> list[str]:
    """Build; gives what it said."""
    said: list[str] = []
    datakit.build(recipe(**stages), data=data, out=out, work=work, workers=0, free=free, say=said.append)
    return said


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a leaked one and duplicates of several distances, in parts that all tests share."""
    data = tmp_path_factory.mktemp("decide")
    one, near, far = chain(200, 160)
    put(data / "first" / "a.png", one)
    put(data / "first" / "leak.png", LEAK)
    put(data / "first" / "large.png", scene(2, 400, 300))
    put(data / "second" / "same.png", one, compress_level=1)
    put(data / "second" / "near.png", near)
    put(data / "second" / "far.png", far)
    put(data / "second" / "leak.jpg", LEAK, quality=60)
    put(data / "second" / "large.jpg", scene(2, 400, 300), quality=80)
    put(data / "second" / "own.png", scene(3, 180, 160))
    put(data / "evaluation" / "x.png", LEAK)
    sign(data / "evaluation", data / "x.heldout")
    return data


def sign(folder: Path, path: Path) -> None:
    # the command, as nobody else makes lists
    grid = recipe_of("a", exclude={"rules": []}, slice=SLICE)
    made = write_recipe(path.with_suffix(".yaml"), grid)
    assert main(["protect", "sign", str(folder), "-o", str(path), "--recipe", str(made), "--workers", "0"]) == 0


@pytest.fixture(scope="module")
def spec(world: Path) -> dict[str, Any]:
    return {"dedup": {}, "protect": {"lists": [str(world / "x.heldout")]}}


@pytest.fixture(scope="module")
def out(world: Path, spec: dict[str, Any]) -> Path:
    build(world, world / "out", world / "work", **spec)
    return world / "out"


# counts


def test_stages_come_in_their_order_and_their_counts_add_up(out: Path) -> None:
    counts = Manifest.load(out).counts
    stages = list(dict.fromkeys(c.stage for c in counts))
    assert stages[-4:] == ["measured", "protect", "dedup", "subset"]
    by = {(c.stage, c.source): c for c in counts}
    for c in counts:
        assert c.came == c.left + sum(c.dropped.values()), c
    for before, after in zip(stages[-4:], stages[-3:], strict=False):
        for name in NAMES:
            assert by[before, name].made == by[after, name].came
    assert by["protect", "first"].dropped == {"protected": 1}
    assert by["protect", "second"].dropped == {"protected": 1}
    assert by["dedup", "first"].dropped == {}
    assert by["dedup", "second"].dropped == {"duplicate": 2, "duplicate_scene": 4}


def test_dropped_records_carry_the_stage_and_are_those_that_were_counted(out: Path) -> None:
    counted = {(c.stage, c.source, reason): n for c in Manifest.load(out).counts for reason, n in c.dropped.items()}
    rows = Counter((row["stage"], row["source"], row["dropped"]) for row in read(out, "dropped"))
    assert rows == counted
    assert set(lost(out, "protect")) == {"first/leak.png", "second/leak.jpg"}
    assert {"second/same.png", "second/near.png"} < set(lost(out))
    assert "second/far.png" in kept(out)
    assert check_law(out) == 6


def test_nobody_is_kept_and_dropped(out: Path) -> None:
    keys = [row["key"] for row in read(out) + read(out, "dropped")]
    assert len(keys) == len(set(keys))
    assert len(read(out)) == Manifest.load(out).samples


def test_kept_samples_have_no_columns_of_dropped_ones(out: Path) -> None:
    columns = set(pq.read_schema(out / "samples.parquet").names)
    assert not columns & {"dropped", "lost_to", "distance_bits", "turned", "staged"}
    assert {"lost_to", "distance_bits", "turned", "stage"} <= set(pq.read_schema(out / "dropped.parquet").names)


def test_pictures_of_what_went_show_it(out: Path) -> None:
    shown = Counter((row["stage"], row["dropped"]) for row in read(out, "pictures"))
    assert shown == {("protect", "protected"): 2, ("dedup", "duplicate"): 2, ("dedup", "duplicate_scene"): 4}


def test_a_funnel_counts_by_source_and_reason() -> None:
    rows = [("a", "x"), ("a", "x"), ("a", "y"), ("b", "y")]
    blank = {"part": 0, "row": 0, "key": "", "detail": "", "lost_to": "", "distance_bits": None, "turned": ""}
    table = LOST.empty_table().from_pylist([{**blank, "source": s, "dropped": d} for s, d in rows], schema=LOST)
    funnel = funnel_of(Counter(a=5, b=1, c=2), table)
    assert (funnel.came, funnel.made) == (Counter(a=5, b=1, c=2), Counter(a=2, c=2))
    assert funnel.dropped == {"a": {"x": 2, "y": 1}, "b": {"y": 1}}
    funnel.check("dedup")
    assert funnel_of(Counter(a=5), LOST.empty_table()).dropped == {}


# the order of stages


def test_what_is_protected_is_nobodys_star(world: Path, tmp_path: Path) -> None:
    """A picture like a kept one, which is dropped as a leak, is not lost with it: it is not like the leak."""
    one, near, far = chain(200, 160)
    put(tmp_path / "held" / "x.png", one)
    sign(tmp_path / "held", tmp_path / "x.heldout")
    put(tmp_path / "data" / "first" / "near.png", near)
    put(tmp_path / "data" / "second" / "far.png", far)
    lists = {"lists": [str(tmp_path / "x.heldout")]}
    build(tmp_path / "data", tmp_path / "plain", tmp_path / "work", dedup={})
    assert set(lost(tmp_path / "plain")) == {"second/far.png"}
    build(tmp_path / "data", tmp_path / "out", tmp_path / "work", dedup={}, protect=lists)
    assert set(lost(tmp_path / "out", "protect")) == {"first/near.png"}
    assert kept(tmp_path / "out") == {"second/far.png"}
    assert not lost(tmp_path / "out")


def test_what_earlier_rules_dropped_takes_no_part(world: Path, spec: dict[str, Any], tmp_path: Path) -> None:
    """The star goes for its luma: its duplicate stays."""
    luma = {name: row["luma_mean"] for row in read(world / "out") for name in (row["name"],)}
    assert luma["a.png"] > 0
    put(tmp_path / "data" / "first" / "dark.png", np.asarray(scene(5, 200, 160) * 0.94, np.uint8))
    put(tmp_path / "data" / "second" / "light.png", scene(5, 200, 160))
    build(tmp_path / "data", tmp_path / "all", tmp_path / "work", dedup={})
    assert kept(tmp_path / "all") == {"first/dark.png"}
    means = [row["luma_mean"] for row in (*read(tmp_path / "all"), *read(tmp_path / "all", "dropped"))]
    rules = {"rules": [{"rule": "dark", "luma_mean": sum(means) / 2}]}
    build(tmp_path / "data", tmp_path / "out", tmp_path / "work", dedup={}, exclude=rules)
    assert kept(tmp_path / "out") == {"second/light.png"}


def test_subsets_are_taken_from_what_stays(world: Path, out: Path, spec: dict[str, Any], tmp_path: Path) -> None:
    build(world, tmp_path / "out", world / "work", **spec, subset={"count": 3})
    assert len(kept(tmp_path / "out")) == 3
    assert kept(tmp_path / "out") < kept(out)
    assert set(lost(tmp_path / "out", "subset")) == kept(out) - kept(tmp_path / "out")


# decided once


def decisions(work: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((work / "decided").iterdir())}


def test_a_second_run_decides_nothing(world: Path, out: Path, spec: dict[str, Any]) -> None:
    before, there = decisions(world / "work"), digests(out)
    said = build(world, out, world / "work", **spec)
    assert decisions(world / "work") == before
    assert set(work_done(out)) == {"parts_there"}
    assert digests(out) == there
    assert not [line for line in said if line.startswith(("dedup: comparing", "protect: comparing"))]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"dedup": {"radius_bits": 2}}, {"dedup"}),
        ({"dedup": {"orientations": True}}, {"dedup"}),
        ({"protect": {"radius_bits": 2}}, {"protect", "dedup"}),
        ({"prefer": ["larger"]}, {"protect", "dedup"}),
        ({"subset": {"count": 3}}, set()),
        ({"shards": {"max_samples": 3}}, set()),
    ],
)
def test_only_what_changed_and_what_follows_is_decided_again(
    world: Path, out: Path, spec: dict[str, Any], tmp_path: Path, change: dict[str, Any], again: set[str]
) -> None:
    """In a copy of the work folder, as others leave decisions there."""
    shutil.copytree(world / "work", tmp_path / "work")
    for path in (tmp_path / "work" / "decided").iterdir():
        path.unlink()
    build(world, tmp_path / "out", tmp_path / "work", **spec)
    before = decisions(tmp_path / "work")
    changed = {**spec, **{k: {**spec.get(k, {}), **v} if isinstance(v, dict) else v for k, v in change.items()}}
    build(world, tmp_path / "out", tmp_path / "work", **changed)
    new = set(decisions(tmp_path / "work")) - set(before)
    assert {name.partition("-")[0] for name in new} == again
    assert not {"images_opened", "pictures_opened", "headers_read", "tiles_encoded"} & set(work_done(tmp_path / "out"))


def test_another_threshold_opens_no_image_and_gives_what_a_new_build_gives(
    world: Path, out: Path, spec: dict[str, Any], tmp_path: Path
) -> None:
    wide = {**spec, "dedup": {"radius_bits": 6, "thumbnail_levels": 12, "orientations": True}}
    build(world, tmp_path / "out", tmp_path / "work", **spec)
    assert digests(tmp_path / "out") == digests(out)
    build(world, tmp_path / "out", tmp_path / "work", **wide)
    assert not {"images_opened", "pictures_opened"} & set(work_done(tmp_path / "out"))
    build(world, tmp_path / "fresh", tmp_path / "other", **wide)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")
    assert digests(tmp_path / "out")["dropped.parquet"] != digests(out)["dropped.parquet"]


def test_without_dedup_and_protection_all_are_back(
    world: Path, out: Path, spec: dict[str, Any], tmp_path: Path
) -> None:
    work = world / "work"
    build(world, tmp_path / "out", work, **spec)
    build(world, tmp_path / "out", work, **{**spec, "dedup": {"action": "report"}})
    assert {"dedup.json", "protect.json", "duplicates.parquet"} <= set(Manifest.load(tmp_path / "out").files)
    build(world, tmp_path / "out", work)
    assert "images_opened" not in work_done(tmp_path / "out")
    assert len(kept(tmp_path / "out")) == len(kept(out)) + 2 + 6
    assert not (tmp_path / "out" / "dedup.json").exists()
    assert not (tmp_path / "out" / "duplicates.parquet").exists()
    assert "none were looked for" in (tmp_path / "out" / "README.md").read_text()
    build(world, tmp_path / "fresh", tmp_path / "other")
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_a_list_whose_bytes_change_is_compared_again(world: Path, spec: dict[str, Any], tmp_path: Path) -> None:
    """By what is in it, not by its name or place."""
    path, work = tmp_path / "elsewhere" / "y.heldout", tmp_path / "work"
    path.parent.mkdir()
    shutil.copy(world / "x.heldout", path)
    build(world, tmp_path / "out", work, **spec)
    before = decisions(work)
    moved = {**spec, "protect": {"lists": [str(path)]}}
    build(world, tmp_path / "out", work, **moved)
    assert decisions(work) == before
    put(tmp_path / "held" / "own.png", scene(3, 180, 160))
    sign(tmp_path / "held", path)
    build(world, tmp_path / "out", work, **moved)
    assert set(lost(tmp_path / "out", "protect")) == {"second/own.png"}


def test_a_decision_that_was_cut_short_is_made_again(
    world: Path, out: Path, spec: dict[str, Any], tmp_path: Path
) -> None:
    """Killed between the two files of a stage, or before both."""
    build(world, tmp_path / "out", tmp_path / "work", **spec)
    for gone in ("dedup-", "protect-"):
        for path in (tmp_path / "work" / "decided").glob(f"{gone}*.parquet"):
            if not path.name.endswith(".changes.parquet"):
                path.unlink()
        build(world, tmp_path / "out", tmp_path / "work", **spec)
        assert digests(tmp_path / "out") == digests(out)


def test_gc_frees_decisions_that_no_build_uses_and_keeps_the_others(
    world: Path, spec: dict[str, Any], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    build(world, tmp_path / "out", work, **spec)
    assert gc(work) == {"files": 0, "bytes": 0}
    build(world, tmp_path / "out", work, **{**spec, "dedup": {"radius_bits": 1}})
    there = decisions(work)
    assert gc(work)["files"] >= 2
    left = decisions(work)
    assert len(left) == len(there) - 3  # what goes, what is said, what changes
    said = build(world, tmp_path / "out", work, **{**spec, "dedup": {"radius_bits": 1}})
    assert decisions(work) == left
    assert not [line for line in said if line.startswith("dedup")]


def test_tiles_that_were_freed_are_cut_again_only_where_they_come_back(
    world: Path, out: Path, spec: dict[str, Any], tmp_path: Path
) -> None:
    build(world, tmp_path / "out", tmp_path / "work", free=True, **spec)
    assert digests(tmp_path / "out") == digests(out)
    build(world, tmp_path / "out", tmp_path / "work", **{**spec, "dedup": None})
    build(world, tmp_path / "fresh", world / "work", **{**spec, "dedup": None})
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


# the ends


def test_a_single_image_has_no_duplicate(tmp_path: Path) -> None:
    put(tmp_path / "data" / "first" / "a.png", scene(5, 150, 150))
    put(tmp_path / "data" / "second" / "b.txt.png", Image.new("RGB", (8, 8)))
    rules = {"rules": [{"rule": "smaller_than", "side_px": 64}]}
    build(tmp_path / "data", tmp_path / "out", tmp_path / "work", dedup={}, exclude=rules)
    assert kept(tmp_path / "out") == {"first/a.png"}
    told = json.loads((tmp_path / "out" / "dedup.json").read_text())
    assert told["images"]["random_matches_expected"] == 0
    assert told["images"]["largest"] == []


def test_if_all_is_protected_the_build_says_why_nothing_is_left(tmp_path: Path) -> None:
    put(tmp_path / "data" / "first" / "a.png", scene(5, 150, 150))
    put(tmp_path / "data" / "second" / "b.jpg", scene(5, 150, 150), quality=80)
    sign(tmp_path / "data", tmp_path / "x.heldout")
    lists = {"lists": [str(tmp_path / "x.heldout")]}
    with pytest.raises(StageError, match=r"nothing is left: protected \(protect\) 2"):
        build(tmp_path / "data", tmp_path / "out", tmp_path / "work", protect=lists, dedup={})


def test_the_command_changes_thresholds(world: Path, out: Path, spec: dict[str, Any], tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "world.yaml", recipe())
    command = ["build", str(path), "--data", str(world), "--work", str(world / "work"), "--workers", "0"]
    protect = ["--protect", str(world / "x.heldout")]
    assert main([*command, "--out", str(tmp_path / "out"), *protect, "--set", "dedup={}"]) == 0
    assert digests(tmp_path / "out") == digests(out)
    assert main([*command, "--out", str(tmp_path / "out"), *protect, "--set", "dedup.radius_bits=9"]) == 1
