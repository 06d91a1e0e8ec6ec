"""The verb `datakit evaluate`: one function a kind of evaluation."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from . import cli_raw

Verbs = Any  # argparse names this class with an underscore
VARIANTS = ("50", "300", "919")


def add(verbs: Verbs) -> None:
    """Add the verb to a parser."""
    evaluate = verbs.add_parser("evaluate", help="score predictions as the publishers of a data set do")
    kinds = evaluate.add_subparsers(dest="what", metavar="KIND", required=True)
    imagenet_s_arguments(kinds)
    validate_arguments(kinds)
    cli_raw.add_evaluate(kinds)


def imagenet_s_arguments(kinds: Verbs) -> None:
    one = kinds.add_parser("imagenet-s", help="segmentations of ImageNet-S")
    one.add_argument("--pred", type=Path, required=True, metavar="DIR", help="masks: PNG of R + 256 G, or .npy of ids")
    one.add_argument("--gt", required=True, metavar="SHARDS", help="a build, tars, or a folder of the true masks")
    one.add_argument("--variant", choices=VARIANTS, required=True)
    one.add_argument("--split", default="validation", help="default: validation")
    one.add_argument("--match", action="store_true", help="find first which class each predicted one stands for")
    one.add_argument("--embeddings", type=Path, metavar="DIR", help="make the masks in --pred from features, .npy each")
    one.set_defaults(run=run_imagenet_s)


def validate_arguments(kinds: Verbs) -> None:
    one = kinds.add_parser("validate", help="would the test server of ImageNet-S take these masks?")
    one.add_argument("dir", type=Path, metavar="DIR")
    one.add_argument("--gt", required=True, metavar="SHARDS", help="a build, or tars with the images of the split")
    one.add_argument("--variant", choices=VARIANTS, required=True)
    one.add_argument("--split", default="test", help="default: test")
    one.set_defaults(run=run_validate)


def run_imagenet_s(args: argparse.Namespace) -> int:
    from .evaluate.imagenet_s import evaluate
    from .tables import aligned

    scores = evaluate(args.pred, args.gt, args.variant, args.match, args.embeddings, args.split, say)
    shown = {name: value for name, value in scores.items() if isinstance(value, float)}
    print("\n".join(aligned([tuple(shown), tuple(f"{value:.2f}" for value in shown.values())])))
    print(json.dumps({name: None if isinstance(v, float) and math.isnan(v) else v for name, v in scores.items()}))
    return 0


def run_validate(args: argparse.Namespace) -> int:
    from .evaluate.imagenet_s import CLASSES, truth_of, validate

    images = truth_of(args.gt, args.split, args.variant, masks=False)
    wrong = validate(args.dir, images, CLASSES[args.variant])
    print("\n".join(wrong) if wrong else f"{len(images.names):,} masks are as the server wants them")
    print(json.dumps({"dir": str(args.dir), "images": len(images.names), "wrong": len(wrong)}))
    return 1 if wrong else 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
