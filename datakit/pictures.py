"""Small pictures of what was left out: for each source and reason the drops of lowest hash, as 128 px JPEGs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import disk, image
from .alone import REASONS, blamed_of
from .dropped import Dropped
from .hand import InHand, holding, mark_of
from .looks import SCENE, TILE
from .remote import Root
from .sample import Sample, digest, from_table, mix64
from .staging import StagedFiles

A_GROUP = 24  # pictures of one source and reason
SIDE_PX = 128
KIND = ("source", "stage", "dropped")
SCHEMA = pa.schema([(n, pa.string()) for n in ("key", "source", "stage", "dropped")] + [("jpeg", pa.binary())])


@dataclass(frozen=True)
class PictureJob:
    """The pictures of one source and reason."""

    stage: str
    samples: tuple[Sample, ...]
    path: Path
    work: Path
    aside: Path
    roots: dict[str, Root]
    pieces: tuple[Path, ...] = ()  # the pictures of some of its images each

    def images(self) -> list[InHand]:
        return list(dict.fromkeys(InHand(s.source, s.name, mark_of(s)) for s in self.samples))

    def only(self, some: Sequence[InHand], aside: Path) -> PictureJob:
        """The pictures of some images, to be left in `aside`."""
        marks = [image.mark for image in some]
        mine = tuple(sample for sample in self.samples if mark_of(sample) in marks)
        return replace(self, samples=mine, path=aside / f"{digest(*marks)}.parquet")

    def joined(self, pieces: Sequence[Path]) -> PictureJob:
        return replace(self, pieces=tuple(pieces))


def picture_jobs(dropped: Dropped, work: Path, aside: Path, roots: dict[str, Root]) -> list[PictureJob]:
    """A job for each source, stage and reason."""
    columns = [dropped.said.column(name).combine_chunks() for name in KIND]
    kind = np.zeros(len(dropped), np.int64)
    for column in columns:
        kind = kind * len(column.dictionary) + column.indices.to_numpy()
    by = np.lexsort([mix64(dropped.said.column("id").to_numpy(), 0), kind])
    first = np.flatnonzero(np.diff(kind[by], prepend=-1))
    nth = np.arange(len(by)) - np.repeat(first, np.diff(first, append=len(by)))
    table = dropped.read(by[nth < A_GROUP], (*TILE, *SCENE))
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for stage, sample in zip(table.column("stage").to_pylist(), from_table(table), strict=True):
        groups.setdefault((sample.source, stage, sample.dropped), []).append(sample)
    jobs = []
    for (_, stage, _), samples in sorted(groups.items(), key=lambda group: group[0]):
        name = digest(stage, *(json.dumps([s.key, s.path, s.stamp, s.staged, s.dropped]) for s in samples))
        jobs.append(PictureJob(stage, tuple(samples), work / "pictures" / f"{name}.parquet", work, aside, roots))
    return jobs


def draw(job: PictureJob) -> int:
    """Write the pictures of a group; gives how many source images were opened for it."""
    rows, opened = [], 0
    made = {row["key"]: row for piece in job.pieces for row in pq.read_table(piece).to_pylist()}
    blamed = blamed_of(job.path, job.work)
    with StagedFiles(job.work) as staged:
        for sample in job.samples:
            if job.pieces:
                rows += [made[sample.key]] if sample.key in made else []
                continue
            if sample.staged:
                picture = image.preview(staged.read(sample), SIDE_PX)
            elif sample.dropped in REASONS or mark_of(sample) in blamed:
                continue
            else:
                opened += 1
                root = job.roots[sample.source.partition("/")[0]]
                with holding(sample):
                    picture = image.preview_of(root, sample, job.aside, SIDE_PX)
            if picture is not None:
                row = {"key": sample.key, "source": sample.source, "stage": job.stage, "dropped": sample.dropped}
                rows.append({**row, "jpeg": picture})
    disk.commit(pa.Table.from_pylist(rows, schema=SCHEMA), job.path, job.aside)
    return opened
