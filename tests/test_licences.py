"""Licences of samples: those of all copies are kept; those asked for are the same in a build and when it is read."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from servers import Web, serving
from worlds import recipe_of, scene, source_of, write_recipe

import datakit
from datakit.cli import main
from datakit.errors import RecipeError
from datakit.licences import Asked, distinct
from datakit.pretrain.feed import Feed
from datakit.pretrain.machine import Machine
from datakit.pretrain.recipe import Pretrain
from datakit.recipe import Recipe
from datakit.stats import stats, told
from datakit.stream import Loader, Mix, Overlay, evaluation
from datakit.stream.replay import keys_of_step

Out = pytest.CaptureFixture[str]
OF = {"free": "CC-BY-4.0", "closed": "CC-BY-NC-4.0", "silent": "unstated", "words": "For research\nonly. Ask [us]."}


def put(path: Path, seed: int, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(seed, 120, 110)).save(path, **how)


def recipe(**stages: Any) -> Recipe:
    """Sources of four licences, the closed one preferred; duplicates go."""
    plain = recipe_of(*OF).model_dump(mode="json") | {
        "prefer": ["source"],
        "dedup": {},
        "exclude": {"rules": []},
        **stages,
    }
    plain["sources"] = [source_of(name) for name in ("closed", "free", "silent", "words")]
    for source in plain["sources"]:
        source["collection"]["licence"] = OF[source["name"]]
    return Recipe.model_validate(plain)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each source has a picture of its own; one lies in two of them, one in three, and one only looks like another."""
    folder = tmp_path_factory.mktemp("licences")
    for n, name in enumerate(OF):
        put(folder / "data" / name / "own" / "own.png", n)
    for name in ("closed", "free"):
        put(folder / "data" / name / "both" / "two.png", 10)
    for name in ("closed", "silent", "words"):
        put(folder / "data" / name / "three" / "three.png", 11)
    put(folder / "data" / "closed" / "alike" / "alike.png", 12)
    put(folder / "data" / "free" / "alike" / "alike.jpg", 12, quality=60)
    datakit.build(recipe(shards={"max_samples": 3}), data=folder / "data", out=folder / "out", workers=0)
    return folder


def of(out: Path) -> dict[str, list[str]]:
    """Licences of the samples of a build, by source and file."""
    rows = pq.read_table(out / "samples.parquet", columns=["source", "name", "licences"]).to_pylist()
    return {f"{row['source']}/{Path(row['name']).stem}": row["licences"] for row in rows}


def kept(out: Path, *asked: str) -> set[str]:
    """What is under one of some licences."""
    return {name for name, licences in of(out).items() if Asked(asked).any_of(licences)}


def test_a_duplicate_keeps_the_licences_of_all_its_copies(built: Path) -> None:
    assert of(built / "out") == {
        **{f"{name}/own": [licence] for name, licence in OF.items()},
        "closed/two": ["CC-BY-NC-4.0", "CC-BY-4.0"],
        "closed/three": ["CC-BY-NC-4.0", "unstated", OF["words"]],
        "closed/alike": ["CC-BY-NC-4.0"],
    }


def test_copies_that_only_look_alike_lend_no_licence_but_are_told(built: Path) -> None:
    lost = pq.read_table(built / "out" / "dropped.parquet").to_pylist()
    (alike,) = [row for row in lost if row["name"] == "alike/alike.jpg"]
    rows = {row["key"]: row["name"] for row in pq.read_table(built / "out" / "samples.parquet").to_pylist()}
    assert (rows[alike["lost_to"]], alike["licences"]) == ("alike/alike.png", ["CC-BY-4.0"])


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (["CC-BY-4.0"], {"free/own", "closed/two"}),
        (["cc-by-4.0"], {"free/own", "closed/two"}),
        (["CC-BY-[0-9]*"], {"free/own", "closed/two"}),
        (["CC-BY-*"], {"free/own", "closed/own", "closed/two", "closed/three", "closed/alike"}),
        (["unstated"], {"silent/own", "closed/three"}),
        (["For research only. Ask [us]."], {"words/own", "closed/three"}),
        (["CC-BY-4.0", "unstated"], {"free/own", "closed/two", "silent/own", "closed/three"}),
        (["*"], {"free/own", "closed/own", "words/own", "closed/two", "closed/three", "closed/alike"}),
    ],
)
def test_what_is_asked_for_is_what_is_read(
    built: Path, tmp_path: Path, capsys: Out, asked: list[str], wanted: set[str]
) -> None:
    """By a loader, by the query, and by the overlay that the query writes."""
    out = built / "out"
    names = {
        row["key"]: f"{row['source']}/{Path(row['name']).stem}"
        for row in pq.read_table(out / "samples.parquet").to_pylist()
    }
    loader = Loader(out, 1, transform=evaluation(32), shuffle=False, licence=asked)
    assert {names[key] for batch in loader for key in batch.keys} == wanted
    flags = [text for name in asked for text in ("--licence", name)]
    assert main(["query", str(out), *flags]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {names[row["key"]] for row in lines} == wanted
    assert all(Asked(asked).any_of(row["licences"]) for row in lines)
    assert main(["query", str(out), *flags, "-o", str(tmp_path / "q.parquet")]) == 0
    again = Loader(out, 1, transform=evaluation(32), shuffle=False, overlay=tmp_path / "q.parquet")
    assert {names[key] for batch in again for key in batch.keys} == wanted
    assert len(again.live) == len(loader.live) == len(wanted)
    assert sum(band.samples for band in stats(out, licence=asked).overall()) == 3 * len(wanted)


def test_a_build_takes_what_is_asked_for_and_counts_the_rest(built: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", recipe())
    one = Recipe.load(path, licences=["CC-BY-[0-9]*"])
    manifest = datakit.build(one, data=built / "data", out=tmp_path / "out", workers=0)
    assert {*of(tmp_path / "out")} == {"free/own", "free/two", "free/alike"}
    dropped: Counter[str] = Counter()
    for count in manifest.counts:
        dropped.update(count.dropped)
    assert dropped == {"licence_not_asked_for": 6, "licence_unstated": 2}
    lost = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    assert {row["dropped"] for row in lost if row["source"] == "silent"} == {"licence_unstated"}
    assert {row["dropped"] for row in lost if row["source"] != "silent"} == {"licence_not_asked_for"}
    with_unstated = Recipe.load(path, licences=["unstated"])
    datakit.build(with_unstated, data=built / "data", out=tmp_path / "unstated", workers=0)
    assert {*of(tmp_path / "unstated")} == {"silent/own", "silent/three"}


def test_a_build_and_a_loader_that_ask_alike_show_the_same_pictures(built: Path, tmp_path: Path) -> None:
    """Of equal pixels another copy may be kept; what only looks alike is judged by its own licence."""
    path = write_recipe(tmp_path / "r.yaml", recipe(cut={"encode": {"format": "png"}}))
    datakit.build(Recipe.load(path), data=built / "data", out=tmp_path / "whole", workers=0)
    datakit.build(Recipe.load(path, licences=["unstated"]), data=built / "data", out=tmp_path / "some", workers=0)
    read = [Loader(tmp_path / "whole", 1, licence="unstated"), Loader(tmp_path / "some", 1)]
    whole, some = ({batch.images.numpy().tobytes() for batch in loader} for loader in read)
    assert whole == some
    assert len(some) == 2


def test_exports_have_only_what_is_asked_for(built: Path, tmp_path: Path, capsys: Out) -> None:
    assert main(["export", "imagefolder", str(built / "out"), str(tmp_path / "x"), "--licence", "CC-BY-4.0"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2
    assert {path.name for path in (tmp_path / "x").glob("*/*")} == {"own", "both"}


def test_the_card_counts_samples_by_licence(built: Path) -> None:
    card = (built / "out" / "README.md").read_text()
    counted = Counter(" ".join(name.split()) for names in of(built / "out").values() for name in names)
    for name, count in counted.items():
        assert f"| {name} | {count} |" in card
    plain = json.loads((built / "out" / "croissant.json").read_text())
    pages = {f"https://spdx.org/licenses/{name}" if name.startswith("CC") else name for name in counted}
    assert {*plain["license"]} == pages


def test_a_state_knows_its_licences_and_replay_takes_them(built: Path) -> None:
    out = built / "out"
    loader = Loader(out, 1, transform=evaluation(32), licence="CC-BY-4.0")
    batches = iter(loader)
    key = next(batches).keys[0]
    state = json.loads(json.dumps(loader.state_dict()))
    batches.close()
    assert [row["key"] for row in keys_of_step(state, out, licence=["CC-BY-4.0"])] == [key]
    with pytest.raises(Exception, match="overlay was"):
        Loader(out, 1, transform=evaluation(32), licence="unstated").load_state_dict(state)


def test_a_run_is_fed_only_what_is_asked_for(built: Path) -> None:
    changes = {"data": str(built / "out"), "batch": 2, "licence": ["CC-BY-4.0"]}
    feed = Feed(Pretrain.load("tiny", changes), Machine("float32", "cpu"))
    assert len(feed.loader.live) == 2


def test_licences_of_a_mix_are_those_of_each_set(built: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", recipe(name="other"))
    datakit.build(Recipe.load(path, licences=["unstated"]), data=built / "data", out=tmp_path / "o", workers=0)
    mix = Loader(Mix({built / "out": 1, tmp_path / "o": 1}), 1, transform=evaluation(32), licence="CC-BY-4.0")
    assert len(mix.live) == 2


def test_a_set_in_a_store_tells_them_too(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    shutil.copytree(built / "out", tmp_path / "web" / "set")
    with serving(Web(tmp_path / "web")) as web:
        url = f"{web.url}/set"
        assert told(stats(url, licence=["CC-BY-4.0"])) == told(stats(built / "out", licence=["CC-BY-4.0"]))
        assert len(Loader(url, 1, transform=evaluation(32), licence="CC-BY-4.0").live) == 2
        assert web.asked("GET", "samples.parquet")
        assert not web.asked("GET", ".tar")


def test_what_cannot_be_asked(built: Path, shards: Path, capsys: Out) -> None:
    with pytest.raises(
        RecipeError, match=r"no sample is under MIT; there are CC-BY-4\.0, CC-BY-NC-4\.0, For research only"
    ):
        Loader(built / "out", 1, licence="MIT")
    with pytest.raises(RecipeError, match="only a build tells the licences"):
        Loader(shards, 1, licence="MIT")
    assert main(["query", str(built / "out")]) == 1
    assert "--bbox, --licence" in capsys.readouterr().err


def test_distinct_lists() -> None:
    numbers, lists = distinct(pa.chunked_array([pa.array([["a", "b"], [], None, ["a", "b"]], pa.list_(pa.string()))]))
    assert [lists[n] for n in numbers.tolist()] == [["a", "b"], [], [], ["a", "b"]]
    asked = Asked(["*"])
    assert [asked.any_of(names) for names in (["a"], [], None, ["unstated"], [""])] == [
        True,
        False,
        False,
        False,
        False,
    ]
    table = pa.table({"licences": pa.array([["MIT"], [], ["x", "MIT"]], pa.list_(pa.string()))})
    assert np.flatnonzero(Asked("mit").rows(table, "here")).tolist() == [0, 2]


def test_overlay_of_the_query_says_its_kind(built: Path, tmp_path: Path) -> None:
    main(["query", str(built / "out"), "--licence", "unstated", "-o", str(tmp_path / "q.parquet")])
    overlay = Overlay.of(tmp_path / "q.parquet")
    assert (overlay.kind, len(overlay.ids)) == ("keep", 2)
