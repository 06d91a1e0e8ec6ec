"""Means and deviations that images are normalised by, as shares of the highest level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import RecipeError, ShardError
from .augment import IMAGENET, Normalise, Scaled

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]


def mean_std(
    normalise: Normalise, samples: Path, highest: int = 255, rows: NDArray[np.int64] | None = None
) -> MeanStd | None:
    """(mean, deviation) of each band, 0..1; None: images stay as levels.

    "dataset": over all valid pixels of the samples of a build, from its samples.parquet, whose levels go up to
    `highest`; `rows` are those that count, all if it is None.
    """
    if normalise is None:
        return None
    if normalise == "imagenet":
        return IMAGENET
    if normalise == "dataset":
        return _of_samples(samples, highest, rows)
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


def _of_samples(samples: Path, highest: int, rows: NDArray[np.int64] | None) -> MeanStd:
    if not samples.is_file():
        raise RecipeError(f"normalise: dataset: {samples} is not there; only a build has it. Give mean and std")
    names = ["band_count", "band_sum", "band_sum_squares"]
    file, first = pq.ParquetFile(samples), 0
    sums: NDArray[np.float64] | None = None
    for batch in file.iter_batches(1 << 16, columns=names):
        times = (
            np.ones(batch.num_rows)
            if rows is None
            else np.bincount(rows[(rows >= first) & (rows < first + batch.num_rows)] - first, minlength=batch.num_rows)
        )
        first += batch.num_rows
        flat = [pc.list_flatten(batch.column(name)).to_numpy(zero_copy_only=False).astype(float) for name in names]
        if len(flat[0]) % batch.num_rows:
            raise ShardError(f"{samples}: its images differ in bands: give mean and std")
        part = np.array([times @ column.reshape(batch.num_rows, -1) for column in flat])
        if sums is not None and part.shape != sums.shape:
            raise ShardError(f"{samples}: its images differ in bands: give mean and std")
        sums = part if sums is None else sums + part
    if sums is None or not sums[0].all():
        raise ShardError(f"{samples}: no valid pixel to take means of")
    mean = sums[1] / sums[0]
    std = np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 0))
    if not std.all():
        raise ShardError(f"{samples}: a band has one level alone: give mean and std")
    return tuple((mean / highest).tolist()), tuple((std / highest).tolist())
