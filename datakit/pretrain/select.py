"""Which patches are seen: seeds, those like or unlike them, and when in a run which of these (SelectiveMAE).

Progressive semantic token selection (Wang et al., ICCV 2025, arXiv 2406.11933): half of what is encoded are seeds, the
other half grows around them, in two steps: first the tokens most similar to what is chosen, later in a run the least
similar, at its end any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import RecipeError

Mode = Literal["near", "far", "random"]
Selector = Literal["random", "hog", "hog_sampled"]
MODES: tuple[Mode, ...] = get_args(Mode)
SELECTORS: tuple[Selector, ...] = get_args(Selector)
STEPS = 2  # in which the set grows: what the second adds may be like what the first has added
EXACT = 1e-6  # of a token: what floating point numbers lose of a share
LEAST = 1e-6  # of the mean energy: patches without any gradient come last, in random order
Mix = dict[Mode, float]  # share of what is added that is chosen in each way; they add up to 1


@dataclass(frozen=True)
class Curriculum:
    """How tokens are chosen at which share of a run, 0..1.

    Near until boundaries[0], then far until boundaries[1], then random. Over a share `smooth` before each boundary the
    one gives way to the other, linearly. The defaults are the released command's epochs 300 and 600 of 800, and 20
    epochs of change.
    """

    boundaries: tuple[float, float] = (0.375, 0.75)
    smooth: float = 0.025

    def __post_init__(self) -> None:
        first, second = self.boundaries
        if not 0 <= first <= second or not 0 <= self.smooth <= second - first:
            raise RecipeError(
                f"curriculum: boundaries {self.boundaries}, smooth {self.smooth}: boundaries rise from 0 on, as shares "
                "of the run, and smooth is at least 0 and no longer than what lies between them"
            )

    def at(self, progress: float) -> Mix:
        """Shares of near, far and random at a share of the run, 0..1."""
        far, random = (self._passed(progress, boundary) for boundary in self.boundaries)
        return {"near": 1 - far, "far": far - random, "random": random}

    def _passed(self, progress: float, boundary: float) -> float:
        if progress >= boundary:
            return 1.0
        return max(1 - (boundary - progress) / self.smooth, 0.0) if self.smooth else 0.0


PUBLISHED = Curriculum()


def expand(
    tokens: Tensor,
    seed_ids: Tensor,
    count: int,
    mode: Mode = "near",
    steps: int = STEPS,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Ids of the seeds and of `count` tokens chosen around them, (B, S + count) int64, seeds first, none twice.

    tokens (B, L, D), seed_ids (B, S) int64. Similarity is the cosine; a token's is that to the most similar one of all
    chosen so far. Each of the steps adds count // steps tokens, the last one the rest (section 4.2). Near and far come
    nearest and farthest first.
    """
    if mode not in MODES:
        raise RecipeError(f"mode: {mode}: one of {', '.join(MODES)}")
    room = tokens.shape[1] - seed_ids.shape[1]
    if not 0 <= count <= room or steps < 1:
        raise RecipeError(f"count: {count}, steps: {steps}: 0 to {room} tokens beside the seeds, in 1 step or more")
    length = tokens.shape[1]
    return grow(tokens, seed_ids, length, count, {mode: 1.0}, steps, generator)


@torch.no_grad()
def grow(
    tokens: Tensor | None,
    seed_ids: Tensor,
    length: int,
    count: int,
    mix: Mix,
    steps: int = STEPS,
    generator: torch.Generator | None = None,
) -> Tensor:
    """As `expand`, each step by a mix of modes. Tokens are not asked for where all are random: None will do."""
    free = torch.ones(len(seed_ids), length, dtype=torch.bool, device=seed_ids.device).scatter_(1, seed_ids, False)
    unit: Tensor | None = None
    if mix.get("near") or mix.get("far"):
        if tokens is None:
            raise RecipeError("tokens: none, and near and far are measured between them")
        unit = F.normalize(tokens.float(), dim=-1)
    nearest = torch.full(free.shape, -1.0, device=free.device)
    chosen, fresh = seed_ids, seed_ids
    for step in range(steps):
        if unit is not None:
            nearest = torch.maximum(nearest, similarity(unit, fresh))
        before = chosen.shape[1]
        size = count // steps if step < steps - 1 else count - (steps - 1) * (count // steps)
        for mode, number in shared_out(mix, size):
            score = noise(free, generator) if mode == "random" else nearest if mode == "near" else -nearest
            ids = best(score, number, free)
            free.scatter_(1, ids, False)
            chosen = torch.cat([chosen, ids], 1)
        fresh = chosen[:, before:]
    return chosen


def similarity(unit: Tensor, ids: Tensor) -> Tensor:
    """Cosine of each token to the most similar of some, (B, L), -1 to none; unit (B, L, D) of length 1, ids (B, n)."""
    with torch.autocast(unit.device.type, enabled=False):  # 8 bits would make ties of them
        return (unit @ taken(unit, ids).mT).amax(-1) if ids.shape[1] else unit.new_full(unit.shape[:2], -1.0)


def shared_out(mix: Mix, size: int) -> list[tuple[Mode, int]]:
    """How many of a step's tokens each mode chooses: whole ones, the last mode that takes part has the rest."""
    parts = [mode for mode in MODES if mix.get(mode)]
    numbers = [int(mix[mode] * size + EXACT) for mode in parts[:-1]]
    numbers.append(size - sum(numbers))
    return [(mode, number) for mode, number in zip(parts, numbers, strict=True) if number]


def best(scores: Tensor, number: int, free: Tensor) -> Tensor:
    """Ids of the tokens of highest score that are free, highest first, (B, number)."""
    return scores.masked_fill(~free, -torch.inf).topk(number, dim=1).indices


def noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform float32 of 0..1, shaped and placed as a tensor; drawn where the generator is."""
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=device).to(like.device)


def taken(rows: Tensor, ids: Tensor) -> Tensor:
    """Rows by their ids: (B, L, D) and (B, n) to (B, n, D)."""
    return rows.gather(1, ids.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def priorities(images: Tensor, patch_size: int, selector: Selector, generator: torch.Generator | None = None) -> Tensor:
    """Numbers of all patches, (B, L) float32: those of the highest are taken, as seeds, then as targets.

    random: noise, which is what the released code does in effect (its scores are standardised by patch, then averaged:
    0 for all). hog: the gradient energy, ranked, as the paper has it. hog_sampled: drawn without replacement in
    proportion to the energy (Efraimidis and Spirakis, 2006, algorithm A).
    """
    if selector == "random":
        grid = images.shape[-2] // patch_size * (images.shape[-1] // patch_size)
        return noise(images.new_empty(len(images), grid, dtype=torch.float32), generator)
    energy = gradient_energy(images, patch_size)
    if selector == "hog":
        return energy
    weight = energy / energy.mean(1, keepdim=True).clamp_min(LEAST) + LEAST
    return noise(energy, generator).clamp_min(LEAST).log() / weight


@torch.no_grad()
def gradient_energy(images: Tensor, patch_size: int) -> Tensor:
    """Sum of the gradients' lengths over a patch's pixels and bands, (B, L) float32; images (B, C, H, W).

    What histograms of oriented gradients hold (Dalal and Triggs, CVPR 2005), over all their bins and not normalised: by
    Sobel's filter, with mirrored edges. Bands count as they come.
    """
    with torch.autocast(images.device.type, enabled=False):
        across = images.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float32)
        filters = torch.stack([across, across.T]).unsqueeze(1)
        padded = F.pad(images.float().flatten(0, 1).unsqueeze(1), (1, 1, 1, 1), mode="reflect")
        length = F.conv2d(padded, filters).square().sum(1).sqrt().view(images.shape)
        return F.avg_pool2d(length.sum(1, keepdim=True), patch_size).flatten(1) * patch_size**2
