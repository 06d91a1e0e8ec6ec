"""Encoded tiles on their way from `cut` to the shards: a file beside each part, tiles in order of mix64(id)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from .errors import StageError
from .sample import Sample

STAGED = ".staged"  # suffix of the file beside a part's records


def files_of(part: Path) -> list[Path]:
    """The staging files of a part: more than one if it was made twice and gave other bytes; a name tells its bytes."""
    return sorted(part.parent.glob(f"{part.stem}.*{STAGED}"))


def part_of(staged: str) -> str:
    """The stem of the part that a staging file belongs to."""
    return staged.rpartition("/")[2].partition(".")[0]


def is_whole(work: Path, staged: str, end_bytes: int) -> bool:
    """Whether a staging file is there and reaches to `end_bytes`."""
    path = work / staged
    return path.exists() and path.stat().st_size >= end_bytes


def cut_off(paths: Iterable[Path], keep_bytes: dict[Path, int]) -> None:
    """Shorten staging files to what is still needed; those of which nothing is go."""
    for path in paths:
        keep = keep_bytes.get(path, 0)
        if not keep:
            path.unlink(missing_ok=True)
        elif path.exists() and path.stat().st_size > keep:
            os.truncate(path, keep)


class StagedFiles:
    """Reads tiles from staging files, a few of them open at a time."""

    MOST_OPEN = 200

    def __init__(self, work: Path) -> None:
        self.work = work
        self.open: dict[str, BinaryIO] = {}

    def __enter__(self) -> StagedFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, sample: Sample) -> bytes:
        """The encoded image of a tile."""
        return self._bytes(sample, 0, sample.staged_bytes - sample.mask_bytes)

    def read_mask(self, sample: Sample) -> bytes:
        """The encoded mask of a tile, which lies behind the image."""
        return self._bytes(sample, sample.staged_bytes - sample.mask_bytes, sample.mask_bytes)

    def _bytes(self, sample: Sample, begin: int, count: int) -> bytes:
        if sample.staged not in self.open:
            if len(self.open) >= self.MOST_OPEN:
                self.close()
            self.open[sample.staged] = (self.work / sample.staged).open("rb")
        file = self.open[sample.staged]
        file.seek(sample.staged_offset + begin)
        data = file.read(count)
        if len(data) != count:
            raise StageError(f"{self.work / sample.staged} is shorter than its records say: delete it and build again")
        return data

    def close(self) -> None:
        for file in self.open.values():
            file.close()
        self.open.clear()
