"""A plain join of near signatures, as a peer: of 6 blocks r errors leave 6 - r alike, and each choice has a table.

Each table groups the signatures by the chosen blocks with one scatter and compares all with all inside the groups; a
pair is reported in the first table whose blocks all agree. Exact for r up to 5.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba as nb
import numpy as np

BLOCKS = 6


@nb.njit(nogil=True, cache=True)
def popcount(v: Any) -> Any:
    v = v - ((v >> np.uint64(1)) & np.uint64(0x5555555555555555))
    v = (v & np.uint64(0x3333333333333333)) + ((v >> np.uint64(2)) & np.uint64(0x3333333333333333))
    v = (v + (v >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (v * np.uint64(0x0101010101010101)) >> np.uint64(56)


@nb.njit(nogil=True, cache=True)
def first_choice(apart: Any, shifts: Any, masks: Any, chosen: Any) -> Any:
    """Whether the chosen blocks are the first that are alike."""
    seen = 0
    for block in range(len(masks)):
        if seen < len(chosen) and ((apart >> shifts[block]) & masks[block]) == 0:
            if chosen[seen] != block:
                return False
            seen += 1
    return True


@nb.njit(nogil=True, cache=True)
def table(signatures: Any, widths: Any, shifts: Any, masks: Any, chosen: Any, radius: Any, pairs: Any) -> Any:
    """Fills `pairs` as far as it goes; gives how many there are."""
    bits = 0
    for block in chosen:
        bits += widths[block]
    start = np.zeros((1 << bits) + 1, np.int64)
    key = np.empty(len(signatures), np.uint32)
    for i in range(len(signatures)):
        k = np.uint64(0)
        for block in chosen:
            k = (k << np.uint64(widths[block])) | ((signatures[i] >> shifts[block]) & masks[block])
        key[i] = k
        start[np.int64(k) + 1] += 1
    for k in range(1 << bits):
        start[k + 1] += start[k]
    order, row = np.empty_like(signatures), np.empty(len(signatures), np.uint32)
    for i in range(len(signatures)):
        at = start[key[i]]
        order[at], row[at] = signatures[i], i
        start[key[i]] = at + 1
    count, low = 0, 0
    for k in range(1 << bits):
        for i in range(low, start[k]):
            for j in range(i + 1, start[k]):
                apart = order[i] ^ order[j]
                if popcount(apart) <= radius and first_choice(apart, shifts, masks, chosen):
                    if count < len(pairs):
                        pairs[count] = (np.uint64(row[i]) << np.uint64(32)) | np.uint64(row[j])
                    count += 1
        low = start[k]
    return count


def join(signatures: Any, radius_bits: int, threads: int) -> Any:
    """All pairs i < j, as i << 32 | j, in no order."""
    widths = np.array([64 // BLOCKS + (n < 64 % BLOCKS) for n in range(BLOCKS)])
    shifts = np.append(0, np.cumsum(widths)[:-1]).astype(np.uint64)
    masks = (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)

    def one(chosen: tuple[int, ...]) -> Any:
        room = max(1000, len(signatures))
        while True:
            pairs = np.empty(room, np.uint64)
            found = table(signatures, widths, shifts, masks, np.array(chosen), np.uint64(radius_bits), pairs)
            if found <= room:
                return pairs[:found].copy()
            room = found

    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(one, itertools.combinations(range(BLOCKS), BLOCKS - radius_bits))))
