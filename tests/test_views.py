"""Views of mosaics: each step is what its words say, and the named ones give the tensors of AODRaw's detectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import datakit
from datakit import bayer, codec, index, raw, views
from datakit.boxes import loads
from datakit.errors import RecipeError
from datakit.recipe import Recipe
from datakit.sources import synth_raw
from datakit.stream import Loader, View, Views
from datakit.views import NAMED, Camera
from datakit.views import View as RawView

CAMERA = Camera(
    "GRBG", (500.0, 510.0, 520.0, 530.0), 16000, 16383, (15000.0, 15100.0, 15200.0, 15300.0), (2.0, 1.0, 1.5)
)
MATRIX = (1.7, -0.6, -0.1, -0.2, 1.6, -0.4, 0.05, -0.45, 1.4)


def mosaic(height: int = 24, width: int = 30, seed: int = 0) -> bayer.Mosaic:
    return np.random.default_rng(seed).integers(450, 16383, (height, width)).astype(np.uint16)


def test_packed_is_the_normalised_planes() -> None:
    found = NAMED["packed"](mosaic(), CAMERA)
    expected = raw.pack(raw.normalise(mosaic(), CAMERA.black, 16000), "GRBG")
    assert found.dtype == np.float32
    # one white for all planes, above each plane's own black
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_demosaiced_takes_each_positions_own_black() -> None:
    found = NAMED["demosaiced"](mosaic(), CAMERA)
    dark = mosaic().astype(np.float64)
    for n, (y, x) in enumerate(bayer.SITES):
        dark[y::2, x::2] -= CAMERA.black[n]
    expected = raw.demosaic(dark, "GRBG") / np.float32(16000 - np.mean(CAMERA.black))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("white", "expected"),
    [
        ("nominal", [16000 - b for b in (510, 500, 520, 530)]),
        ("per_channel", [15100 - 510, 15000 - 500, 15200 - 520, 15300 - 530]),
        ("full", [16383] * 4),
        ("byte", [255] * 4),
    ],
)
def test_white_is_what_becomes_1(white: Any, expected: list[float]) -> None:
    black = np.array([510, 500, 520, 530.0])  # red, green of the red row, blue, green
    planes = raw.pack(mosaic(), "GRBG") - black[:, None, None]
    found = RawView(white=white)(mosaic(), CAMERA)
    np.testing.assert_allclose(found, planes / np.array(expected)[:, None, None], rtol=1e-5)


def test_measured_white_is_the_highest_sample() -> None:
    one = Camera("RGGB", (512.0,) * 4, 16000, 16383)
    assert RawView(white="measured")(mosaic(), one).max() == pytest.approx(1, abs=1e-6)
    assert RawView(white="measured", black="keep")(mosaic(), one).max() == pytest.approx(1, abs=1e-6)


def test_white_balance_and_matrix() -> None:
    camera = Camera("RGGB", (0.0,) * 4, 10000, 16383, (), (2.0, 1.0, 1.5), MATRIX)
    flat = np.tile(np.array([[2000, 4000], [4000, 3000]], np.uint16), (4, 4))
    balanced = RawView(white_balance="camera")(flat, camera)[:, 0, 0]
    np.testing.assert_allclose(balanced, [0.4, 0.4, 0.45, 0.4])
    np.testing.assert_allclose(RawView(white_balance="gray")(flat, camera)[:, 0, 0], [0.4] * 4, rtol=1e-6)
    linear = np.reshape(MATRIX, (3, 3)) @ [0.4, 0.4, 0.45]
    np.testing.assert_allclose(RawView(planes="srgb")(flat, camera)[:, 1, 1], linear, rtol=1e-5)
    asked = RawView(planes="demosaiced", white_balance="camera", matrix="camera")
    np.testing.assert_allclose(asked(flat, camera)[:, 1, 1], linear, rtol=1e-5)
    np.testing.assert_allclose(NAMED["srgb"](flat, camera)[:, 1, 1], np.clip(linear, 0, 1) ** (1 / 2.2), rtol=1e-5)


def test_gamma_keeps_signs_and_numbers() -> None:
    camera = Camera("RGGB", (512.0,) * 4, 16383, 16383)
    dark = np.full((4, 4), 500, np.uint16)  # noise below black
    found = RawView(gamma=2.2)(dark, camera)
    np.testing.assert_allclose(found, -((12 / (16383 - 512)) ** (1 / 2.2)), rtol=1e-5)
    assert RawView(gamma=2.2, clip=(0, 1))(dark, camera).max() == 0


def test_reduction_and_16_bits() -> None:
    camera = Camera("RGGB", (0.0,) * 4, 16383, 16383)
    whole = RawView()(mosaic(), camera)
    half = RawView(scale=2)(mosaic(), camera)
    assert half.shape == (4, 6, 7)
    np.testing.assert_allclose(half[0, 0, 0], whole[0, :2, :2].mean(), rtol=1e-5)
    levels = RawView(dtype="uint16")(mosaic(), camera)
    assert levels.dtype == np.uint16
    np.testing.assert_allclose(levels / 65535, whole, atol=1 / 65535)
    assert RawView(scale=2).size(30, 24) == (7, 6)


def published_slice(npy: Any) -> Any:
    """LoadImageFromRAWDemosaicing, restated: planes to a mosaic by place, demosaiced as RGGB, gamma over 255."""
    four, height, width = npy.shape
    assert four == 4
    whole = np.zeros((2 * height, 2 * width), np.float32)
    for plane, (y, x) in zip(npy, ((0, 0), (0, 1), (1, 1), (1, 0)), strict=True):
        whole[y::2, x::2] = plane
    return np.power(raw.demosaic(whole, "RGGB") / np.float32(255), np.float32(1 / 2.2)) * np.float32(255)


@pytest.mark.parametrize("cfa", bayer.PATTERNS)
def test_aodraw_slices_gives_the_tensor_of_the_published_detectors(cfa: str) -> None:
    """Also where the file is a portrait and the pattern is not what those take it for."""
    sample = mosaic(64, 64)
    npy = np.stack([sample[y::2, x::2] for y, x in ((0, 0), (0, 1), (1, 1), (1, 0))]).astype(np.float32)
    found = NAMED["aodraw_slices"](sample, Camera(cfa, (512.0,) * 4, 16383, 16383))
    np.testing.assert_allclose(found, published_slice(npy), rtol=2e-6)


@pytest.mark.parametrize("cfa", bayer.PATTERNS)
def test_aodraw_downsampled_gives_the_tensor_of_the_published_detectors(cfa: str) -> None:
    sample = mosaic(60, 66)
    rgb = torch.from_numpy(raw.demosaic(sample, "RGGB"))[None]
    small = torch.nn.functional.interpolate(rgb, size=(20, 22), mode="bilinear")[0].numpy()
    npy = small / ((2**14 - 1) / 255.0)
    expected = np.power(npy / 255.0, 1 / 2.2) * 255.0
    found = NAMED["aodraw_downsampled"](sample, Camera(cfa, (512.0,) * 4, 16383, 16383))
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_a_reduced_picture_gives_the_same_up_to_its_rounding() -> None:
    camera = Camera("RGGB", (512.0,) * 4, 16383, 16383, (), (2.0, 1.0, 1.5), MATRIX)
    place = views.Window(0, 0, 66, 60)
    stored = bayer.downsampled(mosaic(60, 66), "RGGB", place, 22, 20) * (65535 / 16383) + 0.5
    for name in ("demosaiced", "srgb", "aodraw_downsampled"):
        view = NAMED[name].model_copy(update={"scale": 3, "filter": "bilinear"})
        once = NAMED[name].model_copy(update={"scale": 1})
        found = once.of_reduced(stored.astype(np.uint16), camera)
        np.testing.assert_allclose(found, view(mosaic(60, 66), camera), rtol=1e-3, atol=1e-3)
    with pytest.raises(RecipeError, match="demosaiced already"):
        NAMED["packed"].of_reduced(stored.astype(np.uint16), camera)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
def test_flips_do_not_swap_colours(orientation: int) -> None:
    """What a flipped mosaic with its own pattern shows is the flipped picture, in every view of one px a px."""
    image = raw.RawImage(mosaic(), CAMERA.black, 16000, "GRBG", (2.0, 1.0, 1.5), MATRIX)
    for view in (RawView(), RawView(white_balance="camera"), NAMED["demosaiced"], NAMED["srgb"]):
        upright = view(image.mosaic, Camera.of_image(image))
        flipped = image.turned(orientation)
        found = view(flipped.mosaic, Camera.of_image(flipped))
        expected = bayer.turn(upright.transpose(1, 2, 0), orientation).transpose(2, 0, 1)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_is_refused() -> None:
    for wrong in ({"matrix": "camera"}, {"planes": "packed", "filter": "bilinear", "scale": 3}, {"gamma": 0}):
        with pytest.raises(ValidationError):
            RawView.model_validate(wrong)
    with pytest.raises(RecipeError, match="no view 'raw'"):
        views.view_of("raw")
    with pytest.raises(RecipeError, match="no camera RAW"):
        Camera.of("")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    synth_raw.make(folder, seed=2, size=(216, 152), images=8)
    changes = {"slice.published.size_px": 96, "slice.published.gap_px": 24, "domain": "both"}
    datakit.build(Recipe.load("aodraw", changes), data=folder, out=folder / "out", workers=0)
    changes = {"view": "downsampled"}
    datakit.build(Recipe.load("aodraw", changes), data=folder, out=folder / "third", workers=0)
    return folder


@pytest.mark.parametrize("name", ["packed", "demosaiced", "srgb", "aodraw_slices"])
def test_a_loader_gives_views(built: Path, name: str) -> None:
    view = NAMED[name]
    loader = Loader(built / "out", 4, raw=name, columns=("json", "boxes"), threads=2, shuffle=False)
    stored = Loader(built / "out", 4, columns=("raw",), threads=1, shuffle=False)
    for batch, other in zip(loader, stored, strict=True):
        side = 48 if name == "packed" else 96
        assert batch.images.shape == (4, view.bands, side, side)
        for n, fields in enumerate(batch.columns["json"]):
            if not batch.mask[n]:
                continue
            camera = Camera.of(fields["camera"])
            expected = view(codec.decode(other.columns["raw"][n]), camera)
            np.testing.assert_array_equal(batch.images[n].numpy(), expected)
            found, whole = batch.columns["boxes"][n], loads(fields["boxes"])
            factor = side / 96
            for box, before in zip(found, whole, strict=True):
                np.testing.assert_allclose(box.points, np.multiply(before.points, factor), atol=1e-6)


def test_a_loader_crops_views_of_16_bits(built: Path) -> None:
    raw_view = RawView(dtype="uint16", clip=(0, 1))
    views_ = Views((View(32),), normalise=None)
    loader = Loader(built / "out", 4, raw=raw_view, transform=views_, seed=3)
    (batch, *_) = list(loader)
    assert batch.images.shape == (4, 4, 32, 32)
    again = next(iter(Loader(built / "out", 4, raw=raw_view, transform=views_, seed=3, threads=1)))
    assert torch.equal(batch.images, again.images)
    with pytest.raises(RecipeError, match="dtype: uint16"):
        Loader(built / "out", 4, raw="packed", transform=views_)


def test_a_loader_takes_reduced_pictures(built: Path) -> None:
    loader = Loader(built / "third", 1, raw="aodraw_downsampled", columns=("json",), shuffle=False, threads=1)
    for batch in loader:
        (fields,) = batch.columns["json"]
        assert tuple(batch.images.shape[1:]) == (3, fields["height"], fields["width"])
        assert 0 < float(batch.images.max()) <= 255.01


def test_a_damaged_mosaic_is_replaced_and_told(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built / "out", tmp_path / "out")
    table = index.load(tmp_path / "out/index.arrow")
    row = table.slice(0, 1).to_pylist()[0]
    shards = json.loads(table.schema.metadata[b"shards"])
    path = tmp_path / "out" / shards[row["shard"]]["name"]
    data = bytearray(path.read_bytes())
    data[row["raw_offset"] + row["raw_bytes"] // 2] ^= 1
    path.write_bytes(data)
    loader = Loader(tmp_path / "out", 4, raw="packed", max_bad_share=0.5, shuffle=False)
    assert len(list(loader)) == len(loader)
    (bad,) = {(one.key, one.reason) for one in loader.report().replaced}
    assert bad == (row["key"], "unreadable")
