"""Whether what a build left is whole: files, sizes, counts, and on request every byte, header, row and member."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import disk, index
from .errors import ShardError
from .findings import Verified
from .leave import TIMINGS
from .manifest import Manifest
from .sample import digest, key_id
from .set_parts import check_columns, check_overlays
from .sources.imagenet_s import SEMI
from .tar_check import Shape, Told, ends, look

MANIFEST, INDEX, SAMPLES, DROPPED = "manifest.json", "index.arrow", "samples.parquet", "dropped.parquet"
About = dict[str, Any]  # name, split, samples, bytes, sha256 of a shard


def verify(out: str | Path, deep: bool = False, overlays: Sequence[Path] = ()) -> Verified:
    """Look at a set: what is wrong with it, in `findings`.

    deep: read every byte (sha256), every header, every row of the index, and decode every member. overlays: files that
    are used with the set; those in OUT/overlays are looked at in any case. ShardError where there is no set at all.
    """
    told = Verified(Path(out).absolute(), deep)
    if not any((told.out / name).exists() for name in (MANIFEST, INDEX)):
        raise ShardError(f"{out}: no {MANIFEST} and no {INDEX} there. Give the folder of a build")
    manifest, table = check_manifest(told), load_index(told)
    shards = check_shards(told, manifest, table)
    if table is not None:
        check_index(told, table, manifest)
    told.shards = len(shards)
    if manifest is not None:
        check_files(told, manifest)
    check_tables(told, manifest, table)
    check_timings(told)
    if table is not None:
        members = members_of(table)
        for name, wrong in look_into(told, shards, table, members).items():
            told.some(name, wrong)
        check_columns(told, table)
        check_overlays(told, table, overlays)
        told.samples = table.num_rows
    return told


def check_manifest(told: Verified) -> Manifest | None:
    """The manifest, and whether it agrees with itself."""
    path = told.out / MANIFEST
    try:
        manifest = Manifest.load(path)
    except ShardError as exc:
        told.add(MANIFEST, str(exc))
        return None
    if manifest.seal and manifest.seal != manifest.sealed().seal:
        told.add(MANIFEST, "it was changed: its seal is not that of what it says")
    elif manifest.to_json() != path.read_text(encoding="utf-8"):
        told.add(MANIFEST, "it is not as a build writes it")
    if manifest.recipe_digest != digest(json.dumps(manifest.recipe, sort_keys=True)):
        told.add(MANIFEST, "its recipe is not the one of recipe_digest")
    if manifest.samples != sum(shard.samples for shard in manifest.shards if shard.split != SEMI):
        told.add(MANIFEST, f"{manifest.samples:,} samples are not those of its shards")
    if manifest.samples != sum(source.samples for source in manifest.sources):
        told.add(MANIFEST, f"{manifest.samples:,} samples are not those of its sources")
    for count in manifest.counts:
        if count.came != count.left + sum(count.dropped.values()):
            told.add(MANIFEST, f"{count.stage}: {count.source}: {count.came:,} came, which did not all leave or drop")
    return manifest


def load_index(told: Verified) -> pa.Table | None:
    """The index, if it can be read."""
    try:
        table = index.load(told.out / INDEX)
        json.loads(table.schema.metadata[b"shards"])
        table.validate(full=True)
        if table.schema.remove_metadata() != index.schema(members_of(table)):
            raise ShardError(f"columns are {', '.join(table.column_names)}")
    except (ShardError, KeyError, ValueError, pa.ArrowException) as exc:
        told.add(INDEX, f"it cannot be read: {exc}")
        return None
    return table


def members_of(table: pa.Table) -> tuple[str, ...]:
    return tuple(name[: -len("_offset")] for name in table.column_names if name.endswith("_offset"))


def check_shards(told: Verified, manifest: Manifest | None, table: pa.Table | None) -> list[About]:
    """Each tar against what the manifest and the index say of it; gives what the more credible of the two says."""
    of_manifest = {s.name: s.model_dump(mode="json") for s in manifest.shards} if manifest else None
    of_index = {s["name"]: s for s in json.loads(table.schema.metadata[b"shards"])} if table is not None else None
    claims = {name: said for name, said in ((MANIFEST, of_manifest), (INDEX, of_index)) if said is not None}
    names = list(dict.fromkeys(name for said in claims.values() for name in said))
    right: Counter[str] = Counter()
    stale: dict[str, list[str]] = {who: [] for who in claims}
    for name in names:
        said = {who: by_name.get(name) for who, by_name in claims.items()}
        agreeing = check_tar(told, name, said)
        right.update(agreeing)
        for who in said:
            if agreeing and who not in agreeing:
                stale[who].append(name)
    for who, wrong in stale.items():
        told.some(who, [f"stale: what it says of {name} is not so, what the other tells is" for name in wrong])
    if not any(stale.values()) and len(claims) == 2 and of_manifest != of_index:
        told.add(MANIFEST, f"it and {INDEX} do not agree on the shards; --deep tells which is wrong")
    if of_manifest is not None and manifest is not None:
        check_strays(told, manifest.name, {*names})
    best = max(claims, key=lambda who: right[who], default="")
    return list((claims.get(best) or {}).values())


def check_tar(told: Verified, name: str, said: dict[str, About | None]) -> list[str]:
    """Which of those that say something of a tar are right."""
    path = told.out / name
    if not path.is_file():
        told.add(name, "it is not there")
        return []
    size = path.stat().st_size
    sized = [who for who, about in said.items() if about and about["bytes"] == size]
    if not sized:
        told.add(name, f"{size:,} bytes, not {', '.join(sorted({str(a['bytes']) for a in said.values() if a}))}")
        return []
    if not told.deep:
        return []
    actual = told.digest_of(name)
    right = [who for who in sized if (said[who] or {}).get("sha256") == actual]
    if not right:
        told.add(name, "its sha256 is not the one of the build: bytes were changed, or it is another tar")
    return right


def check_strays(told: Verified, name: str, known: set[str]) -> None:
    """Tars that a reader of *.tar would read though they are not of the set."""
    for path in sorted(told.out.glob(f"{name}-*.tar")):
        if path.name not in known:
            told.add(path.name, "a tar of this name that the set does not have", f"rm {path}")


def check_index(told: Verified, table: pa.Table, manifest: Manifest | None) -> None:
    """The index against itself."""
    shards = json.loads(table.schema.metadata[b"shards"])
    rows = np.bincount(table.column("shard").to_numpy(), minlength=len(shards)) if table.num_rows else np.zeros(0)
    if rows.tolist() != [shard["samples"] for shard in shards]:
        wrong = [
            f"{n:,} rows of {shard['name']}, which has {shard['samples']:,} samples"
            for n, shard in zip(rows.tolist(), shards, strict=False)
            if n != shard["samples"]
        ]
        told.some(INDEX, wrong or [f"{table.num_rows:,} rows, of shards that it does not name"])
    if manifest and {*manifest.members} != {*members_of(table)}:
        told.add(INDEX, f"members {', '.join(members_of(table))}, not {', '.join(manifest.members)}")
    if not told.deep:
        return
    about = table.schema.metadata
    if index.digest(table, about[b"shards"].decode()) != about[b"digest"].decode():
        told.add(INDEX, "its digest is not that of its rows: they were changed, or some are missing")
    ids, keys = table.column("id").to_pylist(), table.column("key").to_pylist()
    told.some(
        INDEX, [f"the id of {key} is not that of its key" for i, key in zip(ids, keys, strict=True) if i != key_id(key)]
    )
    if len({*ids}) < len(ids):
        told.add(INDEX, f"{len(ids) - len({*ids}):,} ids occur twice")


def check_files(told: Verified, manifest: Manifest) -> None:
    """What lies beside the shards."""
    for name, sha256 in manifest.files.items():
        if not (told.out / name).is_file():
            told.add(name, "it is not there")
        elif told.deep and told.digest_of(name) != sha256:
            told.add(name, "its sha256 is not the one that the manifest has")


def check_tables(told: Verified, manifest: Manifest | None, table: pa.Table | None) -> None:
    """samples.parquet row for row with the index, dropped.parquet with the counts of the manifest."""
    kept = read_parquet(told, SAMPLES, ["key", "id"] if told.deep else [])
    if kept is not None and table is not None:
        if kept.num_rows != table.num_rows:
            told.add(SAMPLES, f"{kept.num_rows:,} rows, where {INDEX} has {table.num_rows:,}")
        elif told.deep and not all(_same(kept, table, name) for name in ("key", "id")):
            told.add(SAMPLES, f"its rows are not those of {INDEX}")
    lost = read_parquet(told, DROPPED, ["source", "stage", "split", "dropped"])
    if lost is not None and manifest is not None:
        expected, found = counted(manifest, lost)
        for kind in sorted({*expected, *found}):
            if expected[kind] != found[kind]:
                told.add(DROPPED, f"{found[kind]:,} of {', '.join(kind)}, where {MANIFEST} counts {expected[kind]:,}")


def _same(one: pa.Table, other: pa.Table, name: str) -> bool:
    kind = other.schema.field(name).type
    return bool(pc.all(pc.equal(one.column(name).cast(kind), other.column(name)), min_count=0).as_py())


def read_parquet(told: Verified, name: str, columns: list[str]) -> pa.Table | None:
    """Some columns of a table that a build left, those of them that it has; no columns: all rows are counted."""
    try:
        with pq.ParquetFile(told.out / name, memory_map=True) as file:
            return file.read([column for column in columns if column in file.schema_arrow.names])
    except FileNotFoundError:
        told.add(name, "it is not there")
    except (OSError, pa.ArrowException, ValueError) as exc:
        told.add(name, f"it cannot be read: {exc}")
    return None


def counted(manifest: Manifest, lost: pa.Table) -> tuple[Counter[tuple[str, ...]], Counter[tuple[str, ...]]]:
    """Drops by stage, source and reason: as the manifest counts them, and as the table has them."""
    staged = "stage" in lost.column_names
    expected: Counter[tuple[str, ...]] = Counter()
    for count in manifest.counts:
        if staged or count.stage == "shards":
            expected.update({(count.stage, count.source, why): n for why, n in count.dropped.items()})
    names = ["stage", "source", "dropped"] if staged else ["split", "dropped"]
    found: Counter[tuple[str, ...]] = Counter()
    for row in lost.group_by(names).aggregate([([], "count_all")]).to_pylist():
        if staged:
            found[row["stage"], row["source"], row["dropped"]] = row["count_all"]
        elif row["dropped"] != "missing":  # of a list, never found: it came to no stage
            found["shards", f"imagenet_s/{row['split']}", row["dropped"]] = row["count_all"]
    return expected, found


def check_timings(told: Verified) -> None:
    try:
        if (told.out / TIMINGS).exists():
            json.loads((told.out / TIMINGS).read_bytes())
    except ValueError as exc:
        told.add(TIMINGS, f"it cannot be read ({exc}); nothing depends on it", f"rm {told.out / TIMINGS}")


def look_into(told: Verified, shards: list[About], table: pa.Table, members: tuple[str, ...]) -> dict[str, list[str]]:
    """What is wrong inside the tars that are of their right size, by name."""
    number = table.column("shard").to_numpy()
    begins = np.searchsorted(number, np.arange(len(shards) + 1))
    there = [
        (n, about["name"])
        for n, about in enumerate(shards)
        if (path := told.out / about["name"]).is_file() and path.stat().st_size == about["bytes"]
    ]

    def one(which: tuple[int, str]) -> Told:
        n, name = which
        rows = table.slice(int(begins[n]), int(begins[n + 1] - begins[n]))
        if told.deep:
            return look(told.out / name, rows, members)
        return Told([*ends(told.out / name, rows, members)])

    looked = {name: each for (_, name), each in zip(there, disk.ahead(one, there), strict=True)}
    shapes: Counter[Shape] = sum((each.shapes for each in looked.values()), Counter())
    usual = shapes.most_common(1)[0][0] if shapes else ()
    for each in looked.values():
        each.wrong += [f"{each.example[s]}.json: {_differs(s, usual)}" for s in each.shapes if s != usual]
    return {name: each.wrong for name, each in looked.items()}


def _differs(shape: Shape, usual: Shape) -> str:
    """How the keys and types of a JSON differ from those of most samples."""
    odd = [f"{name} ({kind})" for name, kind in shape if (name, kind) not in usual]
    lacks = [name for name, _ in usual if name not in dict(shape)]
    what = [f"has {', '.join(odd)}"] * bool(odd) + [f"lacks {', '.join(lacks)}"] * bool(lacks)
    return f"{' and '.join(what) or 'its keys are in another order'}, unlike the others of the set"


def summary(told: Verified) -> dict[str, Any]:
    """What the last line of `datakit verify` says."""
    files = sorted({finding.file for finding in told.findings})
    return {"out": str(told.out), "deep": told.deep, "shards": told.shards, "samples": told.samples} | {
        "findings": len(told.findings),
        "files": files,
    }
