"""The verb `report` of `datakit`: a build as one page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .remote import root_of

Verbs = Any  # argparse names this class with an underscore


def add(verbs: Verbs) -> None:
    """Add the verb to a parser."""
    report = verbs.add_parser("report", help="a build as one HTML page: what came, what went and why, with pictures")
    report.add_argument("out", type=root_of, metavar="OUT", help="folder or URL of a build")
    report.add_argument("-o", "--file", type=Path, metavar="FILE", help="file to write (default: OUT/report.html)")
    report.set_defaults(run=run_report)


def run_report(args: argparse.Namespace) -> int:
    from .report import write

    print(json.dumps(write(args.out, args.file)))
    return 0
