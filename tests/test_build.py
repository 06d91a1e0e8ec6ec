"""Whole builds of small worlds: the same bytes whatever happens, and no work done twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_archive import write_split
from worlds import digests, make_world, recipe_of, scene, source_of, work_done, write_recipe

import datakit
from datakit import collect, index, listing, pipeline, run
from datakit.errors import ShardError, SourceError, StageError
from datakit.folders import gc
from datakit.manifest import Manifest
from datakit.recipe import Recipe
from datakit.sample import Part

NAMES = ("classes", "scenes", "trouble")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def built(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed build by one process."""
    out = tmp_path_factory.mktemp("built") / "out"
    datakit.build(recipe_of(*NAMES), data=world, out=out, workers=0)
    return out


def test_counts_add_up_and_every_drop_has_its_reason(built: Path) -> None:
    manifest = Manifest.load(built)
    for count in manifest.counts:
        assert count.came == count.left + sum(count.dropped.values()), count
    dropped = pq.read_table(built / "dropped.parquet").select(["name", "stage", "dropped"]).to_pylist()
    reasons = {row["name"]: row["dropped"] for row in dropped if not row["name"].endswith("a.tif")}
    assert reasons == {
        "notes.txt": "unmatched",
        "cut.jpg": "unreadable",
        "empty.jpg": "unreadable",
        "text.jpg": "unreadable",
        "gray.png": "flat",
        "thin.png": "smaller_than",
    }
    assert {row["dropped"] for row in dropped if row["name"] == "a.tif"} == {"valid_share"}
    kept = pq.read_table(built / "samples.parquet")
    assert manifest.samples == kept.num_rows == sum(s.samples for s in manifest.shards)
    assert {"houses/houses.v0.jpg", "png_inside.jpg", "b.tif"} <= set(kept.column("name").to_pylist())


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_bytes_with_any_number_of_workers(world: Path, built: Path, tmp_path: Path, workers: int) -> None:
    datakit.build(recipe_of(*NAMES), data=world, out=tmp_path / "out", workers=workers)
    assert digests(tmp_path / "out") == digests(built)


def test_the_same_bytes_whatever_part_a_file_fell_into(
    world: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PART_IMAGES", 1)
    datakit.build(recipe_of(*NAMES), data=world, out=tmp_path / "out", workers=0)
    assert digests(tmp_path / "out") == digests(built)


def test_the_same_bytes_where_records_of_shards_are_read_together(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(*NAMES, shards={"max_samples": 2})
    datakit.build(recipe, data=world, out=tmp_path / "one", workers=0)
    monkeypatch.setattr(collect, "MOST_READS", 0)
    monkeypatch.setattr(collect, "AT_ONCE", 5)

    def stopped(job: Any) -> None:
        raise StageError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "write_shard", stopped)
        with pytest.raises(StageError, match="stopped"):
            datakit.build(recipe, data=world, out=tmp_path / "two", workers=0)
    assert list(tmp_path.rglob("*.rows.parquet"))
    datakit.build(recipe, data=world, out=tmp_path / "two", workers=0)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert not list(tmp_path.rglob("*.rows.parquet"))


@pytest.mark.parametrize(
    "sign",
    [
        "out.work/scan/*/*.parquet",
        "out.work/cut/*/*.staged",
        "out.work/pictures/*.parquet",
        "out/.partial/*",
        "out/*.tar",
    ],
)
def test_a_killed_build_goes_on_and_gives_the_same_bytes(world: Path, built: Path, tmp_path: Path, sign: str) -> None:
    """Killed, all of it, as soon as the first file of a step is there: some parts are made and others are not."""
    recipe = write_recipe(tmp_path / "world.yaml", recipe_of(*NAMES))
    command = [sys.executable, "-m", "datakit.cli", "build", str(recipe), "--data", str(world), "--workers", "2"]
    command += ["--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    work = tmp_path / "out.work"
    while process.poll() is None and not list(tmp_path.glob(sign)):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out" / "manifest.json").exists()
    datakit.build(recipe_of(*NAMES), data=world, out=tmp_path / "out", workers=0)
    assert work_done(tmp_path / "out")["parts_there"] >= 1
    assert digests(tmp_path / "out") == digests(built)
    datakit.build(recipe_of(*NAMES), data=world, out=tmp_path / "out", workers=0)  # by now all killed ones are gone
    assert not list((work / "tmp").glob("*"))


def test_a_second_run_does_no_work(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    datakit.build(recipe_of(*NAMES), data=world, out=out, workers=0)
    first, before = work_done(out), digests(out)
    assert first["images_opened"] == 10
    datakit.build(recipe_of(*NAMES), data=world, out=out, workers=0)
    assert work_done(out) == {"parts_there": first["parts_made"]}
    assert digests(out) == before


def test_another_measured_threshold_opens_no_image(world: Path, tmp_path: Path) -> None:
    datakit.build(recipe_of(*NAMES), data=world, out=tmp_path / "out", workers=0)
    rules = [{"rule": "valid_share", "min_share": 0.1}, {"rule": "dark", "luma_mean": 100}]
    other = recipe_of(*NAMES)
    header = [r for r in other.model_dump(mode="json")["exclude"]["rules"] if r["rule"] not in ("valid_share", "flat")]
    other = recipe_of(*NAMES, exclude={"rules": header + rules})
    datakit.build(other, data=world, out=tmp_path / "out", workers=0)
    done = work_done(tmp_path / "out")
    assert not {"images_opened", "headers_read", "pictures_opened", "tiles_encoded"} & set(done)
    datakit.build(other, data=world, out=tmp_path / "fresh", workers=0)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_a_grown_set_reads_only_what_is_new(world: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(world, data)
    out, recipe = tmp_path / "out", recipe_of(*NAMES)
    datakit.build(recipe, data=data, out=out, workers=0)
    Image.fromarray(scene(30, 300, 280)).save(data / "classes" / "0_first.png")  # sorts before all others
    datakit.build(recipe, data=data, out=out, workers=0)
    assert work_done(out)["images_opened"] == 1
    Image.fromarray(scene(31, 200, 180)).save(data / "classes" / "houses" / "houses.v0.jpg")
    (data / "classes" / "river" / "river.v2.jpg").unlink()
    datakit.build(recipe, data=data, out=out, workers=0)
    assert work_done(out)["images_opened"] == 1
    assert work_done(out)["images_carried_over"] == 3
    datakit.build(recipe, data=data, out=tmp_path / "fresh", workers=0)
    assert digests(out) == digests(tmp_path / "fresh")


def test_staged_tiles_are_freed_and_made_again_when_needed(world: Path, built: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "out.work"
    recipe = recipe_of(*NAMES, shards={"max_samples": 5})
    datakit.build(recipe, data=world, out=out, workers=0, free=True)
    assert not list(work.rglob("*.staged"))
    datakit.build(recipe, data=world, out=out, workers=0)
    assert "images_opened" not in work_done(out)
    datakit.build(recipe_of(*NAMES), data=world, out=out, workers=0)
    assert work_done(out)["images_opened"] == 10
    assert digests(out) == digests(built)


def test_gc_frees_what_no_build_uses(world: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    datakit.build(recipe_of(*NAMES), data=world, out=out, work=work, workers=0)
    assert gc(work) == {"files": 0, "bytes": 0}
    datakit.build(recipe_of(*NAMES, slice={"grid": {"size_px": 200}}), data=world, out=out, work=work, workers=0)
    assert gc(work)["bytes"] > 100_000
    datakit.build(recipe_of(*NAMES, slice={"grid": {"size_px": 200}}), data=world, out=out, work=work, workers=0)
    assert set(work_done(out)) == {"parts_there"}
    shutil.rmtree(out)
    gc(work)
    assert not [p for p in work.rglob("*") if p.is_file() and p.name not in ("lock", "datakit.work")]
    with pytest.raises(StageError, match="not a work folder"):
        gc(tmp_path)


def test_folder_zip_and_tar_give_the_same_shards(world: Path, tmp_path: Path) -> None:
    outs = []
    for kind in ("folder", "zip", "tar"):
        data = tmp_path / kind
        data.mkdir()
        files = sorted(p for p in (world / "classes").rglob("*") if p.is_file())
        if kind == "folder":
            shutil.copytree(world / "classes", data / "classes")
        elif kind == "zip":
            with zipfile.ZipFile(data / "classes.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for path in files:
                    archive.write(path, path.relative_to(world / "classes"))
        else:
            (data / "classes").mkdir()
            with tarfile.open(data / "classes" / "all.tar", "w") as tar:
                for path in files:
                    tar.add(path, str(path.relative_to(world / "classes")))
        datakit.build(recipe_of("classes"), data=data, out=tmp_path / f"{kind}.out", workers=0)
        outs.append({n: d for n, d in digests(tmp_path / f"{kind}.out").items() if n.endswith((".tar", ".arrow"))})
    assert outs[0] == outs[1] == outs[2]


def test_an_archive_beside_its_unpacked_files_counts_once(world: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(world / "classes", data / "classes")
    with zipfile.ZipFile(data / "classes" / "copy.zip", "w") as archive:
        archive.write(world / "classes" / "houses" / "houses.v0.jpg", "houses/houses.v0.jpg")
    manifest = datakit.build(recipe_of("classes"), data=data, out=tmp_path / "out", workers=0)
    assert manifest.counts[0].dropped == {"listed_twice": 1, "unmatched": 1}


def test_the_released_archives_become_shards_as_they_are(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for n, folder in enumerate(("fMoW", "Million-AID")):
        (source / "OpticalRS-4M" / folder).mkdir(parents=True)
        for k in range(3):
            path = source / "OpticalRS-4M" / folder / f"{k}.jpg"
            Image.fromarray(scene(10 * n + k, 600, 400)).save(path, quality=85)
    data = tmp_path / "data"
    data.mkdir()
    split_like_released(source, data / "OpticalRS-4M.zip", 60_000)
    manifest = datakit.build("recipes/opticalrs_published.yaml", data=data, out=tmp_path / "out", workers=0)
    assert [s.name for s in manifest.sources] == ["opticalrs/Million-AID", "opticalrs/fMoW"]
    originals = {p.read_bytes() for p in source.rglob("*.jpg")}
    with tarfile.open(tmp_path / "out" / manifest.shards[0].name) as tar:
        stored = {tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")}  # type: ignore[union-attr]
    assert stored == originals
    (data / "OpticalRS-4M.z02").unlink()
    with pytest.raises(SourceError, match=r"OpticalRS-4M\.z02"):
        datakit.build("recipes/opticalrs_published.yaml", data=data, out=tmp_path / "other", workers=0)


def split_like_released(source: Path, target: Path, disk_bytes: int) -> None:
    """A split zip, NAME.z01 … NAME.zip, of everything below `source`."""
    write_split(target, {str(p.relative_to(source)): p.read_bytes() for p in sorted(source.rglob("*.jpg"))}, disk_bytes)


def test_smaller_subsets_lie_within_larger_ones(world: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    kept = []
    for count in (4, 9, None):
        out = tmp_path / f"out{count}"
        datakit.build(recipe_of(*NAMES, subset={"count": count}), data=world, out=out, work=work, workers=0)
        kept.append(set(pq.read_table(out / "samples.parquet").column("key").to_pylist()))
        if count == 4:
            assert len(kept[0]) == 4
        else:
            assert "images_opened" not in work_done(out)
    assert kept[0] < kept[1] < kept[2]


def test_shards_are_even_plain_and_in_the_order_of_the_index(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = datakit.build(recipe_of(*NAMES, shards={"max_samples": 5}), data=world, out=out, workers=0)
    sizes = [s.samples for s in manifest.shards]
    assert max(sizes) <= 5
    assert max(sizes) - min(sizes) <= 1
    table = index.load(out / "index.arrow")
    assert table.column("key").to_pylist() == pq.read_table(out / "samples.parquet").column("key").to_pylist()
    names = []
    for row in table.to_pylist():
        shard = out / manifest.shards[row["shard"]].name
        with shard.open("rb") as file:
            file.seek(row["jpg_offset"])
            assert file.read(row["jpg_bytes"])[:2] == b"\xff\xd8"
            file.seek(row["json_offset"])
            assert file.read(row["json_bytes"])[:1] == b"{"
        names += [f"{row['key']}.jpg", f"{row['key']}.json"]
    infos: list[tarfile.TarInfo] = []
    for s in manifest.shards:
        with tarfile.open(out / s.name) as tar:
            infos += tar.getmembers()
    assert [i.name for i in infos] == names
    assert {(i.mtime, i.uid, i.mode, i.uname, i.type) for i in infos} == {(0, 0, 0o644, "", tarfile.REGTYPE)}
    assert {n: d for n, d in digests(out).items() if not n.endswith((".tar", "manifest.json"))} == manifest.files
    assert {s.name: s.sha256 for s in manifest.shards} == {n: d for n, d in digests(out).items() if n.endswith(".tar")}


def test_fewer_shards_leave_none_of_the_old_ones(world: Path, built: Path, tmp_path: Path) -> None:
    datakit.build(recipe_of(*NAMES, shards={"max_samples": 2}), data=world, out=tmp_path / "out", workers=0)
    datakit.build(recipe_of(*NAMES), data=world, out=tmp_path / "out", workers=0)
    assert digests(tmp_path / "out") == digests(built)


def test_an_unfinished_build_has_no_manifest(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="run `datakit build` again"):
        Manifest.load(tmp_path)


def test_a_missing_shard_is_written_again(world: Path, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    datakit.build(recipe_of(*NAMES), data=world, out=out, workers=0)
    (out / "world-train-000000.tar").write_bytes(b"cut short")
    datakit.build(recipe_of(*NAMES), data=world, out=out, workers=0)
    assert work_done(out)["shards_written"] == 1
    assert digests(out) == digests(built)


def test_missing_collections_are_named_and_left_out_only_when_allowed(world: Path, tmp_path: Path) -> None:
    recipe = recipe_of("classes", "absent")
    with pytest.raises(SourceError, match=r"(?s)absent.*https://example.org.*--allow-missing"):
        datakit.build(recipe, data=world, out=tmp_path / "out", workers=0)
    manifest = datakit.build(recipe, data=world, out=tmp_path / "out", workers=0, allow_missing=True)
    assert manifest.missing == ("absent",)
    assert "absent" in (tmp_path / "out" / "README.md").read_text()


def test_a_rule_past_its_share_stops_the_build(world: Path, tmp_path: Path) -> None:
    rules = [{"rule": "smaller_than", "side_px": 250, "max_share": 0.3}]
    with pytest.raises(StageError, match="smaller_than dropped"):
        datakit.build(recipe_of(*NAMES, exclude={"rules": rules}), data=world, out=tmp_path / "out", workers=0)


def test_nothing_left_is_an_error(world: Path, tmp_path: Path) -> None:
    rules = [{"rule": "dark", "luma_mean": 255}]
    with pytest.raises(StageError, match="nothing is left"):
        datakit.build(recipe_of(*NAMES, exclude={"rules": rules}), data=world, out=tmp_path / "out", workers=0)


def test_a_licence_that_changes_reaches_every_sample(world: Path, tmp_path: Path) -> None:
    datakit.build(recipe_of(*NAMES), data=world, out=tmp_path / "out", workers=0)
    plain = recipe_of(*NAMES).model_dump(mode="json")
    for source in plain["sources"]:
        source["collection"] |= {"licence": "MIT", "title": "another title"}
    datakit.build(Recipe.model_validate(plain), data=world, out=tmp_path / "out", workers=0)
    assert "images_opened" not in work_done(tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "samples.parquet", columns=["licences"]).column("licences").to_pylist()
    assert rows == [["MIT"]] * len(rows)


class Loses:
    """A stage with a fault: it loses a record."""

    VERSION = 1

    def digest(self, *more: str) -> str:
        return "loses"

    def __call__(self, records: pa.Table, part: Part) -> pa.Table:
        return records.slice(1)


def test_a_stage_that_loses_a_record_fails_the_build(built: Path, tmp_path: Path) -> None:
    part = next((built.with_name("out.work") / "scan").rglob("classes-*.parquet"))
    with pytest.raises(StageError, match="neither left nor were dropped"):
        run.make_part(run.Job(Loses(), part, tmp_path / "x-00000-0.parquet", tmp_path, {}))
    assert not list(tmp_path.glob("*.parquet"))


def test_keys_are_short_plain_and_unique(built: Path) -> None:
    table = pa.concat_tables(
        [pq.read_table(built / n, columns=["key", "id"]) for n in ("samples.parquet", "dropped.parquet")]
    )
    keys = table.column("key").to_pylist()
    assert len(set(keys)) == len(keys) == len(set(table.column("id").to_pylist()))
    assert all(len(k) <= 80 and k.replace("-", "").replace("_", "").isalnum() for k in keys)
    assert pc.min(table.column("id")).as_py() >= 0


def test_random_windows_obey_their_spec(world: Path, tmp_path: Path) -> None:
    way = {"random": {"side_px": [64, 200], "whole_if_side_at_most_px": 256, "min_valid_share": 0.9}}
    recipe = recipe_of(*NAMES, slice=way, exclude={"rules": [{"rule": "smaller_than", "side_px": 64}]})
    datakit.build(recipe, data=world, out=tmp_path / "out", workers=0)
    kept = pq.read_table(tmp_path / "out" / "samples.parquet")
    assert all(v >= 0.9 for v in kept.column("valid_share").to_pylist())
    windows = [w for w in kept.column("window").to_pylist() if w]
    assert windows
    assert all(64 <= w[2] == w[3] <= 200 for w in windows)
    dropped = pq.read_table(tmp_path / "out" / "dropped.parquet", columns=["dropped"]).column("dropped").to_pylist()
    assert "min_valid_share" in dropped


def test_recipe_files_and_recipes_build_alike(world: Path, built: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "world.yaml", recipe_of(*NAMES))
    assert Recipe.load(path) == recipe_of(*NAMES)
    assert source_of("classes")["path"] == "classes"
    manifest = datakit.build(path, data=world, out=tmp_path / "out", workers=0)
    assert manifest == Manifest.load(built)
