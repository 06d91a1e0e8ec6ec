"""A recipe says what a data set is made of. This file is the table of contents: one field per stage."""

from __future__ import annotations

from collections.abc import Container, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from .decisions import Decisions
from .errors import RecipeError
from .licences import UNSTATED, Asked
from .manifest import Collection
from .rules import Evaluation, EveryNth, PairShift, SplitRule, ValidShare
from .sample import Spec
from .sources.scan import Source
from .stages.cut import Cut
from .stages.dedup import Dedup, Prefer
from .stages.exclude import Exclude
from .stages.protect import Protect
from .stages.same_place import SamePlace
from .stages.shards import Shards
from .stages.slice import Reducing, Slice
from .stages.subset import Subset
from .validate import load_yaml, read_yaml, wrong_fields


class Recipe(Spec):
    """What a build does, in order. Its fields are the YAML keys; defaults need not be written."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$", description="begins the names of the shards")
    title: str = ""
    about: str = Field("", description="first paragraph of the card")
    seed: int = 0
    sources: tuple[Source, ...] = Field(min_length=1)
    include_evaluation: tuple[str, ...] = Field(
        (), description="NAME or NAME:split of evaluation sets and splits that are taken all the same; the card says so"
    )
    exclude: Exclude = Exclude()
    slice: Slice | None = None
    cut: Cut = Cut()
    prefer: tuple[Prefer, ...] = Field(
        ("labelled", "larger", "sharper", "source"),
        description="which of several alike is kept; source: in the order of the list of sources; ties end in id",
    )
    protect: Protect = Protect()
    dedup: Dedup | None = None
    same_place: SamePlace | None = None
    subset: Subset = Subset()
    shards: Shards = Shards()
    decisions: Decisions = Field(Decisions(), description="what a person decided of single records")
    # of camera RAW: they say what `slice` and `cut` are, see `_view_says`
    view: Literal["slices", "downsampled", "full"] | None = Field(None, description="what a sample of a RAW shows")
    domain: Literal["raw", "srgb", "both"] = Field("raw", description="the RAW, the camera's JPEG, or both")
    layout: Literal["correct", "reference"] = Field(
        "correct", description="reference: AODRaw's arrays, faults included"
    )
    max_pair_shift_px: float | None = Field(None, ge=0, description="drop what is shifted more against its JPEG")

    @model_validator(mode="before")
    @classmethod
    def _view_says(cls, plain: Any) -> Any:
        """Fills `slice`, `cut` and the labels to read by `view`, `domain` and `layout`; what they do not say stays."""
        if not isinstance(plain, dict) or plain.get("view") not in ("slices", "downsampled", "full"):
            return plain
        view, domain, layout = plain["view"], plain.get("domain", "raw"), plain.get("layout", "correct")
        arrays = "npy" if layout == "reference" else "tiff16" if view == "downsampled" else "mosaic"
        encode = {"format": "jpeg", "quality": 95} if domain == "srgb" else {"format": arrays}
        given = {key: dict(plain.get(key) or {}) for key in ("slice", "cut")}
        published = dict(given["slice"].get("published") or {})
        ways = {"slices": {"published": published}, "downsampled": {"third": True}}
        boxed = view == "slices" and not published.get("keep_empty")
        cut = {**given["cut"], "encode": encode, "shots": True, "boxed": boxed, "pair": domain == "both"}
        changed = {**plain, "slice": ways.get(view), "cut": cut}
        if isinstance(plain.get("sources"), list | tuple):
            reduced = view == "downsampled"
            changed["sources"] = [{**s, "reduced": reduced} if isinstance(s, dict) else s for s in plain["sources"]]
        return changed

    @model_validator(mode="after")
    def _names_differ(self) -> Recipe:
        names = [s.name for s in self.sources]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"sources: {', '.join(twice)}: named twice; give one of them another name")
        return self

    @model_validator(mode="after")
    def _names_are_sources(self) -> Recipe:
        known = {s.name for s in self.sources}
        named = dict.fromkeys(self.subset.per_source, "subset.per_source")
        named |= {pair.partition(":")[0]: "include_evaluation" for pair in self.include_evaluation}
        for rule in self.exclude.rules:
            if isinstance(rule, SplitRule):
                named |= {pair.partition(":")[0]: "exclude: split" for pair in rule.deny if ":" in pair}
            elif isinstance(rule, EveryNth) and rule.source:
                named[rule.source] = "exclude: every_nth"
        wrong = [f"{where}: {name}" for name, where in named.items() if name.partition("/")[0] not in known]
        if wrong:
            raise ValueError(f"{'; '.join(wrong)}: no such source; there are {', '.join(sorted(known))}")
        return self

    @model_validator(mode="after")
    def _looks_are_measured(self) -> Recipe:
        asks = [name for name in ("dedup", "same_place") if getattr(self, name)]
        asks += ["protect"] if self.protect.lists else []
        if asks and not self.cut.measure:
            raise ValueError(f"cut: measure: false: {', '.join(asks)} compare what it measures; set it to true")
        if self.protect.contain and self.cut.encode.format in ("tiff16", "png16", "npy", "mosaic"):
            raise ValueError(f"protect: contain reads 8-bit pictures, not {self.cut.encode.format}: leave it out")
        if self.dedup and self.dedup.signature == "cnn" and self.cut.encode.format in ("tiff16", "png16"):
            raise ValueError(f"dedup: signature: cnn reads 8-bit pictures, not {self.cut.encode.format}; use phash")
        if self.dedup and self.dedup.orientations and self.cut.encode.keeps_levels:
            what = f"tiles of {self.cut.encode.format} are duplicates where all of their levels are equal"
            raise ValueError(f"dedup: orientations: {what}: leave it out")
        return self

    @classmethod
    def load(
        cls,
        path: str | Path,
        changes: dict[str, Any] | None = None,
        protect: Sequence[Path] = (),
        licences: Sequence[str] = (),
        decisions: Path | None = None,
    ) -> Recipe:
        """The recipe at `path`, or of that name among the bundled ones; RecipeError with every field that is wrong.

        changes: values by dotted key, as `--set` gives them: {"slice.grid.size_px": 256}. protect: held-out lists
        beside those of the recipe. licences: take only what is under one of these, see `licences`.
        decisions: a decisions.json, in place of the recipe's own.
        """
        path = find(Path(path))
        plain = with_base(path)
        if isinstance(plain.get("sources"), list):
            plain["sources"] = [{"manifest": s} if isinstance(s, str) else s for s in plain["sources"]]
        for key, value in (changes or {}).items():
            put(plain, key, value)
        put_lists(plain, path.parent, protect)
        put_licences(plain, licences)
        if decisions:
            plain["decisions"] = Decisions.load(decisions).model_dump()
        wrong: dict[tuple[int | str, ...], str] = {}
        if isinstance(plain.get("sources"), list):
            plain["sources"] = [_source(s, path, n, wrong) for n, s in enumerate(plain["sources"])]
        try:
            recipe = cls.model_validate(plain)
        except ValidationError as exc:
            wrong |= {at: line for at, line in wrong_fields(cls, exc).items() if at[:2] not in wrong}
        if wrong:
            raise RecipeError("\n".join([f"{path}: {len(wrong)} wrong", *(f"  {line}" for line in wrong.values())]))
        return recipe

    def main_of(self, source: Source, there: Container[str]) -> Source | None:
        """The source before this one, among those there, that has the same images: they are read in it."""
        for other in self.sources:
            if other == source:
                return None
            related = source.collection.name in other.collection.same_images_as
            if other.name in there and (related or other.collection.name in source.collection.same_images_as):
                return self.main_of(other, there) or other
        return None

    def joined_to(self, source: Source, there: Container[str]) -> list[Source]:
        """The sources among those there whose labels are joined to the images of this one."""
        return [other for other in self.sources if other.name in there and self.main_of(other, there) == source]

    def header_rules(self) -> Exclude:
        """The rules before `cut`, what is kept for evaluation first."""
        evaluation = {source.collection.name for source in self.sources if source.collection.role == "evaluation"}
        same = {other for s in self.sources if s.collection.name in evaluation for other in s.collection.same_images_as}
        held = tuple(
            source.name
            for source in self.sources
            if source.collection.name in evaluation | same or evaluation & {*source.collection.same_images_as}
        )
        first = Evaluation(collections=held, include=self.include_evaluation)
        return self.exclude.header(self.cut.narrow, first)

    def members(self) -> tuple[str, ...]:
        """The members of every sample, in the order they lie in a shard."""
        return self.shards.members(self.cut.encode.suffix, self.cut.masks, self.cut.pair)

    def size_rules(self) -> Exclude:
        """The rules that images must pass again once they are reduced."""
        again = self.exclude.sizes() if self.slice and self.slice.gsd_m else ()
        return Exclude(rules=again)

    def slicing(self) -> Slice | None:
        """How images are cut: `slice`, with the rules over sizes that hold for what it reduces."""
        sizes = self.size_rules().rules
        if self.slice is None or not sizes:
            return self.slice
        return Reducing.model_validate({**self.slice.model_dump(), "sizes": [rule.model_dump() for rule in sizes]})

    def measured_rules(self) -> Exclude:
        """The rules after `cut`, the share of valid pixels that random windows need first."""
        measured = self.exclude.measured()
        if self.max_pair_shift_px is not None:
            measured = Exclude(rules=(PairShift(max_px=self.max_pair_shift_px), *measured.rules))
        if self.slice and self.slice.random and self.slice.random.min_valid_share:
            least = ValidShare(min_share=self.slice.random.min_valid_share, name="min_valid_share")
            return Exclude(rules=(least, *measured.rules))
        return measured


def put_lists(plain: dict[str, Any], beside: Path, protect: Sequence[Path]) -> None:
    """Add held-out lists to those of a recipe, whose names may be relative to its file."""
    stage = plain.get("protect") or {}
    named = stage.get("lists") if isinstance(stage, dict) else None
    if isinstance(stage, dict) and isinstance(named or [], list):
        own = [str(beside / name) if (beside / str(name)).is_file() else name for name in named or []]
        plain["protect"] = {**stage, "lists": [*dict.fromkeys([*own, *map(str, protect)])]}


def put_licences(plain: dict[str, Any], licences: Sequence[str]) -> None:
    """Add rules that take only these licences, before all others; what states none goes for a reason of its own."""
    exclude = plain.get("exclude") or {}
    rules = exclude.get("rules") or [] if isinstance(exclude, dict) else None
    if licences and isinstance(rules, list):
        stated = {"rule": "licence", "allow": ["*"], "name": "licence_unstated"}
        only = {"rule": "licence", "allow": [*licences], "name": "licence_not_asked_for"}
        first = [only] if Asked(licences).includes(UNSTATED) else [stated, only]
        plain["exclude"] = {**exclude, "rules": [*first, *rules]}


def find(path: Path) -> Path:
    """A recipe file: `path` itself, or the bundled one of that name (`opticalrs`, `recipes/opticalrs.yaml`)."""
    if path.exists() and not path.is_dir():  # a folder of that name is what a build of it left
        return path
    bundled = {p.stem: p for folder in reversed(folders("recipes")) for p in folder.glob("*.yaml")}
    if path.parent in (Path(), Path("recipes")) and path.suffix in ("", ".yaml") and path.stem in bundled:
        return bundled[path.stem]
    known = ", ".join(sorted(bundled))
    raise RecipeError(f"{path}: no such file, and no bundled recipe has this name; bundled are {known}")


def folders(kind: str) -> list[Path]:
    """Where bundled `recipes` or `manifests` lie: in the package, or beside it in a checkout."""
    package = Path(str(resources.files("datakit")))
    return [folder for folder in (package / "bundled" / kind, package.parent / kind) if folder.is_dir()][:1]


def find_manifest(name: str, *near: Path) -> Path:
    """The manifest of that name, in folders `near` or bundled."""
    places = [*near, *folders("manifests")]
    found = next((p for p in (folder / f"{name}.yaml" for folder in places) if p.is_file()), None)
    if found is None:
        known = sorted({p.stem for folder in places for p in folder.glob("*.yaml")})
        raise RecipeError(f"no manifest of that name; there are {', '.join(known)}")
    return found


def with_base(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The YAML of a recipe over that of its `base`; mappings are merged, all else is replaced.

    The base is a file beside it, else a bundled one: opticalrs.yaml, pretrain/tiny.yaml.
    """
    plain = read_yaml(path)
    if not isinstance(plain, dict):
        raise RecipeError(f"{path}: must be a mapping with name, sources, …")
    base = plain.pop("base", None)
    if base is None:
        return plain
    places = [folder / str(base) for folder in (path.parent, *folders("recipes"))]
    below, above = next((place for place in places if place.is_file()), places[0]), (*above, path.resolve())
    if not below.is_file():
        raise RecipeError(f"{path}: base: {base}: no such file in {path.parent}, and no bundled recipe")
    if below.resolve() in above:
        raise RecipeError(f"{path}: base: {base} builds on this one itself")
    return merged(with_base(below, above), plain)


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
    for n, step in enumerate(way):
        at = _place(here, step, key)
        if isinstance(here, dict) and not isinstance(here.get(step), dict | list):
            here[step] = {}
        here = here[at]
        if not isinstance(here, dict | list):
            raise RecipeError(f"--set {key}: {'.'.join(way[: n + 1])} is {here!r}, which has nothing inside")
    here[_place(here, last, key)] = value


def _place(here: dict[str, Any] | list[Any], step: str, key: str) -> Any:
    """A step of a dotted key as what `here` is indexed by."""
    if isinstance(here, dict):
        return step
    if step.isdecimal() and int(step) < len(here):
        return int(step)
    raise RecipeError(f"--set {key}: {step}: this is a list of {len(here)}, so give a number, 0 to {len(here) - 1}")


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


def _source(entry: Any, recipe: Path, n: int, wrong: dict[tuple[int | str, ...], str]) -> Any:
    """The n-th source with its manifest in place; `entry` is a manifest's name, or has a key `manifest`."""
    plain = {"manifest": entry} if isinstance(entry, str) else entry
    if not isinstance(plain, dict) or "manifest" not in plain:
        return plain
    name = str(plain["manifest"])
    rest = {key: value for key, value in plain.items() if key != "manifest"}
    try:
        found = find_manifest(name, recipe.parent.parent / "manifests", recipe.parent / "manifests")
        if "collection" in rest:
            raise RecipeError("give manifest or collection, not both")
        return {"name": name, "path": name, "collection": load_yaml(Collection, found), **rest}
    except RecipeError as exc:
        wrong["sources", n] = f"sources.{n}: {name}: {exc}".replace("\n", "\n  ")
    return plain
