"""Scores of detections on AODRaw, against a slow restatement of COCO's precision and of how the released one counts."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datakit
from datakit import codec, raw
from datakit.cli import main
from datakit.errors import SourceError
from datakit.evaluate.aodraw import Evaluation, as_published, evaluate, merged, nms
from datakit.export import aodraw_mmdet
from datakit.image import decode_levels, quiet
from datakit.recipe import Recipe
from datakit.sources import synth_raw
from datakit.stream.source import opened
from datakit.views import NAMED, Camera

IGNORED = 62
TAGS: list[list[str]] = [
    ["fog"],
    ["low_light"],
    ["rain", "low_light"],
    ["low_light", "rain"],
    [],
    ["fog", "rain", "indoor"],
]


def world(seed: int, images: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Random annotations and detections, of which some are near them, some are not, and some lie in ignored regions."""
    rng = np.random.default_rng(seed)
    coco: dict[str, Any] = {"images": [], "annotations": []}
    coco["categories"] = [{"id": n, "name": name} for n, name in ((0, "person"), (3, "car"), (IGNORED, "ignore"))]
    found = []
    for image in range(images):
        tag = TAGS[image % len(TAGS)]
        coco["images"].append({"id": image, "file_name": f"{image}.dng", "width": 900, "height": 900, "tag": tag})
        for _ in range(int(rng.integers(0, 6))):
            category = int(rng.choice([0, 0, 3, IGNORED]))
            box = [int(v) for v in (*rng.integers(0, 500, 2), *rng.integers(20, 380, 2))]
            crowd = int(category == IGNORED or rng.random() < 0.15)
            note = {"image_id": image, "bbox": box, "category_id": category, "iscrowd": crowd, "ignore": 0}
            coco["annotations"].append({"id": len(coco["annotations"]), "area": box[2] * box[3], **note})
            for _ in range(int(rng.integers(0, 3))):
                near = [float(v + rng.normal(0, 12)) for v in box]
                guess = int(rng.choice([category % IGNORED, 0, 3]))
                found.append({"image_id": image, "category_id": guess, "bbox": near, "score": float(rng.random())})
    return coco, found


def overlap(a: list[float], b: list[float], crowd: int) -> float:
    """Intersection over union; over the detection's own area where the other is a crowd."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(across, 0) * max(down, 0)
    return shared / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - shared)


def slow_ap(
    coco: dict[str, Any], found: list[dict[str, Any]], images: list[int], times: dict[int, int], most: int, zero: bool
) -> float | None:
    """COCO's AP over some images, each counted some times. zero: a match with annotation 0 is none, as in COCOeval."""
    per_class = []
    for category in (0, 3):
        curves, positives = [], 0
        rows: dict[float, list[tuple[float, bool, bool]]] = defaultdict(list)
        for image in images:
            ours = [
                a for a in coco["annotations"] if a["image_id"] == image and a["category_id"] in (category, IGNORED)
            ]
            truth = sorted(ours, key=lambda a: a["category_id"] == IGNORED)
            truth = [a for a in truth for _ in range(times[image])]
            truth.sort(key=lambda a: bool(a["iscrowd"]))
            made = [d for d in found if d["image_id"] == image and d["category_id"] == category]
            made = sorted([d for d in made for _ in range(times[image])], key=lambda d: -d["score"])[:most]
            positives += sum(not a["iscrowd"] for a in truth)
            for threshold in np.linspace(0.5, 0.95, 10):
                taken: set[int] = set()
                for d in made:
                    best, place = min(threshold, 1 - 1e-10), -1
                    for n, a in enumerate(truth):
                        if n in taken and not a["iscrowd"]:
                            continue
                        if place >= 0 and not truth[place]["iscrowd"] and a["iscrowd"]:
                            break
                        value = overlap(d["bbox"], a["bbox"], a["iscrowd"])
                        if value >= best:
                            best, place = value, n
                    if place >= 0:
                        taken.add(place)
                    matched = place >= 0 and not (zero and truth[place]["id"] == 0)
                    ignored = place >= 0 and bool(truth[place]["iscrowd"])
                    rows[float(threshold)].append((d["score"], matched, ignored))
        if not positives:
            continue
        for threshold in np.linspace(0.5, 0.95, 10):
            ranked = sorted(rows[float(threshold)], key=lambda row: -row[0])
            hits = np.cumsum([m and not i for _, m, i in ranked])
            wrong = np.cumsum([not m and not i for _, m, i in ranked])
            precision = hits / np.maximum(hits + wrong, np.spacing(1)) if len(ranked) else np.zeros(0)
            recall = hits / positives if len(ranked) else np.zeros(0)
            curve = [max(precision[recall >= r], default=0.0) for r in np.linspace(0, 1, 101)]
            curves.append(float(np.mean(curve)))
        per_class.append(float(np.mean(curves)))
    return float(np.mean(per_class)) if per_class else None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_are_cocos_over_all_and_by_condition(seed: int, tmp_path: Path) -> None:
    coco, found = world(seed)
    (tmp_path / "gt.json").write_text(json.dumps(coco))
    (tmp_path / "dt.json").write_text(json.dumps(found))
    scores = evaluate(tmp_path / "dt.json", tmp_path / "gt.json")
    images = [i["id"] for i in coco["images"]]
    once = dict.fromkeys(images, 1)
    assert scores["all"]["AP"] == pytest.approx(slow_ap(coco, found, images, once, 100, False), abs=1e-9)
    groups: dict[str, list[int]] = defaultdict(list)
    for image in coco["images"]:
        groups["_".join(sorted(image["tag"])) or "untagged"].append(image["id"])
    assert {name: value["images"] for name, value in scores["conditions"].items()} == {
        n: len(g) for n, g in groups.items()
    }
    assert sum(value["images"] for value in scores["conditions"].values()) == len(images)
    for name, those in groups.items():
        expected = slow_ap(coco, found, those, once, 100, False)
        assert scores["conditions"][name]["AP"] == (None if expected is None else pytest.approx(expected, abs=1e-9))
    rainy = [i["id"] for i in coco["images"] if "rain" in i["tag"]]
    assert scores["tags"]["rain"]["AP"] == pytest.approx(slow_ap(coco, found, rainy, once, 100, False), abs=1e-9)
    assert set(scores["classes"]) == {"person", "car"}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_released_metric_counts_as_it_counts(seed: int) -> None:
    """An image of one tag twice in it; tags joined in the file's order; annotation 0 never found."""
    coco, found = world(seed)
    scores = as_published(coco, found, (128, 320))
    for tag, value in scores["tags"].items():
        times = {}
        for image in coco["images"]:
            names = [*(["_".join(image["tag"])] if image["tag"] else []), *image["tag"], "all"]
            times[image["id"]] = names.count(tag)
        images = [image for image, count in times.items() if count]
        expected = slow_ap(coco, found, images, times, 100, True)
        assert value == (None if expected is None else pytest.approx(expected, abs=1e-9)), tag
    assert {image["id"]: image["tag"] for image in coco["images"]}[0] == ["fog"]
    assert len(scores["stats"]) == 19
    last = -1.0 if scores["tags"]["low_light_fog"] is None else scores["tags"]["low_light_fog"]
    assert scores["stats"][18] == last


def test_what_lies_in_an_ignored_region_is_not_held_against_a_model() -> None:
    coco, _ = world(0, 1)
    coco["annotations"] = [
        {"id": 0, "image_id": 0, "bbox": [0, 0, 50, 50], "area": 2500, "category_id": 0, "iscrowd": 0},
        {"id": 1, "image_id": 0, "bbox": [200, 200, 300, 300], "area": 90000, "category_id": IGNORED, "iscrowd": 1},
    ]
    right = {"image_id": 0, "category_id": 0, "bbox": [0, 0, 50, 50], "score": 0.5}
    within = {**right, "bbox": [250, 250, 50, 50], "score": 0.9}
    outside = {**right, "bbox": [600, 600, 50, 50], "score": 0.9}

    def ap(*found: dict[str, Any]) -> Any:
        one = Evaluation(coco, list(found), (64, 160))
        one.run()
        return one.scores([0])["AP"]

    assert ap(right) == ap(right, within) == pytest.approx(1)
    assert ap(right, outside) == pytest.approx(0.5)


def test_nms_keeps_the_best_of_those_that_overlap() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [30, 0, 10, 10], [0, 6, 10, 10.0]])
    assert nms(boxes, np.array([0.5, 0.9, 0.1, 0.4]), 0.5) == [1, 3, 2]
    assert nms(boxes, np.array([0.5, 0.9, 0.1, 0.4]), 0.95) == [1, 0, 3, 2]


def test_wrong_results_are_told(tmp_path: Path) -> None:
    coco, found = world(0)
    (tmp_path / "gt.json").write_text(json.dumps(coco))
    for wrong, words in (
        ([{**found[0], "image_id": 999}], "1 values of image_id"),
        ([{**found[0], "category_id": 999}], "1 values of category_id"),
        ([{"image_id": 1}], "expected a list of image_id"),
        ({"a": 1}, "expected a list"),
    ):
        (tmp_path / "dt.json").write_text(json.dumps(wrong))
        with pytest.raises(SourceError, match=words):
            evaluate(tmp_path / "dt.json", tmp_path / "gt.json")
    with pytest.raises(SourceError, match="No such file"):
        evaluate(tmp_path / "none.json", tmp_path / "gt.json")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    synth_raw.make(folder, seed=3, size=(216, 152), images=8)
    changes = {"slice.published.size_px": 96, "slice.published.gap_px": 24, "domain": "both"}
    datakit.build(Recipe.load("aodraw", changes), data=folder, out=folder / "out", workers=0)
    datakit.build(Recipe.load("aodraw", {"view": "downsampled"}), data=folder, out=folder / "third", workers=0)
    return folder


def test_perfect_detections_in_slices_are_perfect_in_the_full_frame(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = json.loads((built / "out/aodraw-test.coco.json").read_text())
    whole = json.loads((built / "out/aodraw-test.full.coco.json").read_text())
    right = [n for n in notes["annotations"] if n["category_id"] != IGNORED and not n["iscrowd"]]
    keys = ("image_id", "category_id", "bbox")
    found = [{**{key: note[key] for key in keys}, "score": 0.9} for note in right]
    (built / "dt.json").write_text(json.dumps(found))
    command = ["evaluate", "aodraw", "--dt", str(built / "dt.json"), "--gt", str(built / "out")]
    assert main(command) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["all"]["AP"] == pytest.approx(1)
    assert scores["view"] == "slices"
    full = merged(found, notes, 0.5)
    assert {one["image_id"] for one in full} <= {i["id"] for i in whole["images"]}
    assert len(full) < len(found)  # windows overlap
    assert main([*command, "--merge", "--published"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["view"] == "full"
    assert scores["all"]["AP50"] > 0.7  # those that a window cuts are smaller than they are
    assert scores["published"]["AP"] > 0
    assert main([*command, "--split", "val"]) == 1
    assert "no aodraw-val.coco.json" in capsys.readouterr().err


def test_exported_folders_are_what_the_published_detectors_read(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "aodraw-mmdet", str(built / "out"), str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)["files"]
    for split in ("train", "test"):
        coco = json.loads((tmp_path / f"annotations/{split}_annotations_slice_1280_300.json").read_text())
        for image in coco["images"]:
            stem = image["file_name"].rsplit(".")[0]
            planes = np.load(tmp_path / "images_slice_raw" / f"{stem}.npy")
            assert planes.dtype == np.float32
            assert planes.shape == (4, image["height"] // 2, image["width"] // 2)
            assert (tmp_path / "images_slice_srgb" / f"{stem}.JPG").is_file()
            assert "key" not in image
    assert told["images_slice_raw"] == told["images_slice_srgb"] == len(list((tmp_path / "images_slice_raw").iterdir()))
    aodraw_mmdet(built / "third", tmp_path / "third")
    (some, *_) = sorted((tmp_path / "third/images_downsample_raw").iterdir())
    small = np.load(some)
    assert small.dtype == np.float32
    assert small.shape[0] == 3
    assert 0 < small.max() <= 255
    datakit.build(Recipe.load("aodraw", {"view": "full"}), data=built, out=tmp_path / "full", workers=0)
    with pytest.raises(SourceError, match="read slices and downsampled"):
        aodraw_mmdet(tmp_path / "full", tmp_path / "x")


def test_published_arrays_become_mosaics_again(built: Path, tmp_path: Path) -> None:
    """What was exported, built again: the same numbers, boxes and ids."""
    aodraw_mmdet(built / "out", tmp_path / "aodraw")
    datakit.build(Recipe.load("aodraw_published"), data=tmp_path, out=tmp_path / "out", workers=0)
    before, after = opened(built / "out"), opened(tmp_path / "out")
    for split in ("train", "test"):
        old = json.loads((built / f"out/aodraw-{split}.coco.json").read_text())
        new = json.loads((tmp_path / f"out/aodraw_published-{split}.coco.json").read_text())
        assert new["annotations"] == old["annotations"]
        for mine, its in zip(new["images"], old["images"], strict=True):
            rows = [list(tars.keys(np.arange(len(tars)))).index(i["key"]) for tars, i in ((after, mine), (before, its))]
            found, expected = (codec.decode(t.read(r, "raw")) for t, r in zip((after, before), rows, strict=True))
            np.testing.assert_array_equal(found, expected)
            assert {**mine, "key": ""} == {**its, "key": ""}
            camera = json.loads(json.loads(after.read(rows[0], "json"))["camera"])
            assert (camera["cfa"], camera["white"], camera["black"]) == ("RGGB", 16383, [512.0] * 4)


def test_published_arrays_at_a_third(built: Path, tmp_path: Path) -> None:
    aodraw_mmdet(built / "third", tmp_path / "aodraw")
    images = {"sources.0.collection.layout.images": ["images_downsample_raw/*.npy"], "view": "downsampled"}
    labels = {f"sources.0.collection.layout.labels.{n}.images": "images_downsample_raw" for n in (0, 1)}
    datakit.build(Recipe.load("aodraw_published", {**images, **labels}), tmp_path, tmp_path / "out", workers=0)
    before, after = opened(built / "third"), opened(tmp_path / "out")
    assert len(before) == len(after)
    for split in ("train", "test"):
        old = json.loads((built / f"third/aodraw-{split}.coco.json").read_text())
        new = json.loads((tmp_path / f"out/aodraw_published-{split}.coco.json").read_text())
        assert new["annotations"] == old["annotations"]
        for mine, its in zip(new["images"], old["images"], strict=True):
            rows = [list(tars.keys(np.arange(len(tars)))).index(i["key"]) for tars, i in ((after, mine), (before, its))]
            with quiet():
                found, expected = (decode_levels(t.read(r, "tif")) for t, r in zip((after, before), rows, strict=True))
            np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1)


def test_an_exported_slice_is_what_the_loader_shows(built: Path, tmp_path: Path) -> None:
    """The view of that name and the published loader of the exported array agree."""
    aodraw_mmdet(built / "out", tmp_path)
    tars = opened(built / "out")
    coco = json.loads((built / "out/aodraw-train.coco.json").read_text())
    row = {key: n for n, key in enumerate(tars.keys(np.arange(len(tars))))}[coco["images"][0]["key"]]
    camera = Camera.of(json.loads(tars.read(row, "json"))["camera"])
    shown = NAMED["aodraw_slices"](codec.decode(tars.read(row, "raw")), camera)
    planes = np.load(tmp_path / "images_slice_raw" / coco["images"][0]["file_name"])
    whole = raw.unpack(planes, "RGGB")
    expected = (raw.demosaic(whole, "RGGB") / np.float32(255)) ** np.float32(1 / 2.2) * np.float32(255)
    np.testing.assert_allclose(shown, expected, rtol=2e-6)
