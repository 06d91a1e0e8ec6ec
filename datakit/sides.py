"""Geographic splits: sides told by place, between which no two tiles overlap or are nearer than a buffer."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, model_validator

from .errors import StageError
from .footprints import EARTH_KM, comparable, near
from .place import footprints, outlines
from .sample import Sample, Spec, Window, key_id, make_key, mix64

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
PLACED = ["source", "name", "crs", "transform", "gcps", "window", "image_width", "image_height", "scale", "footprint"]
DEGREE_KM = EARTH_KM * np.pi / 180
DECIMALS = 7  # of degrees, 1 cm: the tiles of a scene give its middle within less
UNPLACED, BUFFER = "subset_unplaced", "subset_buffer"  # reasons
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]


class Split(Spec):
    """Which side each scene is on, told by the block of the earth that its middle lies in, or by the scene alone.

    All tiles of a scene are on its side. Of two tiles of different sides that overlap, or are nearer than buffer_km,
    the one of the side with the larger share goes. Sides depend on place and seed alone: a set that grows keeps them.
    """

    VERSION: ClassVar[int] = 1

    by: Literal["block", "scene"] = Field(description="block: what has no place is left out; scene: it stays")
    size_km: float | None = Field(None, gt=0, description="of a block's sides")
    buffer_km: float = Field(0.0, ge=0)
    shares: dict[Name, float] = Field(min_length=2, description="of blocks or scenes by side; they add up to 1")

    @model_validator(mode="after")
    def _makes_sense(self) -> Split:
        if (self.by == "block") != (self.size_km is not None):
            raise ValueError("size_km is the size of blocks: give it with by: block, and not with by: scene")
        if any(share <= 0 for share in self.shares.values()) or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares: {self.shares}: give each side a share over 0; they add up to 1")
        return self

    def sides(self, table: pa.Table, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Of records (PLACED), (N,): the side of each, and why it is left out, "" if it stays."""
        scene, first = scenes(table)
        some = table.take(pa.array(first))
        corners, has_place = placed(table)
        out = np.full(table.num_rows, "", object)
        if self.by == "block":
            middle = middles(some)
            known = ~np.isnan(middle[:, 0])
            numbers = np.where(known, block_of(middle, self.size_km or 0), 0)
            out[~(known[scene] & has_place)] = UNPLACED
        else:
            names = zip(some.column("source").to_pylist(), some.column("name").to_pylist(), strict=True)
            numbers = np.array([key_id(make_key(*name)) for name in names], np.int64)
        side = self.side_of(numbers, seed)[scene]
        out[self.too_near(side, corners, (out == "") & has_place)] = BUFFER
        return side, out

    def side_of(self, numbers: Ints, seed: int) -> NDArray[Any]:
        """The side of each block or scene, which a number tells: (S,) -> (S,) text."""
        at = mix64(numbers, seed).astype(np.float64) / 2.0**64
        ends = np.cumsum([*self.shares.values()])[:-1]
        names: NDArray[Any] = np.array([*self.shares], object)
        out: NDArray[Any] = names[np.asarray(np.searchsorted(ends, at, side="right"))]
        return out

    def too_near(self, side: NDArray[Any], corners: Floats, alive: NDArray[np.bool_]) -> Ints:
        """Rows that must go, so that no two of different sides overlap or are nearer than the buffer."""
        stay, go = np.zeros(0, np.int64), [np.zeros(0, np.int64)]
        for name in sorted(self.shares, key=lambda name: (self.shares[name], name)):  # the smallest side loses nothing
            mine = np.flatnonzero(alive & (side == name))
            close = near(corners[stay], corners[mine], self.buffer_km)
            go.append(mine[close])
            stay = np.concatenate([stay, mine[~close]])
        return np.concatenate(go)

    def check(self, table: pa.Table, side: NDArray[Any]) -> None:
        """StageError if two of the records (PLACED) of different sides overlap or are nearer than the buffer, if a
        scene is on two sides, or if a side has none."""
        corners, has_place = placed(table)
        names = [*self.shares]
        if empty := [name for name in names if not (side == name).any()]:
            raise StageError(
                f"subset: split: no tile is left on {', '.join(empty)}: the {len(side)} there are lie in too few "
                "blocks or scenes. Lower size_km or buffer_km, or give another seed"
            )
        for n, name in enumerate(names):
            others = np.flatnonzero(has_place & np.isin(side, names[n + 1 :]))
            mine = np.flatnonzero(has_place & (side == name))
            if near(corners[mine], corners[others], self.buffer_km).any():
                raise StageError(f"subset: split: tiles of {name} lie within {self.buffer_km:g} km of another side's")
        scene, first = scenes(table)
        if (side != side[first][scene]).any():
            raise StageError("subset: split: tiles of one scene are on two sides")


def scenes(table: pa.Table) -> tuple[Ints, Ints]:
    """The number of the scene of each record, (N,), and the first record of each scene, (S,)."""
    both = pc.binary_join_element_wise(table.column("source"), table.column("name"), "\n")
    number = both.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    _, first = np.unique(number, return_index=True)
    return number, first.astype(np.int64)


def placed(table: pa.Table) -> tuple[Floats, NDArray[np.bool_]]:
    """Corners of the records, (N, 8), zero where they have none, and which can be compared by them, (N,)."""
    column = table.column("footprint").combine_chunks()
    there = np.asarray(pc.fill_null(pc.equal(pc.list_value_length(column), 8), False))
    corners = np.zeros((len(column), 8))
    corners[there] = column.filter(pa.array(there)).flatten().to_numpy().reshape(-1, 8)
    return corners, there & comparable(corners)


def middles(table: pa.Table) -> Floats:
    """Lon, lat of the middles of the scenes that records are of, (N, 2); NaN where that is not known."""
    affine = np.asarray(pc.is_valid(table.column("transform")))
    about = table.select([name for name in PLACED if name not in ("source", "name", "footprint")]).to_pylist()
    corners = np.zeros((len(about), 8))
    rows = np.flatnonzero(affine)
    boxes = np.array([whole_in(about[n]) for n in rows.tolist()], np.float64).reshape(-1, 4)
    transforms = np.array([about[n]["transform"] for n in rows.tolist()], np.float64).reshape(-1, 6)
    corners[rows] = outlines(np.array([about[n]["crs"] or "" for n in rows.tolist()], object), transforms, boxes)
    for n in np.flatnonzero(~affine).tolist():
        if about[n]["gcps"]:
            window = Window(*(round(v) for v in whole_in(about[n])))
            (corner,) = footprints(Sample(crs=about[n]["crs"] or "", gcps=about[n]["gcps"]), [window])
            corners[n] = corner or 0
    lon, lat = corners[:, ::2], corners[:, 1::2]
    lon = lon[:, :1] + (lon - lon[:, :1] + 180) % 360 - 180
    out = np.round(np.stack([(lon.mean(axis=1) + 180) % 360 - 180, lat.mean(axis=1)], axis=1), DECIMALS)
    out[~corners.any(axis=1)] = np.nan
    return out


def whole_in(about: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, width, height of the whole image in px of a record of it."""
    scale = about["scale"] or 1.0
    left, top = (about["window"] or (0, 0))[:2]
    return -left / scale, -top / scale, about["image_width"] / scale, about["image_height"] / scale


def block_of(lonlat: Floats, size_km: float) -> Ints:
    """The number of the block that each point lies in, (N, 2) -> (N,): rows of latitude, each in equal columns."""
    with np.errstate(invalid="ignore"):
        lon, lat = np.nan_to_num(lonlat).T
    row = np.floor((lat + 90) * DEGREE_KM / size_km)
    middle = np.minimum((row + 0.5) * size_km / DEGREE_KM - 90, 90)
    columns = np.maximum(np.rint(360 * DEGREE_KM * np.cos(np.radians(middle)) / size_km), 1)
    column = np.floor((lon + 180) / 360 * columns) % columns
    number: Ints = (row * 2**32 + column).astype(np.int64)
    return number
