"""Small collections made on the spot, recipes for them, and what a build of them left."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import from_origin

from datakit.recipe import Recipe
from datakit.sources.scenes import draw

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
MAY_DIFFER = "timings.json"


def scene(seed: int, width: int, height: int, kind: str = "houses") -> NDArray[np.uint8]:
    """An aerial-looking picture, (height, width, 3)."""
    return draw(np.random.default_rng(seed), kind, width, height).pixels


def geotiff(path: Path, pixels: NDArray[Any], **profile: Any) -> None:
    """A GeoTIFF of (H, W, bands) pixels at 0.5 m in UTM 32N, unless `profile` says otherwise."""
    height, width, count = pixels.shape
    place = {"crs": CRS.from_epsg(32632), "transform": from_origin(500000, 5400000, 0.5, 0.5)}
    shape = {"width": width, "height": height, "count": count, "dtype": str(pixels.dtype)}
    given = {k: v for k, v in {**place, **shape, **profile}.items() if v is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", "GTiff", **given) as raster:
        raster.write(np.moveaxis(pixels, -1, 0))


def make_world(data: Path) -> Path:
    """Three collections: JPEG and PNG in class folders, georeferenced TIFF, and one with every kind of trouble."""
    classes = data / "classes"
    for n, kind in enumerate(("houses", "farmland", "river", "port")):
        (classes / kind).mkdir(parents=True)
        Image.fromarray(scene(n, 200 + 30 * n, 180, kind)).save(classes / kind / f"{kind}.v{n}.jpg", quality=92)
    Image.fromarray(scene(9, 700, 600, "works")).save(classes / "port" / "large.png")
    (classes / "notes.txt").write_text("no image")
    pixels = scene(10, 640, 560, "coast")
    pixels[:, :400] = 0
    geotiff(data / "scenes" / "a.tif", pixels, nodata=0, tiled=True, blockxsize=256, blockysize=256)
    geotiff(data / "scenes" / "b.tif", scene(11, 500, 300, "forest"), compress="deflate")
    trouble = data / "trouble"
    trouble.mkdir()
    good = (classes / "houses" / "houses.v0.jpg").read_bytes()
    (trouble / "cut.jpg").write_bytes(good[: len(good) // 2])
    (trouble / "empty.jpg").write_bytes(b"")
    (trouble / "text.jpg").write_text("<html>404</html>")
    Image.new("RGB", (150, 150), (127, 127, 127)).save(trouble / "gray.png")
    Image.new("RGB", (20, 300), (90, 120, 60)).save(trouble / "thin.png")
    Image.fromarray(scene(12, 120, 120)).save(trouble / "png_inside.jpg", "PNG")
    return data


def recipe_of(*names: str, name: str = "world", **stages: Any) -> Recipe:
    """A recipe over folders of those names; stages as in YAML."""
    plain: dict[str, Any] = {
        "name": name,
        "sources": [source_of(n) for n in names],
        "exclude": {"rules": list(RULES)},
        "slice": {"grid": {"size_px": 256}},
        **stages,
    }
    return Recipe.model_validate(plain)


RULES = (
    {"rule": "modality", "allow": ["optical"]},
    {"rule": "dtype", "allow": ["uint8"]},
    {"rule": "bands", "allow": ["red", "green", "blue"]},
    {"rule": "smaller_than", "side_px": 64},
    {"rule": "valid_share", "min_share": 0.5},
    {"rule": "flat", "entropy_bits": 0.5},
)


def source_of(name: str, **more: Any) -> dict[str, Any]:
    """A source as a recipe's YAML gives it: a folder of JPEG, PNG and TIFF."""
    globs = ["**/*.jpg", "**/*.png", "**/*.tif"]
    collection = {
        "name": name,
        "title": f"Collection {name}",
        "homepage": "https://example.org",
        "licence": "CC-BY-4.0",
        "modality": "optical",
        "bands": ["red", "green", "blue"],
        "layout": {"images": globs, "labels": [{"kind": "class_folders"}]},
    }
    return {"name": name, "path": name, "collection": collection, **more}


def write_recipe(path: Path, recipe: Recipe) -> Path:
    """A recipe as a YAML file."""
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    return path


def digests(out: Path) -> dict[str, str]:
    """sha256 of every file that a build left, but for the one that may differ."""
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != MAY_DIFFER)
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def work_done(out: Path) -> dict[str, int]:
    """Counters of the last run."""
    counted: dict[str, int] = json.loads((out / MAY_DIFFER).read_text())["work_done"]
    return counted


WIDE = 0xFFFFFFFF


class Disks:
    """What a split zip is written to: the same number of bytes a disk; records are never cut (APPNOTE 8.5)."""

    def __init__(self, disk_bytes: int) -> None:
        self.disk_bytes, self.disks = disk_bytes, [bytearray(b"PK\7\x08")]

    def reserve(self, record_bytes: int) -> tuple[int, int]:
        if len(self.disks[-1]) + record_bytes > self.disk_bytes:
            self.disks.append(bytearray())
        return len(self.disks) - 1, len(self.disks[-1])

    def place(self, record: bytes) -> tuple[int, int]:
        at = self.reserve(len(record))
        self.disks[-1] += record
        return at

    def pour(self, payload: bytes) -> None:
        while payload:
            free = self.disk_bytes - len(self.disks[-1])
            self.disks[-1] += payload[:free]
            payload = payload[free:]
            if payload:
                self.disks.append(bytearray())

    def save(self, last: Path) -> list[Path]:
        paths = [last.with_suffix(f".z{n:02d}") for n in range(1, len(self.disks))] + [last]
        for path, disk in zip(paths, self.disks, strict=True):
            path.write_bytes(disk)
        return paths


def write_split(last: Path, content: dict[str, bytes], disk_bytes: int, zip64: bool = False) -> list[Path]:
    """A split zip as `zip -s` makes it, NAME.z01 … NAME.zip: every other member is stored, the rest deflated."""
    disks, entries = Disks(disk_bytes), []
    for name, data in content.items():
        deflater = zlib.compressobj(wbits=-15)
        packed, method = (deflater.compress(data) + deflater.flush(), 8) if len(entries) % 2 else (data, 0)
        sizes = (WIDE, WIDE) if zip64 else (len(packed), len(data))
        extra = struct.pack("<2H2Q", 1, 16, len(data), len(packed)) if zip64 else b""
        fields = (45, 0, method, 0, 33, zlib.crc32(data), *sizes, len(name), len(extra))
        disk, offset = disks.place(struct.pack("<4s5H3I2H", b"PK\3\4", *fields) + name.encode() + extra)
        disks.pour(packed)
        if zip64:
            extra = struct.pack("<2H3QI", 1, 28, len(data), len(packed), offset, disk)
            fields, disk, offset = (*fields[:-1], len(extra)), 0xFFFF, WIDE
        entries.append(
            struct.pack("<4s6H3I5H2I", b"PK\1\2", 45, *fields, 0, disk, 0, 0, offset) + name.encode() + extra
        )
    (first, start), *_ = [disks.place(entry) for entry in entries]
    n, size = len(entries), sum(map(len, entries))
    disk, at = disks.reserve(98 if zip64 else 22)
    if zip64:
        wide = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, disk, first, n, n, size, start)
        locator = struct.pack("<4sIQI", b"PK\6\7", disk, at, disk + 1)
        disks.place(wide + locator + struct.pack("<4s4H2IH", b"PK\5\6", disk, *[0xFFFF] * 3, WIDE, WIDE, 0))
    else:
        disks.place(struct.pack("<4s4H2IH", b"PK\5\6", disk, first, n, n, size, start, 0))
    return disks.save(last)
