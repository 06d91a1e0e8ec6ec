"""Boxes through windows: laws, a slow exact re-statement, real labels."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datakit.boxes import Box, by_window, dumps, loads, rectangle, through, turned
from datakit.errors import ShardError
from datakit.manifest import DotaText
from datakit.sample import Sample, Window
from datakit.sources.labels import LabelReader

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "rs"

# px with at most 6 decimals, as label files have them
coordinates = st.integers(-30_000_000, 230_000_000).map(lambda v: v / 1_000_000) | st.integers(-30, 230).map(float)
sizes = st.integers(1, 200)
windows = st.builds(Window, st.integers(-20, 180), st.integers(-20, 180), sizes, sizes)


@st.composite
def upright(draw) -> Box:
    return Box("plane", rectangle(*(draw(coordinates) for _ in range(4))), kind="box")


@st.composite
def stars(draw, spread: float = 0.8) -> Box:
    """Polygons that do not cross themselves: corners in turn about a centre; concave where `spread` is large."""
    corners = draw(st.integers(3, 9))
    cx, cy, reach = draw(coordinates), draw(coordinates), draw(st.floats(2, 150))
    points: list[float] = []
    for i in range(corners):
        radius = reach * (1 - spread * draw(st.floats(0, 1)))
        angle = 2 * math.pi * i / corners
        points += (round(cx + radius * math.cos(angle), 6), round(cy + radius * math.sin(angle), 6))
    return Box("lake", tuple(points), kind="polygon")


def convex() -> st.SearchStrategy[Box]:
    sides = st.floats(1, 150)
    quads = st.builds(turned, coordinates, coordinates, sides, sides, st.floats(0, 7))
    return upright() | stars(spread=0.0) | quads.map(lambda points: Box("ship", points, kind="quad"))


anything = convex() | stars()


def area_px2(points: tuple[float, ...]) -> float:
    xs, ys = points[::2], points[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def exact_area_px2(points: tuple[float, ...], window: Window) -> Fraction:
    """Area inside a window, another way: rows between the heights where anything changes, each a sum of spans."""
    ring = list(zip(map(Fraction, points[::2]), map(Fraction, points[1::2]), strict=True))
    sides = [(ring[i - 1], ring[i]) for i in range(len(ring)) if ring[i - 1][1] != ring[i][1]]
    left, top, right, bottom = window.left, window.top, window.left + window.width, window.top + window.height

    def x_at(side, y):
        (ax, ay), (bx, by) = side
        return ax + (bx - ax) * (y - ay) / (by - ay)

    heights = {Fraction(top), Fraction(bottom)} | {y for _, y in ring}
    for (ax, ay), (bx, by) in sides:
        heights |= {ay + (by - ay) * (x - ax) / (bx - ax) for x in (left, right) if (x - ax) * (x - bx) < 0}
    rows = sorted(y for y in heights if top <= y <= bottom)
    total = Fraction(0)
    for low, high in pairwise(rows):
        middle = (low + high) / 2
        xs = sorted(x_at(s, middle) for s in sides if min(s[0][1], s[1][1]) < middle < max(s[0][1], s[1][1]))
        for start, end in zip(xs[::2], xs[1::2], strict=True):
            total += max(Fraction(0), min(end, right) - max(start, left)) * (high - low)
    return total


@given(anything, windows)
def test_iof_is_the_exact_share_of_the_original_area(box, window):
    whole = area_px2(box.points)
    if whole < 1e-2:
        return
    found = through([box], window, 0.5)
    share = float(exact_area_px2(box.points, window)) / whole
    assert (found[0].iof if found else 0.0) == pytest.approx(share, abs=1e-4 / whole + 1e-8)
    for cut in found:
        assert cut.ignore == (cut.iof < 0.5)
        assert area_px2(cut.clipped) == pytest.approx(share * whole, abs=2e-3)


@given(anything, windows)
def test_points_shift_and_clipped_stays_inside(box, window):
    for cut in through([box], window):
        shift = (window.left, window.top) * (len(box.points) // 2)
        assert cut.points == pytest.approx([v - s for v, s in zip(box.points, shift, strict=True)], abs=1e-6)
        assert all(0 <= x <= window.width for x in cut.clipped[::2])
        assert all(0 <= y <= window.height for y in cut.clipped[1::2])
        assert replace(cut, points=(), clipped=(), iof=1.0, ignore=False) == replace(box, points=())
        if box.kind == "box":
            assert len(cut.clipped) == 8
            assert len(set(cut.clipped[::2])) <= 2
            assert len(set(cut.clipped[1::2])) <= 2


@given(convex(), st.integers(7, 90), st.integers(7, 90))
def test_a_partition_of_the_plane_shares_out_a_box(box, width, height):
    grid = [Window(x, y, width, height) for x in range(-200, 400, width) for y in range(-200, 400, height)]
    parts = [cut for cuts in by_window([box], grid) for cut in cuts]
    assert sum(area_px2(cut.clipped) for cut in parts) == pytest.approx(area_px2(box.points), abs=1e-2)
    if area_px2(box.points) > 1e-2:
        assert sum(cut.iof for cut in parts) == pytest.approx(1.0, abs=1e-3)


@given(st.lists(anything, max_size=5), windows, st.data(), st.sampled_from([0.0, 0.4, 0.7, 1.0]))
def test_a_window_of_a_window_is_a_window(boxes, outer, data, min_iof):
    left, top = data.draw(st.integers(0, outer.width - 1)), data.draw(st.integers(0, outer.height - 1))
    width = data.draw(st.integers(1, outer.width - left))
    inner = Window(left, top, width, data.draw(st.integers(1, outer.height - top)))
    direct = Window(outer.left + left, outer.top + top, inner.width, inner.height)
    assert through(through(boxes, outer, min_iof), inner, min_iof) == through(boxes, direct, min_iof)


@given(st.lists(anything, max_size=8), st.lists(windows, max_size=5))
def test_by_window_is_through_for_each(boxes, frames):
    assert by_window(boxes, frames, 0.6) == [through(boxes, frame, 0.6) for frame in frames]


@given(st.lists(anything, max_size=4), windows)
def test_json_gives_the_same_boxes_back(boxes, window):
    boxes += through(boxes, window)
    text = dumps(boxes)
    assert loads(text) == boxes
    for row in json.loads(text, parse_int=lambda digits: pytest.fail(f"{digits} is not written as a float")):
        assert list(row) == ["category", "points", "difficult", "ignore", "iof", "clipped", "kind"]


def test_json_text_is_fixed():
    text = '[{"category":"ship","points":[0.0,0.0,2.0,0.0,2.0,1.0,0.0,1.0],"difficult":true,'
    text += '"ignore":false,"iof":1.0,"clipped":[],"kind":"box"}]'
    assert dumps([Box("ship", (0, 0, 2, 0, 2, 1, 0, 1), difficult=True, iof=1, kind="box")]) == text
    assert dumps([]) == "[]"


@pytest.mark.parametrize("text", ["{", "[1]", '[{"category":"ship"}]', "null", '[{"points":3}]'])
def test_damaged_json_is_refused(text):
    with pytest.raises(ShardError, match="not a list of boxes"):
        loads(text)


def test_two_corners_are_no_box():
    with pytest.raises(ShardError, match="3 or more corners"):
        loads(dumps([Box("ship", (0, 0, 1, 1))]))


def test_the_limit_itself_is_kept():
    box = Box("ship", rectangle(-3, 0, 7, 10), kind="box")
    assert [(b.iof, b.ignore) for b in through([box], Window(0, 0, 50, 50))] == [(0.7, False)]
    assert [(b.iof, b.ignore) for b in through([box], Window(0, 0, 50, 50), 0.71)] == [(0.7, True)]
    assert through([box], Window(7, 0, 50, 50)) == []  # they only touch


def test_a_box_keeps_its_corners_in_their_order():
    for corners in ((0, 0, 9, 9), (9, 9, 0, 0), (9, 0, 0, 9)):
        (cut,) = through([Box("ship", rectangle(*corners), kind="box")], Window(2, 3, 4, 20))
        x1, y1, x2, y2 = (min(max(c - o, 0), m) for c, o, m in zip(corners, (2, 3) * 2, (4, 20) * 2, strict=True))
        assert cut.clipped == rectangle(x1, y1, x2, y2)


def test_shifting_leaves_no_float_dust():
    box = Box("ship", (123.4, 100.1, 130.7, 100.1, 130.7, 110.3))
    shifted = (23.4, 0.1, 30.7, 0.1, 30.7, 10.3)
    assert through([box], Window(100, 100, 50, 50))[0].points == shifted
    assert through(through([box], Window(30, 40, 150, 150)), Window(70, 60, 50, 50))[0].points == shifted


def test_what_was_ignored_stays_so():
    assert through([Box("crowd", rectangle(1, 1, 2, 2), ignore=True, kind="box")], Window(0, 0, 9, 9))[0].ignore


@pytest.mark.parametrize("kind", ["box", "polygon"])
@pytest.mark.parametrize("points", [(5, 5) * 4, (0, 5, 10, 5, 10, 5, 0, 5), (5, 0, 5, 0, 5, 10, 5, 10)])
def test_a_box_without_area_is_where_its_centre_is(kind, points):
    grid = [Window(x, y, 5, 5) for x in (0, 5) for y in (0, 5)]
    found = by_window([Box("mast", points, kind=kind)], grid)
    assert [len(boxes) for boxes in found] == [0, 0, 0, 1]
    assert found[3][0].iof == 1.0
    assert len(found[3][0].clipped) >= 6


def test_pieces_of_a_concave_polygon_share_one_outline():
    comb = Box("pier", (0, 0, 10, 0, 10, 10, 7, 10, 7, 2, 3, 2, 3, 10, 0, 10), kind="polygon")
    (cut,) = through([comb], Window(0, 5, 10, 10))
    assert cut.iof == pytest.approx(30 / 68)
    assert area_px2(cut.clipped) == 30.0


def test_every_real_box_is_whole_in_a_window_of_a_grid_that_overlaps_enough():
    if not (REAL / "labelTxt" / "P0706.txt").exists():
        pytest.skip("the sample labels are not beside this checkout")
    read = LabelReader((DotaText(path="labelTxt/{stem}.txt"),), lambda name: (REAL / name).read_bytes())
    boxes = read(Sample(name="P0706.png")).boxes
    assert len(boxes) == 536
    spans = [max(box.points[axis::2]) - min(box.points[axis::2]) for box in boxes for axis in (0, 1)]
    size = 2 * math.ceil(max(spans))
    step = size - math.ceil(max(spans))
    grid = [Window(x, y, size, size) for x in range(0, 1200, step) for y in range(0, 1200, step)]
    whole = {(w.left + b.points[0], w.top + b.points[1], w.left + b.points[2], w.top + b.points[3])
             for w, found in zip(grid, by_window(boxes, grid), strict=True) for b in found if b.iof == 1.0}  # fmt: skip
    assert whole == {box.points[:4] for box in boxes}
