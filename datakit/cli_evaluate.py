"""The verb `datakit evaluate`: one function a kind of evaluation."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from . import cli_raw
from .arguments import say
from .errors import RecipeError

Verbs = Any  # argparse names this class with an underscore
VARIANTS = ("50", "300", "919")


def add(verbs: Verbs) -> None:
    """Add the verb to a parser."""
    evaluate = verbs.add_parser("evaluate", help="score predictions as the publishers of a data set do")
    kinds = evaluate.add_subparsers(dest="what", metavar="KIND", required=True)
    imagenet_s_arguments(kinds)
    validate_arguments(kinds)
    cli_raw.add_evaluate(kinds)
    probe_arguments(kinds)


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


def probe_arguments(kinds: Verbs) -> None:
    probe = kinds.add_parser("probe", help="k-NN, linear and attentive probes")
    probe.add_argument("encoder", metavar="CHECKPOINT", help="of `pretrain`, or what `export` wrote, or timm:NAME")
    probe.add_argument("data", metavar="DATA", help="shards, or a folder of class folders")
    probe.add_argument("--split", type=Path, metavar="LIST", help="images to learn from: lines `path label`")
    probe.add_argument("--test", type=Path, metavar="LIST", help="images to test on (default: all others)")
    probe.add_argument("--share", type=float, metavar="X", help="instead of lists: of each class, drawn for each seed")
    probe.add_argument("--seeds", type=int, default=3, metavar="N", help="default: 3")
    probe.add_argument("--method", action="append", metavar="NAME", help="knn, linear, attentive (default: all)")
    probe.add_argument("--pool", choices=("mean", "cls"), default="mean", help="for knn and linear (default: mean)")
    probe.add_argument("--epochs", type=int, default=100, metavar="N", help="of linear and attentive (default: 100)")
    probe.add_argument("--batch-size", type=int, default=64, metavar="N", help="of images (default: 64)")
    probe.add_argument("--cache", type=Path, metavar="DIR", help="of features (default: of the user's cache)")
    probe.add_argument("--device", default="cpu", help="cpu, cuda, … (default: cpu)")
    probe.set_defaults(run=run_probe)


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


def run_probe(args: argparse.Namespace) -> int:
    from .evaluate.encoder import encoder_of
    from .evaluate.images import drawn, images_of, listed
    from .evaluate.probe import METHODS, probe

    if (args.split is None) == (args.share is None) or (args.test and not args.split) or args.seeds < 1:
        raise RecipeError("give --split LIST (and --test LIST), or --share X; --seeds is 1 or more")
    if args.share is not None and not 0 < args.share < 1:
        raise RecipeError(f"--share {args.share}: above 0 and below 1")
    images = images_of(args.data)
    seeds = range(args.seeds)
    splits = [drawn(images, args.share, n) for n in seeds] if args.share else [listed(images, args.split, args.test)]
    splits = splits if args.share else splits * args.seeds
    names = ("pool", "epochs", "cache", "device", "batch_size")
    options = {name: getattr(args, name) for name in names}
    scores = probe(encoder_of(args.encoder), images, splits, methods=args.method or METHODS, say=say, **options)
    first = scores[0]
    print(f"{first.classes} classes, {first.train} to learn from, {first.test} to test on, {len(splits)} seeds")
    for score in scores:
        print(f"{score.method:10} {score.mean:7.2%} +- {score.deviation:.2%}")
    print(f"{'chance':10} {first.chance:7.2%}")
    print(json.dumps([score.told() for score in scores]))
    return 0
