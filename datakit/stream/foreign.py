"""An index of any WebDataset tars, whoever wrote them: made once, and found again as long as they do not change."""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from .. import disk, index
from ..errors import ShardError, SourceError
from ..remote import Facts, Remote
from ..sample import digest, key_id
from .cache import Cache, File, user_folder
from .tars import Tars

Member = tuple[str, str, int, int]  # key, suffix, offset, size


def tars_of(paths: Sequence[Path]) -> list[Path]:
    """The tars that are named: folders stand for all of theirs, by name. SourceError where there is none."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise SourceError(f"{path}: no such file or folder")
        found += sorted(path.rglob("*.tar")) if path.is_dir() else [path]
    if not found:
        raise SourceError(f"{', '.join(map(str, paths))}: no tar there")
    return found


def indexed(paths: Sequence[Path]) -> Tars:
    """Tars with their index, from the user's cache if these very files (path, size, time) were indexed before."""
    tars = [path.absolute() for path in tars_of(paths)]
    facts = [(str(path), str((info := path.stat()).st_size), str(info.st_mtime_ns)) for path in tars]
    folder = user_folder() / "indexes"
    path = folder / f"{digest('foreign', *(text for fact in facts for text in fact))}.arrow"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write(tars, path)
    return Tars(index.load(path), folder)


def write(tars: Sequence[Path], path: Path, folder: Path | None = None) -> int:
    """Index tars; those that lie in `folder` are named from there, others in full. Gives the number of samples.

    ShardError names a tar that is cut short or none, and two samples of one key in one tar.
    """
    tables: list[pa.Table] = []
    shards = []
    for number, tar in enumerate(tars):
        tables.append(_table(tar, number, tar.stem))
        name = str(tar.relative_to(folder)) if folder and tar.is_relative_to(folder) else str(tar.absolute())
        shards.append({"name": name, "samples": tables[-1].num_rows, "bytes": tar.stat().st_size})
    return _write(tables, shards, path)


def indexed_in(cache: Cache, found: dict[str, Facts]) -> Tars:
    """Tars of a store with their index, by URL: those that were not indexed before are fetched one after another."""
    said = (text for url, facts in found.items() for text in (url, str(facts.size_bytes), facts.stamp))
    folder = user_folder() / "indexes"
    path = folder / f"{digest('foreign', *said)}.arrow"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        tables, shards = [], []
        for number, (url, facts) in enumerate(found.items()):
            file = File(Remote(url), facts.size_bytes, stamp=facts.stamp)
            held = cache.open(file)
            try:
                tables.append(_table(cache.path(file), number, url.rpartition("/")[2].removesuffix(".tar")))
            except ShardError as exc:
                raise ShardError(f"{url}: {exc}") from None
            del held
            told = {"bytes": facts.size_bytes, "stamp": facts.stamp}
            shards.append({"name": url, "samples": tables[-1].num_rows, **told})
        _write(tables, shards, path)
    return Tars(index.load(path), folder, cache)


def _write(tables: Sequence[pa.Table], shards: Sequence[dict[str, Any]], path: Path) -> int:
    wanted = index.schema(
        tuple(sorted({name[:-6] for table in tables for name in table.column_names[3:] if name.endswith("_bytes")}))
    )
    table = pa.concat_tables([_filled(table, wanted) for table in tables])
    with disk.becoming(path, path.parent) as partial:
        index.write(table, partial, shards)
    return int(table.num_rows)


def _table(tar: Path, number: int, stem: str) -> pa.Table:
    """The samples of a tar: key, id, shard, and the places of the members that there are. stem: of its own name."""
    keys: list[str] = []
    places: dict[str, tuple[array[int], array[int]]] = {}
    for key, members in samples_of(tar):
        for suffix, place in members.items():
            if suffix not in places:
                places[suffix] = array("q", [-1] * len(keys)), array("q", [0] * len(keys))
            for column, value in zip(places[suffix], place, strict=True):
                column.append(value)
        keys.append(key)
        for offsets, sizes in places.values():
            if len(offsets) < len(keys):
                offsets.append(-1)
                sizes.append(0)
    ids = pa.array((key_id(f"{stem}/{key}") for key in keys), pa.int64())
    columns = {
        "key": pa.array(keys, pa.large_string()),
        "id": ids,
        "shard": pa.repeat(pa.scalar(number, pa.int32()), len(keys)),
    }
    for suffix, (offsets, sizes) in places.items():
        columns |= {
            f"{suffix}_offset": pa.array(np.array(offsets, np.int64)),
            f"{suffix}_bytes": pa.array(np.array(sizes, np.int64)),
        }
    return pa.table(columns)


def _filled(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    """A table with the columns of an index; members that it has not are at -1."""

    def column(name: str) -> Any:
        if name in table.column_names:
            return table.column(name)
        empty = -1 if name.endswith("_offset") else "" if name in ("source", "split") else 0
        return pa.repeat(pa.scalar(empty, wanted.field(name).type), table.num_rows)

    return pa.table([column(name) for name in wanted.names], schema=wanted)


def samples_of(tar: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Keys of a tar with the offset and size of each member, as webdataset groups them: neighbours of one key.

    A key is the path up to the first dot of the file's name; what follows the dot is the suffix, in small letters.
    """
    seen: set[str] = set()
    here: str | None = None
    members: dict[str, tuple[int, int]] = {}
    for key, suffix, offset, size in members_of(tar):
        if key != here:
            if here is not None:
                yield here, members
            if key in seen:
                raise ShardError(f"{tar}: members of {key} do not follow one another, or two samples have this key")
            seen.add(key)
            here, members = key, {}
        if suffix in members:
            raise ShardError(f"{tar}: two members {key}.{suffix}")
        members[suffix] = (offset, size)
    if here is not None:
        yield here, members


def members_of(tar: Path) -> Iterator[Member]:
    """The files of a tar that belong to samples. ShardError where it is cut short or compressed."""
    size_bytes = tar.stat().st_size
    with tar.open("rb", buffering=1 << 16) as stream:
        for info in _headers(tar, stream):
            if info.offset_data + info.size > size_bytes:
                raise ShardError(f"{tar}: cut short within {info.name}, at byte {size_bytes}")
            folder, _, name = info.name.rpartition("/")
            stem, dot, suffix = name.partition(".")
            if info.isreg() and dot and stem and not name.startswith("._"):
                yield f"{folder}/{stem}".lstrip("/"), suffix.lower(), info.offset_data, info.size


def _headers(tar: Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="replace") as opened:
            while (info := opened.next()) is not None:
                opened.members = []  # type: ignore[attr-defined]  # it would keep every header
                yield info
    except tarfile.TarError as exc:
        raise ShardError(f"{tar}: not a plain tar, or damaged ({exc})") from None
