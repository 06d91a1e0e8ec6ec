"""Records from a collection: its files sorted into images, what tells of images, and others; and what headers say."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import Field, field_validator

from .. import boxes, files, image, place, raw, shots
from ..errors import SourceError
from ..hand import holding
from ..manifest import Collection, Split
from ..remote import Root, root_of
from ..sample import Part, Sample, Spec, Window, digest, from_table, key_id, make_key, to_table
from . import beside, geotiff
from .joined import Named, Reader, SameNames, joined, same_names, stem_of
from .labels import LabelReader
from .lists import Lists, read_lists

HEAD_BYTES = 32
NOWHERE: Mapping[str, Any] = {}
USED = ("modality", "licence", "bands", "gsd_m", "layout", "splits")  # fields of a collection that records depend on


class Source(Spec):
    """A collection that a recipe reads, and where it lies."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]{0,23}$", description="begins every key")
    path: str = Field(description="folder or archive, below the data folder unless it is absolute, or a URL")
    collection: Collection
    subfolder: int = Field(0, ge=0, description="take the n-th folder of a name as its source; 0: one source")

    reduced: bool = Field(False, description="take labels of images at a third where there are; set by `view`")
    max_unreadable_share: float = Field(
        0.5, ge=0, le=1, description="of its images; the build stops where more could not be read"
    )

    @field_validator("path")
    @classmethod
    def _is_given(cls, path: str) -> str:
        if not path:
            raise ValueError("must name a folder or an archive; '.' is the data folder itself")
        return path

    def part_of(self, name: str) -> str:
        """The source that a file counts for."""
        folders = name.split("/")[:-1]
        return f"{self.name}/{folders[self.subfolder - 1]}" if 0 < self.subfolder <= len(folders) else self.name

    def find(self, data: Root) -> Root | None:
        """Where the source lies: its folder, or an archive of that name; None if it is not there."""
        for where in (root_of(f"{self.path}{suffix}", data) for suffix in ("", ".zip", ".tar")):
            try:
                if where.exists():
                    return where
            except OSError as exc:
                raise SourceError(f"{where}: {exc.strerror}") from None
        return None


def same_as(source: Source, found: list[files.File], theirs: Mapping[str, Sequence[Named]]) -> dict[str, str]:
    """Which images of a source are those of another one that reads them: their name by ours. theirs: by stem."""
    about = source.collection
    ours = {f.name for f in found if theirs and about.kind(f.name) == "image"}
    return same_names(((name, about.split_of(name)) for name in sorted(ours)), theirs)


def listing(source: Source, found: list[files.File], same: Mapping[str, str] = NOWHERE) -> Iterator[Sample]:
    """A record, not yet read, for each file but labels and side-cars; what the layout's globs do not match is dropped.

    same: names of images that another source reads, see `same_as`.
    """
    seen: dict[str, files.File] = {}
    sides = side_cars(source, found)
    for file in sorted(found, key=lambda f: (f.name, f.packing != "", f.path)):
        kind = source.collection.kind(file.name)
        if kind == "label" or file.name in sides:
            continue
        sample = located(source, file)
        if kind != "image":
            yield sample.drop("unmatched", "neither an image nor a label of the layout")
        elif file.name in seen:
            # The archive beside its own unpacked files: one of the two is enough.
            first = seen[file.name]
            if first.file_bytes != file.file_bytes or (min(first.crc, file.crc) >= 0 and first.crc != file.crc):
                both = f"{files.utf8(first.path)} and {files.utf8(file.path)}"
                raise SourceError(f"{both}: different files of one name. Unpack the archives to folders of their own")
            key = make_key(sample.source, file.path)
            yield replace(sample, key=key, id=key_id(key)).drop("listed_twice", f"also at {files.utf8(first.path)}")
        elif file.name in same:
            yield sample.drop("same_images", "read in the source that has the same images; its labels are joined there")
        else:
            seen[file.name] = file
            yield sample.drop("unsafe", "a link or a name that leads outside") if file.packing == "unsafe" else sample


def located(source: Source, file: files.File) -> Sample:
    """A record that only knows where its bytes are."""
    name = source.part_of(file.name)
    key = make_key(name, file.name)
    return Sample(
        key=key,
        id=key_id(key),
        source=name,
        name=file.name,
        path=files.utf8(file.path),
        file_bytes=file.file_bytes,
        stamp=file.stamp,
        offset=file.offset,
        packed_bytes=file.packed_bytes,
        packing=file.packing,
        crc=file.crc,
    )


class Labels(Spec):
    """The label files of a source, and the side-cars of its images."""

    source: Source
    labels: str = Field(description="digest of the label files")

    def about(self) -> list[str]:
        """What records depend on: a better citation in the manifest moves nothing."""
        about = self.source.collection.model_dump(mode="json", include=set(USED))
        return [
            self.source.name,
            f"{self.source.subfolder} {self.source.reduced}",
            json.dumps(about, sort_keys=True),
            self.labels,
        ]

    def names(self, part: Part) -> SameNames:
        """Names of its images, where another source reads them."""
        path = part.work / "labels" / f"{self.labels}.images.parquet"
        return image_names(path) if path.exists() else SameNames()

    def reader(self, part: Part) -> Reader:
        """What its label files and its lists say of images."""
        about, root = self.source.collection, part.roots[self.source.name]
        path = part.work / "labels" / f"{self.labels}.parquet"
        index = label_index(path)
        labels = LabelReader(about.layout.labels, partial(label_bytes, root, index), index.get, self.source.reduced)
        return Reader(self.source.name, about, labels, lists_at(path, root, *about.splits.items()), self.names(part))


class Scan(Labels):
    """Fills records with what the headers and the label files of one source say.

    also: sources that have the same images: what they say of them is joined.
    """

    VERSION: ClassVar[int] = 5
    also: tuple[Labels, ...] = ()

    def digest(self, *more: str) -> str:
        """Of what the records depend on."""
        return digest(*self.about(), *(text for other in self.also for text in other.about()), *more)

    def __call__(self, records: pa.Table, part: Part) -> pa.Table:
        root = part.roots[self.source.name]
        readers = [one.reader(part) for one in (self, *self.also)]
        for reader in readers:
            reader.labels.open_shared()
        made = {one.id: one for piece in part.pieces for one in from_table(pq.read_table(piece))}
        sides = beside.SideCars(root, side_index(part.work / "labels" / f"{self.labels}.parquet"), part.counts)
        out = []
        with image.quiet():
            for sample in from_table(records):
                if sample.id in made:
                    out.append(made[sample.id])
                    continue
                part.counts["headers_read"] += 1
                about = self.source.collection
                split = about.split_of(sample.name) or readers[0].lists(sample.name)
                sample = replace(sample, modality=about.modality, licences=(about.licence,), split=split)
                with holding(sample):
                    out.append(self._one(sample, root, part, readers, sides))
        return to_table(out)

    def _one(self, sample: Sample, root: Root, part: Part, readers: list[Reader], sides: beside.SideCars) -> Sample:
        try:
            header, where = read_header(root, sample, part.aside, self.source.collection.bands)
        except Exception as exc:  # a reader may raise anything on a broken file; whatever it is, it has a name
            files.check_machine(exc, root, sample)
            return sample.drop("unreadable", image.reason(exc, root, part.aside))
        if min(header.width, header.height) < 1:
            return sample.drop("unreadable", "no pixels")
        where, is_beside = sides(sample.name, header, where)
        known = replace(sample, **header._asdict(), image_width=header.width, image_height=header.height, **where)
        twin = readers[0].labels.twin(known.name) if known.format == shots.FORMAT else None
        if twin:
            try:
                known = in_frame(root, known, twin)
            except shots.Conflict as exc:
                return known.drop("orientation_conflict", str(exc))
            except Exception as exc:  # as above, of the JPEG
                files.check_machine(exc, root, twin)
                return known.drop("unreadable", f"its JPEG: {image.reason(exc, root, part.aside)}"[:200])
        try:
            said, whose, silent = joined(known, readers)
        except (SourceError, files.BadFile) as exc:
            return known.drop("label_unreadable", str(exc))
        split = whose.pop("split", "") or known.split or said.split
        part.silent.update((source, split) for source in silent)
        whole = Window(0, 0, known.width, known.height)
        least = 0.0 if known.format in shots.FORMATS_OF_SHOTS else boxes.MIN_IOF  # AODRaw's rule is of windows alone
        return replace(
            known,
            label=said.label,
            boxes=boxes.dumps(boxes.through(said.boxes, whole, least)),
            captions=said.captions,
            mask=said.mask,
            tags=said.tags,
            image_id=said.image_id,
            split=split,
            acquired=said.acquired,
            footprint=place.footprints(known, [whole])[0],
            **whose,
            **ground(place.gsd_m(known), said.gsd_m, self.source.collection.gsd_m, is_beside),
        )


def ground(
    of_place: float | None, of_labels: float | None, of_manifest: tuple[float, float] | None, is_beside: bool = False
) -> dict[str, Any]:
    """Ground sampling distance, as fields of `Sample`: of the image's place, else of its labels, else of the manifest.

    is_beside: a side-car tells the place.
    A manifest that gives a range says nothing of one image: the range is kept as it is.
    """
    if of_place is not None:
        return {"gsd_m": of_place, "gsd_from": "side_car" if is_beside else "transform"}
    if of_labels is not None:
        return {"gsd_m": of_labels, "gsd_from": "labels"}
    if of_manifest is None:
        return {}
    if of_manifest[0] == of_manifest[1]:
        return {"gsd_m": of_manifest[0], "gsd_from": "manifest"}
    return {"gsd_range_m": of_manifest}


def in_frame(root: Root, sample: Sample, file: files.File) -> Sample:
    """A camera RAW in the frame of its JPEG as that is shown. Raises Conflict, and what a reader raises."""
    with files.stream(root, file) if not file.packing else io.BytesIO(files.read(root, file)) as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(0)
        with Image.open(stream, formats=image.FORMATS) as opened:
            its = image.pillow_header(opened, head)
    shots.frame_of((sample.width, sample.height), (its.width, its.height))
    width, height = its.width, its.height
    twin = json.dumps(asdict(file))
    return replace(sample, width=width, height=height, image_width=width, image_height=height, twin=twin)


def read_header(
    root: Root, file: Sample, scratch: Path, expected: tuple[str, ...]
) -> tuple[image.Header, dict[str, Any]]:
    """Header facts and place of an image, by what its first bytes are, whatever its name says."""
    if file.file_bytes == 0 and file.packing in ("", "tar", *files.READABLE):
        raise OSError("the file is empty")
    if file.name.endswith(".npy"):
        width, height, bands = shots.array_header(files.read(root, file))
        return image.Header(width, height, bands, False, "float32", shots.ARRAY), {}
    if raw.is_raw(file.name):
        with stream_of(root, file, files.read(root, file) if file.packing else b"") as stream:
            width, height, orientation = raw.header(stream)
        return image.Header(width, height, shots.BANDS, False, "uint16", shots.FORMAT, orientation), {}
    head = files.head(root, file, HEAD_BYTES)
    in_memory = file.packing != "" and file.file_bytes <= files.SMALL_BYTES
    if file.packing and not in_memory and head[:4] in geotiff.OTHERS:
        with files.local(root, file, scratch) as name:
            return geotiff.header(name, expected, geotiff.OTHERS[head[:4]])
    content = files.read(root, file) if in_memory else b""
    if head[:4] in geotiff.MAGIC:
        with files.glance(root, file, scratch) as (name, opener):
            header, where = geotiff.header(name, expected, opener=opener)
        if not where["crs"] and not where["transform"]:  # a place is of the pixels as stored
            with stream_of(root, file, content) as stream:
                header = image.as_shown(header, image.tiff_orientation(stream))
        return header, where
    with stream_of(root, file, content) as stream, Image.open(stream, formats=image.FORMATS) as opened:
        header = image.pillow_header(opened, head)
    if header.bands == image.COLOURS and len(expected) == 3:  # what the manifest says: not always a picture
        header = header._replace(bands=expected)
    return header, {}


def stream_of(root: Root, file: Sample, content: bytes) -> AbstractContextManager[BinaryIO]:
    """A file to look into: what was read of a member, or the plain file itself."""
    return io.BytesIO(content) if file.packing else files.stream(root, file)


LABEL_SCHEMA = pa.schema([pa.field(f.name, pa.string() if f.type == "str" else pa.int64()) for f in fields(files.File)])


def label_table(source: Source, found: list[files.File]) -> pa.Table:
    """Where the label files of a collection are, and the side-cars of its images, in order of their names."""
    sides, kind = side_cars(source, found), source.collection.kind
    labels = sorted((f for f in found if f.name in sides or kind(f.name) == "label"), key=lambda f: f.name)
    return file_table(labels)


def file_table(found: list[files.File]) -> pa.Table:
    """Where files are, as `label_index` and `side_index` read it."""
    return pa.Table.from_pylist([{**asdict(f), "path": files.utf8(f.path)} for f in found], schema=LABEL_SCHEMA)


def side_cars(source: Source, found: list[files.File]) -> set[str]:
    """Names of the files that lie beside an image and tell its place."""
    kind = source.collection.kind
    return beside.of_images(lambda name: kind(name) == "image", (f.name for f in found))


def same_table(names: Iterable[str], same: Mapping[str, str]) -> pa.Table:
    """Names of images, each with the one that it has where it is read, as `image_names` reads them."""
    rows = sorted(names)
    return pa.table({"name": pa.array(rows, pa.string()), "there": pa.array([same.get(n, "") for n in rows])})


@lru_cache(maxsize=4)
def image_names(path: Path) -> SameNames:
    """The names in the table at `path`."""
    rows = pq.read_table(path).to_pylist()
    there = {row["there"]: row["name"] for row in rows if row["there"]}
    return SameNames(frozenset(stem_of(row["name"]) for row in rows), there)


@lru_cache(maxsize=4)
def label_index(path: Path) -> dict[str, files.File]:
    """Label files by name, from the table at `path`."""
    return {row["name"]: files.File(**row) for row in pq.read_table(path).to_pylist()}


@lru_cache(maxsize=4)
def side_index(path: Path) -> dict[str, files.File]:
    """Side-cars, from the table at `path`."""
    return beside.by_name(label_index(path))


@lru_cache(maxsize=4)
def lists_at(path: Path, root: Root, *splits: tuple[str, Split]) -> Lists:
    """The lists of splits among the label files of the table at `path`."""
    return read_lists(dict(splits), label_index(path).values(), root)


def label_bytes(root: Root, index: dict[str, files.File], name: str) -> bytes | None:
    """What a label file holds; None where there is none."""
    file = index.get(name)
    try:
        return None if file is None else files.read(root, file)
    except files.BadFile as exc:
        raise files.BadFile(f"{name}: {exc}") from None
