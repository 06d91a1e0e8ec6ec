"""Is a picture in a build? Asked in Python and by the command, of whole images, windows, and turned copies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.crs import CRS
from test_dedup import ALL, FLIPS, SLICE, put
from worlds import geotiff, recipe_of, scene

import datakit
from datakit.cli import main
from datakit.errors import DatakitError, RecipeError, ShardError, SourceError
from datakit.looks import SCENE, TILE, Looks
from datakit.manifest import Manifest
from datakit.measure import measure
from datakit.query import Query, window_of
from datakit.sample import Window, make_key
from datakit.scales import in_source, of_source, reduced_size

Out = pytest.CaptureFixture[str]
SMALL, LARGE, TWIN = scene(200, 200, 160), scene(201, 600, 500), scene(202, 180, 180)
WINDOW = Window(256, 244, 256, 256)
CROP = LARGE[WINDOW.top :, WINDOW.left :][: WINDOW.height, : WINDOW.width]
FLAT = Image.new("RGB", (160, 120), (90, 120, 60))


def make(folder: Path, **stages: Any) -> Path:
    """A build of a small image, a large one, a flat one, a placed one, and of one with its JPEG."""
    put(folder / "air" / "small.png", SMALL)
    put(folder / "air" / "large.png", LARGE)
    put(folder / "air" / "flat.png", FLAT)
    put(folder / "air" / "twin.png", TWIN)
    put(folder / "air" / "twin-again.jpg", TWIN, quality=90)
    geotiff(folder / "air" / "placed.tif", scene(203, 300, 200))
    recipe = recipe_of("air", **{"exclude": ALL, "slice": SLICE, **stages})
    datakit.build(recipe, data=folder, out=folder / "out", workers=0)
    return folder / "out"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("query"))


@pytest.fixture(scope="module")
def query(out: Path) -> Query:
    return Query(out)


def saved(path: Path, pixels: Any, **how: Any) -> Path:
    put(path, pixels, **how)
    return path


def asked(query: Query, path: Path, window: Window | None = None, radius: int | None = None) -> list[dict[str, Any]]:
    return query.spell(path, window, radius)


# Python


def test_an_image_that_is_there_is_found_as_it_is(query: Query, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", SMALL)
    answers = asked(query, path)
    assert [(a["level"], a["key"], a["bits"], a["turned"], a["equal"]) for a in answers] == [
        ("image", make_key("air", "small.png"), 0, "", True),
        ("tile", make_key("air", "small.png"), 0, "", True),
    ]
    assert {a["image"] for a in answers} == {str(path)}
    assert {a["window"] for a in answers} == {None}
    assert all(a["found"] for a in answers)


def test_an_image_in_tiles_is_found_by_the_key_it_had(query: Query, tmp_path: Path) -> None:
    (answer,) = asked(query, saved(tmp_path / "x.png", LARGE))
    assert (answer["level"], answer["key"], answer["bits"], answer["equal"]) == (
        "image", make_key("air", "large.png"), 0, True,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["jpeg", "half", "double", "small"])
def test_a_copy_in_another_form_is_found(query: Query, tmp_path: Path, how: str) -> None:
    image = Image.fromarray(LARGE if how in ("jpeg", "small") else SMALL)
    sizes = {"half": (100, 80), "double": (400, 320), "small": (240, 200)}
    image = image.resize(sizes[how], Image.Resampling.BICUBIC) if how in sizes else image
    path = saved(tmp_path / ("x.jpg" if how == "jpeg" else "x.png"), image)
    answers = [a for a in asked(query, path) if a["level"] == "image"]
    name = "large.png" if how in ("jpeg", "small") else "small.png"
    assert [a["key"] for a in answers] == [make_key("air", name)]
    assert (answers[0]["turned"], answers[0]["equal"]) == ("", False)
    assert answers[0]["bits"] <= 4


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("large", [False, True])
def test_a_turned_copy_is_found_and_how_it_is_turned(query: Query, tmp_path: Path, flip: str, large: bool) -> None:
    """`turned` says how the build's record is turned to look like the picture, as in `dropped.parquet`."""
    path = saved(tmp_path / "x.png", Image.fromarray(LARGE if large else SMALL).transpose(FLIPS[flip]))
    answers = asked(query, path)
    assert {a["key"] for a in answers} == {make_key("air", "large.png" if large else "small.png")}
    assert {a["turned"] for a in answers} == {flip}
    assert {a["equal"] for a in answers} == {False}


def test_a_window_is_found_as_a_tile(query: Query, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", LARGE)
    (answer,) = asked(query, path, WINDOW)
    assert answer == {
        "image": str(path), "window": list(WINDOW), "found": True, "key": make_key("air", "large.png", WINDOW),
        "level": "tile", "bits": 0, "turned": "", "equal": True,
    }  # fmt: skip
    assert asked(query, path, Window(100, 100, 200, 200)) == [
        {"image": str(path), "window": [100, 100, 200, 200], "found": False}
    ]


def test_a_window_that_holds_a_whole_image_is_found(query: Query, tmp_path: Path) -> None:
    """In a collage: by its window, which is told; no signature finds it by itself."""
    collage = scene(210, 500, 400)
    collage[40:200, 30:230] = SMALL
    path = saved(tmp_path / "x.png", collage)
    assert asked(query, path)[0]["found"] is False
    answers = asked(query, path, Window(30, 40, 200, 160))
    assert {a["key"] for a in answers} == {make_key("air", "small.png")}
    assert {a["equal"] for a in answers} == {True}


def test_a_tile_on_its_own_is_found(query: Query, tmp_path: Path) -> None:
    (answer,) = asked(query, saved(tmp_path / "x.png", CROP))
    assert (answer["level"], answer["key"], answer["equal"]) == ("tile", make_key("air", "large.png", WINDOW), True)
    turned = saved(tmp_path / "y.jpg", Image.fromarray(CROP).transpose(FLIPS["turned 90"]), quality=70)
    (answer,) = asked(query, turned)
    assert (answer["key"], answer["turned"]) == (make_key("air", "large.png", WINDOW), "turned 90")


def test_what_a_shard_holds_is_found_in_it(query: Query, out: Path, tmp_path: Path) -> None:
    """A tile as a user takes it out of the set: encoded again, and cut down to 8 bits of JPEG."""
    rows = {row["key"]: row for row in pq.read_table(out / "samples.parquet").to_pylist()}
    for key, row in rows.items():
        if row["name"] == "flat.png":
            continue
        with (out / Manifest.load(out).shards[row["shard"]].name).open("rb") as file:
            file.seek(row["jpg_offset"])
            data = file.read(row["jpg_bytes"])
        path = tmp_path / f"{key}.jpg"
        path.write_bytes(data)
        assert key in {a["key"] for a in asked(query, path)}


def test_what_is_not_there_is_not_found(query: Query, tmp_path: Path) -> None:
    for name, pixels in (("a.png", scene(220, 200, 160)), ("b.png", scene(221, 600, 500)), ("c.png", SMALL[:, 60:])):
        path = saved(tmp_path / name, pixels)
        assert asked(query, path) == [{"image": str(path), "window": None, "found": False}]


def test_several_that_are_alike_are_all_told_nearest_first(query: Query, tmp_path: Path) -> None:
    answers = asked(query, saved(tmp_path / "x.png", TWIN))
    keys = [make_key("air", name) for name in ("twin.png", "twin-again.jpg")]
    assert [a["key"] for a in answers if a["level"] == "image"] == keys
    assert [a["key"] for a in answers if a["level"] == "tile"] == keys
    assert [a["equal"] for a in answers] == sorted([a["equal"] for a in answers], reverse=True)
    far = [a["bits"] for a in answers]
    assert far == sorted(far)


def test_flat_pictures_need_equal_pixels(query: Query, tmp_path: Path) -> None:
    answers = asked(query, saved(tmp_path / "x.png", FLAT))
    assert {a["key"] for a in answers} == {make_key("air", "flat.png")}
    assert {a["equal"] for a in answers} == {True}
    for n, other in enumerate([(91, 120, 60), (0, 0, 0)]):
        path = saved(tmp_path / f"{n}.png", Image.new("RGB", (160, 120), other))
        assert asked(query, path)[0]["found"] is False
        assert asked(query, path, radius=64)[0]["found"] is False


def test_a_picture_does_not_resemble_a_flat_one(tmp_path: Path) -> None:
    """Flat is either of the two: dedup would not merge them, so the answer is no."""
    rng = np.random.default_rng(0)
    fog = (128 + rng.integers(0, 3, (160, 200, 1)) * np.ones(3)).astype(np.uint8)
    other = fog.copy()
    other[::2, ::2] += rng.integers(0, 3, (80, 100, 1)).astype(np.uint8)
    low, high = (measure(picture, None).entropy_bits for picture in (fog, other))
    assert low < high
    put(tmp_path / "air" / "fog.png", fog)
    put(tmp_path / "air" / "other.png", scene(1, 200, 160))
    dedup = {"flat_entropy_bits": (low + high) / 2, "radius_bits": 6}
    recipe = recipe_of("air", exclude=ALL, slice=SLICE, dedup=dedup)
    datakit.build(recipe, data=tmp_path, out=tmp_path / "out", workers=0)
    answers = asked(Query(tmp_path / "out"), saved(tmp_path / "x.png", other), radius=64)
    assert answers[0]["found"] is False


def test_the_radius_is_the_recipes_unless_given(out: Path, query: Query, tmp_path: Path) -> None:
    """Every hit within a radius is one within a larger one, and says its distance."""
    blend = np.round(SMALL * 0.8 + scene(222, 200, 160) * 0.2).astype(np.uint8)
    path = saved(tmp_path / "x.png", blend)
    found = {r: {a["key"]: a["bits"] for a in asked(query, path, radius=r) if a["found"]} for r in (0, 4, 8, 64)}
    assert found[0].keys() <= found[4].keys() <= found[8].keys() <= found[64].keys()
    assert all(bits <= r for r, hits in found.items() for bits in hits.values())
    assert make_key("air", "small.png") in found[64]
    plain = {a["key"] for a in asked(query, path) if a["found"]}
    assert plain == set(found[4])


def test_looks_can_be_asked_without_a_file(query: Query, out: Path) -> None:
    table = pq.read_table(out / "samples.parquet")
    for n in range(0, table.num_rows, 3):
        row = table.slice(n, 1)
        key = row.column("key")[0].as_py()
        hits = query.ask(Looks.of(row, TILE), ("tile",))
        assert (hits[0].key, hits[0].bits, hits[0].equal) == (key, 0, True)
        image = make_key("air", row.column("name")[0].as_py())
        hits = query.ask(Looks.of(row, SCENE), ("image",))
        assert (hits[0].key, hits[0].level, hits[0].equal) == (image, "image", True)


def test_a_set_of_whole_images_is_asked_alike(tmp_path: Path) -> None:
    """Without `slice` large images are samples themselves."""
    query = Query(make(tmp_path, slice=None))
    (answer, *_) = asked(query, saved(tmp_path / "x.png", LARGE))
    assert (answer["key"], answer["equal"]) == (make_key("air", "large.png"), True)
    (answer, *_) = asked(query, saved(tmp_path / "y.jpg", Image.fromarray(LARGE).rotate(90, expand=True), quality=60))
    assert (answer["key"], answer["turned"]) == (make_key("air", "large.png"), "turned 90")


def test_a_set_of_random_windows_is_asked_alike(tmp_path: Path) -> None:
    query = Query(make(tmp_path, slice={"random": {"side_px": [64, 200], "whole_if_side_at_most_px": 256}}))
    rows = pq.read_table(tmp_path / "out" / "samples.parquet", columns=["key", "name", "window"]).to_pylist()
    tile = next(row for row in rows if row["name"] == "large.png")
    answers = asked(query, saved(tmp_path / "x.png", LARGE), Window(*tile["window"]))
    assert (answers[0]["key"], answers[0]["equal"]) == (tile["key"], True)
    answers = asked(query, tmp_path / "x.png")
    assert make_key("air", "large.png") in {a["key"] for a in answers}


def test_after_dedup_the_kept_one_is_told(tmp_path: Path) -> None:
    query = Query(make(tmp_path, dedup={}, prefer=["lossless"]))
    keys = {a["key"] for a in asked(query, saved(tmp_path / "x.jpg", TWIN, quality=50))}
    assert keys == {make_key("air", "twin.png")}


# what cannot be asked


def test_what_is_no_image_is_an_error(query: Query, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    for name in ("text.png", "notes.txt", "missing.png", "folder.png", "nowhere/x.png"):
        with pytest.raises(SourceError, match=r"(?s)x\.png|text|notes|missing|folder|nowhere"):
            asked(query, tmp_path / name)


def test_a_window_outside_of_the_image_is_an_error(query: Query, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", SMALL)
    for window in (Window(100, 0, 101, 100), Window(0, 100, 100, 61), Window(500, 500, 10, 10)):
        with pytest.raises(SourceError, match="window lies outside of the image"):
            asked(query, path, window)


@pytest.mark.parametrize("text", ["0,0,10", "0,0,10,0", "0,0,-1,5", "a,b,c,d", "1.5,0,10,10", "", "0,0,10,10,10"])
def test_a_window_is_four_numbers(text: str) -> None:
    with pytest.raises(DatakitError, match="LEFT,TOP,WIDTH,HEIGHT"):
        window_of(text)
    assert window_of("0, 5,10,20") == Window(0, 5, 10, 20)


def test_a_folder_without_a_build_and_one_that_is_damaged_are_errors(out: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"manifest\.json: no such file"):
        Query(tmp_path)
    (tmp_path / "manifest.json").write_bytes((out / "manifest.json").read_bytes())
    with pytest.raises(ShardError, match=r"samples\.parquet.*Build the set again"):
        Query(tmp_path)
    (tmp_path / "samples.parquet").write_bytes((out / "samples.parquet").read_bytes()[:-500])
    with pytest.raises(ShardError, match=r"samples\.parquet.*Build the set again"):
        Query(tmp_path)


def test_a_build_without_signatures_says_so(tmp_path: Path) -> None:
    out = make(tmp_path, cut={"measure": False})
    with pytest.raises(ShardError, match="measure: false"):
        Query(out)


def test_a_recipe_of_a_later_version_is_told(out: Path, tmp_path: Path) -> None:
    plain = json.loads((out / "manifest.json").read_text())
    plain["recipe"]["dedup"] = {"colour": True}
    (tmp_path / "manifest.json").write_text(json.dumps(plain))
    with pytest.raises(RecipeError, match=r"manifest\.json: dedup"):
        Query(tmp_path)


# the command


def test_the_command_prints_a_line_an_answer(out: Path, tmp_path: Path, capsys: Out) -> None:
    small, other = saved(tmp_path / "s.png", SMALL), saved(tmp_path / "o.png", scene(230, 200, 160))
    assert main(["dedup", "query", str(out), str(small), str(other)]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(a["image"], a["found"]) for a in answers] == [(str(small), True)] * 2 + [(str(other), False)]
    assert answers[0]["key"] == make_key("air", "small.png")


def test_the_command_asks_windows_and_radii(
    out: Path, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "x.png", LARGE)
    monkeypatch.chdir(tmp_path)
    assert main(["dedup", "query", str(out), "x.png", "--window", ",".join(map(str, WINDOW)), "--radius", "0"]) == 0
    (answer,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (answer["image"], answer["window"], answer["level"]) == ("x.png", list(WINDOW), "tile")
    assert answer["key"] == make_key("air", "large.png", WINDOW)
    assert main(["dedup", "query", str(out), "x.png", "--radius", "64"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.png"], "missing.png: no such image"),
        (["x.png", "--window", "0,0,10"], "LEFT,TOP,WIDTH,HEIGHT"),
        (["x.png", "--window", "550,0,100,100"], "window lies outside of the image"),
        (["x.png", "--radius", "65"], "0 to 64"),
    ],
)
def test_mistakes_are_a_line(
    out: Path, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    saved(tmp_path / "x.png", LARGE)
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["dedup", "query", str(out), *arguments])
    except SystemExit as exc:  # of the parser
        status = int(str(exc.code))
    assert status in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert "Traceback" not in captured.err


def test_no_build_is_a_line(tmp_path: Path, capsys: Out) -> None:
    assert main(["dedup", "query", str(tmp_path / "none"), str(tmp_path / "x.png")]) == 1
    assert "datakit: " in capsys.readouterr().err


# builds that reduce images to a ground sampling distance

WORLD = "0.5\n0\n0\n-0.5\n500000.25\n5399999.75\n"


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build at 1 m of images of 0.5 m by their place, of one by its source, and of one of an unknown distance."""
    folder = tmp_path_factory.mktemp("coarse")
    geotiff(folder / "air" / "placed.tif", scene(240, 420, 300))
    put(folder / "air" / "beside.png", scene(241, 420, 300))
    (folder / "air" / "beside.pgw").write_text(WORLD)
    (folder / "air" / "beside.prj").write_text(CRS.from_epsg(32632).to_wkt())
    put(folder / "air" / "unknown.png", scene(242, 420, 300))
    put(folder / "told" / "a.png", scene(243, 420, 300))
    plain = recipe_of("air", "told", exclude=ALL, slice={"grid": {"size_px": 64}, "gsd_m": 1.0}, dedup={})
    told = plain.sources[1].collection.model_copy(update={"gsd_m": (0.5, 0.5)})
    sources = (plain.sources[0], plain.sources[1].model_copy(update={"collection": told}))
    datakit.build(plain.model_copy(update={"sources": sources}), data=folder, out=folder / "out", workers=0)
    scales = {row["name"]: row["scale"] for row in pq.read_table(folder / "out" / "samples.parquet").to_pylist()}
    near = pytest.approx(2, rel=1e-3)
    assert scales == {"placed.tif": near, "beside.png": near, "unknown.png": 1.0, "a.png": 2.0}
    return folder


@pytest.mark.parametrize("name", ["placed.tif", "beside.png", "unknown.png"])
def test_an_image_is_reduced_as_the_build_reduces_it(coarse: Path, name: str) -> None:
    query = Query(coarse / "out")
    answers = asked(query, coarse / "air" / name, radius=0)
    key = make_key("air", name)
    assert [(a["key"], a["level"], a["equal"]) for a in answers] == [(key, "image", True)]
    rows = pq.read_table(coarse / "out" / "samples.parquet").to_pylist()
    for row in (row for row in rows if row["name"] == name):
        answers = asked(query, coarse / "air" / name, Window(*row["window"]), 0)
        assert (row["key"], "tile", True) in {(a.get("key"), a.get("level"), a.get("equal")) for a in answers}


def test_an_image_without_its_place_is_as_it_is_stored(coarse: Path, tmp_path: Path) -> None:
    """Nothing tells its metres then, as in a build; those of its source do."""
    query = Query(coarse / "out")
    lost = saved(tmp_path / "lost.png", scene(241, 420, 300))
    assert not any(a.get("equal") for a in asked(query, lost))
    assert not any(a.get("equal") for a in query.spell(coarse / "told" / "a.png"))
    answers = query.spell(coarse / "told" / "a.png", source="told")
    assert [(a["key"], a["level"], a["equal"]) for a in answers] == [(make_key("told", "a.png"), "image", True)]


@given(st.integers(1, 300), st.integers(1, 300), st.floats(1.0, 40.0), st.data())
def test_a_window_is_found_again_in_the_reduced_image(
    width: int, height: int, scale: float, data: st.DataObject
) -> None:
    across, down = reduced_size(width, height, scale)
    left, top = data.draw(st.integers(0, across - 1)), data.draw(st.integers(0, down - 1))
    size = data.draw(st.integers(1, across - left)), data.draw(st.integers(1, down - top))
    window = Window(left, top, *size)
    there = in_source(window, scale, width, height)
    if min(there.width, there.height) > 0:
        assert of_source(there, scale, width, height) == window
