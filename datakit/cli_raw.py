"""What the `datakit` command does with sets of camera RAW: export, and the kind `aodraw` of evaluate."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .errors import RecipeError

Verbs = Any  # argparse names this class with an underscore
EXPORT = "aodraw-mmdet"  # a kind of the verb `export`


def add_evaluate(kinds: Verbs) -> None:
    """Add the kind `aodraw` to the verb `evaluate`."""
    one = kinds.add_parser("aodraw", help="detections on AODRaw: AP over all and by condition")
    one.add_argument("--dt", type=Path, required=True, metavar="FILE", help="COCO results: image_id, category_id, …")
    one.add_argument("--gt", required=True, metavar="OUT", help="folder of a build, or a COCO file")
    one.add_argument("--split", default="test", help="default: test")
    one.add_argument("--merge", action="store_true", help="put slices together in the full frame, class by class")
    one.add_argument("--nms", type=float, default=0.5, metavar="IOU", help="of --merge (default: 0.5)")
    one.add_argument("--published", action="store_true", help="the released metric besides, counted as it counts")
    one.set_defaults(run=run_evaluate)


def run_export(where: list[str]) -> int:
    """Write a build as AODRaw's detection code reads it. where: OUT and DIR, the data_root of its configs."""
    from .export import aodraw_mmdet

    if len(where) != 2:
        raise RecipeError(f"datakit export {EXPORT} needs OUT, a build of camera RAW, and DIR, the folder to write to")
    out, folder = where
    print(json.dumps({"dir": folder, "files": aodraw_mmdet(out, Path(folder))}))
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    from .evaluate.aodraw import evaluate
    from .tables import aligned

    scores = evaluate(args.dt, args.gt, args.split, args.merge, args.published, args.nms)
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    rows: list[tuple[str, ...]] = [("images of", "number", *names)]
    groups = {"all": scores["all"], **scores["conditions"]}
    groups |= {f"tag {name}": value for name, value in scores["tags"].items()}
    for name, value in groups.items():
        rows.append((name, str(value["images"]), *(_spelled(value[n]) for n in names)))
    print("\n".join(aligned(rows)))
    print(f"{len(scores['classes'])} classes; `ignore` is none of them")
    print(json.dumps(scores))
    return 0


def _spelled(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
