"""Specs from YAML and from plain data: either whole, or an error that tells every field that is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from .errors import RecipeError
from .sample import Spec

S = TypeVar("S", bound=Spec)


def read_yaml(path: Path) -> Any:
    """Plain data from a YAML file, or RecipeError."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise RecipeError(f"{path}: {exc.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise RecipeError(f"{path}: not YAML: {exc}") from None


def load_yaml(kind: type[S], path: Path) -> S:
    """A spec from a YAML file, or RecipeError with every field that is wrong."""
    return validate(kind, read_yaml(path), str(path))


def validate(kind: type[S], plain: object, where: str) -> S:
    """A spec from plain data, or RecipeError with every field that is wrong."""
    try:
        return kind.model_validate(plain)
    except ValidationError as exc:
        wrong = [f"  {line}" for line in wrong_fields(kind, exc).values()]
        raise RecipeError("\n".join([f"{where}: {len(wrong)} wrong", *wrong])) from None


def wrong_fields(kind: type[BaseModel], exc: ValidationError) -> dict[tuple[int | str, ...], str]:
    """A line for each wrong field by its place: where, what is allowed, and what was given."""
    lines = {}
    for error in exc.errors():
        where, what = error["loc"], error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            allowed = sorted({name for model in _models(kind, where[:-1]) for name in model.model_fields})
            what = f"no such key; allowed: {', '.join(allowed)}"
        elif isinstance(error["input"], str | int | float):
            what += f", not {error['input']!r:.60}"
        lines[where] = f"{'.'.join(map(str, where)) or 'whole file'}: {what}"
    # A list whose entries are wrong counts as empty to pydantic: only what is wrong inside is told.
    inside = {at[:n] for at in lines for n in range(len(at))}
    return {at: line for at, line in lines.items() if at not in inside}


def _models(kind: Any, way: tuple[int | str, ...]) -> Iterator[type[BaseModel]]:
    """The models that lie at `way`, as pydantic gives the place of an error, below a type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not way:
            yield kind
        elif way[0] in kind.model_fields:
            yield from _models(kind.model_fields[str(way[0])].annotation, way[1:])
        elif any(way[0] in get_args(field.annotation) for field in kind.model_fields.values()):
            yield from _models(kind, way[1:])  # the tag that told this one of several models
        return
    inside = way[1:] if way and getattr(kind, "__origin__", None) in (tuple, list, dict) else way
    for part in get_args(kind):
        yield from _models(part, inside)
