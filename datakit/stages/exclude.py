"""Leave out what must not be trained on: rules over header facts before `cut`, over measured values after it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import model_validator

from ..columns import Columns
from ..errors import RecipeError, StageError
from ..image import COLOURS, Narrow
from ..rules import Column, Evaluation, LargerThan, Licence, LongerThan, Rule, SmallerThan, SplitRule
from ..sample import Part, Spec

BY_HAND = "by_hand"  # reason of what a person left out
HELD = (Evaluation, SplitRule, Licence)  # rules that no decision of a person undoes


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

    def header(self, narrow: Narrow | None, *first: Rule) -> HeaderRules:
        """The rules over header facts, of which `narrow` changes some; those of `first` before them."""
        return HeaderRules(rules=(*first, *(r for r in self.rules if not r.MEASURED)), narrow=narrow)

    def sizes(self) -> tuple[Rule, ...]:
        """The rules over width and height."""
        return tuple(r for r in self.rules if isinstance(r, SmallerThan | LongerThan | LargerThan))

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
        reasons, spared = self.decided(records)
        for rule in self.rules:
            may = reasons == "" if isinstance(rule, HELD) else (reasons == "") & ~spared
            reasons[may & rule.matches(columns)] = rule.reason
        place = records.schema.get_field_index("dropped")
        return records.set_column(place, records.schema.field(place), pa.array(reasons.tolist(), pa.string()))

    def decided(self, records: pa.Table) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Why records are left out whatever the rules say ("": they are not), and which no rule may drop: (N,)."""
        return np.full(records.num_rows, "", object), np.zeros(records.num_rows, bool)


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


class ByHand(HeaderRules):
    """Rules, and what a person decided of single records, by their keys, before these."""

    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()

    def decided(self, records: pa.Table) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        keys = records.column("key")
        spared, gone = (np.asarray(pc.is_in(keys, pa.array(some, pa.string()))) for some in (self.keep, self.drop))
        return np.where(gone, BY_HAND, "").astype(object), spared


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
