"""The verb `datakit pretrain`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from .arguments import say

Verbs = Any  # argparse names this class with an underscore


def add(verbs: Verbs) -> None:
    """Add the verb to a parser."""
    run = verbs.add_parser("pretrain", help="train what a recipe describes; under torchrun on several devices")
    run.add_argument("recipe", type=Path, help="YAML file, or the name of a bundled recipe of recipes/pretrain")
    run.add_argument("--data", action="append", metavar="SHARDS", help="instead of the recipe's (repeat it for tars)")
    run.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/ and the recipe's name)")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field: batch=256")
    run.add_argument("--resume", metavar="CHECKPOINT", help="auto: from the last one there is, if any")
    run.add_argument("--rescale-schedule", action="store_true", help="go on though the budget is another one")
    run.add_argument("--accelerator", default="auto", metavar="NAME", help="cpu, cuda, mps (default: what is there)")
    run.set_defaults(run=run_pretrain)


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
