"""The verbs of `datakit protect`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .arguments import say, whole
from .remote import root_of

Verbs = Any  # argparse names this class with an underscore
ABOUT = (
    "Compares every sample with held-out images: whole copies in 8 orientations, and parts at other scales, either way "
    "round. The shards are only read. Exit status: 0 if nothing was found, 1 if something was, or on an error."
)


def add(protecting: Verbs) -> None:
    """Add the verbs of `protect`."""
    sign_arguments(protecting)
    audit_arguments(protecting)


def sign_arguments(verbs: Verbs) -> None:
    sign = verbs.add_parser("sign", help="make a held-out list from a copy of an evaluation set")
    sign.add_argument("folder", type=root_of, metavar="DIR", help="folder, archive or URL of the evaluation images")
    sign.add_argument(
        "-o",
        "--list",
        type=Path,
        required=True,
        metavar="LIST",
        help="file to write; with protect.contain LIST.parts, too",
    )
    sign.add_argument(
        "--recipe", type=Path, default=Path("opticalrs"), help="whose grid cuts tiles (default: opticalrs)"
    )
    sign.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the recipe")
    sign.add_argument("--manifest", help="manifest of the collection: says which of its files are images")
    sign.add_argument("--name", default="", help="name of the data set (default: the manifest's, or the folder's)")
    sign.add_argument("--version", dest="edition", default="", help="version of the data set")
    sign.add_argument("--split", default="", help="split; with --manifest, only its files are signed")
    sign.add_argument("--workers", type=whole(0), metavar="N", help="processes (default: one a core; 0: this process)")
    sign.set_defaults(run=run_sign)


def audit_arguments(verbs: Verbs) -> None:
    one = verbs.add_parser(
        "audit", help="is anything of a held-out set in a finished set of shards?", description=ABOUT
    )
    one.add_argument("shards", nargs="+", metavar="SHARDS", help="a build, an index, tars, or a folder or URL of them")
    one.add_argument("folder", type=root_of, metavar="DIR", help="folder, archive or URL of the held-out images")
    one.add_argument("-o", "--table", type=Path, metavar="FILE", help="write what was found as Parquet")
    one.add_argument(
        "--recipe", type=Path, default=Path("opticalrs"), help="whose grid and `protect` it takes (default: opticalrs)"
    )
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the recipe")
    one.add_argument("--manifest", help="manifest of the held-out set: says which of its files are images")
    one.add_argument("--workers", type=whole(0), metavar="N", help="processes (default: one a core; 0: this process)")
    one.set_defaults(run=run_audit)


def run_sign(args: argparse.Namespace) -> int:
    from .engine import Engine, cores
    from .manifest import Collection
    from .recipe import Recipe, find_manifest, parse_changes
    from .signing import held_out
    from .stages.protect import PARTS

    recipe = Recipe.load(args.recipe, parse_changes(args.set))
    about = Collection.load(find_manifest(args.manifest)) if args.manifest else None
    beside = args.list.with_name(args.list.name + PARTS)
    parts = beside if recipe.protect.contain else None
    with Engine(cores() if args.workers is None else args.workers) as engine:
        held = held_out(args.folder, recipe, engine, about, args.name, args.edition, args.split, parts)
    if parts is None:  # what an earlier list of that name had tells of other images
        beside.unlink(missing_ok=True)
    held.save(args.list)
    for row in held.about["unsigned"]:
        say(f"not signed: {row['name']}: {row['why']}")
    shown = {name: held.about[name] for name in ("name", "version", "split", "files", "images", "tiles")}
    print(json.dumps({**shown, "unsigned": len(held.about["unsigned"]), "list": str(args.list)}))
    return 0


def run_audit(args: argparse.Namespace) -> int:
    import pyarrow.parquet as pq

    from .audit import audit
    from .engine import Engine, cores
    from .manifest import Collection
    from .recipe import Recipe, find_manifest, parse_changes
    from .tables import aligned

    recipe = Recipe.load(args.recipe, parse_changes(args.set))
    about = Collection.load(find_manifest(args.manifest)) if args.manifest else None
    with Engine(cores() if args.workers is None else args.workers) as engine:
        found = audit(args.shards, args.folder, recipe, engine, about)
    if args.table:
        args.table.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(found.matches, args.table, compression="zstd")
    rows = [tuple(shown(row).values()) for row in found.matches.to_pylist()]
    if rows:
        print("\n".join(aligned([tuple(shown(found.matches.to_pylist()[0])), *rows])))
    for where, why in found.not_compared[:10]:
        print(f"not compared: {where}: {why}")
    kinds = found.matches.column("kind").to_pylist()
    counts = {"copies": kinds.count("copy"), "parts": kinds.count("part")}
    numbers = {"samples": found.samples, "held_out": found.held_out, **counts, "few_points": found.few_points}
    print(json.dumps({**numbers, "not_compared": len(found.not_compared)}))
    return 1 if rows else 0


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table for people."""
    share, held = (f"{row[name]:.0%}" for name in ("share", "held_share"))
    is_copy = row["kind"] == "copy"
    near = f"{row['distance_bits']} bits" if is_copy else f"{row['points']} points, {row['correlation']:.2f}"
    scale = "" if is_copy else f"{row['scale']:.2f}"
    of = {"of it": share, "of held-out": held, "scale": scale, "turned": row["turned"], "agree": near}
    return {"key": row["key"], "held-out": row["held_out"], "kind": row["kind"], **of}
