"""MAE and SelectiveMAE: against the published sums written plainly, and what their weights are exchanged with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from worlds import scene

from datakit.errors import RecipeError
from datakit.pretrain.mae import MAE
from datakit.pretrain.masked import SIZES, Masked
from datakit.pretrain.selectivemae import SelectiveMAE
from datakit.stream.augment import Crop, View
from datakit.stream.normalise import scaled

TINY = {
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "decoder_embed_dim": 16,
    "decoder_depth": 2,
    "decoder_num_heads": 4,
}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
State = Mapping[str, Tensor]


def keyed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=keyed(seed))


def stirred(model: Masked) -> Masked:
    """With no weight left at what it began as: biases and norms count, too."""
    generator = keyed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


# The published model, in numpy and float64, one image, one patch and one head at a time.


def linear(w: Mapping[str, Any], name: str, x: Any) -> Any:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Mapping[str, Any], name: str, x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(query: Any, key: Any, value: Any, heads: int) -> Any:
    out, dim = np.zeros_like(query), query.shape[-1] // heads
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        weights = np.exp(query[:, part] @ key[:, part].T / np.sqrt(dim))
        out[:, part] = weights / weights.sum(-1, keepdims=True) @ value[:, part]
    return out


def perceptron(w: Mapping[str, Any], name: str, x: Any) -> Any:
    hidden = linear(w, f"{name}.fc1", x)
    error = torch.erf(torch.from_numpy(hidden) / np.sqrt(2)).numpy()
    return linear(w, f"{name}.fc2", hidden * (1 + error) / 2)


def block(w: Mapping[str, Any], name: str, x: Any, heads: int) -> Any:
    query, key, value = np.split(linear(w, f"{name}.attn.qkv", norm(w, f"{name}.norm1", x)), 3, -1)
    x = x + linear(w, f"{name}.attn.proj", attend(query, key, value, heads))
    return x + perceptron(w, f"{name}.mlp", norm(w, f"{name}.norm2", x))


def cross_block(w: Mapping[str, Any], name: str, x: Any, latent: Any, heads: int) -> Any:
    query = linear(w, f"{name}.cross_attn.q", norm(w, f"{name}.norm1", x))
    key, value = np.split(linear(w, f"{name}.cross_attn.kv", latent), 2, -1)
    x = x + linear(w, f"{name}.cross_attn.proj", attend(query, key, value, heads))
    return x + perceptron(w, f"{name}.mlp", norm(w, f"{name}.norm2", x))


def waves(rows: int, columns: int, dim: int) -> Any:
    """Of each patch: sines and cosines of its column, then of its row; zeros before, for the class token."""
    table = np.zeros((1 + rows * columns, dim))
    for n in range(rows * columns):
        for half, place in enumerate((n % columns, n // columns)):
            for k in range(dim // 4):
                angle = place / 10000 ** (k / (dim / 4))
                table[1 + n, half * dim // 2 + k] = np.sin(angle)
                table[1 + n, half * dim // 2 + dim // 4 + k] = np.cos(angle)
    return table


def pixels(image: Any, patch: int, size: int) -> Any:
    columns = image.shape[-1] // size
    y, x = patch // columns * size, patch % columns * size
    return image[:, y : y + size, x : x + size]


def plain_encode(w: Mapping[str, Any], image: Any, ids: list[int], size: int, grid: tuple[int, int]) -> Any:
    kernel, places = w["patch_embed.proj.weight"], waves(*grid, TINY["embed_dim"])
    rows = [w["cls_token"][0, 0]]
    for n in ids:
        token = (kernel * pixels(image, n, size)).sum((1, 2, 3)) + w["patch_embed.proj.bias"]
        rows.append(token + places[1 + n])
    x = np.stack(rows)
    for n in range(TINY["depth"]):
        x = block(w, f"blocks.{n}", x, TINY["num_heads"])
    return norm(w, "norm", x)


def plain_decode(w: Mapping[str, Any], latent: Any, targets: list[int], grid: tuple[int, int]) -> Any:
    places = waves(*grid, TINY["decoder_embed_dim"])
    x = np.stack([w["mask_token"][0, 0] + places[1 + n] for n in targets])
    for n in range(TINY["decoder_depth"]):
        x = cross_block(w, f"decoder_blocks.{n}", x, latent, TINY["decoder_num_heads"])
    return linear(w, "decoder_pred", norm(w, "decoder_norm", x))


def plain_mae_decode(w: Mapping[str, Any], latent: Any, visible: list[int], grid: tuple[int, int]) -> Any:
    """All patches, as they lie in the image."""
    known = linear(w, "decoder_embed", latent)
    x = np.concatenate([known[:1], np.tile(w["mask_token"][0], (grid[0] * grid[1], 1))])
    for row, n in enumerate(visible):
        x[1 + n] = known[1 + row]
    x = x + waves(*grid, TINY["decoder_embed_dim"])
    for n in range(TINY["decoder_depth"]):
        x = block(w, f"decoder_blocks.{n}", x, TINY["decoder_num_heads"])
    return linear(w, "decoder_pred", norm(w, "decoder_norm", x))[1:]


def plain_loss(image: Any, prediction: Any, targets: list[int], size: int, normed: bool) -> float:
    errors = []
    for row, n in zip(prediction, targets, strict=True):
        wanted = np.moveaxis(pixels(image, n, size), 0, -1).ravel()
        if normed:
            wanted = (wanted - wanted.mean()) / np.sqrt(wanted.var(ddof=1) + 1e-6)
        errors.append(((row - wanted) ** 2).mean())
    return float(np.mean(errors))


def made(kind: type[Masked], normed: bool = True, grid: tuple[int, int] = (5, 7)) -> Any:
    return stirred(kind((grid[0] * 4, grid[1] * 4), 4, 3, **TINY, norm_pix_loss=normed))  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("kind", [MAE, SelectiveMAE])
def test_encode_decode_and_loss_are_the_published_sums(kind: type[Masked], normed: bool) -> None:
    grid, model, images = (5, 7), made(kind, normed), drawn(3, 3, 20, 28)
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    visible_ids, target_ids = model.select(images, 0.3, keyed(2))
    with torch.no_grad():
        latent = model.encode(images, visible_ids)
        given = (latent, visible_ids, target_ids) if kind is MAE else (latent, target_ids)
        prediction = model.decode(*given)
        losses = model.loss(images, prediction, target_ids)
        assert torch.equal(model(images, 0.3, keyed(2)), losses)
    for n, image in enumerate(images.double().numpy()):
        visible, targets = visible_ids[n].tolist(), target_ids[n].tolist()
        known = plain_encode(weights, image, visible, 4, grid)
        assert np.abs(latent[n].numpy() - known).max() < 1e-5
        if kind is MAE:
            expected = plain_mae_decode(weights, known, visible, grid)[targets]
        else:
            expected = plain_decode(weights, known, targets, grid)
        assert np.abs(prediction[n].numpy() - expected).max() < 1e-5
        assert float(losses[n]) == pytest.approx(plain_loss(image, expected, targets, 4, normed), rel=1e-5)


@pytest.mark.parametrize("halved", [False, True])
@pytest.mark.parametrize("kind", [MAE, SelectiveMAE])
def test_every_parameter_gets_a_gradient(kind: type[Masked], halved: bool) -> None:
    """Also where tokens have been made of halved weights without gradients before, to be compared."""
    model = made(kind)
    with torch.autocast("cpu", torch.bfloat16, enabled=halved):
        losses = model(drawn(2, 3, 20, 28), 0.1, keyed(0))
    assert losses.dtype == torch.float32
    losses.mean().backward()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


@pytest.mark.parametrize("kind", [MAE, SelectiveMAE])
def test_one_graph_is_compiled_for_all_of_a_run(kind: type[Masked]) -> None:
    torch._dynamo.reset()
    model, counter = made(kind), CompileCounter()
    compiled, images = torch.compile(model, backend=counter), drawn(2, 3, 20, 28)
    for progress in 0.0, 0.2, 0.36, 0.37, 0.5, 0.73, 0.74, 1.0:
        losses = compiled(images, progress, keyed(1))
        assert torch.allclose(losses, model(images, progress, keyed(1)), atol=1e-5)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_size_shape_and_number_of_bands(data: st.DataObject) -> None:
    rows, columns, bands, size = (data.draw(st.integers(low, high)) for low, high in ((3, 6), (3, 6), (1, 6), (2, 9)))
    kind = data.draw(st.sampled_from([MAE, SelectiveMAE]))
    hidden = {"mask_ratio": 0.7}
    model = kind((rows * size, columns * size), size, bands, **TINY, **hidden)  # type: ignore[arg-type]
    images = drawn(2, bands, rows * size, columns * size)
    losses = model(images, data.draw(st.floats(0, 1)), keyed(1))
    assert losses.shape == (2,)
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    latent = model.encode(images, model.select(images, 0.0)[0])
    assert latent.shape == (2, 1 + int(rows * columns * 0.3 + 1e-6), TINY["embed_dim"])


def test_pixels_of_mae_are_asked_for_in_any_order() -> None:
    model, images = made(MAE), drawn(2, 3, 20, 28)
    visible_ids, target_ids = model.select(images, 0.0, keyed(3))
    assert target_ids.shape == (2, 27)  # 8 of 35 are seen
    with torch.no_grad():
        forth, back = (model.predict(images, visible_ids, ids) for ids in (target_ids, target_ids.flip(1)))
    assert torch.allclose(forth, back.flip(1), atol=1e-6)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("kind", [MAE, SelectiveMAE])
def test_pictures_show_what_is_seen_and_guess_the_rest(kind: type[Masked], normed: bool) -> None:
    model, images = made(kind, normed), drawn(2, 3, 20, 28)
    visible_ids, _ = model.select(images, 0.2, keyed(4))
    with torch.no_grad():
        model.decoder_pred.weight.zero_()
        model.decoder_pred.bias.copy_(torch.arange(48) / 10)
    seen, guessed, original = model.reconstruct(images, 0.2, keyed(4))
    assert torch.equal(original, images)
    for n in range(2):
        for patch in range(35):
            there, here, guess = (pixels(of[n], patch, 4) for of in (images, seen, guessed))
            if patch in visible_ids[n]:
                assert torch.equal(here, there)
                assert torch.equal(guess, there)
            else:
                expected = (torch.arange(48) / 10).view(4, 4, 3).permute(2, 0, 1)
                if normed:
                    expected = expected * (there.var() + 1e-6).sqrt() + there.mean()
                assert not here.any()
                assert torch.allclose(guess, expected, atol=1e-5)


def encoder_of(model: Masked) -> dict[str, Tensor]:
    return {name: w for name, w in model.state_dict().items() if not name.startswith(("decoder_", "mask_token"))}


@pytest.mark.parametrize("kind", [MAE, SelectiveMAE])
def test_the_encoder_is_timms_vit_base(kind: type[Masked]) -> None:
    with torch.device("meta"):
        model, vit = kind(), timm.create_model("vit_base_patch16_224", num_classes=0)  # type: ignore[call-arg]
        vit.load_state_dict(encoder_of(model))  # names and shapes, none missing, none left
    assert sum(p.numel() for p in vit.parameters()) == sum(w.numel() for w in encoder_of(model).values())


@pytest.mark.parametrize("kind", [MAE, SelectiveMAE])
def test_timm_makes_the_same_of_an_image(kind: type[Masked]) -> None:
    small = {"img_size": (20, 28), "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    model, vit = made(kind), timm.create_model("vit_base_patch16_224", **small)
    vit.load_state_dict(encoder_of(model))
    images, every = drawn(2, 3, 20, 28), torch.arange(35).expand(2, -1)
    with torch.no_grad():
        assert torch.allclose(vit.forward_features(images), model.encode(images, every), atol=1e-5)


@pytest.mark.parametrize("size", ["vit_s", "vit_b", "vit_l", "vit_h"])
def test_sizes_are_those_of_the_papers(size: str) -> None:
    """Millions of parameters of the encoders: ViT (Dosovitskiy et al., table 1), S of DeiT (table 1)."""
    with torch.device("meta"):
        model = SelectiveMAE(**SIZES[size])  # type: ignore[arg-type]
    millions = sum(w.numel() for w in encoder_of(model).values()) / 1e6
    assert millions == pytest.approx({"vit_s": 22, "vit_b": 86, "vit_l": 304, "vit_h": 632}[size], rel=0.02)


def released(kind: type[Masked]) -> dict[str, Tensor]:
    """As a released checkpoint of such a model would be: with what the code never used."""
    state = dict(kind(32, 8, 3, **{**TINY, "num_heads": 1}).state_dict())  # type: ignore[arg-type, call-arg]
    for name in (
        "get_token_probs.0.attn.qkv.weight",
        "get_token_probs.1.bias",
        "get_token_probs_linear.weight",
        "pos_embed_probs",
        "decoder_embed1.weight",
        "hog.weight_x",
        "hog.gkern",
    ):
        state[name] = torch.ones(3)
    return state


@pytest.mark.parametrize("kind", [MAE, SelectiveMAE])
def test_released_weights_are_read(kind: type[Masked]) -> None:
    state = released(kind)
    for checkpoint in state, {"model": state, "epoch": 799}:
        model = kind.from_reference(checkpoint, decoder_num_heads=4, norm_pix_loss=False)
        own = model.state_dict()
        assert all(torch.equal(own[name], state[name]) for name in own)
        assert (model.grid, model.patch_size, model.norm_pix_loss) == ((4, 4), 8, False)
        assert len(model.blocks) == len(model.decoder_blocks) == 2  # type: ignore[arg-type]
        assert model.blocks[0].attn.num_heads == 1  # type: ignore[union-attr, index]


def test_heads_are_those_of_the_papers_sizes() -> None:
    for size in "vit_s", "vit_b", "vit_h":
        with torch.device("meta"):
            state = SelectiveMAE(**{**SIZES[size], "depth": 1, "decoder_depth": 1}).state_dict()  # type: ignore[arg-type]
            model = SelectiveMAE.from_reference(state)
        assert model.blocks[0].attn.num_heads == SIZES[size]["num_heads"]
        assert model.decoder_blocks[0].cross_attn.heads == SIZES[size]["decoder_num_heads"]


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    state = released(SelectiveMAE)
    with pytest.raises(
        RecipeError, match=r"missing: decoder_blocks\.0\.cross_attn.*not known: decoder_blocks\.0\.attn"
    ):
        SelectiveMAE.from_reference(released(MAE), decoder_num_heads=4)
    with pytest.raises(RecipeError, match=r"of another shape: decoder_pos_embed, pos_embed$"):
        SelectiveMAE.from_reference(state, decoder_num_heads=4, img_size=64)
    with pytest.raises(RecipeError, match="what_is_this"):
        SelectiveMAE.from_reference({**state, "what_is_this": torch.ones(1)}, decoder_num_heads=4)
    with pytest.raises(RecipeError, match="mask_token"):
        SelectiveMAE.from_reference({name: w for name, w in state.items() if name != "mask_token"})


def test_what_is_exported_is_timms_with_our_own_data_config(tmp_path: Path) -> None:
    model = stirred(SelectiveMAE(56, 8, 3, **TINY))
    model.export_timm(tmp_path / "vit", MEAN, STD)
    vit = timm.create_model(f"local-dir:{tmp_path / 'vit'}", pretrained=True).eval()
    config = resolve_data_config({}, model=vit)
    assert (tuple(config["mean"]), tuple(config["std"]), config["interpolation"]) == (MEAN, STD, "bicubic")
    assert config["input_size"] == (3, 56, 56)
    assert vit.num_classes == 0
    levels = scene(3, 90, 70)
    theirs = create_transform(**config, is_training=False)(Image.fromarray(levels)).unsqueeze(0)
    ours = np.empty((3, 56, 56), np.float32)
    view = View(56, interpolation="bicubic", flip=0.0, resize_px=64)
    view.render(levels, Crop(0, 0, 90, 70), np.zeros(1), scaled((MEAN, STD), 255), ours)
    images = torch.from_numpy(ours).unsqueeze(0)
    assert torch.allclose(theirs, images, atol=1e-5)
    with torch.no_grad():
        made_of_theirs = vit.forward_features(theirs)
        assert torch.allclose(made_of_theirs, model.encode(images, torch.arange(49)[None]), atol=1e-5)
        assert vit(theirs).shape == (1, TINY["embed_dim"])


def test_an_export_names_the_size_and_can_be_of_any_bands(tmp_path: Path) -> None:
    model = MAE((16, 24), 8, 5, **TINY)
    with pytest.raises(RecipeError, match="5 bands"):
        model.export_timm(tmp_path)
    model.export_timm(tmp_path, [0.5] * 5, [0.2] * 5, "bilinear")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [5, 16, 24]
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True)(drawn(1, 5, 16, 24)).shape == (1, 32)


def test_wrong_sizes_are_refused() -> None:
    for kind in MAE, SelectiveMAE:
        with pytest.raises(RecipeError, match="multiples of patch_size"):
            kind(30, 8, **TINY)  # type: ignore[arg-type]
        with pytest.raises(RecipeError, match=r"embed_dim: 33"):
            kind(32, 8, **{**TINY, "embed_dim": 33})  # type: ignore[arg-type]
        with pytest.raises(RecipeError, match="mask_ratio"):
            kind(32, 8, **TINY, mask_ratio=0.99)  # type: ignore[arg-type]
        model = kind(32, 8, **TINY)  # type: ignore[arg-type]
        for images in drawn(2, 3, 40, 32), drawn(2, 4, 32, 32):
            with pytest.raises(RecipeError, match="images of"):
                model(images, 0.9)
        with pytest.raises(RecipeError, match="norm_pix_loss"):
            kind(8, 1, 1, **TINY)  # type: ignore[arg-type]
        assert kind(8, 1, 1, **TINY, norm_pix_loss=False)(drawn(1, 1, 8, 8), 0.2).isfinite()  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="selector"):
        SelectiveMAE(32, 8, **TINY, selector="edges")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="target_ratio"):
        SelectiveMAE(32, 8, **TINY, mask_ratio=0.5, target_ratio=0.6)
