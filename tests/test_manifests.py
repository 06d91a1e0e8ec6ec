"""Every manifest loads, says what it must, and adds up."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from datakit.manifest import ClassFolders, Collection, matches

FOLDER = Path(__file__).parent.parent / "manifests"
PATHS = sorted(FOLDER.glob("*.yaml"))
EACH = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
RGB = ("red", "green", "blue")
EVALUATION = {"aid", "resisc45", "dior", "dior_r", "loveda", "spacenet_v1"}  # SelectiveMAE's own test sets
PHOTOGRAPHS = {"aodraw"}  # camera RAW, from the ground
INFRARED = {"vaihingen"}  # optical, three bands, but not red, green and blue
OTHERS = """
advance bigearthnet_s1 bigearthnet_s2 deepglobe_land deepglobe_roads dfc2022 dota eurosat_ms fair1m firerisk
fmow_msrgb fmow_rgb forest_damage geonrw gid15 hrrsd hrsc2016 hrsid hyspecnet imagenet_s inria isaid landcover_ai
levir_cd mass_roads million_aid nwpu_vhr10 openearthmap patternnet potsdam rsicd rsitmd sen12ms sen1floods11 ucmerced
whu_building whu_rs19 xbd xview
"""
NAMES = {*EVALUATION, *INFRARED, *OTHERS.split()}


@pytest.fixture(scope="module")
def collections() -> dict[str, Collection]:
    return {path.stem: Collection.load(path) for path in PATHS}


def examples(glob: str) -> Iterator[str]:
    """Names that a glob matches: with a folder for each `**/`, and with none."""
    for folders in ("some/", ""):
        name = re.sub(r"\[([^]/])[^]/]*]", r"\1", glob.replace("**/", folders)).replace("?", "x")
        yield name.replace("*", "x")


def within(template: str, name: str) -> str:
    """The path of a label file by its template: {dir}, {stem}, {name} of the image; {stem:-4}: less its last four,
    {stem:+4}: less its first four."""
    stem = posixpath.splitext(posixpath.basename(name))[0]
    path = re.sub(r"\{stem:-(\d+)\}", lambda token: stem[: -int(token[1])], template)
    path = re.sub(r"\{stem:\+(\d+)\}", lambda token: stem[int(token[1]) :], path)
    path = path.replace("{dir}", posixpath.dirname(name) or ".").replace("{stem}", stem)
    return posixpath.normpath(path.replace("{name}", posixpath.basename(name)))


def test_the_collections_of_the_recipe_are_described(collections: dict[str, Collection]) -> None:
    assert collections.keys() == NAMES | PHOTOGRAPHS


def test_enough_are_optical_and_enough_are_refused(collections: dict[str, Collection]) -> None:
    optical = {name: c for name, c in collections.items() if c.modality == "optical" and c.bands == RGB}
    assert len(optical) >= 20
    assert len(collections) - len(optical) >= 4
    assert {"sar", "multispectral", "hyperspectral"} <= {c.modality for c in collections.values()}
    assert len([c for c in optical.values() if c.count is not None]) >= 14


def test_test_sets_of_the_paper_are_for_evaluation(collections: dict[str, Collection]) -> None:
    assert {name for name, c in collections.items() if c.role == "evaluation"} == EVALUATION


def test_relations_name_collections_and_hold_both_ways(collections: dict[str, Collection]) -> None:
    for name, collection in collections.items():
        others = {*collection.same_images_as, *collection.derived_from, *collection.twin_of}
        assert name not in others
        assert others <= collections.keys(), name
        assert all(name in collections[other].same_images_as for other in collection.same_images_as), name
        assert all(name in collections[other].twin_of for other in collection.twin_of), name
        # What a model is tested on is not trained on under another name
        assert {collections[other].role for other in collection.same_images_as} <= {collection.role}, name


@EACH
def test_says_what_may_not_be_left_out(path: Path) -> None:
    collection = Collection.load(path)
    assert collection.name == path.stem
    for text in (collection.title, collection.licence, *collection.layout.images, *collection.bands):
        assert text.strip()
    assert collection.homepage.startswith("http")
    assert len(set(collection.bands)) == len(collection.bands)


@EACH
def test_counts_of_splits_add_up(path: Path) -> None:
    collection = Collection.load(path)
    counts = [split.count for split in collection.splits.values()]
    if counts and collection.count is not None and None not in counts:
        assert sum(count for count in counts if count is not None) == collection.count


@EACH
def test_facts_name_their_pages(path: Path) -> None:
    facts = Collection.load(path).facts
    assert facts
    assert all(page.startswith("http") for page in facts.values())


@EACH
def test_what_is_stated_has_a_page(path: Path) -> None:
    """homepage is its own page; a page given for it is another one, that leads there."""
    collection = Collection.load(path)
    names = ("modality", "platform", "bands", "layout", "licence", "provider_terms", "citation", "gsd_m", "count")
    stated = {name for name in names if getattr(collection, name) not in (None, "unstated")}
    stated |= {"splits"} if any(split.count for split in collection.splits.values()) else set()
    assert {"modality", "bands", "layout"} <= stated
    assert stated - {fact.partition(".")[0] for fact in collection.facts} == set()
    assert collection.facts.get("homepage") != collection.homepage


@EACH
def test_globs_stay_in_the_collection(path: Path) -> None:
    layout = Collection.load(path).layout
    for glob in (*layout.images, *layout.label_files, *layout.ignore):
        assert not glob.startswith("/")
        assert ".." not in glob.split("/")


@EACH
def test_images_are_images_and_labels_are_labels(path: Path) -> None:
    layout = Collection.load(path).layout
    assert not set(layout.images) & set(layout.label_files)
    for glob in layout.images:
        assert {layout.kind(name) for name in examples(glob)} == {"image"}, glob
    for glob in layout.label_files:
        assert {layout.kind(name) for name in examples(glob)} == {"label"}, glob
    for name in (name for glob in (*layout.images, *layout.label_files) for name in examples(glob)):
        folders = [f"{folder}/" for folder in map(str, Path(name).parents) if folder != "."]
        assert not any(map(layout.ignores, [name, *folders])), name


@EACH
def test_splits_are_told_by_globs_of_images(path: Path) -> None:
    collection = Collection.load(path)
    for split, spec in collection.splits.items():
        for name in (name for glob in spec.images for name in examples(glob)):
            assert collection.layout.kind(name) == "image", name
            assert collection.split_of(name) == split, name


@EACH
def test_lists_of_splits_are_told_apart_and_are_label_files(path: Path) -> None:
    collection = Collection.load(path)
    lists = {split: spec.lists for split, spec in collection.splits.items()}
    for split, glob in ((split, glob) for split, globs in lists.items() for glob in globs):
        assert "splits" in collection.facts
        for name in examples(glob):
            assert collection.kind(name) == "label", name
            assert collection.layout.kind(name) != "image", name
            assert [other for other, globs in lists.items() if matches(globs, name)] == [split]


@EACH
def test_label_templates_lead_to_label_files(path: Path) -> None:
    layout = Collection.load(path).layout
    images = [name for glob in layout.images for name in examples(glob)]
    for labels in layout.labels:
        if isinstance(labels, ClassFolders):
            continue
        assert not re.search(r"[{}]", re.sub(r"\{(dir|name|stem|stem:[+-][1-9]\d*)\}", "", labels.path)), labels.path
        assert any(layout.kind(within(labels.path, name)) == "label" for name in images), labels.path


@EACH
def test_classes_of_masks_are_named(path: Path) -> None:
    for labels in Collection.load(path).layout.labels:
        if labels.kind == "mask":
            assert labels.classes
            assert not labels.classes.keys() & set(labels.ignore)
            assert not labels.colours or labels.colours.keys() == labels.classes.keys()
            assert len(set(labels.colours.values())) == len(labels.colours)


def test_optical_collections_are_red_green_blue(collections: dict[str, Collection]) -> None:
    found = {name for name, c in collections.items() if c.modality == "optical" and c.bands != RGB}
    assert found == INFRARED | PHOTOGRAPHS
