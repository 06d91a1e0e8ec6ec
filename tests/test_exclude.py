"""The rules: each with a record that it drops and one that it does not."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.errors import RecipeError, StageError
from datakit.image import Narrow
from datakit.rules import Rule
from datakit.run import funnel_of
from datakit.sample import Part, Sample, from_table, to_table
from datakit.stages.exclude import Exclude, HeaderRules, check_shares
from datakit.validate import validate

GOOD = Sample(
    key="dota-a", source="dota", name="images/a.png", width=800, height=600, image_width=800, image_height=600,
    modality="optical", bands=("red", "green", "blue"), dtype="uint8", format="PNG", split="train",
    licences=("CC-BY-4.0",), valid_share=1.0, entropy_bits=7.0, sharpness=300.0, luma_mean=110.0, luma_std=40.0,
    saturation=0.2,
)  # fmt: skip
NIR = ("nir", "red", "green")


def part(tmp_path: Path) -> Part:
    return Part(tmp_path / "part.parquet", tmp_path, tmp_path, {})


def dropped(rules: Any, samples: list[Sample], narrow: Narrow | None = None) -> list[str]:
    """Why each sample is dropped."""
    plain = {"rules": rules, **({"narrow": narrow.model_dump()} if narrow else {})}
    records = to_table(samples)
    out = validate(HeaderRules if narrow else Exclude, plain, "recipe")(records, part(Path()))
    assert out.schema == records.schema
    assert out.drop(["dropped"]) == records.drop(["dropped"])  # nothing but the verdict changes
    funnel = funnel_of(records, out)
    funnel.check("exclude")
    return [s.dropped for s in from_table(out)]


CASES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [  # rule, a record that goes, one that stays
    ({"rule": "modality", "allow": ["optical"]}, {"modality": "sar"}, {}),
    ({"rule": "modality", "allow": []}, {}, {"dropped": "never"}),
    ({"rule": "dtype", "allow": ["uint8"]}, {"dtype": "uint16"}, {}),
    ({"rule": "dtype", "allow": ["uint8", "uint16"]}, {"dtype": "float32"}, {"dtype": "uint16"}),
    ({"rule": "bands", "allow": ["red", "green", "blue"]}, {"bands": NIR}, {"bands": ("blue", "green", "red")}),
    ({"rule": "bands", "allow": ["red", "green", "blue"]}, {"bands": ("red", "green", "blue", "nir")}, {}),
    ({"rule": "bands", "allow": ["red", "green", "blue"]}, {"bands": ()}, {"alpha": True}),
    ({"rule": "bands", "allow": ["red"], "exact": False}, {"bands": ("gray",)}, {"bands": ("red", "nir")}),
    ({"rule": "frames"}, {"frames": 2}, {"frames": 1}),
    ({"rule": "format", "deny": ["GIF"]}, {"format": "GIF"}, {"format": "PNG"}),
    ({"rule": "format", "allow": ["JPEG", "PNG"]}, {"format": "BMP"}, {"format": "JPEG"}),
    ({"rule": "format", "allow": ["PNG"], "deny": ["PNG"]}, {}, {"dropped": "never"}),
    ({"rule": "smaller_than", "side_px": 64}, {"width": 900, "height": 63}, {"width": 64, "height": 64}),
    ({"rule": "smaller_than", "side_px": 64}, {"width": 63, "height": 900}, {}),
    ({"rule": "longer_than", "ratio": 4}, {"width": 401, "height": 100}, {"width": 400, "height": 100}),
    ({"rule": "longer_than", "ratio": 4}, {"width": 100, "height": 401}, {"width": 100, "height": 400}),
    ({"rule": "larger_than", "megapixels": 1}, {"width": 1001, "height": 1000}, {"width": 1000, "height": 1000}),
    ({"rule": "larger_than", "megapixels": 3700}, {"width": 2**31 - 1, "height": 2**31 - 1}, {}),
    ({"rule": "split", "deny": ["test"]}, {"split": "test"}, {"split": "train"}),
    ({"rule": "split", "deny": ["dota:test"]}, {"split": "test"}, {"split": "test", "source": "inria"}),
    ({"rule": "path", "pattern": r"_mask\."}, {"name": "images/a_mask.png"}, {"name": "images/a.mask.png"}),
    ({"rule": "path", "pattern": "^thumbs/"}, {"name": "thumbs/a.png"}, {"name": "images/thumbs/a.png"}),
    ({"rule": "every_nth", "n": 10}, {"name": "video/f_0011.png"}, {"name": "video/f_0010.png"}),
    ({"rule": "every_nth", "n": 10}, {"name": "0009.png"}, {"name": "no-number.png"}),
    ({"rule": "every_nth", "n": 2, "source": "uav"}, {"name": "3.png", "source": "uav"}, {"name": "3.png"}),
    ({"rule": "every_nth", "n": 2, "frame": r"t(\d+)_"}, {"name": "t3_8.png"}, {"name": "t2_7.png"}),
    ({"rule": "every_nth", "n": 2, "frame": r"(?:t(\d+))?x"}, {"name": "t3x.png"}, {"name": "x.png"}),
    ({"rule": "every_nth", "n": 2, "frame": r"([0-9a-f]+)$"}, {"name": "13"}, {"name": "1f"}),
    ({"rule": "licence", "deny": ["NC"]}, {"licences": ("CC0-1.0", "NC")}, {"licences": ("CC0-1.0",)}),
    ({"rule": "licence", "allow": ["CC-BY-4.0"]}, {"licences": ("unstated",)}, {"licences": ("CC-BY-4.0", "other")}),
    ({"rule": "licence", "allow": ["CC-BY-4.0"]}, {"licences": ()}, {}),
    ({"rule": "gsd_above", "gsd_m": 10}, {"gsd_m": 10.1}, {"gsd_m": 10.0}),
    ({"rule": "gsd_above", "gsd_m": 10}, {"gsd_range_m": (11.0, 20.0)}, {"gsd_range_m": (9.0, 20.0)}),
    ({"rule": "gsd_above", "gsd_m": 10}, {"gsd_m": 20.0, "gsd_range_m": (1.0, 1.5)}, {"gsd_m": None}),
    ({"rule": "gsd_below", "gsd_m": 0.3}, {"gsd_m": 0.2}, {"gsd_m": 0.3}),
    ({"rule": "gsd_below", "gsd_m": 0.3}, {"gsd_range_m": (0.1, 0.2)}, {"gsd_range_m": (0.1, 0.3)}),
    ({"rule": "gsd_unknown"}, {"gsd_m": None, "gsd_range_m": (0.5, 2.0)}, {"gsd_m": 0.5}),
    ({"rule": "evaluation"}, {"split": "val"}, {"split": "train"}),
    ({"rule": "evaluation"}, {"split": "test_a"}, {"split": "testimony"}),
    ({"rule": "evaluation"}, {"split": "testA"}, {"split": "trainval"}),
    ({"rule": "evaluation"}, {"split": "public_test"}, {"split": "unlabeled"}),
    ({"rule": "evaluation"}, {"split": "hold"}, {"split": "tier1"}),
    ({"rule": "evaluation"}, {"split": "minival"}, {"split": "positive"}),
    ({"rule": "evaluation", "collections": ["dota"]}, {"split": "train"}, {"split": "train", "source": "inria"}),
    ({"rule": "evaluation", "collections": ["aid/x"]}, {"split": "Test-dev"}, {"split": ""}),
    ({"rule": "evaluation", "include": ["dota:val"]}, {"split": "test"}, {"split": "val"}),
    ({"rule": "evaluation", "collections": ["dota"], "include": ["dota:val"]}, {"split": "train"}, {"split": "val"}),
    ({"rule": "valid_share", "min_share": 0.5}, {"valid_share": 0.49}, {"valid_share": 0.5}),
    ({"rule": "flat", "entropy_bits": 0.5}, {"entropy_bits": 0.0}, {"entropy_bits": 0.5}),
    ({"rule": "blurred", "sharpness": 10}, {"sharpness": 9.9}, {"sharpness": 10.0}),
    ({"rule": "dark", "luma_mean": 20}, {"luma_mean": 19.9}, {"luma_mean": 20.0}),
    ({"rule": "bright", "luma_mean": 240}, {"luma_mean": 240.1}, {"luma_mean": 240.0}),
    ({"rule": "gray", "saturation": 0.01}, {"saturation": 0.009}, {"saturation": 0.01}),
    ({"rule": "pair_shift", "max_px": 4}, {"pair_shift_px": 4.5}, {"pair_shift_px": 4.0}),
]


@pytest.mark.parametrize(("rule", "goes", "stays"), CASES)
def test_each_rule_drops_what_it_says(rule: dict[str, Any], goes: dict[str, Any], stays: dict[str, Any]) -> None:
    assert dropped([rule], [replace(GOOD, **goes)]) == [rule["rule"]]
    if stays != {"dropped": "never"}:
        assert dropped([rule], [replace(GOOD, **stays)]) == [""]
        assert dropped([rule], [replace(GOOD, **stays), replace(GOOD, **goes)]) == ["", rule["rule"]]


def test_no_rule_is_without_a_case() -> None:
    names = {rule.model_fields["rule"].default for rule in get_args(get_args(Rule)[0])}
    assert names == {rule["rule"] for rule, *_ in CASES} | {"column"}


def all_rules(tmp_path: Path) -> list[dict[str, Any]]:
    write_scores(tmp_path / "scores.parquet", {"dota-a": 0.9})
    scored = {"rule": "column", "file": str(tmp_path / "scores.parquet"), "column": "score", "below": 0.5}
    return [*(rule for rule, _, stays in CASES if stays != {"dropped": "never"}), scored]


def test_an_empty_table_passes_every_rule(tmp_path: Path) -> None:
    assert dropped(all_rules(tmp_path), []) == []


MEASURED = ("valid_share", "entropy_bits", "sharpness", "luma_mean", "luma_std", "saturation")


def test_what_was_not_measured_is_dropped_by_no_measured_rule(tmp_path: Path) -> None:
    unmeasured = replace(GOOD, **dict.fromkeys(MEASURED))
    rules = Exclude.model_validate({"rules": all_rules(tmp_path)}).measured().model_dump()["rules"]
    assert len(rules) == 8
    assert dropped(rules, [unmeasured]) == [""]
    dark = replace(GOOD, luma_mean=1.0)
    assert dropped(rules, [unmeasured, dark, unmeasured]) == ["", "dark", ""]


def test_the_first_rule_that_matches_is_the_reason() -> None:
    rules: list[dict[str, Any]] = [
        {"rule": "flat", "entropy_bits": 2.0},
        {"rule": "dark", "luma_mean": 20},
        {"rule": "blurred", "sharpness": 10},
    ]
    record = replace(GOOD, entropy_bits=1.0, luma_mean=5.0, sharpness=1.0)
    assert dropped(rules, [record]) == ["flat"]
    assert dropped(rules[::-1], [record]) == ["blurred"]
    assert dropped(rules[1:], [record, GOOD]) == ["dark", ""]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(CASES), min_size=1, max_size=6), st.permutations(range(8)))
def test_rules_look_at_each_record_alone(cases: list[Any], order: list[int]) -> None:
    rules = [rule for rule, *_ in cases]
    changes = [*(goes for _, goes, _ in cases), *({k: v for k, v in s.items() if k != "dropped"} for *_, s in cases)]
    samples = [replace(GOOD, **changes[n % len(changes)]) for n in order]
    together = dropped(rules, samples)
    assert together == [dropped(rules, [sample])[0] for sample in samples]
    for sample, reason in zip(samples, together, strict=True):
        alone = [rule["rule"] for rule in rules if dropped([rule], [sample]) != [""]]
        assert reason == (alone[0] if alone else "")


def test_rules_before_and_after_cut() -> None:
    mixed: list[dict[str, Any]] = [
        {"rule": "flat", "entropy_bits": 1.0},
        {"rule": "dtype", "allow": ["uint8"]},
        {"rule": "gray", "saturation": 0.1},
        {"rule": "frames"},
    ]
    exclude = Exclude.model_validate({"rules": mixed})
    assert [r.rule for r in exclude.header(None).rules] == ["dtype", "frames"]
    assert [r.rule for r in exclude.measured().rules] == ["flat", "gray"]


def test_what_cut_narrows_passes_as_what_it_becomes() -> None:
    rules = [{"rule": "dtype", "allow": ["uint8"]}, {"rule": "bands", "allow": ["red", "green", "blue"]}]
    wide = replace(GOOD, dtype="uint16", bands=("blue", "green", "red", "nir"))
    lacking = replace(GOOD, dtype="uint16", bands=("vv", "vh"))
    narrow = Narrow(bands=("red", "green", "blue"), range=(0, 3000))
    assert dropped(rules, [GOOD, wide, lacking]) == ["", "dtype", "dtype"]
    assert dropped(rules, [GOOD, wide, lacking], narrow) == ["", "", "dtype"]
    assert dropped(rules[1:], [GOOD, wide, lacking], narrow) == ["", "", "bands"]


def write_scores(path: Path, scores: dict[str, Any], kind: pa.DataType | None = None, column: str = "score") -> None:
    pq.write_table(pa.table({"key": list(scores), column: pa.array(list(scores.values()), kind)}), path)


KEYS = [replace(GOOD, key=key) for key in ("low", "mid", "high", "none", "null", "nan")]
SCORES = {"high": 0.9, "low": 0.1, "null": None, "other": 0.0, "mid": 0.5, "nan": float("nan")}


@pytest.mark.parametrize(
    ("wish", "gone"),
    [
        ({"below": 0.5}, {"low"}),
        ({"above": 0.5}, {"high"}),
        ({"below": 0.2, "above": 0.8}, {"low", "high"}),
        ({"below": 0.2, "missing": "drop"}, {"low", "none", "null", "nan"}),
        ({"missing": "drop"}, {"none", "null", "nan"}),
    ],
)
def test_a_column_of_ones_own(tmp_path: Path, wish: dict[str, Any], gone: set[str]) -> None:
    write_scores(tmp_path / "scores.parquet", SCORES)
    rule = {"rule": "column", "file": str(tmp_path / "scores.parquet"), "column": "score", **wish}
    assert {s.key for s, why in zip(KEYS, dropped([rule], KEYS), strict=True) if why == "column"} == gone


@pytest.mark.parametrize("kind", [pa.int8(), pa.float32(), pa.bool_(), pa.decimal128(5, 2)])
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_column_of_any_numbers(tmp_path: Path, kind: pa.DataType, text: pa.DataType) -> None:
    numbers = pa.array([0, 1, None], pa.int64()).cast(pa.int8()).cast(kind) if kind != pa.decimal128(5, 2) else None
    if numbers is None:
        from decimal import Decimal

        numbers = pa.array([Decimal(0), Decimal(1), None], kind)
    keys = pa.array(["low", "high", "null"]).cast(text)
    pq.write_table(pa.table({"score": numbers, "key": keys, "more": [1, 2, 3]}), tmp_path / "scores.parquet")
    rule = {"rule": "column", "file": str(tmp_path / "scores.parquet"), "column": "score", "below": 0.5}
    assert dropped([rule], KEYS) == ["column", "", "", "", "", ""]


def test_an_empty_file_of_scores(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.parquet", {}, pa.float64())
    rule = {"rule": "column", "file": str(tmp_path / "scores.parquet"), "column": "score", "below": 0.5}
    assert dropped([{**rule, "missing": "drop"}], KEYS) == ["column"] * len(KEYS)


def test_another_file_of_scores_is_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    rule = {"rule": "column", "file": str(path), "column": "score", "below": 0.5}
    exclude = Exclude.model_validate({"rules": [rule]})
    write_scores(path, {"a": 0.4})
    before, facts = exclude.digest(), path.stat()
    assert exclude.digest() == before
    write_scores(path, {"a": 0.6})
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert exclude.digest() != before
    write_scores(path, {"a": 0.4})
    assert exclude.digest() == before
    assert Exclude.model_validate({"rules": [{**rule, "below": 0.4}]}).digest() != before


@pytest.mark.parametrize("content", [None, "folder", b"", b"PAR1 no parquet", "columns", "words", "keys"])
def test_a_file_of_scores_that_cannot_be_used_is_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "scores.parquet"
    if content == "folder":
        path.mkdir()
    elif content == "columns":
        write_scores(path, {"a": 0.4}, column="other")
    elif content == "words":
        write_scores(path, {"a": "cloudy"})
    elif content == "keys":
        pq.write_table(pa.table({"name": ["a"], "score": [0.5]}), path)
    elif content is not None:
        path.write_bytes(content)
    exclude = Exclude.model_validate({"rules": [{"rule": "column", "file": str(path), "column": "score", "below": 1}]})
    if content in (None, "folder"):
        with pytest.raises(RecipeError, match=r"exclude: column: .*scores\.parquet: (No such file|Is a directory)"):
            exclude.digest()
    with pytest.raises(RecipeError, match=r"exclude: column: .*scores\.parquet must be a Parquet file with `key` and"):
        exclude(to_table(KEYS), part(tmp_path))


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"rule": "path", "pattern": "("}, r"rules\.0\.path\.pattern: .*valid regular expression"),
        ({"rule": "every_nth", "n": 5, "frame": "("}, r"frame: .*valid regular expression"),
        ({"rule": "every_nth", "n": 5, "frame": r"\d+"}, r"frame: .*one group"),
        ({"rule": "every_nth", "n": 5, "frame": r"(\d)(\d)"}, r"frame: .*one group"),
        ({"rule": "every_nth", "n": 1}, r"rules\.0\.every_nth\.n"),
        ({"rule": "column", "file": "a.parquet", "column": "score"}, r"give below, above, or missing: drop"),
        ({"rule": "no such rule"}, r"rules\.0: .*no such rule"),
        ({"rule": "flat"}, r"rules\.0\.flat\.entropy_bits: Field required"),
        ({"rule": "flat", "entropy_bits": 9}, r"rules\.0\.flat\.entropy_bits"),
        ({"rule": "frames", "max_share": 0}, r"rules\.0\.frames\.max_share"),
        ({"rule": "frames", "maximum": 1}, r"rules\.0\.frames\.maximum"),
    ],
)
def test_rules_that_make_no_sense_are_recipe_errors(rule: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        validate(Exclude, {"rules": [rule]}, "recipe.yaml")


def test_rules_are_spelled_as_they_are_written(tmp_path: Path) -> None:
    for rule in all_rules(tmp_path):
        exclude = Exclude.model_validate({"rules": [rule]})
        plain = exclude.model_dump(mode="json")["rules"][0]
        assert {key: plain[key] for key in rule} == rule
        again = pickle.loads(pickle.dumps(exclude))
        assert again == exclude == Exclude.model_validate({"rules": [plain]})
        assert again.digest() == exclude.digest()


def test_all_that_is_wrong_is_said_at_once() -> None:
    rules = [{"rule": "path", "pattern": "["}, {"rule": "dark", "luma_mean": 300}, {"rule": "frames"}]
    with pytest.raises(RecipeError, match=r"2 wrong(.|\n)*pattern(.|\n)*luma_mean"):
        validate(Exclude, {"rules": rules}, "recipe.yaml")


def test_a_rule_that_drops_more_than_it_may_stops_the_build() -> None:
    rules = Exclude.model_validate(
        {"rules": [{"rule": "flat", "entropy_bits": 1, "max_share": 0.1}, {"rule": "dark", "luma_mean": 5}]}
    ).rules
    check_shares(rules, 100, {"flat": 10, "dark": 90})
    with pytest.raises(StageError, match=r"flat dropped 11 of 100 \(11\.0%\), more than its max_share 10\.0%"):
        check_shares(rules, 100, Counter({"flat": 11}))
    check_shares(rules, 0, {})
    check_shares(rules, 50, {})


def test_records_in_several_pieces_are_as_in_one() -> None:
    rules = [rule for rule, *_ in CASES if rule.get("allow") != []]
    samples = [replace(GOOD, **goes) for _, goes, _ in CASES]
    exclude = Exclude.model_validate({"rules": rules})
    pieces = pa.concat_tables([to_table([sample]) for sample in samples])
    whole = exclude(to_table(samples), part(Path())).column("dropped").to_pylist()
    assert exclude(pieces, part(Path())).column("dropped").to_pylist() == whole
    assert np.mean([reason != "" for reason in whole]) > 0.8
