"""Probes: what lists mean, features that are kept, heads as published, the command on folders and shards."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tars import jpeg, write_tar
from torch import nn
from training import recipe
from worlds import source_of

import datakit
from datakit.cli import main
from datakit.errors import RecipeError, SourceError
from datakit.evaluate.encoder import encoder_of
from datakit.evaluate.features import features
from datakit.evaluate.heads import Attentive, neighbours
from datakit.evaluate.images import Images, drawn, images_of, listed
from datakit.evaluate.probe import probe
from datakit.pretrain import checkpoint
from datakit.pretrain.objective import Encoder
from datakit.pretrain.train import pretrain
from datakit.recipe import Recipe
from datakit.stream import Loader, evaluation

pytestmark = pytest.mark.usefixtures("one_thread")

COLOURS = {"Airport": (200, 40, 40), "Beach": (40, 200, 40), "Bridge": (40, 40, 200)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders as AID has them: 3 classes of 8 images, each class of its own colour."""
    root = tmp_path_factory.mktemp("aid") / "AID"
    rng = np.random.default_rng(0)
    for label, colour in COLOURS.items():
        (root / label).mkdir(parents=True)
        for n in range(8):
            pixels = np.clip(np.array(colour) + rng.integers(-30, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{label.lower()}_{n + 1}.jpg", quality=90)
    return root


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run of one epoch."""
    out = tmp_path_factory.mktemp("trained")
    pretrain(recipe(shards, budget={"epochs": 1}), out, say=lambda _: None, accelerator="cpu")
    return checkpoint.there(out / "checkpoints")[-1]


def write_lists(folder: Path, images: Images) -> tuple[Path, Path]:
    """Lists of the first two of each class, and of the third, as published: `path label`."""
    numbers = {label: n for n, label in enumerate(COLOURS)}
    for name, wanted in (("train", (1, 2)), ("test", (3,))):
        rows = [n for n in images.names if int(n.split("_")[1].split(".")[0]) in wanted]
        (folder / name).write_text("".join(f"{row} {numbers[row.split('/')[0]]}\n" for row in rows))
    return folder / "train", folder / "test"


def test_lists_are_read_as_they_are_published(folders: Path, tmp_path: Path) -> None:
    images = images_of(folders)
    assert len(images) == 24
    train, test = write_lists(tmp_path, images)
    whole = listed(images, train)
    assert (len(whole.train), len(whole.test), whole.classes) == (6, 18, ("Airport", "Beach", "Bridge"))
    assert [images.names[row] for row in whole.train[:2]] == ["Airport/airport_1.jpg", "Airport/airport_2.jpg"]
    assert len(listed(images, train, test).test) == 3
    train.write_text("./AID/Airport/airport_1.jpg 0\nAID/Beach/beach_1.jpg 1\nbridge_1.jpg 2\n")
    named = listed(images, train)
    assert [images.names[row] for row in named.train] == [
        "Airport/airport_1.jpg",
        "Beach/beach_1.jpg",
        "Bridge/bridge_1.jpg",
    ]
    assert not {*named.train} & {*named.test}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            "Airport/airport_1.jpg 0\nAirport/airport_99.jpg 0\n",
            "1 of its 2 images are not in the set, as Airport/airport_99",
        ),
        ("Airport/airport_1.jpg 0\nairport_1.jpg 0\n", "listed twice"),
        ("Airport/airport_1.jpg 0\nBeach/beach_1.jpg 0\n", "label 0 of the lists is Airport and Beach"),
        ("Airport/airport_1.jpg 0\nAirport/airport_2.jpg 1\n", "of the lists is Airport"),
        ("Airport/airport_1.jpg 0\n", "1 classes in 1 images"),
        ("\n", "no lines"),
    ],
)
def test_lists_that_are_wrong_are_told(folders: Path, tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "list").write_text(lines)
    with pytest.raises(SourceError, match=said):
        listed(images_of(folders), tmp_path / "list")


def test_a_test_list_shares_nothing_with_what_is_learnt(folders: Path, tmp_path: Path) -> None:
    images = images_of(folders)
    train, _ = write_lists(tmp_path, images)
    (tmp_path / "leak").write_text(train.read_text().splitlines()[0] + "\n")
    with pytest.raises(SourceError, match="1 of its images are in"):
        listed(images, train, tmp_path / "leak")


def test_shares_are_drawn_of_each_class(folders: Path) -> None:
    images = images_of(folders)
    one, other = drawn(images, 0.25, 0), drawn(images, 0.25, 1)
    assert np.bincount(one.numbers[one.train]).tolist() == [2, 2, 2]
    assert len(one.test) == 18
    assert one.train.tolist() != other.train.tolist()
    assert drawn(images, 0.25, 0).train.tolist() == one.train.tolist()


def test_features_are_those_of_a_loader_and_are_kept(trained: Path, shards: Path, tmp_path: Path) -> None:
    """The middle of an image comes to the encoder as `evaluation()` gives it; made once."""
    encoder, images = encoder_of(trained), images_of(shards)
    rows = np.arange(len(images))
    found = features(encoder, images, rows, tmp_path, tokens=True, batch_size=7, say=lambda _: None)
    loader = Loader(shards, 31, transform=evaluation(32, 37), shuffle=False)
    (batch,) = list(loader)
    tokens = encoder.tokens(batch.images)
    assert np.allclose(found.cls, tokens[:, 0], atol=1e-5)
    assert np.allclose(found.mean, tokens[:, 1:].mean(1), atol=1e-5)
    assert found.tokens is not None
    assert np.allclose(found.tokens, tokens[:, 1:], atol=2e-3)
    assert len(list(tmp_path.glob("*.npy"))) == 3

    class Dead(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise AssertionError("made again")

    dead = Dead()
    dead.module = encoder.tokens.module  # type: ignore[assignment]
    again = features(Encoder(dead, 32, encoder.numbers), images, rows, tmp_path, tokens=True)
    assert np.array_equal(again.mean, found.mean)
    with pytest.raises(AssertionError, match="made again"):
        features(Encoder(dead, 32, encoder.numbers), images, rows[:-1], tmp_path, say=lambda _: None)
    assert not list(tmp_path.glob("*/*.npy*"))


def test_neighbours_vote_as_published() -> None:
    generator = torch.Generator().manual_seed(0)
    known, asked = torch.randn(30, 5, generator=generator), torch.randn(9, 5, generator=generator)
    numbers = torch.arange(30) % 4
    told = neighbours(known, numbers, asked, 4, 7)
    for row, one in enumerate(asked):
        similar = [float(torch.dot(one, other) / (one.norm() * other.norm())) for other in known]
        votes = [0.0] * 4
        for n in sorted(range(30), key=lambda n: -similar[n])[:7]:
            votes[int(numbers[n])] += float(np.exp(similar[n] / 0.07))
        assert int(told[row]) == votes.index(max(votes))


def test_attention_pools_as_published() -> None:
    """Efficient probing, one query after another."""
    torch.manual_seed(0)
    head = Attentive(12, 5, queries=4).eval()
    tokens = torch.randn(3, 7, 12)
    assert (head.parts, len(head.queries)) == (4, 4)
    pooled = []
    for image in tokens:
        parts = []
        for m in range(4):
            weights = torch.softmax(image @ head.queries[m] / 12**0.5, 0)
            parts.append(weights @ (image @ head.values.weight.T)[:, 3 * m : 3 * m + 3])
        pooled.append(torch.cat(parts))
    assert torch.allclose(head(tokens), head.head(torch.stack(pooled)), atol=1e-5)


def test_colours_are_told_by_every_probe(folders: Path, trained: Path, tmp_path: Path) -> None:
    images = images_of(folders)
    splits = [drawn(images, 0.5, seed) for seed in range(2)]
    options = {"epochs": 30, "cache": tmp_path, "say": lambda _: None}
    for score in probe(encoder_of(trained), images, splits, **options):
        assert score.mean > 0.9, score
        assert len(score.shares) == 2
        assert score.chance == pytest.approx(1 / 3)
    with pytest.raises(RecipeError, match="there are knn, linear, attentive"):
        probe(encoder_of(trained), images, splits, methods=["svm"], **options)  # type: ignore[list-item]


def test_the_command_reads_folders_and_shards_alike(
    folders: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = write_lists(tmp_path, images_of(folders))
    members = []
    for n, path in enumerate(sorted(folders.rglob("*.jpg"))):
        name = path.relative_to(folders).as_posix()
        fields = {"name": name, "label": path.parent.name, "window": []}
        members += [(f"k{n:03}.jpg", path.read_bytes()), (f"k{n:03}.json", json.dumps(fields).encode())]
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / "aid.tar", members)
    said = []
    for data in (folders, tmp_path / "set"):
        command = ["evaluate", "probe", str(trained), str(data), "--split", str(train), "--test", str(test)]
        assert main([*command, "--seeds", "2", "--epochs", "20", "--cache", str(tmp_path / "cache")]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0] == "3 classes, 6 to learn from, 3 to test on, 2 seeds"
        said.append(json.loads(out[-1]))
    assert [{**row, "shares": ()} for row in said[0]] == [{**row, "shares": ()} for row in said[1]]
    assert [row["method"] for row in said[0]] == ["knn", "linear", "attentive"]
    assert said[0][0]["deviation"] == 0
    wrong = ["evaluate", "probe", str(trained), str(folders)]
    assert main(wrong) == 1
    assert "give --split LIST" in capsys.readouterr().err
    assert main([*wrong, "--share", "0.5", "--method", "svm"]) == 1
    assert main(["evaluate", "probe", str(train), str(folders), "--share", "0.5"]) == 1
    assert "no checkpoint" in capsys.readouterr().err


def test_images_of_a_build_are_known_by_name_and_windows_by_key(folders: Path, tmp_path: Path) -> None:
    source = source_of("aid", path=folders.name)
    build = partial(datakit.build, data=folders.parent, workers=0)
    shape = {"name": "aid", "sources": [source]}
    build(Recipe.model_validate(shape), out=tmp_path / "whole")
    images = images_of(tmp_path / "whole")
    assert {*images.names} == {*images_of(folders).names}
    split = listed(images, *write_lists(tmp_path, images_of(folders)))
    assert (len(split.train), len(split.test)) == (6, 3)
    build(Recipe.model_validate({**shape, "slice": {"grid": {"size_px": 32}}}), out=tmp_path / "tiles")
    names = images_of(tmp_path / "tiles").names
    assert len({*names}) == len(names) == 24 * 4
    assert not any(name.endswith(".jpg") for name in names)


def test_what_was_exported_has_the_same_features(trained: Path, tmp_path: Path) -> None:
    assert main(["export", "encoder", str(trained), str(tmp_path / "timm")]) == 0
    ours, theirs = encoder_of(trained), encoder_of(tmp_path / "timm")
    assert (ours.size_px, ours.interpolation) == (theirs.size_px, theirs.interpolation)
    assert [tuple(of) for of in ours.numbers] == [tuple(of) for of in theirs.numbers]
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(ours.tokens(images), theirs.tokens(images), atol=1e-5)


def test_an_image_that_cannot_be_read_is_named(folders: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "good.jpg").write_bytes(jpeg(1, 40, 40))
    (tmp_path / "set" / "a" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    images = images_of(tmp_path / "set")
    with pytest.raises(SourceError, match=r"a/bad\.jpg: cannot be read"):
        features(encoder_of(trained), images, np.arange(2), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))
    with pytest.raises(SourceError, match="no shards, and no images"):
        images_of(tmp_path / "cache")
    with pytest.raises(SourceError, match="no such folder"):
        images_of(tmp_path / "nowhere")
