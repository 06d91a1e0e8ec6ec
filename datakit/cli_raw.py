"""What the `datakit` command does with camera RAW: the verb `raw`, and kinds of export and evaluate."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

Verbs = Any  # argparse names this class with an underscore


def add(verbs: Verbs) -> None:
    """Add the verb `raw` to a parser."""
    kinds = verbs.add_parser("raw", help="what files of camera RAW tell").add_subparsers(
        dest="what", metavar="KIND", required=True
    )
    one = kinds.add_parser("noise", help="shot and read noise by ISO, as a recipe of RAW distillation takes them")
    one.add_argument("files", nargs="+", type=Path, metavar="FILES", help="files, and folders of them")
    one.set_defaults(run=run_noise)


def run_noise(args: argparse.Namespace) -> int:
    """Status 1 where the noise of some ISO could not be told."""
    from . import noise
    from .tables import aligned

    found = noise.by_iso(noise.expanded(args.files))
    rows: list[tuple[str, ...]] = [("ISO", "files", "shot", "read", "R^2", "patches", "from")]
    for one in found:
        r2 = "-" if one.r2 is None else f"{one.r2:.3f}"
        how = one.refused or one.how
        rows.append((f"{one.iso:g}", str(one.files), f"{one.shot:.3g}", f"{one.read:.3g}", r2, str(one.patches), how))
    print("\n".join(aligned(rows)))
    fine = any(not one.refused for one in found)
    print(json.dumps({"noise": [asdict(one) for one in found], "camera": noise.camera(found) if fine else None}))
    return 1 if any(one.refused for one in found) else 0


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
