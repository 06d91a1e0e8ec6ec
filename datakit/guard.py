"""Records compared with held-out lists: whole images first, then tiles, then places on the map, then parts.

What is another product of an acquisition that something was protected of goes, too: it is the same picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .crowd import LOST, Crowd, Match
from .disk import ahead
from .errors import StageError
from .footprints import overlapping
from .looks import TURNS, Ints
from .lookup import Shared, spelled
from .recipe import Recipe
from .stages.protect import SHARE_OFF, HeldOut, Matches, Protect, certificate

Bools = NDArray[np.bool_]
AT_ONCE = 1 << 16  # footprints: 100 B each, several times


def protect(
    recipe: Recipe, crowd: Crowd, alive: Bools, say: Callable[[str], None], shared: Shared | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """Records that must go (LOST), and the certificate. alive: (N,) records that take part; shared: what they share."""
    spec, levels = recipe.protect, recipe.cut.encode.keeps_levels
    lists = spec.read()
    alive = alive.copy()
    compared = {
        "images": int(crowd.there(alive).sum()),
        "tiles": int(alive.sum()),
        "placed": 0,
        "refused": 0,
    }
    compared["flat"] = int((crowd.looks.flat(spec.flat_entropy_bits) & alive).sum())
    if (alive & (crowd.looks.digests == b"")).any():
        raise StageError("some records were never measured: build again with cut.measure: true")
    tables, told, gone = [LOST.empty_table()], [], [np.zeros(0, np.int64)]
    for held in lists:
        say(f"protect: comparing with {held.about['images']:,} images of {held.who}")
        for find in (_images, _tiles, _places):
            matches, goes, level = find(spec, crowd, alive, held, compared)
            told += _told(crowd, held, matches, level)
            tables.append(_lost(crowd, held, goes, level))
            alive[goes.row] = False
            gone.append(np.sort(goes.row))  # as they are in the table
    parts, some = _parts(spec, crowd, alive, lists, shared)
    tables, told = [*tables, parts], told + some
    rows = crowd.at(parts.column("part").to_numpy(), parts.column("row").to_numpy())
    alive[rows] = False
    gone.append(rows)
    products, its = _products(crowd, alive, pa.concat_tables(tables), np.concatenate(gone))
    tables, told = [*tables, products], told + its
    about = None if shared is None else shared.counts
    return pa.concat_tables(tables), certificate(spec, lists, compared, told, levels, about)


Found = tuple[Matches, Matches, str]  # what matched, the records that go for it, and what was compared


def _images(spec: Protect, crowd: Crowd, alive: Bools, held: HeldOut, compared: dict[str, int]) -> Found:
    """Whole images: all records of one that matches go."""
    images = np.flatnonzero(crowd.there(alive))
    matches = spec.find(crowd.image_looks, held).only(images)
    compared["refused"] += len(matches.refused)
    rows = np.flatnonzero(alive & np.isin(crowd.windows.image, matches.row))
    return matches, matches.of(np.searchsorted(matches.row, crowd.windows.image[rows]))._replace(row=rows), "image"


def _tiles(spec: Protect, crowd: Crowd, alive: Bools, held: HeldOut, compared: dict[str, int]) -> Found:
    matches = spec.find(crowd.looks, held).only(np.flatnonzero(alive))
    compared["refused"] += len(matches.refused)
    return matches, matches, "tile"


def _places(spec: Protect, crowd: Crowd, alive: Bools, held: HeldOut, compared: dict[str, int]) -> Found:
    """Records whose footprint overlaps that of a held-out image."""
    entries, theirs = held.footprints()
    rows = np.flatnonzero(alive & crowd.placed) if spec.footprints and len(entries) else np.zeros(0, np.int64)

    def look(some: Ints) -> Ints:
        pairs = overlapping(theirs, crowd.footprints(some), spec.footprint_share)
        return np.stack([entries[pairs[:, 0]], some[pairs[:, 1]]], axis=1)

    pieces = (rows[begin : begin + AT_ONCE] for begin in range(0, len(rows), AT_ONCE))
    found = [np.zeros((0, 2), np.int64), *ahead(look, pieces)]
    compared["placed"] = max(compared["placed"], len(rows))
    entry, row = np.concatenate(found).T
    none = np.zeros(len(row), np.int8)
    matches = Matches(row, entry, none, none.astype(np.int32), row[:0]).nearest()
    return matches, matches, "place"


def _parts(
    spec: Protect, crowd: Crowd, alive: Bools, lists: Sequence[HeldOut], shared: Shared | None
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Records that share a part with a held-out image, and what the certificate says of them."""
    if shared is None or spec.contain is None:
        return LOST.empty_table(), []
    enough = pc.and_(
        pc.greater_equal(shared.found.column("points"), spec.contain.points),
        pc.greater_equal(shared.found.column("correlation"), spec.contain.correlation),
    )
    found = shared.found.filter(enough)
    rows = crowd.at(found.column("part").to_numpy(), found.column("row").to_numpy())
    matches: list[dict[str, Any]] = found.to_pylist()
    best: dict[int, dict[str, Any]] = {}
    for row, m in zip(rows.tolist(), matches, strict=True):
        if alive[row] and max(m["share"], m["held_share"]) >= spec.contain.share - SHARE_OFF:
            best[row] = max(best.get(row, m), m, key=lambda one: int(one["points"]))
    goes = np.array(sorted(best), np.int64)
    to = [f"{lists[best[row]['list']].who}/{best[row]['name']}" for row in goes.tolist()]
    how = [spelled(best[row]) for row in goes.tolist()]
    table = crowd.lost(goes, ["protected_part"] * len(goes), to, detail=how)
    about = zip(crowd.keys(goes).to_pylist(), to, how, strict=True)
    told = [{"key": key, "level": "part", "held_out": its, "how": words} for key, its, words in about]
    return table, sorted(told, key=lambda one: str(one["key"]))


def _lost(crowd: Crowd, held: HeldOut, goes: Matches, level: str) -> pa.Table:
    """Records that go. A window goes with its scene as `protected_scene`; where it alone matched, as `protected`."""
    whole = crowd.whole[goes.row]
    reasons = ["protected_scene" if level == "image" and not w else "protected" for w in whole.tolist()]
    reasons = ["protected_place"] * len(whole) if level == "place" else reasons
    match = None if level == "place" else Match(goes.bits, goes.place)
    return crowd.lost(goes.row, reasons, [held.spelled[n] for n in goes.entry.tolist()], match)


def _products(crowd: Crowd, alive: Bools, lost: pa.Table, gone: Ints) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Records of other products of the acquisitions that records went of, and what the certificate says of them.

    lost: what went, rows `gone`. Of several that went of one acquisition the first by key is named.
    """
    image, key = crowd.windows.image, np.array(lost.column("key").to_pylist(), object)
    by = np.argsort(key, kind="stable")
    known, first = np.unique(crowd.acquisition[image[gone[by]]], return_index=True)
    of = crowd.acquisition[image]
    rows = np.flatnonzero(alive & (of >= 0) & np.isin(of, known) & ~np.isin(image, image[gone]))
    which = by[first[np.searchsorted(known, of[rows])]]
    entries = [str(entry) for entry in lost.column("lost_to").take(pa.array(which)).to_pylist()]
    why = [f"another product of the acquisition of {name}" for name in key[which].tolist()]
    table = crowd.lost(rows, ["protected_twin"] * len(rows), entries, detail=why)
    images, at = np.unique(image[rows], return_index=True)
    about = zip(crowd.image_keys(images), at.tolist(), strict=True)
    told = [{"key": name, "level": "twin", "held_out": entries[n], "how": why[n]} for name, n in about]
    return table, sorted(told, key=lambda one: one["key"])


def _told(crowd: Crowd, held: HeldOut, matches: Matches, level: str) -> list[dict[str, Any]]:
    """Matches as the certificate lists them."""
    keys = crowd.image_keys(matches.row) if level == "image" else crowd.keys(matches.row).to_pylist()
    looks = crowd.image_looks if level == "image" else crowd.looks
    same = (looks.digests[matches.row] == held.looks.digests[matches.entry]).tolist()
    told = []
    for key, entry, place, bits, equal in zip(keys, *(c.tolist() for c in matches[1:4]), same, strict=True):
        how = "footprint" if level == "place" else "equal pixels" if equal else "signature"
        one = {"key": key, "level": level, "held_out": held.spelled[entry], "how": how}
        told.append(one if level == "place" else {**one, "distance_bits": bits, "turned": TURNS[place]})
    return sorted(told, key=lambda one: str(one["key"]))
