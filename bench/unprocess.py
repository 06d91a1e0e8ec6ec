"""Pictures a second from sRGB to RAW, batched in torch, beside the same steps a picture at a time in numpy.

    python bench/unprocess.py [--batch 64] [--rounds 7]

Batches of (B, 3, 224, 224), float32 and uint8, to a noisy mosaic of whole levels; on this CPU with all its threads, and
on a GPU where there is one, where `share` is that of a training step of SelectiveMAE-B under bf16 (bar 5 %).
Both sides take turns; the median counts. Besides, how much of a picture a mosaic without noise gives back.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datakit.pretrain.unprocess import INFLECTION, Params, process, psnr, sample_params, unprocess
from datakit.sources.scenes import draw

SIDE = 224


def one_by_one(pictures: NDArray[np.float32], params: Params, rng: np.random.Generator) -> NDArray[np.float32]:
    """The steps of Brooks et al. as their code has them: a picture at a time."""
    out = np.empty((len(pictures), SIDE, SIDE), np.float32)
    for n, picture in enumerate(pictures):
        toned = 0.5 - np.sin(np.arcsin(1 - 2 * np.clip(picture, 0, 1)) / 3)
        light = np.maximum(toned, 1e-8) ** 2.2
        seen = np.tensordot(params.matrix[n].numpy(), light, 1)
        gains = 1 / params.gains[n].numpy()[:, None, None]
        mask = (np.maximum(seen.mean(0) - INFLECTION, 0) / (1 - INFLECTION)) ** 2
        colours = np.clip(seen * np.maximum(mask + (1 - mask) * gains, gains), 0, 1) * float(params.exposure[n])
        mosaic = colours[1].copy()
        mosaic[0::2, 0::2], mosaic[1::2, 1::2] = colours[0, 0::2, 0::2], colours[2, 1::2, 1::2]
        deviation = np.sqrt(float(params.shot[n]) * mosaic + float(params.read[n]))
        noisy = mosaic + deviation * rng.standard_normal(mosaic.shape, np.float32)
        black, white = float(params.black[n]), float(params.white[n])
        out[n] = np.round(np.clip(black + noisy * (white - black), 0, float(params.most[n])))
    return out


def seconds(work: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def step_seconds(batch: int) -> float:
    """Of a training step on the GPU."""
    from datakit.pretrain.selectivemae import SelectiveMAE

    model = SelectiveMAE().cuda()
    images = torch.randn(batch, 3, SIDE, SIDE, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            model(images, 0.5).mean().backward()

    for _ in range(3):
        step()
    return statistics.median(seconds(step, "cuda") for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(f"{platform.platform()}, torch {torch.__version__}, {len(os.sched_getaffinity(0))} cores\n")
    scenes = [draw(np.random.default_rng(n), "houses", SIDE, SIDE).pixels for n in range(4)]
    levels = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).repeat(-(-options.batch // 4), 1, 1, 1)
    levels = levels[: options.batch].contiguous()
    params, rng = sample_params(torch.Generator().manual_seed(0), options.batch), np.random.default_rng(0)
    pictures = levels / 255
    ways: dict[str, tuple[Callable[[], Any], str]] = {
        "numpy, a picture at a time": (lambda: one_by_one(pictures.numpy(), params, rng), "cpu"),
        "float32": (lambda: unprocess(pictures, params), "cpu"),
        "uint8": (lambda: unprocess(levels, params), "cpu"),
    }
    if torch.cuda.is_available():
        on_gpu, gpu_params = levels.cuda(), params.to("cuda")
        ways["uint8, GPU"] = (lambda: unprocess(on_gpu, gpu_params), "cuda")
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for n in range(options.rounds + 1):
        for name, (work, device) in ways.items():
            spent = seconds(work, device)
            if n:  # the first one warms up
                taken[name].append(spent)
    results: dict[str, Any] = {}
    slowest = statistics.median(taken["numpy, a picture at a time"])
    for name, spans in taken.items():
        span = statistics.median(spans)
        results[name] = {"images_s": round(options.batch / span, 1), "times": round(slowest / span, 2)}
        print(f"{name:28} {options.batch / span:10.0f} images/s {slowest / span:8.2f} times numpy")
    if torch.cuda.is_available():
        share = statistics.median(taken["uint8, GPU"]) / step_seconds(options.batch)
        results["share_of_step"] = round(share, 4)
        print(f"{'share of a step, GPU':28} {share:10.1%}          bar 5 %")
    back = psnr(process(unprocess(pictures[:4], params[:4], noise=False)), pictures[:4])
    results["psnr_db"] = round(float(back.mean()), 2)
    print(f"{'mosaic and back, no noise':28} {float(back.mean()):10.1f} dB")
    print(json.dumps({"bench": "unprocess", "machine": platform.machine(), "results": results}))


if __name__ == "__main__":
    main()
