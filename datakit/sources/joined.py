"""What several collections of the same images say of one, joined: boxes of all, else what the first of them says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..manifest import Collection, MaskSource
from ..rules import is_evaluation
from ..sample import Sample
from .formats import Labelled
from .labels import LabelReader
from .lists import Lists


class Reader(NamedTuple):
    """What one collection says of images."""

    source: str
    about: Collection
    labels: LabelReader
    lists: Lists
    names: Mapping[str, Sequence[str]]  # of its images by stem, where another source reads them


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
        name = there or ("" if stem_of(image.name) in its.names else image.name)  # not one of its own pictures
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
        )
    if boxes_of not in ([], [own.source]):
        whose["boxes_source"] = ", ".join(boxes_of)
    return Joined(said, whose, silent)


def elsewhere(image: Sample, its: Reader, split: str) -> tuple[str, Labelled]:
    """What another collection says of an image, and the name that it has there; Labelled() if it says nothing.

    split: what the folders of the image tell. Where none of its images of that stem is on disk, names that the globs of
    its layout allow are tried. Folders tell pictures of one stem apart; lists, which go by stems too, do not.
    """
    split = its.about.split_of(image.name) or split
    names = its.names.get(stem_of(image.name), ())
    tried = names or its.about.names_of(image.name)
    fits = [name for name in tried if its.about.split_of(name) in ("", split) or not split]
    found = ((name, its.labels(replace(image, name=name))) for name in fits)
    return next((each for each in found if any(each[1])), (fits[0] if fits and names else "", Labelled()))


def stem_of(name: str) -> str:
    """The name of a file without folders and suffix."""
    return name.rpartition("/")[2].rpartition(".")[0]
