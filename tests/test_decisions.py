"""What a person decided about single records: kept or left out in the next build, and told if it came to nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from looked_at import Looked, build, dropped, kept, looked_at, told
from worlds import digests, work_done, write_recipe

from datakit.cli import main
from datakit.decisions import Decision, Decisions, held
from datakit.errors import RecipeError
from datakit.manifest import Manifest
from datakit.recipe import Recipe
from datakit.repair import repair
from datakit.verify import verify

Out = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Looked:
    return looked_at(tmp_path_factory.mktemp("decisions"))


def write(path: Path, keep: list[dict[str, Any]], drop: list[str] = []) -> Path:  # noqa: B006
    """A file as a report downloads it, of records of dropped.parquet."""
    some = [{"key": row["key"], "stage": row["stage"], "reason": row["dropped"]} for row in keep]
    plain = {"format": 1, "name": "looked", "keep": some, "drop": [{"key": key} for key in drop]}
    path.write_text(json.dumps(plain))
    return path


def with_decisions(made: Looked, path: Path) -> Recipe:
    return made.recipe.model_copy(update={"decisions": Decisions.load(path)})


def test_the_build_leaves_a_removal_of_every_kind(made: Looked) -> None:
    found = {why: {row["stage"] for row in rows} for why, rows in dropped(made.out).items()}
    assert found == {
        "unreadable": {"cut"},
        "evaluation": {"exclude"},
        "not_open": {"exclude"},
        "smaller_than": {"exclude"},
        "flat": {"measured"},
        "protected": {"protect"},
        "duplicate": {"dedup"},
        "duplicate_scene": {"dedup"},
        "subset_source": {"subset"},
    }


def test_what_a_person_keeps_is_kept_and_nothing_else_changes(made: Looked, tmp_path: Path) -> None:
    rows = dropped(made.out)
    some = [rows[why][0] for why in ("smaller_than", "flat", "duplicate", "duplicate_scene", "subset_source")]
    path = write(tmp_path / "d.json", some)
    manifest, said = build(made, with_decisions(made, path), tmp_path / "out")
    came, tiles = kept(tmp_path / "out") - kept(made.out), {row["key"] for row in some[1:]}
    assert kept(made.out) < kept(tmp_path / "out")
    assert tiles < came
    assert all(key.startswith("air-thin-") for key in came - tiles)
    assert len(came - tiles) == 2
    (line,) = [line for line in said if "decisions" in line]
    assert line == "decisions: 5 kept"
    assert told(tmp_path / "out")["counts"] == {"kept": 5}
    assert "`decisions.json`): 5 kept." in (tmp_path / "out" / "README.md").read_text()
    assert "A person kept 2 of them all the same." in (tmp_path / "out" / "README.md").read_text()
    assert {one["key"] for one in manifest.recipe["decisions"]["keep"]} == {row["key"] for row in some}
    assert manifest.files.keys() - Manifest.load(made.out).files.keys() == {"decisions.json"}
    assert not verify(tmp_path / "out", deep=True).findings
    opened = work_done(tmp_path / "out")  # the thin one alone had not been cut before
    assert (opened["images_opened"], opened["tiles_encoded"]) == (1, 2)


def test_all_tiles_of_an_image_that_is_kept_come_back(made: Looked, tmp_path: Path) -> None:
    (thin,) = dropped(made.out)["smaller_than"]
    build(made, with_decisions(made, write(tmp_path / "d.json", [thin])), tmp_path / "out")
    (one,) = told(tmp_path / "out")["keep"]
    assert (one["outcome"], one["detail"]) == ("kept", "2 of its 2 tiles are in the set")


def test_no_decision_leaks_evaluation_data_or_breaks_a_licence(made: Looked, tmp_path: Path) -> None:
    rows = dropped(made.out)
    some = [rows[why][0] for why in ("protected", "evaluation", "not_open", "unreadable")]
    _, said = build(made, with_decisions(made, write(tmp_path / "d.json", some)), tmp_path / "out")
    assert kept(tmp_path / "out") == kept(made.out)
    assert said.count("decisions: 4 out all the same") == 1
    for row in some:
        warning = f"{row['key']}: {row['stage']} leaves it out as {row['dropped']}, which no decision undoes"
        assert f"warning: decisions: {warning}" in said
        assert held(Manifest.load(made.out).recipe, row["stage"], row["dropped"])


@pytest.mark.parametrize("rule", [{"rule": "split", "deny": ["val"]}, {"rule": "split", "deny": ["val"], "name": "no"}])
def test_a_rule_over_splits_holds_whatever_its_name_is(made: Looked, tmp_path: Path, rule: dict[str, Any]) -> None:
    plain = made.recipe.model_dump()
    plain["include_evaluation"] = ["air:val"]
    plain["exclude"]["rules"] = [rule, *plain["exclude"]["rules"]]
    manifest, _ = build(made, Recipe.model_validate(plain), tmp_path / "one")
    why = rule.get("name", "split")
    (row,) = dropped(tmp_path / "one")[why]
    assert held(manifest.recipe, "exclude", why)
    plain["decisions"] = {"keep": [{"key": row["key"]}]}
    build(made, Recipe.model_validate(plain), tmp_path / "two")
    assert kept(tmp_path / "two") == kept(tmp_path / "one")


def test_a_decision_that_matches_no_record_is_told(made: Looked, tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", [], ["air-nothing", "nowhere-1"])
    _, said = build(made, with_decisions(made, path), tmp_path / "out")
    assert "decisions: 2 match no record" in said
    for key in ("air-nothing", "nowhere-1"):
        assert [line for line in said if line.startswith(f"warning: decisions: {key}: no record has this key")]
    assert [one["outcome"] for one in told(tmp_path / "out")["drop"]] == ["no_such_record"] * 2


def test_what_a_person_leaves_out_goes_and_its_copy_comes_back(made: Looked, tmp_path: Path) -> None:
    copy = next(row for row in dropped(made.out)["duplicate"] if row["lost_to"] in kept(made.out))
    path = write(tmp_path / "d.json", [], [copy["lost_to"]])
    build(made, with_decisions(made, path), tmp_path / "out")
    assert kept(tmp_path / "out") == kept(made.out) - {copy["lost_to"]} | {copy["key"]}
    (gone,) = dropped(tmp_path / "out")["by_hand"]
    assert (gone["key"], gone["stage"]) == (copy["lost_to"], "exclude")  # it passes whole, so no pixel is read
    assert told(tmp_path / "out")["counts"] == {"left_out": 1}


def test_the_same_decisions_make_nothing_again_and_others_decide_again(made: Looked, tmp_path: Path) -> None:
    rows = dropped(made.out)
    one, two = (write(tmp_path / f"{n}.json", rows["flat"][: n + 1]) for n in range(2))
    first, _ = build(made, with_decisions(made, one), tmp_path / "out")
    before = digests(tmp_path / "out")
    again, _ = build(made, with_decisions(made, one), tmp_path / "out")
    assert digests(tmp_path / "out") == before
    assert "parts_made" not in work_done(tmp_path / "out")
    assert again.recipe_digest == first.recipe_digest
    other, _ = build(made, with_decisions(made, two), tmp_path / "out")
    assert other.recipe_digest != first.recipe_digest
    assert kept(tmp_path / "out") == kept(made.out) | {row["key"] for row in rows["flat"][:2]}
    none, _ = build(made, made.recipe, tmp_path / "out")
    assert none.recipe_digest == Manifest.load(made.out).recipe_digest
    assert digests(tmp_path / "out") == digests(made.out)  # without a decisions.json


def test_what_a_build_noted_is_taken_again(made: Looked, tmp_path: Path, capsys: Out) -> None:
    """By the command: the file of one build for the next, whose outcome it then holds."""
    flat = dropped(made.out)["flat"][0]
    path = write_recipe(tmp_path / "looked.yaml", made.recipe)
    command = ["build", str(path), "--data", str(made.data), "--work", str(made.work), "--workers", "0"]
    given = write(tmp_path / "d.json", [flat])
    assert main([*command, "--out", str(tmp_path / "one"), "--decisions", str(given)]) == 0
    assert "decisions: 1 kept" in capsys.readouterr().err
    noted = tmp_path / "one" / "decisions.json"
    assert main([*command, "--out", str(tmp_path / "two"), "--decisions", str(noted)]) == 0
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert flat["key"] in kept(tmp_path / "two")


def test_a_set_with_decisions_is_repaired(made: Looked, tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", dropped(made.out)["flat"][:1], ["air-nothing"])
    build(made, with_decisions(made, path), tmp_path / "out")
    path.unlink()  # what was decided is in the set's recipe
    before = digests(tmp_path / "out")
    for name in ("decisions.json", "dropped.parquet"):
        (tmp_path / "out" / name).write_bytes(b"damaged")
    assert sorted(repair(verify(tmp_path / "out", deep=True), made.work, print, 0)) == [
        "decisions.json",
        "dropped.parquet",
    ]
    assert digests(tmp_path / "out") == before


def test_duplicates_that_are_only_counted_stay_as_they_are(made: Looked, tmp_path: Path) -> None:
    copy = dropped(made.out)["duplicate"][0]
    plain = made.recipe.model_dump() | {"decisions": {"keep": [{"key": copy["key"]}]}}
    plain["dedup"]["action"] = "report"
    build(made, Recipe.model_validate(plain), tmp_path / "out")
    assert told(tmp_path / "out")["counts"] == {"kept": 1}
    assert copy["key"] in pq.read_table(tmp_path / "out" / "duplicates.parquet").column("key").to_pylist()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "format none; this version reads 1"),
        ('{"format": 2}', "format 2; this version reads 1"),
        ('{"format": 1, "keep": [{"key": ""}]}', "keep.0.key"),
        ('{"format": 1, "keep": ["a-b"]}', "keep.0"),
        ('{"format": 1, "keep": [{"key": "a-b"}], "drop": [{"key": "a-b"}]}', "a-b: decided twice"),
    ],
)
def test_a_file_that_is_none_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said):
        Decisions.load(path)
    with pytest.raises(RecipeError, match="No such file"):
        Decisions.load(tmp_path / "none.json")


def test_an_official_set_takes_none(tmp_path: Path, capsys: Out) -> None:
    path = write(tmp_path / "d.json", [])
    assert main(["check", "recipes/imagenet_s.yaml", "--data", str(tmp_path), "--decisions", str(path)]) == 1
    assert "an official set is taken as it is" in capsys.readouterr().err


def test_a_recipe_may_hold_decisions(made: Looked, tmp_path: Path) -> None:
    plain = {**made.recipe.model_dump(mode="json", exclude_none=True), "decisions": {"drop": [{"key": "air-0"}]}}
    (tmp_path / "looked.yaml").write_text(yaml.safe_dump(plain))
    assert Recipe.load(tmp_path / "looked.yaml").decisions == Decisions(drop=(Decision(key="air-0"),))
