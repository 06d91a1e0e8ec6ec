"""The loader's order through a DataLoader, through torchdata, and the same tars through webdataset."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
from tars import SMALL
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from datakit.stream import Loader, OrderSampler, ShardDataset, multi_view, pipeline

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (2, "spawn")])
def test_a_dataloader_gives_what_a_loader_gives(shards: Path, workers: int, method: str | None) -> None:
    for rank in range(2):
        loader = Loader(shards, 4, transform=SMALL, seed=5, rank=rank, world_size=2, columns=["n"])
        dataset = ShardDataset(shards, transform=SMALL, seed=5, columns=["n"])
        sampler = OrderSampler(dataset, 4, rank, 2)
        many = DataLoader(dataset, 4, sampler=sampler, num_workers=workers, multiprocessing_context=method)
        for epoch in range(2):
            loader.set_epoch(epoch)
            sampler.set_epoch(epoch)
            assert len(many) == len(loader) == 3
            for ours, theirs in zip(loader, many, strict=True):
                assert ours.keys == theirs["key"]
                assert torch.equal(ours.images, theirs["image"])
                assert torch.equal(ours.ids, theirs["id"])
                assert torch.equal(ours["n"], theirs["n"])


def test_a_plain_index_is_the_sample_of_that_number(shards: Path) -> None:
    dataset = ShardDataset(shards, transform=multi_view(32, 16, 1))
    assert len(dataset) == 31
    assert dataset[30]["key"] == dataset[-1]["key"] == "s030"
    assert [tuple(view.shape) for view in dataset[3]["image"]] == [(3, 32, 32), (3, 32, 32), (3, 16, 16)]
    torch.manual_seed(0)
    crops = {tuple(dataset[3]["crop"][0].tolist()) for _ in range(4)}
    assert len(crops) == 4
    torch.manual_seed(0)
    assert {tuple(dataset[3]["crop"][0].tolist()) for _ in range(4)} == crops
    with pytest.raises(IndexError):
        dataset[31]
    with pytest.raises(ValueError, match="drop or wrap"):
        OrderSampler(dataset, 4, remainder="pad")


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11 calls it
@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_goes_on_where_it_was(shards: Path, workers: int) -> None:
    def fresh() -> Any:
        dataset = ShardDataset(shards, transform=SMALL, seed=1)
        sampler = OrderSampler(dataset, 3, 0, 1)
        return StatefulDataLoader(dataset, 3, sampler=sampler, num_workers=workers)

    whole = [batch["key"] for batch in fresh()]
    begun = fresh()
    iterator = iter(begun)
    seen = [next(iterator)["key"] for _ in range(4)]
    state = begun.state_dict()
    again = fresh()
    again.load_state_dict(state)
    assert seen + [batch["key"] for batch in again] == whole


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves tars open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_same_tars(shards: Path) -> None:
    plain = pipeline(shards, shuffle=0)
    assert isinstance(plain, webdataset.WebDataset)
    seen = [(sample["__key__"], json.loads(sample["json"])["n"]) for sample in plain]
    assert seen == [(f"s{n:03}", n) for n in range(31)]
    shuffled = [sample["__key__"] for sample in pipeline(shards, shuffle=8, seed=2)]
    assert sorted(shuffled) == [key for key, _ in seen] != shuffled
    gc.collect()
