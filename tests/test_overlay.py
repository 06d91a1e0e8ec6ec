"""Overlays and mixes: the order of an index made anew of what is live, exact counts, and the laws of any order."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from servers import Web, serving
from tars import SMALL, jpeg, keys, sample, write_tar
from test_loader import together

from datakit import index
from datakit.errors import RecipeError, ShardError
from datakit.sample import key_id
from datakit.stream import Loader, Mix, Overlay, mae
from datakit.stream.overlay import Live, Picked, overlays_of
from datakit.stream.tars import Tars

SIZES = (7, 3, 0, 5)
ANY = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
SUBSETS = st.sets(st.integers(0, 14), min_size=1, max_size=14)


def test_an_overlay_may_lie_in_a_store(shards: Path, tmp_path: Path) -> None:
    ids = Loader(shards, 1).tars.ids(slice(0, 4))
    Overlay.write(tmp_path / "some.parquet", "keep", ids)
    with serving(Web(tmp_path)) as web:
        overlay = Overlay.of(f"{web.url}/some.parquet")
        assert len(Loader(shards, 1, overlay=overlay)) == 4
        with pytest.raises(RecipeError, match="no such file"):
            Overlay.of(f"{web.url}/other.parquet")


def test_sets_of_other_bands_do_not_mix(shards: Path, tmp_path: Path) -> None:
    levels = np.zeros((40, 40), np.uint16)
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, "PNG")
    (tmp_path / "deep").mkdir()
    write_tar(tmp_path / "deep" / "a.tar", [("x.png", stream.getvalue())])
    with pytest.raises(RecipeError, match="1 bands of uint16"):
        next(iter(Loader(Mix({shards: 1, tmp_path / "deep": 1}), 2, transform=SMALL)))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def write_index(folder: Path, sizes: tuple[int, ...], left: set[int] | None = None, name: str = "s") -> Path:
    """An index of samples s0, s1, … of shards of these sizes, or of those that are left; no tars."""
    folder.mkdir(parents=True, exist_ok=True)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    rows = [n for n in range(sum(sizes)) if left is None or n in left]
    table = {
        "key": [f"{name}{n}" for n in rows],
        "id": [key_id(f"{name}{n}") for n in rows],
        "shard": owners[rows],
        "jpg_offset": np.full(len(rows), 512),
        "jpg_bytes": np.full(len(rows), 10),
        "source": [""] * len(rows),
        "split": [""] * len(rows),
    }
    counts = np.bincount(owners[rows], minlength=len(sizes)).tolist()
    shards = [{"name": f"{n}.tar", "samples": c, "bytes": 100 * sizes[n] + 1} for n, c in enumerate(counts)]
    index.write(pa.table(table, schema=index.schema(("jpg",))), folder / "index.arrow", shards)
    return folder


def ids(rows: Any, name: str = "s") -> list[int]:
    return [key_id(f"{name}{n}") for n in sorted(rows)]


def names(loader: Loader, epoch: int = 0) -> list[str]:
    """Keys of an epoch in order, without the images."""
    return loader.tars.keys(loader.order(epoch).at(0, len(loader.live)))


@pytest.mark.parametrize("kind", ["drop", "keep", "split", "weight"])
@ANY
@given(chosen=SUBSETS, seed=st.integers(0, 9), block=st.sampled_from([None, 1, 500, 1200]), shuffle=st.booleans())
def test_it_is_the_order_of_an_index_of_what_is_live(
    tmp_path: Path, kind: Any, chosen: set[int], seed: int, block: int | None, shuffle: bool
) -> None:
    left = {*range(15)} - chosen if kind in ("drop", "weight") else chosen
    path, overlay = tmp_path / "overlay.parquet", Overlay.of
    if kind == "split":
        splits = ["train" if n in chosen else "val" for n in range(15)]
        Overlay.write(path, "split", ids(range(15)), [splits[n] for n in range(15)])
        overlay = lambda path: Overlay.split(path, "train")  # noqa: E731
    elif kind == "weight":
        Overlay.write(path, "weight", ids(chosen), [0.0] * len(chosen))
    else:
        Overlay.write(path, kind, ids(chosen))
    whole, anew = write_index(tmp_path / "whole", SIZES), write_index(tmp_path / "anew", SIZES, left)
    how = {"seed": seed, "block_bytes": block, "shuffle": shuffle}
    ours, theirs = Loader(whole, 2, overlay=overlay(path), **how), Loader(anew, 2, **how)
    assert len(ours.live) == len(left)
    for epoch in range(3):
        assert names(ours, epoch) == names(theirs, epoch)
    assert ours.live.sizes.tolist() == theirs.tars.sizes.tolist()


@ANY
@given(weights=st.lists(st.floats(0, 5) | st.integers(0, 3).map(float), min_size=15, max_size=15), mix=st.floats(0, 3))
def test_weights_give_exact_counts(tmp_path: Path, weights: list[float], mix: float) -> None:
    path = Overlay.write(tmp_path / "weights.parquet", "weight", ids(range(15)), weights)
    whole = write_index(tmp_path / "whole", SIZES)
    exact = [weight * mix for weight in weights]
    try:
        loader = Loader(Mix({whole: mix}), 1, overlay=path)
    except ShardError as exc:
        assert max(exact) < 1
        assert "no samples are left by" in str(exc)  # noqa: PT017
        return
    counted = Counter(names(loader))
    for n, weight in enumerate(exact):
        assert counted[f"s{n}"] in (int(weight), int(weight) + (weight > int(weight)))
    assert Counter(names(loader, 5)) == counted
    assert Counter(names(Loader(Mix({whole: mix}), 1, overlay=path, seed=3))) == counted
    assert sum(loader.live.sizes) == len(loader.live) == sum(counted.values())
    found = loader.live.counts(0, 4, 11)
    assert found.tolist() == [counted[f"s{n}"] for n in range(4, 11)]


@ANY
@given(copies=st.lists(st.integers(0, 3), min_size=1, max_size=60), data=st.data())
def test_live_rows_are_kept_in_two_ways(tmp_path: Path, copies: list[int], data: st.DataObject) -> None:
    if not any(copies):
        copies[0] = 1
    whole = write_index(tmp_path / "whole", (len(copies),))
    path = Overlay.write(tmp_path / "w.parquet", "weight", ids(range(len(copies))), _by_id(copies))
    tars = Tars(index.load(whole / "index.arrow"), whole)
    live = Live(tars, [Overlay.of(path)])
    wanted = np.repeat(np.arange(len(copies)), copies)
    low = data.draw(st.integers(0, len(copies)))
    high = data.draw(st.integers(low, len(copies)))
    for _ in range(2):
        assert live.rows(np.arange(len(live))).tolist() == wanted.tolist()
        assert live.counts(0, low, high).tolist() == copies[low:high]
        if live.each is None:
            live.spread(np.uint32)


def _by_id(copies: list[int]) -> list[float]:
    return [float(copies[n]) for n in range(len(copies))]


def test_fractions_are_as_many_as_they_say(tmp_path: Path) -> None:
    whole = write_index(tmp_path / "whole", (20_000,))
    live = Loader(Mix({whole: 2.25}), 4).live
    assert abs(len(live) - 45_000) < 5 * np.sqrt(20_000 * 0.25 * 0.75)
    few = Overlay.write(tmp_path / "few.parquet", "drop", ids(range(10)))
    live = Loader(whole, 4, overlay=few).live
    assert live.each is None  # few runs: no list of rows
    assert len(live.start) <= 11
    half = Loader(Mix([(whole, 0.5)]), 4).live
    assert half.each is not None
    assert half.each.dtype == np.uint32


@ANY
@pytest.mark.filterwarnings("ignore:.* none is given")
@given(data=st.data())
def test_any_split_gives_the_same_sequence(tmp_path: Path, shards: Path, data: st.DataObject) -> None:
    """Ranks, threads and a stop at any batch, of a mix with an overlay."""
    ranks, size, block = (
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, 3)),
        data.draw(st.sampled_from([None, 1])),
    )
    drop = Overlay.write(tmp_path / "drop.parquet", "drop", [key_id("a/s001"), key_id("b/s005")])

    def loaders(size: int, ranks: int) -> list[Loader]:
        source = Mix({shards / "a.tar": 1.5, shards / "b.tar": 0.5})
        many = ({"rank": r, "world_size": ranks, "threads": r + 1} for r in range(ranks))
        return [Loader(source, size, transform=SMALL, overlay=drop, block_bytes=block, **one) for one in many]

    whole = keys(loaders(1, 1)[0])
    ours = loaders(size, ranks)
    stop = data.draw(st.integers(0, len(ours[0])))
    begun = [iter(loader) for loader in ours]
    seen = [key for _ in range(stop) for one in begun for key in next(one).keys]
    for one in begun:
        one.close()
    others = loaders(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)))
    for loader in others:
        loader.load_state_dict(json.loads(json.dumps(ours[0].state_dict())))
    seen += together(others)
    assert seen == whole[: len(seen)]
    assert len(whole) - len(seen) < others[0].batch_size * others[0].world_size


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_tar(folder / "a.tar", [m for n in range(4) for m in sample(n)])
    write_tar(folder / "b.tar", [(f"s{n:03}.jpeg", jpeg(n, 50, 60)) for n in range(4, 10)])
    return folder


def test_a_mix_is_its_sets_after_each_other(shards: Path) -> None:
    mix = Mix([(shards / "a.tar", 1), ([shards / "b.tar"], 2)])
    batch = next(iter(Loader(mix, 16, transform=SMALL, shuffle=False, columns=["n", "label"])))
    assert batch.keys == [f"s{n:03}" for n in (0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9)]
    assert batch["n"][:6] == [0, 1, 2, 3, None, None]
    assert batch.ids[:5].tolist() == [key_id(f"a/s00{n}") for n in range(4)] + [key_id("b/s004")]
    nested = Mix({Mix({shards / "a.tar": 2, shards / "b.tar": 0}): 1.5, shards / "b.tar": 1})
    assert Counter(keys(Loader(nested, 1, transform=SMALL))) == {f"s{n:03}": 3 if n < 4 else 1 for n in range(10)}


def test_the_numbers_of_a_mix_are_of_what_is_live(tmp_path: Path) -> None:
    """normalise="dataset": each sample counts as often as it comes."""
    sums = {"a": [(10, 100, 5000), (10, 900, 90_000)], "b": [(5, 50, 600), (20, 3000, 500_000)]}
    for name, rows in sums.items():
        folder = write_index(tmp_path / name, (2,), name=name)
        columns = zip(("band_count", "band_sum", "band_sum_squares"), zip(*rows, strict=True), strict=True)
        pq.write_table(
            pa.table({n: [[value] for value in values] for n, values in columns}), folder / "samples.parquet"
        )
    drop = Overlay.write(tmp_path / "drop.parquet", "drop", ids([0], "b"))
    loader = Loader(Mix({tmp_path / "a": 2, tmp_path / "b": 1}), 1, transform=mae(8, "dataset"), overlay=drop)
    count, total, squares = np.array([(10, 100, 5000)] * 2 + [(10, 900, 90_000)] * 2 + [(20, 3000, 500_000)]).sum(0)
    mean = total / count
    assert loader.numbers is not None
    assert loader.numbers[0][0] == pytest.approx(mean / 255)
    assert loader.numbers[1][0] == pytest.approx(np.sqrt(squares / count - mean**2) / 255)


def test_a_state_knows_its_overlays(tmp_path: Path) -> None:
    whole = write_index(tmp_path / "whole", SIZES)
    first, other = (Overlay.write(tmp_path / f"{n}.parquet", "drop", ids([n])) for n in range(2))
    state = json.loads(json.dumps(Loader(whole, 2, overlay=first).state_dict()))
    with pytest.raises(ShardError, match=r"overlay was \['drop of 1 ids \w+'\], is \['drop of 1 ids \w+'\]$"):
        Loader(whole, 2, overlay=[other]).load_state_dict(state)
    with pytest.raises(ShardError, match=r"overlay was .*, is \[\]; samples was 14, is 15"):
        Loader(whole, 2).load_state_dict(state)
    with pytest.raises(ShardError, match=r"index was .* is \['mix by 1, 2', 'drop of 1"):
        Loader(Mix({whole: 1, write_index(tmp_path / "b", (3,), name="b"): 2}), 2, overlay=first).load_state_dict(state)
    (tmp_path / "moved.parquet").write_bytes(first.read_bytes())
    Loader(whole, 2, overlay=tmp_path / "moved.parquet").load_state_dict(state)


def test_what_an_overlay_must_be(tmp_path: Path) -> None:
    whole, path = write_index(tmp_path / "whole", SIZES), tmp_path / "o.parquet"

    def refused(match: str, overlay: Any = None) -> None:
        with pytest.raises(RecipeError, match=match):
            Loader(whole, 2, overlay=overlay() if callable(overlay) else path)

    Overlay.write(path, "drop", [1, 2, *ids([3])])
    with pytest.warns(UserWarning, match=r"o\.parquet: 2 of its 3 ids are not in this set, as 1"):
        assert len(Loader(whole, 2, overlay=path).live) == 14
    Overlay.write(path, "keep", [1, 2])
    refused(r"none of its 2 ids is one of this set's")
    refused(r"it is of kind keep: read it by Overlay\.drop", lambda: Overlay.drop(path))
    Overlay.write(path, "drop", ids(range(15)))
    with pytest.raises(ShardError, match="no samples are left by drop of 15 ids"):
        Loader(whole, 2, overlay=path)
    Overlay.write(path, "split", ids(range(2)), ["train", "val"])
    refused("it is of kind split")
    refused(r"no split 'test', only train, val", lambda: Overlay.split(path, "test"))
    Overlay.write(path, "weight", ids([1]), [-1])
    refused("weights are numbers from 0")
    Overlay.write(path, "weight", ids([1, 1]), [1, 2])
    refused(r"id \d+ is listed 2 times")
    pq.write_table(pa.table({"id": ids([1]), "split": ["train"]}), path)  # as other programs write them
    refused("it is of no kind")
    assert len(Loader(whole, 2, overlay=Overlay.keep(path)).live) == 1
    assert len(Loader(whole, 2, overlay=Overlay.split(path, "train")).live) == 1
    pq.write_table(pa.table({"id": ids([1]), "weight": [3]}), path)
    assert len(Loader(whole, 2, overlay=path).live) == 17
    pq.write_table(pa.table({"key": ["s1"]}), path)
    refused("no column id, only key", lambda: Overlay.keep(path))
    pq.write_table(pa.table({"id": ["s1"]}), path)
    refused("ids are whole numbers", lambda: Overlay.keep(path))
    path.write_text("ids")
    refused("not Parquet")
    path.unlink()
    refused("no such file")
    with pytest.raises(RecipeError, match="mix: no sources"):
        Mix({})
    with pytest.raises(RecipeError, match=r"weight -1\.0"):
        Mix({whole: -1})
    with pytest.raises(RecipeError, match="weight and split with values"):
        Overlay.write(path, "weight", ids([1]))
    assert overlays_of(()) == []


@pytest.mark.parametrize(("block", "good"), [(None, True), (20 * 20_001, False)])
def test_a_score_of_the_shuffle(tmp_path: Path, block: int | None, good: bool) -> None:
    """Of tars that are classes, one each: as drawn by chance if all are shuffled at once."""
    whole = write_index(tmp_path / "whole", (200,) * 300)
    assert (Loader(whole, 256, block_bytes=block).shuffle_score() < 1.1) == good
    some = Overlay.write(tmp_path / "some.parquet", "keep", ids(range(0, 60_000, 3)))
    assert (Loader(whole, 256, block_bytes=block, overlay=some).shuffle_score() < 1.1) == good
    in_turn = Loader(whole, 256, shuffle=False)
    assert in_turn.shuffle_score() > 100
    assert Loader(write_index(tmp_path / "one", (50,)), 8).shuffle_score() == pytest.approx(1)
    assert Loader(whole, 1).shuffle_score() == 1


def test_an_order_of_very_many_live_samples_costs_little(tmp_path: Path) -> None:
    whole = write_index(tmp_path / "whole", (1000,) * 20)
    drop = Overlay.write(tmp_path / "drop.parquet", "drop", ids([5]))
    order = Loader(whole, 4, overlay=drop).order(0)
    assert isinstance(order, Picked)
    assert order.live.first.nbytes + order.live.start.nbytes + order.live.copies.nbytes < 100
