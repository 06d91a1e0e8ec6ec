"""The loader: each epoch a permutation, one global sequence on any ranks and threads, pixels as Pillow makes them."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tars import SMALL, jpeg, keys, sample, write_tar
from torchvision.transforms.v2 import functional

from datakit.boxes import Box, dumps, rectangle
from datakit.cli import main
from datakit.errors import RecipeError, ShardError
from datakit.sample import key_id
from datakit.stream import Batch, Loader, View, Views, evaluation, mae, multi_view, resample
from datakit.stream.augment import IMAGENET
from datakit.stream.order import Order
from datakit.stream.repeats import Repeated

ANY = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def together(loaders: list[Loader]) -> list[str]:
    """The global sequence of all ranks' batches."""
    steps = zip(*loaders, strict=True)
    return [key for step in steps for batch in step for key in batch.keys]


def test_an_epoch_is_a_permutation(shards: Path) -> None:
    loader = Loader(shards, 1, transform=SMALL)
    first, second = keys(loader), keys(loader)
    assert sorted(first) == sorted(second) == [f"s{n:03}" for n in range(31)]
    assert first != second
    assert len(loader) == 31
    assert loader.report().delivered == 62


@ANY
@given(data=st.data())
def test_any_split_gives_the_same_sequence(shards: Path, data: st.DataObject) -> None:
    """Ranks, threads, batch sizes and a stop at any batch, with a state that goes through JSON."""
    size, ranks = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    block = data.draw(st.sampled_from([None, 1, 60_000]))
    epoch, threads = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3))

    def loaders(size: int, ranks: int) -> list[Loader]:
        many = ({"rank": r, "world_size": ranks, "threads": threads, "block_bytes": block} for r in range(ranks))
        made = [Loader(shards, size, seed=7, transform=SMALL, **one) for one in many]
        for loader in made:
            loader.set_epoch(epoch)
        return made

    whole = keys(loaders(1, 1)[0])
    ours = loaders(size, ranks)
    assert len({len(loader) for loader in ours}) == 1
    stop = data.draw(st.integers(0, len(ours[0])))
    begun = [iter(loader) for loader in ours]
    seen = [key for _ in range(stop) for one in begun for key in next(one).keys]
    for one in begun:
        one.close()
    states = [json.loads(json.dumps(loader.state_dict())) for loader in ours]
    assert all(state == states[0] for state in states)
    others = loaders(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))
    for loader in others:
        loader.load_state_dict(states[0])
    seen += together(others)
    assert seen == whole[: len(seen)]
    assert len(whole) - len(seen) < others[0].batch_size * others[0].world_size


def test_pixels_do_not_depend_on_ranks_or_where_one_begins(shards: Path) -> None:
    colours = View(32, brightness=0.4, contrast=0.4, saturation=0.4, turns=True)
    whole = next(iter(Loader(shards, 31, transform=Views((colours,), None)))).images
    loader = Loader(shards, 5, transform=Views((colours,), None), rank=1, world_size=2, threads=3)
    assert torch.equal(
        torch.cat([batch.images for batch in loader]), torch.cat([whole[5:10], whole[15:20], whole[25:30]])
    )
    assert len({tuple(crop) for crop in next(iter(loader)).crops[:, 0].tolist()}) == 5


@given(st.sampled_from(["brightness", "contrast", "saturation"]), st.floats(0.5, 1.5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_colours_are_those_of_torchvision(which: str, factor: float, seed: int) -> None:
    """But for its cutting off what we round."""
    levels = np.random.default_rng(seed).integers(0, 256, (3, 9, 11), dtype=np.uint8)
    ours, names = levels.copy(), ("brightness", "contrast", "saturation")
    resample.jitter(ours, *(factor if name == which else 1.0 for name in names), 0.0, 0)
    theirs = getattr(functional, f"adjust_{which}")(torch.from_numpy(levels), factor)
    assert np.abs(ours.astype(int) - theirs.numpy().astype(int)).max() <= 1


def test_hues_go_around(shards: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8)
    for by in (1 / 3, -0.25, 0.5):
        turned = levels.copy()
        resample.turn_hue(turned, np.float32(by))
        theirs = functional.adjust_hue(torch.from_numpy(levels), by).numpy()
        assert np.abs(turned.astype(int) - theirs.astype(int)).max() <= 1
    third = levels.copy()
    resample.turn_hue(third, np.float32(1 / 3))
    assert np.abs(third[[1, 2, 0]].astype(int) - levels.astype(int)).max() <= 1  # red is green, green is blue
    with pytest.raises(RecipeError, match="hue"):
        View(32, hue=0.6)
    one, other = (Views((View(32, hue=hue),), None) for hue in (0.0, 0.3))
    plain, turned_ = (next(iter(Loader(shards, 31, transform=views))).images for views in (one, other))
    assert not torch.equal(plain, turned_)


def test_tars_that_an_index_does_not_know_are_named(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / "a.tar", sample(1))
    assert main(["index", str(tmp_path / "set")]) == 0
    assert len(Loader(tmp_path / "set", 1)) == 1
    write_tar(tmp_path / "set" / "b.tar", sample(2))
    with pytest.raises(ShardError, match=r"b\.tar: not in the index"):
        Loader(tmp_path / "set", 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_those_of_pillow(shards: Path, interpolation: Any) -> None:
    """The crops that a batch tells, made by Pillow: within a level."""
    loader = Loader(shards, 31, transform=mae(48, normalise=None, interpolation=interpolation, turns=True))
    batch = next(iter(loader))
    assert batch.images.dtype == torch.uint8
    for key, image, crop in zip(batch.keys, batch.images, batch.crops[:, 0].tolist(), strict=True):
        left, top, width, height, flipped, turns = crop
        n = int(key[1:])
        with Image.open(io.BytesIO(jpeg(n, 64 + n, 80))) as picture:
            resample = Image.Resampling[interpolation.upper()]
            cut = picture.crop((left, top, left + width, top + height)).resize((48, 48), resample)
        plain = np.asarray(cut)[:, ::-1] if flipped else np.asarray(cut)
        plain = np.rot90(plain, turns)
        assert np.abs(plain.transpose(2, 0, 1).astype(int) - image.numpy()).max() <= 1


def test_decoded_at_a_part_of_its_size(tmp_path: Path) -> None:
    """Where it is asked for, and only where the crop stays as large as the picture: near to the pixels of the whole."""
    members = [(f"{n}.jpg", jpeg(n, 240, 200)) for n in range(8)] + [("small.jpg", jpeg(9, 60, 50))]
    path = write_tar(tmp_path / "large.tar", members)
    whole, reduced = (
        next(iter(Loader([path], 9, transform=Views((View(48, reduced=r), View(24, reduced=r)), None), shuffle=False)))
        for r in (False, True)
    )
    assert torch.equal(whole.crops, reduced.crops)
    halved = whole.crops[:, 0, 2:4].amin(1) >= 2 * 48
    assert 4 < halved.sum() < 9
    for a, b in zip(whole.images, reduced.images, strict=True):
        apart = (a.int() - b.int()).abs().float().mean((1, 2, 3))
        assert torch.equal(apart > 0, halved)
        assert apart.max() < 12
        assert apart.mean() < 6


def test_eval_is_the_middle_as_torchvision_cuts_it(shards: Path) -> None:
    from torchvision.transforms import v2

    loader = Loader(shards, 8, transform=evaluation(32, 40, normalise=None), shuffle=False)
    plain = v2.Compose([v2.Resize(40, v2.InterpolationMode.BICUBIC), v2.CenterCrop(32), v2.PILToTensor()])
    seen = 0
    for batch in loader:
        for key, image, real in zip(batch.keys, batch.images, batch.mask.tolist(), strict=True):
            if real:
                n = int(key[1:])
                wanted = plain(Image.open(io.BytesIO(jpeg(n, 64 + n, 80))))
                assert (image.int() - wanted.int()).abs().max() <= 1
                assert n == seen
                seen += 1
    assert seen == 31


def test_normalised(shards: Path) -> None:
    levels = next(iter(Loader(shards, 4, transform=SMALL))).images
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 0.125]}
    for normalise, (mean, std) in (("imagenet", IMAGENET), (given, (given["mean"], given["std"]))):
        images = next(iter(Loader(shards, 4, transform=mae(32, normalise=normalise)))).images
        wanted = (levels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        assert images.dtype == torch.float32
        torch.testing.assert_close(images, wanted, atol=1e-5, rtol=1e-5)


def test_several_views(shards: Path) -> None:
    batch = next(iter(Loader(shards, 6, transform=multi_view(32, 16, 3), columns=["gsd_m"])))
    assert [tuple(view.shape) for view in batch.images] == [(6, 3, 32, 32)] * 2 + [(6, 3, 16, 16)] * 3
    assert batch.crops.shape == (6, 5, 6)
    assert len({tuple(crop) for crop in batch.crops[0].tolist()}) == 5
    for key, told, crops in zip(batch.keys, batch["gsd_m"].tolist(), batch.crops.tolist(), strict=True):
        for size, metres, crop in zip((32, 32, 16, 16, 16), told, crops, strict=True):
            known = int(key[1:]) % 2
            assert metres == pytest.approx(0.5 * math.sqrt(crop[2] * crop[3]) / size) if known else math.isnan(metres)


def test_columns(shards: Path) -> None:
    loader = Loader(shards, 31, transform=SMALL, columns=["label", "json", "n", "cls"])
    batch = next(iter(loader))
    numbers = [int(key[1:]) for key in batch.keys]
    assert batch.labels.tolist() == [n % 3 for n in numbers]
    assert batch["n"].tolist() == numbers
    assert [fields["n"] for fields in batch["json"]] == numbers
    assert batch["cls"] == [str(n % 3).encode() for n in numbers]
    assert batch.ids.tolist() == [key_id(f"{shard_of(n)}/s{n:03}") for n in numbers]
    with pytest.raises(KeyError, match="not asked for"):
        batch["gsd_m"]
    with pytest.raises(RecipeError, match="colour: not in the JSON of s"):
        next(iter(Loader(shards, 4, transform=SMALL, columns=["colour"])))


def shard_of(n: int) -> str:
    return f"part-{0 if n < 17 else 1 if n < 22 else 2}"


@pytest.mark.parametrize("size", [(64, 64), (90, 60)])
def test_boxes_and_masks_go_where_the_pixels_go(tmp_path: Path, size: tuple[int, int]) -> None:
    """A bright rectangle in a dark picture: its box, its mask and its pixels agree in every view."""
    members = []
    for n in range(12):
        left, top = 8 + 2 * n, 10 + n
        picture = Image.new("RGB", size)
        picture.paste((255, 255, 255), (left, top, left + 20, top + 16))
        stored = {"png": picture, "seg.png": picture.convert("L").point(lambda v: v and 7)}
        for suffix, image in stored.items():
            out = io.BytesIO()
            image.save(out, "PNG")
            members.append((f"b{n:02}.{suffix}", out.getvalue()))
        box = Box("field", rectangle(left, top, left + 20, top + 16), kind="box")
        members.append((f"b{n:02}.json", json.dumps({"boxes": dumps([box]), "captions": '["a field"]'}).encode()))
    path = write_tar(tmp_path / "boxes.tar", members)
    crops = View(64, scale=(0.5, 1), turns=True, interpolation="bilinear")
    for transform in (Views((crops, View(48)), None), Views((View(56, resize_px=64), View(64)), None)):
        loader = Loader([path], 12, transform=transform, columns=["boxes", "mask", "captions"])
        batch = next(iter(loader))
        assert batch["captions"] == [["a field"]] * 12
        for images, masks, found in zip(batch.images, batch["mask"], batch["boxes"], strict=True):
            assert masks.shape == (12, *images.shape[2:])
            for image, mask, boxes in zip(images[:, 0].numpy(), masks.numpy(), found, strict=True):
                assert {*np.unique(mask)} <= {0, 7}
                assert ((image > 127) != (mask == 7)).mean() < 0.03
                if not boxes:
                    assert not mask.any()
                    continue
                points = np.array(boxes[0].clipped or boxes[0].points).reshape(-1, 2)
                rows, columns = np.nonzero(mask)
                seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert np.allclose([*points.min(0), *points.max(0)], seen, atol=1.5)


def test_labels_that_are_texts(tmp_path: Path) -> None:
    members = [m for n in range(6) for m in sample(n, label="" if n == 5 else f"class{n % 3}") if ".cls" not in m[0]]
    path = write_tar(tmp_path / "texts.tar", members)
    plain = next(iter(Loader([path], 6, transform=SMALL, columns=["label"], shuffle=False)))
    assert plain.labels == ["class0", "class1", "class2", "class0", "class1", ""]
    classes = ["class2", "class1", "class0"]
    counted = next(iter(Loader([path], 6, transform=SMALL, columns=["label"], classes=classes, shuffle=False)))
    assert counted.labels.tolist() == [2, 1, 0, 2, 1, -1]


@pytest.mark.parametrize(("remainder", "batches"), [("drop", 3), ("pad", 4), ("wrap", 4)])
def test_what_fills_no_batch(shards: Path, remainder: Any, batches: int) -> None:
    """31 samples in batches of 2 x 5."""
    ranks = [
        Loader(shards, 5, transform=SMALL, remainder=remainder, rank=r, world_size=2, shuffle=False) for r in range(2)
    ]
    made: list[list[Batch]] = [list(loader) for loader in ranks]
    assert [len(m) for m in made] == [len(loader) for loader in ranks] == [batches] * 2
    last = [batch.keys for batch in (made[0][-1], made[1][-1])]
    if remainder == "pad":
        assert last == [["s030", "", "", "", ""], [""] * 5]
        assert made[0][-1].mask.tolist() == [True] + [False] * 4
        assert made[0][-1].ids.tolist()[1:] == [-1] * 4
        assert not made[1][-1].images.any()
    if remainder == "wrap":
        assert last == [["s030", "s000", "s001", "s002", "s003"], [f"s{n:03}" for n in range(4, 9)]]
        assert made[1][-1].mask.all()


def test_a_batch_that_no_set_fills_is_told(shards: Path) -> None:
    loader = Loader(shards, 32, transform=SMALL)
    with pytest.warns(UserWarning, match="31 samples are less than a batch of 32 on each of 1 ranks: none is given"):
        assert list(loader) == []
    assert len(list(Loader(shards, 32, transform=SMALL, remainder="wrap"))) == 1


def test_stored_images_and_functions(tmp_path: Path, shards: Path) -> None:
    path = write_tar(tmp_path / "equal.tar", [(f"{n}.jpg", jpeg(n, 40, 30)) for n in range(6)])
    batch = next(iter(Loader([path], 6, shuffle=False)))
    assert batch.images.shape == (6, 3, 30, 40)
    with Image.open(io.BytesIO(jpeg(2, 40, 30))) as picture:
        assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), batch.images[2])
    for size, rank, there in ((4, 1, [True, True, False, False]), (6, 1, [False] * 6)):
        padded = next(iter(Loader([path], size, shuffle=False, rank=rank, world_size=2)))
        assert padded.mask.tolist() == there
        assert padded.images.shape == (size, 3, 30, 40)
        assert [bool(image.any()) for image in padded.images] == there
    with pytest.raises(ValueError, match="images of 4 sizes in a batch"):
        next(iter(Loader(shards, 4)))

    def drawn(image: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        return torch.tensor([float(image.shape[1]), rng.random()])

    first, again = (list(Loader(shards, 10, transform=drawn, threads=t)) for t in (1, 3))
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    assert len({float(row[1]) for batch in first for row in batch.images}) == 30
    with pytest.raises(RecipeError, match="transform: 'mae'"):
        Loader(shards, 4, transform="mae")  # type: ignore[arg-type]


def test_deep_images_of_many_bands(tmp_path: Path) -> None:
    from datakit.image import quiet, tiff_of

    levels = np.random.default_rng(3).integers(20000, 45000, (40, 50, 13), dtype=np.uint16)
    with quiet():
        data = tiff_of(levels, ())
    path = write_tar(tmp_path / "deep.tar", [(f"{n}.tif", data) for n in range(3)])
    stored = next(iter(Loader([path], 3)))
    assert stored.images.dtype == torch.uint16
    assert np.array_equal(stored.images[1].numpy(), levels.transpose(2, 0, 1))
    cropped = next(iter(Loader([path], 3, transform=mae(40, normalise=None, flip=0))))
    left, top, width, height = cropped.crops[0, 0, :4].tolist()
    band = Image.fromarray(levels[top : top + height, left : left + width, 12].astype(np.float32))
    plain = np.asarray(band.resize((40, 40), Image.Resampling.BICUBIC)).clip(0, 65535)
    assert np.abs(plain - cropped.images[0, 12].numpy().astype(float)).max() < 2  # Pillow rounds no float
    with pytest.raises(RecipeError, match="3 means for images of 13 bands"):
        next(iter(Loader([path], 3, transform=mae(40))))
    half = {"mean": [0.5] * 13, "std": [0.25] * 13}
    images = next(iter(Loader([path], 3, transform=mae(40, half, flip=0)))).images
    torch.testing.assert_close(images, (cropped.images.float() / 65535 - 0.5) / 0.25, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_read_is_replaced_alike(tmp_path: Path) -> None:
    members = [m for n in range(20) for m in sample(n)]
    broken = [(name, data[:300] if name == "s004.jpg" else data) for name, data in members if name != "s009.jpg"]
    path = write_tar(tmp_path / "broken.tar", broken)
    good = keys(Loader([path], 1, transform=SMALL, seed=3, max_bad_share=0.1))
    loaders = [Loader([path], 1, transform=SMALL, seed=3, rank=r, world_size=4, max_bad_share=0.1) for r in range(4)]
    assert together(loaders) == good
    assert len(good) == 20
    assert {"s004", "s009"} & {*good} == set()
    replaced = [bad for loader in loaders for bad in loader.report().replaced]
    assert sorted((bad.key, bad.shard, bad.reason) for bad in replaced) == [
        ("s004", str(path), "unreadable"),
        ("s009", str(path), "no_image"),
    ]
    alone = Loader([path], 1, transform=SMALL, seed=3, max_bad_share=0.1)
    keys(alone)
    assert alone.report().by_shard() == {(str(path), "no_image"): 1, (str(path), "unreadable"): 1}
    with pytest.raises(ShardError, match=r"(?s)2 samples cannot be used, of 1 that max_bad_share allows.*s004"):
        keys(Loader([path], 1, transform=SMALL, max_bad_share=0.0))


def test_a_changed_tar_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "tar.tar", [m for n in range(9) for m in sample(n)])
    whole = path.read_bytes()
    loader = Loader([path], 3, transform=SMALL)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ShardError, match=r"tar\.tar: it has \d+ bytes, not \d+\. It was cut short"):
        keys(loader)
    path.write_bytes(whole[512:] + bytes(512))
    with pytest.raises(ShardError, match=r"tar\.tar: .* at byte"):
        keys(loader)
    swapped = write_tar(
        tmp_path / "other.tar", [(name.replace("s00", "t00"), d) for n in range(9) for name, d in sample(n)]
    )
    path.write_bytes(swapped.read_bytes())
    with pytest.raises(ShardError, match=r"lies t00\d\.jpg, not s00\d\.jpg"):
        keys(loader)
    gone = Loader([path], 3, transform=SMALL)
    path.unlink()
    with pytest.raises(ShardError, match=r"tar\.tar is not there"):
        keys(gone)
    with pytest.raises(ShardError, match="cut short within s"):
        Loader([write_half(tmp_path / "half.tar", whole)], 3)


def write_half(path: Path, whole: bytes) -> Path:
    path.write_bytes(whole[: len(whole) // 2 // 512 * 512])
    return path


def test_a_state_of_another_set_is_refused(shards: Path, tmp_path: Path) -> None:
    state = Loader(shards, 4, transform=SMALL).state_dict()
    other = write_tar(tmp_path / "other.tar", [m for n in range(8) for m in sample(n)])
    with pytest.raises(ShardError, match="samples was 31, is 8"):
        Loader([other], 4, transform=SMALL).load_state_dict(state)
    with pytest.raises(ShardError, match="block was None, is"):
        Loader(shards, 4, transform=SMALL, block_bytes=100_000).load_state_dict(state)
    with pytest.raises(ShardError, match="mean was"):
        Loader(shards, 4, transform=mae(32)).load_state_dict(state)


def test_an_epoch_begins_anew_unless_a_state_was_loaded(shards: Path) -> None:
    loader = Loader(shards, 4, transform=SMALL)
    first = next(iter(loader)).keys
    assert next(iter(loader)).keys == first
    state = loader.state_dict()
    assert state["position"] == 4
    loader.load_state_dict(state)
    loader.set_epoch(0)  # as training loops say it when they go on
    assert next(iter(loader)).keys != first
    loader.set_epoch(1)
    assert loader.state_dict()["epoch"] == 1
    assert loader.state_dict()["position"] == 0


def test_an_error_in_the_first_batch_keeps_the_place(shards: Path) -> None:
    def broken(image: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        raise RuntimeError("broken")

    loader = Loader(shards, 4, transform=broken)
    loader.load_state_dict({**loader.state_dict(), "position": 8})
    with pytest.raises(RuntimeError, match="broken"):
        next(iter(loader))
    assert loader.state_dict()["position"] == 8


def test_batches_that_are_kept_stay_as_they_are(shards: Path) -> None:
    loader = Loader(shards, 3, transform=SMALL)
    kept = list(loader)
    loader.set_epoch(0)
    assert all(torch.equal(a.images, b.images) for a, b in zip(kept, loader, strict=True))
    views = [batch.images[0] for batch in kept]
    copies = [view.clone() for view in views]
    del kept
    list(loader)
    assert all(torch.equal(a, b) for a, b in zip(views, copies, strict=True))


def test_crops_of_one_decode(shards: Path) -> None:
    """Each sample K times an epoch, decoded once, no two in a batch but in the last window, the same after a stop."""
    counts: list[int] = []

    class Counted(Loader):
        def maker(self, *args: Any) -> Any:
            maker = super().maker(*args)
            decoder = maker.decoder
            maker.decoder = lambda *data: (counts.append(1), decoder(*data))[1]  # type: ignore[assignment]
            return maker

    colours = Views((View(32, brightness=0.4), View(16, turns=True)), "imagenet")
    given = {"transform": colours, "repeats": 3, "repeat_window": 6, "threads": 1, "columns": ["n"]}
    loader = Counted(shards, 4, **given)
    whole = list(loader)
    assert len(whole) == len(loader) == 31 * 3 // 4
    seen = [key for batch in whole for key in batch.keys]
    assert {*seen} == {f"s{n:03}" for n in range(31)}
    assert all(len({*batch.keys}) == 4 for batch in whole[:18])  # three whole windows of 24
    assert sum(counts) == 31
    assert len({tuple(crop) for batch in whole for crop in batch.crops[:, 0].tolist()}) == 92
    assert [n for batch in whole for n in batch["n"].tolist()] == [int(key[1:]) for key in seen]
    begun = iter(loader)
    loader.set_epoch(0)
    begun = iter(loader)
    for _ in range(8):
        next(begun)
    state = loader.state_dict()
    begun.close()
    counts.clear()
    others = [Counted(shards, 2, rank=r, world_size=2, **given) for r in range(2)]
    for one in others:
        one.load_state_dict(state)
    rest = [(batch.keys, batch.images) for step in zip(*others, strict=True) for batch in step]
    assert [key for keys, _ in rest for key in keys] == seen[32:]
    for n in range(2):
        images = torch.cat([images[n] for _, images in rest])
        assert torch.equal(images, torch.cat([batch.images[n] for batch in whole[8:]]))
    assert sum(counts) <= 8 + 8 + 8 + 7 + 7  # the begun window again, two whole ones, the last by both ranks
    with pytest.raises(ShardError, match="repeats was 3, is 1"):
        Loader(shards, 4, transform=colours).load_state_dict(state)


@ANY
@given(samples=st.integers(0, 90), repeats=st.integers(2, 4), batches=st.integers(1, 3), slots=st.integers(1, 5))
def test_a_repeated_order_has_each_sample_so_often(samples: int, repeats: int, batches: int, slots: int) -> None:
    order = Repeated(Order([samples], 5, 1), repeats, batches * repeats * slots, slots)
    whole = order.at(0, order.samples)
    assert np.bincount(whole, minlength=samples).tolist() == [repeats] * samples
    for start in range(0, order.samples, 7):
        assert np.array_equal(order.at(start, min(9, order.samples - start)), whole[start : start + 9])
        later = order.later(start)
        assert all(whole[p] == whole[start] for p in later)
        window = whole[start : (start // order.window + 1) * order.window]
        assert len(later) == (window == whole[start]).sum() - 1


def test_a_build_is_a_source(folder: Path, tmp_path: Path) -> None:
    import datakit

    built = datakit.build(
        "opticalrs", data=folder, out=tmp_path / "out", work=tmp_path / "work", allow_missing=True, workers=0
    )
    loader = Loader(tmp_path / "out", 16, transform=mae(64, "dataset"), columns=["label", "gsd_m", "source"])
    assert len(loader) == built.samples // 16
    batch = next(iter(loader))
    assert abs(float(batch.images.mean())) < 1
    assert all(isinstance(label, str) for label in batch.labels)
    assert set(batch["source"]) <= {source.name for source in built.sources}
    assert loader.state_dict()["mean"] != list(IMAGENET[0])


def of_child(path: Path, answers: Any) -> None:
    answers.put(keys(Loader(path, 4, transform=SMALL)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_processes_that_fork_and_spawn(shards: Path, method: str) -> None:
    here = Loader(shards, 4, transform=SMALL)
    begun = iter(here)
    next(begun)
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=of_child, args=(shards, answers))
    child.start()
    there = answers.get(timeout=120)
    child.join()
    begun.close()
    here.set_epoch(0)
    assert there == keys(here)


def test_ranks_come_from_the_environment(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    loader = Loader(shards, 4, transform=SMALL)
    assert (loader.rank, loader.world_size, len(loader)) == (1, 3, 31 // 12)
    with pytest.raises(ValueError, match="give both or neither"):
        Loader(shards, 4, rank=1)
    assert os.environ["RANK"] == "1"


@pytest.mark.parametrize("views", [mae(32), evaluation(32, 40), multi_view(32, 16, 2)])
def test_images_that_the_device_decodes(shards: Path, tmp_path: Path, views: Views) -> None:
    """The same boxes, and all but the same pixels; torchvision decodes on a CPU what nvJPEG does on a GPU."""
    turned = Views(tuple(replace(view, turns=True) for view in views.views), None)
    here, there = (next(iter(Loader(shards, 31, transform=turned, decode=how))) for how in ("threads", "device"))
    assert here.keys == there.keys
    assert torch.equal(here.crops, there.crops)
    pairs = zip(*(one.images if isinstance(one.images, list) else [one.images] for one in (here, there)), strict=True)
    for ours, theirs in pairs:
        assert theirs.dtype == torch.uint8
        off = (ours.int() - theirs.int()).abs()
        assert off.float().mean() < 1
        assert off.max() <= 12
    normalised = Views(turned.views, "imagenet")
    ours, theirs = (next(iter(Loader(shards, 31, transform=normalised, decode=how))) for how in ("threads", "device"))
    first, second = (one.images[0] if isinstance(one.images, list) else one.images for one in (ours, theirs))
    assert second.dtype == torch.float32
    assert (first - second).abs().mean() < 0.02


def test_what_the_device_cannot_decode_is_made_here_or_replaced(tmp_path: Path) -> None:
    good = [member for n in range(6) for member in sample(n)]
    stream = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(stream, "JPEG", progressive=True)
    broken = bytearray(jpeg(7, 60, 60))
    broken[2:60] = bytes(58)
    write_tar(tmp_path / "a.tar", [*good, ("p.jpg", stream.getvalue()), ("x.jpg", bytes(broken))])
    loader = Loader(tmp_path, 8, transform=mae(16, normalise=None), decode="device", max_bad_share=0.5)
    batch = next(iter(loader))
    assert "p" in batch.keys
    assert "x" not in batch.keys
    assert [one.key for one in loader.report().replaced] == ["x"]
    assert int(batch.images[batch.keys.index("p")].float().mean()) == 90
    for wrong in ({"repeats": 2}, {"transform": None}, {"transform": Views((View(16, hue=0.1),))}):
        with pytest.raises(RecipeError, match="decode"):
            Loader(tmp_path, 2, **{"transform": mae(16), "decode": "device", **wrong})
