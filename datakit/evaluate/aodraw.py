"""Detections on AODRaw: COCO's average precision, over all and by condition, and the released metric as it counts.

A condition is the sorted set of an image's tags: each image is in exactly one. The category named `ignore` is no class:
its boxes are regions in which no detection of any class is held against a model. Bands of area are those of AODRaw's
configs: 64 and 160 px a side in slices, 128 and 320 px in images at a third.

The released metric (lzyhha/AODRaw-mmdetection, mmdet/evaluation/metrics/aodraw_metric.py) counts an image with one tag
twice in that tag, joins tags in the order of the file, knows nine names, and writes one number over another.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import ShardError, SourceError
from ..manifest import Manifest
from ..remote import Root, root_of

IGNORE = "ignore"
BANDS_PX = {"slices": (64, 160), "full": (64, 160), "downsampled": (128, 320)}  # of `areaType` normal and scale
MOST = (1, 10, 100)  # detections an image, of COCO
PUBLISHED_MOST = (100, 300, 1000)
PUBLISHED_TAGS = (
    "fog",
    "low_light",
    "normal_light",
    "indoor",
    "rain",
    "all",
    "low_light_rain",
    "low_light_fog",
    "rain_fog",
)
NMS_IOU = 0.5
UNTAGGED = "untagged"
Coco = dict[str, Any]
Scores = dict[str, float | None]  # None: nothing to find


def evaluate(
    dt: Path,
    gt: str | Path,
    split: str = "test",
    merge: bool = False,
    published: bool = False,
    nms_iou: float = NMS_IOU,
) -> dict[str, Any]:
    """Scores of detections, a COCO file of results, against a build's annotations (or a COCO file of one's own).

    merge: detections in slices are put together in the full frame, class by class, by NMS. published: the released
    metric, too, under that name. Gives all, conditions, tags: AP, AP50, AP75, APs, APm, APl in 0..1, and images.
    SourceError where `dt` is not of these annotations.
    """
    coco, view = truth_of(gt, split, merge)
    found = results(dt)
    if merge:
        slices, _ = truth_of(gt, split, False)
        found = merged(checked(found, slices, dt), slices, nms_iou)
    found = checked(found, coco, dt)
    bands = BANDS_PX[view]
    whole = Evaluation(coco, found, bands)
    whole.run()
    tags = {image["id"]: sorted(set(image.get("tag", []))) for image in coco["images"]}
    conditions: dict[str, list[Any]] = defaultdict(list)
    singles: dict[str, list[Any]] = defaultdict(list)
    for image, its in tags.items():
        conditions["_".join(its) or UNTAGGED].append(image)
        for tag in its:
            singles[tag].append(image)
    scores: dict[str, Any] = {
        "view": view,
        "all": whole.scores(tags),
        "conditions": {name: whole.scores(images) for name, images in sorted(conditions.items())},
        "tags": {name: whole.scores(images) for name, images in sorted(singles.items())},
        "classes": whole.classes(),
    }
    if published:
        scores["published"] = as_published(coco, found, bands)
    return scores


def truth_of(gt: str | Path, split: str, full: bool) -> tuple[Coco, str]:
    """Annotations, and the view that they are of. full: of the full frames of slices."""
    root = root_of(str(gt))
    if not isinstance(root, Path) or root.is_dir():
        manifest = Manifest.load(root)
        view = str(manifest.recipe.get("view") or "")
        if view not in BANDS_PX:
            raise SourceError(f"{gt}: not a set of camera RAW: build recipes/aodraw.yaml")
        if full and view != "slices":
            raise SourceError(f"{gt}: of view {view}: only slices are merged")
        kind = "full.coco.json" if full else "coco.json"
        return _read(root, f"{manifest.name}-{split}.{kind}", sorted(manifest.files)), "full" if full else view
    if full:
        raise SourceError(f"{gt}: to merge slices, give the folder of the build: it has the full frames' annotations")
    return json.loads(root.read_bytes()), "slices" if "slice_id" in root.read_text() else "downsampled"


def _read(root: Root, name: str, files: Iterable[str]) -> Coco:
    if name not in files:
        there = ", ".join(f for f in files if f.endswith("coco.json"))
        raise ShardError(f"{root}: no {name}; there are {there}: name another split with --split")
    coco: Coco = json.loads((root / name).read_bytes())
    return coco


def results(path: Path) -> list[dict[str, Any]]:
    """Detections of a COCO file of results: image_id, category_id, bbox [x, y, width, height], score."""
    try:
        plain = json.loads(path.read_bytes())
        return [
            {
                "image_id": one["image_id"],
                "category_id": int(one["category_id"]),
                "bbox": [float(v) for v in one["bbox"]],
                "score": float(one["score"]),
            }
            for one in plain
        ]
    except OSError as exc:
        raise SourceError(f"{path}: {exc.strerror}") from None
    except (ValueError, KeyError, TypeError) as exc:
        wanted = "a list of image_id, category_id, bbox [x, y, width, height], score"
        raise SourceError(f"{path}: expected {wanted}: {type(exc).__name__}: {exc}") from None


def checked(found: list[dict[str, Any]], coco: Coco, path: Path) -> list[dict[str, Any]]:
    """The detections; SourceError where some are of images or of categories that there are not."""
    images, categories = {i["id"] for i in coco["images"]}, {c["id"] for c in coco["categories"]}
    for name, known in (("image_id", images), ("category_id", categories)):
        wrong = sorted({one[name] for one in found} - known, key=str)
        if wrong:
            what = f"{len(wrong)} values of {name} are not in the annotations, {wrong[0]} first"
            raise SourceError(f"{path}: {what}: detections of another split, or of another view?")
    return found


class Evaluation:
    """COCO's evaluation with regions of all classes; `times`: how often an image counts."""

    def __init__(
        self,
        coco: Coco,
        found: list[dict[str, Any]],
        bands_px: tuple[int, int],
        most: tuple[int, int, int] = MOST,
        times: Callable[[Any], int] = lambda image: 1,
        first_id: int = 1,
    ) -> None:
        """first_id: of annotations. COCOeval takes a match with number 0 for none; published files begin with 0."""
        ignored = {c["id"] for c in coco["categories"] if c["name"] == IGNORE}
        notes = [{**note, "id": n + first_id} for n, note in enumerate(coco["annotations"])]
        self.regions = [{**n, "iscrowd": 1, "ignore": 1} for n in notes if n["category_id"] in ignored]
        plain = [note for note in notes if note["category_id"] not in ignored]
        self.names = {c["id"]: str(c["name"]) for c in coco["categories"] if c["id"] not in ignored}
        low, high = bands_px
        with contextlib.redirect_stdout(io.StringIO()):
            truth, made = COCO(), COCO()
            truth.dataset = {**coco, "annotations": [{"iscrowd": 0, **note} for note in plain]}
            truth.createIndex()
            detections = [self.detection(n, one) for n, one in enumerate(found, 1)]
            made.dataset = {**coco, "annotations": [one for one in detections if one["category_id"] not in ignored]}
            made.createIndex()
        self.coco_eval = _Repeated(truth, made, self.regions, times)
        params = self.coco_eval.params
        params.catIds, params.maxDets = sorted(self.names), list(most)
        params.areaRng = [[0, 1e10], [0, low**2], [low**2, high**2], [high**2, 1e10]]
        params.areaRngLbl = ["all", "small", "medium", "large"]

    @staticmethod
    def detection(number: int, one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "id": number, "area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0}

    def run(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco_eval.evaluate()

    def precision(self, images: Iterable[Any] | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Precision (IoU, recall, class, area, most) and recall (IoU, class, area, most) over some images."""
        part = copy.copy(self.coco_eval)
        if images is not None:
            wanted, ids = set(images), list(part.params.imgIds)
            part.params = copy.deepcopy(part.params)
            part.params.imgIds = [image for image in ids if image in wanted]
            part._paramsEval = copy.deepcopy(part.params)
            keep = [n for n, image in enumerate(ids) if image in wanted]
            rows = len(part.evalImgs) // max(len(ids), 1)
            part.evalImgs = [part.evalImgs[row * len(ids) + n] for row in range(rows) for n in keep]
        with contextlib.redirect_stdout(io.StringIO()):
            part.accumulate()
        return part.eval["precision"], part.eval["recall"]

    def scores(self, images: Iterable[Any]) -> dict[str, Any]:
        """AP and its kind over some images, and how many these are."""
        images = list(images)
        precision, _ = self.precision(images)
        return {**named(precision), "images": len(images)}

    def classes(self) -> Scores:
        """AP of each class by its name."""
        precision, _ = self.precision()
        return {name: mean(precision[:, :, n, 0, -1]) for n, (_, name) in enumerate(sorted(self.names.items()))}


class _Repeated(COCOeval):  # type: ignore[misc]
    """COCOeval in which some annotations are regions of every class, and images count more than once."""

    def __init__(self, truth: Any, made: Any, regions: list[dict[str, Any]], times: Callable[[Any], int]) -> None:
        super().__init__(truth, made, "bbox")
        self.regions, self.times = regions, times

    def _prepare(self) -> None:
        super()._prepare()
        for region in self.regions:
            for category in self.params.catIds:
                self._gts[region["image_id"], category].append(region)
        for those in (self._gts, self._dts):
            for key in list(those):
                those[key] = [one for one in those[key] for _ in range(self.times(key[0]))]


def named(precision: NDArray[Any], most: int = -1) -> Scores:
    """COCO's names of means of precision."""
    return {
        "AP": mean(precision[:, :, :, 0, most]),
        "AP50": mean(precision[0, :, :, 0, most]),
        "AP75": mean(precision[5, :, :, 0, most]),
        "APs": mean(precision[:, :, :, 1, most]),
        "APm": mean(precision[:, :, :, 2, most]),
        "APl": mean(precision[:, :, :, 3, most]),
    }


def mean(values: NDArray[Any]) -> float | None:
    """The mean of what is there: -1 stands for classes that have nothing to find."""
    there = values[values > -1]
    return float(there.mean()) if there.size else None


def as_published(coco: Coco, found: list[dict[str, Any]], bands_px: tuple[int, int]) -> dict[str, Any]:
    """The released metric: mAP and its kind, and AP of the nine tags that it knows, counted as it counts.

    Annotations keep their ids, of which 0 matches nothing. `stats` is the list that it prints, in which the last
    number, of low_light_rain, is written over by that of low_light_fog.
    """
    known = {image["id"]: Counter(_tags(image.get("tag", []))) for image in coco["images"]}
    by_tag: dict[str, float | None] = {}
    scores: Scores = {}
    recalls: list[float | None] = []
    for tag in PUBLISHED_TAGS:
        times = {image: its[tag] for image, its in known.items()}
        one = Evaluation(coco, found, bands_px, PUBLISHED_MOST, times.__getitem__, first_id=0)
        one.run()
        precision, recall = one.precision()
        by_tag[tag] = mean(precision[:, :, :, 0, 0])
        if tag == "all":
            scores = {**named(precision, 2), "AP": by_tag[tag]}
            recalls = [mean(recall[:, :, 0, n]) for n in range(3)] + [mean(recall[:, :, n, 2]) for n in (1, 2, 3)]
    last = ("normal_light", "low_light", "indoor", "rain", "fog", "rain_fog", "low_light_fog")
    stats = [*scores.values(), *recalls, *(by_tag[tag] for tag in last)]
    return {**scores, "tags": by_tag, "stats": [-1.0 if value is None else value for value in stats]}


def _tags(tags: list[str]) -> list[str]:
    """The names that an image counts under: all of its tags joined, each of them, and "all"."""
    return [*(["_".join(tags)] if tags else []), *tags, "all"]


def merged(found: list[dict[str, Any]], slices: Coco, nms_iou: float) -> list[dict[str, Any]]:
    """Detections in slices as detections in full frames: moved, and of those that overlap, by class, the best kept."""
    place = {i["id"]: (i["ori_id"], i["x_start"], i["y_start"]) for i in slices["images"]}
    groups: dict[tuple[Any, int], list[dict[str, Any]]] = defaultdict(list)
    for one in found:
        image, left, top = place[one["image_id"]]
        x, y, width, height = one["bbox"]
        moved = {**one, "image_id": image, "bbox": [x + left, y + top, width, height]}
        groups[image, one["category_id"]].append(moved)
    kept = []
    for those in groups.values():
        boxes = np.array([one["bbox"] for one in those], float)
        kept += [those[n] for n in nms(boxes, np.array([one["score"] for one in those]), nms_iou)]
    return kept


def nms(boxes: NDArray[np.float64], scores: NDArray[np.float64], iou: float) -> list[int]:
    """Which of boxes (N, 4), x, y, width, height, stay, best first: none that overlaps a better one by over `iou`."""
    left, top, width, height = boxes.T
    waiting = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(waiting):
        best, waiting = int(waiting[0]), waiting[1:]
        kept.append(best)
        across = np.minimum(left[best] + width[best], (left + width)[waiting]) - np.maximum(left[best], left[waiting])
        down = np.minimum(top[best] + height[best], (top + height)[waiting]) - np.maximum(top[best], top[waiting])
        shared = np.clip(across, 0, None) * np.clip(down, 0, None)
        area = width[best] * height[best] + (width * height)[waiting] - shared
        waiting = waiting[shared <= iou * area]
    return kept
