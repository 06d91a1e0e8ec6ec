"""Every manifest loads, says what it must, and adds up."""

from __future__ import annotations

from pathlib import Path

import pytest

from datakit.manifest import Collection

FOLDER = Path(__file__).parent.parent / "manifests"
PATHS = sorted(FOLDER.glob("*.yaml"))
NAMES = {"million_aid", "dota", "fmow_rgb", "inria", "ucmerced", "xview", "openearthmap", "eurosat_ms", "hrsid"}


def test_the_collections_of_the_recipe_are_described() -> None:
    assert {path.stem for path in PATHS} >= NAMES


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_says_what_may_not_be_left_out(path: Path) -> None:
    collection = Collection.load(path)
    assert collection.name == path.stem
    for text in (collection.title, collection.licence, *collection.layout.images, *collection.bands):
        assert text.strip()
    assert collection.homepage.startswith("http")
    assert len(set(collection.bands)) == len(collection.bands)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_counts_of_splits_add_up(path: Path) -> None:
    collection = Collection.load(path)
    counts = [split.count for split in collection.splits.values()]
    if counts and collection.count is not None and None not in counts:
        assert sum(count for count in counts if count is not None) == collection.count


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_facts_name_their_pages(path: Path) -> None:
    facts = Collection.load(path).facts
    assert facts
    assert all(page.startswith("http") for page in facts.values())


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_is_stated_has_a_page_or_is_in_the_note(path: Path) -> None:
    collection = Collection.load(path)
    stated = {"gsd_m": collection.gsd_m, "citation": collection.citation, "count": collection.count}
    stated["licence"] = None if collection.licence == "unstated" else collection.licence
    assert {name for name, value in stated.items() if value is not None} <= collection.facts.keys()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_globs_stay_in_the_collection(path: Path) -> None:
    layout = Collection.load(path).layout
    for glob in (*layout.images, *layout.label_files):
        assert not glob.startswith("/")
        assert ".." not in glob.split("/")


def test_optical_collections_are_red_green_blue() -> None:
    for path in PATHS:
        collection = Collection.load(path)
        if collection.modality == "optical":
            assert collection.bands == ("red", "green", "blue"), path.stem
