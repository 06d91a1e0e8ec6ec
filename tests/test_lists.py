"""Splits that text files tell: what a line names, what a build and a plan make of it."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from worlds import digests, recipe_of, scene, work_done

import datakit
from datakit.engine import Engine
from datakit.errors import SourceError
from datakit.manifest import Collection, Split
from datakit.plan import check, look
from datakit.recipe import Recipe
from datakit.signing import held_out
from datakit.sources import folder
from datakit.sources.lists import Lists, absent, read_lists

LISTS: dict[str, Any] = {
    "train": {"lists": ["sets/train.txt"], "count": 2},
    "test": {"lists": ["sets/test.txt"], "count": 1},
}


def lists(**lines: str) -> Lists:
    return Lists((split, line) for split, text in lines.items() for line in text.splitlines())


@pytest.mark.parametrize(
    "line",
    ["00004", "00004.jpg", "OPT/images/00004.jpg", "OPT/images/00004", "images/00004.jpg", "./images/00004",
     "/home/me/OPT/images/00004.jpg", r"images\00004.jpg", "00004 1", "00004.jpg\t-1", "00004.jpg,labels/00004.png",
     '"00004.jpg","x"', "  00004  ", "00004.png", "other/00004.jpg"],
)  # fmt: skip
def test_a_line_names_an_image(line: str) -> None:
    assert lists(test=line)("OPT/images/00004.jpg") == "test"
    assert lists(test=line)("OPT/images/00005.jpg") == ""


@pytest.mark.parametrize(
    ("line", "name", "is_named"),
    [
        ("a b/my town.jpg", "a b/my town.jpg", True),
        ("a b/my town.jpg 1", "a b/my town.jpg", False),  # nothing tells where the name ends
        ("a b/my town.jpg,1", "a b/my town.jpg", True),
        ("4", "14.jpg", False),
        ("mages/4.jpg", "images/4.jpg", True),  # by its stem
        ("town.v1", "town.v1.tif", True),
        ("town.v1", "town.v2.tif", False),
        ("town.v1.tif", "town.tif", False),
        ("scene.img", "deep/scene.img", True),
        ("scene", "deep/scene.img", True),
        ("Town", "town.tif", False),
        ("", "town.tif", False),
        (".", "town.tif", False),
        ("../images/4.jpg", "images/4.jpg", True),
    ],
)
def test_what_is_a_name(line: str, name: str, is_named: bool) -> None:
    assert lists(test=line)(name) == ("test" if is_named else "")


def test_folders_tell_images_of_one_stem_apart() -> None:
    told = lists(train="a/1.jpg\n/data/deep/c/1.jpg", test="b/1.jpg")
    assert [told(f"{f}/1.jpg") for f in ("a", "b", "x/b", "c")] == ["train", "test", "test", "train"]
    assert told("d/1.jpg") == "test"  # no line has this folder: all lines of that stem count
    assert lists(test="1")("a/1.jpg") == lists(test="1")("b/1.jpg") == "test"  # a stem stands for all of them


def test_of_two_splits_the_one_for_evaluation_is_taken() -> None:
    for told in (lists(train="1", test="1"), lists(test="1", train="1"), lists(train="a/1.jpg", test="1")):
        assert told("a/1.jpg") == "test"
    assert lists(train="1", unlabeled="1", val="2")("a/1.jpg") == "train"
    assert lists(unlabeled="1", train="1")("a/1.jpg") == "unlabeled"


def files_of(root: Path, **content: bytes) -> Path:
    (root / "sets").mkdir(parents=True)
    for name, data in content.items():
        (root / "sets" / f"{name}.txt").write_bytes(data)
    return root


def read(root: Path, **more: Any) -> Lists:
    splits = {name: Split.model_validate(spec) for name, spec in {**LISTS, **more}.items()}
    return read_lists(splits, folder.files(root), root)


@pytest.mark.parametrize("text", ["1\n2\n", "1\r\n2\r\n", "\ufeff1\n\n\n2", "1\r2"])
def test_lines_end_in_any_way(tmp_path: Path, text: str) -> None:
    told = read(files_of(tmp_path, test=text.encode()))
    assert [told(f"{n}.jpg") for n in (1, 2, 3)] == ["test", "test", ""]


@pytest.mark.parametrize(
    ("content", "found"), [(b"1\n\xff\n", "byte 0xff"), ("1\n2\n".encode("utf-16-le"), "a zero byte")]
)
def test_a_list_that_is_no_text_is_an_error(tmp_path: Path, content: bytes, found: str) -> None:
    files_of(tmp_path, test=content)
    with pytest.raises(SourceError, match=rf"^sets/test\.txt: expected UTF-8 text, found {found}\. It tells a split"):
        read(tmp_path)


def test_lists_that_are_not_there(tmp_path: Path) -> None:
    files_of(tmp_path, train=b"1")
    splits = {"train": Split(lists=("sets/train.txt", "more/*.txt")), "test": Split(lists=("**/test.txt",))}
    assert absent(splits, folder.files(tmp_path)) == {"train": ["more/*.txt"], "test": ["**/test.txt"]}


def recipe(**more: Any) -> Recipe:
    """A collection of images in one folder, whose lists tell the splits."""
    plain = recipe_of("air", exclude={"rules": []}, slice={"grid": {"size_px": 128}}).model_dump(mode="json")
    layout = {"images": ["**/images/*.png"]}
    plain["sources"][0]["collection"] |= {"layout": layout, "splits": LISTS, **more}
    return Recipe.model_validate(plain)


def draw(root: Path, train: str = "1\n2\n", test: str = "3 1\n") -> Path:
    """Four images, 200 x 150 px, of which the last is in no list."""
    (root / "images").mkdir(parents=True)
    for n in range(1, 5):
        Image.fromarray(scene(n, 200, 150)).save(root / "images" / f"{n}.png")
    return files_of(root, train=train.encode(), test=test.encode())


def pack(root: Path, kind: str) -> None:
    """Put the lists into an archive beside the images: its members are named as if it were unpacked there."""
    names = sorted((root / "sets").iterdir())
    if kind == "zip":
        with zipfile.ZipFile(root / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in names:
                archive.write(path, f"sets/{path.name}")
    else:
        with tarfile.open(root / "all.tar", "w") as archive:
            for path in names:
                about = tarfile.TarInfo(f"sets/{path.name}")
                about.size = path.stat().st_size
                archive.addfile(about, io.BytesIO(path.read_bytes()))
    for path in names:
        path.unlink()


def kept(out: Path) -> dict[str, str]:
    """The split of each image that entered."""
    rows = pq.read_table(out / "samples.parquet").to_pylist()
    return {Path(row["name"]).stem: row["split"] for row in rows}


@pytest.mark.parametrize("packed", ["", "zip", "tar"])
def test_a_test_image_that_only_a_list_names_does_not_enter(tmp_path: Path, packed: str) -> None:
    root = draw(tmp_path / "data" / "air")
    if packed:
        pack(root, packed)
    said: list[str] = []
    manifest = datakit.build(recipe(), tmp_path / "data", tmp_path / "out", workers=0, say=said.append)
    assert kept(tmp_path / "out") == {"1": "train", "2": "train", "4": ""}
    counts = {count.stage: count for count in manifest.counts}
    assert counts["list"].dropped == {}  # lists are label files
    assert counts["exclude"].dropped == {"evaluation": 1}
    assert not [line for line in said if "no list" in line]
    text = list(check(recipe(), tmp_path / "data"))
    assert "  air: 4 images: train 2 of 2, test 1 of 1, in no split 1" in text
    assert not [line for line in text if "extra" in line or "no list" in line]


def test_a_collection_that_is_one_archive(tmp_path: Path) -> None:
    root = draw(tmp_path / "air")
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "data" / "air.zip", "w") as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(root).as_posix())
    datakit.build(recipe(), tmp_path / "data", tmp_path / "out", workers=0)
    assert kept(tmp_path / "out") == {"1": "train", "2": "train", "4": ""}
    assert "  air: 4 images: train 2 of 2, test 1 of 1, in no split 1" in list(check(recipe(), tmp_path / "data"))


def test_a_changed_list_is_read(tmp_path: Path) -> None:
    root = draw(tmp_path / "data" / "air")
    datakit.build(recipe(), tmp_path / "data", tmp_path / "out", workers=0)
    before = digests(tmp_path / "out")
    datakit.build(recipe(), tmp_path / "data", tmp_path / "out", workers=0)
    assert digests(tmp_path / "out") == before
    assert "headers_read" not in work_done(tmp_path / "out")
    (root / "sets" / "test.txt").write_text("2\n3\n")
    datakit.build(recipe(), tmp_path / "data", tmp_path / "out", workers=0)
    assert kept(tmp_path / "out") == {"1": "train", "4": ""}  # in two lists: held back
    assert work_done(tmp_path / "out")["headers_read"] == 4
    assert "images_opened" not in work_done(tmp_path / "out")


def test_globs_go_before_lists(tmp_path: Path) -> None:
    draw(tmp_path / "data" / "air")
    splits = {**LISTS, "extra": {"images": ["images/3.png", "images/4.png"]}}
    datakit.build(recipe(splits=splits), tmp_path / "data", tmp_path / "out", workers=0)
    assert kept(tmp_path / "out") == {"1": "train", "2": "train", "3": "extra", "4": "extra"}


def test_without_its_list_a_split_is_unknown_and_all_say_so(tmp_path: Path) -> None:
    root = draw(tmp_path / "data" / "air")
    (root / "sets" / "test.txt").unlink()
    warning = "no list of split test on disk: sets/test.txt; fetch it, or images that it names count as of no split"
    text = [line.strip() for line in check(recipe(), tmp_path / "data")]
    assert "air: 4 images: train 2 of 2, in no split 2" in text
    assert sum(line.startswith(warning) for line in text) == 1
    assert not [line for line in text if "nothing of test" in line]
    said: list[str] = []
    datakit.build(recipe(), tmp_path / "data", tmp_path / "out", workers=0, say=said.append)
    assert sum(line.startswith(f"warning: air: {warning}") for line in said) == 1
    assert kept(tmp_path / "out") == {"1": "train", "2": "train", "3": "", "4": ""}


def test_a_list_of_which_no_line_names_an_image(tmp_path: Path) -> None:
    draw(tmp_path / "data" / "air", test="a3\n")
    text = [line.strip() for line in check(recipe(), tmp_path / "data")]
    assert "missing: nothing of test (1 published); looked for in sets/test.txt" in text


def test_a_damaged_list_stops_plan_and_build(tmp_path: Path) -> None:
    draw(tmp_path / "data" / "air")
    (tmp_path / "data" / "air" / "sets" / "test.txt").write_bytes(b"3\xff")
    with pytest.raises(SourceError, match=r"sets/test\.txt: expected UTF-8 text"):
        list(check(recipe(), tmp_path / "data"))
    with pytest.raises(SourceError, match=r"sets/test\.txt: expected UTF-8 text"):
        datakit.build(recipe(), tmp_path / "data", tmp_path / "out", workers=0)


def test_the_plan_promises_what_a_build_with_lists_makes(tmp_path: Path) -> None:
    draw(tmp_path / "data" / "air")
    plan = look(recipe(), {"air": tmp_path / "data" / "air"}, 2000)["air"]
    manifest = datakit.build(recipe(), tmp_path / "data", tmp_path / "out", workers=0)
    counts = {count.stage: count for count in manifest.counts}
    assert plan.tiles == counts["slice"].made == 3 * 4
    assert dict(plan.dropped) == {"evaluation": 1}


def test_evaluation_images_of_a_list_may_be_asked_for(tmp_path: Path) -> None:
    draw(tmp_path / "data" / "air")
    asked = recipe().model_copy(update={"include_evaluation": ("air:test",)})
    datakit.build(asked, tmp_path / "data", tmp_path / "out", workers=0)
    assert kept(tmp_path / "out") == {"1": "train", "2": "train", "3": "test", "4": ""}


@pytest.mark.parametrize("images", [True, False])
def test_what_a_list_of_the_other_collection_holds_back_is_held_back(tmp_path: Path, images: bool) -> None:
    """The other collection has the same images, or only its lists are on disk."""
    main = tmp_path / "data" / "main" / "train" / "images"
    main.mkdir(parents=True)
    other = draw(tmp_path / "data" / "other", train="1\n", test="images/2.png\n")
    for n in range(1, 4):
        Image.fromarray(scene(n, 200, 150)).save(main / f"{n}.png")
    for path in () if images else sorted((other / "images").iterdir()):
        path.unlink()
    plain = recipe_of("main", "other", exclude={"rules": []}, slice=None).model_dump(mode="json")
    layout = {"layout": {"images": ["**/images/*.png"]}}
    splits = {"train": {"images": ["train/**"]}}
    plain["sources"][0]["collection"] |= {**layout, "splits": splits, "same_images_as": ["other"]}
    plain["sources"][1]["collection"] |= {**layout, "splits": LISTS}
    both = Recipe.model_validate(plain)
    manifest = datakit.build(both, tmp_path / "data", tmp_path / "out", workers=0)
    listed = {count.source: count.dropped for count in manifest.counts if count.stage == "list"}
    assert listed.get("other", {}) == ({"same_images": 3} if images else {})
    assert kept(tmp_path / "out") == {"1": "train", "3": "train", **({"4": ""} if images else {})}


def test_a_list_of_the_other_collection_says_nothing_of_another_picture(tmp_path: Path) -> None:
    """Folders tell that two pictures of one stem are not the same."""
    for n, path in enumerate(("main/extra", "other/train")):
        (tmp_path / "data" / path / "images").mkdir(parents=True)
        Image.fromarray(scene(n, 200, 150)).save(tmp_path / "data" / path / "images" / "1.png")
    files_of(tmp_path / "data" / "other", test=b"1")
    globs = {split: {"images": [f"{split}/**"]} for split in ("extra", "train")}
    plain = recipe_of("main", "other", exclude={"rules": []}, slice=None).model_dump(mode="json")
    for source, splits in zip(plain["sources"], (globs, {**globs, "test": LISTS["test"]}), strict=True):
        source["collection"] |= {"layout": {"images": ["**/images/*.png"]}, "splits": splits}
    plain["sources"][0]["collection"]["same_images_as"] = ["other"]
    datakit.build(Recipe.model_validate(plain), tmp_path / "data", tmp_path / "out", workers=0)
    rows = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    assert {(row["source"], row["split"]) for row in rows} == {("main", "extra"), ("other", "train")}


def test_a_held_out_list_is_signed_of_a_split_that_a_list_tells(tmp_path: Path) -> None:
    root = draw(tmp_path / "air")
    about = recipe().sources[0].collection
    with Engine(0) as engine:
        held = held_out(root, recipe(), engine, about=about, split="test")
        assert (held.about["images"], held.about["files"]) == (1, 1)
        (root / "sets" / "test.txt").unlink()
        with pytest.raises(SourceError, match=r"no list of split test on disk: sets/test\.txt\. Put it there"):
            held_out(root, recipe(), engine, about=about, split="test")
        with pytest.raises(SourceError, match="tells no split val by its files; it tells train, test"):
            held_out(root, recipe(), engine, about=about, split="val")


def test_a_list_is_a_label_file_whatever_else_matches_it() -> None:
    plain = recipe().sources[0].collection.model_dump(mode="json")
    about = Collection.model_validate({**plain, "layout": {"images": ["**/*"]}})
    assert [about.kind(name) for name in ("sets/test.txt", "sets/other.txt", "3.png")] == ["label", "image", "image"]


def test_a_list_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    root = draw(tmp_path / "data" / "air")
    pack(root, "zip")
    path = root / "all.zip"
    data = bytearray(path.read_bytes())
    at = data.index(b"sets/test.txt") + len("sets/test.txt")
    data[at] ^= 0xFF  # the first byte of what is packed
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceError, match=r"^sets/test\.txt: zip member: .* It tells a split"):
        list(check(recipe(), tmp_path / "data"))
