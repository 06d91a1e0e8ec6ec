"""The check of a build against the planted truth: a right build passes, and every wrong one is found out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from datakit.manifest import Manifest
from datakit.sample import Sample, Window, make_key, to_table
from datakit.sources.synth import check

Entry = dict[str, Any]
Rows = list[Sample]


def entry(name: str, expect: str = "kept", **facts: Any) -> Entry:
    return {"source": "a", "name": name, "what": "scene", "expect": expect, "width": 400, "height": 300, **facts}


TRUTH = [
    entry("good.jpg"),
    entry("large.png", width=900, height=512),
    entry("partly.tif", width=900, height=512, valid_polygon=[[0, 0], [600, 0], [600, 512], [0, 512]]),
    entry("blank.jpg", "flat", what="blank"),
    entry("broken.png", "unreadable", what="corrupt_truncated"),
    entry("labels.txt", "label", what="label_file"),
    entry("preview.png", "unmatched", what="preview"),
    entry("copy.jpg", what="copy", how="exact", expect_dedup="duplicate", copy_of={"source": "a", "name": "good.jpg"}),
    entry(
        "turned.jpg", what="copy", how="up-down", expect_dedup="duplicate", copy_of={"source": "a", "name": "good.jpg"}
    ),
    entry("leak.jpg", what="leak", how="jpeg50", expect_protect="protected", leak_of="heldout/x.jpg"),
]
FIRST, SECOND = Window(0, 0, 512, 512), Window(388, 0, 512, 512)


def row(name: str, dropped: str = "", window: Window | None = None, size: tuple[int, int] = (400, 300)) -> Sample:
    width, height = window[2:] if window else size
    other = {"copy.jpg": "good.jpg", "good.jpg": "copy.jpg"}.get(name, "good.jpg")
    lost_to = make_key("a", other) if dropped.startswith("duplicate") else ""
    return Sample(source="a", name=name, window=window, width=width, height=height, dropped=dropped, lost_to=lost_to)


def right() -> Rows:
    """What a build of TRUTH leaves that has neither dedup nor protection."""
    return [
        row("good.jpg"),
        row("large.png", "", FIRST),
        row("large.png", "", SECOND),
        row("partly.tif", "", FIRST),
        row("partly.tif", "valid_share", SECOND),  # 212 of 512 columns
        row("blank.jpg", "flat"),
        row("broken.png", "unreadable", size=(0, 0)),
        row("preview.png", "unmatched", size=(0, 0)),
        row("copy.jpg"),
        row("turned.jpg"),
        row("leak.jpg"),
    ]


@pytest.fixture
def judged(tmp_path: Path) -> Any:
    """Checks a build that left some rows, made by some recipe."""

    def judge(rows: Rows, **recipe: Any) -> list[str]:
        (tmp_path / "truth.json").write_text(json.dumps({"files": TRUTH}))
        pq.write_table(to_table(r for r in rows if not r.dropped), tmp_path / "samples.parquet")
        pq.write_table(to_table(r for r in rows if r.dropped), tmp_path / "dropped.parquet")
        manifest = Manifest(
            name="x", title="x", recipe=recipe, recipe_digest="", versions={}, sources=(), missing=(),
            samples=0, members=("jpg", "json"), shards=(), counts=(), files={},
        )  # fmt: skip
        (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
        return check(tmp_path, tmp_path)

    return judge


def changed(rows: Rows, name: str, *instead: Sample) -> Rows:
    """Rows with other ones for one file."""
    return [r for r in rows if r.name != name] + list(instead)


def test_a_right_build_has_nothing_wrong(judged: Any) -> None:
    assert judged(right()) == []


@pytest.mark.parametrize(
    ("name", "instead", "words"),
    [
        ("blank.jpg", [row("blank.jpg")], "should go as flat; kept"),
        ("blank.jpg", [row("blank.jpg", "valid_share")], "should go as flat; dropped as valid_share"),
        ("broken.png", [row("broken.png", "unreadable"), row("broken.png", "", FIRST)], "kept at"),
        ("good.jpg", [row("good.jpg", "flat")], "should be kept; dropped as flat"),
        ("good.jpg", [row("good.jpg", "valid_share")], "1.00 of it is valid"),
        ("good.jpg", [], "neither kept nor dropped"),
        ("good.jpg", [row("good.jpg", size=(300, 400))], "400 x 300 px as shown"),
        ("large.png", [row("large.png", "", FIRST)], "is in no window"),
        ("large.png", [row("large.png", "", FIRST), row("large.png", "duplicate", SECOND)], "should be kept"),
        ("partly.tif", [row("partly.tif", "", FIRST), row("partly.tif", "", SECOND)], "only 0.41 of it is valid"),
        ("partly.tif", [row("partly.tif", "valid_share", w) for w in (FIRST, SECOND)], "1.00 of it is valid"),
        ("preview.png", [row("preview.png")], "should go as unmatched"),
        ("preview.png", [], "neither kept nor dropped"),
        ("labels.txt", [row("labels.txt", "unmatched")], "a label file"),
        ("other.jpg", [row("other.jpg")], "not in the truth"),
        ("other.jpg", [row("other.jpg", "unmatched")], "not in the truth"),
        ("leak.jpg", [row("leak.jpg", "protected")], "should be kept"),
        ("good.jpg", [row("good.jpg", "subset")], "should be kept"),
    ],
)
def test_a_wrong_build_is_found_out(judged: Any, name: str, instead: Rows, words: str) -> None:
    wrong = judged(changed(right(), name, *instead))
    assert len(wrong) == 1
    assert name in wrong[0]
    assert words in wrong[0]


def test_shares_near_the_threshold_may_go_either_way(judged: Any) -> None:
    edge = Window(600 - 256, 0, 512, 512)
    for dropped in ("", "valid_share"):
        rows = [
            row("partly.tif", "", FIRST),
            row("partly.tif", "valid_share", SECOND),
            row("partly.tif", dropped, edge),
        ]
        assert judged(changed(right(), "partly.tif", *rows)) == []


def test_copies_go_where_the_recipe_removes_them(judged: Any) -> None:
    """Whichever of them is kept; turned ones only where asked."""
    assert any("not 2" in w for w in judged(right(), dedup={"radius_bits": 4}))
    assert judged(right(), dedup={"action": "report"}) == []
    without = changed(right(), "copy.jpg", row("copy.jpg", "duplicate"))
    assert judged(without, dedup={"radius_bits": 4}) == []
    original = changed(right(), "good.jpg", row("good.jpg", "duplicate_scene"))
    assert judged(original, dedup={"radius_bits": 4}) == []
    strange = replace(row("copy.jpg", "duplicate"), lost_to=make_key("a", "large.png"))
    assert any("no copy of" in w for w in judged(changed(right(), "copy.jpg", strange), dedup={"radius_bits": 4}))
    both = changed(without, "good.jpg", row("good.jpg", "duplicate"))
    assert any("not 0" in w for w in judged(both, dedup={"radius_bits": 4}))
    turned = changed(without, "turned.jpg", row("turned.jpg", "duplicate"))
    assert len(judged(turned, dedup={"radius_bits": 4})) == 1
    assert judged(turned, dedup={"radius_bits": 4, "orientations": True}) == []
    assert len(judged(without, dedup={"radius_bits": 4, "orientations": True})) == 1


def test_leaks_go_where_the_recipe_protects(judged: Any) -> None:
    assert any("should go as protected" in w for w in judged(right(), protect={"lists": ["x"]}))
    safe = changed(right(), "leak.jpg", row("leak.jpg", "protected_scene"))
    assert judged(safe, protect={"lists": ["x"]}) == []


def test_a_subset_may_leave_good_ones_out(judged: Any) -> None:
    some = changed(right(), "good.jpg", row("good.jpg", "subset_cap"))
    assert judged(some, subset={"count": 5}) == []
    gone = changed(right(), "good.jpg", row("good.jpg", "dark"))
    assert len(judged(gone, subset={"count": 5})) == 1
