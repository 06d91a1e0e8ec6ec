"""Made records, as columns: each is a pure function of its number, so parts can be made in any order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datakit.decide import Decided
from datakit.disk import ROW_GROUP
from datakit.looks import PLACES, turn
from datakit.run import FUNNEL, Funnel
from datakit.sample import SCHEMA, mix64
from datakit.stages.protect import ENTRY, HeldOut

PART = 3000  # records
FLAT = 300_000 / 13_200_000
LARGEST = 5000  # of the clusters
RULED = 8  # a rule dropped records in every 8th part
# source: windows of an image, 1: it passes whole; whether images have labels; share of all parts, in hundredths
SOURCES = (("scenes", 20, False, 35), ("satellite", 12, False, 15), ("chips", 1, False, 20), ("classes", 1, True, 20))
SOURCES = (*SOURCES, ("objects", 1, True, 10))
LABELLED = {name: labelled for name, _, labelled, _ in SOURCES}
WAYS = np.array([[0] * PLACES] * PLACES)  # WAYS[q, p]: as which place a picture shows that was turned by q, then p
_GRID = np.arange(9).reshape(1, 3, 3)
for _q, _p in itertools.product(range(PLACES), range(PLACES)):
    _both = turn(turn(_GRID, _q), _p)
    WAYS[_q, _p] = next(n for n in range(PLACES) if np.array_equal(turn(_GRID, n), _both))


@dataclass(frozen=True)
class Made:
    """Which records there are, and which of them look alike."""

    asked: int
    names: tuple[str, ...] = field(default=tuple(LABELLED))

    @property
    def parts(self) -> int:
        return max(self.asked // PART, 20)

    @property
    def count(self) -> int:
        return self.parts * PART

    @cached_property
    def source(self) -> Any:
        """Place in SOURCES of each part."""
        bounds = np.cumsum([share for *_, share in SOURCES]) * self.parts // 100
        return np.searchsorted(bounds, np.arange(self.parts), side="right")

    @cached_property
    def base(self) -> Any:
        """(N,) what each record is a picture of: a number of its own, or one that its cluster shares."""
        rng = np.random.default_rng(1)
        flat = round(self.count * FLAT)
        some = rng.permutation(self.count)[: flat + self.count // 10]
        sizes = np.minimum(2 + (rng.pareto(0.9, self.count // 40)).astype(np.int64), LARGEST)
        sizes[: max(1, self.count // 1_000_000)] = LARGEST
        sizes = sizes[np.cumsum(sizes) <= self.count // 10]
        base = np.arange(self.count)
        members = some[flat : flat + sizes.sum()]
        base[members] = self.count + np.repeat(np.arange(len(sizes)), sizes)
        base[some[:flat]] = -1 - rng.integers(0, max(flat // 300, 1), flat)  # equal pixels
        return base

    def looks(self, rows: Any, base: Any, salt: int) -> dict[str, Any]:
        """How pictures of `base` look, each turned and altered, but for those that are equal to it."""
        exact = (mix64(rows, salt + 1) % np.uint64(4) == 0) | (base < 0)
        turned = np.where(exact, 0, mix64(rows, salt + 2) % np.uint64(24)).astype(np.int64)
        turned[turned >= PLACES] = 0
        alone = mix64(np.repeat(base * 8, 8) + np.tile(np.arange(8), len(base)), salt + 3).reshape(-1, 8)
        alone[base < 0] = np.uint64(1) << np.uint64(63)
        bits = [np.uint64(1) << (mix64(rows, salt + n) % np.uint64(64)) for n in (4, 5)]
        signatures = alone[np.arange(len(base))[:, None], WAYS[turned]]
        signatures ^= np.where(exact, np.uint64(0), bits[0] | bits[1])[:, None]
        levels = mix64(np.repeat(base * 24, 24) + np.tile(np.arange(24), len(base)), salt + 6).view(np.uint8)
        levels = levels.reshape(-1, 8, 8, 3) & 0xFC
        noise = mix64(np.repeat(rows * 24, 24) + np.tile(np.arange(24), len(rows)), salt + 7).view(np.uint8)
        levels = np.where(exact[:, None, None, None], levels, levels | (noise.reshape(levels.shape) & 3))
        levels[base < 0] = 100
        for place in range(1, PLACES):
            some = np.flatnonzero(turned == place)
            levels[some] = turn(levels[some], place)
        digest = np.stack([mix64(np.where(exact, base, rows + (1 << 55)), salt + 8), mix64(base, salt + 9)], axis=1)
        entropy = np.where(base < 0, 1.0, 4.0) + unit(rows, salt + 10)
        return {"signatures": signatures, "thumbnail": levels.reshape(-1, 192), "digest": digest, "entropy": entropy}

    def came(self) -> dict[str, int]:
        """Records that no rule dropped, by source."""
        kept = np.bincount(np.repeat(self.source, PART)[~ruled_out(np.arange(self.count))], minlength=len(SOURCES))
        return dict(zip(self.names, kept.tolist(), strict=True))

    def check(self, decided: Decided, parts: list[Path]) -> None:
        """AssertionError unless of each cluster, and of each group of flat ones, one record at most is left."""
        gone = ruled_out(np.arange(self.count))
        for part, rows in decided.gone().items():
            gone[part * PART + rows] = True
        left = np.flatnonzero(~gone)
        assert len(left) > 0.85 * self.count, "too much is gone"
        planted = left[(self.base[left] >= self.count) | (self.base[left] < 0)]
        clusters = np.unique(self.base[(self.base >= self.count) | (self.base < 0)])
        assert len(planted) > 0.9 * len(clusters), "whole clusters are gone"
        image = planted // np.array([per_image for _, per_image, *_ in SOURCES])[self.source[planted // PART]]
        both = np.unique(np.stack([self.base[planted], image]), axis=1)  # windows of one image are no duplicates
        assert len(np.unique(both[0])) == both.shape[1], "duplicates were kept"


def unit(rows: Any, salt: int) -> Any:
    return mix64(rows, salt) / 2.0**64


def ruled_out(rows: Any) -> Any:
    """What a rule dropped: 4 % of some parts."""
    return (unit(rows, 77) < 0.04) & (rows // PART % RULED == 0)


def write_part(made: Made, work: Path, number: int) -> Path:
    """A part as the last step of a build leaves it, unless it is there."""
    name = made.names[made.source[number]]
    path = work / "measured" / f"{name}-0000_{number:05d}-made.parquet"
    if path.exists():
        return path
    table = records(made, number)
    came = table.num_rows
    lost = int(pc.sum(pc.not_equal(table.column("dropped"), "")).as_py())
    kept = {name: came - lost}
    funnel = Funnel(*map(dict, ({name: came}, kept, kept)), {name: {"dark": lost}} if lost else {})  # type: ignore[arg-type]
    table = table.replace_schema_metadata({FUNNEL: funnel.to_json()})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, row_group_size=ROW_GROUP)
    return path


def records(made: Made, number: int) -> pa.Table:
    """The records of a part: SCHEMA."""
    rows = np.arange(number * PART, (number + 1) * PART)
    at = int(made.source[number])
    columns = {name: none(SCHEMA.field(name).type) for name in SCHEMA.names}
    columns |= dict(identity(rows, made.base[rows], at, number)) | dict(place(rows, at)) | dict(looks(made, rows, at))
    return pa.table([column(columns[f.name], f.type) for f in SCHEMA], schema=SCHEMA)


def none(kind: pa.DataType) -> Any:
    """What most records say."""
    if pa.types.is_list(kind):
        return pa.scalar([], kind)
    absent = {pa.string(): "", pa.binary(): b"", pa.bool_(): False}
    return pa.scalar(absent.get(kind, 1), kind)


def column(values: Any, kind: pa.DataType) -> Any:
    if isinstance(values, pa.Scalar):
        return pa.repeat(values, PART)
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def lists(values: Any, kind: pa.DataType, there: Any = None) -> Any:
    """(N, M) as lists of M; null where they are not there."""
    flat = pa.array(np.ascontiguousarray(values).ravel(), kind.value_type)
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    mask = None if there is None else pa.array(~there)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=kind, mask=mask)


def blobs(values: Any) -> Any:
    """(N, M) bytes as binary of M bytes."""
    values = np.ascontiguousarray(values)
    size = values.nbytes // len(values)
    offsets = np.arange(len(values) + 1, dtype=np.int32) * size
    return pa.Array.from_buffers(pa.binary(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(values.data)])


def image_of(rows: Any, at: int) -> Any:
    return rows // SOURCES[at][1]


def windows(rows: Any, at: int) -> Any:
    n = rows % SOURCES[at][1]
    return np.stack([n % 4 * 512, n // 4 * 512, np.full(len(rows), 512), np.full(len(rows), 512)], axis=1)


def padded(numbers: Any, width: int) -> Any:
    return pc.utf8_lpad(pc.cast(pa.array(numbers), pa.string()), width, "0")


def identity(rows: Any, base: Any, at: int, number: int) -> Iterator[tuple[str, Any]]:
    """Columns that say which record it is, and where its bytes are."""
    source, per_image, labelled, _ = SOURCES[at]
    image = image_of(rows, at)
    folder, stem = padded(image // 1000, 5), padded(image, 8)
    yield "source", pa.repeat(pa.scalar(source), PART)
    name = pc.binary_join_element_wise("area_", folder, "/scene_", stem, ".jpg", "")
    yield "name", name
    yield "path", name
    mark = [f"{n:010x}" for n in (mix64(rows, 5) >> np.uint64(24)).tolist()]
    window = windows(rows, at)
    spelled = pa.repeat(pa.scalar(""), PART)
    if per_image > 1:
        left, top = (pc.cast(pa.array(window[:, n]), pa.string()) for n in (0, 1))
        spelled = pc.binary_join_element_wise("-", left, "_", top, "_512_512", "")
        yield "window", lists(window, SCHEMA.field("window").type)
    else:
        yield "window", pa.scalar(None, SCHEMA.field("window").type)
    yield (
        "key",
        pc.binary_join_element_wise(source, "-area_", folder, "-scene_", stem, spelled, "-", pa.array(mark), ""),
    )
    yield "id", (mix64(rows, 6) >> np.uint64(1)).astype(np.int64)
    yield "stamp", pa.repeat(pa.scalar("1700000000000000000"), PART)
    yield "file_bytes", (mix64(image, 7) % np.uint64(1 << 20)).astype(np.int64)
    yield "licences", pa.repeat(pa.scalar(["CC-BY-4.0"], SCHEMA.field("licences").type), PART)
    if labelled:
        yield "label", pc.binary_join_element_wise("class_", pc.cast(pa.array(base % 50), pa.string()), "")
    boxes = pa.array(["[]", '[{"label": "ship", "bbox": [10.0, 20.0, 30.0, 40.0]}]'])
    yield "boxes", boxes.take(pa.array((mix64(rows, 8) % np.uint64(8) == 0).astype(np.int64)))
    yield "format", pa.repeat(pa.scalar("GTiff" if source == "satellite" else "JPEG"), PART)
    yield "split", pa.repeat(pa.scalar("train"), PART)
    yield "also", pa.repeat(pa.scalar("[]"), PART)
    yield "staged", pa.repeat(pa.scalar(f"cut/made/{source}-0000_{number:05d}-made.staged"), PART)
    size = 20_000 + (mix64(rows, 9) % np.uint64(60_000)).astype(np.int64)
    by = np.argsort(mix64((mix64(rows, 6) >> np.uint64(1)).astype(np.int64), 0), kind="stable")
    offset = np.empty(PART, np.int64)
    offset[by] = np.cumsum(size[by]) - size[by]
    yield "staged_bytes", size
    yield "staged_offset", offset
    yield "dropped", pa.array(["", "dark"]).take(pa.array(ruled_out(rows).astype(np.int64)))


def place(rows: Any, at: int) -> Iterator[tuple[str, Any]]:
    """Columns that say how large it is and where it lies."""
    source, per_image, _, _ = SOURCES[at]
    side = 512 if per_image == 1 else 2048 + 512 * (per_image > 12)
    for name in ("width", "height"):
        yield name, np.full(PART, 512, np.int32)
        yield f"image_{name}", np.full(PART, side, np.int32)
    yield "gsd_m", pa.scalar(0.5 if per_image > 1 else None, pa.float64())
    yield "orientation", pa.scalar(1, pa.int8())
    yield "modality", pa.scalar("optical")
    yield "dtype", pa.scalar("uint8")
    yield "bands", pa.scalar(["red", "green", "blue"], SCHEMA.field("bands").type)
    yield "distance_bits", pa.scalar(None, pa.int32())
    yield "nodata", pa.scalar(None, pa.float64())
    yield "transform", pa.scalar(None, SCHEMA.field("transform").type)
    if source == "satellite":
        corners = footprint(rows, at)
        yield "footprint", lists(corners, SCHEMA.field("footprint").type)
        yield "crs", pa.scalar("EPSG:4326")
        step = np.full(PART, 0.0256 / side)
        zero = np.zeros(PART)
        yield (
            "transform",
            lists(
                np.stack([step, zero, corners[:, 0], zero, -step, corners[:, 1]], axis=1),
                SCHEMA.field("transform").type,
            ),
        )
        day = np.datetime64("2018-01-01") + (mix64(image_of(rows, at), 30) % np.uint64(2000)).astype(np.int64)
        yield "acquired", pa.array([f"{d}T10:00:00Z" for d in day.tolist()])


def footprint(rows: Any, at: int) -> Any:
    """lon, lat of the corners, (N, 8)."""
    image = image_of(rows, at)
    step = 0.0256 / 4
    left = unit(image, 31) * 300 - 150 + rows % 12 % 4 * step
    top = unit(image, 32) * 100 - 50 - rows % 12 // 4 * step
    return np.stack([left, top, left + step, top, left + step, top - step, left, top - step], axis=1)


def looks(made: Made, rows: Any, at: int) -> Iterator[tuple[str, Any]]:
    """Columns that `cut` measures."""
    found = made.looks(rows, made.base[rows], 100)
    scene = found
    if SOURCES[at][1] > 1:
        image = image_of(rows, at)
        copied = unit(image, 33) < 0.01  # 1 in 200 is a copy
        scene = made.looks(image + (1 << 40), np.where(copied, image // 2 * 2, image) + (1 << 40), 100)
    for begin, which in (("", found), ("scene_", scene)):
        yield f"{begin}signatures", lists(which["signatures"], pa.list_(pa.uint64()))
        yield f"{begin}thumbnail", blobs(which["thumbnail"])
        yield "pixel_digest" if not begin else "scene_digest", blobs(which["digest"])
        yield f"{begin}entropy_bits", which["entropy"]
    for n, name in enumerate(("valid_share", "sharpness", "luma_mean", "luma_std", "saturation")):
        yield name, unit(rows, 40 + n)
    for n, name in enumerate(("band_count", "band_sum", "band_sum_squares", "band_min", "band_max")):
        values = (mix64(np.repeat(rows * 3, 3) + np.tile(np.arange(3), PART), 50 + n) >> np.uint64(40)).astype(np.int64)
        yield name, lists(values.reshape(-1, 3), pa.list_(pa.int64()))
    yield "psnr_db", pa.array(np.where(rows % 16 == 0, 38.0, np.nan), from_pandas=True)


def heldout(made: Made, path: Path) -> Path:
    """A list of 2,500 images, each whole and in 4 tiles; 100 of the tiles are in the set, and 50 of the places."""
    count, images = 12_500, 2_500
    rows = np.arange(count) + (1 << 50)
    base = rows.copy()
    base[::125] = made.base[np.arange(count)[::125] * (made.count // count)]
    base = np.where(base < 0, rows, base)
    found = made.looks(rows, base, 100)
    whole = np.arange(count) % 5 == 0
    window = np.tile([[0, 0, 512, 512]], (count, 1))
    corners = np.tile([[170.0, 10, 170.1, 10, 170.1, 9.9, 170, 9.9]], (count, 1)) + np.arange(count)[:, None] % 50 * 0.2
    first = PART * int(np.flatnonzero(made.source == 1)[0])
    corners[np.flatnonzero(whole)[:50]] = footprint(first + 12 * np.arange(50), 1)
    columns = {
        "name": pa.array([f"{n // 5:06d}.jpg" for n in range(count)]),
        "window": lists(window, ENTRY.field("window").type, ~whole),
        "signatures": lists(found["signatures"], pa.list_(pa.uint64())),
        "thumbnail": blobs(found["thumbnail"]),
        "pixel_digest": blobs(found["digest"]),
        "entropy_bits": pa.array(found["entropy"]),
        "footprint": lists(corners, ENTRY.field("footprint").type),
    }
    about = {"name": "held", "title": "", "version": "", "split": "", "files": images, "images": images}
    about |= {"tiles": count - images, "unsigned": [], "grid": {"grid": {"size_px": 512}}, "narrow": None}
    HeldOut(about, pa.table([columns[f.name] for f in ENTRY], schema=ENTRY)).save(path)
    return path
