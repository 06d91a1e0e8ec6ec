"""Builds of ImageNet-S and ImageNet-1k from a look-alike: the same shards from every layout, whatever happens."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from servers import moto
from worlds import digests, work_done

import datakit
from datakit import ids, kinds
from datakit.cli import main
from datakit.copies import read_rows
from datakit.errors import RecipeError, SourceError, StageError
from datakit.folders import gc
from datakit.imagenet_s import ImageNetS
from datakit.manifest import Manifest
from datakit.run import Funnel, write_part
from datakit.sources import imagenet, synth
from datakit.sources.imagenet_s import MERGED, read_lists, shared
from datakit.sources.synth_imagenet import tar_of
from datakit.status import status
from datakit.stream import Loader, Overlay, View, Views

RECIPE = "recipes/imagenet_s.yaml"
OFFICIAL = Path(__file__).parent.parent.parent / "shared" / "data" / "imagenet_s"
VARIANTS = ("50", "300", "919", "1k")
Sample = dict[str, Any]


def recipe(variant: str, **changes: Any) -> ImageNetS:
    loaded = kinds.load(RECIPE, {"variant": variant, **changes})
    assert isinstance(loaded, ImageNetS)
    return loaded


def samples(out: Path, split: str) -> dict[str, Sample]:
    """What the shards of a split hold, by key, with the keys in their order."""
    found: dict[str, Sample] = {}
    for path in sorted(out.glob(f"*-{split}-[0-9]*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, suffix = info.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(info).read()  # type: ignore[union-attr]
    for one in found.values():
        one["json"] = json.loads(one["json"])
    return found


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("look") / "data"
    synth.make("imagenet_s", folder)
    return folder


@pytest.fixture(scope="module")
def built(look: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An undisturbed build of each variant, from class folders, by one process; in folders far from each other."""
    outs = {}
    for variant in VARIANTS:
        outs[variant] = tmp_path_factory.mktemp(f"built{variant}") / "out"
        datakit.build(recipe(variant, **{"shards.max_samples": 9}), data=look, out=outs[variant], workers=0)
    return outs


@pytest.fixture(scope="module")
def shards_of_1k(look: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet-1k as WebDataset shards: as others make them, whose JSON alone names the file."""
    folder = tmp_path_factory.mktemp("webdataset")
    files = sorted((look / "imagenet").rglob("*.JPEG"))
    for shard in range(3):
        with tarfile.open(folder / f"imagenet1k-{shard:04d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for n, path in enumerate(files[shard::3]):
                name = f"{path.parent.name}/{path.name}"
                for suffix, data in (("jpg", path.read_bytes()), ("json", json.dumps({"filename": name}).encode())):
                    info = tarfile.TarInfo(f"./{shard:04d}{n:05d}.{suffix}" if shard else f"{path.stem}.{suffix}")
                    info.size, info.mtime = len(data), 1.5  # type: ignore[assignment]  # a header that pax extends
                    tar.addfile(info, io.BytesIO(data))
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", ["tars", "shards", "zip"])
def test_every_layout_gives_the_same_files(
    look: Path, built: dict[str, Path], shards_of_1k: Path, tmp_path: Path, layout: str, variant: str
) -> None:
    places = {"tars": look / "imagenet_tars", "shards": shards_of_1k, "zip": tmp_path / "zipped"}
    if layout == "zip":
        places["zip"].mkdir()
        with zipfile.ZipFile(places["zip"] / "imagenet.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((look / "imagenet").rglob("*.JPEG")):
                archive.write(path, f"ILSVRC/Data/CLS-LOC/{path.relative_to(look / 'imagenet')}")
    changes = {"imagenet": str(places[layout]), "shards.max_samples": 9}
    datakit.build(recipe(variant, **changes), data=look, out=tmp_path / "out", workers=0)
    mine, theirs = digests(tmp_path / "out"), digests(built[variant])
    if (layout, variant) == ("shards", "1k"):  # the classes of val are in folders' names, or in the devkit
        mine, theirs = ({n: d for n, d in some.items() if "-train-" in n} for some in (mine, theirs))
    assert mine == theirs
    assert not list((tmp_path / "out.work").rglob("*.JPEG"))


def test_what_lies_in_a_store_gives_the_same_files(
    look: Path, built: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "k"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    with moto() as port:
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://127.0.0.1:{port}"})
        store = fsspec.filesystem("s3")
        store.mkdir("look")
        for name in ("ImageNet-S", "annotations", "imagenet"):
            store.put(str(look / name), f"look/data/{name}", recursive=True)
        far = recipe("50", lists="ImageNet-S", **{"shards.max_samples": 9})
        datakit.build(far, data="s3://look/data", out="s3://look/out", work=tmp_path / "work", workers=0)
        store.get("s3://look/out", str(tmp_path / "out"), recursive=True)
    assert digests(tmp_path / "out") == digests(built["50"])


def test_the_same_bytes_from_several_workers(look: Path, built: dict[str, Path], tmp_path: Path) -> None:
    made = recipe("919", **{"shards.max_samples": 9})
    datakit.build(made, data=look, out=tmp_path / "out", workers=2)
    assert digests(tmp_path / "out") == digests(built["919"])
    datakit.build(made, data=look, out=tmp_path / "out", workers=0)
    assert "shards_written" not in work_done(tmp_path / "out")
    (tmp_path / "out" / "imagenet_s_919-test-000001.tar").write_bytes(b"cut short")
    datakit.build(made, data=look, out=tmp_path / "out", workers=0)
    assert work_done(tmp_path / "out")["shards_written"] == 1
    assert digests(tmp_path / "out") == digests(built["919"])


@pytest.mark.parametrize("sign", ["out.work/list/imagenet_s/*.parquet", "out/*.tar"])
def test_a_killed_build_goes_on_and_gives_the_same_bytes(
    look: Path, built: dict[str, Path], tmp_path: Path, sign: str
) -> None:
    command = [sys.executable, "-m", "datakit.cli", "build", RECIPE, "--data", str(look), "--workers", "2"]
    command += ["--set", "variant=919", "--set", "shards.max_samples=9", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list(tmp_path.glob(sign)):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out" / "manifest.json").exists()
    datakit.build(recipe("919", **{"shards.max_samples": 9}), data=look, out=tmp_path / "out", workers=0)
    assert digests(tmp_path / "out") == digests(built["919"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_shards_hold_what_the_lists_say(look: Path, built: dict[str, Path], variant: str) -> None:
    out, manifest = built[variant], Manifest.load(built[variant])
    versions = json.loads((look / "truth.json").read_text())["versions"][variant]
    splits = {split: samples(out, split) for split in versions if split != "classes"}
    assert {split: len(some) for split, some in splits.items()} == {s: n for s, n in versions.items() if s != "classes"}
    assert manifest.samples == sum(n for split, n in versions.items() if split not in ("classes", "train-semi"))
    for split, some in splits.items():
        members = {"jpg", "json", "cls"} | ({"seg.png"} if split in ("train-semi", "validation") else set())
        for key, sample in some.items():
            about = sample["json"]
            folder = "train" if about["imagenet_wnid"] in key else "val"
            stem = key.removesuffix("_semi")
            assert sample.keys() == members
            assert sample["jpg"] == (look / "imagenet" / folder / about["imagenet_wnid"] / f"{stem}.JPEG").read_bytes()
            assert about["name"] == f"{about['wnid']}/{stem}.JPEG"
            assert (about["variant"], about["split"]) == (variant, split)
            assert int(sample["cls"]) == about["class_id"]
            assert about["same_as"] == (stem if split == "train-semi" else "")
            with Image.open(io.BytesIO(sample["jpg"])) as picture:
                assert picture.size == (about["width"], about["height"])
    orders = [[*some] for some in splits.values()]
    assert [sorted(order) for order in orders] != orders


@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_classes_are_those_of_the_lists_and_masks_are_the_files(
    look: Path, built: dict[str, Path], variant: str
) -> None:
    toolbox, (archive,) = look / "ImageNet-S" / "data", (look / "annotations").glob(f"ImageNetS{variant}-*.zip")
    wnids = sorted((toolbox / f"categories/ImageNetS_categories_im{variant}.txt").read_text().split())
    relabelled = 0
    for split in ("validation", "test"):
        lines = (toolbox / f"mapping/ImageNetS_im{variant}_mapping_{split}.txt").read_text().splitlines()
        found = samples(built[variant], split)
        assert len(found) == len(lines)
        for line in lines:
            (imagenet_wnid, _), (wnid, name) = (word.split("/") for word in line.split())
            about = found[Path(name).stem]["json"]
            assert (about["wnid"], about["imagenet_wnid"]) == (wnid, imagenet_wnid)
            assert about["class_id"] == 1 + wnids.index(wnid)
            relabelled += wnid != imagenet_wnid
    assert relabelled > 3
    with zipfile.ZipFile(archive) as masks:
        for split in ("validation", "train-semi"):
            for key, sample in samples(built[variant], split).items():
                stem, wnid = key.removesuffix("_semi"), sample["json"]["wnid"]
                assert sample["seg.png"] == masks.read(f"ImageNetS{variant}/{split}-segmentation/{wnid}/{stem}.png")
                assert {*np.unique(ids.decode(sample["seg.png"]))} <= {0, 1000, sample["json"]["class_id"]}
    semi, train = samples(built[variant], "train-semi"), samples(built[variant], "train")
    assert all(sample["jpg"] == train[sample["json"]["same_as"]]["jpg"] for sample in semi.values())


def test_two_classes_are_merged_in_919_alone(built: dict[str, Path]) -> None:
    merged = {one["json"]["imagenet_wnid"]: one["json"]["wnid"] for one in samples(built["919"], "train").values()}
    assert {one: wnid for one, wnid in merged.items() if one != wnid} == {
        one: MERGED[one] for one in ("n04356056", "n04493381")
    }
    assert any(one["json"]["imagenet_wnid"] in MERGED for one in samples(built["919"], "train-semi").values())
    for variant in ("50", "300", "1k"):
        assert all(
            one["json"]["imagenet_wnid"] == one["json"]["wnid"] for one in samples(built[variant], "train").values()
        )


def test_classes_of_1k_count_from_zero_and_val_has_those_of_the_kit(built: dict[str, Path]) -> None:
    train = {one["json"]["wnid"]: int(one["cls"]) for one in samples(built["1k"], "train").values()}
    assert [train[wnid] for wnid in sorted(train)] == list(range(10))
    assert all(train[one["json"]["wnid"]] == int(one["cls"]) for one in samples(built["1k"], "val").values())


def test_val_without_classes_is_unlabelled_and_said_so(look: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        (tmp_path / "data" / name).symlink_to(look / "imagenet_tars" / name)
    shutil.copytree(look / "ImageNet-S", tmp_path / "data" / "ImageNet-S")
    said: list[str] = []
    datakit.build(recipe("1k"), data=tmp_path / "data", out=tmp_path / "out", workers=0, say=said.append)
    val = samples(tmp_path / "out", "val").values()
    assert {(one["cls"], one["json"]["wnid"], one["json"]["class_id"]) for one in val} == {(b"-1", "", -1)}
    assert all(one["json"]["name"].startswith("ILSVRC2012_val_") for one in val)
    assert [line for line in said if "class of 50 images is not known" in line and "devkit" in line]
    assert "class of 50 images is not known" in (tmp_path / "out" / "README.md").read_text()


def test_a_loader_gives_ids_through_the_geometry_of_the_image(look: Path, built: dict[str, Path]) -> None:
    only = Overlay.split(built["919"] / "samples.parquet", "validation")
    view = Views((View(size_px=32, scale=(0.5, 1.0), flip=0.5),), None)
    loader = Loader(built["919"], 7, transform=view, columns=["mask", "label", "json"], overlay=only)
    seen = 0
    for batch in loader:
        assert batch["mask"].dtype.is_floating_point is False
        assert (str(batch["mask"].dtype), tuple(batch["mask"].shape[1:])) == ("torch.int64", (32, 32))
        for image, mask, label, about in zip(batch.images, batch["mask"], batch["label"], batch["json"], strict=True):
            assert about["split"] == "validation"
            assert {*mask.unique().tolist()} <= {0, 1000, int(label)}
            shown = image.float().mean(0).numpy()
            inside = mask.numpy() == int(label)
            if inside.sum() > 30:
                seen += 1
                assert shown[inside].mean() > shown[mask.numpy() == 0].mean() + 20
    assert seen > 10


def test_hugging_face_datasets_takes_the_folder_with_its_card(built: dict[str, Path], tmp_path: Path) -> None:
    code = (
        "import datasets, json, sys\n"
        "sets = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])\n"
        "print(json.dumps({s: [one['json']['split'] + one['json']['same_as'][:1] for one in sets[s]] for s in sets}))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(built["50"]), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    splits = json.loads(done.stdout.splitlines()[-1])
    wanted = {"train": ("train", 18), "train_semi": ("train-semin", 6), "validation": ("validation", 8)}
    assert splits == {split: [text] * n for split, (text, n) in {**wanted, "test": ("test", 13)}.items()}


def test_what_is_missing_is_named_and_stops_the_build(look: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(look, data, ignore=shutil.ignore_patterns("imagenet_tars", "truth"))
    lists = read_lists(data / "ImageNet-S" / "data", "50")
    lost, cut = (lists.splits["validation"][n] for n in (0, 1))
    (data / "imagenet" / "val" / lost.imagenet_wnid / f"{lost.stem}.JPEG").unlink()
    shutil.rmtree(data / "imagenet" / "train" / "n07749582")
    (archive,) = (data / "annotations").glob("ImageNetS50-*.zip")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(data / "ImageNetS50.zip", "w") as new:
        for name in old.namelist():
            if not name.endswith(f"{cut.stem}.png"):
                new.writestr(name, old.read(name))
    archive.unlink()
    with pytest.raises(SourceError) as raised:
        datakit.build(recipe("50"), data=data, out=tmp_path / "out", workers=0)
    told = str(raised.value)
    for text in (
        f"{lost.wnid}/{lost.stem}.JPEG",
        f"{cut.wnid}/{cut.stem}.png",
        "train: 12 samples, 18 published",
        "n07749582/*",
        "train-semi: 4 samples, 6 published",
        "--allow-missing",
    ):
        assert text in told
    assert not (tmp_path / "out" / "manifest.json").exists()
    said: list[str] = []
    manifest = datakit.build(
        recipe("50"), data=data, out=tmp_path / "out", workers=0, allow_missing=True, say=said.append
    )
    assert {*manifest.missing} == {"train", "train-semi", "validation"}
    assert any(lost.stem in line for line in said)
    dropped = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    assert {"split": "validation", "name": f"{cut.wnid}/{cut.stem}.png", "dropped": "missing", "detail": ""} in dropped
    assert len(samples(tmp_path / "out", "validation")) == 6
    (data / "ImageNetS50.zip").unlink()
    with pytest.raises(SourceError, match=r"validation: 0 samples, 8 published: .*png"):
        datakit.build(recipe("50"), data=data, out=tmp_path / "out", workers=0)


def test_what_cannot_be_read_stops_the_build_until_it_is_mended(
    look: Path, built: dict[str, Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(look, data, ignore=shutil.ignore_patterns("imagenet_tars", "truth"))
    made = recipe("919", **{"shards.max_samples": 9})
    broken = sorted((data / "imagenet" / "train" / "n01443537").iterdir())[0]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:3])
    for _ in range(2):
        with pytest.raises(StageError, match=f"train: n01443537/{broken.name}: unreadable"):
            datakit.build(made, data=data, out=tmp_path / "out", workers=0)
    manifest = datakit.build(made, data=data, out=tmp_path / "out", workers=0, allow_missing=True)
    (count,) = [one for one in manifest.counts if one.source == "imagenet_s/train"]
    assert (count.came, count.left, count.dropped) == (54, 53, {"unreadable": 1})
    assert broken.stem not in samples(tmp_path / "out", "train")
    broken.write_bytes(whole)
    datakit.build(made, data=data, out=tmp_path / "out", workers=0)
    assert digests(tmp_path / "out") == digests(built["919"])


@pytest.mark.parametrize(("shape", "number", "words"), [((), 51, "id 51 in a mask: 0 to 50"), ((9, 9), 1, "9 x 9 px")])
def test_a_mask_of_another_variant_or_size_is_refused(
    look: Path, tmp_path: Path, shape: tuple[int, ...], number: int, words: str
) -> None:
    (archive,) = (look / "annotations").glob("ImageNetS50-*.zip")
    with zipfile.ZipFile(archive) as masks:
        masks.extractall(tmp_path / "masks")
    one = sorted((tmp_path / "masks").rglob("*.png"))[0]
    one.write_bytes(ids.encode(np.full(shape or ids.decode(one.read_bytes()).shape, number)))
    small = recipe("50", annotations=str(tmp_path / "masks"))
    with pytest.raises(StageError, match=rf"{one.stem}.JPEG: mask_unreadable: .*{words}"):
        datakit.build(small, data=look, out=tmp_path / "out", workers=0)
    one.unlink()
    (one.parent / one.name).write_bytes(b"no PNG")
    with pytest.raises(StageError, match="not an image of a known format"):
        datakit.build(small, data=look, out=tmp_path / "out", workers=0)


def test_lists_that_are_not_the_published_ones_stop_the_build(look: Path, tmp_path: Path) -> None:
    toolbox = tmp_path / "toolbox" / "data"
    shutil.copytree(look / "ImageNet-S" / "data", toolbox)
    (toolbox / "published.json").unlink()
    with pytest.raises(SourceError, match=r"categories/ImageNetS_categories_im50.txt: is not the list as published"):
        datakit.build(recipe("50", lists=str(tmp_path / "toolbox")), data=look, out=tmp_path / "out", workers=0)
    name = toolbox / "mapping" / "ImageNetS_im50_mapping_test.txt"
    name.write_text(name.read_text().replace(".JPEG n", ".JPEG  n", 1))
    with pytest.raises(SourceError, match=r"ImageNetS_im50_mapping_test.txt: .* expected class/image"):
        datakit.build(recipe("50", lists=str(tmp_path / "toolbox")), data=look, out=tmp_path / "out", workers=0)
    with pytest.raises(SourceError, match="lists of ImageNet-S are not there"):
        datakit.build(recipe("50", lists=str(tmp_path / "nowhere")), data=look, out=tmp_path / "out", workers=0)


def test_two_copies_of_an_image_must_be_the_same(look: Path, tmp_path: Path) -> None:
    """An archive beside its unpacked files is fine; two different files of one name are not."""
    both = tmp_path / "both"
    shutil.copytree(look / "imagenet", both / "folders")
    shutil.copy(look / "imagenet_tars" / "ILSVRC2012_img_train.tar", both)
    assert imagenet.images(both).table().num_rows == 110
    one = next(both.rglob("n01443537_*.JPEG"))
    one.write_bytes(one.read_bytes() + b"more")
    with pytest.raises(SourceError, match="different files of one name"):
        imagenet.images(both).table()


@pytest.mark.parametrize("cut", [700, 5000, -600])
def test_a_tar_that_is_cut_short_is_told(look: Path, tmp_path: Path, cut: int) -> None:
    data = (look / "imagenet_tars" / "ILSVRC2012_img_train.tar").read_bytes()
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(data[: cut if cut > 0 else data.rstrip(b"\0").__len__() + cut])
    with pytest.raises(SourceError, match=r"ILSVRC2012_img_train\.tar.*cut short"):
        imagenet.images(tmp_path)


@settings(max_examples=30)
@given(st.integers(0, 9_999), st.integers(1, 10_000))
def test_rows_of_a_shard_are_read_wherever_they_begin(begin: int, count: int) -> None:
    end = min(begin + count, 10_000)
    with tempfile.TemporaryDirectory() as name:
        table = pa.table({"n": pa.chunked_array([np.arange(7_001), np.arange(7_001, 10_000)])})
        write_part(table, Path(name) / "a.parquet", Path(name), Funnel())
        assert read_rows(Path(name) / "a.parquet", begin, end).column("n").to_pylist() == list(range(begin, end))


def test_variants_side_by_side_are_warned_of_and_recorded(look: Path, tmp_path: Path) -> None:
    said: list[str] = []
    for variant in ("50", "919"):
        datakit.build(recipe(variant), data=look, out=tmp_path / variant, workers=0, say=said.append)
    warnings = [line for line in said if "Do not tune on one variant and test on another" in line]
    assert len(warnings) == 1
    assert "1 validation in its test" in warnings[0]
    leaked = json.loads((tmp_path / "919" / "imagenet_s.json").read_text())["shared_with"]["50"]
    back = json.loads((tmp_path / "50" / "imagenet_s.json").read_text())["shared_with"]["919"]
    assert leaked["validation_in_its_test"] == back["test_in_its_validation"]
    (stem,) = back["test_in_its_validation"]
    assert stem in samples(tmp_path / "50", "test")
    assert stem in samples(tmp_path / "919", "validation")


def test_the_recipe_is_checked_whole(tmp_path: Path) -> None:
    assert (recipe("50").name, recipe("1k").name) == ("imagenet_s_50", "imagenet_1k")
    plain = yaml.safe_load(Path(RECIPE).read_text()) | {"variant": 51, "sed": 3}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(RecipeError, match="2 wrong") as raised:
        kinds.load(tmp_path / "wrong.yaml")
    assert "variant" in str(raised.value)
    assert "sed" in str(raised.value)
    with pytest.raises(RecipeError, match="split and captions"):
        recipe("50", **{"shards.captions": True})
    with pytest.raises(RecipeError, match="--protect, --licence and --decisions"):
        kinds.load(RECIPE, licences=["MIT"])


def test_check_tells_what_a_build_would_do(look: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(look.rglob("*"))
    assert main(["check", RECIPE, "--data", str(look), "--set", "variant=300"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "24", "24", "0"] in rows
    assert sorted(look.rglob("*")) == before
    assert main(["check", RECIPE, "--data", str(tmp_path), "--set", f"lists={look}"]) == 1
    assert "no image of ImageNet-1k there" in capsys.readouterr().err


def test_a_work_folder_tells_of_the_build_and_gc_leaves_what_it_uses(look: Path, tmp_path: Path) -> None:
    datakit.build(recipe("50"), data=look, out=tmp_path / "out", workers=0)
    (build,) = status(tmp_path / "out.work")
    assert (build["recipe"], build["state"], build["steps"]) == (
        "imagenet_s_50",
        "complete",
        {"list": [4, 4], "shards": [4, 4]},
    )
    datakit.build(recipe("50", seed=1), data=look, out=tmp_path / "out", workers=0)
    assert gc(tmp_path / "out.work")["files"] == 8
    datakit.build(recipe("50", seed=1), data=look, out=tmp_path / "out", workers=0)
    assert "shards_written" not in work_done(tmp_path / "out")
    with pytest.raises(StageError, match="holds another set, imagenet_s_50"):
        datakit.build(recipe("300"), data=look, out=tmp_path / "out", workers=0)


def test_the_look_alike_is_the_same_every_time(look: Path, tmp_path: Path) -> None:
    assert main(["synth", "imagenet_s", str(tmp_path / "again")]) == 0
    assert digests(tmp_path / "again") == digests(look)


needs_lists = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="no ../shared/data/imagenet_s here")


@needs_lists
def test_the_official_lists_are_as_published() -> None:
    about = recipe("50").collection
    relabelled = merged = 0
    for variant in VARIANTS[:3]:
        lists = read_lists(OFFICIAL, variant)
        counts = {split: len(some) for split, some in lists.splits.items()}
        published = {s: n for s, n in about.versions[variant].items() if s not in ("train", "classes")}
        assert counts == published
        assert len(lists.wnids) == int(variant)
        assert all(about.lists[name].model_dump() == said for name, said in lists.files.items())
        assert len(lists.sources(variant)) == (924 if variant == "919" else int(variant))
        if variant == "919":
            other = [one for s in ("validation", "test") for one in lists.splits[s] if one.wnid != one.imagenet_wnid]
            relabelled, merged = len(other), sum(MERGED.get(one.imagenet_wnid) == one.wnid for one in other)
    assert (relabelled, merged) == (5223, 84)


@needs_lists
def test_images_that_leak_between_the_official_variants() -> None:
    lists = {variant: read_lists(OFFICIAL, variant) for variant in VARIANTS[:3]}
    for variant, count in (("50", 4), ("300", 19)):
        assert len(shared(lists[variant], lists["919"])["test_in_its_validation"]) == count


@needs_lists
def test_the_official_lists_make_the_published_splits(tmp_path: Path) -> None:
    """Of 50, with one picture for all images: only the training images that no list names are missing."""
    picture, lists = io.BytesIO(), read_lists(OFFICIAL, "50")
    Image.new("RGB", (8, 6)).save(picture, "JPEG")
    stems = sorted({one.stem for some in lists.splits.values() for one in some})
    (tmp_path / "clone").symlink_to(OFFICIAL)
    (tmp_path / "ILSVRC2012_img_any.tar").write_bytes(tar_of({f"{stem}.JPEG": picture.getvalue() for stem in stems}))
    with zipfile.ZipFile(tmp_path / "ImageNetS50-downloaded.zip", "w") as archive:
        for split in ("validation", "train-semi"):
            for one in lists.splits[split]:
                mask = ids.encode(np.full((6, 8), 1 + lists.wnids.index(one.wnid)))
                archive.writestr(f"ImageNetS50/{split}-segmentation/{one.wnid}/{one.stem}.png", mask)
    with pytest.raises(SourceError) as raised:
        datakit.build(recipe("50"), data=tmp_path, out=tmp_path / "out", workers=0)
    assert str(raised.value).splitlines()[1:-1] == ["  train: 500 samples, 64,431 published"]
    manifest = datakit.build(recipe("50"), data=tmp_path, out=tmp_path / "out", workers=0, allow_missing=True)
    counts = {shard.split: shard.samples for shard in manifest.shards}
    assert counts == {"train": 500, "train-semi": 500, "validation": 752, "test": 1682}
    about = json.loads((tmp_path / "out" / "imagenet_s.json").read_text())
    assert all(said["as_published"] for said in about["lists"].values())
    assert len(about["shared_with"]["919"]["test_in_its_validation"]) == 4
