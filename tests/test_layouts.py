"""Every manifest reads the layout that it cites: a tree of three images for each glob, scanned with its labels."""

from __future__ import annotations

import io
import json
import posixpath
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from worlds import geotiff

from datakit.manifest import (
    Captions,
    ClassFolders,
    CocoJson,
    Collection,
    DotaText,
    FmowJson,
    GeoJson,
    Labels,
    MaskRaster,
    VocXml,
)
from datakit.ondisk import find
from datakit.recipe import Recipe
from datakit.rules import is_evaluation
from datakit.sample import Part, Sample, from_table, to_table
from datakit.sources.labels import label_path
from datakit.sources.scan import Scan, Source, label_table, listing

FOLDER = Path(__file__).parent.parent / "manifests"
PATHS = sorted(FOLDER.glob("*.yaml"))
WIDTH, HEIGHT, IMAGES = 32, 24, 3
DTYPES = {"optical": "uint8", "sar": "float32"}  # where a manifest gives none
WRITTEN = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".jp2": "JPEG2000"}


def globs_of(about: Collection) -> list[str]:
    """The globs of a layout, and those of its splits, which may say more of the folders."""
    return list(dict.fromkeys([*about.layout.images, *(g for split in about.splits.values() for g in split.images)]))


ABOUT = {path: Collection.load(path) for path in PATHS}
PICTURES = [path for path in PATHS if "mosaic" not in ABOUT[path].bands]  # test_aodraw makes and reads camera RAW
CASES = [(path, glob) for path in PICTURES for glob in globs_of(ABOUT[path])]
case = pytest.mark.parametrize(("path", "glob"), CASES, ids=[f"{path.stem}: {glob}" for path, glob in CASES])


def concrete(glob: str, n: int) -> str:
    """The n-th name that a glob matches."""
    steps = glob.split("/")
    steps = ["deep" if step == "**" else step.replace("*", "a") for step in steps[:-1]] + [
        steps[-1].replace("**", "*").replace("*", f"P000{n}")
    ]
    name = re.sub(r"\[(!?)([^/\]]+)\]", lambda found: _letter(found[1], found[2], n), "/".join(steps))
    name = name.replace("?", str(n))
    return name if posixpath.splitext(name)[1] else f"{name}.jpg"


def _letter(others: str, letters: str, n: int) -> str:
    spread = re.sub(r"(.)-(.)", lambda r: "".join(map(chr, range(ord(r[1]), ord(r[2]) + 1))), letters)
    return next(c for c in "abcdefgh" if c not in spread) if others else spread[n % len(spread)]


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("*.png", ["P0000.png", "P0001.png"]),
        ("**/s2_*/*.tif", ["deep/s2_a/P0000.tif", "deep/s2_a/P0001.tif"]),
        ("a[2-4]_[xy].png", ["a2_x.png", "a3_y.png"]),
        ("[!a]?.png", ["b0.png", "b1.png"]),
        ("images/*", ["images/P0000.jpg", "images/P0001.jpg"]),
    ],
)
def test_globs_are_made_concrete(glob: str, names: list[str]) -> None:
    assert [concrete(glob, n) for n in range(2)] == names
    layout = Collection.model_validate(minimal(layout={"images": [glob]})).layout
    assert {layout.kind(name) for name in names} == {"image"}


def minimal(**fields: Any) -> dict[str, Any]:
    plain = {"name": "own", "title": "Own", "homepage": "", "licence": "unstated", "modality": "optical"}
    return {**plain, "bands": ["red", "green", "blue"], **fields}


def draw(about: Collection, path: Path, n: int) -> None:
    """An image of as many bands as the manifest names, of its type; GeoTIFF where the suffix is TIFF's."""
    rng, bands = np.random.default_rng(n), len(about.bands)
    dtype = np.dtype(about.dtype or DTYPES.get(about.modality, "uint16"))
    pixels = rng.integers(0, 200, (HEIGHT, WIDTH, bands)).astype(dtype)
    kind = WRITTEN.get(path.suffix.lower(), "")
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind:
        Image.fromarray(pixels[..., 0] if bands == 1 else pixels).save(path, kind)
    else:
        geotiff(path, pixels)


def quad(x: float = 0, y: float = 0, size: float = 8, down: float = 1) -> list[list[float]]:
    return [[x, y], [x + size, y], [x + size, y + size * down], [x, y + size * down]]


def dota(labels: DotaText, names: list[str]) -> bytes:
    return b"imagesource:GoogleEarth\ngsd:0.5\n2 2 10 2 10 8 2 8 plane 0\n"


def voc(labels: VocXml, names: list[str]) -> bytes:
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>10</xmax><ymax>8</ymax></bndbox>"
    return f"<annotation><object><name>plane</name>{box}</object></annotation>".encode()


def coco(labels: CocoJson, names: list[str]) -> bytes:
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    notes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [2, 2, 8, 6]} for n, _ in enumerate(names)]
    return json.dumps({"images": images, "annotations": notes, "categories": [{"id": 1, "name": "ship"}]}).encode()


def geojson(labels: GeoJson, names: list[str]) -> bytes:
    """On the map where the images of `draw` lie, or in px."""
    on_map = labels.coordinates == "map" and not labels.bounds
    ring = quad(500000, 5400000, 4, -1) if on_map else quad(2, 2)
    features = []
    for name in names:
        said = {labels.image: name, labels.bounds: "2,2,10,8", labels.category: next(iter(labels.categories), "ship")}
        features.append(
            {
                "type": "Feature",
                "properties": {key: value for key, value in said.items() if key},
                "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
            }
        )
    crs = {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}} if on_map else {}
    return json.dumps({"type": "FeatureCollection", **crs, "features": features}).encode()


def mask(labels: MaskRaster, names: list[str]) -> bytes:
    colour = next(iter(labels.colours.values()), None)
    level = next((n for n in labels.classes if n >= 0), 1)
    raster = Image.new("RGB" if colour else "L", (WIDTH, HEIGHT), colour or level)
    out = io.BytesIO()
    raster.save(out, "TIFF" if labels.path.endswith("tif") else "PNG")
    return out.getvalue()


def fmow(labels: FmowJson, names: list[str]) -> bytes:
    notes = [{"ID": 0, "category": "airport", "box": [2, 2, 8, 6]}]
    return json.dumps({"gsd": 0.5, "timestamp": "2016-03-01T10:00:00Z", "bounding_boxes": notes}).encode()


def captions(labels: Captions, names: list[str]) -> bytes:
    said = [{"raw": "A plane stands on the ground ."}]
    return json.dumps({"images": [{"filename": name, "split": "val", "sentences": said} for name in names]}).encode()


CONTENT: dict[type, Callable[[Any, list[str]], bytes]] = {
    DotaText: dota, VocXml: voc, CocoJson: coco, GeoJson: geojson, MaskRaster: mask, FmowJson: fmow, Captions: captions,
}  # fmt: skip


def label_files(about: Collection, names: list[str]) -> Iterator[tuple[Labels, str, list[str]]]:
    """Label files that the layout lists, and the images that each is of."""
    for labels in about.layout.labels:
        if isinstance(labels, ClassFolders):
            continue
        by_file: dict[str, list[str]] = {}
        for name in names:
            file = label_path(labels.path, name)
            inside = getattr(labels, "images", "")
            if about.layout.kind(file) == "label" and name.startswith(f"{inside}/" if inside else ""):
                by_file.setdefault(file, []).append(name)
        yield from ((labels, file, of) for file, of in by_file.items())


LINES = {"hrrsd": "{stem}", "hrsc2016": "{stem}", "sen1floods11": "{name},{stem:-6}LabelHand.tif"}  # else the name


def plant_lists(about: Collection, root: Path, names: list[str]) -> dict[str, str]:
    """The lists of splits, spelled as the publisher's are; the split of each image: they take turns."""
    listed = [split for split, spec in about.splits.items() if spec.lists]
    told = {name: listed[n % len(listed)] for n, name in enumerate(names)} if listed else {}
    for split in listed:
        for glob in about.splits[split].lists:
            path = root / concrete(glob, 0)
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [label_path(LINES.get(about.name, "{name}"), name) for name in names if told[name] == split]
            path.write_text("".join(f"{line}\n" for line in lines))
    return told


def plant(about: Collection, root: Path, names: list[str]) -> dict[str, list[Labels]]:
    """Images and their label files; the kinds of labels that each image has."""
    labelled: dict[str, list[Labels]] = {name: [] for name in names}
    for n, name in enumerate(names):
        draw(about, root / name, n)
    for labels, file, of in label_files(about, names):
        relative = [posixpath.relpath(name, getattr(labels, "images", "") or ".") for name in of]
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(CONTENT[type(labels)](labels, relative))
        for name in of:
            labelled[name].append(labels)
    return labelled


def scanned(about: Collection, root: Path, scratch: Path) -> list[Sample]:
    """The records of a tree, as a plan reads them."""
    source = Source(name=about.name, path=about.name, collection=about)
    found, closed = find(source, root)
    assert not closed
    (scratch / "labels").mkdir(parents=True)
    pq.write_table(label_table(source, found), scratch / "labels" / "look.parquet")
    part = Part(scratch / "part.parquet", scratch, scratch, {about.name: root})
    listed = list(listing(source, found))
    images = to_table(record for record in listed if not record.dropped)
    read = from_table(Scan(source=source, labels="look")(images, part))
    return [*read, *(record for record in listed if record.dropped)]


def zipped(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def picture(about: Collection, scratch: Path, n: int = 0) -> bytes:
    draw(about, scratch / f"{n}.png", n)
    return (scratch / f"{n}.png").read_bytes()


DOTA_TREES = {  # where an image lies, and its label file
    "flat": ("train/images/P0000.png", "train/labelTxt/P0000.txt"),
    "as downloaded": ("train/images/part1.zip::images/P0000.png", "train/labelTxt-v1.0/labelTxt.zip::P0000.txt"),
    "members in a folder": (
        "val/images/part1.zip::images/P0003.png",
        "val/labelTxt-v1.0/labelTxt.zip::labelTxt/P0003.txt",
    ),
    "labels unpacked": ("train/images/part2.zip::images/P0000.png", "train/labelTxt/P0000.txt"),
    "one folder more": ("train/images/P0000.png", "train/labelTxt/labelTxt.zip::labelTxt/P0000.txt"),
}


def put(root: Path, place: str, data: bytes) -> None:
    """A plain file, or the member of a zip: archive.zip::member."""
    archive, _, member = place.partition("::")
    if member:
        zipped(root / archive, {member: data})
    else:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(data)


@pytest.mark.parametrize("tree", DOTA_TREES)
def test_dota_is_read_flat_and_as_downloaded(tree: str, tmp_path: Path) -> None:
    about = Collection.load(FOLDER / "dota.yaml")
    image, label = DOTA_TREES[tree]
    put(tmp_path / "tree", image, picture(about, tmp_path))
    put(tmp_path / "tree", label, dota(DotaText(), []))
    (record,) = scanned(about, tmp_path / "tree", tmp_path / "work")
    assert (record.dropped, record.split, record.gsd_m) == ("", image.split("/")[0], 0.5)
    assert [box["category"] for box in json.loads(record.boxes)] == ["plane"]


def test_dota_labels_that_lie_there_twice_are_read_once(tmp_path: Path) -> None:
    about = Collection.load(FOLDER / "dota.yaml")
    put(tmp_path / "tree", "train/images/P0000.png", picture(about, tmp_path))
    for path in ("train/labelTxt-v1.0/labelTxt.zip::P0000.txt", "train/labelTxt-v1.0/labelTxt/P0000.txt"):
        put(tmp_path / "tree", path, dota(DotaText(), []))
    (record,) = scanned(about, tmp_path / "tree", tmp_path / "work")
    assert len(json.loads(record.boxes)) == 1


ISAID_TREES = {
    "as downloaded": (
        "train/images/part1.zip::images/P0000.png",
        "train/Semantic_masks/images.zip::images/P0000_instance_color_RGB.png",
    ),
    "flat": ("val/images/P0000.png", "val/images/P0000_instance_color_RGB.png"),
    "masks zipped": ("val/images/P0000.png", "val/Semantic_masks/images.zip::images/P0000_instance_color_RGB.png"),
}


@pytest.mark.parametrize("tree", ISAID_TREES)
def test_isaid_is_read_flat_and_as_downloaded(tree: str, tmp_path: Path) -> None:
    about = Collection.load(FOLDER / "isaid.yaml")
    image, mask_file = ISAID_TREES[tree]
    split = image.split("/")[0]
    put(tmp_path / "tree", image, picture(about, tmp_path))
    labels = next(labels for labels in about.layout.labels if isinstance(labels, MaskRaster))
    put(tmp_path / "tree", mask_file, mask(labels, []))
    put(tmp_path / "tree", f"{split}/Annotations/iSAID_{split}.json", coco(CocoJson(path=""), ["P0000.png"]))
    (record,) = scanned(about, tmp_path / "tree", tmp_path / "work")
    assert (record.dropped, record.split) == ("", split)
    assert [box["category"] for box in json.loads(record.boxes)] == ["ship"]
    assert json.loads(record.mask)["file"]["name"].endswith("P0000_instance_color_RGB.png")


@pytest.mark.parametrize(
    ("image", "mask_file", "split"),
    [
        ("train/855_sat.jpg", "train/855_mask.png", "train"),
        ("data/training_data/images/855_sat.jpg", "data/training_data/masks/855_mask.png", "train"),
        ("data/test_data/images/855_sat.jpg", "data/test_data/masks/855_mask.png", "test"),
        ("data.zip::data/test_data/images/855_sat.jpg", "data/test_data/masks/855_mask.png", "test"),
    ],
)
def test_deepglobe_is_read_as_published_and_as_split_by_users(
    image: str, mask_file: str, split: str, tmp_path: Path
) -> None:
    about = Collection.load(FOLDER / "deepglobe_land.yaml")
    put(tmp_path / "tree", image, picture(about, tmp_path))
    labels = next(labels for labels in about.layout.labels if isinstance(labels, MaskRaster))
    put(tmp_path / "tree", mask_file, mask(labels, []))
    (record,) = scanned(about, tmp_path / "tree", tmp_path / "work")
    assert (record.dropped, record.split) == ("", split)
    assert json.loads(record.mask)["file"]["name"] == mask_file


def test_the_bulk_of_million_aid_is_for_pretraining_and_has_no_class(tmp_path: Path) -> None:
    about = Collection.load(FOLDER / "million_aid.yaml")
    for n, name in enumerate(("train/water_area/beach/P1.jpg", "test/P2.jpg")):
        draw(about, tmp_path / "tree" / name, n)
    records = {record.name: record for record in scanned(about, tmp_path / "tree", tmp_path / "work")}
    assert {name: record.label for name, record in records.items()} == {
        "train/water_area/beach/P1.jpg": "beach",
        "test/P2.jpg": "",
    }
    assert not any(is_evaluation(record.split) for record in records.values())


def says(record: Sample, labels: Labels, root: Path) -> bool:
    """Whether a record has what its label file says."""
    if isinstance(labels, MaskRaster):
        return bool(record.mask) and json.loads(record.mask)["file"]["name"] in files_below(root)
    if isinstance(labels, Captions):
        return record.captions == ("A plane stands on the ground .",)
    if isinstance(labels, FmowJson) and (record.gsd_m is None or not record.label):
        return False
    return any(box["category"] and len(box["points"]) == 8 for box in json.loads(record.boxes))


def files_below(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@case
def test_three_images_and_their_labels_are_read(path: Path, glob: str, tmp_path: Path) -> None:
    about = Collection.load(path)
    names = [concrete(glob, n) for n in range(IMAGES)]
    assert len(set(names)) == IMAGES
    labelled = plant(about, tmp_path / "tree", names)
    listed = plant_lists(about, tmp_path / "tree", names)
    records = {record.name: record for record in scanned(about, tmp_path / "tree", tmp_path / "work")}
    assert sorted(records) == sorted(names)
    for name, record in records.items():
        assert (record.dropped, record.detail) == ("", "")
        assert record.bands == about.bands
        assert record.dtype == (about.dtype or DTYPES.get(about.modality, "uint16"))
        assert (record.width, record.height) == (WIDTH, HEIGHT)
        of_json = "val" if any(isinstance(labels, Captions) for labels in labelled[name]) else ""
        assert record.split == (about.split_of(name) or listed.get(name) or of_json)
        for labels in labelled[name]:
            assert says(record, labels, tmp_path / "tree"), labels
        for labels in about.layout.labels:
            if isinstance(labels, ClassFolders):
                folder = name.split("/")[-1 - labels.level]
                assert record.label == ("" if folder in labels.skip else folder)


WITH_LISTS = [path for path in PATHS if any(spec.lists for spec in Collection.load(path).splits.values())]


@pytest.mark.parametrize("path", WITH_LISTS, ids=lambda path: path.stem)
def test_images_that_only_a_list_holds_back_are_left_out(path: Path, tmp_path: Path) -> None:
    """By the rule that every recipe has; all splits that lists tell are tried."""
    about = Collection.load(path)
    names = [concrete(about.layout.images[0], n) for n in range(max(IMAGES, len(about.splits)))]
    for n, name in enumerate(names):
        draw(about, tmp_path / "tree" / name, n)
    listed = plant_lists(about, tmp_path / "tree", names)
    assert all(about.split_of(name) == "" for name in names)
    source = Source(name=about.name, path=about.name, collection=about)
    found = to_table(scanned(about, tmp_path / "tree", tmp_path / "work"))
    part = Part(tmp_path / "part.parquet", tmp_path, tmp_path, {})
    ruled = list(from_table(Recipe(name="own", sources=(source,)).header_rules()(found, part)))
    assert {record.name: record.split for record in ruled} == listed
    held = {split for split in listed.values() if split.startswith(("test", "val"))}
    assert held
    assert {record.split for record in ruled if record.dropped == "evaluation"} == held
    assert {record.split for record in ruled if not record.dropped} == {"train"}


def test_the_collections_whose_splits_lists_tell() -> None:
    assert {path.stem for path in WITH_LISTS} == {"hrrsd", "hrsc2016", "openearthmap", "sen12ms", "sen1floods11"}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_entry_of_labels_is_of_some_image(path: Path) -> None:
    about = Collection.load(path)
    names = [concrete(glob, n) for glob in globs_of(about) for n in range(IMAGES)]
    reached = {labels.model_dump_json() for labels, _, _ in label_files(about, names)}
    asked = {labels.model_dump_json() for labels in about.layout.labels if not isinstance(labels, ClassFolders)}
    assert reached == asked


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_globs_of_splits_are_of_images_and_of_that_split(path: Path) -> None:
    about = Collection.load(path)
    for split, spec in about.splits.items():
        for name in (concrete(glob, n) for glob in spec.images for n in range(IMAGES)):
            assert about.layout.kind(name) == "image"
            assert about.split_of(name) == split


KINDS: dict[str, dict[str, Any]] = {
    "class_folders": {},
    "dota": {"path": "{dir}/{stem}.txt"},
    "voc": {"path": "{dir}/{stem}.xml"},
    "coco": {"path": "all.json", "images": "a"},
    "geojson": {"path": "{dir}/{stem}.geojson", "category": "class"},
    "mask": {"path": "{dir}/{stem}_m.png"},
    "fmow": {},
    "captions": {"path": "all.json"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_labels(kind: str, tmp_path: Path) -> None:
    """Whether or not a manifest has it."""
    files = ["**/*.txt", "**/*.xml", "**/*.json", "**/*.geojson", "**/*.png"]
    layout = {"images": ["a/*.tif"], "label_files": files, "labels": [{"kind": kind, **KINDS[kind]}]}
    about = Collection.model_validate(minimal(layout=layout))
    names = [f"a/{n}.tif" for n in range(IMAGES)]
    labelled = plant(about, tmp_path / "tree", names)
    for record in scanned(about, tmp_path / "tree", tmp_path / "work"):
        assert not record.dropped
        assert all(says(record, labels, tmp_path / "tree") for labels in labelled[record.name])
        assert bool(labelled[record.name]) == (kind != "class_folders")
        assert (record.label == "a") == (kind == "class_folders")


def test_outlines_of_spacenet_v1_go_with_its_images(tmp_path: Path) -> None:
    """Under the names that it has; those of the test split have none."""
    about = Collection.load(FOLDER / "spacenet_v1.yaml")
    chips = [f"SN1_buildings/train/3band/3band_AOI_1_RIO_img{n}.tif" for n in range(1, IMAGES + 1)]
    hidden = "SN1_buildings/test/3band/3band_AOI_1_RIO_img1.tif"
    for n, name in enumerate([*chips, hidden]):
        draw(about, tmp_path / "tree" / name, n)
    folder = tmp_path / "tree/SN1_buildings/train/geojson"
    folder.mkdir()
    (labels,) = about.layout.labels
    assert isinstance(labels, GeoJson)
    for n in range(1, IMAGES):  # the last chip has no file
        plain = json.loads(geojson(labels, ["chip"] * n))
        (folder / f"Geo_AOI_1_RIO_img{n}.geojson").write_text(json.dumps(plain))
    records = {record.name: record for record in scanned(about, tmp_path / "tree", tmp_path / "work")}
    found = {name: [box["category"] for box in json.loads(record.boxes)] for name, record in records.items()}
    assert found == {chips[0]: ["building"], chips[1]: ["building"] * 2, chips[2]: [], hidden: []}
    assert [records[name].split for name in (chips[0], hidden)] == ["train", "test"]
