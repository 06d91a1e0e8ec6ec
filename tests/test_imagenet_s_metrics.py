"""Scores of ImageNet-S, against the published formulas restated pixel by pixel."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datakit.errors import SourceError
from datakit.evaluate.imagenet_s import Metrics, match
from datakit.evaluate.scores import boundary_reach_px

Mask = NDArray[np.int64]
NAMES = ["Acc", "mIoU", "mBIoU", "S", "MS", "ML", "L", "BS", "BMS", "BML", "BL", "FMeasure"]


def eroded(inside: NDArray[np.bool_], times: int) -> NDArray[np.bool_]:
    """A 3 x 3 erosion, so many times; all around the image is outside."""
    for _ in range(times):
        wide = np.pad(inside, 1)
        height, width = inside.shape
        inside = np.ones_like(inside)
        for dy, dx in itertools.product(range(3), repeat=2):
            inside &= wide[dy : dy + height, dx : dx + width]
    return inside


def boundaries(ids: Mask) -> Mask:
    """Id + 1 on the inner boundary of each class, 0 elsewhere."""
    times = max(round(0.03 * math.hypot(*ids.shape)), 1)
    out = np.zeros_like(ids)
    for v in np.unique(ids):
        out[(ids == v) & ~eroded(ids == v, times)] = v + 1
    return out


class Slow:
    """The official formulas, one class after the other."""

    def __init__(self, classes: int) -> None:
        self.classes, self.n, self.right, self.f = classes, 0, 0.0, 0.0
        self.sums = np.zeros((2, 5, 3, classes + 1))

    def update(self, pred: Mask, gt: Mask) -> None:
        valid = gt != 1000
        pairs = [(pred[valid], gt[valid]), (boundaries(pred)[valid] - 1, boundaries(gt)[valid] - 1)]
        pred, gt = pairs[0]
        groups: list[set[int]] = [{*gt.tolist()}, set(), set(), set(), set()]
        for c in sorted({*gt.tolist()} - {0}):
            percent = math.ceil(100 * int((gt == c).sum()) / len(gt))
            groups[1 if percent <= 5 else 2 if percent <= 25 else 3 if percent <= 50 else 4].add(c)
        for group, members in enumerate(groups):
            if not members:
                continue
            looked_at = np.isin(gt, [*members, 0])
            for kind, (p, g) in enumerate(pairs):
                for c in range(self.classes + 1):
                    a, b = (p == c) & looked_at, (g == c) & looked_at
                    self.sums[kind, group, :, c] += a.sum(), b.sum(), (a & b).sum()
        areas = [int((pred == c).sum()) for c in range(1, self.classes + 1)]
        largest = 1 + int(np.argmax(areas))
        self.right += bool((gt == largest).any() and (pred == largest).any())
        tp = float(((pred > 0) & (gt > 0)).sum())
        precision, recall = tp / ((pred > 0).sum() + 1e-20), tp / ((gt > 0).sum() + 1e-20)
        self.f += 1.3 * precision * recall / (0.3 * precision + recall + 1e-20)
        self.n += 1

    def compute(self) -> dict[str, Any]:
        t, p, tp = (self.sums[:, :, n] for n in range(3))
        iou = tp / (t + p - tp + 1e-10) * 100
        scores = {"Acc": self.right / self.n * 100, "mIoU": iou[0, 0].mean(), "mBIoU": iou[1, 0].mean()}
        for kind, letter in enumerate(("", "B")):
            for n, size in enumerate(("S", "MS", "ML", "L"), 1):
                there = p[kind, n] > 0
                scores[letter + size] = iou[kind, n][there].mean() if there.any() else math.nan
        return {**scores, "FMeasure": self.f / self.n * 100, "IoUs": iou[0, 0]}


def blobs(rng: np.random.Generator, classes: int, ignored: bool) -> Mask:
    """Rectangles of classes over each other."""
    height, width = rng.integers(1, 60, 2)
    ids = np.zeros((height, width), np.int64)
    for _ in range(rng.integers(0, 6)):
        top, left = rng.integers(0, height), rng.integers(0, width)
        ids[top : top + rng.integers(1, 40), left : left + rng.integers(1, 40)] = rng.integers(0, classes + 1)
    if ignored:
        ids[rng.integers(0, height) :, : rng.integers(0, width) + 1] = 1000
    return ids


def guess(rng: np.random.Generator, gt: Mask, classes: int) -> Mask:
    """A prediction: nothing, noise, the truth moved, or the truth with wrong classes."""
    kind = rng.integers(0, 4)
    pred = np.where(gt == 1000, rng.integers(0, classes + 1), gt)
    if kind == 0:
        return np.zeros_like(gt)
    if kind == 1:
        return rng.integers(0, classes + 1, gt.shape)
    if kind == 2:
        return np.roll(pred, rng.integers(-4, 5, 2), (0, 1))
    return np.where(pred > 0, rng.integers(1, classes + 1), pred)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 6))
def test_scores_are_the_official_ones(seed: int, classes: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    ours, slow = Metrics(classes), Slow(classes)
    for _ in range(images):
        gt = blobs(rng, min(classes, 7), rng.random() < 0.6)
        pred = guess(rng, gt, min(classes, 7))
        ours.update(pred.astype(np.uint16), gt.astype(rng.choice([np.int32, np.uint16, np.int64])))
        slow.update(pred, gt)
    mine, theirs = ours.compute(), slow.compute()
    assert list(mine) == [*NAMES, "IoUs"]
    for name in NAMES:
        assert mine[name] == pytest.approx(theirs[name], abs=1e-6, nan_ok=True), name
    assert np.allclose(mine["IoUs"], theirs["IoUs"], atol=1e-6)
    assert len(mine["IoUs"]) == classes + 1


def test_a_perfect_prediction_has_all() -> None:
    gt = np.zeros((100, 100), np.int64)
    gt[:20, :20], gt[40:80, 40:80], gt[90:, :] = 1, 2, 1000
    metrics = Metrics(2)
    metrics.update(np.where(gt == 1000, 2, gt), gt)
    scores = metrics.compute()
    assert [scores[n] for n in ("Acc", "mIoU", "mBIoU", "S", "MS", "FMeasure")] == pytest.approx([100] * 6, abs=2.0)
    assert scores["mIoU"] == 100
    assert math.isnan(scores["L"])
    assert metrics.present() == {"all": 3, "S": 2, "MS": 2, "ML": 0, "L": 0}


def test_a_share_of_just_five_percent_is_small() -> None:
    for extra, name in ((0, "S"), (1, "MS")):
        gt = np.zeros((20, 100), np.int64)
        gt.reshape(-1)[: 100 + extra] = 1
        metrics = Metrics(1)
        metrics.update(gt, gt)
        assert metrics.present() == {"all": 2, "S": 0, "MS": 0, "ML": 0, "L": 0} | {name: 2}


def test_no_order_of_images_changes_the_scores() -> None:
    rng = np.random.default_rng(3)
    gts = [blobs(rng, 9, True) for _ in range(8)]
    pairs = [(guess(rng, gt, 9), gt) for gt in gts]
    scores = []
    for order in (pairs, pairs[::-1]):
        metrics = Metrics(9)
        for pred, gt in order:
            metrics.update(pred, gt)
        scores.append(metrics.compute())
    assert np.allclose([scores[0][n] for n in NAMES], [scores[1][n] for n in NAMES], rtol=1e-12, equal_nan=True)


def test_an_image_that_is_all_ignored_counts_as_an_image() -> None:
    metrics, slow = Metrics(3), Slow(3)
    for gt in (np.full((4, 5), 1000), np.ones((4, 5), np.int64)):
        metrics.update(np.ones((4, 5), np.int64), gt)
    slow.update(np.ones((4, 5), np.int64), np.ones((4, 5), np.int64))
    assert metrics.compute()["Acc"] == slow.compute()["Acc"] / 2 == 50
    assert metrics.compute()["mIoU"] == pytest.approx(slow.compute()["mIoU"]) == 25


@pytest.mark.parametrize(
    ("pred", "gt", "words"),
    [
        (np.zeros((3, 4), int), np.zeros((4, 3), int), "the prediction is 4 x 3 px, its ground truth 3 x 4"),
        (np.full((3, 4), 51), np.zeros((3, 4), int), "the prediction: id 51: 0 to 50, or 1000"),
        (np.zeros((3, 4), int), np.full((3, 4), 300), "the ground truth: id 300"),
        (np.full((3, 4), -1), np.zeros((3, 4), int), "the prediction: ids from -1 to -1"),
        (np.zeros((3, 4)), np.zeros((3, 4), int), "float64"),
        (np.zeros((3, 4, 3), int), np.zeros((3, 4), int), "shape"),
    ],
)
def test_what_is_no_mask_of_this_variant_is_an_error(pred: Any, gt: Any, words: str) -> None:
    metrics = Metrics(50)
    with pytest.raises(SourceError, match=words):
        metrics.update(pred, gt)
    with pytest.raises(SourceError, match="no image was scored"):
        metrics.compute()


def test_the_reach_is_three_percent_of_the_diagonal() -> None:
    assert boundary_reach_px(400, 500) == 19
    assert boundary_reach_px(5, 5) == 1


def counted(preds: list[set[int]], gts: list[set[int]], table: dict[int, int]) -> int:
    """Images in which a predicted class is, and the class that it stands for too."""
    return sum(p in preds[n] and g in gts[n] for p, g in table.items() if p for n in range(len(gts)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_a_match_is_the_best_of_all_permutations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, images = 5, 12
    masks = [(rng.integers(0, classes + 1, (2, 2)), rng.integers(0, classes + 1, (2, 2))) for _ in range(images)]
    for _, gt in masks:
        gt[rng.random((2, 2)) < 0.2] = 1000
    preds = [{*pred[gt != 1000].tolist()} for pred, gt in masks]
    gts = [{*gt[gt != 1000].tolist()} for _, gt in masks]
    table = match([pred for pred, _ in masks], [gt for _, gt in masks], classes)
    assert table[0] == 0
    assert sorted(table) == sorted(table.values()) == list(range(classes + 1))
    options = itertools.permutations(range(1, classes + 1))
    best = max(counted(preds, gts, dict(enumerate(option, 1))) for option in options)
    assert counted(preds, gts, table) == best == counted(preds, gts, match(preds, gts, classes))


def test_classes_under_other_names_are_found() -> None:
    rng = np.random.default_rng(0)
    renamed = {0: 0} | {n + 1: int(c) + 1 for n, c in enumerate(rng.permutation(919))}
    gts = [{0, *rng.integers(1, 920, rng.integers(1, 4)).tolist()} for _ in range(12_419)]
    found = match([{renamed[c] for c in gt} for gt in gts], gts, 919)
    assert {name: c for c, name in renamed.items()} == found


def test_a_match_wants_one_prediction_an_image() -> None:
    with pytest.raises(SourceError, match="1 images have both, then one list ends"):
        match([{1}, {2}], [{1}], 3)
