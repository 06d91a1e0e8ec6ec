"""What of WebDataset tars, whoever made them, some reader reads otherwise than another, or not at all.

Readers differ where the convention is silent: webdataset takes what follows the first dot of a file's name for the
suffix, and neighbours of one key for a sample; Hugging Face datasets guesses types from the first five samples; readers
by ustar alone know no name of more than 100 bytes. Nothing here stops at the first finding.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from .findings import Finding
from .stages.shards import BLOCK, END
from .stream.foreign import tars_of

NUMBER = re.compile(r"[-_.]?\d+$")  # that ends the name of a shard
NAME_BYTES = 100  # of a ustar header
SHARE = 0.5  # of samples that have a suffix of several dots, below which a dot belongs to the key
MOST_JSON = 1 << 24  # bytes of a member that is looked into
PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd", b"PK": "zip"}
TODO = {
    "dots": "write the tars again with keys without dots: a-b.jpg, not a.b.jpg",
    "interleaved": "write the members of each sample one after another, as `tar --sort=name` does",
    "duplicate": "give each sample a key of its own",
    "missing": "give every sample the same members, or leave these samples out",
    "names": "give names of at most 100 bytes, and tars in ustar form: `tar --format=ustar`",
    "form": "write the tar again",
    "members": "leave out what is no plain file",
    "json": "give every JSON the same keys, one type each, and never null",
    "case": "write suffixes in small letters",
    "empty": "leave out samples whose files are empty",
}


@dataclass
class Told:
    """What one tar, or all, have: findings by kind, each with how often and an example."""

    kinds: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)  # tar, kind, words -> examples

    def add(self, tar: str, kind: str, words: str, example: str = "") -> None:
        self.kinds.setdefault((tar, kind, words), []).append(example)

    def findings(self) -> list[Finding]:
        found = []
        for (tar, kind, words), examples in self.kinds.items():
            some = f", as {examples[0]}" if examples[0] else ""
            count = f"{len(examples):,} times: " if len(examples) > 1 else ""
            found.append(Finding(tar, f"{count}{words}{some}", TODO[kind]))
        return found


@dataclass
class Sample:
    """The members of one sample as its neighbours in a tar give them: suffixes as written."""

    tar: str
    key: str
    suffixes: list[str]
    shape: tuple[tuple[str, str], ...] | None = None  # of its JSON


@dataclass(frozen=True)
class Linted:
    """What a lint gives."""

    findings: list[Finding]
    tars: int
    samples: int


def lint(paths: Sequence[Path]) -> Linted:
    """Look at tars, or folders of them: those whose names differ in a number alone are one set.

    SourceError where there is none.
    """
    tars, told, sets = tars_of(paths), Told(), dict[tuple[Path, str], list[Sample]]()
    for tar in tars:
        sets.setdefault((tar.parent, NUMBER.sub("", tar.stem)), []).extend(samples_of(tar, told))
    for samples in sets.values():
        check_keys(samples, told)
        check_members(samples, told)
        check_json(samples, told)
    found = {(one.tar, one.key) for samples in sets.values() for one in samples}
    return Linted(told.findings(), len(tars), len(found))


def samples_of(tar: Path, told: Told) -> list[Sample]:
    """The samples of a tar, as far as it can be read; what is wrong with its form is told."""
    name, size = str(tar), tar.stat().st_size
    samples: list[Sample] = []
    with tar.open("rb") as stream:
        packed = PACKED.get(stream.read(2))
        if packed:
            told.add(name, "form", f"it is compressed ({packed}): no reader can seek in it")
            return samples
        stream.seek(0)
        end = 0
        try:
            with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as opened:
                while (info := opened.next()) is not None:
                    opened.members = []  # type: ignore[attr-defined]  # it would keep every header
                    end = info.offset_data + -(-info.size // BLOCK) * BLOCK if info.isreg() else info.offset_data
                    if info.isreg() and info.offset_data + info.size > size:
                        told.add(name, "form", "it is cut short within", info.name)
                        return samples
                    take(info, stream, name, samples, told)
        except tarfile.TarError as exc:
            told.add(name, "form", f"it cannot be read to its end: {exc}")
            return samples
        stream.seek(end)
        if stream.read(len(END)) != END:
            told.add(name, "form", "two blocks of zeros do not end it: it may have been cut short, or others follow")
    if not samples:
        told.add(name, "form", "it has no sample")
    return samples


def take(info: tarfile.TarInfo, stream: BinaryIO, tar: str, samples: list[Sample], told: Told) -> None:
    """One member of a tar, put to its sample."""
    folder, _, name = info.name.removeprefix("./").rpartition("/")
    stem, dot, suffix = name.partition(".")
    if not info.isreg():
        if not info.isdir():
            told.add(tar, "members", "neither a file nor a folder: readers leave it out, or fail", info.name)
        return
    if info.name.startswith("/") or ".." in info.name.split("/"):
        told.add(tar, "members", "a name that leads out of the folder it is unpacked to", info.name)
    if not info.name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in info.name):
        told.add(tar, "names", "a name that is not UTF-8", ascii(info.name))
    if len(info.name.encode(errors="surrogateescape")) > NAME_BYTES:
        told.add(tar, "names", f"a name of more than {NAME_BYTES} bytes", info.name)
    if not dot or not stem:
        told.add(tar, "members", "a name without key and suffix: readers leave it out", info.name)
        return
    if not info.size:
        told.add(tar, "empty", "an empty file", info.name)
    if suffix != suffix.lower():
        told.add(tar, "case", "a suffix with capitals: some readers take it for another", info.name)
    key = f"{folder}/{stem}".lstrip("/")
    if not samples or samples[-1].key != key:
        samples.append(Sample(tar, key, []))
    samples[-1].suffixes.append(suffix)
    if suffix.lower().rpartition(".")[2] == "json" and info.size <= MOST_JSON:
        here = stream.tell()
        stream.seek(info.offset_data)
        samples[-1].shape = shape_of(stream.read(info.size), tar, info.name, told)
        stream.seek(here)


def shape_of(data: bytes, tar: str, name: str, told: Told) -> tuple[tuple[str, str], ...] | None:
    """Keys and types of a JSON, ints among floats told; None, and a finding, where it cannot be read."""
    try:
        plain: Any = json.loads(data)
    except ValueError:
        told.add(tar, "json", "it is no JSON", name)
        return None
    if not isinstance(plain, dict):
        return (("", type(plain).__name__),)
    for key, value in plain.items():
        if value is None:
            told.add(tar, "json", f"{key} is null: types are guessed from the first samples", name)
    return tuple(sorted((key, type(value).__name__) for key, value in plain.items() if value is not None))


def check_keys(samples: Sequence[Sample], told: Told) -> None:
    """Keys that come again: in one tar (interleaved, or twice), or in several."""
    first: dict[str, Sample] = {}
    for one in samples:
        before = first.setdefault(one.key, one)
        if before is one:
            continue
        both = {*map(str.lower, before.suffixes)} & {*map(str.lower, one.suffixes)}
        if before.tar != one.tar:
            told.add(one.tar, "duplicate", f"a key that {before.tar} has, too", one.key)
        elif both:
            told.add(one.tar, "duplicate", "two samples of one key", one.key)
        else:
            told.add(one.tar, "interleaved", "members of one sample do not follow one another", one.key)
            before.suffixes += one.suffixes
    for one in samples:
        twice = [suffix for suffix, n in Counter(map(str.lower, one.suffixes)).items() if n > 1]
        if twice:
            told.add(one.tar, "duplicate", "a member twice in one sample", f"{one.key}.{twice[0]}")


def check_members(samples: Sequence[Sample], told: Told) -> None:
    """Dots in keys, and samples that lack what most have."""
    own = {one.key: one for one in reversed(samples)}.values()
    common = Counter(suffix.lower() for one in own for suffix in {*one.suffixes})
    dotted = {suffix for suffix, n in common.items() if "." in suffix and n < SHARE * len(own)}
    if len(own) == 1:  # of one sample nothing is common; two members of one last suffix are two images
        last = Counter(suffix.rpartition(".")[2] for suffix in common)
        dotted = {suffix for suffix in common if "." in suffix and last[suffix.rpartition(".")[2]] > 1}
    usual = {suffix for suffix, n in common.items() if n >= SHARE * len(own)} - dotted
    for one in own:
        mine = {suffix.lower() for suffix in one.suffixes}
        odd = sorted(mine & dotted)
        if odd:
            words = "a dot in a key: readers take what follows the first one for the suffix"
            told.add(one.tar, "dots", words, f"{one.key}.{odd[0]}")
        elif usual - mine:
            told.add(one.tar, "missing", f"samples without {', '.join(sorted(usual - mine))}", one.key)
        elif mine - usual:
            told.add(one.tar, "missing", f"only some samples have {', '.join(sorted(mine - usual))}", one.key)


def check_json(samples: Sequence[Sample], told: Told) -> None:
    """Samples whose JSON has other keys or types than most."""
    shapes = Counter(one.shape for one in samples if one.shape is not None)
    if not shapes:
        return
    usual = dict(shapes.most_common(1)[0][0])
    for one in samples:
        if one.shape is None or dict(one.shape) == usual:
            continue
        mine = dict(one.shape)
        for key in sorted({*usual} ^ {*mine}):
            words = f"{key} is in some JSONs and not in others: readers drop it, or fail"
            told.add(one.tar, "json", words, one.key)
        for key in sorted({*usual} & {*mine}):
            if usual[key] != mine[key]:
                told.add(one.tar, "json", f"{key} is {mine[key]} here and {usual[key]} elsewhere", one.key)
