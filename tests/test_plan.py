"""The plan promises what a build then does, and leaves everything as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import datakit
from datakit.errors import RecipeError, SourceError
from datakit.manifest import Count
from datakit.plan import check, look, size
from datakit.recipe import Recipe

COLLECTION: dict[str, Any] = {
    "name": "air",
    "title": "Air",
    "homepage": "https://example.org/air",
    "licence": "A licence of one's own, longer than a table is wide, in the publisher's own words",
    "modality": "optical",
    "bands": ["red", "green", "blue"],
    "layout": {
        "images": ["images/*.png", "images/*.jpg"],
        "label_files": ["labelTxt/*.txt"],
        "labels": [{"kind": "dota", "path": "labelTxt/{stem}.txt"}],
    },
    "count": 1234,
}
RULES = [
    {"rule": "bands", "allow": ["red", "green", "blue"]},
    {"rule": "smaller_than", "side_px": 64},
    {"rule": "flat", "entropy_bits": 0.5},
]
SIZES = [(300, 130), (128, 128), (129, 128), (640, 256), (100, 100), (200, 63)]


def recipe_of(**fields: Any) -> Recipe:
    source = {"name": "air", "path": "air", "collection": COLLECTION}
    plain = {"name": "small", "title": "A small one", "sources": [source], "exclude": {"rules": RULES}}
    return Recipe.model_validate({**plain, "slice": {"grid": {"size_px": 128, "gap_px": 16}}, **fields})


def draw(data: Path, labels: bool = False) -> None:
    """Images of SIZES, a gray one, a JPEG, one that is cut off, and a file that is none."""
    rng = np.random.default_rng(0)
    images = data / "air" / "images"
    images.mkdir(parents=True)
    for n, (width, height) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(images / f"{n}.png")
    Image.fromarray(rng.integers(0, 255, (128, 128), np.uint8)).save(images / "gray.png")
    Image.fromarray(rng.integers(0, 255, (96, 96, 3), np.uint8)).save(images / "whole.jpg")
    (images / "cut.png").write_bytes((images / "0.png").read_bytes()[:20])
    (data / "air" / "preview.gif").write_bytes(b"GIF89a")
    if labels:
        (data / "air" / "labelTxt").mkdir()
        (data / "air" / "labelTxt" / "3.txt").write_text("gsd:0.5\n10 10 40 10 40 30 10 30 plane 0\n")
        (data / "air" / "labelTxt" / "4.txt").write_text("1 2 3 plane 0\n")


def listed(*folders: Path) -> dict[str, tuple[int, int]]:
    paths = sorted(p for folder in folders for p in (folder, *folder.rglob("*")))
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in paths}


def expected_tiles(text: str, source: str) -> int:
    (line,) = re.findall(rf"^{source} +[\d,]+ of [\d,]+ +([\d,]+)", text, re.MULTILINE)
    return int(line.replace(",", ""))


def told(recipe: Recipe, data: Path) -> tuple[list[str], str]:
    """The lines of a plan, and the error at its end."""
    lines = []
    try:
        for line in check(recipe, data):
            lines.append(line)
    except SourceError as exc:
        return lines, str(exc)
    return lines, ""


def by_stage(counts: tuple[Count, ...]) -> dict[str, Count]:
    return {count.stage: count for count in counts}


@pytest.mark.parametrize("labels", [False, True])
def test_a_build_makes_what_the_plan_promises(tmp_path: Path, labels: bool) -> None:
    draw(tmp_path / "data", labels)
    recipe = recipe_of()
    text = "\n".join(check(recipe, tmp_path / "data"))
    plan = look(recipe, {"air": tmp_path / "data" / "air"}, 2000)["air"]
    counts = by_stage(datakit.build(recipe, tmp_path / "data", tmp_path / "out", workers=0).counts)
    assert plan.tiles == counts["slice"].made == counts["cut"].came
    assert expected_tiles(text, "air") == plan.tiles
    assert plan.images == counts["scan"].came == 9
    assert dict(plan.not_images) == counts["list"].dropped == {"unmatched": 1}
    assert dict(plan.dropped) == {**counts["scan"].dropped, **counts["exclude"].dropped, **counts["slice"].dropped}
    of_labels = {"label_unreadable": 1} if labels else {}
    assert dict(plan.dropped) == {"bands": 1, "smaller_than": 1, "unreadable": 1, **of_labels}
    assert sum(plan.sides.values()) == plan.tiles


def test_the_plan_says_what_a_user_must_know(tmp_path: Path) -> None:
    draw(tmp_path)
    lines = list(check(recipe_of(), tmp_path))
    text = "\n".join(lines)
    assert lines[0] == "small: A small one"
    assert max(map(len, lines)) <= 200
    (row,) = [line for line in lines if line.endswith("unmatched 1")]
    assert row.split()[:3] == ["air", "9", "1,234"]
    assert "A licence of one's own, longer than a …" in row
    assert str(tmp_path / "air") in row
    assert "  smaller_than  side_px=64 " in text
    assert "Images that lack one of these bands, by name, or (`exact`) have others besides." in text
    assert "infrared" not in text  # the second sentence of that rule
    assert "Tiles whose luma has less entropy than this." in text
    assert "slice: grid.size_px=128, grid.gap_px=16" in text
    assert "encode.subsampling=4:2:0" in text
    assert "bands 1, smaller_than 1, unreadable 1" in text
    assert re.search(r"^  128 to 255 +\d+ #{40}$", text, re.MULTILINE)
    assert re.search(r"^disk, estimated: [\d.]+ kB of shards and tables in OUT,$", text, re.MULTILINE)
    assert "0.0 " not in lines[-1]
    assert "None" not in text
    assert "not on disk" not in text


def test_a_plan_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "data", labels=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    folders = [tmp_path / "data", tmp_path / "here"]
    before = listed(*folders)
    assert list(check(recipe_of(), tmp_path / "data"))
    assert listed(*folders) == before
    assert not list((tmp_path / "tmp").iterdir())


def test_looking_at_some_scales_up(tmp_path: Path) -> None:
    images = tmp_path / "air" / "images"
    images.mkdir(parents=True)
    for n in range(30):
        Image.new("RGB", (200, 128 if n % 2 else 200), (n, 9, 9)).save(images / f"{n}.png")
    recipe = recipe_of()
    all_of_them = look(recipe, {"air": tmp_path / "air"}, 30)["air"]
    assert (all_of_them.tiles, all_of_them.scale) == (15 * 4 + 15 * 2, 1.0)
    some = look(recipe, {"air": tmp_path / "air"}, 10)["air"]
    assert (some.images, some.looked_at, some.scale) == (30, 10, 3.0)
    assert 60 < some.tiles * some.scale < 120
    assert look(recipe, {"air": tmp_path / "air"}, 10)["air"] == some
    text = "\n".join(check(recipe, tmp_path, most=10))
    assert "10 of 30" in text
    assert expected_tiles(text, "air") == some.tiles * 3


def test_which_are_looked_at_does_not_hang_on_their_order(tmp_path: Path) -> None:
    for folder, numbers in (("a", range(9)), ("b", reversed(range(9)))):
        (tmp_path / folder / "images").mkdir(parents=True)
        for n in numbers:
            Image.new("RGB", (130 + 100 * n, 128)).save(tmp_path / folder / "images" / f"{n}.png")
    recipe = recipe_of()
    looks = [look(recipe, {"air": tmp_path / folder}, 3)["air"] for folder in "ab"]
    assert looks[0] == looks[1]


def test_collections_that_are_not_on_disk(tmp_path: Path) -> None:
    draw(tmp_path)
    other = {
        "name": "sea",
        "path": "deep/sea",
        "collection": COLLECTION | {"name": "sea", "homepage": "https://sea.org"},
    }
    recipe = recipe_of(sources=[*recipe_of().model_dump(mode="json")["sources"], other])
    lines, error = told(recipe, tmp_path)
    assert re.fullmatch(r"not on disk: sea\. Fetch them, .* --allow-missing", error)
    assert f"  sea: {tmp_path / 'deep' / 'sea'}  https://sea.org" in lines
    assert lines[-2].startswith("disk, estimated")
    assert list(check(recipe, tmp_path, allow_missing=True)) == lines
    with pytest.raises(SourceError, match="not on disk: air, sea"):
        list(check(recipe, tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="no source of small has any image"):
        list(check(recipe, tmp_path / "nowhere", allow_missing=True))


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "air").mkdir()
    lines, error = told(recipe_of(), tmp_path)
    assert error.startswith("no source of small has any image: nothing to build. Correct --data")
    with pytest.raises(SourceError, match="nothing to build"):
        datakit.build(recipe_of(), tmp_path, tmp_path / "out", workers=0)
    assert "no image in air: its layout looks for images/*.png, images/*.jpg" in lines
    assert lines[-1].startswith("0.0 kB in the work folder")


def test_a_score_that_is_not_there_stops_the_plan_as_it_stops_the_build(tmp_path: Path) -> None:
    draw(tmp_path / "data")
    rule = {"rule": "column", "file": str(tmp_path / "clouds.parquet"), "column": "cloud", "above": 0.5}
    recipe = recipe_of(exclude={"rules": [rule]})
    with pytest.raises(RecipeError, match=r"clouds\.parquet: No such file"):
        list(check(recipe, tmp_path / "data"))
    with pytest.raises(RecipeError, match=r"clouds\.parquet: No such file"):
        datakit.build(recipe, tmp_path / "data", tmp_path / "out", workers=0)


def test_images_pass_whole_without_slice(tmp_path: Path) -> None:
    draw(tmp_path / "data")
    recipe = recipe_of(slice=None, exclude={})
    text = "\n".join(check(recipe, tmp_path / "data"))
    assert "slice: images pass whole" in text
    assert "  evaluation" in text  # every recipe has this rule
    plan = look(recipe, {"air": tmp_path / "data" / "air"}, 2000)["air"]
    manifest = datakit.build(recipe, tmp_path / "data", tmp_path / "out", workers=0)
    assert plan.tiles == manifest.samples == 8
    assert plan.copied_bytes == (tmp_path / "data" / "air" / "images" / "whole.jpg").stat().st_size
    assert dict(plan.dropped) == {"unreadable": 1}


def test_random_windows_are_those_of_the_build(tmp_path: Path) -> None:
    draw(tmp_path / "data")
    random = {"side_px": [64, 100], "whole_if_side_at_most_px": 128, "min_valid_share": 0.25}
    recipe = recipe_of(slice={"random": random})
    assert "min_share=0.25" in "\n".join(check(recipe, tmp_path / "data"))
    plan = look(recipe, {"air": tmp_path / "data" / "air"}, 2000)["air"]
    counts = by_stage(datakit.build(recipe, tmp_path / "data", tmp_path / "out", workers=0).counts)
    assert plan.tiles == counts["slice"].made > counts["slice"].came


def test_a_subset_needs_less_disk_in_out_only(tmp_path: Path) -> None:
    draw(tmp_path)
    full = list(check(recipe_of(), tmp_path))
    small = list(check(recipe_of(subset={"count": 2}), tmp_path))
    assert small[-1] == full[-1]
    shards = [float(lines[-2].removeprefix("disk, estimated: ").split()[0].replace(",", "")) for lines in (full, small)]
    assert shards[1] < shards[0] / 4


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0.0 kB"), (999, "1.0 kB"), (2.5e5, "250.0 kB"), (1e6, "1.0 MB"), (9.96e6, "10.0 MB"), (3e9, "3.0 GB"),
     (2e12, "2.0 TB"), (4.2e15, "4,200.0 TB")],
)  # fmt: skip
def test_sizes_for_people(n_bytes: float, text: str) -> None:
    assert size(n_bytes) == text
