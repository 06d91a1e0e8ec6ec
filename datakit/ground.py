"""Which tiles of different images show the same ground, pixel for pixel: by their places alone, no pixel is read.

Images are compared by mapping points, never by how their CRS is written. Those far apart are told apart by the balls
around them: as points of the unit sphere, footprints have neither a date line nor poles.

Tiles of reduced images (`slice.gsd_m`) are compared as what they were made of, in px of the source: their own are means
over areas, and two grids of means agree nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from . import place
from .footprints import on_sphere
from .image import WHOLE_PX
from .measure import Mask

PLACE = ("crs", "transform", "footprint", "scale")
NEEDS = ("source", "name", "image_width", "image_height", "window", *PLACE)  # columns of tiles
ALIGNED_PX = 0.1  # grids may be shifted by whole pixels within this; nearest-neighbour products are 0.5 px off
TOUCH_PX = 0.5  # images that share less of a pixel do not overlap, or less than half of one whose pixels are finer
SAME_SCALE = 0.01  # tiles of images that were reduced by more or by less show other detail
MARGIN = 1.1  # edges are straight in a projection, not on the sphere: they bow out of the ball around the corners
FAR = 0.5  # a ball of a larger radius (29 degrees) is taken for the whole sphere: corners say little about such images
AT_ONCE = 1 << 20  # pairs of images, or of tiles, that are looked at together
POINTS = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0.5, 0.5)])  # corners and centre

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Tiles:
    """Tiles that have a place, a row each; `row` is their place in the table that they were taken from."""

    row: Ints
    image: Ints  # numbers of images in order of (source, name)
    crs: list[str]
    transform: Floats  # (n, 6), of px of the source
    window: Ints  # (n, 4): left, top, width, height, in px of the source
    footprint: Floats  # (n, 4, 2): lon, lat of the corners
    scale: Floats

    @classmethod
    def of(cls, table: pa.Table) -> Tiles:
        """The tiles of a table with a CRS, a transform and a footprint; GCPs alone are too vague to tell pixels."""
        has = _long(table["transform"], 6) & _long(table["footprint"], 8) & (table["crs"].to_numpy() != "")
        rows = np.flatnonzero(has)
        placed = table.select(NEEDS).take(pa.array(rows)).combine_chunks()
        transform, footprint = _lists(placed["transform"], 6), _lists(placed["footprint"], 8)
        a, b, _, d, e, _ = transform.T
        sound = np.isfinite(transform).all(axis=1) & np.isfinite(footprint).all(axis=1) & (a * e - b * d != 0)
        window = np.zeros((len(rows), 4), np.int64)
        window[:, 2], window[:, 3] = placed["image_width"].to_numpy(), placed["image_height"].to_numpy()
        cut = _long(placed["window"], 4)
        window[cut] = _lists(placed["window"].filter(pa.array(cut)), 4)
        sound &= window[:, 2] * window[:, 3] <= WHOLE_PX  # of which a reduced tile is made: both of a pair are held
        scale = placed["scale"].to_numpy()
        crs = placed["crs"].filter(pa.array(sound)).to_pylist()
        fine, corners = of_source_px(transform, window, scale), footprint.reshape(-1, 4, 2)
        return cls(rows[sound], _images(placed)[sound], crs, fine[sound], window[sound], corners[sound], scale[sound])

    def by_image(self) -> tuple[Ints, Ints]:
        """Tiles sorted by image and window, top to bottom; where each image begins, and where the last one ends."""
        left, top, width, height = self.window.T
        order = np.lexsort((width, height, left, top, self.image))
        begins = np.flatnonzero(np.diff(self.image[order], prepend=-1))
        return order, np.append(begins, len(order))


def of_source_px(transform: Floats, window: Ints, scale: Floats) -> Floats:
    """Transforms of tiles, (n, 6), from their own px to px of the source; those at scale 1 stay as they are."""
    a, b, c, d, e, f = transform.T
    left, top = (window[:, :2] - np.floor(window[:, :2] / scale[:, None] + 0.5) * scale[:, None]).T  # exactly less
    a, b, d, e = a / scale, b / scale, d / scale, e / scale
    return np.stack([a, b, c + a * left + b * top, d, e, f + d * left + e * top], axis=1)


def _long(column: pa.ChunkedArray, length: int) -> Mask:
    """Which lists of a column have that many values."""
    has: Mask = np.asarray(pc.equal(pc.fill_null(pc.list_value_length(column), 0), length), dtype=bool)
    return has


def _lists(column: pa.ChunkedArray, length: int) -> NDArray[Any]:
    flat: NDArray[Any] = pc.list_flatten(column).to_numpy()
    return flat.reshape(-1, length)


def _images(table: pa.Table) -> Ints:
    """A number for each (source, name), in their order, whatever the order of rows."""
    both = pc.binary_join_element_wise(table["source"], table["name"], "\0").combine_chunks()
    names = both.dictionary_encode()
    rank = np.argsort(np.array(names.dictionary.to_pylist(), dtype=object), kind="stable").argsort()
    numbers: Ints = rank[names.indices.to_numpy()].astype(np.int64)
    return numbers


@dataclass(frozen=True)
class Overlaps:
    """Pairs of tiles that share pixels, a row each; the first tile is of the image that comes first by name."""

    first: Ints  # rows of the table
    second: Ints
    at_first: Ints  # (n, 2): where the shared part begins in the first tile, column and row
    at_second: Ints
    size: Ints  # (n, 2): its width and height, px
    shift: Ints  # (n, 2): what takes pixels of the first image to pixels of the second

    def __len__(self) -> int:
        return len(self.first)


def overlaps(table: pa.Table) -> tuple[Overlaps, int]:
    """All pairs of tiles that share pixels, and how many pairs of images overlap but are not aligned.

    Pairs are in order of images and windows. Tiles of one image are no pair.
    """
    tiles = Tiles.of(table)
    order, begins = tiles.by_image()
    images = Images.of(tiles, order, begins)
    looked = [aligned(images, near) for near in neighbours(images.centre, images.radius)]
    pairs, shifts = (np.concatenate([np.zeros((0, 2), np.int64), *(one[n] for one in looked)]) for n in (0, 1))
    by_name = np.lexsort(pairs.T[::-1])
    none, nothing = np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
    found: list[tuple[Ints, ...]] = [(none, none, nothing, nothing, nothing, nothing)]
    for (i, j), shift in zip(pairs[by_name].tolist(), shifts[by_name], strict=True):
        one, other = order[begins[i] : begins[i + 1]], order[begins[j] : begins[j + 1]]
        a, b, *rest = shared(tiles.window[one], tiles.window[other], shift)
        found.append((tiles.row[one[a]], tiles.row[other[b]], *rest, np.broadcast_to(shift, (len(a), 2))))
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    return Overlaps(*columns), sum(others for _, _, others in looked)


@dataclass(frozen=True)
class Images:
    """Images that have a place, a row each, as their tiles tell it."""

    crs: NDArray[np.object_]
    transform: Floats  # (n, 6)
    box: Ints  # (n, 4): left, top, right, bottom of all tiles, px
    centre: Floats  # (n, 3): of a ball that holds the footprints, on the unit sphere
    radius: Floats
    scale: Floats

    @classmethod
    def of(cls, tiles: Tiles, order: Ints, begins: Ints) -> Images:
        """What the tiles tell of each image; order and begins as `by_image` gives them."""
        start = begins[:-1]
        if not len(start):
            none = np.zeros((0, 6))
            return cls(np.zeros(0, object), none, np.zeros((0, 4), np.int64), none[:, :3], none[:, 0], none[:, 0])
        first, window = order[start], tiles.window[order]
        a, b, c, d, e, f = tiles.transform[first].T
        left, top = tiles.window[first, :2].T
        transform = np.stack([a, b, c - a * left - b * top, d, e, f - d * left - e * top], axis=1)
        low = np.minimum.reduceat(window[:, :2], start)
        high = np.maximum.reduceat(window[:, :2] + window[:, 2:], start)
        points = on_sphere(tiles.footprint[order])
        centre = np.add.reduceat(points.sum(axis=1), start)
        centre /= np.maximum(np.linalg.norm(centre, axis=1, keepdims=True), 1e-12)
        mine = np.repeat(centre, np.diff(begins), axis=0)
        apart = np.linalg.norm(points - mine[:, None], axis=2).max(axis=1)
        radius = np.maximum.reduceat(apart, start) * MARGIN + 1e-9
        radius[radius > FAR] = 2.0
        crs = np.array([tiles.crs[n] for n in first], dtype=object)
        return cls(crs, transform, np.concatenate([low, high], axis=1), centre, radius, tiles.scale[first])


def neighbours(centre: Floats, radius: Floats) -> Iterator[Ints]:
    """Pairs of balls that meet, the lower number first, (n, 2) at a time; each pair once, in no order.

    Balls are sorted into trees by radius, in powers of two, so that a large one does not make all others look far.
    """
    level = np.frexp(radius)[1]
    members = {int(n): np.flatnonzero(level == n) for n in np.unique(level)}
    trees = {n: cKDTree(centre[rows]) for n, rows in members.items()}
    for small in members:
        for large in (n for n in members if n >= small):
            step = max(AT_ONCE // len(members[large]), 1 << 10)
            for start in range(0, len(members[small]), step):
                some = members[small][start : start + step]
                within = 2.0**small + 2.0**large
                near = cKDTree(centre[some]).sparse_distance_matrix(trees[large], within, output_type="ndarray")
                i, j = some[near["i"]], members[large][near["j"]]
                meet = (near["v"] <= radius[i] + radius[j]) & ((i < j) | (small != large))
                yield np.stack([np.minimum(i, j)[meet], np.maximum(i, j)[meet]], axis=1)


def aligned(images: Images, pairs: Ints) -> tuple[Ints, Ints, int]:
    """Pairs of images whose pixels coincide, and whose scales do, (n, 2); their shifts; and how many others overlap.

    Corners and centre of the smaller one are mapped to pixels of the other: all must be off by the same whole pixels.
    """
    i, j = pairs.T
    swap = images.radius[i] > images.radius[j]
    small, large = np.where(swap, j, i), np.where(swap, i, j)
    low, high = images.box[small, :2], images.box[small, 2:]
    here = low[:, None] + POINTS * (high - low)[:, None]
    there = to_pixels(images, large, to_ground(images, small, large, here))
    off = there - here
    shift = np.round(off[:, 4])
    fits = (np.abs(off - shift[:, None]) <= ALIGNED_PX).all(axis=(1, 2))  # no NaN fits
    fits &= np.abs(images.scale[i] / images.scale[j] - 1) <= SAME_SCALE
    begin, end = np.fmin.reduce(there, axis=1), np.fmax.reduce(there, axis=1)
    common = np.fmin(end, images.box[large, 2:]) - np.fmax(begin, images.box[large, :2])
    meet = (common > np.minimum(TOUCH_PX, (end - begin) / 2)).all(axis=1)
    same = fits & meet
    shifts = np.where(swap[same, None], -shift[same], shift[same]).astype(np.int64)
    return pairs[same], shifts, int((meet & ~fits).sum())


def to_ground(images: Images, of: Ints, like: Ints, pixels: Floats) -> Floats:
    """Where pixels of images lie in the CRS of other images: (n, k, 2) -> (n, k, 2), NaN outside of its domain."""
    a, b, c, d, e, f = images.transform[of].T[:, :, None]
    x, y = pixels[:, :, 0], pixels[:, :, 1]
    ground: Floats = np.stack([a * x + b * y + c, d * x + e * y + f], axis=2)
    groups: dict[tuple[str, str], list[int]] = {}
    for n, names in enumerate(zip(images.crs[of], images.crs[like], strict=True)):
        groups.setdefault(names, []).append(n)
    for (source, target), rows in groups.items():
        points = place.mapped(source, target, ground[rows].reshape(-1, 2)).reshape(-1, pixels.shape[1], 2)
        turn = place.whole_turn(target)
        if turn:
            points[:, :, 0] = beside(points[:, :, 0], images, like[rows], turn)
        ground[rows] = points
    return ground


def beside(x: Floats, images: Images, like: Ints, turn: float) -> Floats:
    """Longitudes without a step at the date line, moved by whole turns to where each of the other images lies."""
    a, b, c = images.transform[like, :3].T
    left, top, right, bottom = images.box[like].T
    middle = a * (left + right) / 2 + b * (top + bottom) / 2 + c
    half_down = (1 - 1e-6) / turn  # an edge half a turn away stays where it is
    whole: Floats = x - turn * np.round((x - x[:, -1:]) * half_down)
    whole -= turn * np.round((whole[:, -1:] - middle[:, None]) * half_down)
    return whole


def to_pixels(images: Images, of: Ints, ground: Floats) -> Floats:
    """Pixels of images at points of their CRS: (n, k, 2) -> (n, k, 2)."""
    a, b, c, d, e, f = images.transform[of].T[:, :, None]
    x, y = ground[:, :, 0] - c, ground[:, :, 1] - f
    area = a * e - b * d
    pixels: Floats = np.stack([(e * x - b * y) / area, (a * y - d * x) / area], axis=2)
    return pixels


def shared(one: Ints, other: Ints, shift: Ints) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """Windows of an image and of another that share pixels: their numbers, where that begins in both, and its size.

    Windows are (n, 4): left, top, width, height; shift takes pixels of the first image to pixels of the second.
    """
    moved = np.concatenate([one[:, :2] + shift, one[:, 2:]], axis=1)
    ours, theirs = _meeting(moved, other), _meeting(other, moved)
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    step = max(AT_ONCE // max(len(theirs), 1), 1)
    for start in range(0, len(ours), step):
        a, b = moved[ours[start : start + step], None], other[None, theirs]
        sides = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
        m, n = np.nonzero((sides > 0).all(axis=2))
        found.append((ours[start + m], theirs[n]))
    a, b = (np.concatenate(numbers) for numbers in zip(*found, strict=True))
    begin = np.maximum(moved[a, :2], other[b, :2])
    end = np.minimum(moved[a, :2] + moved[a, 2:], other[b, :2] + other[b, 2:])
    return a, b, begin - moved[a, :2], begin - other[b, :2], end - begin


def _meeting(windows: Ints, others: Ints) -> Ints:
    """Numbers of the windows that reach into the box around others."""
    low, high = others[:, :2].min(axis=0), (others[:, :2] + others[:, 2:]).max(axis=0)
    return np.flatnonzero(((windows[:, :2] < high) & (windows[:, :2] + windows[:, 2:] > low)).all(axis=1))
