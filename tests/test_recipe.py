"""A recipe is read whole: what is wrong is named with its place, and what is right has one digest."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import datakit
from datakit.errors import RecipeError
from datakit.pipeline import Build
from datakit.pretrain.recipe import Pretrain
from datakit.recipe import Recipe, find, merged, parse_changes
from datakit.stages.slice import Slice

BUNDLED = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
RECIPES = [path for path in BUNDLED if "kind" not in yaml.safe_load(path.read_text())]  # the others: see `kinds`
SOURCE: dict[str, Any] = {
    "name": "tiny",
    "path": "tiny",
    "collection": {
        "name": "tiny",
        "title": "Tiny",
        "homepage": "https://example.org",
        "licence": "CC0-1.0",
        "modality": "optical",
        "bands": ["red", "green", "blue"],
        "layout": {"images": ["*.png"]},
    },
}


def write(path: Path, **fields: Any) -> Path:
    path.write_text(yaml.safe_dump({"name": "small", "sources": [SOURCE], **fields}, sort_keys=False))
    return path


def wrong(path: Path, **changes: Any) -> list[str]:
    """The lines of what is wrong, after the first."""
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path, changes)
    head, *lines = str(caught.value).splitlines()
    assert head == f"{path}: {len(lines)} wrong"
    return [line.strip() for line in lines]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_bundled_recipes_load(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.name == path.stem
    assert recipe.title
    assert recipe.about
    assert Recipe.load(path.stem) == Recipe.load(str(path)) == recipe


def test_the_light_version_is_the_full_one_but_for_its_size() -> None:
    full, light = Recipe.load("opticalrs"), Recipe.load("opticalrs-4m")
    changed = {name for name in Recipe.model_fields if getattr(full, name) != getattr(light, name)}
    assert changed == {"name", "title", "about", "subset"}
    assert light.subset == full.subset.model_copy(update={"count": 4_000_000})


def test_a_bundled_recipe_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundled = RECIPES[0].parent / "opticalrs.yaml"
    (tmp_path / "opticalrs").mkdir()  # what a build of it leaves here
    for name in ("opticalrs", "opticalrs.yaml", "recipes/opticalrs.yaml"):
        assert find(Path(name)).samefile(bundled)
    own = write(tmp_path / "opticalrs.yaml")
    assert find(Path("opticalrs.yaml")).samefile(own)
    for name in ("nothing", str(tmp_path / "recipes" / "opticalrs.yaml"), "opticalrs.yml"):
        with pytest.raises(RecipeError, match=r"no such file, and no bundled recipe .* opticalrs, opticalrs-4m, "):
            find(Path(name))


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    rules = [{"rule": "dtype", "alow": ["uint8"]}, {"rule": "smaller_than", "side_px": 0}, {"rule": "cloudy"}]
    path = write(
        tmp_path / "a.yaml",
        sources=["nowhere", SOURCE | {"subfolder": -1}, {"manifest": "dota", "pth": "x"}],
        exclude={"rules": rules},
        slice={"grid": {"size_px": 8, "gap_px": 8}},
        cut={"encode": {"format": "gif", "quality": "high"}},
        sed=1,
    )
    lines = dict(line.split(": ", 1) for line in wrong(path))
    assert next(iter(lines)) == "sources.0"
    assert lines.pop("sources.0").startswith("nowhere: no manifest of that name; there are advance, aid, ")
    tags = lines.pop("exclude.rules.2")
    assert "'cloudy'" in tags
    assert "'smaller_than'" in tags
    assert lines == {
        "sources.1.subfolder": "Input should be greater than or equal to 0, not -1",
        "sources.2.pth": "no such key; allowed: collection, max_unreadable_share, name, path, reduced, subfolder",
        "exclude.rules.0.dtype.allow": "Field required",
        "exclude.rules.0.dtype.alow": "no such key; allowed: allow, max_share, name, rule",
        "exclude.rules.1.smaller_than.side_px": "Input should be greater than 0, not 0",
        "slice.grid": "gap_px (8) must be less than size_px (8)",
        "cut.encode.format": "Input should be 'jpeg', 'png', 'webp', 'tiff16', 'png16', 'mosaic' or 'npy', not 'gif'",
        "cut.encode.quality": "Input should be a valid integer, unable to parse string as an integer, not 'high'",
        "sed": "no such key; allowed: about, cut, decisions, dedup, domain, exclude, include_evaluation, layout, "
        "max_pair_shift_px, name, prefer, protect, same_place, seed, shards, slice, sources, subset, title, view",
    }


def test_a_wrong_manifest_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "manifests").mkdir()
    manifest = tmp_path / "manifests" / "own.yaml"
    manifest.write_text(yaml.safe_dump(SOURCE["collection"] | {"count": "many"}))
    with pytest.raises(RecipeError) as caught:
        Recipe.load(write(tmp_path / "a.yaml", sources=["own"], seed="x"))
    assert [line.strip() for line in str(caught.value).splitlines()] == [
        f"{tmp_path / 'a.yaml'}: 2 wrong",
        f"sources.0: own: {manifest}: 1 wrong",
        "count: Input should be a valid integer, unable to parse string as an integer, not 'many'",
        "seed: Input should be a valid integer, unable to parse string as an integer, not 'x'",
    ]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("dota", "sources: Input should be a valid tuple"),
        ([], "sources: Tuple should have at least 1 item"),
        ([7], "sources.0: Input should be a valid dictionary"),
        ({"dota": 1}, "sources: Input should be a valid tuple"),
        (None, "sources: Input should be a valid tuple"),
        ([SOURCE, SOURCE], "whole file: sources: tiny: named twice; give one of them another name"),
        (["dota", {"manifest": "dota"}], "whole file: sources: dota: named twice; give one of them another name"),
        ([SOURCE | {"manifest": "dota"}], "sources.0: dota: give manifest or collection, not both"),
        ([SOURCE | {"path": ""}], "sources.0.path: must name a folder or an archive; '.' is the data folder itself"),
        ([SOURCE | {"name": "a-b"}], "sources.0.name: String should match pattern"),
    ],
)
def test_sources_that_are_wrong(tmp_path: Path, sources: Any, message: str) -> None:
    (line,) = wrong(write(tmp_path / "a.yaml", sources=sources))
    assert line.startswith(message)


def test_one_collection_may_be_two_sources(tmp_path: Path) -> None:
    twice = [{"manifest": "dota"}, {"manifest": "dota", "name": "dota2", "path": "elsewhere"}]
    recipe = Recipe.load(write(tmp_path / "a.yaml", sources=twice))
    assert [(s.name, s.path, s.collection.name) for s in recipe.sources] == [
        ("dota", "dota", "dota"),
        ("dota2", "elsewhere", "dota"),
    ]


@pytest.mark.parametrize("text", ["", "7", "- a", "just words"])
def test_a_recipe_is_a_mapping(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"a\.yaml: must be a mapping with name, sources"):
        Recipe.load(tmp_path / "a.yaml")


def test_base_is_merged_by_mapping(tmp_path: Path) -> None:
    rules = [{"rule": "frames"}]
    write(tmp_path / "a.yaml", seed=1, exclude={"rules": rules}, subset={"share": 0.5, "cap": {"flat": 0.1}})
    (tmp_path / "b.yaml").write_text("base: a.yaml\nname: b\nsubset: {cap: {flat: 0.2}, flat_entropy_bits: 3.0}")
    (tmp_path / "c.yaml").write_text("base: b.yaml\nname: c\nexclude: {rules: []}")
    recipe = Recipe.load(tmp_path / "c.yaml")
    assert (recipe.name, recipe.seed, recipe.exclude.rules, recipe.sources[0].name) == ("c", 1, (), "tiny")
    assert (recipe.subset.share, recipe.subset.cap, recipe.subset.flat_entropy_bits) == (0.5, {"flat": 0.2}, 3.0)
    assert merged({"a": {"b": 1}}, {"a": [2]}) == {"a": [2]}


def test_a_base_may_be_bundled_and_one_beside_goes_before_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: opticalrs_files.yaml\nname: mine\nslice: {grid: {size_px: 64}}")
    recipe, bundled = Recipe.load(tmp_path / "mine.yaml"), Recipe.load("opticalrs_files")
    assert (recipe.name, recipe.slice and recipe.slice.grid and recipe.slice.grid.size_px) == ("mine", 64)
    assert recipe.exclude == bundled.exclude
    (tmp_path / "run.yaml").write_text("base: pretrain/tiny.yaml\nname: run\nbatch: 8")
    assert Pretrain.load(tmp_path / "run.yaml").objective == Pretrain.load("tiny").objective
    (tmp_path / "opticalrs_files.yaml").write_text("base: ../opticalrs.yaml\nname: beside\nsources: []")
    with pytest.raises(RecipeError, match=r"no such file in .*, and no bundled recipe"):
        Recipe.load(tmp_path / "mine.yaml")


def test_bases_that_lead_nowhere(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    bases = {"self": "self.yaml", "x": "../recipes/y.yaml", "y": "x.yaml", "gone": "nothing.yaml", "up": ".."}
    for name, base in bases.items():
        (folder / f"{name}.yaml").write_text(f"base: {base}")
    for name in ("self", "x", "y"):
        with pytest.raises(RecipeError, match=r"base: .*\.yaml builds on this one itself"):
            Recipe.load(folder / f"{name}.yaml")
    for name in ("gone", "up"):
        with pytest.raises(RecipeError, match=rf"{name}\.yaml: base: .*: no such file in "):
            Recipe.load(folder / f"{name}.yaml")


def test_changes_from_the_command_line(tmp_path: Path) -> None:
    rules = [{"rule": "frames"}, {"rule": "smaller_than", "side_px": 64}]
    path = write(tmp_path / "a.yaml", sources=["dota", SOURCE], exclude={"rules": rules})
    texts = [
        "slice.grid.size_px=256",
        "exclude.rules.1.side_px=32",
        "sources.0.path=some=where",
        "sources.1.collection.layout.images=['*.tif', '*.png']",
        "subset.cap={flat: 0.5}",
        "cut.copy_jpeg=no",
        "title=null",
        "title='7'",
        "seed=3",
    ]
    recipe = Recipe.load(path, parse_changes(texts))
    assert recipe.slice == Slice.model_validate({"grid": {"size_px": 256}})
    assert recipe.exclude.rules[1].model_dump()["side_px"] == 32
    assert [s.path for s in recipe.sources] == ["some=where", "tiny"]
    assert recipe.sources[1].collection.layout.images == ("*.tif", "*.png")
    assert (recipe.subset.cap, recipe.cut.copy_jpeg, recipe.title, recipe.seed) == ({"flat": 0.5}, False, "7", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size", "--set size: write key=value"),
        ("=3", "--set =3: write key=value"),
        ("a=[1", "--set a=[1: the value is not YAML"),
        (
            "exclude.rules.2.side_px=1",
            "--set exclude.rules.2.side_px: 2: this is a list of 2, so give a number, 0 to 1",
        ),
        ("exclude.rules.first=1", "--set exclude.rules.first: first: this is a list of 2"),
        ("exclude.rules.-1.side_px=1", "--set exclude.rules.-1.side_px: -1: this is a list of 2"),
        ("sources.0.collection.bands.0.x=1", "--set sources.0.collection.bands.0.x: sources.0.collection.bands.0 is "),
        ("slice.grid.size=8", "a.yaml: 2 wrong\n  slice.grid.size_px: Field required\n  slice.grid.size: no such key"),
        ("name.first=x", "a.yaml: 1 wrong\n  name: Input should be a valid string"),
    ],
)
def test_changes_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "a.yaml", exclude={"rules": [{"rule": "frames"}, {"rule": "flat", "entropy_bits": 1}]})
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path, parse_changes([text]))
    assert message in str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_survive_pickling(path: Path) -> None:
    recipe = Recipe.load(path)
    again = pickle.loads(pickle.dumps(recipe))
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_a_digest_is_of_values_not_of_spelling(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"cut": {"encode": {"format": "png"}, "measure": True}, "seed": 0}
    one = Recipe.load(write(tmp_path / "a.yaml", **fields))
    turned = dict(reversed(list(yaml.safe_load((tmp_path / "a.yaml").read_text()).items())))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(turned | {"cut": {"encode": {"format": "png"}}}, sort_keys=False))
    assert Recipe.load(tmp_path / "b.yaml").digest() == one.digest()
    changes = [{"seed": 1}, {"cut.encode.format": "webp"}, {"cut.max_pixels": 9}, {"sources.0.collection.title": "T"}]
    assert len({Recipe.load(tmp_path / "a.yaml", change).digest() for change in ({}, *changes)}) == len(changes) + 1


def test_a_stage_has_a_digest_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", slice={"grid": {"size_px": 512}})
    one, other = Recipe.load(path), Recipe.load(path, {"slice.grid.size_px": 256, "seed": 5})
    assert other.cut.digest() == one.cut.digest()
    assert other.header_rules().digest() == one.header_rules().digest()
    assert other.slice
    assert one.slice
    assert other.slice.digest() != one.slice.digest()


def random_recipe(path: Path, least: float) -> Recipe:
    random = {"side_px": [64, 64], "crops": 3, "whole_if_side_at_most_px": 64, "min_valid_share": least}
    return Recipe.load(write(path, slice={"random": random}, cut={"encode": {"format": "png"}}))


def test_the_valid_share_of_windows_is_in_no_name_of_a_slice(tmp_path: Path) -> None:
    before = [tmp_path / "work" / "exclude" / "tiny-00000-abc.parquet"]
    names = []
    for least in (0.3, 0.9):
        recipe = random_recipe(tmp_path / "a.yaml", least)
        build = Build(recipe, tmp_path / "out", tmp_path / "work", {}, ())
        names.append(build.name_parts("slice", before))
        first = recipe.measured_rules().rules[0]
        assert first.model_dump(exclude={"max_share", "name"}) == {"rule": "valid_share", "min_share": least}
    assert names[0] == names[1]


def test_windows_that_are_not_valid_enough_go_after_cut(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (128, 256, 4), np.uint8)
    pixels[:, :, 3] = 255 * (np.arange(256) < 128)  # the right half is transparent
    Image.fromarray(pixels).save(tmp_path / "tiny" / "half.png")
    counts = {}
    for least in (0.0, 0.999):
        manifest = datakit.build(random_recipe(tmp_path / "a.yaml", least), tmp_path, tmp_path / "out", workers=0)
        counts[least] = {c.stage: (c.came, c.left, c.dropped) for c in manifest.counts}
    assert counts[0.0]["cut"] == counts[0.999]["cut"]
    assert counts[0.0]["measured"][2] == {}
    came, stayed, dropped = counts[0.999]["measured"]
    assert dropped == {"min_valid_share": came - stayed}
    assert 0 < stayed < came
    shutil.rmtree(tmp_path / "out")
