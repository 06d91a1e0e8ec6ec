"""Window arithmetic: what a grid covers, and where random windows fall."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datakit.sample import Window
from datakit.windows import crops_per_area, grid, overlap_share, scattered, starts

LAWS = ("uniform", "log_uniform")


@st.composite
def asked(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Width, height, size_px and gap_px."""
    size = draw(st.integers(1, 40))
    return draw(st.integers(1, 150)), draw(st.integers(1, 150)), size, draw(st.integers(0, size - 1))


@given(asked())
def test_a_grid_covers_every_pixel_with_windows_of_one_size_that_lie_inside(given_: tuple[int, int, int, int]) -> None:
    width, height, size, gap = given_
    windows = grid(width, height, size, gap)
    covered = np.zeros((height, width), bool)
    for w in windows:
        assert (w.width, w.height) == (min(size, width), min(size, height))
        assert w.left >= 0
        assert w.top >= 0
        assert w.left + w.width <= width
        assert w.top + w.height <= height
        covered[w.top : w.top + w.height, w.left : w.left + w.width] = True
    assert covered.all()
    assert len(set(windows)) == len(windows)
    assert windows == sorted(windows, key=lambda w: (w.top, w.left))


@given(asked())
def test_the_last_window_alone_is_moved_back(given_: tuple[int, int, int, int]) -> None:
    width, _, size, gap = given_
    lefts = starts(width, size, gap)
    steps = np.diff(lefts)
    assert lefts[0] == 0
    assert lefts[-1] == max(width - size, 0)
    assert (steps[:-1] == size - gap).all()
    assert (steps > 0).all()
    assert (steps <= size - gap).all()
    assert lefts == sorted({w.left for w in grid(width, 1, size, gap)})


@given(asked())
def test_an_even_grid_begins_at_even_pixels_and_covers_all_but_an_odd_last_row(
    given_: tuple[int, int, int, int],
) -> None:
    width, height, size, gap = given_
    size += size % 2
    windows = grid(width, height, size, gap, even=True)
    covered = np.zeros((height, width), bool)
    for w in windows:
        assert not any(n % 2 for n in w)
        assert min(w.width, w.height) > 0
        covered[w.top : w.top + w.height, w.left : w.left + w.width] = True
    assert covered[: height - height % 2, : width - width % 2].all()
    assert len(set(windows)) == len(windows)
    assert all(w.left + w.width <= width and w.top + w.height <= height for w in windows)


def test_grids_by_hand() -> None:
    assert starts(1000, 512) == [0, 488]
    assert starts(1024, 512) == [0, 512]
    assert starts(1200, 512, 100) == [0, 412, 688]
    assert starts(100, 512) == [0]
    assert grid(700, 300, 512) == [Window(0, 0, 512, 300), Window(188, 0, 512, 300)]
    assert grid(5, 4, 4, 0, even=True) == [Window(0, 0, 4, 4)]
    assert grid(1, 9, 2, 0, even=True) == []


@pytest.mark.parametrize(("size", "gap", "even"), [(0, 0, False), (-4, 0, False), (8, 8, False), (8, -1, False)])
def test_a_grid_that_would_not_move_on_is_refused(size: int, gap: int, even: bool) -> None:
    with pytest.raises(ValueError, match=r"size_px .* gap_px"):
        grid(100, 100, size, gap, even)


def test_an_even_grid_of_odd_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="must be even"):
        grid(100, 100, 7, 0, even=True)


@st.composite
def scatter(draw: st.DrawFn) -> tuple[int, tuple[int, int], tuple[int, int], str, int, float]:
    low = draw(st.integers(1, 200))
    sides = (low, draw(st.integers(low, 300)))
    size = (draw(st.integers(1, 500)), draw(st.integers(1, 500)))
    cap = draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
    return draw(st.integers(0, 2**32)), size, sides, draw(st.sampled_from(LAWS)), draw(st.integers(0, 30)), cap


@given(scatter())
def test_random_windows_lie_inside_and_overlap_no_more_than_asked(
    given_: tuple[int, tuple[int, int], tuple[int, int], str, int, float],
) -> None:
    seed, size, sides, law, crops, cap = given_
    windows = scattered(np.random.default_rng(seed), size, sides, law, crops, cap)
    assert windows == scattered(np.random.default_rng(seed), size, sides, law, crops, cap)
    assert len(windows) <= crops
    assert len(windows) >= 1 or not crops
    assert windows == sorted(windows, key=lambda w: (w.top, w.left, w.height))
    low, high = (min(side, *size) for side in sides)
    for w in windows:
        assert w.width == w.height
        assert low <= w.width <= high
        assert w.left >= 0
        assert w.top >= 0
        assert w.left + w.width <= size[0]
        assert w.top + w.height <= size[1]
    for one, other in combinations(windows, 2):
        canvas = np.zeros((size[1], size[0]), np.uint8)
        for w in (one, other):
            canvas[w.top : w.top + w.height, w.left : w.left + w.width] += 1
        shared = np.count_nonzero(canvas == 2) / min(one.width, other.width) ** 2
        assert shared == overlap_share(one, [other]) <= cap
    assert len(set(windows)) == len(windows)  # two equal ones would be one record twice


def test_seeds_give_different_windows() -> None:
    first, second = (
        scattered(np.random.default_rng(seed), (2000, 1500), (64, 512), "log_uniform", 20, 0.25) for seed in (0, 1)
    )
    assert first != second


@pytest.mark.parametrize("law", LAWS)
def test_sides_follow_the_law(law: str) -> None:
    low, high, count, bins = 64, 1024, 4000, 16
    windows = scattered(np.random.default_rng(7), (4096, 4096), (low, high), law, count, 1.0)
    sides = np.array([w.width for w in windows], float)

    def misfit(place: np.ndarray) -> float:  # chi-square of values that should be even over 0..1
        found = np.histogram(place, bins, (0, 1))[0]
        return float(((found - count / bins) ** 2).sum() / (count / bins))

    even = {"uniform": (sides - low) / (high - low), "log_uniform": np.log(sides / low) / math.log(high / low)}
    assert misfit(even.pop(law)) < 40  # 15 degrees of freedom: above 40 once in 2,000 seeds
    assert misfit(even.popitem()[1]) > 1000
    lefts = np.array([w.left / (4096 - w.width) for w in windows])
    assert misfit(lefts) < 40


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("size", "sides"), [((6000, 4000), (64, 1024)), ((900, 3000), (256, 2048)), ((500, 500), (9, 9))]
)
def test_crops_per_area_have_the_area_of_the_image(law: str, size: tuple[int, int], sides: tuple[int, int]) -> None:
    crops = crops_per_area(*size, sides, law)
    rng = np.random.default_rng(0)
    drawn = [w for _ in range(4000 // crops + 1) for w in scattered(rng, size, sides, law, crops, 1.0)]
    mean_area = np.mean([w.width * w.height for w in drawn])
    assert crops * mean_area == pytest.approx(size[0] * size[1], rel=0.06, abs=mean_area)


def test_crops_per_area_is_at_least_one() -> None:
    assert crops_per_area(10, 20, (64, 1024), "log_uniform") == 2
    assert crops_per_area(10, 10, (64, 1024), "uniform") == 1
    assert crops_per_area(1, 1, (64, 64), "uniform") == 1
