"""What a build left is whole or told not to be; what is damaged comes back byte for byte."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from worlds import MAY_DIFFER, digests, make_world, recipe_of

import datakit
from datakit import index, kinds
from datakit.add_column import add_column
from datakit.cli import main
from datakit.errors import ShardError
from datakit.folders import gc
from datakit.manifest import Manifest
from datakit.recipe import Recipe
from datakit.repair import repair
from datakit.sources import synth, synth_raw
from datakit.stream import Overlay
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


@pytest.fixture
def copied(sets: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the build of scenes and of its work folder, elsewhere."""
    shutil.copytree(sets["scenes"].parent, tmp_path / "set")
    return tmp_path / "set" / "out"


def what(out: Path, deep: bool = True) -> dict[str, str]:
    return {finding.file: f"{finding.what}; {finding.todo}" for finding in verify(out, deep).findings}


def restage(out: Path) -> Path:
    """Free the staged tiles of a set that was copied; gives its work folder."""
    work = out.with_name("out.work")
    for path in work.rglob("*.staged"):
        path.unlink()
    return work


def test_a_set_that_was_moved_is_mended(copied: Path) -> None:
    before = digests(copied)
    flip_in_tar(copied, random.Random(0))
    restored = repair(verify(copied, deep=True), work=copied.with_name("out.work"), say=lambda line: None)
    assert [path.endswith(".tar") for path in restored] == [True]
    assert digests(copied) == before


def test_staged_tiles_do_without_the_sources(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tars, index and table of samples come from WORK alone."""
    before, work = digests(copied), copied.with_name("out.work")
    monkeypatch.setattr("datakit.repair.build", None)
    for name in ("index.arrow", "samples.parquet", "manifest.json", *(path.name for path in tars(copied))):
        (copied / name).unlink()
        repair_from = verify(copied, deep=True)
        assert repair(repair_from, work, lambda line: None) == [name]
    assert digests(copied) == before


def test_damaged_staged_tiles_are_cut_again(copied: Path) -> None:
    before, work = digests(copied), copied.with_name("out.work")
    for path in work.rglob("*.staged"):
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    hurt = flip_in_tar(copied, random.Random(0))
    assert {*repair(verify(copied, deep=True), work, lambda line: None, workers=0)} == hurt
    assert digests(copied) == before


def test_changed_sources_do_not_change_a_set(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be made again byte for byte is told, and left as it is."""
    data = tmp_path / "data"
    make_world(data)
    work = restage(copied)
    for path in (data / "classes").rglob("*.jpg"):
        Image.fromarray(np.full((200, 200, 3), 7, np.uint8)).save(path)
    for path in (work / "builds").glob("*.origin"):
        recipe, _, allow_missing, manifest = json.loads(path.read_text())
        path.write_text(json.dumps([recipe, str(data), allow_missing, manifest]))
    for path in tars(copied):
        path.write_bytes(path.read_bytes()[:-1])
    hurt = digests(copied)
    assert main(["verify", str(copied), "--repair", "--work", str(work), "--workers", "0"]) == 1
    printed = capsys.readouterr().out
    assert "not repaired: " in printed
    assert "sources, recipe or libraries have changed" in printed
    assert json.loads(printed.splitlines()[-1])["restored"] == []
    assert digests(copied) == hurt


def test_what_it_lacks_is_told(copied: Path, tmp_path: Path) -> None:
    (copied / "README.md").unlink()
    with pytest.raises(ShardError, match=r"no work folder there. Name that of the build with --work"):
        repair(verify(copied, deep=True), tmp_path / "nowhere")
    with pytest.raises(ShardError, match=r"no manifest.json and no index.arrow there"):
        verify(tmp_path)
    work = copied.with_name("out.work")
    for path in (work / "builds").glob("*.origin"):
        path.unlink()
    with pytest.raises(ShardError, match=r"does not know how .* was built: run `datakit build` with its recipe again"):
        repair(verify(copied, deep=True), work)


def test_a_shallow_look_sees_sizes_counts_and_ends(copied: Path) -> None:
    first, second, *_ = tars(copied)
    first.write_bytes(first.read_bytes()[:-512])
    data = bytearray(second.read_bytes())
    data[:100] = b"other.jpg".ljust(100, b"\0")
    second.write_bytes(data)
    samples_row(copied, random.Random(0))
    (copied / "protect.json").unlink()
    found = what(copied, deep=False)
    assert {*found} == {first.name, second.name, "samples.parquet", "protect.json"}
    assert "bytes, not" in found[first.name]
    assert "at byte 0 does not begin" in found[second.name]
    assert "rows, where index.arrow has" in found["samples.parquet"]
    assert all(f"datakit verify {copied} --repair" in words for words in found.values())


def test_members_are_decoded(copied: Path) -> None:
    """A set that agrees with itself byte for byte, with members that no reader can use: wrong when it was built."""
    path = tars(copied)[0]
    table = index.load(copied / "index.arrow")
    shards = json.loads(table.schema.metadata[b"shards"])
    rows = table.filter(pa.array(table.column("shard").to_numpy() == 0)).to_pylist()
    data = bytearray(path.read_bytes())
    picture, late, other = rows[0], rows[1], rows[2]
    at = picture["jpg_offset"]
    data[at : at + picture["jpg_bytes"]] = bytes(picture["jpg_bytes"])
    for row, old, new in ((late, b'"gsd_m"', b'"gsdxm"'), (other, b'"scale":1.0', b'"scale":100')):
        at, size = row["json_offset"], row["json_bytes"]
        data[at : at + size] = bytes(data[at : at + size]).replace(old, new)
    path.write_bytes(data)
    shards[0]["sha256"] = hashlib.sha256(data).hexdigest()
    index.write(table.combine_chunks(), copied / "index.new", shards)
    (copied / "index.new").replace(copied / "index.arrow")
    manifest = Manifest.load(copied)
    first = manifest.shards[0].model_copy(update={"sha256": shards[0]["sha256"]})
    arrow = hashlib.sha256((copied / "index.arrow").read_bytes()).hexdigest()
    more = {"shards": (first, *manifest.shards[1:]), "files": {**manifest.files, "index.arrow": arrow}}
    (copied / "manifest.json").write_text(manifest.model_copy(update=more).sealed().to_json())
    words = "\n".join(finding.what for finding in verify(copied, deep=True).findings)
    assert f"{picture['key']}.jpg: cannot be decoded" in words
    assert f"{late['key']}.json: has gsdxm (float) and lacks gsd_m, unlike the others" in words
    assert f"{other['key']}.json: has scale (int), unlike the others" in words
    assert not verify(copied).findings


def test_columns_and_overlays_are_looked_at(copied: Path, tmp_path: Path) -> None:
    keys = pq.read_table(copied / "samples.parquet").column("key").to_pylist()
    ids = index.load(copied / "index.arrow").column("id").to_pylist()
    (tmp_path / "texts").mkdir()
    for key in keys[1:]:
        (tmp_path / "texts" / f"{key}.note").write_text(key)
    add_column(copied, "note", tmp_path / "texts", say=lambda line: None)
    (copied / "overlays").mkdir()
    Overlay.write(copied / "overlays" / "some.parquet", "drop", ids[:3])
    Overlay.write(copied / "overlays" / "split.parquet", "split", ids[:2], ["a", "b"])
    assert not what(copied)
    Overlay.write(copied / "overlays" / "some.parquet", "drop", [*ids[:3], 5])
    (copied / "overlays" / "split.parquet").write_bytes(b"PAR1")
    tar = sorted((copied / "columns").glob("*.tar"))[0]
    whole = tar.read_bytes()
    tar.write_bytes(whole.replace(keys[1].encode(), b"x" + keys[1].encode()[1:]))
    found = what(copied)
    assert {*found} == {"overlays/some.parquet", "overlays/split.parquet", f"columns/{tar.name}"}
    assert "1 of its 4 ids are not of this set, as 5" in found["overlays/some.parquet"]
    assert f"datakit add-column {copied} note --replace --from DIR" in found[f"columns/{tar.name}"]
    assert {*what(copied, deep=False)} >= {"overlays/some.parquet"}
    tar.write_bytes(whole[:-1])
    assert "bytes, not" in what(copied, deep=False)[f"columns/{tar.name}"]
    tar.write_bytes(whole)
    arrow = copied / "columns" / "note.arrow"
    arrow.write_bytes(arrow.read_bytes()[:-100])
    assert "not a column" in what(copied, deep=False)["columns/note.arrow"]


def test_a_tar_too_many_is_told(copied: Path) -> None:
    extra = copied / "world-train-000099.tar"
    shutil.copy(tars(copied)[0], extra)
    assert f"rm {extra}" in what(copied, deep=False)[extra.name]


def test_gc_forgets_what_sets_that_are_gone_were_made_from(tmp_path: Path) -> None:
    make_world(tmp_path / "data")
    datakit.build(recipe_of("classes"), data=tmp_path / "data", out=tmp_path / "out", workers=0)
    assert len([*(tmp_path / "out.work" / "builds").glob("*.origin")]) == 1
    shutil.rmtree(tmp_path / "out")
    gc(tmp_path / "out.work")
    assert not [*(tmp_path / "out.work" / "builds").iterdir()]
