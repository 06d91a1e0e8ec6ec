"""The pages tell all there is: the table is that of the manifests, every field, rule and reason has its row."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from given import harbours
from pages import blocks

import datakit
from datakit.cli import main
from datakit.collections_page import page
from datakit.decisions import HELD_RULES, NO_RULE, UNDOES, Decisions
from datakit.errors import RecipeError
from datakit.manifest import Collection
from datakit.pretrain.distil import FeatureLoss, LogitLoss
from datakit.pretrain.masking import MaskedAutoencoder, SelectiveMaskedAutoencoder
from datakit.pretrain.objective import Augment, MeanAndStd
from datakit.pretrain.raw_distill import Curriculum, RawDistillation, Teacher
from datakit.pretrain.recipe import Budget, Feeding, Optimiser, Pretrain, Prune
from datakit.pretrain.unprocess import Camera
from datakit.rules import Rule
from datakit.sample import Spec
from datakit.sides import Split
from datakit.stages.dedup import Dedup
from datakit.stages.exclude import BY_HAND
from datakit.stages.protect import Contain, Protect
from datakit.stages.same_place import SamePlace

Out = pytest.CaptureFixture[str]
DOCS = Path(__file__).parent.parent / "docs"
ADDING = (DOCS / "adding_a_collection.md").read_text(encoding="utf-8")
DUPLICATES = (DOCS / "duplicates.md").read_text(encoding="utf-8")


def test_the_draft_of_the_page_finds_its_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.chdir(tmp_path)
    harbours()
    assert main(["manifest", "new", "data/harbours", "-o", "drafts/harbours.yaml"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"] == "drafts/harbours.yaml"
    draft = Collection.load(Path("drafts/harbours.yaml"))
    (text,) = (b.text for b in blocks("docs/adding_a_collection.md") if b.file == "manifests/harbours.yaml")
    written = Collection.model_validate(yaml.safe_load(text))
    assert draft.layout.labels == written.layout.labels
    assert {name: split.count for name, split in draft.splits.items()} == {"train": 2, "val": 1}
    assert (draft.bands, draft.dtype, draft.count) == (written.bands, written.dtype, written.count)


def test_every_rule_and_key_of_one_is_told() -> None:
    text = (DOCS / "adding_a_rule.md").read_text(encoding="utf-8")
    rows = [row.split("|") for row in text.splitlines() if row.startswith("| `")]
    told = {name: set(re.findall(r"`(\w+)`", row[3])) for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    rules = {rule.model_fields["rule"].default: rule for rule in get_args(get_args(Rule)[0])}
    assert told.keys() == rules.keys()
    for name, rule in rules.items():
        assert told[name] == {*rule.model_fields} - {"rule", "name", "max_share"}, name


def test_the_table_of_splits_has_every_field() -> None:
    text = (DOCS / "places.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in Split.model_fields)


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


def test_what_a_decision_undoes_and_what_not_is_told() -> None:
    text = (DOCS / "report.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in (*Decisions.model_fields, *UNDOES[2:], *HELD_RULES, *NO_RULE, BY_HAND))
