"""What went wrong once, as a user would meet it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from worlds import digests, recipe_of, scene, source_of, work_done

import datakit
from datakit.errors import RecipeError, SourceError, StageError
from datakit.folders import gc
from datakit.manifest import Manifest
from datakit.recipe import Recipe


def folder_of(path: Path, count: int = 4, first: int = 0, suffix: str = "png") -> Path:
    """A folder of small pictures, equal sizes and times for BMP."""
    path.mkdir(parents=True)
    for n in range(count):
        Image.fromarray(scene(first + n, 100, 80)).save(path / f"{n}.{suffix}")
        os.utime(path / f"{n}.{suffix}", (1_000_000_000, 1_000_000_000))
    return path


def build(recipe: Recipe, data: Path, out: Path, **more: Any) -> Manifest:
    return datakit.build(recipe, data=data, out=out, workers=0, **more)


def rows(out: Path, table: str, *columns: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / table, columns=list(columns)).to_pylist()
    return found


def test_a_tar_of_another_build_and_the_same_size_is_written_again(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", 12)
    for seed in (0, 1, 0):
        manifest = build(recipe_of("a", seed=seed), tmp_path, tmp_path / "out")
        found = digests(tmp_path / "out")
        assert {s.name: s.sha256 for s in manifest.shards} == {n: d for n, d in found.items() if n.endswith(".tar")}


def test_a_build_does_not_read_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_of(tmp_path / "a"))
    for _ in range(2):
        manifest = build(recipe_of("a", sources=[source_of("a", path=".")]), Path(), Path("world"))
        assert manifest.samples == 4
        assert {c.came for c in manifest.counts} == {4}


def test_data_that_was_away_for_a_while_is_not_dropped_for_good(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")

    def unmount(line: str) -> None:
        if line.startswith("list:"):
            (tmp_path / "a").rename(tmp_path / "away")

    with pytest.raises(StageError, match=r"No such file.*run the same command again"):
        build(recipe_of("a"), tmp_path, tmp_path / "out", say=unmount)
    (tmp_path / "away").rename(tmp_path / "a")
    assert build(recipe_of("a"), tmp_path, tmp_path / "out").samples == 4


@pytest.mark.parametrize("where", ["plain", "a name with blanks"])
def test_details_say_nothing_of_the_machine(tmp_path: Path, where: str) -> None:
    data = tmp_path / where
    folder_of(data / "a")
    (data / "a" / "bad.png").write_bytes(b"no image at all")
    (data / "a" / "cut.tif").write_bytes(b"II*\0\x08\0\0\0\x01\0")
    with zipfile.ZipFile(data / "a" / "z.zip", "w") as archive:
        archive.writestr("in.png", b"no image either")
        archive.writestr("in.tif", b"II*\0\x08\0\0\0\x01\0")
    build(recipe_of("a"), data, tmp_path / "out")
    details = {r["name"]: r["detail"] for r in rows(tmp_path / "out", "dropped.parquet", "name", "detail")}
    assert details["bad.png"] == details["in.png"] == "not an image of a known format"
    for detail in details.values():
        assert str(tmp_path) not in detail
        assert where not in detail
        assert "0x" not in detail
    again = tmp_path / "elsewhere"
    shutil.copytree(data, again)
    build(recipe_of("a"), again, tmp_path / "other")
    assert digests(tmp_path / "out") == digests(tmp_path / "other")


def test_a_bad_label_file_costs_its_image_alone(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")
    (tmp_path / "a" / "labels").mkdir()
    (tmp_path / "a" / "labels" / "0.txt").symlink_to("nowhere")
    (tmp_path / "a" / "labels" / "1.txt").write_text("1 2 3\n")
    source = source_of("a")
    source["collection"]["layout"] |= {
        "label_files": ["labels/*.txt"],
        "labels": [{"kind": "dota", "path": "labels/{stem}.txt"}],
    }
    build(recipe_of("a", sources=[source]), tmp_path, tmp_path / "out")
    dropped = rows(tmp_path / "out", "dropped.parquet", "name", "dropped", "detail")
    assert {(r["name"], r["dropped"]) for r in dropped} == {
        ("0.png", "label_unreadable"),
        ("1.png", "label_unreadable"),
    }
    assert "labels/0.txt" in dropped[0]["detail"]


def test_two_folders_of_one_name_do_not_share_their_pixels(tmp_path: Path) -> None:
    recipe = recipe_of("a", sources=[source_of("a", path="a")])
    recipe = recipe.model_copy(update={"sources": tuple(bmp(s) for s in recipe.sources)})
    for n in (1, 2):
        folder_of(tmp_path / f"v{n}" / "a", 3, 10 * n, "bmp")
        build(recipe, tmp_path / f"v{n}", tmp_path / f"out{n}", work=tmp_path / "work")
    assert digests(tmp_path / "out1") != digests(tmp_path / "out2")


def bmp(source: Any) -> Any:
    layout = source.collection.layout.model_copy(update={"images": ("*.bmp",)})
    return source.model_copy(update={"collection": source.collection.model_copy(update={"layout": layout})})


def test_lab_is_no_red_green_and_blue(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")
    with Image.open(tmp_path / "a" / "0.png") as image:
        image.convert("LAB").save(tmp_path / "a" / "lab.tif")
    build(recipe_of("a"), tmp_path, tmp_path / "out")
    assert {(r["name"], r["dropped"]) for r in rows(tmp_path / "out", "dropped.parquet", "name", "dropped")} == {
        ("lab.tif", "bands")
    }


def test_different_files_of_one_name_are_no_copies(tmp_path: Path) -> None:
    folder_of(tmp_path / "pictures", 2)
    (tmp_path / "a").mkdir()
    for n in (0, 1):
        with zipfile.ZipFile(tmp_path / "a" / f"part{n}.zip", "w") as archive:
            archive.write(tmp_path / "pictures" / f"{n}.png", "images/0001.png")
    with pytest.raises(SourceError, match=r"part0\.zip.*part1\.zip.*different files of one name"):
        build(recipe_of("a"), tmp_path, tmp_path / "out")


def test_freeing_spares_what_other_builds_use(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")
    work = tmp_path / "work"
    build(recipe_of("a", name="one"), tmp_path, tmp_path / "one", work=work)
    build(recipe_of("a", name="two"), tmp_path, tmp_path / "two", work=work, free=True)
    build(recipe_of("a", name="one", shards={"max_samples": 2}), tmp_path, tmp_path / "one", work=work)
    assert "images_opened" not in work_done(tmp_path / "one")


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_what_a_scene_says_of_itself_is_not_in_each_tile(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").mkdir()
    picture = Image.fromarray(scene(1, 700, 300))
    picture.save(tmp_path / "a" / "scene.jpg", comment=b"SECRET" * 100, icc_profile=b"PROFILE" * 50, dpi=(300, 300))
    manifest = build(recipe_of("a", cut={"encode": {"format": kind}}), tmp_path, tmp_path / "out")
    stored = (tmp_path / "out" / manifest.shards[0].name).read_bytes()
    assert manifest.samples > 1
    assert b"SECRET" not in stored
    assert b"PROFILE" not in stored


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_lossless_tiles_are_the_pixels(tmp_path: Path, kind: str) -> None:
    folder_of(tmp_path / "a", 2)
    manifest = build(recipe_of("a", cut={"encode": {"format": kind}}), tmp_path, tmp_path / "out")
    assert manifest.members == (kind, "json")
    with tarfile.open(tmp_path / "out" / manifest.shards[0].name) as tar:
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            if info.name.endswith(kind):
                with Image.open(file) as image, Image.open(tmp_path / "a" / f"{info.name[2]}.png") as original:
                    assert image.convert("RGB").tobytes() == original.tobytes()


def test_crops_are_at_least_one() -> None:
    with pytest.raises(RecipeError, match="crops"):
        Recipe.load("recipes/opticalrs_files.yaml", {"slice": {"random": {"crops": 0}}})


def test_a_side_that_the_format_cannot_have_has_its_own_reason(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (17_000, 70), (90, 120, 60)).save(tmp_path / "a" / "long.png")
    folder_of(tmp_path / "b")
    recipe = recipe_of("a", "b", slice=None, cut={"encode": {"format": "webp"}})
    build(recipe, tmp_path, tmp_path / "out")
    assert [r["dropped"] for r in rows(tmp_path / "out", "dropped.parquet", "dropped")] == ["larger_than"]


def test_each_column_has_its_own_reason_and_share(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", 8)
    build(recipe_of("a"), tmp_path, tmp_path / "out")
    keys = sorted(r["key"] for r in rows(tmp_path / "out", "samples.parquet", "key"))
    scores = pa.table({"key": keys, "cloud": [0.9] + [0.0] * 7, "mark": [0.0] * 5 + [0.9] * 3})
    pq.write_table(scores, tmp_path / "scores.parquet")
    rule = {"rule": "column", "file": str(tmp_path / "scores.parquet"), "above": 0.5}
    rules = [{**rule, "column": "cloud", "name": "cloudy", "max_share": 0.2}, {**rule, "column": "mark"}]
    manifest = build(recipe_of("a", exclude={"rules": rules}), tmp_path, tmp_path / "out")
    assert next(c.dropped for c in manifest.counts if c.stage == "measured") == {"cloudy": 1, "column": 3}
    assert str(tmp_path) not in json.dumps(manifest.model_dump(mode="json"))
    with pytest.raises(ValueError, match="give each a name"):
        recipe_of("a", exclude={"rules": [{**rule, "column": "cloud"}, {**rule, "column": "mark"}]})


def test_archives_that_nobody_needs_can_be_named(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")
    (tmp_path / "a" / "devkit.tar.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "a" / "docs").mkdir()
    (tmp_path / "a" / "docs" / "broken.zip").write_bytes(b"PK")
    with pytest.raises(SourceError, match=r"devkit\.tar\.gz.*`ignore`"):
        build(recipe_of("a"), tmp_path, tmp_path / "out")
    source = source_of("a")
    source["collection"]["layout"]["ignore"] = ["*.tar.gz", "docs/"]
    assert build(recipe_of("a", sources=[source]), tmp_path, tmp_path / "out").samples == 4


def test_no_path_of_the_machine_stands_in_the_manifest(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")
    recipe = recipe_of("a", sources=[source_of("a", path=str(tmp_path / "a"))])
    build(recipe, tmp_path, tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


def test_gc_leaves_what_a_build_on_an_absent_disk_uses(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")
    out, work = tmp_path / "disk" / "out", tmp_path / "work"
    out.parent.mkdir()
    build(recipe_of("a"), tmp_path, out, work=work)
    out.parent.rename(tmp_path / "away")
    assert gc(work) == {"files": 0, "bytes": 0}
    (tmp_path / "away").rename(out.parent)
    build(recipe_of("a"), tmp_path, out, work=work)
    assert set(work_done(out)) == {"parts_there"}


@pytest.mark.parametrize(
    "changes",
    [
        {"shards.split": "../up"},
        {"subset.per_source": {"filez": 2}},
        {"exclude.rules": [{"rule": "split", "deny": ["dotta:test"]}]},
        {"exclude.rules": [{"rule": "every_nth", "n": 2, "source": "video"}]},
    ],
)
def test_names_that_mean_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Recipe.load("recipes/opticalrs_files.yaml", changes)


def test_nothing_left_says_why(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")
    source = source_of("a")
    source["collection"]["layout"]["images"] = ["*.nothing"]
    with pytest.raises(StageError, match=r"unmatched \(list\) 4"):
        build(recipe_of("a", sources=[source]), tmp_path, tmp_path / "out")


def test_only_one_build_writes_to_a_folder(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")

    def second(line: str) -> None:
        if line.startswith("list:"):
            build(recipe_of("a"), tmp_path, tmp_path / "out", work=tmp_path / "other")

    with pytest.raises(StageError, match="another build is writing"):
        build(recipe_of("a"), tmp_path, tmp_path / "out", say=second)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_members_that_are_too_large_to_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    picture = folder_of(tmp_path / "pictures", 1, suffix=suffix) / f"0.{suffix}"
    (tmp_path / "a").mkdir()
    with zipfile.ZipFile(tmp_path / "a" / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(picture, "packed." + suffix)
        archive.write(picture, "stored." + suffix, zipfile.ZIP_STORED)
    before = build(recipe_of("a"), tmp_path, tmp_path / "before")
    monkeypatch.setattr("datakit.files.SMALL_BYTES", 100)
    assert build(recipe_of("a"), tmp_path, tmp_path / "out").samples == before.samples == 2
    assert digests(tmp_path / "out") == digests(tmp_path / "before")


def test_no_tar_of_another_set_is_removed(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")
    out = tmp_path / "out"
    build(recipe_of("a", name="world", shards={"max_samples": 1}), tmp_path, out)
    (out / "world-light-train-000009.tar").write_bytes(b"somebody else's")
    (out / "world-train-000009.tar").write_bytes(b"somebody else's")
    build(recipe_of("a", name="world"), tmp_path, out)
    left = {p.name for p in out.glob("*.tar")}
    assert left == {"world-train-000000.tar", "world-train-000009.tar", "world-light-train-000009.tar"}
    with pytest.raises(StageError, match="holds another set, world"):
        build(recipe_of("a", name="other"), tmp_path, out)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "jpg"])
@pytest.mark.parametrize("way", [{"grid": {"size_px": 128, "gap_px": 40}}, {"random": {"side_px": [64, 300]}}])
def test_pixels_read_by_rows_are_those_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, way: dict[str, Any]
) -> None:
    (tmp_path / "a").mkdir()
    pixels = scene(5, 700, 600, "coast")
    if suffix != "jpg":  # a collar that rows from the top find as well
        pixels[:90] = 0
        pixels[:, :50] = 255
    Image.fromarray(pixels).save(tmp_path / "a" / f"scene.{suffix}", **({"quality": 95} if suffix == "jpg" else {}))
    source = source_of("a")
    source["collection"]["layout"]["images"] = ["*"]
    recipe = recipe_of("a", sources=[source], slice=way)
    build(recipe, tmp_path, tmp_path / "whole")
    monkeypatch.setattr("datakit.pixels.WHOLE_PX", 1000)
    monkeypatch.setattr("datakit.pixels.BAND_PX", 700 * 33)
    build(recipe, tmp_path, tmp_path / "rows")
    if suffix == "jpg":  # by two builds of libjpeg: levels may differ by a rounding
        found = [pq.read_table(tmp_path / out / "samples.parquet") for out in ("whole", "rows")]
        means = [table.column("luma_mean").to_numpy() for table in found]
        assert abs(means[0] - means[1]).max() < 1
        assert found[0].column("key") == found[1].column("key")
    else:
        assert digests(tmp_path / "rows") == digests(tmp_path / "whole")


def test_folders_of_somebody_else_are_not_written_to(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("my own")
    (mine / "labels").mkdir()
    (mine / "labels" / "mine.txt").write_text("my own")
    with pytest.raises(StageError, match=r"mine holds files that are not of a build.*--out"):
        build(recipe_of("a"), tmp_path, mine, work=tmp_path / "work")
    with pytest.raises(StageError, match=r"mine holds files that are not of a build.*--work"):
        build(recipe_of("a"), tmp_path, tmp_path / "out", work=mine)
    with pytest.raises(StageError, match="not a work folder"):
        gc(mine)
    assert (mine / "README.md").read_text() == (mine / "labels" / "mine.txt").read_text() == "my own"


def test_out_may_not_be_the_collection(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")
    for folders in ({"out": tmp_path / "a"}, {"out": tmp_path / "out", "work": tmp_path / "a"}):
        with pytest.raises(StageError, match="is the folder of a"):
            build(recipe_of("a"), tmp_path, **folders)


def test_staged_bytes_that_are_gone_are_not_taken_over(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")
    build(recipe_of("a"), tmp_path, tmp_path / "out")
    for staged in (tmp_path / "out.work").rglob("*.staged"):
        os.truncate(staged, staged.stat().st_size // 2)
    Image.fromarray(scene(30, 100, 80)).save(tmp_path / "a" / "0.png")
    build(recipe_of("a"), tmp_path, tmp_path / "out")
    build(recipe_of("a"), tmp_path, tmp_path / "fresh")
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_shards_of_an_interrupted_build_do_not_stay(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", 8)
    build(recipe_of("a", shards={"max_samples": 1}), tmp_path, tmp_path / "out")
    shutil.rmtree(tmp_path / "out.work")

    def stop(line: str) -> None:
        if line.startswith("shards:"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(recipe_of("a"), tmp_path, tmp_path / "out", say=stop)
    build(recipe_of("a"), tmp_path, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").glob("*.tar")] == ["world-train-000000.tar"]


def test_a_script_without_a_guard_is_told_what_to_do(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")
    call = f"datakit.build('recipes/opticalrs_files.yaml', data={str(tmp_path / 'a')!r}, out={str(tmp_path / 'o')!r}"
    (tmp_path / "bare.py").write_text(f"import datakit\n{call}, workers=1)\n")
    (tmp_path / "guarded.py").write_text(f"import datakit\nif __name__ == '__main__':\n    {call}, workers=1)\n")
    bare, guarded = (
        subprocess.run([sys.executable, "-W", "ignore", tmp_path / name], capture_output=True, text=True)
        for name in ("bare.py", "guarded.py")
    )
    assert bare.returncode != 0
    assert "put the call under `if __name__ == '__main__':`" in bare.stderr
    assert guarded.returncode == 0, guarded.stderr[-2000:]


def test_a_long_thin_scene_is_signed_on_a_small_copy(tmp_path: Path) -> None:
    from datakit.sample import Sample
    from datakit.stages.cut import REDUCED_PX, Scene

    scene_of = Scene(Sample(image_width=500, image_height=300_000), levels=False)
    assert 500 * 300_000 / scene_of.factor**2 <= REDUCED_PX


@pytest.mark.parametrize(("low", "high"), [(246, 256), (0, 11)])
def test_snow_and_dark_sea_are_no_collar(tmp_path: Path, low: int, high: int) -> None:
    (tmp_path / "a").mkdir()
    levels = np.random.default_rng(0).integers(low, high, (400, 400, 3), np.uint8)
    Image.fromarray(levels).save(tmp_path / "a" / "field.png")
    build(recipe_of("a"), tmp_path, tmp_path / "out")
    assert {r["valid_share"] > 0.95 for r in rows(tmp_path / "out", "samples.parquet", "valid_share")} == {True}


def test_progressive_jpegs_that_are_read_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(scene(1, 700, 500)).save(tmp_path / "a" / "scene.jpg", progressive=True, subsampling=0)
    monkeypatch.setattr("datakit.pixels.WHOLE_PX", 1000)
    assert build(recipe_of("a"), tmp_path, tmp_path / "out").samples == 6


def test_a_rule_of_ones_own_goes_with_that_of_random_windows() -> None:
    changes = {"slice": {"random": {}}, "exclude.rules.6.max_share": 0.5}
    reasons = [r.reason for r in Recipe.load("recipes/opticalrs_files.yaml", changes).measured_rules().rules]
    assert reasons == ["min_valid_share", "valid_share", "flat"]


def test_a_layout_that_changes_opens_no_image_again(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")
    build(recipe_of("a"), tmp_path, tmp_path / "out")
    source = source_of("a")
    source["collection"]["layout"]["ignore"] = ["*.bak"]
    build(recipe_of("a", sources=[source]), tmp_path, tmp_path / "out")
    assert "images_opened" not in work_done(tmp_path / "out")
