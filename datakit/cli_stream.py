"""The verbs of `datakit` about streaming: index, add-column, doctor, stats, replay."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import say
from .cli_map import licence_argument
from .errors import DatakitError, RecipeError, ShardError, SourceError
from .remote import root_of

if TYPE_CHECKING:
    from .stream import Loader

Verbs = Any  # argparse names this class with an underscore
TRANSFORMS = ("mae", "multi_view", "evaluation")


def add(verbs: Verbs) -> None:
    """Add the verbs to a parser."""
    index = verbs.add_parser("index", help="index WebDataset tars, so that a Loader opens them at once")
    index.add_argument("tars", nargs="+", type=Path, metavar="TARS", help="tars, or folders of them")
    index.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: index.arrow in their common folder")
    index.set_defaults(run=run_index)

    column = verbs.add_parser(
        "add-column", help="add a member to the samples of a set without writing its shards again"
    )
    column.add_argument("shards", type=Path, metavar="SHARDS", help="folder with index.arrow")
    column.add_argument("name", metavar="NAME", help="suffix of the member, such as seg.png")
    column.add_argument("--from", dest="source", type=Path, required=True, metavar="DIR", help="files named after keys")
    column.add_argument("--replace", action="store_true", help="in place of the column of that name")
    column.set_defaults(run=run_add_column)

    doctor = verbs.add_parser("doctor", help="what holds a loader up on this machine, and the setting worth changing")
    doctor.add_argument("loader", nargs="+", metavar="LOADER", help="shards (a build, an index, tars), or module:name")
    doctor.add_argument("--transform", choices=TRANSFORMS, default="mae", help="default: mae")
    doctor.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    doctor.add_argument("--threads", type=int, metavar="N", help="default: one a core")
    doctor.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (default: cpu)")
    doctor.add_argument("--seconds", type=float, default=10.0, metavar="S", help="default: 10")
    doctor.set_defaults(run=run_doctor)

    stats = verbs.add_parser("stats", help="mean and deviation of each band of a set, by source and of all")
    stats.add_argument("out", type=root_of, metavar="OUT", help="folder or URL of a build")
    stats.add_argument(
        "--overlay", action="append", default=[], type=Path, metavar="FILE", help="as it will be read with"
    )
    licence_argument(stats)
    stats.set_defaults(run=run_stats)

    replay = verbs.add_parser("replay", help="print the keys of a step of a training run")
    replay.add_argument("state", type=Path, metavar="STATE", help="Loader.state_dict(), as JSON or in a checkpoint")
    replay.add_argument("source", nargs="+", metavar="SOURCE", help="the shards that it was read from")
    replay.add_argument("--epoch", type=int, metavar="N", help="default: the state's")
    replay.add_argument("--step", type=int, metavar="N", help="from 0 (default: the last before the state)")
    replay.add_argument("--batch", type=int, metavar="N", help="samples of a step on all ranks (default: the state's)")
    replay.add_argument("--overlay", action="append", default=[], type=Path, metavar="FILE", help="as it was read with")
    licence_argument(replay)
    replay.set_defaults(run=run_replay)


def run_index(args: argparse.Namespace) -> int:
    from .stream.foreign import tars_of, write

    tars = [path.absolute() for path in tars_of(args.tars)]
    folders = {path.parent for path in tars}
    if args.out is None and len(folders) > 1:
        raise SourceError("the tars lie in several folders: say where the index goes with --out")
    out = (args.out or min(folders) / "index.arrow").absolute()
    if (out.parent / "manifest.json").exists():
        raise ShardError(f"{out.parent} is a build, which has its index: name another file with --out")
    samples = write(tars, out, out.parent)
    print(json.dumps({"index": str(out), "tars": len(tars), "samples": samples}))
    return 0


def run_add_column(args: argparse.Namespace) -> int:
    from .add_column import add_column

    print(json.dumps(add_column(args.shards, args.name, args.source, args.replace, say)))
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    from . import stream
    from .stream.doctor import diagnose

    module, colon, name = args.loader[0].partition(":")
    if colon and len(args.loader) == 1 and not Path(args.loader[0]).exists():
        loader = made_by(module, name)
    else:
        transform = getattr(stream, args.transform)()
        source = args.loader[0] if len(args.loader) == 1 else args.loader
        size, device = args.batch_size, args.device
        loader = stream.Loader(source, size, transform=transform, threads=args.threads, device=device, remainder="wrap")
    found = diagnose(loader, args.seconds)
    print(found)
    print(json.dumps(found.__dict__))
    return 0


def made_by(module: str, name: str) -> Loader:
    """A loader of the user's own, or what their function makes."""
    from .stream import Loader

    try:
        found = getattr(importlib.import_module(module), name)
        loader = found if isinstance(found, Loader) else found()
    except (ImportError, AttributeError, TypeError) as exc:
        raise DatakitError(f"{module}:{name}: {exc}") from None
    if not isinstance(loader, Loader):
        raise DatakitError(f"{module}:{name} is no Loader, nor does it make one")
    return loader


def run_stats(args: argparse.Namespace) -> int:
    from .card import band_rows
    from .stats import stats, told
    from .tables import aligned

    sums = stats(args.out, args.overlay, args.licence)
    print("\n".join(aligned([*band_rows(sums.bands())])))
    print(json.dumps(told(sums)))
    return 0


def run_replay(args: argparse.Namespace) -> int:
    from .stream.replay import keys_of_step, state_of

    source = args.source[0] if len(args.source) == 1 else args.source
    try:
        for line in keys_of_step(
            state_of(args.state), source, args.epoch, args.step, args.batch, args.overlay, args.licence
        ):
            print(json.dumps(line))
    except ValueError as exc:
        raise RecipeError(str(exc)) from None
    return 0
