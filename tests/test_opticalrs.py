"""The main job: the embedded collection by the recipe that real data runs, scored against what was planted."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from worlds import digests, work_done

import datakit
from datakit.manifest import Manifest
from datakit.recipe import Recipe
from datakit.sources.synth import check


@pytest.fixture(scope="module")
def out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("opticalrs") / "out"
    datakit.build("recipes/opticalrs.yaml", data=folder, out=out, workers=2, allow_missing=True)
    return out


def test_everything_planted_went_for_its_own_reason_and_nothing_else(out: Path, folder: Path) -> None:
    assert check(out, folder) == []


def test_collections_that_are_not_there_are_said(out: Path) -> None:
    manifest = Manifest.load(out)
    assert manifest.missing == ("openearthmap", "xview")
    card = (out / "README.md").read_text()
    assert "openearthmap, xview" in card
    assert "not the released set" in card


def test_one_process_gives_the_same_bytes(out: Path, folder: Path, tmp_path: Path) -> None:
    datakit.build("recipes/opticalrs.yaml", data=folder, out=tmp_path / "out", workers=1, allow_missing=True)
    assert digests(tmp_path / "out") == digests(out)


def test_the_light_version_lies_within_and_opens_no_image(out: Path, folder: Path, tmp_path: Path) -> None:
    light = Recipe.load("recipes/opticalrs-4m.yaml", {"subset.count": 100})
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
        ({"exclude.rules.8.min_share": 0.99}, "dropped as valid_share"),
        ({"exclude.rules.9": {"rule": "dark", "luma_mean": 110}}, "dropped as dark"),
    ],
)
def test_the_score_sees_what_a_wrong_recipe_does(
    out: Path, folder: Path, tmp_path: Path, changes: dict[str, object], found: str
) -> None:
    recipe = Recipe.load("recipes/opticalrs.yaml", changes)
    work = out.with_name("out.work")
    datakit.build(recipe, data=folder, out=tmp_path / "wrong", work=work, workers=0, allow_missing=True)
    assert any(found in line for line in check(tmp_path / "wrong", folder))
