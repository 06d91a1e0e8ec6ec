"""Two collections of the same images: read once, their labels joined."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from worlds import digests, recipe_of, scene, work_done, write_recipe

import datakit
from datakit import boxes
from datakit.errors import StageError
from datakit.plan import check, look
from datakit.recipe import Recipe
from datakit.sources.joined import same_names

NAMES = {"train": ("P1", "P2"), "val": ("P3",)}


def recipe(*names: str) -> Recipe:
    """`quads` has DOTA's text files, `masks` a COCO file and rasters, of the same images."""
    plain = recipe_of(*names, exclude={"rules": []}, slice={"grid": {"size_px": 128}}).model_dump(mode="json")
    layouts: dict[str, Any] = {
        "quads": {
            "images": ["train/images/*.png", "val/images/*.png"],
            "label_files": ["*/labelTxt/*.txt"],
            "labels": [{"kind": "dota"}],
        },
        "masks": {
            "images": ["train/pictures/*.png", "val/pictures/*.png"],
            "label_files": ["*.json", "*/seg/*.png"],
            "labels": [
                {"kind": "coco", "path": "train.json", "images": "train/pictures"},
                {"kind": "mask", "path": "{dir}/../seg/{stem}.png", "classes": {1: "ship"}},
            ],
        },
    }
    about = {"quads": {"licence": "MIT", "same_images_as": ["masks"]}, "masks": {"licence": "CC0-1.0"}}
    splits = {"quads": "images", "masks": "pictures"}
    for source in plain["sources"]:
        name = source["name"]
        globs = {split: {"images": [f"{split}/{splits[name]}/*.png"]} for split in NAMES}
        source["collection"] |= {**about[name], "layout": layouts[name], "splits": globs}
    return Recipe.model_validate({**plain, "include_evaluation": [f"{n}:val" for n in names]})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """All images in `quads`, some of them in `masks` as well, labels in both; `masks` has one image of its own."""
    home = tmp_path / "data"
    files: list[dict[str, Any]] = []
    for n, (split, name) in enumerate((split, name) for split, names in NAMES.items() for name in names):
        for path in (home / "quads" / split / "images", home / "masks" / split / "pictures"):
            path.mkdir(parents=True, exist_ok=True)
            if name != "P2" or "quads" in path.parts:  # of P2 the other collection has labels alone
                Image.fromarray(scene(n, 200, 150)).save(path / f"{name}.png")
        (home / "quads" / split / "labelTxt").mkdir(exist_ok=True)
        text = f"gsd:0.{n + 1}\n10 10 30 10 30 30 10 30 ship 0\n"
        (home / "quads" / split / "labelTxt" / f"{name}.txt").write_text(text)
        (home / "masks" / split / "seg").mkdir(exist_ok=True)
        Image.new("L", (200, 150), n).save(home / "masks" / split / "seg" / f"{name}.png")
        files.append({"id": n, "file_name": f"{name}.png"})
    Image.fromarray(scene(9, 100, 90)).save(home / "masks" / "train" / "pictures" / "own.png")
    notes = [{"id": n, "image_id": n, "category_id": 7, "bbox": [50, 60, 20, 10]} for n in (0, 1)]
    coco = {"images": files, "annotations": notes, "categories": [{"id": 7, "name": "boat"}]}
    (home / "masks" / "train.json").write_text(json.dumps(coco))
    return home


def scanned(out: Path) -> dict[str, dict[str, Any]]:
    """Records of whole images by source and file, as scanned."""
    tables = [
        pq.read_table(path).to_pylist() for path in sorted((out.with_name("out.work") / "scan").rglob("*.parquet"))
    ]
    return {f"{row['source']}/{Path(row['name']).stem}": row for table in tables for row in table}


def test_images_are_read_once_and_labels_joined(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = datakit.build(recipe("quads", "masks"), data=data, out=out, workers=0)
    listed = {count.source: count.dropped for count in manifest.counts if count.stage == "list"}
    assert listed == {"quads": {}, "masks": {"same_images": 2}}
    assert work_done(out)["images_opened"] == 4
    rows = scanned(out)
    assert set(rows) == {"quads/P1", "quads/P2", "quads/P3", "masks/own"}
    for name, categories in (("P1", ["ship", "boat"]), ("P2", ["ship", "boat"]), ("P3", ["ship"])):
        row = rows[f"quads/{name}"]
        assert [box.category for box in boxes.loads(row["boxes"])] == categories
        assert row["boxes_source"] == ("quads, masks" if len(categories) == 2 else "")
        assert row["licences"] == ["MIT", "CC0-1.0"]
        assert json.loads(row["mask"])["source"] == "masks"
        assert json.loads(row["mask"])["file"]["name"].endswith(f"seg/{name}.png")
    assert rows["quads/P3"]["gsd_m"] == 0.3
    assert rows["masks/own"]["licences"] == ["CC0-1.0"]


def test_either_may_come_first(data: Path, tmp_path: Path) -> None:
    manifest = datakit.build(recipe("masks", "quads"), data=data, out=tmp_path / "out", workers=0)
    listed = {count.source: count.dropped for count in manifest.counts if count.stage == "list"}
    assert listed == {"masks": {}, "quads": {"same_images": 2}}
    rows = scanned(tmp_path / "out")
    assert set(rows) == {"masks/P1", "masks/P3", "masks/own", "quads/P2"}  # of P2 only `quads` has the image
    assert [box.category for box in boxes.loads(rows["masks/P1"]["boxes"])] == ["boat", "ship"]
    assert rows["masks/P1"]["gsd_m"] == 0.1
    assert json.loads(rows["masks/P1"]["mask"])["source"] == ""


def test_a_changed_label_of_the_other_is_read(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    datakit.build(recipe("quads", "masks"), data=data, out=out, workers=0)
    before = digests(out)
    (data / "masks" / "train.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    datakit.build(recipe("quads", "masks"), data=data, out=out, workers=0)
    assert "images_opened" not in work_done(out)
    assert digests(out) != before


def test_alone_each_is_itself(data: Path, tmp_path: Path) -> None:
    manifest = datakit.build(recipe("masks"), data=data, out=tmp_path / "out", workers=0)
    assert [count.came for count in manifest.counts if count.stage == "list"] == [3]


def test_evaluation_sets_and_splits_stay_out_unless_named(data: Path, tmp_path: Path) -> None:
    plain = recipe("quads", "masks").model_dump(mode="json")
    for source in plain["sources"]:
        source["collection"]["same_images_as"] = []
    plain["sources"][1]["collection"]["role"] = "evaluation"
    for include, names in (
        ([], {"quads/P1", "quads/P2"}),
        (["quads:val"], {"quads/P1", "quads/P2", "quads/P3"}),
        (["masks:val"], {"quads/P1", "quads/P2", "masks/P3"}),
        (["masks"], {"quads/P1", "quads/P2", "masks/P1", "masks/P3", "masks/own"}),
    ):
        out = tmp_path / "-".join(include or ["none"]).replace(":", "_")
        one = Recipe.model_validate({**plain, "include_evaluation": include})
        manifest = datakit.build(one, data=data, out=out, work=tmp_path / "work", workers=0)
        kept = pq.read_table(out / "samples.parquet").to_pylist()
        assert {f"{row['source']}/{Path(row['name']).stem}" for row in kept} == names
        gone = sum(count.dropped.get("evaluation", 0) for count in manifest.counts)
        assert gone == 6 - len(names)
        said = f"It includes evaluation data: {', '.join(include)}."
        assert (said in (out / "README.md").read_text()) == bool(include)


def test_licences_may_be_asked_for(data: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", recipe("quads", "masks"))
    only = Recipe.load(path, licences=["CC0-1.0"])
    plain = only.model_dump(mode="json")
    for source in plain["sources"]:
        source["collection"] |= {
            "same_images_as": [],
            "licence": "CC0-1.0" if source["name"] == "masks" else "unstated",
        }
    datakit.build(Recipe.model_validate(plain), data=data, out=tmp_path / "out", workers=0)
    assert set(pq.read_table(tmp_path / "out" / "samples.parquet").column("source").to_pylist()) == {"masks"}


def pair(tmp_path: Path, main: dict[str, Any], other: dict[str, Any], first: str = "main") -> Recipe:
    """Two collections of the same images, each with DOTA's text files beside its images."""
    order = ("main", "other") if first == "main" else ("other", "main")
    plain = recipe_of(*order, exclude={"rules": []}).model_dump(mode="json")
    layout = {
        "images": ["**/images/*.png"],
        "label_files": ["**/labels/*.txt"],
        "labels": [{"kind": "dota", "path": "{dir}/../labels/{stem}.txt"}],
    }
    for source in plain["sources"]:
        more = main if source["name"] == "main" else other
        source["collection"] |= {"layout": layout, **more}
    plain["sources"][0]["collection"]["same_images_as"] = [order[1]]
    return Recipe.model_validate(plain)


def put(path: Path, n: int, label: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(n, 120, 100)).save(path)
    if label:
        text = path.parent.parent / "labels" / f"{path.stem}.txt"
        text.parent.mkdir(exist_ok=True)
        text.write_text(f"1 1 9 1 9 9 1 9 {label} 0\n")


def test_names_are_those_on_disk_wherever_the_folders_of_the_other_lie(tmp_path: Path) -> None:
    data = tmp_path / "data"
    put(data / "main" / "images" / "1.png", 1)
    put(data / "main" / "images" / "2.png", 2)
    put(data / "other" / "deep" / "down" / "images" / "1.png", 1, "ship")
    put(data / "other" / "deep" / "down" / "images" / "2.png", 2)
    one = pair(tmp_path, {"licence": "MIT"}, {"licence": "GPL-3.0"})
    datakit.build(one, data=data, out=tmp_path / "out", workers=0)
    rows = scanned(tmp_path / "out")
    assert [box.category for box in boxes.loads(rows["main/1"]["boxes"])] == ["ship"]
    assert rows["main/1"]["licences"] == ["MIT", "GPL-3.0"]
    assert rows["main/2"]["licences"] == ["MIT"]  # the other says nothing of it


def test_a_picture_of_another_split_is_not_the_same(tmp_path: Path) -> None:
    data = tmp_path / "data"
    splits = {split: {"images": [f"{split}/images/*.png"]} for split in ("train", "extra")}
    put(data / "main" / "train" / "images" / "1.png", 1)
    put(data / "other" / "train" / "images" / "1.png", 1, "ship")
    put(data / "other" / "extra" / "images" / "1.png", 2, "tree")
    one = pair(tmp_path, {"splits": splits}, {"splits": splits})
    manifest = datakit.build(one, data=data, out=tmp_path / "out", workers=0)
    assert {c.source: c.dropped for c in manifest.counts if c.stage == "list"} == {
        "main": {},
        "other": {"same_images": 1},
    }
    rows = {row["name"]: row for row in scanned(tmp_path / "out").values()}
    assert [box.category for box in boxes.loads(rows["train/images/1.png"]["boxes"])] == ["ship"]
    assert [box.category for box in boxes.loads(rows["extra/images/1.png"]["boxes"])] == ["tree"]


@pytest.mark.parametrize("first", ["main", "other"])
def test_what_one_holds_back_is_held_back(tmp_path: Path, first: str) -> None:
    data = tmp_path / "data"
    for name in ("main", "other"):
        put(data / name / "images" / "1.png", 1)
    put(data / "main" / "images" / "2.png", 2)
    held = pair(tmp_path, {}, {"role": "evaluation"}, first)
    with pytest.raises(StageError, match="evaluation"):
        datakit.build(held, data=data, out=tmp_path / "out", workers=0)
    split = pair(tmp_path, {}, {"splits": {"test": {"images": ["images/*.png"]}}}, first)
    datakit.build(split, data=data, out=tmp_path / "split", workers=0)
    kept = pq.read_table(tmp_path / "split" / "samples.parquet").column("name").to_pylist()
    assert kept == ["images/2.png"]


def promised(one: Recipe, data: Path, out: Path) -> dict[str, Any]:
    """What a plan says of each source, after it was found to be what a build then makes."""
    roots = {source.name: data / source.path for source in one.sources}
    plan = look(one, roots, 2000)
    manifest = datakit.build(one, data=data, out=out, workers=0)
    for name, e in plan.items():
        counts = {count.stage: count for count in manifest.counts if count.source == name}
        listed = counts["list"].dropped if "list" in counts else {}
        assert {**e.not_images, **({"same_images": e.same} if e.same else {})} == listed
        assert e.images == (counts["scan"].came if "scan" in counts else 0)
        assert e.tiles == (counts["slice"].made if "slice" in counts else 0)
        lost: Counter[str] = Counter()
        for stage in ("scan", "exclude", "slice"):
            lost.update(counts[stage].dropped if stage in counts else {})
        assert e.dropped == lost
    return plan


@pytest.mark.parametrize("order", [("quads", "masks"), ("masks", "quads")])
def test_a_plan_counts_them_once(data: Path, tmp_path: Path, order: tuple[str, str]) -> None:
    one = recipe(*order)
    plan = promised(one, data, tmp_path / "out")
    main, other = order
    assert (plan[main].images, plan[main].main, plan[main].same) == (3, "", 0)
    assert (plan[other].images, plan[other].main, plan[other].same) == (1, main, 2)
    text = list(check(one, data))
    (row,) = [line for line in text if line.startswith(f"{other} ") and "same images" in line]
    assert row.endswith(f"same images as {main}: 2 of 3 read there")
    assert sum("same images" in line for line in text) == 1
    on_disk = text[text.index("on disk, beside what the manifests say:") :]
    assert f"  {other}: 3 images: train 2, val 1" in on_disk  # all that lie there, wherever they are read


def test_a_plan_counts_them_once_where_all_are_the_same(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for n in (1, 2, 3):
        put(data / "main" / "images" / f"{n}.png", n, "ship" if n < 3 else "")
        put(data / "other" / "deep" / "images" / f"{n}.png", n, "tree" if n == 1 else "")
    one = pair(tmp_path, {}, {})
    plan = promised(one, data, tmp_path / "out")
    assert (plan["other"].images, plan["other"].same, plan["other"].tiles) == (0, 3, 0)
    text = [line.strip() for line in check(one, data)]
    assert any(line.endswith("same images as main: 3 of 3 read there") for line in text)
    assert not [line for line in text if line.startswith("no image in")]
    assert "of 3 images read, 1 has no label" in text
    assert "of 3 images read, 2 have no label of other" in text


def test_a_collection_of_labels_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for n in (1, 2):
        put(data / "main" / "images" / f"{n}.png", n, "ship")
        put(data / "other" / "images" / f"{n}.png", n, "tree")
        (data / "other" / "images" / f"{n}.png").unlink()
    (data / "other" / "labels" / "2.txt").rename(data / "other" / "labels" / "3.txt")
    one = pair(tmp_path, {}, {})
    assert promised(one, data, tmp_path / "out")["other"].images == 0
    text = [line.strip() for line in check(one, data)]
    assert any(line.endswith("same images as main: labels alone, joined there") for line in text)
    assert not [line for line in text if line.startswith("no image in")]
    assert "of 2 images read, 1 has no label of other" in text
    assert not [line for line in text if line.endswith("no label")]


def test_images_without_labels_are_told_by_split(tmp_path: Path) -> None:
    data = tmp_path / "data"
    splits = {split: {"images": [f"{split}/images/*.png"]} for split in ("train", "extra")}
    for n in range(9):
        put(data / "main" / "train" / "images" / f"{n}.png", n, "" if n < 2 else "ship")
        put(data / "main" / "extra" / "images" / f"x{n}.png", n, "" if n < 5 else "ship")
    (data / "main" / "train" / "images" / "8.png").write_text("no image")
    one = pair(tmp_path, {"splits": splits}, {})
    text = [line.strip() for line in check(one, data, allow_missing=True)]
    assert "of 17 images read, 7 have no label: extra 5, train 2" in text
    some = look(one, {"main": data / "main"}, 6)["main"]
    assert (some.images, some.looked_at) == (18, 6)
    assert some.silent.total() <= some.opened <= 6


def test_a_source_without_a_layout_of_labels_is_not_told_of(tmp_path: Path) -> None:
    data = tmp_path / "data"
    put(data / "main" / "images" / "1.png", 1)
    put(data / "other" / "images" / "1.png", 1)
    bare = {"layout": {"images": ["**/images/*.png"]}}
    assert not [line for line in check(pair(tmp_path, bare, bare), data) if "no label" in line]


def test_three_of_the_same_images(data: Path, tmp_path: Path) -> None:
    """The third is read in the first as well, and its labels are joined there."""
    put(data / "third" / "images" / "P1.png", 0, "tree")
    put(data / "third" / "images" / "more.png", 7)
    plain = recipe("quads", "masks").model_dump(mode="json")
    third = pair(tmp_path, {}, {}).model_dump(mode="json")["sources"][0]
    third |= {"name": "third", "path": "third"}
    third["collection"] |= {"name": "third", "same_images_as": ["quads"]}
    plan = promised(Recipe.model_validate({**plain, "sources": [*plain["sources"], third]}), data, tmp_path / "out")
    assert (plan["third"].main, plan["third"].same, plan["third"].images) == ("quads", 1, 1)
    assert plan["quads"].silent[("third", "train")] == 1  # P2


def joined_boxes(out: Path) -> dict[str, list[str]]:
    rows = [
        row
        for path in sorted(out.with_name("out.work").rglob("scan/**/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    return {f"{r['source']}/{r['name']}": [box.category for box in boxes.loads(r["boxes"])] for r in rows}


@pytest.mark.parametrize("first", ["main", "other"])
def test_where_stems_repeat_equal_names_are_the_same(tmp_path: Path, first: str) -> None:
    data = tmp_path / "data"
    for n, (city, label) in enumerate((("oslo", "ship"), ("rome", "plane"), ("bonn", ""))):
        put(data / "main" / city / "images" / "1.png", n)
        put(data / "other" / city / "images" / "1.png", n, label)
    plan = promised(pair(tmp_path, {}, {}, first), data, tmp_path / "out")
    assert joined_boxes(tmp_path / "out") == {
        f"{first}/oslo/images/1.png": ["ship"],
        f"{first}/rome/images/1.png": ["plane"],
        f"{first}/bonn/images/1.png": [],
    }
    assert not any(e.unclear for e in plan.values())


def test_where_stems_repeat_paths_that_end_alike_are_the_same(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for n, (city, label) in enumerate((("oslo", "ship"), ("rome", "plane"))):
        put(data / "main" / "train" / city / "images" / "1.png", n)
        put(data / "other" / "cities" / city / "images" / "1.png", n, label)
    promised(pair(tmp_path, {}, {}), data, tmp_path / "out")
    assert joined_boxes(tmp_path / "out") == {
        "main/train/oslo/images/1.png": ["ship"],
        "main/train/rome/images/1.png": ["plane"],
    }


def test_what_folders_leave_open_is_not_joined_but_told(tmp_path: Path) -> None:
    """rome and wien may be one place or two: neither is left out, and neither takes the other's labels."""
    data = tmp_path / "data"
    for n, (place, label) in enumerate(
        (("main/oslo", ""), ("main/rome", ""), ("other/oslo", "ship"), ("other/wien", "tree"))
    ):
        put(data / place / "images" / "1.png", (0, 1, 0, 3)[n], label)
    one = pair(tmp_path, {}, {})
    plan = promised(one, data, tmp_path / "out")
    assert joined_boxes(tmp_path / "out") == {
        "main/oslo/images/1.png": ["ship"],
        "main/rome/images/1.png": [],
        "other/wien/images/1.png": ["tree"],
    }
    assert plan["other"].unclear == ["wien/images/1.png"]
    why = "1 image may be of main, too, but folders leave open which: read apart, no labels joined"
    told = f"other: {why} (wien/images/1.png)"
    assert told in [line.strip() for line in check(one, data)]
    said: list[str] = []
    datakit.build(one, data=data, out=tmp_path / "again", workers=0, say=said.append)
    assert f"warning: {told}" in said


def test_names_that_are_the_same() -> None:
    theirs = {"1": [("a/1.png", "train"), ("b/1.png", "train")], "2": [("x/2.png", ""), ("2.tif", "")]}
    assert same_names([("a/1.png", "")], theirs) == {"a/1.png": "a/1.png"}
    assert same_names([("a/1.png", "test")], theirs) == {"a/1.png": "a/1.png"}  # whatever the folders are said to tell
    assert same_names([("c/1.png", "")], theirs) == {}
    assert same_names([("z/b/1.jpg", ""), ("b/1.jpg", "")], theirs) == {}  # two that end alike
    assert same_names([("z/b/1.jpg", ""), ("b/1.png", "")], theirs) == {"b/1.png": "b/1.png"}
    assert same_names([("z/b/1.jpg", "test")], theirs) == {}
    assert same_names([("x/2.jpg", ""), ("y/2.jpg", "")], theirs) == {"x/2.jpg": "x/2.png"}
    assert same_names([("3.jpg", "")], theirs) == {}
