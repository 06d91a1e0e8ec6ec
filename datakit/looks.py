"""How pictures look: signatures, thumbnails and digests of many, row for row, and whether two of them agree.

A signature match is a candidate. The thumbnails must agree as well; flat pictures, whose signatures say nothing, must
have equal pixels.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from .sample import Spec

TURNS = ("", "left-right", "up-down", "turned 180", "transposed", "turned 90", "turned 270", "transversed")
BACK = (0, 1, 2, 3, 4, 6, 5, 7)  # the place that undoes each: a turn by 90 degrees undoes one by 270
PLACES = len(TURNS)  # bit 0 of a place = mirrored left-right, bit 1 = top-bottom, bit 2 = transposed after that
TILE = ("signatures", "thumbnail", "pixel_digest", "entropy_bits")  # columns of `Sample`: of the record
SCENE = ("scene_signatures", "scene_thumbnail", "scene_digest", "scene_entropy_bits")  # of the image that it is from
Ints = NDArray[np.int64]
AT_ONCE = 1 << 16  # pairs of thumbnails: 400 bytes each, several times

CANNOT_SEE = (
    "crops and shifts: a tile of 512 px that is shifted by 16 px differs in about 10 bits, a crop of 90 % in about 18, "
    "and the tiles of an image match it no better than chance",
    "copies in other colours or of another contrast: thumbnails that differ by more than `thumbnail_levels` on average",
    "pictures of the same ground taken on another day or by another sensor (`protect` sees those that have a place)",
    "collages, heavy retouching, frames and text drawn over a picture",
)


class Likeness(Spec):
    """When two pictures count as the same."""

    radius_bits: int = Field(4, ge=0, le=6, description="bits of 64 that two PHashes may differ by")
    thumbnail_levels: float = Field(
        8.0, ge=0, le=255, description="mean difference that two 8 x 8 thumbnails may have, of 255"
    )
    flat_entropy_bits: float = Field(
        3.0, ge=0, le=8, description="pictures with less luma entropy must have equal pixels"
    )


@dataclass(frozen=True)
class Looks:
    """How N pictures look."""

    signatures: NDArray[np.uint64]  # (N, 8): by place
    thumbnails: NDArray[np.uint8]  # (N, 8, 8, 3)
    digests: NDArray[np.bytes_]  # (N,) S16; b"" where nothing was measured
    entropy_bits: NDArray[np.float64]  # (N,)

    def __len__(self) -> int:
        return len(self.digests)

    @classmethod
    def empty(cls, n: int, folder: Path | None = None) -> Looks:
        """Of n pictures, all zero; in files that are mapped, if there is a folder for them: they have 300 B each."""
        return cls(
            zeros((n, PLACES), "uint64", folder),
            zeros((n, 8, 8, 3), "uint8", folder),
            zeros((n,), "S16", folder),
            zeros((n,), "float64", folder),
        )

    @classmethod
    def of(cls, table: pa.Table, names: tuple[str, ...] = TILE) -> Looks:
        """From columns of a table of records: those of the records, or of their images (`SCENE`), zero if unmeasured.

        To be read only: where all were measured they are the memory of the table.
        """
        signatures, thumbnails, digests, entropy = (in_one(table.column(name)) for name in names)
        measured = np.asarray(pc.greater(pc.binary_length(digests), 0))
        if not measured.all():
            signatures, thumbnails, digests = (c.filter(pa.array(measured)) for c in (signatures, thumbnails, digests))
        return cls(
            _spread(signatures.flatten().to_numpy().reshape(-1, PLACES), measured),
            _spread(_bytes_of(thumbnails, 192).reshape(-1, 8, 8, 3), measured),
            _spread(_bytes_of(digests, 16).view("S16").ravel(), measured),
            np.nan_to_num(np.asarray(entropy.to_numpy(zero_copy_only=False), np.float64)),
        )

    def put(self, begin: int, looks: Looks) -> None:
        """Fill rows from `begin` on."""
        for one in fields(self):
            fill(getattr(self, one.name), begin, getattr(looks, one.name))

    def cut(self, n: int) -> Looks:
        """The first n."""
        return Looks(self.signatures[:n], self.thumbnails[:n], self.digests[:n], self.entropy_bits[:n])

    def flat(self, entropy_bits: float) -> NDArray[np.bool_]:
        """Which have less entropy than that: their signatures say nothing."""
        return self.entropy_bits < entropy_bits

    def agree(self, mine: Ints, other: Looks, its: Ints, places: NDArray[Any], levels: float) -> NDArray[np.bool_]:
        """Whether thumbnails differ by at most `levels` on average: of pictures `mine`, turned, and `its` of another.

        mine, its, places: (M,) -> (M,).
        """
        out = np.empty(len(mine), bool)
        for place in range(PLACES):
            of_place = np.flatnonzero(places == place)
            for begin in range(0, len(of_place), AT_ONCE):
                rows = of_place[begin : begin + AT_ONCE]
                one = turn(self.thumbnails[mine[rows]], place).astype(np.int16)
                apart = np.abs(one - other.thumbnails[its[rows]]).sum(axis=(1, 2, 3), dtype=np.int64)
                out[rows] = apart <= levels * 192
        return out


def zeros(shape: tuple[int, ...], dtype: str, folder: Path | None) -> NDArray[Any]:
    """An array of zeros; in a file that is mapped, if there is a folder for it."""
    if folder is None:
        return np.zeros(shape, dtype)
    folder.mkdir(exist_ok=True)
    path = folder / f"{dtype}-{len(shape)}"
    with path.open("wb") as file:  # a full disk is an error now, and not a signal when a page is touched
        os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype, "r+", shape=shape)


def fill(array: NDArray[Any], begin: int, values: NDArray[Any]) -> None:
    """Put values into rows of an array that is mapped, through its file: a page need not be touched for that."""
    handle = os.open(array.filename, os.O_WRONLY)  # type: ignore[attr-defined]
    try:
        data, place = (
            np.ascontiguousarray(values, array.dtype).reshape(-1).view(np.uint8).data,
            begin * array.strides[0],
        )
        while len(data):
            done = os.pwrite(handle, data, place)
            data, place = data[done:], place + done
    finally:
        os.close(handle)


def in_one(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece: `combine_chunks` copies one that is already."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _spread(values: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[Any]:
    """Values put where they belong, zero elsewhere."""
    if len(values) == len(where):
        return values
    out = np.zeros((len(where), *values.shape[1:]), values.dtype)
    out[where] = values
    return out


def _bytes_of(column: Any, size: int) -> NDArray[np.uint8]:
    """A binary column whose values all have `size` bytes: (N, size)."""
    _, offsets, data = column.buffers()
    kind = np.int64 if column.type == pa.large_binary() else np.int32
    places = np.frombuffer(offsets, kind)[column.offset : column.offset + len(column) + 1]
    if len(column) and not (np.diff(places) == size).all():
        raise ValueError(f"values of other than {size} bytes")
    if not len(column):
        return np.zeros((0, size), np.uint8)
    return np.frombuffer(data, np.uint8)[places[0] : places[-1]].reshape(-1, size)


def words(digests: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """First 8 of the 16 bytes of digests as numbers, which sort ten times as fast."""
    return np.ascontiguousarray(digests).view(np.uint64)[::2]


def among(known: NDArray[np.uint64], numbers: NDArray[np.uint64]) -> Ints:
    """Which numbers are among those known: a bitmap of their high bits leaves few to be looked up."""
    shift = np.uint64(64 - min(max(4 * len(known), 1).bit_length(), 27))
    bitmap = np.zeros(1 << (64 - int(shift)), bool)
    bitmap[known >> shift] = True
    rows = np.flatnonzero(bitmap[numbers >> shift])
    return rows[np.isin(numbers[rows], known)]


def turn(pictures: NDArray[Any], place: int) -> NDArray[Any]:
    """Pictures (N, H, W, …), flipped and rotated as `measure.phashes` counts the places."""
    pictures = pictures[:, :, ::-1] if place & 1 else pictures
    pictures = pictures[:, ::-1] if place & 2 else pictures
    return pictures.swapaxes(1, 2) if place & 4 else pictures


def chance(radius_bits: int) -> float:
    """The probability that the PHashes of two pictures that have nothing in common are within the radius.

    A PHash is 63 coefficients against their median, so 32 of them are set, and the constant one, which always is: two
    such differ by 2 k bits in C(32, k) C(31, k) of C(63, 32) ways.
    """
    ways = sum(math.comb(32, k) * math.comb(31, k) for k in range(radius_bits // 2 + 1))
    return ways / math.comb(63, 32)
