"""The image in hand: written down before it is opened, so that who finds a dead process knows what it was reading.

A process that works on a part has one file below WORK/hands, named after the part, that holds the image in hand. It
goes when the part ends, well or with an error; where it stays, the process died. Timers of the kernel end a process
that is too long at one image: threads cannot be interrupted, and a reader that hangs may hold the interpreter.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .disk import here
from .sample import Sample, digest

HANDS = "hands"  # folder below WORK


class InHand(NamedTuple):
    """An image, as it is known to whoever finds it in a dead process's hand."""

    source: str
    name: str
    mark: str  # of this very file: another one of this name is not blamed


@dataclass(frozen=True)
class Limits:
    """What one image may take. More CPU than this, or that many times as long by the clock, ends the process."""

    cpu_s: float = 120.0
    cpu_s_per_mpx: float = 2.0  # `cut` needs a twentieth of it
    clock: float = 10.0  # times the CPU seconds
    memory_bytes: int = 0  # that a process which is alone with one image may have; 0: what its worker has

    def seconds(self, sample: Sample) -> float:
        """CPU seconds for an image whose size may not be known yet."""
        return self.cpu_s + self.cpu_s_per_mpx * sample.image_width * sample.image_height / 1e6


def image_mark(source: str, name: str, stamp: str, file_bytes: int) -> str:
    """20 hex digits of a file as it is now."""
    return digest(source, name, stamp, str(file_bytes))


def mark_of(sample: Sample) -> str:
    """The mark of the image that a sample is of."""
    return image_mark(sample.source, sample.name, sample.stamp, sample.file_bytes)


class _Hand:
    def __init__(self, path: Path, limits: Limits | None) -> None:
        self.path, self.limits = path, limits
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def take(self, sample: Sample) -> None:
        self._write(json.dumps(InHand(sample.source, sample.name, mark_of(sample))))
        if self.limits is not None:
            seconds = self.limits.seconds(sample)
            self._time(seconds, seconds * self.limits.clock)

    def put_down(self) -> None:
        self.stop()
        self._write("")

    def stop(self) -> None:
        if self.limits is not None:
            self._time(0, 0)

    def close(self) -> None:
        os.close(self.handle)
        self.path.unlink(missing_ok=True)

    def _write(self, text: str) -> None:
        os.pwrite(self.handle, f"{text}\n".encode(), 0)

    @staticmethod
    def _time(cpu_s: float, clock_s: float) -> None:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # SIGPROF: this process has used so much CPU
        signal.setitimer(signal.ITIMER_REAL, clock_s)  # SIGALRM: so much time has gone by


_hand: _Hand | None = None  # of this process: it makes one part at a time
_build: Path | None = None  # a folder that is there as long as the build whose task is in hand


def works_for(build: Path | None) -> None:
    """Say whose task this process has: `build` is a folder that is gone when the build is."""
    global _build
    _build = build


def is_wanted() -> bool:
    """Whether the build whose task is in hand still goes on, or died without a word and was not begun again."""
    return _build is None or _build.exists()


@contextmanager
def working(part: Path, work: Path, limits: Limits | None = None) -> Iterator[None]:
    """While the context lasts this process works on the part that will be at `part`.

    limits: end the process when an image takes more; None where it is not ours to end.
    """
    global _hand
    (work / HANDS).mkdir(exist_ok=True)
    before, mine = _hand, _Hand(work / HANDS / f"{part.stem}@{here()}@{os.getpid()}", limits)
    _hand = mine
    try:
        yield
    finally:
        _hand = before
        mine.close()


@contextmanager
def holding(sample: Sample) -> Iterator[None]:
    """While the context lasts the image of a sample is in hand."""
    hand = _hand
    if hand is None:
        yield
        return
    hand.take(sample)
    try:
        yield
    except MemoryError:  # it stays in hand: `alone` tries it in a process of its own
        hand.stop()
        raise
    except BaseException:
        hand.put_down()
        raise
    hand.put_down()


def is_held() -> bool:
    """Whether an image is in hand that is tried again, alone, after an error that says nothing of it."""
    return _hand is not None


def left(part: Path, work: Path) -> dict[Path, InHand | None]:
    """The files of processes that work, or died when they worked, on a part; and what each has in hand."""
    found: dict[Path, InHand | None] = {}
    for path in sorted((work / HANDS).glob(f"{part.stem}@*")):
        try:
            line = path.read_bytes().partition(b"\n")[0]
            found[path] = InHand(*json.loads(line)) if line else None
        except FileNotFoundError:  # it has ended just now
            continue
        except (ValueError, TypeError):  # a machine lost its power
            found[path] = None
    return found
