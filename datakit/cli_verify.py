"""The verbs `datakit verify` and `datakit lint`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .arguments import say
from .errors import ShardError

Verbs = Any  # argparse names this class with an underscore


def add(verbs: Verbs) -> None:
    """Add the verbs to a parser."""
    one = verbs.add_parser("verify", help="is what a build left whole? names what is wrong, and what repairs it")
    one.add_argument("out", type=Path, metavar="OUT", help="folder of a build")
    one.add_argument("--deep", action="store_true", help="read every byte, header and row; decode every member")
    one.add_argument("--repair", action="store_true", help="--deep, then make the damaged files again, byte for byte")
    one.add_argument("--work", type=Path, help="work folder of the build (default: the one it noted, or OUT.work)")
    one.add_argument("--workers", type=int, metavar="N", help="processes of a repair (default: one a core)")
    one.add_argument("--overlay", action="append", default=[], type=Path, metavar="FILE", help="look at it, too")
    one.set_defaults(run=run_verify)

    two = verbs.add_parser("lint", help="what of WebDataset tars, whoever made them, some reader reads otherwise")
    two.add_argument("tars", nargs="+", type=Path, metavar="TARS", help="tars, or folders of them")
    two.set_defaults(run=run_lint)


def run_verify(args: argparse.Namespace) -> int:
    from .verify import summary, verify

    found, restored, failed = verify(args.out, args.deep or args.repair, args.overlay), [], ""
    if args.repair and found.findings:
        from .repair import repair

        for finding in found.findings:
            print(f"found: {finding.file}: {finding.what}")
        try:
            restored = repair(found, args.work, say, args.workers)
        except ShardError as exc:
            failed = str(exc)
        found = verify(args.out, True, args.overlay)
    for finding in found.findings:
        print(finding)
    if failed:
        print(f"not repaired: {failed}")
    last = summary(found)
    if args.repair:
        last["restored"] = restored
    print(json.dumps(last))
    return 1 if found.findings else 0


def run_lint(args: argparse.Namespace) -> int:
    from .lint import lint

    found = lint(args.tars)
    for finding in found.findings:
        print(finding)
    print(json.dumps({"tars": found.tars, "samples": found.samples, "findings": len(found.findings)}))
    return 1 if found.findings else 0
