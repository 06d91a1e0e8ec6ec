"""Means and deviations that images are normalised by, as shares of the highest level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..bands import COLUMNS, SUMS, Sums
from ..errors import RecipeError, ShardError
from .augment import IMAGENET, Normalise, Scaled

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]
Counts = Callable[[int, int], NDArray[np.int64]]  # how often each of rows low .. high counts


def mean_std(normalise: Normalise, samples: Callable[[], Sequence[tuple[Path, Counts]]]) -> MeanStd | None:
    """(mean, deviation) of each band, 0..1; None: images stay as levels.

    "dataset": over all valid pixels of the samples of builds, from their samples.parquet, each as often as it counts.
    """
    if normalise is None:
        return None
    if normalise == "imagenet":
        return IMAGENET
    if normalise == "dataset":
        return _of_samples(samples())
    if not isinstance(normalise, dict) or {*normalise} != {"mean", "std"}:
        raise RecipeError(f"normalise: {normalise!r}: imagenet, dataset, {{mean: [...], std: [...]}} or None")
    mean, std = (tuple(float(v) for v in normalise[name]) for name in ("mean", "std"))
    if len(mean) != len(std) or not mean or min(std) <= 0:
        raise RecipeError("normalise: mean and std have one number a band, and std is above 0")
    return mean, std


def scaled(numbers: MeanStd | None, highest: int) -> Scaled:
    """What turns levels of 0..highest to normalised numbers."""
    if numbers is None:
        return Scaled()
    mean, std = numbers
    return Scaled(tuple(1 / (highest * s) for s in std), tuple(-m / s for m, s in zip(mean, std, strict=True)))


def _of_samples(samples: Sequence[tuple[Path, Counts]]) -> MeanStd:
    sums = Sums()
    for path, counts in samples:
        if not path.is_file():
            raise RecipeError(f"normalise: dataset: {path} is not there; only a build has it. Give mean and std")
        sums.join(summed(path, counts))
    names = ", ".join(str(path) for path, _ in samples)
    if len({(dtype, bands) for _, dtype, bands in sums.found}) > 1:
        raise ShardError(f"{names}: its images differ in bands: give mean and std")
    bands = sums.overall()
    if not bands or not all(band.pixels for band in bands):
        raise ShardError(f"{names}: no valid pixel to take means of")
    if not all(band.deviation for band in bands):
        raise ShardError(f"{names}: a band has one level alone: give mean and std")
    return tuple(b.mean / b.highest for b in bands), tuple(b.deviation / b.highest for b in bands)


def summed(path: Path, counts: Counts) -> Sums:
    """What the records of a samples.parquet add up to, each as often as it counts."""
    file, first = pq.ParquetFile(path), 0
    there, sums = file.schema_arrow.names, Sums.of(file.schema_arrow)
    if not {*SUMS} <= {*there}:
        raise ShardError(f"{path}: no pixel was measured: the images of this set are copies of files")
    for batch in file.iter_batches(1 << 16, columns=[name for name in COLUMNS if name in there]):
        sums.add(pa.table(batch), counts(first, first + batch.num_rows))
        first += batch.num_rows
    return sums
