"""The kinds of recipes: each YAML file says with `kind` which class reads it; without, it is a `Recipe`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .errors import RecipeError
from .imagenet_s import ImageNetS
from .manifest import Collection
from .recipe import Recipe, find, find_manifest, put, with_base
from .validate import load_yaml, wrong_fields


def load(
    path: str | Path,
    changes: dict[str, Any] | None = None,
    protect: Sequence[Path] = (),
    licences: Sequence[str] = (),
    decisions: Path | None = None,
) -> Recipe | ImageNetS:
    """The recipe at `path`, or of that name among the bundled ones; RecipeError with every field that is wrong.

    The arguments are those of `Recipe.load`.
    """
    path = find(Path(path))
    plain = with_base(path)
    if plain.get("kind") is None:
        return Recipe.load(path, changes, protect, licences, decisions)
    if plain["kind"] != "imagenet_s":
        raise RecipeError(f"{path}: kind: {plain['kind']}: there is imagenet_s; leave it out for any other set")
    if protect or licences or decisions:
        raise RecipeError(f"{path}: --protect, --licence and --decisions: an official set is taken as it is")
    for key, value in (changes or {}).items():
        put(plain, key, value)
    near = (path.parent.parent / "manifests", path.parent / "manifests")
    plain["collection"] = load_yaml(Collection, find_manifest(str(plain.pop("manifest", "imagenet_s")), *near))
    try:
        return ImageNetS.model_validate(plain)
    except ValidationError as exc:
        wrong = wrong_fields(ImageNetS, exc)
        raise RecipeError("\n".join([f"{path}: {len(wrong)} wrong", *(f"  {s}" for s in wrong.values())])) from None
