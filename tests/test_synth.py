"""The embedded collection: the same every time, as its truth says, and no two scenes alike."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.fft import dct

from datakit.errors import SourceError
from datakit.manifest import Collection, Manifest
from datakit.sample import Sample, Window, to_table
from datakit.sources.synth import check, make

MANIFESTS = Path(__file__).parent.parent / "manifests"
Entry = dict[str, Any]


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Entry]:
    found: list[Entry] = json.loads((folder / "truth.json").read_text())["files"]
    return found


def digests(folder: Path) -> dict[str, str]:
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def content(folder: Path, entry: Entry) -> bytes:
    path = folder / entry["source"] / entry["name"]
    if path.exists():
        return path.read_bytes()
    with zipfile.ZipFile(folder / "ucmerced/UCMerced_LandUse.zip") as archive:
        return archive.read(entry["name"])


def picture(folder: Path, entry: Entry) -> Image.Image:
    return Image.open(io.BytesIO(content(folder, entry))).convert("RGB")


def gray(image: Image.Image, side_px: int) -> NDArray[np.float64]:
    return np.asarray(image.convert("L").resize((side_px, side_px), Image.Resampling.LANCZOS), np.float64)


def phash(image: Image.Image) -> NDArray[np.bool_]:
    """64 bits: the lowest 8 x 8 frequencies of 32 x 32 gray pixels, over their median."""
    low = dct(dct(gray(image, 32), axis=0), axis=1)[:8, :8].ravel()
    return np.asarray(low >= np.median(low))


def starts(length: int) -> list[int]:
    """Where the windows of a grid of 512 px begin; the last is shifted back to fit."""
    return sorted({*range(0, length - 511, 512), length - 512}) if length > 512 else [0]


def windows(width: int, height: int) -> Iterator[Window]:
    for top in starts(height):
        for left in starts(width):
            yield Window(left, top, min(512, width), min(512, height))


def test_two_makes_are_equal(twins: tuple[Path, Path]) -> None:
    first, second = (digests(folder) for folder in twins)
    assert first == second


def test_truth_lists_every_file_once(folder: Path, files: list[Entry]) -> None:
    collections = {e["source"] for e in files}
    on_disk = {(p.parts[0], "/".join(p.parts[1:])) for p in map(Path, digests(folder)) if p.parts[0] in collections}
    on_disk.remove(("ucmerced", "UCMerced_LandUse.zip"))
    with zipfile.ZipFile(folder / "ucmerced/UCMerced_LandUse.zip") as archive:
        on_disk |= {("ucmerced", name) for name in archive.namelist()}
    listed = Counter((e["source"], e["name"]) for e in files)
    assert set(listed) == on_disk
    assert max(listed.values()) == 1
    assert {p.name for p in folder.iterdir()} == {*collections, "heldout", "truth.json"}


def glob_matches(glob: str, name: str) -> bool:
    pieces = re.split(r"(\*\*/|\*)", glob)
    pattern = "".join({"**/": "(?:.*/)?", "*": "[^/]*"}.get(piece, re.escape(piece)) for piece in pieces)
    return re.fullmatch(pattern, name) is not None


def test_names_match_the_globs_of_the_manifests(files: list[Entry]) -> None:
    for source in {e["source"] for e in files}:
        layout = Collection.load(MANIFESTS / f"{source}.yaml").layout
        for entry in (e for e in files if e["source"] == source):
            image = any(glob_matches(glob, entry["name"]) for glob in layout.images)
            label = any(glob_matches(glob, entry["name"]) for glob in layout.label_files)
            assert (image, label) == (entry["expect"] not in ("label", "unmatched"), entry["expect"] == "label"), entry
            assert not (image and entry["what"] in ("label_raster", "preview"))


def test_every_reason_and_enough_scenes_are_planted(files: list[Entry]) -> None:
    expected = Counter(e["expect"] for e in files)
    reasons = {"unmatched", "unreadable", "modality", "dtype", "bands", "frames", "smaller_than", "longer_than"}
    assert expected.keys() == reasons | {"kept", "label", "larger_than", "valid_share", "flat"}
    assert expected["kept"] > 180
    planted = Counter(e.get("how") for e in files if e["what"] in ("copy", "crop"))
    assert planted["exact"] == planted["jpeg50"] - 1 == planted["half size"] == 2
    assert planted["crop"] == 5
    assert sum(e.get("expect_dedup") == "duplicate_scene" and "equal pixels" in e["how"] for e in files if "how" in e)


def test_unreadable_files_cannot_be_read(folder: Path, files: list[Entry]) -> None:
    for entry in (e for e in files if e["expect"] == "unreadable"):
        with pytest.raises((OSError, ValueError)):
            picture(folder, entry)


def test_boxes_lie_on_drawn_objects(folder: Path, files: list[Entry]) -> None:
    found: Counter[str] = Counter()
    for entry in (e for e in files if e["source"] == "dota" and e["what"] == "label_file"):
        name = entry["name"].replace("labelTxt", "images").replace(".txt", ".png")
        pixels = np.asarray(Image.open(folder / "dota" / name), np.float64)
        for line in content(folder, entry).decode().splitlines()[2:]:
            *numbers, label, difficult = line.split()
            corners = np.array(numbers, float).reshape(4, 2)
            assert ((corners >= 0) & (corners < pixels.shape[1::-1])).all()
            assert difficult in "01"
            middle = corners.mean(0)
            inner = [pixels[int(y), int(x)] for x, y in middle + (corners - middle) * 0.4]
            outer = [pixels[int(y), int(x)] for x, y in np.clip(middle + (corners - middle) * 1.7, 0, None)
                     if y < pixels.shape[0] and x < pixels.shape[1]]  # fmt: skip
            clear = np.abs(np.median(inner, 0) - np.median(outer, 0)).max() > 14
            found[f"{label} seen" if clear else f"{label} lost"] += 1
    for label in ("ship", "small-vehicle", "large-vehicle", "storage-tank"):
        assert found[f"{label} seen"] > 15
        assert found[f"{label} lost"] <= 0.06 * found[f"{label} seen"], found


def test_no_two_scenes_are_alike(folder: Path, files: list[Entry]) -> None:
    """Neither whole, nor tile by tile: over 10 of 64 bits, which copies stay within."""
    hashes, thumbnails, of = [], [], []
    for entry in (e for e in files if e["expect"] == "kept" and e["what"] != "copy"):
        image = picture(folder, entry)
        thumbnails.append(gray(image, 16).ravel() - gray(image, 16).mean())
        parts = [image] + [
            image.crop((w[0], w[1], w[0] + w[2], w[1] + w[3]))
            for w in windows(*image.size)
            if w[:2] != (0, 0) or max(image.size) > 512
        ]
        hashes += [phash(part) for part in parts]
        of += [entry["name"]] * len(parts)
    bits = np.array(hashes)
    distances = (bits[:, None] ^ bits[None]).sum(2) + 64 * np.eye(len(bits), dtype=int)
    at = np.unravel_index(distances.argmin(), distances.shape)
    assert distances.min() > 10, (of[at[0]], of[at[1]])
    unit = np.array([t / np.linalg.norm(t) for t in thumbnails])
    assert (unit @ unit.T - np.eye(len(unit))).max() < 0.95


def test_copies_and_leaks_are_alike(folder: Path, files: list[Entry]) -> None:
    turns = {"turned 90": 2, "turned 180": 3, "turned 270": 4, "left-right": 0, "up-down": 1}
    back = {2: 4, 4: 2, 3: 3, 0: 0, 1: 1}
    for entry in (e for e in files if e["what"] in ("copy", "leak")):
        if entry["what"] == "copy":
            original = picture(folder, entry["copy_of"])
        else:
            original = Image.open(folder / entry["leak_of"]).convert("RGB")
        copy = picture(folder, entry)
        if entry["how"] in turns:
            copy = copy.transpose(Image.Transpose(back[turns[entry["how"]]]))
        elif entry["how"] in ("transposed", "transversed"):
            copy = copy.transpose(Image.Transpose(5 if entry["how"] == "transposed" else 6))
        assert int((phash(copy) ^ phash(original)).sum()) <= 4, entry


def test_valid_polygons_say_what_is_valid(folder: Path, files: list[Entry]) -> None:
    for entry in (e for e in files if "valid_polygon" in e):
        image = Image.open(io.BytesIO(content(folder, entry)))
        pixels = np.asarray(image).astype(int)
        invalid = pixels[..., 3] == 0 if entry["what"] == "alpha" else (pixels.min(2) > 246) | (pixels.max(2) < 16)
        corners = [tuple(corner) for corner in entry["valid_polygon"]]
        mask = Image.new("1", image.size)
        ImageDraw.Draw(mask).polygon(corners, fill=1)
        assert np.mean(invalid == ~np.asarray(mask)) > 0.985, entry["name"]


def test_scenes_are_no_nodata_and_no_noise(folder: Path, files: list[Entry]) -> None:
    for entry in (e for e in files if e["what"] == "scene" and e["source"] in ("dota", "ucmerced", "inria")):
        pixels = np.asarray(picture(folder, entry))
        assert pixels.min() > 4
        assert pixels.max() < 250
        share = np.bincount(pixels[..., 1].ravel(), minlength=256) / pixels[..., 1].size
        assert -(share[share > 0] * np.log2(share[share > 0])).sum() > 4
        neighbours = np.corrcoef(pixels[:, 1:, 1].ravel(), pixels[:, :-1, 1].ravel())[0, 1]
        assert neighbours > 0.6


def test_geotiffs_are_georeferenced(folder: Path, files: list[Entry]) -> None:
    tagged = 0
    for entry in (e for e in files if e["source"] == "inria" and e["expect"] == "kept"):
        with rasterio.open(folder / "inria" / entry["name"]) as raster:
            assert raster.crs.to_epsg() == 32633
            tagged += raster.nodata == 0
    assert tagged == 3


def test_make_leaves_folders_of_others_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(SourceError, match="not empty"):
        make("opticalrs", tmp_path)
    with pytest.raises(SourceError, match="no embedded collection"):
        make("moon", tmp_path / "new")


def test_a_right_build_of_all_of_it_has_nothing_wrong(tmp_path: Path, folder: Path, files: list[Entry]) -> None:
    rows = [row for entry in files for row in as_built(entry)]
    pq.write_table(to_table(r for r in rows if not r.dropped), tmp_path / "samples.parquet")
    pq.write_table(to_table(r for r in rows if r.dropped), tmp_path / "dropped.parquet")
    empty: dict[str, Any] = {"recipe": {}, "versions": {}, "files": {}}
    lists: dict[str, Any] = dict.fromkeys(("sources", "missing", "members", "shards", "counts"), ())
    manifest = Manifest(name="x", title="x", recipe_digest="", samples=0, **empty, **lists)
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    assert check(tmp_path, folder) == []


def as_built(entry: Entry) -> Iterator[Sample]:
    """The records that a right build leaves of a file, without duplicates removed."""
    known = Sample(
        source=entry["source"], name=entry["name"], width=entry.get("width", 0), height=entry.get("height", 0)
    )
    if entry["expect"] == "label":
        return
    if entry["expect"] != "kept":
        yield known.drop(entry["expect"])
        return
    mask = Image.new("1", (known.width, known.height), "valid_polygon" not in entry)
    ImageDraw.Draw(mask).polygon([tuple(c) for c in entry.get("valid_polygon", [(0, 0), (1, 0), (0, 1)])], fill=1)
    valid = np.asarray(mask)
    for w in windows(*mask.size):
        tile = replace(known, window=w, width=w.width, height=w.height) if max(mask.size) > 512 else known
        share = valid[w.top : w.top + w.height, w.left : w.left + w.width].mean()
        yield tile if share >= 0.5 else tile.drop("valid_share")
