"""Pictures of one place at several dates, and products of one acquisition: kept, limited, or entered once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rasterio.transform import from_origin
from worlds import digests, geotiff, recipe_of, scene, work_done

import datakit
from datakit.crowd import NO_DAY, day_of
from datakit.manifest import Collection
from datakit.recipe import Recipe
from datakit.sample import make_key

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


def put(path: Path, pixels: Any, day: str = "", **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        geotiff(path, pixels, **options)
    else:
        Image.fromarray(pixels).save(path, **options)
    if day:
        path.with_suffix(".txt").write_text(f"imagesource:GoogleEarth\nacquisition dates:{day}\ngsd:0.3\n")


def stays(out: Path) -> set[str]:
    return set(pq.read_table(out / "samples.parquet").column("name").to_pylist())


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
    gone = {name: to for name, (why, to) in reasons(tmp_path / "out").items() if why == "series"}
    assert len(gone) == 3 - left
    assert set(gone.values()) <= {make_key("one", name) for name in site}


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


def test_days_are_read_from_dates_and_times() -> None:
    assert day_of("1970-01-02") == 1
    assert day_of("2016-07-01T10:12:33Z") == day_of("2016-07-01")
    assert day_of("") == day_of("soon") == day_of("2016") - day_of("2016") + NO_DAY


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
