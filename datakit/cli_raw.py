"""What the `datakit` command does with sets of camera RAW: export, and the kind `aodraw` of evaluate."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

Verbs = Any  # argparse names this class with an underscore


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


def add_export(kinds: Verbs) -> None:
    """Add the kind `aodraw-mmdet` to the verb `export`."""
    one = kinds.add_parser("aodraw-mmdet", help="a build of camera RAW as AODRaw's detection code reads it")
    one.add_argument("out", metavar="OUT", help="folder of the build")
    one.add_argument("dir", type=Path, metavar="DIR", help="the data_root of its configs")
    one.set_defaults(run=run_export)


def run_export(args: argparse.Namespace) -> int:
    from .export import aodraw_mmdet

    print(json.dumps({"dir": str(args.dir), "files": aodraw_mmdet(args.out, args.dir)}))
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
