"""What is wrong with a set, or with tars: findings, each with the file and the command that repairs it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SHOWN = 3  # findings of one kind in one file


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: the file below OUT, what it is, and the command that repairs it."""

    file: str
    what: str
    todo: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}\n    {self.todo}"


@dataclass
class Verified:
    """What was found. sha256: of the files whose bytes were read, by name."""

    out: Path
    deep: bool
    findings: list[Finding] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)
    samples: int = 0
    shards: int = 0

    def add(self, file: str, what: str, todo: str = "") -> None:
        self.findings.append(Finding(file, what, todo or f"datakit verify {self.out} --repair"))

    def some(self, file: str, wrong: Sequence[str]) -> None:
        """The first of many findings in a file, and how many there are."""
        more = f" (and {len(wrong) - SHOWN:,} more)" if len(wrong) > SHOWN else ""
        for n, what in enumerate(wrong[:SHOWN]):
            self.add(file, what + (more if n == SHOWN - 1 else ""))

    def digest_of(self, name: str) -> str:
        if name not in self.sha256:
            with (self.out / name).open("rb") as file:
                self.sha256[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.sha256[name]
