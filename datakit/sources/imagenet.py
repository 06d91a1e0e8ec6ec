"""ImageNet-1k where it lies: class folders, the official tars with tars inside them, WebDataset shards, zips.

An image is known by its file's name alone (n01440764_10026, ILSVRC2012_val_00000293), so that every layout gives the
same. Nothing is unpacked: a member is told by its offset.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import SourceError
from ..files import ZIP, BadFile, File, Parts, part_paths, read, utf8
from ..ranges import opened
from ..remote import Remote, Root
from ..sample import key_id
from . import folder
from .archive import members

IMAGE = re.compile(r"(n\d{8}_\d+|ILSVRC2012_val_\d{8})\.(?i:jpe?g)")
WNID = re.compile(r"n\d{8}")
DEVKIT = re.compile(r"ILSVRC2012_devkit_t12\.tar\.gz")
FEW = pa.dictionary(pa.int32(), pa.string())  # texts of which there are few, often
IMAGES = pa.schema(
    [("stem", pa.string()), ("folder", FEW)]  # as the file is named, and the folder or tar that it lies in
    + [("path", pa.string()), ("stamp", FEW), ("packing", FEW)]
    + [(name, pa.int64()) for name in ("file_bytes", "offset", "packed_bytes", "crc")]
)
BLOCK = 512  # bytes of a tar header, and what a payload is padded to
BATCH = 1 << 14  # rows that are held as Python objects
SPACES = b" " * 8  # what stands for the checksum of a header while it is summed up
ADLER = 65521


@dataclass
class Found:
    """Images as they are found, held as columns, and where the devkit is."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    batches: list[pa.Table] = field(default_factory=list)
    devkit: str = ""

    def add(self, stem: str, parent: str, file: File) -> None:
        self.put((stem, parent, *(getattr(file, name) for name in IMAGES.names[2:])))

    def put(self, row: tuple[Any, ...]) -> None:
        """An image, as IMAGES has it."""
        self.rows.append(row)
        if len(self.rows) >= BATCH:
            self.flush()

    def flush(self) -> None:
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(IMAGES)
        arrays = [pa.array(list(values), kind.type) for values, kind in zip(columns, IMAGES, strict=True)]
        self.batches.append(pa.table(arrays, schema=IMAGES))
        self.rows = []

    def table(self) -> pa.Table:
        """IMAGES, each image once, and `id`, the key's. SourceError where two files of one name differ in size."""
        self.flush()
        table = pa.concat_tables(self.batches).unify_dictionaries()
        self.batches = []
        table = table.append_column("id", pa.array(ids_of(table.column("stem"))))
        if len(np.unique(table.column("id").to_numpy())) == table.num_rows:
            return table
        packed = pc.not_equal(table.column("packing").cast(pa.string()), "")
        keys = pa.table({"stem": table.column("stem"), "packed": packed, "path": table.column("path")})
        table = table.take(pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names]))
        stems, sizes = table.column("stem").combine_chunks(), table.column("file_bytes").to_numpy()
        again = np.flatnonzero(pc.equal(stems[1:], stems[:-1])) + 1
        differ = again[sizes[again] != sizes[again - 1]]
        if len(differ):
            one, other = (table.column("path")[int(differ[0]) - n].as_py() for n in (1, 0))
            raise SourceError(f"{one} and {other}: different files of one name. Leave one of the two copies")
        keep = np.ones(table.num_rows, bool)
        keep[again] = False
        return table.filter(pa.array(keep))


def ids_of(keys: pa.ChunkedArray) -> NDArray[np.int64]:
    """Ids of many keys, a batch at a time."""
    batches = pa.table({"key": keys}).to_batches(max_chunksize=BATCH)
    return np.fromiter((key_id(key) for batch in batches for key in batch.column(0).to_pylist()), np.int64)


def images(root: Root, skip: Callable[[Path], bool] = lambda path: False) -> Found:
    """The images of ImageNet-1k below a folder. skip: told of a folder whether to leave it alone."""
    found = Found()
    if isinstance(root, Remote):
        for file in folder.files(root):
            _one(found, root, file, file.name.rpartition("/"))
        return found
    if root.is_file():
        raise SourceError(f"{root}: give the folder that it lies in")
    for directory in _folders(root, skip):
        with os.scandir(directory) as entries:
            names = sorted((entry for entry in entries if entry.is_file()), key=lambda entry: entry.name)
        below = os.path.relpath(directory, root)
        prefix = "" if below == "." else f"{below}/"
        parent = os.path.basename(directory)  # noqa: PTH119
        for entry in names:
            known = IMAGE.fullmatch(entry.name)
            if known:
                facts = entry.stat()
                size, stamp = facts.st_size, str(facts.st_mtime_ns)
                found.put((known[1], parent, prefix + entry.name, stamp, "", size, -1, size, -1))
            elif entry.name.endswith(".tar"):
                _tar(found, root, prefix + entry.name)
            elif ZIP.search(entry.name):
                for member in members(root, prefix + entry.name):
                    _one(found, root, member, member.name.rpartition("/"))
            elif DEVKIT.fullmatch(entry.name):
                found.devkit = prefix + entry.name
    return found


def _folders(root: Path, skip: Callable[[Path], bool]) -> Iterator[str]:
    """A folder and all below it, in order; links are followed, loops are not."""
    waiting, seen = [str(root)], set()
    while waiting:
        directory = waiting.pop()
        facts = os.stat(directory)  # noqa: PTH116
        if (facts.st_dev, facts.st_ino) in seen or skip(Path(directory)):
            continue
        seen.add((facts.st_dev, facts.st_ino))
        yield directory
        with os.scandir(directory) as entries:
            waiting += sorted((entry.path for entry in entries if entry.is_dir()), reverse=True)


def _one(found: Found, root: Root, file: File, named: tuple[str, str, str]) -> None:
    """A file that another lister found: an image, or a tar within an archive or in a store."""
    parent, _, name = named
    known = IMAGE.fullmatch(name)
    if known:
        found.add(known[1], parent.rpartition("/")[2], file)
    elif DEVKIT.fullmatch(name) and not file.packing:
        found.devkit = file.path


def _tar(found: Found, root: Path, path: str) -> None:
    """The images of a tar of a disk: its own members, and those of the tars among them."""
    others: dict[str, list[File]] = {}  # members of samples whose key is no image's name
    with closing(Parts(part_paths(root / path))) as archive:
        for name, offset, size in headers(archive, utf8(path), 0, archive.bytes):
            parent, _, last = name.rpartition("/")
            if last.endswith(".tar"):
                within = f"{path}::{name}::"
                for inner, start, count in headers(archive, utf8(within), offset, offset + size):
                    if known := IMAGE.fullmatch(inner.rpartition("/")[2]):
                        found.put((known[1], last[:-4], within + inner, archive.stamp, "tar", count, start, count, -1))
                continue
            where = File(name, f"{path}::{name}", size, archive.stamp, offset, size, "tar", -1)
            if known := IMAGE.fullmatch(last):
                found.add(known[1], parent.rpartition("/")[2], where)
            elif last.lower().endswith((".jpg", ".jpeg", ".json")):
                others.setdefault(name.rpartition(".")[0], []).append(where)
    _named_within(found, root, others)


def _named_within(found: Found, root: Path, others: dict[str, list[File]]) -> None:
    """Samples of shards whose JSON names the image file, as `filename` or under any other key."""
    for files in others.values():
        pictures = [file for file in files if not file.name.endswith(".json")]
        notes = [file for file in files if file.name.endswith(".json")]
        if len(pictures) != 1 or len(notes) != 1:
            continue
        try:
            said = json.loads(read(root, notes[0]))
        except (BadFile, ValueError):
            continue
        for value in said.values() if isinstance(said, dict) else ():
            parent, _, name = value.rpartition("/") if isinstance(value, str) else ("", "", "")
            if known := IMAGE.fullmatch(name):
                found.add(known[1], parent.rpartition("/")[2], pictures[0])
                break


def headers(archive: Parts, path: str, begin: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset of the payload and size of each file of the tar that lies in [begin, end) of an archive.

    Plain headers are read here, in a tenth of tarfile's time; from the first that is not plain on, tarfile reads.
    """
    at = begin
    while at + BLOCK <= end:
        head = archive.pread(BLOCK, at, end)
        if not head.rstrip(b"\0"):
            return
        plain = _plain(head)
        if plain is None:
            yield from _by_tarfile(archive, path, at, end)
            return
        name, size = plain
        if at + BLOCK + size > end:
            raise SourceError(f"{path}: cut short within {name}: fetch it again")
        if head[156] not in b"5":
            yield name, at + BLOCK, size
        at += BLOCK + -(-size // BLOCK) * BLOCK
    if at > begin or end == begin:
        raise SourceError(f"{path}: cut short after {at - begin} bytes: fetch it again")
    raise SourceError(f"{path}: is not a tar")


def _plain(head: bytes) -> tuple[str, int] | None:
    """Name and size in a header of a file or folder that says both by itself."""
    if head[156] not in b"05\0" or (head[257:262] == b"ustar" and head[345]) or head[124] & 0x80:
        return None
    try:
        said, size = int(head[148:156].strip(b" \0"), 8), int(head[124:136].strip(b" \0") or b"0", 8)
        name = head[:100].rstrip(b"\0").decode("ascii")
    except ValueError:
        return None
    summed = zlib.adler32(head[:148] + SPACES + head[156:]) & 0xFFFF  # 1 and all bytes, modulo 65,521
    return (name, size) if summed == (said + 1) % ADLER else None


def _by_tarfile(archive: Parts, path: str, begin: int, end: int) -> Iterator[tuple[str, int, int]]:
    try:
        with tarfile.open(fileobj=_Slice(archive, begin, end), mode="r:", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                if info.isreg():
                    yield utf8(info.name), begin + info.offset_data, info.size
    except tarfile.TarError as exc:
        raise SourceError(f"{path}: not a plain tar, or damaged ({exc})") from None


class _Slice(io.RawIOBase):
    """A part of an archive as a file of its own."""

    def __init__(self, archive: Parts, begin: int, end: int) -> None:
        self.archive, self.begin, self.end, self.at = archive, begin, end, begin

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at - self.begin

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: self.begin, os.SEEK_CUR: self.at, os.SEEK_END: self.end}[whence]
        self.at = base + offset
        return self.tell()

    def read(self, size: int = -1) -> bytes:
        most = max(self.end - self.at, 0)
        data = self.archive.pread(most if size < 0 else min(size, most), self.at)
        self.at += len(data)
        return data


def val_wnids(root: Root, devkit: str) -> dict[str, str]:
    """The class of each validation image by the development kit: {stem: wnid}. SourceError if it is another file."""
    import scipy.io

    try:
        with opened(root / devkit) as (stream, _), tarfile.open(fileobj=stream, mode="r:gz") as tar:
            inside = {name.rpartition("/")[2]: name for name in tar.getnames()}
            truth, meta = (
                tar.extractfile(inside[name]).read()  # type: ignore[union-attr]
                for name in ("ILSVRC2012_validation_ground_truth.txt", "meta.mat")
            )
        synsets = scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        wnids = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets}
        numbers = [int(line) for line in truth.split()]
        return {f"ILSVRC2012_val_{n:08d}": wnids[number] for n, number in enumerate(numbers, 1)}
    except (KeyError, ValueError, OSError, tarfile.TarError) as exc:
        raise SourceError(f"{devkit}: not the development kit of ILSVRC2012 ({exc}). Fetch it again") from None
