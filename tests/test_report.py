"""The page of a build: counts that add up, pictures of what went, decisions that the next build takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import Page
from looked_at import HOSTILE, Looked, build, copy_of, dropped, kept, looked_at, told

from datakit import report
from datakit.cli import main
from datakit.decisions import Decisions
from datakit.errors import ShardError
from datakit.manifest import Manifest
from datakit.samples import Samples
from datakit.sheets import MEMBERS
from datakit.sources import synth, synth_raw
from datakit.survey import MEASURES, places, survey, thresholds

Out = pytest.CaptureFixture[str]
KIND = ("stage", "source", "dropped")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Looked:
    return looked_at(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def text(made: Looked) -> str:
    return report.page(made.out)[0]


@pytest.fixture
def opened(made: Looked, browser: Any, tmp_path: Path) -> Iterator[Page]:
    """The page in a window of 1400 px."""
    report.write(made.out, tmp_path / "report.html")
    page = Page(browser, (tmp_path / "report.html").as_uri())
    yield page
    page.close()


def test_the_command_writes_one_file(made: Looked, tmp_path: Path, capsys: Out) -> None:
    out = copy_of(made, tmp_path / "out")
    assert main(["report", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == str(out / "report.html")
    assert told["bytes"] == (out / "report.html").stat().st_size
    assert main(["report", str(made.out), "-o", str(tmp_path / "there" / "r.html")]) == 0
    assert (tmp_path / "there" / "r.html").read_bytes() == (out / "report.html").read_bytes()  # the same, again
    text = (out / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert links
    assert {link for link in links if not link.startswith(("data:", "#"))} == {"https://example.org"}
    assert "@import" not in text
    assert "url(http" not in text


def test_every_count_of_the_manifest_is_there_and_adds_up(made: Looked, text: str) -> None:
    manifest = Manifest.load(made.out)
    rows = report.funnel(manifest)
    for count in manifest.counts:
        (row,) = [r for r in rows if (r["stage"], r["source"]) == (count.stage, count.source)]
        assert (row["came"], row["left"], row["made"]) == (count.came, count.left, count.made)
        assert dict(row["dropped"]) == count.dropped
    table = report.by_reason(manifest)
    by_reason = {why: len(found) for why, found in dropped(made.out).items()}
    assert {why: n for (_, why, _), n in zip(table["kinds"], table["sums"], strict=True)} == by_reason
    assert table["total"] == sum(by_reason.values()) == sum(total for *_, total in table["rows"])
    assert text.count('<li class="yes">') == 4
    for why, n in by_reason.items():
        assert f">{why} {n}</a>" in text


def test_a_table_that_does_not_fit_the_counts_is_told(made: Looked, tmp_path: Path) -> None:
    out = copy_of(made, tmp_path / "out")
    table = pq.read_table(out / "dropped.parquet")
    pq.write_table(table.slice(1), out / "dropped.parquet")
    text, _ = report.page(out)
    (line,) = re.findall(r'<li class="no">(.*)</li>', text)
    assert line.startswith(f"{table.num_rows - 1} rows of dropped.parquet")
    assert "datakit verify" in line


def test_tars_that_are_gone_cost_pictures_and_nothing_else(made: Looked, tmp_path: Path) -> None:
    out = copy_of(made, tmp_path / "out")
    for path in out.glob("*.tar"):
        path.write_bytes(path.read_bytes()[:-512])
    text, about = report.page(out)
    assert re.search(r"\d+ pictures of kept samples could not be read", text)
    assert about["groups"]
    (out / "samples.parquet").write_bytes(b"PAR1")
    with pytest.raises(ShardError, match=r"samples\.parquet"):
        report.page(out)
    with pytest.raises(ShardError, match=r"manifest\.json"):
        report.page(tmp_path)


def test_a_build_in_a_store_has_a_report_beside_it(made: Looked, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for path in made.out.iterdir():
        store.put_file(str(path), f"/test_report/{path.name}")
    told = report.write("memory://test_report")
    assert told["file"] == "memory://test_report/report.html"
    report.write(made.out, tmp_path / "report.html")
    assert store.cat("/test_report/report.html") == (tmp_path / "report.html").read_bytes()
    store.rm("/test_report", recursive=True)


def test_what_is_counted_does_not_depend_on_the_pieces(made: Looked, tmp_path: Path) -> None:
    table = pq.read_table(made.out / "dropped.parquet")
    found = []
    for rows in (1, 3, 1000):
        (tmp_path / str(rows)).mkdir()
        pq.write_table(table, tmp_path / str(rows) / "dropped.parquet", row_group_size=rows)
        found.append(survey(Samples(tmp_path / str(rows), "dropped.parquet"), KIND, 2))
    assert found[0].counts == found[1].counts == found[2].counts
    assert sum(found[0].counts.values()) == table.num_rows
    for one in found[1:]:
        assert {k: v.tolist() for k, v in one.few.items()} == {k: v.tolist() for k, v in found[0].few.items()}
        assert all(np.array_equal(one.histograms[name], found[0].histograms[name]) for name in MEASURES)
    assert max(len(rows) for rows in found[0].few.values()) == 2


def test_a_histogram_counts_every_value_once_and_no_absent_one(made: Looked) -> None:
    table = pq.read_table(made.out / "samples.parquet")
    found = survey(Samples(made.out), ("source",), 4)
    for name in ("valid_share", "entropy_bits", "sharpness", "gsd_m"):
        assert found.histograms[name].sum() == len(table.column(name).drop_null())
    entropy = table.column("entropy_bits").to_numpy()
    edges = MEASURES["entropy_bits"].edges()
    at = int(np.searchsorted(edges, entropy[0], side="right")) - 1
    assert found.histograms["entropy_bits"][at] == ((entropy >= edges[at]) & (entropy < edges[at + 1])).sum()
    assert sum(found.licences.values()) == table.num_rows


def test_the_map_holds_every_footprint(made: Looked, text: str) -> None:
    samples = Samples(made.out)
    found = survey(samples, ("source",), 4)
    at = places(samples, found)
    assert at is not None
    with_place = sum(bool(f) for f in pq.read_table(made.out / "samples.parquet").column("footprint").to_pylist())
    assert found.placed == {"sat": with_place}
    assert at.cells.sum() == len(at.outlines) == with_place
    west, south, east, north = at.box
    assert (at.outlines[..., 0] >= west).all()
    assert (at.outlines[..., 0] <= east).all()
    assert (at.outlines[..., 1] >= south).all()
    assert (at.outlines[..., 1] <= north).all()
    assert f'aria-label="{with_place} footprints' in text


def test_thresholds_are_those_of_the_recipe(made: Looked, text: str) -> None:
    lines = thresholds(Manifest.load(made.out).recipe)
    assert lines["valid_share"] == [("valid_share", 0.5, True)]
    assert lines["entropy_bits"] == [("flat", 0.5, True)]
    assert lines["side_px"] == [("smaller_than", 64.0, True)]
    for said in ("flat &lt; 0.5", "smaller_than &lt; 64", "duplicate &lt; 4.5"):
        assert f">{said}</text>" in text
    assert "#01020" not in text  # every colour is the page's


def tiles(text: str, reason: str) -> list[str]:
    found = re.findall(r'<figure class="tile .*?</figure>', text, re.DOTALL)
    return [tile for tile in found if f'data-reason="{reason}"' in tile]


def test_what_went_is_shown_with_its_value_and_marked_only_where_that_can_be(made: Looked, text: str) -> None:
    gone = dropped(made.out)
    for why in gone:
        shown = {re.findall(r'data-key="(.*?)"', tile)[0] for tile in tiles(text, why)}
        assert shown == {row["key"] for row in gone[why]} or (why == "duplicate_scene" and len(shown) == MEMBERS)
    assert "<b>entropy_bits 0</b>" in tiles(text, "flat")[0]
    assert "<b>side_px 40</b>" in tiles(text, "smaller_than")[0]
    assert "<b>val</b>" in tiles(text, "evaluation")[0]
    assert "<b>ask first</b>" in tiles(text, "not_open")[0]
    for why in ("flat", "smaller_than", "duplicate", "duplicate_scene", "subset_source"):
        assert all('<button type="button"' in tile and "<img " in tile for tile in tiles(text, why))
    for why in ("evaluation", "not_open", "protected", "unreadable"):
        assert not any("<button" in tile for tile in tiles(text, why))
    assert HOSTILE not in text  # but for its spelling


def test_groups_and_matches_stand_beside_what_they_went_for(made: Looked, text: str) -> None:
    gone = dropped(made.out)
    groups = re.findall(r'<div class="group">(.*?)\n</div>', text, re.DOTALL)
    assert len(groups) == len({row["lost_to"] for why in ("duplicate", "duplicate_scene") for row in gone[why]})
    for group in groups:
        first, *others = re.findall(r'<figure class="tile (head)?"[^>]*data-key="(.*?)"', group)
        assert first[0] == "head"
        lost = [row for why in ("duplicate", "duplicate_scene") for row in gone[why] if row["lost_to"] == first[1]]
        assert {key for _, key in others} <= {row["key"] for row in lost}
        assert others
        assert group.count("<img ") == len(others) + 1
    (leak,) = gone["protected"]
    (pair,) = re.findall(r'<div class="pair">(.*?)</div>\n</div>', text, re.DOTALL)
    assert f"{leak['distance_bits']} bits, left-right; held/one.png" in pair
    mine, theirs = re.findall(r'<img class="coarse" src="(.*?)"', pair)
    assert mine.startswith("data:image/png")
    assert theirs.startswith("data:image/png")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_it_looks_right(made: Looked, browser: Any, tmp_path: Path, width: int, dark: bool) -> None:
    report.write(made.out, tmp_path / "report.html")
    page = Page(browser, (tmp_path / "report.html").as_uri(), width, dark)
    try:
        assert page.complaints == []
        assert page.page.locator("img").count() > 30
        assert page.broken() == []
        assert not page.overflows()
        back, ink = page.page.evaluate(
            "['backgroundColor', 'color'].map(what => getComputedStyle(document.body)[what])"
        )
        light = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in (back, ink)]
        assert light[0] < 0.15 < 0.8 < light[1] if dark else light[1] < 0.15 < 0.8 < light[0]
        axis = page.page.evaluate("getComputedStyle(document.querySelector('.charts svg text')).fill")
        assert axis == ink
        assert page.page.evaluate("document.title") == "looked: report"
    finally:
        page.close()


@pytest.mark.browser
def test_filters_show_what_is_asked_for(made: Looked, opened: Page) -> None:
    page = opened.page

    def shown() -> list[tuple[str, str]]:
        pairs = page.evaluate(
            """[...document.querySelectorAll('.tile[data-key]')].filter(tile => tile.offsetParent)
            .map(tile => [tile.dataset.source, tile.dataset.stage === 'kept' ? '' : tile.dataset.reason])"""
        )
        return [tuple(pair) for pair in pairs]

    everything = shown()
    page.select_option("#source", "sat")
    assert {source for source, _ in shown()} == {"sat"}
    funnel = page.locator("table.funnel tbody:visible tr")
    counts = {count.stage: count for count in Manifest.load(made.out).counts if count.source == "sat"}
    assert funnel.count() == len(counts)
    assert [row.split()[1] for row in funnel.all_inner_texts()] == [f"{count.came}" for count in counts.values()]
    page.click("#all")
    assert shown() == everything
    page.select_option("#reason", "flat")
    assert {why for _, why in shown()} == {"flat", ""}
    page.click("#all")
    page.locator(".chip", has_text="duplicate_scene").first.click()
    assert page.input_value("#reason") == "duplicate_scene"
    page.click("#all")
    page.fill("#text", "onerror")
    names = page.eval_on_selector_all(".tile[data-key]", "all => all.filter(t => t.offsetParent).map(t => t.title)")
    assert [name.partition(": ")[0] for name in names] == [HOSTILE]
    grouped = page.evaluate("document.querySelector('.group .tile:not(.head)[data-key]').dataset.key")
    for text in (grouped, "", "no such key"):  # one of a group shows all of it
        page.fill("#text", text)
        assert page.inner_text("#shown") == f"{len(shown())} shown"
    assert shown() == []
    assert page.locator(".sheet:visible").count() == 0
    assert opened.complaints == []


@pytest.mark.browser
def test_what_is_clicked_on_is_kept_by_the_next_build(made: Looked, opened: Page, browser: Any, tmp_path: Path) -> None:
    page = opened.page
    gone = dropped(made.out)
    wrong = [gone["flat"][0], gone["duplicate"][0], gone["subset_source"][0]]
    for row in wrong:
        page.locator(f'.tile[data-key="{row["key"]}"] button').first.click()
    page.locator(f'.tile[data-key="{gone["flat"][1]["key"]}"] button').click(click_count=2)  # marked, and taken back
    bad = sorted(kept(made.out) & set(page.eval_on_selector_all("#kept .tile", "all => all.map(t => t.dataset.key)")))
    bad = [key for key in bad if key not in {row["lost_to"] for rows in gone.values() for row in rows}][:1]
    page.locator(f'#kept .tile[data-key="{bad[0]}"] button').click()
    assert page.inner_text("#marked") == "4"
    with page.expect_download() as waiting:
        page.click("#save")
    assert waiting.value.suggested_filename == "decisions.json"
    path = tmp_path / "decisions.json"
    waiting.value.save_as(path)
    decisions = Decisions.load(path)
    assert {one.key: one.reason for one in decisions.keep} == {row["key"]: row["dropped"] for row in wrong}
    assert [one.key for one in decisions.drop] == bad
    build(made, made.recipe.model_copy(update={"decisions": decisions}), tmp_path / "next")
    assert kept(tmp_path / "next") == kept(made.out) - {*bad} | {row["key"] for row in wrong}
    assert told(tmp_path / "next")["counts"] == {"kept": 3, "left_out": 1}
    goes_on(tmp_path / "next", browser, decisions, wrong[0]["key"])


def goes_on(out: Path, browser: Any, decisions: Decisions, back: str) -> None:
    """The page of that build begins with what was decided, and lets it be taken back."""
    report.write(out)
    page = Page(browser, (out / "report.html").as_uri())
    try:
        rows = page.page.locator("#decided tr")
        assert rows.count() == 4
        assert "3 kept, 1 left out" in page.page.inner_text("#decided_here")
        page.page.locator("#decided tr", has_text=back).locator("button").click()
        with page.page.expect_download() as waiting:
            page.page.click("#save")
        again = Decisions.load(Path(waiting.value.path()))
        assert {one.key for one in again.keep} == {one.key for one in decisions.keep} - {back}
        assert again.drop == decisions.drop
        page.page.reload()
        assert page.page.locator("#decided tr").count() == 3  # it remembers
        assert page.complaints == []
    finally:
        page.close()


@pytest.mark.parametrize("kind", ["imagenet_s", "aodraw"])
def test_other_kinds_of_sets_have_a_page(kind: str, tmp_path: Path) -> None:
    if kind == "imagenet_s":
        synth.make(kind, tmp_path / "data")
        command = ["recipes/imagenet_s.yaml", "--set", "variant=50"]
    else:
        synth_raw.make(tmp_path / "data", seed=3, size=(216, 152), images=8)
        window = ["slice.published.size_px=96", "slice.published.gap_px=24"]
        command = ["recipes/aodraw.yaml", *[word for value in window for word in ("--set", value)]]
    out = tmp_path / "out"
    assert main(["build", *command, "--data", str(tmp_path / "data"), "--out", str(out), "--workers", "0"]) == 0
    text, about = report.page(out)
    assert '<li class="no">' not in text
    assert about["tiles"] > 3
    kept_ones = re.findall(r'data-stage="kept".*?</figure>', text, re.DOTALL)
    assert kept_ones
    assert all("<img " in tile for tile in kept_ones)
    assert ('data-mark="drop"' in text) == (kind == "aodraw")  # an official set takes no decisions


def test_a_group_names_what_a_later_stage_took(made: Looked, tmp_path: Path) -> None:
    """The kept one of a group may have gone by the subset: it is named, without a picture."""
    out = copy_of(made, tmp_path / "out")
    table = pq.read_table(out / "dropped.parquet")
    at = table.column("dropped").to_pylist().index("duplicate")
    heads = table.column("lost_to").to_pylist()
    heads[at] = "air-gone"
    place = table.schema.get_field_index("lost_to")
    pq.write_table(table.set_column(place, "lost_to", pa.array(heads)), out / "dropped.parquet")
    text, _ = report.page(out)
    (head,) = re.findall(r'<figure class="tile head" data-key="air-gone".*?</figure>', text, re.DOTALL)
    assert "no picture" in head
    assert "left out by a later stage" in head
