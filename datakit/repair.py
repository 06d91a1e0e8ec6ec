"""Makes the damaged files of a set again, byte for byte: from what is staged in WORK, else by the build itself.

What comes out takes the place of a damaged file only if its sha256 is the one that the manifest has of it. All others
stay as they are. Of the manifest in OUT and those noted in WORK the one counts that most files of OUT agree with.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from . import image
from .disk import PARTIAL, becoming, close_out
from .errors import DatakitError, ShardError
from .findings import Verified
from .folders import ORIGIN, OURS, locked, writing
from .leave import TIMINGS, Out, note_path, write_samples
from .manifest import Manifest, Shard
from .origin import Origin, manifest_of, origins
from .pipeline import build
from .stages.cut import Cut
from .stages.shards import SHARD, Tarred, note_written, notes_of, write_records
from .staging import cut_off
from .verify import INDEX, MANIFEST, SAMPLES

SCRATCH = "repair"  # folder below OUT/.partial


@dataclass
class Repair:
    """A repair under way."""

    found: Verified
    work: Path
    manifest: Manifest
    origin: Origin | None
    say: Callable[[str], None]
    workers: int | None
    restored: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out = self.found.out
        self.scratch = self.out / PARTIAL / SCRATCH
        self.expected = {s.name: s.sha256 for s in self.manifest.shards} | self.manifest.files
        self.sidecars = sidecars_in(self.work)

    def run(self) -> None:
        """Everything that is damaged, the manifest last."""
        damaged = {name for name in self.expected if not self.is_right(self.out / name)}
        for shard in self.manifest.shards:
            if shard.name in damaged and self.shard_from_work(shard):
                damaged.discard(shard.name)
        if damaged and damaged <= {INDEX, SAMPLES}:
            self.tables_from_work(damaged)
        if damaged:
            self.by_building(damaged)
        for shard in self.manifest.shards:  # so that a build writes none of them again
            if shard.sha256 in self.sidecars:
                note_written(self.job_of(shard, self.out))
        text = self.manifest.to_json()
        path = self.out / MANIFEST
        if not path.is_file() or path.read_bytes() != text.encode():
            with becoming(path, self.work) as aside:
                aside.write_text(text, encoding="utf-8")
            self.restored.append(MANIFEST)

    def is_right(self, path: Path) -> bool:
        if not path.is_file():
            return False
        known = self.found.sha256.get(path.name) if path.parent == self.out else None
        if known is None:
            with path.open("rb") as file:
                known = hashlib.file_digest(file, "sha256").hexdigest()
        return known == self.expected[path.name]

    def take(self, name: str) -> bool:
        """Put a file that was made aside in its place, if it is what it must be."""
        made = self.scratch / name
        if made.is_symlink() or not self.is_right(made):
            return False
        with becoming(self.out / name, self.work) as aside:
            made.replace(aside)
        self.found.sha256[name] = self.expected[name]
        self.restored.append(name)
        self.say(f"restored {name}")
        return True

    def job_of(self, shard: Shard, out: Path) -> Tarred:
        """A shard as the build knows it. KeyError if WORK does not have its records."""
        sidecar = self.sidecars[shard.sha256]
        there = pq.read_schema(sidecar).names
        members = tuple(m for m in self.manifest.members if f"{m}_offset" in there)
        return Tarred(shard.name, shard.split, members, sidecar, out, self.work)

    def shard_from_work(self, shard: Shard) -> bool:
        """Write a tar from its records and their staged bytes, if these are there still."""
        try:
            job = self.job_of(shard, self.scratch)
            table = pq.read_table(job.sidecar)
            if "staged" not in table.column_names:  # copied from where they lie
                return False
            write_records(job, table)
        except (KeyError, OSError, DatakitError):  # freed, or too short: the build makes them again
            return False
        if not self.take(shard.name):
            if self.origin is not None:  # what is staged is damaged, too: as if it had been freed
                cut_off({self.work / name for name in table.column("staged").unique().to_pylist()}, {})
            return False
        return True

    def tables_from_work(self, damaged: set[str]) -> None:
        """The index and the table of samples, from the records of the shards; what is restored leaves `damaged`."""
        try:
            jobs = [self.job_of(shard, self.out) for shard in self.manifest.shards]
        except KeyError:
            return
        if any("staged" not in pq.read_schema(job.sidecar).names for job in jobs):
            return
        for job in jobs:
            note_written(job)
        cut = Cut.model_validate(self.manifest.recipe["cut"])
        write_samples(jobs, Out(self.scratch, self.work), self.manifest.members, cut)
        damaged -= {name for name in [*damaged] if self.take(name)}

    def by_building(self, damaged: set[str]) -> None:
        """The rest, by the build itself, beside the shards that are right. ShardError says why that cannot be."""
        origin = self.origin
        if origin is None:
            raise ShardError(
                f"{self.work} does not know how {self.out} was built: run `datakit build` with its recipe again"
            )
        versions = image.versions()
        others = {k: v for k, v in self.manifest.versions.items() if k in versions and versions[k] != v}
        if others:
            said = ", ".join(f"{name} {version}" for name, version in others.items())
            raise ShardError(f"it was made with {said}: other versions give other bytes. Install these, then repair")
        for shard in self.manifest.shards:
            if shard.name not in damaged:
                (self.scratch / shard.name).symlink_to(self.out / shard.name)
                if shard.sha256 in self.sidecars:
                    note_written(self.job_of(shard, self.scratch))
        build(origin.spec(), origin.data, self.scratch, self.work, self.workers, origin.allow_missing, say=self.say)
        left = sorted(name for name in damaged if not self.take(name))
        if left:
            raise ShardError(
                f"{', '.join(left)}: building again gives other bytes: sources, recipe or libraries have changed "
                "since. Bring them back, or make a new set with `datakit build`"
            )

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The folder that files are made in, and what WORK notes of it; gone afterwards."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        (self.scratch / PARTIAL).mkdir(parents=True)
        try:
            yield
        finally:
            note = note_path(self.work, self.manifest.name, self.scratch)
            for suffix in (".json", ORIGIN, ".failed"):
                note.with_suffix(suffix).unlink(missing_ok=True)
            shutil.rmtree(notes_of(self.work, self.scratch), ignore_errors=True)
            close_out(self.out)


def sidecars_in(work: Path) -> dict[str, Path]:
    """The records of shards in a work folder, by the sha256 of the tar."""
    found: dict[str, Path] = {}
    for path in sorted((work / "shards").glob("*.parquet")):
        with suppress(OSError, ValueError, KeyError, pa.ArrowException):  # a damaged one is made again
            found.setdefault(json.loads(pq.read_schema(path).metadata[SHARD])["sha256"], path)
    return found


def repair(
    found: Verified,
    work: str | Path | None = None,
    say: Callable[[str], None] = print,
    workers: int | None = None,
) -> list[str]:
    """Restore what `verify(deep=True)` found damaged; gives the names of the files that were.

    work: the work folder of the build, else the one that it noted, else `OUT.work`. workers: as of `build`.
    ShardError where something cannot be restored: what, why, and what to do; what could be is restored all the same.
    """
    folder = Path(work).absolute() if work else work_of(found.out)
    if not (folder / OURS).exists():
        raise ShardError(f"{folder}: no work folder there. Name that of the build with --work")
    manifest, origin = best(found, folder)
    one = Repair(found, folder, manifest, origin, say, workers)
    with locked(folder), writing(found.out, folder), one.aside():
        one.run()
    return one.restored


def work_of(out: Path) -> Path:
    """The work folder that a set was built with."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = Path(json.loads((out / TIMINGS).read_bytes())["work"])
        if (said / OURS).exists():
            return said
    return out.with_name(f"{out.name}.work")


def best(found: Verified, work: Path) -> tuple[Manifest, Origin | None]:
    """The manifest that most files agree with, and what the set was made from. ShardError if there is no manifest."""
    known: list[tuple[Manifest, Origin | None]] = []
    with suppress(OSError, ValueError, ShardError):
        known.append((manifest_of((found.out / MANIFEST).read_text(encoding="utf-8")), None))
    for origin in origins(work):
        with suppress(ShardError):
            known.append((manifest_of(origin.manifest), origin))

    def agreeing(one: tuple[Manifest, Any]) -> tuple[int, bool]:
        claims = {s.name: s.sha256 for s in one[0].shards} | one[0].files
        names = [name for name in claims if (found.out / name).is_file()]
        return sum(found.digest_of(name) == claims[name] for name in names), one[1] is not None

    if not known:
        raise ShardError(f"{found.out}: no manifest of it is left here or in {work}: run `datakit build` again")
    return max(known, key=agreeing)
