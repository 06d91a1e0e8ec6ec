"""What several collections of the same images say of one, joined: boxes of all, else what the first of them says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..manifest import Collection, MaskSource
from ..rules import is_evaluation
from ..sample import Sample
from .formats import Labelled
from .labels import LabelReader

# Name of a source, what it is, its labels, and names of its images by stem.
Reader = tuple[str, Collection, LabelReader, Mapping[str, Sequence[str]]]


def joined(image: Sample, readers: Sequence[Reader]) -> tuple[Labelled, dict[str, Any]]:
    """Labels of an image by its own collection and, after it, by others; and whose they are, as fields of `Sample`."""
    (name, about, read, _), *others = readers
    said = read(image)
    boxes_of = [name] * bool(said.boxes)
    whose: dict[str, Any] = {"licences": (about.licence,)}
    for other, its, read_its, its_names in others:
        there, more = elsewhere(image, its, read_its, its_names.get(stem_of(image.name), ()))
        if is_evaluation(its.split_of(there) or more.split):
            whose["split"] = its.split_of(there) or more.split  # held back there, so it is held back here
        if not any(more):
            continue
        whose["licences"] = tuple(dict.fromkeys([*whose["licences"], its.licence]))
        if more.label and not said.label:
            whose["label_source"] = other
        boxes_of += [other] * bool(more.boxes)
        mask = said.mask
        if more.mask and not mask:
            mask = MaskSource.from_json(more.mask).model_copy(update={"source": other}).to_json()
        said = Labelled(
            label=said.label or more.label,
            boxes=[*said.boxes, *more.boxes],
            gsd_m=more.gsd_m if said.gsd_m is None else said.gsd_m,
            acquired=said.acquired or more.acquired,
            captions=(*said.captions, *more.captions),
            mask=mask,
            split=said.split or more.split,
        )
    if boxes_of not in ([], [name]):
        whose["boxes_source"] = ", ".join(boxes_of)
    return said, whose


def elsewhere(image: Sample, about: Collection, read: LabelReader, names: Sequence[str]) -> tuple[str, Labelled]:
    """What another collection says of an image, and the name that it has there; Labelled() if it says nothing.

    names: of its images of that stem. Where none is on disk, names that the globs of its layout allow.
    """
    split = about.split_of(image.name) or image.split
    fits = [name for name in names or about.names_of(image.name) if about.split_of(name) in ("", split) or not split]
    found = ((name, read(replace(image, name=name))) for name in fits)
    return next((each for each in found if any(each[1])), (fits[0] if fits and names else "", Labelled()))


def stem_of(name: str) -> str:
    """The name of a file without folders and suffix."""
    return name.rpartition("/")[2].rpartition(".")[0]
