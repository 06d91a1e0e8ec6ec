"""A small build with a removal of every kind, for tests of what a person sees of it and decides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from PIL import Image
from worlds import RULES, geotiff, recipe_of, scene, source_of

import datakit
from datakit.engine import Engine
from datakit.manifest import Manifest
from datakit.recipe import Recipe
from datakit.signing import held_out

HOSTILE = "<img src=x onerror=alert(1)>&.png"
SIZE = 128


class Looked(NamedTuple):
    """Where a build lies, and what it was built from."""

    data: Path
    out: Path
    work: Path
    recipe: Recipe


def collection(data: Path) -> None:
    """Pictures to keep, copies, a flat, a thin, a held-out and a val one, some under another licence, and a place."""
    air, held = data / "air", data / "held"
    for folder in (air / "val", held, data / "closed"):
        folder.mkdir(parents=True)
    for n in range(8):
        Image.fromarray(scene(40 + n, 120, 110, "houses")).save(air / f"{n}.jpg", quality=93)
    for n in range(4):
        Image.open(air / f"{n}.jpg").transpose(Image.Transpose.ROTATE_90).save(air / f"copy{n}.png")
    Image.fromarray(scene(60, 300, 260, "farmland")).save(air / "large.png")
    Image.fromarray(scene(60, 300, 260, "farmland")).save(air / "large_copy.png")
    Image.new("RGB", (100, 100), (120, 130, 90)).save(air / "flat.png")
    Image.new("RGB", (100, 100), (20, 30, 90)).save(air / HOSTILE)
    Image.fromarray(scene(61, 40, 200)).save(air / "thin.png")
    Image.fromarray(scene(62, 120, 120)).save(air / "val" / "one.png")
    Image.fromarray(scene(63, 120, 120, "port")).save(held / "one.png")
    Image.open(held / "one.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(air / "leak.jpg", quality=92)
    Image.fromarray(scene(64, 120, 120)).save(data / "closed" / "one.png")
    (air / "broken.jpg").write_bytes((air / "0.jpg").read_bytes()[:900])
    for n in range(3):
        geotiff(data / "sat" / f"{n}.tif", scene(70 + n, 200, 150, "coast"))


def recipe(data: Path) -> Recipe:
    closed = source_of("closed")
    closed["collection"]["licence"] = "ask first"
    air = source_of("air")
    air["collection"]["splits"] = {"val": {"images": ["val/*"]}}
    rules = [*RULES, {"rule": "licence", "allow": ["CC-BY-4.0"], "name": "not_open"}]
    stages: dict[str, Any] = {
        "sources": [air, source_of("sat"), closed],
        "exclude": {"rules": rules},
        "slice": {"grid": {"size_px": SIZE}},
        "protect": {"lists": [str(data / "held.list")]},
        "dedup": {"orientations": True},
        "subset": {"per_source": {"sat": 5}},
    }
    return recipe_of("air", name="looked", **stages)


def looked_at(folder: Path) -> Looked:
    """Make the collection in `folder` and build it."""
    data = folder / "data"
    collection(data)
    of_grid = recipe_of("air", slice={"grid": {"size_px": SIZE}})
    held_out(data / "held", of_grid, Engine(0)).save(data / "held.list")
    made = Looked(data, folder / "out", folder / "work", recipe(data))
    build(made, made.recipe, made.out)
    return made


def build(made: Looked, changed: Recipe, out: Path) -> tuple[Manifest, list[str]]:
    """Build it by a recipe that was changed; gives the manifest and what was said."""
    said: list[str] = []
    manifest = datakit.build(changed, data=made.data, out=out, work=made.work, workers=0, say=said.append)
    return manifest, said


def dropped(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Records that were left out, by reason."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(out / "dropped.parquet").to_pylist():
        found.setdefault(row["dropped"], []).append(row)
    return found


def kept(out: Path) -> set[str]:
    """Keys of what is in the set."""
    return set(pq.read_table(out / "samples.parquet", columns=["key"]).column("key").to_pylist())


def told(out: Path) -> dict[str, Any]:
    """What the build noted of the decisions."""
    found: dict[str, Any] = json.loads((out / "decisions.json").read_text())
    return found


def copy_of(made: Looked, folder: Path) -> Path:
    """A copy of the build, to be damaged."""
    shutil.copytree(made.out, folder)
    return folder
