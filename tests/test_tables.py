"""Tables for the terminal: columns under each other, and the closing table adds up to the manifest."""

from __future__ import annotations

from datakit.manifest import Count, Manifest, SourceLeft
from datakit.tables import aligned, closing


def manifest() -> Manifest:
    source = SourceLeft(
        name="air",
        title="Air",
        version=None,
        homepage="",
        licence="a licence " * 20,
        provider_terms=None,
        samples=1200,
        bytes=1,
        mean_bytes=45678.0,
        mean_psnr_db=38.25,
        unmatched=0,
    )
    nothing = source.model_copy(
        update={"name": "none", "samples": 0, "mean_bytes": 0.0, "mean_psnr_db": None, "licence": "x"}
    )
    counts = (
        Count(stage="scan", source="air", came=1000, left=998, made=998, dropped={"unreadable": 2}),
        Count(stage="slice", source="air", came=998, left=998, made=2000, dropped={}),
        Count(stage="cut", source="air", came=2000, left=1200, made=1200, dropped={"a": 1, "b": 799}),
    )
    return Manifest(
        name="set",
        title="",
        recipe={},
        recipe_digest="",
        versions={},
        sources=(source, nothing),
        missing=(),
        samples=1200,
        members=("jpg", "json"),
        shards=(),
        counts=counts,
        files={},
    )


def test_the_closing_table() -> None:
    timings = {"read_bytes": {"cut": {"air": 50_000_000}}, "worker_seconds": {"cut": {"air": 4.0}}}
    lines = [line.split() for line in closing(manifest(), timings).splitlines()]
    assert lines[0] == ["stage", "source", "in", "out", "MB/s", "dropped"]
    assert lines[2] == ["scan", "air", "1,000", "998", "-", "unreadable", "2"]
    assert lines[3] == ["slice", "air", "998", "998", "->", "2,000", "-"]
    assert lines[4] == ["cut", "air", "2,000", "1,200", "12.5", "a", "1,", "b", "799"]
    assert lines[8][:4] == ["air", "1,200", "45.7", "38.2"]
    assert lines[9] == ["none", "0", "-", "-", "x"]
    assert max(len(line) for line in closing(manifest(), timings).splitlines()) < 100


def test_columns_stand_under_each_other() -> None:
    lines = aligned([("name", "count", ""), ("a", "7", "x"), ("bcd", "1,234", ""), ("e", "-", "y")])
    assert lines == ["name  count", "-----------", "a         7  x", "bcd   1,234", "e         -  y"]
    assert aligned([("only", "head")]) == ["only  head", "----------"]
