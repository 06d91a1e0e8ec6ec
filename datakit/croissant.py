"""croissant.json of a set: its files with their sha256, its records and members, after ML Commons Croissant 1.0.

All paths are relative to the file, so it holds wherever the folder lies: on a disk, in a store, on a hub. Nothing in it
depends on when or where a set was built. https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from .bands import Band
from .card import ABOUT, cited
from .manifest import Manifest, SourceLeft
from .tally import Tally

NAME = "croissant.json"
SAMPLES = "samples.parquet"
VERSION = "http://mlcommons.org/croissant/1.0"
CONTEXT: dict[str, Any] = {  # as the specification has it
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
SPDX = re.compile(r"[A-Za-z0-9]+(?:[.+-][A-Za-z0-9]+)+")  # as in CC-BY-4.0
SHORT = ("MIT", "ISC", "Zlib")  # SPDX names that are a plain word
SETS = {"seg.png": "masks", "jpg": "pictures", "txt": "captions"}  # record sets of what lies beside the image
PICTURES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp", "seg.png": "image/png"}
FORMATS = {"tif": "image/tiff", "txt": "text/plain", **PICTURES}
KEY = r"^([A-Za-z0-9_-]+)"  # of a file's name; also of a key
BESIDE = ("source", "split", "label", "licences")  # columns that record sets of members have, where there are some


def text(manifest: Manifest, tally: Tally, sha256: str) -> str:
    """The text of croissant.json. tally: of the records; sha256: of samples.parquet."""
    there = [source for source in manifest.sources if source.samples]
    pages = {source.homepage for source in there if source.homepage}
    plain: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": manifest.name,
        "alternateName": manifest.title,
        "description": " ".join((manifest.recipe.get("about") or ABOUT).split()),
        "conformsTo": VERSION,
        "license": [url_of(name) for name in tally.by_licence()],
        "url": pages.pop() if len(pages) == 1 else "",
        "citeAs": "\n".join(cited(manifest).values()),
        "isLiveDataset": False,
        "isBasedOn": [based_on(source) for source in there],
        "distribution": [*files(manifest, sha256)],
        "recordSet": [*record_sets(manifest, tally)],
    }
    return json.dumps({k: v for k, v in plain.items() if v != ""}, indent=1, ensure_ascii=False) + "\n"


def url_of(licence: str) -> str:
    """A licence by its page at SPDX, or in the publisher's words."""
    return f"https://spdx.org/licenses/{licence}" if SPDX.fullmatch(licence) or licence in SHORT else licence


def based_on(source: SourceLeft) -> dict[str, Any]:
    """A collection that samples come from."""
    plain = {"name": source.title, "alternateName": source.name, "url": source.homepage, "version": source.version}
    terms = [url_of(source.licence), *([source.provider_terms] if source.provider_terms else [])]
    licence = [" ".join(one.split()) for one in terms]
    return {"@type": "sc:Dataset", **{k: v for k, v in plain.items() if v}, "license": licence}


def files(manifest: Manifest, sha256: str) -> Iterator[dict[str, Any]]:
    """The table of records, the shards, and the members of these."""
    yield {
        "@type": "cr:FileObject",
        "@id": SAMPLES,
        "name": SAMPLES,
        "contentUrl": SAMPLES,
        "encodingFormat": "application/x-parquet",
        "sha256": sha256,
    }
    for shard in manifest.shards:
        yield {
            "@type": "cr:FileObject",
            "@id": shard.name,
            "name": shard.name,
            "contentUrl": shard.name,
            "contentSize": f"{shard.bytes} B",
            "encodingFormat": "application/x-tar",
            "sha256": shard.sha256,
        }
    for member, name in members(manifest):
        yield {
            "@type": "cr:FileSet",
            "@id": f"{name}-files",
            "name": f"{name}-files",
            "description": f"Members KEY.{member} of the shards.",
            "containedIn": [{"@id": shard.name} for shard in manifest.shards],
            "encodingFormat": FORMATS.get(member, "application/octet-stream"),
            "includes": globs(member),
        }


def members(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Members that are record sets, and the names of these."""
    yield manifest.members[0], "images"
    yield from ((member, SETS[member]) for member in manifest.members[1:] if member in SETS)


def globs(member: str) -> list[str]:
    """Globs that fit the names of a member; *.png alone would fit KEY.seg.png, too."""
    if member != "png":
        return [f"*.{member}"]
    return ["*[!g].png", "*[!e]g.png", "*[!s]eg.png", "*[!.]seg.png"]


def record_sets(manifest: Manifest, tally: Tally) -> Iterator[dict[str, Any]]:
    """Records by column; members by key, each beside a few columns of its record; means and deviations."""
    columns = [field for field in tally.schema if kind_of(field.type)]
    yield {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "Every sample: a row of samples.parquet.",
        "key": {"@id": "samples/key"},
        "field": [of_column("samples", field) for field in columns],
    }
    beside = [field for field in columns if field.name in BESIDE]
    for member, name in members(manifest):
        content = member_field(name, member)
        yield {
            "@type": "cr:RecordSet",
            "@id": name,
            "name": name,
            "description": f"Every member KEY.{member}, with its key.",
            "key": {"@id": f"{name}/key"},
            "field": [key_field(name), content, *(of_column(name, field) for field in beside)],
        }
    told = [*tally.bands.bands()]
    if told:
        yield statistics(told)


def kind_of(kind: pa.DataType) -> str:
    """The type of a column, or of what it lists; "" where Croissant has no word for it."""
    if pa.types.is_list(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "sc:Text"
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_signed_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else ""


def of_column(name: str, column: pa.Field) -> dict[str, Any]:
    """A field of a record set that is a column of the records."""
    more = {"repeated": True} if pa.types.is_list(column.type) else {}
    source = {"fileObject": {"@id": SAMPLES}, "extract": {"column": column.name}}
    return {**named(name, column.name), "dataType": kind_of(column.type), **more, "source": source}


def key_field(name: str) -> dict[str, Any]:
    """The key of a member, by its file's name: that of a record."""
    extract = {"extract": {"fileProperty": "filename"}, "transform": {"regex": KEY}}
    source = {"fileSet": {"@id": f"{name}-files"}, **extract}
    record = {"fileObject": {"@id": SAMPLES}, "extract": {"column": "key"}}
    return {**named(name, "key"), "dataType": "sc:Text", "source": source, "references": record}


def member_field(name: str, member: str) -> dict[str, Any]:
    """What a member holds: a picture where any library opens it, else its bytes."""
    kind = "sc:ImageObject" if member in PICTURES else "sc:Text"
    source = {"fileSet": {"@id": f"{name}-files"}, "extract": {"fileProperty": "content"}}
    return {**named(name, "content"), "dataType": kind, "source": source}


def named(record_set: str, name: str) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": f"{record_set}/{name}", "name": name}


def statistics(told: list[Band]) -> dict[str, Any]:
    """Means and deviations as records of their own."""
    kinds = {"source": "sc:Text", "band": "sc:Text", "dtype": "sc:Text", "samples": "sc:Integer"}
    kinds |= {"pixels": "sc:Integer", "mean": "sc:Float", "deviation": "sc:Float"}
    rows = [{f"statistics/{name}": value for name, value in band._asdict().items()} for band in told]
    return {
        "@type": "cr:RecordSet",
        "@id": "statistics",
        "name": "statistics",
        "description": "Mean and deviation of valid pixels by source and band, in levels; source is empty for all.",
        "field": [{**named("statistics", name), "dataType": kind} for name, kind in kinds.items()],
        "data": rows,
    }
