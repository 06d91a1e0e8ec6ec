"""Several crops of one decoded image, spread over a window of batches (Hoffer et al., CVPR 2020).

An epoch has every sample `repeats` times. Windows of the order follow one another; within a window each slot of a batch
goes through images of its own, so that all crops of an image are of one rank and no batch has two of them. The last
window, which fills no such grid, is shuffled whole. The order stays a pure function.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..sample import mix64
from .augment import Crop
from .order import InTurn, Order, Positions, key_of, permuted
from .overlay import Picked

Made = tuple[list[NDArray[Any]], list[Crop], int]  # levels of each view, what they show, the sample


class Repeated:
    """The order of an epoch in which every sample comes `repeats` times.

    window: positions of a window; together: slots of the batches that it is laid out for, of all ranks.
    """

    def __init__(self, base: Order | InTurn | Picked, repeats: int, window: int, together: int) -> None:
        if repeats < 2 or together < 1 or window % (repeats * together):
            raise ValueError(f"repeats: {repeats}, 2 at least; a window of {window} has none of {together} slots")
        self.base, self.repeats, self.window, self.together = base, repeats, window, together
        self.samples, self.key = base.samples * repeats, base.key
        self.table: Callable[[int], Positions] = lru_cache(maxsize=2)(self.rows_of)

    def rows_of(self, number: int) -> Positions:
        """The samples at all positions of a window."""
        images = self.window // self.repeats
        first = number * images
        rows = self.base.at(first, min(images, self.base.samples - first))
        if len(rows) < images:
            many = len(rows) * self.repeats
            turn = permuted(np.arange(many, dtype=np.int64), many, key_of(self.key, number)) // self.repeats
            return np.take(rows, turn)
        batches = self.window // self.together
        slots = mix64(np.arange(self.together, dtype=np.int64) + number * self.together, self.key)[:, None]
        drawn = mix64((slots + np.arange(batches, dtype=np.uint64)).view(np.int64), self.key + 1)
        turn = np.argsort(drawn, axis=1, kind="stable") // self.repeats  # (together, batches)
        own = np.arange(self.together)[:, None] * (batches // self.repeats)
        return np.take(rows, (own + turn).T.reshape(-1))

    def at(self, start: int, count: int) -> Positions:
        """The samples at positions start .. start + count."""
        if start < 0 or count < 0 or start + count > self.samples:
            raise ValueError(f"positions {start} to {start + count}: this epoch has {self.samples}")
        found = [np.empty(0, np.int64)]
        while count:
            number, inside = divmod(start, self.window)
            found.append(self.table(number)[inside : inside + count])
            start, count = start + len(found[-1]), count - len(found[-1])
        return np.concatenate(found)

    def later(self, position: int) -> Positions:
        """Positions of this window, behind this one, that show the same sample."""
        number, inside = divmod(position, self.window)
        rows = self.table(number)
        step = self.together if len(rows) == self.window else 1
        here = np.arange(inside + step, len(rows), step)
        return np.compress(rows[here] == rows[inside], here) + number * self.window


class Shared:
    """Views that were made of an image while it was there, for later positions of its window."""

    def __init__(self, order: Repeated, mine: Callable[[int], bool]) -> None:
        self.order, self.mine = order, mine
        self.lock = threading.Lock()
        self.kept: OrderedDict[int, dict[int, Made]] = OrderedDict()  # by window and position

    def wanted(self, position: int, row: int) -> list[int]:
        """Positions of this rank that can be made with this one, of this sample, and have not been."""
        with self.lock:
            if self.order.at(position, 1)[0] != row:  # another sample took its place
                return []
            kept = self.kept.get(position // self.order.window, {})
            return [p for p in self.order.later(position).tolist() if p not in kept and self.mine(p)]

    def keep(self, position: int, made: Made) -> None:
        """What no one fetches (it was made twice, by two threads) goes with its window."""
        with self.lock:
            self.kept.setdefault(position // self.order.window, {})[position] = made
            if len(self.kept) > 2:
                self.kept.popitem(last=False)

    def fetch(self, position: int) -> Made | None:
        with self.lock:
            return self.kept.get(position // self.order.window, {}).pop(position, None)
