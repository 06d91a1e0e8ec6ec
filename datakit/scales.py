"""Images reduced to a coarser ground sampling distance: which px of the source a px of the result spans, and its mean.

An image at scale s has round(width / s) x round(height / s) px; px k of a row spans source px k s to (k + 1) s. The
last may reach past the image, by no more than half of itself. A record's `window` is in px of the source, rounded;
since s > 1 no two windows round alike, and `in_reduced` gives back the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .measure import Mask
from .sample import Sample, Window

# Where a px of the result begins in the source is rounded to 1 / 2**21 px (less where scales are large), and sums are
# whole numbers: sides of at most 2**21 parts, hence sums down of 16-bit levels below 2**37, and over boxes below 2**58.
PARTS_BITS = 21
BAND_LEVELS = 1 << 22  # that are added at once
ALL_VALID: Mask = np.zeros((0, 0), bool)
Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]


def reduced_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """Width and height of an image at a scale, px."""
    across, down = (max(math.floor(side / scale + 0.5), 1) for side in (width, height))
    return across, down


def in_source(window: Window, scale: float, width: int, height: int) -> Window:
    """A window of a reduced image in px of the source, (width, height)."""
    left, top = math.floor(window.left * scale + 0.5), math.floor(window.top * scale + 0.5)
    right = min(math.floor((window.left + window.width) * scale + 0.5), width)
    bottom = min(math.floor((window.top + window.height) * scale + 0.5), height)
    return Window(left, top, right - left, bottom - top)


def of_source(window: Window, scale: float, width: int, height: int) -> Window:
    """A window in px of the source, (width, height), in px of the reduced image: what undoes `in_source`."""
    most = reduced_size(width, height, scale)
    left, top = (min(math.floor(v / scale + 0.5), side - 1) for v, side in zip(window[:2], most, strict=True))
    ends = (math.floor(v / scale + 0.5) for v in (window.left + window.width, window.top + window.height))
    right, bottom = (min(end, side) for end, side in zip(ends, most, strict=True))
    return Window(left, top, max(right - left, 1), max(bottom - top, 1))


def in_reduced(sample: Sample) -> Window:
    """Where a record lies in its image at its scale."""
    left, top = (sample.window.left, sample.window.top) if sample.window else (0, 0)
    if sample.scale != 1:
        left, top = math.floor(left / sample.scale + 0.5), math.floor(top / sample.scale + 0.5)
    return Window(left, top, sample.width, sample.height)


def nearest(begin: int, count: int, scale: float, length: int) -> Ints:
    """The source px in which the centres of some px of a reduced row lie: (count,)."""
    centres: Ints = np.floor((np.arange(begin, begin + count) + 0.5) * scale).astype(np.int64).clip(max=length - 1)
    return centres


def edges(count: int, scale: float, length: int, unit: int) -> Ints:
    """Where each px of a reduced row begins, and the last one ends, in parts of a px of a row of `length`."""
    exact = np.arange(count + 1) * (scale * unit)
    begins: Ints = np.floor(exact + 0.5).astype(np.int64).clip(max=length * unit)
    return begins


@kernels.jit
def add_rows(levels, valid, at, unit, every, ours, area):  # type: ignore[no-untyped-def]
    """Add rows (h, W bands) to sums down, (m, W bands); at: edges in parts of a px, from these rows on.

    every: of all levels; where `valid`, (h, W), has rows, ours: of the valid ones, and area, (m, W): their parts. Whole
    numbers in doubles, which hold them exactly up to 2**53 and are added several at once.
    """
    height, width, m = levels.shape[0], levels.shape[1], every.shape[0]
    bands = width // area.shape[1]
    masked = valid.shape[0] > 0
    first = 0
    for y in range(height):
        low, high = y * unit, (y + 1) * unit
        while first < m and at[first + 1] <= low:
            first += 1
        k = first
        while k < m and at[k] < high:
            part = np.float64(min(at[k + 1], high) - max(at[k], low))
            row, sums = levels[y], every[k]
            for i in range(width):
                sums[i] += part * row[i]
            if masked:
                for x in range(area.shape[1]):
                    weight = part * valid[y, x]
                    area[k, x] += weight
                    for i in range(x * bands, (x + 1) * bands):
                        ours[k, i] += weight * row[i]
            k += 1


@kernels.jit
def add_across(sums, whole, part, unit, bands):  # type: ignore[no-untyped-def]
    """Sums down, (m, W bands), to sums over boxes, (m, n, bands) int64; whole + part / unit: edges in px."""
    n = whole.shape[0] - 1
    boxes = np.empty((sums.shape[0], n, bands), np.int64)
    for k in range(sums.shape[0]):
        row = sums[k]
        for x in range(n):
            a, b = whole[x], whole[x + 1]
            for c in range(bands):
                s = np.float64(0)
                for i in range(a, b):
                    s += row[i * bands + c]
                total = np.int64(s) * unit - part[x] * np.int64(row[a * bands + c])
                if part[x + 1] > 0:
                    total += part[x + 1] * np.int64(row[b * bands + c])
                boxes[k, x, c] = total
    return boxes


class Sums(NamedTuple):
    """Down the rows of some px of the result: (m, W bands), (m, W bands), (m, W). Without a mask only the first."""

    every: Doubles
    ours: Doubles
    area: Doubles


class Reducer:
    """Means over the areas of a reduced image's px, while the rows of the source, or of an overview of it, go by.

    Only valid px are averaged in; a px is valid where at least half of its area within the image is. Where no px below
    it is valid, it is the mean of all. Sums are of whole numbers, the same on any machine.
    """

    def __init__(self, sample: Sample, width: int, height: int) -> None:
        """width, height: of what comes, px."""
        across, down = reduced_size(sample.image_width, sample.image_height, sample.scale)
        x, y = sample.scale * width / sample.image_width, sample.scale * height / sample.image_height
        self.unit = 1 << (PARTS_BITS - math.ceil(math.log2(max(x, y, 1.0))))
        self.columns, self.rows = edges(across, x, width, self.unit), edges(down, y, height, self.unit)
        self.width = width
        self.top, self.done = 0, 0  # rows that came, and rows that left
        self.rest: Sums | None = None  # of the row that is not complete

    def add(self, levels: NDArray[Any], valid: Mask | None) -> Iterator[tuple[NDArray[Any], Mask | None]]:
        """The rows, (h, W, bands), that these rows complete, and which of their px are valid; None: all."""
        step = max(BAND_LEVELS // (levels.shape[1] * levels.shape[2]), 1)
        for at in range(0, len(levels), step):
            some = None if valid is None or valid[at : at + step].all() else valid[at : at + step]
            made = self._add(np.ascontiguousarray(levels[at : at + step]), some)
            if made:
                yield made

    def _add(self, levels: NDArray[Any], valid: Mask | None) -> tuple[NDArray[Any], Mask | None] | None:
        height, width, bands = levels.shape
        begin, end = self.top * self.unit, (self.top + height) * self.unit
        self.top += height
        last = int(np.searchsorted(self.rows[:-1], end))  # rows of the result that begin before these end
        if last <= self.done:
            return None
        if valid is None and self.rest is not None and len(self.rest.ours):
            valid = np.ones((height, width), bool)
        sums = self._begun(last - self.done, bands, valid is not None, begin)
        at = self.rows[self.done : last + 1].clip(begin, end) - begin
        mask = ALL_VALID if valid is None else np.ascontiguousarray(valid)
        add_rows(levels.reshape(height, -1), mask, at, self.unit, *sums)
        complete = int(np.searchsorted(self.rows[self.done + 1 : last + 1], end, side="right"))
        self.rest = Sums(*(one[complete:].copy() for one in sums)) if complete < last - self.done else None
        made = self._means(Sums(*(one[:complete] for one in sums)), bands, levels.dtype) if complete else None
        self.done += complete
        return made

    def _begun(self, count: int, bands: int, masked: bool, begin: int) -> Sums:
        """Sums of some rows of the result, with what came before."""
        every = np.zeros((count, self.width * bands))
        ours, area = (np.zeros((count if masked else 0, self.width * n)) for n in (bands, 1))
        if self.rest is not None:
            every[0] = self.rest.every[0]
            if masked and len(self.rest.ours):
                ours[0], area[0] = self.rest.ours[0], self.rest.area[0]
            elif masked:
                ours[0], area[0] = every[0], begin - self.rows[self.done]
        return Sums(every, ours, area)

    def _means(self, sums: Sums, bands: int, dtype: Any) -> tuple[NDArray[Any], Mask | None]:
        whole, part = np.divmod(self.columns, self.unit)
        rows = self.rows[self.done : self.done + len(sums.every) + 1]
        full = (np.diff(rows)[:, None] * np.diff(self.columns))[:, :, None]
        total, of = add_across(sums.every, whole, part, self.unit, bands), full
        valid: Mask | None = None
        if len(sums.ours):
            area = add_across(sums.area, whole, part, self.unit, 1)
            ours = add_across(sums.ours, whole, part, self.unit, bands)
            total, of = np.where(area > 0, ours, total), np.where(area > 0, area, full)
            valid = (2 * area >= full)[:, :, 0]
        means = ((2 * total + of) // (2 * of)).astype(dtype)
        return means, None if valid is None or valid.all() else valid
