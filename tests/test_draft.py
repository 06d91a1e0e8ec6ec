"""A draft loads as it is, and reads the images and labels of the folder that it was made from."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rasterio.crs import CRS
from test_layouts import CONTENT, HEIGHT, WIDTH, draw, scanned
from worlds import geotiff

from datakit.cli import main
from datakit.draft import draft
from datakit.errors import RecipeError, SourceError
from datakit.grouping import patterns
from datakit.hints import kind_of, split_of, template
from datakit.manifest import (
    Captions,
    CocoJson,
    Collection,
    DotaText,
    FmowJson,
    GeoJson,
    MaskRaster,
    VocXml,
)
from datakit.sample import Sample

Out = pytest.CaptureFixture[str]


def drafted(root: Path, **options: Any) -> tuple[Collection, dict[str, Any], str]:
    """The draft of a folder: as it loads, as plain YAML, as text."""
    text = draft(root, **options)
    plain = yaml.safe_load(text)
    return Collection.model_validate(plain), plain, text


def images(root: Path, *names: str) -> None:
    about = Collection.model_validate(ABOUT)
    for n, name in enumerate(names):
        draw(about, root / name, n)


ABOUT: dict[str, Any] = {
    "name": "own",
    "title": "Own",
    "homepage": "",
    "licence": "unstated",
    "modality": "optical",
    "bands": ["red", "green", "blue"],
    "layout": {"images": ["*"]},
}


def put(root: Path, name: str, data: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)


def read(root: Path, tmp_path: Path) -> tuple[dict[str, Any], list[Sample]]:
    """The plain YAML of a draft, and the records that a scan by it gives, all of them images."""
    about, plain, _ = drafted(root)
    records = scanned(about, root, tmp_path / "work")
    assert not [(r.name, r.dropped, r.detail) for r in records if r.dropped not in ("", "unmatched")]
    return plain, [record for record in records if not record.dropped]


def test_dota(tmp_path: Path) -> None:
    root = tmp_path / "My Aerial-Set"
    names = [f"{split}/images/P{n:04d}.png" for split in ("train", "val") for n in range(3)]
    images(root, *names)
    for name in names:
        put(root, name.replace("images", "labelTxt").replace("png", "txt"), CONTENT[DotaText](None, []))
    put(root, "readme.txt", b"Thank you.")
    plain, records = read(root, tmp_path)
    assert plain["name"] == "my_aerial_set"
    assert plain["layout"] == {
        "images": ["train/images/*.png", "val/images/*.png"],
        "label_files": ["train/labelTxt/*.txt", "val/labelTxt/*.txt"],
        "labels": [{"kind": "dota", "path": "{dir}/../labelTxt/{stem}.txt"}],
    }
    assert plain["splits"] == {
        "train": {"images": ["train/images/*.png"], "count": 3},
        "val": {"images": ["val/images/*.png"], "count": 3},
    }
    assert (plain["count"], plain["bands"], plain["dtype"], plain["gsd_m"]) == (6, ABOUT["bands"], "uint8", None)
    assert [record.gsd_m for record in records] == [0.5] * 6
    assert {record.split for record in records} == {"train", "val"}


def test_class_folders_in_a_zip(tmp_path: Path) -> None:
    images(
        tmp_path / "plain", *(f"Land/Images/{kind}/{kind}{n}.tif" for kind in ("a b", "sea", "wood") for n in (1, 2))
    )
    packed = tmp_path / "land"
    packed.mkdir()
    with zipfile.ZipFile(packed / "Land.zip", "w") as archive:
        for path in sorted((tmp_path / "plain" / "Land").rglob("*.tif")):
            archive.write(path, path.relative_to(tmp_path / "plain").as_posix())
    plain, records = read(packed, tmp_path)
    assert plain["layout"] == {"images": ["Land/Images/*/*.tif"], "labels": [{"kind": "class_folders"}]}
    assert {record.label for record in records} == {"a b", "sea", "wood"}
    assert plain["gsd_m"] == [pytest.approx(0.5, rel=0.01)] * 2


def test_folders_of_several_depths(tmp_path: Path) -> None:
    images(tmp_path, *(f"train/{way}/x.jpg" for way in ("a/b/c", "a/b/d", "e/f/g", "h/i/j", "e/k", "h/l", "a/m")))
    plain, records = read(tmp_path, tmp_path / "scratch")
    assert plain["layout"]["images"] == ["train/**/*.jpg"]
    assert (len(records), plain["splits"]["train"]["count"]) == (7, 7)


def test_voc(tmp_path: Path) -> None:
    root = tmp_path / "ships"
    images(root, *(f"JPEGImages/{n}.jpg" for n in range(4)))
    for n in range(4):
        put(root, f"Annotations/{n}.xml", CONTENT[VocXml](None, []))
    plain, records = read(root, tmp_path)
    assert plain["layout"]["labels"] == [{"kind": "voc", "path": "{dir}/../Annotations/{stem}.xml"}]
    assert all(json.loads(record.boxes)[0]["category"] == "plane" for record in records)


def test_labels_whose_folders_name_the_split(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split in ("train", "val"):
        images(root, *(f"images/{split}/{split}{n}.jpg" for n in range(3)))
        for n in range(3):
            put(root, f"labels/{split}/{split}{n}.xml", CONTENT[VocXml](None, []))
    plain, records = read(root, tmp_path)
    assert [entry["path"] for entry in plain["layout"]["labels"]] == ["{dir}/../../labels/{folder}/{stem}.xml"]
    assert all(json.loads(record.boxes) for record in records)


@pytest.mark.parametrize("folder", ["pictures", "pictures/part"])
def test_coco(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "set"
    names = [f"{folder}/{n}.jpg" for n in range(3)]
    images(root, *names)
    inside = [name.removeprefix("pictures/") for name in names]
    put(root, "annotations/instances.json", CONTENT[CocoJson](None, inside))
    plain, records = read(root, tmp_path)
    (entry,) = plain["layout"]["labels"]
    assert entry == {"kind": "coco", "path": "annotations/instances.json", "images": "pictures"}
    assert all(json.loads(record.boxes)[0]["category"] == "ship" for record in records)


def test_captions(tmp_path: Path) -> None:
    root = tmp_path / "set"
    images(root, *(f"images/{n}.jpg" for n in range(3)))
    put(root, "dataset.json", CONTENT[Captions](None, [f"{n}.jpg" for n in range(3)]))
    plain, records = read(root, tmp_path)
    assert plain["layout"]["labels"] == [{"kind": "captions", "path": "dataset.json", "images": "images"}]
    assert all(record.captions for record in records)


def test_fmow(tmp_path: Path) -> None:
    root = tmp_path / "fmow"
    names = [f"train/{kind}/{kind}_{n}/{kind}_{n}_0_rgb.jpg" for kind in ("airport", "port", "zoo") for n in range(3)]
    images(root, *names)
    for name in names:
        put(root, name.replace("jpg", "json"), CONTENT[FmowJson](None, []))
    plain, records = read(root, tmp_path)
    assert plain["layout"]["images"] == ["train/*/*/*_rgb.jpg"]
    assert plain["layout"]["labels"][0] == {"kind": "fmow", "path": "{dir}/{stem}.json"}
    assert {record.gsd_m for record in records} == {0.5}


def test_geojson_an_image(tmp_path: Path) -> None:
    root = tmp_path / "set"
    images(root, *(f"rgb/t{n}.tif" for n in range(3)))
    labels = GeoJson(path="x", category="class_name")
    for n in range(3):
        put(root, f"geojson/t{n}.geojson", CONTENT[GeoJson](labels, [f"t{n}.tif"]))
    plain, records = read(root, tmp_path)
    (entry,) = plain["layout"]["labels"]
    assert entry == {"kind": "geojson", "path": "{dir}/../geojson/{stem}.geojson", "category": "class_name"}
    assert all(json.loads(record.boxes) for record in records)


def test_geojson_of_many_images(tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = [f"train_images/{n}.tif" for n in range(3)]
    images(root, *names)
    labels = GeoJson(path="x", image="image_id", bounds="bounds_imcoords", category="type_id")
    put(root, "xView_train.geojson", CONTENT[GeoJson](labels, [f"{n}.tif" for n in range(3)]))
    plain, records = read(root, tmp_path)
    assert plain["layout"]["labels"] == [
        {
            "kind": "geojson",
            "path": "xView_train.geojson",
            "image": "image_id",
            "images": "train_images",
            "bounds": "bounds_imcoords",
            "category": "type_id",
        }
    ]
    assert plain["splits"]["train"]["images"] == ["train_images/*.tif"]
    assert all(json.loads(record.boxes) for record in records)


def test_masks_in_a_folder_of_their_own(tmp_path: Path) -> None:
    root = tmp_path / "set"
    images(root, *(f"Train/Rural/images_png/{n}.png" for n in range(3)))
    for n in range(3):
        put(root, f"Train/Rural/masks_png/{n}.png", CONTENT[MaskRaster](MaskRaster(path="x", classes={n: "a"}), []))
    plain, records = read(root, tmp_path)
    assert plain["layout"]["images"] == ["Train/Rural/images_png/*.png"]
    (entry,) = plain["layout"]["labels"]
    assert entry["path"] == "{dir}/../masks_png/{stem}.png"
    assert entry["classes"] == {0: "class_0", 1: "class_1", 2: "class_2"}
    assert all(record.mask for record in records)


def test_colour_masks_beside_their_images(tmp_path: Path) -> None:
    root = tmp_path / "set"
    images(root, *(f"train/{n}_sat.jpg" for n in range(3)))
    labels = MaskRaster(path="x", colours={0: (0, 255, 255)})
    for n in range(3):
        put(root, f"train/{n}_mask.png", CONTENT[MaskRaster](labels, []))
    plain, records = read(root, tmp_path)
    assert plain["layout"]["images"] == ["train/*_sat.jpg"]
    assert plain["layout"]["label_files"] == ["train/*_mask.png"]
    (entry,) = plain["layout"]["labels"]
    assert (entry["path"], entry["colours"]) == ("{dir}/{stem:-3}mask.png", {0: [0, 255, 255]})
    assert all(record.mask for record in records)


def masks(root: Path, *names: str) -> None:
    """A mask an image, of three levels: the n-th has level n everywhere."""
    for n, name in enumerate(names):
        put(root, name, CONTENT[MaskRaster](MaskRaster(path="x", classes={n % 3: "a"}), []))


def drafted_mask(root: Path, *pictures: Image.Image, **options: Any) -> dict[str, Any]:
    """What the draft says of masks like these."""
    images(root, *(f"images/{n}.png" for n in range(len(pictures))))
    for n, picture in enumerate(pictures):
        (root / "masks").mkdir(exist_ok=True)
        picture.save(root / "masks" / f"{n}.png", **options)
    _, plain, _ = drafted(root)
    (entry,) = plain["layout"]["labels"]
    return {key: value for key, value in entry.items() if key in ("classes", "colours")}


def levels_of(*levels: int) -> Image.Image:
    return Image.fromarray(np.resize(np.array(levels, np.uint8), (HEIGHT, WIDTH)))


def test_masks_of_black_and_white_are_of_two_colours(tmp_path: Path) -> None:
    found = drafted_mask(tmp_path / "gray", levels_of(0, 255), levels_of(0))
    assert found == {"classes": {0: "class_0", 1: "class_1"}, "colours": {0: [0] * 3, 1: [255] * 3}}
    assert drafted_mask(tmp_path / "one", levels_of(255))["colours"] == {0: [255] * 3}
    assert drafted_mask(tmp_path / "three", levels_of(0, 128, 255))["colours"] == {
        0: [0] * 3,
        1: [128] * 3,
        2: [255] * 3,
    }


def test_255_beside_levels_of_classes_is_no_class(tmp_path: Path) -> None:
    root = tmp_path / "set"
    found = drafted_mask(root, levels_of(0, 1, 5, 255), levels_of(2))
    assert found == {"classes": {n: f"class_{n}" for n in (0, 1, 2, 5)}}
    assert "; 255 means none" in draft(root)


def test_levels_of_masks_are_those_that_a_build_reads(tmp_path: Path) -> None:
    """A file's own numbers: Pillow gives 0 and 255 for 1 bit, colours or spread levels for a palette of 2."""
    assert drafted_mask(tmp_path / "bit", levels_of(0, 255).convert("1"))["classes"] == {0: "class_0", 1: "class_1"}
    palette = levels_of(0, 1, 3)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert [*drafted_mask(tmp_path / "palette", palette, bits=2)["classes"]] == [0, 1, 3]
    deep = Image.fromarray(np.resize(np.array([0, 7], np.uint16), (HEIGHT, WIDTH)))
    assert [*drafted_mask(tmp_path / "deep", deep)["classes"]] == [0, 7]
    assert drafted_mask(tmp_path / "noise", levels_of(*range(200))) == {}


REGIONS = tuple("abcdefghij")


@pytest.mark.parametrize(
    ("image", "mask", "folders", "path"),
    [
        ("images/{}/{}.png", "labels/{}/{}.png", ("train", "val"), "{dir}/../../labels/{folder}/{stem}.png"),
        ("images/{}/{}.jpg", "annotations/{}/{}.png", ("training", "validation"), None),
        ("img_dir/{}/{}.png", "ann_dir/{}/{}.png", ("train", "val", "test"), None),
        ("images/{}/{}.png", "masks/{}/{}.png", REGIONS, "{dir}/../../masks/{folder}/{stem}.png"),
        ("{}/images/{}.png", "{}/targets/{}_target.png", ("train", "hold"), "{dir}/../targets/{stem}_target.png"),
        ("{}/images/{}.png", "{}/target/{}.png", ("train", "val"), None),
        ("x/{}/images/{}.png", "x/{}/Semantic_masks/images/{}.png", ("train", "val"), None),
        ("segmentation/{}/img/{}.png", "segmentation/{}/seg/{}.png", ("train", "val"), None),
        ("masks_of_land/{}/{}_sat.png", "masks_of_land/{}/{}_mask.png", ("train", "val"), None),
        ("s/{}/JPEGImages/{}.jpg", "s/{}/SegmentationClass/{}.png", ("train", "val"), None),
        ("train_{}/images/{}.png", "train_{}/labels/{}.png", tuple(map(str, range(45))), "{dir}/../labels/{stem}.png"),
    ],
)
def test_masks_are_no_training_images(
    image: str, mask: str, folders: tuple[str, ...], path: str | None, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    names = [image.format(folder, n) for folder in folders for n in range(2)]
    images(root, *names)
    masks(root, *(mask.format(folder, n) for folder in folders for n in range(2)))
    plain, records = read(root, tmp_path)
    assert sorted(record.name for record in records) == sorted(names)
    for record in records:
        folder, n = next((f, n) for f in folders for n in range(2) if image.format(f, n) == record.name)
        assert json.loads(record.mask)["file"]["name"] == mask.format(folder, n)
    paths = [entry["path"] for entry in plain["layout"]["labels"] if entry["kind"] == "mask"]
    assert path is None or paths == [path]
    assert plain["bands"] == ["red", "green", "blue"]


def test_folders_above_all_images_and_names_of_tasks_say_nothing(tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = ["labels_2020/landcover/train/1.jpg", "labels_2020/roads/train/1.jpg"]
    images(root, *names)
    _, records = read(root, tmp_path)
    assert sorted(record.name for record in records) == names


def test_bands_types_and_places(tmp_path: Path) -> None:
    for n in range(3):
        pixels = np.zeros((16, 16, 5), np.uint16)
        geotiff(tmp_path / "s2" / f"{n}.TIF", pixels)
    about, plain, text = drafted(tmp_path)
    assert (about.modality, about.dtype, len(about.bands)) == ("multispectral", "uint16", 5)
    assert "# to complete: their names: red, green, blue, nir, …" in text
    assert plain["layout"]["images"] == ["s2/*.TIF"]
    assert plain["gsd_m"] == [pytest.approx(0.5, rel=0.01)] * 2
    assert "# of 3 headers: GTiff 3\n" in text
    assert "# 16 x 16 to 16 x 16 px\n" in text


def test_formats_are_told_by_bytes(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg")
    Image.new("L", (9, 9)).save(tmp_path / "c.jpg", "PNG")
    Image.new("RGB", (9, 9)).save(tmp_path / "d.dat", "PNG")
    (tmp_path / "e.jpg").write_bytes(b"")
    (tmp_path / "notes.md").write_text("x")
    put(tmp_path, "yolo/a.txt", b"0 0.5 0.5 0.1 0.1\n")
    about, _, text = drafted(tmp_path)
    assert about.layout.images == ("*.dat", "*.jpg")
    assert "# of 5 headers: JPEG 2, PNG 2\n" in text
    assert "# cannot be read: 1 (OSError: the file is empty)\n" in text
    assert "# 1 have the bands gray\n" in text
    assert '# 1 files "*.md": neither images nor labels\n' in text
    assert '# 1 files "yolo/*.txt": boxes of YOLO, which are not read\n' in text


def test_few_headers_are_read_and_the_draft_is_the_same_each_time(tmp_path: Path) -> None:
    images(tmp_path, *(f"a/{n}.png" for n in range(30)))
    text = draft(tmp_path, "mine", 5)
    assert "# of 5 headers: PNG 5\n" in text
    assert "count: 30 " in text
    assert draft(tmp_path, "mine", 5) == text


def test_names_that_are_globs_or_yaml(tmp_path: Path) -> None:
    root = tmp_path / "9"
    images(root, "a[1]*/x: y #.png", "a[1]*/null.png", "yes/[z].png")
    about, _, _ = drafted(root)
    assert about.name == "9"
    assert len([r for r in scanned(about, root, tmp_path / "work") if not r.dropped]) == 3


@pytest.mark.parametrize("character", ["\ufffe", "\uffff", "\x85", "\u2028", "\x01", "\x7f", "\ufeff", "\U0001f6f0"])
def test_names_that_no_yaml_may_hold(character: str, tmp_path: Path, capsys: Out) -> None:
    root = tmp_path / "set"
    names = [f"a{character}b/x{character}.png", f"a{character}b/y.png"]
    images(root, *names)
    about, _, _ = drafted(root)
    assert about.layout.images == (f"a{character}b/*.png",)
    assert sorted(r.name for r in scanned(about, root, tmp_path / "work")) == sorted(names)
    assert main(["manifest", "new", str(root), "-o", str(tmp_path / "own.yaml")]) == 0
    assert Collection.load(tmp_path / "own.yaml").layout.images == about.layout.images


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    images(tmp_path / "set", "a/x.png")
    (tmp_path / "set" / "a").rename(tmp_path / "set" / os.fsdecode(b"\xe9t\xff"))
    about, _, _ = drafted(tmp_path / "set")
    assert [record.dropped for record in scanned(about, tmp_path / "set", tmp_path / "work")] == [""]


def test_many_folders_of_many_kinds(tmp_path: Path) -> None:
    images(tmp_path, *(f"images/train{n}/x{n}.png" for n in range(60)))
    about, _, _ = drafted(tmp_path)
    assert about.layout.images == ("images/**/*.png",)
    assert about.splits["train"].images == ("images/**/*.png",)
    images(tmp_path, "images/test7/x.png")
    about, _, _ = drafted(tmp_path)
    assert about.split_of("images/test7/x.png") == "test"
    assert len(about.splits["train"].images) == 60


def test_archives_that_are_not_read_are_told(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    with tarfile.open(tmp_path / "more.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("b.png"), io.BytesIO())
    text = draft(tmp_path)
    assert '# not read: "more.tar.gz" (0.1 kB): run `tar -xf` on it, then move it away' in text


def test_what_a_person_must_complete_is_marked(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    _, plain, text = drafted(tmp_path, name="harbours")
    marked = {line.partition(":")[0] for line in text.splitlines() if "# to complete:" in line}
    assert marked >= {"title", "homepage", "licence", "provider_terms", "citation", "platform", "role", "facts"}
    assert (plain["name"], plain["licence"], plain["homepage"]) == ("harbours", "unstated", "")


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(SourceError, match="no image among 1 files"):
        draft(tmp_path)
    with pytest.raises(SourceError, match="No such file"):
        draft(tmp_path / "nowhere")


def test_a_name_that_no_manifest_may_have(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    with pytest.raises(RecipeError, match=r"--name: Has Blanks: 1 wrong\n  name: String should match pattern"):
        draft(tmp_path, "Has Blanks")


def test_the_command(tmp_path: Path, capsys: Out) -> None:
    images(tmp_path / "set", "a.png", "b.png")
    assert main(["manifest", "new", str(tmp_path / "set"), "--name", "mine"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["name"] == "mine"
    out = tmp_path / "mine.yaml"
    assert main(["manifest", "new", str(tmp_path / "set"), "-o", str(out), "--name", "mine"]) == 0
    last = json.loads(capsys.readouterr().out)
    assert last == {"manifest": str(out), "to_complete": printed.count("# to complete:")}
    assert out.read_text() == printed
    assert Collection.load(out).count == 2

    out.write_text("mine: own words")
    assert main(["manifest", "new", str(tmp_path / "set"), "-o", str(out)]) == 1
    assert "is there already, and is not written over" in capsys.readouterr().err
    assert out.read_text() == "mine: own words"
    assert main(["manifest", "new", str(tmp_path / "set"), "-o", str(tmp_path / "new" / "x.yaml")]) == 0
    assert (tmp_path / "new" / "x.yaml").is_file()
    assert main(["manifest", "new", str(tmp_path / "set"), "-o", str(out / "x.yaml")]) == 1
    assert "x.yaml: File exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "split"),
    [("train", "train"), ("Val", "val"), ("validation", "val"), ("train2017", "train"), ("Images-trainval", "trainval"),
     ("test_images", "test"), ("imagesTrain", "train"), ("training", "train"), ("contest", ""), ("trains", ""),
     ("value", ""), ("testing_set", "test"), ("unlabeled_train", "train")],
)  # fmt: skip
def test_splits_of_folders(folder: str, split: str) -> None:
    assert split_of(folder) == split


@pytest.mark.parametrize(
    ("image", "label", "path"),
    [
        ("train/images/a.png", "train/labelTxt/a.txt", "{dir}/../labelTxt/{stem}.txt"),
        ("a/12_sat.jpg", "a/12_mask.png", "{dir}/{stem:-3}mask.png"),
        ("a/12_sat.jpg", "a/12_seg.png", "{dir}/{stem:-3}seg.png"),
        ("a/7.jpg", "a/7_mask.png", "{dir}/{stem}_mask.png"),
        ("7.jpg", "7.xml", "{dir}/{stem}.xml"),
        ("a/img7.jpg", "a/mask7.png", ""),
    ],
)
def test_paths_of_label_files(image: str, label: str, path: str) -> None:
    assert template(image, label)[0] == path


@pytest.mark.parametrize(
    ("image", "label", "path"),
    [
        ("images/oslo/a.png", "masks/oslo/a.png", "{dir}/../../masks/{folder}/{stem}.png"),
        ("oslo/a.png", "masks/oslo/a_m.png", "{dir}/../masks/{folder}/{stem}_m.png"),
        ("oslo/a.png", "oslo/a.xml", ""),
        ("a.png", "a.xml", ""),
        ("images/a.png", "masks/a.png", ""),
    ],
)
def test_paths_of_label_files_by_the_name_of_a_folder(image: str, label: str, path: str) -> None:
    assert template(image, label)[1] == path


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.txt", b"1 2 3 4 5 6 7 8 small-vehicle 0\n", "dota"),
        ("a.txt", b"imagesource:x\ngsd:null\n", ""),
        ("a.txt", b"0 0.1 0.2 0.3 0.4\n", "yolo"),
        ("a.txt", b"\xff\xfe", ""),
        ("a.xml", b"<annotation/>", ""),
        ("a.xml", b"<!DOCTYPE a><annotation><object/></annotation>", ""),
        ("a.xml", b"<annotation><object", ""),
        ("a.json", b"[1, 2]", ""),
        ("a.json", b'{"images": [{"file_name": "a"}]}', ""),
        ("a.json", b'{"images": 3}', ""),
        ("a.md", b"{}", ""),
    ],
)
def test_kinds_of_label_files(name: str, data: bytes, kind: str) -> None:
    assert kind_of(name, data) == kind


def test_patterns_of_folders() -> None:
    folders = {"set/train/a": True, "set/train/b": True, "set/train/c": True, "set/train/notes": False, "x": False}
    assert patterns(folders) == {
        "": "", "set": "set", "x": "x", "set/train": "set/train", "set/train/notes": "set/train/notes",
        "set/train/a": "set/train/*", "set/train/b": "set/train/*", "set/train/c": "set/train/*",
    }  # fmt: skip


def test_side_cars_are_no_strangers_and_tell_metres(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / "c").mkdir(exist_ok=True)
        Image.new("RGB", (60, 40), (9, n, 9)).save(tmp_path / "c" / f"{n}.png")
        (tmp_path / "c" / f"{n}.pgw").write_text("0.5\n0\n0\n-0.5\n500000\n5400000\n")
        (tmp_path / "c" / f"{n}.prj").write_text(CRS.from_epsg(32632).to_wkt())
    text = draft(tmp_path / "c")
    assert ".pgw" not in text
    assert ".prj" not in text
    assert "gsd_m: [0.5, 0.5] # of the 3 that lie on the map" in text
