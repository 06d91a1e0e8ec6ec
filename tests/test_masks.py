"""Rasters of classes as a member of each sample: cut as the image is, pixel by pixel, in whatever form they lie."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageOps
from worlds import digests, geotiff, recipe_of, scene, source_of, work_done

import datakit
from datakit import card, image, index, masks
from datakit.files import File
from datakit.manifest import Manifest, MaskSource
from datakit.masks import LabelUnreadable, Masks
from datakit.recipe import Recipe
from datakit.sample import Sample, Window
from datakit.stages.shards import Shards, sample_json
from datakit.staging import StagedFiles

Levels = NDArray[Any]
CLASSES = {1: "road", 2: "roof", 7: "water"}
COLOURS = {0: (255, 255, 255), 1: (0, 0, 255), 2: (0, 255, 255), 7: (9, 9, 9)}


def levels_of(seed: int, width: int, height: int) -> Levels:
    """A mask with long and thin parts, (height, width): 0, 1, 2, 7."""
    rng = np.random.default_rng(seed)
    levels = rng.choice(np.array([0, 1, 2, 7], np.uint8), (height // 7 + 1, width // 9 + 1))
    levels = np.repeat(np.repeat(levels, 7, axis=0), 9, axis=1)[:height, :width].copy()
    levels[rng.integers(0, height, 300), rng.integers(0, width, 300)] = 2
    return levels


def put(data: Path, name: str, size: tuple[int, int], mask: Levels | None = None, **options: Any) -> None:
    """An image, and beside it its mask as PNG."""
    seed = sum(name.encode())
    (data / "images").mkdir(parents=True, exist_ok=True)
    (data / "masks").mkdir(exist_ok=True)
    Image.fromarray(scene(seed, *size)).save(data / "images" / f"{name}.png")
    if mask is not None:
        Image.fromarray(mask).save(data / "masks" / f"{name}.png", **options)


def masked(name: str, suffix: str = "png", **fields: Any) -> dict[str, Any]:
    """A source whose images have masks beside them."""
    plain = source_of(name)
    labels = {"kind": "mask", "path": f"{{dir}}/../masks/{{stem}}.{suffix}", **fields}
    globs = {"images": ["images/*"], "label_files": ["masks/*"], "labels": [labels]}
    plain["collection"]["layout"] = globs
    return plain


def recipe_for(*sources: dict[str, Any], **stages: Any) -> Recipe:
    plain = recipe_of("x", **{"slice": {"grid": {"size_px": 128}}, **stages}).model_dump(mode="json")
    plain["cut"] |= {"masks": True, "encode": {"format": "png"}}
    return Recipe.model_validate({**plain, "sources": sources, "exclude": {"rules": []}})


def samples(out: Path) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    """The JSON of each sample, and all of its members, by plain tarfile."""
    for path in sorted(out.glob("*.tar")):
        found: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, suffix = info.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(info).read()  # type: ignore[union-attr]
        for members in found.values():
            yield json.loads(members["json"]), members


def shown(data: bytes) -> Levels:
    with Image.open(io.BytesIO(data)) as opened:
        assert (opened.format, opened.mode) == ("PNG", "L")
        return np.asarray(opened)


def dropped(out: Path) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(out / "dropped.parquet", columns=["name", "dropped", "detail"]).to_pylist()
    return {row["name"]: (row["dropped"], row["detail"]) for row in rows}


def cut_like(mask: Levels, about: dict[str, Any]) -> Levels:
    """Where a sample lies in the mask of its image: the slow way, pixel by pixel."""
    left, top, width, height = about["window"]
    return np.array([[mask[top + y, left + x] for x in range(width)] for y in range(height)])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Levels]]:
    """Two collections, one with masks (of one image it is missing), and what a build made of them."""
    data = tmp_path_factory.mktemp("masks")
    truth = {name: levels_of(n, 300, 200 + n) for n, name in enumerate("abc")}
    for name, mask in truth.items():
        put(data / "land", name, (mask.shape[1], mask.shape[0]), mask)
    put(data / "land", "none", (140, 150))
    (data / "plain").mkdir()
    Image.fromarray(scene(5, 200, 190)).save(data / "plain" / "p.png")
    recipe = recipe_for(masked("land", classes=CLASSES, ignore=[7]), source_of("plain"), shards={"captions": True})
    datakit.build(recipe, data=data, out=data / "out", workers=0)
    return data, data / "out", truth


def test_every_tile_has_the_mask_of_its_window(built: tuple[Path, Path, dict[str, Levels]]) -> None:
    _, out, truth = built
    seen = set()
    for about, members in samples(out):
        assert list(members) == ["png", "json", "seg.png", "txt"]
        mask = shown(members["seg.png"])
        assert mask.shape == (about["height"], about["width"])
        stem = Path(about["name"]).stem
        if stem in truth:
            expected = cut_like(truth[stem], about)
            expected[expected == 7] = 255
            assert np.array_equal(mask, expected)
            assert json.loads(about["mask_classes"]) == {"1": "road", "2": "roof", "7": "water"}
        else:
            assert (mask == 255).all()
            assert about["mask_classes"] == "{}"
        assert image.decode(members["png"]).shape == (*mask.shape, 3)
        seen.add(stem)
    assert seen == {"a", "b", "c", "none", "p"}


def test_the_index_leads_to_every_member(built: tuple[Path, Path, dict[str, Levels]]) -> None:
    _, out, _ = built
    manifest = Manifest.load(out)
    assert manifest.members == ("png", "json", "seg.png", "txt")
    by_key = {next(iter(m)): m for _, m in samples(out)}
    assert by_key
    table = index.load(out / "index.arrow").to_pylist()
    stored = [members for _, members in samples(out)]
    for row, members in zip(table, stored, strict=True):
        data = (out / manifest.shards[row["shard"]].name).read_bytes()
        for member in manifest.members:
            begin, count = row[f"{member}_offset"], row[f"{member}_bytes"]
            assert data[begin : begin + count] == members[member]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_webdataset_reads_four_members(built: tuple[Path, Path, dict[str, Levels]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset
    _, out, _ = built
    read = 0
    for sample in webdataset.WebDataset([str(p) for p in out.glob("*.tar")], shardshuffle=False).decode("pil"):
        assert {"png", "json", "seg.png", "txt"} <= set(sample)
        assert sample["seg.png"].size == sample["png"].size
        assert sample["txt"] == ""
        read += 1
    assert read == Manifest.load(out).samples


def test_the_card_declares_the_members(built: tuple[Path, Path, dict[str, Levels]]) -> None:
    front = yaml.safe_load((built[1] / "README.md").read_text().split("---\n")[1])
    kinds = {f["name"]: f.get("dtype") for f in front["dataset_info"]["features"]}
    assert kinds == {
        "png": "image", "json": None, "seg.png": "image", "txt": "string", "__key__": "string", "__url__": "string"
    }  # fmt: skip
    tif = {f["name"]: f.get("dtype") for f in card.features("tif", "json")}
    assert tif["tif"] == "binary"


def test_no_table_tells_where_masks_lay(built: tuple[Path, Path, dict[str, Levels]]) -> None:
    """Their stamps would differ between two copies of a collection."""
    for name in ("samples.parquet", "dropped.parquet"):
        assert not {"mask", "mask_bytes"} & set(pq.read_schema(built[1] / name).names)


def test_the_same_bytes_with_workers_and_from_archives(
    built: tuple[Path, Path, dict[str, Levels]], tmp_path: Path
) -> None:
    data, out, _ = built
    recipe = recipe_for(masked("land", classes=CLASSES, ignore=[7]), source_of("plain"), shards={"captions": True})
    datakit.build(recipe, data=data, out=tmp_path / "two", workers=2)
    assert digests(tmp_path / "two") == digests(out)
    (tmp_path / "zip").mkdir()
    shutil.copytree(data / "plain", tmp_path / "zip" / "plain")
    with zipfile.ZipFile(tmp_path / "zip" / "land.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((data / "land").rglob("*.png")):
            archive.write(path, path.relative_to(data / "land"))
    datakit.build(recipe, data=tmp_path / "zip", out=tmp_path / "zipped", workers=0)
    tars = {name: sha for name, sha in digests(out).items() if name.endswith((".tar", ".arrow"))}
    assert tars == {n: sha for n, sha in digests(tmp_path / "zipped").items() if n.endswith((".tar", ".arrow"))}


def test_a_mask_that_changes_is_read_again_and_no_other(tmp_path: Path) -> None:
    for n in range(3):
        put(tmp_path / "land", f"i{n}", (200, 180), levels_of(n, 200, 180))
    recipe, out = recipe_for(masked("land")), tmp_path / "out"
    datakit.build(recipe, data=tmp_path, out=out, workers=0)
    datakit.build(recipe, data=tmp_path, out=out, workers=0)
    assert "images_opened" not in work_done(out)
    Image.fromarray(levels_of(9, 200, 180)).save(tmp_path / "land" / "masks" / "i1.png")
    datakit.build(recipe, data=tmp_path, out=out, workers=0)
    assert work_done(out)["images_opened"] == 1
    assert work_done(out)["images_carried_over"] == 2
    datakit.build(recipe, data=tmp_path, out=tmp_path / "fresh", workers=0)
    assert digests(out) == digests(tmp_path / "fresh")
    path = tmp_path / "land" / "images" / "i2.png"
    os.utime(path, (1_000_000_000, 1_000_000_000))
    datakit.build(recipe, data=tmp_path, out=out, workers=0)
    assert (work_done(out)["images_opened"], work_done(out)["images_carried_over"]) == (1, 2)
    assert digests(out) == digests(tmp_path / "fresh")


def test_staged_tiles_are_freed_and_made_again(tmp_path: Path) -> None:
    put(tmp_path / "land", "a", (300, 280), levels_of(1, 300, 280))
    recipe = recipe_for(masked("land"))
    datakit.build(recipe, data=tmp_path, out=tmp_path / "one", workers=0, free=True)
    datakit.build(recipe, data=tmp_path, out=tmp_path / "two", workers=0)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_staged_files_give_image_and_mask(tmp_path: Path) -> None:
    (tmp_path / "x.staged").write_bytes(b"..imageMASK..")
    sample = Sample(staged="x.staged", staged_offset=2, staged_bytes=9, mask_bytes=4)
    with StagedFiles(tmp_path) as staged:
        assert (staged.read(sample), staged.read_mask(sample)) == (b"image", b"MASK")
        plain = Sample(staged="x.staged", staged_offset=2, staged_bytes=9)
        assert (staged.read(plain), staged.read_mask(plain)) == (b"imageMASK", b"")


def test_masks_are_left_alone_unless_asked_for(tmp_path: Path) -> None:
    put(tmp_path / "land", "a", (200, 180), levels_of(1, 200, 180))
    (tmp_path / "land" / "masks" / "a.png").write_bytes(b"no image")
    recipe = recipe_for(masked("land", classes=CLASSES), cut={"encode": {"format": "png"}})
    plain = recipe.model_dump(mode="json")
    plain["cut"]["masks"] = False
    datakit.build(Recipe.model_validate(plain), data=tmp_path, out=tmp_path / "out", workers=0)
    for about, members in samples(tmp_path / "out"):
        assert list(members) == ["png", "json"]
        assert about["mask_classes"] == "{}"


# what masks are stored as


def sample_of(root: Path, path: Path, size: tuple[int, int], **fields: Any) -> Sample:
    facts = path.stat()
    file = File(path.name, str(path.relative_to(root)), facts.st_size, "", -1, 0, "", -1)
    source = MaskSource(file=asdict(file), **fields)
    width, height = size
    return Sample(
        source="land", mask=source.to_json(), width=width, height=height, image_width=width, image_height=height
    )


def whole(path: Path, size: tuple[int, int], **fields: Any) -> Levels:
    sample = sample_of(path.parent, path, size, **fields)
    with image.quiet(), Masks({"land": path.parent}, sample, path.parent) as reader:
        levels = reader.tile(sample)
        window = Window(3, 5, 20, 17)
        part = Sample(**{**fields_of(sample), "window": window, "width": 20, "height": 17})
        assert np.array_equal(reader.tile(part), levels[5:22, 3:23])
    return levels


def fields_of(sample: Sample) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in ("source", "mask", "image_width", "image_height")}


MASK = levels_of(3, 90, 70)
PALETTE = [value for level in range(256) for value in COLOURS.get(level, (level, 1, 2))]


def in_colour(mask: Levels) -> Levels:
    out = np.zeros((*mask.shape, 3), np.uint8)
    for level, colour in COLOURS.items():
        out[mask == level] = colour
    return out


def paletted(mask: Levels, kind: str, path: Path, **options: Any) -> None:
    picture = Image.fromarray(mask)
    picture.putpalette(PALETTE)
    picture.save(path, kind, **options)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP"])
def test_palettes_give_their_indices(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mask.any"
    paletted(MASK, kind, path, **({"optimize": False} if kind == "GIF" else {}))  # it would number them anew
    assert np.array_equal(whole(path, (90, 70)), MASK)
    assert np.array_equal(whole(path, (90, 70), ignore=(0,)), np.where(MASK == 0, 255, MASK))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_colours_become_levels(tmp_path: Path, kind: str) -> None:
    colours = {5: COLOURS[1], 6: COLOURS[2], 0: COLOURS[0]}  # not that of 7
    expected = np.select([MASK == 0, MASK == 1, MASK == 2], [0, 5, 6], 255)
    Image.fromarray(in_colour(MASK)).save(tmp_path / "rgb", kind)
    assert np.array_equal(whole(tmp_path / "rgb", (90, 70), colours=colours), expected)
    if kind != "BMP":
        rgba = np.dstack([in_colour(MASK), np.full(MASK.shape, 128, np.uint8)])
        Image.fromarray(rgba).save(tmp_path / "rgba", kind)
        assert np.array_equal(whole(tmp_path / "rgba", (90, 70), colours=colours), expected)
    paletted(MASK, kind, tmp_path / "palette")
    assert np.array_equal(whole(tmp_path / "palette", (90, 70), colours=colours), expected)
    ignored = np.where(expected == 6, 255, expected)
    assert np.array_equal(whole(tmp_path / "rgb", (90, 70), colours=colours, ignore=(6,)), ignored)


def gray_png(levels: Levels, bits: int) -> bytes:
    """A gray PNG of 1 to 16 bits."""
    height, width = levels.shape
    spread = np.unpackbits(levels.astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - min(bits, 8) :].reshape(height, -1)
    rows = np.packbits(spread, axis=1) if bits <= 8 else levels.astype(">u2").view(np.uint8).reshape(height, -1)
    chunks = [(b"IHDR", struct.pack(">2I5B", width, height, bits, 0, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + t + c + struct.pack(">I", zlib.crc32(t + c)) for t, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_gray_of_any_bits_gives_its_levels(tmp_path: Path, bits: int) -> None:
    levels = (MASK.astype(int) % (1 << bits)).astype(np.uint8)
    (tmp_path / "mask.png").write_bytes(gray_png(levels, bits))
    assert np.array_equal(whole(tmp_path / "mask.png", (90, 70)), levels)
    if bits < 8:  # as a picture, its highest level is white
        white = {9: (255, 255, 255), 0: (0, 0, 0)}
        expected = np.select([levels == (1 << bits) - 1, levels == 0], [9, 0], 255)
        assert np.array_equal(whole(tmp_path / "mask.png", (90, 70), colours=white), expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32"])
@pytest.mark.parametrize("layout", [{"tiled": True, "blockxsize": 32, "blockysize": 16}, {"blockysize": 7}])
def test_geotiffs_of_any_whole_type(tmp_path: Path, dtype: str, layout: dict[str, Any]) -> None:
    path = tmp_path / "mask.tif"
    levels = MASK.astype(dtype)
    if dtype == "int16":
        levels[MASK == 7] = -1
    geotiff(path, levels[:, :, None], **layout)
    found = whole(path, (90, 70), ignore=(-1,))
    assert np.array_equal(found, np.where((MASK == 7) & (dtype == "int16"), 255, MASK))


def test_large_masks_are_read_by_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WHOLE_PX", "BAND_PX"):
        monkeypatch.setattr(masks, name, 1000)
    geotiff(tmp_path / "tiled.tif", MASK[:, :, None], tiled=True, blockxsize=16, blockysize=16)
    geotiff(tmp_path / "striped.tif", MASK[:, :, None], blockysize=9, compress="lzw")
    for name in ("tiled.tif", "striped.tif"):
        assert np.array_equal(whole(tmp_path / name, (90, 70)), MASK)
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    with pytest.raises(LabelUnreadable, match=r"mask.png: over 1000 px in a format without blocks"):
        whole(tmp_path / "mask.png", (90, 70))


# pictures that are shown turned


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def upright(levels: Levels, orientation: int) -> Levels:
    """What any viewer makes of a picture with that orientation, by Pillow."""
    picture = Image.fromarray(levels)
    picture.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(picture))


def put_turned(data: Path, orientation: int, size: tuple[int, int], suffix: str) -> tuple[set[str], set[str]]:
    """A picture with that orientation and its mask in several forms; names of them, and of those that are misread."""
    levels = levels_of(orientation, *size)
    swaps = orientation > 4 and size[0] != size[1]
    cases = {
        "stored": (levels, None),
        "says_as_image": (levels, orientation),
        "says_upright": (upright(levels, orientation), 1),
        "says_other": (upright(upright(levels, orientation), 3), 3),
        **({"shown": (upright(levels, orientation), None)} if swaps or orientation == 1 else {}),
    }
    for folder in ("images", "masks"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.repeat(levels[:, :, None] * 30, 3, axis=2)
    named = {f"{case}{size[0]}": each for case, each in cases.items()}
    for name, (mask, own) in named.items():
        Image.fromarray(pixels).save(data / "images" / f"{name}.png", exif=exif_of(orientation))
        options = {} if own is None else {"exif": exif_of(own)}
        Image.fromarray(mask).save(data / "masks" / f"{name}.{suffix}", **options)
    # of a picture that is not turned, and where sizes tell, no orientation of the mask's own is asked for
    return set(named), {f"says_other{size[0]}"} if orientation == 1 or swaps else set()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_turn_as_their_pictures_are_shown(tmp_path: Path, orientation: int) -> None:
    """The colour of each px of a picture tells its level: whatever turns the one must turn the other."""
    names, wrong = set(), set()
    for source, suffix in (("land", "png"), ("sea", "tif")):
        for size in ((150, 100), (120, 120)):
            put_names, misread = put_turned(tmp_path / source, orientation, size, suffix)
            names |= {(source, name) for name in put_names}
            wrong |= {(source, name) for name in misread}
    recipe = recipe_for(masked("land", "png"), masked("sea", "tif"), slice={"grid": {"size_px": 64}}, dedup=None)
    datakit.build(recipe, data=tmp_path, out=tmp_path / "out", workers=0)
    seen = set()
    for about, members in samples(tmp_path / "out"):
        name = (about["source"], Path(about["name"]).stem)
        seen.add(name)
        alike = np.array_equal(shown(members["seg.png"]), image.decode(members["png"])[:, :, 0] // 30)
        assert alike == (name not in wrong), (name, about["window"])
    assert dropped(tmp_path / "out") == {}
    assert seen == names


def test_a_turned_mask_of_neither_size_drops_its_image(tmp_path: Path) -> None:
    for name, orientation, own in (("short", 6, None), ("aside", 3, 6)):
        put(tmp_path / "land", name, (150, 100))
        levels = levels_of(1, 150, 100)
        Image.fromarray(scene(3, 150, 100)).save(
            tmp_path / "land/images" / f"{name}.png", exif=exif_of(orientation))  # fmt: skip
        mask = Image.fromarray(levels[:90] if name == "short" else levels)
        mask.save(tmp_path / "land/masks" / f"{name}.png", **({"exif": exif_of(own)} if own else {}))
    put(tmp_path / "land", "good", (150, 100), levels_of(1, 150, 100))
    datakit.build(recipe_for(masked("land")), data=tmp_path, out=tmp_path / "out", workers=0)
    assert dropped(tmp_path / "out") == {
        "images/short.png": ("label_unreadable", "masks/short.png: 150 x 90 px, where the image has 100 x 150"),
        "images/aside.png": ("label_unreadable", "masks/aside.png: 150 x 100 px, where the image has 150 x 100"),
    }


# masks that cannot be used


def test_masks_that_cannot_be_used_drop_their_image_by_name(tmp_path: Path) -> None:
    good = levels_of(1, 150, 140)
    put(tmp_path / "land", "good", (150, 140), good)
    put(tmp_path / "land", "size", (150, 140), good[:100])
    put(tmp_path / "land", "turned", (150, 140), good.T.copy())
    put(tmp_path / "land", "colour", (150, 140), in_colour(good))
    put(tmp_path / "land", "deep", (150, 140), good.astype(np.uint16) * 100)
    for name in ("text", "empty", "short"):
        put(tmp_path / "land", name, (150, 140), good)
    folder = tmp_path / "land" / "masks"
    (folder / "text.png").write_bytes(b"<html>")
    (folder / "empty.png").write_bytes(b"")
    (folder / "short.png").write_bytes((folder / "good.png").read_bytes()[:-200])
    datakit.build(recipe_for(masked("land")), data=tmp_path, out=tmp_path / "out", workers=0)
    lost = dropped(tmp_path / "out")
    assert {why for why, _ in lost.values()} == {"label_unreadable"}
    details = {Path(name).stem: detail for name, (_, detail) in lost.items()}
    assert details.pop("size") == "masks/size.png: 150 x 100 px, where the image has 150 x 140"
    assert details.pop("turned") == "masks/turned.png: 140 x 150 px, where the image has 150 x 140"
    assert details.pop("colour") == "masks/colour.png: 3 bands, where levels are one; give `colours`"
    assert details.pop("deep") == "masks/deep.png: level 700, where seg.png holds 0 to 255"
    assert set(details) == {"text", "empty", "short"}
    assert all(name in detail and str(tmp_path) not in detail for name, detail in details.items())
    assert {about["name"] for about, _ in samples(tmp_path / "out")} == {"images/good.png"}
    for count in Manifest.load(tmp_path / "out").counts:
        assert count.came == count.left + sum(count.dropped.values())


def test_a_mask_that_was_mended_is_tried_again_when_asked(tmp_path: Path) -> None:
    """As if at the same moment, so that nothing tells of it."""
    for name in ("good", "bad"):
        put(tmp_path / "land", name, (150, 140), levels_of(1, 150, 140))
    path = tmp_path / "land" / "masks" / "bad.png"
    whole, stamp = path.read_bytes(), path.stat().st_mtime_ns
    for content, retry, lost in (
        (b"<html>".ljust(len(whole)), [], 1),
        (whole, [], 1),
        (whole, ["label_unreadable"], 0),
    ):
        path.write_bytes(content)
        os.utime(path, ns=(stamp, stamp))
        datakit.build(recipe_for(masked("land")), tmp_path, tmp_path / "out", workers=0, retry=retry)
        assert len(dropped(tmp_path / "out")) == lost
    assert work_done(tmp_path / "out")["images_opened"] == 1
    datakit.build(recipe_for(masked("land")), tmp_path, tmp_path / "fresh", workers=0)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_levels_over_255_may_be_ignored(tmp_path: Path) -> None:
    put(tmp_path / "land", "deep", (150, 140), np.where(MASK[:140, :1] == 9, 1, 65535).astype(np.uint16).repeat(150, 1))
    size = (150, 70)
    path = tmp_path / "land" / "masks" / "deep.png"
    assert (whole(path, size, ignore=(65535,)) == 255).all()


def test_floats_are_no_classes(tmp_path: Path) -> None:
    geotiff(tmp_path / "mask.tif", MASK[:, :, None].astype(np.float32))
    with pytest.raises(LabelUnreadable, match="levels of float32, where classes are whole numbers"):
        whole(tmp_path / "mask.tif", (90, 70))


def test_a_mask_that_is_gone_stops_the_build(tmp_path: Path) -> None:
    """As an image does: a disk that is not there must not drop everything for good."""
    sample = sample_of(tmp_path, tmp_path, (9, 9))
    gone = sample.mask.replace(f'"path": "{Path()}"', '"path": "gone.png"')
    sample = Sample(**{**fields_of(sample), "mask": gone, "width": 9, "height": 9})
    with image.quiet(), Masks({"land": tmp_path}, sample, tmp_path) as reader, pytest.raises(FileNotFoundError):
        reader.tile(sample)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("palette", [True, False])
def test_masks_cut_short_anywhere_are_never_read_wrong(tmp_path: Path, kind: str, palette: bool) -> None:
    picture = Image.fromarray(MASK)
    if palette:
        picture.putpalette(PALETTE)
    options = {"GIF": {"optimize": False}, "TIFF": {"compression": "tiff_lzw"}}.get(kind, {})
    picture.save(tmp_path / "whole", kind, **options)
    data = (tmp_path / "whole").read_bytes()
    for end in range(0, len(data), max(len(data) // 40, 1)):
        (tmp_path / "short").write_bytes(data[:end])
        try:
            found = whole(tmp_path / "short", (90, 70))
        except LabelUnreadable:
            continue
        assert np.array_equal(found, MASK), end


# captions


def test_captions_are_lines() -> None:
    assert Shards(captions=True).members("jpg", masks=True) == ("jpg", "json", "seg.png", "txt")
    assert Shards(captions=True).members("jpg", masks=False) == ("jpg", "json", "txt")
    assert Shards().members("jpg", masks=False) == ("jpg", "json")


def test_captions_reach_the_shards(tmp_path: Path) -> None:
    folder = tmp_path / "said"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(scene(sum(name.encode()), 100, 90)).save(folder / f"{name}.png")
    said = [{"raw": "A pier.  Two ships\n beside it."}, {"raw": "Größe"}]
    (folder / "said.json").write_text(json.dumps({"images": [{"filename": "a.png", "sentences": said}]}))
    source = source_of("said")
    labels = [{"kind": "captions", "path": "said.json"}]
    source["collection"]["layout"] = {"images": ["*.png"], "label_files": ["*.json"], "labels": labels}
    recipe = recipe_for(source, shards={"captions": True}).model_dump(mode="json")
    recipe["cut"]["masks"] = False
    datakit.build(Recipe.model_validate(recipe), data=tmp_path, out=tmp_path / "out", workers=0)
    found = {
        about["name"]: (json.loads(about["captions"]), members["txt"]) for about, members in samples(tmp_path / "out")
    }
    captions, text = found["a.png"]
    assert text.decode().splitlines() == [" ".join(c.split()) for c in captions]
    assert text.decode() == "A pier. Two ships beside it.\nGröße"
    assert found["b.png"] == ([], b"")


def test_json_fields_are_of_one_type_and_never_null() -> None:
    bare = json.loads(sample_json(Sample(width=4, height=3)))
    mask = MaskSource(file={}, classes={7: "water", 1: "road"}).to_json()
    said = {"captions": ("a", "b"), "bands": ("red", "nir"), "dtype": "uint16", "narrowed": "{}", "gsd_from": "labels"}
    place: dict[str, Any] = {"width": 4, "height": 3, "image_width": 9, "image_height": 6, "scale": 2.5, "gsd_m": 1.0}
    sample = Sample(**said, **place, gsd_range_m=(0.3, 4), mask=mask, mask_bytes=3)
    full = json.loads(sample_json(sample))
    assert list(bare) == list(full) == list(card.FIELDS)
    assert {n: type(v) for n, v in bare.items()} == {n: type(v) for n, v in full.items()}
    assert None not in bare.values()
    last = list(bare)[-12:]
    assert [bare[n] for n in last] == ["", [-1.0, -1.0], 1.0, "[]", "[]", "", "", "{}", "[]", "", "", -1.0]
    assert full["mask_classes"] == '{"1": "road", "7": "water"}'
    assert full["gsd_range_m"] == [0.3, 4.0]
    assert (bare["window"], full["window"]) == ([0, 0, 4, 3], [0, 0, 9, 6])
