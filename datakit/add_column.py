"""Adds a member to the samples of a set that is built, in tars of its own: no shard is written again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from . import index
from .disk import becoming, close_out
from .errors import ShardError, SourceError
from .folders import writing
from .stages.shards import BLOCK, END, member
from .stream.joined import FOLDER, write
from .stream.tars import Tars

NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
SHOWN = 5  # names in a message


def add_column(
    shards: str | Path, name: str, source: str | Path, replace: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Add the files of a folder to the samples of a set as a member; gives counts of rows and files.

    shards: a folder with index.arrow. name: of the member, such as seg.png. source: its files, KEY.png or
    CLASS/KEY.png, by the keys of samples; they are copied as they are. Of a sample without a file the column is empty.
    ShardError if samples have such a member already; SourceError where no file belongs to any sample.
    """
    folder, source = Path(shards), Path(source)
    if not (folder / "index.arrow").is_file():
        raise ShardError(f"{folder}: no index.arrow there. Give the folder of a build, or run `datakit index` on it")
    if not NAME.fullmatch(name):
        raise ShardError(f"{name}: give the suffix of a member, such as seg.png: small letters, digits, _ and dots")
    target = folder / FOLDER / f"{name}.arrow"
    with writing(folder, folder):
        if target.exists() and not replace:
            raise ShardError(f"{target} is there: the set has this column. Give --replace, or another name")
        target.unlink(missing_ok=True)
        tars = Tars(index.load(folder / "index.arrow"), folder)
        files = files_of(source, name)
        rows = rows_of(tars, files, name)
        unused = sorted(files.keys() - {*rows.values()})
        if unused:
            some = ", ".join(str(files[stem].relative_to(source)) for stem in unused[:SHOWN])
            say(f"{len(unused):,} files are of no sample, and left out: {some}{' …' if len(unused) > SHOWN else ''}")
        if not rows:
            raise SourceError(f"{source}: no file there has the name of a sample. Name them after keys, as KEY.png")
        (folder / FOLDER).mkdir(exist_ok=True)
        for old in (folder / FOLDER).glob(f"{name}-[0-9][0-9][0-9][0-9][0-9][0-9].tar"):
            old.unlink()
        written, table = _write(tars, folder, name, {row: files[stem] for row, stem in rows.items()})
        with becoming(target, folder) as path:
            write(path, name, tars.digest, written, table)
    close_out(folder / FOLDER)
    say(f"{len(tars) - len(rows):,} of {len(tars):,} samples have none")
    return {"column": name, "samples": len(tars), "filled": len(rows), "unused": len(unused), "tars": len(written)}


def files_of(source: Path, name: str) -> dict[str, Path]:
    """The files below a folder with the column's suffix, by what goes before it; SourceError where two are the same."""
    if not source.is_dir():
        raise SourceError(f"{source}: no such folder")
    last = f".{name.rpartition('.')[2]}"
    found: dict[str, Path] = {}
    for path in sorted(source.rglob(f"*{last}")):
        stem = path.name.removesuffix(f".{name}") if path.name.endswith(f".{name}") else path.name.removesuffix(last)
        if stem in found:
            raise SourceError(f"{found[stem]} and {path}: two files of one name. Remove one of them")
        found[stem] = path
    return found


def rows_of(tars: Tars, files: dict[str, Path], name: str) -> dict[int, str]:
    """The rows of the index that have a file, with its stem; ShardError where they have such a member already."""
    keys = tars.table.column("key").to_pylist()
    rows = {n: stem for n, key in enumerate(keys) if (stem := key.rpartition("/")[2]) in files}
    twice = [keys[n] for n in rows if tars.has(n, name)]
    if twice:
        raise ShardError(
            f"{tars.folder}: {len(twice):,} of these samples have a member {name} already, as {twice[0]}: "
            "give the column another name, or take their files out"
        )
    if len({*rows.values()}) < len(rows):
        raise ShardError(f"{tars.folder}: several samples end in one name: a file would be of more than one")
    return rows


def _write(tars: Tars, folder: Path, name: str, files: dict[int, Path]) -> tuple[list[dict[str, Any]], pa.Table]:
    """A tar for each shard whose samples have files, with its number; and where the value of each row lies."""
    tar, offset, size = (
        np.full(len(tars), -1, np.int32),
        np.full(len(tars), -1, np.int64),
        np.zeros(len(tars), np.int64),
    )
    written: list[dict[str, Any]] = []
    of_shard: dict[int, list[int]] = {}
    for row in sorted(files):
        of_shard.setdefault(int(tars.column["shard"][row]), []).append(row)
    for number, rows in of_shard.items():
        path, hasher, at = folder / FOLDER / f"{name}-{number:06d}.tar", hashlib.sha256(), 0
        with becoming(path, folder) as partial, partial.open("wb") as file:
            for row, key in zip(rows, tars.keys(np.array(rows)), strict=True):
                data = files[row].read_bytes()
                tar[row], offset[row], size[row] = len(written), at + BLOCK, len(data)
                block = member(f"{key}.{name}", data)
                file.write(block)
                hasher.update(block)
                at += len(block)
            file.write(END)
            hasher.update(END)
        about = {"name": f"{FOLDER}/{path.name}", "samples": len(rows), "bytes": at + len(END)}
        written.append({**about, "sha256": hasher.hexdigest()})
    table = pa.table({"id": tars.column["id"], "tar": tar, "offset": offset, "bytes": size})
    return written, table
