"""A finished build scored against the planted truth.

Everything planted to go went, for its own reason, and nothing else went.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..manifest import Manifest
from ..ranges import opened
from ..remote import Root
from ..sample import make_key

TILE_PX = 512
LEAST_VALID_SHARE, TOLERANCE = 0.5, 0.03  # polygons and collars are measured in whole pixels
COLUMNS = ["source", "name", "window", "width", "height"]
Key = tuple[str, str]
Window = tuple[float, float, float, float]  # left, top, width, height


@dataclass(frozen=True)
class _Record:
    """What a build says of an image, or of a window of it."""

    dropped: str  # "" = kept
    window: Window | None
    size: tuple[int, int]
    lost_to: str = ""


def check(out: Root, folder: Path) -> list[str]:
    """What is wrong with the build at `out` of the collection that `make` wrote to `folder`; empty: nothing."""
    recipe = Manifest.load(out).recipe
    truth = {_key(t): t for t in json.loads((folder / "truth.json").read_text())["files"]}
    records = _records(out)
    wrong = [f"{_say(key)}: not in the truth" for key in sorted(records.keys() - truth.keys())]
    copies = _copies(truth, recipe)
    for key, entry in truth.items():
        found = records.get(key, [])
        if key not in copies:
            wrong += [f"{_say(key)} ({entry['what']}): {w}" for w in _judge(entry, found, recipe)]
    for members in {id(group): group for group in copies.values()}.values():
        wrong += _judge_copies([truth[key] for key in members], records, recipe)
    return wrong


def not_covered(out: Root, folder: Path) -> list[str]:
    """Planted crops that are still in the set: no signature of a whole picture sees them."""
    truth = json.loads((folder / "truth.json").read_text())["files"]
    records = _records(out)
    crops = [_key(entry) for entry in truth if entry.get("how") == "crop"]
    return sorted(_say(key) for key in crops if any(not r.dropped for r in records.get(key, ())))


def _records(out: Root) -> dict[Key, list[_Record]]:
    """Kept and dropped records by image."""
    found: dict[Key, list[_Record]] = defaultdict(list)
    for name, more in (("samples.parquet", []), ("dropped.parquet", ["dropped", "lost_to"])):
        # read in this thread: one of Arrow's that lets go of a Python stream as the interpreter ends aborts the process
        with opened(out / name) as (stream, _), pq.ParquetFile(stream, pre_buffer=False) as file:
            table = file.read(COLUMNS + more, use_threads=False)
        for row in table.to_pylist():
            dropped = (row["dropped"] or "no reason given") if more else ""
            window = tuple(row["window"]) if row["window"] else None
            size = (row["width"], row["height"])
            found[row["source"], row["name"]].append(_Record(dropped, window, size, row.get("lost_to", "")))
    return found


def _judge(entry: dict[str, Any], found: list[_Record], recipe: dict[str, Any]) -> list[str]:
    """What is wrong with the records of one file."""
    reasons = _reasons(entry, recipe)
    if entry["expect"] == "label":
        return [f"a label file, yet {_of(found)}"] if found else []
    if not found:
        return ["neither kept nor dropped"]
    if reasons:
        others = [r for r in found if r.dropped not in reasons]
        return [f"should go as {' or '.join(sorted(reasons))}; {_of(others)}"] if others else []
    return _judge_kept(entry, found, recipe)


def _reasons(entry: dict[str, Any], recipe: dict[str, Any]) -> set[str]:
    """Reasons that an image may go for; empty: it is kept."""
    if entry["expect"] not in ("kept", "label"):
        return {entry["expect"]}
    if "expect_protect" in entry and (recipe.get("protect") or {}).get("lists"):
        return {"protected_scene"} if _large(entry) else {"protected", "protected_scene"}
    return set()


def _judge_kept(entry: dict[str, Any], found: list[_Record], recipe: dict[str, Any]) -> list[str]:
    """What is wrong with the records of an image whose valid part is kept."""
    wrong, covered = [], np.zeros((entry["height"], entry["width"]), bool)
    for record in found:
        left, top, width, height = window = record.window or (0, 0, entry["width"], entry["height"])
        if not record.window and record.size != (entry["width"], entry["height"]):
            wrong.append(f"is {entry['width']} x {entry['height']} px as shown; {_of([record])} of {record.size}")
        covered[int(top) : int(top + height), int(left) : int(left + width)] = True
        share = _valid_share(entry.get("valid_polygon"), window)
        if record.dropped == "valid_share" and share > LEAST_VALID_SHARE + TOLERANCE:
            wrong.append(f"{share:.2f} of it is valid, yet {_of([record])}")
        elif not record.dropped and share < LEAST_VALID_SHARE - TOLERANCE:
            wrong.append(f"only {share:.2f} of it is valid, yet {_of([record])}")
        elif record.dropped not in ("", "valid_share") and not _allowed(record.dropped, recipe):
            wrong.append(f"should be kept; {_of([record])}")
    if not covered.all():
        wrong.append(f"{1 - covered.mean():.3f} of it is in no window")
    return wrong


def _allowed(reason: str, recipe: dict[str, Any]) -> bool:
    """Whether a recipe that takes a subset may leave a good image out for this reason."""
    return bool(recipe.get("subset")) and reason.startswith("subset")


def _copies(truth: dict[Key, dict[str, Any]], recipe: dict[str, Any]) -> dict[Key, list[Key]]:
    """Groups of which a recipe that removes duplicates keeps one image, by each member; none where it does not."""
    dedup = recipe.get("dedup")
    if not dedup or (isinstance(dedup, dict) and dedup.get("action") == "report"):
        return {}
    turned_too = isinstance(dedup, dict) and any(v for k, v in dedup.items() if k.startswith("orientation"))
    groups: dict[Key, list[Key]] = {}
    for key, entry in truth.items():
        turned = entry.get("how") not in ("exact", "equal pixels", "jpeg50", "half size")
        if "expect_dedup" in entry and (turned_too or not turned):
            of = _key(entry["copy_of"])
            groups.setdefault(of, [of]).append(key)
            groups[key] = groups[of]
    return groups


def _judge_copies(group: list[dict[str, Any]], records: dict[Key, list[_Record]], recipe: dict[str, Any]) -> list[str]:
    """What is wrong with an image and its copies: one of them is kept, whichever it is."""
    kept, wrong = [], []
    keys = {make_key(entry["source"], entry["name"]) for entry in group}
    for entry in group:
        reasons = {"duplicate_scene"} if _large(entry) else {"duplicate", "duplicate_scene"}
        found = records.get(_key(entry), [])
        if not found:
            wrong.append(f"{_say(_key(entry))} ({entry['what']}): neither kept nor dropped")
        elif {r.lost_to for r in found if r.dropped in reasons} - keys:
            wrong.append(f"{_say(_key(entry))} ({entry['what']}): lost to an image that it is no copy of")
        elif not all(r.dropped in reasons for r in found):
            kept.append(entry)
    if len(kept) != 1:
        names = ", ".join(_say(_key(e)) for e in group)
        wrong.append(f"copies of one another, of which one is kept, not {len(kept)}: {names}")
    for entry in kept:
        wrong += [f"{_say(_key(entry))} ({entry['what']}): {w}" for w in _judge(entry, records[_key(entry)], recipe)]
    return wrong


def _valid_share(polygon: list[list[float]] | None, window: Window) -> float:
    """Share of a window that lies in a convex polygon; 1 where there is none."""
    if polygon is None:
        return 1.0
    left, top, width, height = window
    points = [(float(x), float(y)) for x, y in polygon]
    for axis, limit, sign in ((0, left, 1), (0, left + width, -1), (1, top, 1), (1, top + height, -1)):
        points = _clipped(points, axis, limit, sign)
    pairs = zip(points, points[1:] + points[:1], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / 2 / (width * height)


def _clipped(points: list[tuple[float, float]], axis: int, limit: float, sign: int) -> list[tuple[float, float]]:
    """The part of a polygon on one side of a line, after Sutherland and Hodgman (1974)."""
    out: list[tuple[float, float]] = []
    for a, b in zip(points, points[1:] + points[:1], strict=True):
        da, db = (a[axis] - limit) * sign, (b[axis] - limit) * sign
        if da >= 0:
            out.append(a)
        if (da < 0) != (db < 0):
            t = da / (da - db)
            out.append((a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t))
    return out


def _large(entry: dict[str, Any]) -> bool:
    return bool(max(entry["width"], entry["height"]) > TILE_PX)


def _key(entry: dict[str, Any]) -> Key:
    return entry["source"], entry["name"]


def _say(key: Key) -> str:
    return "/".join(key)


def _of(records: list[_Record]) -> str:
    """Records in words, the first three of them."""
    said = [
        (f"dropped as {r.dropped}" if r.dropped else "kept") + (f" at {r.window}" if r.window else "") for r in records
    ]
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")
