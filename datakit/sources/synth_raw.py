"""The embedded AODRaw: RAW files (DNG) of scenes that are known, their JPEG twins, and COCO annotations with tags.

Each scene is drawn in linear sRGB, of patches and of objects of one colour each. A camera with a matrix, a white
balance, a pedestal of 512 and noise records it through one of the four Bayer patterns, in landscape or portrait; its
JPEG is the same scene, a few pixels smaller on each side. `truth.json` says of every file what it is, what becomes of
it, and where which colour is.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import dng
from ..bayer import PATTERNS, SITES, turn
from ..raw import RawImage

SIZE_PX = (1928, 1296)  # of the sensor: width, height
BORDER_PX = (4, 8)  # of the mosaic that the JPEG lacks: left and right, top and bottom
BLACK, WHITE = 512, 16383
GAINS = (2.1, 1.0, 1.6)  # white balance, as shot
MATRIX = (1.7, -0.55, -0.15, -0.2, 1.5, -0.3, 0.02, -0.42, 1.4)  # camera to linear sRGB; rows sum to 1
CATEGORIES = {0: "person", 1: "car", 2: "traffic_sign", 3: "bicyle", 62: "ignore"}
TAGS = (
    ["normal_light"],
    ["low_light"],
    ["normal_light", "rain"],
    ["low_light", "rain"],
    ["fog", "low_light"],
    ["indoor"],
    ["fog", "rain"],
)
ELECTRONS_PER_DN, READ_NOISE_DN = 1.25, 3.0
Linear = NDArray[np.float64]  # (H, W, 3), 0..1
# What is wrong with a file, and what becomes of it: beside the good ones
PLANTED = {
    "twin_is_landscape": "orientation_conflict",
    "twin_is_upside_down": "orientation_conflict",
    "cut_short": "unreadable",
    "x_trans": "not_bayer",
}


def shots(images: int) -> Iterator[tuple[str, int, str]]:
    """Pattern, EXIF orientation, and what is wrong: all patterns in landscape and in portrait, then what is planted."""
    for n in range(images):
        yield PATTERNS[n % 4], (1, 8)[n // 4 % 2] if n % 12 < 8 else (6, 3, 1, 8)[n % 4], ""
    for what in PLANTED:
        yield "RGGB", 8 if what == "twin_is_landscape" else 1, what


def make(folder: Path, seed: int = 0, size: tuple[int, int] = SIZE_PX, images: int = 12) -> list[dict[str, Any]]:
    """Writes aodraw/images and aodraw/annotations below a folder; gives the truth of each file."""
    home, truth = folder / "aodraw", []
    (home / "images").mkdir(parents=True, exist_ok=True)
    (home / "annotations").mkdir(exist_ok=True)
    split_of = {}
    for number, (cfa, orientation, wrong) in enumerate(shots(images)):
        one = shot(home / "images", number, cfa, orientation, wrong, np.random.default_rng([seed, number]), size)
        split_of[number] = "test" if number % 4 == 3 else "train"
        truth += [{**each, "split": split_of[number]} for each in one]
    raws = [entry for entry in truth if entry["what"] == "raw"]
    for split in ("train", "test"):
        coco = coco_of([entry for entry in raws if entry["split"] == split])
        name = f"annotations/{split}_annotations.json"
        (home / name).write_text(json.dumps(coco))
        truth.append({"source": "aodraw", "name": name, "what": "label_file", "expect": "label", "split": split})
    return truth


def shot(
    home: Path, number: int, cfa: str, orientation: int, wrong: str, rng: np.random.Generator, size: tuple[int, int]
) -> list[dict[str, Any]]:
    """One RAW file and its twin; gives the truth of both."""
    tags = TAGS[number % len(TAGS)]
    width, height = size if orientation in (1, 2, 3, 4) else size[::-1]
    scene, objects = drawn(rng, width, height)
    stored = turn(scene, _inverse(orientation))  # as the sensor lies
    exposure = 0.15 if "low_light" in tags else 0.7
    mosaic = record(stored, cfa, exposure, rng)
    black = (float(BLACK),) * 4
    shot_ = RawImage(mosaic, black, WHITE, cfa, GAINS, MATRIX, (), 800.0 if exposure < 0.5 else 100.0, 1 / 60)
    data = dng.encode(replace(shot_, orientation=orientation, make="Datakit", model=f"Synthetic {cfa}"))
    across, down = BORDER_PX if orientation in (1, 2, 3, 4) else BORDER_PX[::-1]
    frame = scene[down : height - down, across : width - across]
    twin, told = (np.rot90(frame), 1) if wrong == "twin_is_landscape" else (frame, orientation)
    twin = twin[::-1, ::-1] if wrong == "twin_is_upside_down" else twin
    stem = f"{number:08d}"
    (home / f"{stem}.dng").write_bytes(_spoilt(data, wrong))
    (home / f"{stem}.JPG").write_bytes(jpeg(turn(twin, _inverse(told)), told))
    expect = PLANTED.get(wrong, "kept")
    about = {"source": "aodraw", "expect": expect, "wrong": wrong, "cfa": cfa, "orientation": orientation}
    shown = {"id": number, "width": width - 2 * across, "height": height - 2 * down, "tag": tags, "objects": objects}
    raw = {"name": f"images/{stem}.dng", "what": "raw", **about, **shown, "frame": [across, down], "exposure": exposure}
    return [raw, {"name": f"images/{stem}.JPG", "what": "twin", **about, "expect": "label"}]


def drawn(rng: np.random.Generator, width: int, height: int) -> tuple[Linear, list[dict[str, Any]]]:
    """A scene of large patches with fine texture, and objects in it, each of one colour; places are of the frame."""
    rows, columns = np.indices((height, width))
    scene = np.empty((height, width, 3))
    for c in range(3):
        waves = rng.uniform(0.5, 3, 4)
        scene[..., c] = 0.25 + 0.08 * np.sin(waves[0] * rows / 37 + waves[1]) * np.cos(waves[2] * columns / 53 + c)
    for _ in range(40):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        across, down = int(rng.integers(8, width // 3)), int(rng.integers(8, height // 3))
        scene[y : y + down, x : x + across] = rng.uniform(0.1, 0.6, 3)
    objects = []
    side = min(width, height)
    taken = np.zeros((height, width), bool)
    for n in range(8):
        for _ in range(200):  # so small that they find a place of their own
            across, down = (int(v) for v in rng.integers(max(side // 20, 9), max(side // 6, 14), 2))
            x = int(rng.integers(max(BORDER_PX), width - across - max(BORDER_PX)))
            y = int(rng.integers(max(BORDER_PX), height - down - max(BORDER_PX)))
            if not taken[y : y + down, x : x + across].any():
                break
        else:
            break
        taken[y : y + down, x : x + across] = True
        colour = [round(float(v), 4) for v in rng.uniform(0.05, 0.7, 3)]
        scene[y : y + down, x : x + across] = colour
        category = [*CATEGORIES][n % 4] if n < 7 else 62
        objects.append({"box": [x, y, across, down], "colour": colour, "category_id": category})
    return scene, objects


def record(stored: Linear, cfa: str, exposure: float, rng: np.random.Generator) -> NDArray[np.uint16]:
    """What the sensor counts of a scene, (H, W) uint16: pedestal, shot noise and read noise, 14 bits."""
    camera = stored @ np.linalg.inv(np.reshape(MATRIX, (3, 3))).T / np.array(GAINS)
    light = np.empty(stored.shape[:2])
    for (y, x), colour in zip(SITES, cfa, strict=True):
        light[y::2, x::2] = camera[y::2, x::2, "RGB".index(colour)]
    signal = np.clip(light * exposure, 0, None) * (WHITE - BLACK)
    counted = rng.poisson(signal * ELECTRONS_PER_DN) / ELECTRONS_PER_DN + rng.normal(0, READ_NOISE_DN, signal.shape)
    return np.clip(np.rint(counted + BLACK), 0, WHITE).astype(np.uint16)


def jpeg(stored: Linear, orientation: int) -> bytes:
    """A picture as the camera's JPEG: sRGB (IEC 61966-2-1), with its orientation in the EXIF."""
    linear = np.clip(stored, 0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray((curve * 255 + 0.5).astype(np.uint8)))
    picture.save(out, "JPEG", quality=95, exif=exif.tobytes())
    return out.getvalue()


def coco_of(raws: list[dict[str, Any]]) -> dict[str, Any]:
    """Annotations in px of the twins, as AODRaw's own files have them; a region to ignore is a crowd, too."""
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for entry in raws:
        sizes = {key: entry[key] for key in ("height", "width", "tag")}
        images.append({"id": entry["id"], "file_name": entry["name"].removeprefix("images/"), **sizes})
        for thing in entry["objects"]:
            x, y, width, height = thing["box"]
            box = [x - entry["frame"][0], y - entry["frame"][1], width, height]
            crowd, category = int(thing["category_id"] == 62), thing["category_id"]
            about = {"image_id": entry["id"], "bbox": box, "area": width * height, "category_id": category}
            notes.append({"id": len(notes), "iscrowd": crowd, "ignore": 0, "segmentation": [], **about})
    names = [{"supercategory": "none", "id": n, "name": name} for n, name in CATEGORIES.items()]
    return {"images": images, "type": "instance", "categories": names, "annotations": notes}


def _inverse(orientation: int) -> int:
    """The orientation that undoes another one."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def _spoilt(data: bytes, wrong: str) -> bytes:
    if wrong == "cut_short":
        return data[: len(data) // 3]
    return x_trans(data) if wrong == "x_trans" else data


def x_trans(data: bytes) -> bytes:
    """A DNG with Fujifilm's pattern of 6 x 6 in place of its own."""
    pattern = bytes("RGB".index(c) for c in "GGRGGBGGBGGRBRGRBGGGBGGRGGRGGBRBGBRG")
    found = bytearray(data)
    for entry in range(10, 10 + 12 * int.from_bytes(data[8:10], "little"), 12):
        tag = int.from_bytes(data[entry : entry + 2], "little")
        if tag == dng.PATTERN_SIZE:
            found[entry + 8 : entry + 12] = b"\6\0\6\0"
        elif tag == dng.PATTERN:
            found[entry + 4 : entry + 12] = len(pattern).to_bytes(4, "little") + len(data).to_bytes(4, "little")
    return bytes(found) + pattern
