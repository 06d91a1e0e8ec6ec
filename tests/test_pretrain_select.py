"""Which patches are seen: against plain, slow restatements of what is published, image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datakit.errors import RecipeError
from datakit.pretrain.select import Curriculum, gradient_energy, priorities, shared_out
from datakit.pretrain.selectivemae import SelectiveMAE, expand

TINY = {
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}


def keyed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=keyed(seed))


def slowly(tokens: Tensor, seeds: list[int], sizes: list[int], mode: str) -> list[set[int]]:
    """What each step adds, of one image: all cosines, one by one."""
    rows = tokens.double().numpy()
    chosen, added = list(seeds), []
    for size in sizes:
        scores = []
        for n in sorted(set(range(len(rows))) - set(chosen)):
            cosines = [rows[n] @ rows[c] / np.linalg.norm(rows[n]) / np.linalg.norm(rows[c]) for c in chosen]
            scores.append((max(cosines), n))
        ranked = [n for _, n in sorted(scores, reverse=mode == "near")][:size]
        added.append(set(ranked))
        chosen += ranked
    return added


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_growing_is_as_published_image_by_image(data: st.DataObject) -> None:
    images, seeds = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    length = data.draw(st.integers(seeds, 40))
    count, steps = data.draw(st.integers(0, length - seeds)), data.draw(st.integers(1, 3))
    mode = data.draw(st.sampled_from(["near", "far"]))
    number = data.draw(st.integers(0, 2**31))
    tokens = drawn(images, length, 8, seed=number)
    seed_ids = torch.rand(images, length, generator=keyed(number)).argsort(1)[:, :seeds]
    ids = expand(tokens, seed_ids, count, mode, steps)  # type: ignore[arg-type]
    assert ids.shape == (images, seeds + count)
    assert ids.dtype == torch.int64
    assert torch.equal(ids[:, :seeds], seed_ids)
    sizes = [count // steps] * (steps - 1) + [count - (steps - 1) * (count // steps)]
    for image in range(images):
        added = slowly(tokens[image], seed_ids[image].tolist(), sizes, mode)
        ends = np.cumsum([seeds, *sizes])
        for start, end, expected in zip(ends[:-1], ends[1:], added, strict=True):
            assert set(ids[image, start:end].tolist()) == expected
            assert end - start == len(expected)


def test_half_steps_of_15_are_7_and_8() -> None:
    tokens, seed_ids = drawn(3, 196, 24), torch.arange(14).expand(3, -1)
    for mode in "near", "far":
        ids = expand(tokens, seed_ids, 15, mode)  # type: ignore[arg-type]
        first = expand(tokens, seed_ids, 7, mode, steps=1)  # type: ignore[arg-type]
        assert torch.equal(ids[:, :21], first)
        assert torch.equal(ids, expand(tokens, first, 8, mode, steps=1))  # type: ignore[arg-type]
        assert not torch.equal(ids.sort().values, expand(tokens, seed_ids, 15, mode, steps=1).sort().values)  # type: ignore[arg-type]


def test_random_growth_is_of_each_image_alone_and_even() -> None:
    tokens, seed_ids = torch.ones(2000, 12, 2), torch.tensor([[0, 5]]).expand(2000, -1)
    ids = expand(tokens, seed_ids, 5, "random", generator=keyed(1))
    assert torch.equal(ids, expand(tokens, seed_ids, 5, "random", generator=keyed(1)))
    assert not torch.equal(ids, expand(tokens, seed_ids, 5, "random", generator=keyed(2)))
    assert len(ids[:, 2:].unique(dim=0)) > 1500  # of 30,240 orders
    counts = torch.bincount(ids.flatten(), minlength=12)
    assert counts[0] == counts[5] == 2000
    others = counts[[1, 2, 3, 4, 6, 7, 8, 9, 10, 11]]
    assert (others - 1000).abs().max() < 5 * math.sqrt(2000 / 4)


def test_what_cannot_be_grown_is_refused() -> None:
    tokens, seed_ids = drawn(1, 6, 4), torch.tensor([[0, 1]])
    with pytest.raises(RecipeError, match="0 to 4"):
        expand(tokens, seed_ids, 5)
    with pytest.raises(RecipeError, match="near, far, random"):
        expand(tokens, seed_ids, 1, "close")  # type: ignore[arg-type]


@pytest.mark.parametrize("epoch", [0, 1, 150, 279, 280, 281, 290, 299, 300, 301, 579, 580, 583, 599, 600, 799])
@pytest.mark.parametrize("size", [7, 8])
def test_the_curriculum_is_the_released_one(epoch: int, size: int) -> None:
    """Near to epoch 280 of 800, to far at 300; far to 580, to random at 600; mixes rounded down to the earlier kind."""
    if epoch < 300:
        near = int((1 - max(epoch - 280, 0) / 20) * size)
        expected = {"near": near, "far": size - near}
    elif epoch < 600:
        far = int((1 - max(epoch - 580, 0) / 20) * size)
        expected = {"far": far, "random": size - far}
    else:
        expected = {"random": size}
    mix = Curriculum().at(epoch / 800)
    assert sum(mix.values()) == pytest.approx(1)
    assert dict(shared_out(mix, size)) == {mode: number for mode, number in expected.items() if number}


@given(st.floats(0, 1), st.floats(0, 0.5), st.floats(0.5, 1), st.floats(0, 1), st.integers(0, 20))
def test_shares_add_up_and_go_one_way(progress: float, first: float, second: float, smooth: float, size: int) -> None:
    curriculum = Curriculum((first, second), smooth * (second - first))
    mix = curriculum.at(progress)
    assert sum(mix.values()) == pytest.approx(1)
    assert min(mix.values()) >= 0
    assert sum(number for _, number in shared_out(mix, size)) == size
    later = curriculum.at(min(progress + 0.1, 1))
    assert later["near"] <= mix["near"] + 1e-9
    assert later["random"] >= mix["random"] - 1e-9


def test_curricula_that_make_no_sense_are_refused() -> None:
    for boundaries, smooth in ((0.8, 0.4), 0.0), ((-0.1, 0.4), 0.0), ((0.1, 0.2), 0.3), ((0.1, 0.2), -0.1):
        with pytest.raises(RecipeError, match="curriculum"):
            Curriculum(boundaries, smooth)


def test_energy_is_the_sum_of_gradients_of_a_patch() -> None:
    images = drawn(2, 3, 12, 20).numpy()
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect").astype(float)
    expected = np.zeros((2, 15))
    for image in range(2):
        for band in range(3):
            for y in range(12):
                for x in range(20):
                    around = padded[image, band, y : y + 3, x : x + 3]
                    across = around[:, 2] @ [1, 2, 1] - around[:, 0] @ [1, 2, 1]
                    down = around[2] @ [1, 2, 1] - around[0] @ [1, 2, 1]
                    expected[image, y // 4 * 5 + x // 4] += math.hypot(across, down)
    assert gradient_energy(torch.from_numpy(images), 4).numpy() == pytest.approx(expected, rel=1e-5)


def test_hog_takes_what_has_most_gradient() -> None:
    images = torch.zeros(2, 3, 32, 32)
    strengths = torch.arange(1, 17).float()[torch.rand(2, 16, generator=keyed(3)).argsort(1)]  # of 16 patches of 8 px
    for image in range(2):
        for patch in range(16):
            y, x = patch // 4 * 8 + 3, patch % 4 * 8 + 3
            images[image, :, y, x] = strengths[image, patch]  # far from other patches
    model = SelectiveMAE(32, 8, 3, **TINY, mask_ratio=0.6, target_ratio=0.3, selector="hog")
    ranked = strengths.argsort(1, descending=True)
    for progress in 0.0, 0.5, 0.8:
        visible_ids, target_ids = model.select(images, progress, keyed(0))
        assert torch.equal(visible_ids[:, :3], ranked[:, :3])  # 6 are seen, 3 of them seeds
        for image in range(2):
            seen = set(visible_ids[image].tolist())
            assert target_ids[image].tolist() == [n for n in ranked[image].tolist() if n not in seen][:4]


def test_sampled_hog_is_drawn_in_proportion() -> None:
    images = torch.zeros(1, 1, 8, 32)
    for patch, strength in enumerate([1.0, 2.0, 3.0, 4.0]):
        images[:, :, 4, patch * 8 + 4] = strength
    often = torch.zeros(4)
    rank = priorities(images.expand(20000, -1, -1, -1), 8, "hog_sampled", keyed(5))
    often += torch.bincount(rank.argmax(1), minlength=4)
    assert (often / 20000).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.02)
    flat = priorities(torch.zeros(4000, 1, 8, 32), 8, "hog_sampled", keyed(6))
    assert torch.bincount(flat.argmax(1)).tolist() == pytest.approx([1000] * 4, abs=140)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_ids_are_apart_and_as_many_as_asked_for(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(2, 7)), data.draw(st.integers(2, 7))
    images, bands, size = (data.draw(st.integers(1, most)) for most in (3, 5, 4))
    size += 1
    selector = data.draw(st.sampled_from(["random", "hog", "hog_sampled"]))
    hidden, wanted = data.draw(st.floats(0.3, 0.5)), data.draw(st.floats(0.25, 0.3))
    progress = data.draw(st.floats(0, 1))
    model = SelectiveMAE(
        (rows * size, columns * size), size, bands, **TINY, mask_ratio=hidden, target_ratio=wanted, selector=selector
    )
    pictures = drawn(images, bands, rows * size, columns * size)
    visible_ids, target_ids = model.select(pictures, progress, keyed(4))
    assert visible_ids.shape == (images, math.floor(rows * columns * (1 - hidden) + 1e-6))
    assert target_ids.shape == (images, math.floor(rows * columns * wanted + 1e-6))
    both = torch.cat([visible_ids, target_ids], 1)
    assert both.dtype == torch.int64
    assert 0 <= both.min() <= both.max() < rows * columns
    assert all(len(set(ids)) == len(ids) for ids in both.tolist())
    again = model.select(pictures, progress, keyed(4))
    assert torch.equal(torch.cat(again, 1), both)


@pytest.mark.parametrize(("progress", "mode"), [(0.0, "near"), (0.5, "far")])
def test_an_image_is_selected_as_if_alone(progress: float, mode: str) -> None:
    """Similarity is that of embeddings with positions; an image's neighbours in the batch change nothing."""
    model = SelectiveMAE(64, 8, 3, **TINY, selector="hog")
    images = drawn(4, 3, 64, 64)
    visible_ids, target_ids = model.select(images, progress)
    assert visible_ids.shape == (4, 9)  # 64 patches: 9 seen, 4 of them seeds, 16 wanted
    tokens = model.embed(images).detach()
    for image in range(4):
        alone = model.select(images[image : image + 1], progress)
        assert torch.equal(alone[0][0], visible_ids[image])
        assert torch.equal(alone[1][0], target_ids[image])
        first, second = slowly(tokens[image], visible_ids[image, :4].tolist(), [2, 3], mode)
        assert set(visible_ids[image, 4:6].tolist()) == first
        assert set(visible_ids[image, 6:].tolist()) == second


def test_numbers_at_224_px_and_their_stages() -> None:
    model = SelectiveMAE(224, 16, 3, **TINY)
    images = drawn(2, 3, 224, 224)
    chosen = {}
    for progress in 0.0, 0.36, 0.5, 0.74, 0.9:
        visible_ids, target_ids = model.select(images, progress, keyed(7))
        assert visible_ids.shape == (2, 29)
        assert target_ids.shape == (2, 49)
        chosen[progress] = visible_ids
    assert all(torch.equal(ids[:, :14], chosen[0.0][:, :14]) for ids in chosen.values())  # the seeds
    assert len({tuple(ids[0].sort().values.tolist()) for ids in chosen.values()}) == 5


def test_random_numbers_are_the_generators_alone() -> None:
    model, images = SelectiveMAE(32, 8, 3, **TINY), drawn(2, 3, 32, 32)
    before = torch.random.get_rng_state()
    model(images, 0.8, keyed(1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    first = model.select(images, 0.8)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, model.select(images, 0.8), strict=True))
