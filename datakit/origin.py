"""What a set can be made again from: its recipe, where its sources lie, its manifest. Noted in WORK by each build."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disk import sync
from .errors import ShardError
from .folders import ORIGIN
from .imagenet_s import ImageNetS
from .leave import note_path
from .manifest import Manifest
from .recipe import Recipe
from .remote import Remote, Root, root_of


@dataclass(frozen=True)
class Origin:
    """What a build was given, and the text of the manifest that it left."""

    recipe: dict[str, Any]
    data: str
    allow_missing: bool
    manifest: str

    def spec(self) -> Recipe | ImageNetS:
        kind = ImageNetS if self.recipe.get("kind") == "imagenet_s" else Recipe
        return kind.model_validate(self.recipe)


def keep(
    manifest: Manifest,
    recipe: Recipe | ImageNetS,
    data: str | Path | Remote,
    allow_missing: bool,
    out: Root,
    work: Path,
) -> Manifest:
    """Note what a set was made from, beside the note of what it uses in WORK; gives the manifest."""
    where = str(root_of(data).absolute())
    text = json.dumps([absolute(recipe), where, allow_missing, manifest.to_json()])
    path = note_path(work, recipe.name, out).with_suffix(ORIGIN)
    temporary = path.with_suffix(f"{ORIGIN}.tmp")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    return manifest


def absolute(recipe: Recipe | ImageNetS) -> dict[str, Any]:
    """A recipe as plain data whose files are found from any folder; sources stay below the data folder."""
    plain: dict[str, Any] = recipe.model_dump(mode="json")
    if isinstance(recipe, Recipe):
        plain["protect"]["lists"] = [str(Path(path).absolute()) for path in plain["protect"]["lists"]]
        for rule in plain["exclude"]["rules"]:
            if "file" in rule:
                rule["file"] = str(Path(rule["file"]).absolute())
    return plain


def origins(work: Path) -> Iterator[Origin]:
    """What is noted in a work folder of all sets that were built with it; a note that is damaged is none."""
    for path in sorted((work / "builds").glob(f"*{ORIGIN}")):
        try:
            recipe, data, allow_missing, manifest = json.loads(path.read_text(encoding="utf-8"))
            yield Origin(recipe, data, allow_missing, manifest)
        except ValueError:
            continue


def manifest_of(text: str) -> Manifest:
    """A manifest from its text; ShardError unless its seal is that of what it says."""
    try:
        manifest = Manifest.model_validate_json(text)
    except ValueError as exc:
        raise ShardError(f"not a manifest: {exc}") from None
    if manifest.seal != manifest.sealed().seal or manifest.to_json() != text:
        raise ShardError("a manifest that was changed")
    return manifest
