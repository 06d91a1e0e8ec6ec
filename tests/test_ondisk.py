"""What lies on disk beside what a manifest says: versions by their counts, what is missing, what is extra."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datakit.errors import SourceError
from datakit.manifest import Collection
from datakit.ondisk import OnDisk, Version, Watch, find, lines, size, spelled_version, version_of
from datakit.plan import check, look
from datakit.recipe import Recipe
from datakit.sample import Sample
from datakit.sources.labels import LabelReader, label_path
from datakit.sources.scan import Source, listing

ABOUT: dict[str, Any] = {
    "name": "air",
    "title": "Air",
    "version": "1.0",
    "homepage": "",
    "licence": "unstated",
    "modality": "optical",
    "bands": ["red", "green", "blue"],
    "layout": {
        "images": ["train/images/*.png", "val/images/*.png", "test/images/*.png"],
        "label_files": ["*/labelTxt/*.txt"],
        "labels": [{"kind": "dota"}],
    },
    "splits": {
        "train": {"images": ["train/images/*.png"], "count": 4},
        "val": {"images": ["val/images/*.png"], "count": 2},
        "test": {"images": ["test/images/*.png"], "count": 3},
    },
    "count": 9,
    "versions": {"1.5": {"train": 4, "val": 2, "test": 3, "all": 9}, "2.0": {"train": 6, "val": 2, "test_dev": 5}},
}


def about_of(**fields: Any) -> Collection:
    return Collection.model_validate({**ABOUT, **fields})


def draw(root: Path, labels: bool = True, **counts: int) -> Path:
    """Images of splits, each with an empty label file but for those of test."""
    for split, count in counts.items():
        for n in range(count):
            image = root / split / "images" / f"P{n:04d}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(image)
            label = root / split / "labelTxt" / f"P{n:04d}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            if labels and split != "test":
                label.write_text("gsd:0.5\n")
    return root


def seen(about: Collection, root: Path) -> OnDisk:
    source = Source(name="air", path="air", collection=about)
    found, closed = find(source, root)
    watch = Watch(about, found, closed, listing(source, found))
    assert sum(1 for _ in watch) >= sum(watch.there.images.values())
    return watch.there


def told(about: Collection, root: Path) -> list[str]:
    return [line.strip() for line in lines(about, seen(about, root))]


def test_all_of_a_version(tmp_path: Path) -> None:
    first, version, *others = told(about_of(), draw(tmp_path, train=4, val=2, test=3))
    assert first == "air: 9 of 9 images: train 4 of 4, val 2 of 2, test 3 of 3"
    assert version == "counts are those of version 1.0 and version 1.5"
    assert others == [
        "missing: 3 of 3 images of test have no dota file {dir}/../labelTxt/{stem}.txt",
        "test/images/P0000.png, test/images/P0001.png, test/images/P0002.png",
    ]


def test_a_split_that_is_not_here(tmp_path: Path) -> None:
    said = told(about_of(), draw(tmp_path, train=4, val=2))
    assert said[1] == "counts are those of version 1.0 and version 1.5, without test"
    assert "missing: nothing of test (3 published); looked for in test/images/*.png" in said
    assert not [line for line in said if line.startswith("no image matches")]


def test_another_version(tmp_path: Path) -> None:
    said = told(about_of(), draw(tmp_path, train=6, val=2))
    assert said[0] == "air: 8 of 9 images: train 6 of 4, val 2 of 2, test 0 of 3"
    assert said[1] == "counts are those of version 2.0, without test_dev"
    assert "missing: nothing of test_dev (5 published); no glob tells it from the others" in said
    assert not [line for line in said if line.startswith("extra")]


def test_no_version(tmp_path: Path) -> None:
    said = told(about_of(), draw(tmp_path, train=3, val=3, test=3))
    assert said[1] == "counts match no published version; the nearest is 1.0"
    assert "missing: 1 image of train: 3 of 4" in said
    assert "extra: 1 image of val: 3 of 2" in said


@pytest.mark.parametrize(
    ("here", "fields", "found", "words"),
    [
        ({"": 9}, {"splits": {}}, Version(("1.0", "1.5"), "1.0", {"all": 9}), "counts are those of version 1.0 and"),
        ({"": 9}, {"splits": {}, "version": None, "versions": {}}, Version(("",), "", {"all": 9}),
         "counts are those of the manifest"),
        ({"": 8}, {"splits": {}, "version": None, "versions": {}}, Version((), "", {"all": 9}),
         "counts are not those of the manifest"),
        ({"": 8}, {"splits": {}, "version": None}, Version((), "", {"all": 9}),
         "counts match no published version; the nearest is that of the manifest"),
        ({"": 13}, {"splits": {}}, Version(("2.0",), "2.0", {"train": 6, "val": 2, "test_dev": 5}),
         "counts are those of version 2.0"),
        ({"": 5}, {"splits": {}, "count": None, "versions": {}}, Version((), "", {}), ""),
        ({"train": 4}, {"versions": {}}, Version(("1.0",), "1.0", {"train": 4, "val": 2, "test": 3, "all": 9},
         ("val", "test")), "counts are those of version 1.0, without val, test"),
    ],
)  # fmt: skip
def test_versions_by_counts(here: dict[str, int], fields: dict[str, Any], found: Version, words: str) -> None:
    about = about_of(**fields)
    assert version_of(about, Counter(here)) == found
    if words:
        assert spelled_version(about, found).startswith(words)


def test_splits_that_lists_tell_apart_are_compared_in_all(tmp_path: Path) -> None:
    splits = {"train": {"count": 4}, "val": {"count": 5}}
    root = draw(tmp_path, train=4, val=2)
    said = told(about_of(splits=splits, versions={}), root)
    assert said[:3] == ["air: 6 of 9 images", "counts match no published version; the nearest is 1.0",
                        "missing: 3 images: 6 of 9"]  # fmt: skip


def test_bytes_as_published(tmp_path: Path) -> None:
    root = draw(tmp_path, train=4)
    n = sum(path.stat().st_size for path in root.rglob("*.png"))
    for published, end in ((n, "published"), (n * 1000, "published: differs")):
        splits = {"train": {"images": ["train/images/*.png"], "count": 4, "bytes": published}}
        (line,) = [line for line in told(about_of(splits=splits), root) if line.startswith("bytes")]
        assert line.startswith(f"bytes of train: {size(n)} on disk")
        assert line.endswith(end)


def test_globs_that_match_nothing(tmp_path: Path) -> None:
    layout = {**ABOUT["layout"], "images": ["*/images/*.png", "old/*.tif"]}
    said = told(about_of(layout=layout), draw(tmp_path, train=4, val=2, test=3))
    assert "no image matches old/*.tif" in said


def test_labels_that_are_missing_or_not_listed(tmp_path: Path) -> None:
    root = draw(tmp_path, train=4)
    for n in range(3):
        (root / "train" / "labelTxt" / f"P{n:04d}.txt").unlink()
    said = told(about_of(), root)
    at = said.index("missing: 3 of 4 images of train have no dota file {dir}/../labelTxt/{stem}.txt")
    assert said[at + 1] == "train/images/P0000.png, train/images/P0001.png, train/images/P0002.png"
    assert not [line for line in said if line.startswith("label files")]

    layout = {**ABOUT["layout"], "label_files": ["labels/*.txt"]}
    said = told(about_of(layout=layout), root)
    assert "no label file matches labels/*.txt" in said
    at = said.index("label files that are there, but that no glob of label_files lists:")
    assert said[at + 1] == "train/labelTxt/P0003.txt"


def test_one_label_file_for_many_images(tmp_path: Path) -> None:
    labels = [{"kind": "coco", "path": "train.json"}, {"kind": "coco", "path": "test.json"}]
    about = about_of(layout={**ABOUT["layout"], "label_files": ["*.json"], "labels": labels})
    root = draw(tmp_path, labels=False, train=4)
    (root / "train.json").write_text("{}")
    said = told(about, root)
    assert "missing: the label file test.json" in said
    assert not [line for line in said if "train.json" in line or "have no coco" in line]


def test_paths_of_one_kind_are_alternatives(tmp_path: Path) -> None:
    paths = [{"kind": "dota", "path": f"{split}/labelTxt/{{stem}}.txt"} for split in ("train", "val")]
    root = draw(tmp_path, train=4, val=6)
    (root / "val" / "labelTxt" / "P0005.txt").unlink()
    said = told(about_of(layout={**ABOUT["layout"], "labels": paths}), root)
    assert [line for line in said if "have no" in line] == [
        "missing: 1 of 6 images of val have no dota file train/labelTxt/{stem}.txt or val/labelTxt/{stem}.txt"
    ]


def test_files_of_no_glob(tmp_path: Path) -> None:
    root = draw(tmp_path, train=4, val=2, test=3)
    for n in range(7):
        (root / "previews").mkdir(exist_ok=True)
        (root / "previews" / f"a_rather_long_name_of_a_preview_picture_{n}.gif").write_text("x")
        (root / "notes").mkdir(exist_ok=True)
        (root / "notes" / f"a.n{n}").write_text("x")
    (root / "README").write_text("x")
    said = told(about_of(), root)
    at = said.index("extra: 7 files .gif in previews: matched by no glob of the layout")
    assert said[at + 1].split(", ")[4] == "…ong_name_of_a_preview_picture_4.gif"
    assert said[at + 1].count(", ") == 4
    assert "extra: 1 file without suffix beside the folders: matched by no glob of the layout" in said
    assert said[-1] == "extra: 4 other files: matched by no glob of the layout"
    assert max(map(len, said)) <= 196


def recipe_of(about: Collection) -> Recipe:
    source = {"name": "air", "path": "air", "collection": about.model_dump(mode="json")}
    return Recipe.model_validate({"name": "small", "sources": [source]})


def test_archives_that_are_not_read(tmp_path: Path) -> None:
    root = draw(tmp_path / "air", train=4)
    with tarfile.open(root / "val.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    recipe = recipe_of(about_of())
    said: list[str] = []
    with pytest.raises(SourceError, match=r"air: val\.tgz: cannot be read in place\. Run `tar -xf` on it"):
        said.extend(line.strip() for line in check(recipe, tmp_path))
    assert any(line.startswith("not read: val.tgz (0.") and "run `tar -xf val.tgz`" in line for line in said)
    assert any(line.startswith("disk, estimated") for line in said)

    layout = {**ABOUT["layout"], "ignore": ["*.tgz"]}
    assert not [line for line in check(recipe_of(about_of(layout=layout)), tmp_path) if "tgz" in line]


def test_the_plan_says_what_is_there(tmp_path: Path) -> None:
    draw(tmp_path / "air", train=4, val=2, test=3)
    text = list(check(recipe_of(about_of()), tmp_path))
    at = text.index("on disk, beside what the manifests say:")
    assert text[at + 1] == "  air: 9 of 9 images: train 4 of 4, val 2 of 2, test 3 of 3"
    assert text[at + 2] == "    counts are those of version 1.0 and version 1.5"


def test_members_of_archives_count_as_if_unpacked(tmp_path: Path) -> None:
    plain, packed = draw(tmp_path / "plain", train=4, val=2), tmp_path / "packed"
    packed.mkdir()
    for split in ("train", "val"):
        with zipfile.ZipFile(packed / f"{split}.zip", "w") as archive:
            for path in sorted((plain / split).rglob("*.*")):
                archive.write(path, path.relative_to(plain).as_posix())
    assert told(about_of(), packed) == told(about_of(), plain)


def test_no_more_headers_are_read_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "air", train=9, val=2)
    monkeypatch.setattr("datakit.plan.BATCH", 4)
    recipe = recipe_of(about_of())
    in_parts = look(recipe, {"air": tmp_path / "air"}, 3)["air"]
    monkeypatch.undo()
    assert in_parts == look(recipe, {"air": tmp_path / "air"}, 3)["air"]
    assert (in_parts.images, in_parts.looked_at, in_parts.there.images["train"]) == (11, 3, 9)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("{dir}/../labelTxt/{stem}.txt", "train/images/P1.png"),
        ("{dir}/{stem:-4}_mask.png", "train/12_sat.jpg"),
        ("masks/{stem:+4}{name}", "a/img_7.tif"),
        ("{dir}/{stem:-0}.txt", "7.tif"),
        ("{stem:-9}.txt", "abc.tif"),
    ],
)
def test_label_files_are_looked_for_where_they_are_read(path: str, name: str) -> None:
    asked: list[str] = []
    labels = about_of(layout={"images": ["*"], "labels": [{"kind": "dota", "path": path}]}).layout.labels
    LabelReader(labels, lambda where: asked.append(where))(Sample(name=name))
    assert asked == [label_path(path, name)]
