"""The card says what the manifest says, in a form that Hugging Face and Markdown readers take."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import datakit
from datakit import card
from datakit.bands import Sums
from datakit.card import features
from datakit.manifest import Manifest, Shard
from datakit.recipe import Recipe
from datakit.sample import Sample
from datakit.stages.protect import Protect, certificate
from datakit.stages.shards import sample_json
from datakit.tally import Tally

Built = tuple[Manifest, str, Tally]
FOUND = {"protect": certificate(Protect(), [], {}, [])}
LICENCE = "For research | teaching only.\nAsk first."


def collection(name: str, **fields: Any) -> dict[str, Any]:
    plain = {
        "name": name,
        "title": f"{name} | a title",
        "homepage": f"https://example.org/{name}",
        "licence": "unstated",
        "modality": "optical",
        "bands": ["red", "green", "blue"],
        "layout": {"images": ["*/*.png"]},
        "splits": {split: {"images": [f"{split}/*.png"]} for split in ("train", "val")},
    }
    return {"name": name, "path": name, "collection": {**plain, **fields}}


def tally_of(out: Path) -> Tally:
    """What the records of a set add up to."""
    records = pq.read_table(out / "samples.parquet")
    tally = Tally(Sums.of(records.schema))
    tally.add(records)
    return tally


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A build of two collections of three, and its card."""
    folder = tmp_path_factory.mktemp("built")
    rng = np.random.default_rng(0)
    for n, place in enumerate(["air/train", "air/val", "land/train", "land/val"]):
        (folder / place).mkdir(parents=True)
        for k in range(n + 1):
            Image.fromarray(rng.integers(0, 255, (64, 90, 3), np.uint8)).save(folder / place / f"{k}.png")
    (folder / "land" / "train" / "0.png").write_bytes(b"none")
    sources = [
        collection("air", licence=LICENCE, provider_terms="Terms of\nthe provider."),
        collection("land"),
        collection("sea"),
    ]
    plain = {"name": "small", "title": "Klein & fein: ü", "about": "What it is.", "sources": sources}
    plain["include_evaluation"] = ["air:val", "land:val"]
    recipe = Recipe.model_validate(
        {**plain, "slice": {"grid": {"size_px": 64}}, "shards": {"split": "", "max_samples": 5}}
    )
    manifest = datakit.build(recipe, folder, folder / "out", workers=0, allow_missing=True)
    text = (folder / "out" / "README.md").read_text(encoding="utf-8")
    tally = tally_of(folder / "out")
    assert text == card.text(manifest, FOUND, tally)
    assert "\n\n**It includes evaluation data: air:val, land:val.** What it is.\n" in text
    return manifest, text, tally


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a card as rows of cells."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    rows = [[re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in one.splitlines()] for one in found]
    return [[[cell.strip() for cell in row] for n, row in enumerate(one) if n != 1] for one in rows]


def test_front_matter(built: Built) -> None:
    manifest, text, _ = built
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "other"
    assert front["pretty_name"] == "Klein & fein: ü"
    assert front["size_categories"] == ["n<1K"]
    (config,) = front["configs"]
    assert config["config_name"] == "default"
    patterns = {file["split"]: re.compile(file["path"].replace("*", r"\d{6}")) for file in config["data_files"]}
    assert set(patterns) == {"train", "val"}
    for shard in manifest.shards:
        assert [split for split, pattern in patterns.items() if pattern.fullmatch(shard.name)] == [shard.split]


def test_a_set_of_one_licence_that_the_hub_knows_has_its_name(built: Built) -> None:
    manifest = built[0]
    for names, licence in ((["CC-BY-4.0"], "cc-by-4.0"), (["CC-BY-4.0", "MIT"], "other"), (["unstated"], "other")):
        front = yaml.safe_load(card.front(manifest, names))
        assert (front["license"], "license_name" in front) == (licence, licence == "other")


def test_collections_are_cited_once(built: Built) -> None:
    manifest, text, tally = built
    assert "## Citation" not in text
    recipe = json.loads(json.dumps(manifest.recipe))
    for source in recipe["sources"]:
        source["collection"]["citation"] = "A. Author:\nOne. 2024." if source["name"] != "sea" else "Not at hand."
    told = card.text(manifest.model_copy(update={"recipe": recipe}), FOUND, tally)
    assert told.endswith("## Citation\n\n- air: A. Author: One. 2024.\n")


def test_tables_are_whole(built: Built) -> None:
    for rows in tables(built[1]):
        assert {len(row) for row in rows} == {len(rows[0])}
    assert card.table([("a", "b"), ("x|y\nz", "")]) == ["| a | b |", "|---|---|", "| x\\|y z |  |"]


def test_sources_and_licences_agree_with_the_manifest(built: Built) -> None:
    manifest, text, _ = built
    rows = {row[0]: row[1:] for row in tables(text)[0][1:]}
    assert set(rows) == {"air", "land"}
    for source in manifest.sources:
        link, licence, samples, kb, psnr = rows[source.name]
        assert link == f"[{source.name} \\| a title](https://example.org/{source.name})"
        assert licence == {"air": "For research \\| teaching only. Ask first.", "land": "unstated"}[source.name]
        assert samples == str(source.samples)
        assert kb == f"{source.mean_bytes / 1e3:.1f}"
        assert psnr == ("" if source.mean_psnr_db is None else f"{source.mean_psnr_db:.1f}")
    assert sum(source.samples for source in manifest.sources) == manifest.samples
    unstated = next(source.samples for source in manifest.sources if source.name == "land")
    assert f"{unstated} of {manifest.samples} samples come from collections that state no licence." in text
    assert "- air: Terms of the provider." in text


def test_samples_are_counted_by_licence_and_by_band(built: Built) -> None:
    manifest, text, tally = built
    _, licences, means, *_ = tables(text)
    by_source = {source.licence: source.samples for source in manifest.sources if source.samples}
    counted = {name: int(n) for name, n in licences[1:]}
    assert counted == {
        "For research \\| teaching only. Ask first.": by_source[LICENCE],
        "unstated": by_source["unstated"],
    }
    assert [row[0] for row in means[1:]] == ["air", "land", "all"]
    assert [(row[1], row[2], int(row[3])) for row in means[1:]] == [
        ("red, green, blue", "uint8", n)
        for n in (*(s.samples for s in manifest.sources if s.samples), manifest.samples)
    ]
    assert means[-1][5] == ", ".join(f"{band.mean:.2f}" for band in tally.bands.overall())
    bare = card.text(manifest, FOUND, Tally())
    assert "None were measured." in bare


def test_what_came_and_went_agrees_with_the_manifest(built: Built) -> None:
    manifest, text, _ = built
    rows = tables(text)[3][1:]
    assert len(rows) == len(manifest.counts)
    for (stage, source, came, out, dropped), count in zip(rows, manifest.counts, strict=True):
        assert (stage, source, came) == (count.stage, count.source, str(count.came))
        assert out == (str(count.left) if count.left == count.made else f"{count.left} as {count.made} tiles")
        assert dropped == ", ".join(f"{reason} {n}" for reason, n in count.dropped.items())
    assert ["scan", "land", "7", "6", "unreadable 1"] in rows
    assert ["slice", "air", "3", "3 as 6 tiles", ""] in rows


def test_missing_collections_are_named(built: Built) -> None:
    manifest, text, tally = built
    assert manifest.missing == ("sea",)
    assert "Collections of the recipe that were not at hand: sea." in text
    assert "not at hand" not in card.text(manifest.model_copy(update={"missing": ()}), FOUND, tally)


def test_fields_are_those_of_the_samples(built: Built) -> None:
    told = {name for row in tables(built[1])[4][1:] for name in row[0].strip("`").split(", ")}
    assert told == set(yaml.safe_load(sample_json(Sample())))


def test_the_urls_to_read(built: Built) -> None:
    manifest, text, _ = built
    assert 'webdataset.WebDataset("small-train-{000000..000001}.tar"' in text
    shard = Shard(name="x-train-000000.tar", split="train", samples=1, bytes=1, sha256="")
    assert card.urls(manifest.model_copy(update={"shards": (shard,)})) == "x-train-000000.tar"


@pytest.mark.parametrize(
    ("samples", "size"),
    [(0, "n<1K"), (999, "n<1K"), (1_000, "1K<n<10K"), (4_000_000, "1M<n<10M"), (13_000_000, "n>10M")],
)
def test_size_categories(built: Built, samples: int, size: str) -> None:
    many = built[0].model_copy(update={"samples": samples})
    assert yaml.safe_load(card.front(many))["size_categories"] == [size]


def test_declared_features_are_those_of_the_json() -> None:
    plain = json.loads(sample_json(Sample(width=4, height=3)))
    kinds = {str: "string", int: "int64", float: "float64"}
    declared = {f["name"]: f for f in features("jpg")[1]["struct"]}  # type: ignore[attr-defined]
    assert list(declared) == list(plain)
    for name, value in plain.items():
        if isinstance(value, list):
            assert declared[name]["list"] == kinds[type(value[0])]
        else:
            assert declared[name]["dtype"] == kinds[type(value)]
