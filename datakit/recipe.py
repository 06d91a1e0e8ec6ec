"""A recipe says what a data set is made of. This file is the table of contents: one field per stage."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from .errors import RecipeError
from .manifest import Collection, load_yaml, read_yaml, validate
from .sample import Spec
from .sources.scan import Source
from .stages.cut import Cut
from .stages.exclude import Exclude, ValidShare
from .stages.shards import Shards
from .stages.slice import Slice
from .stages.subset import Subset


class Recipe(Spec):
    """What a build does, in order. Its fields are the YAML keys; defaults need not be written."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$", description="begins the names of the shards")
    title: str = ""
    about: str = Field("", description="first paragraph of the card")
    seed: int = 0
    sources: tuple[Source, ...] = Field(min_length=1)
    exclude: Exclude = Exclude()
    slice: Slice | None = None
    cut: Cut = Cut()
    subset: Subset = Subset()
    shards: Shards = Shards()

    @model_validator(mode="after")
    def _names_differ(self) -> Recipe:
        names = [s.name for s in self.sources]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"sources: {', '.join(twice)}: named twice; give one of them another name")
        return self

    @classmethod
    def load(cls, path: str | Path, changes: dict[str, Any] | None = None) -> Recipe:
        """The recipe at `path`, or of that name among the bundled ones; RecipeError with every field that is wrong.

        changes: values by dotted key, as `--set` gives them: {"slice.grid.size_px": 256}.
        """
        path = find(Path(path))
        plain = with_base(path)
        for key, value in (changes or {}).items():
            put(plain, key, value)
        wrong: list[str] = []
        plain["sources"] = [_source(entry, path, wrong) for entry in plain.get("sources") or []]
        if wrong:
            raise RecipeError("\n".join([f"{path}: {len(wrong)} wrong", *wrong]))
        return validate(cls, plain, str(path))

    def header_rules(self) -> Exclude:
        """The rules before `cut`."""
        return self.exclude.header(self.cut.narrow)

    def measured_rules(self) -> Exclude:
        """The rules after `cut`, the share of valid pixels that random windows need first."""
        measured = self.exclude.measured()
        if self.slice and self.slice.random and self.slice.random.min_valid_share:
            least = ValidShare(min_share=self.slice.random.min_valid_share)
            return Exclude(rules=(least, *measured.rules))
        return measured


def find(path: Path) -> Path:
    """A recipe file: `path` itself, or the bundled one of that name."""
    if path.exists():
        return path
    bundled = [folder / f"{path.stem}.yaml" for folder in folders("recipes")]
    found = next((p for p in bundled if p.exists()), None)
    if found is None:
        known = sorted({p.stem for folder in folders("recipes") for p in folder.glob("*.yaml")})
        raise RecipeError(f"{path}: no such file, nor a bundled recipe: {', '.join(known)}")
    return found


def folders(kind: str) -> list[Path]:
    """Where bundled `recipes` or `manifests` lie: in the package, or beside it in a checkout."""
    package = Path(str(resources.files("datakit")))
    return [folder for folder in (package.parent / kind, package / "bundled" / kind) if folder.is_dir()]


def with_base(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The YAML of a recipe over that of its `base`, a file beside it; mappings are merged, all else is replaced."""
    plain = read_yaml(path)
    if not isinstance(plain, dict):
        raise RecipeError(f"{path}: must be a mapping with name, sources, …")
    base = plain.pop("base", None)
    if base is None:
        return plain
    below = path.parent / str(base)
    if not below.exists() or below in (path, *above):
        raise RecipeError(f"{path}: base: {base}: no such file beside it, or one that builds on this one")
    return merged(with_base(below, (path, *above)), plain)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def put(plain: dict[str, Any], key: str, value: Any) -> None:
    """Set a value by dotted key; a number in the key is a place in a list."""
    *way, last = key.split(".")
    here: Any = plain
    for step in way:
        if isinstance(here, list) and step.isdigit() and int(step) < len(here):
            here = here[int(step)]
        elif isinstance(here, dict):
            here[step] = here.get(step) if isinstance(here.get(step), dict | list) else {}
            here = here[step]
        else:
            raise RecipeError(f"--set {key}: nothing at {step}")
    if isinstance(here, list) and last.isdigit() and int(last) < len(here):
        here[int(last)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise RecipeError(f"--set {key}: nothing at {last}")


def parse_changes(texts: list[str]) -> dict[str, Any]:
    """Values by dotted key from `key=value` texts; values are YAML."""
    changes = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise RecipeError(f"--set {text}: write key=value, as in slice.grid.size_px=256")
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError as exc:
            raise RecipeError(f"--set {text}: the value is not YAML: {exc}") from None
    return changes


def _source(entry: Any, recipe: Path, wrong: list[str]) -> Any:
    """A source with its manifest in place; `entry` is a manifest's name, or has a key `manifest` or `collection`."""
    plain = {"manifest": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, dict) else {}
    if "manifest" in plain:
        name = str(plain.pop("manifest"))
        places = [recipe.parent.parent / "manifests", recipe.parent / "manifests", *folders("manifests")]
        found = next((p for p in (folder / f"{name}.yaml" for folder in places) if p.exists()), None)
        if found is None:
            wrong.append(f"  sources: {name}: no manifest of that name in manifests/")
            return plain
        try:
            plain["collection"] = load_yaml(Collection, found)
        except RecipeError as exc:
            wrong.append(f"  {exc}")
            return plain
        plain = {"name": name, "path": name, **plain}
    return plain
