"""croissant.json as mlcroissant reads it: it validates, and every record and member of a set comes out as it is."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from worlds import digests, make_world, recipe_of

import datakit
from datakit import croissant, kinds
from datakit.manifest import Manifest
from datakit.recipe import Recipe
from datakit.sources import synth, synth_raw

Row = dict[str, Any]
READ = """
import base64, io, json, sys
import mlcroissant
def plain(value):
    if isinstance(value, bytes):
        return value.decode() if value.isascii() and b"\\0" not in value else base64.b64encode(value).decode()
    if isinstance(value, list):
        return [plain(one) for one in value]
    if hasattr(value, "fp"):  # a picture of Pillow, whose file nobody has read yet
        value.fp.seek(0)
        return base64.b64encode(value.fp.read()).decode()
    return value
data = mlcroissant.Dataset(jsonld=sys.argv[1])
issues = data.metadata.ctx.issues
rows = {one.uuid: [{k.partition("/")[2]: plain(v) for k, v in row.items()} for row in data.records(one.uuid)]
        for one in data.metadata.record_sets}
print(json.dumps([sorted(issues.errors), sorted(issues.warnings), rows]))
"""
SHOWN = ("key", "id", "source", "name", "width", "height", "split", "label", "licences", "window", "entropy_bits")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Builds of several shards: of pictures with captions, of ImageNet-S with masks, of camera RAW beside its JPEG."""
    folder = tmp_path_factory.mktemp("croissant")
    make_world(folder / "data")
    recipe = recipe_of("classes", "scenes", shards={"max_samples": 8, "captions": True}, about="Two\ncollections.")
    datakit.build(recipe, data=folder / "data", out=folder / "scenes", workers=0)
    synth.make("imagenet_s", folder / "look")
    imagenet = kinds.load("recipes/imagenet_s.yaml", {"variant": "50", "shards.max_samples": 9})
    datakit.build(imagenet, data=folder / "look", out=folder / "imagenet_s", workers=0)
    synth_raw.make(folder / "raws", seed=3, size=(216, 152), images=4)
    window = {"slice.published.size_px": 96, "slice.published.gap_px": 24, "domain": "both", "shards.max_samples": 7}
    datakit.build(Recipe.load("aodraw", window), data=folder / "raws", out=folder / "raw", workers=0)
    return {name: folder / name for name in ("scenes", "imagenet_s", "raw")}


def read(path: Path, cache: Path) -> tuple[list[str], list[str], dict[str, list[Row]]]:
    """Errors, warnings, and the records of every record set, by a process that has a cache of its own."""
    command = [sys.executable, "-W", "ignore", "-c", READ, str(path)]
    env = {"CROISSANT_CACHE": str(cache), "HOME": str(cache), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cache.parent, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    errors, warnings, rows = json.loads(done.stdout.splitlines()[-1])
    return errors, warnings, rows


def members(out: Path) -> dict[str, dict[str, bytes]]:
    """What lies in the tars: by key and suffix."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in Manifest.load(out).shards:
        with tarfile.open(out / shard.name) as tar:
            for info in tar:
                key, _, suffix = info.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(info).read()  # type: ignore[union-attr]
    return found


CONTENTS = {
    "scenes": {"images": "jpg", "captions": "txt"},
    "imagenet_s": {"images": "jpg", "masks": "seg.png"},
    "raw": {"images": "raw", "pictures": "jpg"},
}


@pytest.mark.parametrize("kind", [*CONTENTS])
def test_mlcroissant_validates_and_reads_all_of_it(sets: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """From a copy in another folder: paths are relative."""
    out = tmp_path / "downloaded"
    shutil.copytree(sets[kind], out)
    errors, warnings, rows = read(out / "croissant.json", tmp_path / "cache")
    assert errors == []
    assert all("is recommended" in line for line in warnings)
    manifest, inside = Manifest.load(out), members(out)
    assert len(manifest.shards) > 1
    records = {row["key"]: row for row in pq.read_table(out / "samples.parquet").to_pylist()}
    assert [row["key"] for row in rows["samples"]] == [*records]
    for row in rows["samples"]:
        mine = records[row["key"]]
        assert {n: row[n] for n in SHOWN if n in mine} == {n: mine[n] for n in SHOWN if n in mine}
    for name, member in CONTENTS[kind].items():
        wanted = {key: data[member] for key, data in inside.items() if member in data}
        assert wanted
        assert {row["key"] for row in rows[name]} == {*wanted}
        assert len(rows[name]) == len(wanted)
        for row in rows[name]:
            assert as_bytes(row["content"]) in (wanted[row["key"]], base64.b64encode(wanted[row["key"]]))
            assert row["licences"] == records[row["key"]]["licences"]
            assert row["split"] == records[row["key"]]["split"]


def as_bytes(content: str | None) -> bytes:
    return (content or "").encode()


def test_it_says_what_the_manifest_says(sets: dict[str, Path]) -> None:
    plain = json.loads((sets["scenes"] / "croissant.json").read_text())
    manifest = Manifest.load(sets["scenes"])
    assert plain["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert (plain["name"], plain["description"]) == ("world", "Two collections.")
    assert plain["license"] == ["https://spdx.org/licenses/CC-BY-4.0"]
    assert [one["alternateName"] for one in plain["isBasedOn"]] == ["classes", "scenes"]
    files = {one["contentUrl"]: one["sha256"] for one in plain["distribution"] if one["@type"] == "cr:FileObject"}
    assert files == {s.name: s.sha256 for s in manifest.shards} | {"samples.parquet": manifest.files["samples.parquet"]}
    assert "croissant.json" in manifest.files
    raw = json.loads((sets["raw"] / "croissant.json").read_text())
    assert "Towards RAW Object Detection in Diverse Conditions" in raw["citeAs"]
    assert raw["url"] == Manifest.load(sets["raw"]).sources[0].homepage


def test_it_is_the_same_whoever_builds(sets: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of("classes", "scenes", shards={"max_samples": 8, "captions": True}, about="Two\ncollections.")
    datakit.build(recipe, data=make_world(tmp_path / "elsewhere"), out=tmp_path / "out", workers=2)
    assert digests(tmp_path / "out") == digests(sets["scenes"])
    assert str(tmp_path) not in (tmp_path / "out" / "croissant.json").read_text()


def test_names_of_licences_are_pages_and_words_stay_words() -> None:
    assert croissant.url_of("MIT") == "https://spdx.org/licenses/MIT"
    assert croissant.url_of("CDLA-Permissive-1.0") == "https://spdx.org/licenses/CDLA-Permissive-1.0"
    for words in ("unstated", "For research only.", "Public Domain"):
        assert croissant.url_of(words) == words


def test_globs_of_pictures_leave_masks_out() -> None:
    from fnmatch import fnmatch

    for name in ("a-b", "a-g", "a-eg", "a-seg", "seg_", "x"):
        assert any(fnmatch(f"{name}.png", glob) for glob in croissant.globs("png")), name
        assert not any(fnmatch(f"{name}.seg.png", glob) for glob in croissant.globs("png")), name
