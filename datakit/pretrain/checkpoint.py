"""Checkpoints: whole files or none, the last few, and which of them a run goes on from.

A file is written aside, written through to the disk and renamed. It holds tensors and plain values alone: reading one
runs nothing that it brings along.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ..disk import becoming
from ..errors import RecipeError, ShardError

FORMAT = 1
NAME = re.compile(r"step-(\d{9})\.pt")
FREE = {  # keys of a recipe that may change under a run: they shape neither its order nor its numbers
    *("name", "about", "data", "compile", "micro_batch", "log_every", "pictures_every", "checkpoint_every", "keep"),
    *("held_out", "max_nonfinite", "feeding.threads", "feeding.prefetch", "feeding.cache", "feeding.max_bad_share"),
}
SCHEDULED = {"budget", "optimiser.warmup", "optimiser.least_rate"}  # may change with --rescale-schedule


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of a step, and remove all but the last `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09}.pt"
    with becoming(path, folder) as aside:
        torch.save({"format": FORMAT, "step": step, **state}, aside)
    for old in there(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def there(folder: Path) -> list[Path]:
    """The checkpoints of a folder, by step."""
    return sorted(path for path in folder.glob("step-*.pt") if NAME.fullmatch(path.name))


def load(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. ShardError where it is none, or damaged."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ShardError(f"{path}: no such checkpoint") from None
    except Exception as exc:
        raise ShardError(
            f"{path}: no checkpoint, or damaged: {str(exc).splitlines()[0] if str(exc) else exc!r}"
        ) from None
    if not isinstance(state, dict) or "recipe" not in state or "model" not in state:
        raise ShardError(f"{path}: not a checkpoint of `datakit pretrain`")
    if state.get("format") != FORMAT:
        raise ShardError(f"{path}: of format {state.get('format')}; this version reads {FORMAT}")
    return state


def flat(plain: Any, above: str = "") -> dict[str, Any]:
    """Values by dotted key, mappings opened."""
    if not isinstance(plain, dict) or not plain:
        return {above: plain}
    return {
        key: value
        for name, one in plain.items()
        for key, value in flat(one, f"{above}.{name}" if above else name).items()
    }


def agree(saved: dict[str, Any], now: dict[str, Any], budgets: tuple[int, int], rescale: bool) -> None:
    """RecipeError where a run cannot go on by another recipe. budgets: in samples, of the checkpoint and now."""
    was, new = flat(saved), flat(now)
    changed = [key for key in sorted({*was, *new}) if was.get(key) != new.get(key) and not _among(key, FREE)]
    scheduled = [key for key in changed if _among(key, SCHEDULED) and key.partition(".")[0] != "budget"]
    other = [key for key in changed if not _among(key, SCHEDULED)]
    if other:
        told = "; ".join(f"{key} was {was.get(key)}, is {new.get(key)}" for key in other)
        raise RecipeError(f"the run began with another recipe: {told}. Change it back, or begin another run with --out")
    if budgets[0] != budgets[1]:
        scheduled.insert(0, "budget")
        was["budget"], new["budget"] = (f"{budget} samples" for budget in budgets)
    if scheduled and not rescale:
        told = "; ".join(f"{key} was {was.get(key)}, is {new.get(key)}" for key in scheduled)
        raise RecipeError(
            f"{told}: learning rate and curriculum follow the share of the budget, and would jump. "
            "If that is wanted, give --rescale-schedule"
        )


def _among(key: str, names: set[str]) -> bool:
    """Whether a dotted key, or what it lies in, is one of some."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
