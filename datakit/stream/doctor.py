"""Where a loader's time goes on this machine, and the one setting that is worth changing."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from itertools import chain, count

from ..errors import RecipeError
from .loader import Loader
from .maker import STAGES

WARM = 2  # batches that are not measured: compiled code is loaded, files come into the page cache


@dataclass(frozen=True)
class Diagnosis:
    """shares: of the time that a batch takes, of all threads together and of the caller, who copies.

    images_s: samples a second that the loader gives when nobody computes with them. busy: share of the cores in use.
    score: see `Loader.shuffle_score`.
    """

    images_s: float
    shares: dict[str, float]
    bottleneck: str
    advice: str
    busy: float
    score: float

    def __str__(self) -> str:
        shares = "  ".join(f"{stage} {share:.0%}" for stage, share in self.shares.items())
        speed = f"{self.images_s:,.0f} images/s, {self.busy:.0%} of the cores busy"
        score = f"two samples of a batch are of one shard {self.score:.2f} times as often as by chance"
        return "\n".join((speed, shares, score, f"bottleneck: {self.bottleneck}", self.advice))


def diagnose(loader: Loader, seconds: float = 10.0, batches: int = 1000) -> Diagnosis:
    """Run a loader for so long, or so many batches, and say what holds it up."""
    if not len(loader):
        raise RecipeError(f"batch_size: {loader.batch_size}: the set has not one batch of it")
    before, samples, began, cpu = {}, 0, 0.0, 0.0
    epochs = (loader.batches(epoch, 0) for epoch in count(loader.epoch))  # a small set comes again
    for n, batch in enumerate(chain.from_iterable(epochs)):
        if n == WARM:
            before, samples = dict(loader.report().seconds), 0
            began, cpu = time.perf_counter(), time.process_time()
        elif n > WARM:
            samples += len(batch)
        if n >= batches or (before and time.perf_counter() - began > seconds):
            break
    wall = max(time.perf_counter() - began, 1e-9)
    spent = {stage: total - before.get(stage, 0.0) for stage, total in loader.report().seconds.items()}
    cores = len(os.sched_getaffinity(0))
    busy = min((time.process_time() - cpu) / wall / cores, 1.0)
    each = {stage: spent[stage] / loader.threads for stage in STAGES} | {"copy": spent["copy"]}
    threads = sum(each[stage] for stage in STAGES)
    bottleneck = "copy" if each["copy"] > threads else max(STAGES, key=lambda stage: each[stage])
    whole = sum(each.values()) or 1.0
    shares = {stage: value / whole for stage, value in each.items()}
    said = advice(loader, bottleneck, busy, cores)
    return Diagnosis(samples / wall, shares, bottleneck, said, busy, loader.shuffle_score(100))


def advice(loader: Loader, bottleneck: str, busy: float, cores: int) -> str:
    """The setting that is worth changing."""
    if bottleneck == "copy":
        if loader.device.cuda:
            return "the device gets batches too slowly: transform to fewer or smaller views, or keep normalise=None"
        return "the caller assembles batches too slowly: ask for fewer columns, or smaller views"
    if loader.threads < cores and busy < 0.9:
        return f"threads={cores}: {loader.threads} threads leave cores of this machine idle"
    if bottleneck == "storage":
        if busy < 0.5:
            return f"threads={4 * loader.threads}: the disk is waited for while cores idle; or cache= on a local disk"
        return "cache= on a local disk: reading takes longer than decoding"
    if bottleneck == "decode":
        if loader.repeats == 1 and loader.views:
            return "repeats=2: two crops of each decoded image, an epoch of twice the length; or store smaller tiles"
        return "store smaller tiles, or encode JPEG: decoding takes longest"
    if loader.function is not None:
        return (
            "transform: your function takes longest; do what it does in Views, or release the interpreter's lock in it"
        )
    return "transform: fewer or smaller views, or interpolation='bilinear'"
