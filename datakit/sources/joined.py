"""What several collections of the same images say of one, joined: boxes of all, else what the first of them says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..manifest import Collection, MaskSource
from ..sample import Sample
from .formats import Labelled
from .labels import LabelReader

Reader = tuple[str, Collection, LabelReader]  # name of a source, what it is, and its labels


def joined(image: Sample, readers: Sequence[Reader]) -> tuple[Labelled, dict[str, Any]]:
    """Labels of an image by its own collection and, after it, by others; and whose they are, as fields of `Sample`."""
    (name, about, read), *others = readers
    said = read(image)
    boxes_of = [name] * bool(said.boxes)
    whose: dict[str, Any] = {"licences": (about.licence,)}
    for other, its, read_its in others:
        more = elsewhere(image, its, read_its)
        if more == Labelled():
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


def elsewhere(image: Sample, about: Collection, read: LabelReader) -> Labelled:
    """What another collection says of an image: under the first of the names it may have there that is known."""
    split = about.split_of(image.name) or image.split
    names = about.names_of(image.name)
    likely = sorted(names, key=lambda name: about.split_of(name) != split)  # train/P1.png and val/P1.png may both fit
    found = (read(replace(image, name=name)) for name in likely)
    return next((labelled for labelled in found if labelled != Labelled()), Labelled())
