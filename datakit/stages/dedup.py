"""Keep one of each group that looks the same: stars, not chains.

In a stated order of preference that ends in id, a record goes only if it is like a record that is *kept*: within the
radius, thumbnails agreeing. So what goes does not depend on the order of the input or on workers, and nothing goes
because of a chain of look-alikes between two pictures that are not alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from ..buckets import argsort, take
from ..looks import Ints, Likeness, Looks
from ..stars import keep_stars, stars

__all__ = ["Dedup", "Facts", "Stars", "keep_stars", "order", "overlap_share"]

Pairs = Callable[[Ints, Ints], NDArray[np.bool_]]
Prefer = Literal["source", "labelled", "larger", "sharper", "finer", "valid", "lossless"]


class Dedup(Likeness):
    """Near-duplicates: whole images first, then tiles."""

    VERSION: ClassVar[int] = 2

    action: Literal["drop", "report"] = Field("drop", description="report: count them and remove nothing")
    orientations: bool = Field(False, description="find flipped and rotated copies, too")
    overlap_share: float = Field(
        0.75,
        gt=0,
        le=1,
        description="windows of one image that look alike are duplicates if they share this much of the smaller",
    )
    series: Literal["keep", "one"] | PositiveInt = Field(
        "keep", description="of the dates at which pictures show one place: keep all, one, or at most so many"
    )
    min_days: int = Field(1, ge=1, description="pictures taken this far apart, in days of 24 h, are of two dates")
    signature: Literal["phash", "cnn"] = Field("phash", description="cnn: semantic duplicates among tiles, by cosine")
    cosine: float | None = Field(None, gt=0, le=1, description="least cosine of two CNN vectors")
    model: Literal["mobilenet_v3_small", "vit_b_16", "efficientnet_b4"] = "mobilenet_v3_small"

    @model_validator(mode="after")
    def _cnn_has_a_threshold(self) -> Dedup:
        if (self.signature == "cnn") != (self.cosine is not None):
            raise ValueError("signature: cnn needs cosine, the least that two duplicates have; phash takes none")
        if self.signature == "cnn" and self.orientations:
            raise ValueError("signature: cnn knows no orientations: leave them out")
        return self

    def find(
        self,
        looks: Looks,
        by: Ints,
        windows: Windows | None = None,
        of_series: Pairs = lambda one, other: one < 0,
        exact: bool = False,
    ) -> Stars:
        """Which records duplicate which. by: rows in order of preference; windows: where they lie in their images.

        Rows that `by` leaves out take no part. of_series: pairs that must have equal pixels; exact: all of them must.
        """

        def agree(kept: Ints, rows: Ints, places: NDArray[Any]) -> NDArray[np.bool_]:
            kept, rows = by[kept], by[rows]
            alike = looks.agree(kept, looks, rows, places, self.thumbnail_levels)
            both = np.flatnonzero(alike)
            differ = looks.digests[kept[both]] != looks.digests[rows[both]]
            both = both[differ]
            alike[both] = ~of_series(kept[both], rows[both])
            if windows is None:
                return alike
            same = windows.image[kept] == windows.image[rows]
            within = (places == 0) & (overlap_share(windows.window[kept], windows.window[rows]) >= self.overlap_share)
            return np.where(same, within & alike, alike)

        signatures = take(looks.signatures if self.orientations else looks.signatures[:, :1], by)
        flat = looks.flat(self.flat_entropy_bits)[by] | exact
        star, its_place = stars(signatures, self.radius_bits, agree, flat, take(looks.digests, by))
        kept, place = np.arange(len(looks)), np.zeros(len(looks), np.int8)
        kept[by], place[by] = by[star], its_place
        bits, lost = np.zeros(len(looks), np.int32), np.flatnonzero(kept != np.arange(len(looks)))
        bits[lost] = np.bitwise_count(looks.signatures[kept[lost], place[lost]] ^ looks.signatures[lost, 0])
        bits[by[flat]] = 0  # equal pixels
        return Stars(kept, place, bits)


class Windows(NamedTuple):
    """Where N records lie in the images that they are of."""

    image: Ints  # (N,) number of the image
    window: NDArray[np.int32]  # (N, 4) left, top, width, height in px of the image


class Stars(NamedTuple):
    """Which of N records each duplicates: itself if it is kept."""

    kept: Ints  # (N,)
    place: NDArray[np.int8]  # (N,) how the kept one is turned to look like it: see `looks.TURNS`
    bits: NDArray[np.int32]  # (N,) distance of their signatures
    cosine: NDArray[np.float32] | None = None  # (N,) of their CNN vectors, where these decided

    def but(self, rows: Ints) -> Stars:
        """The same, with these rows kept."""
        kept, place, bits = self.kept.copy(), self.place.copy(), self.bits.copy()
        kept[rows], place[rows], bits[rows] = rows, 0, 0
        return Stars(kept, place, bits)

    def renewed(self, rows: Ints, new: Stars) -> Stars:
        """The same, with these rows as `new` has them."""
        columns: list[Any] = [None if column is None else column.copy() for column in self]
        for column, its in zip(columns, new, strict=True):
            if column is not None and its is not None:
                column[rows] = its[rows]
        return Stars(*columns)

    @property
    def lost(self) -> Ints:
        return np.flatnonzero(self.kept != np.arange(len(self.kept)))


class Facts(NamedTuple):
    """What an order of preference looks at, of N records or images."""

    id: Ints
    source: Ints  # place in the recipe's list of sources
    labelled: NDArray[np.bool_]  # has a label or boxes
    px: Ints
    sharpness: NDArray[np.float64]
    gsd_m: NDArray[np.float64]  # inf where unknown
    valid_share: NDArray[np.float64]
    lossless: NDArray[np.bool_]


def order(facts: Facts, prefer: Sequence[Prefer]) -> Ints:
    """Rows in order of preference, best first; what is alike in all of it is ordered by id."""
    keys: dict[str, NDArray[Any]] = {
        "source": facts.source,
        "labelled": ~facts.labelled,
        "larger": -facts.px,
        "sharper": -facts.sharpness,
        "finer": facts.gsd_m,
        "valid": -facts.valid_share,
        "lossless": ~facts.lossless,
    }
    return lexsorted([*(keys[name] for name in prefer), facts.id])


def lexsorted(keys: Sequence[NDArray[Any]]) -> Ints:
    """Rows in order of the first key, then of the next, without NaN: one sort by as much of them as 64 bits hold."""
    packed, left = np.zeros(len(keys[0]), np.uint64), 64
    for key in keys:
        numbers, bits = _numbers(key)
        some = min(bits, left)
        packed |= numbers >> np.uint64(bits - some) << np.uint64(left - some)
        left -= some
        if not left:
            break
    by = argsort(packed)
    packed = packed[by]
    same = np.flatnonzero(packed[1:] == packed[:-1])
    tied = np.union1d(same, same + 1)
    rows = by[tied]
    by[tied] = rows[np.lexsort([rows, *(key[rows] for key in reversed(keys)), packed[tied]])]
    return by


def _numbers(key: NDArray[Any]) -> tuple[NDArray[np.uint64], int]:
    """Whole numbers from 0 that sort as a key does, and their bits, 1 to 64."""
    if key.dtype.kind == "f":
        numbers = (key.astype(np.float64) + 0.0).view(np.uint64)  # 0.0 for -0.0
        negative = numbers >> np.uint64(63) != 0
        return np.where(negative, ~numbers, numbers | np.uint64(1 << 63)), 64
    numbers = key.astype(np.uint64) - np.uint64(int(key.min(initial=0)) & (1 << 64) - 1)  # modulo 2 ** 64
    return numbers, max(int(numbers.max(initial=0)).bit_length(), 1)


def overlap_share(one: NDArray[np.int32], other: NDArray[np.int32]) -> NDArray[np.float64]:
    """Overlap of windows (M, 4), pair by pair, over the smaller of the two areas: (M,) 0..1."""
    a, b = one.astype(np.int64), other.astype(np.int64)
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    share: NDArray[np.float64] = shared / np.minimum(a[:, 2:].prod(axis=1), b[:, 2:].prod(axis=1))
    return share
