"""Small pictures of what was left out: for each source and reason the drops of lowest hash, as 128 px JPEGs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import disk, image
from .alone import REASONS, blamed_of
from .hand import holding, mark_of
from .remote import Root
from .sample import Sample, digest, from_table, mix64
from .staging import StagedFiles

A_GROUP = 24  # pictures of one source and reason
SIDE_PX = 128
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

    def only(self, mark: str, aside: Path) -> PictureJob:
        """The picture of one image alone, to be left in `aside`."""
        mine = tuple(sample for sample in self.samples if mark_of(sample) == mark)
        return replace(self, samples=mine, path=aside / f"{mark}.parquet")


def picture_jobs(dropped: pa.Table, work: Path, aside: Path, roots: dict[str, Root]) -> list[PictureJob]:
    """A job for each source, stage and reason of a table of dropped records (SCHEMA and `stage`)."""
    kinds = dropped.group_by(["source", "stage", "dropped"]).aggregate([]).to_pylist()
    jobs = []
    for kind in sorted(kinds, key=lambda k: (k["source"], k["stage"], k["dropped"])):
        same = [pc.equal(dropped.column(name), kind[name]) for name in ("source", "stage", "dropped")]
        rows = dropped.filter(pc.and_(pc.and_(same[0], same[1]), same[2]))
        order = np.argsort(mix64(rows.column("id").to_numpy(), 0), kind="stable")[:A_GROUP]
        samples = tuple(from_table(rows.take(pa.array(order)).drop_columns(["stage"])))
        name = digest(kind["stage"], *(json.dumps([s.key, s.path, s.stamp, s.staged, s.dropped]) for s in samples))
        jobs.append(PictureJob(kind["stage"], samples, work / "pictures" / f"{name}.parquet", work, aside, roots))
    return jobs


def draw(job: PictureJob) -> int:
    """Write the pictures of a group; gives how many source images were opened for it."""
    rows, opened = [], 0
    blamed = blamed_of(job.path, job.work)
    with StagedFiles(job.work) as staged:
        for sample in job.samples:
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
