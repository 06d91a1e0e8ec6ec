"""Sets as the folders that other people's code reads."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import codec, image
from .errors import SourceError
from .manifest import Manifest
from .stream.source import opened
from .stream.tars import Tars
from .views import FULL_SCALE, Camera

# Folders and files of annotations as AODRaw's configs name them (lzyhha/AODRaw-mmdetection, configs/_base_/datasets)
FOLDERS = {
    ("slices", False): "images_slice_raw",
    ("slices", True): "images_slice_srgb",
    ("downsampled", False): "images_downsample_raw",
    ("downsampled", True): "images_downsample_srgb",
}
NOTES = {
    "slices": "{split}_annotations_slice_1280_300.json",
    "downsampled": "{split}_annotations_downsample_scale3_bbox_min_size32.json",
}
LEVELS = 2**14 - 1
PLACES = ((0, 0), (0, 1), (1, 1), (1, 0))  # of the planes of a published slice


def aodraw_mmdet(out: str | Path, folder: Path) -> dict[str, int]:
    """Write a set of camera RAW as AODRaw's detectors read it, below `folder`; gives how many files of each folder.

    Slices are .npy of (4, H/2, W/2) float32, planes by their place in the mosaic and levels as they are; images at a
    third (3, h, w) float32 of 0 to 255; JPEGs are copied. Annotations are written last.
    """
    manifest, tars = Manifest.load(out), opened(out)
    view = str(manifest.recipe.get("view") or "")
    if view not in NOTES:
        raise SourceError(f"{out}: view {view or 'unknown'}: AODRaw's detectors read slices and downsampled images")
    counts: dict[str, int] = {}
    row_of = {key: row for row, key in enumerate(tars.keys(np.arange(len(tars))))}
    for name in sorted(manifest.files):
        if not name.endswith(".coco.json") or name.endswith(".full.coco.json"):
            continue
        coco = json.loads((Path(out) / name).read_text())
        for image_ in coco["images"]:
            stem = image_["file_name"].rsplit(".")[0]  # as AODRawDataset makes a path of it
            row = row_of[image_.pop("key")]
            for kind, suffix, data in files_of(tars, row):
                where = folder / FOLDERS[view, kind] / f"{stem}{suffix}"
                where.parent.mkdir(parents=True, exist_ok=True)
                where.write_bytes(data)
                counts[where.parent.name] = counts.get(where.parent.name, 0) + 1
        split = name.removesuffix(".coco.json").rpartition("-")[2]
        notes = folder / "annotations" / NOTES[view].format(split=split)
        notes.parent.mkdir(parents=True, exist_ok=True)
        notes.write_text(json.dumps(coco))
    return counts


def files_of(tars: Tars, row: int) -> Iterator[tuple[bool, str, bytes]]:
    """What becomes of a sample: whether it is a JPEG, suffix and bytes."""
    if tars.has(row, "jpg"):
        yield True, ".JPG", tars.read(row, "jpg")
    if tars.has(row, "npy"):
        yield False, ".npy", tars.read(row, "npy")
    elif tars.has(row, codec.SUFFIX):
        mosaic = codec.decode(tars.read(row, codec.SUFFIX))
        yield False, ".npy", _saved(np.stack([mosaic[y::2, x::2] for y, x in PLACES]))
    elif tars.has(row, "tif"):
        camera = Camera.of(json.loads(tars.read(row, "json"))["camera"])
        with image.quiet():
            levels = image.decode_levels(tars.read(row, "tif"))
        planes = levels.transpose(2, 0, 1) * np.float32(camera.full / FULL_SCALE / (LEVELS / 255))
        yield False, ".npy", _saved(planes)


def _saved(planes: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(planes, np.float32))
    return out.getvalue()
