"""The noise of a camera by ISO: from DNG files that tell it, else from the flat parts of many pictures.

The variance of a signal, 0 at black and 1 at white, is shot * signal + read (Foi et al., IEEE TIP 2008, section II).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from . import bayer, raw
from .dng import NOISE_PROFILE
from .errors import DatakitError, SourceError
from .raw import RawImage

SIDE_PX = 8  # of a patch of one colour's samples
FREE = SIDE_PX**2 - 3  # degrees of freedom beside a plane
MEDIAN = (1 - 2 / (9 * FREE)) ** 3  # of a mean of so many squares, to their expectation (Wilson and Hilferty, 1931)
FLAT = (0.8, 1.25)  # variance about a plane by that of neighbours: 1 where there is noise alone
BINS, LEAST_BINS, OF_BIN = 40, 8, 25  # by brightness; patches of each
CLEAR = 3.5  # deviations that must fit between a signal and where it is clipped
LEAST_R2 = 0.9  # of a fit that is given
SUB_IFDS = 0x014A
DIRECTORIES = 64  # of a file, at most
PRIOR = (2.18, 1.20, 0.26)  # log(read) by log(shot), and deviation (Brooks et al., CVPR 2019, 3.1)
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """Of one ISO; 0 where files do not tell. r2: of the fit, None where the files tell the noise themselves."""

    iso: float
    files: int
    shot: float
    read: float
    r2: float | None = None
    patches: int = 0
    refused: str = ""  # why there are no numbers

    @property
    def how(self) -> str:
        return "refused" if self.refused else "profile" if self.r2 is None else "fit"


def by_iso(paths: Iterable[Path]) -> list[Noise]:
    """Noise of each ISO of some files, from the lowest. SourceError for files that are no camera RAW."""
    told: dict[float, list[tuple[float, float]]] = defaultdict(list)
    seen: dict[float, list[tuple[Numbers, Numbers]]] = defaultdict(list)
    lowest: dict[float, float] = defaultdict(lambda: -1.0)
    for path in paths:
        image = raw.read(path)
        known = profile(path)
        if known is not None:
            told[image.iso].append(known)
        else:
            seen[image.iso].append(patches(image))
            lowest[image.iso] = max(lowest[image.iso], *(-black / (image.white - black) for black in image.black))
    found = []
    for iso in sorted({*told, *seen}):
        if iso in told:
            shot, read = np.mean(told[iso], 0).tolist()
            found.append(Noise(iso, len(told[iso]), shot, read))
        else:
            means, variances = (np.concatenate(each) for each in zip(*seen[iso], strict=True))
            found.append(fitted(iso, len(seen[iso]), means, variances, lowest[iso]))
    return found


def profile(path: Path) -> tuple[float, float] | None:
    """(shot, read) of a DNG's NoiseProfile, the mean of its colours; None where it has none."""
    with path.open("rb") as file:
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*"):
            return None
        waiting, done = [int.from_bytes(head[4:], "little" if head[:2] == b"II" else "big")], 0
        while waiting and done < DIRECTORIES:
            file.seek(waiting.pop(0))
            done += 1
            directory = ImageFileDirectory_v2(head)
            try:
                directory.load(file)
                values = np.array(directory.get(NOISE_PROFILE, ()), np.float64)
                below = directory.get(SUB_IFDS, ())
            except Exception:  # what Pillow makes of a foreign directory: a profile is not worth a file
                continue
            if len(values) >= 2 and len(values) % 2 == 0 and (values >= 0).all() and values[::2].all():
                shot, read = values.reshape(-1, 2).mean(0).tolist()
                return shot, read
            waiting += [int(n) for n in (below if isinstance(below, tuple) else (below,))]
            waiting += [directory.next] if directory.next else []
    return None


def patches(image: RawImage) -> tuple[Numbers, Numbers]:
    """Mean and variance of the signal in flat patches of each colour, (N,) both."""
    height, width = (side // (2 * SIDE_PX) * 2 * SIDE_PX for side in image.mosaic.shape)
    levels = image.mosaic[:height, :width]
    means, variances = [], []
    for n, (y, x) in enumerate(bayer.SITES):
        black, white = image.black[n], (image.white_by_site or (image.white,) * 4)[n]
        parts = levels[y::2, x::2].reshape(height // 2 // SIDE_PX, SIDE_PX, width // 2 // SIDE_PX, SIDE_PX)
        own = parts.transpose(0, 2, 1, 3).reshape(-1, SIDE_PX, SIDE_PX)
        mean, variance = flat((own.astype(np.float64) - black) / (white - black))
        means.append(mean)
        variances.append(variance)
    return np.concatenate(means), np.concatenate(variances)


def flat(signal: Numbers) -> tuple[Numbers, Numbers]:
    """Of patches (N, SIDE_PX, SIDE_PX), mean and variance about a plane of those that hold noise alone.

    In noise the variance about a plane is that which neighbours tell, half of their squared difference; what is drawn
    in a patch makes the first larger, unless it is as fine as the noise.
    """
    across = np.arange(SIDE_PX) - (SIDE_PX - 1) / 2
    rows, columns = np.meshgrid(across, across, indexing="ij")
    length = (rows**2).sum()
    mean = signal.mean((1, 2))
    slopes = [np.tensordot(signal, axis, ((1, 2), (0, 1)))[:, None, None] / length * axis for axis in (rows, columns)]
    rest = signal - mean[:, None, None] - slopes[0] - slopes[1]
    variance = (rest**2).sum((1, 2)) / FREE
    steps = (np.diff(rest, axis=1) ** 2).mean((1, 2)), (np.diff(rest, axis=2) ** 2).mean((1, 2))
    neighbours = (steps[0] + steps[1]) / 4 * SIDE_PX**2 / FREE
    fine = (variance > FLAT[0] * neighbours) & (variance < FLAT[1] * neighbours)
    return mean[fine], variance[fine]


def fitted(iso: float, files: int, means: Numbers, variances: Numbers, lowest: float) -> Noise:
    """A line through the medians of patches that are about as bright; each counts by what it is sure of.

    lowest: the signal of a level of 0. Where noise would reach below it, or above 1, it is cut off, and tells nothing.
    """
    bins = min(BINS, len(means) // OF_BIN)
    if bins < LEAST_BINS:
        need = LEAST_BINS * OF_BIN
        return Noise(
            iso, files, 0, 0, None, len(means), f"{len(means)} flat patches, {need} are needed: give more files"
        )
    parts = np.array_split(np.argsort(means, kind="stable"), bins)
    x = np.array([means[part].mean() for part in parts])
    y = np.array([np.median(variances[part]) for part in parts]) / MEDIAN
    reach = CLEAR * np.sqrt(y)
    whole_noise = (x - reach > lowest) & (x + reach < 1) & (y > 0)
    x, y = x[whole_noise], y[whole_noise]
    if len(x) < LEAST_BINS:
        why = (
            f"noise is cut off but in {len(x)} of {bins} grades of light: give pictures that are neither dark nor white"
        )
        return Noise(iso, files, 0, 0, None, len(means), why)
    weights = 1 / y**2
    for _ in range(5):
        shot, read = line(x, y, weights)
        weights = 1 / np.maximum(shot * x + read, y.min() / 4) ** 2
    left, whole = (y - shot * x - read) ** 2, (y - np.average(y, weights=weights)) ** 2
    r2 = float(1 - (weights * left).sum() / max((weights * whole).sum(), 1e-300))
    if r2 < LEAST_R2 or shot <= 0:
        why = f"R^2 of the line is {r2:.2f}, below {LEAST_R2}: give pictures of flat surfaces in light and in shadow"
        return Noise(iso, files, 0, 0, r2, len(means), why)
    return Noise(iso, files, float(shot), float(read), r2, len(means))


def line(x: Numbers, y: Numbers, weights: Numbers) -> tuple[float, float]:
    """Slope and offset, 0 or more, of the least squares."""
    mean_x, mean_y = np.average(x, weights=weights), np.average(y, weights=weights)
    slope = (weights * (x - mean_x) * (y - mean_y)).sum() / (weights * (x - mean_x) ** 2).sum()
    offset = mean_y - slope * mean_x
    if offset >= 0:
        return float(slope), float(offset)
    return float((weights * x * y).sum() / (weights * x**2).sum()), 0.0


def camera(found: Iterable[Noise]) -> dict[str, Any]:
    """Fields of `datakit.pretrain.unprocess.Camera`: the range of shot, and read by shot. DatakitError for no numbers.

    The line of read by shot is fitted where there are two ISOs or more with read noise above 0; of one, it has the
    slope of Brooks et al.
    """
    good = [one for one in found if not one.refused]
    if not good:
        raise DatakitError("no ISO of these files has a noise that could be told")
    shots = np.array([one.shot for one in good])
    some = [(np.log(one.shot), np.log(one.read)) for one in good if one.read > 0]
    slope, offset, spread = PRIOR
    if len({x for x, _ in some}) > 1:
        x, y = np.array(some).T
        slope, offset = np.polyfit(x, y, 1).tolist()
        spread = float((y - slope * x - offset).std())
    elif some:
        offset, spread = float(some[0][1] - slope * some[0][0]), 0.0
    return {"shot": [float(shots.min()), float(shots.max())], "read": [slope, offset, spread]}


def expanded(paths: Iterable[Path]) -> list[Path]:
    """Files, and those of camera RAW in folders. SourceError where there is none."""
    found: list[Path] = []
    for path in paths:
        found += sorted(p for p in path.rglob("*") if raw.is_raw(p.name)) if path.is_dir() else [path]
    if not found:
        raise SourceError(f"{', '.join(map(str, paths))}: no camera RAW")
    return found
