"""Builds of camera RAW: mosaics to the bit, boxes and ids as published, and colours that are those of the scene."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import rawpy
import torch
from PIL import Image, ImageOps
from worlds import digests

import datakit
from datakit import bayer, codec, raw
from datakit.boxes import loads, slice_coco
from datakit.cli import main
from datakit.errors import RecipeError
from datakit.image import quiet
from datakit.manifest import Manifest
from datakit.recipe import Recipe
from datakit.sources import synth_raw
from datakit.views import NAMED, View

SIZE = (216, 152)  # of the sensors; frames of 208 x 136 px
SLICES: dict[str, Any] = {"slice.published.size_px": 96, "slice.published.gap_px": 24}
Members = dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small AODRaw, with truth.json."""
    folder = tmp_path_factory.mktemp("world")
    truth = synth_raw.make(folder, seed=1, size=SIZE, images=12)
    (folder / "truth.json").write_text(json.dumps(truth))
    return folder


def build(world: Path, out: Path, changes: dict[str, Any] | None = None, workers: int = 0) -> Manifest:
    recipe = Recipe.load("aodraw", {**SLICES, **(changes or {})} if (changes or {}).get("view") is None else changes)
    return datakit.build(recipe, data=world, out=out, workers=workers)


@pytest.fixture(scope="module")
def built(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices of RAW and JPEG."""
    out = tmp_path_factory.mktemp("built") / "out"
    build(world, out, {"domain": "both"})
    return out


def samples(out: Path) -> Members:
    """Members of every sample of a set, by key."""
    found: Members = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, suffix = info.name.partition(".")
                file = tar.extractfile(info)
                assert file is not None
                found.setdefault(key, {})[suffix] = file.read()
    return found


def truth_of(world: Path) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in json.loads((world / "truth.json").read_text()) if entry["what"] == "raw"}


def in_frame(world: Path, name: str) -> tuple[Any, str]:
    """What LibRaw gives of a file, turned and cut by hand to the frame of the JPEG, and its pattern there."""
    about = truth_of(world)[name]
    with rawpy.imread(str(world / "aodraw" / name)) as file:
        mosaic = file.raw_image_visible.copy()
    colours = np.tile(np.array(list(about["cfa"])).reshape(2, 2), (mosaic.shape[0] // 2, mosaic.shape[1] // 2))
    turns = {1: 0, 3: 2, 6: -1, 8: 1}[about["orientation"]]
    left, top = about["frame"]
    place = np.s_[top : top + about["height"], left : left + about["width"]]
    turned, colours = np.rot90(mosaic, turns)[place], np.rot90(colours, turns)[place]
    return turned, "".join(colours[:2, :2].ravel())


def test_what_is_planted_goes_for_its_own_reason(world: Path, built: Path) -> None:
    dropped = {(row["name"], row["dropped"]) for row in pq.read_table(built / "dropped.parquet").to_pylist()}
    kept = set(pq.read_table(built / "samples.parquet").column("name").to_pylist())
    for name, about in truth_of(world).items():
        if about["expect"] == "kept":
            assert name in kept
            assert {why for other, why in dropped if other == name} <= {"no_boxes"}
        else:
            assert name not in kept
            assert (name, about["expect"]) in dropped
    for count in Manifest.load(built).counts:
        assert count.came == count.left + sum(count.dropped.values())


def test_every_mosaic_is_rawpys_to_the_bit(world: Path, built: Path) -> None:
    found, orientations = samples(built), set()
    assert len(found) > 20
    for members in found.values():
        about = json.loads(members["json"])
        camera = json.loads(about["camera"])
        mosaic, cfa = in_frame(world, about["name"])
        left, top, width, height = about["window"]
        np.testing.assert_array_equal(codec.decode(members["raw"]), mosaic[top : top + height, left : left + width])
        assert camera["cfa"] == cfa  # windows begin at even pixels
        assert (camera["white"], camera["full"], camera["black"]) == (16383, 16383, [512.0] * 4)
        assert about["tags"] == json.dumps(truth_of(world)[about["name"]]["tag"])
        assert about["split"] == truth_of(world)[about["name"]]["split"]
        orientations.add((camera["orientation"], camera["cfa"]))
    assert len(orientations) >= 8


def test_colours_are_those_of_the_scene(world: Path, built: Path) -> None:
    """Of whole objects in a window: black, white balance and matrix of the JSON give the colour that was drawn."""
    seen = 0
    for members in samples(built).values():
        about = json.loads(members["json"])
        camera, truth = json.loads(about["camera"]), truth_of(world)[about["name"]]
        planes = raw.pack(codec.decode(members["raw"]), camera["cfa"])
        signal = raw.normalise(planes, bayer.packed_order(camera["black"], camera["cfa"]), camera["white"])
        left, top, width, height = about["window"]
        for thing in truth["objects"]:
            x, y = thing["box"][0] - truth["frame"][0] - left, thing["box"][1] - truth["frame"][1] - top
            across, down = thing["box"][2:]
            if min(x, y) < 0 or x + across > width or y + down > height:
                continue
            part = signal[:, y // 2 + 1 : (y + down) // 2 - 1, x // 2 + 1 : (x + across) // 2 - 1].mean(axis=(1, 2))
            red, green, blue = part[0], (part[1] + part[3]) / 2, part[2]
            balanced = np.array([red, green, blue]) * camera["white_balance"] / truth["exposure"]
            colour = np.reshape(camera["matrix"], (3, 3)) @ balanced
            if min(np.linalg.inv(np.reshape(synth_raw.MATRIX, (3, 3))) @ thing["colour"]) > 0.02:  # no channel is cut
                np.testing.assert_allclose(colour, thing["colour"], atol=0.02)
                seen += 1
    assert seen > 20


def test_jpegs_show_the_same_windows(world: Path, built: Path) -> None:
    for members in samples(built).values():
        about = json.loads(members["json"])
        left, top, width, height = about["window"]
        with Image.open(world / "aodraw" / about["name"].replace(".dng", ".JPG")) as file:
            whole = np.asarray(ImageOps.exif_transpose(file).convert("RGB"), np.float32)
        shown = np.asarray(Image.open(io.BytesIO(members["jpg"])), np.float32)
        assert np.abs(shown - whole[top : top + height, left : left + width]).mean() < 2


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_coco_file_is_that_of_the_published_rules(world: Path, built: Path, split: str) -> None:
    coco = json.loads((world / f"aodraw/annotations/{split}_annotations.json").read_text())
    expected = slice_coco(coco, size_px=96, gap_px=24)
    names = {i["id"]: i["file_name"] for i in coco["images"]}
    good = {name.removeprefix("images/") for name, about in truth_of(world).items() if about["expect"] == "kept"}
    images = [i for i in expected["images"] if names[i["ori_id"]] in good]
    found = json.loads((built / f"aodraw-{split}.coco.json").read_text())
    assert [{k: v for k, v in i.items() if k != "key"} for i in found["images"]] == images
    ids = {i["id"] for i in images}
    assert found["annotations"] == [a for a in expected["annotations"] if a["image_id"] in ids]
    assert found["categories"] == coco["categories"]
    by_key = samples(built)
    keys = [i["key"] for i in found["images"]]
    ours = {key for key, members in by_key.items() if json.loads(members["json"])["split"] == split}
    assert set(keys) == ours
    assert len(set(keys)) == len(keys)
    for image in found["images"]:
        about = json.loads(by_key[image["key"]]["json"])
        assert about["window"] == [image["x_start"], image["y_start"], 96, 96]
        crowds = [a["iscrowd"] for a in found["annotations"] if a["image_id"] == image["id"]]
        assert sorted(crowds) == sorted(int(box.ignore) for box in loads(about["boxes"]))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_bytes_with_any_number_of_workers(world: Path, built: Path, tmp_path: Path, workers: int) -> None:
    build(world, tmp_path / "out", {"domain": "both"}, workers)
    assert digests(tmp_path / "out") == digests(built)


def published_raw(world: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """AODRaw's load_raw, restated: turned, taken for RGGB, in planes red, green, blue, green; cut as its JPEG."""
    about = truth_of(world)[name]
    with rawpy.imread(str(world / "aodraw" / name)) as file:
        mosaic = file.raw_image_visible.astype(np.float32)
    if about["orientation"] == 8:
        mosaic = mosaic[:, ::-1].T
    planes = np.stack([mosaic[0::2, 0::2], mosaic[0::2, 1::2], mosaic[1::2, 1::2], mosaic[1::2, 0::2]])
    down, across = (planes.shape[1] - about["height"] // 2) // 2, (planes.shape[2] - about["width"] // 2) // 2
    return planes[:, down : planes.shape[1] - down, across : planes.shape[2] - across], about


def test_reference_slices_are_the_published_arrays(world: Path, tmp_path: Path) -> None:
    build(world, tmp_path / "out", {"layout": "reference"})
    checked = 0
    for members in samples(tmp_path / "out").values():
        about = json.loads(members["json"])
        if truth_of(world)[about["name"]]["orientation"] not in (1, 8):  # of others the published script makes nothing
            continue
        planes, _ = published_raw(world, about["name"])
        left, top, width, height = about["window"]
        part = planes[:, top // 2 : (top + height) // 2, left // 2 : (left + width) // 2]
        found = np.load(io.BytesIO(members["npy"]))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, part)
        checked += 1
    assert checked > 10


def published_third(world: Path, name: str, cfa: str | None = None) -> Any:
    """AODRaw's down-sampling, restated with torch: demosaic as RGGB, cut, bilinear to a third; (3, h, w), 14 bits."""
    about = truth_of(world)[name]
    with rawpy.imread(str(world / "aodraw" / name)) as file:
        mosaic = np.rot90(file.raw_image_visible.copy(), {1: 0, 8: 1, 6: -1, 3: 2}[about["orientation"]])
    rgb = torch.from_numpy(raw.demosaic(np.ascontiguousarray(mosaic), cfa or "RGGB"))[None]
    left, top = about["frame"]
    rgb = rgb[:, :, top : top + about["height"], left : left + about["width"]]
    size = (about["height"] // 3, about["width"] // 3)
    return torch.nn.functional.interpolate(rgb, size=size, mode="bilinear")[0].numpy()


def test_reduced_images_are_the_published_ones(world: Path, tmp_path: Path) -> None:
    build(world, tmp_path / "out", {"view": "downsampled", "layout": "reference"})
    found = samples(tmp_path / "out")
    assert len(found) == 12
    for members in found.values():
        expected = published_third(world, json.loads(members["json"])["name"]) / ((2**14 - 1) / 255.0)
        np.testing.assert_allclose(np.load(io.BytesIO(members["npy"])), expected, rtol=3e-7)


def test_reduced_images_have_16_bits_and_their_own_pattern(world: Path, tmp_path: Path) -> None:
    build(world, tmp_path / "out", {"view": "downsampled", "domain": "both"})
    found = samples(tmp_path / "out")
    for members in found.values():
        about = json.loads(members["json"])
        truth = truth_of(world)[about["name"]]
        with quiet(), rasterio.MemoryFile(members["tif"]) as memory, memory.open() as raster:
            levels = raster.read()
        assert levels.dtype == np.uint16
        assert levels.shape == (3, truth["height"] // 3, truth["width"] // 3)
        turned = bayer.turn_sites(truth["cfa"], SIZE[::-1], truth["orientation"])
        expected = published_third(world, about["name"], "".join(turned)) / 16383 * 65535
        np.testing.assert_allclose(levels, expected, atol=0.51)
        assert Image.open(io.BytesIO(members["jpg"])).size == (about["width"], about["height"])
    notes = json.loads((tmp_path / "out/aodraw-train.coco.json").read_text())
    original = json.loads((world / "aodraw/annotations/train_annotations.json").read_text())
    sizes = {i["id"]: (i["width"], i["height"]) for i in original["images"]}
    first = next(a for a in original["annotations"] if a["id"] == notes["annotations"][0]["id"])
    width, height = sizes[first["image_id"]]
    factors = (width // 3 / width, height // 3 / height) * 2
    np.testing.assert_allclose(notes["annotations"][0]["bbox"], np.multiply(first["bbox"], factors), atol=1e-6)
    assert "not the published ones" in (tmp_path / "out/README.md").read_text()


def test_published_annotations_of_reduced_images_are_taken(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "world")
    home = tmp_path / "world/aodraw/annotations"
    for split in ("train", "test"):
        coco = json.loads((home / f"{split}_annotations.json").read_text())
        for image in coco["images"]:
            image |= {"width": image["width"] // 3, "height": image["height"] // 3}
        coco["annotations"] = [{**a, "bbox": [1, 2, 30, 20]} for a in coco["annotations"][::2]]
        (home / f"{split}_annotations_downsample_scale3_bbox_min_size32.json").write_text(json.dumps(coco))
    build(tmp_path / "world", tmp_path / "out", {"view": "downsampled"})
    for members in samples(tmp_path / "out").values():
        for box in loads(json.loads(members["json"])["boxes"]):
            np.testing.assert_allclose(box.points, [1, 2, 31, 2, 31, 22, 1, 22], atol=1e-4)
    notes = json.loads((tmp_path / "out/aodraw-train.coco.json").read_text())["annotations"]
    assert {tuple(a["bbox"]) for a in notes} == {(1, 2, 30, 20)}
    assert "not the published ones" not in (tmp_path / "out/README.md").read_text()


def test_whole_images_of_jpegs_alone(world: Path, tmp_path: Path) -> None:
    build(world, tmp_path / "out", {"view": "full", "domain": "srgb"})
    found = samples(tmp_path / "out")
    assert len(found) == 12
    for members in found.values():
        about = json.loads(members["json"])
        truth = truth_of(world)[about["name"]]
        assert Image.open(io.BytesIO(members["jpg"])).size == (truth["width"], truth["height"])
        if truth["orientation"] == 1:  # any decoder shows it alike: the camera's own bytes
            path = world / "aodraw" / about["name"].replace(".dng", ".JPG")
            assert members["jpg"] == path.read_bytes()


def test_shifted_pairs_are_measured_and_left_out_where_asked(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "world")
    name = "images/00000000.dng"
    path = tmp_path / "world/aodraw/images/00000000.JPG"
    with Image.open(path) as file:
        shifted = np.roll(np.asarray(file), (0, 6), (0, 1))
    Image.fromarray(shifted).save(path, quality=95)
    build(tmp_path / "world", tmp_path / "out", {"view": "full"})
    rows = pq.read_table(tmp_path / "out/samples.parquet", columns=["name", "pair_shift_px", "camera"]).to_pylist()
    by_name = {row["name"]: row for row in rows}
    assert by_name[name]["pair_shift_px"] == 6
    assert json.loads(by_name[name]["camera"])["shifts_px"].count([6.0, 0.0]) >= 10
    assert all(row["pair_shift_px"] in (0, None) for other, row in by_name.items() if other != name)
    build(tmp_path / "world", tmp_path / "less", {"view": "full", "max_pair_shift_px": 4})
    dropped = pq.read_table(tmp_path / "less/dropped.parquet").to_pylist()
    assert [row["name"] for row in dropped if row["dropped"] == "pair_shift"] == [name]


def test_boxes_at_the_border_and_of_other_sizes(world: Path, tmp_path: Path) -> None:
    """A box of which half lies outside of the image is one all the same; annotations of another size are refused."""
    shutil.copytree(world, tmp_path / "world")
    path = tmp_path / "world/aodraw/annotations/train_annotations.json"
    coco = json.loads(path.read_text())
    one, other = (next(i for i in coco["images"] if i["id"] == n) for n in (0, 1))
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] != 0]
    border = {"image_id": 0, "bbox": [-20, 10, 40, 20], "area": 800, "category_id": 0, "iscrowd": 0, "id": 999}
    coco["annotations"].append(border)
    other["width"], other["height"] = other["height"], other["width"]
    path.write_text(json.dumps(coco))
    build(tmp_path / "world", tmp_path / "out", {"domain": "raw"})
    dropped = {row["name"]: row for row in pq.read_table(tmp_path / "out/dropped.parquet").to_pylist()}
    assert dropped["images/00000001.dng"]["dropped"] == "label_unreadable"
    assert "136 x 208 px, where it has 208 x 136" in dropped["images/00000001.dng"]["detail"]
    sliced = json.loads((tmp_path / "out/aodraw-train.coco.json").read_text())
    (mine,) = [i for i in sliced["images"] if i["ori_id"] == one["id"]]
    (note,) = [a for a in sliced["annotations"] if a["image_id"] == mine["id"]]
    assert (note["iscrowd"], note["bbox"]) == (0, [0, 10, 20, 20])
    (box,) = loads(json.loads(samples(tmp_path / "out")[mine["key"]]["json"])["boxes"])
    assert (box.ignore, box.iof) == (False, 0.5)


def test_an_archive_gives_the_samples_of_its_folder(world: Path, built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "aodraw.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted((world / "aodraw").rglob("*.*")):
            archive.write(path, path.relative_to(world / "aodraw"))
    build(tmp_path, tmp_path / "out", {"domain": "both"})
    mine, its = digests(tmp_path / "out"), digests(built)
    same = [name for name in its if name.endswith((".tar", ".coco.json"))]
    assert len(same) == 6
    assert {name: mine[name] for name in same} == {name: its[name] for name in same}


def test_copies_go_as_duplicates_and_held_out_pictures_stay_out(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "world")
    images, notes = tmp_path / "world/aodraw/images", tmp_path / "world/aodraw/annotations"
    coco = json.loads((notes / "train_annotations.json").read_text())
    for suffix in ("dng", "JPG"):
        shutil.copy(images / f"00000000.{suffix}", images / f"90000000.{suffix}")
    first = next(i for i in coco["images"] if i["id"] == 0)
    coco["images"].append({**first, "id": 900, "file_name": "90000000.dng"})
    (notes / "train_annotations.json").write_text(json.dumps(coco))
    held = tmp_path / "held"
    held.mkdir()
    shutil.copy(images / "00000001.JPG", held / "one.jpg")
    signed = tmp_path / "one.heldout"
    command = ["protect", "sign", str(held), "-o", str(signed), "--name", "one", "--recipe", "aodraw", "--workers", "0"]
    assert main([*command, "--set", "view=full"]) == 0
    recipe = Recipe.load("aodraw", {"view": "full", "dedup": {}}, protect=[signed])
    datakit.build(recipe, data=tmp_path / "world", out=tmp_path / "out", workers=0)
    dropped = {row["name"]: row["dropped"] for row in pq.read_table(tmp_path / "out/dropped.parquet").to_pylist()}
    assert sum(dropped.get(f"images/{name}.dng") == "duplicate" for name in ("00000000", "90000000")) == 1
    assert dropped["images/00000001.dng"] == "protected"


def test_a_folder_of_any_raw(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data/raw_folder/trip"
    folder.mkdir(parents=True)
    for n in range(2):
        shutil.copy(world / f"aodraw/images/0000000{4 + n}.dng", folder / f"{n}.DNG")
    shutil.copy(world / "aodraw/images/00000004.JPG", folder / "0.jpg")
    box = "<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>50</xmax><ymax>60</ymax></bndbox>"
    (folder / "1.xml").write_text(f"<annotation><object><name>car</name>{box}</object></annotation>")
    datakit.build(Recipe.load("raw_folder"), data=tmp_path / "data", out=tmp_path / "out", workers=0)
    found = {json.loads(m["json"])["name"]: m for m in samples(tmp_path / "out").values()}
    shapes = {name: codec.decode(m["raw"]).shape for name, m in found.items()}
    assert shapes == {"trip/0.DNG": (208, 136), "trip/1.DNG": (216, 152)}  # the frame of the JPEG, and of the RAW
    (only,) = loads(json.loads(found["trip/1.DNG"]["json"])["boxes"])
    assert (only.category, only.points[:2]) == ("car", (10, 20))
    np.testing.assert_array_equal(codec.decode(found["trip/1.DNG"]["raw"]), raw.read(folder / "1.DNG").mosaic)


def test_raw_files_need_a_view_and_others_have_none(world: Path, tmp_path: Path) -> None:
    recipe = Recipe.load("aodraw").model_dump(mode="json")
    plain = Recipe.model_validate({**recipe, "view": None, "slice": None, "cut": {}})
    with pytest.raises(datakit.errors.StageError, match="camera_raw"):
        datakit.build(plain, data=world, out=tmp_path / "out", workers=0)
    with pytest.raises(RecipeError, match="masks and domain: both"):
        Recipe.load("aodraw", {"cut.masks": True, "domain": "both"})
    with pytest.raises(RecipeError, match="view"):
        Recipe.load("aodraw", {"view": "tiles"})


def test_the_page_on_camera_raw_tells_every_field_and_name_of_a_view() -> None:
    page = (Path(__file__).parent.parent / "docs/camera_raw.md").read_text(encoding="utf-8")
    for name in (*View.model_fields, *NAMED):
        assert f"`{name}`" in page, name


@pytest.mark.parametrize(("changes", "name"), [({"domain": "both"}, "mosaic"), ({"layout": "reference"}, "planes")])
def test_the_card_says_how_to_read_it(world: Path, tmp_path: Path, changes: dict[str, Any], name: str) -> None:
    build(world, tmp_path, changes)
    card = (tmp_path / "README.md").read_text()
    (text,) = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    command = [sys.executable, "-c", f"{text}print({name}.shape)"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == {"mosaic": "(96, 96)", "planes": "(4, 48, 48)"}[name]


def test_a_recipe_is_the_same_once_it_is_read_back() -> None:
    for changes in ({}, {"view": "full", "domain": "srgb"}, {"view": "downsampled"}, {"layout": "reference"}):
        recipe = Recipe.load("aodraw", changes)
        assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert math.isclose(Recipe.load("aodraw").model_dump()["slice"]["published"]["iof"], 0.4)
