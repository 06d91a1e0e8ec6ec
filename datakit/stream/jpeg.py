"""Crops of baseline JPEGs: the pixels that libjpeg-turbo gives, to the bit, and no more of them than are asked for.

ITU-T T.81 (sections below are its own): sequential DCT with Huffman codes, 8 bits, gray or YCbCr in 4:4:4, 4:2:2 or
4:2:0, one scan. Of other kinds, and of what is damaged, nothing is said: the caller has another decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..kernels import jit
from .dct import SIDE, colours, inverse
from .huffman import LOOK, SLACK, ZIGZAG, block, clean, pair, tabulate

MOST_PX = 1 << 26  # of an image: planes of a larger one are left to libjpeg, which works row by row
Box = tuple[int, int, int, int]  # left, top, right, bottom in px; the last two are outside


@dataclass(frozen=True)
class Header:
    """What a file says before its scan."""

    height: int
    width: int
    across: int  # blocks of luma in an MCU: 1 or 2
    down: int
    components: int  # 1 or 3
    quants: NDArray[np.int32]  # (components, 64), in the order of rows
    tables: NDArray[np.uint64]  # (4, 1 << LOOK): DC and AC of luma, DC and AC of chroma
    longest: NDArray[np.int64]  # (4, 18, 2): of codes of each length, the last one, and where its symbol is
    symbols: NDArray[np.uint8]  # (4, 256)
    restart: int  # MCUs between two restart markers; 0: there are none
    begin: int  # of the scan's data


def header(data: bytes) -> Header | None:
    """What a JPEG says of itself; None where it is of another kind."""
    end = data.find(b"\xff\xda")
    return _parsed(data[: end + 14]) if end > 0 else None


@lru_cache(maxsize=256)
def _parsed(data: bytes) -> Header | None:
    """Files of one encoder begin alike. T.81 B.2."""
    quants: dict[int, NDArray[np.int32]] = {}
    codes: dict[int, bytes] = {}
    frame, restart, at = b"", 0, 2
    adobe = None
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + size]
        at += 2 + size
        if marker in (0xC0, 0xC1):
            frame = body
        elif marker == 0xDB:
            if not _quantisers(body, quants):
                return None
        elif marker == 0xC4:
            while len(body) >= 17:
                count = sum(body[1:17])
                codes[body[0]] = body[1 : 17 + count]
                body = body[17 + count :]
        elif marker == 0xDD:
            restart = int.from_bytes(body[:2], "big")
        elif marker == 0xEE and body[:5] == b"Adobe":
            adobe = body[11] if len(body) > 11 else -1
        elif marker == 0xDA:
            return _scan(frame, body, quants, codes, restart, at, adobe) if len(data) <= at + 14 else None
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            return None
    return None


def _quantisers(body: bytes, quants: dict[int, NDArray[np.int32]]) -> bool:
    while len(body) >= 65:
        if body[0] > 3:  # 16 bits
            return False
        table = np.zeros(64, np.int32)
        table[ZIGZAG[:64]] = np.frombuffer(body[1:65], np.uint8)
        quants[body[0]] = table
        body = body[65:]
    return not body


def _scan(
    frame: bytes,
    body: bytes,
    quants: dict[int, NDArray[np.int32]],
    codes: dict[int, bytes],
    restart: int,
    begin: int,
    adobe: int | None,
) -> Header | None:
    count = frame[5] if len(frame) > 5 else 0
    if count not in (1, 3) or frame[0] != 8 or len(frame) != 6 + 3 * count or len(body) != 4 + 2 * count:
        return None
    parts = [frame[6 + 3 * n : 9 + 3 * n] for n in range(count)]
    named = [body[1 + 2 * n : 3 + 2 * n] for n in range(count)]
    height, width = (int.from_bytes(frame[n : n + 2], "big") for n in (1, 3))
    whole = body[0] == count and body[-3:] == b"\x00\x3f\x00" and [p[0] for p in parts] == [n[0] for n in named]
    is_ycc = count == 1 or ([p[0] for p in parts] == [1, 2, 3] and adobe in (None, 1))
    sampling = [divmod(p[1], 16) for p in parts]
    plain = count == 1 or (sampling[0] in ((1, 1), (2, 1), (2, 2)) and sampling[1] == sampling[2] == (1, 1))
    used = [0x00, 0x10] if count == 1 else [0x00, 0x01, 0x10, 0x11]
    told = [n[1] for n in named] == ([0x00] if count == 1 else [0x00, 0x11, 0x11])
    fits = 0 < height * width <= MOST_PX and (width > 4 or sampling[0] == (1, 1))  # narrow chroma is not interpolated
    if not (whole and is_ycc and plain and told and fits):
        return None
    if any(p[2] not in quants for p in parts) or any(which not in codes for which in used):
        return None
    tables, longest = np.zeros((4, 1 << LOOK), np.uint64), np.zeros((4, 18, 2), np.int64)
    symbols = np.zeros((4, 256), np.uint8)
    for which in used:
        n = (which & 1) * 2 + (which >> 4)
        lengths, values = np.frombuffer(codes[which][:16], np.uint8), np.frombuffer(codes[which][16:], np.uint8)
        symbols[n, : len(values)] = values
        if len(values) > 256 or not tabulate(lengths, symbols[n], which > 1, tables[n], longest[n]):
            return None
        if which > 1:
            pair(tables[n])
    across, down = (1, 1) if count == 1 else sampling[0]
    each = np.stack([quants[p[2]] for p in parts])
    return Header(height, width, across, down, count, each, tables, longest, symbols, restart, begin)


@jit
def planes(data, length, restarts, head, quants, tables, longest, symbols, box, coefs, luma, blue, red):  # type: ignore[no-untyped-def]
    """Levels of the MCUs of a box: luma (H, W) and two of chroma, all of whole MCUs. False if the data is damaged.

    head: MCUs across and down, blocks of luma across and down in each, components, MCUs between restarts. box: the
    first MCU across and down, and the ones after the last. What follows the box is not looked at.
    """
    across, down, wide, high, components, every = head
    pos, left, bits, mcu, part = 0, 0, np.uint64(0), 0, 0
    before = np.zeros(3, np.int64)
    lumas = wide * high
    for row in range(min(down, box[3])):
        for col in range(across):
            if every and mcu == every:
                if 8 * pos - left > 8 * restarts[part]:
                    return False
                pos, left, bits, mcu = restarts[part], 0, np.uint64(0), 0
                part += 1
                before[:] = 0
            mcu += 1
            wanted = row >= box[1] and box[0] <= col < box[2]
            for n in range(lumas + components - 1):
                which = max(n - lumas + 1, 0)
                kind = 2 * min(which, 1)
                pos, bits, left, is_whole = block(data, pos, bits, left, tables, longest, symbols, kind, coefs)
                if not is_whole:
                    return False
                before[which] += coefs[0]
                if wanted:
                    coefs[0] = before[which]
                    if which == 0:
                        y, x = row * high + n // wide, col * wide + n % wide
                        inverse(coefs, quants, 0, luma, y * SIDE, x * SIDE)
                    else:
                        inverse(coefs, quants, which, blue if which == 1 else red, row * SIDE, col * SIDE)
                coefs[:] = 0
            if pos - (left >> 3) > length:
                return False
    return 8 * pos - left <= 8 * length


class Crops:
    """Decodes crops of JPEGs; one a thread, for it uses its buffers again."""

    def __init__(self) -> None:
        self.bytes = np.empty(0, np.uint8)
        self.luma, self.chroma = np.empty(0, np.uint8), np.empty((2, 0), np.uint8)
        self.lines, self.sums = np.empty((2, 0), np.int32), np.empty(0, np.int32)
        self.rgb = np.empty((3, 0), np.uint8)
        self.coefs = np.zeros(65, np.int16)
        self.out = np.empty(0, np.uint8)

    def decode(self, data: bytes, box: Box) -> NDArray[np.uint8] | None:
        """(H, W, 3) uint8, in which the px of a box are those of the image; what lies beside them is anything.

        None if it is of another kind, damaged as far as it was looked at, or ends early. Good until the next call.
        """
        about = header(data)
        if about is None or box[2] > about.width or box[3] > about.height:  # libjpeg may have read another size
            return None
        wide, high = about.across, about.down
        across, down = -(-about.width // (SIDE * wide)), -(-about.height // (SIDE * high))
        self._make_room(len(data), across, down, about)
        restarts = np.zeros((across * down - 1) // about.restart if about.restart else 0, np.int64)
        length = clean(np.frombuffer(data, np.uint8), about.begin, self.bytes, restarts)
        if length < 0 or (len(restarts) and not restarts[-1]):
            return None
        luma = self.luma[: across * down * wide * high * SIDE**2].reshape(-1, across * wide * SIDE)
        blue, red = (plane[: across * down * SIDE**2].reshape(-1, across * SIDE) for plane in self.chroma)
        head = across, down, wide, high, about.components, about.restart
        scan = self.bytes, length, restarts, head, about.quants, about.tables, about.longest, about.symbols
        if not planes(*scan, self._mcus(box, about), self.coefs, luma, blue, red):
            self.coefs[:] = 0
            return None
        out = self.out[: about.height * about.width * 3].reshape(about.height, about.width, 3)
        sizes = wide, high, about.components, -(-about.width // wide), -(-about.height // high)
        colours(luma, blue, red, sizes, box, self.sums, self.lines, self.rgb, out)
        return out

    @staticmethod
    def _mcus(box: Box, about: Header) -> Box:
        """The MCUs of a box: those of the px beside it, too, whose chroma has a share in it."""
        left, top, right, bottom = box
        beside = 2 if about.components == 3 else 0
        wide, high = SIDE * about.across, SIDE * about.down
        first = max(left - beside, 0) // wide, max(top - beside, 0) // high
        return *first, -(-(right + beside) // wide), -(-(bottom + beside) // high)

    def _make_room(self, count: int, across: int, down: int, about: Header) -> None:
        width, px = across * about.across * SIDE, across * down * SIDE**2
        if len(self.bytes) < count + SLACK:
            self.bytes = np.zeros(count + SLACK, np.uint8)
        if len(self.luma) < px * about.across * about.down:
            self.luma = np.zeros(px * about.across * about.down, np.uint8)
        if self.chroma.shape[1] < px:
            self.chroma = np.zeros((2, px), np.uint8)
        if len(self.sums) < width + 2:
            self.lines, self.sums = np.zeros((2, width), np.int32), np.zeros(width + 2, np.int32)
            self.rgb = np.zeros((3, width), np.uint8)
        if len(self.out) < about.height * about.width * 3:
            self.out = np.zeros(about.height * about.width * 3, np.uint8)
