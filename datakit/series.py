"""Pictures of one place at several dates, and the products of one acquisition.

Two records are of one place if the names of their images say so, or if their footprints have half of the smaller in
common; whole images likewise. They are of a series if, besides, they were taken at least `min_days` apart: such two are
duplicates only if their pixels are equal.

`series: N` leaves N dates of a place, among the records that are no duplicates. These come in order of preference of
their images, those of one image in their own. A record that was taken less than `min_days` from a kept date of its
place belongs to that date, and stays. Any other one begins a date, and its own is a kept date from then on; unless N
kept dates of its place, `min_days` and more from one another, are there already: then it goes. Of one place are here
records of one name, and those whose footprints have half of the *larger* in common, so that a small picture does not
stand for a large one. A record without a date, or that belongs to no place, stays. Hence a record goes only where N
dates of its place stay, and of a place that a name tells N dates stay wherever N are there that are no duplicates.

What was a duplicate of one that so goes is looked at again, after all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from . import place
from .crowd import NO_TIME, Crowd
from .footprints import Floats, overlap_shares, overlapping
from .kernels import jit
from .looks import Ints
from .sample import Sample, Window
from .stages.dedup import Dedup, Stars

ONE_PLACE = 0.5  # share of a footprint that pictures of one place have in common
DAY_S = 86_400
ON_MAP = ("crs", "transform", "gcps", "window", "image_width", "image_height", "scale")
Bools = NDArray[np.bool_]


class Kept(NamedTuple):
    """What was found to duplicate what, and what is beyond its series."""

    scenes: Stars  # of images
    tiles: Stars  # of records
    by: Ints  # records that are compared as tiles, in the order in which stars are found
    best: Ints  # the same, best first
    late: Ints  # records that go because their series is full
    heads: Ints  # for each the first kept one of its place

    @property
    def stays(self) -> Bools:
        """(N,) records that stay."""
        out = np.zeros(len(self.tiles.kept), bool)
        out[self.by] = self.tiles.kept[self.by] == self.by
        return out


class Series:
    """Which records show one place at dates that are apart."""

    def __init__(self, spec: Dedup, crowd: Crowd) -> None:
        self.crowd = crowd
        self.apart_s = spec.min_days * DAY_S
        self.most = spec.series if isinstance(spec.series, int) else int(spec.series == "one")  # dates; 0: all
        self.spared = np.zeros(len(crowd.first), bool)  # images that looked like another of their series
        self.of_records = Footprints(crowd.footprints)
        self.of_images = Footprints(lambda images: whole_footprints(crowd, images))

    def records(self, one: Ints, other: Ints) -> Bools:
        """Whether records (M,) and (M,) are of one place at dates apart."""
        image = self.crowd.windows.image
        return self.pairs(image[one], image[other], one, other, self.of_records)

    def images(self, one: Ints, other: Ints) -> Bools:
        """Whether images (M,) and (M,) are."""
        return self.pairs(one, other, one, other, self.of_images)

    def pairs(self, image: Ints, its: Ints, one: Ints, other: Ints, where: Footprints) -> Bools:
        """Whether pairs are of a series: by dates and names of images (image, its), or by footprints (one, other)."""
        taken_s, named = self.crowd.taken_s, self.crowd.place
        dated = (taken_s[image] != NO_TIME) & (taken_s[its] != NO_TIME)
        apart = dated & (np.abs(taken_s[image] - taken_s[its]) >= self.apart_s)
        same = (named[image] >= 0) & (named[image] == named[its])
        unsure = np.flatnonzero(apart & ~same)
        asked, back = np.unique(np.concatenate([one[unsure], other[unsure]]), return_inverse=True)
        places, (i, j) = where(asked), back.reshape(2, -1)
        same[unsure] = overlap_shares(places[i], places[j]) >= ONE_PLACE
        yes: Bools = apart & same
        self.spared[its[yes]] = True
        return yes

    def limit(self, kept: Kept, rank: Ints, alive: Bools, find: Callable[[Ints], Stars]) -> Kept:
        """The same with no more dates of a place than asked.

        rank: (N,) of records, 0 = best; alive: those that take part; find: stars of records given in order.
        """
        image = self.crowd.windows.image
        while self.most:
            stays = kept.stays
            late, heads = self.beyond(kept.best[stays[kept.best]])
            if not len(late):
                break
            gone = np.concatenate([kept.late, late])
            stays[late] = False
            lonely = np.zeros(len(self.crowd.first), bool)  # images of which nothing stays because of their series
            lonely[image[gone]] = True
            lonely[image[stays]] = False
            back = kept.scenes.lost[lonely[kept.scenes.kept[kept.scenes.lost]]]
            again = np.isin(kept.tiles.kept, late) | (alive & np.isin(image, back))
            again[late] = False
            rows = np.flatnonzero(again)
            rows = rows[np.argsort(rank[rows])]
            by, best = (np.concatenate([order[stays[order]], rows]) for order in (kept.by, kept.best))
            tiles = kept.tiles.renewed(by, find(by))
            kept = Kept(kept.scenes.but(back), tiles, by, best, gone, np.concatenate([kept.heads, heads]))
        return kept

    def beyond(self, by: Ints) -> tuple[Ints, Ints]:
        """Which of the records, best first, go because their series is full; the first kept of the place of each."""
        image = self.crowd.windows.image
        by = by[self.crowd.taken_s[image[by]] != NO_TIME]
        where = self.crowd.footprints(by)
        placed = where.any(axis=1)
        spots, its = np.unique(where[placed], axis=0, return_inverse=True)  # pictures of one grid share theirs
        spot = np.full(len(by), -1)
        spot[placed] = its.reshape(-1)
        near = overlapping(spots, spots, ONE_PLACE, of_larger=True)
        begins = np.searchsorted(near[:, 0], np.arange(len(spots) + 1))
        named, taken_s = self.crowd.place[image[by]], self.crowd.taken_s[image[by]]
        heads = _full(taken_s, named, spot, begins, np.ascontiguousarray(near[:, 1]), self.most, self.apart_s)
        late = heads >= 0
        return by[late], by[heads[late]]


class Footprints:
    """Footprints of records, or images, each read once: rows (M,), ascending -> (M, 8), all zero where one has none."""

    def __init__(self, read: Callable[[Ints], Floats]) -> None:
        self.read = read
        self.rows, self.where = np.zeros(0, np.int64), np.zeros((0, 8))

    def __call__(self, rows: Ints) -> Floats:
        new = np.setdiff1d(rows, self.rows, assume_unique=True)
        if len(new):
            known = np.concatenate([self.rows, new])
            by = np.argsort(known)
            self.rows, self.where = known[by], np.concatenate([self.where, self.read(new)])[by]
        return self.where[np.searchsorted(self.rows, rows)]


def whole_footprints(crowd: Crowd, images: Ints) -> Floats:
    """Footprints of whole images, (M, 8); all zero where there is none."""
    first = crowd.first[images]
    table = crowd.rows.take(first).read([*ON_MAP])
    left, top = crowd.windows.window[first, :2].T
    sides = [-left, -top, *(table.column(name).to_numpy() for name in ("image_width", "image_height"))]
    boxes = np.stack(sides, axis=1) / table.column("scale").to_numpy()[:, None]  # a record's transform is of its own px
    affine = np.asarray(pc.fill_null(pc.equal(pc.list_value_length(table.column("transform")), 6), False))
    out = np.zeros((len(images), 8))
    some = table.filter(pa.array(affine))
    transforms = some.column("transform").combine_chunks().flatten().to_numpy().reshape(-1, 6)
    out[affine] = place.outlines(some.column("crs").to_numpy(), transforms, boxes[affine])
    fitted = np.flatnonzero(~affine & np.asarray(pc.not_equal(table.column("gcps"), "")))
    for n, row in zip(fitted.tolist(), table.select(["crs", "gcps"]).take(pa.array(fitted)).to_pylist(), strict=True):
        (corners,) = place.footprints(Sample(crs=row["crs"], gcps=row["gcps"]), [Window(*boxes[n].tolist())])
        out[n] = corners or 0.0
    return out


def twins(crowd: Crowd, by: Ints) -> dict[int, int]:
    """Images that are products of one acquisition with a preferred one, each with that. by: best first."""
    first: dict[int, int] = {}
    gone = {}
    for image in by[crowd.acquisition[by] >= 0].tolist():
        head = first.setdefault(int(crowd.acquisition[image]), image)
        if head != image:
            gone[image] = head
    return gone


@jit
def _full(taken_s, named, spot, begins, near, most, apart_s):  # type: ignore[no-untyped-def]
    """For each record, in order, the first of its place if that has `most` dates already; -1 where the record stays.

    named, spot: numbers of the place that its name tells and of its footprint, or -1; near[begins[s] : begins[s + 1]]:
    footprints of the place of s. Records that began a date are chained, the latest first, by name and by footprint.
    """
    heads = np.full(named.size, -1)
    of_name = np.full(named.max() + 2 if named.size else 1, -1)  # the last is for -1: there is none
    of_spot = np.full(begins.size, -1)
    before_name, before_spot = np.full(named.size, -1), np.full(named.size, -1)
    times = np.empty(16, np.int64)
    for n in range(named.size):
        count, first, known, place = 0, n, False, spot[n]
        ways = begins[place + 1] - begins[place] if place >= 0 else 0
        for way in range(-1, ways):
            m = of_name[named[n]] if way < 0 else of_spot[near[begins[place] + way]]
            while m >= 0 and not known:
                known = abs(taken_s[n] - taken_s[m]) < apart_s
                if count == times.size:
                    times = np.append(times, times)
                times[count] = taken_s[m]
                count, first = count + 1, min(first, m)
                m = before_name[m] if way < 0 else before_spot[m]
        if known:
            continue
        dates, last = 0, np.int64(0)
        for time in np.sort(times[:count]):
            if not dates or time - last >= apart_s:
                dates, last = dates + 1, time
        if dates >= most:
            heads[n] = first
            continue
        if named[n] >= 0:
            before_name[n], of_name[named[n]] = of_name[named[n]], n
        if place >= 0:
            before_spot[n], of_spot[place] = of_spot[place], n
    return heads
