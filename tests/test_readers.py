"""The shards in other people's readers: webdataset and Hugging Face datasets, without datakit."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from worlds import digests, geotiff, make_world, recipe_of, scene

import datakit
from datakit.manifest import Manifest
from datakit.sample import mix64


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readers")
    make_world(folder / "data")
    datakit.build(
        recipe_of("classes", "scenes", shards={"max_samples": 6}), data=folder / "data", out=folder / "out", workers=0
    )
    return folder / "out"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_webdataset_reads_every_sample(out: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset

    urls = [str(out / s.name) for s in Manifest.load(out).shards]
    rows = {row["key"]: row for row in pq.read_table(out / "samples.parquet").to_pylist()}
    seen = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        with Image.open(io.BytesIO(sample["jpg"])) as image:
            about = json.loads(sample["json"])
            assert image.size == (about["width"], about["height"])
            assert image.size == (rows[sample["__key__"]]["width"], rows[sample["__key__"]]["height"])
        seen[sample["__key__"]] = about["source"]
    assert seen == {key: row["source"] for key, row in rows.items()}


def test_no_datakit_is_imported_to_read(out: Path) -> None:
    url = str(out / Manifest.load(out).shards[0].name)
    code = f"import sys, webdataset; n = sum(1 for _ in webdataset.WebDataset({url!r}, shardshuffle=False)); "
    code += "assert 'datakit' not in sys.modules; print(n)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == Manifest.load(out).shards[0].samples


def hugging_face(urls: list[str], cache: Path) -> list[dict[str, object]]:
    """Every sample as Hugging Face datasets reads it, images left encoded; in a process of its own."""
    code = (
        "import datasets, json, sys\n"
        "urls, cache = json.loads(sys.argv[1]), sys.argv[2]\n"
        "datasets.disable_progress_bars()\n"
        "for streaming in (False, True):\n"
        "    rows = datasets.load_dataset('webdataset', data_files={'train': urls}, split='train', cache_dir=cache,\n"
        "                                 streaming=streaming)\n"
        "    rows = rows.cast_column('jpg', datasets.Image(decode=False))\n"
        "    plain = [{**row['json'], 'key': row['__key__'], 'jpg': len(row['jpg']['bytes'])} for row in rows]\n"
        "    print(json.dumps(plain))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, json.dumps(urls), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1", "HOME": str(cache)})
    assert done.returncode == 0, done.stderr[-2000:]
    plain, streamed = (json.loads(line) for line in done.stdout.strip().splitlines()[-2:])
    assert plain == streamed
    return list(plain)


def test_hugging_face_datasets_reads_every_sample(out: Path, tmp_path: Path) -> None:
    rows = hugging_face([str(out / s.name) for s in Manifest.load(out).shards], tmp_path)
    expected = {row["key"]: row for row in pq.read_table(out / "samples.parquet").to_pylist()}
    assert {row["key"] for row in rows} == set(expected)
    for row in rows:
        assert row["jpg"] == expected[str(row["key"])]["jpg_bytes"]
        assert row["label"] == expected[str(row["key"])]["label"]


def test_hugging_face_datasets_takes_the_folder_with_its_card(out: Path, tmp_path: Path) -> None:
    code = "import datasets, sys; d = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])['train']\n"
    code += "print(len(d), d.features['json']['gsd_m'].dtype, d[0]['jpg'].size)"
    command = [sys.executable, "-W", "ignore", "-c", code, str(out), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"{Manifest.load(out).samples} float64 (")


def test_hugging_face_datasets_guesses_no_type_wrong(tmp_path: Path) -> None:
    """Types are guessed from the first five samples: here they have no place, label, box or date, and a later one has.

    A value that comes late, a key that comes late, an integer before a float (gsd_m, transform) would each break it.
    """
    data = tmp_path / "data"
    (data / "plain").mkdir(parents=True)
    for n in range(12):
        Image.fromarray(scene(50 + n, 120, 100)).save(data / "plain" / f"{n}.png")
    points = [
        GroundControlPoint(r, c, 11.5 + c / 1e4, 48.25 - r / 1e4, 3) for r, c in ((0, 0), (0, 90), (90, 0), (90, 90))
    ]
    geotiff(data / "placed" / "town" / "1.tif", scene(70, 128, 128), crs=CRS.from_epsg(32632))
    geotiff(data / "placed" / "town" / "2.tif", scene(71, 128, 128), transform=None, gcps=points)
    recipe = {"slice": None, "shards": {"max_samples": 100}}
    for seed in range(1000):  # an order in which those with a place come after the first five
        datakit.build(recipe_of("plain", "placed", seed=seed, **recipe), data=data, out=tmp_path / "out", workers=0)
        order = pq.read_table(tmp_path / "out" / "samples.parquet", columns=["source"]).column("source").to_pylist()
        if "placed" not in order[:5]:
            break
    rows = hugging_face([str(tmp_path / "out" / "world-train-000000.tar")], tmp_path / "cache")
    late = {row["name"]: row for row in rows if row["source"] == "placed"}
    assert late["town/1.tif"]["label"] == "town"
    assert late["town/1.tif"]["crs"] == "EPSG:32632"
    assert late["town/1.tif"]["transform"] == [0.5, 0.0, 500000.0, 0.0, -0.5, 5400000.0]
    assert late["town/1.tif"]["gsd_m"] == pytest.approx(0.5, rel=1e-2)
    assert json.loads(str(late["town/2.tif"]["gcps"]))[1][:2] == [90.0, 0.0]
    assert {row["gsd_m"] for row in rows if row["source"] == "plain"} == {-1.0}


def test_members_and_keys_are_the_same_in_every_sample(out: Path) -> None:
    shapes = set()
    for shard in Manifest.load(out).shards:
        import tarfile

        with tarfile.open(out / shard.name) as tar:
            for info in tar:
                if info.name.endswith(".json"):
                    plain = json.load(tar.extractfile(info))  # type: ignore[arg-type]
                    shapes.add(tuple((k, type(v).__name__) for k, v in plain.items()))
                    assert None not in plain.values()
    assert len(shapes) == 1


def test_the_order_is_a_permutation_of_ids(out: Path) -> None:
    ids = pq.read_table(out / "samples.parquet", columns=["id"]).column("id").to_numpy()
    order = mix64(ids, 0)
    assert (np.diff(order.astype(object)) > 0).all()
    assert digests(out)["index.arrow"] == Manifest.load(out).files["index.arrow"]
