"""What the `datakit` command does between sets and others: forms of other trainers for `export`, and compare."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .cli_map import licence_argument
from .remote import root_of

Verbs = Any  # argparse names this class with an underscore
FORMS = {
    "imagefolder": "SPLIT/CLASS/KEY.jpg, for torchvision's ImageFolder",
    "coco": "COCO: boxes and polygons",
    "dota": "DOTA: corners in text files",
    "mmseg": "mmsegmentation: images and masks",
    "yolo": "YOLO: boxes in text files, data.yaml",
}


def add_export(kinds: Verbs) -> None:
    """Add the forms to the kinds of the verb `export`."""
    for form, what in FORMS.items():
        one = kinds.add_parser(form, help=f"a build as {what}")
        one.add_argument("out", metavar="OUT", help="folder of a build")
        one.add_argument("dir", type=Path, metavar="DIR", help="folder to write, empty or not there")
        licence_argument(one)
        one.set_defaults(run=run_export)


def add(verbs: Verbs) -> None:
    """Add the verb `compare` to a parser."""
    compare = verbs.add_parser("compare", help="what two builds share: samples that look alike, by source")
    compare.add_argument("out", type=root_of, metavar="OUT", help="folder or URL of a build")
    compare.add_argument("other", type=root_of, metavar="OTHER", help="folder or URL of another")
    compare.add_argument("--radius", type=int, choices=range(7), default=4, metavar="BITS", help="0 to 6 (default: 4)")
    compare.add_argument("-o", "--file", type=Path, metavar="FILE", help="write the pairs as Parquet")
    compare.set_defaults(run=run_compare)


def run_export(args: argparse.Namespace) -> int:
    from .forms import export

    counts = export(args.what, args.out, args.dir, args.licence)
    print(json.dumps({"form": args.what, "dir": str(args.dir), **counts}))
    return 0


def run_compare(args: argparse.Namespace) -> int:
    import pyarrow.parquet as pq

    from .compare import compare
    from .samples import Samples
    from .tables import aligned

    found = compare(Samples(args.out), Samples(args.other), args.radius)
    told = found.told()
    rows: list[tuple[str, ...]] = [("set", "source", "samples", "alike in the other")]
    for side, sources in told["sources"].items():
        rows += [(side, name, f"{n['samples']:,}", f"{n['alike']:,}") for name, n in sources.items()]
    print("\n".join(aligned(rows)))
    if args.file is not None:
        args.file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(found.pairs(), args.file, compression="zstd")
    print(json.dumps(told))
    return 0
