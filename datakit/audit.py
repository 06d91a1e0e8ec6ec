"""A finished set beside held-out images: which of its samples are copies of one, or share a part with one.

Copies are found as `protect` finds them, by PHash and thumbnail in 8 orientations, parts as `protect.contain` does. The
shards are only read.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from . import contain, image, measure
from .contain import Index
from .engine import Engine
from .looks import TURNS, Looks
from .manifest import Collection
from .points import gray_of, points_of
from .recipe import Recipe
from .remote import Root
from .signing import held_out
from .stages.protect import PARTS, SHARE_OFF, Contain, HeldOut, Protect
from .stream.source import opened
from .stream.tars import Tars

ROWS = 256  # samples of a task
MOST_PX = 1 << 25  # decoded at once
MATCHES = pa.schema([
    ("key", pa.string()), ("shard", pa.string()), ("kind", pa.string()), ("held_out", pa.string()),
    ("share", pa.float64()), ("held_share", pa.float64()), ("scale", pa.float64()), ("turned", pa.string()),
    ("distance_bits", pa.int32()), ("points", pa.int32()), ("correlation", pa.float64()),
])  # fmt: skip


@dataclass(frozen=True)
class Audited:
    """What an audit gives: MATCHES in order of the set, and samples whose image could not be looked at, with why."""

    matches: pa.Table
    samples: int
    held_out: int
    few_points: int  # samples in which no part can be found
    not_compared: list[tuple[str, str]]


@dataclass(frozen=True)
class Job:
    """Some samples to look at."""

    shards: tuple[str, ...]
    rows: range
    held: Path  # a list
    index: Path
    spec: Protect


def audit(
    shards: Sequence[str], folder: Root, recipe: Recipe, engine: Engine, about: Collection | None = None
) -> Audited:
    """Compare a set that a loader opens (a build, an index, tars) with the held-out images of a folder.

    recipe: whose grid cuts the held-out images, and whose `protect` says what counts. Errors: SourceError, ShardError.
    """
    spec = recipe.protect.model_copy(update={"lists": ()})
    spec = spec if spec.contain else spec.model_copy(update={"contain": Contain()})
    tars = _opened(tuple(shards))
    with tempfile.TemporaryDirectory(prefix="datakit-") as name:
        path = Path(name) / "held.list"
        parts = path.with_name(path.name + PARTS)
        held = held_out(folder, recipe, engine, about, parts=parts)
        held.save(path)
        index = Index.build(Path(name) / "index", [parts])
        pieces = (range(begin, min(begin + ROWS, len(tars))) for begin in range(0, len(tars), ROWS))
        jobs = (Job(tuple(shards), rows, path, index.folder, spec) for rows in pieces)
        done = sorted(engine.map(look, jobs), key=lambda one: one[0])
    found = [row for _, rows, _, _ in done for row in rows]
    bad = [each for _, _, not_compared, _ in done for each in not_compared]
    few = sum(count for *_, count in done)
    return Audited(pa.Table.from_pylist(found, schema=MATCHES), len(tars), held.about["images"], few, bad)


def look(job: Job) -> tuple[int, list[dict[str, Any]], list[tuple[str, str]], int]:
    """Number, matches, samples that could not be looked at, and how many have few points, of some samples."""
    tars, held, index = _opened(job.shards), _held(job.held), contain.opened(job.index)
    found: list[dict[str, Any]] = []
    bad: list[tuple[str, str]] = []
    few = 0
    for batch in _batches(tars, job.rows, bad):
        rows, pictures = [row for row, _ in batch], [pixels for _, pixels in batch]
        copies = job.spec.find(_looks(pictures), held)
        seen = set()
        for n, entry, place, bits in zip(*(column.tolist() for column in copies[:4]), strict=True):
            name = held.entries.column("name")[entry].as_py()
            seen.add((n, name))
            window = held.entries.column("window")[entry].as_py()
            at = {"held_out": name + ("@" + ",".join(map(str, window)) if window else ""), "turned": TURNS[place]}
            found.append(_row(tars, rows[n], "copy") | at | {"distance_bits": bits})
        described = [(gray := gray_of(pixels), points_of(gray)) for pixels in pictures]
        few += sum(len(mine) < contain.FEW_POINTS for _, mine in described)
        for query, number, m in index.search(described):
            name = index.images[number]["name"]
            if _counts(job.spec, m.share, m.held_share, m.points, m.correlation) and (query, name) not in seen:
                numbers = m._asdict() | {"held_out": name, "turned": contain.turned(m.degrees, m.mirrored)}
                wanted = {key: value for key, value in numbers.items() if key in MATCHES.names}
                found.append(_row(tars, rows[query], "part") | wanted)
    return job.rows.start, sorted(found, key=lambda r: (r["row"], r["kind"], r["held_out"])), bad, few


def _counts(spec: Protect, share: float, held_share: float, points: int, correlation: float) -> bool:
    least = spec.contain or Contain()
    enough = points >= least.points and correlation >= least.correlation
    return enough and max(share, held_share) >= least.share - SHARE_OFF


def _row(tars: Tars, row: int, kind: str) -> dict[str, Any]:
    key, shard = tars.keys(np.array([row]))[0], tars.shard_of(row).name
    return {"row": row, "key": key, "shard": shard, "kind": kind, "share": 1.0, "held_share": 1.0}


def _batches(tars: Tars, rows: range, bad: list[tuple[str, str]]) -> Iterator[list[tuple[int, NDArray[np.uint8]]]]:
    """Pixels of samples, a few at a time; those that cannot be read are told in `bad`."""
    batch: list[tuple[int, NDArray[np.uint8]]] = []
    for row in rows:
        member = tars.image_of(row)
        try:
            if member is None:
                raise ValueError("it has no image")
            with image.quiet(), Image.open(io.BytesIO(tars.read(row, member)), formats=[*image.FORMATS, "TIFF"]) as one:
                batch.append((row, np.asarray(one.convert("RGB"))))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
            bad.append((tars.where(row), str(exc)))
        if sum(pixels.size for _, pixels in batch) > 3 * MOST_PX or len(batch) == contain.BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _looks(pictures: Sequence[NDArray[np.uint8]]) -> Looks:
    """How pictures look, (H, W, 3) uint8 each."""
    signed = [measure.sign(pixels) for pixels in pictures]
    return Looks(
        np.array([one.phashes for one in signed], np.uint64),
        np.stack([np.frombuffer(one.thumbnail, np.uint8).reshape(8, 8, 3) for one in signed]),
        np.array([one.digest for one in signed], "S16"),
        np.array([measure.measure(pixels, None).entropy_bits for pixels in pictures], np.float64),
    )


@lru_cache(1)
def _opened(shards: tuple[str, ...]) -> Tars:
    return opened(shards[0] if len(shards) == 1 else list(shards))


@lru_cache(1)
def _held(path: Path) -> HeldOut:
    return HeldOut.load(path)
