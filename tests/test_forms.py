"""Ways out and back: what a build gives to ImageFolder, COCO, DOTA, mmsegmentation and YOLO, read again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from test_dedup import put
from worlds import recipe_of, scene, source_of

import datakit
from datakit import boxes
from datakit.boxes import Box
from datakit.cli import main
from datakit.compare import compare
from datakit.errors import ShardError, SourceError
from datakit.forms import FORMS, NOT_A_NAME, Build, Item, export, quad_of
from datakit.manifest import ClassFolders, CocoJson, DotaText
from datakit.recipe import Recipe
from datakit.sample import Sample, make_key
from datakit.samples import Samples
from datakit.sources.labels import LabelReader

Out = pytest.CaptureFixture[str]
DOTA = """imagesource:GoogleEarth
gsd:0.5
20 20 60.5 22 58 70 18 66 large-vehicle 0
240 100 290 100 290 140 240 140 ship 1
"""
COCO_FILE = {
    "images": [{"id": 1, "file_name": "train/farm/b.png"}],
    "categories": [{"id": 3, "name": "fish pond"}, {"id": 7, "name": "barn"}],
    "annotations": [
        {
            "image_id": 1,
            "category_id": 3,
            "segmentation": [[10, 10, 80, 20, 60, 90, 30, 70, 5, 40]],
            "bbox": [1, 1, 1, 1],
        },
        {"image_id": 1, "category_id": 7, "bbox": [200, 150, 120, 40]},
        {"image_id": 1, "category_id": 7, "bbox": [30, 200, 20, 20], "iscrowd": 1},
    ],
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of two splits, with classes, boxes of every kind, masks, and an image without any of them."""
    folder = tmp_path_factory.mktemp("forms")
    root = folder / "air"
    put(root / "train" / "town" / "a.png", scene(400, 400, 300))
    put(root / "train" / "farm" / "b.png", scene(401, 380, 260))
    put(root / "more" / "town" / "c.png", scene(402, 200, 180))
    put(root / "loose.png", scene(403, 220, 180))
    (root / "labelTxt").mkdir()
    (root / "labelTxt" / "a.txt").write_text(DOTA)
    (root / "notes.json").write_text(json.dumps(COCO_FILE))
    levels = np.zeros((300, 400), np.uint8)
    levels[100:200, 50:350], levels[:, 390:] = 2, 255
    put(root / "masks" / "a.png", levels)
    source = source_of("air")
    source["collection"]["layout"] = {
        "images": ["**/*.png"],
        "label_files": ["labelTxt/*", "notes.json", "masks/*"],
        "labels": [
            {"kind": "class_folders"},
            {"kind": "dota", "path": "labelTxt/{stem}.txt"},
            {"kind": "coco", "path": "notes.json"},
            {"kind": "mask", "path": "masks/{stem}.png", "classes": {0: "land", 2: "water"}},
        ],
    }
    source["collection"]["splits"] = {"train": {"images": ["train/**"]}, "more": {"images": ["more/**"]}}
    encode = {"encode": {"format": "png"}, "masks": True}
    recipe = recipe_of("air").model_dump(mode="json", exclude_none=True)
    recipe |= {"sources": [source], "exclude": {"rules": []}, "cut": encode, "shards": {"split": ""}}
    datakit.build(Recipe.model_validate(recipe), data=folder, out=folder / "out", workers=0)
    return folder / "out"


@pytest.fixture(scope="module")
def items(out: Path) -> dict[str, Item]:
    found = {item.about["key"]: item for item in Build(out)}
    assert {item.split for item in found.values()} == {"train", "more", "all"}
    every = [box for item in found.values() for box in item.boxes]
    assert {box.kind for box in every} == {"box", "quad", "polygon"}
    assert any(box.ignore for box in every)
    assert any(box.difficult for box in every)
    assert any(box.iof < 1 for box in every)
    return found


def written(form: str, out: Path, folder: Path, capsys: Out) -> dict[str, Any]:
    assert main(["export", form, str(out), str(folder)]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing aside is left
    return told


def reader(folder: Path, *labels: Any) -> LabelReader:
    def read(name: str) -> bytes | None:
        return (folder / name).read_bytes() if (folder / name).is_file() else None

    return LabelReader(tuple(labels), read)


def read(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture)


def inside(box: Box) -> list[float]:
    """Left, top, right, bottom of what lies inside."""
    shape = np.array(box.clipped or box.points).reshape(-1, 2)
    return [*shape.min(axis=0).tolist(), *shape.max(axis=0).tolist()]


def test_images_are_the_very_bytes(out: Path, items: dict[str, Item], tmp_path: Path, capsys: Out) -> None:
    tars = Build(out).tars
    places = {"coco": "{split}/{key}.png", "dota": "{split}/images/{key}.png", "yolo": "images/{split}/{key}.png"}
    for form, place in places.items():
        told = written(form, out, tmp_path / form / "set", capsys)
        assert told["images"] == len(items)
        for key, item in items.items():
            path = tmp_path / form / "set" / place.format(split=item.split, key=key)
            assert path.read_bytes() == tars.read(item.row, "png")


def test_imagefolder_is_read_back(out: Path, items: dict[str, Item], tmp_path: Path, capsys: Out) -> None:
    told = written("imagefolder", out, tmp_path / "set", capsys)
    labelled = {key: item for key, item in items.items() if item.about["label"]}
    assert (told["images"], told["without_label"]) == (len(labelled), len(items) - len(labelled))
    assert told["without_label"] > 0
    ask = reader(tmp_path / "set", ClassFolders())
    found = {path.stem: path for path in (tmp_path / "set").rglob("*.png")}
    assert set(found) == set(labelled)
    for key, path in found.items():
        name = path.relative_to(tmp_path / "set").as_posix()
        assert name.split("/")[0] == labelled[key].split
        assert ask(Sample(name=name)).label == labelled[key].about["label"]


def test_coco_is_read_back(out: Path, items: dict[str, Item], tmp_path: Path, capsys: Out) -> None:
    told = written("coco", out, tmp_path / "set", capsys)
    assert told["boxes"] == sum(len(item.boxes) for item in items.values())
    for key, item in items.items():
        label = CocoJson(path=f"annotations/instances_{item.split}.json", images=item.split)
        found = reader(tmp_path / "set", label)(Sample(name=f"{item.split}/{key}.png")).boxes
        assert [(b.category, b.ignore) for b in found] == [(b.category, b.ignore) for b in item.boxes]
        for mine, theirs in zip(item.boxes, found, strict=True):
            if mine.kind == "box":
                assert (theirs.kind, inside(theirs)) == ("box", pytest.approx(inside(mine)))
            else:
                assert theirs.points == (mine.clipped or mine.points)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, on numpy 2
def test_the_tools_of_coco_read_it(out: Path, items: dict[str, Item], tmp_path: Path, capsys: Out) -> None:
    written("coco", out, tmp_path / "set", capsys)
    notes = COCO(tmp_path / "set" / "annotations" / "instances_train.json")
    assert [c["name"] for c in notes.loadCats(notes.getCatIds())] == ["barn", "fish pond", "large-vehicle", "ship"]
    for image in notes.loadImgs(notes.getImgIds()):
        found = notes.loadAnns(notes.getAnnIds(imgIds=[image["id"]]))
        assert (image["width"], image["height"]) == tuple(items[image["key"]].about[n] for n in ("width", "height"))
        for note in found:
            if note["segmentation"]:
                assert notes.annToMask(note).sum() == pytest.approx(note["area"], rel=0.1)
            assert note["bbox"][0] + note["bbox"][2] <= image["width"]


def test_dota_is_read_back(out: Path, items: dict[str, Item], tmp_path: Path, capsys: Out) -> None:
    told = written("dota", out, tmp_path / "set", capsys)
    changed = 0
    for key, item in items.items():
        ask = reader(tmp_path / "set", DotaText())
        found = ask(Sample(name=f"{item.split}/images/{key}.png"))
        assert found.gsd_m == item.about["gsd_m"]
        assert [b.category for b in found.boxes] == [b.category.replace(" ", "-") for b in item.boxes]
        assert [b.difficult for b in found.boxes] == [b.difficult or b.ignore for b in item.boxes]
        for mine, theirs in zip(item.boxes, found.boxes, strict=True):
            points, made = quad_of(mine.points)
            changed += made
            assert theirs.points == points
            if made:
                low, high = np.array(points).reshape(-1, 2), np.array(mine.points).reshape(-1, 2)
                assert (
                    np.linalg.norm(low - low.mean(0), axis=1).max()
                    >= np.linalg.norm(high - low.mean(0), axis=1).max() - 0.1
                )
    assert told["polygons_to_rectangles"] == changed > 0


def test_mmseg_is_read_back(out: Path, items: dict[str, Item], tmp_path: Path, capsys: Out) -> None:
    written("mmseg", out, tmp_path / "set", capsys)
    tars = Build(out).tars
    classes = json.loads((tmp_path / "set" / "classes.json").read_text())
    assert classes == {"air": {"0": "land", "2": "water"}}
    seen: set[int] = set()
    for key, item in items.items():
        image = read(tmp_path / "set" / "img_dir" / item.split / f"{key}.png")
        mask = read(tmp_path / "set" / "ann_dir" / item.split / f"{key}.png")
        assert mask.shape == image.shape[:2]
        assert (mask == np.asarray(Image.open(io.BytesIO(tars.read(item.row, "seg.png"))))).all()
        seen |= set(np.unique(mask).tolist())
    assert seen == {0, 2, 255}


def test_yolo_is_read_back(out: Path, items: dict[str, Item], tmp_path: Path, capsys: Out) -> None:
    told = written("yolo", out, tmp_path / "set", capsys)
    plain = yaml.safe_load((tmp_path / "set" / "data.yaml").read_text())
    ignored = 0
    for key, item in items.items():
        image = tmp_path / "set" / plain[item.split] / f"{key}.png"
        lines = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt").read_text().splitlines()
        counted = [box for box in item.boxes if not box.ignore]
        ignored += len(item.boxes) - len(counted)
        assert len(lines) == len(counted)
        height, width = read(image).shape[:2]
        for line, box in zip(lines, counted, strict=True):
            number, *rest = line.split()
            cx, cy, w, h = (float(v) for v in rest)
            assert plain["names"][int(number)] == box.category
            shown = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]
            assert shown == pytest.approx(inside(box), abs=1e-3)
            assert 0 <= cx - w / 2 <= cx + w / 2 <= 1 + 1e-8
    assert told["ignored"] == ignored > 0


def test_a_folder_that_holds_something_is_left_alone(out: Path, tmp_path: Path, capsys: Out) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["export", "coco", str(out), str(tmp_path)]) == 1
    assert "empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    export("yolo", out, tmp_path / "empty")
    assert (tmp_path / "empty" / "data.yaml").is_file()


def test_what_cannot_be_written_leaves_nothing(out: Path, tmp_path: Path) -> None:
    build = recipe_of("air", exclude={"rules": []})
    put(tmp_path / "air" / "a.png", scene(404, 200, 180))
    datakit.build(build, data=tmp_path, out=tmp_path / "plain", workers=0)
    with pytest.raises(SourceError, match=r"seg\.png"):
        export("mmseg", tmp_path / "plain", tmp_path / "mm")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("mm")]
    with pytest.raises(ShardError):
        export("coco", tmp_path / "nowhere", tmp_path / "mm")


def test_names_of_classes_become_names_of_folders() -> None:
    assert [NOT_A_NAME.sub("_", name) for name in ("a/b", "..", ".x", "Bare land")] == ["a_b", "_", "_x", "Bare land"]
    assert set(FORMS) == {"imagefolder", "coco", "dota", "mmseg", "yolo"}
    assert quad_of(boxes.rectangle(1, 2, 3, 4)) == ((1, 2, 3, 2, 3, 4, 1, 4), False)


# compare


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds that share one image as it is, one turned, and a flat one; the rest differs."""
    folder = tmp_path_factory.mktemp("compare")
    shared, flat = scene(410, 200, 180), Image.new("RGB", (150, 130), (90, 120, 60))
    for name, n in (("one", 420), ("other", 430)):
        put(folder / name / "shared.png", shared)
        put(folder / name / "flat.png", flat)
        put(folder / name / "own.png", scene(n, 200, 180))
        turned = Image.fromarray(scene(411, 200, 180))
        put(
            folder / name / "turned.png", turned if name == "one" else turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        )
        plain = recipe_of(name, name=name, exclude={"rules": []}, cut={"encode": {"format": "png"}})
        datakit.build(plain, data=folder, out=folder / f"{name}.out", workers=0)
    return folder


def test_what_two_builds_share_is_told(two: Path, tmp_path: Path, capsys: Out) -> None:
    pairs = tmp_path / "pairs.parquet"
    assert main(["compare", str(two / "one.out"), str(two / "other.out"), "-o", str(pairs)]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert (told["samples"], told["alike"], told["equal_pixels"], told["same_key"]) == ([4, 4], [3, 3], 2, 0)
    assert told["sources"] == {
        "out": {"one": {"samples": 4, "alike": 3}},
        "other": {"other": {"samples": 4, "alike": 3}},
    }
    assert any(line.split() == ["out", "one", "4", "3"] for line in table)
    rows = {row["key"]: row for row in pq.read_table(pairs).to_pylist()}
    assert {key: (row["other"], row["turned"], row["equal"]) for key, row in rows.items()} == {
        make_key("one", f"{name}.png"): (make_key("other", f"{name}.png"), turned, equal)
        for name, turned, equal in (("shared", "", True), ("flat", "", True), ("turned", "left-right", False))
    }


def test_a_build_is_all_of_itself(two: Path) -> None:
    found = compare(Samples(two / "one.out"), Samples(two / "one.out"))
    assert found.told()["same_key"] == 4
    assert found.equal.all()
    assert found.forth.row.tolist() == [0, 1, 2, 3]
    assert found.pairs().column("distance_bits").to_pylist() == [0, 0, 0, 0]
