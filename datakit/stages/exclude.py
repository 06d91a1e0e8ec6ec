"""Leave out what must not be trained on. To add a rule: write its class and name it in `Rule`.

A rule answers for a whole table at once: `matches(columns) -> (N,) bool`. Rules over header facts run before `cut`,
rules over measured values (`MEASURED`) after it.
"""

from __future__ import annotations

import hashlib
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

from ..columns import Columns
from ..errors import RecipeError, StageError
from ..image import COLOURS, Narrow
from ..sample import Part, Spec

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
        numbers = [
            number(self.frame.search(name)) if h else None for h, name in zip(here, c.texts("name"), strict=True)
        ]
        return np.array([n is not None and n % self.n != 0 for n in numbers], bool)


class Licence(_Rule):
    """Images under no licence of `allow`, or under one of `deny`. An "unstated" licence passes no `allow`."""

    rule: Literal["licence"] = "licence"
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def matches(self, c: Columns) -> Bools:
        allow, deny = set(self.allow), set(self.deny)
        return np.array([bool((allow and not allow & {*has}) or deny & {*has}) for has in c.texts("licences")], bool)


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
        out = np.isnan(score) if self.missing == "drop" else np.zeros(len(c), bool)
        if self.below is not None:
            out |= score < self.below
        if self.above is not None:
            out |= score > self.above
        return out


@lru_cache(maxsize=2)
def read_scores(file: Path, column: str, mtime_ns: int) -> tuple[Any, Any]:
    """Keys and numbers of a file of scores; read once a worker, not once a part."""
    table = pq.read_table(file, columns=["key", column])
    keys = table.column("key").cast(pa.string()).combine_chunks()  # others write large_string
    return keys, table.column(column).cast(pa.float64())


Rule = Annotated[
    Modality | Dtype | Bands | Frames | Format | SmallerThan | LongerThan | LargerThan | SplitRule | PathPattern
    | EveryNth | Licence | ValidShare | Flat | Blurred | Dark | Bright | Gray | Column,
    Field(discriminator="rule"),
]  # fmt: skip


class Exclude(Spec):
    """Drops a record at the first rule that it matches; the rule is the reason."""

    VERSION: ClassVar[int] = 1
    rules: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _reasons_tell_rules_apart(self) -> Exclude:
        reasons = [r.reason for r in self.rules]
        for rule in self.rules:
            if reasons.count(rule.reason) > 1 and (rule.max_share or isinstance(rule, Column)):
                raise ValueError(f"two rules drop as {rule.reason}: give each a name, which is then its reason")
        return self

    def header(self, narrow: Narrow | None) -> HeaderRules:
        """The rules over header facts, of which `narrow` changes some."""
        return HeaderRules(rules=tuple(r for r in self.rules if not r.MEASURED), narrow=narrow)

    def measured(self) -> Exclude:
        """The rules over measured values."""
        return Exclude(rules=tuple(r for r in self.rules if r.MEASURED))

    def digest(self, *more: str) -> str:
        scores = [file_digest(r.file) for r in self.rules if isinstance(r, Column)]
        return super().digest(*more, *scores)

    def columns(self, records: pa.Table) -> Columns:
        """The records as the rules see them."""
        return Columns(records)

    def __call__(self, records: pa.Table, part: Part) -> pa.Table:
        columns = self.columns(records)
        reasons = np.full(len(columns), "", object)
        for rule in self.rules:
            reasons[(reasons == "") & rule.matches(columns)] = rule.reason
        place = records.schema.get_field_index("dropped")
        return records.set_column(place, records.schema.field(place), pa.array(reasons.tolist(), pa.string()))


class HeaderRules(Exclude):
    """Rules over header facts: what `cut` will narrow counts as 8-bit red, green and blue already."""

    narrow: Narrow | None = None

    def columns(self, records: pa.Table) -> Columns:
        columns = Columns(records)
        if self.narrow:
            bands = columns.texts("bands")
            fits = [self.narrow.fits(tuple(b)) for b in bands]
            columns.put("bands", [list(COLOURS) if f else b for f, b in zip(fits, bands, strict=True)])
            columns.put("dtype", ["uint8" if f else d for f, d in zip(fits, columns.texts("dtype"), strict=True)])
        return columns


def file_digest(path: Path) -> str:
    """blake2b of a file that a rule reads, so that the rule runs again when it changes."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as exc:
        raise RecipeError(f"exclude: column: {path}: {exc.strerror}") from None


def check_shares(rules: tuple[Any, ...], came: int, dropped: dict[str, int]) -> None:
    """StageError if a rule dropped a larger share than its `max_share`; `dropped` by reason, of `came` in all."""
    for rule in rules:
        share = dropped.get(rule.reason, 0) / came if came else 0.0
        if rule.max_share is not None and share > rule.max_share:
            raise StageError(
                f"{rule.reason} dropped {dropped[rule.reason]} of {came} ({share:.1%}), more than its max_share "
                f"{rule.max_share:.1%}. Change the rule, or raise max_share to see in dropped.parquet which they are"
            )
