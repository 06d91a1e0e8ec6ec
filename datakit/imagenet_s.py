"""The recipe of ImageNet-S, where its three ingredients lie, and whether they are all there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from .errors import SourceError
from .files import File
from .manifest import Collection, ListFile
from .remote import Remote, Root, root_of
from .sample import Spec
from .sources.imagenet import WNID, images, val_wnids
from .sources.imagenet_s import Lists, Plan, Variant, list_names, masks, plan, plan_1k, read_lists, shared
from .stages.shards import Shards
from .tables import aligned

OTHERS = ("50", "300", "919")
PUBLISHED = "published.json"  # beside the lists of a look-alike: its own counts
LISTS_DEPTH = 3  # folders below the data folder, in which the lists are looked for
SHOWN = 10  # names of what is missing that a message has


class ImageNetS(Spec):
    """What to make of ImageNet-1k. Its fields are the YAML keys; paths are below the data folder unless absolute."""

    kind: Literal["imagenet_s"]
    name: str = Field("", pattern=r"^[a-z0-9][a-z0-9_]{0,39}$", description="begins the names of the shards")
    title: str = ""
    about: str = Field("", description="first paragraph of the card")
    collection: Collection
    variant: Variant
    seed: int = 0
    imagenet: str = Field("", description="copy of ImageNet-1k")
    annotations: str = Field("", description="zips of masks, or the folder that they were unpacked to")
    lists: str = Field("", description="clone of the official toolbox")
    shards: Shards = Shards(split="")

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, plain: Any) -> Any:
        if not isinstance(plain, dict):
            return plain
        variant = str(plain.get("variant", ""))
        name = plain.get("name") or ("imagenet_1k" if variant == "1k" else f"imagenet_s_{variant}")
        shards = plain.get("shards")
        if isinstance(shards, dict):
            shards = {"split": "", **shards}
        return {**plain, "variant": variant, "name": name, **({"shards": shards} if shards is not None else {})}

    @model_validator(mode="after")
    def _has_its_own_splits(self) -> ImageNetS:
        if self.shards.split or self.shards.captions:
            raise ValueError("shards: split and captions: splits are those of ImageNet-S, and there are no captions")
        return self


@dataclass
class Sources:
    """What a build reads. problems: what is not as published, a line each; missing: names, by split."""

    variant: Variant
    roots: dict[str, Root]
    plan: Plan
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # lists: lines, sha256, whether they are official
    expected: dict[str, int] = field(default_factory=dict)  # published count of each split
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    leaks: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # by other variant
    found: dict[str, int] = field(init=False)  # samples of each split

    def __post_init__(self) -> None:
        self.found = {split: table.num_rows for split, table in self.plan.tables.items()}

    def check(self, allow_missing: bool) -> None:
        """SourceError, with the names, if something is missing and that is not allowed."""
        if not any(self.found.values()):
            raise SourceError("\n".join([f"{self.roots['imagenet']}: no image of ImageNet-1k there", *self.problems]))
        if self.problems and not allow_missing:
            advice = "Fetch what is missing, correct --data, or go on without it with --allow-missing"
            raise SourceError("\n".join(["not as published:", *(f"  {line}" for line in self.problems), advice]))


def find(recipe: ImageNetS, data: Root, *not_in: Root) -> Sources:
    """All that a recipe needs, found and compared with what is published. not_in: folders of our own."""
    data = data.absolute()  # workers may be in other folders
    root = root_of(recipe.imagenet, data) if recipe.imagenet else _imagenet_in(data)
    if not root.exists():
        raise SourceError(f"{root}: no such folder. Give the copy of ImageNet-1k with --set imagenet=DIR")
    ours = {folder.resolve() for folder in not_in}
    found = images(root, lambda path: path.resolve() in ours)
    if recipe.variant == "1k":
        wnids = val_wnids(root, found.devkit) if found.devkit else {}
        sources = Sources(recipe.variant, {"imagenet": root}, plan_1k(found.table(), wnids))
        sources.notes += _unlabelled(sources.plan)
        lists_at = _lists_in(recipe, data)
    else:
        lists_at = _lists_in(recipe, data)
        if lists_at is None:
            raise SourceError(
                f"{root_of(recipe.lists, data)}: the lists of ImageNet-S are not there: give a clone of "
                f"{recipe.collection.homepage} with --set lists=DIR"
            )
        lists = read_lists(lists_at, recipe.variant)
        at = root_of(recipe.annotations, data)
        known = _masks(at, recipe.variant)
        roots = {"imagenet": root, "masks": at.parent if at.is_file() else at}
        sources = Sources(recipe.variant, roots, plan(found.table(), lists, known, recipe.variant), lists.files)
        _leaks(sources, lists, lists_at)
    _compare(sources, recipe, lists_at)
    return sources


def _imagenet_in(data: Root) -> Root:
    return data / "imagenet" if (data / "imagenet").is_dir() else data


def _lists_in(recipe: ImageNetS, data: Root) -> Root | None:
    """The folder of the lists: the one that is named, or one up to three levels below it; folders of images aside."""
    waiting, name = [(root_of(recipe.lists, data), 0)], next(iter(list_names("50").values())).partition("/")[0]
    while waiting:
        at, depth = waiting.pop(0)
        if (at / name).is_dir():
            return at
        if isinstance(at, Path) and at.is_dir() and depth < LISTS_DEPTH:
            below = sorted(path for path in at.iterdir() if not WNID.fullmatch(path.name) and path.is_dir())
            waiting += [(path, depth + 1) for path in below]
        elif isinstance(at, Remote) and not depth:
            waiting.append((at / "data", LISTS_DEPTH))
    return None


def _masks(at: Root, variant: str) -> dict[tuple[str, str, str], File]:
    if not at.exists():
        raise SourceError(f"{at}: not there. Give the zips of masks with --set annotations=DIR")
    return masks(at, variant)


def _unlabelled(made: Plan) -> list[str]:
    unknown = sum(number < 0 for number in made.tables["val"].column("class_id").to_pylist())
    if not unknown:
        return []
    todo = "Put ILSVRC2012_devkit_t12.tar.gz beside the images"
    return [f"val: the class of {unknown:,} images is not known: cls is -1, wnid is empty. {todo}"]


def _leaks(sources: Sources, lists: Lists, root: Root) -> None:
    """Images that other variants use the other way."""
    for other in OTHERS:
        if other != sources.variant:
            sources.leaks[other] = shared(lists, read_lists(root, other))


def _compare(sources: Sources, recipe: ImageNetS, lists_at: Root | None) -> None:
    """Compare lists and counts with those that are published, or with those that a look-alike comes with."""
    versions, official = recipe.collection.versions, recipe.collection.lists
    own = lists_at / PUBLISHED if lists_at else None
    if own is not None and own.exists():
        versions, official = _own(own)
        sources.notes.append(f"lists and counts are those of {PUBLISHED} beside them, not those of ImageNet-S")
    for name, said in sources.files.items():
        said["as_published"] = name in official and said == official[name].model_dump()
        if not said["as_published"]:
            sources.problems.append(f"{name}: is not the list as published (lines or sha256 differ)")
    expected = dict(versions.get(sources.variant, {}))
    classes = expected.pop("classes", None)
    if classes is not None and sources.variant == "1k":
        there = len(sources.plan.tables["train"].column("imagenet_wnid").unique())
        if there != classes:
            sources.problems.append(f"train: {there:,} classes, {classes:,} published: class ids would not be theirs")
    sources.expected = expected
    for split, count in expected.items():
        has, lost = sources.found.get(split, 0), sources.plan.missing.get(split, [])
        if has != count or lost:
            some = ", ".join(lost[:SHOWN]) + (f" and {len(lost) - SHOWN:,} more" if len(lost) > SHOWN else "")
            sources.problems.append(f"{split}: {has:,} samples, {count:,} published" + (f": {some}" if some else ""))


def _own(path: Root) -> tuple[dict[str, dict[str, int]], dict[str, ListFile]]:
    try:
        plain = json.loads(path.read_bytes())
        lists = {name: ListFile.model_validate(said) for name, said in plain["lists"].items()}
        return {v: {s: int(n) for s, n in by.items()} for v, by in plain["versions"].items()}, lists
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as exc:
        raise SourceError(f"{path}: expected versions and lists, as in manifests/imagenet_s.yaml ({exc})") from None


def check(recipe: ImageNetS, data: Root, allow_missing: bool) -> Iterator[str]:
    """The plan of a build, line by line; SourceError where the build would stop."""
    sources = find(recipe, data)
    yield f"{recipe.name}: {recipe.title}"
    yield from (f"  {name}: {root}" for name, root in sources.roots.items())
    rows: list[tuple[str, ...]] = [("split", "samples", "published", "not there")]
    for split, count in sources.found.items():
        published = f"{sources.expected[split]:,}" if split in sources.expected else "-"
        rows.append((split, f"{count:,}", published, f"{len(sources.plan.missing.get(split, [])):,}"))
    yield from ("", *aligned(rows), "")
    for other, leak in sources.leaks.items():
        yield f"variant {other}: " + ", ".join(f"{len(names)} {how.replace('_', ' ')}" for how, names in leak.items())
    yield from sources.notes
    sources.check(allow_missing)


def neighbours(out: Root, variant: str) -> dict[str, str]:
    """Other variants of ImageNet-S that were built into folders beside OUT: {variant: folder}."""
    if variant not in OTHERS or isinstance(out, Remote) or not out.parent.is_dir():
        return {}
    found = {}
    for path in sorted(out.parent.glob("*/imagenet_s.json")):
        if path.parent != out:
            other = json.loads(path.read_text()).get("variant", "")
            if other in OTHERS and other != variant:
                found[other] = str(path.parent)
    return found
