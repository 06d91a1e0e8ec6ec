"""Rules over records: which must not be trained on. To add one: write its class and name it in `Rule`.

A rule answers for a whole table at once: `matches(columns) -> (N,) bool`. Rules over header facts run before `cut`,
rules over measured values (`MEASURED`) after it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from .columns import Columns
from .errors import RecipeError
from .licences import Asked
from .sample import Spec

Bools = NDArray[np.bool_]


def number(found: re.Match[str] | None) -> int | None:
    """The number in the first group of a match; None where there is no match, or the group is no number."""
    try:
        return int(found[1]) if found and found[1] else None
    except ValueError:
        return None


class _Rule(Spec):
    MEASURED: ClassVar[bool] = False
    max_share: float | None = Field(None, gt=0, le=1, description="drops of more than this share stop the build")
    name: str = Field("", pattern=r"^[a-z0-9_]*$", description="the reason of its drops, if not the rule")

    @property
    def reason(self) -> str:
        return self.name or str(getattr(self, "rule"))  # noqa: B009 -- every rule has it, with a literal of its own

    def matches(self, c: Columns) -> Bools:
        raise NotImplementedError


class _MeasuredRule(_Rule):
    MEASURED: ClassVar[bool] = True


class Modality(_Rule):
    """Images of another modality than these, by their manifest."""

    rule: Literal["modality"] = "modality"
    allow: tuple[str, ...]

    def matches(self, c: Columns) -> Bools:
        return ~np.isin(c["modality"].astype(str), self.allow)


class Dtype(_Rule):
    """Images whose levels are of another type than these."""

    rule: Literal["dtype"] = "dtype"
    allow: tuple[str, ...]

    def matches(self, c: Columns) -> Bools:
        return ~np.isin(c["dtype"].astype(str), self.allow)


class Bands(_Rule):
    """Images that lack one of these bands, by name, or (`exact`) have others besides.

    A composite of infrared, red and green has three bands and is no picture. Alpha is no band.
    """

    rule: Literal["bands"] = "bands"
    allow: tuple[str, ...]
    exact: bool = True

    def matches(self, c: Columns) -> Bools:
        wanted = set(self.allow)
        fits = [set(b) == wanted if self.exact else set(b) >= wanted for b in c.texts("bands")]
        return ~np.array(fits, bool)


class Frames(_Rule):
    """Animated images, and files of several pages."""

    rule: Literal["frames"] = "frames"

    def matches(self, c: Columns) -> Bools:
        return np.asarray(c["frames"] > 1)


class Format(_Rule):
    """Images whose bytes are of a format in `deny`, or not in `allow`, whatever their names say: JPEG, PNG, GTiff, …"""

    rule: Literal["format"] = "format"
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def matches(self, c: Columns) -> Bools:
        formats = c["format"].astype(str)
        not_allowed = ~np.isin(formats, self.allow) if self.allow else np.zeros(len(c), bool)
        return not_allowed | np.isin(formats, self.deny)


class SmallerThan(_Rule):
    """Images whose shorter side is under `side_px`."""

    rule: Literal["smaller_than"] = "smaller_than"
    side_px: int = Field(gt=0)

    def matches(self, c: Columns) -> Bools:
        return np.asarray(np.minimum(c["width"], c["height"]) < self.side_px)


class LongerThan(_Rule):
    """Images more than `ratio` times as long as they are wide, or the other way round."""

    rule: Literal["longer_than"] = "longer_than"
    ratio: float = Field(gt=1)

    def matches(self, c: Columns) -> Bools:
        return np.asarray(np.maximum(c["width"], c["height"]) > self.ratio * np.minimum(c["width"], c["height"]))


class LargerThan(_Rule):
    """Images of more than `megapixels`: headers that promise the moon."""

    rule: Literal["larger_than"] = "larger_than"
    megapixels: float = Field(gt=0)

    def matches(self, c: Columns) -> Bools:
        return np.asarray(c["width"].astype(np.int64) * c["height"] > self.megapixels * 1e6)


class SplitRule(_Rule):
    """Images of these splits: "test" of every collection, or "dota:test" of one source."""

    rule: Literal["split"] = "split"
    deny: tuple[str, ...]

    def matches(self, c: Columns) -> Bools:
        denied = set(self.deny)
        pairs = zip(c.texts("source"), c.texts("split"), strict=True)
        return np.array([split in denied or f"{source}:{split}" in denied for source, split in pairs], bool)


class PathPattern(_Rule):
    """Images whose name within the collection matches a regular expression, anywhere in it."""

    rule: Literal["path"] = "path"
    pattern: re.Pattern[str]

    def matches(self, c: Columns) -> Bools:
        return np.array([self.pattern.search(name) is not None for name in c.texts("name")], bool)


class EveryNth(_Rule):
    """All but each `n`th frame of a video: `frame` is a regular expression whose one group is the frame number."""

    rule: Literal["every_nth"] = "every_nth"
    n: int = Field(gt=1)
    frame: re.Pattern[str] = re.compile(r"(\d+)\.[^.]+$")
    source: str = Field("", description="only in this source")

    @field_validator("frame")
    @classmethod
    def _has_one_group(cls, frame: re.Pattern[str]) -> re.Pattern[str]:
        if frame.groups == 1:
            return frame
        raise ValueError(f"{frame.pattern} must have one group, around the frame number: (\\d+)")

    def matches(self, c: Columns) -> Bools:
        here = [self.source in ("", source) for source in c.texts("source")]
        found = map(self.frame.search, c.texts("name"))
        numbers = [number(one) if h else None for h, one in zip(here, found, strict=True)]
        return np.array([n is not None and n % self.n != 0 for n in numbers], bool)


class Licence(_Rule):
    """Images under no licence of `allow`, or under one of `deny`; "unstated" fits no pattern: see `licences.Asked`."""

    rule: Literal["licence"] = "licence"
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def matches(self, c: Columns) -> Bools:
        allow, deny = Asked(self.allow), Asked(self.deny)
        return np.array([(allow and not allow.any_of(n)) or deny.any_of(n) for n in c.texts("licences")], bool)


class GsdAbove(_Rule):
    """Images coarser than this: of a ground sampling distance above so many metres a pixel, for certain."""

    rule: Literal["gsd_above"] = "gsd_above"
    gsd_m: float = Field(gt=0)

    def matches(self, c: Columns) -> Bools:
        return _gsd(c)[0] > self.gsd_m


class GsdBelow(_Rule):
    """Images finer than this, for certain."""

    rule: Literal["gsd_below"] = "gsd_below"
    gsd_m: float = Field(gt=0)

    def matches(self, c: Columns) -> Bools:
        return _gsd(c)[1] < self.gsd_m


class GsdUnknown(_Rule):
    """Images of which nothing tells the ground sampling distance; a range of the manifest does not tell it."""

    rule: Literal["gsd_unknown"] = "gsd_unknown"

    def matches(self, c: Columns) -> Bools:
        return np.isnan(c["gsd_m"].astype(np.float64))


def _gsd(c: Columns) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The finest and the coarsest that each image may be, metres; NaN where that is not known."""
    known = c["gsd_m"].astype(np.float64)
    ranges = [tuple(r) if r else (np.nan, np.nan) for r in c.texts("gsd_range_m")]
    low, high = np.array(ranges, np.float64).reshape(-1, 2).T
    return np.where(np.isnan(known), low, known), np.where(np.isnan(known), high, known)


class Evaluation(_Rule):
    """Images kept for evaluation: of collections of that role, and validation and test splits of all others.

    Every recipe has this rule, whether it is written or not; `include_evaluation` of the recipe names exceptions.
    """

    rule: Literal["evaluation"] = "evaluation"
    collections: tuple[str, ...] = Field((), description="sources that are evaluation sets as a whole")
    include: tuple[str, ...] = Field((), description="NAME or NAME:split that are taken all the same")

    def matches(self, c: Columns) -> Bools:
        held, include = set(self.collections), set(self.include)
        out = []
        for source, split in zip(c.texts("source"), c.texts("split"), strict=True):
            name = source.partition("/")[0]
            out.append((name in held or is_evaluation(split)) and not {name, f"{name}:{split}"} & include)
        return np.array(out, bool)


def is_evaluation(split: str) -> bool:
    """Whether a split is for evaluation, by a word of its name: val, test-dev, testA, public_test, hold, …

    `trainval` is for training: its publisher joined the two.
    """
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", split).lower())
    return any(
        re.fullmatch(r"(mini)?(val(id(ation|ate)?)?|test(ing)?|dev|eval(uation)?)(set)?|hold(out)?|held|benchmark", w)
        for w in words
    )


class ValidShare(_MeasuredRule):
    """Tiles of which less than `min_share` is valid: nodata, transparent, or collar."""

    rule: Literal["valid_share"] = "valid_share"
    min_share: float = Field(ge=0, le=1)

    def matches(self, c: Columns) -> Bools:
        return np.asarray(c["valid_share"] < self.min_share)


class Flat(_MeasuredRule):
    """Tiles whose luma has less entropy than this."""

    rule: Literal["flat"] = "flat"
    entropy_bits: float = Field(gt=0, le=8)

    def matches(self, c: Columns) -> Bools:
        return np.asarray(c["entropy_bits"] < self.entropy_bits)


class Blurred(_MeasuredRule):
    """Tiles whose luma's Laplacian varies less than this. Flat tiles too: give `flat` first to tell them apart."""

    rule: Literal["blurred"] = "blurred"
    sharpness: float = Field(gt=0)

    def matches(self, c: Columns) -> Bools:
        return np.asarray(c["sharpness"] < self.sharpness)


class Dark(_MeasuredRule):
    """Tiles whose mean luma is below this, 0..255."""

    rule: Literal["dark"] = "dark"
    luma_mean: float = Field(gt=0, le=255)

    def matches(self, c: Columns) -> Bools:
        return np.asarray(c["luma_mean"] < self.luma_mean)


class Bright(_MeasuredRule):
    """Tiles whose mean luma is above this, 0..255."""

    rule: Literal["bright"] = "bright"
    luma_mean: float = Field(ge=0, lt=255)

    def matches(self, c: Columns) -> Bools:
        return np.asarray(c["luma_mean"] > self.luma_mean)


class Gray(_MeasuredRule):
    """Tiles with next to no colour: the mean difference of the strongest and weakest band is below this, 0..1."""

    rule: Literal["gray"] = "gray"
    saturation: float = Field(gt=0, le=1)

    def matches(self, c: Columns) -> Bools:
        return np.asarray(c["saturation"] < self.saturation)


class PairShift(_MeasuredRule):
    """Camera RAW whose JPEG is shifted against it by more than this, at any of 5 x 5 places."""

    rule: Literal["pair_shift"] = "pair_shift"
    max_px: float = Field(ge=0)

    def matches(self, c: Columns) -> Bools:
        return np.asarray(c["pair_shift_px"] > self.max_px)


class Column(_MeasuredRule):
    """Tiles by a score of one's own: a Parquet file with `key` and a number (cloud, watermark, aesthetics, …).

    A key that the file does not hold is kept, unless `missing: drop`.
    """

    rule: Literal["column"] = "column"
    file: Path
    column: str
    below: float | None = None
    above: float | None = None
    missing: Literal["keep", "drop"] = "keep"

    @model_validator(mode="after")
    def _drops_something(self) -> Column:
        if self.below is None and self.above is None and self.missing == "keep":
            raise ValueError("give below, above, or missing: drop")
        return self

    def matches(self, c: Columns) -> Bools:
        try:
            keys, scores = read_scores(self.file, self.column, self.file.stat().st_mtime_ns)
        except (OSError, pa.ArrowException, KeyError) as exc:
            what = f"{self.file} must be a Parquet file with `key` and numbers in `{self.column}`"
            raise RecipeError(f"exclude: column: {what}: {exc}") from exc
        score = scores.take(pc.index_in(c.table.column("key"), value_set=keys)).to_numpy()
        out = np.isnan(score) & (self.missing == "drop")
        out |= score < (-np.inf if self.below is None else self.below)
        return np.asarray(out | (score > (np.inf if self.above is None else self.above)))


@lru_cache(maxsize=2)
def read_scores(file: Path, column: str, mtime_ns: int) -> tuple[Any, Any]:
    """Keys and numbers of a file of scores; read once a worker, not once a part."""
    table = pq.read_table(file, columns=["key", column])
    keys = table.column("key").cast(pa.string()).combine_chunks()  # others write large_string
    return keys, table.column(column).cast(pa.float64())


Rule = Annotated[
    Modality | Dtype | Bands | Frames | Format | SmallerThan | LongerThan | LargerThan | SplitRule | PathPattern
    | EveryNth | Licence | GsdAbove | GsdBelow | GsdUnknown | Evaluation
    | ValidShare | Flat | Blurred | Dark | Bright | Gray | PairShift | Column,
    Field(discriminator="rule"),
]  # fmt: skip
