"""What several collections of the same images say of one, joined: boxes of all, else what the first of them says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from types import MappingProxyType
from typing import Any, NamedTuple

from ..manifest import Collection, MaskSource
from ..rules import is_evaluation
from ..sample import Sample
from .formats import Labelled
from .labels import LabelReader
from .lists import Lists

Named = tuple[str, str]  # the name of an image, and the split that its folders tell


class Reader(NamedTuple):
    """What one collection says of images."""

    source: str
    about: Collection
    labels: LabelReader
    lists: Lists
    names: SameNames  # of its images, where another source reads them


class SameNames(NamedTuple):
    """The images of a collection beside those of another one that has the same and reads them."""

    stems: frozenset[str] = frozenset()  # of all of its images
    there: Mapping[str, str] = MappingProxyType({})  # its name of an image by the name that the other one has for it


class Joined(NamedTuple):
    """What several collections say of an image."""

    said: Labelled
    whose: dict[str, Any]  # whose that is, and a split that holds the image back, as fields of `Sample`
    silent: list[str]  # sources with labels that say nothing of it


def joined(image: Sample, readers: Sequence[Reader]) -> Joined:
    """Labels of an image by its own collection and, after it, by others."""
    own, *others = readers
    said = own.labels(image)
    silent = [] if any(said) or not own.about.layout.labels else [own.source]
    boxes_of = [own.source] * bool(said.boxes)
    whose: dict[str, Any] = {"licences": (own.about.licence,)}
    for its in others:
        there, more = elsewhere(image, its, own.about.split_of(image.name))
        name = there or ("" if stem_of(image.name) in its.names.stems else image.name)  # not one of its own pictures
        split = (there and its.about.split_of(there)) or its.lists(name) or more.split
        if is_evaluation(split):
            whose["split"] = split  # held back there, so it is held back here
        if not any(more):
            silent += [its.source] * bool(its.about.layout.labels)
            continue
        whose["licences"] = tuple(dict.fromkeys([*whose["licences"], its.about.licence]))
        if more.label and not said.label:
            whose["label_source"] = its.source
        boxes_of += [its.source] * bool(more.boxes)
        mask = said.mask
        if more.mask and not mask:
            mask = MaskSource.from_json(more.mask).model_copy(update={"source": its.source}).to_json()
        said = Labelled(
            label=said.label or more.label,
            boxes=[*said.boxes, *more.boxes],
            gsd_m=more.gsd_m if said.gsd_m is None else said.gsd_m,
            acquired=said.acquired or more.acquired,
            captions=(*said.captions, *more.captions),
            mask=mask,
            split=said.split or more.split,
            tags=said.tags or more.tags,
            image_id=said.image_id or more.image_id,
        )
    if boxes_of not in ([], [own.source]):
        whose["boxes_source"] = ", ".join(boxes_of)
    return Joined(said, whose, silent)


def elsewhere(image: Sample, its: Reader, split: str) -> tuple[str, Labelled]:
    """What another collection says of an image, and the name that it has there; Labelled() if it says nothing.

    split: what the folders of the image tell. Where none of its images of that stem is on disk, names that the globs of
    its layout allow are tried; where some are, but none is known to be this one, only the very name.
    """
    there = its.names.there.get(image.name, "")
    if there:
        return there, its.labels(replace(image, name=there))
    split = its.about.split_of(image.name) or split
    tried = [image.name] if stem_of(image.name) in its.names.stems else its.about.names_of(image.name)
    fits = [name for name in tried if its.about.split_of(name) in ("", split) or not split]
    found = ((name, its.labels(replace(image, name=name))) for name in fits)
    return next((each for each in found if any(each[1])), ("", Labelled()))


def same_names(ours: Iterable[Named], theirs: Mapping[str, Sequence[Named]]) -> dict[str, str]:
    """Which of our images are which of theirs: their name by ours. theirs: by stem.

    Images of one name are the same. Else they have the same stem, and folders that tell no different splits; where a
    stem has several such images, here or there, the two whose paths end alike for longest, if that leaves no doubt.
    """
    by_stem: dict[str, list[Named]] = {}
    for each in ours:
        if stem_of(each[0]) in theirs:
            by_stem.setdefault(stem_of(each[0]), []).append(each)
    found: dict[str, str] = {}
    for stem, here in by_stem.items():
        best_there = {name: _best((name, split), theirs[stem]) for name, split in here}
        best_here = {name: _best((name, split), here) for name, split in theirs[stem]}
        found |= {name: there for name, there in best_there.items() if there and best_here[there] == name}
    return found


def _best(image: Named, others: Sequence[Named]) -> str:
    """The name of the one image that is most like another; "" if several are, or none is."""
    name, split = image
    fit = [other for other, its in others if other == name or may_be_one(split, its)]
    ranked = sorted(fit, key=lambda other: _alike(name, other), reverse=True)
    doubt = len(ranked) > 1 and _alike(name, ranked[0]) == _alike(name, ranked[1])
    return "" if doubt or not ranked else ranked[0]


def may_be_one(split: str, its: str) -> bool:
    """Whether two images of one stem may be the same by the splits that their folders tell; unknown ones may be any."""
    return not split or not its or its == split


def _alike(name: str, other: str) -> tuple[bool, int]:
    """Whether two names are equal, and how many folders they share from the end on."""
    pairs = zip(reversed(name.split("/")[:-1]), reversed(other.split("/")[:-1]), strict=False)
    return name == other, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def stem_of(name: str) -> str:
    """The name of a file without folders and suffix."""
    return name.rpartition("/")[2].rpartition(".")[0]
