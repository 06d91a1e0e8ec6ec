"""Arguments of commands that several verbs read alike, and the stream that they tell of progress on."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """What reads an argument that is a whole number of at least `least`, and at most `most` if that is given."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text}: give a whole number {wanted}")
        return int(text)

    return read


def size(text: str) -> int:
    """Bytes from a text as 16GB, 500MB, 8GiB, or a number of bytes."""
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?B)?", text.strip().upper())
    if not found or (found[2] or "") not in units:
        raise argparse.ArgumentTypeError(f"{text}: give a size as in 16GB or 500MB")
    return int(float(found[1]) * units[found[2] or ""])


def say(line: str) -> None:
    """Progress goes to stderr, so that stdout holds results alone."""
    print(line, file=sys.stderr, flush=True)
