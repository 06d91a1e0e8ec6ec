"""Pictures of one place at several dates, and products of one acquisition: kept, limited, or entered once."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.transform import from_origin
from test_dedup import some_looks
from worlds import digests, geotiff, recipe_of, scene, work_done

import datakit
from datakit import merge
from datakit.crowd import NO_TIME, families, read_crowd, seconds_of
from datakit.looks import SCENE, TILE, Looks
from datakit.manifest import Collection
from datakit.merge import Merged
from datakit.place import footprints, shifted
from datakit.recipe import Recipe
from datakit.sample import Sample, Window, key_id, make_key, to_table
from datakit.series import whole_footprints

PLACE = r"(site\d+)_"


def recipe(*names: str, about: dict[str, Any] | None = None, **dedup: Any) -> Recipe:
    """A recipe whose collections have labels in DOTA's form, which give dates."""
    plain = recipe_of(*names, exclude={"rules": []}, slice={"grid": {"size_px": 128}}).model_dump(mode="json")
    for source in plain["sources"]:
        source["collection"]["layout"] |= {
            "label_files": ["**/*.txt"],
            "labels": [{"kind": "dota", "path": "{stem}.txt"}],
        }
        source["collection"] |= about or {}
    return Recipe.model_validate({**plain, "prefer": ["source", "larger", "lossless", "sharper"], "dedup": dedup})


def put(path: Path, pixels: Any, day: str = "", ship: bool = False, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        geotiff(path, pixels, **options)
    else:
        Image.fromarray(pixels).save(path, **options)
    if day:
        box = "1 1 9 1 9 9 1 9 ship 0\n" * ship
        path.with_suffix(".txt").write_text(f"imagesource:GoogleEarth\nacquisition dates:{day}\ngsd:0.3\n{box}")


def stays(out: Path) -> set[str]:
    return set(pq.read_table(out / "samples.parquet").column("name").to_pylist())


def keys(out: Path) -> list[str]:
    found: list[str] = pq.read_table(out / "samples.parquet").column("key").to_pylist()
    return found


def reasons(out: Path) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(out / "dropped.parquet").to_pylist()
    return {r["name"]: (r["dropped"], r["lost_to"]) for r in rows if r["dropped"] != "unmatched"}


@pytest.fixture
def visits(tmp_path: Path) -> Path:
    """One place on three days, once as another encoding of the same day, and once with equal pixels; another place."""
    data = tmp_path / "data" / "one"
    picture = scene(1, 200, 160)
    put(data / "site1_a.png", picture, "2018-01-01")
    put(data / "site1_b.jpg", picture, "2018-03-01", quality=70)
    put(data / "site1_c.jpg", picture, "2019-03-01", quality=60)
    put(data / "site1_d.jpg", picture, "2018-01-01", quality=50)
    put(data.parent / "two" / "site1_e.png", picture, "2020-01-01")
    put(data / "site2_a.jpg", picture, "2021-01-01", quality=65)
    put(data / "site3_a.jpg", scene(2, 200, 160), "2021-01-01")
    return tmp_path / "data"


def test_dates_of_one_place_are_kept_unless_their_pixels_are_equal(visits: Path, tmp_path: Path) -> None:
    datakit.build(recipe("one", "two", about={"place": PLACE}), data=visits, out=tmp_path / "out", workers=0)
    assert stays(tmp_path / "out") == {"site1_a.png", "site1_b.jpg", "site1_c.jpg", "site3_a.jpg"}
    key = make_key("one", "site1_a.png")
    assert {name: why for name, (why, _) in reasons(tmp_path / "out").items()} == dict.fromkeys(
        ("site1_d.jpg", "site1_e.png", "site2_a.jpg"), "duplicate_scene"
    )
    assert {to for _, to in reasons(tmp_path / "out").values()} == {key}
    assert json.loads((tmp_path / "out" / "dedup.json").read_text())["spared_in_series"] == 2


def test_without_a_place_dates_do_not_spare(visits: Path, tmp_path: Path) -> None:
    datakit.build(recipe("one", "two"), data=visits, out=tmp_path / "out", workers=0)
    assert stays(tmp_path / "out") == {"site1_a.png", "site3_a.jpg"}


@pytest.mark.parametrize(("days", "left"), [(58, 2), (59, 2), (60, 1), (1000, 0)])
def test_dates_must_be_apart(visits: Path, tmp_path: Path, days: int, left: int) -> None:
    """From 1 January to 1 March 2018 there are 59 days, and to 1 March 2019 another 365."""
    spec = recipe("one", "two", about={"place": PLACE}, min_days=days)
    datakit.build(spec, data=visits, out=tmp_path / "out", workers=0)
    assert len(stays(tmp_path / "out") & {"site1_b.jpg", "site1_c.jpg"}) == left


@pytest.mark.parametrize(("most", "left"), [("one", 1), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_a_series_may_be_cut_to_its_best(visits: Path, tmp_path: Path, most: str | int, left: int) -> None:
    spec = recipe("one", "two", about={"place": PLACE}, series=most)
    datakit.build(spec, data=visits, out=tmp_path / "out", workers=0)
    site = {name for name in stays(tmp_path / "out") if name.startswith("site1")}
    assert len(site) == left
    rows = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    gone = [row for row in rows if row["dropped"] == "series"]
    assert len({row["name"] for row in gone}) == 3 - left
    assert {row["lost_to"] for row in gone} <= set(keys(tmp_path / "out"))


def test_another_choice_of_a_series_opens_no_image(visits: Path, tmp_path: Path) -> None:
    for most in ("keep", "one"):
        spec = recipe("one", "two", about={"place": PLACE}, series=most)
        datakit.build(spec, data=visits, out=tmp_path / "out", workers=0)
    assert "images_opened" not in work_done(tmp_path / "out")


def test_places_on_the_map_tell_a_series_too(tmp_path: Path) -> None:
    data, picture = tmp_path / "data" / "one", scene(3, 200, 160)
    brighter = np.clip(picture.astype(int) + 3, 0, 255).astype(np.uint8)
    put(data / "a.tif", picture, "2018-01-01")
    put(data / "b.tif", brighter, "2018-06-01")
    put(data / "c.tif", brighter, "2018-06-01", transform=from_origin(600000, 5400000, 0.5, 0.5))
    datakit.build(recipe("one"), data=tmp_path / "data", out=tmp_path / "keep", workers=0)
    assert stays(tmp_path / "keep") == {"a.tif", "b.tif"}  # c is b's pixels at another place
    datakit.build(recipe("one", series="one"), data=tmp_path / "data", out=tmp_path / "one", workers=0)
    assert len(stays(tmp_path / "one")) == 1


def brighter(pixels: Any) -> Any:
    return np.clip(pixels.astype(int) + 3, 0, 255).astype(np.uint8)


def at(column: int, row: int = 0) -> Any:
    """A transform that begins so many px east and south of a place."""
    return from_origin(500000 + column / 2, 5400000 - row / 2, 0.5, 0.5)


def test_scenes_that_share_little_share_tiles_of_two_dates(tmp_path: Path) -> None:
    """Two of five columns of tiles: of the images less than half, of those tiles all."""
    data, picture = tmp_path / "data" / "one", scene(3, 128 * 8, 256)
    put(data / "a.tif", picture[:, : 128 * 5], "2018-01-01", transform=at(0))
    put(data / "b.tif", brighter(picture[:, 128 * 3 :]), "2019-06-01", transform=at(128 * 3))
    datakit.build(recipe("one"), data=tmp_path / "data", out=tmp_path / "out", workers=0)
    assert not reasons(tmp_path / "out")
    assert len(keys(tmp_path / "out")) == 20
    assert json.loads((tmp_path / "out" / "dedup.json").read_text())["spared_in_series"] >= 1
    datakit.build(recipe("one", series="one"), data=tmp_path / "data", out=tmp_path / "first", workers=0)
    assert len(keys(tmp_path / "first")) == 16  # the ground that both show goes once, and no more than that


def test_strips_of_one_day_are_one_date(tmp_path: Path) -> None:
    """Dates are counted, not pictures: b is a's day, c is too near to be another date, d is one too many."""
    data = tmp_path / "data" / "one"
    for n, (name, day) in enumerate(
        {"a": "2018-01-01", "b": "2018-01-01", "c": "2018-01-20", "d": "2018-02-20"}.items()
    ):
        put(data / f"{name}.tif", scene(3 + n, 128 * 5, 256), day, ship=name == "a", transform=at(128 * (name == "b")))
    spec = recipe("one", series="one", min_days=30)
    plain = spec.model_dump(mode="json") | {"prefer": ["labelled"]}
    datakit.build(Recipe.model_validate(plain), data=tmp_path / "data", out=tmp_path / "out", workers=0)
    assert stays(tmp_path / "out") == {"a.tif", "b.tif", "c.tif"}
    assert len(keys(tmp_path / "out")) == 30
    assert {name: why for name, (why, _) in reasons(tmp_path / "out").items()} == {"d.tif": "series"}


def test_a_small_picture_does_not_stand_for_a_large_scene(tmp_path: Path) -> None:
    data, picture = tmp_path / "data" / "one", scene(3, 128 * 7, 256)
    put(data / "small.tif", picture[:64, :64], "2018-01-01", ship=True, transform=at(0))
    put(data / "tile.tif", scene(5, 128, 128), "2018-01-01", ship=True, transform=at(128 * 3))
    put(data / "large.tif", brighter(picture), "2019-01-01", transform=at(0))
    plain = recipe("one", series="one").model_dump(mode="json") | {"prefer": ["labelled"]}
    datakit.build(Recipe.model_validate(plain), data=tmp_path / "data", out=tmp_path / "out", workers=0)
    assert stays(tmp_path / "out") == {"small.tif", "tile.tif", "large.tif"}
    rows = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    gone = [(r["name"], r["window"], r["lost_to"]) for r in rows if r["dropped"] == "series"]
    assert gone == [("large.tif", [128 * 3, 0, 128, 128], make_key("one", "tile.tif"))]


def test_so_many_dates_stay_whatever_goes_as_a_duplicate(tmp_path: Path) -> None:
    """Two encodings of a day and another day: two dates, of which two are asked."""
    data, picture = tmp_path / "data" / "one", scene(6, 120, 100)
    put(data / "site1_a.png", picture, "2018-01-01")
    put(data / "site1_b.jpg", picture, "2018-01-01", quality=90)
    put(data / "site1_c.jpg", brighter(picture), "2019-01-01", quality=40)
    spec = recipe("one", about={"place": PLACE}, series=2)
    datakit.build(spec, data=tmp_path / "data", out=tmp_path / "out", workers=0)
    assert stays(tmp_path / "out") == {"site1_a.png", "site1_c.jpg"}


def test_names_that_differ_do_not_tell_two_places_apart(tmp_path: Path) -> None:
    """Each collection has its own names: what the map says counts."""
    data, picture = tmp_path / "data", scene(5, 120, 100)
    put(data / "one" / "site1_a.tif", picture, "2018-01-01", transform=at(0))
    put(data / "two" / "site9_a.tif", brighter(picture), "2019-01-01", transform=at(0))
    datakit.build(recipe("one", "two", about={"place": PLACE}), data=data, out=tmp_path / "out", workers=0)
    assert stays(tmp_path / "out") == {"site1_a.tif", "site9_a.tif"}


def test_dates_are_instants(tmp_path: Path) -> None:
    """Two seconds around midnight (UTC) are one date, and so is one instant told in two zones."""
    data, picture = tmp_path / "data" / "one", scene(5, 120, 100)
    times = {"a": "2018-01-01T23:59:59Z", "b": "2018-01-02T00:00:01Z", "c": "2018-01-01T18:59:59-05:00",
             "d": "2018-01-02T23:59:59Z"}  # fmt: skip
    for name, time in times.items():
        path = data / f"site1_{name}.{'png' if name == 'a' else 'jpg'}"
        put(path, picture, **({} if name == "a" else {"quality": 80}))
        path.with_suffix(".json").write_text(json.dumps({"timestamp": time}))
    plain = recipe("one", about={"place": PLACE}).model_dump(mode="json")
    plain["sources"][0]["collection"]["layout"] |= {
        "label_files": ["**/*.json"],
        "labels": [{"kind": "fmow", "path": "{dir}/{stem}.json"}],
    }
    datakit.build(Recipe.model_validate(plain), data=tmp_path / "data", out=tmp_path / "out", workers=0)
    assert stays(tmp_path / "out") == {"site1_a.png", "site1_d.jpg"}


@pytest.mark.parametrize(
    "says", [{"soft": ["sharp"]}, {"sharp": ["soft"]}, {"sharp": ["between"], "soft": ["between"]}]
)
def test_either_of_two_products_may_name_the_other(tmp_path: Path, says: dict[str, list[str]]) -> None:
    put(tmp_path / "data" / "sharp" / "x_1_rgb.png", scene(1, 120, 100))
    put(tmp_path / "data" / "soft" / "x_1_msrgb.png", scene(2, 120, 100))
    plain = recipe("sharp", "soft", about={"acquisition": r"(.*)_(?:ms)?rgb\."}).model_dump(mode="json")
    for source in plain["sources"]:
        source["collection"]["twin_of"] = says.get(source["name"], [])
    datakit.build(Recipe.model_validate(plain), data=tmp_path / "data", out=tmp_path / "out", workers=0)
    key = make_key("sharp", "x_1_rgb.png")
    assert reasons(tmp_path / "out") == {"x_1_msrgb.png": ("twin", key)}


def test_products_of_one_acquisition_enter_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    about = {"acquisition": r"(.*)_(?:ms)?rgb\.", "twin_of": ["sharp", "soft"]}
    for n in range(3):
        put(data / "sharp" / f"airport_{n}_rgb.png", scene(10 + n, 240, 200))
        put(data / "soft" / f"airport_{n}_msrgb.png", scene(20 + n, 120, 100))
    put(data / "soft" / "airport_9_msrgb.png", scene(30, 120, 100))
    datakit.build(recipe("sharp", "soft", about=about), data=data, out=tmp_path / "out", workers=0)
    assert stays(tmp_path / "out") == {*(f"airport_{n}_rgb.png" for n in range(3)), "airport_9_msrgb.png"}
    for n in range(3):
        assert reasons(tmp_path / "out")[f"airport_{n}_msrgb.png"] == (
            "twin",
            make_key("sharp", f"airport_{n}_rgb.png"),
        )
    assert json.loads((tmp_path / "out" / "dedup.json").read_text())["twins"] == 3
    again = recipe("sharp", "soft", about={"acquisition": about["acquisition"]})
    datakit.build(again, data=data, out=tmp_path / "strangers", workers=0)
    assert len(stays(tmp_path / "strangers")) == 7  # the same names in collections that are no twins


def test_workers_change_nothing(visits: Path, tmp_path: Path) -> None:
    spec = recipe("one", "two", about={"place": PLACE}, series=2)
    for workers in (0, 2):
        datakit.build(spec, data=visits, out=tmp_path / f"out{workers}", workers=workers)
    assert digests(tmp_path / "out0") == digests(tmp_path / "out2")


def test_instants_are_read_from_dates_and_times() -> None:
    assert seconds_of("1970-01-02") == 86_400
    assert seconds_of("2016-07-01T10:12:33Z") == seconds_of("2016-07-01") + 36_753
    assert seconds_of("2018-01-01T23:30:00-05:00") == seconds_of("2018-01-02T04:30:00Z")
    assert seconds_of("2016-07-01 10:12") == seconds_of("2016-07-01T10:12:00.999+00:00")
    assert {seconds_of(text) for text in ("", "soon", "2016", "2016-13-01", "2016-07-01Tnoon")} == {NO_TIME}


def test_twins_of_twins_are_one_family_whoever_names_whom() -> None:
    family = families({"a": (), "b": ("a",), "c": ("absent",), "d": ("absent", "e"), "e": (), "f": (), "g": ("b",)})
    groups = {frozenset(n for n in family if family[n] == head) for head in family.values()}
    assert groups == {frozenset("abg"), frozenset("cde"), frozenset("f")}


def test_patterns_need_one_group() -> None:
    about = recipe_of("one").sources[0].collection.model_dump(mode="json")
    with pytest.raises(ValueError, match="one group"):
        Collection.model_validate({**about, "place": r"site\d+"})


def test_a_product_names_what_is_there_in_the_end(tmp_path: Path) -> None:
    """Its twin went as a duplicate of another picture: that one is what it lost to."""
    data, about = tmp_path / "data", {"acquisition": r"(h_.*)_(?:ms)?rgb\.", "twin_of": ["one", "two", "soft"]}
    picture = scene(50, 120, 100)
    put(data / "one" / "z.png", picture)
    put(data / "two" / "h_1_rgb.png", picture)
    put(data / "soft" / "h_1_msrgb.png", scene(51, 120, 100))
    plain = recipe("one", "two", "soft", about=about).model_dump(mode="json") | {"prefer": ["source"]}
    datakit.build(Recipe.model_validate(plain), data=tmp_path / "data", out=tmp_path / "out", workers=0)
    assert stays(tmp_path / "out") == {"z.png"}
    key = make_key("one", "z.png")
    assert reasons(tmp_path / "out") == {"h_1_rgb.png": ("duplicate", key), "h_1_msrgb.png": ("twin", key)}


# the law, restated slowly

DAYS = ("2018-01-01", "2018-01-01T20:00:00Z", "2018-01-02", "2018-01-11", "2018-01-21", "2018-02-20", "")
FOOT = 200_000  # m that places lie apart


def some_records(rng: np.random.Generator, images: int, on_map: bool) -> list[list[Sample]]:
    """Images, whole or in two windows side by side, of few places, days and looks."""
    looks = some_looks(rng, 3 * images)
    out = []
    for n in range(images):
        source, name = f"s{rng.integers(3)}", f"site{rng.integers(3)}_{n}" if rng.random() < 0.4 else f"i{n}"
        windows = [Window(0, 0, 64, 64), Window(64, 0, 64, 64)] if rng.random() < 0.4 else [None]
        east = FOOT * int(rng.integers(2)) + 64 * float(rng.choice([0, 0, 0.2, 0.75, 1]))
        placed = {"crs": "EPSG:32632", "transform": (1.0, 0.0, 400_000 + east, 0.0, -1.0, 5_400_000.0)}
        facts = placed if on_map and rng.random() < 0.7 else {}
        facts |= {"acquired": str(rng.choice(DAYS)), "label": str(rng.choice(["", "port"])), "format": "PNG"}
        records = []
        for k, window in enumerate(windows):
            row, key, scene_row = 3 * n + k, make_key(source, name, window), 3 * n + (2 if window else 0)
            columns = ((TILE, row), (SCENE, scene_row))
            measured = {c: v for names, r in columns for c, v in zip(names, looks_of(looks, r), strict=True)}
            sizes = {"width": 64, "height": 64, "image_width": 64 * len(windows), "image_height": 64}
            one = Sample(key=key, id=key_id(key), source=source, name=name, window=window, **facts, **sizes, **measured)
            transform, _ = shifted(one, window) if window else (one.transform, "")
            one = replace(one, transform=transform, sharpness=float(rng.integers(3)))
            records.append(replace(one, footprint=footprints(one, [Window(0, 0, 64, 64)])[0]))
        out.append(records)
    return out


def looks_of(looks: Looks, row: int) -> tuple[Any, ...]:
    thumbnail, digest = looks.thumbnails[row].tobytes(), bytes(looks.digests[row])
    return looks.signatures[row].tolist(), thumbnail, digest, float(looks.entropy_bits[row])


def decided(images: list[list[Sample]], rng: np.random.Generator, **dedup: Any) -> Merged:
    """What the stage decides of records that lie in parts in any order."""
    plain = recipe("s0", "s1", "s2", about={"place": PLACE, "twin_of": ["s0"]}, thumbnail_levels=6, **dedup)
    spec = Recipe.model_validate(plain.model_dump(mode="json") | {"prefer": ["labelled", "sharper"]})
    with tempfile.TemporaryDirectory() as name:
        folder, order, parts = Path(name), rng.permutation(len(images)).tolist(), []
        for n, some in enumerate((order[: len(order) // 3], order[len(order) // 3 :])):
            parts.append(folder / f"s0-{n}.parquet")
            pq.write_table(to_table([record for i in some for record in images[i]]), parts[-1])
        (folder / "aside").mkdir()
        crowd = read_crowd(parts, spec.sources, folder / "aside")
        return merge.dedup(spec, crowd, np.ones(len(crowd), bool), folder, lambda line: None)


def shared(one: Sample, other: Sample) -> float:
    """Of two records of one size, the share of their ground that they have in common."""
    if one.transform is None or other.transform is None:
        return 0.0
    return max(64 - abs(one.transform[2] - other.transform[2]), 0.0) / 64


def of_place(one: Sample, other: Sample) -> bool:
    names = [re.search(PLACE, sample.name) for sample in (one, other)]
    same = all(names) and names[0][1] == names[1][1]  # type: ignore[index]
    return same or shared(one, other) >= 0.5


def apart(one: Sample, other: Sample, days: int) -> bool:
    times = [seconds_of(sample.acquired) for sample in (one, other)]
    return NO_TIME not in times and abs(times[0] - times[1]) >= days * 86_400


def ranked(images: list[list[Sample]]) -> list[Sample]:
    """Records in order of preference of their images."""

    def rank(some: list[Sample], of: int) -> tuple[Any, ...]:
        return not any(s.label for s in some), -sum(s.sharpness or 0 for s in some) / len(some), of

    by = sorted(images, key=lambda some: rank(some, key_id(make_key(some[0].source, some[0].name))))
    return [sample for some in by for sample in sorted(some, key=lambda s: rank([s], s.id))]


def too_late(records: list[Sample], most: int, days: int) -> dict[str, str]:
    """Records that go because their series is full, and to which they lose; one by one, best first."""
    gone: dict[str, str] = {}
    begun: list[Sample] = []
    for one in records:
        mine = [other for other in begun if of_place(one, other)]
        if not one.acquired or not all(apart(one, other, days) for other in mine):
            continue
        if dates(mine, days) >= most:
            gone[one.key] = mine[0].key
        else:
            begun.append(one)
    return gone


def dates(records: list[Sample], days: int) -> int:
    """The most of some records whose dates are all apart from one another."""
    found: list[Sample] = []
    for one in sorted((r for r in records if r.acquired), key=lambda r: seconds_of(r.acquired)):
        found += [one] if not found or apart(found[-1], one, days) else []
    return len(found)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 16), st.integers(1, 3), st.sampled_from([1, 10, 30]), st.booleans())
def test_the_law_of_series(seed: int, n: int, most: int, days: int, on_map: bool) -> None:
    images = some_records(np.random.default_rng(seed), n, on_map)
    every = {record.key: record for some in images for record in some}
    runs = [decided(images, np.random.default_rng(seed + k), series=most, min_days=days) for k in (1, 2)]
    facts = ["key", "dropped", "lost_to", "distance_bits"]
    told = [sorted(run.lost.select(facts).to_pylist(), key=lambda row: row["key"]) for run in runs]
    assert told[0] == told[1]
    assert runs[0].about == runs[1].about
    lost = {row["key"]: (row["dropped"], row["lost_to"]) for row in told[0]}
    unlimited = decided(images, np.random.default_rng(seed), min_days=days).lost.column("key").to_pylist()
    once = [record for record in ranked(images) if record.key not in set(unlimited)]
    late = {key: to for key, (why, to) in lost.items() if why == "series"}
    assert {key: to for key, to in late.items() if key not in set(unlimited)} == too_late(once, most, days)
    left = [record for key, record in every.items() if key not in lost]
    for key, to in late.items():
        assert to in every.keys() - lost.keys()
        mine = [other for other in left if of_place(every[key], other)]
        assert dates([other for other in mine if apart(every[key], other, days)], days) >= most
    for record in [] if on_map else once:  # N dates of a place stay where N are there; names tell whole groups
        there, stay = ([r for r in some if of_place(record, r)] for some in (once, left))
        assert dates(stay, days) >= min(most, dates(there, days))
    named = {make_key(some[0].source, some[0].name): some for some in images}
    for key, (_, to) in lost.items():  # what it lost to is there in the end
        assert {s.key for s in named.get(to, [every[to]] if to in every else [])} - lost.keys(), (key, to)


def test_footprints_of_whole_images_are_found_from_their_windows(tmp_path: Path) -> None:
    """By transform or by points on the ground, reduced or not; none where there is no place, or it is off the map."""
    transform = (0.5, 0.1, 500_000.0, 0.1, -0.5, 5_400_000.0)
    points = json.dumps(
        [[0, 0, 9.0, 48.0, 0], [600, 0, 9.1, 48.0, 0], [0, 400, 9.0, 47.9, 0], [600, 400, 9.1, 47.9, 0]]
    )
    places: list[dict[str, Any]] = [
        {"crs": "EPSG:32632", "transform": transform}, {"crs": "EPSG:4326", "gcps": points},
        {}, {"transform": transform},
        {"crs": "EPSG:32632", "transform": (1e9, 0.0, 0.0, 0.0, 1e9, 0.0)},
    ]  # fmt: skip
    wholes, records = [], []
    for n, (said, scale, window) in enumerate(product(places, (1.0, 2.0), (None, Window(100, 40, 128, 128)))):
        sizes = {"image_width": 600, "image_height": 400, "width": 600, "height": 400}
        whole = Sample(source="s0", name=f"i{n}", **sizes, **said)
        near, gcps = shifted(whole, window or Window(0, 0, 0, 0), scale)
        if window:
            left, top = window.left, window.top  # in px of the source, and in those of the record
            near, gcps = shifted(whole, Window(left / scale, top / scale, 1, 1), scale)  # type: ignore[arg-type]
        one = replace(whole, key=f"k{n}", id=n, window=window, transform=near, gcps=gcps, scale=scale)
        wholes.append(whole)
        records.append(replace(one, signatures=(0,) * 8, thumbnail=bytes(192), pixel_digest=bytes(15) + b"x"))
    pq.write_table(to_table(records), tmp_path / "s0-0.parquet")
    crowd = read_crowd([tmp_path / "s0-0.parquet"], recipe("s0").sources, tmp_path)
    found = whole_footprints(crowd, np.arange(len(wholes)))
    names = [row["name"] for row in crowd.texts(crowd.first, "name")]
    expected = {w.name: footprints(w, [Window(0, 0, 600, 400)])[0] or (0.0,) * 8 for w in wholes}
    assert np.allclose(found, [expected[name] for name in names], atol=1e-9)
    assert found.any(axis=1).sum() == 8
