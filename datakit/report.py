"""A build as one page: what came in, what went out and why, with pictures; from what lies in OUT alone."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from . import charts
from .decisions import FORMAT, held
from .manifest import Count, Manifest
from .remote import Root, root_of
from .rules import Rule
from .samples import Samples
from .sheets import Kept, Removed, groups
from .survey import ALWAYS, BINS, IDENTITY, MEASURES, Survey, places, survey, thresholds

Plain = dict[str, Any]
OF_A_KIND = 24  # removed records of one source and reason; as many as a build leaves pictures of
OF_A_SOURCE = 36  # kept samples
WORDS = {  # reasons that no rule of the recipe has
    "unmatched": "files that are neither image nor label of the layout",
    "unreadable": "what could not be read",
    "evaluation": "evaluation sets, and validation and test splits",
    "by_hand": "left out by a person: decisions.json",
    "duplicate": "looks like a kept one, or has equal pixels",
    "duplicate_scene": "tiles of an image that looks like a kept one",
    "twin": "another product of an acquisition that is kept",
    "series": "a further date of a place whose dates are all taken",
    "same_place": "tiles whose ground kept tiles of other images show",
    "protected": "looks like a held-out image or tile",
    "protected_scene": "tiles of an image that looks like a held-out one",
    "protected_place": "its footprint overlaps that of a held-out image",
    "protected_twin": "another product of an acquisition of which something was protected",
    "subset_flat": "flat tiles beyond the cap of the subset",
    "subset_count": "beyond the count or the share of the subset",
    "subset_source": "beyond what the subset takes of a source",
}


def write(out: str | Root, file: Path | None = None) -> Plain:
    """Write the report of the build at `out`, to OUT/report.html if no file is named; gives what to say of it.

    ShardError where what the build left cannot be read. The same build gives the same bytes.
    """
    where = root_of(out)
    where = where if where.is_dir() else where.parent
    text, about = page(where)
    target = file or where / "report.html"
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent if isinstance(target, Path) else None) as folder:
        aside = Path(folder) / target.name
        aside.write_text(text, encoding="utf-8")
        aside.replace(target) if isinstance(target, Path) else target.put(aside)
    return {"file": str(target), "bytes": len(text.encode()), **about}


def page(out: Root) -> tuple[str, Plain]:
    """The page, and counts of what is on it."""
    manifest = Manifest.load(out)
    samples, dropped = Samples(out), Samples(out, "dropped.parquet")
    ours = {*IDENTITY, "key"} <= {*dropped.schema.names}  # official sets (ImageNet-S) drop by name alone
    found = survey(samples, ("source",) if "source" in samples.schema.names else ("split",), OF_A_SOURCE)
    lost = survey(dropped, ("stage", "source", "dropped"), OF_A_KIND) if ours else None
    sheets = pictured(out, manifest, samples, found, dropped, lost)
    decided = note(out, "decisions")
    context = {
        "m": manifest,
        "funnel": funnel(manifest),
        "checks": checks(manifest, found, lost),
        "reasons": by_reason(manifest),
        "sources": sorted({count.source for count in manifest.counts}),
        "charts": [Markup(one) for one in drawn(manifest, found, lost or Survey())],
        "map": Markup(charts.footprints(at)) if (at := places(samples, found)) else "",
        "placed": found.placed,
        "licences": found.licences.most_common(),
        "certificate": note(out, "protect"),
        "timings": throughput(note(out, "timings")),
        "decides": lost is not None,
        "decided": decided,
        "before": before(decided, manifest),
        "outcomes": outcomes(decided),
        "recipe": yaml.safe_dump(manifest.recipe, sort_keys=False, allow_unicode=True, width=100),
        **sheets,
    }
    tiles = sum(len(one["tiles"]) for one in sheets["sheets"]) + len(sheets["kept"])
    about = {"tiles": tiles, "groups": len(sheets["groups"]), "protected": len(sheets["protected"])}
    return environment().get_template("report.html.j2").render(context), about


def environment() -> Environment:
    pages = PackageLoader("datakit", "page")
    env = Environment(loader=pages, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    env.filters["count"] = lambda n: f"{n:,}"
    env.filters["size"] = lambda n: f"{n / 1e9:,.2f} GB" if n >= 1e9 else f"{n / 1e6:,.1f} MB"
    return env


def pictured(
    out: Root, manifest: Manifest, samples: Samples, found: Survey, dropped: Samples, lost: Survey | None
) -> Plain:
    """What has pictures: sheets of what went, groups of duplicates, matches with held-out images, what was kept."""
    kept = Kept(out, samples)
    sheets: Plain = {"sheets": [], "groups": [], "protected": [], "kept": kept.sheet(found, "drop" if lost else "")}
    if lost is not None:
        removed = Removed.read(manifest.recipe, dropped, lost, Samples(out, "pictures.parquet"))
        dedup = note(out, "dedup")
        largest = [one["key"] for level in ("images", "tiles") for one in dedup.get(level, {}).get("largest", ())[:3]]
        sheets["sheets"] = sheets_of(manifest, removed)
        sheets["groups"] = groups(removed, dropped, kept, largest)
        sheets["protected"] = removed.protected(note(out, "protect").get("thumbnails", {}))
    return {**sheets, "unread": kept.trouble}


def note(out: Root, name: str) -> Plain:
    """What a JSON file of OUT says; {} where it is not there."""
    path = out / f"{name}.json"
    found: Plain = json.loads(path.read_bytes()) if path.exists() else {}
    return found


def before(decided: Plain, manifest: Manifest) -> Plain:
    """What the page begins to decide from: what the build was told."""
    return {"format": FORMAT, "name": manifest.name, "keep": [], "drop": []} | {
        what: [{k: one[k] for k in ("key", "stage", "reason")} for one in decided.get(what, ())]
        for what in ("keep", "drop")
    }


def outcomes(decided: Plain) -> dict[str, str]:
    """What became of each decision, in words, by key."""
    told = [one for what in ("keep", "drop") for one in decided.get(what, ())]
    return {one["key"]: ": ".join(filter(None, [one["outcome"].replace("_", " "), one["detail"]])) for one in told}


def funnel(manifest: Manifest) -> list[Plain]:
    """Rows of the funnel: of all sources together (source ""), then of each, stage by stage."""
    stages = list(dict.fromkeys(count.stage for count in manifest.counts))
    rows = []
    for source in ["", *sorted({count.source for count in manifest.counts})]:
        for stage in stages:
            some = [c for c in manifest.counts if c.stage == stage and source in ("", c.source)]
            if some:
                rows.append({"stage": stage, "source": source, **summed(some)})
    most = max((row["came"] for row in rows), default=1)
    most = max(most, max((row["made"] for row in rows), default=1), 1)
    for row in rows:
        row["came_share"], row["made_share"] = (round(100 * row[name] / most, 2) for name in ("came", "made"))
    return rows


def summed(counts: Sequence[Count]) -> Plain:
    dropped: Counter[str] = sum((Counter(count.dropped) for count in counts), Counter())
    total = {name: sum(getattr(count, name) for count in counts) for name in ("came", "left", "made")}
    return {**total, "dropped": dropped.most_common(), "gone": sum(dropped.values())}


def by_reason(manifest: Manifest) -> Plain:
    """What went, by source and reason, with sums."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for count in manifest.counts:
        counts.update({(count.source, count.stage, why): n for why, n in count.dropped.items()})
    order = list(dict.fromkeys(count.stage for count in manifest.counts))
    kinds = sorted({(stage, why) for _, stage, why in counts}, key=lambda kind: (order.index(kind[0]), kind[1]))
    sources = sorted({source for source, *_ in counts})
    rows = [(source, [counts[source, *kind] for kind in kinds]) for source in sources]
    return {
        "kinds": [(stage, why, describe(manifest, why)) for stage, why in kinds],
        "rows": [(source, cells, sum(cells)) for source, cells in rows],
        "sums": [sum(column) for column in zip(*(cells for _, cells in rows), strict=True)],
        "total": sum(counts.values()),
    }


def checks(manifest: Manifest, found: Survey, lost: Survey | None) -> list[tuple[str, bool]]:
    """What must add up, in words, and whether it does."""
    rows = [row for row in funnel(manifest) if not row["source"]]
    steps = all(row["came"] == row["left"] + row["gone"] for row in rows)
    chain = all(row["came"] == last["made"] for last, row in pairwise(rows))
    kept, tarred = sum(found.counts.values()), sum(shard.samples for shard in manifest.shards)
    told = [
        ("at every stage, what came is what left and what was dropped", steps),
        ("every stage got what the one before it made", chain),
        (f"{tarred:,} samples in shards, {kept:,} rows of samples.parquet", tarred == kept),
    ]
    if lost is not None:
        counted = Counter({(c.stage, c.source, why): n for c in manifest.counts for why, n in c.dropped.items()})
        total = sum(lost.counts.values())
        told.append(
            (f"{total:,} rows of dropped.parquet, as counted by stage, source and reason", counted == lost.counts)
        )
    return told


def sheets_of(manifest: Manifest, removed: Removed) -> list[Plain]:
    """Contact sheets in the order of the stages."""
    order = list(dict.fromkeys(count.stage for count in manifest.counts))
    total: Counter[tuple[str, str]] = Counter()
    for count in manifest.counts:
        total.update({(count.stage, why): n for why, n in count.dropped.items()})
    found = sorted(removed.sheets().items(), key=lambda one: (order.index(one[0][0]), one[0][1]))
    return [
        {
            "stage": stage,
            "reason": why,
            "words": describe(manifest, why),
            "count": total[stage, why],
            "held": held(manifest.recipe, stage, why),
            "tiles": tiles,
        }
        for (stage, why), tiles in found
    ]


def describe(manifest: Manifest, reason: str) -> str:
    """What a reason means: of a rule what it says, and its numbers."""
    kinds = {one.model_fields["rule"].default: one for one in get_args(get_args(Rule)[0])}
    for rule in manifest.recipe.get("exclude", {}).get("rules", ()):
        if (rule.get("name") or rule["rule"]) == reason:
            said = (kinds[rule["rule"]].__doc__ or "").strip().splitlines()[0].replace("`", "")
            given = {k: v for k, v in rule.items() if k not in ("rule", "name") and v not in (None, "", [])}
            return f"{said} " + ", ".join(f"{k}: {spelled(v)}" for k, v in given.items())
    return WORDS.get(reason, "")


def spelled(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def drawn(manifest: Manifest, found: Survey, lost: Survey) -> list[str]:
    """The charts: measured values, and what rules look at."""
    lines, none = thresholds(manifest.recipe), np.zeros(BINS, np.int64)
    out = []
    for name, measure in MEASURES.items():
        kept, gone = (one.histograms.get(name, none) for one in (found, lost))
        if (name in ALWAYS or name in lines) and (kept.any() or gone.any()):
            svg = charts.histogram(measure, kept, gone, lines.get(name, []))
            out.append(f"<figure>{svg}<figcaption>{measure.title}</figcaption></figure>")
    return out


def throughput(timings: Plain) -> Plain:
    """Seconds by stage of the last run, and what it read; {} where nothing is noted."""
    if not timings:
        return {}
    rows = []
    for stage, seconds in timings["seconds"].items():
        read = sum(timings["read_bytes"].get(stage, {}).values())
        worked = sum(timings["worker_seconds"].get(stage, {}).values())
        rows.append(
            {"stage": stage, "seconds": seconds, "mb": read / 1e6, "mb_s": read / 1e6 / worked if worked else 0.0}
        )
    total = sum(row["seconds"] for row in rows)
    for row in rows:
        row["share"] = round(100 * row["seconds"] / total, 1) if total else 0.0
    return {"rows": rows, "total": total, "date": timings["date"], "done": timings["work_done"]}
