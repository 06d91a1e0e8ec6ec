"""Pictures of one place at several dates, and the products of one acquisition, among all images."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from . import place
from .crowd import NO_DAY, Crowd
from .footprints import overlapping
from .looks import Ints
from .sample import Sample, Window
from .stages.dedup import Dedup

ONE_PLACE = 0.5  # share of the smaller footprint that pictures of one place have in common
FIELDS = ("crs", "transform", "gcps", "window", "image_width", "image_height", "scale")


class Series:
    """Which images show one place at dates that are apart."""

    def __init__(self, spec: Dedup, crowd: Crowd) -> None:
        self.spec, self.crowd = spec, crowd
        self.known: dict[int, place.Footprint] = {}  # of images that were asked for
        self.spared: set[int] = set()  # images that looked like another of their series, and were kept

    def pairs(self, one: Ints, other: Ints) -> NDArray[np.bool_]:
        """Whether images (M,) and (M,) are of one place at dates apart."""
        crowd = self.crowd
        day, known = crowd.day, crowd.place
        apart = (day[one] != NO_DAY) & (day[other] != NO_DAY) & (np.abs(day[one] - day[other]) >= self.spec.min_days)
        same = (known[one] >= 0) & (known[one] == known[other])
        unsure = np.flatnonzero(apart & ~same & ((known[one] < 0) | (known[other] < 0)))
        images, back = np.unique(np.concatenate([one[unsure], other[unsure]]), return_inverse=True)
        places = self.footprints(images)
        for n, i, j in zip(unsure.tolist(), *back.reshape(2, -1).tolist(), strict=True):
            if places[i].any() and places[j].any():
                same[n] = len(overlapping(places[i : i + 1], places[j : j + 1], ONE_PLACE)) > 0
        self.spared |= set(other[apart & same].tolist())
        out: NDArray[np.bool_] = apart & same
        return out

    def footprints(self, images: Ints) -> NDArray[np.float64]:
        """Footprints of whole images, (M, 8); all zero where there is none."""
        out = np.zeros((len(images), 8))
        unknown = [n for n, image in enumerate(images.tolist()) if image not in self.known]
        for n, row in zip(unknown, self.crowd.texts(self.crowd.first[images[unknown]], *FIELDS), strict=True):
            left, top, *_ = row["window"] or (0, 0, 0, 0)
            scale = row["scale"]  # the record's transform is of its own px
            sides = (-left, -top, row["image_width"], row["image_height"])
            whole = Window(*(side / scale for side in sides))  # parts of a px will do here
            transform = tuple(row["transform"]) if row["transform"] else None
            sample = Sample(crs=row["crs"], transform=transform, gcps=row["gcps"])
            self.known[int(images[n])] = place.footprints(sample, [whole])[0]
        for n, image in enumerate(images.tolist()):
            out[n] = self.known[image] or 0.0
        return out

    def beyond(self, by: Ints) -> dict[int, int]:
        """Images beyond the number of a series that are kept, each with the first kept of its place. by: best first."""
        most = {"keep": len(by), "one": 1}.get(str(self.spec.series), self.spec.series)
        if self.spec.series == "keep":
            return {}
        heads = self.places(by[self.crowd.day[by] != NO_DAY])
        kept: dict[int, list[int]] = defaultdict(list)
        gone = {}
        for image in by.tolist():
            head = heads.get(image)
            if head is None:
                continue
            if len(kept[head]) < int(most):
                kept[head].append(image)
            else:
                gone[image] = kept[head][0]
        return gone

    def places(self, by: Ints) -> dict[int, int]:
        """The first image of the place of each image, best first: by what names tell, else by footprints."""
        first: dict[int, int] = {}
        heads: dict[int, int] = {}
        for image in by[self.crowd.place[by] >= 0].tolist():
            heads[image] = first.setdefault(int(self.crowd.place[image]), image)
        others = by[self.crowd.place[by] < 0]
        where = self.footprints(others)
        others, where = others[where.any(axis=1)], where[where.any(axis=1)]
        near: dict[int, list[int]] = defaultdict(list)
        for i, j in overlapping(where, where, ONE_PLACE).tolist():
            if i < j:
                near[j].append(i)
        for j, image in enumerate(others.tolist()):
            before = [i for i in near[j] if heads[int(others[i])] == others[i]]  # stars: around images that are heads
            heads[image] = int(others[before[0]]) if before else image
        return heads


def twins(crowd: Crowd, by: Ints) -> dict[int, int]:
    """Images that are products of one acquisition with a preferred one, each with that. by: best first."""
    first: dict[int, int] = {}
    gone = {}
    for image in by[crowd.acquisition[by] >= 0].tolist():
        head = first.setdefault(int(crowd.acquisition[image]), image)
        if head != image:
            gone[image] = head
    return gone
