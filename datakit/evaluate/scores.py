"""Scores of ImageNet-S segmentations, as the official evaluator prints them, and the matching of unnamed classes.

Definitions: Gao et al., Large-scale Unsupervised Semantic Segmentation (arXiv 2106.03149), and the toolbox
LUSSeg/ImageNet-S (evaluation/evaluator.py, metric.py, data/data.py). Ids of a mask: 0 other, 1..C classes, 1000
ignored.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ..errors import SourceError
from ..kernels import jit

IGNORE = 1000
BOUNDARY_SHARE = 0.03  # of the image's diagonal: how far from a class's edge its boundary reaches
SIZES = ("S", "MS", "ML", "L")  # objects of at most 5, 25, 50 and of more percent of the valid pixels
SIZE_PERCENT = (5, 25, 50)
BETA_SQUARED = 0.3
LEVELS = 1 << 16  # of a mask
GT, PRED, BOTH = range(3)  # whose pixels of a class are counted


@jit
def _boundary(ids, reach):  # type: ignore[no-untyped-def]
    """Whether another class, or the outside, is within `reach` px along both axes: (H, W) uint16 -> (H, W) uint8.

    A pixel is inside its class where the (2 reach + 1)^2 window around it has one id: a run of that many pixels in each
    of that many rows. Both runs are counted as they end, so each pixel is looked at once whatever the reach.
    """
    height, width = ids.shape
    edge = np.ones((height, width), np.uint8)
    span = 2 * reach + 1
    rows = np.zeros(width, np.int32)  # up to here, of windows of one id across
    for y in range(height):
        row, above, run = ids[y], ids[max(y - 1, 0)], 0
        for x in range(width):
            run = run + 1 if x > 0 and row[x] == row[x - 1] else 1
            middle = x - reach
            if middle < reach:
                continue
            if run < span:
                rows[middle] = 0
            else:
                rows[middle] = rows[middle] + 1 if row[middle] == above[middle] else 1
                if rows[middle] >= span:
                    edge[y - reach, middle] = 0
    return edge


@jit
def _joint(pred, gt, pred_edge, gt_edge):  # type: ignore[no-untyped-def]
    """Ids that are there, and how many valid pixels have each pair of them, by (not on, on the boundary) of both.

    Neighbours are mostly alike, so they are counted by runs. -> gt ids (G,), predicted (P,), counts (G, P, 2, 2) int64
    """
    height, width = gt.shape
    of_gt, of_pred = np.full(LEVELS, -1, np.int32), np.full(LEVELS, -1, np.int32)
    for y in range(height):
        last_gt, last_pred = np.int64(-1), np.int64(-1)
        for x in range(width):
            if gt[y, x] != IGNORE and (gt[y, x] != last_gt or pred[y, x] != last_pred):
                last_gt, last_pred = np.int64(gt[y, x]), np.int64(pred[y, x])
                of_gt[last_gt], of_pred[last_pred] = 0, 0
    gt_ids, pred_ids = np.flatnonzero(of_gt == 0), np.flatnonzero(of_pred == 0)
    for n in range(len(gt_ids)):
        of_gt[gt_ids[n]] = n
    for n in range(len(pred_ids)):
        of_pred[pred_ids[n]] = n
    counts = np.zeros((len(gt_ids), len(pred_ids), 2, 2), np.int64)
    for y in range(height):
        begin = 0
        for x in range(1, width + 1):
            if (
                x < width
                and gt[y, x] == gt[y, begin]
                and pred[y, x] == pred[y, begin]
                and gt_edge[y, x] == gt_edge[y, begin]
                and pred_edge[y, x] == pred_edge[y, begin]
            ):
                continue
            if gt[y, begin] != IGNORE:
                g, p = of_gt[gt[y, begin]], of_pred[pred[y, begin]]
                counts[g, p, gt_edge[y, begin], pred_edge[y, begin]] += x - begin
            begin = x
    return gt_ids, pred_ids, counts


@jit
def _add_up(totals, gt_ids, pred_ids, joint, sizes):  # type: ignore[no-untyped-def]
    """Add the pixels of an image to the totals, (2, 5, 3, C + 1): of all, and of each size that it has objects of.

    joint: as `_joint` gives it; sizes: 1..4 of each gt id, 0 of other, which is looked at beside objects of every size.
    """
    there = np.zeros(totals.shape[1], np.bool_)
    there[0] = True
    for size in sizes:
        there[size] = True
    for g in range(len(gt_ids)):
        for group in range(totals.shape[1]):
            if not there[group] or (group > 0 and gt_ids[g] != 0 and sizes[g] != group):
                continue
            for p in range(len(pred_ids)):
                is_class, same = pred_ids[p] < totals.shape[3], gt_ids[g] == pred_ids[p]
                on_gt, on_pred = joint[g, p, 1].sum(), joint[g, p, :, 1].sum()
                of = joint[g, p].sum(), on_gt, joint[g, p].sum(), on_pred, joint[g, p].sum(), joint[g, p, 1, 1]
                for kind in range(2):
                    totals[kind, group, GT, gt_ids[g]] += of[kind]
                    if is_class:
                        totals[kind, group, PRED, pred_ids[p]] += of[2 + kind]
                    if same:
                        totals[kind, group, BOTH, gt_ids[g]] += of[4 + kind]


def boundary_reach_px(height: int, width: int) -> int:
    """How far boundaries reach into a class, for images of this size."""
    return max(round(BOUNDARY_SHARE * float(np.sqrt(height**2 + width**2))), 1)


class Metrics:
    """Scores over a set of images, counted in whole pixels, so that no order of images changes them.

    num_classes: C of the variant (50, 300 or 919), without the class 0 of all other things.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.images = 0
        self.counts = np.zeros((2, 1 + len(SIZES), 3, num_classes + 1), np.int64)  # area or boundary; all or by size
        self.right = 0  # images whose largest predicted class is there
        self.f_scores: list[float] = []

    def update(self, pred: NDArray[Any], gt: NDArray[Any]) -> None:
        """Count one image: (H, W) ids of any integer dtype, both at the image's own size.

        Pixels that `gt` ignores (1000) count nowhere. A predicted 1000 belongs to no class, as in the official code.
        SourceError if the sizes differ or an id is none of this variant.
        """
        pred, gt = as_pair(pred, gt)
        reach = boundary_reach_px(*gt.shape)
        gt_ids, pred_ids, joint = _joint(pred, gt, _boundary(pred, reach), _boundary(gt, reach))
        check_ids(gt_ids, self.num_classes, "the ground truth")
        check_ids(pred_ids, self.num_classes, "the prediction")
        self.images += 1
        area = joint.sum((2, 3))
        _add_up(self.counts, gt_ids, pred_ids, joint, size_classes(gt_ids, area.sum(1)))
        self._image(gt_ids, pred_ids, area)

    def _image(self, gt_ids: NDArray[np.int64], pred_ids: NDArray[np.int64], area: NDArray[np.int64]) -> None:
        """Add what is counted by image: whether its largest predicted class is there, and how well things stand out."""
        of_pred = area.sum(0)
        named = (pred_ids > 0) & (pred_ids <= self.num_classes)
        if named.any():
            largest = pred_ids[named][np.argmax(of_pred[named])]
            self.right += int(largest in gt_ids)
        things, found = area[gt_ids > 0].sum(), area[:, pred_ids > 0].sum()
        hit = area[gt_ids > 0][:, pred_ids > 0].sum()
        self.f_scores.append(f_measure(int(hit) / int(found), int(hit) / int(things)) if hit else 0.0)

    def compute(self) -> dict[str, Any]:
        """Scores in percent.

        Acc: images whose largest predicted class is in them. mIoU: mean over C + 1 classes, one that is nowhere counts
        as 0. S, MS, ML, L: mIoU of objects by size, over the classes that have such; NaN where none has. mBIoU, BS, …:
        the same, of boundaries. FMeasure: of all classes against other, beta^2 = 0.3, a mean over images. IoUs: C + 1.
        """
        if not self.images:
            raise SourceError("no image was scored: give predictions for the images of the ground truth")
        area, edge = (iou(kind) for kind in self.counts)
        scores: dict[str, Any] = {"Acc": 100 * self.right / self.images}
        scores |= {"mIoU": float(area[0].mean()), "mBIoU": float(edge[0].mean())}
        for prefix, kind, of in (("", 0, area), ("B", 1, edge)):
            for n, size in enumerate(SIZES, 1):
                there = self.counts[kind, n, GT] > 0
                scores[prefix + size] = float(of[n][there].mean()) if there.any() else float("nan")
        return {**scores, "FMeasure": 100 * sum(self.f_scores) / self.images, "IoUs": area[0].tolist()}

    def present(self) -> dict[str, int]:
        """How many classes, 0 among them, the means are over: C + 1 of all sizes together, fewer of each."""
        there = (self.counts[0, 1:, GT] > 0).sum(1)
        return {"all": self.num_classes + 1, **dict(zip(SIZES, there.tolist(), strict=True))}


def iou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union in percent, (…, 3, C + 1) -> (…, C + 1); 0 where a class is in neither."""
    gt, pred, both = (counts[..., n, :] for n in (GT, PRED, BOTH))
    shares: NDArray[np.float64] = 100.0 * both / np.maximum(gt + pred - both, 1)
    return shares


def f_measure(precision: float, recall: float) -> float:
    return (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)


def size_classes(ids: NDArray[np.int64], areas: NDArray[np.int64]) -> NDArray[np.int64]:
    """1..4 (S, MS, ML, L) for each class of an image, 0 for other: its share of valid pixels, in percent rounded up."""
    percent = -(-100 * areas // max(int(areas.sum()), 1))
    return np.where(ids == 0, 0, 1 + np.searchsorted(SIZE_PERCENT, percent))


def as_ids(ids: NDArray[Any], whose: str) -> NDArray[np.uint16]:
    """A mask as (H, W) uint16; SourceError unless it is one of whole numbers of 16 bits."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "bui":
        raise SourceError(f"{whose}: {ids.dtype} of shape {ids.shape}: give (H, W) integers")
    if ids.size and ids.dtype not in (np.bool_, np.uint8, np.uint16) and not 0 <= ids.min() <= ids.max() < LEVELS:
        raise SourceError(f"{whose}: ids from {ids.min()} to {ids.max()}: 0 to {LEVELS - 1} are stored")
    return np.ascontiguousarray(ids, np.uint16)


def check_ids(there: NDArray[np.int64], num_classes: int, whose: str) -> None:
    """SourceError if an id is none of the variant: not 0 to C, and not 1000."""
    wrong = there[(there > num_classes) & (there != IGNORE)]
    if len(wrong):
        raise SourceError(f"{whose}: id {wrong[0]}: 0 to {num_classes}, or {IGNORE}. Is it of another variant?")


def as_pair(pred: NDArray[Any], gt: NDArray[Any]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """A prediction and its ground truth, of one size; SourceError if they are not."""
    pred, gt = as_ids(pred, "the prediction"), as_ids(gt, "the ground truth")
    if pred.shape != gt.shape:
        raise SourceError(f"the prediction is {_size(pred)} px, its ground truth {_size(gt)}: write it at that size")
    return pred, gt


def _size(ids: NDArray[Any]) -> str:
    return f"{ids.shape[1]} x {ids.shape[0]}"


def match(preds: Iterable[Any], gts: Iterable[Any], num_classes: int) -> dict[int, int]:
    """Which class each predicted one stands for: {predicted: class}, one to one, with 0: 0.

    Maximises over all pairs the number of images that have both (Hungarian method). preds, gts: per image a mask
    (H, W), or just the ids in it; what is 1000 in a mask of `gts` is looked at in neither, 0 is matched to 0.
    """
    rows: tuple[list[NDArray[np.bool_]], list[NDArray[np.bool_]]] = ([], [])
    pairs = zip(preds, gts, strict=True)
    try:
        for pred, gt in pairs:
            for of, ids in zip(rows, ids_of(pred, gt, num_classes), strict=True):
                there = np.zeros(num_classes + 1, bool)
                there[ids] = True
                of.append(there)
    except ValueError as exc:
        raise SourceError(f"{len(rows[0])} images have both, then one list ends: give one of each ({exc})") from None
    if not rows[0]:
        return {n: n for n in range(num_classes + 1)}
    pred, gt = (np.array(of)[:, 1:].astype(np.float32) for of in rows)  # exact: counts stay below 2^24
    return {0: 0} | {int(p) + 1: int(g) + 1 for p, g in zip(*linear_sum_assignment(pred.T @ gt, True), strict=True)}


def ids_of(pred: Any, gt: Any, num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ids in a prediction and in its ground truth, without those that are no class."""
    if not isinstance(pred, np.ndarray) or not isinstance(gt, np.ndarray) or pred.ndim < 2:
        plain = (np.array(sorted({int(v) for v in ids} - {IGNORE}), np.int64) for ids in (pred, gt))
        return next(plain), next(plain)
    pred, gt = as_pair(pred, gt)
    both = np.zeros((2, LEVELS), bool)
    valid = gt != IGNORE
    both[0][pred[valid]] = True
    both[1][gt[valid]] = True
    found = np.flatnonzero(both[0]), np.flatnonzero(both[1])
    check_ids(found[1], num_classes, "the ground truth")
    check_ids(found[0], num_classes, "the prediction")
    return found[0][found[0] <= num_classes], found[1]
