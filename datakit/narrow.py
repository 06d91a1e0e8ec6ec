"""How levels of many bits and bands become an 8-bit picture: by a range, or by percentiles of the whole scene, exactly.

A percentile is that of `numpy.percentile` (linear, between order statistics). The order statistics are found by radix
selection: the scene goes by once for every 16 bits of its type, and what is held is a histogram or a few, whatever the
size of the scene. 8 and 16 bits take one pass, 32 bits two, 64 bits four.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from .measure import Pixels
from .sample import Spec

NARROW_ROWS = 64
DIGIT_BITS = 16  # of a level, decided by one pass over the scene
AT_ONCE = 1 << 20  # levels that are counted at once: numpy makes 64 bits of each
Levels = NDArray[Any]  # (n,) levels of one band
Pass = Callable[[], Iterable[tuple[Levels, ...]]]  # valid levels of the bands, some at a time, from the first again


class Limits(NamedTuple):
    """Levels that become 0 and 255, by band."""

    low: tuple[float, ...]
    high: tuple[float, ...]


class Narrow(Spec):
    """How 16-bit or many-band data becomes 8-bit red, green, blue: levels from..to of three bands, linearly.

    The levels are a `range`, or by `percentiles` those of each band over all valid pixels of the scene, so that all of
    its tiles share them. 8-bit data of many bands keeps its levels and gives those three bands; 8-bit red, green, blue
    stays as it is.
    """

    bands: tuple[str, str, str] = Field(description="names of the bands shown as red, green and blue")
    range: tuple[float, float] | None = Field(None, description="levels that become 0 and 255")
    percentiles: tuple[float, float] | None = Field(None, description="shares of the pixels in %, used instead")
    over: Literal["scene"] = Field("scene", description="what percentiles are of: all valid pixels of the image")

    @field_validator("range", "percentiles")
    @classmethod
    def _rises(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value and not value[0] < value[1]:
            raise ValueError(f"{list(value)}: the first level must be below the second")
        return value

    @field_validator("percentiles")
    @classmethod
    def _is_a_share(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value and not 0 <= value[0] < value[1] <= 100:
            raise ValueError(f"{list(value)}: percentiles are from 0 to 100")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Narrow:
        if (self.range is None) == (self.percentiles is None):
            raise ValueError("give either range or percentiles")
        return self

    def fits(self, bands: tuple[str, ...]) -> bool:
        return set(self.bands) <= set(bands)

    def limits(self, dtype: np.dtype[Any], count: int, scene: Pass) -> Limits:
        """The levels that become 0 and 255. scene: goes by once for every 16 bits of `dtype`, if percentiles are asked.

        count: bands of the scene, three, or one that is shown as gray.

        A band that is all one level, or has no valid pixel, gets limits one level apart.
        """
        if self.percentiles is None:
            low, high = self.range or (0.0, 1.0)
            return Limits((low,) * 3, (high,) * 3)
        bands = [Ranks(dtype, self.percentiles) for _ in range(count)]
        again = True
        while again:
            for some in scene():
                for band, levels in zip(bands, some, strict=True):
                    band.add(levels)
            again = True in [band.narrow_down() for band in bands]
        pairs = [band.values() for band in bands] * (3 // count)
        return Limits(tuple(low for low, _ in pairs), tuple(apart(low, high) for low, high in pairs))

    def spelled(self, limits: Limits) -> str:
        """JSON text of the limits that a sample was narrowed by."""
        return json.dumps({"bands": list(self.bands), "low": list(limits.low), "high": list(limits.high)})

    def __call__(self, levels: NDArray[Any], limits: Limits) -> Pixels:
        """(H, W, 3 or 1) of any type -> the same shape in uint8, rounded half up."""
        low, high = (np.array(one[: levels.shape[2]], np.float64) for one in limits)
        shown = np.empty(levels.shape, np.uint8)
        for y in range(0, len(levels), NARROW_ROWS):  # a double is 8 bytes: a few rows at a time
            scaled = (levels[y : y + NARROW_ROWS].astype(np.float64) - low) * (255.0 / (high - low)) + 0.5
            shown[y : y + NARROW_ROWS] = np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255)
        return shown


def apart(low: float, high: float) -> float:
    """The upper limit, above the lower one whatever was found."""
    return high if high > low else max(low + 1.0, math.nextafter(low, math.inf))


class Ranks:
    """Two percentiles among numbers that go by once for every 16 bits of their type: radix selection, exact.

    Numbers become unsigned keys of the same order. A pass counts the next 16 bits of the keys that begin with what is
    known of a wanted one.
    """

    def __init__(self, dtype: np.dtype[Any], percentiles: tuple[float, float]) -> None:
        self.dtype, self.percentiles = dtype, percentiles
        self.shift = max(dtype.itemsize * 8 - DIGIT_BITS, 0)  # of the digit that this pass counts
        self.counts = {0: self._none()}  # by what is known of a key
        self.wanted: list[tuple[int, int]] = []  # what is known of each wanted key, and its rank among those
        self.shares: list[float] = []  # of the way from one order statistic to the next, by percentile

    def _none(self) -> NDArray[np.int64]:
        return np.zeros(1 << min(self.dtype.itemsize * 8, DIGIT_BITS), np.int64)

    def add(self, levels: Levels) -> None:
        """Count some numbers of this pass; those that are not finite have no rank."""
        for at in range(0, len(levels), AT_ONCE):
            self._add(levels[at : at + AT_ONCE])

    def _add(self, levels: Levels) -> None:
        if self.dtype.kind == "u" and self.dtype.itemsize * 8 <= DIGIT_BITS:  # the commonest, and the fastest
            self.counts[0] += np.bincount(levels, minlength=len(self.counts[0]))
            return
        if self.dtype.kind == "f":
            levels = levels[np.isfinite(levels)]
        keys = ordered(levels)
        for known, counts in self.counts.items():
            mine = keys[(keys >> np.uint64(self.shift + DIGIT_BITS)) == known] if self.wanted else keys
            digits = (mine >> np.uint64(self.shift)) & np.uint64(0xFFFF)
            counts += np.bincount(digits.astype(np.int64), minlength=len(counts))

    def narrow_down(self) -> bool:
        """What a pass tells; whether another one is needed."""
        if not self.wanted:
            n = int(self.counts[0].sum())
            if not n:
                return False
            for percentile in self.percentiles:
                position = (n - 1) * (percentile / 100)
                rank = math.floor(position)
                self.shares.append(position - rank)
                self.wanted += [(0, rank), (0, min(rank + 1, n - 1))]
        found = []
        for known, rank in self.wanted:
            below = np.cumsum(self.counts[known])
            digit = int(np.searchsorted(below, rank, side="right"))
            found.append((known << DIGIT_BITS | digit, rank - int(below[digit - 1] if digit else 0)))
        self.wanted = found
        if not self.shift:
            return False
        self.shift -= DIGIT_BITS
        self.counts = {known: self._none() for known, _ in found}
        return True

    def values(self) -> tuple[float, float]:
        """The two percentiles; 0, 0 where no number went by."""
        if not self.wanted:
            return 0.0, 0.0
        levels = [level_of(key, self.dtype) for key, _ in self.wanted]
        a, b, c, d = levels
        return between(a, b, self.shares[0]), between(c, d, self.shares[1])


def between(one: float, other: float, share: float) -> float:
    """A point between two numbers, as numpy computes it for percentiles: from whichever is nearer."""
    return one + (other - one) * share if share < 0.5 else other - (other - one) * (1 - share)


def ordered(levels: Levels) -> NDArray[np.uint64]:
    """Numbers as unsigned keys in the same order; of floats those that are finite."""
    dtype = levels.dtype
    if dtype.kind == "u":
        return levels.astype(np.uint64)
    top = 1 << (dtype.itemsize * 8 - 1)  # the sign
    bits = np.ascontiguousarray(levels).view(f"u{dtype.itemsize}").astype(np.uint64)
    if dtype.kind == "i":
        return bits ^ np.uint64(top)
    return np.where(bits & np.uint64(top), bits ^ np.uint64(2 * top - 1), bits | np.uint64(top))


def level_of(key: int, dtype: np.dtype[Any]) -> float:
    """The number that a key stands for."""
    if dtype.kind == "u":
        return float(key)
    top = 1 << (dtype.itemsize * 8 - 1)
    if dtype.kind == "i":
        return float(key - top)
    bits = key ^ top if key & top else key ^ (2 * top - 1)
    return float(np.array(bits, f"u{dtype.itemsize}").view(dtype))
