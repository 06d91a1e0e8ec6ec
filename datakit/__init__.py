"""Public image collections to training-ready WebDataset shards.

import datakit
manifest = datakit.build("recipes/opticalrs.yaml", data="collections", out="opticalrs")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .manifest import Manifest
    from .pipeline import build
    from .recipe import Recipe

__version__ = "0.1.0"
__all__ = ["Manifest", "Recipe", "build"]
_HOMES = {"Manifest": "manifest", "Recipe": "recipe", "build": "pipeline"}


def __getattr__(name: str) -> Any:
    """Names are fetched when they are asked for: `import datakit` loads neither rasterio nor dask nor torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'datakit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
