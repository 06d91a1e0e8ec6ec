"""The main job: the embedded collection by the recipe that real data runs, scored against what was planted."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from worlds import digests, work_done

import datakit
from datakit.cli import main
from datakit.manifest import Manifest
from datakit.recipe import Recipe
from datakit.sources.synth import check, not_covered


@pytest.fixture(scope="module")
def out(folder: Path, held: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("opticalrs") / "out"
    datakit.build(recipe(held), data=folder, out=out, workers=2, allow_missing=True)
    return out


@pytest.fixture(scope="module")
def held(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The held-out list of the make-believe evaluation set."""
    path = tmp_path_factory.mktemp("held") / "heldout.parquet"
    assert main(["protect", "sign", str(folder / "heldout"), "-o", str(path), "--workers", "0"]) == 0
    return path


def recipe(held: Path, changes: dict[str, object] | None = None) -> Recipe:
    return Recipe.load("recipes/opticalrs.yaml", changes, protect=[held])


def test_everything_planted_went_for_its_own_reason_and_nothing_else(out: Path, folder: Path) -> None:
    assert check(out, folder) == []


def test_all_copies_and_leaks_went_and_each_says_what_it_lost_to(out: Path, folder: Path) -> None:
    truth = json.loads((folder / "truth.json").read_text())["files"]
    dropped = pq.read_table(out / "dropped.parquet").to_pylist()
    copies = sum("expect_dedup" in entry for entry in truth)
    leaks = [entry for entry in truth if "expect_protect" in entry]
    lost = {(row["source"], row["name"]): row for row in dropped if row["stage"] in ("dedup", "protect")}
    assert len(lost) == copies + len(leaks)
    assert all(row["lost_to"] and row["distance_bits"] <= 4 for row in lost.values())
    for entry in leaks:
        row = lost[entry["source"], entry["name"]]
        assert row["lost_to"] == f"heldout/{Path(entry['leak_of']).name}"
        assert (row["turned"] != "") == entry["how"].startswith("turned")


def test_parts_of_held_out_images_were_looked_for_and_none_is_told_of_what_shares_nothing(out: Path) -> None:
    told = json.loads((out / "protect.json").read_text())
    assert told["parts"]["tiles"] > 400
    assert not [match for match in told["matches"] if match["level"] == "part"]


def test_crops_are_not_covered_and_that_is_said(out: Path, folder: Path) -> None:
    assert len(not_covered(out, folder)) == 5
    assert any("crops" in words for words in json.loads((out / "protect.json").read_text())["cannot_see"])
    assert "crops and shifts" in (out / "README.md").read_text()


def test_without_a_list_leaks_stay_and_the_certificate_says_that_nothing_was_checked(
    out: Path, folder: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    options = {"work": out.with_name("out.work"), "workers": 0, "allow_missing": True, "say": said.append}
    datakit.build("recipes/opticalrs.yaml", data=folder, out=tmp_path / "open", **options)
    assert "images_opened" not in work_done(tmp_path / "open")
    assert any(line.startswith("warning: no evaluation set was checked") for line in said)
    assert json.loads((tmp_path / "open" / "protect.json").read_text())["statement"] == "no evaluation set was checked"
    assert check(tmp_path / "open", folder) == []
    assert not [
        row for row in pq.read_table(tmp_path / "open" / "dropped.parquet").to_pylist() if row["stage"] == "protect"
    ]


def test_duplicates_may_be_counted_only(out: Path, held: Path, folder: Path, tmp_path: Path) -> None:
    work = out.with_name("out.work")
    counting = recipe(held, {"dedup.action": "report"})
    datakit.build(counting, data=folder, out=tmp_path / "all", work=work, workers=0, allow_missing=True)
    assert "images_opened" not in work_done(tmp_path / "all")
    would = pq.read_table(tmp_path / "all" / "duplicates.parquet").column("key").to_pylist()
    went = [row["key"] for row in pq.read_table(out / "dropped.parquet").to_pylist() if row["stage"] == "dedup"]
    assert sorted(would) == sorted(went)
    assert set(would) <= set(pq.read_table(tmp_path / "all" / "samples.parquet").column("key").to_pylist())


def test_collections_that_are_not_there_are_said(out: Path) -> None:
    manifest = Manifest.load(out)
    assert {"openearthmap", "xview"} < set(manifest.missing)
    card = (out / "README.md").read_text()
    assert all(name in card for name in manifest.missing)
    assert "not the released set" in card


def test_one_process_gives_the_same_bytes(out: Path, held: Path, folder: Path, tmp_path: Path) -> None:
    datakit.build(recipe(held), data=folder, out=tmp_path / "out", workers=1, allow_missing=True)
    assert digests(tmp_path / "out") == digests(out)


def test_the_light_version_lies_within_and_opens_no_image(out: Path, held: Path, folder: Path, tmp_path: Path) -> None:
    light = Recipe.load("recipes/opticalrs-4m.yaml", {"subset.count": 100}, protect=[held])
    work = out.with_name("out.work")
    datakit.build(light, data=folder, out=tmp_path / "light", work=work, workers=0, allow_missing=True)
    assert "images_opened" not in work_done(tmp_path / "light")
    keys = [set(pq.read_table(o / "samples.parquet").column("key").to_pylist()) for o in (tmp_path / "light", out)]
    assert len(keys[0]) == 100
    assert keys[0] < keys[1]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"exclude.rules": [{"rule": "modality", "allow": ["optical"]}]}, "should go as"),
        ({"exclude.rules.7.min_share": 0.99}, "dropped as valid_share"),
        ({"exclude.rules.8": {"rule": "dark", "luma_mean": 110}}, "dropped as dark"),
        ({"dedup.radius_bits": 0}, "copies of one another, of which one is kept, not 2"),
        ({"dedup.radius_bits": 6, "dedup.thumbnail_levels": 0}, "copies of one another, of which one is kept, not 2"),
        ({"protect.thumbnail_levels": 0}, "should go as protected"),
    ],
)
def test_the_score_sees_what_a_wrong_recipe_does(
    out: Path, held: Path, folder: Path, tmp_path: Path, changes: dict[str, object], found: str
) -> None:
    work = out.with_name("out.work")
    datakit.build(recipe(held, changes), data=folder, out=tmp_path / "wrong", work=work, workers=0, allow_missing=True)
    assert any(found in line for line in check(tmp_path / "wrong", folder))
