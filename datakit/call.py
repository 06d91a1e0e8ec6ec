"""What a Dask scheduler sees of a task: bytes and this function; it needs none of the libraries of a worker."""

from __future__ import annotations

import pickle
from typing import Any


def call(payload: bytes) -> Any:
    """Do what our own client packed: (task, item)."""
    task, item = pickle.loads(payload)
    return task(item)
