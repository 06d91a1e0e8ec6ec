"""Bad readers: with this folder on PYTHONPATH, a JPEG whose comment begins with "fault:" does that to its process.

It stands where a broken libjpeg would: a JPEG that is decoded kills, hangs or eats. "once" kills only the first time,
"short" has too little memory the first time, "wait" waits for a file, and "poison" is well, but a "victim" that its
process reads later kills.
"""

import ctypes
import os
import time
from pathlib import Path
from typing import Any

from PIL import JpegImagePlugin

load = JpegImagePlugin.JpegImageFile.load


def segfault(_: str) -> None:
    ctypes.string_at(0)


def leave(_: str) -> None:
    os._exit(3)


def hang(_: str) -> None:
    ctypes.PyDLL(None).sleep(1000)  # holds the interpreter, as a C library may


def spin(_: str) -> None:
    while True:
        pass


def eat(_: str) -> None:
    held = []
    while True:
        held.append(b"x" * (1 << 26))
        time.sleep(0.02)


def once(flag: str) -> None:
    if not Path(flag).exists():
        Path(flag).touch()
        segfault(flag)


def lack(_: str) -> None:
    raise MemoryError


def short(flag: str) -> None:
    if not Path(flag).exists():
        Path(flag).touch()
        raise MemoryError


def poison(_: str) -> None:
    damage.append(True)


def victim(_: str) -> None:
    if damage:
        segfault("")


def wait(folder: str) -> None:
    Path(folder, "reached").touch()
    while not Path(folder, "gate").exists():
        time.sleep(0.02)


damage: list[bool] = []
FAULTS = {f.__name__: f for f in (segfault, leave, hang, spin, eat, once, lack, short, poison, victim, wait)}


def bad_load(image: Any) -> Any:
    comment = image.info.get("comment", b"").decode("latin-1")
    if comment.startswith("fault:"):
        _, kind, *rest = comment.split(":", 2)
        FAULTS[kind](*rest or [""])
    return load(image)


JpegImagePlugin.JpegImageFile.load = bad_load
