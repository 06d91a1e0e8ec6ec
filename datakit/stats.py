"""Mean and deviation of each band of a set as it is read, from its records alone: no tar is opened."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .bands import Band, Sums
from .errors import RecipeError, ShardError
from .remote import Root
from .stream.normalise import summed
from .stream.overlay import RECORDS, Live, Overlay, licensed, overlays_of
from .stream.source import opened


def stats(
    out: str | Root, overlay: str | Path | Overlay | Sequence[str | Path | Overlay] = (), licence: Sequence[str] = ()
) -> Sums:
    """What the valid pixels of the samples of a build add up to, each sample as often as overlays let it count.

    licence: only samples under one of these. RecipeError where OUT is no build, ShardError where nothing was measured.
    """
    tars = opened(str(out))
    live = Live(tars, [*overlays_of(overlay), *licensed(tars, licence)])
    path = tars.beside(RECORDS)
    if not path.is_file():
        raise RecipeError(f"{out}: no {RECORDS} there: only a build has records")
    sums = summed(path, partial(live.counts, 0))
    if not sums.found:
        raise ShardError(f"{out}: no pixel was measured: it was built with cut.measure: false")
    return sums


def told(sums: Sums) -> dict[str, Any]:
    """Bands of all and of each source as plain data."""
    sources: dict[str, list[dict[str, Any]]] = {}
    for band in sums.bands():
        sources.setdefault(band.source, []).append(plain(band))
    return {"all": sources.pop("", []), "sources": sources, "unmeasured": sums.unmeasured}


def plain(band: Band) -> dict[str, Any]:
    return {name: value for name, value in band._asdict().items() if name != "source"}
