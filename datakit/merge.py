"""Duplicates among all records: whole images first, then tiles; what was kept takes over from its exact duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from . import semantic
from .crowd import Crowd, Match
from .inherit import CHANGES, NEEDS, NO_BOXES, inherited
from .looks import CANNOT_SEE, PLACES, Ints, among, chance, words
from .recipe import Recipe
from .series import Kept, Series, twins
from .stages.dedup import Dedup, Pairs, Stars, order, overlap_share

LARGEST = 10  # groups of duplicates that are named
Bools = NDArray[np.bool_]


class Merged(NamedTuple):
    """What dedup decided."""

    lost: pa.Table  # LOST
    about: dict[str, Any]
    changes: pa.Table  # CHANGES, of kept records


def dedup(recipe: Recipe, crowd: Crowd, alive: Bools, work: Path, say: Callable[[str], None]) -> Merged:
    """Records that duplicate kept ones, and those beyond their series. alive: (N,) records that take part."""
    spec = recipe.dedup or Dedup()
    image = crowd.windows.image
    there = crowd.there(alive)
    compared = [int(there.sum())]
    say(f"dedup: comparing {compared[0]:,} images")
    series = Series(spec, crowd)
    products, scenes = images(recipe, crowd, there, series)
    there[[*products, *scenes.lost.tolist()]] = False
    centre = np.isin(image, scenes.kept[scenes.lost])  # others went for these: they must not go themselves
    by = order(crowd.facts, recipe.prefer)
    compares, best, rank = alive & there[image], by, by
    if series.most:  # it ranks images as a whole
        of_image = np.argsort(order(crowd.image_facts, recipe.prefer))
        best = by[np.argsort(of_image[image[by]], kind="stable")]
        rank = np.argsort(best)
    by, best = by[compares[by]], best[compares[best]]
    by = by[np.argsort((~centre * np.int8(2) + ~(centre & crowd.whole))[by], kind="stable")]
    compared.append(len(by))
    say(f"dedup: comparing {len(by):,} tiles")

    def find(by: Ints) -> Stars:
        if spec.signature == "phash":
            return spec.find(crowd.looks, by, crowd.windows, series.records, exact=recipe.cut.encode.keeps_levels)
        return cnn(spec, crowd, by, centre & crowd.whole, series.records, work, say)

    none = np.zeros(0, np.int64)
    kept = series.limit(Kept(scenes, find(by), by, best, none, none), rank, alive, find)
    lost = pa.concat_tables([_lost_twins(crowd, alive, products, kept), _lost_dates(crowd, kept)])
    duplicates = pa.concat_tables([_lost_scenes(crowd, kept.scenes, alive), _lost_tiles(crowd, kept.tiles)])
    summary = about(recipe, crowd, kept.scenes, kept.tiles, compared)
    spared = np.unique(image[kept.stays & series.spared[image]])
    summary |= {"twins": len(products), "beyond_series": len(kept.late), "spared_in_series": len(spared)}
    sources = pc.value_counts(duplicates.column("source")).to_pylist()
    summary["goes"] = dict(sorted((each["values"], each["counts"]) for each in sources))
    lost = pa.concat_tables([lost, duplicates])
    if spec.action == "report":
        return Merged(lost, summary, CHANGES.empty_table())
    gone = np.flatnonzero(alive & np.isin(image, [*products, *kept.scenes.lost.tolist()]))
    stays = kept.by[kept.stays[kept.by]]
    changes, conflicts = take_over(crowd, kept.scenes, np.concatenate([gone, kept.tiles.lost]), stays)
    summary |= {"took_over": changes.num_rows, "conflicts": conflicts}
    return Merged(lost, summary, changes)


def images(recipe: Recipe, crowd: Crowd, there: Bools, series: Series) -> tuple[dict[int, int], Stars]:
    """Images that go as products of one acquisition, and as duplicates. there: those that are compared."""
    spec, whole = recipe.dedup or Dedup(), crowd.whole[crowd.first]
    by = order(crowd.image_facts, recipe.prefer)
    products = twins(crowd, by[there[by]])
    there = there.copy()
    there[list(products)] = False
    exact = recipe.cut.encode.keeps_levels  # a picture shows three bands of many
    scenes = spec.find(crowd.image_looks, by[there[by]], of_series=series.images, exact=exact)
    return products, scenes.but(np.flatnonzero(whole & whole[scenes.kept]))  # two that pass whole: as tiles


def _lost_twins(crowd: Crowd, alive: Bools, products: dict[int, int], kept: Kept) -> pa.Table:
    """All records of images that go for another product of their acquisition: they lose to what is there in the end."""
    image = crowd.windows.image
    end = kept.tiles.kept.copy()
    end[kept.late] = kept.heads
    there = crowd.there(kept.stays)
    to = np.arange(len(crowd.first))
    to[list(products)] = kept.scenes.kept[list(products.values())]
    to = np.where(there[to], to, image[end[crowd.first[to]]])
    rows = np.flatnonzero(alive & np.isin(image, list(products)))
    names, which = np.unique(to[image[rows]], return_inverse=True)
    keys = crowd.image_keys(names)
    return crowd.lost(rows, ["twin"] * len(rows), pa.array(keys, pa.string()).take(pa.array(which)))


def _lost_dates(crowd: Crowd, kept: Kept) -> pa.Table:
    """Records that go because their series is full: they lose to the first kept one of their place."""
    heads, which = np.unique(kept.heads, return_inverse=True)
    return crowd.lost(kept.late, ["series"] * len(kept.late), crowd.keys(heads).take(pa.array(which)))


def _lost_scenes(crowd: Crowd, scenes: Stars, alive: Bools) -> pa.Table:
    """All records of images that duplicate another image: they lose to its key."""
    rows = np.flatnonzero(alive & np.isin(crowd.windows.image, scenes.lost))
    image = crowd.windows.image[rows]
    kept, which = np.unique(scenes.kept[image], return_inverse=True)
    keys = crowd.image_keys(kept)
    reasons = np.where(crowd.whole[rows], "duplicate", "duplicate_scene").tolist()
    to = pa.array(keys, pa.string()).take(pa.array(which))
    return crowd.lost(rows, reasons, to, Match(scenes.bits[image], scenes.place[image]))


def _lost_tiles(crowd: Crowd, tiles: Stars) -> pa.Table:
    rows = tiles.lost
    kept, which = np.unique(tiles.kept[rows], return_inverse=True)
    match = Match(tiles.bits[rows], tiles.place[rows])
    detail = [] if tiles.cosine is None else [f"cosine {cosine:.6f}" for cosine in tiles.cosine[rows].tolist()]
    return crowd.lost(rows, ["duplicate"] * len(rows), crowd.keys(kept).take(pa.array(which)), match, detail)


def cnn(
    spec: Dedup, crowd: Crowd, by: Ints, fixed: Bools, of_series: Pairs, work: Path, say: Callable[[str], None]
) -> Stars:
    """Tiles that duplicate kept ones by the cosine of their CNN vectors; flat ones by equal pixels."""
    files = semantic.vectors_of(crowd.rows.parts, work, spec.model, say)
    vectors = semantic.load(files)[1][by]

    def agree(kept: Ints, rows: Ints) -> Bools:
        kept, rows = by[kept], by[rows]
        image, window = crowd.windows
        same = image[kept] == image[rows]
        within = overlap_share(window[kept], window[rows]) >= spec.overlap_share
        differ = crowd.looks.digests[kept] != crowd.looks.digests[rows]
        yes: Bools = np.where(same, within, ~(differ & of_series(kept, rows))) & ~fixed[rows]
        return yes

    flat = crowd.looks.flat(spec.flat_entropy_bits)[by]
    star, cosine = semantic.keep_stars_cosine(vectors, spec.cosine or 1.0, agree, flat, crowd.looks.digests[by])
    kept = np.arange(len(crowd))
    kept[by] = by[star]
    bits = np.bitwise_count(crowd.looks.signatures[kept, 0] ^ crowd.looks.signatures[:, 0]).astype(np.int32)
    cosines = np.ones(len(crowd), np.float32)
    cosines[by] = cosine
    return Stars(kept, np.zeros(len(crowd), np.int8), bits, cosines)


def about(recipe: Recipe, crowd: Crowd, scenes: Stars, tiles: Stars, compared: Sequence[int]) -> dict[str, Any]:
    """What dedup.json says."""
    spec = recipe.dedup or Dedup()
    exact = recipe.cut.encode.keeps_levels
    a_pair = 0.0 if exact else chance(spec.radius_bits) * (PLACES if spec.orientations else 1)
    levels = {}
    for name, stars, n in (("images", scenes, compared[0]), ("tiles", tiles, compared[1])):
        stars_of, size = np.unique(stars.kept[stars.lost], return_counts=True)
        stars_of, size = (each[size >= np.sort(size)[-LARGEST:].min(initial=0)] for each in (stars_of, size))
        keys = crowd.image_keys(stars_of) if name == "images" else crowd.keys(stars_of).to_pylist()
        largest = sorted(zip((-size).tolist(), keys, strict=True))[:LARGEST]
        levels[name] = {
            "compared": n,
            "duplicates": len(stars.lost),
            "random_matches_expected": n * (n - 1) / 2 * a_pair,
            "largest": [{"key": key, "duplicates": -negative} for negative, key in largest],
        }
    return {
        **spec.model_dump(mode="json"),
        "prefer": list(recipe.prefer),
        "equal_levels": exact,  # of all bands are asked of duplicates
        **levels,
        "cannot_see": list(CANNOT_SEE),
    }


def take_over(crowd: Crowd, scenes: Stars, lost: Ints, kept: Ints) -> tuple[pa.Table, list[dict[str, str]]]:
    """What kept records take over from exact duplicates (CHANGES), and where the two say different things.

    lost: records that went as duplicates; kept: those that stay, best first. Equal pixels of a tile carry labels, boxes
    and licences over; equal pixels of whole images carry label and licences to all tiles of the one that was kept.
    """
    equal = _equal(crowd, kept, lost)
    twins_of = _of_twins(crowd, scenes, kept, equal)
    rows = np.unique(np.concatenate([equal, twins_of]))
    if not len(rows):
        return CHANGES.empty_table(), []
    known = {"key": crowd.keys(rows), "source": pa.array(crowd.source[rows], pa.string()), "id": crowd.facts.id[rows]}
    table = crowd.rows.take(rows).read([name for name in NEEDS if name not in known])
    for name, values in known.items():
        table = table.append_column(name, [values])
    table = table.select(NEEDS)
    one, other = np.searchsorted(rows, equal.T)
    whose, twin = np.searchsorted(rows, twins_of.T)
    whole = table.take(pa.array(twin))  # tiles as their images: boxes are of another window
    keys = crowd.image_keys(crowd.windows.image[twins_of[:, 1]])
    for name, values in (("key", keys), ("boxes", [NO_BOXES] * len(twin))):
        whole = whole.set_column(
            whole.schema.get_field_index(name), whole.schema.field(name), pa.array(values, pa.string())
        )
    every = pa.concat_tables([table, whole])
    return inherited(every, np.append(one, whose), np.append(other, len(rows) + np.arange(len(twin))))


def _of_twins(crowd: Crowd, scenes: Stars, kept: Ints, equal: Ints) -> Ints:
    """Pairs of a kept record and a record of an image with the pixels of its own, if not in `equal`: (M, 2)."""
    image, digests = crowd.windows.image, crowd.image_looks.digests
    same = scenes.lost[digests[scenes.lost] == digests[scenes.kept[scenes.lost]]]
    twins_of: dict[int, list[int]] = defaultdict(list)
    for twin in same.tolist():
        twins_of[int(scenes.kept[twin])].append(twin)
    rows = kept[np.isin(image[kept], scenes.kept[same])]
    known = {(row, int(image[other])) for row, other in equal[np.isin(equal[:, 0], rows)].tolist()}
    found = [
        (row, int(crowd.first[twin]))
        for row in rows.tolist()
        for twin in twins_of[int(image[row])]
        if (row, twin) not in known
    ]
    return np.array(found, np.int64).reshape(-1, 2)


def _equal(crowd: Crowd, kept: Ints, lost: Ints) -> Ints:
    """Pairs (kept, lost) of records with equal pixels, the best of several kept ones: (M, 2)."""
    digests = crowd.looks.digests
    if len(lost):
        kept = kept[among(words(digests[lost]), words(digests[kept]))]
    if not len(lost) or not len(kept):
        return np.zeros((0, 2), np.int64)
    known, first = np.unique(digests[kept], return_index=True)
    place = np.minimum(np.searchsorted(known, digests[lost]), len(known) - 1)
    same = known[place] == digests[lost]
    return np.stack([kept[first[place[same]]], lost[same]], axis=1)
