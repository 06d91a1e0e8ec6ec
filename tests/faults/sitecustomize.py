"""Bad readers: with this folder on PYTHONPATH, a JPEG whose comment begins with "fault:" does that to its process.

It stands where a broken libjpeg would: a JPEG that is decoded kills, hangs or eats. "once" kills only the first time.
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


FAULTS = {"segfault": segfault, "leave": leave, "hang": hang, "spin": spin, "eat": eat, "once": once}


def bad_load(image: Any) -> Any:
    comment = image.info.get("comment", b"").decode("latin-1")
    if comment.startswith("fault:"):
        _, kind, *rest = comment.split(":", 2)
        FAULTS[kind](*rest or [""])
    return load(image)


JpegImagePlugin.JpegImageFile.load = bad_load
