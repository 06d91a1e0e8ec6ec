"""Aerial scenes drawn on the spot: land with roads, roofs and their shadows, vehicles, tanks and ships.

They stand in for imagery where none may be shipped. Each is drawn from its own generator, and differs from every other
one at the scale of the whole image as at that of a tile: near-duplicate detection has nothing to find in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, hypot, pi, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from .land import KINDS, Colour, Land, Points

DARKEST, BRIGHTEST = 26, 228  # no valid pixel can be taken for nodata 0, or for a black or white collar

ROOFS: tuple[Colour, ...] = (
    (172, 92, 70), (150, 80, 62), (122, 118, 116), (190, 186, 180), (98, 92, 92), (138, 108, 88), (112, 132, 156),
    (206, 200, 190), (84, 88, 96),
)  # fmt: skip
CARS: tuple[Colour, ...] = ((224, 224, 220), (186, 40, 36), (40, 70, 160), (36, 36, 40), (216, 190, 60))
HULLS: tuple[Colour, ...] = ((206, 206, 202), (164, 60, 50), (214, 208, 190), (184, 110, 60))


@dataclass(frozen=True)
class Box:
    """A drawn object: its class and its four corners (x, y) in px, clockwise."""

    label: str
    corners: Points


@dataclass
class Scene:
    """A drawn image: (H, W, 3) uint8 in 26..228, its objects, and where its roofs are, (H, W) bool."""

    pixels: NDArray[np.uint8]
    boxes: list[Box]
    roofs: NDArray[np.bool_]


def draw(rng: np.random.Generator, kind: str, width: int, height: int) -> Scene:
    """A scene of a kind in KINDS. Equal generators give equal pixels."""
    land = Land(rng, KINDS[kind], width, height)
    land.fields()
    land.trees()
    land.water()
    works = _Works(land)
    works.roads()
    works.town()
    works.afloat()
    grain = rng.standard_normal((height, width), dtype=np.float32) * 2.2
    rgb = np.asarray(works.image.filter(ImageFilter.GaussianBlur(0.6)), np.float32)  # polygons have hard edges
    gray = rgb.mean(2, keepdims=True)
    vivid, contrast = rng.uniform(0.55, 0.9), rng.uniform(0.8, 1.1)
    haze = 110 + rng.uniform(-6, 16) + rng.uniform(-4, 7, 3).astype(np.float32)
    rgb = (gray + (rgb - gray) * np.float32(vivid) - 110) * np.float32(contrast) + haze + grain[..., None]
    pixels = np.clip(rgb, DARKEST, BRIGHTEST).astype(np.uint8)
    return Scene(pixels, works.boxes, np.asarray(works.roofs) > 0)


class _Works:
    """What people built on the land: drawn with a pen, object by object."""

    def __init__(self, land: Land) -> None:
        self.land, self.rng, self.scale = land, land.rng, land.scale
        self.image = Image.fromarray(np.clip(land.rgb * land.shade[..., None], 0, 255).astype(np.uint8))
        self.roofs = Image.new("L", land.size)
        self.pen, self.mask = ImageDraw.Draw(self.image, "RGBA"), ImageDraw.Draw(self.roofs)
        self.taken = Image.new("L", land.size)  # by vehicles
        self.boxes: list[Box] = []

    def on_land(self, points: Points) -> bool:
        """Whether all of the points lie in the image, and on land."""
        return all(self.land.inside(x, y) and not self.land.wet[int(y), int(x)] for x, y in points)

    def roads(self) -> None:
        """Country roads that bend."""
        (width, height), rng = self.land.size, self.rng
        for _ in range(self.land.mix.roads):
            a, b, along = (*rng.uniform(0, 1, 2), rng.random() < 0.5)
            x0, y0, x1, y1 = (
                (-20, a * height, width + 20, b * height) if along else (a * width, -20, b * width, height + 20)
            )
            t = np.linspace(0, 1, 40)
            bend = np.sin(t * rng.uniform(2, 7) + rng.uniform(0, 6)) * rng.uniform(0.02, 0.1)
            path = [
                (x0 + (x1 - x0) * p - (y1 - y0) * q, y0 + (y1 - y0) * p + (x1 - x0) * q)
                for p, q in zip(t, bend, strict=True)
            ]
            self.street(path, rng.uniform(7, 12) * self.scale)

    def street(self, path: Points, width_px: float) -> None:
        """Asphalt with a verge and a dashed middle line."""
        self.pen.line(path, fill=(168, 158, 138), width=round(width_px * 1.5), joint="curve")
        self.pen.line(path, fill=(104, 103, 104), width=round(width_px), joint="curve")
        for (x0, y0), (x1, y1) in zip(path[::2], path[1::2], strict=False):
            self.pen.line([(x0, y0), ((x0 + x1) / 2, (y0 + y1) / 2)], fill=(196, 194, 186), width=1)

    def town(self) -> None:
        """Streets at right angles; between them roofs, car parks and tanks."""
        mix, rng = self.land.mix, self.rng
        if not mix.block_px:
            return
        reach = hypot(*self.land.size) / 2
        cuts = [self._cuts(reach, mix.block_px * self.scale * k) for k in (1.0, float(rng.uniform(0.7, 1.5)))]
        street_px = rng.uniform(9, 15) * self.scale
        passing: list[tuple[Points, int]] = []
        for axis, at in [(0, c) for c in cuts[0]] + [(1, c) for c in cuts[1]]:
            line = [(at, t) if axis == 0 else (t, at) for t in np.arange(-reach, reach, 18 * self.scale)]
            path = [p for p in (self.land.turn(u, v) for u, v in line) if self.on_land([p])]
            if len(path) > 2:
                self.street(path, street_px)
            passing.append(([p for p in line if rng.random() < 0.16], axis))
        for u0, u1 in zip(cuts[0], cuts[0][1:], strict=False):
            for v0, v1 in zip(cuts[1], cuts[1][1:], strict=False):
                if self.on_land([self.land.turn((u0 + u1) / 2, (v0 + v1) / 2)]):
                    self._block((u0 + street_px, v0 + street_px, u1 - street_px, v1 - street_px))
        for spots, axis in passing:  # last: nothing is drawn over what has a box
            self._traffic(spots, axis, street_px)

    def _cuts(self, reach: float, step: float) -> list[float]:
        """Where streets cross an axis."""
        steps = self.rng.uniform(0.7, 1.4, int(3 * reach / step) + 1) * step
        return [float(c) for c in np.cumsum(steps) - reach * 1.1 if c < reach]

    def _block(self, area: tuple[float, float, float, float]) -> None:
        """One block of a town."""
        rng, mix, use = self.rng, self.land.mix, self.rng.random()
        u0, v0, u1, v1 = area
        for u, v in zip(rng.uniform(u0, u1, 40), rng.uniform(v0, v1, 40), strict=True):
            if rng.random() < (0.9 if use < 0.1 else 0.25):  # the first are parks
                self._tree(*self.land.turn(u, v))
        if use < 0.1:
            return
        if use < 0.22 or (mix.tanks and use < 0.4):
            self.pen.polygon(self.land.rectangle((u0 + u1) / 2, (v0 + v1) / 2, u1 - u0, v1 - v0), fill=(118, 117, 116))
        least, most = (r * self.scale for r in mix.roof_px)
        if use < 0.22:
            spots = [
                (u, v)
                for u in np.arange(u0 + 9, u1 - 9, 19 * self.scale)
                for v in np.arange(v0 + 6, v1 - 6, 8.5 * self.scale)
            ]
            self._traffic([s for s in spots if rng.random() < 0.6], 1, 0)
            return
        step = least * 1.9 if mix.tanks and use < 0.4 else most * 1.25
        for u in np.arange(u0 + step / 2, u1 - step / 4, step):
            for v in np.arange(v0 + step / 2, v1 - step / 4, step):
                if mix.tanks and use < 0.4:
                    self._tank(u, v, least * rng.uniform(0.35, 0.6))
                elif rng.random() < 0.85:
                    jitter = rng.uniform(-0.08, 0.08, 2) * step
                    self._roof(u + jitter[0], v + jitter[1], *rng.uniform(least, most, 2))

    def _roof(self, u: float, v: float, length: float, breadth: float) -> None:
        """A house: its shadow, and a gabled or a flat roof."""
        rng, corners = self.rng, self.land.rectangle(u, v, length, breadth)
        dx, dy = (s * rng.uniform(0.8, 1.8) * self.scale for s in self.land.sun)
        if not self.on_land(corners):
            return
        for share in (0.5, 1):
            self.pen.polygon([(x + dx * share, y + dy * share) for x, y in corners], fill=(20, 24, 30, 110))
        tint = int(rng.integers(-12, 13))
        r, g, b = (c + tint for c in ROOFS[int(rng.integers(len(ROOFS)))])
        self.pen.polygon(corners, fill=(r, g, b), outline=(r - 30, g - 30, b - 30))
        self.mask.polygon(corners, fill=255)
        if length < 50 * self.scale:
            far = self.land.rectangle(u, v - breadth / 4, length, breadth / 2)
            self.pen.polygon(far, fill=(int(r * 0.78), int(g * 0.78), int(b * 0.78)))
        else:
            for du, dv in rng.uniform(-0.35, 0.35, (4, 2)):
                vent = self.land.rectangle(u + du * length, v + dv * breadth, 6 * self.scale, 5 * self.scale)
                self.pen.polygon(vent, fill=(r - 40, g - 40, b - 40))

    def _tank(self, u: float, v: float, radius: float) -> None:
        """A storage tank."""
        x, y = self.land.turn(u, v)
        around = [
            (x - radius, y - radius),
            (x + radius, y - radius),
            (x + radius, y + radius),
            (x - radius, y + radius),
        ]
        if not self.on_land(around):
            return
        dx, dy = (s * 1.2 for s in self.land.sun)
        self.pen.ellipse((x - radius + dx, y - radius + dy, x + radius + dx, y + radius + dy), fill=(20, 24, 30, 150))
        self.pen.ellipse(
            (x - radius, y - radius, x + radius, y + radius), fill=(214, 213, 208), outline=(160, 160, 156)
        )
        self.boxes.append(Box("storage-tank", around))

    def _tree(self, x: float, y: float) -> None:
        """One tree and its shadow."""
        if not self.on_land([(x, y)]):
            return
        radius, tint = self.rng.uniform(3, 6.5) * self.scale, int(self.rng.integers(-14, 15))
        for aside, r, paint in (
            (1.0, radius, (20, 24, 30, 120)),
            (0, radius, (54, 78 + tint, 44)),
            (-0.4, radius * 0.5, (84, 110 + tint, 62)),
        ):
            cx, cy = x + self.land.sun[0] * aside, y + self.land.sun[1] * aside
            self.pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=paint)

    def _traffic(self, spots: Points, axis: int, street_px: float) -> None:
        """Cars and lorries at points of the frame, along an axis, on either side of a street."""
        for u, v in spots:
            large = street_px > 0 and self.rng.random() < 0.12
            length, breadth = (24.0, 7.5) if large else (12.0, 5.5)
            aside = (street_px / 4) * (1 if self.rng.random() < 0.5 else -1)
            size = (length * self.scale, breadth * self.scale)
            place = (u + aside, v, size[1], size[0]) if axis == 0 else (u, v + aside, *size)
            corners = self.land.rectangle(*place)
            if self.on_land(corners) and not any(self.taken.getpixel((int(x), int(y))) for x, y in corners):
                ImageDraw.Draw(self.taken).polygon(corners, fill=255)
                paint = CARS[int(self.rng.integers(len(CARS)))]
                self.pen.polygon(
                    [(x + self.land.sun[0] / 2, y + self.land.sun[1] / 2) for x, y in corners], fill=(20, 24, 30, 120)
                )
                self.pen.polygon(corners, fill=paint)
                self.boxes.append(Box("large-vehicle" if large else "small-vehicle", corners))

    def afloat(self) -> None:
        """Ships and their wakes."""
        land, rng = self.land, self.rng
        taken: Points = []
        for _ in range(land.mix.ships * 6):
            if len(taken) == land.mix.ships:
                return
            x, y = rng.random(2) * land.size
            if all(hypot(x - p, y - q) > 100 * self.scale for p, q in taken) and self._ship(x, y):
                taken.append((x, y))

    def _ship(self, x: float, y: float) -> bool:
        """Whether there was water for a ship at (x, y) px, of any heading."""
        turned, length = self.rng.uniform(0, 2 * pi), self.rng.uniform(30, 80) * self.scale
        c, s = cos(turned), sin(turned)

        def shape(*points: tuple[float, float]) -> Points:  # from lengths ahead, and half breadths to the right
            return [(x + length * (a * c - 0.13 * b * s), y + length * (a * s + 0.13 * b * c)) for a, b in points]

        corners = shape((-0.5, -1), (0.5, -1), (0.5, 1), (-0.5, 1))
        if not all(self.land.inside(*p) and self.land.wet[int(p[1]), int(p[0])] for p in corners):
            return False
        hull = HULLS[int(self.rng.integers(len(HULLS)))]
        self.pen.polygon(shape((-0.5, 0), (-1.7, -1), (-1.7, 1)), fill=(206, 214, 214, 80))
        self.pen.polygon(shape((-0.5, -1), (0.3, -1), (0.5, 0), (0.3, 1), (-0.5, 1)), fill=hull)
        self.pen.polygon(shape((-0.4, -0.6), (-0.2, -0.6), (-0.2, 0.6), (-0.4, 0.6)), fill=(224, 224, 222))
        self.boxes.append(Box("ship", corners))
        return True
