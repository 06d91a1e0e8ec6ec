"""What several tests need and is dear to make."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from browser import browsing
from hypothesis import settings
from tars import SIZES, sample, write_tar

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


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tars of 17, 5 and 9 samples."""
    folder, n = tmp_path_factory.mktemp("shards"), 0
    for shard, size in enumerate(SIZES):
        write_tar(folder / f"part-{shard}.tar", [m for k in range(n, n + size) for m in sample(k)])
        n += size
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch's sums come out the same in every process, and the machine's cores are left to others."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")  # its event loop would be in the way of other modules
def browser() -> Iterator[Any]:
    """A headless Chromium, or the test is skipped: see `browser.Page`."""
    with browsing() as found:
        yield found
