"""What every build stands on: OUT and WORK claimed and locked, workers, and a note of what stopped it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import disk, leave, run
from .engine import Engine, cores
from .folders import OURS, claim, locked, refuse_overlap, writing
from .remote import Root


@dataclass(frozen=True)
class Places:
    """Where a build of some name reads and writes."""

    name: str
    out: Root
    work: Path
    roots: dict[str, Root]  # where each source lies


@contextmanager
def running(at: Places, alone: bool = False, workers: int | None = None, **engine: Any) -> Iterator[Engine]:
    """The engine of a build, for as long as it has its folders to itself. alone: no other build may use WORK.

    workers: processes, one a core if not given; engine: what else `Engine` takes.
    """
    with run.explained():
        refuse_overlap(at.out, at.work, at.roots)
        claim(at.out, ("manifest.json", disk.PARTIAL), "--out")
    claim(at.work, (OURS,), "--work")
    (at.work / OURS).touch()
    with (
        locked(at.work, alone=alone),
        writing(at.out, at.work),
        noted(at),
        run.explained(),
        Engine(cores() if workers is None else workers, work=at.work, **engine) as started,
    ):
        disk.sweep(at.work)
        disk.open_out(at.out, at.work)
        yield started


@contextmanager
def noted(at: Places) -> Iterator[None]:
    """What stops a build is left for `datakit status`."""
    leave.note_failure(at.work, at.name, at.out, "")
    try:
        yield
    except (Exception, KeyboardInterrupt) as exc:
        with suppress(OSError):  # on a full disk there is no room for it either
            leave.note_failure(at.work, at.name, at.out, f"{type(exc).__name__}: {exc}")
        raise
