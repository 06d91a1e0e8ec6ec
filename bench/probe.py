"""What pretraining on synthetic tiles teaches: probes of trained encoders beside untrained ones and raw pixels.

    python bench/probe.py [--seeds 3] [--folder DIR] [--set budget.samples=48000]

2,000 tiles of 14 kinds of drawn scenes; the SelectiveMAE of recipes/pretrain/tiny.yaml is trained without labels on one
half, once for each seed, and its frozen features tell the kinds of the other half, on which nothing was trained. The
worst of the trained seeds should be above the best of the untrained ones, by the same probe of the same features, and
above k-NN on the pixels themselves, at the best of several k. Reading and machine: LOG.md.
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
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datakit.evaluate.features import batches
from datakit.evaluate.heads import neighbours
from datakit.evaluate.images import Images, Split, images_of
from datakit.evaluate.probe import probe
from datakit.pretrain import checkpoint
from datakit.pretrain.objective import Encoder
from datakit.pretrain.recipe import Pretrain
from datakit.pretrain.schedule import seed_of
from datakit.pretrain.train import INITIAL, pretrain
from datakit.pretrain.trained import Trained
from datakit.recipe import parse_changes
from datakit.sources.land import KINDS
from datakit.sources.scenes import draw

TILES, SIDE_PX = 2000, 128
PROBES = [(method, pool) for pool in ("mean", "cls") for method in ("knn", "linear")]


def make(folder: Path) -> Path:
    """learn.tar and test.tar, half of the tiles each, every kind as often."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = list(KINDS)
    for part, name in enumerate(("learn", "test")):
        with tarfile.open(folder / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for n in range(part, TILES, 2):
                kind = (n // 2) % len(kinds)
                pixels = draw(np.random.default_rng([7, n]), kinds[kind], SIDE_PX, SIDE_PX).pixels
                out = io.BytesIO()
                Image.fromarray(pixels).save(out, "JPEG", quality=92)
                for suffix, data in (("jpg", out.getvalue()), ("cls", str(kind).encode())):
                    info = tarfile.TarInfo(f"{name}{n:05}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def split_of(images: Images) -> Split:
    learn = np.array([name.startswith("learn") for name in images.names])
    numbers = np.array([int(label) for label in images.labels])
    return Split(np.flatnonzero(learn), np.flatnonzero(~learn), numbers, tuple(KINDS))


def untrained(recipe: Pretrain, trained: Trained) -> Encoder:
    """The encoder that a run of this recipe begins with."""
    torch.manual_seed(seed_of(recipe.seed, 0, INITIAL))
    return recipe.objective.encoder(recipe.objective.build().eval(), trained.numbers)


def on_pixels(encoder: Encoder, images: Images, split: Split) -> dict[int, float]:
    """k-NN on what the encoder is shown, by cosine of centred pixels, for several k."""
    rows = np.arange(len(images))
    pixels = torch.from_numpy(np.concatenate(list(batches(encoder, images, rows, 250)))).flatten(1)
    pixels = pixels - pixels[split.train].mean(0)
    numbers = torch.from_numpy(split.numbers)
    found = {}
    for k in (1, 5, 20, 50):
        told = neighbours(pixels[split.train], numbers[split.train], pixels[split.test], len(split.classes), k)
        found[k] = float((told == numbers[split.test]).float().mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--set", action="append", default=[], help="change a field of recipes/pretrain/tiny.yaml")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as made:
        folder = make(Path(made) / "tiles")
        images = images_of(folder)
        split = split_of(images)
        rows: dict[str, dict[str, list[float]]] = {"trained": {}, "untrained": {}}
        pixels: dict[int, float] = {}
        losses = []
        for seed in range(args.seeds):
            began = time.monotonic()
            changes = {"data": str(folder / "learn.tar"), "seed": seed, "keep": 1, **parse_changes(args.set)}
            recipe, out = Pretrain.load("tiny", changes), Path(made) / f"run{seed}"
            losses.append(pretrain(recipe, out, say=lambda _: None, accelerator="cpu")["loss"])
            print(f"seed {seed}: {time.monotonic() - began:.0f} s, loss {losses[-1]:.4f}", file=sys.stderr, flush=True)
            trained = Trained.load(checkpoint.there(out / "checkpoints")[-1])
            pixels = pixels or on_pixels(trained.encoder(), images, split)
            for name, encoder in (("trained", trained.encoder()), ("untrained", untrained(recipe, trained))):
                for method, pool in PROBES:
                    options = {"methods": [method], "pool": pool, "cache": Path(made) / "cache"}
                    (score,) = probe(encoder, images, [split], **options)
                    rows[name].setdefault(f"{method} {pool}", []).append(score.mean)
    tell(rows, pixels, losses, Pretrain.load("tiny", parse_changes(args.set)))


def tell(rows: dict[str, dict[str, list[float]]], pixels: dict[int, float], losses: list[float], one: Pretrain) -> None:
    print(f"{'':24}{'worst':>8}{'mean':>8}{'best':>8}   of {len(losses)} seeds: 1,000 held-out tiles told right")
    for name, probes in rows.items():
        for which, shares in probes.items():
            print(f"{name + ' ' + which:24}{min(shares):8.1%}{np.mean(shares):8.1%}{max(shares):8.1%}")
    k = max(pixels, key=lambda k: pixels[k])
    print(f"{'pixels knn':24}{'':16}{pixels[k]:8.1%}   k = {k}")
    print(f"{'chance':24}{'':16}{1 / len(KINDS):8.1%}")
    wins = {which: min(shares) > max(*rows["untrained"][which], pixels[k]) for which, shares in rows["trained"].items()}
    for which, won in wins.items():
        print(
            f"{which}: the worst trained seed {'beats' if won else 'does not beat'} the best untrained one and pixels"
        )
    machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    last = {"bench": "probe", "samples": one.budget.samples, "rows": rows, "pixels": pixels, "losses": losses}
    print(json.dumps({**last, "wins": wins, **machine, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
