"""Means and deviations that images are normalised by, as shares of the highest level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import RecipeError, ShardError
from .augment import IMAGENET, Normalise, Scaled

NAMES = ["band_count", "band_sum", "band_sum_squares"]
MeanStd = tuple[tuple[float, ...], tuple[float, ...]]


Counts = Callable[[int, int], NDArray[np.int64]]  # how often each of rows low .. high counts


def mean_std(
    normalise: Normalise, samples: Callable[[], Sequence[tuple[Path, Counts]]], highest: int = 255
) -> MeanStd | None:
    """(mean, deviation) of each band, 0..1; None: images stay as levels.

    "dataset": over all valid pixels of the samples of builds, from their samples.parquet, whose levels go up to
    `highest`, each as often as it counts.
    """
    if normalise is None:
        return None
    if normalise == "imagenet":
        return IMAGENET
    if normalise == "dataset":
        return _of_samples(samples(), highest)
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


def _of_samples(samples: Sequence[tuple[Path, Counts]], highest: int) -> MeanStd:
    sums: NDArray[np.float64] | None = None
    for path, counts in samples:
        if not path.is_file():
            raise RecipeError(f"normalise: dataset: {path} is not there; only a build has it. Give mean and std")
        for part in _sums(path, counts):
            if sums is not None and part.shape != sums.shape:
                raise ShardError(f"{path}: its images differ in bands: give mean and std")
            sums = part if sums is None else sums + part
    names = ", ".join(str(path) for path, _ in samples)
    if sums is None or not sums[0].all():
        raise ShardError(f"{names}: no valid pixel to take means of")
    mean = sums[1] / sums[0]
    std = np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 0))
    if not std.all():
        raise ShardError(f"{names}: a band has one level alone: give mean and std")
    return tuple((mean / highest).tolist()), tuple((std / highest).tolist())


def _sums(path: Path, counts: Counts) -> Iterator[NDArray[np.float64]]:
    """Of some samples after others: valid pixels, sum and sum of squares of each band, (3, C)."""
    first = 0
    for batch in pq.ParquetFile(path).iter_batches(1 << 16, columns=NAMES):
        times = counts(first, first + batch.num_rows)
        first += batch.num_rows
        flat = [pc.list_flatten(batch.column(name)).to_numpy(zero_copy_only=False).astype(float) for name in NAMES]
        if len(flat[0]) % batch.num_rows:
            raise ShardError(f"{path}: its images differ in bands: give mean and std")
        yield np.array([times @ column.reshape(batch.num_rows, -1) for column in flat])
