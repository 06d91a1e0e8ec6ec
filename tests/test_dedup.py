"""Duplicates: which of several alike is kept, at the level of images and of tiles, and what it takes over."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from pydantic import ValidationError
from rasterio.transform import from_origin
from worlds import digests, geotiff, recipe_of, scene, source_of, work_done

import datakit
from datakit import measure, merge
from datakit.crowd import read_crowd
from datakit.inherit import CHANGES, NEEDS, inherited
from datakit.looks import TURNS, Looks, turn
from datakit.manifest import Manifest
from datakit.merge import Merged
from datakit.recipe import Recipe
from datakit.sample import SCHEMA, Sample, Window, key_id, make_key, to_table
from datakit.stages.dedup import Dedup, Facts, Windows, lexsorted, order, overlap_share
from datakit.windows import overlap_share as one_overlap_share

Row = dict[str, Any]
FLIPS = {
    "left-right": Image.Transpose.FLIP_LEFT_RIGHT,
    "up-down": Image.Transpose.FLIP_TOP_BOTTOM,
    "turned 180": Image.Transpose.ROTATE_180,
    "transposed": Image.Transpose.TRANSPOSE,
    "turned 90": Image.Transpose.ROTATE_90,
    "turned 270": Image.Transpose.ROTATE_270,
    "transversed": Image.Transpose.TRANSVERSE,
}
SLICE = {"grid": {"size_px": 256}}
ALL = {"rules": [{"rule": "bands", "allow": ["red", "green", "blue"]}]}  # flat pictures stay in


def put(path: Path, pixels: NDArray[np.uint8] | Image.Image, **how: Any) -> None:
    """A picture as a file of the kind that its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **how)


def read(out: Path, table: str = "samples") -> list[Row]:
    rows: list[Row] = pq.read_table(out / f"{table}.parquet").to_pylist()
    return rows


def where(row: Row) -> str:
    """A record in words: source/name@window."""
    return f"{row['source']}/{row['name']}" + (f"@{','.join(map(str, row['window']))}" if row["window"] else "")


def kept(out: Path) -> set[str]:
    return {where(row) for row in read(out)}


def lost(out: Path, stage: str = "dedup") -> dict[str, Row]:
    return {where(row): row for row in read(out, "dropped") if row["stage"] == stage}


def build(names: Sequence[str], data: Path, out: Path, work: Path | None = None, **stages: Any) -> Manifest:
    stages = {"exclude": ALL, "slice": SLICE, "dedup": {}, **stages}
    return datakit.build(recipe_of(*names, **stages), data=data, out=out, work=work, workers=0)


def check_law(out: Path) -> int:
    """Every removed record is within the radius of what it lost to, and agrees with it; gives how many there are."""
    recipe = Recipe.model_validate(Manifest.load(out).recipe)
    spec = recipe.dedup
    assert spec is not None
    rows = read(out) + read(out, "dropped")
    tiles = {row["key"]: row for row in rows if row["signatures"]}
    images = {make_key(row["source"], row["name"]): row for row in rows if row["signatures"]}
    stays = {row["key"] for row in read(out)} | {make_key(row["source"], row["name"]) for row in read(out)}
    for row in lost(out).values():
        scene_ = row["dropped"] == "duplicate_scene" or (not row["window"] and row["lost_to"] in images)
        star = (images if scene_ else tiles)[row["lost_to"]]
        named = ("scene_signatures", "scene_thumbnail", "scene_digest", "scene_entropy_bits")
        named = named if scene_ else ("signatures", "thumbnail", "pixel_digest", "entropy_bits")
        (one, thumb, pixels, entropy), (other, its, same, _) = ([r[n] for n in named] for r in (row, star))
        if entropy < spec.flat_entropy_bits:
            assert (pixels, row["distance_bits"], row["turned"]) == (same, 0, "")
            continue
        place = TURNS.index(row["turned"])
        assert place == 0 or spec.orientations
        assert row["distance_bits"] == (other[place] ^ one[0]).bit_count() <= spec.radius_bits
        if not scene_ and where(row).partition("@")[0] == where(star).partition("@")[0]:
            assert one_overlap_share(Window(*row["window"]), [Window(*star["window"])]) >= spec.overlap_share
            continue
        its = turn(np.frombuffer(its, np.uint8).reshape(1, 8, 8, 3), place).astype(int)
        assert np.abs(its - np.frombuffer(thumb, np.uint8).reshape(1, 8, 8, 3)).mean() <= spec.thumbnail_levels
        assert row["lost_to"] in stays
    return len(lost(out))


# copies of all kinds


class Built(NamedTuple):
    data: Path
    out: Path
    work: Path


PLAIN, CITY, TILE = scene(0, 200, 160), scene(2, 600, 500), Window(256, 0, 256, 256)


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A source, and another one that has copies of its images in every form, and some of its own."""
    data = tmp_path_factory.mktemp("copies")
    plain, city = Image.fromarray(PLAIN), Image.fromarray(CITY)
    put(data / "first" / "plain.png", plain)
    put(data / "first" / "city.png", city)
    put(data / "first" / "own.png", scene(20, 240, 240))
    second = data / "second"
    put(second / "same.png", plain, compress_level=1)
    put(second / "same.tif", plain)
    put(second / "q50.jpg", plain, quality=50)
    put(second / "half.png", plain.resize((100, 80), Image.Resampling.BICUBIC))
    put(second / "double.jpg", plain.resize((400, 320), Image.Resampling.BICUBIC), quality=90)  # in tiles
    for name, flip in FLIPS.items():
        put(second / f"{name}.png", plain.transpose(flip))
    put(second / "city.jpg", city, quality=85)
    put(second / "city-half.png", city.resize((300, 250), Image.Resampling.LANCZOS))
    put(second / "city-small.png", city.resize((240, 200), Image.Resampling.LANCZOS))  # passes whole
    put(second / "city-flipped.png", city.transpose(FLIPS["turned 90"]))
    put(second / "tile.png", CITY[TILE.top :, TILE.left :][: TILE.height, : TILE.width])
    put(second / "tile-flipped.png", CITY[:256, :256][:, ::-1])
    put(second / "other.png", scene(21, 200, 160))
    put(second / "crop.png", PLAIN[:, 60:])  # what nobody claims to see
    work = data / "work"
    build(("first", "second"), data, data / "out", work, prefer=["source"])
    return Built(data, data / "out", work)


@pytest.fixture(scope="module")
def any_way_up(copies: Built) -> Path:
    """The same with flips and rotations."""
    out = copies.data / "turned"
    build(("first", "second"), copies.data, out, copies.work, prefer=["source"], dedup={"orientations": True})
    return out


@pytest.mark.parametrize("name", ["same.png", "same.tif", "q50.jpg", "half.png"])
def test_a_copy_in_another_source_goes(copies: Built, name: str) -> None:
    row = lost(copies.out)[f"second/{name}"]
    assert (row["dropped"], row["lost_to"], row["turned"]) == ("duplicate", make_key("first", "plain.png"), "")
    assert row["distance_bits"] <= (0 if name.startswith("same") else 4)


def test_an_image_goes_with_all_its_windows_and_names_the_image_that_was_kept(copies: Built) -> None:
    goes = lost(copies.out)
    for name, n, image in (
        ("city.jpg", 6, "city.png"),
        ("city-half.png", 2, "city.png"),
        ("double.jpg", 4, "plain.png"),
    ):
        rows = [row for place, row in goes.items() if place.startswith(f"second/{name}@")]
        assert len(rows) == n
        assert {row["dropped"] for row in rows} == {"duplicate_scene"}
        assert {row["lost_to"] for row in rows} == {make_key("first", image)}
        assert not [place for place in kept(copies.out) if place.startswith(f"second/{name}")]
    small = goes["second/city-small.png"]  # no window itself, and its star is in windows
    assert (small["dropped"], small["lost_to"]) == ("duplicate", make_key("first", "city.png"))
    assert sum(place.startswith("first/city.png@") for place in kept(copies.out)) == 6


def test_an_image_that_is_a_tile_of_another_goes(copies: Built) -> None:
    row = lost(copies.out)["second/tile.png"]
    assert row["dropped"] == "duplicate"
    assert row["lost_to"] == make_key("first", "city.png", TILE)
    assert (row["distance_bits"], row["turned"]) == (0, "")


def test_what_is_not_alike_stays(copies: Built, any_way_up: Path) -> None:
    for out in (copies.out, any_way_up):
        assert {"first/plain.png", "first/own.png", "second/other.png", "second/crop.png"} <= kept(out)


@pytest.mark.parametrize("name", FLIPS)
def test_flips_and_rotations_go_on_request(copies: Built, any_way_up: Path, name: str) -> None:
    assert f"second/{name}.png" in kept(copies.out)
    row = lost(any_way_up)[f"second/{name}.png"]
    assert (row["dropped"], row["lost_to"]) == ("duplicate", make_key("first", "plain.png"))
    assert row["turned"] == name  # how the kept one is turned to look like it


def test_flipped_scenes_and_tiles_go_on_request(copies: Built, any_way_up: Path) -> None:
    assert sum(place.startswith("second/city-flipped.png@") for place in kept(copies.out)) == 6
    assert "second/tile-flipped.png" in kept(copies.out)
    goes = lost(any_way_up)
    scenes = [row for place, row in goes.items() if place.startswith("second/city-flipped.png@")]
    assert [row["turned"] for row in scenes] == ["turned 90"] * 6
    assert {row["lost_to"] for row in scenes} == {make_key("first", "city.png")}
    tile = goes["second/tile-flipped.png"]
    assert (tile["lost_to"], tile["turned"]) == (make_key("first", "city.png", Window(0, 0, 256, 256)), "left-right")


def test_unflipped_copies_are_told_as_such_where_flips_are_found(any_way_up: Path) -> None:
    goes = lost(any_way_up)
    for name in ("same.png", "same.tif", "q50.jpg", "half.png", "tile.png"):
        assert goes[f"second/{name}"]["turned"] == ""


def test_every_removed_record_is_within_the_radius_of_its_star(copies: Built, any_way_up: Path) -> None:
    assert check_law(copies.out) == 18
    assert check_law(any_way_up) == 18 + 7 + 6 + 1


def test_what_came_in_is_what_stayed_and_what_went(copies: Built) -> None:
    manifest = Manifest.load(copies.out)
    counted = [c for c in manifest.counts if c.stage == "dedup"]
    assert [c.source for c in counted] == ["first", "second"]
    for c in counted:
        assert c.came == c.left + sum(c.dropped.values())
        assert c.left == c.made == sum(place.startswith(f"{c.source}/") for place in kept(copies.out))
    assert counted[1].dropped == {"duplicate": 6, "duplicate_scene": 12}
    assert all(row["detail"] == "" and row["lost_to"] for row in lost(copies.out).values())


def test_dedup_json_says_what_was_compared_and_found(copies: Built, any_way_up: Path) -> None:
    plain, turned = (json.loads((out / "dedup.json").read_text()) for out in (copies.out, any_way_up))
    assert plain["radius_bits"] == 4
    assert plain["prefer"] == ["source"]
    assert plain["goes"] == {"second": 18}
    assert plain["images"]["compared"] == 3 + 20
    images = {row["name"] for row in lost(copies.out).values()}  # each is one duplicate, with its tiles or alone
    assert plain["images"]["duplicates"] + plain["tiles"]["duplicates"] == len(images) == 9
    groups: Counter[str] = Counter()
    for level in ("images", "tiles"):
        groups.update({group["key"]: group["duplicates"] for group in plain[level]["largest"]})
    assert groups == {make_key("first", "plain.png"): 5, make_key("first", "city.png"): 3,
                      make_key("first", "city.png", TILE): 1}  # fmt: skip
    assert plain["conflicts"] == []
    assert any("crop" in line for line in plain["cannot_see"])
    expected = turned["images"]["random_matches_expected"]
    assert expected == pytest.approx(8 * plain["images"]["random_matches_expected"])
    assert 0 < expected < 1e-6


def test_the_manifest_vouches_for_dedup_json_and_the_card_tells_of_it(copies: Built) -> None:
    assert Manifest.load(copies.out).files["dedup.json"] == digests(copies.out)["dedup.json"]
    card = (copies.out / "README.md").read_text()
    assert "18 tiles, those of" in card
    assert "went as duplicates" in card
    assert "crop of 90 %" in card


def test_report_counts_the_same_and_removes_nothing(copies: Built, tmp_path: Path) -> None:
    names, out = ("first", "second"), tmp_path / "out"
    manifest = build(names, copies.data, out, copies.work, prefer=["source"], dedup={"action": "report"})
    assert not lost(out)
    assert manifest.samples == len(kept(copies.out)) + 18
    assert manifest.counts[-2].dropped == {}
    reported = {row["key"]: row for row in read(out, "duplicates")}
    would = {row["key"]: row for row in lost(copies.out).values()}
    facts = ("source", "dropped", "lost_to", "distance_bits", "turned")
    assert {k: [r[f] for f in facts] for k, r in reported.items()} == {
        k: [r[f] for f in facts] for k, r in would.items()
    }
    told = json.loads((out / "dedup.json").read_text())
    assert told["goes"] == {"second": 18}
    assert "all are still here" in (out / "README.md").read_text()
    assert manifest.files["duplicates.parquet"] == digests(out)["duplicates.parquet"]
    assert all(row["also"] == "[]" for row in read(out))


# preference


class Pair(NamedTuple):
    """Two pictures that are alike but for what one order of preference looks at."""

    better: str
    worse: str


def pairs_of(prefer: str) -> list[Pair]:
    """Each pair twice, the better in one source and in the other: ids cannot be what decides."""
    better, worse = {
        "labelled": ("port/labelled.png", "unlabelled.png"),
        "larger": ("large.png", "small.png"),
        "sharper": ("sharp.png", "soft.png"),
        "finer": ("fine.tif", "coarse.tif"),
        "valid": ("full.tif", "partial.tif"),
        "lossless": ("exact.png", "lossy.jpg"),
    }[prefer]
    return [Pair(f"{a}/{n}-{better}" if "/" not in better else f"{a}/{n}/{better}", f"{b}/{n}-{worse}")
            for n, (a, b) in enumerate((("one", "two"), ("two", "one")))]  # fmt: skip


PREFER = ("labelled", "larger", "sharper", "finer", "valid", "lossless")


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs for each order of preference, and exact copies."""
    data = tmp_path_factory.mktemp("alike")
    for k, prefer in enumerate(PREFER):
        for n, (better, worse) in enumerate(pairs_of(prefer)):
            pixels = scene(60 + 2 * k + n, 200, 160)
            image = Image.fromarray(pixels)
            if prefer == "labelled":
                put(data / better, image)
                put(data / worse, image.resize((220, 176), Image.Resampling.BICUBIC))  # larger, and yet
            elif prefer == "larger":
                put(data / better, image)
                put(data / worse, image.resize((120, 96), Image.Resampling.BICUBIC))
            elif prefer == "sharper":
                put(data / better, image)
                put(data / worse, image.filter(ImageFilter.GaussianBlur(1)))
            elif prefer == "finer":
                geotiff(data / better, pixels, transform=from_origin(500000, 5400000, 0.3, 0.3))
                geotiff(data / worse, pixels)
            elif prefer == "valid":
                geotiff(data / better, pixels)
                pixels = pixels.copy()
                pixels[:, :2] = 0
                geotiff(data / worse, pixels, nodata=0)
            else:
                put(data / better, image)
                put(data / worse, image, quality=95)
    for n in range(6):
        for source in ("one", "two"):
            put(data / source / f"copy{n}.png", scene(90 + n, 160, 140))
    return data


def prefers(data: Path, tmp_path: Path, *prefer: str, names: Sequence[str] = ("one", "two")) -> Path:
    out = tmp_path / "-".join((*prefer, *names, "out"))
    build(names, data, out, data / "work", prefer=list(prefer))
    return out


@pytest.mark.parametrize("prefer", PREFER)
def test_the_better_one_is_kept_wherever_it_lies(alike: Path, tmp_path: Path, prefer: str) -> None:
    out = prefers(alike, tmp_path, prefer)
    goes = lost(out)
    for better, worse in pairs_of(prefer):
        assert better in kept(out)
        assert goes[worse]["lost_to"] == make_key(*better.split("/", 1))
    assert check_law(out) == 2 * len(PREFER) + 6


def test_ties_go_by_id(alike: Path, tmp_path: Path) -> None:
    for prefer in ((), ("larger", "sharper", "lossless")):
        out = prefers(alike, tmp_path, *prefer)
        for n in range(6):
            one, two = (key_id(make_key(source, f"copy{n}.png")) for source in ("one", "two"))
            assert f"{'one' if one < two else 'two'}/copy{n}.png" in kept(out)
            assert f"{'two' if one < two else 'one'}/copy{n}.png" in lost(out)


def test_source_is_the_order_of_the_recipe(alike: Path, tmp_path: Path) -> None:
    for names in (("one", "two"), ("two", "one")):
        out = prefers(alike, tmp_path, "source", names=names)
        assert {row["source"] for row in lost(out).values()} == {names[1]}


def test_orders_are_looked_at_one_after_the_other(alike: Path, tmp_path: Path) -> None:
    labelled = prefers(alike, tmp_path, "labelled", "larger", "source")
    larger = prefers(alike, tmp_path, "larger", "labelled", "source")
    for better, worse in pairs_of("labelled"):
        assert {better, worse} & kept(labelled) == {better}
        assert {better, worse} & kept(larger) == {worse}
    for better, _ in pairs_of("larger"):
        assert better in kept(labelled) & kept(larger)


FACTS = st.lists(
    st.tuples(
        st.integers(0, 2), st.booleans(), st.integers(1, 3), st.sampled_from([0.0, 1.5, 2.5]),
        st.sampled_from([0.3, 0.5, np.inf]), st.sampled_from([0.5, 1.0]), st.booleans(),
    ),
    min_size=1, max_size=12,
)  # fmt: skip
ORDERS = st.lists(st.sampled_from(["source", *PREFER]), unique=True)


def facts_of(rows: list[tuple[Any, ...]], ids: list[int]) -> Facts:
    kinds = (np.int64, bool, np.int64, float, float, float, bool)
    columns = [np.array(c, kind) for c, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
    return Facts(np.array(ids, np.int64), *columns)


@given(FACTS, ORDERS, st.integers(0, 2**32 - 1))
def test_the_order_is_total_and_ends_in_id(rows: list[tuple[Any, ...]], prefer: list[Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(len(rows)).tolist()
    facts = facts_of(rows, ids)

    def rank(n: int) -> tuple[float, ...]:
        source, labelled, px, sharp, gsd, valid, lossless = rows[n]
        best = {"source": source, "labelled": -labelled, "larger": -px, "sharper": -sharp, "finer": gsd,
                "valid": -valid, "lossless": -lossless}  # fmt: skip
        return (*(float(best[name]) for name in prefer), ids[n])

    found = order(facts, prefer).tolist()
    assert found == sorted(range(len(rows)), key=rank)
    shuffled = rng.permutation(len(rows))
    again = order(Facts(*(column[shuffled] for column in facts)), prefer)
    assert shuffled[again].tolist() == found


# windows of one image

WINDOW = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 20), st.integers(1, 20))


@given(st.lists(st.tuples(WINDOW, WINDOW), min_size=1, max_size=8))
def test_overlap_of_many_windows_is_that_of_each(pairs: list[tuple[Any, Any]]) -> None:
    one, other = (np.array([pair[n] for pair in pairs], np.int32) for n in (0, 1))
    each = [one_overlap_share(Window(*a), [Window(*b)]) for a, b in pairs]
    assert overlap_share(one, other).tolist() == each
    assert overlap_share(other, one).tolist() == each


def test_overlap_of_huge_windows_does_not_overflow() -> None:
    one, other = np.array([[0, 0, 60_000, 60_000]], np.int32), np.array([[30_000, 0, 60_000, 60_000]], np.int32)
    assert overlap_share(one, other).tolist() == [0.5]


@pytest.fixture(scope="module")
def texture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A texture that repeats, so that each window of it looks like each other, and one period of it."""
    data = tmp_path_factory.mktemp("texture")
    period = scene(33, 256, 256)
    put(data / "texture" / "field.png", np.tile(period, (2, 3, 1)))
    put(data / "texture" / "other.png", scene(34, 300, 300))
    put(data / "single" / "period.png", period)
    return data


def test_windows_of_one_image_that_only_look_alike_are_kept(texture: Path, tmp_path: Path) -> None:
    build(("texture",), texture, tmp_path / "out", texture / "work")
    rows = [row for row in read(tmp_path / "out") if row["name"] == "field.png"]
    assert len(rows) == 6
    assert len({row["pixel_digest"] for row in rows}) == 1
    assert not lost(tmp_path / "out")


def test_but_all_of_them_lose_to_a_tile_of_another_image(texture: Path, tmp_path: Path) -> None:
    names = ("single", "texture")
    build(names, texture, tmp_path / "out", texture / "work", prefer=["source"])
    assert {row["lost_to"] for row in lost(tmp_path / "out").values()} == {make_key("single", "period.png")}
    assert len(lost(tmp_path / "out")) == 6
    build(names[::-1], texture, tmp_path / "other", texture / "work", prefer=["source"])
    assert set(lost(tmp_path / "other")) == {"single/period.png"}
    assert sum(place.startswith("texture/field.png@") for place in kept(tmp_path / "other")) == 6


def check_windows(out: Path, radius_bits: int, share: float) -> None:
    """Of the windows of one image that are kept no two are alike and share that much of their source pixels."""
    rows = read(out)
    assert len({row["name"] for row in rows}) == 1
    for n, row in enumerate(rows):
        for other in rows[:n]:
            near = (row["signatures"][0] ^ other["signatures"][0]).bit_count() <= radius_bits
            assert not near or one_overlap_share(Window(*row["window"]), [Window(*other["window"])]) < share


@pytest.mark.parametrize(("share", "least"), [(0.75, 2), (0.99, 1), (1.0, 0)])
def test_windows_that_overlap_are_one_if_they_share_enough_source_pixels(
    tmp_path: Path, share: float, least: int
) -> None:
    put(tmp_path / "data" / "near" / "a.png", scene(35, 262, 256))
    way = {"grid": {"size_px": 256, "gap_px": 254}}  # at 0, 2, 4 and 6 px: 99.2, 98.4 and 97.7 % in common
    spec = {"overlap_share": share, "radius_bits": 6}
    build(("near",), tmp_path / "data", tmp_path / "out", slice=way, prefer=["source"], dedup=spec)
    check_windows(tmp_path / "out", 6, share)
    assert check_law(tmp_path / "out") == 4 - len(kept(tmp_path / "out")) >= least
    if share == 1.0:
        assert len(kept(tmp_path / "out")) == 4


def test_random_windows_that_share_much_and_look_alike_go(tmp_path: Path) -> None:
    put(tmp_path / "data" / "near" / "a.png", scene(36, 150, 140))
    way = {"side_px": [128, 136], "crops": 60, "max_overlap_share": 0.999, "whole_if_side_at_most_px": 0}
    spec = {"overlap_share": 0.9, "radius_bits": 6}
    build(("near",), tmp_path / "data", tmp_path / "out", slice={"random": way}, dedup=spec)
    check_windows(tmp_path / "out", 6, 0.9)
    assert check_law(tmp_path / "out") > 10


def test_windows_of_one_image_are_not_compared_turned(tmp_path: Path) -> None:
    """A picture that is its own mirror image, in two windows that share all but 4 px: only as they lie."""
    half = scene(37, 130, 256)
    both = np.concatenate([half, half[:, ::-1]], axis=1)
    put(tmp_path / "data" / "mirror" / "a.png", both)
    way = {"grid": {"size_px": 256, "gap_px": 252}}  # windows at 0 and 4: each the mirror image of the other
    build(("mirror",), tmp_path / "data", tmp_path / "out", slice=way, dedup={"orientations": True, "radius_bits": 0})
    assert len(kept(tmp_path / "out")) == 2


# flat pictures


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour, and nearly so."""
    data = tmp_path_factory.mktemp("flat")
    for source in ("one", "two"):
        put(data / source / "green.png", Image.new("RGB", (160, 120), (60, 120, 60)))
    put(data / "one" / "green-again.png", Image.new("RGB", (160, 120), (60, 120, 60)), compress_level=1)
    put(data / "one" / "green-larger.png", Image.new("RGB", (161, 120), (60, 120, 60)))
    put(data / "one" / "lime.png", Image.new("RGB", (160, 120), (61, 120, 60)))
    put(data / "two" / "gray.png", Image.new("RGB", (160, 120), (127, 127, 127)))
    rng = np.random.default_rng(0)
    fog = (128 + rng.integers(0, 3, (160, 200, 1)) * np.ones(3)).astype(np.uint8)
    put(data / "one" / "fog.png", fog)
    put(data / "two" / "fog-same.tif", fog)
    fog = fog.copy()
    fog[0, 0] += 1
    put(data / "two" / "fog-other.png", fog)
    build(("one", "two"), data, data / "out", data / "work", prefer=["source"])
    return data


def test_flat_pictures_share_a_signature(flat: Path) -> None:
    rows = [row for row in read(flat / "out") if "fog" not in row["name"]]
    assert {row["signatures"][0] for row in rows} == {2**64 - 1}
    assert len(rows) == 4


def test_flat_pictures_merge_only_on_equal_pixels(flat: Path) -> None:
    goes = lost(flat / "out")
    star = {row["lost_to"] for place, row in goes.items() if "green" in place}
    assert star < {make_key("one", "green.png"), make_key("one", "green-again.png")}
    assert len(star) == 1
    assert {place for place in goes if "green" not in place} == {"two/fog-same.tif"}
    assert {"one/green-larger.png", "one/lime.png", "two/gray.png", "one/fog.png", "two/fog-other.png"} < kept(
        flat / "out"
    )
    assert check_law(flat / "out") == 3


def test_what_counts_as_flat_is_the_recipes(flat: Path, tmp_path: Path) -> None:
    build(("one", "two"), flat, tmp_path / "out", flat / "work", prefer=["source"], dedup={"flat_entropy_bits": 0.5})
    assert {place for place in lost(tmp_path / "out") if "fog" in place} == {"two/fog-same.tif", "two/fog-other.png"}
    assert len([place for place in lost(tmp_path / "out") if "green" in place]) == 2


# stars, not chains


def between(one: NDArray[np.uint8], other: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    return np.round(one * (1 - share) + other * share).astype(np.uint8)


def chain(width: int, height: int) -> list[NDArray[np.uint8]]:
    """Three pictures: the second is within 4 bits of both others, which are farther from each other."""
    for seed in range(10):
        one, far = scene(seed, width, height), scene(seed + 50, width, height)
        some = [between(one, far, k / 100) for k in range(26)]
        hashes = [measure.phash(picture) for picture in some]
        for b in range(26):
            for c in range(b, 26):
                ab, bc, ac = ((hashes[i] ^ hashes[j]).bit_count() for i, j in ((0, b), (b, c), (0, c)))
                if 2 <= ab <= 4 and 2 <= bc <= 4 and ac > 4:
                    return [one, some[b], some[c]]
    raise AssertionError("no such pictures")


@pytest.mark.parametrize(("first", "stays"), [("a", {"a", "c"}), ("b", {"b"}), ("c", {"a", "c"})])
def test_a_chain_of_look_alikes_is_not_one_group(tmp_path: Path, first: str, stays: set[str]) -> None:
    for name, pixels in zip("abc", chain(200, 160), strict=True):
        put(tmp_path / "data" / f"source_{name}" / f"{name}.png", pixels)
    names = [f"source_{name}" for name in (first, *sorted(set("abc") - {first}))]
    build(names, tmp_path / "data", tmp_path / "out", prefer=["source"])
    assert {place[-5] for place in kept(tmp_path / "out")} == stays
    assert check_law(tmp_path / "out") == 3 - len(stays)


def test_what_goes_as_an_image_is_like_a_record_that_is_kept_in_the_end(tmp_path: Path) -> None:
    """Of three equal pictures the one that the two others lose to is a tile: found after images were compared."""
    data = tmp_path / "data"
    put(data / "large" / "scene.png", CITY)
    put(data / "middle" / "tile.png", CITY[:256, 256:512])
    put(data / "small" / "tile.jpg", CITY[:256, 256:512], quality=80)
    build(("large", "middle", "small"), data, tmp_path / "out", prefer=["source"])
    assert set(lost(tmp_path / "out")) == {"middle/tile.png", "small/tile.jpg"}
    assert check_law(tmp_path / "out") == 2


def test_a_chain_across_images_and_tiles_is_not_one_group(tmp_path: Path) -> None:
    """A tile, a look-alike of it that passes whole, and a look-alike of that: it is not like the tile, and stays."""
    data = tmp_path / "data"
    tile, near, far = chain(256, 256)
    put(data / "large" / "scene.png", np.concatenate([tile, scene(48, 200, 256)], axis=1))
    put(data / "middle" / "near.png", near)
    put(data / "small" / "far.png", far)
    build(("large", "middle", "small"), data, tmp_path / "out", prefer=["source"])
    assert lost(tmp_path / "out")["middle/near.png"]["lost_to"] == make_key(
        "large", "scene.png", Window(0, 0, 256, 256)
    )
    assert "small/far.png" in kept(tmp_path / "out")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two look-alikes that pass whole, and a large image that is like the second alone, by source."""
    data = tmp_path_factory.mktemp("mixed")
    one, near, far = chain(200, 160)
    put(data / "first" / "one.png", one)
    put(data / "second" / "near.png", near)
    put(data / "third" / "far.png", Image.fromarray(far).resize((400, 320), Image.Resampling.BICUBIC))
    build(("first", "second", "third"), data, data / "out", prefer=["source"])
    return data / "out"


def test_a_chain_of_whole_and_large_images_is_not_one_group(mixed: Path) -> None:
    check_law(mixed)
    assert "second/near.png" in kept(mixed) or sum(place.startswith("third/far.png@") for place in kept(mixed)) == 4


def test_what_no_preferred_record_is_like_is_kept(mixed: Path) -> None:
    """Nothing goes for a record that the recipe prefers less: the best of the three is never lost."""
    assert "first/one.png" in kept(mixed)


# the stage on arrays, against one by one


def some_looks(rng: np.random.Generator, n: int, flips: int = 3) -> Looks:
    """Pictures in clusters: few signatures with a few bits changed, few thumbnails with some levels added."""
    looks = Looks.empty(n)
    base = rng.integers(0, 2**63, (3, 8)).astype(np.uint64)
    looks.signatures[:] = base[rng.integers(0, 3, n)]
    for _ in range(flips):
        looks.signatures[:] ^= np.uint64(1) << rng.integers(0, 64, (n, 8)).astype(np.uint64)
    looks.signatures[:, 1] = np.roll(looks.signatures[:, 0], 1)  # some look like others, turned
    levels = rng.integers(0, 200, (2, 8, 8, 3))
    looks.thumbnails[:] = levels[rng.integers(0, 2, n)] + rng.integers(0, 20, (n, 1, 1, 1))
    looks.thumbnails[:] = np.where(rng.random((n, 1, 1, 1)) < 0.2, 100, looks.thumbnails)
    looks.entropy_bits[:] = np.where(rng.random(n) < 0.2, 1.0, 6.0)
    looks.digests[:] = np.array([b"%016d" % d for d in rng.integers(0, 4, n)])
    return looks


def one_by_one(spec: Dedup, looks: Looks, by: NDArray[np.int64], windows: Windows | None) -> dict[int, tuple[int, ...]]:
    """What the stage promises, in plain words: of each row the star, and how it lies."""
    stars: dict[int, tuple[int, ...]] = {}
    heads: list[int] = []
    flat = looks.entropy_bits < spec.flat_entropy_bits
    for row in by.tolist():
        found: tuple[int, ...] | None = None
        for head in heads:
            if flat[row] or flat[head]:
                if flat[row] and flat[head] and looks.digests[row] == looks.digests[head]:
                    found = (head, 0, 0)
            else:
                places = []
                for place in range(8 if spec.orientations else 1):
                    bits = int(looks.signatures[head, place] ^ looks.signatures[row, 0]).bit_count()
                    thumb = turn(looks.thumbnails[head][None], place).astype(int)
                    yes = np.abs(thumb - looks.thumbnails[row]).mean() <= spec.thumbnail_levels
                    if windows and windows.image[head] == windows.image[row]:
                        one, other = (Window(*windows.window[n].tolist()) for n in (head, row))
                        yes = yes and place == 0 and one_overlap_share(one, [other]) >= spec.overlap_share
                    if bits <= spec.radius_bits and yes:
                        places.append((bits, place))
                if places:
                    bits, place = min(places)
                    found = (head, place, bits)
            if found:
                break
        if found:
            stars[row] = found
        else:
            heads.append(row)
    return stars


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.booleans(), st.integers(0, 6), st.booleans())
def test_stars_are_those_found_one_by_one(seed: int, n: int, orientations: bool, radius: int, tiles: bool) -> None:
    rng = np.random.default_rng(seed)
    spec = Dedup(orientations=orientations, radius_bits=radius, thumbnail_levels=6, overlap_share=0.5)
    looks = some_looks(rng, n)
    window = np.concatenate([rng.integers(0, 8, (n, 2)), np.full((n, 2), 8)], axis=1).astype(np.int32)
    windows = Windows(rng.integers(0, 5, n), window) if tiles else None
    by = rng.permutation(n)[: max(n - 3, 1)].astype(np.int64)
    found = spec.find(looks, by, windows)
    wanted = one_by_one(spec, looks, by, windows)
    got = {row: (int(found.kept[row]), int(found.place[row]), int(found.bits[row])) for row in found.lost.tolist()}
    assert got == wanted


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_shuffled_records_are_decided_alike(seed: int, n: int) -> None:
    """The same ids go, for the same stars, whatever the order of the rows."""
    rng = np.random.default_rng(seed)
    looks = some_looks(rng, n)
    rows = [(0, bool(rng.integers(2)), int(rng.integers(1, 3)), 0.0, np.inf, 1.0, False) for _ in range(n)]
    ids = rng.permutation(n).tolist()
    spec, facts = Dedup(orientations=True), facts_of(rows, ids)
    shuffled = rng.permutation(n)
    other = Looks(looks.signatures[shuffled], looks.thumbnails[shuffled], looks.digests[shuffled],
                  looks.entropy_bits[shuffled])  # fmt: skip
    moved = Facts(*(column[shuffled] for column in facts))
    one = spec.find(looks, order(facts, ["labelled", "larger"]))
    two = spec.find(other, order(moved, ["labelled", "larger"]))
    told = {ids[n]: (ids[one.kept[n]], int(one.place[n]), int(one.bits[n])) for n in one.lost.tolist()}
    again = {int(moved.id[n]): (int(moved.id[two.kept[n]]), int(two.place[n]), int(two.bits[n])) for n in two.lost}
    assert told == again


def some_records(rng: np.random.Generator, images: int) -> list[list[Sample]]:
    """Records of images, whole or in windows, whose looks are few and near each other, at both levels."""
    looks = some_looks(rng, 4 * images)
    sliced = rng.random(images) < 0.4
    out = []
    for n in range(images):

        def named(names: tuple[str, ...], row: int) -> dict[str, Any]:
            values = (looks.signatures[row].tolist(), looks.thumbnails[row].tobytes(), bytes(looks.digests[row]),
                      float(looks.entropy_bits[row]))  # fmt: skip
            return dict(zip(names, values, strict=True))

        windows = [Window(x, 0, 64, 64) for x in (0, 16, 64)] if sliced[n] else [None]
        source, name = f"s{rng.integers(3)}", f"i{n}"
        said = {"label": str(rng.choice(["", "port", "river"])), "licences": (f"L{rng.integers(3)}",)}
        records = []
        for k, window in enumerate(windows):
            key = make_key(source, name, window)
            place = {"width": 64, "height": 64, "image_width": 128 if sliced[n] else 64, "image_height": 64}
            measured = named(TILE_COLUMNS, 4 * n + k) | named(SCENE_COLUMNS, 4 * n + (3 if sliced[n] else k))
            facts = {"sharpness": float(rng.integers(3)), "format": "PNG", **said, **place, **measured}
            records.append(Sample(key=key, id=key_id(key), source=source, name=name, window=window, **facts))
        out.append(records)
    return out


def decided(images: list[list[Sample]], spec: dict[str, Any], rng: np.random.Generator) -> Merged:
    """What the stage decides of records that lie in parts in any order; an image is in one part."""
    recipe = recipe_of("s0", "s1", "s2", dedup=spec, prefer=["labelled", "sharper", "source"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = []
        order = rng.permutation(len(images)).tolist()
        for n, some in enumerate((order[: len(order) // 3], order[len(order) // 3 :])):
            rows = [images[i][k] for i in some for k in rng.permutation(len(images[i])).tolist()]
            parts.append(folder / f"s0-{n}.parquet")
            pq.write_table(to_table(rows), parts[-1])
        (folder / "aside").mkdir()
        crowd = read_crowd(parts, recipe.sources, folder / "aside")
        return merge.dedup(recipe, crowd, np.ones(len(crowd), bool), folder, lambda line: None)


TILE_COLUMNS = ("signatures", "thumbnail", "pixel_digest", "entropy_bits")
SCENE_COLUMNS = ("scene_signatures", "scene_thumbnail", "scene_digest", "scene_entropy_bits")


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 14), st.booleans())
def test_at_both_levels_stars_are_kept_and_like_what_went(seed: int, n: int, orientations: bool) -> None:
    """The law for whole records, whatever went at which level; and parts in another order give the same."""
    rng = np.random.default_rng(seed)
    images = some_records(rng, n)
    plain = {"orientations": orientations, "thumbnail_levels": 6}
    merged, again = (decided(images, plain, np.random.default_rng(seed + k)) for k in (1, 2))
    facts = ["key", "dropped", "lost_to", "distance_bits", "turned"]
    assert sorted_rows(merged.lost.select(facts)) == sorted_rows(again.lost.select(facts))
    assert merged.about == again.about
    assert merged.changes.equals(again.changes)
    spec = Dedup(**plain)
    lost_keys = set(merged.lost.column("key").to_pylist())
    everything = {s.key: s for records in images for s in records}
    of_image = {make_key(records[0].source, records[0].name): records for records in images}
    for row in merged.lost.to_pylist():
        mine = everything[row["key"]]
        as_image = row["dropped"] == "duplicate_scene" or row["lost_to"] not in everything
        names = SCENE_COLUMNS if as_image else TILE_COLUMNS
        star = of_image[row["lost_to"]] if row["lost_to"] in of_image else [everything[row["lost_to"]]]
        assert {s.key for s in star} - lost_keys, "nothing of what it lost to is kept"
        one, thumb, pixels, entropy = (getattr(mine, name) for name in names)
        other, its, same, _ = (getattr(star[0], name) for name in names)
        if entropy < spec.flat_entropy_bits:
            assert pixels == same
            continue
        place = TURNS.index(row["turned"])
        assert row["distance_bits"] == (other[place] ^ one[0]).bit_count() <= spec.radius_bits
        if mine.window and star[0].window and (mine.source, mine.name) == (star[0].source, star[0].name):
            assert one_overlap_share(mine.window, [star[0].window]) >= spec.overlap_share
            continue
        its = turn(np.frombuffer(its, np.uint8).reshape(1, 8, 8, 3), place).astype(int)
        assert np.abs(its - np.frombuffer(thumb, np.uint8).reshape(1, 8, 8, 3)).mean() <= spec.thumbnail_levels


def sorted_rows(table: pa.Table) -> list[Row]:
    rows: list[Row] = table.to_pylist()
    return sorted(rows, key=lambda row: str(row["key"]))


def test_records_that_take_no_part_are_no_stars() -> None:
    looks = some_looks(np.random.default_rng(0), 4, flips=0)
    looks.signatures[:], looks.thumbnails[:], looks.entropy_bits[:] = 7, 9, 6.0
    assert Dedup().find(looks, np.array([2, 1], np.int64)).kept.tolist() == [0, 2, 2, 3]
    assert Dedup().find(looks, np.zeros(0, np.int64)).lost.tolist() == []


def test_fields_that_contradict_are_refused() -> None:
    for wrong in ({"signature": "cnn"}, {"cosine": 0.9}, {"signature": "cnn", "cosine": 0.9, "orientations": True},
                  {"overlap_share": 0}, {"radius_bits": 7}, {"action": "keep"}):  # fmt: skip
        with pytest.raises(ValidationError):
            Dedup(**wrong)
    with pytest.raises(ValidationError, match="measure: false"):
        recipe_of("a", dedup={}, cut={"measure": False})
    with pytest.raises(ValidationError):
        recipe_of("a", prefer=["prettier"])


# what is taken over


def with_licence(name: str, licence: str, coco: bool = False) -> dict[str, Any]:
    """A source of that licence, with boxes in a COCO file beside its class folders."""
    source = source_of(name)
    layout = source["collection"]["layout"]
    source["collection"]["licence"] = licence
    if coco:
        layout |= {"label_files": ["coco.json"]}
        layout["labels"].append({"kind": "coco", "path": "coco.json"})
    return source


SHIP = [20, 30, 40, 20]  # left, top, width, height
ROOFS = [[30, 40, 60, 50], [400, 300, 80, 60]]  # in the first window of the large one alone, and in the last one
SOURCES = [
    with_licence("own", "CC-BY-4.0"),
    with_licence("twin", "MIT", coco=True),
    with_licence("third", "CC0-1.0", True),
]


def write_coco(folder: Path, boxes: dict[str, list[tuple[str, list[int]]]]) -> None:
    names = sorted({kind for those in boxes.values() for kind, _ in those})
    images = [{"id": n, "file_name": name} for n, name in enumerate(boxes)]
    notes = [
        {"id": 100 * n + k, "image_id": n, "category_id": names.index(kind), "bbox": box}
        for n, those in enumerate(boxes.values())
        for k, (kind, box) in enumerate(those)
    ]
    categories = [{"id": n, "name": name} for n, name in enumerate(names)]
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))


def make_takeover(data: Path) -> None:
    """Images without labels, and their exact copies in two collections that have some, which contradict each other."""
    large = scene(45, 600, 500)
    pictures = {n: scene(40 + n, 200, 160) for n in range(5)}
    put(data / "own" / "plain.png", pictures[0])
    put(data / "own" / "large.png", large)
    put(data / "own" / "river" / "labelled.png", pictures[1])
    put(data / "own" / "near.png", pictures[2])
    put(data / "own" / "alone.png", pictures[3])
    put(data / "twin" / "port" / "plain-too.png", pictures[0])
    put(data / "twin" / "works" / "large-too.png", large)
    put(data / "twin" / "canal" / "labelled.png", pictures[1])
    put(data / "twin" / "near" / "near.jpg", pictures[2], quality=60)
    put(data / "third" / "harbour" / "plain.png", pictures[0])
    put(data / "third" / "river" / "labelled.png", pictures[1])
    boxes: dict[str, list[tuple[str, list[int]]]] = {
        "port/plain-too.png": [("ship", SHIP)],
        "works/large-too.png": [("roof", b) for b in ROOFS],
        "near/near.jpg": [("ship", SHIP)],
    }
    write_coco(data / "twin", boxes)
    write_coco(data / "third", {"harbour/plain.png": [("boat", [1, 2, 30, 40])]})


def take(data: Path, out: Path, workers: int = 0, **stages: Any) -> Manifest:
    stages = {"sources": SOURCES, "exclude": ALL, "slice": SLICE, "prefer": ["source"], "dedup": {}, **stages}
    return datakit.build(recipe_of(**stages), data=data, out=out, workers=workers)


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("takeover")
    make_takeover(data)
    take(data, data / "out")
    return data


def in_tars(out: Path) -> dict[str, Row]:
    """The JSON of each sample, by where it is."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                if info.name.endswith(".json"):
                    row = json.loads(tar.extractfile(info).read())  # type: ignore[union-attr]
                    whole = row["window"] == [0, 0, row["image_width"], row["image_height"]]
                    found[where({**row, "window": None if whole else row["window"]})] = row
    return found


def test_a_label_and_boxes_come_over_with_their_source(taken: Path) -> None:
    row = in_tars(taken / "out")["own/plain.png"]
    assert (row["label"], row["label_source"]) == ("harbour", "third")  # key third-… sorts before twin-…
    assert row["boxes_source"] == "third"
    assert [box["category"] for box in json.loads(row["boxes"])] == ["boat"]
    assert json.loads(row["licences"]) == ["CC-BY-4.0", "CC0-1.0", "MIT"]
    also = json.loads(row["also"])
    assert [(a["source"], a["label"], a["boxes"], a["licences"]) for a in also] == [
        ("third", "harbour", 1, ["CC0-1.0"]),
        ("twin", "port", 1, ["MIT"]),
    ]
    assert [a["key"] for a in also] == [make_key("third", "harbour/plain.png"), make_key("twin", "port/plain-too.png")]


def test_a_label_of_its_own_stays_and_has_no_source(taken: Path) -> None:
    row = in_tars(taken / "out")["own/river/labelled.png"]
    assert (row["label"], row["label_source"], row["boxes_source"]) == ("river", "", "")
    assert [a["label"] for a in json.loads(row["also"])] == ["river", "canal"]
    assert json.loads(row["licences"]) == ["CC-BY-4.0", "CC0-1.0", "MIT"]


def test_only_exact_duplicates_give(taken: Path) -> None:
    rows = in_tars(taken / "out")
    assert "twin/near/near.jpg" in lost(taken / "out")
    for place in ("own/near.png", "own/alone.png"):
        row = rows[place]
        assert (row["label"], row["boxes"], row["also"], row["label_source"]) == ("", "[]", "[]", "")
        assert json.loads(row["licences"]) == ["CC-BY-4.0"]


def test_tiles_of_a_scene_take_over_the_boxes_of_their_window(taken: Path) -> None:
    tiles = {place: row for place, row in in_tars(taken / "out").items() if place.startswith("own/large.png@")}
    assert len(tiles) == 6
    for row in tiles.values():
        left, top, width, height = row["window"]
        assert (row["label"], row["label_source"]) == ("works", "twin")
        assert json.loads(row["licences"]) == ["CC-BY-4.0", "MIT"]
        boxes = json.loads(row["boxes"])
        assert row["boxes_source"] == ("twin" if boxes else "")
        assert len(json.loads(row["also"])) == 1
        for box, (x, y, w, h) in ((b, r) for r in ROOFS for b in boxes if b["points"][:2] == [r[0] - left, r[1] - top]):
            assert box["category"] == "roof"
            assert (x + w <= left + width, y + h <= top + height) == (True, True)
    assert len(json.loads(tiles["own/large.png@0,0,256,256"]["boxes"])) == 1
    assert sum(bool(json.loads(row["boxes"])) for row in tiles.values()) >= 2


def test_windows_elsewhere_take_over_the_label_and_no_boxes(tmp_path: Path) -> None:
    """Random windows of two equal images lie apart: what is in one's window is not in the other's."""
    data, large = tmp_path / "data", scene(45, 600, 500)
    put(data / "own" / "large.png", large)
    put(data / "twin" / "works" / "large-too.png", large)
    roofs = [("roof", [x, y, 20, 20]) for x in range(0, 600, 100) for y in range(0, 500, 100)]
    write_coco(data / "twin", {"works/large-too.png": roofs})
    way = {"side_px": [150, 240], "crops": 6, "max_overlap_share": 0.7, "whole_if_side_at_most_px": 256}
    sources = [source for source in SOURCES if source["name"] != "third"]
    take(data, tmp_path / "out", slice={"random": way}, sources=sources)
    goes = lost(tmp_path / "out")
    assert goes
    assert all(row["boxes"] != "[]" for row in goes.values())
    for row in read(tmp_path / "out"):
        assert (row["label"], row["label_source"]) == ("works", "twin")
        assert (row["boxes"], row["boxes_source"]) == ("[]", "")
        assert row["licences"] == ["CC-BY-4.0", "MIT"]
        (also,) = json.loads(row["also"])
        assert (also["key"], also["boxes"]) == (make_key("twin", "works/large-too.png"), 0)


def test_tar_and_table_say_the_same(taken: Path) -> None:
    rows = in_tars(taken / "out")
    assert set(rows) == kept(taken / "out")
    for row in read(taken / "out"):
        there = rows[where(row)]
        for name in ("label", "boxes", "label_source", "boxes_source", "also"):
            assert there[name] == row[name], name
        assert json.loads(there["licences"]) == row["licences"]


def test_conflicts_are_listed(taken: Path) -> None:
    told = json.loads((taken / "out" / "dedup.json").read_text())
    assert told["took_over"] == 2 + 6
    conflicts = {(c["what"], c["key"], c["other_source"]): c for c in told["conflicts"]}
    plain, labelled = make_key("own", "plain.png"), make_key("own", "river/labelled.png")
    assert set(conflicts) == {("label", plain, "twin"), ("boxes", plain, "twin"), ("label", labelled, "twin")}
    one = conflicts["label", plain, "twin"]
    assert (one["kept"], one["other"], one["source"]) == ("harbour", "port", "third")
    assert (one["other_key"], one["other_source"]) == (make_key("twin", "port/plain-too.png"), "twin")
    assert conflicts["label", labelled, "twin"]["source"] == "own"
    assert "disagreed on 3 labels or boxes" in (taken / "out" / "README.md").read_text()


def test_dropped_records_keep_what_was_theirs(taken: Path) -> None:
    row = lost(taken / "out")["twin/port/plain-too.png"]
    assert (row["label"], row["licences"], row["also"]) == ("port", ["MIT"], "[]")
    assert len(json.loads(row["boxes"])) == 1


def test_two_workers_decide_alike_and_leave_the_same_bytes(taken: Path, tmp_path: Path) -> None:
    take(taken, tmp_path / "out", workers=2)
    assert digests(tmp_path / "out") == digests(taken / "out")


def test_another_label_of_a_duplicate_changes_the_shard_and_opens_no_image(tmp_path: Path) -> None:
    """The kept record's own part is as it was: what it takes over is part of what its shard is made of."""
    data, out = tmp_path / "data", tmp_path / "out"
    make_takeover(data)
    before = take(data, out).shards[0].sha256
    write_coco(data / "third", {"harbour/plain.png": [("yacht", [1, 2, 30, 40])]})
    after = take(data, out).shards[0].sha256
    assert after != before
    assert "images_opened" not in work_done(out)
    row = in_tars(out)["own/plain.png"]
    assert [box["category"] for box in json.loads(row["boxes"])] == ["yacht"]
    table = {where(r): r for r in read(out)}
    assert table["own/plain.png"]["boxes"] == row["boxes"]
    (data / "third" / "harbour").rename(data / "third" / "marina")
    write_coco(data / "third", {"marina/plain.png": [("yacht", [1, 2, 30, 40])]})
    take(data, out)
    assert in_tars(out)["own/plain.png"]["label"] == "marina"
    take(data, tmp_path / "fresh")
    assert digests(out) == digests(tmp_path / "fresh")


def test_without_dedup_nothing_is_taken_over(taken: Path, tmp_path: Path) -> None:
    take(taken, tmp_path / "out", dedup=None)
    rows = read(tmp_path / "out")
    assert {row["also"] for row in rows} == {"[]"}
    assert {row["label_source"] for row in rows} == {""}
    assert len(rows) == len(read(taken / "out")) + len(lost(taken / "out"))


def test_of_several_kept_records_of_equal_pixels_the_best_takes_over(tmp_path: Path) -> None:
    """A texture's windows are all kept, though equal: its labelled twin gives to one of them, not to each."""
    period = scene(33, 256, 256)
    put(tmp_path / "data" / "own" / "field.png", np.tile(period, (1, 2, 1)))
    put(tmp_path / "data" / "twin" / "meadow" / "period.png", period)
    write_coco(tmp_path / "data" / "twin", {})
    sources = [source for source in SOURCES if source["name"] != "third"]
    take(tmp_path / "data", tmp_path / "out", sources=sources)
    rows = read(tmp_path / "out")
    star = lost(tmp_path / "out")["twin/meadow/period.png"]["lost_to"]
    assert {row["key"]: row["label"] for row in rows} == {row["key"]: "meadow" * (row["key"] == star) for row in rows}


TEXTS = st.sampled_from(["", "a", "b"])
SAID = st.tuples(
    st.integers(0, 99), TEXTS, st.sampled_from(["[]", '[{"label":"x"}]', "[1,2]"]), st.lists(TEXTS, max_size=2)
)


def inherit(own: dict[str, Any], others: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """What `inherited` is to give for one kept record, one duplicate after the other."""
    new = {name: own[name] for name in CHANGES.names}
    conflicts, also = [], []
    for other in others:
        new["licences"] = [*new["licences"], *(name for name in other["licences"] if name not in new["licences"])]
        for what, none in (("label", ""), ("boxes", "[]")):
            if other[what] == none or other[what] == new[what]:
                continue
            if new[what] == none:
                new[what], new[f"{what}_source"] = other[what], other["source"]
            else:
                told = {"kept": new[what], "other": other[what]} if what == "label" else {}
                source = new[f"{what}_source"] or own["source"]
                who = {"key": own["key"], "source": source, "other_key": other["key"], "other_source": other["source"]}
                conflicts.append({"what": what, **who, **told})
        about = {name: other[name] for name in ("key", "source", "label", "licences")}
        also.append({**about, "boxes": len(json.loads(other["boxes"]))})
    return {**new, "also": json.dumps(also)}, conflicts


@given(st.lists(st.tuples(SAID, st.lists(SAID, min_size=1, max_size=4)), min_size=1, max_size=3), st.randoms())
def test_nothing_that_was_said_is_lost(groups: list[tuple[Any, list[Any]]], luck: Any) -> None:
    """Each label and each set of boxes is taken over, equal to what there is, or a conflict."""

    def fact(said: tuple[Any, ...], key: str) -> dict[str, Any]:
        number, label, boxes, licences = said
        blank = {"label_source": "", "boxes_source": "", "also": "[]"}
        return {"id": number, "key": key, "source": f's"{key}', "label": label, "boxes": boxes,
                "licences": licences, **blank}  # fmt: skip

    facts = [
        [fact(said, f"{n}_{m}") for m, said in enumerate([own, *theirs])] for n, (own, theirs) in enumerate(groups)
    ]
    rows = [f for group in facts for f in group]
    luck.shuffle(rows)
    pairs = [(rows.index(own), rows.index(other)) for own, *others in facts for other in others]
    luck.shuffle(pairs)
    schema = pa.schema([SCHEMA.field(name) for name in NEEDS])
    table, conflicts = inherited(pa.Table.from_pylist(rows, schema=schema), *np.array(pairs).T)
    wanted = [inherit(own, others) for own, *others in facts]
    assert table.to_pylist() == [new for new, _ in wanted]
    assert conflicts == [said for _, all_said in wanted for said in all_said]
    for new, (mine, *theirs) in zip(table.to_pylist(), facts, strict=True):
        assert new["id"] == mine["id"]
        assert set(new["licences"]) == {name for f in (mine, *theirs) for name in f["licences"]}
        assert new["licences"][: len(mine["licences"])] == mine["licences"]
        assert [a["key"] for a in json.loads(new["also"])] == [f["key"] for f in theirs]
        for what, none in (("label", ""), ("boxes", "[]")):
            said = [f[what] for f in (mine, *theirs) if f[what] != none]
            assert new[what] == (said[0] if said else none)
            first = next((f for f in theirs if f[what] != none), None)
            assert new[f"{what}_source"] == (first["source"] if first and mine[what] == none else "")
            other = [c["other_key"] for c in conflicts if c["what"] == what and c["key"] == mine["key"]]
            assert other == [f["key"] for f in theirs if f[what] not in (none, new[what])]


KEYS = st.sampled_from([
    [False, True], [0, 1, 5], [-(1 << 62), 0, 1 << 62], [-0.5, -0.0, 0.0, 1e-300, 2.5, float("inf"), float("-inf")],
])  # fmt: skip


@given(st.integers(0, 60), st.lists(KEYS, min_size=1, max_size=5), st.integers(0, 99))
def test_an_order_of_preference_is_that_of_all_its_keys(count: int, kinds: list[list[Any]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = [np.array(kind)[rng.integers(0, len(kind), count)] for kind in kinds]
    assert lexsorted(keys).tolist() == np.lexsort(keys[::-1]).tolist()


# input in another order


def test_files_that_come_later_change_nothing(copies: Built, any_way_up: Path, tmp_path: Path) -> None:
    """A set that grew by some files, in parts of their own, is the set that was made at once."""
    grown, out = grow(copies.data, tmp_path)
    assert grown > 1
    assert json.loads((out / "dedup.json").read_text()) == json.loads((any_way_up / "dedup.json").read_text())
    assert digests(out) == digests(any_way_up)


def test_files_that_come_later_do_not_change_the_order_of_a_report(copies: Built, tmp_path: Path) -> None:
    spec = {"action": "report", "orientations": True}
    _, out = grow(copies.data, tmp_path, **spec)
    build(("first", "second"), copies.data, tmp_path / "fresh", copies.work, prefer=["source"], dedup=spec)
    one, other = read(out, "duplicates"), read(tmp_path / "fresh", "duplicates")
    assert sorted(row["key"] for row in one) == sorted(row["key"] for row in other)
    assert one == other


def grow(world: Path, tmp_path: Path, **spec: Any) -> tuple[int, Path]:
    """Build twice: without the files that sort first, then with them; gives the parts of `second`, and the build."""
    data, out = tmp_path / "data", tmp_path / "out"
    late = ("plain.png", "city.jpg", "q50.jpg", "half.png", "left-right.png")
    for late_ones in (False, True):
        for path in (p for name in ("first", "second") for p in sorted((world / name).iterdir())):
            if (path.name in late) == late_ones:
                (data / path.parent.name).mkdir(parents=True, exist_ok=True)
                (data / path.parent.name / path.name).write_bytes(path.read_bytes())
        build(("first", "second"), data, out, prefer=["source"], dedup={"orientations": True, **spec})
    listed = {p.name.split("-")[1] for p in (tmp_path / "out.work" / "list").rglob("second-*_*.parquet")}
    return len(listed), out


def test_ties_of_the_largest_groups_are_told_by_key(tmp_path: Path) -> None:
    """Two groups of two: which is named first must not depend on which file came first."""
    pictures = {name: scene(70 + n, 160, 140) for n, name in enumerate("zyxa")}

    def add(data: Path, names: str) -> None:
        for name in names:
            put(data / "one" / f"{name}.png", pictures[name])
            put(data / "two" / f"{name}.png", pictures[name])

    add(tmp_path / "data", "zy")
    build(("one", "two"), tmp_path / "data", tmp_path / "out")
    add(tmp_path / "data", "xa")
    build(("one", "two"), tmp_path / "data", tmp_path / "out")
    build(("one", "two"), tmp_path / "data", tmp_path / "fresh")
    grown, fresh = (json.loads((tmp_path / out / "dedup.json").read_text())["images"] for out in ("out", "fresh"))
    assert grown == fresh


def test_jpegs_of_a_jpeg_are_the_bytes_that_were_stored(copies: Built) -> None:
    """What is compared are pixels: a kept JPEG is stored as it is, whatever it was compared with."""
    row = next(row for row in read(copies.out) if where(row) == "second/other.png")
    index = pa.ipc.open_file(copies.out / "index.arrow").read_all().to_pylist()
    place = next(r for r in index if r["key"] == row["key"])
    shard = copies.out / Manifest.load(copies.out).shards[place["shard"]].name
    data = shard.read_bytes()[place["jpg_offset"] :][: place["jpg_bytes"]]
    stored = measure.sign(np.asarray(Image.open(io.BytesIO(data))))
    assert (stored.phashes[0] ^ row["signatures"][0]).bit_count() <= 4
