"""What several tests need and is dear to make."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings

from datakit.sources.synth import make

settings.register_profile("untimed", deadline=None)  # machines are slow and shared: no test is timed
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The embedded collection, made twice, by two processes."""
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(make, ["opticalrs"] * 2, [first, second]))
    return first, second


@pytest.fixture(scope="session")
def folder(twins: tuple[Path, Path]) -> Path:
    return twins[0]
