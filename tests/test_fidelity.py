"""docs/fidelity.md: every key, value, file, name and command that it names is there, and each value is the recipe's."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

import pytest
import yaml
from pages import ROOT
from pydantic import BaseModel

from datakit import kinds
from datakit.cli import parser
from datakit.errors import RecipeError
from datakit.imagenet_s import ImageNetS
from datakit.pretrain.recipe import Pretrain
from datakit.recipe import Recipe
from datakit.stream import Loader, mae
from datakit.views import View, view_of

PAGE = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
SECTIONS = {text.partition("\n")[0]: text for text in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
HEADS = ["| | published | released | ours | why |", "| fault of the released code | ours, and how to repeat it |"]
KEY = re.compile(r"(\w+(?:\.\w+)*)(?:(: |=)(.+))?")
SPECS = (Recipe, ImageNetS, Pretrain)
# what else a recipe must say where a value is tried: grid or random, not both; a cosine with cnn
BESIDE: tuple[dict[str, Any], ...] = ({}, {"slice.grid": None}, {"dedup.cosine": 0.9, "dedup.orientations": False})


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def recipes(text: str) -> list[str]:
    """The recipes that a text names."""
    return [span for span in spans(text) if re.fullmatch(r"recipes/\S+\.yaml", span)]


def loaded(name: str, changes: dict[str, Any] | None = None) -> Any:
    load = Pretrain.load if "pretrain" in name else kinds.load
    return load(ROOT / name, changes or {})


@cache
def as_it_is(name: str) -> Any:
    return loaded(name)


@cache
def all_recipes() -> tuple[str, ...]:
    return tuple(sorted(str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml")))


def value_of(spec: Any, key: str) -> Any:
    """The value at a dotted key of a recipe, as JSON has it; KeyError where there is none."""
    plain = spec.model_dump(mode="json")
    for name in key.split("."):
        plain = plain[name]
    return json.loads(json.dumps(plain))


def has(key: str, value: Any, named: list[str]) -> bool:
    """Whether one of the recipes that are named has this value."""
    for name in named:
        try:
            found = value_of(as_it_is(name), key)
        except (KeyError, TypeError):
            continue
        if found == value:
            return True
    return False


def may_be(key: str, value: Any, named: list[str]) -> bool:
    """Whether some recipe takes this value; those that are named are asked first."""
    for name in dict.fromkeys([*named, *all_recipes()]):
        if key.partition(".")[0] not in type(as_it_is(name)).model_fields:
            continue
        for beside in BESIDE:
            try:
                loaded(name, {**beside, key: value})
            except RecipeError:
                continue
            return True
    return False


def is_key(key: str) -> bool:
    """Whether a recipe may have this key, whatever its value."""

    def models(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for part in get_args(annotation):
            yield from models(part)

    here: list[type[BaseModel]] = list(SPECS)
    for name in key.split("."):
        fields = [model.model_fields[name] for model in here if name in model.model_fields]
        if not fields:
            return False
        here = [model for field in fields for model in models(field.annotation)]
    return True


def is_command(words: list[str]) -> bool:
    """Whether there is such a command, with these options, which take these values."""
    here: argparse.ArgumentParser = parser()
    while words and not words[0].startswith("-"):
        (below,) = [a for a in here._actions if isinstance(a, argparse._SubParsersAction)]
        if words[0] not in below.choices:
            return False
        here, words = below.choices[words[0]], words[1:]
    options = {name: action for action in here._actions for name in action.option_strings}
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        if not word.startswith("--"):
            continue
        if word not in options:
            return False
        if not following.startswith("--"):
            action = options[word]
            value = action.type(following) if callable(action.type) else following
            if action.nargs == 0 or (action.choices is not None and value not in action.choices):
                return False
    return True


def is_call(text: str) -> bool:
    """Whether a View, Loader or augmentation takes these arguments."""
    known = {"View": View, "mae": mae, "Loader": lambda **given: inspect.signature(Loader).bind("sets/rs", 1, **given)}
    try:
        made = eval(text, {"__builtins__": {}}, known)
        if isinstance(made, inspect.BoundArguments):
            view_of(made.arguments["raw"])
    except (TypeError, ValueError, RecipeError):
        return False
    return True


@cache
def source() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "datakit").rglob("*.py")))


def is_there(span: str, named: list[str]) -> bool:
    """Whether this project has what a span of the page names; named: the recipes of its section."""
    if span.startswith("datakit "):
        return is_command(span.split()[1:])
    if re.fullmatch(r"\w+\(.*\)", span):
        return is_call(span)
    if (ROOT / span).exists():
        return True
    if f'"{span}"' in source():
        return True
    found = KEY.fullmatch(span)
    if found is None:
        return False
    key, sign, text = found.groups()
    if sign is None:
        return is_key(key)
    value = yaml.safe_load(text)
    return has(key, value, named) if sign == ": " else may_be(key, value, named)


@pytest.mark.parametrize("section", SECTIONS)
def test_everything_that_is_named_is_there(section: str) -> None:
    text = SECTIONS[section]
    missing = [span for span in spans(text) if not is_there(span, recipes(text))]
    assert not missing


def test_the_head_names_what_there_is() -> None:
    head = PAGE.partition("\n## ")[0]
    assert [span for span in spans(head) if not is_there(span, ["recipes/aodraw.yaml"])] == []


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_has_both_tables_in_full(section: str) -> None:
    rows = [line for line in SECTIONS[section].splitlines() if line.startswith("|")]
    assert [row for row in rows if row in HEADS] == HEADS
    first, second = rows.index(HEADS[0]), rows.index(HEADS[1])
    assert all(row.count("|") == 6 for row in rows[first:second])
    assert all(row.count("|") == 3 for row in rows[second:])
    for row in rows[first + 2 : second]:
        assert row.split("|")[4].strip(), row
    assert all(row.split("|")[2].strip() or "none" in row for row in rows[second + 2 :])


def test_every_recipe_is_told_and_one_after_a_paper_in_a_section_of_it() -> None:
    head = PAGE.partition("\n## ")[0]
    assert {*recipes(PAGE)} == {*all_recipes()}
    papers = {name for name in all_recipes() if "arXiv" in (ROOT / name).read_text(encoding="utf-8")}
    assert len(papers) >= 5
    assert not papers & {*recipes(head)}


@pytest.mark.parametrize(
    "span",
    [
        "slice.grid.size_px: 511",
        "slice.gird",
        "objective.selector=best",
        "datakit evaluate aodraw --publish",
        "datakit evaluate probe --pool max",
        "datakit judge",
        "View(black='none')",
        "Loader(raw='aodraw')",
        "Loader(row='packed')",
        "recipes/opticalrs-5m.yaml",
        "no_such_word_anywhere",
    ],
)
def test_what_is_not_there_is_found(span: str) -> None:
    assert not is_there(span, ["recipes/opticalrs.yaml"])
