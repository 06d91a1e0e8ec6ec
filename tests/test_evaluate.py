"""Files of predictions against shards and folders; distance matching; what the test server takes."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import datakit
from datakit import ids, kinds
from datakit.cli import main
from datakit.errors import RecipeError, SourceError
from datakit.evaluate.distance import Bank, masked_means
from datakit.evaluate.imagenet_s import Metrics, evaluate, truth_of, validate, write_prediction
from datakit.sources import synth

Out = pytest.CaptureFixture[str]
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The look-alike in `data`, its variant 50 in `out`, the published masks unpacked in `masks`."""
    folder = tmp_path_factory.mktemp("world")
    synth.make("imagenet_s", folder / "data")
    recipe = kinds.load("recipes/imagenet_s.yaml", {"variant": 50})
    datakit.build(recipe, data=folder / "data", out=folder / "out", workers=0)
    (archive,) = (folder / "data" / "annotations").glob("ImageNetS50-*.zip")
    with zipfile.ZipFile(archive) as masks:
        masks.extractall(folder / "masks")
    return folder


def true_masks(world: Path, split: str = "validation") -> dict[str, np.ndarray]:
    folder = world / "masks" / "ImageNetS50" / f"{split}-segmentation"
    return {f"{p.parent.name}/{p.stem}": ids.decode(p.read_bytes()) for p in sorted(folder.rglob("*.png"))}


def guesses(world: Path) -> dict[str, np.ndarray]:
    """The true masks moved a little, without their ignored rims, with some classes mistaken."""
    made = {}
    for n, (name, mask) in enumerate(true_masks(world).items()):
        moved = np.roll(np.where(mask == 1000, mask.max(initial=0, where=mask < 1000), mask), 3, 1)
        made[name] = np.where(moved > 0, 3, 0) if n == 2 else moved
    return made


def write_all(masks: dict[str, np.ndarray], folder: Path, suffix: str = "png") -> Path:
    for name, mask in masks.items():
        path = folder / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == "npy":
            np.save(path, mask.astype(np.int32))
        else:
            write_prediction(mask, path)
    return folder


def expected(world: Path, guessed: dict[str, np.ndarray]) -> dict[str, Any]:
    metrics = Metrics(50)
    for name, mask in true_masks(world).items():
        metrics.update(guessed[name], mask)
    return metrics.compute()


@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_shards_and_folders_give_the_same_scores(world: Path, tmp_path: Path, suffix: str, capsys: Out) -> None:
    guessed = guesses(world)
    pred = write_all(guessed, tmp_path / "pred", suffix)
    wanted = json.loads(json.dumps(expected(world, guessed)).replace("NaN", "null"))
    for gt in ("out", "masks/ImageNetS50", "masks/ImageNetS50/validation-segmentation"):
        command = ["evaluate", "imagenet-s", "--pred", str(pred), "--gt", str(world / gt), "--variant", "50"]
        assert main(command) == 0
        printed = capsys.readouterr().out.splitlines()
        scores = json.loads(printed[-1])
        assert {name: scores[name] for name in wanted} == wanted
        assert scores["images"] == 8
        assert printed[0].split() == [*wanted][:-1]
        assert printed[2].split()[1] == f"{wanted['mIoU']:.2f}"
    assert 1 < wanted["mIoU"] < 100 * 4 / 51


def test_unnamed_classes_are_matched(world: Path, tmp_path: Path) -> None:
    """Predictions under other names score as under their own; those of no class stay."""
    guessed = guesses(world)
    names = np.arange(65_536)
    names[1:51] = 1 + RNG.permutation(50)
    best = evaluate(write_all(guessed, tmp_path / "own"), world / "out", "50")
    pred = write_all({name: names[mask] for name, mask in guessed.items()}, tmp_path / "other")
    assert evaluate(pred, world / "out", "50")["mIoU"] < best["mIoU"] / 2
    scores = evaluate(pred, world / "out", "50", matched=True)
    table = scores.pop("match")
    assert all(table[str(names[number])] == number for number in (1, 2, 3))
    assert json.dumps(scores) == json.dumps(best)


def test_missing_and_extra_files_are_listed(world: Path, tmp_path: Path, capsys: Out) -> None:
    pred = write_all(guesses(world), tmp_path / "pred")
    command = ["evaluate", "imagenet-s", "--pred", str(pred), "--gt", str(world / "out"), "--variant", "50"]
    shutil.copy(next(pred.rglob("*.png")), pred / "another.png")
    assert main(command) == 0
    assert "1 files of no image of the ground truth: another.png" in capsys.readouterr().err
    lost = sorted(pred.rglob("ILSVRC*.png"))[:2]
    for path in lost:
        path.unlink()
    assert main(command) == 1
    told = capsys.readouterr().err
    assert all(str(path.relative_to(pred)) in told for path in lost)
    assert "another.png" in told


def test_what_is_no_prediction_is_an_error_that_names_it(world: Path, tmp_path: Path) -> None:
    guessed = guesses(world)
    name, mask = next(iter(guessed.items()))
    for wrong, words in (
        ({name: mask[:-1]}, r"the prediction is \d+ x \d+ px, its ground truth"),
        ({name: np.full(mask.shape, 999)}, "id 999: 0 to 50"),
    ):
        pred = write_all(guessed | wrong, tmp_path / "pred")
        with pytest.raises(SourceError, match=rf"{name}.png: .*{words}"):
            evaluate(pred, world / "out", "50")
    Image.fromarray(np.zeros(mask.shape, np.uint8)).save(pred / f"{name}.png")
    with pytest.raises(SourceError, match=rf"{name}.png: .*red \+ 256 green"):
        evaluate(pred, world / "out", "50")
    shutil.copy(pred / f"{name}.png", pred / Path(f"{name}.png").name)
    with pytest.raises(SourceError, match="two masks of one image"):
        evaluate(pred, world / "out", "50")
    with pytest.raises(SourceError, match="is variant 50, whose ids are other classes than those of 300"):
        evaluate(pred, world / "out", "300")
    with pytest.raises(RecipeError, match="variant: 51: one of 50, 300, 919"):
        evaluate(pred, world / "out", "51")
    with pytest.raises(SourceError, match="no sample of split train"):
        evaluate(pred, world / "out", "50", split="train")


def test_a_prediction_is_written_at_the_size_of_its_image(tmp_path: Path) -> None:
    small = RNG.integers(0, 920, (7, 9))
    path = tmp_path / "n01443537" / "one.png"
    write_prediction(small, path, size=(31, 20))
    wanted = torch.nn.functional.interpolate(torch.from_numpy(small)[None, None].float(), (20, 31), mode="nearest")
    assert (ids.decode(path.read_bytes()) == wanted[0, 0].numpy()).all()
    with Image.open(path) as picture:
        assert (picture.mode, picture.size) == ("RGB", (31, 20))
        colours = np.asarray(picture).astype(int)
    assert (colours[:, :, 0] + 256 * colours[:, :, 1] == wanted[0, 0].numpy()).all()
    assert [p.name for p in path.parent.iterdir()] == ["one.png"]
    for wrong in (np.full((2, 2), -1), np.full((2, 2), 70_000), np.zeros((2, 2)), np.zeros((2, 2, 3), int)):
        with pytest.raises(SourceError, match=r"one\.png: ids"):
            write_prediction(wrong, path)


def test_validate_tells_what_a_server_would_refuse(world: Path, tmp_path: Path, capsys: Out) -> None:
    truth = world / "data" / "truth" / "ImageNetS50" / "test-segmentation"
    shutil.copytree(truth, tmp_path / "test")
    (tmp_path / "test" / "method.txt").write_text("Method name: none\n")
    command = ["evaluate", "validate", str(tmp_path / "test"), "--gt", str(world / "out"), "--variant", "50"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 13
    lost, large, high, gray, moved = sorted((tmp_path / "test").rglob("*.png"))[:5]
    lost.unlink()
    height, width = ids.decode(large.read_bytes()).shape
    write_prediction(np.zeros((height + 1, width), int), large)
    write_prediction(np.full(ids.decode(high.read_bytes()).shape, 51), high)
    Image.fromarray(ids.decode(gray.read_bytes()).astype(np.uint8)).save(gray)
    moved.rename(tmp_path / "test" / moved.name)
    assert main(command) == 1
    told = capsys.readouterr().out
    for words in (
        f"{lost.parent.name}/{lost.name}: missing",
        f"{large.name}: {width} x {height + 1} px, the image has {width} x {height}",
        f"{high.name}: id 51",
        f"{gray.name}: a mask of uint8",
        f"{moved.name}: is no image of this split",
        f"{moved.parent.name}/{moved.name}: missing",
    ):
        assert words in told
    assert validate(truth, truth_of(world / "out", "test", "50", masks=False), 50) == []


def slow_votes(means: np.ndarray, classes: list[int], wide: np.ndarray) -> np.ndarray:
    """k nearest masked means by cosine, k = 10, each with a vote of exp(cosine / 0.07)."""
    units = means / np.linalg.norm(means, axis=1, keepdims=True)
    out = np.zeros(wide.shape[1:], int)
    for y, x in np.ndindex(*out.shape):
        pixel = wide[:, y, x] / np.linalg.norm(wide[:, y, x])
        cosines = units @ pixel
        votes = np.zeros(max(classes) + 1)
        for n in np.argsort(-cosines)[:10]:
            votes[classes[n]] += np.exp(cosines[n] / 0.07)
        out[y, x] = votes.argmax()
    return out


def test_distance_matching_is_the_published_one() -> None:
    features = [RNG.normal(size=(6, 3, 4)).astype(np.float32) for _ in range(8)]
    masks = [RNG.choice([0, 1, 2, 5, 1000], (25, 31)) for _ in features]
    means, classes = [], []
    for one, mask in zip(features, masks, strict=True):
        wide = torch.nn.functional.interpolate(torch.from_numpy(one)[None], (12, 16), mode="bilinear")[0].numpy()
        small = mask[np.arange(12) * 25 // 12][:, np.arange(16) * 31 // 16]
        for number in np.unique(small):
            if number != 1000:
                classes.append(int(number))
                means.append(wide[:, small == number].mean(1))
    found = masked_means(features[0], masks[0])
    assert [number for number, _ in found] == classes[: len(found)]
    assert all(np.allclose(mean.numpy(), means[n], atol=1e-6) for n, (_, mean) in enumerate(found))
    image = RNG.normal(size=(6, 5, 3)).astype(np.float32)
    wide = torch.nn.functional.interpolate(torch.from_numpy(image)[None], (20, 12), mode="bilinear")[0].numpy()
    predicted = Bank.of(zip(features, masks, strict=True)).predict(image)
    assert (predicted == slow_votes(np.array(means), classes, wide)).mean() > 0.995  # ties of floats apart


def test_features_make_predictions(world: Path, tmp_path: Path, capsys: Out) -> None:
    """Features that tell the classes apart: the masks that they give are near the true ones."""
    colours = RNG.normal(size=(4, 16))
    for split in ("train-semi", "validation"):
        for name, mask in true_masks(world, split).items():
            small = np.where(mask == 1000, 0, mask)[::4, ::4]
            features = colours[small].transpose(2, 0, 1) + RNG.normal(0, 0.1, (16, *small.shape))
            (tmp_path / "features" / split / Path(name).parent).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "features" / split / f"{name}.npy", features.astype(np.float16))
    command = [
        "evaluate",
        "imagenet-s",
        "--pred",
        str(tmp_path / "pred"),
        "--gt",
        str(world / "out"),
        "--variant",
        "50",
    ]
    assert main([*command, "--embeddings", str(tmp_path / "features")]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["Acc"] == 100
    assert scores["mIoU"] * 51 / 4 > 70
    sizes = {name: mask.shape for name, mask in true_masks(world).items()}
    made = {str(p.relative_to(tmp_path / "pred").with_suffix("")): p for p in (tmp_path / "pred").rglob("*.png")}
    assert {name: ids.decode(path.read_bytes()).shape for name, path in made.items()} == sizes
    next((tmp_path / "features" / "train-semi").rglob("*.npy")).unlink()
    assert main([*command, "--embeddings", str(tmp_path / "features")]) == 1
    assert "features of 1 images are missing" in capsys.readouterr().err
