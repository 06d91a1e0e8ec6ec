"""Held-out images of which only a part is shared: crops, shifts, other scales, either way round."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tars import write_tar
from test_dedup import ALL, kept, lost, put
from worlds import SHARED, digests, recipe_of, scene, work_done, write_recipe

import datakit
from datakit.cli import main
from datakit.contain import PARTS, Found, Index, described
from datakit.folders import gc
from datakit.looks import TURNS, turn
from datakit.manifest import Manifest
from datakit.points import gray_of, points_of
from datakit.recipe import Recipe
from datakit.sources.land import KINDS

Pixels = NDArray[np.uint8]
Out = pytest.CaptureFixture[str]
LEAST_POINTS, LEAST_CORRELATION, LEAST_SHARE = 8, 0.8, 0.48  # of Contain


class Case(NamedTuple):
    """A picture that shows a part of a held-out one, or that one is a part of."""

    held: str
    pixels: Pixels
    about: str


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


def scaled(pixels: Pixels, scale: float) -> Pixels:
    size = max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[0] * scale), 1)
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC))


def cropped(pixels: Pixels, rng: np.random.Generator, share: float) -> Pixels:
    """A window of at least that share, of another shape, anywhere."""
    height, width = pixels.shape[:2]
    across = min(width, round(width * (share * np.exp(rng.uniform(-0.3, 0.3))) ** 0.5))
    down = min(height, -int(-height * width * share // across))
    across = -int(-height * width * share // down)
    left, top = rng.integers(width - across + 1), rng.integers(height - down + 1)
    return pixels[top : top + down, left : left + across]


def changed(pixels: Pixels, rng: np.random.Generator, scale: float) -> tuple[Pixels, str]:
    """At another scale, turned or mirrored, and encoded again."""
    place, quality = int(rng.integers(8)), int(rng.integers(60, 96))
    small = turn(scaled(pixels, scale)[None], place)[0]
    return jpeg(small, quality), f"scale {scale:.2f} {TURNS[place]} quality {quality}"


def planted(pictures: dict[str, Pixels], seed: int, each: int) -> Iterator[Case]:
    """Crops of at least half of held-out pictures."""
    rng = np.random.default_rng(seed)
    for name, pixels in pictures.items():
        for _ in range(each):
            share = rng.uniform(0.5, 1)
            found, how = changed(cropped(pixels, rng, share), rng, 2 ** rng.uniform(-1, 1))
            yield Case(name, found, f"{name} share {share:.2f} {how}")


def index_of(pictures: dict[str, Pixels], folder: Path) -> Index:
    rows = []
    for name, pixels in pictures.items():
        height, width = pixels.shape[:2]
        place = {"name": name, "image_size": [width, height], "window": [0, 0, width, height]}
        rows.append({**place, **described(pixels)})
    pq.write_table(pa.Table.from_pylist(rows, schema=PARTS), folder / "held.parts")
    return Index.build(folder / "index", [folder / "held.parts"])


def search(index: Index, cases: Sequence[Case]) -> Iterator[tuple[str, Found]]:
    """What counts as shared: the name of the held-out picture, and what was found."""
    for found in index.search([(gray := gray_of(case.pixels), points_of(gray)) for case in cases]):
        m = found.match
        strong = m.points >= LEAST_POINTS and m.correlation >= LEAST_CORRELATION
        if strong and max(m.share, m.held_share) >= LEAST_SHARE:
            yield index.images[found.image]["name"], found


def scored(index: Index, cases: Sequence[Case]) -> tuple[list[str], list[str]]:
    """Cases that were missed, and pictures that were found in one they share nothing with."""
    hits = list(search(index, cases))
    there = {found.query for name, found in hits if name == cases[found.query].held}
    missed = [case.about for n, case in enumerate(cases) if n not in there]
    return missed, [f"{name} in {cases[f.query].about}" for name, f in hits if name != cases[f.query].held]


def drawn(first: int, count: int = 1) -> dict[str, Pixels]:
    """Scenes of every kind, of several sizes."""
    sizes = ((512, 512), (400, 420), (600, 480), (256, 256))
    seeds = range(first, first + count * len(KINDS))
    return {f"{kind}-{n}": scene(n, *sizes[n % 4], kind) for n, kind in zip(seeds, list(KINDS) * count, strict=True)}


def real() -> dict[str, Pixels]:
    """Windows of two aerial images and of what else is there."""
    if not (SHARED / "rs").is_dir():
        pytest.skip("no shared data")
    found = {}
    for name in ("P0706.png", "P1888.png", "389225main_sw_1965_1024.jpg"):
        pixels = np.asarray(Image.open(SHARED / "rs" / name).convert("RGB"))
        height, width = pixels.shape[:2]
        for top in range(0, height - 511, 512):
            for left in range(0, width - 511, 512):
                found[f"{name}@{left},{top}"] = pixels[top : top + 512, left : left + 512]
    for path in sorted((SHARED / "dedup").glob("ukbench*[0-9].jpg")):
        found[path.stem] = np.asarray(Image.open(path).convert("RGB"))
    return found


# recall


@pytest.mark.parametrize("which", ["drawn", "real"])
def test_crops_of_held_out_images_are_found(tmp_path: Path, which: str) -> None:
    pictures = drawn(400) if which == "drawn" else real()
    cases = list(planted(pictures, 1, 3))
    missed, false = scored(index_of(pictures, tmp_path), cases)
    assert len(missed) <= 0.05 * len(cases), missed
    assert not false


@pytest.mark.parametrize("which", ["drawn", "real"])
def test_pictures_that_hold_most_of_a_held_out_image_are_found(tmp_path: Path, which: str) -> None:
    """The other way round: what is held out is a crop."""
    pictures, rng = drawn(400) if which == "drawn" else real(), np.random.default_rng(2)
    held = {name: cropped(pixels, rng, rng.uniform(0.5, 1)) for name, pixels in pictures.items()}
    cases = []
    for name, pixels in pictures.items():
        for _ in range(3):
            found, how = changed(pixels, rng, 2 ** rng.uniform(-1, 1))
            cases.append(Case(name, found, f"{name} {how}"))
    missed, false = scored(index_of(held, tmp_path), cases)
    assert len(missed) <= 0.05 * len(cases), missed
    assert not false


@pytest.mark.parametrize("which", ["drawn", "real"])
def test_whole_copies_are_found(tmp_path: Path, which: str) -> None:
    pictures, rng = drawn(400) if which == "drawn" else real(), np.random.default_rng(3)
    cases = []
    for name, pixels in pictures.items():
        for _ in range(4):
            found, how = changed(pixels, rng, 2 ** rng.uniform(-1, 1))
            cases.append(Case(name, found, f"{name} {how}"))
    missed, _ = scored(index_of(pictures, tmp_path), cases)
    assert len(missed) <= 0.01 * len(cases), missed


def test_a_tile_of_a_large_held_out_image_is_found(tmp_path: Path) -> None:
    """In windows, as `protect sign` describes it; and a large picture beside it."""
    large, rng = scene(77, 2400, 2000, "blocks"), np.random.default_rng(4)
    places = [(min(x, 1888), min(y, 1488)) for y in range(0, 2000, 512) for x in range(0, 2400, 512)]
    whole = {"name": "large", "image_size": [2400, 2000]}
    rows = [{**whole, "window": [x, y, 512, 512], **described(large[y : y + 512, x : x + 512])} for x, y in places]
    pq.write_table(pa.Table.from_pylist(rows, schema=PARTS), tmp_path / "held.parts")
    cases = [Case("large", jpeg(large[100:1700, 300:], 80), "two thirds")]
    for _ in range(20):
        scale = 2 ** rng.uniform(-1, 1)
        side = int(512 / scale)
        x, y = rng.integers(2400 - side), rng.integers(2000 - side)
        found, how = changed(large[y : y + side, x : x + side], rng, scale)
        cases.append(Case("large", found, f"{x},{y} {how}"))
    index = Index.build(tmp_path / "index", [tmp_path / "held.parts"])
    missed, false = scored(index, cases)
    assert len(missed) <= 1, missed
    assert not false
    assert not list(search(index, [Case("", scene(78, 2200, 1800, "blocks"), "another")]))


@pytest.mark.parametrize(("mine", "its"), [(7, 0), (0, 7)])
def test_votes_are_for_what_is_held_out_at_the_ends_of_the_pyramid(tmp_path: Path, mine: int, its: int) -> None:
    index = index_of({"a": scene(5, 400, 400)}, tmp_path)
    points = np.array(index.points[np.asarray(index.points["level"]) == its])
    points["level"] = mine
    versions = {version for _, version, *_ in index.votes(points, np.zeros(len(points), np.int64))}
    assert versions
    assert versions <= {0, 1}


# what is not the same


def furrows(rng: np.random.Generator) -> Pixels:
    """A field: straight rows a few px apart, soil of its own."""
    y, x = np.mgrid[:512, :512]
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 14)
    rows = 28 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    soil = scaled(rng.integers(70, 150, (40, 40, 3), np.uint8), 12.8)[..., 0]
    return gray3(rows + soil + rng.normal(0, 4, (512, 512)))


def roofs(rng: np.random.Generator) -> Pixels:
    """Equal roofs in equal rows, of four colours."""
    out, step = rng.normal(95, 4, (512, 512)), int(rng.integers(24, 40))
    for top in range(6, 512 - step, step):
        for left in range(6, 512 - step, step):
            side = int(step * 0.6)
            out[top : top + side, left : left + side] = rng.choice([150, 165, 180, 200])
            out[top : top + side, left + side // 2 : left + side] -= 25
    return gray3(out)


def car_park(rng: np.random.Generator) -> Pixels:
    """Lots of one size in every picture, most of them taken."""
    out = rng.normal(90, 3, (512, 512))
    for top in range(8, 488, 30):
        for left in range(4, 500, 13):
            out[top : top + 24, left] = 190
            if rng.random() < 0.7:
                out[top + 2 : top + 20, left + 3 : left + 10] = rng.choice([30, 60, 140, 200, 230])
    return gray3(out)


def framed(rng: np.random.Generator) -> Pixels:
    """Another picture in the black frame of a satellite's scene, with a line of text."""
    out = scene(int(rng.integers(1 << 30)), 512, 512, list(KINDS)[int(rng.integers(len(KINDS)))]).copy()
    y, x = np.mgrid[:512, :512]
    out[(x * 0.9 + y * 0.25 < 128) | (y * 0.9 - x * 0.25 > 384)] = 0
    picture = Image.fromarray(out)
    ImageDraw.Draw(picture).text((140, 250), "Imagery (c) Provider  Imagery (c) Provider", fill=(255, 255, 255))
    return np.asarray(picture)


def gray3(levels: NDArray[np.float64]) -> Pixels:
    return np.repeat(np.clip(levels, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("drawing", [furrows, roofs, car_park, framed])
def test_pictures_of_one_pattern_share_nothing(tmp_path: Path, drawing: Callable[..., Pixels]) -> None:
    rng = np.random.default_rng(7)
    held = {f"{n}": drawing(rng) for n in range(6)}
    cases = [Case("", jpeg(drawing(rng), 85), f"{n}") for n in range(6)]
    index = index_of(held, tmp_path)
    assert scored(index, cases)[1] == []
    again = [Case(name, jpeg(pixels[40:, 60:], 85), name) for name, pixels in held.items()]
    assert len(scored(index, again)[0]) <= 1  # the same picture is told from others of its pattern


# builds


class World(NamedTuple):
    data: Path
    out: Path
    said: list[str]


FACES = {f"{n}.png": scene(600 + n, 420, 380, kind) for n, kind in enumerate(("houses", "works", "river", "port"))}
LARGE = scene(610, 1500, 1200, "blocks")
SMALL = scene(611, 256, 256, "orchard")
SLICE = {"grid": {"size_px": 512}}


def recipe(data: Path, **stages: Any) -> Recipe:
    protect = {"lists": [str(data / "held.list")], "contain": {}, **stages.pop("protect", {})}
    return recipe_of("train", exclude=ALL, slice=SLICE, protect=protect, **stages)


def inside(pixels: Pixels, seed: int, size: tuple[int, int], at: tuple[int, int]) -> Pixels:
    """A picture put into a larger one."""
    out = scene(seed, *size, "meadow").copy()
    out[at[1] : at[1] + pixels.shape[0], at[0] : at[0] + pixels.shape[1]] = pixels
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    data = tmp_path_factory.mktemp("contain")
    for name, pixels in FACES.items():
        put(data / "val" / name, pixels)
    put(data / "val" / "large.png", LARGE)
    put(data / "val" / "small.png", SMALL)
    train = data / "train"
    put(train / "half.jpg", FACES["0.png"][:, 205:], quality=70)
    put(train / "mirrored.jpg", scaled(FACES["1.png"][60:, 60:], 1.4)[:, ::-1], quality=80)
    put(train / "quarter-turn.jpg", scaled(np.rot90(FACES["2.png"][:300]), 0.6), quality=80)
    put(train / "whole.jpg", FACES["3.png"], quality=60)
    put(train / "shifted.jpg", LARGE[311:823, 407:919], quality=75)
    put(train / "reduced.jpg", scaled(LARGE[100:1000, 300:1200], 0.5), quality=80)
    put(train / "holds.png", inside(SMALL, 620, (500, 480), (150, 90)))
    put(train / "cut-by-the-grid.png", inside(SMALL, 621, (1024, 1024), (400, 380)))
    put(train / "scene.png", inside(FACES["0.png"], 622, (1024, 1024), (80, 600)))
    put(train / "little.png", inside(FACES["1.png"][:120, :130], 623, (500, 480), (50, 50)))  # a tenth of either
    for n, kind in enumerate(KINDS):
        put(train / f"other-{kind}.jpg", scene(630 + n, 500, 450, kind), quality=85)
    path = write_recipe(data / "recipe.yaml", recipe_of("train", slice=SLICE, protect={"contain": {}}))
    held = ["protect", "sign", str(data / "val"), "-o", str(data / "held.list"), "--recipe", str(path)]
    assert main([*held, "--workers", "0"]) == 0
    said: list[str] = []
    datakit.build(recipe(data), data=data, out=data / "out", work=data / "work", workers=0, say=said.append)
    return World(data, data / "out", said)


GOES = {
    "train/half.jpg": "val/0.png",
    "train/mirrored.jpg": "val/1.png",
    "train/quarter-turn.jpg": "val/2.png",
    "train/shifted.jpg": "val/large.png",
    "train/reduced.jpg": "val/large.png",
    "train/holds.png": "val/small.png",
    **{f"train/cut-by-the-grid.png@{x},{y},512,512": "val/small.png" for x in (0, 512) for y in (0, 512)},
    "train/scene.png@0,512,512,512": "val/0.png",
}


def test_what_shares_a_part_goes_and_nothing_else(world: World) -> None:
    goes = lost(world.out, "protect")
    parts = {place: row["lost_to"] for place, row in goes.items() if row["dropped"] == "protected_part"}
    assert parts == GOES
    assert goes["train/whole.jpg"]["dropped"] == "protected"
    assert len(goes) == len(parts) + 1
    assert {f"train/other-{kind}.jpg" for kind in KINDS} <= kept(world.out)
    assert "train/little.png" in kept(world.out)


def test_each_says_what_it_shares(world: World) -> None:
    goes = lost(world.out, "protect")
    assert goes["train/half.jpg"]["detail"].startswith("shares 100% of it and 51% of the held-out image; scale 1.00; ")
    assert "% of it and 72% of the held-out image; scale 1.40, mirrored; " in goes["train/mirrored.jpg"]["detail"]
    assert "scale 0.60, turned 270; " in goes["train/quarter-turn.jpg"]["detail"]
    assert "scale 0.50" in goes["train/reduced.jpg"]["detail"]
    assert "of it and 100% of the held-out image; scale 1.00" in goes["train/holds.png"]["detail"]
    told = json.loads((world.out / "protect.json").read_text())
    parts = {match["key"]: match for match in told["matches"] if match["level"] == "part"}
    assert len(parts) == len(GOES)
    assert all("points agree" in match["how"] for match in parts.values())
    assert told["parts"]["tiles"] == sum(c.came for c in Manifest.load(world.out).counts if c.stage == "protect")
    assert told["lists"][0]["parts"] is True
    assert any("crops and shifts that show less" in words for words in told["cannot_see"])


def test_two_workers_give_the_same_bytes_and_looked_up_tiles_are_not_looked_up_again(
    world: World, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"data": world.data, "work": tmp_path / "work"}
    datakit.build(recipe(world.data), out=tmp_path / "out", workers=2, **options)
    assert digests(tmp_path / "out") == digests(world.out)
    gc(tmp_path / "work")
    said: list[str] = []
    stricter = recipe(world.data, protect={"contain": {"share": 0.7}})
    datakit.build(stricter, out=tmp_path / "other", workers=0, say=said.append, **options)
    assert not [line for line in said if "looking for parts" in line]
    assert "train/half.jpg" in lost(tmp_path / "other", "protect")  # all of it is a part of the held-out image
    assert "images_opened" not in work_done(tmp_path / "other")
    assert len([*(tmp_path / "work" / "contain").rglob("*.parquet")]) > 0
    for out in ("out", "other"):
        datakit.build(recipe_of("train", exclude=ALL, slice=SLICE), out=tmp_path / out, workers=0, **options)
    gc(tmp_path / "work")
    assert not [*(tmp_path / "work" / "contain").rglob("*.parquet")]


def test_freed_tiles_are_cut_again_when_another_list_comes(world: World, tmp_path: Path) -> None:
    for name in ("half.jpg", "other-works.jpg"):
        put(tmp_path / "train" / name, np.asarray(Image.open(world.data / "train" / name)), quality=90)
    options: dict[str, Any] = {"data": tmp_path, "out": tmp_path / "out", "workers": 0, "free": True}
    datakit.build(recipe_of("train", exclude=ALL, slice=SLICE), **options)
    assert "train/half.jpg" in kept(tmp_path / "out")
    datakit.build(recipe(world.data), **options)
    assert set(lost(tmp_path / "out", "protect")) == {"train/half.jpg"}


def test_a_list_without_parts_is_told(world: World, tmp_path: Path) -> None:
    assert not [line for line in world.said if "warning" in line]
    (tmp_path / "bare.list").write_bytes((world.data / "held.list").read_bytes())
    said: list[str] = []
    bare = recipe(world.data, protect={"lists": [str(tmp_path / "bare.list")]})
    datakit.build(bare, data=world.data, out=tmp_path / "out", work=world.data / "work", workers=0, say=said.append)
    assert [line for line in said if "bare.list.parts is not there" in line]
    assert "train/half.jpg" in kept(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "protect.json").read_text())
    assert (told["lists"][0]["parts"], told["parts"]["tiles"]) == (False, 0)
    assert any(words.startswith("crops and shifts: a tile of 512 px") for words in told["cannot_see"])


def test_tiles_that_keep_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="contain reads 8-bit pictures, not tiff16"):
        recipe_of(
            "a",
            protect={"contain": {}},
            cut={"encode": {"format": "tiff16"}, "narrow": {"bands": ["red", "green", "blue"], "range": [0, 255]}},
        )


# finished sets


def tar_of(folder: Path, pictures: dict[str, Pixels]) -> Path:
    """A tar as others write it."""
    members = []
    for key, pixels in pictures.items():
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "JPEG", quality=80)
        members += [(f"{key}.jpg", stream.getvalue()), (f"{key}.cls", b"1")]
    folder.mkdir(exist_ok=True)
    return write_tar(folder / "set-000.tar", [*members, ("broken.jpg", members[0][1][:500])])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_audit_finds_copies_and_parts_in_tars_of_others(
    world: World, tmp_path: Path, capsys: Out, workers: str
) -> None:
    whole = tar_of(tmp_path / "set", {
        "copy": FACES["0.png"][:, ::-1],
        "half": FACES["1.png"][:, :220],
        "shifted": LARGE[300:812, 500:1012],
        "scene": inside(SMALL, 640, (900, 800), (300, 350)),
        "other": scene(641, 500, 450, "works"),
    })  # fmt: skip
    before = whole.read_bytes()
    command = ["protect", "audit", str(whole.parent), str(world.data / "val"), "-o", str(tmp_path / "found.parquet")]
    assert main([*command, "--workers", workers]) == 1
    *table, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == {
        "samples": 6, "held_out": 6, "copies": 1, "parts": 3, "few_points": 0, "not_compared": 1,
    }  # fmt: skip
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "found.parquet").to_pylist()}
    assert {key: (row["kind"], row["held_out"]) for key, row in rows.items()} == {
        "copy": ("copy", "0.png"), "half": ("part", "1.png"),
        "shifted": ("part", "large.png"), "scene": ("part", "small.png"),
    }  # fmt: skip
    assert (rows["copy"]["turned"], rows["scene"]["held_share"]) == ("left-right", pytest.approx(1, abs=0.02))
    assert rows["half"]["share"] == pytest.approx(1, abs=0.02)
    assert len(table) == 2 + 4 + 1
    assert table[-1].startswith(f"not compared: broken in {whole}: ")
    assert whole.read_bytes() == before


def test_an_audit_of_what_a_build_made_clean_finds_nothing(world: World, capsys: Out) -> None:
    before = digests(world.out)
    assert main(["protect", "audit", str(world.out), str(world.data / "val"), "--workers", "0"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["copies"], told["parts"], told["samples"]) == (0, 0, Manifest.load(world.out).samples)
    assert digests(world.out) == before


def test_an_audit_of_what_is_not_there_says_so(world: World, tmp_path: Path, capsys: Out) -> None:
    assert main(["protect", "audit", str(tmp_path / "none"), str(world.data / "val"), "--workers", "0"]) == 1
    assert "no such file or folder" in capsys.readouterr().err
