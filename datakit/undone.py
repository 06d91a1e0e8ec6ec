"""What became of a person's decisions in a build: each is told by name, those that came to nothing, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from . import disk
from .collect import Chosen
from .decisions import FORMAT, Decision, Decisions
from .dropped import Dropped
from .sample import key_id
from .stages.exclude import BY_HAND

SHOWN = 5  # keys in a line
WORDS = {
    "kept": "kept",
    "left_out": "left out",
    "stays_out": "out all the same",
    "still_in": "in all the same",
    "no_such_record": "match no record",
}


def outcomes(decisions: Decisions, parts: dict[str, list[Path]], chosen: Chosen, dropped: Dropped) -> dict[str, Any]:
    """The decisions, with `outcome` (of WORDS) and `detail` of each, and what is `said` of all; {} if there are none.

    It is a decisions.json again. parts: of every step.
    """
    if not decisions:
        return {}
    became = Became(parts, chosen, dropped)
    told: dict[str, list[dict[str, str]]] = {}
    for what, wanted, some in (("keep", "kept", decisions.keep), ("drop", "left_out", decisions.drop)):
        told[what] = [
            {**one.model_dump(), "outcome": outcome, "detail": detail}
            for one in some
            for outcome, detail in [became.of(one, wanted)]
        ]
    counts = Counter(one["outcome"] for both in told.values() for one in both)
    by_outcome = {name: counts[name] for name in WORDS if counts[name]}
    said = ", ".join(f"{n:,} {WORDS[name]}" for name, n in by_outcome.items())
    return {"format": FORMAT, "said": said, "counts": by_outcome, **told}


def lines(told: dict[str, Any]) -> Iterator[str]:
    """What a build says of them: counts, then by name what did not go as was decided."""
    if not told:
        return
    yield f"decisions: {told['said']}"
    for outcome in ("stays_out", "still_in", "no_such_record"):
        some = [one for what in ("keep", "drop") for one in told[what] if one["outcome"] == outcome]
        for one in some[:SHOWN]:
            yield f"warning: decisions: {one['key']}: {one['detail']}"
        if len(some) > SHOWN:
            yield f"warning: decisions: and {len(some) - SHOWN:,} more that are {WORDS[outcome]}: see decisions.json"


class Became:
    """Looks up what became of records."""

    def __init__(self, parts: dict[str, list[Path]], chosen: Chosen, dropped: Dropped) -> None:
        self.parts, self.said = parts, dropped.said
        self.kept = np.sort(chosen.columns.column("id").to_numpy())
        self.lost = dropped.said.column("id").to_numpy()

    def of(self, one: Decision, wanted: str) -> tuple[str, str]:
        """Outcome, and words about it."""
        name = key_id(one.key)
        if self.in_set(np.array([name])):
            return ("kept", "") if wanted == "kept" else ("still_in", "it is in the set: tell its exact key")
        gone = np.flatnonzero(self.lost == name)
        if len(gone):
            stage, why = (self.said.column(column)[int(gone[0])].as_py() for column in ("stage", "dropped"))
            if wanted == "left_out":
                return "left_out", "" if why == BY_HAND else f"{stage} left it out already, as {why}"
            return "stays_out", f"{stage} leaves it out as {why}, which no decision undoes"
        return self.of_image(one.key, wanted)

    def in_set(self, ids: NDArray[np.int64]) -> int:
        """How many of these are in the set."""
        places = np.minimum(np.searchsorted(self.kept, ids), len(self.kept) - 1)
        return int((self.kept[places] == ids).sum())

    def of_image(self, key: str, wanted: str) -> tuple[str, str]:
        """The same of an image that was sliced: its tiles have keys of their own."""
        pairs = zip(self.parts["exclude"], self.parts["slice"], strict=True)
        mine = [pair for pair in pairs if pair[0].stem.partition("-")[0] == key.partition("-")[0]]
        for images, tiles in mine:
            table = disk.read_table(images, ["id", "source", "name"])
            row = pc.index(table.column("id"), key_id(key)).as_py()
            if row < 0:
                continue
            image = {column: table.column(column)[row].as_py() for column in ("source", "name")}
            made = self.tiles(tiles, image)
            kept = self.in_set(made)
            said = f"{kept:,} of its {len(made):,} tiles are in the set"
            if wanted == "left_out":
                return ("still_in", f"{said}: decide on these") if kept else ("left_out", said)
            return ("kept", said) if kept else ("stays_out", f"{said}: dropped.parquet tells why")
        return "no_such_record", "no record has this key: the sources, or how they are sliced, are others"

    @staticmethod
    def tiles(part: Path, image: dict[str, str]) -> NDArray[np.int64]:
        """Ids of the records of an image."""
        table = disk.read_table(part, ["id", *image])
        same = [pc.equal(table.column(column), value) for column, value in image.items()]
        out: NDArray[np.int64] = table.filter(pc.and_(*same)).column("id").to_numpy()
        return out
