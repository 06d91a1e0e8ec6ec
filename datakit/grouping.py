"""Files of a folder in groups that one glob tells, and which image a label file belongs to."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field

from . import files, hints
from .files import File
from .remote import Root
from .sample import IMAGE_SUFFIX, key_id

SIBLINGS = 3  # folders of one kind from which on `*` takes their place
FIRST = 8  # label files of a group that are looked into
GROUPS = 40  # globs that a person can still check
ALIKE = 50  # images that one label file may belong to


@dataclass
class Group:
    """Files that one glob tells: a pattern of folders, an end of the name."""

    folder: str
    suffix: str
    tail: str = ""  # an end that says labels: `_mask` of 104_mask.png
    count: int = 0
    bytes: int = 0
    chosen: list[tuple[int, File]] = field(default_factory=list)  # some, by the hash of their names
    tails: set[str] = field(default_factory=set)  # words that the names end in
    image: bool = False
    is_mask: bool = False  # these are images that say what others show
    split: str = ""  # that its folders tell: the nearest to the files

    def __post_init__(self) -> None:
        self.split = next((s for part in reversed(self.folder.split("/")) if (s := hints.split_of(part))), "")

    @property
    def glob(self) -> str:
        only = next(iter(self.tails)) if len(self.tails) == 1 and self.count > 1 else ""
        return posixpath.join(self.folder, f"*{_escaped((self.tail or only) + self.suffix)}")

    def add(self, file: File, most: int) -> None:
        self.count, self.bytes = self.count + 1, self.bytes + file.file_bytes
        self.chosen.append((key_id(file.name), file))
        if len(self.chosen) > 2 * most:
            self.settle(most)
        if len(self.tails) < 3:
            self.tails.add(hints.tail_of(posixpath.splitext(posixpath.basename(file.name))[0]))

    def settle(self, most: int) -> None:
        self.chosen = sorted(self.chosen, key=lambda ranked: ranked[0])[:most]

    def some(self, most: int) -> list[File]:
        """Some of its files: which ones does not depend on their order."""
        return [file for _, file in self.chosen[:most]]


class Groups:
    """All files in groups, and the group of each; `most` files of a group are held."""

    def __init__(self, found: list[File], root: Root, most: int) -> None:
        images: dict[str, bool] = {}
        for file in found:
            folder = posixpath.dirname(file.name)
            images[folder] = images.get(folder, False) or IMAGE_SUFFIX.search(file.name) is not None
        self._patterns = patterns(images)
        self._by_key: dict[tuple[str, str, str], Group] = {}
        for file in found:
            key = self._key(file.name)
            self._by_key.setdefault(key, Group(*key)).add(file, most)
        for group in self._by_key.values():
            group.settle(most)
            group.image = any(_is_image(root, file) for file in group.some(2))
        self._find_masks()
        self._merge(most)
        self.all = list({id(group): group for _, group in sorted(self._by_key.items())}.values())

    def of(self, name: str) -> Group:
        """The group that a file is in."""
        return self._by_key[self._key(name)]

    def _key(self, name: str) -> tuple[str, str, str]:
        folder, file = posixpath.split(name)
        stem, suffix = posixpath.splitext(file)
        tail = hints.tail_of(stem)
        return self._patterns[folder], suffix, tail if hints.is_mask(tail) else ""

    def _find_masks(self) -> None:
        """Which images are labels, by their names and by folders that are not above all images."""
        pictures = [group for group in self._by_key.values() if group.image]
        shared = len(_shared([group.folder.split("/") for group in pictures]))
        for group in pictures:
            group.is_mask = group.tail != "" or hints.masks_below(group.folder.split("/")[shared:])

    def _merge(self, most: int) -> None:
        """Groups that differ only in how many folders deep they lie become one, `**`; so do all where they are many."""
        many = sum(group.image for group in self._by_key.values()) > GROUPS
        alike: dict[tuple[str, str, str, bool], list[Group]] = {}
        for (folder, suffix, tail), group in sorted(self._by_key.items()):
            if group.image:
                above = re.sub(r"(^|/)\*(/\*)*\Z", "", folder) if folder.endswith("*") else f"{folder}/."
                alike.setdefault(("" if many else above, suffix, tail, group.is_mask), []).append(group)
        taken: set[str] = set()
        for groups in sorted(alike.values(), key=lambda some: some[0].is_mask):
            merged = _joined(groups, most)
            one_split = len({group.split for group in groups}) == 1
            if len(groups) > 1 and one_split and merged.glob not in taken:  # else their globs tell more
                ids = {id(group) for group in groups}
                self._by_key = {key: merged if id(g) in ids else g for key, g in self._by_key.items()}
                taken.add(merged.glob)


def _joined(groups: list[Group], most: int) -> Group:
    """Several groups as one: folders that they share at either end, `**` between."""
    folders = [group.folder.split("/") for group in groups]
    first = _shared(folders)
    last = _shared([folder[len(first) :][::-1] for folder in folders])[::-1]
    folder = posixpath.join(*first, "**", *last)
    merged = Group(folder, groups[0].suffix, groups[0].tail, image=True, is_mask=groups[0].is_mask)
    merged.split = groups[0].split
    for group in groups:
        merged.count, merged.bytes = merged.count + group.count, merged.bytes + group.bytes
        merged.chosen += group.chosen
        merged.tails |= group.tails
    merged.settle(most)
    return merged


def _shared(lists: list[list[str]]) -> list[str]:
    """What lists of folders have in common from their beginning on, up to one of any name."""
    same = [len({*level, "*"}) == 2 for level in zip(*lists, strict=False)]
    return lists[0][: same.index(False) if False in same else len(same)] if lists else []


def patterns(images: dict[str, bool]) -> dict[str, str]:
    """The pattern of each folder: `*` in place of folders whose names tell things apart, not what lies in them.

    images: whether images lie directly in a folder.
    """
    below: dict[str, bool] = {}
    children: dict[str, set[str]] = {}
    for folder, holds in images.items():
        while folder not in below or (holds and not below[folder]):
            below[folder] = below.get(folder, False) or holds
            if folder:
                children.setdefault(posixpath.dirname(folder), set()).add(folder)
            folder = posixpath.dirname(folder)
    out, todo = {"": ""}, [("", [""])]
    while todo:
        pattern, group = todo.pop()
        by_name: dict[str, list[str]] = {}
        for child in sorted(child for folder in group for child in children.get(folder, ())):
            by_name.setdefault(posixpath.basename(child), []).append(child)
        inside: dict[str, list[str]] = {}
        for holds in (True, False):
            names = [n for n in by_name if not hints.is_kept(n) and any(below[c] for c in by_name[n]) == holds]
            for name in names:
                inside.setdefault("*" if len(names) >= SIBLINGS else _escaped(name), []).extend(by_name[name])
        for name in filter(hints.is_kept, by_name):
            inside[_escaped(name)] = by_name[name]
        for name, folders in inside.items():
            todo.append((posixpath.join(pattern, name), folders))
            out |= dict.fromkeys(folders, posixpath.join(pattern, name))
    return out


class Index:
    """Images by their names without folder: of the few that label files name."""

    def __init__(self, groups: Groups, images: list[Group], found: list[File], labels: list[str], named: set[str]):
        self._stems: dict[str, list[str]] = {stem: [] for label in labels for stem in _stems(label)}
        self._named: dict[str, list[str]] = {name: [] for name in named}
        those = {id(group) for group in images}
        for file in found:
            base = posixpath.basename(file.name)
            if (base in self._named or self._stems.keys() & _stems(file.name)) and id(groups.of(file.name)) in those:
                for places in (self._named.get(base), *(self._stems.get(stem) for stem in _stems(file.name))):
                    if places is not None and len(places) < ALIKE:
                        places.append(file.name)

    def image_of(self, label: str) -> str:
        """The image that a label file belongs to by its name, the nearest of several; or ""."""
        stem = _stem(label)
        there = {image for key in _stems(label) for image in self._stems[key]}

        def near(image: str) -> tuple[bool, bool, int, int, str]:
            folders = len({*image.split("/")[:-1]} & {*label.split("/")[:-1]})
            shared = len(posixpath.commonprefix([image, label]))
            return _stem(image) == stem, stem.startswith(_stem(image)), folders, shared, image

        return max(there, key=near, default="")

    def named(self, name: str) -> str:
        """The image that a label file calls `name`, which may have folders before it; or ""."""
        there = self._named.get(posixpath.basename(name), [])
        return next((image for image in there if f"/{image}".endswith(f"/{name.lstrip('./')}")), "")


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.basename(name))[0]


def _stems(name: str) -> set[str]:
    """The name of a file without suffix, and without its last word."""
    stem = _stem(name)
    tail = hints.tail_of(stem)
    return {stem, stem.removesuffix(tail)} - {""}


def _is_image(root: Root, file: File) -> bool:
    try:
        return hints.is_image(files.head(root, file, 32))
    except OSError:  # of an archive that is damaged here, or a broken link
        return False


def _escaped(text: str) -> str:
    return re.sub(r"[*?[]", lambda found: f"[{found[0]}]", text)
