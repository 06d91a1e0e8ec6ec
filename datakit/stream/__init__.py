"""Shards to batches: which sample comes when, and how it gets onto the device.

from datakit.stream import Loader, mae
loader = Loader("shards/scenes", batch_size=256, transform=mae())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augment import View, Views, evaluation, mae, multi_view
    from .batch import Batch
    from .cache import Cache
    from .conventions import OrderSampler, ShardDataset, pipeline
    from .loader import Loader, Report
    from .mix import Mix
    from .overlay import Overlay

__all__ = [
    "Batch",
    "Cache",
    "Loader",
    "Mix",
    "OrderSampler",
    "Overlay",
    "Report",
    "ShardDataset",
    "View",
    "Views",
    "evaluation",
    "mae",
    "multi_view",
    "pipeline",
]
_HOMES = {
    "Batch": "batch",
    "Cache": "cache",
    "Loader": "loader",
    "Mix": "mix",
    "OrderSampler": "conventions",
    "Overlay": "overlay",
    "Report": "loader",
    "ShardDataset": "conventions",
    "pipeline": "conventions",
}


def __getattr__(name: str) -> Any:
    """Names are fetched when they are asked for: the order alone needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'datakit.stream' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'augment')}"), name)
