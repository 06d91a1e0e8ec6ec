"""What is wrong with one tar of a build: its headers against the index, its members decoded."""

from __future__ import annotations

import io
import json
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .errors import ShardError
from .stages.shards import BLOCK, END, member
from .stream.decode import Decoder, Unreadable
from .stream.tars import IMAGES

Shape = tuple[tuple[str, str], ...]  # keys of a sample's JSON with the names of their types
TEXTS = ("txt", "cls")


@dataclass(frozen=True)
class Place:
    """A member as the index has it: the offset is of its payload."""

    name: str
    offset: int
    size_bytes: int


@dataclass
class Told:
    """What a look into a tar gives: what is wrong, and how often its JSON has which keys and types."""

    wrong: list[str] = field(default_factory=list)
    shapes: Counter[Shape] = field(default_factory=Counter)
    example: dict[Shape, str] = field(default_factory=dict)  # a key with it


def places_of(rows: pa.Table, members: tuple[str, ...]) -> list[list[Place]]:
    """The members of each sample of some rows of an index, in the order that they must lie in."""
    keys = rows.column("key").to_pylist()
    found: list[list[Place]] = [[] for _ in keys]
    for suffix in members:
        offsets, sizes = (rows.column(f"{suffix}_{what}").to_pylist() for what in ("offset", "bytes"))
        for mine, key, offset, size in zip(found, keys, offsets, sizes, strict=True):
            if offset >= 0:
                mine.append(Place(f"{key}.{suffix}", offset, size))
    for mine in found:
        mine.sort(key=lambda place: place.offset)
    return found


def ends(path: Path, rows: pa.Table, members: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with the headers of the first and the last sample of a tar: a look that costs two reads."""
    few = pa.concat_tables([rows.slice(0, 1), rows.slice(max(len(rows) - 1, 0), 1)])
    with path.open("rb") as stream:
        for place in (place for sample in places_of(few, members) for place in sample):
            stream.seek(place.offset - BLOCK)
            if stream.read(BLOCK) != header(place):
                yield f"at byte {place.offset - BLOCK} does not begin {place.name} of {place.size_bytes} bytes"
                return


def header(place: Place) -> bytes:
    """The header of a member, as builds write it."""
    return member(place.name, b"\0" * place.size_bytes)[:BLOCK]


def look(path: Path, rows: pa.Table, members: tuple[str, ...]) -> Told:
    """Walk through a tar: each header, padding and payload, and the blocks of zeros at the end."""
    told = Told()
    if not path.stat().st_size:
        told.wrong.append("it is empty")
        return told
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, decoder, kinds = 0, Decoder(), set()
        for sample in places_of(rows, members):
            kinds.add(tuple(place.name.partition(".")[2] for place in sample))
            payloads: dict[str, bytes] = {}
            for place in sample:
                problem = _framed(data, place, at)
                if problem:
                    told.wrong.append(problem)
                else:
                    payloads[place.name.partition(".")[2]] = data[place.offset : place.offset + place.size_bytes]
                at = place.offset + place.size_bytes + -place.size_bytes % BLOCK
            told.wrong += _decoded(sample[0].name.partition(".")[0] if sample else "?", payloads, decoder, told)
        if data[at:] != END:
            told.wrong.append(f"after byte {at} there are not just the two blocks of zeros that end a tar")
        if len(kinds) > 1:
            told.wrong.append(f"its samples have different members: {'; '.join(map(', '.join, sorted(kinds)))}")
    return told


def _framed(data: mmap.mmap, place: Place, at: int) -> str:
    """What is wrong with how a member lies; `at`: where the one before it ended."""
    if place.offset != at + BLOCK:
        return f"{place.name}: begins at byte {place.offset - BLOCK} by the index, the one before it ends at {at}"
    end = place.offset + place.size_bytes
    if end > len(data):
        return f"{place.name}: cut short at byte {len(data)}"
    if data[at : place.offset] != header(place):
        return f"{place.name}: its header, at byte {at}, is not that of {place.size_bytes} bytes of this name"
    if any(data[end : end + -end % BLOCK]):
        return f"{place.name}: bytes other than 0 behind it"
    return ""


def _decoded(key: str, payloads: dict[str, bytes], decoder: Decoder, told: Told) -> Iterator[str]:
    """What is wrong with the members of a sample, decoded one by one."""
    about: dict[str, Any] = {}
    if "json" in payloads:
        try:
            about = plain_json(payloads["json"])
        except ValueError as exc:
            yield f"{key}.json: {exc}"
        else:
            shape = tuple((name, type(value).__name__) for name, value in about.items())
            told.shapes[shape] += 1
            told.example.setdefault(shape, key)
    first = True
    for suffix, data in payloads.items():
        problem = ""
        if suffix.rpartition(".")[2] in (*IMAGES, "npy"):
            levels, problem = decoded(suffix, data, decoder)
            if first and levels is not None:
                problem = _of_size(levels, about)
            first = False
        elif suffix in TEXTS:
            problem = _text(suffix, data)
        if problem:
            yield f"{key}.{suffix}: {problem}"


def plain_json(data: bytes) -> dict[str, Any]:
    """The JSON of a sample; ValueError unless it is an object in which nothing is null."""
    plain = json.loads(data)
    if not isinstance(plain, dict):
        raise ValueError("not a JSON object")
    nulls = [name for name, value in plain.items() if value is None]
    if nulls:
        raise ValueError(f"{nulls[0]} is null")
    return plain


def decoded(suffix: str, data: bytes, decoder: Decoder) -> tuple[NDArray[Any] | None, str]:
    """The pixels of an image, or why there are none."""
    try:
        return (np.load(io.BytesIO(data), allow_pickle=False) if suffix == "npy" else decoder(data)), ""
    except (Unreadable, ShardError, ValueError, OSError) as exc:
        return None, f"cannot be decoded: {exc}"


def _of_size(levels: NDArray[Any], about: dict[str, Any]) -> str:
    said, found = (about.get("width"), about.get("height")), levels.shape[1::-1]
    if None in said or said == found:
        return ""
    return f"{found[0]} x {found[1]} px, where its JSON says {said[0]} x {said[1]}"


def _text(suffix: str, data: bytes) -> str:
    try:
        text = data.decode()
        if suffix == "cls":
            int(text)
    except ValueError as exc:
        return f"not a {'whole number' if suffix == 'cls' else 'text of UTF-8'}: {exc}"
    return ""
