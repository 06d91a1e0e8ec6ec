"""The verbs of `datakit` about places: locate, footprints, query."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DatakitError
from .remote import root_of

Verbs = Any  # argparse names this class with an underscore
AT_ONCE = 1 << 14  # records
SAID = ["key", "source", "path", "window", "footprint", "licences"]


def add(verbs: Verbs) -> None:
    """Add the verbs to a parser."""
    locate = verbs.add_parser("locate", help="where tiles come from: file, window, polygon on the map")
    locate.add_argument("out", type=root_of, metavar="OUT", help="folder or URL of a build")
    locate.add_argument("keys", nargs="+", metavar="KEY")
    locate.set_defaults(run=run_locate)

    footprints = verbs.add_parser("footprints", help="write the footprints of a build as GeoParquet")
    footprints.add_argument("out", type=root_of, metavar="OUT", help="folder or URL of a build")
    footprints.add_argument("-o", "--file", type=Path, required=True, metavar="FILE", help="such as tiles.parquet")
    footprints.set_defaults(run=run_footprints)

    query = verbs.add_parser("query", help="the samples of a place, or under a licence")
    query.add_argument("out", type=root_of, metavar="OUT", help="folder or URL of a build")
    query.add_argument("--bbox", nargs=4, type=float, metavar=("W", "S", "E", "N"), help="degrees; W over E: date line")
    licence_argument(query)
    query.add_argument(
        "-o",
        "--file",
        type=Path,
        metavar="FILE",
        help="write their records as Parquet, which is an overlay that keeps them",
    )
    query.set_defaults(run=run_query)


def licence_argument(verb: argparse.ArgumentParser) -> None:
    """Add `--licence` to a verb that reads a build."""
    verb.add_argument(
        "--licence",
        action="append",
        default=[],
        metavar="NAME",
        help="only what is under such a licence: a name, or a pattern such as CC-BY-[0-9]* (repeat it)",
    )


def run_locate(args: argparse.Namespace) -> int:
    from .locate import locate
    from .samples import Samples

    missing = []
    for about in locate(Samples(args.out), args.keys):
        print(json.dumps(about))
        missing += [] if about["found"] else [about["key"]]
    if missing:
        raise DatakitError(f"{args.out} has no sample of key {', '.join(missing)}: index.arrow lists those it has")
    return 0


def run_footprints(args: argparse.Namespace) -> int:
    from .geoparquet import write
    from .samples import Samples

    print(json.dumps({"file": str(args.file), **write(Samples(args.out), args.file)}))
    return 0


def run_query(args: argparse.Namespace) -> int:
    import pyarrow.parquet as pq

    from .locate import licensed, within
    from .lonlat import box_of
    from .samples import Samples
    from .stream.overlay import KIND

    if args.bbox is None and not args.licence:
        raise DatakitError("query: by what? Give --bbox, --licence, or both")
    samples = Samples(args.out)
    rows = within(samples, box_of(args.bbox)) if args.bbox else licensed(samples, args.licence)
    if args.bbox and args.licence:
        rows = np.intersect1d(rows, licensed(samples, args.licence), assume_unique=True)
    pieces = np.split(rows, np.arange(AT_ONCE, len(rows), AT_ONCE))
    if args.file is None:
        said = [name for name in SAID if name in samples.schema.names]
        for piece in pieces:
            for about in samples.read(piece, said).to_pylist():
                print(json.dumps(about))
        return 0
    aside = args.file.with_name(f"{args.file.name}.part")
    aside.parent.mkdir(parents=True, exist_ok=True)
    schema = samples.read(rows[:0]).schema.with_metadata({KIND: "keep"})
    with pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        for piece in pieces:
            writer.write_table(samples.read(piece).replace_schema_metadata(schema.metadata))
    aside.replace(args.file)
    print(json.dumps({"file": str(args.file), "samples": len(rows)}))
    return 0
