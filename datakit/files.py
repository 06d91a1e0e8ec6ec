"""Files of a collection, read where they lie: plain, or members of a tar, a zip or a split zip, without unpacking.

Zip is read as APPNOTE 6.3.10 (PKWARE) describes it; section numbers below are its own.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote_to_bytes

from . import disk, hand, ranges, remote
from .errors import SourceError
from .remote import Facts, Remote, Root, facts

PIECE_BYTES = 1 << 20
SMALL_BYTES = 256 << 20  # up to here a packed member is read whole; a larger one goes through `local`
ZIP = re.compile(r"\.zip(\.001)?\Z", re.IGNORECASE)
READABLE = {"stored": 0, "deflated": 8}  # compression methods (4.4.5) that are read in place
USUAL_BYTES = 1 << 10  # of the name and the extra field of a zip member, at most
_LOCAL = struct.Struct("<4s5H3I2H")  # local file header, 4.3.7
_WHY = {
    "encrypted": "encrypted",
    "unsafe": "a link, a device, or a name that leads out of the collection",
    "sparse": "sparse tar member",
    "truncated": "the archive is cut or damaged here",
    "broken_link": "broken link",
}
_UNDECODABLE = re.compile("[\ud800-\udfff]")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}\Z")


_REMOTE = {errno.EOPNOTSUPP}  # a server without ranges or sizes
_GONE = {errno.ENOENT, errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
OF_THE_MACHINE = frozenset({errno.EACCES, errno.EPERM} | _GONE | _FULL | _REMOTE)  # errors that say nothing of the file


class BadFile(OSError):
    """A file that is there but cannot be read: its message says why, in a few words and without paths."""


class Located(Protocol):
    """Where the bytes of a file are. `File` and `Sample` both say it."""

    @property
    def path(self) -> str: ...
    @property
    def file_bytes(self) -> int: ...
    @property
    def stamp(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def packed_bytes(self) -> int: ...
    @property
    def packing(self) -> str: ...
    @property
    def crc(self) -> int: ...


@dataclass(frozen=True, slots=True)
class File:
    """One file of a collection, plain or in an archive, as its folder or archive lists it."""

    name: str  # within the collection, valid UTF-8; a member is named as if it were unpacked beside its archive
    path: str  # below the collection's folder, as open() takes it; or "train/part1.zip::images/a.png"
    file_bytes: int  # unpacked
    stamp: str  # mtime in ns, or ETag, of the file or archive; of a split archive those of its parts, joined by ","
    offset: int  # of a zip member's local header, counted through all parts; of a tar member's payload; -1: plain
    packed_bytes: int
    packing: str  # "" plain, "tar", "stored", "deflated"; any other name says why it cannot be read
    crc: int  # CRC-32 of a zip member; -1: none is given


def home(root: Root) -> Root:
    """The folder that the paths of a collection are relative to: root, or the folder of the archive that root is."""
    return root.parent if root.is_file() else root


def utf8(path: str) -> str:
    """The path as valid UTF-8. In one with undecodable bytes, these and "%" become "%FF", "%25": `read` takes both."""
    marked = _UNDECODABLE.search(path)
    return re.sub("[%\ud800-\udfff]", lambda found: f"%{ord(found[0]) & 0xFF:02X}", path) if marked else path


def part_paths(archive: Root) -> list[Root]:
    """The files that an archive consists of, in order: itself, with the numbered parts found beside it.

    A.z01, A.z02, …, A.zip (8.5, `zip -s`) is opened as A.zip; A.zip.001, A.zip.002, … (7-Zip) as A.zip.001.
    """
    if archive.name.lower().endswith(".zip"):
        upper = archive.name[-3] == "Z" and archive.with_name(f"{archive.name[:-3]}Z01").exists()  # beside A.ZIP, both
        stem = archive.name[:-3] + ("Z" if upper else "z")
        numbered = (archive.with_name(f"{stem}{n:02d}") for n in itertools.count(1))
        return [*itertools.takewhile(_exists, numbered), archive]
    if ZIP.search(archive.name):
        numbered = (archive.with_name(f"{archive.name[:-3]}{n:03d}") for n in itertools.count(2))
        return [archive, *itertools.takewhile(_exists, numbered)]
    return [archive]


def _exists(path: Root) -> bool:
    return path.exists()


class Parts:
    """The bytes of part files as if they were one file, read by position. One part is open at a time."""

    def __init__(self, paths: Sequence[Root]) -> None:
        self.paths = tuple(paths)
        lost = [utf8(path.name) for path in self.paths if len(self.paths) > 1 and not path.exists()]
        if lost:
            raise SourceError(f"{lost[0]}: missing. Put all parts of the archive in one folder")
        self.facts = tuple(facts(path) for path in self.paths)
        self.stamp = ",".join(fact.stamp for fact in self.facts)
        self.starts = (0, *itertools.accumulate(fact.size_bytes for fact in self.facts))  # of each part, then the end
        self.bytes = self.starts[-1]
        self._index, self._handle = -1, -1
        self._held, self._held_at = b"", 0  # what was fetched last

    def pread(self, count: int, offset: int, until: int = 0) -> bytes:
        """`count` bytes from `offset` on; fewer only where the last part, or one that shrank, ends.

        until: how far it will be read on. From a store, that is fetched in one request, or a few.
        """
        pieces = []
        while count > 0 and offset < self.bytes:
            index = bisect_right(self.starts, offset) - 1
            most = min(count, self.starts[index + 1] - offset)
            path = self.paths[index]
            if isinstance(path, Remote):
                piece = self._fetched(path, index, most, offset, until)
            else:
                piece = os.pread(self._opened(path, index), most, offset - self.starts[index])
            if not piece:
                break
            pieces.append(piece)
            count, offset = count - len(piece), offset + len(piece)
        return b"".join(pieces)

    def _fetched(self, path: Remote, index: int, count: int, offset: int, until: int) -> bytes:
        begin = offset - self._held_at
        if begin < 0 or begin + count > len(self._held):
            end = min(max(offset + count, min(until, offset + remote.PIECE_BYTES)), self.starts[index + 1])
            first = self.starts[index]
            self._held = ranges.piece(path, self.facts[index], offset - first, end - first)
            self._held_at, begin = offset, 0
        return self._held[begin : begin + count]

    def _opened(self, path: Path, index: int) -> int:
        if index != self._index:
            self.close()
            self._handle = os.open(path, os.O_RDONLY)
            self._index = index
        return self._handle

    def close(self) -> None:
        self._held = b""
        if self._index >= 0:
            self._index = -1
            os.close(self._handle)


def read(root: Root, file: Located) -> bytes:
    """The whole content of a file. OSError, most often BadFile, if it cannot be had or is not what was listed."""
    if not file.packing:
        where = on_disk(root, file.path)
        return where.read_bytes() if isinstance(where, Path) else where.read_bytes(_listed(file))
    try:
        return _member(root, file)
    except BadFile:
        if isinstance(root, Path):
            raise
        ranges.piece.cache_clear()  # the network may have damaged it
        return _member(root, file)


def _member(root: Root, file: Located) -> bytes:
    with closing(_archive_of(root, file)) as archive:
        start = _payload_offset(archive, file)
        return b"".join(_pieces(archive, file, start, max(1, file.packed_bytes)))


def _listed(file: Located) -> Facts:
    return Facts(file.file_bytes, file.stamp)


@contextmanager
def stream(root: Root, file: Located) -> Iterator[BinaryIO]:
    """A plain file as a stream. Of one in a store, only those blocks are fetched that are read."""
    with ranges.opened(on_disk(root, file.path), _listed(file)) as (content, _):
        yield content


def head(root: Root, file: Located, count: int) -> bytes:
    """The first bytes of a file or member, at most PIECE_BYTES of them."""
    if not file.packing:
        with stream(root, file) as content:
            return content.read(count)
    with closing(_archive_of(root, file)) as archive:
        return next(_pieces(archive, file, _payload_offset(archive, file), PIECE_BYTES), b"")[:count]


def check_machine(exc: BaseException, root: Root, file: Located) -> None:
    """Raise what tells of the machine and not of the file: a disk, or a store, that is full, gone, or may not be read.

    Such a file must not be dropped for good. GDAL hides the system's words, so the file is looked for. One that lies
    where its disk is damaged is told by its neighbours.
    """
    if isinstance(exc, OSError) and exc.errno == errno.EIO and not file.packing:
        where = on_disk(root, file.path)
        if isinstance(where, Path) and disk.is_hurt(where):
            return
    if isinstance(exc, SourceError) or (isinstance(exc, OSError) and exc.errno in OF_THE_MACHINE):
        raise exc
    if hand.is_held() and (isinstance(exc, MemoryError) or type(exc.__cause__).__name__ == "CPLE_OutOfMemoryError"):
        raise MemoryError(str(exc.__cause__ or exc)) from exc
    if not file.packing:
        with ranges.opened(on_disk(root, file.path)):
            return
    if file.packing == "tar" or file.packing in READABLE:
        with closing(_archive_of(root, file)) as archive, ranges.opened(archive.paths[0]):
            return


@contextmanager
def local(root: Root, file: Located, scratch: Path) -> Iterator[str]:
    """A name that GDAL opens, as long as the context lasts. What lies unpacked in one file of a disk is not copied.

    Only copies have their CRC or MD5 checked. Each has a folder of its own in scratch, where sidecar files go with it.
    """
    suffix = "".join(_SUFFIX.findall(file.path))
    with ExitStack() as lasting:

        def own(name: str) -> Path:
            return Path(lasting.enter_context(TemporaryDirectory(dir=scratch)), name)

        prefix = ""
        where = None if file.packing else on_disk(root, file.path)
        if isinstance(where, Path):
            plain = where.absolute()
        elif where:
            plain = own(where.name if len(where.name.encode()) < 256 else f"copy{suffix}")
            with plain.open("wb") as copy:
                where.download(copy, _listed(file))
        else:
            with closing(_archive_of(root, file)) as archive:
                start, first = _payload_offset(archive, file), archive.paths[0]
                # /vsisubfile takes 0 bytes for "up to the end", so an empty member is copied
                in_one = len(archive.paths) == 1 and 0 < file.file_bytes == file.packed_bytes
                in_one = in_one and file.packing != "deflated"
                if isinstance(first, Path) and in_one:
                    plain, prefix = first.absolute(), f"/vsisubfile/{start}_{file.file_bytes},"
                else:  # what GDAL says of it has its name in it, and is the same wherever the archive lies
                    plain = own(first.name if in_one else f"copy{suffix}")
                    with plain.open("wb") as copy:
                        copy.writelines(_pieces(archive, file, start, PIECE_BYTES))
        if _UNDECODABLE.search(str(plain)):
            plain, target = own(f"link{suffix}"), plain
            plain.symlink_to(target)
        yield f"{prefix}{plain}"


@contextmanager
def glance(root: Root, file: Located, scratch: Path) -> Iterator[tuple[str, Any]]:
    """As `local`, for a header: of a plain file in a store, only those blocks are fetched that are read.

    Gives a name, and what opens it (`opener` of rasterio); None: GDAL itself.
    """
    where = None if file.packing else on_disk(root, file.path)
    if not isinstance(where, Remote):
        with local(root, file, scratch) as name:
            yield name, None
        return
    with ranges.opener(where, _listed(file)) as open_it:

        def opened(path: str, mode: str = "rb") -> Any:
            if path != file.path:  # rasterio tries the opener with a name of its own
                raise FileNotFoundError(path)
            return open_it()

        yield file.path, opened


def on_disk(root: Root, path: str) -> Root:
    """Where a path of the collection lies. One that `utf8` had to spell anew is spelled back."""
    exact = root / path
    as_is = isinstance(root, Remote) or "%" not in path or exact.exists()
    return exact if as_is else root / os.fsdecode(unquote_to_bytes(os.fsencode(path)))


def _archive_of(root: Root, file: Located) -> Parts:
    """The archive that a member is in. Folders and members may have "::" in their names, too."""
    if file.packing != "tar" and file.packing not in READABLE:
        raise BadFile(_WHY.get(file.packing, f"compressed by {file.packing}"))
    end = file.path.find("::")
    later = file.path.find("::", end + 1)
    while later >= 0 and not on_disk(root, file.path[:end]).is_file():
        end, later = later, file.path.find("::", later + 1)
    archive = on_disk(root, file.path[:end])
    return Parts(part_paths(archive)) if isinstance(archive, Path) else _in_store(archive, file.stamp)


@lru_cache(maxsize=16)
def _in_store(archive: Remote, stamp: str) -> Parts:
    """An archive in a store, whose parts are looked for once and not for each member."""
    parts = Parts(part_paths(archive))
    if parts.stamp != stamp:
        raise OSError(errno.EIO, "changed since it was listed", archive.url)
    return parts


def _payload_offset(archive: Parts, file: Located) -> int:
    """Where the packed bytes of a member begin. The local header's name and extra field have lengths of their own."""
    start = file.offset
    if file.packing != "tar":
        header = archive.pread(_LOCAL.size, file.offset, file.offset + _LOCAL.size + USUAL_BYTES + file.packed_bytes)
        if len(header) < _LOCAL.size:
            raise BadFile("file ends early")
        signature, _, _, method, *_, name_bytes, extra_bytes = _LOCAL.unpack(header)
        if signature != b"PK\3\4" or method != READABLE[file.packing]:
            raise BadFile("zip member: its header is not where the archive says")
        start += _LOCAL.size + name_bytes + extra_bytes
    if start + file.packed_bytes > archive.bytes:
        raise BadFile("file ends early")
    return start


def _pieces(archive: Parts, file: Located, start: int, piece_bytes: int) -> Iterator[bytes]:
    """The unpacked bytes of a member in turn: never more than it has by its listing, and BadFile if they differ."""
    end = start + file.packed_bytes
    if file.packing == "deflated":
        piece_bytes = PIECE_BYTES  # zlib copies what it has not consumed at every call
    packed = (archive.pread(min(piece_bytes, end - at), at, end) for at in range(start, end, piece_bytes))
    size_bytes, crc = 0, 0
    for piece in _inflated(packed, file.file_bytes + 1) if file.packing == "deflated" else packed:
        size_bytes += len(piece)
        if size_bytes > file.file_bytes:
            raise BadFile("zip member: larger than the archive says")
        if file.crc >= 0:
            crc = zlib.crc32(piece, crc)
        yield piece
    if size_bytes < file.file_bytes:
        raise BadFile("file ends early")
    if file.crc >= 0 and crc != file.crc:
        raise BadFile("zip member: CRC does not match")


def _inflated(packed: Iterable[bytes], most_bytes: int) -> Iterator[bytes]:
    """The packed bytes inflated, `most_bytes` at most, however much the stream would give."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    # an empty piece last: zlib may hold output back after all input is taken
    for piece in itertools.chain(packed, [b""]):
        while most_bytes and not inflater.eof:
            try:
                unpacked = inflater.decompress(piece, min(most_bytes, PIECE_BYTES))
            except zlib.error:
                raise BadFile("zip member: damaged") from None
            most_bytes -= len(unpacked)
            piece = inflater.unconsumed_tail
            yield unpacked
            if not piece and not unpacked:
                break
