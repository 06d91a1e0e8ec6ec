"""How pictures look: flips by place, agreement of thumbnails, columns into arrays, the odds of a random match."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from worlds import scene

from datakit import measure
from datakit.looks import PLACES, SCENE, TILE, TURNS, Likeness, Looks, chance, turn
from datakit.query import BACK
from datakit.sample import Sample, to_table

PILLOW = {  # what Pillow calls the flips: rotations go against the clock
    "left-right": Image.Transpose.FLIP_LEFT_RIGHT,
    "up-down": Image.Transpose.FLIP_TOP_BOTTOM,
    "turned 180": Image.Transpose.ROTATE_180,
    "transposed": Image.Transpose.TRANSPOSE,
    "turned 90": Image.Transpose.ROTATE_90,
    "turned 270": Image.Transpose.ROTATE_270,
    "transversed": Image.Transpose.TRANSVERSE,
}
SEEDS = st.integers(0, 2**32 - 1)
PLACE = st.integers(0, PLACES - 1)


def noise(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def looks_of(thumbnails: NDArray[np.uint8]) -> Looks:
    """Pictures of which only the thumbnails matter."""
    looks = Looks.empty(len(thumbnails))
    looks.thumbnails[:] = thumbnails
    return looks


def signed(pixels: NDArray[np.uint8], **more: Any) -> Sample:
    phashes, thumbnail, digest = measure.sign(pixels)
    entropy = measure.measure(pixels, None).entropy_bits
    fields = {"signatures": phashes, "thumbnail": thumbnail, "pixel_digest": digest, "entropy_bits": entropy}
    return Sample(**fields, **more)


# flips


@pytest.mark.parametrize("name", TURNS[1:])
def test_places_are_named_as_pillow_names_flips(name: str) -> None:
    pixels = noise(1, 5, 7, 3)
    flipped = np.asarray(Image.fromarray(pixels).transpose(PILLOW[name]))
    np.testing.assert_array_equal(turn(pixels[None], TURNS.index(name))[0], flipped)


def test_place_0_is_the_picture_itself() -> None:
    pixels = noise(2, 3, 5, 4, 3)
    assert TURNS[0] == ""
    np.testing.assert_array_equal(turn(pixels, 0), pixels)


@settings(deadline=None)
@given(SEEDS, PLACE)
def test_the_signature_of_a_place_is_that_of_the_flipped_thumbnail(seed: int, place: int) -> None:
    small = noise(seed, 1, 32, 32, 3)
    assert measure.phashes(turn(small, place)[0])[0] == measure.phashes(small[0])[place]


@settings(deadline=None)
@given(SEEDS, PLACE, PLACE)
def test_places_of_a_flipped_picture_are_those_of_flipping_twice(seed: int, first: int, second: int) -> None:
    small = noise(seed, 1, 32, 32, 3)
    both = turn(turn(small, first), second)
    assert measure.phashes(turn(small, first)[0])[second] == measure.phashes(both[0])[0]


@given(SEEDS, PLACE)
def test_every_flip_is_undone(seed: int, place: int) -> None:
    pixels = noise(seed, 2, 4, 6, 3)
    np.testing.assert_array_equal(turn(turn(pixels, place), BACK[place]), pixels)


@pytest.mark.parametrize("place", range(1, PLACES))
def test_a_real_picture_and_its_flip_agree_at_that_place(place: int) -> None:
    """Through the whole of signing: resized, flipped as a picture, signed again."""
    pixels = scene(4, 230, 190)
    flipped = np.asarray(Image.fromarray(pixels).transpose(PILLOW[TURNS[place]]))
    looks = Looks.of(to_table([signed(pixels), signed(flipped)]))
    bits = np.bitwise_count(looks.signatures[0] ^ looks.signatures[1, 0])
    assert bits[place] <= 4
    assert np.delete(bits, place).min() > 6
    one, other = np.array([0]), np.array([1])
    assert looks.agree(one, looks, other, np.array([place]), 2.0).tolist() == [True]
    assert looks.agree(one, looks, other, np.array([0]), 2.0).tolist() == [False]


# thumbnails


@given(SEEDS, PLACE)
def test_agreement_is_the_mean_difference_of_levels(seed: int, place: int) -> None:
    thumbs = noise(seed, 2, 8, 8, 3)
    thumbs[1] //= 3
    looks = looks_of(thumbs)
    total = int(np.abs(turn(thumbs[:1], place)[0].astype(int) - thumbs[1]).sum())
    one, other = np.array([0]), np.array([1])
    for least, yes in ((total / 192 + 1e-9, True), ((total + 0.5) / 192, True), ((total - 0.5) / 192, False)):
        assert looks.agree(one, looks, other, np.array([place]), least).tolist() == [yes]


@given(SEEDS, st.lists(PLACE, min_size=1, max_size=12), st.floats(0, 120))
def test_agreement_does_not_depend_on_which_of_two_is_turned(seed: int, places: list[int], levels: float) -> None:
    rng = np.random.default_rng(seed)
    some, more = looks_of(noise(seed, 5, 8, 8, 3)), looks_of(noise(seed + 1, 4, 8, 8, 3))
    mine, its = rng.integers(0, 5, len(places)), rng.integers(0, 4, len(places))
    there = some.agree(mine, more, its, np.array(places), levels)
    back = more.agree(its, some, mine, np.array(BACK)[places], levels)
    np.testing.assert_array_equal(there, back)


def test_agreement_of_many_is_that_of_each() -> None:
    base = noise(5, 8, 8, 3)
    some = looks_of(np.stack([base, np.clip(base, 0, 235) + 20, noise(6, 8, 8, 3)]).astype(np.uint8))
    mine, its = (n.ravel() for n in np.meshgrid(range(3), range(3)))
    places = np.zeros(9, np.int8)
    together = some.agree(mine, some, its, places, 20.0)
    alone = [some.agree(mine[n : n + 1], some, its[n : n + 1], places[:1], 20.0)[0] for n in range(9)]
    assert together.tolist() == alone
    assert together.tolist() == [True, True, False, True, True, False, False, False, True]


def test_of_no_pairs_none_agrees() -> None:
    looks = looks_of(noise(0, 1, 8, 8, 3))
    none = np.zeros(0, np.int64)
    assert looks.agree(none, looks, none, none, 8.0).shape == (0,)


# columns


def test_looks_are_the_columns_row_for_row() -> None:
    pictures = [noise(n, 40, 50, 3) for n in range(5)]
    table = to_table([signed(p, key=str(n)) for n, p in enumerate(pictures)])
    looks = Looks.of(table)
    assert len(looks) == 5
    for n, picture in enumerate(pictures):
        sign = measure.sign(picture)
        assert tuple(looks.signatures[n].tolist()) == sign.phashes
        assert looks.thumbnails[n].tobytes() == sign.thumbnail
        assert looks.digests[n] == sign.digest.rstrip(b"\0")
        assert looks.entropy_bits[n] == measure.measure(picture, None).entropy_bits


def test_what_was_not_measured_stays_zero_and_moves_nothing_else() -> None:
    samples = [Sample(key="a"), signed(noise(1, 40, 50, 3)), Sample(key="b"), signed(noise(2, 40, 50, 3)), Sample()]
    looks = Looks.of(to_table(samples))
    assert [d == b"" for d in looks.digests.tolist()] == [True, False, True, False, True]
    assert looks.signatures[[0, 2, 4]].max() == 0
    assert tuple(looks.signatures[3].tolist()) == samples[3].signatures
    assert looks.thumbnails[1].tobytes() == samples[1].thumbnail
    assert looks.flat(3.0).tolist() == [True, False, True, False, True]


def test_looks_of_slices_and_chunks_are_those_of_their_rows() -> None:
    samples = [signed(noise(n, 40, 50, 3)) for n in range(6)]
    table = to_table(samples)
    whole, part = Looks.of(table), Looks.of(table.slice(2, 3))
    chunks = Looks.of(pa.concat_tables([table.slice(4), table.slice(0, 1), to_table([Sample()]), table.slice(1, 3)]))
    np.testing.assert_array_equal(part.signatures, whole.signatures[2:5])
    np.testing.assert_array_equal(part.thumbnails, whole.thumbnails[2:5])
    np.testing.assert_array_equal(chunks.thumbnails[[0, 1, 2, 4, 5, 6]], whole.thumbnails[[4, 5, 0, 1, 2, 3]])
    np.testing.assert_array_equal(chunks.digests[[0, 1, 2, 4, 5, 6]], whole.digests[[4, 5, 0, 1, 2, 3]])


def test_digests_that_end_in_zero_bytes_are_still_told_apart() -> None:
    """numpy strips zeros at the end of bytes: two digests must not become one for that."""
    one, other = bytes(range(1, 16)) + b"\0", bytes(range(1, 15)) + b"\0\0"
    looks = Looks.of(
        to_table([Sample(pixel_digest=d, signatures=(1,) * 8, thumbnail=bytes(192)) for d in (one, other)])
    )
    assert looks.digests[0] != looks.digests[1]
    assert looks.digests[0] != b""


def test_an_image_and_its_window_have_looks_of_their_own() -> None:
    tile, image = noise(1, 40, 50, 3), noise(2, 40, 50, 3)
    of_image = measure.sign(image)
    names = dict(zip(SCENE, (of_image.phashes, of_image.thumbnail, of_image.digest, 7.0), strict=True))
    table = to_table([signed(tile, **names)])
    assert tuple(Looks.of(table, TILE).signatures[0].tolist()) == measure.sign(tile).phashes
    assert tuple(Looks.of(table, SCENE).signatures[0].tolist()) == of_image.phashes
    assert Looks.of(table, SCENE).entropy_bits[0] == 7.0


def test_mapped_looks_hold_the_same(tmp_path: Path) -> None:
    table = to_table([signed(noise(n, 40, 50, 3)) for n in range(3)])
    mapped = Looks.empty(5, tmp_path / "looks")
    mapped.put(1, Looks.of(table))
    inner = mapped.cut(4)
    assert len(inner) == 4
    for name in ("signatures", "thumbnails", "digests", "entropy_bits"):
        np.testing.assert_array_equal(getattr(inner, name)[1:4], getattr(Looks.of(table), name))
    assert (tmp_path / "looks").is_dir()


def test_values_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="values of other than 192 bytes"):
        Looks.of(to_table([Sample(pixel_digest=bytes(range(16)), signatures=(1,) * 8, thumbnail=b"short")]))


def test_no_records_have_no_looks() -> None:
    assert len(Looks.of(to_table([]))) == 0


# chance


def test_the_odds_of_all_distances_add_up_to_one() -> None:
    assert chance(62) == pytest.approx(1.0)
    assert chance(0) == 1 / math.comb(63, 32)
    assert chance(4) == chance(5) < chance(6)


def test_the_odds_are_those_of_real_signatures() -> None:
    """Of noise pictures, at a radius wide enough for matches to be counted."""
    hashes = np.array([measure.phashes(noise(n, 32, 32, 3))[0] for n in range(700)], np.uint64)
    one, other = np.triu_indices(len(hashes), 1)
    share = (np.bitwise_count(hashes[one] ^ hashes[other]) <= 22).mean()
    assert share == pytest.approx(chance(22), rel=0.15)


def test_what_is_too_far_or_negative_is_refused() -> None:
    for wrong in ({"radius_bits": 7}, {"radius_bits": -1}, {"thumbnail_levels": 256}, {"flat_entropy_bits": 9}):
        with pytest.raises(ValidationError):
            Likeness(**wrong)


def test_jpeg_and_half_size_are_within_the_default() -> None:
    """What the defaults are for, on pictures: within the radius, and thumbnails that agree."""
    spec = Likeness()
    pixels = scene(1, 240, 200)
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=50)
    half = Image.fromarray(pixels).resize((120, 100), Image.Resampling.BICUBIC)
    others = [np.asarray(Image.open(jpeg)), np.asarray(half), scene(2, 240, 200)]
    looks = Looks.of(to_table([signed(p) for p in (pixels, *others)]))
    bits = np.bitwise_count(looks.signatures[0, 0] ^ looks.signatures[1:, 0])
    zeros = np.zeros(3, np.int64)
    agree = looks.agree(zeros, looks, np.arange(1, 4), zeros, spec.thumbnail_levels)
    assert (bits <= spec.radius_bits).tolist() == [True, True, False]
    assert agree.tolist() == [True, True, False]
