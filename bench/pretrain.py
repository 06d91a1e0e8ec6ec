"""A step of SelectiveMAE beside MAE's, and our MAE beside the public one's sums: time, memory and operations an image.

    python bench/pretrain.py [--quick] [--batch 16] [--steps 1] [--rounds 5] [--device cuda] [--compile]
                              [--cpu-time]

The task: ViT-B/16 at 224 px; loss and gradients of a batch of noise. SelectiveMAE in its first, dearest stage (all
patches are embedded to be compared); its decoder has 12 layers as the released command has it, or 8 as MAE's. MAE hides
75 %, and its decoder has 8. The peer is MAE as the public code computes it (bench/peers/public_mae.py), of the same
weights; that its loss is ours is checked first. The optimiser's step is left out: it costs all the same, whatever the
batch. After a step to warm up all take turns, one step after another's, and the median of the rounds counts; the limit
is what a product of two large matrices reaches in the same round. On a GPU: autocast to bfloat16.

Bars: 1.8 and 2.2 times the images a second of our MAE, with 12 and 8 layers; saved tensors of at most 0.48 and 0.40 of
MAE's; at most 27.2 and 23.5 GFLOP an image by torch's counter; our MAE no slower than the peer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NEAR = 0.1  # share of a run
KINDS = ("SelectiveMAE, 12 layers", "SelectiveMAE, 8 layers", "MAE", "MAE, public code")
BARS = {  # beside which model; images a second by its at least, saved tensors by its at most, GFLOP an image at most
    KINDS[0]: ("MAE", 1.8, 0.48, 27.2),
    KINDS[1]: ("MAE", 2.2, 0.40, 23.5),
    KINDS[2]: (KINDS[3], 1.0, 1.0, 58.9),
}
Step = Callable[[Tensor], None]


def made(kind: str) -> nn.Module:
    from peers.public_mae import PublicMAE

    from datakit.pretrain.mae import MAE
    from datakit.pretrain.selectivemae import SelectiveMAE

    torch.manual_seed(0)
    if kind.startswith("Selective"):
        return SelectiveMAE(decoder_depth=12 if "12" in kind else 8)
    ours = MAE()
    if kind == "MAE":
        return ours
    peer = PublicMAE()
    peer.load_state_dict(ours.state_dict())
    return peer


def step_of(model: nn.Module, device: str) -> Step:
    def step(images: Tensor) -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            loss = model(images, NEAR).mean()
        loss.backward()

    return step


def same_loss() -> float:
    """By how much the peer's loss differs from ours, of the same weights and noise."""
    images = torch.randn(2, 3, 224, 224)
    losses = []
    for kind in KINDS[2:]:
        model = made(kind)
        torch.manual_seed(1)
        with torch.no_grad():
            losses.append(float(model(images, NEAR).mean()))
    return abs(losses[0] - losses[1])


def counted(model: nn.Module, device: str) -> dict[str, float]:
    """GFLOP of loss and gradients, and megabytes of tensors kept for the gradients, weights apart: an image's."""
    from torch.utils.flop_counter import FlopCounterMode

    images, kept = torch.randn(4, 3, 224, 224, device=device), {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), images)}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        step_of(model, device)(images)
    return {"gflop": counter.get_total_flops() / 1e9 / len(images), "saved_mb": sum(kept.values()) / 1e6 / len(images)}


def limit_gflops(device: str) -> float:
    """What a product of two large matrices reaches here, in GFLOP a second."""
    side, kind = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    best = min(timed(lambda: torch.mm(a, b), device) for _ in range(6))
    return 2 * side**3 / best / 1e9


def timed(work: Callable[[], object], device: str) -> float:
    waited = torch.cuda.synchronize if device == "cuda" else lambda: None
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    waited()
    began = clock()
    work()
    waited()
    return clock() - began


def alone(kind: str, args: argparse.Namespace) -> None:
    """In a process of its own: what is counted of a model, and the most memory that its steps had, as JSON."""
    model, images = made(kind).to(args.device), torch.randn(args.batch, 3, 224, 224, device=args.device)
    step = step_of(model, args.device)
    step(images)
    step(images)
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else resident_peak()
    print(json.dumps({"peak_mb": peak / 1e6, **counted(model, args.device)}))


def resident_peak() -> int:
    """The most memory that this process has had, in bytes."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def counts(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    found = {}
    for kind in KINDS:
        command = [sys.executable, __file__, "--one", kind, "--batch", str(args.batch), "--device", args.device]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{kind}: failed\n{done.stderr[-2000:]}")
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    return found


def rounds(args: argparse.Namespace) -> tuple[dict[str, list[float]], list[float]]:
    """Images a second of each model, a step after another's, and the machine's GFLOP a second, round by round."""
    images = torch.randn(args.batch, 3, 224, 224, device=args.device)
    models = {kind: made(kind).to(args.device) for kind in KINDS}
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    limits = []
    for model in models.values():
        if args.compile:
            model.compile()
        for _ in range(3 if args.device == "cuda" else 1):
            step_of(model, args.device)(images)
    for n in range(args.rounds):
        for kind in KINDS if n % 2 == 0 else KINDS[::-1]:
            step = step_of(models[kind], args.device)
            took = timed(lambda step=step: [step(images) for _ in range(args.steps)], args.device)  # type: ignore[misc]
            models[kind].zero_grad(set_to_none=True)
            found[kind].append(args.steps * args.batch / took)
        limits.append(limit_gflops(args.device))
        print(f"round {n}: " + ", ".join(f"{kind}: {speeds[-1]:.2f}" for kind, speeds in found.items()), flush=True)
    return found, limits


def table(found: dict[str, list[float]], limits: list[float], counted: dict[str, dict[str, float]]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for kind, speeds in found.items():
        beside, least, most, gflop = BARS.get(kind, (kind, 1.0, 1.0, math.inf))
        one = {
            "images_s": statistics.median(speeds),
            "ratio": statistics.median(a / b for a, b in zip(speeds, found[beside], strict=True)),
            "saved_ratio": counted[kind]["saved_mb"] / counted[beside]["saved_mb"],
            "of_limit": statistics.median(a * counted[kind]["gflop"] / b for a, b in zip(speeds, limits, strict=True)),
            **counted[kind],
        }
        met = one["ratio"] >= least and one["saved_ratio"] <= most and one["gflop"] <= gflop
        print(
            f"{kind:23} {one['images_s']:8.2f} images/s, {one['of_limit']:4.0%} of the limit; an image: "
            f"{one['gflop']:5.1f} GFLOP, {one['saved_mb']:5.1f} MB saved; process {one['peak_mb']:6,.0f} MB"
        )
        if kind in BARS:
            print(f"    {one['ratio']:.2f} times {beside}, {one['saved_ratio']:.2f} of its memory: bars", end=" ")
            print(f"{least}, {most}, {gflop} GFLOP:", "met" if met else "NOT MET")
        results[kind] = {name: round(value, 3) for name, value in one.items()} | {"met": met}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of one step, 8 images")
    parser.add_argument("--batch", type=int, default=0, help="images a step; default: 16, of a GPU 256")
    parser.add_argument("--steps", type=int, default=0, help="a turn; default: 1, of a GPU 20")
    parser.add_argument("--rounds", type=int, default=0, help="turns of each; default: 5")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cpu-time", action="store_true", help="of one thread: for a machine that others use, too")
    parser.add_argument("--compile", action="store_true", help="by torch.compile")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    large = args.device == "cuda"
    args.batch = args.batch or (8 if args.quick else 256 if large else 16)
    args.steps = args.steps or (20 if large else 1)
    args.rounds = args.rounds or (1 if args.quick else 5)
    if args.cpu_time:
        torch.set_num_threads(1)
    if args.one:
        return alone(args.one, args)
    differs = same_loss()
    print(f"MAE's loss and the public code's differ by {differs:.1e}")
    if differs > 1e-5:
        sys.exit("the peer does not compute the same")
    results = table(*rounds(args), counts(args))
    machine = {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name() if large else "cpu",
        "torch": torch.__version__,
    }
    settings = {"batch": args.batch, "rounds": args.rounds, "compile": args.compile, "cpu_time": args.cpu_time}
    print(json.dumps({"bench": "pretrain", **machine, **settings, "results": results}))


if __name__ == "__main__":
    main()
