"""Unprocessing against the published steps, one picture and one pixel at a time, in float64."""

from __future__ import annotations

import math
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from datakit.pretrain import unprocess as u


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow(picture: NDArray[np.float64], p: u.Params, n: int) -> NDArray[np.float64]:
    """Brooks et al., 3.1 to 3.5, a pixel at a time: (3, H, W) -> signal of each colour."""
    out = np.empty_like(picture)
    matrix, gains = p.matrix[n].double().numpy(), p.gains[n].double().numpy()
    for y in range(picture.shape[1]):
        for x in range(picture.shape[2]):
            light = [max(0.5 - math.sin(math.asin(1 - 2 * v) / 3), 1e-8) ** 2.2 for v in picture[:, y, x]]
            seen = [sum(matrix[i][j] * light[j] for j in range(3)) for i in range(3)]
            mask = (max(sum(seen) / 3 - 0.9, 0) / 0.1) ** 2
            for c in range(3):
                safe = max(mask + (1 - mask) / gains[c], 1 / gains[c])
                out[c, y, x] = min(max(seen[c] * safe, 0), 1) * float(p.exposure[n])
    return out


def test_each_step_is_as_published() -> None:
    torch.manual_seed(0)
    srgb = torch.rand(5, 3, 6, 8)
    srgb[0] = 1 - srgb[0] / 50  # highlights
    srgb[1, :, 0, 0], srgb[1, :, 0, 1] = 0, 1
    params = u.sample_params(generator(), 5, u.Camera(exposure=(0.1, 1)))
    planes = u.unprocess(srgb, params, mosaic=False, noise=False, quantise=False)
    mosaic = u.unprocess(srgb, params, noise=False, quantise=False)
    levels = u.unprocess(srgb, params, noise=False)
    for n in range(5):
        expected = slow(srgb[n].double().numpy(), params, n)
        assert np.abs(planes.signal[n].numpy() - expected).max() < 1e-5
        for y in range(6):
            for x in range(8):
                colour = ((0, 1), (1, 2))[y % 2][x % 2]
                assert abs(float(mosaic.signal[n, y, x]) - expected[colour, y, x]) < 1e-5
                level = 512 + expected[colour, y, x] * (16383 - 512)
                assert abs(float(levels.levels[n, y, x]) - level) <= 0.5 + 1e-2
    assert bool((levels.levels == levels.levels.round()).all())


@given(st.integers(0, 10**6), st.sampled_from([(1.0, 1.0), (0.05, 1.0)]))
def test_what_no_step_clips_comes_back(seed: int, exposure: tuple[float, float]) -> None:
    torch.manual_seed(seed)
    srgb = torch.rand(2, 3, 8, 8)
    params = u.sample_params(generator(seed), 2, u.Camera(exposure=exposure))
    raw = u.unprocess(srgb, params, mosaic=False, noise=False, quantise=False)
    seen = torch.einsum("bij,bjhw->bihw", params.matrix, u.linear(srgb))
    fits = (seen.mean(1) < u.INFLECTION) & (seen >= 0).all(1) & (seen / params.gains[:, :, None, None] <= 1).all(1)
    off = (u.process(raw) - srgb).abs().amax(1)
    assert float((off * fits).max()) < 1e-5
    assert fits.float().mean() > 0.3


def test_samples_of_a_mosaic_are_exact() -> None:
    torch.manual_seed(1)
    smooth = torch.nn.functional.interpolate(torch.rand(3, 3, 8, 8), (64, 64), mode="bicubic").clamp(0.02, 0.8)
    params = u.sample_params(generator(), 3)
    planes = u.unprocess(smooth, params, mosaic=False, noise=False, quantise=False)
    mosaic = u.unprocess(smooth, params, noise=False, quantise=False)
    again = u.demosaic(mosaic.levels)
    for y, x, colour in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        assert torch.equal(again[:, colour, y::2, x::2], planes.levels[:, colour, y::2, x::2])
    assert u.psnr(u.process(mosaic), smooth).min() > 30


def test_demosaic_keeps_planes_to_the_edge() -> None:
    """What is linear in x and y is so after it; one colour is one colour at the border, too."""
    flat = torch.tensor([0.2, 0.5, 0.9])[None, :, None, None].expand(1, 3, 6, 10)
    assert torch.allclose(u.demosaic(u.sampled(flat)), flat)
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    ramp = (2 * x + 3 * y).expand(1, 3, 8, 8)
    assert torch.allclose(u.demosaic(u.sampled(ramp))[:, :, 1:-1, 1:-1], ramp[:, :, 1:-1, 1:-1])


@pytest.mark.parametrize("mosaic", [True, False])
def test_noise_has_the_mean_and_variance_of_the_model(mosaic: bool) -> None:
    """Within 2 %, in the dark and in the light, where the pedestal is so high that nothing is clipped."""
    camera = u.Camera(exposure=(0.1, 1.0), black=8000.0)
    params = u.sample_params(generator(), 8, camera)
    srgb = torch.linspace(0.1, 0.9, 8)[:, None, None, None].expand(8, 3, 512, 512)
    still = u.unprocess(srgb, params, mosaic=mosaic, noise=False, quantise=False).signal
    moved = u.unprocess(srgb, params, generator(1), mosaic=mosaic, quantise=False).signal
    spots = [np.s_[:, y::2, x::2] for y in (0, 1) for x in (0, 1)] if mosaic else [np.s_[:, c] for c in range(3)]
    for spot in spots:
        signal, seen = still[spot].flatten(1)[:, 0], moved[spot].flatten(1)
        variance = params.shot * signal + params.read
        assert (seen.var(1) / variance - 1).abs().max() < 0.02
        assert ((seen.mean(1) - signal).abs() / torch.maximum(signal, variance.sqrt())).max() < 0.02


def test_darkening_then_noise_then_pedestal_then_clipping() -> None:
    camera = u.Camera(exposure=(1e-3, 1e-3), shot=(1e-6, 1e-6), read=(0.0, math.log(1e-4), 0.0))
    params = u.sample_params(generator(), 1, camera)
    raw = u.unprocess(torch.full((1, 3, 256, 256), 0.5), params, generator(1))
    below = raw.levels[raw.levels < 512]
    assert len(below) > 20_000, "noise around black lies on both sides of it"
    assert 140 < float(raw.levels.std()) < 180, "read noise of 1e-4 is 159 levels, and is not darkened"
    noisy = u.sample_params(generator(), 1, u.Camera(shot=(1.0, 1.0), read=(0.0, 0.0, 0.0)))
    wild = u.unprocess(torch.full((1, 3, 64, 64), 0.9), noisy, generator(1)).levels
    assert (float(wild.min()), float(wild.max())) == (0.0, 16383.0)


def test_what_is_drawn_lies_in_its_ranges_and_can_be_drawn_again() -> None:
    params = u.sample_params(generator(3), 2000, u.Camera(exposure=(0.1, 1)))
    for field in fields(params):
        again = getattr(u.sample_params(generator(3), 2000, u.Camera(exposure=(0.1, 1))), field.name)
        assert torch.equal(getattr(params, field.name), again)
    assert torch.allclose(params.matrix.sum(2), torch.ones(2000, 3), atol=1e-5)
    balance = params.gains / params.gains[:, 1:2]
    assert 1.9 <= float(balance[:, 0].min()) < float(balance[:, 0].max()) <= 2.4 + 1e-5
    assert 1.5 <= float(balance[:, 2].min()) < float(balance[:, 2].max()) <= 1.9 + 1e-5
    assert abs(float((1 / params.gains[:, 1]).mean()) - 0.8) < 0.01
    assert 1e-4 <= float(params.shot.min()) < 2e-4 < 6e-3 < float(params.shot.max()) <= 0.012 + 1e-6
    rest = torch.log(params.read) - 2.18 * torch.log(params.shot)
    assert abs(float(rest.mean()) - 1.20) < 0.03
    assert abs(float(rest.std()) - 0.26) < 0.02
    assert abs(float(torch.log(params.exposure).mean()) - math.log(0.1) / 2) < 0.05
    assert len(params[3:7]) == 4


def test_noise_is_drawn_again_from_its_generator() -> None:
    srgb, params = torch.rand(2, 3, 16, 16), u.sample_params(generator(), 2)
    one, same, other = (u.unprocess(srgb, params, generator(n)).levels for n in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_bytes_are_levels_of_255() -> None:
    levels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    params = u.sample_params(generator(), 2)
    one, other = (u.unprocess(x, params, noise=False, quantise=False).levels for x in (levels, levels / 255))
    assert torch.allclose(one, other, atol=1e-2)


def a_file(**about: Any) -> Any:
    known = {
        "black": (128.0, 130.0, 128.0, 126.0),
        "white": 4095,
        "white_balance": (2.0, 1.0, 1.5),
        "matrix": (1.6, -0.5, -0.1, -0.2, 1.5, -0.3, 0.0, -0.4, 1.4),
    }
    return SimpleNamespace(**known | about)


def test_a_camera_of_a_real_file() -> None:
    camera = u.from_raw(a_file(), exposure=(0.5, 0.5))
    assert (camera.black, camera.white, camera.bits) == (128.0, 4095.0, 12)
    params = u.sample_params(generator(), 3, camera)
    to_srgb = torch.tensor(a_file().matrix).reshape(3, 3)
    assert torch.allclose(params.matrix @ to_srgb, torch.eye(3).expand(3, 3, 3), atol=1e-4)
    assert torch.allclose(params.gains[:, 0] / params.gains[:, 1], torch.full((3,), 2.0))
    assert torch.allclose(params.exposure, torch.tensor(0.5))
    unknown = u.from_raw(a_file(matrix=(0.0,) * 9, white_balance=(1.0, 1.0, 1.0)))
    assert (unknown.matrices, unknown.red) == (u.Camera().matrices, u.Camera().red)


def test_what_cannot_be_is_refused() -> None:
    params = u.sample_params(generator(), 2)
    for shape in ((2, 1, 8, 8), (3, 3, 8, 8), (3, 8, 8), (2, 3, 7, 8)):
        with pytest.raises(ValueError, match=r"expected|even"):
            u.unprocess(torch.zeros(shape), params)
    for wrong in ({"red": [2.4, 1.9]}, {"white": 500}, {"bits": 12}, {"shot": [0, 1]}, {"matrices": []}, {"reed": 1}):
        with pytest.raises(ValidationError):
            u.Camera.model_validate(wrong)
