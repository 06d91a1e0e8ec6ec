"""How good segmentations of ImageNet-S are: all that evaluates them, in one place.

metrics = Metrics(50)
for pred, gt in masks:  # (H, W) ids
    metrics.update(pred, gt)
metrics.compute()["mIoU"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..disk import ahead
from ..errors import RecipeError, SourceError
from .predictions import Truth, pairs, read_prediction, truth_of, validate, write_prediction
from .scores import LEVELS, Metrics, as_ids, ids_of, match

__all__ = ["Metrics", "evaluate", "match", "read_prediction", "truth_of", "validate", "write_prediction"]
CLASSES = {"50": 50, "300": 300, "919": 919}
Say = Callable[[str], None]
Mask = NDArray[Any]
T = TypeVar("T")


def evaluate(
    pred: str | Path,
    gt: str | Path,
    variant: str,
    matched: bool = False,
    embeddings: str | Path | None = None,
    split: str = "validation",
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Scores of the predictions in a folder, as `Metrics.compute` gives them.

    pred: PNGs (R + 256 G) or .npy of ids, by the name of their image. gt: shards, or a folder of masks. matched: first
    find which class each predicted one stands for; it is in the scores as `match`. embeddings: make the predictions,
    by distance matching. Beside the scores, `images`, and `classes`: how many each mean is over. SourceError names the
    files that are missing, or of another size.
    """
    if str(variant) not in CLASSES:
        raise RecipeError(f"variant: {variant}: one of {', '.join(CLASSES)}")
    count, pred = CLASSES[str(variant)], Path(pred)
    truth = truth_of(gt, split, str(variant))
    if embeddings is not None:
        from .distance import SEMI, predict_all

        predict_all(Path(embeddings), truth_of(gt, SEMI, str(variant)), truth, split, pred, say)
    files = pairs(pred, truth, say)
    table: dict[int, int] = {}
    if matched:
        there = _each(files, truth, lambda mask, true: ids_of(mask, true, count))
        table = match([one.tolist() for one, _ in there], [other.tolist() for _, other in there], count)
    metrics = Metrics(count)
    _each(files, truth, lambda mask, true: metrics.update(renamed(mask, table), true))
    more = {"match": {str(one): other for one, other in table.items()}} if table else {}
    return {**metrics.compute(), "images": metrics.images, "classes": metrics.present(), **more}


def _each(files: Mapping[str, Path], truth: Truth, use: Callable[[Mask, Mask], T]) -> list[T]:
    """What a function makes of the predicted and true ids of each image; SourceError names the file that is wrong."""

    def read(stem: str) -> tuple[Path, Mask, Mask]:
        return files[stem], read_prediction(files[stem]), truth.read(stem)

    made = []
    for path, mask, true in ahead(read, files):
        try:
            made.append(use(as_ids(mask, "the prediction"), true))
        except SourceError as exc:
            raise SourceError(f"{path}: {exc}") from None
    return made


def renamed(mask: Mask, table: Mapping[int, int]) -> Mask:
    """A mask whose predicted ids are the classes that they stand for; others stay."""
    if not table:
        return mask
    known = np.arange(LEVELS, dtype=np.uint16)
    known[[*table]] = [*table.values()]
    return known[mask]
