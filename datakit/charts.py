"""Charts of a report, as SVG that takes its colours and its font from the page: light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .survey import GRID, Measure, Places

INK, KEPT, GONE, LINE = "#010203", "#010204", "#010205", "#010206"  # stand for what the page says
OF_PAGE = {INK: "currentColor", KEPT: "var(--kept)", GONE: "var(--gone)", LINE: "var(--line)"}
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "datakit",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
}
ACCENT = (0.16, 0.47, 0.84)  # of the map's cells, which are a picture: seen on white and on black


def histogram(
    measure: Measure,
    kept: NDArray[np.int64],
    gone: NDArray[np.int64],
    thresholds: Sequence[tuple[str, float, bool]],
) -> str:
    """The distribution of a measured value, of what was kept and what was left out, with the thresholds of rules.

    kept, gone: (BINS,) counts. thresholds: reason, value, whether what is below goes.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(4.2, 2.1), layout="constrained")
        axes = figure.add_subplot()
        edges = measure.edges()
        most = float(max(kept.max(), gone.max()))
        axes.stairs(kept, edges, fill=True, color=KEPT, linewidth=0)
        axes.stairs(gone, edges, color=GONE, linewidth=1.3)  # no stack: on a logarithmic axis it would lie
        if measure.log:
            axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1.0, linscale=0.5)
        axes.set_ylim(0, max(most * 3, 1.0))
        low, high = _span(edges, kept + gone, [value for _, value, _ in thresholds], measure.log)
        axes.set_xlim(low, high)
        for n, (reason, value, below) in enumerate(thresholds):
            axes.axvline(value, color=LINE, linewidth=1.2)
            middle = (low * high) ** 0.5 if measure.log else (low + high) / 2
            side: dict[str, Any] = {"ha": "left", "va": "top", "xytext": (3, 0)}
            side |= {"ha": "right", "xytext": (-3, 0)} if value > middle else {}
            where: dict[str, Any] = {"xy": (value, 1.0 - 0.1 * n), "xycoords": ("data", "axes fraction")}
            said = f"{reason} {'<' if below else '>'} {value:g}"
            axes.annotate(said, **where, **side, textcoords="offset points", color=LINE)
        _plain(axes)
        return _svg(figure, f"{measure.title}: {int(kept.sum()):,} kept, {int(gone.sum()):,} left out")


def _span(edges: NDArray[np.float64], counts: NDArray[np.int64], also: list[float], log: bool) -> tuple[float, float]:
    """What of the axis to show: the bins that hold anything, and the thresholds."""
    some = np.flatnonzero(counts)
    ends = [*(edges[[some[0], some[-1] + 1]] if len(some) else edges[[0, -1]]), *also]
    low, high = float(min(ends)), float(max(ends))
    if log:
        return max(low, edges[0]) / 1.3, high * 1.3
    pad = 0.05 * (high - low or 1.0)
    return low - pad, high + pad


def footprints(places: Places) -> str:
    """A map of footprints, in degrees: outlines, or, of many, how many there are in each cell."""
    with matplotlib.rc_context(SETTINGS):
        west, south, east, north = places.box
        middle = np.cos(np.radians((south + north) / 2))
        shape = float(np.clip((north - south) / max((east - west) * middle, 1e-9), 0.3, 1.2))
        figure = Figure(figsize=(5.4, 5.4 * shape), layout="constrained")
        axes = figure.add_subplot()
        if len(places.outlines):
            for turn in (0, 360, -360):  # over the date line both ends show
                moved = places.outlines + np.array([turn, 0])
                lies_in = (moved[..., 0].max(axis=1) >= west) & (moved[..., 0].min(axis=1) <= east)
                axes.add_collection(
                    PolyCollection(moved[lies_in], facecolor=KEPT, edgecolor=KEPT, alpha=0.35, linewidth=0.7)
                )
        else:
            axes.imshow(_cells(places.cells), extent=(west, east, south, north), aspect="auto", interpolation="nearest")
        axes.set_xlim(west, east)
        axes.set_ylim(south, north)
        axes.grid(True, color=INK, alpha=0.15, linewidth=0.5)
        axes.set_xlabel("longitude, degrees")
        axes.set_ylabel("latitude, degrees")
        axes.ticklabel_format(useOffset=False)
        _plain(axes)
        count = max(len(places.outlines), int(places.cells.sum()))
        return _svg(figure, f"{count:,} footprints, {west:.4g} to {east:.4g} E, {south:.4g} to {north:.4g} N")


def _cells(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Counts (H, W) as one colour, (H, W, 4), more of it where there is more, by the logarithm."""
    out = np.zeros((GRID[1], GRID[0], 4))
    out[..., :3] = ACCENT
    most = max(int(counts.max()), 1)
    out[..., 3] = np.where(counts > 0, 0.35 + 0.65 * np.log1p(counts) / np.log1p(most), 0.0)
    return out


def _plain(axes: Any) -> None:
    """Without a frame and a background."""
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _svg(figure: Figure, said: str) -> str:
    """A figure as an SVG element for a page. said: what it shows, for those who do not see it."""
    figure.patch.set_alpha(0)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r' id="(?:\w+_\d+)"', "", text)  # numbered, the same in every figure
    text = re.sub(r"font: [^;\"]*", "", text)
    for stands, is_said in OF_PAGE.items():
        text = text.replace(stands, is_said)
    head, rest = text.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    said = said.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'{head} role="img" aria-label="{said}">{rest}'
