"""The folders of a build, OUT and WORK: claimed, locked, and cleared of what no build uses."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import files
from .errors import SourceError, StageError
from .remote import UNLISTED, Remote, Root, root_of
from .sample import digest
from .staging import files_of

ORIGIN = ".origin"  # suffix of the note of what a set can be made again from
OURS = "datakit.work"  # an empty file in every work folder
STEPS = ("scan", "exclude", "slice", "cut", "measured")  # each makes a part from a part
FOUND = ("labels", "same_place", "cnn", "contain", "decided", "shards", "written", "pictures")
KINDS = ("list", *STEPS, *FOUND, "hands", "tmp")  # sub-folders of WORK that can be made again


def places(out: str | Path | Remote, work: str | Path | None) -> tuple[Root, Path]:
    """OUT and WORK of a build, from what the user gave. StageError where a store would have to be the work folder."""
    at, here = root_of(out).absolute(), root_of(work) if work else None
    if isinstance(at, Remote) and at.scheme in UNLISTED:
        raise StageError(f"{at}: nothing can be written there. Name a folder, or a store such as s3://, with --out")
    if isinstance(here, Remote):
        raise StageError(f"{here}: parts are kept in a folder that all workers see. Name one with --work")
    if here is not None:
        return at, here.absolute()
    if isinstance(at, Remote):
        raise StageError(f"{at}: parts cannot be kept there. Name a folder that all workers see with --work")
    return at, at.with_name(at.name + ".work")


def refuse_overlap(out: Root, work: Path, roots: dict[str, Root]) -> None:
    """StageError if a build would write among its own sources, or its two folders are one."""
    if out.resolve() == work.resolve():
        raise StageError(f"{out}: --out and --work must be two folders")
    for name, root in roots.items():
        home = files.home(root).resolve()
        for folder in (out, work):
            if folder.resolve() == home:
                raise StageError(f"{folder} is the folder of {name}: write to another one")


def claim(folder: Root, signs: tuple[str, ...], option: str) -> None:
    """Make a folder; StageError if it holds files and none of the signs that an earlier build left."""
    try:
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
        strange = any(folder.iterdir()) and not any((folder / sign).exists() for sign in signs)
    except OSError as exc:
        raise StageError(f"{folder}: {exc.strerror}. Name a folder that can be written") from None
    if strange:
        raise StageError(f"{folder} holds files that are not of a build: name an empty or a new folder with {option}")


@contextmanager
def locked(work: Path, alone: bool = False) -> Iterator[None]:
    """Builds may share a work folder; `gc` and --free need it alone. StageError where that cannot be."""
    with (work / "lock").open("w") as file:
        if not taken(file.fileno(), fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
            busy = "a build is" if alone else "`datakit gc`, or a build with --free, is"
            raise StageError(f"{busy} running in {work}: wait until it ends") from None
        yield


@contextmanager
def writing(out: Root, work: Path) -> Iterator[None]:
    """Only one build at a time writes to a folder. Stores have no locks: builds of one work folder take turns there."""
    if isinstance(out, Path):
        handle = os.open(out, os.O_RDONLY)
    else:
        (work / "builds").mkdir(exist_ok=True)
        handle = os.open(work / "builds" / f"{digest(str(out))}.lock", os.O_RDWR | os.O_CREAT)
    try:
        if not taken(handle, fcntl.LOCK_EX):
            raise StageError(f"another build is writing to {out}: wait until it ends")
        yield
    finally:
        os.close(handle)


def taken(handle: int, how: int) -> bool:
    """Lock a file, if it is free within half a second: `datakit status` holds one for a moment."""
    for patience in range(10, -1, -1):
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
            return True
        except OSError:
            time.sleep(0.05 if patience else 0)
    return False


def is_written(out: Root, work: Path) -> bool:
    """Whether a build writes to a folder just now."""
    try:
        with writing(out, work):
            return False
    except StageError:
        return True
    except OSError:  # it was removed
        return False


def was_removed(out: Root) -> bool:
    """Whether OUT is gone, from a place that is there."""
    try:
        return not out.exists() and (out.top if isinstance(out, Remote) else out.parent).exists()
    except (OSError, SourceError):  # the store does not answer, or what asks it is not installed
        return False


def gc(work: str | Path) -> dict[str, int]:
    """Free what no build uses any more; gives files and bytes freed.

    A build whose OUT was removed counts no longer; one whose OUT lies on a disk, or in a store, that is not there does.
    """
    work = Path(work)
    if not (work / OURS).exists():
        raise StageError(f"{work}: not a work folder of datakit")
    with locked(work, alone=True):
        used: set[Path] = set()
        for note in sorted((work / "builds").glob("*.json")):
            about = json.loads(note.read_text())
            if not was_removed(root_of(about["out"])):
                used |= {work / name for name in about["uses"]}
            else:
                note.with_suffix(ORIGIN).unlink(missing_ok=True)
                note.unlink()
        used |= {staged for path in used for staged in files_of(path)}
        used |= {names for path in used for names in path.parent.glob("*.names.parquet")}
        freed = {"files": 0, "bytes": 0}
        for kind in KINDS:
            for path in sorted((work / kind).rglob("*"), reverse=True):
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
                elif path.is_file() and path not in used:
                    freed = {"files": freed["files"] + 1, "bytes": freed["bytes"] + path.stat().st_size}
                    path.unlink()
    return freed
