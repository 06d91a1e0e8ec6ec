"""Views on the device are those of `datakit.views`, number for number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datakit import bayer, dng, raw
from datakit.errors import RecipeError
from datakit.pretrain import develop as d
from datakit.pretrain import unprocess as u
from datakit.views import NAMED, View

SIDES = (36, 48)  # of scales 1, 2, 3, 4; and see below for those that leave something over


def recorded(seed: int, sides: tuple[int, int] = SIDES, **camera: object) -> u.Raw:
    """Pictures of coarse and fine detail, in light and in the dark, through a noisy camera."""
    made = torch.Generator().manual_seed(seed)
    coarse = torch.nn.functional.interpolate(torch.rand(3, 3, 4, 4, generator=made), sides, mode="bilinear")
    srgb = (0.8 * coarse + 0.2 * torch.rand(3, 3, *sides, generator=made)).clamp(0, 1)
    params = u.sample_params(made, 3, u.Camera.model_validate({"exposure": [0.05, 1], **camera}))
    return u.unprocess(srgb, params, made)


def off(found: Tensor, of: u.Raw, view: View) -> float:
    """The largest difference from the view itself, as a share of `top`."""
    expected = [view(of.levels[n].numpy().astype(np.uint16), d.camera_of(of, n)) for n in range(len(of.levels))]
    assert found.shape == (len(expected), *expected[0].shape)
    assert found.dtype == torch.float32
    return float((found - torch.from_numpy(np.stack(expected))).abs().max()) / view.top


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("sides", [SIDES, (38, 50)])
def test_views_by_name(name: str, sides: tuple[int, int]) -> None:
    of = recorded(1, sides)
    assert off(d.develop(of, NAMED[name]), of, NAMED[name]) < 1e-5


steps = {
    "planes": st.sampled_from(["packed", "demosaiced", "srgb"]),
    "pattern": st.sampled_from(["own", "RGGB"]),
    "black": st.sampled_from(["subtract", "keep"]),
    "white": st.sampled_from(["nominal", "per_channel", "measured", "full", "byte"]),
    "white_balance": st.sampled_from(["none", "camera", "gray"]),
    "matrix": st.sampled_from(["none", "camera"]),
    "gamma": st.sampled_from([1.0, 2.2]),
    "clip": st.sampled_from([None, (0.0, 1.0)]),
    "top": st.sampled_from([1.0, 255.0]),
    "scale": st.sampled_from([1, 2, 3, 4]),
    "filter": st.sampled_from(["area", "bilinear"]),
}


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries(steps), st.integers(0, 10**6))
def test_views_of_any_steps(plain: dict[str, object], seed: int) -> None:
    """Where a root is taken of numbers near 0, whose last bits it makes large, that of a gray world differs by them."""
    if plain["planes"] == "packed":
        plain |= {"matrix": "none", "filter": "area"}
    view, of = View.model_validate(plain), recorded(seed)
    most = 60.0 if view.white == "byte" else 1.0  # what is divided by 255 goes up to 64
    if view.gamma != 1 and view.white_balance == "gray":
        found, other = d.develop(of, view), view.model_copy(update={"gamma": 1.0})
        straight = d.develop(of, other) / view.top
        plainly = (straight.sign() * straight.abs() ** (1 / 2.2)).clamp(*view.clip or (-1e9, 1e9)) * view.top
        assert torch.allclose(found, plainly, atol=1e-5 * view.top, rtol=1e-5)
        view = other
    assert off(d.develop(of, view), of, view) < 1e-5 * most


def test_what_a_file_tells_is_what_was_recorded() -> None:
    """A mosaic written as DNG and read again looks the same through a view: levels, balance and matrix."""
    of = recorded(5)
    for n in range(3):
        camera = d.camera_of(of, n)
        image = raw.RawImage(
            of.levels[n].numpy().astype(np.uint16), camera.black, int(camera.white), camera.cfa,
            camera.white_balance, camera.matrix,
        )  # fmt: skip
        view = NAMED["srgb"]
        seen = raw.read(dng.encode(image))
        shown = view(seen.mosaic, type(camera).of_image(seen))
        assert np.abs(shown - d.develop(of, view)[n].numpy()).max() < 0.02


def test_demosaic_is_that_of_bayer() -> None:
    levels = torch.randint(0, 65536, (2, 10, 14)).float()
    found = u.demosaic(levels)
    for n in range(2):
        assert np.array_equal(bayer.demosaic(levels[n].numpy().astype(np.uint16), "RGGB"), found[n].numpy())


def test_mosaics_are_as_large_as_a_view_wants() -> None:
    for view in (*NAMED.values(), View(scale=2), View(planes="demosaiced", scale=4)):
        side = d.mosaic_px(view, 12)
        assert view.size(side, side) == (12, 12)


def test_what_no_network_sees_is_refused() -> None:
    of = recorded(0)
    with pytest.raises(RecipeError, match="float32"):
        d.develop(of, View(dtype="uint16"))
    with pytest.raises(ValueError, match="mosaic"):
        d.develop(u.Raw(torch.zeros(1, 3, 4, 4), of.params[:1]), View())
