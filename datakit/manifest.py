"""What a source is (licence, counts, layout) and what a build left."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from .errors import RecipeError, ShardError
from .sample import Spec


def _is_glob(glob: str) -> str:
    try:
        _pattern(glob)
    except re.error as exc:
        raise ValueError(f"{glob} is not a glob: {exc}") from None
    return glob


Glob = Annotated[str, AfterValidator(_is_glob)]


class ClassFolders(Spec):
    """The name of the folder that an image lies in is its class."""

    kind: Literal["class_folders"] = "class_folders"
    level: int = Field(1, ge=1, description="1: the folder itself, 2: the one above it, …")


class DotaText(Spec):
    """One text file an image: `x1 y1 … x4 y4 class difficult`, after header lines `imagesource:…`, `gsd:…`."""

    kind: Literal["dota"] = "dota"
    path: str = "{dir}/../labelTxt/{stem}.txt"


class VocXml(Spec):
    """One Pascal VOC XML file an image: bndbox, or robndbox/polygon corners where there are any."""

    kind: Literal["voc"] = "voc"
    path: str = "{dir}/../Annotations/{stem}.xml"


class CocoJson(Spec):
    """One COCO file for many images; an image is found by `file_name`, relative to `images`."""

    kind: Literal["coco"] = "coco"
    path: str = Field(description="the JSON file, within the collection")
    images: str = Field("", description="folder within the collection that file_name is relative to")


Labels = Annotated[ClassFolders | DotaText | VocXml | CocoJson, Field(discriminator="kind")]


class Layout(Spec):
    """Which files of a collection are images and which are labels. Globs over names; `**` crosses folders.

    Names are paths below the collection's folder; a member of an archive is named as if it were unpacked beside it.
    """

    images: tuple[Glob, ...]
    ignore: tuple[Glob, ...] = Field(
        (), description="files, archives and folders (with a / at the end) not even listed"
    )
    label_files: tuple[Glob, ...] = ()
    labels: tuple[Labels, ...] = ()

    def ignores(self, name: str) -> bool:
        """Whether a file, or a folder (with a / at the end), is left alone."""
        return _any_matches(self.ignore, name)

    def kind(self, name: str) -> Literal["image", "label", ""]:
        """What a file is, by its name: an image, a label file, or neither. Labels go first."""
        if _any_matches(self.label_files, name):
            return "label"
        return "image" if _any_matches(self.images, name) else ""


class Split(Spec):
    """The images of one split: the globs that tell it, and how many the publisher counts."""

    images: tuple[Glob, ...] = ()
    count: int | None = Field(None, ge=0)


class Collection(Spec):
    """A public collection. What could not be verified is null; `facts` gives the page of each fact."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]{0,23}$")
    title: str
    version: str | None = None
    homepage: str
    licence: str = Field(description='SPDX name, the publisher\'s own words, or "unstated"')
    provider_terms: str | None = Field(None, description="terms of whoever took the pictures")
    citation: str | None = None
    modality: Literal["optical", "multispectral", "hyperspectral", "sar", "infrared", "elevation"]
    platform: Literal["satellite", "aerial", "uav", "oblique", "mixed"] | None = None
    bands: tuple[str, ...] = Field(min_length=1)
    dtype: str | None = None
    gsd_m: tuple[float, float] | None = Field(None, description="finest and coarsest, metres per pixel")
    layout: Layout
    splits: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], Split] = {}
    count: int | None = Field(None, ge=0, description="images in all, as published")
    role: Literal["pretrain", "evaluation"] = "pretrain"
    same_images_as: tuple[str, ...] = ()
    derived_from: tuple[str, ...] = ()
    twin_of: tuple[str, ...] = ()
    facts: dict[str, str] = {}
    note: str = ""

    def split_of(self, name: str) -> str:
        """The split that an image is in by its name, or ""."""
        return next((split for split, spec in self.splits.items() if _any_matches(spec.images, name)), "")

    @classmethod
    def load(cls, path: Path) -> Collection:
        """The collection described at `path`, or RecipeError with every field that is wrong."""
        return load_yaml(cls, path)


class Shard(Spec):
    """One tar of a build."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str


class SourceLeft(Spec):
    """What a build took from one source, and on what terms."""

    name: str
    title: str
    version: str | None
    homepage: str
    licence: str
    provider_terms: str | None
    samples: int
    bytes: int
    mean_bytes: float
    mean_psnr_db: float | None
    unmatched: int = Field(description="files that are neither image nor label of the layout")


class Count(Spec):
    """Records that came into a stage from one source, that left it, and that were dropped by reason."""

    stage: str
    source: str
    came: int
    left: int
    made: int = Field(description="records made of those that left: more than those where images are sliced")
    dropped: dict[str, int]


FORMAT = 1


class Manifest(Spec):
    """What a build left: `manifest.json`, written last, so that a folder that has one is whole."""

    format: Literal[1] = 1
    name: str
    title: str
    recipe: dict[str, Any]
    recipe_digest: str
    versions: dict[str, str]
    sources: tuple[SourceLeft, ...]
    missing: tuple[str, ...] = Field(description="sources of the recipe that were not on disk")
    samples: int
    members: tuple[str, ...] = Field(description="member of every sample, in the order they lie in a shard")
    shards: tuple[Shard, ...]
    counts: tuple[Count, ...]
    files: dict[str, str] = Field(description="sha256 of what else the build left")

    def to_json(self) -> str:
        """The text of manifest.json: the same for the same build."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """The manifest of the build at `path`: its folder, or its manifest.json."""
        path = Path(path)
        path = path / "manifest.json" if path.is_dir() else path
        if not path.exists():
            raise ShardError(f"{path}: no such file. A build that did not finish has none: run `datakit build` again")
        try:
            plain = json.loads(path.read_bytes())
            found = plain.get("format", "unknown") if isinstance(plain, dict) else "unknown"
            if found != FORMAT:
                raise ShardError(f"{path}: manifest format {found}; this version reads {FORMAT}. Update datakit")
            return cls.model_validate(plain)
        except OSError as exc:
            raise ShardError(f"{path}: {exc.strerror}. Let the user that runs this read it") from None
        except ValueError as exc:
            wrong = "; ".join(wrong_fields(cls, exc).values()) if isinstance(exc, ValidationError) else str(exc)
            raise ShardError(f"{path}: not a whole manifest ({wrong}). Build the set again to rewrite it") from None


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


def _any_matches(globs: tuple[str, ...], name: str) -> bool:
    return any(_pattern(glob).fullmatch(name) for glob in globs)


@lru_cache(maxsize=4096)
def _pattern(glob: str) -> re.Pattern[str]:
    """A glob as a pattern: `**/` is any folders or none, `*` and `?` stay in a folder, [ab] is either, [!a] others."""
    parts = re.findall(r"\*\*/|\*\*|\[[^]/]+]|.", glob, re.DOTALL)
    return re.compile("".join(map(_spelled, parts)), re.DOTALL)


def _spelled(part: str) -> str:
    if len(part) > 2 and part[0] == "[":
        others = part[1] == "!" and len(part) > 3
        letters = re.sub(r"([^\w-])", r"\\\1", part[2 if others else 1 : -1])
        return f"[^/{letters}]" if others else f"[{letters}]"
    return {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part) or re.escape(part)
