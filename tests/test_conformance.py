"""The shards of every kind of recipe read the same in five readers: keys, bytes of every member, fields of the JSON.

Python's tarfile gives what is expected of webdataset, Hugging Face datasets, Megatron-Energon (`pip install
megatron-energon`) and torchdata, whose tar reader went with its data pipes in 0.10 (`pip install "torchdata<0.10"`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from worlds import make_world, recipe_of, source_of

import datakit
from datakit import kinds
from datakit.manifest import Manifest
from datakit.recipe import Recipe
from datakit.sources import synth, synth_raw

KINDS = ("scenes", "masks", "imagenet_s", "raw")
Samples = dict[str, dict[str, Any]]  # by key: sha256 of each member, what its JSON says

# each reader is a process of its own: Hugging Face's and Energon's start threads and leave files open
HEAD = """
import hashlib, io, json, sys
from pathlib import Path
out, names, scratch = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
urls = [str(out / name) for name in names]
def told(key, members, plain=None):
    data = {suffix: hashlib.sha256(value).hexdigest() for suffix, value in members.items()}
    print(json.dumps([key, data, json.loads(members["json"]) if plain is None else plain]))
"""
READERS = {
    "webdataset": """
import webdataset
for sample in webdataset.WebDataset(urls, shardshuffle=False):
    told(sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")})
""",
    "datasets": """
import datasets, yaml
datasets.disable_progress_bars()
card = yaml.safe_load((out / "README.md").read_text().split("---")[1])["dataset_info"]["features"]
# .raw is guessed to be audio; the card says what it is, and that is read where the folder is given
features = datasets.Features._from_yaml_list(card) if any(one["name"] == "raw" for one in card) else None
files = {"train": urls}
rows = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=scratch, features=features)
for name, feature in rows.features.items():
    if isinstance(feature, datasets.Image):
        rows = rows.cast_column(name, datasets.Image(decode=False))
for row in rows:
    members = {k: v for k, v in row.items() if not k.startswith("__") and k != "json"}
    data = {k: v["bytes"] if isinstance(v, dict) else str(v).encode() if not isinstance(v, bytes) else v
            for k, v in members.items()}
    told(row["__key__"], data, row["json"])
""",
    "megatron.energon": """
import megatron.energon as energon
from dataclasses import dataclass
@dataclass
class Whole(energon.Sample):
    members: dict
@energon.stateless
def cook(sample):
    whole = {k: v for k, v in sample.items() if not k.startswith("__")}
    return Whole(**energon.basic_sample_keys(sample), members=whole)
class Encoder(energon.DefaultTaskEncoder):
    decoder = None
    cookers = [energon.Cooker(cook)]
    def __init__(self):
        super().__init__(raw_batch_type=None)
    def encode_sample(self, sample):
        return sample
one = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
read = energon.get_val_dataset(out, split_part="val", worker_config=one, batch_size=None, task_encoder=Encoder())
for sample in energon.get_loader(read):
    told(sample.__key__.rpartition("/")[2], sample.members)
""",
    "torchdata.datapipes": """
from torchdata.datapipes.iter import FileOpener, IterableWrapper
for sample in FileOpener(IterableWrapper(urls), mode="b").load_from_tar().webdataset():
    told(Path(sample["__key__"]).name, {k[1:]: v.read() for k, v in sample.items() if k != "__key__"})
""",
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("conformance")
    data = folder / "data"
    make_world(data)
    shards = {"max_samples": 8}
    datakit.build(recipe_of("classes", "scenes", shards=shards), data=data, out=folder / "scenes", workers=0)
    for path in sorted((data / "classes").rglob("*.jpg")):
        with Image.open(path) as picture:
            levels = np.arange(picture.width * picture.height).reshape(picture.height, -1) % 3
        at = data / "masked" / "masks" / f"{path.stem}.png"
        for target in (at, data / "masked" / "images" / path.name):
            target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, data / "masked" / "images" / path.name)
        Image.fromarray(levels.astype(np.uint8)).save(at)
    source = source_of("masked")
    labels = {"kind": "mask", "path": "{dir}/../masks/{stem}.png", "classes": {0: "a", 1: "b", 2: "c"}}
    source["collection"]["layout"] = {"images": ["images/*.jpg"], "label_files": ["masks/*"], "labels": [labels]}
    plain = recipe_of("classes", cut={"masks": True}, shards={**shards, "captions": True}).model_dump(mode="json")
    masked = Recipe.model_validate({**plain, "name": "masked", "sources": [source]})
    datakit.build(masked, data=data, out=folder / "masks", workers=0)
    synth.make("imagenet_s", folder / "look")
    recipe = kinds.load("recipes/imagenet_s.yaml", {"variant": "50", "shards.max_samples": 9})
    datakit.build(recipe, data=folder / "look", out=folder / "imagenet_s", workers=0)
    synth_raw.make(folder / "raws", seed=3, size=(216, 152), images=8)
    window = {"slice.published.size_px": 96, "slice.published.gap_px": 24, "domain": "both"}
    datakit.build(Recipe.load("aodraw", window), data=folder / "raws", out=folder / "raw", workers=0)
    return {name: folder / name for name in KINDS}


def expected(out: Path, names: list[str]) -> Samples:
    """What Python's tarfile gives: a key up to the first dot, what follows is the suffix."""
    found: Samples = {}
    for name in names:
        with tarfile.open(out / name) as tar:
            for info in tar:
                key, _, suffix = info.name.partition(".")
                data = tar.extractfile(info).read()  # type: ignore[union-attr]
                one = found.setdefault(key, {"members": {}, "json": {}})
                one["members"][suffix] = hashlib.sha256(data).hexdigest()
                one["json"] = json.loads(data) if suffix == "json" else one["json"]
    return found


def read_by(reader: str, out: Path, names: list[str], scratch: Path) -> Samples:
    """What a reader gives of some tars."""
    if reader == "megatron.energon":  # it keeps notes beside the tars
        folder = scratch / "energon"
        folder.mkdir()
        for name in names:
            shutil.copy(out / name, folder)
        out, parts = folder, f"--split-parts=val:{'{' + ','.join(names) + '}' if len(names) > 1 else names[0]}"
        command = [sys.executable, "-W", "ignore", "-m", "megatron.energon.cli.main", "prepare", "--non-interactive"]
        command += [parts, "--sample-type=CrudeWebdataset", "--no-progress", "--num-workers=1", str(folder)]
        run(command, scratch)
    script = HEAD + READERS[reader]
    lines = run([sys.executable, "-W", "ignore", "-c", script, str(out), json.dumps(names), str(scratch)], scratch)
    told = [json.loads(line) for line in lines if line.startswith("[")]
    assert len({key for key, _, _ in told}) == len(told)
    return {key: {"members": members, "json": plain} for key, members, plain in told}


def run(command: list[str], scratch: Path) -> list[str]:
    there = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    offline = {"HF_HUB_OFFLINE": "1", "HOME": str(scratch), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**there, **offline},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def is_there(reader: str) -> bool:
    """Old torchdata cannot be installed beside what else is tested; the others always are."""
    return reader != "torchdata.datapipes" or importlib.util.find_spec(reader) is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", [name for name in READERS if is_there(name)])
def test_every_reader_reads_the_same(sets: dict[str, Path], tmp_path: Path, reader: str, kind: str) -> None:
    """Split by split, as a set is read."""
    out = sets[kind]
    manifest = Manifest.load(out)
    for n, split in enumerate(dict.fromkeys(shard.split for shard in manifest.shards)):
        names = [shard.name for shard in manifest.shards if shard.split == split]
        wanted = expected(out, names)
        assert len(wanted) == sum(shard.samples for shard in manifest.shards if shard.split == split)
        (tmp_path / str(n)).mkdir()
        found = read_by(reader, out, names, tmp_path / str(n))
        assert {*found} == {*wanted}
        for key, one in wanted.items():
            members = {m: d for m, d in one["members"].items() if m in found[key]["members"] or m != "json"}
            assert found[key]["members"] == members, key
            assert found[key]["json"] == one["json"], key
