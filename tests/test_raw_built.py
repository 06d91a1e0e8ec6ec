"""RAW distillation on a build of AODRaw itself: its pairs of RAW and JPEG, and the test images that it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

import datakit
from datakit.errors import RecipeError
from datakit.pretrain.recipe import Pretrain
from datakit.pretrain.train import pretrain
from datakit.recipe import Recipe
from datakit.sources import synth_raw

SMALL = {"model": "convnext_atto", "arguments": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}}
VIEW = {"planes": "demosaiced", "gamma": 2.2}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """RAW and JPEG in slices: with the test images, and without."""
    top = tmp_path_factory.mktemp("aodraw")
    synth_raw.make(top / "photos", seed=1, size=(216, 152), images=12)
    plain = {"domain": "both", "slice.published.size_px": 96, "slice.published.gap_px": 24}
    for name, more in (("all", {}), ("train", {"include_evaluation": []})):
        datakit.build(Recipe.load("aodraw", {**plain, **more}), data=top / "photos", out=top / name, workers=0)
    return top / "all", top / "train"


def run(data: Path, weights: Path) -> Pretrain:
    learnt = {"kind": "raw_distill", "student": SMALL, "teacher": {**SMALL, "weights": str(weights)}, "view": VIEW}
    learnt |= {"pairs": True, "labels": 0, "image_px": 64, "classes": 0}
    how = {"batch": 8, "budget": {"samples": 16}, "pictures_every": 1, "optimiser": {"base_rate": 1e-3}}
    return Pretrain.model_validate({"name": "run", "data": str(data), "objective": learnt, **how})


def test_pairs_of_a_build_are_learnt_from_and_its_test_images_are_not(
    built: tuple[Path, Path], tmp_path: Path, one_thread: None
) -> None:
    """By samples.parquet; by the JSON of each sample where there are tars alone."""
    weights = tmp_path / "teacher.pt"
    torch.save(timm.create_model(SMALL["model"], **SMALL["arguments"]).state_dict(), weights)  # type: ignore[arg-type]
    everything, train = built
    for data in (everything, next(everything.glob("*test*.tar"))):
        with pytest.raises(RecipeError, match="samples are of aodraw:test"):
            pretrain(run(data, weights), tmp_path / "refused", say=lambda _: None, accelerator="cpu")
    told = pretrain(run(train, weights), tmp_path / "run", say=lambda _: None, accelerator="cpu")
    assert told["samples"] == 16
    assert (tmp_path / "run" / "export" / "config.json").exists()
    assert len(list((tmp_path / "run" / "pictures").iterdir())) == 2
