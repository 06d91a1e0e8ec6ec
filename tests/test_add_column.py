"""Columns added to sets that are built: no shard changes, and the loader joins them row for row."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worlds import digests

import datakit
from datakit import ids, index, kinds
from datakit.add_column import add_column
from datakit.cli import main
from datakit.errors import ShardError, SourceError
from datakit.sources import synth
from datakit.stream import Loader, Mix, Overlay, View, Views
from datakit.stream.source import opened

Out = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of the look-alike in several shards, and pseudo-labels of its training images in `masks`."""
    folder = tmp_path_factory.mktemp("world")
    synth.make("imagenet_s", folder / "data")
    recipe = kinds.load("recipes/imagenet_s.yaml", {"variant": 50, "shards.max_samples": 5})
    datakit.build(recipe, data=folder / "data", out=folder / "out", workers=0)
    rows = pq.read_table(folder / "out" / "samples.parquet").to_pylist()
    rng = np.random.default_rng(0)
    for n, row in enumerate(row for row in rows if row["split"] == "train"):
        path = folder / "masks" / f"{row['name']}".replace(".JPEG", ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        if n % 6:  # three images have none
            path.write_bytes(ids.encode(np.full((row["height"], row["width"]), rng.integers(1, 900))))
    return folder


@pytest.fixture
def out(world: Path, tmp_path: Path) -> Path:
    shutil.copytree(world / "out", tmp_path / "out")
    return tmp_path / "out"


def test_the_loader_joins_a_column_row_for_row(world: Path, out: Path, capsys: Out) -> None:
    before, order = digests(out), Loader(out, 4, transform=Views((View(8),), None), remainder="pad").state_dict()
    assert main(["add-column", str(out), "seg.png", "--from", str(world / "masks")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"column": "seg.png", "samples": 45, "filled": 15, "unused": 0, "tars": 4}
    after = digests(out)
    assert {name: digest for name, digest in after.items() if "columns/" not in name} == before
    assert {name for name in after if "columns/" in name} == {"columns/seg.png.arrow"} | {
        f"columns/seg.png-{n:06d}.tar" for n in range(len(before)) if f"columns/seg.png-{n:06d}.tar" in after
    }
    table = index.load(out / "index.arrow")
    with pa.ipc.open_file(out / "columns" / "seg.png.arrow") as file:
        column = file.read_all()
    assert column.column("id").to_pylist() == table.column("id").to_pylist()
    view = Views((View(size_px=6, scale=(1, 1), ratio=(1, 1)),), None)
    files = {path.stem: path for path in (world / "masks").rglob("*.png")}
    train = Overlay.split(out / "samples.parquet", "train")
    loader = Loader(out, 3, transform=view, columns=["seg.png"], overlay=train, max_bad_share=1)
    assert loader.tars.digest == opened(world / "out").digest
    assert Loader(out, 4, transform=Views((View(8),), None), remainder="pad").state_dict() == order
    seen = {key: data for batch in loader for key, data in zip(batch.keys, batch["seg.png"], strict=True)}
    assert len(seen) == 18
    assert all(data == (files[key].read_bytes() if key in files else b"") for key, data in seen.items())
    masked = Loader(out, 3, transform=view, columns=["mask"], overlay=train, max_bad_share=1)
    for batch in masked:
        for key, mask in zip(batch.keys, batch["mask"], strict=True):
            assert {*mask.unique().tolist()} == {*np.unique(ids.decode(files[key].read_bytes())).tolist()}


def test_masks_of_the_shards_stay_what_they_are(world: Path, out: Path) -> None:
    add_column(out, "seg.png", world / "masks", say=lambda line: None)
    ours, theirs = opened(out), opened(world / "out")
    rows = [n for n in range(len(ours)) if theirs.has(n, "seg.png")]
    assert len(rows) == 14
    assert all(ours.read(n, "seg.png") == theirs.read(n, "seg.png") for n in rows)
    both = opened(Mix([(out, 1), (world / "out", 1)]))
    (row,) = [n for n in range(len(ours)) if ours.has(n, "seg.png") and not theirs.has(n, "seg.png")][:1]
    assert both.read(row, "seg.png") == ours.read(row, "seg.png")
    assert not both.has(row + len(ours), "seg.png")


def test_tars_of_a_column_are_plain_and_the_same_every_time(world: Path, out: Path) -> None:
    add_column(out, "seg.png", world / "masks", say=lambda line: None)
    first = digests(out)
    with pytest.raises(ShardError, match="the set has this column"):
        add_column(out, "seg.png", world / "masks")
    add_column(out, "seg.png", world / "masks", replace=True, say=lambda line: None)
    assert digests(out) == first
    joined = opened(out).joined["seg.png"]
    for about in joined.tars:
        data = (out / about["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (about["bytes"], about["sha256"])
        with tarfile.open(out / about["name"]) as tar:
            names = tar.getnames()
        assert len(names) == about["samples"]
        assert all(name.endswith(".seg.png") for name in names)


def test_any_member_can_be_added_to_any_indexed_tars(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "set")
    with pytest.raises(ShardError, match="run `datakit index`"):
        add_column(tmp_path / "set", "emb.npy", tmp_path)
    assert main(["index", str(tmp_path / "set")]) == 0
    keys = opened(tmp_path / "set").table.column("key").to_pylist()
    (tmp_path / "files").mkdir()
    for n, key in enumerate(keys):
        (tmp_path / "files" / f"{key.rpartition('/')[2]}.emb.npy").write_bytes(bytes([n]) * n)
    add_column(tmp_path / "set", "emb.npy", tmp_path / "files", say=lambda line: None)
    tars = opened(tmp_path / "set")
    assert [tars.read(n, "emb.npy") for n in range(len(tars))] == [bytes([n]) * n for n in range(len(tars))]


def test_what_belongs_to_no_sample_is_told(world: Path, out: Path, tmp_path: Path, capsys: Out) -> None:
    shutil.copytree(world / "masks", tmp_path / "more")
    (tmp_path / "more" / "nobody.png").write_bytes(b"x")
    said: list[str] = []
    assert add_column(out, "seg.png", tmp_path / "more", say=said.append)["unused"] == 1
    assert said[0] == "1 files are of no sample, and left out: nobody.png"
    assert said[1] == "30 of 45 samples have none"
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match="no file there has the name of a sample"):
        add_column(out, "other.png", tmp_path / "none", say=said.append)
    with pytest.raises(ShardError, match="give the suffix of a member"):
        add_column(out, "../seg.png", tmp_path / "more")
    with pytest.raises(SourceError, match="no such folder"):
        add_column(out, "other.png", tmp_path / "nowhere")
    twice = next((tmp_path / "more").rglob("n0*.png"))
    shutil.copy(twice, tmp_path / "more" / twice.name)
    with pytest.raises(SourceError, match="two files of one name"):
        add_column(out, "other.png", tmp_path / "more")
    (tmp_path / "none" / f"{opened(out).table.column('key')[0].as_py()}.jpg").write_bytes(b"x")
    with pytest.raises(ShardError, match="1 of these samples have a member jpg already"):
        add_column(out, "jpg", tmp_path / "none")


def test_a_column_of_another_index_is_refused(world: Path, out: Path, tmp_path: Path) -> None:
    add_column(out, "seg.png", world / "masks", say=lambda line: None)
    recipe = kinds.load("recipes/imagenet_s.yaml", {"variant": 50, "shards.max_samples": 9})
    datakit.build(recipe, data=world / "data", out=out, work=tmp_path / "work", workers=0)
    with pytest.raises(ShardError, match=r"seg\.png\.arrow: was added to another index"):
        opened(out)
    add_column(out, "seg.png", world / "masks", replace=True, say=lambda line: None)
    assert len(opened(out).joined["seg.png"].offset) == 45
    (out / "columns" / "seg.png.arrow").write_bytes(b"no arrow")
    with pytest.raises(ShardError, match=r"seg\.png\.arrow: not a column"):
        opened(out)
