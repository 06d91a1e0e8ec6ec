"""The files of a collection: everything below its folder, with archives read in place."""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import SourceError
from ..files import ZIP, File, part_paths, utf8
from ..remote import Remote, Root
from .archive import is_archive, members

_GONE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
_PART = re.compile(r"\.z(01|ip\.\d{3,})\Z", re.IGNORECASE)


def files(root: Root, skip: Callable[[str], bool] = lambda path: False) -> Iterator[File]:
    """Every file below root, by name; the members of an archive in its own order, where its name stands.

    If root is an archive, its members; paths are then relative to the folder that it is in (`files.home`).
    skip: told the path of a file, or of a folder with a / at its end, whether to leave it alone. Nothing else is left
    out: what cannot be read has a packing that says why. Links to folders are followed. Of a store,
    one listing tells all that is below root; of a web server, which lists nothing, root is one archive or one image.
    """
    if isinstance(root, Remote):
        yield from _in_store(root, skip)
        return
    try:
        facts = root.stat()
    except OSError as exc:
        raise SourceError(f"{utf8(str(root))}: {exc.strerror}. Fetch the collection, or correct its path") from None
    if stat.S_ISDIR(facts.st_mode):
        yield from _below(root, skip)
    elif is_archive(root.name):
        yield from members(root.parent, root.name)
    else:
        raise SourceError(f"{utf8(str(root))}: neither a folder nor an archive. Give the folder that it is in")


def _below(root: Path, skip: Callable[[str], bool]) -> Iterator[File]:
    real = os.path.realpath(root)
    levels = [("", real, iter(_listing(root, "")))]
    around = {real}  # folders that the present one is in, links resolved: one of them again is a loop
    while levels:
        prefix, real, names = levels[-1]
        name = next(names, None)
        if name is None:
            around.discard(real)
            levels.pop()
        elif skip(utf8(prefix + name)):
            continue
        elif name.endswith("/"):
            path = prefix + name
            link = (root / path).is_symlink()
            inner = os.path.realpath(root / path) if link else os.path.join(real, name[:-1])  # noqa: PTH118
            if inner not in around:
                around.add(inner)
                levels.append((path, inner, iter(_listing(root, path))))
        elif is_archive(name) and (root / prefix / name).is_file():
            yield from members(root, prefix + name)
        else:
            yield _plain(root, prefix + name)


def _in_store(root: Remote, skip: Callable[[str], bool]) -> Iterator[File]:
    try:
        alone = root.facts() if root.is_file() else None
        found = root.below() if alone is None else {}
    except OSError as exc:
        raise SourceError(f"{root}: {exc.strerror}") from None
    if alone is not None and is_archive(root.name):
        yield from members(root.parent, root.name)
    elif alone is not None:
        yield File(root.name, root.name, alone.size_bytes, alone.stamp, -1, alone.size_bytes, "", -1)
    elif not found:
        raise SourceError(f"{root}: nothing is there. Put the collection there, or correct its path")
    skipped = {"": False}  # by folder
    names: dict[str, set[str]] = {}
    for path in found:
        folder = path[: path.rfind("/") + 1]
        if folder not in skipped:
            above = [folder[: n + 1] for n, letter in enumerate(folder) if letter == "/"]
            skipped[folder] = any(map(skip, above))
        if not skipped[folder]:
            names.setdefault(folder, set()).add(path.removeprefix(folder))
    for path in sorted(folder + name for folder in names for name in _without_parts(root, folder, names[folder])):
        if skip(path):
            continue
        if is_archive(path):
            yield from members(root, path)
        else:
            size_bytes, stamp = found[path]
            packing = "unsafe" if ".." in path.split("/") else ""
            yield File(path, path, size_bytes, stamp, -1, size_bytes, packing, -1)


def _listing(root: Path, folder: str) -> list[str]:
    """Names in a folder, "/" after those of folders, so that sorting them sorts the paths of all files below."""
    try:
        with os.scandir(root / folder) as entries:
            names = {entry.name + "/" * _leads_to_folder(entry) for entry in entries}
    except OSError as exc:
        raise SourceError(f"{utf8(str(root / folder))}: {exc.strerror}. Let the user that runs this read it") from None
    return sorted(_without_parts(root, folder, names))


def _without_parts(root: Root, folder: str, names: set[str]) -> set[str]:
    """Names in a folder, but for the numbered parts of a split zip: they are listed with it."""
    for name in [name for name in names if ZIP.search(name)]:
        names.difference_update(part.name for part in part_paths(root / folder / name) if part.name != name)
    for name in names:
        if _PART.search(name) and not ZIP.search(name):
            raise SourceError(
                f"{utf8(folder + _missing(root / folder / name))}: missing, and {utf8(name)} is a part of it"
            )
    return names


def _missing(part: Root) -> str:
    """Name of the first file without which this part is alone: A.zip for A.z01; A.zip.001 or a later one."""
    if part.name.endswith("01"):
        return part.name[:-2] + "ip"
    numbered = (f"{part.name.rpartition('.')[0]}.{number:03d}" for number in itertools.count(1))
    return next(name for name in numbered if not part.with_name(name).exists())


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or where nobody may look: `_plain` says which
        return False


def _plain(root: Path, path: str) -> File:
    try:
        facts = (root / path).stat()
    except OSError as exc:
        if exc.errno not in _GONE:
            raise SourceError(
                f"{utf8(str(root / path))}: {exc.strerror}. Let the user that runs this read it"
            ) from None
        return File(utf8(path), path, 0, "", -1, 0, "broken_link", -1)
    packing = "" if stat.S_ISREG(facts.st_mode) else "unsafe"  # opening a pipe would wait for ever
    return File(utf8(path), path, facts.st_size, str(facts.st_mtime_ns), -1, facts.st_size, packing, -1)
