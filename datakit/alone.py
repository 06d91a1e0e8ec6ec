"""Images that no process survives: tried alone in a fresh process, and named only when they fail twice there.

A part whose process died is made again in a process of its own, after what that one had in hand was tried alone. What
was killed from outside proves well there and is not blamed; what kills its reader, hangs it or eats all memory is
written below WORK/blamed, and dropped by that reason whenever its part is made. Where processes still die, an image may
have left them such that a later one dies there: the part is then made in pieces, of as few images as it takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import psutil

from . import disk, hand
from .errors import StageError
from .hand import InHand, Limits

BLAMED = "blamed"  # folder below WORK
KILLS_READER, TIMED_OUT, OUT_OF_MEMORY = REASONS = ("kills_reader", "timed_out", "out_of_memory")
FAILURES = ("unreadable", "label_unreadable", *REASONS)  # drops that say nothing of what an image shows
TRIES = 2  # alone, in a fresh process, before an image is blamed
KILLS = 5  # from outside, in a row, before we give up
WHOLE = 2  # deaths in a row with nobody to blame before a part is made in pieces
ROOM_SHARE = 0.9  # of what is left to a container, that an image may have
NO_MEMORY = 12  # status of a process whose memory did not suffice
POLL_S = 0.02
FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGSYS, signal.SIGTRAP}
TIMERS = {signal.SIGPROF, signal.SIGALRM}
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
R = TypeVar("R")


class Item(Protocol):
    """A part to make: a task's argument."""

    @property
    def path(self) -> Path: ...
    @property
    def work(self) -> Path: ...

    def images(self) -> list[InHand]:
        """What it reads, in order; none where it cannot be made in pieces."""
        ...

    def only(self, some: Sequence[InHand], aside: Path) -> Self:
        """The same for some images, to be left in `aside`."""
        ...

    def joined(self, pieces: Sequence[Path]) -> Self:
        """The same from what was left for all images that are not blamed: it opens none."""
        ...


class Blame(Exception):
    """Why a process ended."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class FromOutside(Exception):
    """A process was killed, and no image is to blame."""


def safely(task: Callable[[Any], R], limits: Limits, item: Any, ours: bool = True) -> R:
    """task(item), once what died before on the same part is looked into.

    ours: whether this process may be ended when one image takes too long.
    """
    dead = hand.left(item.path, item.work)
    if not dead:
        with hand.working(item.path, item.work, limits if ours else None):
            try:
                return task(item)
            except MemoryError:  # what was in hand then still is
                dead = hand.left(item.path, item.work)
    return carefully(task, limits, item, dead)


def carefully(task: Callable[[Any], R], limits: Limits, item: Any, dead: dict[Path, InHand | None]) -> R:
    """task(item) in a process of its own, as often as it takes: each time it dies an image is tried alone."""
    killed = 0
    while True:
        images = sorted({image for image in dead.values() if image})
        blamed = [look_into(task, limits, item, image) for image in images]
        for path in dead:
            path.unlink(missing_ok=True)
        killed = 0 if any(blamed) else killed + 1
        if killed > KILLS:
            names = ", ".join(f"{image.source}: {image.name}" for image in images)
            raise StageError(
                f"{item.path.stem}: {killed} processes in a row died on it, with {names or 'no image'} in hand, "
                "and alone each image is well. Is there too little memory? Give --memory, or fewer --workers"
            )
        if killed >= WHOLE and images and item.images():
            return in_pieces(task, limits, item)
        try:
            return in_fresh_process(task, item, limits)
        except (Blame, FromOutside):
            dead = hand.left(item.path, item.work)


def in_pieces(task: Callable[[Any], R], limits: Limits, item: Any) -> R:
    """task(item) from pieces, each made in a process of its own: one that dies is halved, down to single images."""
    with disk.aside(item.work) as aside:
        pieces, waiting = [], [item.images()]
        while waiting:
            blamed = blamed_of(item.path, item.work)
            some = [image for image in waiting.pop() if image.mark not in blamed]
            if not some:
                continue
            piece = item.only(some, aside)
            try:
                in_fresh_process(task, piece, limits)
                pieces.append(piece.path)
            except (Blame, FromOutside):
                left, middle = hand.left(piece.path, item.work), len(some) // 2
                for path in left:
                    path.unlink(missing_ok=True)
                suspects = [image for image in left.values() if image] if middle else some
                found = any(look_into(task, limits, item, image) for image in suspects)
                waiting += [some] if found or not middle else [some[middle:], some[:middle]]
        return task(item.joined(pieces))


def look_into(task: Callable[[Any], Any], limits: Limits, item: Any, image: InHand) -> bool:
    """Whether an image is to blame: it fails twice, alone in a fresh process. If so it is written down."""
    if image.mark in blamed_of(item.path, item.work):
        return True
    failures, kills = 0, 0
    while failures < TRIES:
        with disk.aside(item.work) as aside:
            alone = item.only([image], aside)
            try:
                in_fresh_process(task, alone, limits)
                return False
            except (Blame, FromOutside) as exc:
                left = hand.left(alone.path, item.work)
                for path in left:
                    path.unlink(missing_ok=True)
                if isinstance(exc, Blame) and image in left.values():  # it was being read
                    failures += 1
                    blame = exc
                    continue
                kills += 1
                if kills == KILLS:
                    raise StageError(
                        f"{image.source}: {image.name}: its process was ended {KILLS} times: {exc}. Is there too "
                        "little memory? Give --memory, or fewer --workers"
                    ) from None
    write_down(item, image, blame)
    return True


def in_fresh_process(task: Callable[[Any], R], item: Any, limits: Limits) -> R:
    """task(item) in a new process; Blame or FromOutside if that dies, else what the task raises."""
    with disk.aside(item.work) as aside, (aside / "said").open("w+b") as said:
        (aside / "task").write_bytes(pickle.dumps((task, item, limits)))
        paths = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        command = [sys.executable, "-P", "-m", __name__, str(aside)]  # -P: a psutil.py of the user's is not ours
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said, env=environment)
        try:
            ate = watch(child, limits.memory_bytes)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        answer = aside / "answer"
        if answer.exists():
            done, value = pickle.loads(answer.read_bytes())  # written by the process that we started
        else:
            if child.returncode > 0 and not any(hand.left(item.path, item.work).values()):
                said.seek(0)
                last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise StageError(f"{item.path.stem}: a process of its own ended with status {child.returncode}: {last}")
            raise why(child.returncode, ate)
    if done:
        return value  # type: ignore[no-any-return]
    raise value


def watch(child: subprocess.Popen[bytes], most_bytes: int) -> int:
    """Wait for a process; one that has more memory than this is killed. Gives what it had then, else 0."""
    process = psutil.Process(child.pid)
    while child.poll() is None:
        with contextlib.suppress(psutil.Error):
            has = process.memory_info().rss
            if most_bytes and has > most_bytes:
                child.kill()
                child.wait()
                return int(has)
        time.sleep(POLL_S)
    return 0


def why(status: int, ate_bytes: int) -> Exception:
    """What the end of a process tells."""
    if ate_bytes:
        return Blame(OUT_OF_MEMORY, f"had {ate_bytes / 1e6:,.0f} MB, alone in a process")
    if status == NO_MEMORY:
        return Blame(OUT_OF_MEMORY, "more memory than there is, alone in a process")
    if status >= 0:
        return Blame(KILLS_READER, f"its process ended with status {status}")
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    if -status in TIMERS:
        return Blame(TIMED_OUT, f"not read in time ({name})")
    return Blame(KILLS_READER, f"its process died of {name}") if -status in FAULTS else FromOutside(name)


def write_down(item: Item, image: InHand, blame: Blame) -> None:
    """Leave word of an image that is to blame, for this part and all that will be made by the same stage."""
    folder = _folder(item.path, item.work)
    folder.mkdir(parents=True, exist_ok=True)
    about = {**image._asdict(), "reason": blame.reason, "detail": blame.detail}
    with disk.aside(item.work) as aside:
        disk.commit_text(json.dumps(about), folder / f"{image.mark}.json", aside)


def blamed_of(part: Path, work: Path) -> dict[str, tuple[str, str]]:
    """Reason and detail of the images that the stage of a part cannot read, by mark."""
    found = {}
    for path in sorted(_folder(part, work).glob("*.json")):
        about = json.loads(path.read_text())
        found[about["mark"]] = about["reason"], about["detail"]
    return found


def _folder(part: Path, work: Path) -> Path:
    return work / BLAMED / part.parent.relative_to(work)


def portable(exc: Exception) -> Exception:
    """An error that can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(exc))
    except Exception:
        return StageError(f"{type(exc).__name__}: {exc}")
    return exc


def room_bytes(groups: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> int:
    """What is left of the memory of the container or the job that we are in; 0 where it has no limit."""
    left = []
    for line in mine.read_text().splitlines() if mine.exists() else ():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        old = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")  # cgroups, version 1
        limit, usage, cached = old if kinds else ("memory.max", "memory.current", "inactive_file")
        top = groups / "memory" if kinds else groups
        folder = top / path.strip("/")
        for group in (folder, *(parent for parent in folder.parents if parent.is_relative_to(top))):
            try:
                most, used = (int((group / name).read_text()) for name in (limit, usage))
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # it lies elsewhere in a container; "max": no limit
                continue
            left.append(max(most - used + int(stat.get(cached, 0)), 1))
    return min(left, default=0)


def fail_first(most_bytes: int, room: int) -> None:
    """Have this process fail by MemoryError before the kernel ends it, or all of its container, without a word.

    Others may have taken what there is for now: a quarter of what an image may have is always granted.
    """
    if 0 < room < (most_bytes or math.inf):
        more = max(int(room * ROOM_SHARE), most_bytes // 4)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        has = psutil.Process().memory_info().data
        resource.setrlimit(resource.RLIMIT_DATA, (has + more, hard))


def main(folder: Path) -> None:
    """The fresh process: does what the file `task` says and leaves an `answer`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    task, item, limits = pickle.loads((folder / "task").read_bytes())  # written by the process that started us
    fail_first(limits.memory_bytes, room_bytes())
    answer: tuple[bool, Any]
    try:
        with hand.working(item.path, item.work, limits):
            try:
                answer = True, task(item)
            except MemoryError:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(NO_MEMORY)  # with the image in hand
    except Exception as exc:
        answer = False, portable(exc)
    (folder / "answer.part").write_bytes(pickle.dumps(answer))
    (folder / "answer.part").replace(folder / "answer")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
