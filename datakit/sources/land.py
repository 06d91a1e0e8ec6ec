"""The land of a drawn scene: ground, slopes, fields with their rows, woods and water."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, hypot, pi, sin
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats = NDArray[np.float32]
Points = list[tuple[float, float]]
Colour = tuple[int, int, int]

GROUNDS: dict[str, tuple[Colour, Colour]] = {
    "grass": ((96, 116, 70), (142, 150, 98)),
    "dry": ((168, 152, 112), (128, 120, 84)),
    "sand": ((206, 178, 132), (176, 142, 100)),
    "rock": ((136, 126, 116), (92, 88, 84)),
    "snow": ((216, 220, 224), (150, 150, 152)),
    "paved": ((142, 140, 136), (116, 116, 112)),
    "wood": ((64, 84, 50), (96, 108, 66)),
}
CROPS: tuple[Colour, ...] = (
    (112, 142, 66), (146, 160, 84), (186, 170, 104), (150, 122, 86), (120, 98, 72), (84, 118, 60), (200, 186, 128),
    (132, 146, 108), (168, 138, 98), (98, 128, 84),
)  # fmt: skip


@dataclass(frozen=True)
class Mix:
    """What a kind of scene is made of."""

    ground: str = "grass"
    parcel_px: int = 0  # size of fields, 0: none
    dotted: bool = False  # orchards: trees in rows
    trees_share: float = 0.1
    water: str = ""  # "river", "lake", "coast"
    block_px: int = 0  # size of a town's blocks, 0: none
    roof_px: tuple[int, int] = (16, 30)
    roads: int = 1
    relief: float = 0.1  # strength of the shading of slopes
    tanks: int = 0
    ships: int = 0


KINDS: dict[str, Mix] = {
    "farmland": Mix(parcel_px=150, trees_share=0.06, roads=2),
    "orchard": Mix("dry", parcel_px=190, dotted=True, trees_share=0.05),
    "meadow": Mix(trees_share=0.22, relief=0.2),
    "forest": Mix("wood", trees_share=0.7, relief=0.25),
    "houses": Mix(trees_share=0.08, block_px=120, roads=0),
    "blocks": Mix("paved", trees_share=0.05, block_px=190, roof_px=(34, 64), roads=0),
    "works": Mix("paved", trees_share=0.04, block_px=230, roof_px=(60, 110), roads=0, tanks=14),
    "port": Mix("paved", trees_share=0.02, water="coast", block_px=200, roof_px=(44, 90), roads=0, ships=22),
    "desert": Mix("sand", trees_share=0.0, roads=1, relief=0.6),
    "rock": Mix("rock", trees_share=0.14, roads=0, relief=0.9),
    "snow": Mix("snow", trees_share=0.16, roads=1, relief=0.7),
    "river": Mix(parcel_px=170, trees_share=0.14, water="river", ships=3),
    "lake": Mix("dry", trees_share=0.25, water="lake", relief=0.25),
    "coast": Mix("sand", trees_share=0.1, water="coast", ships=5, relief=0.2),
}


def noise(rng: np.random.Generator, size: tuple[int, int], cell_px: float, octaves: int = 4) -> Floats:
    """(H, W) float32 of mean 0 and deviation near 1, for a size (W, H): value noise, each octave twice as fine."""
    width, height = size
    total, weight, power = np.zeros((height, width), np.float32), 1.0, 0.0
    for octave in range(octaves):
        cell = max(cell_px / 2**octave, 2.0)
        grid = rng.standard_normal((int(height / cell) + 4, int(width / cell) + 4), dtype=np.float32)
        x, y = rng.random(2)
        box = (x, y, x + width / cell, y + height / cell)
        total += np.float32(weight) * np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC, box))
        power, weight = power + weight**2, weight * 0.55
    return total * np.float32(1.4 / power**0.5)


class Land:
    """Ground, fields, trees and water, painted into `rgb`, (H, W, 3) float32; `shade` multiplies it in the end."""

    def __init__(self, rng: np.random.Generator, mix: Mix, width: int, height: int) -> None:
        self.rng, self.mix, self.size = rng, mix, (width, height)
        self.scale = float(rng.uniform(0.6, 1.1))
        self.angle, sun = rng.uniform(0, pi, 2)
        self.sun = (4 * cos(2 * sun), 4 * sin(2 * sun))  # where shadows fall, px
        self.long_px = max(width, height)
        hills = noise(rng, self.size, min(self.long_px, 512) / 2.2, 5)
        if mix.relief > 0.5:
            hills = np.abs(hills) * np.float32(-1.8)  # ridges
        slope = np.clip((hills - _moved(hills, 2, 2)) * 3 * np.float32(mix.relief), -0.5, 0.4)
        self.shade = 1 + 0.07 * noise(rng, self.size, 18, 4) + 0.05 * hills + slope
        self.wet = np.zeros((height, width), bool)
        first, second = (np.array(c, np.float32) for c in GROUNDS[mix.ground])
        share = np.clip(0.5 + 0.4 * noise(rng, self.size, min(self.long_px, 512) / 3, 5), 0, 1)[..., None]
        self.rgb = first + (second - first) * share

    def turn(self, u: float, v: float) -> tuple[float, float]:
        """Pixel (x, y) of a point in the frame of the scene's streets and fields, whose origin is the centre."""
        c, s = cos(self.angle), sin(self.angle)
        return self.size[0] / 2 + u * c - v * s, self.size[1] / 2 + u * s + v * c

    def rectangle(self, u: float, v: float, length: float, breadth: float) -> Points:
        """Corners of a rectangle with its middle at (u, v), along the streets."""
        a, b = length / 2, breadth / 2
        return [self.turn(u + p * a, v + q * b) for p, q in ((-1, -1), (1, -1), (1, 1), (-1, 1))]

    def inside(self, x: float, y: float, margin: float = 4) -> bool:
        return margin <= x < self.size[0] - margin and margin <= y < self.size[1] - margin

    def fields(self) -> None:
        """Parcels, each with its crop and the direction of its rows."""
        if not self.mix.parcel_px:
            return
        rng, (width, height) = self.rng, self.size
        reach = hypot(width, height) / 2 * 1.05
        least = max(self.mix.parcel_px * self.scale, reach / 6)  # at most 250 parcels
        parcels = _split(rng, (-reach, -reach, reach, reach), least)[:250]
        label = Image.new("L", self.size)
        pen = ImageDraw.Draw(label)
        for i, (u0, v0, u1, v1) in enumerate(parcels):
            if rng.random() < 0.92:
                corners = ((u0 + 2, v0 + 2), (u1 - 2, v0 + 2), (u1 - 2, v1 - 2), (u0 + 2, v1 - 2))
                pen.polygon([self.turn(u, v) for u, v in corners], fill=i + 1)
        index = np.asarray(label)
        crop = np.array(CROPS, np.float32)[rng.integers(len(CROPS), size=256)]
        crop *= rng.uniform(0.75, 1.2, (256, 1)).astype(np.float32)
        crop += rng.uniform(-10, 10, (256, 3)).astype(np.float32)
        turned = self.angle + rng.integers(2, size=256) * pi / 2
        step = 2 * pi / (rng.uniform(5, 14, 256) * self.scale * (1.4 if self.mix.dotted else 1))
        fx, fy = (np.cos(turned) * step).astype(np.float32), (np.sin(turned) * step).astype(np.float32)
        depth = rng.uniform(0.03, 0.16, 256).astype(np.float32) * (2.2 if self.mix.dotted else 1)
        depth[0] = 0
        x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
        rows = np.sin(fx[index] * x + fy[index] * y)
        if self.mix.dotted:
            rows *= np.sin(fx[index] * y - fy[index] * x)
        self.shade += depth[index] * rows
        self.rgb = np.where((index > 0)[..., None], crop[index], self.rgb)

    def trees(self) -> None:
        """Woods where a noise is high, as crowns lit from one side, with the shadow of their edge."""
        if not self.mix.trees_share:
            return
        high = noise(self.rng, self.size, 130 * self.scale, 6)
        share = np.clip(self.mix.trees_share * self.rng.uniform(0.6, 1.4), 0, 0.8)
        wood = high > np.quantile(high[::8, ::8], 1 - share)
        crowns = noise(self.rng, self.size, 9 * self.scale, 2)
        dx, dy = (round(s / 2) for s in self.sun)
        lit = np.clip(crowns - _moved(crowns, dx, dy), -1.2, 1.2)
        fallen = _moved(wood, 2 * dx, 2 * dy) & ~wood
        self.shade[fallen] *= 0.68
        leaf = np.array((58, 82, 46), np.float32) + self.rng.uniform(-14, 14, 3).astype(np.float32)
        self.rgb[wood] = leaf
        self.shade[wood] *= (1 + 0.28 * lit + 0.12 * crowns)[wood]

    def water(self) -> None:
        """A river, a lake or the sea, with its shore."""
        if not self.mix.water:
            return
        depth = self._depth()
        shore = (depth > -0.12) & (depth <= 0)
        self.rgb[shore] = np.array((188, 172, 136), np.float32)
        self.wet = depth > 0
        deep = np.array((36, 62, 84), np.float32) + self.rng.uniform(-8, 22, 3).astype(np.float32)
        shallow = np.array((92, 124, 122), np.float32)
        share = np.clip(depth[self.wet] * 1.6, 0, 1)[:, None]
        self.rgb[self.wet] = shallow + (deep - shallow) * share
        swell = noise(self.rng, self.size, 40, 5)
        self.shade[self.wet] = (1 + 0.07 * swell)[self.wet]

    def _depth(self) -> Floats:
        """(H, W): over 0 in the water."""
        rng, (width, height) = self.rng, self.size
        rough = noise(rng, self.size, min(self.long_px, 700) / 3, 6)
        if self.mix.water == "lake":
            return (rough - np.float32(rng.uniform(0.1, 0.7))) * np.float32(0.7)
        c, s = cos(self.angle), sin(self.angle)
        x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
        u, v = (x - width / 2) * c + (y - height / 2) * s, (y - height / 2) * c - (x - width / 2) * s
        reach = np.float32(self.long_px)
        if self.mix.water == "coast":
            ragged = 0.08 if self.mix.block_px else 0.2
            return (v / reach * 2 + np.float32(rng.uniform(-0.3, 0.3)) + ragged * rough).astype(np.float32)
        bends, phase, swing = rng.uniform(2, 6), rng.uniform(0, 2 * pi), rng.uniform(0.05, 0.14)
        middle = np.sin(u / reach * bends + phase) * swing * reach + rng.uniform(-0.2, 0.2) * reach
        half = rng.uniform(0.05, 0.1) * min(self.long_px, 900)
        return (1 - np.abs(v - middle) / half + 0.12 * rough).astype(np.float32)


def _moved(array: Any, dx: int, dy: int) -> Any:
    """An (H, W) array moved by a few px; what comes in repeats the edge."""
    height, width = array.shape
    return array[np.clip(np.arange(height) - dy, 0, height - 1)][:, np.clip(np.arange(width) - dx, 0, width - 1)]


def _split(
    rng: np.random.Generator, area: tuple[float, float, float, float], least: float
) -> list[tuple[float, float, float, float]]:
    """An area cut across its longer side, again and again, into parts of about `least` px."""
    u0, v0, u1, v1 = area
    wide = u1 - u0 >= v1 - v0
    if max(u1 - u0, v1 - v0) < least * rng.uniform(1.2, 2.2):
        return [area]
    share = rng.uniform(0.35, 0.65)
    if wide:
        middle = u0 + (u1 - u0) * share
        return _split(rng, (u0, v0, middle, v1), least) + _split(rng, (middle, v0, u1, v1), least)
    middle = v0 + (v1 - v0) * share
    return _split(rng, (u0, v0, u1, middle), least) + _split(rng, (u0, middle, u1, v1), least)
