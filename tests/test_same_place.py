"""Tiles that show the same ground with the same pixels: tiny scenes made on the spot, and real ones read again."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin
from worlds import SHARED, geotiff, scene, source_of

from datakit import image
from datakit.engine import Engine
from datakit.image import Narrow
from datakit.listing import find_files
from datakit.pixels import Reader
from datakit.run import kept_rows
from datakit.sample import Part, Sample, Window, from_table, to_table
from datakit.sources.scan import Scan, Source, label_table, listing
from datakit.stages.cut import Cut
from datakit.stages.same_place import NEEDS, SamePlace, covered, verdict_files
from datakit.stages.slice import Slice

RS = SHARED / "rs"
LOCAL = CRS.from_string("+proj=tmerc +lon_0=9 +k=0.9996 +x_0=500000 +ellps=WGS84 +units=m")  # UTM 32N, written out
ORIGIN = (500_000.0, 5_400_000.0)  # of scenes, in EPSG:32632
STEP_M = 0.5


@dataclass
class World:
    """Collections of GeoTIFFs, and the tiles that the stages make of them."""

    data: Path
    work: Path
    narrow: Narrow | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, pixels: NDArray[Any], at: tuple[float, float] = (0, 0), **profile: Any) -> Path:
        """A file, `source/file.tif`, whose top left corner is `at` px from the origin, right and down."""
        place = from_origin(ORIGIN[0] + at[0] * STEP_M, ORIGIN[1] - at[1] * STEP_M, STEP_M, STEP_M)
        path = self.data / name
        geotiff(path, pixels, **{"transform": place, **profile})
        return path

    def tiles(
        self, *names: str, size_px: int = 64, first: Callable[[Sample], Any] | None = None, gsd_m: float | None = None
    ) -> pa.Table:
        """Tiles of all sources, in order of `first`: of (source, name, window) if it is not given."""
        (self.work / "labels").mkdir(parents=True, exist_ok=True)
        tables = []
        for name in names or sorted(p.name for p in self.data.iterdir()):
            bands = {"bands": list(self.narrow.bands)} if self.narrow else {}
            source = Source.model_validate(source_of(name, path=name))
            source = source.model_copy(update={"collection": source.collection.model_copy(update=bands)})
            found = find_files(source, self.data / name, self.work, self.work)
            pq.write_table(label_table(source, found), self.work / "labels" / "none.parquet")
            aside = self.work / "aside" / name
            aside.mkdir(parents=True, exist_ok=True)
            part = Part(self.work / f"{name}-0_0-0.parquet", aside, self.work, self.roots)
            table = to_table(listing(source, found))
            way = Slice.model_validate({"grid": {"size_px": size_px}, "gsd_m": gsd_m})
            stages = (Scan(source=source, labels="none"), way)
            for stage in (*stages, Cut(narrow=self.narrow)):
                table = kept_rows(stage(table, part))
            tables.append(table)
        order = sorted(from_table(pa.concat_tables(tables)), key=lambda s: (s.source, s.name, s.window or ()))
        return to_table(sorted(order, key=first) if first else order)

    @property
    def roots(self) -> dict[str, Path]:
        return {p.name: p for p in sorted(self.data.iterdir())}

    def covered(self, tiles: pa.Table, engine: Engine | None = None, **spec: Any) -> dict[int, tuple[int, ...]]:
        """What goes; `counts` are of this call."""
        self.counts = Counter()
        (self.work / "tmp").mkdir(parents=True, exist_ok=True)
        engine = engine or Engine(0)
        few = tiles.select(NEEDS)
        return covered(SamePlace(**spec), few, self.roots, self.work, engine.map, self.counts, self.narrow)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "data", tmp_path / "work")


def goes(tiles: pa.Table, found: dict[int, tuple[int, ...]]) -> dict[str, list[str]]:
    """What goes and what covers it, by "file left,top"."""
    names = [
        f"{s.source}/{s.name}" + (f" {s.window.left},{s.window.top}" if s.window else "") for s in from_table(tiles)
    ]
    return {names[row]: [names[n] for n in those] for row, those in found.items()}


def again(path: Path, sample: Sample) -> tuple[dict[tuple[int, int], tuple[int, ...]], int]:
    """Valid pixels of a tile by their place on the origin's grid, read by plain rasterio; and how many there are."""
    with rasterio.open(path) as raster:
        left, top, width, height = sample.window or (0, 0, raster.width, raster.height)
        levels = np.moveaxis(raster.read([1, 2, 3]), 0, -1)[top : top + height, left : left + width]
        valid = raster.dataset_mask()[top : top + height, left : left + width] > 0
        x, y = raster.transform.c / STEP_M + left, -raster.transform.f / STEP_M + top
    found = {
        (round(x + col), round(y + row)): tuple(levels[row, col].tolist()) for row, col in np.argwhere(valid).tolist()
    }
    return found, int(valid.sum())


def restated(world: World, tiles: pa.Table, agree_share: float, covered_share: float) -> dict[int, set[int]]:
    """What goes, pixel by pixel, and all the kept tiles that cover some of it."""
    samples = list(from_table(tiles))
    pixels = [again(world.data / s.source / s.path, s)[0] for s in samples]
    gone: dict[int, set[int]] = {}
    for row, sample in enumerate(samples):
        seen: set[tuple[int, int]] = set()
        by: set[int] = set()
        for other in range(row):
            same_image = (samples[other].source, samples[other].name) == (sample.source, sample.name)
            if other in gone or same_image:
                continue
            both = pixels[row].keys() & pixels[other].keys()
            equal = sum(pixels[row][p] == pixels[other][p] for p in both)
            if both and equal >= agree_share * len(both):
                seen |= both
                by.add(other)
        if pixels[row] and len(seen) >= covered_share * len(pixels[row]):
            gone[row] = by
    return gone


def test_a_shifted_copy_goes_and_says_what_covers_it(world: World) -> None:
    ground = scene(1, 160, 160)
    world.add("a/a.tif", ground)
    world.add("b/b.tif", ground[30:100, 20:90], (20, 30))
    tiles = world.tiles(size_px=64)
    assert tiles.num_rows == 9 + 4
    found = goes(tiles, world.covered(tiles))
    # windows of b begin at 0 and 6, which is 20 and 26, 30 and 36 in a; those of a at 0, 64, 96
    assert found == {
        "b/b.tif 0,0": ["a/a.tif 0,0", "a/a.tif 0,64", "a/a.tif 64,0", "a/a.tif 64,64"],
        "b/b.tif 0,6": ["a/a.tif 0,0", "a/a.tif 0,64", "a/a.tif 64,0", "a/a.tif 64,64"],
        "b/b.tif 6,0": ["a/a.tif 0,0", "a/a.tif 0,64", "a/a.tif 64,0", "a/a.tif 64,64"],
        "b/b.tif 6,6": ["a/a.tif 0,0", "a/a.tif 0,64", "a/a.tif 64,0", "a/a.tif 64,64"],
    }
    assert world.counts["images_opened_same_place"] == 2
    assert world.counts["not_aligned"] == 0


def test_preference_decides_which_goes(world: World) -> None:
    ground = scene(1, 64, 64)
    for name in ("a/a.tif", "b/b.tif", "c/c.tif"):
        world.add(name, ground)
    tiles = world.tiles(first=lambda s: "bca".index(s.source))
    assert goes(tiles, world.covered(tiles)) == {"c/c.tif": ["b/b.tif"], "a/a.tif": ["b/b.tif"]}


def test_ways_of_writing_a_crs_are_one_place(world: World) -> None:
    ground = scene(2, 100, 80)
    world.add("a/epsg.tif", ground)
    world.add("b/wkt.tif", ground[5:70, 11:90], (11, 5), crs=LOCAL)
    tiles = world.tiles(size_px=100)
    assert len(set(tiles["crs"].to_pylist())) == 2
    assert goes(tiles, world.covered(tiles)) == {"b/wkt.tif": ["a/epsg.tif"]}


@pytest.mark.parametrize(("off_px", "seen"), [(0.5, 1), (0.2, 1), (0.05, 0)])
def test_grids_that_are_off_by_part_of_a_pixel_are_not_compared(world: World, off_px: float, seen: int) -> None:
    ground = scene(3, 64, 64)
    world.add("a/a.tif", ground)
    world.add("b/b.tif", ground[8:48, 8:48], (8 + off_px, 8))
    found = world.covered(world.tiles())
    assert bool(found) is not bool(seen)
    assert world.counts["not_aligned"] == seen
    assert world.counts["images_opened_same_place"] == 2 * (not seen)


def test_other_resolutions_and_rotations_are_not_compared(world: World) -> None:
    ground = scene(3, 64, 64)
    world.add("a/a.tif", ground)
    world.add("b/coarse.tif", ground[::2, ::2], transform=from_origin(*ORIGIN, 1.0, 1.0))
    world.add("c/turned.tif", ground, transform=Affine(0.0, 0.5, ORIGIN[0], -0.5, 0.0, ORIGIN[1]))
    world.add("d/upside_down.tif", ground[::-1], transform=Affine(0.5, 0.0, ORIGIN[0], 0.0, 0.5, ORIGIN[1] - 32))
    world.add("e/elsewhere.tif", ground, (64, 0))
    assert world.covered(world.tiles()) == {}
    assert world.counts["not_aligned"] == 6  # a to d, each with each; e touches them


def test_another_date_stays(world: World) -> None:
    ground = scene(4, 64, 64)
    later = ground.copy()
    later[10:20, 10:30] ^= 255
    world.add("a/a.tif", ground)
    world.add("b/b.tif", later)
    tiles = world.tiles()
    assert world.covered(tiles) == {}
    assert world.counts["pairs_compared"] == 1
    assert world.covered(tiles, agree_share=0.96) == {}
    assert world.covered(tiles, agree_share=0.95) == {1: (0,)}  # 200 of 4096 px differ
    assert world.counts["images_opened_same_place"] == 0  # a share is applied to what was counted


@pytest.mark.parametrize("band", [0, 1, 2])
def test_all_bands_must_agree(world: World, band: int) -> None:
    ground = scene(4, 64, 64)
    later = ground.copy()
    later[5, 7, band] ^= 1
    world.add("a/a.tif", ground)
    world.add("b/b.tif", later)
    tiles = world.tiles()
    assert world.covered(tiles) == {}
    assert world.covered(tiles, tolerance_levels=1) == {1: (0,)}


def test_tolerance(world: World) -> None:
    ground = scene(4, 64, 64) // 2
    world.add("a/a.tif", ground)
    world.add("b/b.tif", ground + np.uint8(3))
    tiles = world.tiles()
    assert world.covered(tiles, tolerance_levels=2) == {}
    assert world.covered(tiles, tolerance_levels=3) == {1: (0,)}
    assert world.counts["images_opened_same_place"] == 2


def test_only_valid_pixels_count(world: World) -> None:
    """A tile goes where its own valid pixels are covered, and what is not valid covers nothing."""
    ground = np.maximum(scene(5, 64, 64), 1)
    half = ground.copy()
    half[:, 32:] = 0
    world.add("a/half.tif", half, nodata=0)
    world.add("b/whole.tif", ground)
    assert world.covered(world.tiles(first=lambda s: s.source == "b")) == {}
    tiles = world.tiles(first=lambda s: s.source == "a")
    assert world.covered(tiles) == {1: (0,)}
    assert world.covered(tiles, covered_share=0.5) == {1: (0,)}
    assert world.counts["images_opened_same_place"] == 0


def test_half_is_covered(world: World) -> None:
    ground = np.maximum(scene(5, 64, 64), 1)
    half = ground.copy()
    half[:, 32:] = 0
    world.add("a/half.tif", half, nodata=0)
    world.add("b/whole.tif", ground)
    tiles = world.tiles()
    assert world.covered(tiles) == {}
    assert world.covered(tiles, covered_share=0.5) == {1: (0,)}


def test_a_tile_without_valid_pixels_stays(world: World) -> None:
    nothing = np.zeros((64, 64, 3), np.uint8)
    world.add("a/a.tif", nothing, nodata=0)
    world.add("b/b.tif", nothing, nodata=0)
    world.add("c/c.tif", nothing)
    assert world.covered(world.tiles()) == {}


def test_alpha_and_masks_tell_what_is_valid(world: World) -> None:
    ground = scene(6, 64, 64)
    seen = np.full((64, 64, 1), 255, np.uint8)
    seen[:20] = 0
    world.add("a/a.tif", np.concatenate([ground, seen], axis=2), photometric="RGB", alpha="YES")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        masked = world.add("b/b.tif", ground)
        with rasterio.open(masked, "r+") as raster:
            raster.write_mask(seen[:, :, 0] > 0)
    world.add("c/c.tif", ground[30:60], (0, 30))
    world.add("d/d.tif", ground[10:60], (0, 10))
    tiles = world.tiles()
    assert goes(tiles, world.covered(tiles)) == {"b/b.tif": ["a/a.tif"], "c/c.tif": ["a/a.tif"]}


def test_three_together_cover_a_fourth(world: World) -> None:
    ground = scene(7, 96, 64)
    world.add("a/a.tif", ground[:, :40])
    world.add("b/b.tif", ground[:, 30:70], (30, 0))
    world.add("c/c.tif", ground[:, 70:], (70, 0))
    world.add("d/d.tif", ground[4:60, 10:90], (10, 4))
    tiles = world.tiles(size_px=96)
    assert goes(tiles, world.covered(tiles)) == {"d/d.tif": ["a/a.tif", "b/b.tif", "c/c.tif"]}
    two = tiles.take([0, 1, 3])
    assert world.covered(two) == {}
    assert world.covered(two, covered_share=0.75) == {2: (0, 1)}  # 60 of 80 columns


def test_what_goes_covers_nothing(world: World) -> None:
    """b falls to a; c lies in b alone, in part, so that it stays."""
    ground = scene(8, 64, 64)
    world.add("a/a.tif", ground[:, :40])
    world.add("b/b.tif", ground[:, :40])
    world.add("c/c.tif", ground[:, 20:60], (20, 0))
    tiles = world.tiles()
    assert world.covered(tiles) == {1: (0,)}


def test_windows_of_one_image_do_not_cover_one_another(world: World) -> None:
    world.add("a/a.tif", scene(9, 100, 100))
    tiles = world.tiles(size_px=64)
    assert tiles.num_rows == 4
    assert world.covered(tiles) == {}
    assert not world.counts["images_opened_same_place"]


def test_the_date_line_is_no_border(world: World) -> None:
    ground = scene(10, 64, 64)
    step = 2.0**-14
    across = from_origin(180 - 32 * step, 10, step, step)
    east = from_origin(-180 - 16 * step, 10, step, step)  # the same meridians, counted from the other side
    world.add("a/a.tif", ground, crs="EPSG:4326", transform=across)
    world.add("b/b.tif", ground[:, 16:], crs="EPSG:4326", transform=east)
    world.add("c/c.tif", ground[:, :20], crs=CRS.from_epsg(4326), transform=across)
    tiles = world.tiles()
    assert goes(tiles, world.covered(tiles)) == {"b/b.tif": ["a/a.tif"], "c/c.tif": ["a/a.tif"]}


def test_verdicts_are_kept_and_a_touched_file_is_read_again(world: World) -> None:
    ground = scene(11, 128, 64)
    for n, name in enumerate(("a/a.tif", "b/b.tif", "c/c.tif")):
        world.add(name, ground[:, n * 10 :], (n * 10, 0))
    tiles = world.tiles()
    first = world.covered(tiles)
    compared = world.counts["pairs_compared"]
    assert first
    assert world.counts["images_opened_same_place"] == 5  # a with b and c, then b with c
    assert world.covered(tiles) == first
    assert world.counts["images_opened_same_place"] == 0
    assert (world.counts["pairs_known"], world.counts["pairs_compared"]) == (compared, 0)
    assert world.covered(tiles.take(np.arange(tiles.num_rows)[::-1])) != first  # another preference needs no pixel
    assert world.counts["images_opened_same_place"] == 0
    assert len(verdict_files(SamePlace(), None, world.work)) == 1
    os.utime(world.data / "c/c.tif", ns=(1, 1))
    assert world.covered(world.tiles()) == first
    assert world.counts["images_opened_same_place"] == 4  # a with c, b with c
    assert 0 < world.counts["pairs_known"] < compared
    assert world.counts["pairs_known"] + world.counts["pairs_compared"] == compared
    assert len(verdict_files(SamePlace(), None, world.work)) == 2
    assert verdict_files(SamePlace(tolerance_levels=1), None, world.work) == []
    assert verdict_files(SamePlace(agree_share=0.5, covered_share=0.5), None, world.work)
    assert list((world.work / "tmp").iterdir()) == []


def test_new_tiles_of_known_images_are_compared(world: World) -> None:
    ground = scene(11, 128, 128)
    world.add("a/a.tif", ground)
    world.add("b/b.tif", ground)
    tiles = world.tiles()
    assert len(world.covered(tiles.filter(pa.compute.equal(pa.compute.list_element(tiles["window"], 0), 0)))) == 2
    assert len(world.covered(tiles)) == 4
    assert world.counts["pairs_known"] == 2  # windows of 64 px from 0 and 64: each meets its own copy alone
    assert world.counts["pairs_compared"] == 2


def test_workers_find_the_same(world: World) -> None:
    ground = scene(12, 200, 160)
    for n in range(6):
        x, y = 13 * n, 7 * n
        world.add(f"s{n}/{n}.tif", ground[y:, x:], (x, y))
    tiles = world.tiles()
    alone = world.covered(tiles)
    counts = world.counts
    shutil.rmtree(world.work / "same_place")
    with Engine(2) as engine:
        assert world.covered(tiles, engine) == alone
    assert len(alone) > 20
    assert world.counts == counts
    assert world.covered(tiles) == alone
    assert not world.counts["images_opened_same_place"]


def test_an_image_that_kills_its_reader_covers_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found, named, and not opened again; the others are compared."""
    ground = scene(14, 64, 64)
    for name in ("a/a.tif", "c/c.tif"):
        world.add(name, ground)
    path = world.data / "b" / "b.jpg"
    path.parent.mkdir()
    Image.fromarray(ground).save(path, comment=b"fault:segfault")
    first, *others = from_table(world.tiles())
    place = {name: getattr(first, name) for name in ("crs", "transform", "footprint", "gsd_m")}
    tiles = to_table([first, *(replace(sample, **place) for sample in others)])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "faults"))
    with Engine(1, work=world.work) as engine:
        assert goes(tiles, world.covered(tiles, engine)) == {"c/c.tif": ["a/a.tif"]}
        assert (world.counts["pairs_compared"], world.counts["pairs_not_compared"]) == (1, 2)
        (blamed,) = (world.work / "blamed" / "same_place").glob("*.json")
        assert json.loads(blamed.read_text())["name"] == "b.jpg"
        world.covered(tiles, engine)
    assert (world.counts["pairs_known"], world.counts["pairs_not_compared"]) == (1, 2)


def test_images_that_are_gone_or_damaged_cover_nothing(world: World) -> None:
    ground = scene(13, 64, 64)
    for name in ("a/a.tif", "a/b.tif", "a/c.tif", "d/d.tif", "d/e.tif"):
        world.add(name, ground, compress="deflate")
    tiles = world.tiles()
    whole = world.data / "a/b.tif"
    content = whole.read_bytes()
    (world.data / "a/a.tif").unlink()
    whole.write_bytes(content[:600])
    (world.data / "a/c.tif").write_bytes(content[: len(content) // 2] + b"\0" * (len(content) - len(content) // 2))
    assert goes(tiles, world.covered(tiles)) == {"d/e.tif": ["d/d.tif"]}
    assert (world.counts["pairs_compared"], world.counts["pairs_not_compared"]) == (1, 9)
    world.covered(tiles)
    assert (world.counts["pairs_known"], world.counts["pairs_not_compared"]) == (1, 9)  # nothing is held against them
    whole.write_bytes(content)
    assert goes(tiles, world.covered(tiles)) == {"d/d.tif": ["a/b.tif"], "d/e.tif": ["a/b.tif"]}


def test_a_disk_that_is_gone_is_an_error(world: World) -> None:
    world.add("a/a.tif", scene(13, 64, 64))
    world.add("b/b.tif", scene(13, 64, 64))
    tiles = world.tiles()
    found = world.roots
    (world.data / "a").rename(world.data / "elsewhere")
    (world.work / "tmp").mkdir(parents=True, exist_ok=True)
    with pytest.raises(FileNotFoundError):
        covered(SamePlace(), tiles, found, world.work, map, Counter())


def test_members_of_archives(world: World) -> None:
    ground = scene(14, 100, 80)
    world.add("a/a.tif", ground)
    world.add("b/deep/b.tif", ground[10:, 10:], (10, 10))
    for source, kind in (("a", "zip"), ("b", "tar")):
        folder = (world.data / source).rename(world.work.parent / source)
        (world.data / source).mkdir()
        shutil.make_archive(str(world.data / source / "all"), kind, folder)
    tiles = world.tiles(size_px=100)
    assert tiles["packing"].to_pylist() == ["deflated", "tar"]
    assert goes(tiles, world.covered(tiles)) == {"b/deep/b.tif": ["a/a.tif"]}


def test_sixteen_bits_are_compared_as_shown(world: World) -> None:
    world.narrow = Narrow(bands=("red", "green", "blue"), range=(0, 2550))
    levels = scene(15, 64, 64).astype(np.uint16) * 10
    world.add("a/a.tif", levels)
    world.add("b/b.tif", levels + np.uint16(4))  # rounds to the same
    world.add("c/c.tif", levels + np.uint16(6))
    tiles = world.tiles()
    assert world.covered(tiles) == {1: (0,)}
    world.narrow = Narrow(bands=("red", "green", "blue"), range=(0, 255))
    world.covered(tiles)
    assert world.counts["pairs_known"] == 0


def test_a_window_is_what_would_be_cut_out_of_the_rows(world: World) -> None:
    ground = np.maximum(scene(17, 150, 130), 1)
    ground[:40, :50] = 0
    gray = ground[:, :, :1]
    table = {n: tuple(int(v) for v in ground[n % 130, n % 150]) for n in range(256)}
    world.add("a/blocks.tif", ground, nodata=0, tiled=True, blockxsize=64, blockysize=64, compress="jpeg")
    world.add("a/rows.tif", ground, compress="deflate", interleave="band")
    world.add("a/gray.tif", gray, nodata=0)
    with rasterio.open(world.add("a/palette.tif", gray, photometric="palette"), "r+") as raster:
        raster.write_colormap(1, table)
    Image.fromarray(ground).save(world.data / "a/plain.png")
    Image.fromarray(ground).save(world.data / "a/turned.jpg", exif=orientation(6))
    Image.fromarray(ground).save(world.data / "a/turned.tif", tiffinfo={274: 8})
    tiles = list(from_table(world.tiles(size_px=200)))
    assert len(tiles) == 7
    assert [s.orientation for s in tiles] == [1, 1, 1, 1, 1, 6, 8]
    for sample in tiles:
        reader = Reader(world.data / "a", world.work, collars=False)
        with image.quiet(), reader.windows(sample) as read:
            (whole,) = reader.rows(sample)
            for window in (Window(0, 0, 130, 130), Window(30, 20, 64, 70), Window(99, 0, 1, 130)):
                one, other = read(window), whole.window(*window)
                assert (one.pixels == other.pixels).all()
                assert (one.valid is None) == (other.valid is None)
                assert one.valid is None or (one.valid == other.valid).all()


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


def test_a_file_that_became_another_size_is_not_compared(world: World) -> None:
    for name in ("a", "b"):
        world.add(f"{name}/{name}.tif", scene(18, 64, 64))
    tiles = world.tiles()
    world.add("b/b.tif", scene(18, 90, 64))
    assert world.covered(tiles) == {}
    assert world.counts["pairs_not_compared"] == 1


def test_no_tiles_and_no_places(world: World) -> None:
    for source in ("a", "b"):
        (world.data / source).mkdir(parents=True)
        Image.fromarray(scene(16, 64, 64)).save(world.data / source / "plain.png")
    tiles = world.tiles()
    assert tiles.num_rows == 2
    assert world.covered(tiles) == {}
    assert world.covered(tiles.slice(0, 0)) == {}
    assert not (world.work / "same_place").exists()


def test_reduced_tiles_are_compared_in_px_of_the_source(world: World) -> None:
    """Their own px are means over other areas in each image: none of them is equal, and yet nothing is lost."""
    ground = scene(8, 300, 300)
    world.add("a/a.tif", ground)
    world.add("b/b.tif", ground[31:131, 21:121], (21, 31))
    later = ground[31:131, 21:121].copy()
    later[50, 50] ^= 1
    world.add("c/c.tif", later, (21, 31))
    tiles = world.tiles(size_px=50, gsd_m=1.0)
    assert set(tiles["width"].to_pylist()) == {50}
    assert all(scale == pytest.approx(2, rel=1e-3) for scale in tiles["scale"].to_pylist())
    found = goes(tiles, world.covered(tiles))
    assert list(found) == ["b/b.tif"]
    assert found["b/b.tif"] == ["a/a.tif 0,0", "a/a.tif 0,100", "a/a.tif 100,0", "a/a.tif 100,100"]
    assert world.counts["pairs_compared"] == 9
    plain = world.tiles(size_px=100)
    assert goes(plain, world.covered(plain)) == found
    assert world.counts["images_opened_same_place"] == 0  # verdicts are of px of the source: they serve both


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, 2**32),
    st.sampled_from([1.0, 0.97, 0.8]),
    st.sampled_from([1.0, 0.9, 0.5]),
    st.sampled_from([None, 0.7, 1.0]),
)
def test_as_restated_pixel_by_pixel(
    scratch: Path, seed: int, agree_share: float, covered_share: float, gsd_m: float | None
) -> None:
    """Reduced tiles too: px of the source that they were made of are looked at."""
    rng = np.random.default_rng(seed)
    world = World(scratch / f"{seed}" / "data", scratch / f"{seed}" / "work")
    ground = rng.integers(1, 255, (40, 40, 3), np.uint8)
    for n in range(int(rng.integers(2, 6))):
        left, top = rng.integers(0, 24, 2)
        width, height = rng.integers(4, 30, 2)
        pixels = ground[top : top + height, left : left + width].copy()
        other = rng.random(pixels.shape[:2]) < rng.choice([0, 0, 0.01])
        pixels[other, rng.integers(0, 3)] ^= 1
        pixels[: int(rng.integers(0, 6))] = 0
        crs = LOCAL if rng.random() < 0.5 else CRS.from_epsg(32632)
        world.add(f"s{n % 2}/{n}.tif", pixels, (left, top), crs=crs, nodata=rng.choice([0, None]))
    rank = rng.permutation(500)
    tiles = world.tiles(size_px=12, first=lambda s: rank[s.id % 500], gsd_m=gsd_m)
    assert (max(tiles["scale"].to_pylist()) > 1) == (gsd_m is not None)
    found = world.covered(tiles, agree_share=agree_share, covered_share=covered_share)
    expected = restated(world, tiles, agree_share, covered_share)
    assert found.keys() == expected.keys()
    for row, by in found.items():
        assert list(by) == sorted(by)
        assert set(by) <= expected[row]
        assert not set(by) & found.keys()
    assert world.covered(tiles, agree_share=agree_share, covered_share=covered_share) == found
    shutil.rmtree(scratch / f"{seed}")


QUADRANTS = {"rgb1": (0, 0), "rgb2": (399, 0), "rgb3": (0, 399), "rgb4": (399, 399)}
WHOLE = ("RGB.byte", "RGBA.byte")


@pytest.fixture(scope="module")
def landsat(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, pa.Table]:
    if not RS.is_dir():
        pytest.skip("the real test files are not at hand")
    folder = tmp_path_factory.mktemp("landsat")
    world = World(folder / "data", folder / "work")
    for name in (*QUADRANTS, *WHOLE):
        source = world.data / name.lower().replace(".", "_")
        source.mkdir(parents=True)
        shutil.copy(RS / f"{name}.tif", source)
    return world, world.tiles(size_px=256)


def of_whole(sample: Sample) -> tuple[slice, slice]:
    """Rows and columns of the whole scene that a tile of any of the files shows."""
    dx, dy = QUADRANTS.get(sample.name.removesuffix(".tif"), (0, 0))
    left, top, width, height = sample.window or (0, 0, sample.width, sample.height)
    return slice(top + dy, top + dy + height), slice(left + dx, left + dx + width)


def plain(sample: Sample) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Pixels of a tile, and which are valid."""
    with rasterio.open(RS / sample.name) as raster:
        mine = slice(None), slice(None)
        if sample.window:
            left, top, width, height = sample.window
            mine = slice(top, top + height), slice(left, left + width)
        return np.moveaxis(raster.read([1, 2, 3]), 0, -1)[mine], raster.dataset_mask()[mine] > 0


@pytest.mark.parametrize("preferred", ["quadrants", "whole", "mixed"])
def test_quadrants_and_the_whole_scene(landsat: tuple[World, pa.Table], preferred: str) -> None:
    world, tiles = landsat
    assert tiles.num_rows == 4 * 4 + 2 * 12
    quadrant = np.array([name.startswith("rgb") for name in tiles["name"].to_pylist()]) & ~np.array(
        [name.startswith("RGB") for name in tiles["name"].to_pylist()]
    )
    assert len(set(tiles.filter(pa.array(quadrant))["crs"].to_pylist()) & {"EPSG:32618"}) == 0
    order = {
        "quadrants": np.argsort(~quadrant, kind="stable"),
        "whole": np.argsort(quadrant, kind="stable"),
        "mixed": np.random.default_rng(0).permutation(tiles.num_rows),
    }[preferred]
    tiles = tiles.take(order)
    samples = list(from_table(tiles))
    found = world.covered(tiles)
    assert world.counts["not_aligned"] == 0
    gone = {(samples[n].source, samples[n].window) for n in found}
    if preferred == "quadrants":  # they cover the scene: nothing of either whole is left
        assert {source for source, _ in gone} == {"rgb_byte", "rgba_byte"}
        assert len(gone) == 2 * 12
    if preferred == "whole":  # RGB comes first; then RGBA and all quadrants fall to it
        assert {source for source, _ in gone} == {"rgb1", "rgb2", "rgb3", "rgb4", "rgba_byte"}
        assert len(gone) == 4 * 4 + 12
    for row, by in found.items():
        pixels, valid = plain(samples[row])
        seen = np.zeros((718, 791), bool)
        shown = np.zeros((718, 791, 3), np.uint8)
        for other in by:
            assert other < row
            assert other not in found
            theirs, good = plain(samples[other])
            seen[of_whole(samples[other])] |= good
            shown[of_whole(samples[other])][good] = theirs[good]
        mine = of_whole(samples[row])
        assert seen[mine][valid].all()
        assert (shown[mine][valid] == pixels[valid]).all()
    kept = [s for n, s in enumerate(samples) if n not in found]
    left = np.zeros((718, 791), bool)
    for sample in kept:
        left[of_whole(sample)] |= plain(sample)[1]
    with rasterio.open(RS / "RGB.byte.tif") as raster:
        assert left[raster.dataset_mask() > 0].all()  # no ground is lost


def test_the_other_real_files_are_not_mixed_up(tmp_path: Path) -> None:
    if not RS.is_dir():
        pytest.skip("the real test files are not at hand")
    world = World(tmp_path / "data", tmp_path / "work")
    for name in ("cogeo", "goes", "world.rgb", "RGB.byte"):
        source = world.data / name.lower().replace(".", "_")
        source.mkdir(parents=True)
        shutil.copy(RS / f"{name}.tif", source)
    shutil.copytree(world.data / "cogeo", world.data / "copy")
    tiles = world.tiles(size_px=512)
    found = goes(tiles, world.covered(tiles))
    assert found == {f"copy/cogeo.tif {x},{y}": [f"cogeo/cogeo.tif {x},{y}"] for x in (0, 512) for y in (0, 512)}
    assert world.counts["not_aligned"] == 3  # a map of the world is coarser than the scene, cogeo and its copy
