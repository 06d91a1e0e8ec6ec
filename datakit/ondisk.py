"""What lies on disk of a collection beside what its manifest says: counts, versions, what is missing or extra."""

from __future__ import annotations

import posixpath
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .files import File, utf8
from .manifest import Collection, Layout
from .remote import Root, facts
from .sample import Sample
from .sources import folder
from .sources.archive import CLOSED
from .sources.labels import TOKEN, label_path
from .sources.lists import Lists, absent, warning
from .sources.scan import Source

SHOWN, NAME_CHARS = 5, 36  # names that a line shows, and how much of each
NEAR = 0.01  # bytes as published: archives and folders differ a little


@dataclass
class Some:
    """How many files of a kind there are, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(name)


@dataclass
class OnDisk:
    """What is there of one collection: counts, no lists of names."""

    images: Counter[str] = field(default_factory=Counter)  # by split; "": of none
    bytes: Counter[str] = field(default_factory=Counter)  # of images, by split
    unlabelled: dict[tuple[str, str], Some] = field(default_factory=dict)  # images without, by kind of label and split
    lost: list[str] = field(default_factory=list)  # label files of many images that are not there
    others: dict[tuple[str, str], Some] = field(default_factory=dict)  # neither image nor label: top folder, suffix
    idle: list[str] = field(default_factory=list)  # globs that match nothing
    idle_labels: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)  # label files that are there, but no glob lists them
    closed: dict[str, int] = field(default_factory=dict)  # archives that cannot be read in place: bytes
    absent: dict[str, list[str]] = field(default_factory=dict)  # globs of lists that match nothing, by split


def find(source: Source, root: Root, *not_in: Root) -> tuple[list[File], dict[str, int]]:
    """The files of a collection as a build lists them, and the bytes of archives that it cannot read in place."""
    ours = {path.resolve() for path in not_in}

    def skip(path: str) -> bool:
        return source.collection.layout.ignores(path) or (path.endswith("/") and (root / path).resolve() in ours)

    return walk(root, skip)


def walk(root: Root, skip: Callable[[str], bool] = lambda path: False) -> tuple[list[File], dict[str, int]]:
    """The files below root, archives read in place, and the bytes of archives that cannot be."""
    closed: dict[str, int] = {}

    def skip_closed(path: str) -> bool:
        if skip(path):
            return True
        if unpacked_by(path) and (root / path).is_file():
            closed[path] = facts(root / path).size_bytes
        return path in closed

    return list(folder.files(root, skip_closed)), closed


def unpacked_by(path: str) -> str:
    """The command that unpacks an archive that is not read in place; "" for all other files."""
    return next((command for command, suffix in CLOSED.items() if suffix.search(path)), "")


class Watch:
    """Records of a listing, passed on as they are and counted; `there` is what was counted once all have passed."""

    def __init__(
        self,
        about: Collection,
        found: list[File],
        closed: dict[str, int],
        records: Iterable[Sample],
        lists: Lists | None = None,
    ) -> None:
        self.there = OnDisk(closed=dict(closed), absent=absent(about.splits, found))
        self._about, self._records, self._found, self._lists = about, records, found, lists or Lists()
        layout = about.layout
        self._idle = {glob: Layout(images=(glob,)) for glob in layout.images}
        self._idle_labels = {glob: Layout(images=(glob,)) for glob in layout.label_files}
        self._paths = label_paths(about)
        self._labels = self._hashes()

    def _hashes(self) -> NDArray[np.int64]:
        """Hashes of the names of all label files, sorted: 8 bytes a file."""
        names = array("q")
        for file in self._found:
            if self._about.kind(file.name) == "label":
                _strike(self._idle_labels, file.name)
                names.append(hash(file.name))
        return np.sort(np.array(names, np.int64))

    def __iter__(self) -> Iterator[Sample]:
        wanted: set[str] = set()
        for record in self._records:
            if record.dropped in ("", "same_images"):
                wanted |= self._image(record)
            elif record.dropped == "unmatched":
                top = record.name.split("/")[0] if "/" in record.name else ""
                suffix = posixpath.splitext(record.name)[1].lower()
                self.there.others.setdefault((top, suffix), Some()).add(record.name)
            yield record
        self.there.idle, self.there.idle_labels = list(self._idle), list(self._idle_labels)
        fixed = [str(getattr(labels, "path", "")) for labels in self._about.layout.labels]
        self.there.lost = [path for path in fixed if path and not TOKEN.search(path) and not self._has(path)]
        wanted.update(self.there.lost)
        if wanted:
            self.there.unlisted = [file.name for file in self._found if file.name in wanted]

    def _image(self, record: Sample) -> set[str]:
        """Count an image; the names of label files that it was the first to miss."""
        split, missed = self._about.split_of(record.name) or self._lists(record.name), set()
        self.there.images[split] += 1
        self.there.bytes[split] += record.file_bytes
        _strike(self._idle, record.name)
        for kind, paths in self._paths.items():
            names = {name for path in paths if (name := label_path(path, record.name))}
            if not any(map(self._has, names)):
                some = self.there.unlabelled.setdefault((kind, split), Some())
                some.add(record.name)
                missed |= names if some.count <= SHOWN else set()
        return missed

    def _has(self, name: str) -> bool:
        value = hash(name)
        at = int(np.searchsorted(self._labels, value))
        return at < len(self._labels) and int(self._labels[at]) == value


def _strike(globs: dict[str, Layout], name: str) -> None:
    """Leave out the globs that match a name: they are not idle."""
    for glob in [glob for glob, layout in globs.items() if layout.kind(name)]:
        del globs[glob]


def label_paths(about: Collection) -> dict[str, list[str]]:
    """Where the labels of one image lie, by kind of label; several paths of a kind are alternatives."""
    paths: dict[str, list[str]] = {}
    for labels in about.layout.labels:
        path = str(getattr(labels, "path", ""))
        if TOKEN.search(path):
            paths.setdefault(labels.kind, []).append(path)
    return paths


def lines(about: Collection, there: OnDisk) -> Iterator[str]:
    """What is there, which version it is, and what differs from it; a line each."""
    total = sum(there.images.values())
    parts = [f"{split} {there.images[split]:,}{_of(about.splits[split].count)}" for split in telling(about, there)]
    if there.images[""] and parts:
        parts.append(f"in no split {there.images['']:,}")
    yield f"{about.name}: {total:,}{_of(about.count)} images" + (f": {', '.join(parts)}" if parts else "")
    found = version_of(about, there.images)
    if total and found.counts:
        yield f"  {spelled_version(about, found)}"
    yield from (f"  {line}" for line in differing(about, there, found.counts))
    for split, spec in about.splits.items():
        if spec.bytes and there.bytes[split]:
            same = abs(there.bytes[split] - spec.bytes) <= NEAR * spec.bytes
            here = f"{size(there.bytes[split])} on disk, {size(spec.bytes)} published"
            yield f"  bytes of {split}: {here}{'' if same else ': differs'}"
    yield from (f"  {line}" for line in unlike(about, there))


class Version(NamedTuple):
    """The published version whose counts those on disk are, or the nearest one."""

    names: tuple[str, ...]  # several may have the same counts; "": what the manifest states; empty: none fits
    nearest: str
    counts: dict[str, int]  # of the first, or of the nearest; empty: nothing is published
    lacks: tuple[str, ...] = ()  # its splits that are not here


def version_of(about: Collection, here: Counter[str]) -> Version:
    """Which version this is by its counts. Splits that are not here at all do not speak against one."""
    own = {split: spec.count for split, spec in about.splits.items() if spec.count is not None}
    own |= {} if about.count is None else {"all": about.count}
    known = {name: counts for name, counts in {about.version or "": own, **about.versions}.items() if counts}
    apart = {name: _apart(here, counts) for name, counts in known.items()}
    nearest = min(known, key=lambda name: apart[name], default="")
    lacks = {name: tuple(s for s in known[name] if s != "all" and not here[s]) for name in known}
    same = [name for name in known if apart[name] == 0]
    names = [name for name in same if not lacks[name] or not _told(here, known[name])]  # whole ones, if any
    if names or not same:
        return Version(tuple(names), nearest, known.get((names or [nearest])[0], {}))
    return Version(tuple(same), nearest, known[same[0]], lacks[same[0]])


def _told(here: Counter[str], counts: dict[str, int]) -> list[str]:
    """The splits that are counted both here and there."""
    return [split for split in counts if split and here[split]]


def _apart(here: Counter[str], counts: dict[str, int]) -> float:
    """How far counts are from those of a version, as a share of it: split by split, or in all where none is told."""
    told = _told(here, counts)
    if told:
        return sum(abs(here[s] - counts[s]) for s in told) / max(sum(counts[s] for s in told), 1)
    total = _total(counts)
    return abs(sum(here.values()) - total) / max(total, 1)


def _total(counts: dict[str, int]) -> int:
    return counts.get("all", sum(counts.values()))


def spelled_version(about: Collection, found: Version) -> str:
    """The version that was found, in words, or the nearest one."""
    if found.names:
        named = " and ".join(f"version {name}" if name else "the manifest" for name in found.names)
        return f"counts are those of {named}" + (f", without {', '.join(found.lacks)}" if found.lacks else "")
    if not about.versions and not found.nearest:
        return "counts are not those of the manifest"
    return f"counts match no published version; the nearest is {found.nearest or 'that of the manifest'}"


def telling(about: Collection, there: OnDisk) -> dict[str, list[str]]:
    """The globs of images and of lists by which splits are told; splits of which no list is on disk are not."""
    lost = there.absent
    told = {s: [*spec.images, *(g for g in spec.lists if g not in lost.get(s, ()))] for s, spec in about.splits.items()}
    return {split: globs for split, globs in told.items() if globs}


def differing(about: Collection, there: OnDisk, published: dict[str, int]) -> Iterator[str]:
    """Splits with fewer or more images than a version has, or none."""
    globs = telling(about, there)
    for split in dict.fromkeys([*published, *globs]):
        n, m = there.images[split], published.get(split)
        where = f"looked for in {', '.join(globs[split])}" if split in globs else "no glob tells it from the others"
        if split == "all" or (split not in globs and not (globs and split not in about.splits)):
            continue  # splits that nothing here tells apart
        if not n:
            yield f"missing: nothing of {split}{'' if m is None else f' ({m:,} published)'}; {where}"
        elif m is not None and n != m:
            yield f"{'missing' if n < m else 'extra'}: {_many(abs(n - m), 'image')} of {split}: {n:,}{_of(m)}"
    total = sum(there.images.values())
    if published and not _told(there.images, published) and total != _total(published):
        kind = "missing" if total < _total(published) else "extra"
        yield f"{kind}: {_many(abs(total - _total(published)), 'image')}: {total:,}{_of(_total(published))}"


def unlike(about: Collection, there: OnDisk) -> Iterator[str]:
    """Where the layout and the files differ: globs that match nothing, images without labels, files of no glob."""
    told = {glob for split, spec in about.splits.items() if not there.images[split] for glob in spec.images}
    yield from (warning(split, glob) for split, globs in there.absent.items() for glob in globs)
    yield from (f"no image matches {glob}" for glob in there.idle if glob not in told)
    yield from (f"no label file matches {glob}" for glob in there.idle_labels)
    for path in there.lost:
        yield f"missing: the label file {path}"
    paths = label_paths(about)
    for (kind, split), some in there.unlabelled.items():
        n, of = there.images[split], f" of {split}" if split else ""
        yield f"missing: {some.count:,} of {n:,} images{of} have no {kind} file {' or '.join(paths[kind])}"
        yield f"  {_named(some.first)}"
    yield from others(there)


def others(there: OnDisk) -> Iterator[str]:
    """Files that the layout says nothing of, and archives that must be unpacked first."""
    if there.unlisted:
        yield "label files that are there, but that no glob of label_files lists:"
        yield f"  {_named(there.unlisted[:SHOWN])}"
    by_count = sorted(there.others.items(), key=lambda item: -item[1].count)
    for (top, suffix), some in by_count[:SHOWN]:
        what = f"{suffix or 'without suffix'} {f'in {top}' if top else 'beside the folders'}"
        yield f"extra: {_many(some.count, 'file')} {what}: matched by no glob of the layout"
        yield f"  {_named(some.first)}"
    if rest := sum(some.count for _, some in by_count[SHOWN:]):
        yield f"extra: {_many(rest, 'other file')}: matched by no glob of the layout"
    for path, n_bytes in there.closed.items():
        todo = f"run `{unpacked_by(path)} {posixpath.basename(path)}` in its folder, then move it away"
        yield f"not read: {path} ({size(n_bytes)}): {todo}"


def _named(names: list[str]) -> str:
    return ", ".join(name if len(name) <= NAME_CHARS else f"…{name[-NAME_CHARS + 1 :]}" for name in map(utf8, names))


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _of(count: int | None) -> str:
    return "" if count is None else f" of {count:,}"


def size(n_bytes: float) -> str:
    """A number of bytes for people."""
    unit, name = next(((u, name) for u, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if n_bytes >= u), (1e3, "kB"))
    return f"{n_bytes / unit:,.1f} {name}"
