"""Nested, seeded subsets: any smaller one is inside any larger one."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ..buckets import argsort
from ..sample import Spec, mix64
from ..sides import Split


class Subset(Spec):
    """The first `count` (or `share`) of the samples in order of mix64(id, seed), after the caps.

    per_source: at most so many of a source, the first in that order. cap: {flat: 0.05}: at every point of the order
    flat tiles are at most this share of what came so far, so every subset obeys it. Subsets that differ in
    per_source alone are nested where there is no cap: with fewer tiles of one source, flat ones of another may get in.
    split: sides by place, made of all samples before any of these is left out; they name the shards.
    """

    VERSION: ClassVar[int] = 1

    count: int | None = Field(None, gt=0)
    share: float | None = Field(None, gt=0, le=1)
    per_source: dict[str, int] = {}
    cap: dict[str, float] = Field({}, description="flat: largest share of flat tiles (open sea, snow, desert)")
    split: Split | None = Field(None, description="geographic: by block or by scene; instead of shards.split")
    flat_entropy_bits: float = Field(4.0, gt=0, le=8, description="tiles with less luma entropy count as flat")

    @model_validator(mode="after")
    def _makes_sense(self) -> Subset:
        if self.count is not None and self.share is not None:
            raise ValueError("give count or share, not both")
        for name, most in self.per_source.items():
            if most < 0:
                raise ValueError(f"per_source: {name}: {most}: at most how many of it, 0 or more")
        for name, share in self.cap.items():
            if name != "flat" or not 0 <= share < 1:
                raise ValueError(f"cap: {name}: {share}: flat is what can be capped, to a share of 0 to below 1")
        return self

    def reasons(self, ids: NDArray[np.int64], sources: NDArray[Any], entropy: NDArray[Any], seed: int) -> NDArray[Any]:
        """Why each sample is left out, "" if it stays: (N,) ids, source names, entropy in bits -> (N,) text."""
        order = argsort(mix64(ids, seed))
        out = np.zeros(len(ids), np.int8)  # number of the reason
        for source, most in self.per_source.items():
            out[order[sources[order] == source][most:]] = 1
        if "flat" in self.cap:
            order = order[out[order] == 0]
            too_many = over_cap(entropy[order] < self.flat_entropy_bits, self.cap["flat"])
            out[order[too_many]] = 2
        order = order[out[order] == 0]
        count = len(order) if self.share is None else round(len(order) * self.share)
        out[order[count if self.count is None else self.count :]] = 3
        return np.array(["", "subset_source", "subset_flat", "subset_count"], object)[out]


def over_cap(flat: NDArray[np.bool_], cap: float) -> NDArray[np.bool_]:
    """Which flat samples would lift the share of flat ones among the kept so far over `cap`: (N,) in order -> (N,).

    The n-th flat one may stay if a + 1 <= limit, where a flat ones stay before it and limit = floor(cap / (1 - cap)
    times the others before it), in whole numbers. As limits only rise, a after i flat ones is
    i + min(0, min over j <= i (limit_j - j)).
    """
    places = np.flatnonzero(flat)
    others = places - np.arange(len(places))
    share = Fraction(cap).limit_denominator(10**9)  # as it was written: 0.05 is 1/20
    limit = others * share.numerator // max(share.denominator - share.numerator, 1)
    n = np.arange(1, len(places) + 1)
    stay = n + np.minimum(0, np.minimum.accumulate(limit - n)) if len(places) else n
    stays = np.diff(stay, prepend=0) > 0
    over = np.zeros(len(flat), bool)
    over[places[~stays]] = True
    return over
