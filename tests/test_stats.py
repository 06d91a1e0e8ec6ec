"""Means and deviations by band: from the records alone, the same as of the pixels that lie in the tars."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from rasterio.io import MemoryFile
from worlds import geotiff, make_world, recipe_of, scene, source_of

import datakit
from datakit import image
from datakit.bands import LEVELS, SUMS, Sums
from datakit.cli import main
from datakit.errors import ShardError
from datakit.recipe import Recipe
from datakit.stats import stats, told
from datakit.stream import Loader, Mix, Overlay, mae

Pixels = dict[str, list[NDArray[Any]]]  # valid pixels of each sample, (N, bands), by source
Four, SPACE = ["blue", "green", "red", "nir"], ["red", "green", "blue"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 bits, without loss; large parts of one image are nodata; a subset of what there is."""
    folder = tmp_path_factory.mktemp("pictures")
    make_world(folder / "data")
    cut = {"encode": {"format": "png"}}
    recipe = recipe_of("classes", "scenes", cut=cut, subset={"share": 0.8}, shards={"max_samples": 6})
    manifest = datakit.build(recipe, data=folder / "data", out=folder / "out", workers=0)
    assert next(c for c in manifest.counts if c.stage == "subset" and c.source == "classes").dropped
    return folder / "out"


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 bits: one source of four bands with nodata, one of three, one of them of another brightness."""
    folder = tmp_path_factory.mktemp("levels")
    for name, bands in (("four", 4), ("three", 3)):
        for n in range(2):
            picture = scene(7 * bands + n, 200, 150).astype(np.uint16)
            stack = np.dstack([picture[:, :, k % 3] * (30 + 50 * k) + 1 for k in range(bands)])
            stack[:, :70] = 0
            geotiff(folder / "data" / name / f"{n}.tif", stack, nodata=0)
    plain = recipe_of("four", "three").model_dump(mode="json")
    for source, names in zip(plain["sources"], (Four, SPACE), strict=True):
        source["collection"] |= {"modality": "multispectral", "bands": names}
    cut = {"encode": {"format": "tiff16"}, "narrow": {"bands": SPACE, "percentiles": [2, 98]}}
    plain |= {"exclude": {"rules": []}, "slice": {"grid": {"size_px": 96}}, "cut": cut, "shards": {"max_samples": 5}}
    datakit.build(Recipe.model_validate(plain), data=folder / "data", out=folder / "out", workers=0)
    return folder / "out"


def opened(name: str, data: bytes) -> NDArray[Any]:
    """(H, W, bands), by rasterio or Pillow."""
    if name.endswith(".tif"):
        with image.quiet(), MemoryFile(data) as memory, memory.open() as raster:
            return np.moveaxis(raster.read(), 0, -1)
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture)


def decoded(out: Path, keys: set[str] | None = None) -> Pixels:
    """The pixels that lie in the tars, but those that are black in all bands, as nodata is here."""
    source = {row["key"]: row["source"] for row in pq.read_table(out / "samples.parquet").to_pylist()}
    found: Pixels = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, suffix = info.name.partition(".")
                if suffix != "json" and (keys is None or key in keys):
                    stack = opened(info.name, tar.extractfile(info).read())  # type: ignore[union-attr]
                    found.setdefault(source[key], []).append(stack[stack.any(axis=2)].astype(np.float64))
    return found


def check(told_of: list[dict[str, Any]], samples: list[NDArray[Any]]) -> None:
    every = np.concatenate(samples)
    assert [band["pixels"] for band in told_of] == [len(every)] * len(told_of)
    assert [band["samples"] for band in told_of] == [len(samples)] * len(told_of)
    assert [band["mean"] for band in told_of] == pytest.approx(every.mean(axis=0).tolist(), rel=1e-12)
    assert [band["deviation"] for band in told_of] == pytest.approx(every.std(axis=0).tolist(), rel=1e-9)


def test_of_pictures_after_a_subset(pictures: Path) -> None:
    found, wanted = told(stats(pictures)), decoded(pictures)
    assert {*found["sources"]} == {*wanted} == {"classes", "scenes"}
    for source, samples in wanted.items():
        check(found["sources"][source], samples)
        assert [band["band"] for band in found["sources"][source]] == ["red", "green", "blue"]
    check(found["all"], [one for samples in wanted.values() for one in samples])
    share = pq.read_table(pictures / "samples.parquet").column("valid_share").to_numpy()
    assert (share < 1).any()


def test_of_levels_of_all_bands(levels: Path) -> None:
    found, wanted = told(stats(levels)), decoded(levels)
    assert [band["band"] for band in found["sources"]["four"]] == Four
    assert {band["dtype"] for band in found["all"]} == {"uint16"}
    for source, samples in wanted.items():
        check(found["sources"][source], samples)
    both = {band["band"]: band for band in found["all"]}
    assert {*both} == {*Four}
    check([both["nir"]], [one[:, [3]] for one in wanted["four"]])
    for name in SPACE:
        mine = [one[:, [Four.index(name)]] for one in wanted["four"]]
        check([both[name]], [*mine, *(one[:, [SPACE.index(name)]] for one in wanted["three"])])


@pytest.mark.parametrize("kind", ["drop", "keep"])
def test_after_overlays(pictures: Path, tmp_path: Path, kind: Any) -> None:
    rows = pq.read_table(pictures / "samples.parquet", columns=["id", "key"]).to_pylist()
    Overlay.write(tmp_path / "o.parquet", kind, [row["id"] for row in rows[::3]])
    stay = {row["key"] for n, row in enumerate(rows) if (n % 3 == 0) == (kind == "keep")}
    found, wanted = told(stats(pictures, tmp_path / "o.parquet")), decoded(pictures, stay)
    check(found["all"], [one for samples in wanted.values() for one in samples])
    for source, samples in wanted.items():
        check(found["sources"][source], samples)


def test_samples_count_as_often_as_they_weigh(levels: Path, tmp_path: Path) -> None:
    rows = pq.read_table(levels / "samples.parquet", columns=["id", "key", "source"]).to_pylist()
    many = [row for row in rows if row["source"] == "three"]
    Overlay.write(tmp_path / "o.parquet", "weight", [row["id"] for row in many], [3.0] * len(many))
    found, wanted = told(stats(levels, tmp_path / "o.parquet")), decoded(levels)
    check(found["sources"]["three"], wanted["three"] * 3)
    check(found["sources"]["four"], wanted["four"])


def test_card_and_croissant_tell_the_same(pictures: Path, levels: Path) -> None:
    for out in (pictures, levels):
        plain = json.loads((out / "croissant.json").read_text())
        (rows,) = [one["data"] for one in plain["recordSet"] if one["@id"] == "statistics"]
        assert [row["statistics/mean"] for row in rows] == [band.mean for band in stats(out).bands()]
        card = (out / "README.md").read_text()
        for row in rows:
            assert f"{row['statistics/mean']:.2f}" in card
            assert f"{row['statistics/deviation']:.2f}" in card


def test_the_command_prints_them(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(pictures)]) == 0
    *_, row, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == told(stats(pictures))
    assert row.split()[:4] == ["all", "red,", "green,", "blue"]


def test_a_loader_normalises_levels_by_their_own_numbers(levels: Path, tmp_path: Path) -> None:
    """Of the sources of one kind; sets that differ in bands are refused."""
    rows = pq.read_table(levels / "samples.parquet", columns=["id", "source"]).to_pylist()
    four = Overlay.write(tmp_path / "four.parquet", "keep", [row["id"] for row in rows if row["source"] == "four"])
    loader = Loader(levels, 2, transform=mae(32, normalise="dataset"), overlay=four)
    every = np.concatenate(decoded(levels)["four"]) / 65535
    assert loader.numbers is not None
    assert loader.numbers[0] == pytest.approx(every.mean(axis=0).tolist())
    assert loader.numbers[1] == pytest.approx(every.std(axis=0).tolist())
    assert next(iter(loader)).images.shape == (2, 4, 32, 32)
    with pytest.raises(ShardError, match="differ in bands"):
        Loader(levels, 2, transform=mae(32, normalise="dataset"))


def test_a_mix_of_pictures_and_levels_has_no_numbers(pictures: Path, levels: Path) -> None:
    with pytest.raises(ShardError, match="differ in bands"):
        Loader(Mix({pictures: 1, levels: 1}), 2, transform=mae(32, normalise="dataset"))


def test_what_was_not_measured_is_told(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / "data" / "air").mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(n, 80, 80)).save(tmp_path / "data" / "air" / f"{n}.png")
    plain = recipe_of("air", cut={"measure": False}).model_dump(mode="json") | {"sources": [source_of("air")]}
    plain["exclude"] = {"rules": []}
    datakit.build(Recipe.model_validate(plain), data=tmp_path / "data", out=tmp_path / "out", workers=0)
    with pytest.raises(ShardError, match="no pixel was measured"):
        stats(tmp_path / "out")
    assert "None were measured." in (tmp_path / "out" / "README.md").read_text()


NUMBERS = st.lists(st.integers(0, 65535), min_size=1, max_size=9)


@given(st.lists(st.tuples(st.sampled_from("ab"), NUMBERS, st.integers(0, 3)), min_size=1, max_size=8))
def test_sums_are_exact_and_joined_as_if_added_at_once(samples: list[tuple[str, list[int], int]]) -> None:
    """However records are divided among tables, and however large the numbers are."""
    huge = 1 << 20  # as if each level came so often
    rows = [
        {"source": source, "bands": ["x"], "dtype": "uint16"}
        | dict(zip(SUMS, ([len(v) * huge], [sum(v) * huge], [sum(n * n for n in v) * huge]), strict=True))
        for source, v, _ in samples
    ]
    schema = pa.schema([("source", pa.string()), ("bands", pa.list_(pa.string())), ("dtype", pa.string())])
    for name in SUMS:
        schema = schema.append(pa.field(name, pa.list_(pa.int64())))
    table, times = pa.Table.from_pylist(rows, schema=schema), np.array([often for *_, often in samples])
    whole, parts = Sums.of(schema.with_metadata({LEVELS: b"1"})), Sums(True)
    whole.add(table, times)
    for n in range(len(rows)):
        one = Sums(True)
        one.add(table.slice(n, 1), times[n : n + 1])
        parts.join(one)
    assert parts.found == whole.found
    for source in {source for source, _, often in samples if often}:
        every = [n for name, v, often in samples for n in v * often if name == source]
        (band,) = (band for band in whole.bands() if band.source == source)
        assert band.pixels == len(every) * huge
        assert band.mean == sum(every) / len(every)
        assert band.deviation == pytest.approx(np.std(every), rel=1e-9, abs=1e-9)
