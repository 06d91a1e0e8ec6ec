"""The pages say what is so: the example builds, the table is that of the manifests, every field is told."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import datakit
from datakit import ids as mask_ids
from datakit.cli import main, parser
from datakit.collections_page import page
from datakit.errors import RecipeError
from datakit.evaluate.imagenet_s import write_prediction
from datakit.manifest import Collection, Manifest
from datakit.pretrain.distil import FeatureLoss, LogitLoss
from datakit.pretrain.masking import MaskedAutoencoder, SelectiveMaskedAutoencoder
from datakit.pretrain.objective import Augment, MeanAndStd
from datakit.pretrain.raw_distill import Curriculum, RawDistillation, Teacher
from datakit.pretrain.recipe import Budget, Feeding, Optimiser, Pretrain, Prune
from datakit.pretrain.unprocess import Camera
from datakit.sample import Spec
from datakit.sides import Split
from datakit.stages.dedup import Dedup
from datakit.stages.protect import Contain, Protect
from datakit.stages.same_place import SamePlace

Out = pytest.CaptureFixture[str]
DOCS = Path(__file__).parent.parent / "docs"
ADDING = (DOCS / "adding_a_collection.md").read_text(encoding="utf-8")
DUPLICATES = (DOCS / "duplicates.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    """The code blocks of a kind in the page on adding a collection."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", ADDING, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == kind]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tree, the manifest and the recipe of the page."""
    monkeypatch.chdir(tmp_path)
    manifest, recipe = blocks("yaml")
    for folder, text in (("manifests", manifest), ("recipes", recipe)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "harbours.yaml").write_text(text)
    (tree,) = blocks("")
    names = re.findall(r"\S+/\S+\.\w+", tree)
    rng = np.random.default_rng(0)
    for name in names:
        path = tmp_path / "data" / "harbours" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.fromarray(rng.integers(0, 255, (140, 150, 3), np.uint8)).save(path)
        else:
            path.write_text("gsd:0.5\n10 10 40 10 40 30 10 30 ship 0\n")
    assert sum(name.endswith(".png") for name in names) == 3
    return tmp_path


def test_the_example_builds(example: Path, capsys: Out) -> None:
    check, build = (shlex.split(line)[1:] for line in blocks("sh")[1].splitlines())
    assert main(check) == 0
    printed = capsys.readouterr().out
    (said,) = blocks("text")
    assert said in printed
    assert main([*build, "--workers", "0"]) == 0
    manifest = Manifest.load(example / "shards" / "harbours")
    (source,) = manifest.sources
    assert (source.name, source.version, source.licence) == ("harbours", "1.0", "CC-BY-4.0")
    assert manifest.samples > 0
    counts = {count.stage: count for count in manifest.counts}
    assert (counts["scan"].came, counts["scan"].left) == (3, 3)


def test_the_draft_of_the_example_finds_its_layout(example: Path, capsys: Out) -> None:
    (line,) = blocks("sh")[0].splitlines()
    command = shlex.split(line.replace("~/data", "data").replace("manifests/", "drafts_"))[1:]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["manifest"] == "drafts_harbours.yaml"
    draft = Collection.load(example / "drafts_harbours.yaml")
    written = Collection.load(example / "manifests" / "harbours.yaml")
    assert draft.layout.labels == written.layout.labels
    assert {name: split.count for name, split in draft.splits.items()} == {"train": 2, "val": 1}
    assert (draft.bands, draft.dtype, draft.count) == (written.bands, written.dtype, written.count)


def test_every_kind_of_labels_is_told() -> None:
    schema: dict[str, Any] = Collection.model_json_schema()["$defs"]
    for kind, spec in ((s["properties"]["kind"]["const"], s) for s in schema.values() if "kind" in s["properties"]):
        (row,) = [line for line in ADDING.splitlines() if line.startswith(f"| `{kind}` |")]
        assert {f for f in spec["properties"] if f not in ("kind", "path")} <= set(re.findall(r"`(\w+)`", row))


@pytest.mark.parametrize(
    ("spec", "heading"), [(Dedup, "dedup"), (Protect, "protect"), (Contain, "protect"), (SamePlace, "same_place")]
)
def test_every_field_of_what_compares_records_is_told(spec: type[Spec], heading: str) -> None:
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", DUPLICATES, re.MULTILINE | re.DOTALL)
    rows = [row for row in section.splitlines() if row.startswith("| `")]
    told = {field: row for row in rows for field in re.findall(r"`(\w+)`", row.split("|")[1])}
    for name, field in spec.model_fields.items():
        assert name in told, name
        if type(field.default) in (int, float):
            assert f"{field.default:g}" in told[name].split("|")[2], name


def test_every_reason_of_what_compares_records_is_told() -> None:
    package = Path(datakit.__file__).parent
    text = "".join((package / name).read_text() for name in ("guard.py", "merge.py", "decide.py"))
    reasons = set(re.findall(r'\["(\w+)"\] \*|"(protected\w*|duplicate(?:_\w+)?)"', text))
    found = {name for pair in reasons for name in pair if name}
    assert {"twin", "series", "same_place", "protected_twin", "duplicate_scene"} <= found
    for name in found:
        assert f"| `{name}` |" in DUPLICATES, name


def test_the_page_of_collections_is_that_of_the_manifests() -> None:
    assert (DOCS / "collections.md").read_text(encoding="utf-8") == page(), "run `make docs`"


def test_the_page_says_what_is_known_and_what_is_not(tmp_path: Path, capsys: Out) -> None:
    plain = {
        "name": "own",
        "title": "My | own",
        "homepage": "https://example.org",
        "licence": "Ask us first",
        "modality": "multispectral",
        "bands": ["coastal", "blue", "green", "red", "nir"],
        "gsd_m": [10, 60],
        "layout": {"images": ["*.tif"], "labels": [{"kind": "class_folders"}, {"kind": "fmow"}]},
        "splits": {"train": {"count": 1200}, "test": {}},
        "count": 1500,
        "facts": {"licence": "https://example.org", "splits.train": "https://example.org"},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    assert main(["manifest", "table", str(tmp_path)]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row == (
        '| `own` | [My \\| own](https://example.org) | multispectral |  | "Ask us first" | pretrain | 1,500 | '
        "train 1,200, test | 10 to 60 | 5: coastal, blue, green, … | class_folders, fmow | 2 of 7 | "
        "citation, platform, dtype |"
    )
    with pytest.raises(RecipeError, match="no manifest there"):
        page(tmp_path / "nowhere")


def test_links_between_pages_lead_somewhere() -> None:
    for path in DOCS.glob("*.md"):
        for link in re.findall(r"\]\(([^):]+\.md)\)", path.read_text(encoding="utf-8")):
            assert (DOCS / link).is_file(), f"{path.name}: {link}"


def test_the_page_on_loading_runs(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks of Python up to the sections on stores and overlays, on tars of the tests."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "rs").symlink_to(shards)
    page, _, _ = (DOCS / "loading.md").read_text(encoding="utf-8").partition("## Remote shards")
    found = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(found) == 3
    for text in found:
        exec(compile(text.replace("256", "4").replace("mae()", "mae(32)"), "loading.md", "exec"), {})


def test_the_page_on_imagenet_s_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands in their order, on the look-alike, then its Python. Predictions are the published masks."""
    text = (DOCS / "imagenet_s.md").read_text(encoding="utf-8")
    recipes = DOCS.parent / "recipes"
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    commands = [line for kind, block in found if kind == "sh" for line in block.splitlines()]
    assert len(commands) == 9
    for line in commands:
        argv = shlex.split(line.replace("recipes/", f"{recipes}/"))[1:]
        if argv[:2] == ["evaluate", "imagenet-s"] and not Path("predictions").exists():
            (archive,) = Path("look/annotations").glob("ImageNetS50-*.zip")
            zipfile.ZipFile(archive).extractall("unpacked")
            masks = Path("unpacked/ImageNetS50/validation-segmentation")
            for path in masks.rglob("*.png"):
                ids = mask_ids.decode(path.read_bytes())
                write_prediction(np.where(ids == 1000, 0, ids), Path("predictions") / path.relative_to(masks))
            shutil.copytree("look/truth/ImageNetS50/test-segmentation", "test_predictions")
        if argv[0] == "add-column":
            for path in Path("look/imagenet/train/n01443537").iterdir():
                write_prediction(np.ones((4, 4), int), Path("pseudo_labels") / f"{path.stem}.png")
        assert main([*argv, *["--workers", "0"] * (argv[0] == "build")]) == 0, line
    first, second = (block for kind, block in found if kind == "python")
    names: dict[str, Any] = {}
    exec(compile(first.replace("mae()", "mae(32)").replace(", 32,", ", 4,"), "imagenet_s.md", "exec"), names)
    assert next(batch["mask"].dtype for batch in names["loader"]) is torch.int64
    masks = {"pred": np.ones((4, 5), int), "gt": np.ones((4, 5), int), "ids": np.ones((4, 5), int)}
    exec(compile(second, "imagenet_s.md", "exec"), {**masks, "preds": [{1}], "gts": [{2}]})


@pytest.mark.parametrize("page", ["README.md", "docs/pretraining.md"])
def test_commands_about_training_are_those_there_are(page: str) -> None:
    text = (DOCS.parent / page).read_text(encoding="utf-8")
    wanted = r"^(?:\.venv/bin/datakit|datakit|torchrun.* -m datakit\.cli) ((?:pretrain|export|evaluate|raw) [^#\n]*)"
    commands = re.findall(wanted, text, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        args = parser().parse_args(shlex.split(command))
        if args.verb == "pretrain":
            Pretrain.load(args.recipe)


def test_commands_about_places_are_those_there_are() -> None:
    text = (DOCS / "places.md").read_text(encoding="utf-8")
    commands = re.findall(r"^datakit ([^#\n]*)", text, re.MULTILINE)
    assert len(commands) == 10
    for command in commands:
        parser().parse_args(shlex.split(command))
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    split = Split.model_validate(yaml.safe_load(recipe)["subset"]["split"])
    assert set(split.shares) == {"train", "val"}
    assert all(f"| `{name}` |" in text for name in Split.model_fields)


def test_the_recipes_of_the_page_are_those_there_are() -> None:
    text = (DOCS / "pretraining.md").read_text(encoding="utf-8")
    bundled = {path.stem for path in (DOCS.parent / "recipes" / "pretrain").glob("*.yaml")}
    assert bundled == {name for name in re.findall(r"^\| `(\w+)` \| ", text, re.MULTILINE) if name in bundled}
    for name in bundled:
        assert Pretrain.load(name).name == name


def test_every_key_of_a_pretraining_recipe_is_told() -> None:
    text = (DOCS / "pretraining.md").read_text(encoding="utf-8")
    told = {word for row in text.splitlines() if row.startswith("| `") for word in re.findall(r"\w+", row)}
    specs = (
        Pretrain,
        Budget,
        Optimiser,
        Prune,
        Feeding,
        MaskedAutoencoder,
        SelectiveMaskedAutoencoder,
        RawDistillation,
        Teacher,
        Camera,
        Curriculum,
        FeatureLoss,
        LogitLoss,
        Augment,
        MeanAndStd,
    )
    for spec in specs:
        assert not {*spec.model_fields} - told, spec.__name__
