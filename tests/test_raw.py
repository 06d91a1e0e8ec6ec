"""Camera RAW: what is read is what the file holds, and red stays red however it is turned, packed or cut."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rawpy
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from datakit import bayer, dng, raw
from datakit.engine import Engine
from datakit.errors import NotBayer, SourceError
from datakit.sample import Window
from datakit.sources.synth_raw import x_trans

KODAK = Path(__file__).parents[2] / "shared/data/raw/kodak_dc50.kdc"
ORIENTATIONS = range(1, 9)
cfas = pytest.mark.parametrize("cfa", bayer.PATTERNS)
# a picture of 3 colours that never mix: every sample says which colour it is of, and where
LEVEL = {"R": 1000, "G": 5000, "B": 9000}


def coloured(cfa: str, height: int, width: int) -> bayer.Mosaic:
    """Samples of a red, a green and a blue that are far apart, with the place in the last digits."""
    rows, columns = np.indices((height, width))
    base = np.array([LEVEL[c] for c in cfa]).reshape(2, 2)[rows % 2, columns % 2]
    return (base + (rows * 7 + columns * 13) % 97).astype(np.uint16)


def image(cfa: str, orientation: int = 1, height: int = 40, width: int = 64) -> raw.RawImage:
    return raw.RawImage(
        mosaic=coloured(cfa, height, width),
        black=(509.0, 510.0, 511.0, 512.0),
        white=16383,
        cfa=cfa,
        white_balance=(2.0, 1.0, 1.5),
        matrix=(1.7, -0.6, -0.1, -0.2, 1.6, -0.4, 0.05, -0.45, 1.4),
        iso=400,
        exposure_s=1 / 250,
        orientation=orientation,
        make="Datakit",
        model="Synthetic",
    )


def colour_of(mosaic: bayer.Mosaic) -> list[list[str]]:
    """What colour each sample of `coloured` is of."""
    return [[min(LEVEL, key=lambda c: abs(LEVEL[c] - int(v))) for v in row] for row in mosaic]


@cfas
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_file_is_read_as_it_is_shown(cfa: str, orientation: int, tmp_path: Path) -> None:
    made = image(cfa, orientation)
    path = tmp_path / "a.dng"
    path.write_bytes(dng.encode(made))
    stored, shown = raw.read(path, upright=False), raw.read(str(path))
    with rawpy.imread(str(path)) as other:
        np.testing.assert_array_equal(stored.mosaic, other.raw_image_visible)
    np.testing.assert_array_equal(stored.mosaic, made.mosaic)
    np.testing.assert_array_equal(shown.mosaic, bayer.turn(made.mosaic, orientation))
    assert (stored.cfa, stored.black) == (cfa, made.black)
    rows, columns = np.indices(shown.mosaic.shape)
    of_pattern = np.array(list(shown.cfa)).reshape(2, 2)[rows % 2, columns % 2]
    assert of_pattern.tolist() == colour_of(shown.mosaic)
    assert stored.orientation == shown.orientation == orientation
    assert shown.white == 16383
    assert (shown.iso, shown.make, shown.model) == (400, "Datakit", "Synthetic")
    np.testing.assert_allclose(shown.exposure_s, 1 / 250, rtol=1e-6)
    np.testing.assert_allclose(shown.white_balance, made.white_balance, rtol=1e-5)
    np.testing.assert_allclose(shown.matrix, made.matrix, atol=1e-3)


@cfas
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("size", [(40, 64), (41, 64), (40, 63), (41, 63)])
def test_levels_and_colours_follow_a_turn(cfa: str, orientation: int, size: tuple[int, int]) -> None:
    made = image(cfa, height=size[0], width=size[1])
    shown = made.turned(orientation)
    for y in (0, 1):
        for x in (0, 1):
            assert colour_of(shown.mosaic[y : y + 1, x : x + 1]) == [[shown.cfa[2 * y + x]]]
    site = np.resize(np.arange(4.0).reshape(2, 2), (2, 2))
    where = np.tile(site, (30, 40))[: size[0], : size[1]]
    turned = bayer.turn(where, orientation)
    assert shown.black == tuple(made.black[int(n)] for n in turned[:2, :2].ravel())


def test_exif_8_is_the_published_rotation() -> None:
    """AODRaw's scripts flip the columns and then transpose (downsample/downsample_raw_images.py)."""
    mosaic = coloured("RGGB", 6, 8)
    np.testing.assert_array_equal(bayer.turn(mosaic, 8), mosaic[:, ::-1].T)


@cfas
def test_packed_planes_are_one_colour_each(cfa: str) -> None:
    mosaic = coloured(cfa, 12, 20)
    planes = raw.pack(mosaic, cfa)
    assert planes.shape == (4, 6, 10)
    assert [{c for row in colour_of(p) for c in row} for p in planes] == [{"R"}, {"G"}, {"B"}, {"G"}]
    ry, rx = divmod(cfa.index("R"), 2)
    np.testing.assert_array_equal(planes[1], mosaic[ry::2, 1 - rx :: 2])  # the green of the red rows
    np.testing.assert_array_equal(raw.unpack(planes, cfa), mosaic)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@cfas
def test_packing_and_turning_change_places(cfa: str, orientation: int) -> None:
    """Planes of a turned mosaic are the turned planes; a transposition puts red rows where red columns were."""
    made = image(cfa)
    turned = made.turned(orientation)
    planes = raw.pack(made.mosaic, cfa)
    order = (0, 3, 2, 1) if bayer.flip_of(orientation) & 4 else (0, 1, 2, 3)
    expected = [bayer.turn(planes[n], orientation) for n in order]
    np.testing.assert_array_equal(raw.pack(turned.mosaic, turned.cfa), expected)


@pytest.mark.parametrize("given_as", ["RGGB", "rggb", [[0, 1], [3, 2]], [[0, 1], [1, 2]], np.array([[0, 1], [3, 2]])])
def test_patterns_are_taken_as_rawpy_gives_them(given_as: Any) -> None:
    assert bayer.pattern(given_as) == "RGGB"


@pytest.mark.parametrize("wrong", ["RGBG", "", "RRGG", [[0, 1], [1, 1]], [[0, 1, 2]]])
def test_other_patterns_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="no Bayer pattern"):
        raw.pack(np.zeros((4, 4), np.uint16), wrong)


def test_odd_sides_are_not_packed() -> None:
    with pytest.raises(ValueError, match="even sides"):
        raw.pack(np.zeros((5, 4), np.uint16), "RGGB")
    with pytest.raises(ValueError, match="expected"):
        raw.unpack(np.zeros((3, 4, 4), np.uint16), "RGGB")


def slow_demosaic(mosaic: bayer.Mosaic, cfa: str) -> Any:
    """Mean of the nearest samples of each colour among the 3 x 3 around a pixel, past an edge mirrored about it."""
    height, width = mosaic.shape
    colours = np.array(list(cfa)).reshape(2, 2)

    def mirrored(n: int, size: int) -> int:
        return -n if n < 0 else 2 * (size - 1) - n if n >= size else n

    rgb = np.empty((3, height, width), np.float32)
    for y in range(height):
        for x in range(width):
            for c, name in enumerate("RGB"):
                found: dict[int, list[float]] = {}
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        v, u = mirrored(y + dy, height), mirrored(x + dx, width)
                        if colours[v % 2, u % 2] == name:
                            found.setdefault(dy * dy + dx * dx, []).append(float(mosaic[v, u]))
                nearest = found[min(found)]
                rgb[c, y, x] = sum(nearest) / len(nearest)
    return rgb


@cfas
@pytest.mark.parametrize("shape", [(2, 2), (2, 5), (3, 2), (9, 12), (10, 11)])
def test_demosaic_is_the_mean_of_the_nearest(cfa: str, shape: tuple[int, int]) -> None:
    mosaic = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)
    found = raw.demosaic(mosaic, cfa)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, slow_demosaic(mosaic, cfa))


@cfas
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_one_colour_is_one_colour_to_the_edge(cfa: str, orientation: int) -> None:
    flat = np.array([LEVEL[c] for c in cfa], np.uint16).reshape(2, 2)
    made = raw.RawImage(np.tile(flat, (4, 5)), (0.0,) * 4, 16383, cfa).turned(orientation)
    rgb = raw.demosaic(made.mosaic, made.cfa)
    for plane, level in zip(rgb, LEVEL.values(), strict=True):
        assert np.all(plane == level)


def test_normalise_takes_black_to_0_and_white_to_1() -> None:
    made = image("GRBG")
    by_site = raw.normalise(made.mosaic, made.black, 16383)
    assert by_site.dtype == np.float32
    assert by_site.shape == made.mosaic.shape
    for n, black in enumerate(made.black):
        y, x = divmod(n, 2)
        site = made.mosaic[y::2, x::2].astype(np.float32)
        np.testing.assert_array_equal(by_site[y::2, x::2], (site - np.float32(black)) / np.float32(16383 - black))
    planes = raw.pack(made.mosaic, made.cfa)
    packed = raw.normalise(planes, bayer.packed_order(made.black, made.cfa), 16383)
    np.testing.assert_array_equal(packed, raw.pack(by_site, made.cfa))
    assert raw.normalise(np.array([[100]], np.uint16), 200, 1200)[0, 0] == np.float32(-0.1)  # noise below black stays
    np.testing.assert_array_equal(raw.normalise(np.full((3, 2, 2), 50.0), 0, [50, 100, 200])[:, 0, 0], [1, 0.5, 0.25])
    with pytest.raises(ValueError, match="above black"):
        raw.normalise(made.mosaic, 512, 512)
    with pytest.raises(ValueError, match="levels for"):
        raw.normalise(made.mosaic, (1, 2, 3), 16383)


@given(st.integers(0, 31), st.integers(0, 19), st.integers(1, 32), st.integers(1, 20))
def test_crops_stay_on_the_pattern(left: int, top: int, width: int, height: int) -> None:
    made = image("GBRG", height=20, width=32)
    window = Window(left, top, width, height)
    if left + width > 32 or top + height > 20:
        with pytest.raises(ValueError, match="inside"):
            made.crop(window)
        return
    part = made.crop(window)
    np.testing.assert_array_equal(part.mosaic, made.mosaic[top : top + height, left : left + width])
    for n, (y, x) in enumerate(bayer.SITES):
        if y < height and x < width:
            assert colour_of(part.mosaic[y : y + 1, x : x + 1]) == [[part.cfa[n]]]
            assert part.black[n] == made.black[2 * ((top + y) % 2) + (left + x) % 2]
    even = bayer.on_phase(window)
    assert made.crop(even._replace(width=2, height=2)).cfa == made.cfa


def test_what_is_not_bayer_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "fuji.dng").write_bytes(x_trans(dng.encode(image("RGGB"))))
    with pytest.raises(NotBayer, match=r"fuji\.dng: X-Trans"):
        raw.read(tmp_path / "fuji.dng")


def test_what_is_no_raw_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.arw"
    path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(SourceError, match=r"a\.arw: LibRaw cannot open it"):
        raw.read(path)
    with pytest.raises(SourceError, match="no such file"):
        raw.read(tmp_path / "b.arw")
    whole = dng.encode(image("RGGB"))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match="LibRaw cannot"):
        raw.read(path)


def test_bytes_and_open_files_are_read_as_files(tmp_path: Path) -> None:
    data = dng.encode(image("BGGR", 8))
    path = tmp_path / "a.dng"
    path.write_bytes(data)
    with path.open("rb") as file:
        for other in (raw.read(data), raw.read(file)):
            np.testing.assert_array_equal(other.mosaic, raw.read(path).mosaic)
            assert other.model == "Synthetic"


@pytest.mark.skipif(not KODAK.exists(), reason="no ../shared/data/raw here")
def test_a_real_file_of_1996() -> None:
    real = raw.read(KODAK)
    assert real.mosaic.shape == (512, 768)
    assert (real.cfa, real.make, real.iso) == ("GRBG", "Eastman Kodak Company", 84)
    with rawpy.imread(str(KODAK)) as other:
        np.testing.assert_array_equal(real.mosaic, other.raw_image_visible)
    rgb = raw.demosaic(real.mosaic, real.cfa)
    rgb /= np.percentile(rgb, 99, axis=(1, 2), keepdims=True)
    sky, brick = rgb[:, 20:120, 20:280].mean(axis=(1, 2)), rgb[:, 280:400, 490:550].mean(axis=(1, 2))
    assert sky[2] > 1.05 * sky[0]  # a blue sky, which any other pattern makes gray or yellow
    assert brick[0] > 1.1 * brick[2]  # and red bricks


def digest_of(path: str) -> str:
    return xxhash.xxh3_128_hexdigest(raw.read(path).mosaic.tobytes())


@pytest.fixture(params=[20, pytest.param(10_000, marks=pytest.mark.soak)])
def reads(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.parametrize("how", ["fork", "spawn", "threads", "dask"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning", "ignore:rawpy is being used:RuntimeWarning")
def test_every_worker_reads_the_same(how: str, reads: int, tmp_path: Path) -> None:
    path = tmp_path / "a.dng"
    path.write_bytes(dng.encode(image("GRBG", 8, 64, 64)))
    with rawpy.imread(str(path)) as other:
        expected = xxhash.xxh3_128_hexdigest(np.rot90(other.raw_image_visible).tobytes())
        other.postprocess()  # LibRaw has used its threads before the fork

    if how == "dask":
        with Engine(2) as engine:
            assert set(engine.map(digest_of, [str(path)] * reads)) == {expected}
        return

    def pool() -> Any:
        return ThreadPoolExecutor(4) if how == "threads" else ProcessPoolExecutor(2, multiprocessing.get_context(how))

    with pool() as workers:
        assert set(workers.map(digest_of, [str(path)] * reads)) == {expected}
