"""Numbers about pixels, against imagededup, Pillow and plain numpy."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import maximum_filter

from datakit.measure import (
    Collar,
    Mask,
    Measures,
    Pixels,
    box_means,
    box_sums,
    entropy,
    measure,
    phash,
    phashes,
    psnr_db,
    resize32,
    sign,
)
from datakit.sources.land import KINDS
from datakit.sources.scenes import draw

SHAPES = [  # (height, width)
    (1, 1), (1, 40), (40, 1), (2, 3), (7, 7), (16, 31), (31, 16), (31, 200), (200, 31), (32, 32), (32, 33), (33, 32),
    (33, 33), (32, 300), (300, 32), (63, 65), (64, 64), (65, 63), (100, 100), (127, 255), (255, 127), (64, 500),
    (500, 64), (128, 129), (256, 256), (333, 257), (257, 333), (400, 40), (40, 400), (511, 509), (512, 512),
]  # fmt: skip


@pytest.fixture(scope="module")
def scenes() -> list[Pixels]:
    return [draw(np.random.default_rng(n), kind, 560, 540).pixels for n, kind in enumerate(sorted(KINDS))]


def crops(scenes: list[Pixels], seed: int = 0) -> Iterator[Pixels]:
    """A crop of each shape of each scene."""
    rng = np.random.default_rng(seed)
    for scene in scenes:
        for height, width in SHAPES:
            top = int(rng.integers(0, scene.shape[0] - height + 1))
            left = int(rng.integers(0, scene.shape[1] - width + 1))
            yield np.ascontiguousarray(scene[top : top + height, left : left + width])


def drawn() -> Iterator[Pixels]:
    """Pictures of one colour, ramps, stripes, noise, and hard edges."""
    rng = np.random.default_rng(5)
    for height, width in SHAPES:
        y, x = np.mgrid[:height, :width]
        ramps = (x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x + y) % 256, (x * 37 + y * 11) % 256)
        for level in (*ramps, (x // 4 % 2) * 255, (x > y) * 255):
            yield np.repeat(level.astype(np.uint8)[:, :, None], 3, axis=2)
        yield rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        yield np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)


def test_phash_is_imagededups_bit_for_bit(scenes: list[Pixels]) -> None:
    from imagededup.methods import PHash

    peer = PHash(verbose=False)
    pictures = [*crops(scenes), *drawn()]
    assert len(pictures) > 500
    for picture in pictures:
        assert f"{phash(picture):016x}" == peer.encode_image(image_array=picture), picture.shape


def test_phash_of_a_slice_of_an_array_is_that_of_its_copy(scenes: list[Pixels]) -> None:
    view = scenes[0][5:300:1, 7:400:1]
    assert sign(view) == sign(np.ascontiguousarray(view))
    assert measure(view, None) == measure(np.ascontiguousarray(view), None)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 2**32), st.sampled_from(["noise", "edges", "smooth"]))
def test_resize32_is_pillows_bit_for_bit(height: int, width: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "edges":
        picture = (picture > rng.integers(0, 256)).astype(np.uint8) * np.uint8(255)
    elif kind == "smooth":
        picture = np.asarray(Image.fromarray(picture[:4, :4]).resize((width, height), Image.Resampling.BICUBIC))
    expected = Image.fromarray(picture).resize((32, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(resize32(picture), np.asarray(expected))


@pytest.mark.parametrize("width", [1023, 1024, 2049, 5000])
def test_resize32_of_wide_scenes(width: int) -> None:
    picture = np.random.default_rng(width).integers(0, 2, (70, width, 3), dtype=np.uint8) * np.uint8(255)
    expected = Image.fromarray(picture).resize((32, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(resize32(picture), np.asarray(expected))


def placed(picture: NDArray[np.uint8], place: int) -> NDArray[np.uint8]:
    """A picture flipped left-right (1), then top-bottom (2), then transposed (4)."""
    picture = picture[:, ::-1] if place & 1 else picture
    picture = picture[::-1] if place & 2 else picture
    return np.ascontiguousarray(picture.transpose(1, 0, 2) if place & 4 else picture)


def test_the_eight_signatures_are_those_of_the_flipped_and_rotated_picture(scenes: list[Pixels]) -> None:
    turned_bits = []
    for picture in (np.ascontiguousarray(scene[:size, :size]) for scene in scenes for size in (32, 64, 200, 512)):
        small = resize32(picture)
        assert phashes(small) == tuple(phashes(placed(small, place))[0] for place in range(8))
        signatures = sign(picture).phashes
        assert signatures[:4] == tuple(phash(placed(picture, place)) for place in range(4))
        turned_bits += [(signatures[place] ^ phash(placed(picture, place))).bit_count() for place in range(4, 8)]
    # Pillow reduces across before it reduces down, and rounds in between: the thumbnail of a transposed picture differs
    # by a level here and there, and now and then a bit next to the median turns.
    assert max(turned_bits) <= 3
    assert np.mean(turned_bits) < 0.4


def test_signatures_are_of_every_orientation_of_each_other(scenes: list[Pixels]) -> None:
    signatures = set(sign(scenes[3][:512, :512]).phashes)
    assert len(signatures) == 8
    for turns in range(4):
        turned = phash(np.ascontiguousarray(np.rot90(scenes[3][:512, :512], turns)))
        assert min((turned ^ s).bit_count() for s in signatures) <= 2


def test_pictures_of_one_colour_have_one_signature() -> None:
    rng = np.random.default_rng(1)
    colours = [(0, 0, 0), (255, 255, 255), (1, 1, 1), *map(tuple, rng.integers(0, 256, (60, 3)).tolist())]
    found = {sign(np.full((*shape, 3), c, np.uint8)).phashes for c in colours[1:] for shape in ((40, 40), (64, 200))}
    black = sign(np.zeros((40, 40, 3), np.uint8)).phashes
    assert len(found | {black}) == 1, "constant pictures leave the Hamming search as one group"


def test_thumbnail_and_digest(scenes: list[Pixels]) -> None:
    picture = np.ascontiguousarray(scenes[0][:256, :320])
    signed = sign(picture)
    small = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.LANCZOS), float)
    means = small.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    assert np.array_equal(np.frombuffer(signed.thumbnail, np.uint8).reshape(8, 8, 3), np.floor(means + 0.5))
    shape = np.array(picture.shape, "<i8").tobytes()
    assert signed.digest == xxhash.xxh3_128(shape + picture.tobytes()).digest()
    assert sign(np.zeros((4, 6, 3), np.uint8)).digest != sign(np.zeros((6, 4, 3), np.uint8)).digest


def restated(pixels: Pixels, valid: Mask | None) -> Measures:
    """`measure` in floating point, line by line from its description."""
    mask = np.ones(pixels.shape[:2], bool) if valid is None else valid
    count = int(mask.sum())
    if not count:
        return Measures(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, *[(0, 0, 0)] * 5)
    luma = np.asarray(Image.fromarray(pixels).convert("L")).astype(float)
    shares = np.bincount(luma[mask].astype(int)) / count
    shares = shares[shares > 0]
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    laplacian = 4 * luma[1:-1, 1:-1] - around
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    bands = pixels[mask].astype(int)  # (N, 3)
    return Measures(
        valid_share=count / mask.size,
        entropy_bits=float(-(shares * np.log2(shares)).sum()),
        sharpness=float(laplacian[inner].var()) if inner.any() else 0.0,
        luma_mean=float(luma[mask].mean()),
        luma_std=float(luma[mask].std()),
        saturation=float((bands.max(axis=1) - bands.min(axis=1)).mean() / 255),
        band_count=(count,) * 3,
        band_sum=tuple(bands.sum(axis=0).tolist()),
        band_sum_squares=tuple((bands**2).sum(axis=0).tolist()),
        band_min=tuple(bands.min(axis=0).tolist()),
        band_max=tuple(bands.max(axis=0).tolist()),
    )


def agree(pixels: Pixels, valid: Mask | None) -> None:
    mine, plain = measure(pixels, valid), restated(pixels, valid)
    for name in Measures._fields:
        if name.startswith("band_"):
            assert getattr(mine, name) == getattr(plain, name), name
        else:
            assert getattr(mine, name) == pytest.approx(getattr(plain, name), rel=1e-9, abs=1e-6), name


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 256))
def test_measures_are_their_plain_restatement(height: int, width: int, seed: int, share: float, top: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, top, (height, width, 3), dtype=np.uint8)
    agree(pixels, None)
    agree(pixels, rng.random((height, width)) < share)


def test_measures_of_scenes(scenes: list[Pixels]) -> None:
    y, x = np.mgrid[:540, :560]
    for scene in scenes:
        agree(scene, None)
        agree(scene, (x - 270) ** 2 + (y - 270) ** 2 < 200**2)


def test_what_is_not_valid_has_no_say(scenes: list[Pixels]) -> None:
    valid = np.zeros((540, 560), bool)
    valid[100:300, 50:400] = True
    other = scenes[1].copy()
    other[valid] = scenes[0][valid]
    assert measure(other, valid) == measure(scenes[0], valid)
    inside = measure(np.ascontiguousarray(scenes[0][100:300, 50:400]), None)
    assert measure(scenes[0], valid) == inside._replace(valid_share=200 * 350 / (540 * 560))


def test_measures_at_their_ends() -> None:
    nothing = measure(np.full((9, 9, 3), 77, np.uint8), np.zeros((9, 9), bool))
    assert nothing == Measures(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, *[(0, 0, 0)] * 5)
    flat = measure(np.full((20, 30, 3), 255, np.uint8), None)
    assert flat[:6] == (1.0, 0.0, 0.0, 255.0, 0.0, 0.0)
    assert math.copysign(1.0, flat.entropy_bits) == 1.0
    red = measure(np.full((20, 30, 3), (255, 0, 0), np.uint8), None)
    assert (red.saturation, red.luma_mean) == (1.0, 76.0)
    assert measure(np.zeros((1, 5, 3), np.uint8), None).sharpness == 0.0
    even = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    assert measure(even, None).entropy_bits == 8.0
    assert entropy(np.array([0] * 255 + [9])) == 0.0
    assert entropy(np.array([1, 1, 2] + [0] * 253)) == 1.5


def test_sums_of_large_bright_pictures_do_not_overflow() -> None:
    y, x = np.mgrid[:5, :70_000]
    large = np.repeat(((x + y) % 2 * 255).astype(np.uint8)[:, :, None], 3, axis=2)  # its Laplacian is 1,020 or -1,020
    large[:, 30_000:40_000] = 255
    agree(large, None)
    agree(large, np.ones((5, 70_000), bool))


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 12), st.integers(0, 2**32))
@settings(deadline=None)
def test_boxes_are_numpys(height: int, width: int, factor: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    down, across = range(0, height, factor), range(0, width, factor)
    cells = [[pixels[y : y + factor, x : x + factor].reshape(-1, 3).astype(int) for x in across] for y in down]
    sums = box_sums(pixels, factor)
    assert np.array_equal(sums, [[cell.sum(axis=0) for cell in row] for row in cells])
    means = box_means(sums, (height, width), factor)
    assert np.array_equal(means, [[np.floor(cell.mean(axis=0) + 0.5) for cell in row] for row in cells])
    cut = height // 2 // factor * factor  # rows may come in pieces
    pieces = [box_sums(piece, factor) for piece in (pixels[:cut], pixels[cut:]) if len(piece)]
    assert np.array_equal(np.concatenate(pieces), sums)


def test_psnr(scenes: list[Pixels]) -> None:
    one, other = scenes[0], scenes[1]
    error = ((one.astype(float) - other) ** 2).mean()
    assert psnr_db(one, other) == pytest.approx(10 * math.log10(255**2 / error), abs=6e-4)
    assert psnr_db(one, one) == 99.0
    assert psnr_db(np.zeros((5, 5, 3), np.uint8), np.full((5, 5, 3), 255, np.uint8)) == 0.0


def framed(scene: Pixels, fill: int, left: int, top: int, right: int, bottom: int) -> tuple[Pixels, Mask]:
    """A scene with a collar of one level, and where the collar is."""
    height, width = scene.shape[:2]
    collar = np.ones((height, width), bool)
    collar[top : height - bottom, left : width - right] = False
    return np.where(collar[:, :, None], np.uint8(fill), scene), collar


def rotated(scene: Pixels, fill: int, degrees: float) -> tuple[Pixels, Mask]:
    """A scene turned within its frame, the corners filled."""
    height, width = scene.shape[:2]
    inside = Image.fromarray(np.full((height, width), 255, np.uint8)).rotate(degrees, Image.Resampling.NEAREST)
    turned = Image.fromarray(scene).rotate(degrees, Image.Resampling.NEAREST, fillcolor=(fill,) * 3)
    return np.asarray(turned), np.asarray(inside) == 0


def found(pixels: Pixels) -> Mask:
    valid = Collar(pixels.shape[1]).valid(pixels, first=True, last=True)
    return np.zeros(pixels.shape[:2], bool) if valid is None else ~valid


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("sides", [(30, 0, 0, 0), (0, 30, 0, 0), (0, 0, 30, 0), (0, 0, 0, 30), (9, 40, 70, 21)])
def test_straight_collars(scenes: list[Pixels], fill: int, sides: tuple[int, int, int, int]) -> None:
    for scene in scenes:
        pixels, collar = framed(scene, fill, *sides)
        assert np.array_equal(found(pixels), collar)


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("degrees", [3.0, 20.0, 45.0, -12.0])
def test_collars_of_a_rotated_frame(scenes: list[Pixels], fill: int, degrees: float) -> None:
    pixels, collar = rotated(scenes[0], fill, degrees)
    assert collar.mean() > 0.02
    assert np.array_equal(found(pixels), collar)


@pytest.mark.parametrize("quality", [50, 75, 90])
@pytest.mark.parametrize("fill", [0, 255])
def test_collars_after_jpeg(scenes: list[Pixels], fill: int, quality: int) -> None:
    for n, scene in enumerate(scenes):
        for pixels, collar in (framed(scene, fill, 37, 50, 0, 22), rotated(scene, fill, 4.0 + 3 * n)):
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "JPEG", quality=quality)
            seen = found(np.asarray(Image.open(out)))
            rim = maximum_filter(~collar, 33)
            assert np.count_nonzero(seen & ~collar) <= 0.002 * collar.size
            assert not (collar & ~seen & ~rim).any()  # past 16 px, a JPEG block in 4:2:0, none is lost
            assert np.count_nonzero(seen & collar) >= 0.8 * np.count_nonzero(collar)


def test_dark_water_within_a_picture_is_no_collar(scenes: list[Pixels]) -> None:
    pixels = scenes[0].copy()
    pixels[100:300, 100:400] = 0
    pixels[400:500, 30:80] = 255
    assert Collar(560).valid(pixels, first=True, last=True) is None
    framed_too, collar = framed(pixels, 0, 20, 20, 20, 20)
    assert np.array_equal(found(framed_too), collar)
    sea = pixels.copy()
    sea[:, :200] = (4, 9, 14)  # dark, but not black, up to the edge
    assert Collar(560).valid(sea, first=True, last=True) is None


def test_nothing_found_is_none(scenes: list[Pixels]) -> None:
    for scene in scenes:
        assert Collar(560).valid(scene, first=True, last=True) is None


def test_all_of_a_black_picture_is_collar() -> None:
    valid = Collar(30).valid(np.zeros((20, 30, 3), np.uint8), first=True, last=True)
    assert valid is not None
    assert not valid.any()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 119), max_size=5), st.sampled_from([0, 255]), st.floats(-40, 40), st.integers(0, 99))
def test_rows_in_pieces_are_as_in_one_but_for_the_bottom(cuts: list[int], fill: int, degrees: float, seed: int) -> None:
    texture = np.random.default_rng(seed).integers(30, 220, (120, 90, 3), dtype=np.uint8)
    pixels, _ = rotated(texture, fill, degrees)
    collar, edges = Collar(90), [0, *sorted(set(cuts)), 120]
    pieces = []
    for top, bottom in itertools.pairwise(edges):
        valid = collar.valid(pixels[top:bottom], first=top == 0, last=bottom == 120)
        pieces.append(np.zeros((bottom - top, 90), bool) if valid is None else ~valid)
    streamed, whole = np.concatenate(pieces), found(pixels)
    if len(edges) > 2:
        upright = found(np.concatenate([pixels, np.full((1, 90, 3), 128, np.uint8)]))[:-1]  # a bottom that ends runs
        assert np.array_equal(streamed, upright)
        assert not (streamed & ~whole).any()
    else:
        assert np.array_equal(streamed, whole)
