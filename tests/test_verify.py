"""What a build left is whole or told not to be; what is damaged comes back byte for byte."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worlds import MAY_DIFFER, digests, make_world, recipe_of

import datakit
from datakit import index, kinds
from datakit.cli import main
from datakit.manifest import Manifest
from datakit.recipe import Recipe
from datakit.repair import repair
from datakit.sources import synth, synth_raw
from datakit.verify import verify

KINDS = ("scenes", "freed", "imagenet_s", "raw")
CORRUPTIONS = 100
Damage = Callable[[Path, random.Random], set[str]]  # gives the files that it hurt


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A build of each kind: with staged tiles, without, of ImageNet-S, of camera RAW; and an older one's manifest."""
    folder = tmp_path_factory.mktemp("sets")
    outs = {name: folder / name / "out" for name in KINDS}
    make_world(folder / "data")
    names = ("classes", "scenes", "trouble")
    for name in ("scenes", "freed"):
        options = {"data": folder / "data", "out": outs[name], "workers": 0, "free": name == "freed"}
        datakit.build(recipe_of(*names, seed=1, shards={"max_samples": 5}), **options)
        shutil.copy(outs[name] / "manifest.json", outs[name].parent / "stale.json")
        datakit.build(recipe_of(*names, dedup={}, shards={"max_samples": 8}), **options)
    synth.make("imagenet_s", folder / "look")
    for seed, most in ((1, 7), (0, 9)):
        if seed == 0:
            shutil.copy(outs["imagenet_s"] / "manifest.json", outs["imagenet_s"].parent / "stale.json")
        changes = {"variant": "50", "shards.max_samples": most, "seed": seed}
        datakit.build(
            kinds.load("recipes/imagenet_s.yaml", changes), folder / "look", out=outs["imagenet_s"], workers=0
        )
    synth_raw.make(folder / "raws", seed=3, size=(216, 152), images=8)
    window = {"slice.published.size_px": 96, "slice.published.gap_px": 24, "domain": "both"}
    for most in (5, 7):
        if most == 7:
            shutil.copy(outs["raw"] / "manifest.json", outs["raw"].parent / "stale.json")
        changes = {**window, "shards.max_samples": most}
        datakit.build(Recipe.load("aodraw", changes), data=folder / "raws", out=outs["raw"], workers=0)
    return outs


def files(out: Path) -> list[Path]:
    return sorted(path for path in out.iterdir() if path.name != MAY_DIFFER)


def tars(out: Path) -> list[Path]:
    return sorted(out.glob("*.tar"))


def flip(out: Path, rng: random.Random) -> set[str]:
    path = rng.choice(files(out))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return {path.name}


def flip_in_tar(out: Path, rng: random.Random) -> set[str]:
    """In the header, the padding or the payload of a member, or in the end of the tar."""
    path = rng.choice(tars(out))
    data = bytearray(path.read_bytes())
    data[rng.choice([rng.randrange(512), rng.randrange(len(data)), len(data) - 1 - rng.randrange(1024)])] ^= 0x10
    path.write_bytes(data)
    return {path.name}


def truncate(out: Path, rng: random.Random) -> set[str]:
    path = rng.choice([*files(out), *tars(out)])
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    return {path.name}


def grow(out: Path, rng: random.Random) -> set[str]:
    path = rng.choice(files(out))
    path.write_bytes(path.read_bytes() + rng.choice([b"\0" * 512, b"more", b" "]))
    return {path.name}


def zero(out: Path, rng: random.Random) -> set[str]:
    """A block of a disk that was never written."""
    path = rng.choice(tars(out))
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data) // 512 - 4) // 2 * 512
    data[at : at + 1024] = bytes(1024)
    path.write_bytes(data)
    return {path.name}


def remove(out: Path, rng: random.Random) -> set[str]:
    path = rng.choice(files(out))
    path.unlink()
    return {path.name}


def swap(out: Path, rng: random.Random) -> set[str]:
    one, other = rng.sample(tars(out), 2)
    aside = out.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    return {one.name, other.name}


def index_row(out: Path, rng: random.Random) -> set[str]:
    """A row less, in an index that agrees with itself."""
    table = index.load(out / "index.arrow")
    lost = rng.randrange(len(table))
    rows = pa.concat_tables([table.slice(0, lost), table.slice(lost + 1)])
    index.write(rows, out / "index.new", json.loads(table.schema.metadata[b"shards"]))
    (out / "index.new").replace(out / "index.arrow")
    return {"index.arrow"}


def index_place(out: Path, rng: random.Random) -> set[str]:
    """An offset that is a block off, in an index that agrees with itself."""
    table = index.load(out / "index.arrow")
    offsets = table.column("json_offset").to_numpy().copy()
    offsets[rng.randrange(len(offsets))] += 512
    rows = table.set_column(table.schema.get_field_index("json_offset"), "json_offset", pa.array(offsets))
    index.write(rows, out / "index.new", json.loads(table.schema.metadata[b"shards"]))
    (out / "index.new").replace(out / "index.arrow")
    return {"index.arrow"}


def samples_row(out: Path, rng: random.Random) -> set[str]:
    table = pq.read_table(out / "samples.parquet")
    lost = rng.randrange(len(table))
    pq.write_table(pa.concat_tables([table.slice(0, lost), table.slice(lost + 1)]), out / "samples.parquet")
    return {"samples.parquet"}


def dropped_row(out: Path, rng: random.Random) -> set[str]:
    table = pq.read_table(out / "dropped.parquet")
    pq.write_table(table.slice(1) if len(table) else pa.table({"dropped": ["x"]}), out / "dropped.parquet")
    return {"dropped.parquet"}


def stale(out: Path, rng: random.Random) -> set[str]:
    """The manifest of an older build in the same folder."""
    shutil.copy(out.parent / "stale.json", out / "manifest.json")
    return {"manifest.json"}


def forged(out: Path, rng: random.Random) -> set[str]:
    """A manifest whose seal is right, with another digest of one shard."""
    manifest = Manifest.load(out)
    n = rng.randrange(len(manifest.shards))
    changed = manifest.shards[n].model_copy(update={"sha256": "0" * 64})
    shards = (*manifest.shards[:n], changed, *manifest.shards[n + 1 :])
    (out / "manifest.json").write_text(manifest.model_copy(update={"shards": shards}).sealed().to_json())
    return {"manifest.json"}


def count_changed(out: Path, rng: random.Random) -> set[str]:
    plain = json.loads((out / "manifest.json").read_text())
    rng.choice(plain["counts"])["made"] += 1
    (out / "manifest.json").write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n")
    return {"manifest.json"}


def several(out: Path, rng: random.Random) -> set[str]:
    return flip_in_tar(out, rng) | index_row(out, rng) | remove(out, rng)


DAMAGES: tuple[Damage, ...] = (flip, flip_in_tar, truncate, grow, zero, remove, swap, index_row, index_place)
DAMAGES += (samples_row, dropped_row, stale, forged, count_changed, several)


@pytest.mark.parametrize("seed", range(CORRUPTIONS))
def test_a_corruption_is_found_and_mended(sets: dict[str, Path], seed: int) -> None:
    rng, out = random.Random(seed), sets[KINDS[seed % len(KINDS)]]
    before, damage = digests(out), DAMAGES[seed // len(KINDS) % len(DAMAGES)]
    hurt = damage(out, rng)
    assert digests(out) != before
    found = verify(out, deep=True)
    assert hurt <= {finding.file for finding in found.findings}, damage
    assert all(finding.todo for finding in found.findings)
    assert {*repair(found, workers=0, say=lambda line: None)} == hurt
    assert digests(out) == before
    assert not (out / ".partial").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_set_is_found_whole_and_left_alone(
    sets: dict[str, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in files(sets[kind])}
    for options in ([], ["--deep"], ["--repair"]):
        assert main(["verify", str(sets[kind]), *options]) == 0
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (last["findings"], last["samples"] > 0, last["shards"] > 1) == (0, True, True)
    assert {path: path.stat().st_mtime_ns for path in files(sets[kind])} == before
