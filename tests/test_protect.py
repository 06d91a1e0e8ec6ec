"""Held-out images: none gets through, whole, in tiles or by its place, and the certificate says what was compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import from_origin
from test_dedup import ALL, FLIPS, SLICE, kept, lost, put, some_looks
from worlds import digests, geotiff, recipe_of, scene, source_of, work_done, write_recipe

import datakit
from datakit.cli import main
from datakit.engine import Engine
from datakit.errors import RecipeError, SourceError
from datakit.looks import Looks, chance, turn
from datakit.manifest import Collection, Layout, Manifest
from datakit.measure import phash
from datakit.recipe import Recipe
from datakit.sample import Window, make_key
from datakit.signing import held_out
from datakit.stages.protect import ABOUT, ENTRY, NO_LIST, HeldOut, Protect

Out = pytest.CaptureFixture[str]
GRID = recipe_of("a", exclude={"rules": []}, slice=SLICE)
FACES = {n: scene(100 + n, 200, 160) for n in range(6)}  # images of the evaluation set that pass whole
LARGE = scene(110, 600, 500)
WINDOW = Window(256, 244, 256, 256)
CROP = LARGE[WINDOW.top :, WINDOW.left :][: WINDOW.height, : WINDOW.width]
FLAT = Image.new("RGB", (160, 120), (90, 120, 60))


def sign(folder: Path, path: Path, recipe: Recipe = GRID, **about: Any) -> HeldOut:
    held = held_out(folder, recipe, Engine(0), **about)
    held.save(path)
    return HeldOut.load(path)


def build(data: Path, out: Path, *lists: Path, names: tuple[str, ...] = ("train",), **stages: Any) -> list[str]:
    """Build with held-out lists; gives what it said."""
    said: list[str] = []
    protect = {"lists": [str(path) for path in lists], **stages.pop("protect", {})}
    recipe = recipe_of(*names, **{"exclude": ALL, "slice": SLICE, "protect": protect, **stages})
    datakit.build(recipe, data=data, out=out, work=data / "work", workers=0, say=said.append)
    return said


def certificate(out: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((out / "protect.json").read_text())
    return told


class World(NamedTuple):
    data: Path
    held: Path
    out: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An evaluation set, and a collection that its images leaked into in every way."""
    data = tmp_path_factory.mktemp("protect")
    test = data / "my evaluation set" / "val"
    for n, pixels in FACES.items():
        put(test / f"{n}.png", pixels)
    put(test / "large.png", LARGE)
    put(test / "flat.png", FLAT)
    (test / "broken.png").write_bytes((test / "0.png").read_bytes()[:3000])
    (test / "notes.txt").write_text("no image")
    train = data / "train"
    put(train / "exact.png", FACES[0], compress_level=1)
    put(train / "jpeg.jpg", FACES[1], quality=50)
    put(train / "half.png", Image.fromarray(FACES[2]).resize((100, 80), Image.Resampling.BICUBIC))
    for name, flip in FLIPS.items():
        put(train / f"{name}.png", Image.fromarray(FACES[3]).transpose(flip))
    put(train / "large.jpg", LARGE, quality=85)
    put(train / "large-turned.png", Image.fromarray(LARGE).transpose(FLIPS["turned 270"]))
    put(train / "tile.png", CROP)  # passes whole
    put(train / "tile.jpg", CROP[::-1], quality=80)
    put(train / "mosaic.png", np.concatenate([scene(111, 256, 256), CROP], axis=1))  # one of its two tiles
    put(train / "flat.png", FLAT)
    put(train / "flat-other.png", Image.new("RGB", (160, 120), (91, 120, 60)))
    put(train / "clean.png", scene(112, 200, 160))
    put(train / "clean-large.png", scene(113, 400, 300))
    put(train / "crop.png", FACES[4][:, 50:])  # what nobody claims to see
    sign(test, data / "held.list", name="faces", version="2", split="val")
    build(data, data / "out", data / "held.list")
    return World(data, data / "held.list", data / "out")


# leaks


@pytest.mark.parametrize(
    ("name", "leaked", "most_bits", "turned"),
    [
        ("exact.png", "0.png", 0, ""),
        ("jpeg.jpg", "1.png", 4, ""),
        ("half.png", "2.png", 4, ""),
        *((f"{flip}.png", "3.png", 4, flip) for flip in FLIPS),
    ],
)
def test_a_leaked_image_goes(world: World, name: str, leaked: str, most_bits: int, turned: str) -> None:
    row = lost(world.out, "protect")[f"train/{name}"]
    assert (row["dropped"], row["lost_to"], row["turned"]) == ("protected", f"faces:val/{leaked}", turned)
    assert row["distance_bits"] <= most_bits


def test_all_windows_of_a_leaked_scene_go(world: World) -> None:
    for name, turned in (("large.jpg", ""), ("large-turned.png", "turned 270")):
        goes = [row for place, row in lost(world.out, "protect").items() if place.startswith(f"train/{name}@")]
        assert len(goes) == 6
        assert {row["dropped"] for row in goes} == {"protected_scene"}
        assert {(row["lost_to"], row["turned"]) for row in goes} == {("faces:val/large.png", turned)}
        assert not [place for place in kept(world.out) if name in place]


def test_a_leaked_tile_goes(world: World) -> None:
    goes = lost(world.out, "protect")
    spelled = f"faces:val/large.png@{','.join(map(str, WINDOW))}"
    for name, turned in (("tile.png", ""), ("tile.jpg", "up-down"), ("mosaic.png@256,0,256,256", "")):
        row = goes[f"train/{name}"]
        assert (row["dropped"], row["lost_to"], row["turned"]) == ("protected", spelled, turned)
    assert "train/mosaic.png@0,0,256,256" in kept(world.out)


def test_what_does_not_resemble_any_stays(world: World) -> None:
    stays = {"train/clean.png", "train/crop.png", "train/flat-other.png", "train/mosaic.png@0,0,256,256"}
    assert stays | {p for p in kept(world.out) if "clean-large" in p} == kept(world.out)


def test_a_flat_image_is_protected_by_its_pixels(world: World) -> None:
    row = lost(world.out, "protect")["train/flat.png"]
    assert (row["lost_to"], row["distance_bits"]) == ("faces:val/flat.png", 0)
    assert phash(np.asarray(FLAT)) == phash(np.full((120, 160, 3), (91, 120, 60), np.uint8))


def test_what_came_in_is_what_stayed_and_what_went(world: World) -> None:
    (count,) = (c for c in Manifest.load(world.out).counts if c.stage == "protect")
    assert count.came == count.left + sum(count.dropped.values())
    assert count.left == len(kept(world.out))
    assert count.dropped == {"protected": 3 + 7 + 3 + 1, "protected_scene": 12}
    assert len(lost(world.out, "protect")) == sum(count.dropped.values())


# the certificate


def test_the_certificate_says_what_was_compared(world: World) -> None:
    told = certificate(world.out)
    (held,) = told["lists"]
    assert {n: held[n] for n in ("name", "version", "split", "files", "images", "tiles", "footprints")} == {
        "name": "faces", "version": "2", "split": "val", "files": 9, "images": 8, "tiles": 6, "footprints": 0,
    }  # fmt: skip
    assert held["blake2b"] == HeldOut.load(world.held).digest
    assert held["grid"]["grid"] == {"size_px": 256, "gap_px": 0}
    assert held["versions"]["datakit"] == datakit.__version__
    assert (told["radius_bits"], told["orientations"], told["thumbnail_levels"]) == (4, 8, 8.0)
    assert told["compared"]["images"] == 20
    assert told["compared"]["tiles"] == 16 + 6 + 6 + 2 + 4
    entries = 8 + 6
    assert told["random_matches_expected"]["images"] == pytest.approx(20 * entries * 8 * chance(4))
    assert told["statement"].startswith("16 images or tiles resembled held-out images of faces:val")
    assert any("crop" in line for line in told["cannot_see"])
    assert any("same ground" in line for line in told["cannot_see"])


def test_the_certificate_names_what_could_not_be_protected(world: World) -> None:
    not_protected = certificate(world.out)["lists"][0]["not_protected"]
    assert not_protected["flat"] == ["flat.png"]
    assert [row["name"] for row in not_protected["unsigned"]] == ["broken.png"]
    why = not_protected["unsigned"][0]["why"]
    assert why
    assert str(world.data) not in why
    assert "tmp" not in why


def test_the_certificate_lists_each_match(world: World) -> None:
    matches = {match["key"]: match for match in certificate(world.out)["matches"]}
    assert len(matches) == 16
    exact = matches[make_key("train", "exact.png")]
    assert exact == {"key": make_key("train", "exact.png"), "level": "image", "held_out": "faces:val/0.png",
                     "how": "equal pixels", "distance_bits": 0, "turned": ""}  # fmt: skip
    assert matches[make_key("train", "jpeg.jpg")]["how"] == "signature"
    scenes = matches[make_key("train", "large.jpg")]
    assert (scenes["level"], scenes["held_out"]) == ("image", "faces:val/large.png")
    tile = matches[make_key("train", "mosaic.png", Window(256, 0, 256, 256))]
    assert (tile["level"], tile["how"]) == ("tile", "equal pixels")
    assert matches[make_key("train", "left-right.png")]["turned"] == "left-right"


def test_the_manifest_vouches_for_the_certificate_and_the_card_quotes_it(world: World) -> None:
    assert Manifest.load(world.out).files["protect.json"] == digests(world.out)["protect.json"]
    assert certificate(world.out)["statement"] in (world.out / "README.md").read_text()


def test_no_folder_of_this_machine_stands_in_what_is_left(world: World) -> None:
    recipe = Manifest.load(world.out).recipe
    assert recipe["protect"]["lists"] == ["held.list"]
    for name in ("manifest.json", "protect.json", "README.md"):
        text = (world.out / name).read_text()
        assert str(world.data) not in text, name
        assert "my evaluation set" not in text, name


def test_without_a_list_the_certificate_says_so_and_the_build_warns(world: World, tmp_path: Path) -> None:
    said = build(world.data, tmp_path / "out")
    assert certificate(tmp_path / "out")["statement"] == NO_LIST == "no evaluation set was checked"
    assert certificate(tmp_path / "out")["matches"] == []
    assert certificate(tmp_path / "out")["cannot_see"]
    assert len([line for line in said if line.startswith(f"warning: {NO_LIST}")]) == 1
    assert NO_LIST in (tmp_path / "out" / "README.md").read_text()
    assert not lost(tmp_path / "out", "protect")
    again = build(world.data, tmp_path / "out")
    assert any(line.startswith(f"warning: {NO_LIST}") for line in again)


def test_with_a_list_the_build_does_not_warn(world: World, tmp_path: Path) -> None:
    said = build(world.data, tmp_path / "out", world.held)
    assert not [line for line in said if "warning" in line]
    assert digests(tmp_path / "out") == digests(world.out)


def test_several_lists_are_compared_one_after_the_other(world: World, tmp_path: Path) -> None:
    put(tmp_path / "other" / "clean.png", scene(112, 200, 160))
    put(tmp_path / "other" / "exact.png", FACES[0])
    sign(tmp_path / "other", tmp_path / "other.list")
    build(world.data, tmp_path / "out", world.held, tmp_path / "other.list")
    told = certificate(tmp_path / "out")
    assert [held["name"] for held in told["lists"]] == ["faces", "other"]
    goes = lost(tmp_path / "out", "protect")
    assert goes["train/clean.png"]["lost_to"] == "other/clean.png"
    assert goes["train/exact.png"]["lost_to"] == "faces:val/0.png"
    assert told["statement"].startswith("17 images or tiles resembled held-out images of faces:val, other")


@pytest.mark.parametrize(
    ("change", "stays"),
    [({"radius_bits": 0}, "train/turned 270.png"), ({"thumbnail_levels": 0.01}, "train/jpeg.jpg")],
)
def test_another_threshold_opens_no_image(world: World, tmp_path: Path, change: dict[str, Any], stays: str) -> None:
    build(world.data, tmp_path / "out", world.held, protect=change)
    assert "images_opened" not in work_done(tmp_path / "out")
    assert stays in kept(tmp_path / "out")
    assert "train/exact.png" in lost(tmp_path / "out", "protect")
    refused = certificate(tmp_path / "out")["compared"]["refused"]
    assert (refused > 0) == ("thumbnail_levels" in change)


def test_a_set_that_grew_has_the_same_certificate(world: World, tmp_path: Path) -> None:
    """Files that come later lie in parts of their own: what is said must not depend on that."""
    data, late = tmp_path / "data", ("exact.png", "jpeg.jpg", "large.jpg", "clean.png")
    (data / "train").mkdir(parents=True)
    for late_ones in (False, True):
        for path in sorted((world.data / "train").iterdir()):
            if (path.name in late) == late_ones:
                shutil.copy(path, data / "train" / path.name)
        build(data, tmp_path / "out", world.held)
    grown, fresh = digests(tmp_path / "out"), digests(world.out)
    assert grown["samples.parquet"] == fresh["samples.parquet"]
    assert grown["dropped.parquet"] == fresh["dropped.parquet"]
    assert certificate(tmp_path / "out")["matches"] == certificate(world.out)["matches"]
    assert grown == fresh


# products


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Acquisitions in two products that look different; one product of some is in the evaluation set."""
    data = tmp_path_factory.mktemp("products")
    put(data / "test" / "e.png", scene(130, 200, 160))
    put(data / "test" / "tile.png", scene(131, 512, 256)[:, 256:])
    put(data / "sharp" / "x_1_rgb.png", scene(130, 200, 160))  # leaked
    put(data / "sharp" / "x_2_rgb.png", scene(131, 512, 256))  # one of its two tiles did
    put(data / "sharp" / "x_3_rgb.png", scene(132, 200, 160))
    for n in range(1, 5):
        put(data / "soft" / f"x_{n}_msrgb.png", scene(140 + n, 300, 256))  # in two tiles
    sign(data / "test", data / "test.list")
    for name, twins in (("out", ["sharp"]), ("strangers", [])):
        plain = recipe_of("sharp", "soft", exclude=ALL, slice=SLICE, protect={"lists": [str(data / "test.list")]})
        dumped = plain.model_dump(mode="json")
        for source in dumped["sources"]:
            source["collection"] |= {"acquisition": r"(.*)_(?:ms)?rgb\.", "twin_of": twins}
        spec = Recipe.model_validate(dumped | {"dedup": {}, "prefer": ["source"]})
        datakit.build(spec, data=data, out=data / name, work=data / "work", workers=0)
    return data


def test_another_product_of_a_protected_acquisition_goes(products: Path) -> None:
    goes = {p: (row["dropped"], row["lost_to"], row["detail"]) for p, row in lost(products / "out", "protect").items()}
    twins = {place: why for place, why in goes.items() if "soft" in place}
    assert set(twins) == {f"soft/x_{n}_msrgb.png@{x},0,256,256" for n in (1, 2) for x in (0, 44)}
    for place, (why, to, detail) in twins.items():
        n = int(place[7])
        key = make_key("sharp", f"x_{n}_rgb.png", Window(256, 0, 256, 256) if n == 2 else None)
        assert (why, to) == ("protected_twin", "test/e.png" if n == 1 else "test/tile.png")
        assert detail == f"another product of the acquisition of {key}"
    assert goes.keys() - twins == {"sharp/x_1_rgb.png", "sharp/x_2_rgb.png@256,0,256,256"}
    left = {place.partition("@")[0] for place in kept(products / "out")}
    assert left == {"sharp/x_2_rgb.png", "sharp/x_3_rgb.png", "soft/x_4_msrgb.png"}
    counts = [c for c in Manifest.load(products / "out").counts if c.stage == "protect" and c.source == "soft"]
    assert [c.dropped for c in counts] == [{"protected_twin": 4}]


def test_the_certificate_names_products(products: Path) -> None:
    told = certificate(products / "out")
    twins = {match["key"]: match for match in told["matches"] if match["level"] == "twin"}
    assert set(twins) == {make_key("soft", f"x_{n}_msrgb.png") for n in (1, 2)}
    first = twins[make_key("soft", "x_1_msrgb.png")]
    assert first["held_out"] == "test/e.png"
    assert first["how"] == f"another product of the acquisition of {make_key('sharp', 'x_1_rgb.png')}"
    assert told["statement"].startswith("4 images or tiles")
    assert "other products of an acquisition" in told["statement"]


def test_the_same_names_in_collections_that_are_no_twins_stay(products: Path) -> None:
    assert not [place for place in lost(products / "strangers", "protect") if "soft" in place]
    assert len([place for place in kept(products / "strangers") if "soft" in place]) == 8


# places


def strip(tif: Path, seed: int, east_px: int, **profile: Any) -> None:
    """A scene of 200 x 160 px at 0.5 m that begins so many pixels east of a place."""
    geotiff(tif, scene(seed, 200, 160), transform=from_origin(500000 + east_px / 2, 5400000, 0.5, 0.5), **profile)


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A held-out scene, and scenes that overlap it, touch it, and lie elsewhere: all with pixels of their own."""
    data = tmp_path_factory.mktemp("placed")
    strip(data / "test" / "held.tif", 120, 0)
    put(data / "test" / "nowhere.png", scene(121, 200, 160))
    strip(data / "train" / "overlaps.tif", 122, 150)
    strip(data / "train" / "touches.tif", 123, 200)
    strip(data / "train" / "barely.tif", 124, -199)  # 0.5 % in common
    strip(data / "train" / "far.tif", 125, 4000)
    put(data / "train" / "nowhere.png", scene(126, 200, 160))
    geotiff(data / "train" / "large.tif", scene(127, 600, 300), transform=from_origin(499750, 5400025, 0.5, 0.5))
    sign(data / "test", data / "test.list")
    build(data, data / "out", data / "test.list")
    return data


def test_what_overlaps_on_the_map_goes(placed: Path) -> None:
    goes = lost(placed / "out", "protect")
    assert {row["dropped"] for row in goes.values()} == {"protected_place"}
    assert {row["lost_to"] for row in goes.values()} == {"test/held.tif"}
    assert {(row["distance_bits"], row["turned"]) for row in goes.values()} == {(None, "")}
    assert "train/overlaps.tif" in goes


def test_neighbours_that_touch_and_places_elsewhere_stay(placed: Path) -> None:
    stays = kept(placed / "out")
    assert {f"train/{name}" for name in ("touches.tif", "barely.tif", "far.tif", "nowhere.png")} <= stays


def test_of_a_large_scene_only_the_tiles_that_overlap_go(placed: Path) -> None:
    """The held-out scene covers columns 500 to 700 and rows 50 to 210 of it."""
    goes = {p for p in lost(placed / "out", "protect") if "large.tif" in p}
    stays = {p for p in kept(placed / "out") if "large.tif" in p}
    assert goes == {"train/large.tif@256,0,256,256", "train/large.tif@256,44,256,256",
                    "train/large.tif@344,0,256,256", "train/large.tif@344,44,256,256"}  # fmt: skip
    assert stays == {"train/large.tif@0,0,256,256", "train/large.tif@0,44,256,256"}


def test_the_certificate_counts_places(placed: Path) -> None:
    told = certificate(placed / "out")
    assert told["lists"][0]["footprints"] == 1
    assert told["compared"]["placed"] == 4 + 6
    assert {match["level"] for match in told["matches"]} == {"place"}
    assert {match["how"] for match in told["matches"]} == {"footprint"}
    assert len(told["matches"]) == 5


def test_places_are_left_alone_on_request(placed: Path, tmp_path: Path) -> None:
    build(placed, tmp_path / "out", placed / "test.list", protect={"footprints": False})
    assert not lost(tmp_path / "out", "protect")
    assert certificate(tmp_path / "out")["lists"][0]["footprints"] == 0
    build(placed, tmp_path / "tight", placed / "test.list", protect={"footprint_share": 0.001})
    assert "train/barely.tif" in lost(tmp_path / "tight", "protect")
    assert "train/touches.tif" in kept(tmp_path / "tight")


def test_a_scene_in_another_projection_overlaps_as_well(placed: Path, tmp_path: Path) -> None:
    """The held-out scene again, in degrees, with pixels of its own."""
    (row,) = [r for r in HeldOut.load(placed / "test.list").entries.to_pylist() if r["footprint"]]
    west, north = row["footprint"][0], row["footprint"][1]
    step = (row["footprint"][2] - west) / 200
    place = {"crs": "EPSG:4326", "transform": from_origin(west, north, step, step * 0.65)}
    geotiff(tmp_path / "train" / "degrees.tif", scene(128, 200, 160), **place)
    put(tmp_path / "train" / "other.png", scene(129, 200, 160))
    build(tmp_path, tmp_path / "out", placed / "test.list")
    assert kept(tmp_path / "out") == {"train/other.png"}


def test_a_placed_image_that_leaked_goes_for_its_pixels(placed: Path, tmp_path: Path) -> None:
    """When pixels have taken all records, none is left to be compared by place."""
    strip(tmp_path / "train" / "again.tif", 120, 0)
    put(tmp_path / "train" / "else.png", scene(130, 200, 160))
    build(tmp_path, tmp_path / "out", placed / "test.list")
    assert lost(tmp_path / "out", "protect")["train/again.tif"]["dropped"] == "protected"


def test_if_pixels_took_all_records_the_places_are_no_trouble(placed: Path, tmp_path: Path) -> None:
    """A fault there would be one of pyarrow's; it must be one that says what happened."""
    strip(tmp_path / "train" / "again.tif", 120, 0)
    with pytest.raises(datakit.errors.StageError, match="nothing is left"):
        build(tmp_path, tmp_path / "out", placed / "test.list")


# lists that cannot be used


def test_a_list_of_another_grid_warns(world: World, tmp_path: Path) -> None:
    other = recipe_of("a", exclude={"rules": []}, slice={"grid": {"size_px": 200}})
    sign(world.data / "my evaluation set", tmp_path / "other.list", other, name="faces")
    said = build(world.data, tmp_path / "out", tmp_path / "other.list")
    assert [line for line in said if line.startswith("warning: tiles of faces were cut on another grid")]
    assert "train/exact.png" in lost(tmp_path / "out", "protect")
    assert "train/tile.png" in kept(tmp_path / "out")  # what the warning is for


def test_a_list_of_another_grid_warns_each_time(world: World, tmp_path: Path) -> None:
    """What was decided is remembered; that it was decided on a list that does not fit must not be forgotten."""
    other = recipe_of("a", exclude={"rules": []}, slice={"grid": {"size_px": 190}})
    sign(world.data / "my evaluation set", tmp_path / "other.list", other, name="faces")
    for _ in range(2):
        said = build(world.data, tmp_path / "out", tmp_path / "other.list")
        assert [line for line in said if line.startswith("warning: tiles of faces were cut on another grid")]


def test_lists_of_random_windows_hold_whole_images_and_say_so(world: World, tmp_path: Path) -> None:
    random = recipe_of("a", exclude={"rules": []}, slice={"random": {"side_px": [64, 128]}})
    held = sign(world.data / "my evaluation set", tmp_path / "whole.list", random)
    assert (held.about["images"], held.about["tiles"], held.about["grid"]) == (8, 0, None)
    said = build(world.data, tmp_path / "out", tmp_path / "whole.list")
    assert [line for line in said if line.startswith("warning")] == [
        "warning: my evaluation set has no tiles, and this recipe cuts some: sign it with this --recipe"
    ]
    assert "train/large.jpg@0,0,256,256" in lost(tmp_path / "out", "protect")


def write_list(path: Path, about: dict[str, Any] | None) -> Path:
    metadata = None if about is None else {ABOUT: json.dumps(about)}
    pq.write_table(ENTRY.empty_table().replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize("kind", ["missing", "broken", "cut", "no_list", "format", "folder"])
def test_a_list_that_is_none_is_an_error_that_says_what_to_do(world: World, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.list"
    if kind == "broken":
        path.write_text("no parquet")
    elif kind == "cut":
        path.write_bytes(world.held.read_bytes()[:-100])
    elif kind == "no_list":
        write_list(path, None)
    elif kind == "format":
        write_list(path, {"format": 2})
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(RecipeError, match=r"(?s)x\.list.*datakit protect sign"):
        HeldOut.load(path)
    with pytest.raises(RecipeError, match=r"(?s)x\.list.*datakit protect sign"):
        build(world.data, tmp_path / "out", path)


@pytest.mark.parametrize("kind", ["missing", "broken"])
def test_a_list_that_is_none_stops_a_build_before_it_opens_images(world: World, tmp_path: Path, kind: str) -> None:
    """Hours of reading must not end in a name that was mistyped."""
    data = tmp_path / "data"
    put(data / "train" / "a.png", scene(1, 160, 160))
    if kind == "broken":
        (tmp_path / "x.list").write_text("no parquet")
    with pytest.raises(RecipeError):
        build(data, tmp_path / "out", tmp_path / "x.list")
    assert not list((data / "work").rglob("cut/*/*.parquet"))


def test_a_recipe_that_measures_nothing_cannot_protect(world: World) -> None:
    with pytest.raises(ValueError, match="cut: measure: false: protect"):
        recipe_of("train", protect={"lists": [str(world.held)]}, cut={"measure": False})


# signing


def test_a_list_holds_each_image_whole_and_in_tiles_and_no_pixels(world: World) -> None:
    held = HeldOut.load(world.held)
    rows = held.entries.to_pylist()
    assert [row["name"] for row in rows if not row["window"]] == [f"{n}.png" for n in range(6)] + [
        "flat.png",
        "large.png",
    ]
    windows = [row["window"] for row in rows if row["window"]]
    assert windows == [[x, y, 256, 256] for x in (0, 256, 344) for y in (0, 244)]
    assert {len(row["thumbnail"]) for row in rows} == {192}
    assert world.held.stat().st_size < 20_000
    assert held.who == "faces:val"
    assert held.spelled[0] == "faces:val/0.png"
    assert held.spelled[len(rows) - 1] == "faces:val/large.png@344,244,256,256"


def test_a_list_is_the_same_wherever_the_images_lie_and_whoever_signs(world: World, tmp_path: Path) -> None:
    """Byte for byte: in a folder of another name, in a zip, and by two workers."""
    shutil.copytree(world.data / "my evaluation set" / "val", tmp_path / "elsewhere")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "elsewhere")
    about = {"name": "faces", "version": "2", "split": "val"}
    folder = sign(tmp_path / "elsewhere", tmp_path / "a.list", **about)
    packed = sign(tmp_path / "packed.zip", tmp_path / "b.list", **about)
    assert folder.digest == HeldOut.load(world.held).digest
    assert packed.entries.equals(folder.entries)
    with Engine(2) as engine:
        held_out(tmp_path / "elsewhere", GRID, engine, **about).save(tmp_path / "c.list")
    assert HeldOut.load(tmp_path / "c.list").digest == folder.digest


def test_an_image_that_kills_its_reader_is_not_signed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, comment in enumerate((b"", b"fault:segfault", b"")):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.fromarray(FACES[n]).save(tmp_path / "set" / f"{n}.jpg", comment=comment)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "faults"))
    with Engine(1) as engine:
        held = held_out(tmp_path / "set", GRID, engine)
    assert held.about["unsigned"] == [{"name": "1.jpg", "why": "kills_reader"}]
    assert (held.about["files"], held.about["images"]) == (3, 2)


def test_a_list_says_where_its_images_lie(placed: Path) -> None:
    entries, corners = HeldOut.load(placed / "test.list").footprints()
    assert corners.shape == (1, 8)
    assert corners[0, 0] == pytest.approx(9.0, abs=0.01)  # UTM 32N, 500 km east
    assert HeldOut.load(placed / "test.list").spelled[int(entries[0])] == "test/held.tif"


def test_signing_images_of_any_suffix_and_depth(tmp_path: Path) -> None:
    put(tmp_path / "a" / "b" / "deep.JPG", scene(1, 100, 100), format="JPEG")
    put(tmp_path / "top.webp", scene(2, 100, 100))
    geotiff(tmp_path / "x" / "t.TIFF", scene(3, 100, 100))
    held = sign(tmp_path, tmp_path / "out" / "lists" / "x.list")
    assert held.about["images"] == held.about["files"] == 3
    assert held.about["name"] == tmp_path.name


def test_of_a_collection_only_the_images_of_the_split_are_signed(tmp_path: Path) -> None:
    for split in ("train", "val"):
        put(tmp_path / "set" / split / "images" / f"{split}.png", scene(len(split), 100, 100))
        put(tmp_path / "set" / split / "masks" / f"{split}.png", Image.new("RGB", (100, 100)))
    plain = source_of("city")["collection"]
    layout = Layout(images=("*/images/*.png",))
    splits = {"train": {"images": ["train/**"]}, "val": {"images": ["val/**"]}, "test": {"images": []}}
    about = Collection.model_validate({**plain, "layout": layout, "version": "1.1", "splits": splits})
    whole = sign(tmp_path / "set", tmp_path / "all.list", about=about)
    assert (whole.about["name"], whole.about["version"], whole.about["images"]) == ("city", "1.1", 2)
    val = sign(tmp_path / "set", tmp_path / "val.list", about=about, split="val")
    assert [row["name"] for row in val.entries.to_pylist()] == ["val/images/val.png"]
    assert val.who == "city:val"
    for split in ("test", "dev"):
        with pytest.raises(SourceError, match=rf"city tells no split {split} by its files; it tells train, val"):
            sign(tmp_path / "set", tmp_path / "x.list", about=about, split=split)


def test_a_folder_without_images_makes_no_list(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("nothing")
    with pytest.raises(SourceError, match="no image could be signed"):
        sign(tmp_path / "empty", tmp_path / "x.list")
    with pytest.raises(SourceError, match="nowhere"):
        sign(tmp_path / "nowhere", tmp_path / "x.list")
    assert not (tmp_path / "x.list").exists()


# the command


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return str(write_recipe(tmp_path / "grid.yaml", GRID))


def test_the_command_signs_and_the_build_takes_the_list(world: World, recipe: str, tmp_path: Path, capsys: Out) -> None:
    path = tmp_path / "out.list"
    folder = str(world.data / "my evaluation set" / "val")
    about = ["--name", "faces", "--version", "2", "--split", "val", "--workers", "0"]
    assert main(["protect", "sign", folder, "-o", str(path), "--recipe", recipe, *about]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert {n: told[n] for n in ("name", "images", "tiles", "unsigned", "files")} == {
        "name": "faces", "images": 8, "tiles": 6, "unsigned": 1, "files": 9,
    }  # fmt: skip
    assert "not signed: broken.png: " in err
    assert HeldOut.load(path).digest == HeldOut.load(world.held).digest
    train = recipe_of("train", exclude=ALL, slice=SLICE)
    build_recipe = str(write_recipe(tmp_path / "train.yaml", train))
    command = ["build", build_recipe, "--data", str(world.data), "--work", str(world.data / "work"), "--workers", "0"]
    assert main([*command, "--out", str(tmp_path / "out"), "--protect", str(path)]) == 0
    assert lost(tmp_path / "out", "protect").keys() == lost(world.out, "protect").keys()
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "bare")]) == 0
    assert f"warning: {NO_LIST}" in capsys.readouterr().err
    check = ["check", build_recipe, "--data", str(world.data), "--protect"]
    assert main([*check, str(path)]) == 0
    assert "faces:val: 8 images, 6 tiles" in capsys.readouterr().out
    assert main([*check, str(tmp_path / "no.list")]) == 1


def test_the_grid_of_the_list_is_the_recipes_with_its_changes(world: World, recipe: str, tmp_path: Path) -> None:
    folder = str(world.data / "my evaluation set")
    command = ["protect", "sign", folder, "-o", str(tmp_path / "x.list"), "--recipe", recipe, "--workers", "0"]
    assert main([*command, "--set", "slice.grid.size_px=300"]) == 0
    assert HeldOut.load(tmp_path / "x.list").about["grid"]["grid"]["size_px"] == 300


def test_the_command_takes_what_is_an_image_from_a_manifest(tmp_path: Path, capsys: Out) -> None:
    """UC Merced's: TIFF in class folders, and nothing else."""
    put(tmp_path / "UCMerced_LandUse" / "Images" / "river" / "river00.tif", scene(1, 256, 256))
    put(tmp_path / "UCMerced_LandUse" / "preview.png", scene(2, 256, 256))
    path = tmp_path / "x.list"
    command = ["protect", "sign", str(tmp_path), "-o", str(path), "--workers", "0"]
    assert main([*command, "--manifest", "ucmerced"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["images"]) == ("ucmerced", 1)
    assert HeldOut.load(path).about["title"]
    assert main([*command, "--manifest", "nobody_has_this"]) == 1
    assert "no manifest of that name" in capsys.readouterr().err
    assert main([*command, "--manifest", "ucmerced", "--split", "val"]) == 1
    assert "ucmerced tells no split val" in capsys.readouterr().err


def test_mistakes_of_the_command_are_a_line(world: World, recipe: str, tmp_path: Path, capsys: Out) -> None:
    path = str(tmp_path / "x.list")
    for folder, words in ((tmp_path / "nowhere", "nowhere"), (world.held, "held.list")):
        assert main(["protect", "sign", str(folder), "-o", path, "--recipe", recipe, "--workers", "0"]) == 1
        assert words in capsys.readouterr().err
    assert not Path(path).exists()
    for argv in (["protect"], ["protect", "sign", "x"]):
        with pytest.raises(SystemExit):
            main(argv)
    assert yaml.safe_load(Path(recipe).read_text())["name"] == "world"


# the stage on arrays, against one by one


def entries_of(looks: Looks) -> HeldOut:
    rows = [
        {"name": f"{n}", "window": None, "signatures": looks.signatures[n].tolist(),
         "thumbnail": looks.thumbnails[n].tobytes(), "pixel_digest": bytes(looks.digests[n]),
         "entropy_bits": float(looks.entropy_bits[n]), "footprint": []}
        for n in range(len(looks))
    ]  # fmt: skip
    return HeldOut({"name": "x", "split": ""}, pa.Table.from_pylist(rows, schema=ENTRY))


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 25), st.integers(0, 6))
def test_matches_are_those_found_one_by_one(seed: int, n: int, m: int, radius: int) -> None:
    rng = np.random.default_rng(seed)
    both = some_looks(rng, n + m)
    both.digests[: n + m // 2] = np.array([b"%016d" % (k + 100) for k in range(n + m // 2)])
    mine = both.cut(n)
    theirs = Looks(*(part[n:] for part in (both.signatures, both.thumbnails, both.digests, both.entropy_bits)))
    spec = Protect(radius_bits=radius, thumbnail_levels=6)
    wanted = {}
    for row in range(n):
        found = []
        for entry in range(m):
            if mine.digests[row] == theirs.digests[entry]:
                found.append((0, entry, 0))
            if min(mine.entropy_bits[row], theirs.entropy_bits[entry]) < spec.flat_entropy_bits:
                continue
            for place in range(8):
                bits = int(theirs.signatures[entry, place] ^ mine.signatures[row, 0]).bit_count()
                if bits <= radius and alike(theirs.thumbnails[entry], mine.thumbnails[row], place):
                    found.append((bits, entry, place))
        if found:
            wanted[row] = min(found)
    matches = spec.find(mine, entries_of(theirs))
    columns = (matches.row, matches.bits, matches.entry, matches.place)
    assert {row: tuple(rest) for row, *rest in zip(*(c.tolist() for c in columns), strict=True)} == wanted


def alike(one: NDArray[np.uint8], other: NDArray[np.uint8], place: int) -> bool:
    return bool(np.abs(turn(one[None], place)[0].astype(int) - other).mean() <= 6)


def test_a_list_that_is_saved_is_the_list_that_is_loaded(tmp_path: Path) -> None:
    held = entries_of(some_looks(np.random.default_rng(1), 5))
    held.save(tmp_path / "new" / "x.list")
    there = HeldOut.load(tmp_path / "new" / "x.list")
    assert there.entries.equals(held.entries)
    assert there.about == {"format": 1, **held.about}
    assert len(there.digest) == 40
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.list"]


def test_a_list_names_no_folder_of_who_made_it(world: World) -> None:
    """So that it may be shared."""
    text = json.dumps(HeldOut.load(world.held).about) + json.dumps(HeldOut.load(world.held).entries["name"].to_pylist())
    assert str(world.data) not in text
    assert "my evaluation set" not in text


def test_whole_images_are_signed_at_the_distance_of_the_recipe(tmp_path: Path) -> None:
    """Those of random windows too, of which a list holds no tiles; split by name, side-cars stay with their images."""
    put(tmp_path / "e" / "val" / "a.png", scene(90, 400, 300))
    for name, text in (("a.pgw", "0.5\n0\n0\n-0.5\n500000\n5400000\n"), ("a.prj", "EPSG:32632")):
        (tmp_path / "e" / "val" / name).write_text(text)
    plain = {"layout": {"images": ["**/*.png"]}, "splits": {"val": {"images": ["val/*.png"]}}}
    about = Collection.model_validate({**source_of("e")["collection"], **plain})
    seen = {}
    for name, way in (("grid", {"grid": {"size_px": 64}}), ("random", {"random": {"side_px": [64, 64], "crops": 2}})):
        for gsd_m in (None, 1.0):
            recipe = recipe_of("a", exclude={"rules": []}, slice={**way, "gsd_m": gsd_m})
            held = sign(tmp_path / "e", tmp_path / "x.list", recipe, about=about, split="val")
            whole = [row for row in held.entries.to_pylist() if row["window"] is None]
            seen[name, gsd_m] = [(row["pixel_digest"], len(row["footprint"])) for row in whole]
    assert seen["grid", 1.0] == seen["random", 1.0] != seen["grid", None] == seen["random", None]
    assert {places for rows in seen.values() for _, places in rows} == {8}
