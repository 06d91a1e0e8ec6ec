"""Splits that text files tell: lists of a split's images, one a line.

A line is the name of an image, or begins with it, before a comma or a space; with folders or without, with suffix or
without. It names the images whose path ends in it, and the image whose whole path it ends in. An image that no line
names so is in the lists with lines of its stem, whatever their folders: a stem that several folders have stands for all
of them, unless lines tell the folders apart. Of several splits that name an image, one for evaluation is taken.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping

from ..errors import SourceError
from ..files import BadFile, File, read
from ..manifest import Split, matches
from ..remote import Root
from ..rules import is_evaluation
from ..sample import IMAGE_SUFFIX


class Lists:
    """The split of each image that the lists of a collection name."""

    def __init__(self, lines: Iterable[tuple[str, str]] = ()) -> None:
        """lines: each with the split that it tells, splits in the order that they are preferred in."""
        self._rank: dict[str, tuple[bool, int]] = {}
        self._whole: dict[str, str] = {}  # split by line
        self._ends: dict[str, str] = {}  # split by what lines with folders end in
        for split, line in lines:
            self._rank.setdefault(split, (not is_evaluation(split), len(self._rank)))
            for name in names_in(line):
                whole, *ends = _ends(_bare(name))
                for known, key in ((self._whole, whole), *((self._ends, end) for end in ends)):
                    known[key] = self._first([split, known.get(key, split)])

    def __call__(self, name: str) -> str:
        """The split that an image is in by its name within the collection; "" where no line names it."""
        if not self._whole:
            return ""
        bare = _bare(name)
        spelled = [bare] if bare != name else [name, posixpath.splitext(name)[0]]
        keys = [(self._whole, end) for each in spelled for end in _ends(each)]
        exact = [known[key] for known, key in (*keys, *((self._ends, each) for each in spelled)) if key in known]
        stems = [posixpath.basename(each) for each in spelled]
        return self._first(exact or [self._ends[stem] for stem in stems if stem in self._ends])

    def _first(self, splits: list[str]) -> str:
        """The one of several splits that an image is in: one for evaluation, if any; "" of none."""
        return min(splits, key=lambda split: self._rank[split], default="")


def names_in(line: str) -> set[str]:
    """Names that a line may give: all of it, for names have spaces too, or what goes before a comma or a space."""
    line = line.strip()
    words = (line, line.split(",")[0], re.split(r"[\s,]", line)[0])
    clean = (posixpath.normpath(word.strip().strip("\"'").replace("\\", "/")).lstrip("/") for word in words)
    return {name for name in clean if name not in ("", ".")}


def _bare(name: str) -> str:
    return IMAGE_SUFFIX.sub("", name)


def _ends(name: str) -> list[str]:
    """What a path ends in: all of it, then less one folder after the other."""
    steps = name.split("/")
    return ["/".join(steps[n:]) for n in range(len(steps))]


def read_lists(splits: Mapping[str, Split], found: Iterable[File], root: Root) -> Lists:
    """The lists of a collection's splits among its files; SourceError for one that cannot be read.

    root: the folder that paths of files are relative to.
    """
    named = {split: spec.lists for split, spec in splits.items() if spec.lists}
    if not named:
        return Lists()
    there = {file.name: file for file in found if any(matches(globs, file.name) for globs in named.values())}
    by_split = ((split, file) for split in named for file in there.values() if matches(named[split], file.name))
    return Lists((split, line) for split, file in by_split for line in _lines(root, file))


def _lines(root: Root, file: File) -> Iterator[str]:
    todo = "It tells a split: mend it, or take it out of the manifest"
    try:
        text = read(root, file).decode("utf-8-sig")
    except BadFile as exc:
        raise SourceError(f"{file.name}: {exc}. {todo}") from None
    except UnicodeDecodeError as exc:
        raise SourceError(
            f"{file.name}: expected UTF-8 text, found byte {exc.object[exc.start]:#04x}. {todo}"
        ) from None
    if "\0" in text:
        raise SourceError(f"{file.name}: expected UTF-8 text, found a zero byte. {todo}")
    yield from text.splitlines()


def absent(splits: Mapping[str, Split], found: Iterable[File]) -> dict[str, list[str]]:
    """The globs of lists that match no file, by split."""
    lost = {(split, glob): None for split, spec in splits.items() for glob in spec.lists}
    for file in found if lost else ():
        for key in [key for key in lost if matches((key[1],), file.name)]:
            del lost[key]
    return {split: [glob for each, glob in lost if each == split] for split, _ in lost}


def warning(split: str, glob: str) -> str:
    """What a list that is not on disk means."""
    return f"no list of split {split} on disk: {glob}; fetch it, or images that it names count as of no split"
