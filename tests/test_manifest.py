"""What a source is, by its globs; what a build left, and what becomes of a manifest that is no such thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datakit.errors import RecipeError, ShardError
from datakit.manifest import Collection, Count, Layout, Manifest, MaskRaster, Shard, SourceLeft

COLLECTION: dict[str, Any] = {
    "name": "tiny",
    "title": "Tiny",
    "homepage": "https://example.org",
    "licence": "CC0-1.0",
    "modality": "optical",
    "bands": ["red", "green", "blue"],
    "layout": {"images": ["**/*.png"]},
}


def left() -> Manifest:
    source = SourceLeft(
        name="tiny",
        title="Tiny",
        version=None,
        homepage="",
        licence="unstated",
        provider_terms=None,
        samples=2,
        bytes=20,
        mean_bytes=10.0,
        mean_psnr_db=None,
        unmatched=0,
    )
    return Manifest(
        name="set",
        title="Sätze",
        recipe={"name": "set"},
        recipe_digest="0",
        versions={"datakit": "0"},
        sources=(source,),
        missing=("other",),
        samples=2,
        members=("jpg", "json"),
        shards=(Shard(name="set-train-000000.tar", split="train", samples=2, bytes=2048, sha256="f"),),
        counts=(Count(stage="list", source="tiny", came=3, left=2, made=2, dropped={"unmatched": 1}),),
        files={"README.md": "e"},
    )


@pytest.mark.parametrize(
    ("glob", "matched", "others"),
    [
        ("*.png", ["a.png", ".png", "ä b.png", "a\nb.png"], ["a/b.png", "a.PNG", "a.pngx", "axpng"]),
        ("**/*.png", ["a.png", "a/b.png", "a/b/c.png", "日本/𝄞.png"], ["a/b.jpg", "a.png/b"]),
        ("train/**/*.png", ["train/a.png", "train/a/b.png"], ["train.png", "xtrain/a.png", "test/train/a.png"]),
        ("train/**", ["train/a", "train/a/b.c"], ["train", "train2/a"]),
        ("a?c.png", ["abc.png", "aäc.png"], ["a/c.png", "ac.png", "abbc.png"]),
        ("*.[jJ][pP][gG]", ["a.jpg", "a.JPG", "a.jPg"], ["a.jpeg", "a.jp"]),
        ("[a-c]1", ["a1", "b1", "c1"], ["d1", "-1", "a-1"]),
        ("[!a-c]1", ["d1", "!1", "-1"], ["a1", "/1", "1"]),
        ("[!]1", ["!1"], ["a1"]),
        ("[].png", ["[].png"], [".png"]),
        (r"[\d^&&].png", ["d.png", "^.png", "&.png", "\\.png"], ["1.png"]),
        ("a+(b)|{c}$.png", ["a+(b)|{c}$.png"], ["aab.png", "c}.png"]),
        ("v1.0/*.tar.gz", ["v1.0/a.b.tar.gz"], ["v1x0/a.tar.gz", "v1.0/atarxgz"]),
        ("Zürich/*.tif", ["Zürich/1.tif"], ["Zurich/1.tif"]),
        ("[äö].png", ["ä.png", "ö.png"], ["a.png"]),
    ],
)
def test_globs(glob: str, matched: list[str], others: list[str]) -> None:
    layout = Layout(images=(glob,))
    assert [name for name in (*matched, *others) if layout.kind(name) == "image"] == matched


@given(st.text(alphabet=st.sampled_from("ab[]!^-\\&~|/*?.é"), max_size=12))
def test_any_text_is_a_glob_or_is_refused_as_one(glob: str) -> None:
    try:
        layout = Layout(images=(glob,))
    except ValueError as exc:
        assert "is not a glob" in str(exc)  # noqa: PT017
    else:
        assert layout.kind("ab/a.b") in ("image", "")


def test_two_dashes_in_a_glob_are_no_difference_of_sets() -> None:
    layout = Layout(images=("[+--].jpg", "[---]"))
    assert [name for name in ("+.jpg", ",.jpg", "-.jpg", "a.jpg", "-", "+") if layout.kind(name)] == [
        "+.jpg", ",.jpg", "-.jpg", "-",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="is not a glob: bad character range"):
        Layout(images=("[?--]",))


def test_a_bad_glob_is_named() -> None:
    with pytest.raises(ValueError, match=r"\[z-a\].png is not a glob: bad character range z-a"):
        Layout(images=("[z-a].png",))


@pytest.mark.parametrize("field", ["classes", "colours"])
@pytest.mark.parametrize("level", [-1, 255, 256])
def test_255_of_a_mask_is_no_class(field: str, level: int) -> None:
    value: Any = {"classes": "building", "colours": (255, 255, 255)}[field]
    with pytest.raises(ValueError, match=f"from 0 to 254, not {level}: 255 in seg.png is no label"):
        MaskRaster(path="x", **{field: {0: value, level: value}})


def test_labels_go_first() -> None:
    layout = Layout(images=("**/*.png",), label_files=("masks/*.png", "**/*.txt"))
    kinds = {name: layout.kind(name) for name in ("a.png", "masks/a.png", "masks/b/a.png", "a.txt", "a.jpg")}
    assert kinds == {"a.png": "image", "masks/a.png": "label", "masks/b/a.png": "image", "a.txt": "label", "a.jpg": ""}


def test_the_first_split_that_fits_is_the_split() -> None:
    splits = {"train": {"images": ["train/**"]}, "val": {"images": ["*/b.png"], "count": 1}, "test": {}}
    collection = Collection.model_validate({**COLLECTION, "splits": splits})
    names = ("train/b.png", "val/b.png", "val/c.png", "b.png")
    assert [collection.split_of(name) for name in names] == ["train", "val", "", ""]


def test_a_manifest_of_a_source_names_all_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    wrong = {
        **COLLECTION,
        "name": "T",
        "colour": 1,
        "modality": "radar",
        "count": -1,
        "splits": {"train": {"image": []}},
        "layout": {"images": ["*"], "labels": [{"kind": "dota", "file": "x"}, {"kind": "yolo"}]},
    }
    path.write_text(json.dumps(wrong))
    with pytest.raises(RecipeError) as caught:
        Collection.load(path)
    head, *lines = str(caught.value).splitlines()
    assert head == f"{path}: 7 wrong"
    places = {line.split(":")[0].strip(): line for line in lines}
    assert set(places) == {
        "name", "colour", "modality", "count", "splits.train.image", "layout.labels.0.dota.file", "layout.labels.1",
    }  # fmt: skip
    assert places["splits.train.image"].endswith("no such key; allowed: bytes, count, images, lists")
    assert places["layout.labels.0.dota.file"].endswith("allowed: kind, path")
    assert "'class_folders', 'dota', 'voc', 'coco'" in places["layout.labels.1"]
    assert "'sar'" in places["modality"]
    assert places["modality"].endswith("not 'radar'")
    assert places["count"].endswith("greater than or equal to 0, not -1")
    assert "licence" in places["colour"]


@pytest.mark.parametrize("text", ["a: [", "\x00", "caf\xe9: 1"])
def test_what_is_not_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecipeError, match=r"a\.yaml: not YAML"):
        Collection.load(path)
    with pytest.raises(RecipeError, match=r"b\.yaml: No such file"):
        Collection.load(tmp_path / "b.yaml")


def test_what_a_build_left_reads_back(tmp_path: Path) -> None:
    manifest = left()
    (tmp_path / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    assert Manifest.load(tmp_path) == Manifest.load(str(tmp_path / "manifest.json")) == manifest
    assert Manifest.load(tmp_path).to_json() == manifest.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "manifest format 2; this version reads 1. Update datakit"),
        ({"format": 2, "more": 1}, "manifest format 2; this version reads 1. Update datakit"),
        ({"format": None}, "manifest format None; this version reads 1"),
        ({"samples": "many"}, "not a whole manifest (samples: "),
        ({"more": 1}, "not a whole manifest (more: no such key; allowed: counts, files, format, "),
    ],
)
def test_a_manifest_that_is_not_read_says_what_to_do(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({**json.loads(left().to_json()), **change}))
    with pytest.raises(ShardError) as caught:
        Manifest.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'manifest.json'}: {message}")


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"{", b"\xff\xfe", left().to_json().encode()[:300]])
def test_damaged_manifests_are_no_traceback(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(ShardError, match=r"manifest\.json: (not a whole manifest|manifest format unknown)"):
        Manifest.load(tmp_path)


def test_a_build_that_did_not_finish(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"manifest\.json: no such file\..* run `datakit build` again"):
        Manifest.load(tmp_path)
