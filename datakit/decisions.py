"""What a person decided about single records, in a report of a build: which removals were wrong, which samples are.

A record to keep stays whatever a rule, dedup, same_place or subset says. Nothing else is ever undone: what protect,
the rule `evaluation` or a rule over splits keeps out would leak test data, what a rule over licences keeps out is not
ours to take, and what could not be read has no pixels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from .errors import RecipeError
from .sample import Spec, digest, key_id
from .stages.exclude import ByHand, Exclude
from .validate import wrong_fields

FORMAT = 1
FILE = "decisions.json"
UNDOES = ("exclude", "measured", "dedup", "same_place", "subset")  # stages
HELD_RULES = ("evaluation", "split", "licence")  # rules that no decision undoes
NO_RULE = {  # stages that judge no picture
    "list": "no image of the layout",
    "scan": "it could not be read",
    "slice": "it has no window",
    "cut": "nothing was cut of it",
}
SUBSET = "subset_"  # begins the reasons of `subset` that are undone; those of `subset.split` keep sides apart


class Decision(Spec):
    """A record by its key; why it was left out is for people."""

    key: str = Field(min_length=1)
    stage: str = ""
    reason: str = ""


class Decisions(Spec):
    """What was decided: the content of a decisions.json, which a report makes and `datakit build --decisions` takes."""

    keep: tuple[Decision, ...] = Field((), description="records that were left out wrongly")
    drop: tuple[Decision, ...] = Field((), description="samples that should have been left out")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Decisions:
        keys = [one.key for one in (*self.keep, *self.drop)]
        if len({*keys}) < len(keys):
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise ValueError(f"{', '.join(twice[:5])}: decided twice: leave one of them")
        return self

    def __bool__(self) -> bool:
        return bool(self.keep or self.drop)

    @classmethod
    def load(cls, path: Path) -> Decisions:
        """The decisions in a file, without what a build noted of each; RecipeError says what is wrong with it."""
        try:
            plain = json.loads(path.read_bytes())
        except OSError as exc:
            raise RecipeError(f"--decisions {path}: {exc.strerror}. A report of a build downloads one") from None
        except ValueError as exc:
            raise RecipeError(f"--decisions {path}: not JSON: {exc}. Download it from the report again") from None
        found = plain.get("format", "none") if isinstance(plain, dict) else "none"
        if found != FORMAT:
            raise RecipeError(f"--decisions {path}: format {found}; this version reads {FORMAT}. Download it again")
        try:
            return cls.model_validate({name: [known(one) for one in plain.get(name, ())] for name in ("keep", "drop")})
        except (ValidationError, TypeError) as exc:
            lines = wrong_fields(cls, exc).values() if isinstance(exc, ValidationError) else [str(exc)]
            raise RecipeError("\n".join([f"--decisions {path}: wrong", *(f"  {line}" for line in lines)])) from None

    def ids(self) -> NDArray[np.int64]:
        """Of the records to keep."""
        return np.array([key_id(one.key) for one in self.keep], np.int64)

    def over(self, rules: Exclude, source: str) -> Exclude:
        """Rules of a step, and what was decided of the records of a source before them."""
        keep, drop = (
            tuple(sorted(one.key for one in some if one.key.partition("-")[0] == source))
            for some in (self.keep, self.drop)
        )
        if not keep and not drop:
            return rules
        return ByHand(rules=rules.rules, narrow=getattr(rules, "narrow", None), keep=keep, drop=drop)

    def known_by(self) -> list[str]:
        """What stands for the decisions in the digest of what depends on them: nothing where there are none."""
        return [digest(*sorted(one.key for one in self.keep))] if self.keep else []

    def spare(self, lost: pa.Table) -> pa.Table:
        """What goes, of a stage that looks at all records (`key`), but for the records to keep."""
        return lost.filter(
            pc.invert(pc.is_in(lost.column("key"), pa.array([one.key for one in self.keep], pa.string())))
        )


def known(one: Any) -> Any:
    """The fields of a decision, without what a build said of it."""
    return {k: v for k, v in one.items() if k in Decision.model_fields} if isinstance(one, dict) else one


def held(recipe: dict[str, Any], stage: str, reason: str) -> str:
    """Why a removal cannot be undone by a decision, in words; "" if it can. recipe: as the manifest has it."""
    rules = {rule.get("name") or rule["rule"]: rule["rule"] for rule in recipe.get("exclude", {}).get("rules", ())}
    if stage == "protect":
        return "it resembles evaluation data"
    if stage in ("exclude", "measured") and (kind := rules.get(reason, reason)) in HELD_RULES:
        return "it is a matter of licence" if kind == "licence" else "it is evaluation data"
    if stage == "subset" and not reason.startswith(SUBSET):
        return "it keeps the sides of a split apart"
    return "" if stage in UNDOES else NO_RULE.get(stage, stage)
