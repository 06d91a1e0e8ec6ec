"""The verbs of `datakit` about training: pretrain, export, evaluate."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from .errors import RecipeError

Verbs = Any  # argparse names this class with an underscore


def add(verbs: Verbs) -> None:
    """Add the verbs to a parser."""
    run = verbs.add_parser("pretrain", help="train what a recipe describes; under torchrun on several devices")
    run.add_argument("recipe", type=Path, help="YAML file, or the name of a bundled recipe of recipes/pretrain")
    run.add_argument("--data", action="append", metavar="SHARDS", help="instead of the recipe's (repeat it for tars)")
    run.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/ and the recipe's name)")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field: batch=256")
    run.add_argument("--resume", metavar="CHECKPOINT", help="auto: from the last one there is, if any")
    run.add_argument("--rescale-schedule", action="store_true", help="go on though the budget is another one")
    run.add_argument("--accelerator", default="auto", metavar="NAME", help="cpu, cuda, mps (default: what is there)")
    run.set_defaults(run=run_pretrain)

    export = verbs.add_parser("export", help="write what other programs load of a checkpoint")
    export.add_argument("checkpoint", type=Path)
    export.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    export.set_defaults(run=run_export)

    evaluate = verbs.add_parser("evaluate", help="how well frozen features of an encoder tell classes")
    probe_arguments(evaluate.add_subparsers(dest="what", metavar="probe", required=True))


def probe_arguments(verbs: Verbs) -> None:
    probe = verbs.add_parser("probe", help="k-NN, linear and attentive probes")
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


def run_pretrain(args: argparse.Namespace) -> int:
    from .pretrain.recipe import Pretrain
    from .pretrain.train import pretrain
    from .recipe import parse_changes

    changes = parse_changes(args.set)
    if args.data:
        changes["data"] = args.data[0] if len(args.data) == 1 else args.data
    recipe = Pretrain.load(args.recipe, changes)
    out = args.out or Path("runs") / recipe.name
    options = {"resume": args.resume, "rescale": args.rescale_schedule, "accelerator": args.accelerator}
    told = pretrain(recipe, out, **options, say=say)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(told))
    return 0


def run_export(args: argparse.Namespace) -> int:
    from .pretrain.trained import Trained

    trained = Trained.load(args.checkpoint)
    trained.export(args.out)
    print(json.dumps({"checkpoint": str(args.checkpoint), "step": trained.step, "out": str(args.out)}))
    return 0


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


def say(line: str) -> None:
    """Progress goes to stderr, so that stdout holds results alone."""
    print(line, file=sys.stderr, flush=True)
