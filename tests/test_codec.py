"""Mosaics as bytes: the same back, from any shape and any numbers; damaged bytes never give a picture."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from datakit import codec
from datakit.errors import ShardError

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)
MOSAICS = SHAPES.flatmap(lambda shape: arrays.arrays(np.uint16, shape))


def noisy(height: int, width: int, seed: int = 0) -> codec.Mosaic:
    """A ramp with noise, 14 bits."""
    rng = np.random.default_rng(seed)
    ramp = 512 + np.add.outer(np.arange(height) * 3.0, np.arange(width) * 5.0)
    return np.clip(rng.normal(ramp, np.sqrt(ramp)), 0, 16383).astype(np.uint16)


@given(MOSAICS)
def test_any_mosaic_comes_back(mosaic: codec.Mosaic) -> None:
    data = codec.encode(mosaic)
    again = codec.decode(data)
    assert again.dtype == np.uint16
    assert codec.shape(data) == mosaic.shape == again.shape
    np.testing.assert_array_equal(again, mosaic)


@pytest.mark.parametrize("most", [1, 2, 3, 255, 256, 4095, 16383, 65535])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (33, 47), (64, 64), (130, 62)])
def test_noise_of_any_depth_comes_back(most: int, shape: tuple[int, int]) -> None:
    mosaic = np.random.default_rng(most).integers(0, most, shape, np.uint16, endpoint=True)
    np.testing.assert_array_equal(codec.decode(codec.encode(mosaic)), mosaic)


@given(arrays.arrays(np.uint16, st.tuples(st.integers(1, 20), st.integers(1, 20)).map(lambda s: (2 * s[0], 2 * s[1]))))
def test_planes_are_the_sites_of_the_mosaic(mosaic: codec.Mosaic) -> None:
    planes = codec.decode_planes(codec.encode(mosaic))
    np.testing.assert_array_equal(planes, [mosaic[y::2, x::2] for y in (0, 1) for x in (0, 1)])


def test_a_view_and_its_copy_have_the_same_bytes() -> None:
    mosaic = noisy(60, 80)
    assert codec.encode(mosaic[10:40, 20:60]) == codec.encode(mosaic[10:40, 20:60].copy())
    assert codec.encode(np.rot90(mosaic)) == codec.encode(np.rot90(mosaic).copy())


def test_it_is_smaller_than_plain_14_bits() -> None:
    mosaic = noisy(512, 512)
    assert len(codec.encode(mosaic)) * 1.25 < mosaic.size * 14 / 8


def test_every_changed_byte_is_an_error() -> None:
    data = codec.encode(noisy(24, 30))
    for place in range(len(data)):
        for bit in (0, 3, 7):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises(ShardError):
                codec.decode(bytes(damaged))


def test_every_shortening_and_lengthening_is_an_error() -> None:
    data = codec.encode(noisy(24, 30))
    for end in range(len(data)):
        with pytest.raises(ShardError):
            codec.decode(data[:end])
    with pytest.raises(ShardError):
        codec.decode(data + b"\0")


@given(st.binary(max_size=200), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_foreign_bytes_with_a_right_checksum_are_an_error(tail: bytes, height: int, width: int, packed: int) -> None:
    """No checksum protects from bytes that somebody made: sizes are checked before any is believed."""
    for h, w in ((height, width), (height % 50, width % 50), (16, 16)):
        head = codec.HEAD.pack(codec.MAGIC, h, w, packed if h == height else packed % 200, 0)[:-8]
        checksum = xxhash.xxh3_64(head + tail).intdigest()
        with pytest.raises(ShardError):
            codec.decode(head + checksum.to_bytes(8, "little") + tail)


def test_what_is_no_mosaic_is_refused() -> None:
    for wrong in (np.zeros((2, 2), np.int32), np.zeros((2, 2, 2), np.uint16), np.zeros((0, 2), np.uint16)):
        with pytest.raises(ValueError, match="expected"):
            codec.encode(wrong)
    with pytest.raises(ValueError, match="even"):
        codec.decode_planes(codec.encode(noisy(3, 4)))
    with pytest.raises(ShardError, match="not a mosaic"):
        codec.decode(b"\x89PNG")
