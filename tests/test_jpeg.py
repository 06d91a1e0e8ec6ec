"""Our JPEG decoder gives libjpeg-turbo's pixels, or says that it cannot."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile
from worlds import SHARED

from datakit.sources.scenes import draw
from datakit.stream.jpeg import Crops, header

SCENE = draw(np.random.default_rng(1), "houses", 300, 300).pixels


def picture(width: int, height: int, noise: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    levels = SCENE[:height, :width].astype(int) + rng.integers(-noise, noise + 1, (height, width, 3))
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 22)  # Pillow's buffer is too small for optimised tables of noise


@given(
    st.integers(1, 150), st.integers(1, 150), st.sampled_from([0, 30, 255]), st.sampled_from([5, 75, 90, 100]),
    st.sampled_from([0, 1, 2]), st.booleans(), st.integers(0, 4), st.booleans(), st.data(),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_pixels_of_any_crop_are_those_of_libjpeg(
    width: int, height: int, noise: int, quality: int, chroma: int, optimised: bool, restart: int, gray: bool, data: Any
) -> None:
    image = picture(width, height, noise)
    jpeg = encoded(
        image.convert("L") if gray else image,
        quality=quality, subsampling=chroma, optimize=optimised, restart_marker_blocks=restart,
    )  # fmt: skip
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    crops = Crops()
    crops.decode(encoded(picture(200, 200, 255)), (0, 0, 200, 200))  # what an image before left in the buffers
    levels = crops.decode(jpeg, (left, top, right, bottom))
    if levels is None:  # libjpeg has another way for narrow chroma
        assert width <= 4
        assert chroma
        return
    expected = simplejpeg.decode_jpeg(jpeg, "RGB")
    assert levels.shape == expected.shape
    assert np.array_equal(levels[top:bottom, left:right], expected[top:bottom, left:right])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real test files are not at hand")
def test_real_files() -> None:
    """Whatever wrote them."""
    seen = 0
    for path in sorted(SHARED.rglob("*.jp*g")):
        data = path.read_bytes()
        about = header(data)
        if about is None:
            continue
        levels = Crops().decode(data, (0, 0, about.width, about.height))
        assert levels is not None, path
        assert np.array_equal(levels, simplejpeg.decode_jpeg(data, "RGB")), path
        seen += 1
    assert seen


def test_other_kinds_are_left_to_others() -> None:
    image = picture(64, 64, 9)
    for other in (
        encoded(image, progressive=True),
        encoded(image.convert("CMYK")),
        encoded(image, keep_rgb=True),
        encoded(image)[:40],
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8 no picture \xff\xda" + bytes(40),
    ):
        assert Crops().decode(other, (0, 0, 64, 64)) is None


def test_a_file_that_ends_early_is_found_whatever_the_crop() -> None:
    jpeg = encoded(picture(200, 200, 30))
    for count in (len(jpeg) - 1, len(jpeg) // 2, 700):
        assert Crops().decode(jpeg[:count], (0, 0, 8, 8)) is None


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=20), st.booleans())
@settings(max_examples=300, deadline=None)
def test_damage_ends_nothing(flips: list[tuple[int, int]], restart: bool) -> None:
    """Damaged bytes give no pixels or some, and the next image is as ever."""
    good = encoded(picture(120, 90, 60), restart_marker_blocks=2 * restart)
    damaged = bytearray(good)
    for place, byte in flips:
        damaged[place % len(good)] = byte
    crops = Crops()
    box = (0, 0, 120, 90)
    about = header(bytes(damaged))
    if about is not None:
        levels = crops.decode(bytes(damaged), (0, 0, about.width, about.height))
        assert levels is None or levels.shape == (about.height, about.width, 3)
    levels = crops.decode(good, box)
    assert levels is not None
    assert np.array_equal(levels, simplejpeg.decode_jpeg(good, "RGB"))


def test_codes_of_sixteen_bits() -> None:
    """Optimised tables of rare symbols have codes longer than what is looked up at once."""
    rng = np.random.default_rng(0)
    levels: NDArray[np.uint8] = np.zeros((256, 256, 3), np.uint8)
    levels[:8] = rng.integers(0, 256, (8, 256, 3))
    jpeg = encoded(Image.fromarray(levels), quality=100, optimize=True)
    ours = Crops().decode(jpeg, (0, 0, 256, 256))
    assert ours is not None
    assert np.array_equal(ours, simplejpeg.decode_jpeg(jpeg, "RGB"))
