"""Classifiers over frozen features: nearest neighbours, a linear layer, attention over the patches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..pretrain.schedule import learning_rate, seed_of

NEIGHBOURS, TEMPERATURE = 20, 0.07  # DINO (Caron et al., ICCV 2021), section 4.1; Wu et al., CVPR 2018, section 3.4
QUERIES = 32  # of EP: its code's default
EPOCHS, BATCH, RATE, WARMUP = 100, 128, 1e-3, 0.1  # ours: AdamW, so that no rate has to be searched for
Fetch = Callable[[NDArray[np.int64]], Tensor]  # features of rows, on the device, float32


def neighbours(known: Tensor, numbers: Tensor, asked: Tensor, classes: int, count: int = NEIGHBOURS) -> Tensor:
    """Classes by the vote of the nearest, by cosine, each by exp(similarity / temperature).

    known: (N, D), of classes `numbers` (N,); asked: (M, D) -> (M,).
    """
    known, asked = F.normalize(known, dim=1), F.normalize(asked, dim=1)
    found = []
    for part in torch.split(asked, 1024):
        near, at = (part @ known.T).topk(min(count, len(known)), 1)
        votes = torch.zeros(len(part), classes, device=part.device)
        found.append(votes.scatter_add_(1, numbers[at], (near / TEMPERATURE).exp()).argmax(1))
    return torch.cat(found)


class Linear(nn.Module):
    """A linear layer behind a batch norm without weights (He et al., CVPR 2022, appendix A.1): (B, D) -> (B, K)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.layer = nn.Linear(dim, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(self.norm(features))  # type: ignore[no-any-return]


class Attentive(nn.Module):
    """Efficient probing (Psomas et al., arXiv 2506.10178): learnt queries attend to the patches, (B, L, D) -> (B, K).

    Keys are the tokens as they are; each query pools a part of its own of the values' D numbers.
    """

    def __init__(self, dim: int, classes: int, queries: int = QUERIES) -> None:
        super().__init__()
        self.parts = max(n for n in range(1, queries + 1) if dim % n == 0)
        self.scale = dim**-0.5
        self.queries = nn.Parameter(torch.randn(self.parts, dim) * 0.02)
        self.values = nn.Linear(dim, dim, bias=False)
        self.head = Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        heard = (tokens @ self.queries.T * self.scale).softmax(1)  # (B, L, M)
        values = self.values(tokens).unflatten(2, (self.parts, -1))  # (B, L, M, D / M)
        return self.head(torch.einsum("blm,blmd->bmd", heard, values).flatten(1))  # type: ignore[no-any-return]


def fitted(
    make: Callable[[], nn.Module],
    fetch: Fetch,
    train: NDArray[np.int64],
    numbers: Tensor,
    seed: int,
    epochs: int = EPOCHS,
) -> nn.Module:
    """A head that has learnt the classes `numbers` (of all rows) of the rows `train`. Seeded; a cosine schedule."""
    torch.manual_seed(seed_of(seed, 0, 0))
    head = make().to(numbers.device).train()
    optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=0.0)
    rng = np.random.default_rng(seed)
    size = min(BATCH, len(train))
    steps = max(len(train) // size, 1)
    for epoch in range(epochs):
        order = rng.permutation(train)
        for n in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate((epoch + n / steps) / epochs, RATE, WARMUP)
            rows = np.sort(order[n * size : (n + 1) * size])
            loss = F.cross_entropy(head(fetch(rows)), numbers[torch.from_numpy(rows).to(numbers.device)])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return head.eval()


@torch.no_grad()
def predicted(head: nn.Module, fetch: Fetch, rows: NDArray[np.int64]) -> Tensor:
    """The classes that a head tells, (M,)."""
    return torch.cat([head(fetch(rows[n : n + 512])).argmax(1) for n in range(0, len(rows), 512)])
