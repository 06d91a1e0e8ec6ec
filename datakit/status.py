"""What a work folder holds: which builds, how far each is, what was dropped, and what went wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .alone import BLAMED
from .errors import SourceError, StageError
from .folders import OURS, STEPS, is_written
from .leave import FAILED
from .remote import root_of
from .run import read_done
from .tables import aligned

SHOWN = ("list", *STEPS, "written")  # sub-folders of WORK whose files are work that is done
WORDS = {"written": "shards"}


def status(work: str | Path) -> list[dict[str, Any]]:
    """Each build that uses a work folder.

    A dict has recipe, out, state ("running", "failed", "complete", "stopped"), error, steps {step: [done, all]} as far
    as they are known, dropped {step: {reason: records}}, and blamed: images no process survives (source, name, reason,
    detail). StageError if it is no work folder.
    """
    work = Path(work)
    if not (work / OURS).exists():
        raise StageError(f"{work}: not a work folder of datakit")
    return [_one(work, note) for note in sorted((work / "builds").glob("*.json"))]


def _one(work: Path, note: Path) -> dict[str, Any]:
    about = json.loads(note.read_text())
    steps: dict[str, list[int]] = {}
    dropped: dict[str, Counter[str]] = {}
    specs = set()
    for used in about["now"]:
        kind, path = used.partition("/")[0], work / used
        specs.add(path.parent)
        if kind not in SHOWN:
            continue
        done = steps.setdefault(kind, [0, 0])
        done[1] += 1
        if path.exists():
            done[0] += 1
            if kind != "written":
                for reasons in read_done(path).funnel.dropped.values():
                    dropped.setdefault(kind, Counter()).update(reasons)
    blamed = [
        json.loads(path.read_text())
        for folder in sorted(specs)
        for path in sorted((work / BLAMED / folder.relative_to(work)).glob("*.json"))
    ]
    failed = note.with_suffix(FAILED)
    error = failed.read_text() if failed.exists() else ""
    whole = _is_whole(about["out"]) and all(done == most for done, most in steps.values())
    busy = not error and not whole and is_written(root_of(about["out"]), work)
    state = "failed" if error else "complete" if whole else "running" if busy else "stopped"
    return {
        "recipe": about["recipe"],
        "out": about["out"],
        "state": state,
        "error": error,
        "steps": {WORDS.get(kind, kind): steps[kind] for kind in SHOWN if kind in steps},
        "dropped": {kind: dict(dropped[kind].most_common()) for kind in SHOWN if kind in dropped},
        "blamed": blamed,
    }


def lines(builds: list[dict[str, Any]]) -> Iterator[str]:
    """The same for people."""
    if not builds:
        yield "no build has begun here"
    for build in builds:
        yield f"{build['recipe']} -> {build['out']}: {build['state']}"
        rows: list[tuple[str, ...]] = [("step", "done", "of", "dropped")]
        for step, (done, most) in build["steps"].items():
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in build["dropped"].get(step, {}).items())
            rows.append((step, f"{done:,}", f"{most:,}", reasons))
        yield from (f"  {line}" for line in aligned(rows))
        for one in build["blamed"]:
            yield f"  {one['source']}: {one['name']}: {one['reason']}: {one['detail']}"
        if build["error"]:
            yield f"  {build['error']}"
        yield ""


def _is_whole(out: str) -> bool:
    """Whether a set is whole, as far as one can tell."""
    try:
        return (root_of(out) / "manifest.json").exists()
    except (OSError, SourceError):  # its store does not answer, or what asks it is not installed
        return False
