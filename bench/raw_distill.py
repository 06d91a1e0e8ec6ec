"""What RAW distillation gains: on RAW of a camera that nothing was trained with, in light and in the dark.

    python bench/raw_distill.py [--seeds 3] [--folder build/raw_distill] [--set budget.samples=12000]

14 kinds of drawn scenes. A teacher learns the kinds from pictures in sRGB, and so does, for half as long, the student
of the recipe raw_distill_tiny. Students then see RAW that is unprocessed from the same pictures, as many samples each:

    distilled     the recipe: from the weights of sRGB, by the teacher's features and logits, and labels
    labels        from random weights, by labels alone
    fine-tuned    from the weights of sRGB, by labels alone
    teacher       no student: the teacher is shown the RAW
    from random   as `distilled`, but from random weights

The test is other scenes, as DNG files of a camera outside the ranges of training (colours, white balance, light), read
by LibRaw and shown by the recipe's view: a linear probe of frozen features learns from one half of the scenes, clear
and dark, and is tested on the other, clear and dark apart. Mean and deviation over seeds. Machine and reading: LOG.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from datakit import dng, raw
from datakit.evaluate.heads import Linear, fitted, predicted
from datakit.pretrain import checkpoint
from datakit.pretrain.raw_distill import RawDistillation, Tokens, normalised
from datakit.pretrain.recipe import Pretrain
from datakit.pretrain.train import pretrain
from datakit.pretrain.trained import Trained
from datakit.recipe import parse_changes
from datakit.sources.land import KINDS
from datakit.sources.scenes import draw
from datakit.views import Camera

LEARN, TEST, SIDE_PX = 1680, 1120, 96
# Of the camera of the test. Its white balance is outside of 1.9..2.4 and 1.5..1.9, its matrix no mix of Brooks' four.
GAINS, MATRIX = (2.9, 1.0, 1.2), ((1.9, -0.75, -0.15), (-0.3, 1.65, -0.35), (0.05, -0.6, 1.55))
BLACK, WHITE = 256, 4095
LIGHTS = {"clear": (0.8, 4e-4, 4e-6), "dark": (0.1, 2e-3, 1e-5)}  # exposure, shot, read
OTHERS = ("labels", "fine-tuned", "teacher")  # which `distilled` is to beat
METHODS = ("distilled", *OTHERS, "from random")


def scene(part: int, n: int) -> NDArray[np.uint8]:
    kinds = list(KINDS)
    return draw(np.random.default_rng([11, part, n]), kinds[n % len(kinds)], SIDE_PX, SIDE_PX).pixels


def make(path: Path) -> None:
    """Pictures to learn from, with the number of their kind."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for n in range(LEARN):
            out = io.BytesIO()
            Image.fromarray(scene(0, n)).save(out, "JPEG", quality=92)
            for suffix, data in (("jpg", out.getvalue()), ("cls", str(n % len(KINDS)).encode())):
                info = tarfile.TarInfo(f"learn{n:05}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def recorded(pixels: NDArray[np.uint8], light: str, rng: np.random.Generator) -> bytes:
    """The DNG of a picture, by a camera of its own: nothing of `unprocess` is in it."""
    share, shot, read = LIGHTS[light]
    curve = pixels / 255
    linear = np.where(curve <= 0.04045, curve / 12.92, ((curve + 0.055) / 1.055) ** 2.4)
    colours = linear @ np.linalg.inv(np.array(MATRIX)).T / np.array(GAINS) * share
    signal = colours[..., 1].copy()
    signal[0::2, 0::2], signal[1::2, 1::2] = colours[0::2, 0::2, 0], colours[1::2, 1::2, 2]
    signal = np.clip(signal, 0, None)
    signal += rng.standard_normal(signal.shape) * np.sqrt(shot * signal + read)
    mosaic = np.clip(np.rint(BLACK + signal * (WHITE - BLACK)), 0, WHITE).astype(np.uint16)
    matrix = tuple(float(v) for v in np.ravel(MATRIX))
    return dng.encode(raw.RawImage(mosaic, (float(BLACK),) * 4, WHITE, "RGGB", GAINS, matrix, iso=400))


def shown(of: RawDistillation, light: str) -> Tensor:
    """The middles of the scenes of the test through the view, as shares of its top: (N, C, side, side)."""
    rows = []
    view = of.shown
    assert view is not None
    for n in range(TEST):
        image = raw.read(recorded(scene(1, n), light, np.random.default_rng([13, n, [*LIGHTS].index(light)])))
        edge = (SIDE_PX - of.crop_px) // 4 * 2
        part = image.crop(raw.Window(edge, edge, of.crop_px, of.crop_px))
        rows.append(view(part.mosaic, Camera.of_image(part)) / view.top)
    return torch.from_numpy(np.stack(rows))


@torch.no_grad()
def features(model: nn.Module, pictures: Tensor, numbers: Any) -> Tensor:
    tokens = Tokens(model.eval())
    return torch.cat([tokens(normalised(part, numbers))[:, 0] for part in pictures.float().split(140)])


def probed(model: nn.Module, tests: dict[str, Tensor], numbers: Any, seed: int) -> dict[str, float]:
    """Shares of the second half of the scenes that are told right, by light."""
    found = torch.cat([features(model, pictures, numbers) for pictures in tests.values()])
    classes = (torch.arange(TEST) % len(KINDS)).repeat(len(tests))
    half = np.arange(len(found)) % TEST < TEST // 2

    def fetch(rows: NDArray[np.int64]) -> Tensor:
        return found[torch.from_numpy(rows)]

    head = fitted(partial(Linear, found.shape[1], len(KINDS)), fetch, np.flatnonzero(half), classes, seed)
    right = (predicted(head, fetch, np.arange(len(found))) == classes).numpy()
    return {name: float(right[n * TEST + TEST // 2 : (n + 1) * TEST].mean()) for n, name in enumerate(tests)}


def trained(recipe: Pretrain, out: Path) -> Trained:
    began = time.monotonic()
    loss = pretrain(recipe, out, say=lambda _: None, accelerator="cpu")["loss"]
    print(f"{out.name}: {time.monotonic() - began:.0f} s, loss {loss:.3f}", file=sys.stderr, flush=True)
    return Trained.load(checkpoint.there(out / "checkpoints")[-1])


def changed(recipe: Pretrain, seed: int, weights: Path | None, share: float = 1.0, **objective: Any) -> Pretrain:
    """The recipe with other fields of its objective, another start of its student, and a share of its samples."""
    plain = recipe.model_dump(mode="json")
    plain["seed"] = seed
    plain["budget"] = {name: int(value * share) for name, value in plain["budget"].items() if value is not None}
    plain["objective"] |= objective
    plain["objective"]["student"]["weights"] = None if weights is None else str(weights)
    return Pretrain.model_validate(plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where shards, teacher and runs are left (default: nowhere)")
    parser.add_argument("--set", action="append", default=[], help="change a field of raw_distill_tiny")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        run(args.folder or Path(aside), args.seeds, parse_changes(args.set))


def run(folder: Path, seeds: int, changes: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "learn.tar").exists():
        make(folder / "learn.tar")
    teacher = str(folder / "teacher" / "export")
    given = {"data": str(folder / "learn.tar"), "objective.teacher.weights": teacher, "keep": 1, "pictures_every": None}
    recipe = Pretrain.load("raw_distill_tiny", {**given, **changes})
    of = recipe.objective
    alone = {"teacher": None, "features": None, "logits": None, "labels": 1.0}
    srgb = {**alone, "view": None, "normalise": "imagenet"}
    if not Path(teacher).exists():
        own = {"model": of.teacher.model, "arguments": of.teacher.arguments}
        trained(changed(recipe, 100, None, **srgb, student=own), folder / "teacher")
    known = of.teacher.loaded(of.taught_px, None)
    tests = {light: shown(of, light) for light in LIGHTS}
    scores: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for seed in range(seeds):
        first = folder / f"srgb{seed}"
        if not (first / "export").exists():
            trained(changed(recipe, seed, None, 0.5, **srgb), first)
        students = {
            "distilled": changed(recipe, seed, first / "export"),
            "labels": changed(recipe, seed, None, **alone),
            "fine-tuned": changed(recipe, seed, first / "export", **alone),
            "from random": changed(recipe, seed, None),
        }
        for name, one in students.items():
            out = folder / f"{name.replace(' ', '-')}{seed}-{time.time_ns()}"
            scores[name].append(probed(trained(one, out).module.student, tests, of.numbers, seed))
        about = of.teacher.about
        scores["teacher"].append(probed(known, tests, (about["mean"], about["std"]), seed))
    tell(scores, recipe)


def tell(scores: dict[str, list[dict[str, float]]], recipe: Pretrain) -> None:
    seeds = len(scores["distilled"])
    print(f"{TEST // 2} scenes of another camera told right, {recipe.budget.samples} samples, {seeds} seeds\n")
    print(f"{'':12}" + "".join(f"{light:>18}" for light in LIGHTS))
    spread = {}
    for method, runs in scores.items():
        spread[method] = {light: [one[light] for one in runs] for light in LIGHTS}
        told = (f"{np.mean(of):.1%} +- {np.std(of, ddof=min(1, seeds - 1)):.1%}" for of in spread[method].values())
        print(f"{method:12}" + "".join(f"{text:>18}" for text in told))
    for light in LIGHTS:
        best = max(OTHERS, key=lambda m: float(np.mean(spread[m][light])))
        won = np.mean(spread["distilled"][light]) > np.mean(spread[best][light])
        print(f"{light}: distilled {'beats' if won else 'does not beat'} {best}, the best of the others")
    machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    last = {"bench": "raw_distill", "samples": recipe.budget.samples, "scores": spread}
    print(json.dumps({**last, **machine, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
