"""Which samples a step of a training run had, from the state of its loader."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ShardError
from .loader import Loader
from .source import Source

NAMES = ("loader", "dataloader", "train_loader", "datakit")  # under which checkpoints keep a state, most likely


def state_of(path: Path) -> dict[str, Any]:
    """The state in a JSON file or in a checkpoint of torch: the file itself, or the first of its values that is one."""
    try:
        found = json.loads(path.read_text()) if path.suffix == ".json" else torch.load(path, weights_only=True)
    except FileNotFoundError:
        raise ShardError(f"{path}: no such file") from None
    except Exception as exc:
        raise ShardError(f"{path}: neither JSON (.json) nor a checkpoint of torch ({exc})") from None
    for state in (found, *(found.get(name) for name in NAMES), *found.values()) if isinstance(found, dict) else ():
        if isinstance(state, dict) and {"index", "epoch", "position", "seed"} <= {*state}:
            return state
    raise ShardError(f"{path}: no state of a Loader in it")


def keys_of_step(
    state: dict[str, Any],
    source: Source,
    epoch: int | None = None,
    step: int | None = None,
    batch: int | None = None,
    overlay: Sequence[str | Path] = (),
    licence: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Position, key, id and shard of each sample of a step, of all ranks together; those that were replaced, too.

    ValueError where the epoch has no such step.
    """
    together = batch or state["together"]
    options = {"overlay": overlay, "licence": licence, **Loader.options_of(state)}
    loader = Loader(source, together, rank=0, world_size=1, **options)
    loader.load_state_dict({**state, "mean": [], "std": []})
    order = loader.order(state["epoch"] if epoch is None else epoch)
    first = state["position"] - together if step is None else step * together
    if first < 0 or first >= order.samples:
        raise ValueError(
            f"step {first // together}: this epoch has {-(-order.samples // together)} steps of {together}"
        )
    rows = order.at(first, min(together, order.samples - first))
    ids = loader.tars.ids(rows).tolist()
    for n, (key, row) in enumerate(zip(loader.tars.keys(rows), rows.tolist(), strict=True)):
        yield {"position": first + n, "key": key, "id": ids[n], "shard": loader.tars.shard_of(row).name}
