"""What flows: samples. A sample stands for an image, or for a window of one; it has no pixels.

Stages see many samples at once, as an Arrow table whose columns are the fields of `Sample`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from json.encoder import encode_basestring_ascii as spell
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from .remote import Root

KEY_CHARS = 80  # with ".json" and the like it stays below the 100 characters of a ustar name
NOT_OF_KEY = re.compile(r"[^A-Za-z0-9_-]")
RAW = "3fr arw cr2 cr3 dng erf iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw"  # camera RAW
IMAGE_SUFFIX = re.compile(rf"\.(jpe?g|png|webp|bmp|gif|tiff?|jp2|npy|{RAW.replace(' ', '|')})$", re.IGNORECASE)


class Window(NamedTuple):
    """A part of an image, in pixels from its top left corner."""

    left: int
    top: int
    width: int
    height: int


def _column(kind: pa.DataType, default: Any) -> Any:
    return field(default=default, metadata={"arrow": kind})


_FLOATS, _INTS, _TEXTS = pa.list_(pa.float64()), pa.list_(pa.int64()), pa.list_(pa.string())


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, or one window of it. Sizes are (width, height) in px; None means not known or not measured yet."""

    # identity
    key: str = _column(pa.string(), "")
    id: int = _column(pa.int64(), 0)  # of the key
    source: str = _column(pa.string(), "")
    name: str = _column(pa.string(), "")  # exact, within the collection; the same in a folder, a zip and a tar
    path: str = _column(pa.string(), "")  # file below the collection's folder, or "archive.zip::member"
    # where its bytes are
    file_bytes: int = _column(pa.int64(), 0)
    stamp: str = _column(pa.string(), "")  # mtime in ns, or ETag; changes when the file does
    offset: int = _column(pa.int64(), -1)  # of the member's header in a zip, of its payload in a tar; -1: a plain file
    packed_bytes: int = _column(pa.int64(), 0)
    packing: str = _column(pa.string(), "")  # "" plain file, "tar", "stored", "deflated"
    crc: int = _column(pa.int64(), -1)  # CRC-32 of a zip member's bytes; -1: none is given
    # place
    width: int = _column(pa.int32(), 0)
    height: int = _column(pa.int32(), 0)
    image_width: int = _column(pa.int32(), 0)  # of the image that it is a window of
    image_height: int = _column(pa.int32(), 0)
    window: Window | None = _column(_INTS, None)  # None: the whole image
    crs: str = _column(pa.string(), "")
    transform: tuple[float, ...] | None = _column(_FLOATS, None)  # 6: x = a col + b row + c, y = d col + e row + f
    gcps: str = _column(pa.string(), "")  # JSON [[col, row, x, y, z], …], in px of this record
    footprint: tuple[float, ...] = _column(_FLOATS, ())  # lon, lat of the 4 corners, or empty
    gsd_m: float | None = _column(pa.float64(), None)  # ground sampling distance of a pixel
    gsd_from: str = _column(pa.string(), "")  # "transform", "side_car", "labels", "manifest"; "" = unknown
    gsd_range_m: tuple[float, ...] = _column(_FLOATS, ())  # finest and coarsest, where the manifest gives no more
    scale: float = _column(pa.float64(), 1.0)  # px of the source that a px of this record spans, in either direction
    acquired: str = _column(pa.string(), "")  # ISO 8601
    # header facts
    modality: str = _column(pa.string(), "")
    bands: tuple[str, ...] = _column(_TEXTS, ())  # without alpha
    alpha: bool = _column(pa.bool_(), False)
    dtype: str = _column(pa.string(), "")
    format: str = _column(pa.string(), "")  # what the bytes are, whatever the suffix: "JPEG", "PNG", "GTiff", …
    orientation: int = _column(pa.int8(), 1)  # EXIF; width and height are of the picture as shown
    frames: int = _column(pa.int32(), 1)
    nodata: float | None = _column(pa.float64(), None)
    split: str = _column(pa.string(), "")
    label: str = _column(pa.string(), "")  # class of the whole image
    boxes: str = _column(pa.string(), "[]")  # JSON, see `boxes`
    captions: tuple[str, ...] = _column(_TEXTS, ())  # of the whole image
    mask: str = _column(pa.string(), "")  # JSON: where its raster of classes lies, and what its levels become
    licences: tuple[str, ...] = _column(_TEXTS, ())
    tags: tuple[str, ...] = _column(_TEXTS, ())  # conditions of the whole image, as a COCO file gives them
    image_id: str = _column(pa.string(), "")  # in the COCO file that tells its tags or split
    twin: str = _column(pa.string(), "")  # JSON of the `files.File` that is the camera's own JPEG of the same shot
    # taken over from exact duplicates that it was kept instead of
    label_source: str = _column(pa.string(), "")  # whose label this is; "" = its own
    boxes_source: str = _column(pa.string(), "")
    also: str = _column(pa.string(), "[]")  # JSON [{key, source, label, boxes: how many, licences}, …]
    # measured by `cut`, over valid pixels, before encoding
    valid_share: float | None = _column(pa.float64(), None)
    entropy_bits: float | None = _column(pa.float64(), None)  # of the luma histogram, 0..8
    sharpness: float | None = _column(pa.float64(), None)  # variance of the Laplacian of luma
    luma_mean: float | None = _column(pa.float64(), None)
    luma_std: float | None = _column(pa.float64(), None)
    saturation: float | None = _column(pa.float64(), None)  # mean of (max - min) over the bands, 0..1
    band_count: tuple[int, ...] = _column(_INTS, ())  # by band: of the picture, or of the levels that a tile keeps
    band_sum: tuple[int, ...] = _column(_INTS, ())
    band_sum_squares: tuple[int, ...] = _column(_INTS, ())
    band_min: tuple[int, ...] = _column(_INTS, ())
    band_max: tuple[int, ...] = _column(_INTS, ())
    pixel_digest: bytes = _column(pa.binary(), b"")  # xxh3-128 of shape and pixels, or levels where tiles keep these
    signatures: tuple[int, ...] = _column(pa.list_(pa.uint64()), ())  # PHash of the 8 flips and rotations
    thumbnail: bytes = _column(pa.binary(), b"")  # (8, 8, 3) uint8
    scene_entropy_bits: float | None = _column(pa.float64(), None)  # the same, of the whole image
    scene_digest: bytes = _column(pa.binary(), b"")
    scene_signatures: tuple[int, ...] = _column(pa.list_(pa.uint64()), ())
    scene_thumbnail: bytes = _column(pa.binary(), b"")
    psnr_db: float | None = _column(pa.float64(), None)  # of the encoded tile; one tile in 16 is measured
    narrowed: str = _column(pa.string(), "")  # JSON {bands, low, high}: levels that became 0 and 255; "" = levels kept
    camera: str = _column(pa.string(), "")  # JSON, of camera RAW: see `shots.camera_json`
    pair_shift_px: float | None = _column(pa.float64(), None)  # between RAW and JPEG, the largest on a grid of 5 x 5
    # staged bytes of the encoded tile
    staged: str = _column(pa.string(), "")  # file below the work folder
    staged_offset: int = _column(pa.int64(), 0)
    staged_bytes: int = _column(pa.int64(), 0)  # of image and mask
    mask_bytes: int = _column(pa.int64(), 0)  # of these, the last: the mask, or the JPEG beside a mosaic
    copied: bool = _column(pa.bool_(), False)  # the source's own JPEG bytes
    # the end
    dropped: str = _column(pa.string(), "")  # why it was left out; "" = kept
    detail: str = _column(pa.string(), "")  # for people
    lost_to: str = _column(pa.string(), "")  # key of the image or tile that was kept, or what it resembles
    distance_bits: int | None = _column(pa.int32(), None)  # of the signatures
    turned: str = _column(pa.string(), "")  # how that one is flipped or rotated to look like this; "" = not at all

    def drop(self, reason: str, detail: str = "") -> Sample:
        return replace(self, dropped=reason, detail=detail)


SCHEMA = pa.schema([pa.field(f.name, f.metadata["arrow"]) for f in fields(Sample)])
_NAMES = tuple(SCHEMA.names)
_NONE = {f.name: f.default for f in fields(Sample)}
_TUPLES = frozenset(f.name for f in fields(Sample) if pa.types.is_list(f.metadata["arrow"])) - {"window"}


def to_table(samples: Iterable[Sample]) -> pa.Table:
    """Samples as a table of SCHEMA, one row each."""
    rows = list(samples)
    return pa.table([pa.array([getattr(s, n) for s in rows], SCHEMA.field(n).type) for n in _NAMES], schema=SCHEMA)


def from_table(table: pa.Table) -> Iterator[Sample]:
    """The rows of a table as samples; columns that an older version did not write have their defaults."""
    there = set(table.column_names)
    columns = [table.column(n).to_pylist() if n in there else [_NONE[n]] * table.num_rows for n in _NAMES]
    for values in zip(*columns, strict=True):
        row = dict(zip(_NAMES, values, strict=True))
        row["window"] = Window(*row["window"]) if row["window"] else None
        for name in _TUPLES:
            if row[name] is not None:
                row[name] = tuple(row[name])
        yield Sample(**row)


def make_key(source: str, name: str, window: Window | None = None) -> str:
    """Key of a sample: at most 80 characters of [A-Za-z0-9_-], the same wherever the collection lies.

    It ends in 10 hex digits of the exact (source, name, window) when anything had to be changed or cut.
    """
    tail = "-" + "_".join(map(str, window)) if window else ""
    exact = f"{source}-{name}"
    plain = NOT_OF_KEY.sub("-", f"{source}-{IMAGE_SUFFIX.sub('', name)}")
    if plain == exact and len(plain + tail) <= KEY_CHARS:
        return plain + tail
    place = json.dumps(list(window)) if window else "null"
    spelled = f"[{spell(source)}, {spell(name)}, {place}]"  # as json.dumps spells the three, in a tenth of the time
    mark = "-" + hashlib.blake2b(spelled.encode(), digest_size=5).hexdigest()
    return plain[: KEY_CHARS - len(tail) - len(mark)] + tail + mark


def key_id(key: str) -> int:
    """Id of a key: blake2b-8, big-endian, shifted right by 1: 0 <= id < 2**63."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def mix64(ids: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A seeded permutation of 64-bit numbers, (N,) -> (N,) uint64: the finalizer of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) + np.uint64(seed & (2**64 - 1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


class Spec(BaseModel):
    """A part of a recipe. Its fields are its YAML keys; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self, *more: str) -> str:
        """20 hex digits of this spec in canonical JSON, and of `more`."""
        return digest(type(self).__name__, json.dumps(self.model_dump(mode="json"), sort_keys=True), *more)


def digest(*texts: str) -> str:
    """20 hex digits of texts."""
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=10).hexdigest()


@dataclass(frozen=True)
class Part:
    """What a stage may use while it makes one part: what it leaves in `aside` is kept beside the part's records."""

    path: Path  # of the part's records, once it is complete
    aside: Path  # an empty folder on the same disk
    work: Path  # the folder of all parts
    roots: dict[str, Root]  # where each source lies
    retried: frozenset[str] = frozenset()  # reasons of drops that are looked into again
    pieces: tuple[Path, ...] = ()  # made before, of some of its images each: these are taken from there
    counts: Counter[str] = field(default_factory=Counter)
    silent: Counter[tuple[str, str]] = field(default_factory=Counter)  # images that a source's labels lack, by split

    def root(self, sample: Sample) -> Root:
        """Where the collection of a sample lies; a source may be told by sub-folder, "name/folder"."""
        return self.roots[sample.source.partition("/")[0]]


class Stage(Protocol):
    """A step of curation: records in, records out; those it drops keep their row, with the reason."""

    VERSION: ClassVar[int]

    def digest(self, *more: str) -> str: ...

    def __call__(self, records: pa.Table, part: Part) -> pa.Table: ...
