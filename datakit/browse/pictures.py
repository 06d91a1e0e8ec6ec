"""Images of records, as a browser shows them: as they lie in the tars, or developed where it knows no such format."""

from __future__ import annotations

import io
import threading
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import codec
from ..errors import RecipeError, ShardError
from ..stream.tars import IMAGES, Tars
from .columns import Columns

SMALL_BYTES = 1 << 17  # up to here an image is shown on the page as it is
FULL_PX = 2048  # the longest side of what is developed
MAGIC = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG", "image/png"), (b"RIFF", "image/webp"), (b"GIF8", "image/gif"))
MASKS = (".png",)  # members that end so are images, too: seg.png
SIDE = 8  # px of the thumbnails that records have


class Shown(NamedTuple):
    """Bytes of an image, and what they are."""

    data: bytes
    kind: str  # its media type


class Pictures:
    """The images of a build at `out`."""

    def __init__(self, out: Path, tars: Tars, columns: Columns) -> None:
        self.path, self.tars, self.columns = out / "pictures.parquet", tars, columns
        self.lock = threading.Lock()

    def kind(self, row: int, key: str) -> str:
        """What there is to show of a record: `tile`, `picture` (128 px, of one left out), `thumbnail` (8 px), or ""."""
        if row < len(self.tars):
            return "tile" if self.members(row) else ""
        if self._picture_of(row, key) >= 0:
            return "picture"
        measured = "thumbnail" in self.columns.dropped.names and "entropy_bits" in self.columns.measures
        return "thumbnail" if measured and np.isfinite(self.columns.numbers("entropy_bits")[row]) else ""

    def members(self, row: int) -> list[str]:
        """The members of a kept sample that are images, the one that is looked at first."""
        names = self.tars.members
        first = [member for member in IMAGES if member in names]
        masks = [member for member in names if member.endswith(MASKS) and member not in first]
        return [member for member in (*first, *masks) if self.tars.has(row, member)]

    def __call__(self, row: int, member: str, side_px: int | None) -> Shown | None:
        """An image of a record; None where it has none, or it cannot be read. side_px: a smaller one will do."""
        if row >= len(self.tars):
            return self._left_out(row)
        there = self.members(row)
        wanted = member or (there[0] if there else "")
        return self._tile(row, wanted, side_px) if wanted in there else None

    def _tile(self, row: int, member: str, side_px: int | None) -> Shown | None:
        data = self.tars.read(row, member)
        if data[:4] == codec.MAGIC or (member in ("tif", "tiff") and self._is_raw(row)):
            return self._developed(row, data, side_px or FULL_PX)
        if (kind := media_type(data)) and (side_px is None or len(data) <= SMALL_BYTES):
            return Shown(data, kind)
        from ..image import preview

        small = preview(data, side_px or FULL_PX)
        return Shown(small, "image/jpeg") if small else None

    def _is_raw(self, row: int) -> bool:
        from ..stream.mosaics import fields_of

        return "json" in self.tars.members and bool(fields_of(self.tars, row).get("camera"))

    def _developed(self, row: int, data: bytes, side_px: int) -> Shown | None:
        """What a camera saw, in sRGB."""
        from PIL import Image

        from ..image import Encode
        from ..stream.mosaics import fields_of, mosaics_of

        view = mosaics_of("srgb", crops=False)
        assert view is not None
        try:
            levels = view.levels(data, fields_of(self.tars, row))
        except (RecipeError, ValueError, KeyError):  # a mosaic of which nothing is known
            return None
        picture = Image.fromarray(np.uint8(np.clip(levels, 0, 1) * 255 + 0.5))
        picture.thumbnail((side_px, side_px))
        return Shown(Encode(quality=90)(picture), "image/jpeg")

    def _left_out(self, row: int) -> Shown | None:
        """The picture that the build left, else the thumbnail by which records are compared."""
        (key,) = self.columns.keys(np.array([row]))
        place = self._picture_of(row, key)
        if place >= 0:
            return Shown(self._table.column("jpeg")[place].as_py(), "image/jpeg")
        found = self.columns.dropped.row(row - len(self.tars), ["thumbnail"]).get("thumbnail") or b""
        if len(found) != SIDE * SIDE * 3:
            return None
        from PIL import Image

        out = io.BytesIO()
        Image.frombytes("RGB", (SIDE, SIDE), found).save(out, "PNG")
        return Shown(out.getvalue(), "image/png")

    @cached_property
    def _table(self) -> pa.Table:
        try:
            return pq.read_table(self.path, memory_map=True)
        except (OSError, pa.ArrowException) as exc:
            raise ShardError(f"{self.path}: {exc}. Build the set again to rewrite it") from None

    @cached_property
    def _places(self) -> dict[tuple[str, str], int]:
        """The row of each picture, by key and reason."""
        if not self.path.exists():  # a set of another kind leaves none
            return {}
        names = (self._table.column(name).to_pylist() for name in ("key", "dropped"))
        return {both: n for n, both in enumerate(zip(*names, strict=True))}

    def _picture_of(self, row: int, key: str) -> int:
        reason = self.columns.coded("reason")
        with self.lock:
            return self._places.get((key, reason.values[reason.codes[row]]), -1)


def media_type(data: bytes) -> str:
    """What a browser can show of this, by its first bytes; "" where it cannot, or only some of its bits."""
    found: Any = next((kind for magic, kind in MAGIC if data.startswith(magic)), "")
    return "" if found == "image/png" and data[24:25] == b"\x10" else found
