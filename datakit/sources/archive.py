"""The members of an archive, listed from its own headers: zip, split zip and tar. Nothing is unpacked or followed.

Zip: APPNOTE 6.3.10 (PKWARE), cited by section. Its directory is a stream: 13 million ZipInfo would fill 10 GB.
"""

from __future__ import annotations

import posixpath
import re
import shlex
import stat
import struct
import tarfile
import zlib
from collections import namedtuple
from collections.abc import Iterator
from contextlib import closing
from typing import BinaryIO, NamedTuple

from .. import ranges, remote
from ..errors import SourceError
from ..files import PIECE_BYTES, ZIP, File, Parts, part_paths, utf8
from ..remote import Remote, Root

TAR = re.compile(r"\.tar\Z", re.IGNORECASE)
CLOSED = {  # what cannot be read in place, by what unpacks it
    "tar -xf": re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|lzma|z)|tgz|tbz2?|txz|tzst)\Z", re.IGNORECASE),
    "unrar x": re.compile(r"\.rar\Z", re.IGNORECASE),
    "7z x": re.compile(r"\.7z\Z|\.(7z|rar|tar|tgz|tar\.\w+)\.0*1\Z", re.IGNORECASE),
}
METHODS = {0: "stored", 8: "deflated", 9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz"}  # 4.4.5
_ENTRY = struct.Struct("<5xB2x2H4x3I4H2x2I")
Entry = namedtuple(  # what is used of a header of the central directory, 4.3.12: numbers all
    "Entry",
    "system flags method crc packed_bytes file_bytes name_bytes extra_bytes comment_bytes disk attributes offset",
)
_ENTRY_MOST_BYTES = _ENTRY.size + 3 * 0xFFFF
_END = struct.Struct("<4x2H2xH2IH")  # end of central directory, 4.3.16
_END64 = struct.Struct("<16x2I8x3Q")  # zip64 end of central directory, 4.3.14
_LOCATOR = struct.Struct("<4xIQI")  # where that is, 4.3.15
_FAT, _UNIX, _MAC = 0, 3, 19  # the system that an entry was made on, 4.4.2
_LEADS_OUT = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|\Z)|\0")
_NO_HEADER = (tarfile.TarError, ValueError, ArithmeticError, LookupError, MemoryError, RecursionError)


class Directory(NamedTuple):
    """Where the central directory is; `disks` is where each disk begins, which offsets are relative to."""

    disk: int  # that this record is on: the last one
    first_disk: int
    entries: int
    size_bytes: int
    offset: int
    disks: tuple[int, ...] = (0,)


def is_archive(name: str) -> bool:
    """Whether a file of this name holds files of the collection."""
    return any(suffix.search(name) for suffix in (ZIP, TAR, *CLOSED.values()))


def members(root: Root, path: str) -> Iterator[File]:
    """The members of the archive at root/path, in its own order, without folders.

    The packing of one that cannot be read says why: "unsafe" is a link, a device, or a name that leads out.
    """
    for command in (command for command, suffix in CLOSED.items() if suffix.search(path)):
        todo = f"Run `{command} {shlex.quote(utf8(posixpath.basename(path)))}` in its folder, then move it away"
        raise SourceError(f"{utf8(path)}: cannot be read in place. {todo} Or name it in the layout's `ignore`")
    try:
        where = root / path
        if isinstance(where, Remote) and not where.gives_parts():
            raise SourceError(f"{where}: {remote.WHOLE_ONLY}")
        yield from (_tar if TAR.search(path) else _zip)(root, path)
    except OSError as exc:
        raise SourceError(f"{utf8(path)}: {exc.strerror}") from None


def _damaged(path: str, what: str) -> SourceError:
    advice = "wait, fetch it again, or, if nothing of it is needed, name it in the layout's `ignore`"
    return SourceError(f"{utf8(path)}: {what}. It is damaged or still downloading: {advice}")


def _named(archive: str, member: str) -> tuple[str, str, bool]:
    """Name and path of a member, and whether its name stays within the archive's folder."""
    path = f"{archive}::{utf8(member)}"
    steps = [step for step in member.split("/") if step not in ("", ".")]
    inside = bool(steps) and not _LEADS_OUT.search(member)
    return utf8(posixpath.join(posixpath.dirname(archive), *steps) if inside else path), path, inside


def _zip(root: Root, path: str) -> Iterator[File]:
    with closing(Parts(part_paths(root / path))) as archive:
        directory = _directory(archive, path)
        for entry, member in _entries(archive, directory, path):
            folder = member.endswith("/")
            if folder and not entry.file_bytes:
                continue
            name, where, inside = _named(path, member)
            packing = _packing(entry) if inside and not folder else "unsafe"
            offset = directory.disks[entry.disk] + entry.offset
            yield File(name, where, entry.file_bytes, archive.stamp, offset, entry.packed_bytes, packing, entry.crc)


def _packing(entry: Entry) -> str:
    mode = entry.attributes >> 16 if entry.system in (_UNIX, _MAC) else 0
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "unsafe"
    return "encrypted" if entry.flags & 1 else METHODS.get(entry.method, f"method {entry.method}")


def _entries(archive: Parts, directory: Directory, path: str) -> Iterator[tuple[Entry, str]]:
    """The entries of the central directory and their names; a megabyte of it is held at a time."""
    at = directory.disks[directory.first_disk] + directory.offset
    end = at + directory.size_bytes
    held, used, seen = b"", 0, 0
    while at < end or used < len(held):
        if len(held) - used < _ENTRY_MOST_BYTES and at < end:
            held, used = held[used:] + archive.pread(min(PIECE_BYTES, end - at), at), 0
            at = min(end, at + PIECE_BYTES)
        if len(held) - used < _ENTRY.size or not held.startswith(b"PK\1\2", used):
            raise _damaged(path, f"its list of members is wrong after {seen}")
        entry = Entry._make(_ENTRY.unpack_from(held, used))
        name_end = used + _ENTRY.size + entry.name_bytes
        name, extra = held[used + _ENTRY.size : name_end], held[name_end : name_end + entry.extra_bytes]
        used, seen = name_end + entry.extra_bytes + entry.comment_bytes, seen + 1
        entry = _widened(entry, extra)
        if used > len(held) or entry.disk >= len(directory.disks):
            raise _damaged(path, f"its list of members is wrong after {seen}")
        yield entry, _spelled(entry, name, extra)
    if (seen - directory.entries) & 0xFFFF:  # some writers count 65,536 and more members in 16 bits
        raise _damaged(path, f"lists {seen} of {directory.entries} members")


def _extra_field(extra: bytes, kind: int) -> bytes:
    """The data of one extra field, 4.5.1; empty if there is none."""
    at = 0
    while at + 4 <= len(extra):
        found, size_bytes = struct.unpack_from("<2H", extra, at)
        if found == kind:
            return extra[at + 4 : at + 4 + size_bytes]
        at += 4 + size_bytes
    return b""


def _widened(entry: Entry, extra: bytes) -> Entry:
    """The entry with what did not fit taken from its zip64 field, 4.5.3: only such values are there, in this order."""
    if entry.disk != 0xFFFF and 0xFFFFFFFF not in (entry.file_bytes, entry.packed_bytes, entry.offset):
        return entry
    field = _extra_field(extra, 0x0001)
    for name in ("file_bytes", "packed_bytes", "offset", "disk"):
        most, size_bytes = (0xFFFF, 4) if name == "disk" else (0xFFFFFFFF, 8)
        if getattr(entry, name) == most and len(field) >= size_bytes:
            entry, field = entry._replace(**{name: int.from_bytes(field[:size_bytes], "little")}), field[size_bytes:]
    return entry


def _spelled(entry: Entry, name: bytes, extra: bytes) -> str:
    """The name as unpacking on Linux would spell it."""
    spelled = _extra_field(extra, 0x7075) if b"up" in extra else b""  # Info-ZIP's UTF-8 name, 4.6.9
    if len(spelled) > 5 and int.from_bytes(spelled[1:5], "little") == zlib.crc32(name):
        text = spelled[5:].decode("utf-8", "surrogateescape")
    elif entry.flags & 0x800 or name.isascii():
        text = name.decode("utf-8", "surrogateescape")
    else:
        try:  # systems whose names are UTF-8 often leave the flag out (macOS always): as unzip, take them at their word
            text = name.decode("utf-8" if entry.system in (_UNIX, _MAC) else "cp437")
        except UnicodeDecodeError:
            text = name.decode("cp437")
    # 4.4.17.1 forbids backslashes, yet .NET before 4.6.1 writes them
    return text.replace("\\", "/") if entry.system == _FAT and "/" not in text else text


def _directory(archive: Parts, path: str) -> Directory:
    """Where the central directory is, from the records at the archive's end."""
    at, found = _end(archive, path)
    found = found._replace(disks=(0,) if path[-1].isdigit() else archive.starts[:-1])  # A.zip.001, … is one disk, cut
    have, need = len(found.disks), found.disk + 1
    if have != need:
        part = f"{utf8(path[:-2])}{min(have, need):02d} is {'missing from' if have < need else 'not one of'}"
        raise SourceError(f"{part} the {need} parts of {utf8(path)}: put these, and no others, in one folder")
    if not found.size_bytes and not found.entries:
        return found._replace(first_disk=0)
    if found.first_disk >= have:
        raise _damaged(path, "its end record is not a zip's")
    start = found.disks[found.first_disk] + found.offset
    if archive.pread(4, start) != b"PK\1\2":
        # A program may stand before the archive. If it is an archive, this end is an inner one's, and the outer is cut.
        shift = at - found.size_bytes - start
        if have > 1 or shift <= 0 or archive.pread(2, 0) == b"PK" or archive.pread(4, start + shift) != b"PK\1\2":
            raise _damaged(path, "its list of members is not where its end says")
        found, start = found._replace(disks=(shift,)), start + shift
    return found


def _end(archive: Parts, path: str) -> tuple[int, Directory]:
    """Where the end record is, or the zip64 one if there is one, and what it says."""
    first = max(0, archive.bytes - _END.size - 0xFFFF)
    tail = archive.pread(archive.bytes - first, first)
    found = [m.start() for m in re.finditer(b"PK\5\6", tail) if m.start() + _END.size <= len(tail)]
    # a comment may hold the signature, too: the record is the one whose comment ends where the file does
    exact = [at for at in found if at + _END.size + int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail)]
    if not found:
        more = f", or {utf8(path[:-3])}{len(archive.paths) + 1:03d} is missing" if path[-1].isdigit() else ""
        raise _damaged(path, f"has no end record{more}")
    at = (exact or found[-1:])[0]
    plain = Directory(*_END.unpack_from(tail, at)[:5])
    at += first
    locator = archive.pread(_LOCATOR.size, at - _LOCATOR.size) if at >= _LOCATOR.size else b""
    if not locator.startswith(b"PK\6\7"):
        return at, plain
    disk, offset, disks = _LOCATOR.unpack(locator)
    last = max(disks - 1, plain.disk % 0xFFFF)  # what the zip64 record calls this disk is where it is itself
    for place in (at - _LOCATOR.size - _END64.size, offset + archive.starts[min(disk, len(archive.paths))]):
        record = archive.pread(_END64.size, max(0, place))
        if record.startswith(b"PK\6\6") and len(record) == _END64.size:
            wide = Directory(*_END64.unpack(record))
            return place, wide._replace(disk=max(last, wide.disk))
    return at, plain._replace(disk=last)


def _tar(root: Root, path: str) -> Iterator[File]:
    with ranges.opened(root / path) as (stream, (size_bytes, stamp)):
        end = 0
        for info, end in _tar_headers(stream):  # noqa: B007
            name, where, inside = _named(path, info.name)
            whole = info.offset_data + info.size <= size_bytes
            packing = "sparse" if info.issparse() else "tar" if whole else "truncated"
            packing = packing if inside and info.isreg() else "unsafe"
            if not info.isdir():
                yield File(name, where, info.size, stamp, info.offset_data, info.size, packing, -1)
            if packing == "truncated":
                return
        stream.seek(end)
        block = stream.read(tarfile.BLOCKSIZE)
        if block != bytes(tarfile.BLOCKSIZE):
            if not end and len(block) == tarfile.BLOCKSIZE and block[257:262] != b"ustar":
                raise _damaged(path, "is not a tar")
            yield File(utf8(path), f"{path}::", 0, stamp, end, 0, "truncated", -1)


def _tar_headers(stream: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """The headers of a tar, each with where the next one is; ends where there is none that can be read."""
    end = -1
    try:
        tar = tarfile.TarFile(fileobj=stream, encoding="utf-8", errors="surrogateescape")
        # a size below 0 would lead back, and for ever (CVE-2025-8194)
        while (info := tar.next()) is not None and info.size >= 0 and tar.offset > end:
            tar.members = []  # type: ignore[attr-defined]  # it would keep every header
            end = tar.offset
            yield info, end
    except _NO_HEADER:
        return
