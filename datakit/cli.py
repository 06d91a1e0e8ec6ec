"""The `datakit` command: each verb parses, calls one function and prints."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import (
    __version__,
    cli_browse,
    cli_evaluate,
    cli_export,
    cli_forms,
    cli_map,
    cli_pretrain,
    cli_protect,
    cli_raw,
    cli_report,
    cli_stream,
    cli_verify,
)
from .arguments import say, size, whole
from .errors import DatakitError, SourceError
from .remote import may_be_folder, root_of

if TYPE_CHECKING:
    from .imagenet_s import ImageNetS
    from .recipe import Recipe

MORE = (
    cli_browse,
    cli_map,
    cli_forms,
    cli_verify,
    cli_report,
    cli_stream,
    cli_pretrain,
    cli_export,
    cli_raw,
    cli_evaluate,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; 0 if it did what was asked, 1 with a message on stderr if not."""
    try:
        args = parser().parse_args(argv)
        if args.verb is None:
            parser().print_help()
            return 0
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except DatakitError as exc:
        print(f"datakit: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("datakit: stopped; the same command continues where it was", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `datakit check … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="datakit", description="Public image collections to WebDataset shards.")
    top.add_argument("--version", action="version", version=f"datakit {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")

    build = verbs.add_parser("build", help="build the data set that a recipe describes")
    recipe_arguments(build)
    build.add_argument("--out", type=root_of, help="folder or URL for the shards (default: the recipe's name)")
    build.add_argument("--work", type=root_of, help="folder of parts, kept for the next build (default: OUT.work)")
    engine_arguments(build)
    build.add_argument(
        "--free", action="store_true", help="delete staged tiles as the shards that hold them are written"
    )
    build.set_defaults(run=run_build)

    check = verbs.add_parser("check", help="validate a recipe and its sources and print the plan; changes nothing")
    recipe_arguments(check)
    check.add_argument(
        "--most",
        type=whole(1),
        default=2000,
        metavar="N",
        help="images a source whose headers are read (default: 2000)",
    )
    check.set_defaults(run=run_check)

    synth = verbs.add_parser("synth", help="make an embedded collection, or check a build of one")
    synth.add_argument("kind", help="opticalrs, imagenet_s, aodraw, or check")
    synth.add_argument("dirs", nargs="+", help="DIR to make; for check: OUT DIR")
    synth.add_argument("--seed", type=int, default=0)
    synth.set_defaults(run=run_synth)

    protect = verbs.add_parser(
        "protect", help="held-out lists, which `build --protect` keeps out; audits of finished sets"
    )
    protecting = protect.add_subparsers(dest="what", metavar="sign|audit", required=True)
    cli_protect.add(protecting)
    dedup = verbs.add_parser("dedup", help="ask a build about duplicates")
    query_arguments(dedup.add_subparsers(dest="what", metavar="query", required=True))
    manifest = verbs.add_parser("manifest", help="draft the manifest of a collection, or list those there are")
    manifest_arguments(manifest.add_subparsers(dest="what", metavar="new|table", required=True))
    work_arguments(verbs)
    for more in MORE:
        more.add(verbs)
    return top


def work_arguments(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = verbs.add_parser("status", help="what is done of the builds of a work folder, what is left, what failed")
    status.add_argument("work", type=Path, help="a work folder")
    status.set_defaults(run=run_status)
    gc = verbs.add_parser("gc", help="free what no build uses any more")
    gc.add_argument("work", type=Path, help="a work folder")
    gc.set_defaults(run=run_gc)


def engine_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--workers", type=whole(0), metavar="N", help="processes (default: one a core; 0: this process)")
    verb.add_argument("--scheduler", default="", metavar="ADDRESS", help="use this Dask scheduler: tcp://host:8786")
    verb.add_argument(
        "--memory", type=size, default=0, metavar="SIZE", help="for all workers here: 16GB (default: most there is)"
    )
    verb.add_argument(
        "--timeout", type=whole(30), default=120, metavar="S", help="CPU seconds for an image, and 2 a megapixel"
    )
    verb.add_argument(
        "--retry",
        action="append",
        default=[],
        metavar="REASON",
        help="try again what was dropped as unreadable, timed_out, … (repeat it)",
    )


def query_arguments(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    query = verbs.add_parser("query", help="is an image, or a window of it, in a build already?")
    query.add_argument("out", type=root_of, help="folder or URL of a build")
    query.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    query.add_argument("--window", metavar="LEFT,TOP,WIDTH,HEIGHT", help="this part of each image, px")
    query.add_argument("--radius", type=whole(0, 64), metavar="BITS", help="of 64, 0 to 64 (default: the recipe's)")
    query.add_argument("--source", default="", metavar="NAME", help="source of the build whose bands the images have")
    query.set_defaults(run=run_query)


def manifest_arguments(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    new = verbs.add_parser("new", help="write the first draft of a manifest from the files of a folder")
    new.add_argument("folder", type=Path, metavar="DIR", help="folder or archive of the collection")
    new.add_argument("-o", "--out", type=Path, metavar="FILE", help="file to write (default: stdout)")
    new.add_argument("--name", default="", help="name of the collection (default: the folder's)")
    new.add_argument(
        "--most", type=whole(1), default=200, metavar="N", help="images whose headers are read (default: 200)"
    )
    new.set_defaults(run=run_manifest_new)
    table = verbs.add_parser("table", help="print the page of all collections that are described")
    table.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="folder of manifests (default: bundled)")
    table.set_defaults(run=run_manifest_table)


def recipe_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", type=Path, help="YAML file, or the name of a bundled recipe")
    verb.add_argument(
        "--data", type=root_of, default=Path(), help="folder or URL that the collections lie in (default: here)"
    )
    verb.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a field: subset.count=1000"
    )
    verb.add_argument(
        "--protect",
        action="append",
        default=[],
        type=Path,
        metavar="LIST",
        help="keep out what is like this held-out list",
    )
    verb.add_argument(
        "--licence",
        action="append",
        default=[],
        metavar="NAME",
        help="take only what is under such a licence (repeat it)",
    )
    verb.add_argument(
        "--decisions", type=Path, metavar="FILE", help="what a person decided in a report: decisions.json"
    )
    verb.add_argument("--allow-missing", action="store_true", help="leave out collections that are not on disk")


def recipe_of(args: argparse.Namespace) -> Recipe | ImageNetS:
    """The recipe that the arguments name, with their changes."""
    from .kinds import load
    from .recipe import parse_changes

    recipe = load(args.recipe, parse_changes(args.set), args.protect, args.licence, args.decisions)
    if not may_be_folder(args.data):
        raise SourceError(f"{args.data}: no such folder. Give with --data the one that the collections lie in")
    return recipe


def run_build(args: argparse.Namespace) -> int:
    from .pipeline import build
    from .tables import closing

    start = time.monotonic()
    recipe = recipe_of(args)
    out = args.out or Path(recipe.name)
    named = ("work", "workers", "allow_missing", "free", "scheduler", "retry")
    options = {name: getattr(args, name) for name in named}
    options |= {"memory_bytes": args.memory, "timeout_s": args.timeout}
    manifest = build(recipe, args.data, out, say=say, **options)
    timings = json.loads((out / "timings.json").read_text())
    print(closing(manifest, timings))
    last = {
        "name": manifest.name,
        "out": str(out),
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": sum(s.bytes for s in manifest.shards),
        "missing": list(manifest.missing),
        "work_done": timings["work_done"],
        "seconds": round(time.monotonic() - start, 1),
    }
    print(json.dumps(last))
    return 0


def run_check(args: argparse.Namespace) -> int:
    from . import imagenet_s, plan

    recipe = recipe_of(args)
    if isinstance(recipe, imagenet_s.ImageNetS):
        lines = imagenet_s.check(recipe, args.data, args.allow_missing)
    else:
        lines = plan.check(recipe, args.data, allow_missing=args.allow_missing, most=args.most, say=say)
    for line in lines:
        print(line)
    return 0


def run_synth(args: argparse.Namespace) -> int:
    from .sources import synth

    if args.kind == "check":
        if len(args.dirs) != 2:
            raise DatakitError("datakit synth check needs OUT and DIR: the build, and the collection it was built from")
        built, folder = root_of(args.dirs[0]), Path(args.dirs[1])
        wrong = synth.check(built, folder)
        print("\n".join(wrong) if wrong else "everything planted went for its own reason, and nothing else did")
        crops = synth.not_covered(built, folder)
        print(
            f"not covered: {len(crops)} planted crops, which no signature of a whole picture sees: {', '.join(crops)}"
        )
        return 1 if wrong else 0
    if len(args.dirs) != 1:
        raise DatakitError("datakit synth KIND needs one DIR")
    truth = synth.make(args.kind, Path(args.dirs[0]), args.seed)
    expected = Counter(entry["expect"] for entry in truth["files"])
    print(json.dumps({"kind": args.kind, "files": len(truth["files"]), "expected": dict(sorted(expected.items()))}))
    return 0


def run_query(args: argparse.Namespace) -> int:
    from .query import Query, window_of

    window = window_of(args.window) if args.window else None
    query = Query(args.out)
    for path in args.images:
        for answer in query.spell(path, window, args.radius, args.source):
            print(json.dumps(answer))
    return 0


def run_manifest_new(args: argparse.Namespace) -> int:
    from .draft import draft, write

    if args.out is None:
        print(draft(args.folder, args.name, args.most), end="")
        return 0
    text = write(args.folder, args.out, args.name, args.most)
    print(json.dumps({"manifest": str(args.out), "to_complete": text.count("# to complete:")}))
    return 0


def run_manifest_table(args: argparse.Namespace) -> int:
    from .collections_page import page

    print(page(args.folder), end="")
    return 0


def run_status(args: argparse.Namespace) -> int:
    from .status import lines, status

    builds = status(args.work)
    print("\n".join(lines(builds)))
    print(json.dumps(builds))
    return 0


def run_gc(args: argparse.Namespace) -> int:
    from .folders import gc

    print(json.dumps(gc(args.work)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
