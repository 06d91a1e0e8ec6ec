"""The verb `datakit export`: one function a kind of what is written for other programs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from . import cli_forms, cli_raw

Verbs = Any  # argparse names this class with an underscore


def add(verbs: Verbs) -> None:
    """Add the verb to a parser."""
    export = verbs.add_parser("export", help="write what other programs load")
    kinds = export.add_subparsers(dest="what", metavar="KIND", required=True)
    encoder_arguments(kinds)
    cli_raw.add_export(kinds)
    cli_forms.add_export(kinds)


def encoder_arguments(kinds: Verbs) -> None:
    one = kinds.add_parser("encoder", help="the encoder of a checkpoint")
    one.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of `datakit pretrain`")
    one.add_argument("out", type=Path, metavar="DIR")
    one.add_argument("--format", default="", metavar="NAME", help="timm, mmpretrain, mmdet (default: timm)")
    one.set_defaults(run=run_encoder)


def run_encoder(args: argparse.Namespace) -> int:
    from .pretrain.trained import Trained

    trained = Trained.load(args.checkpoint)
    trained.export(args.out, args.format)
    told = {"checkpoint": str(args.checkpoint), "step": trained.step, "out": str(args.out)}
    print(json.dumps(told))
    return 0
