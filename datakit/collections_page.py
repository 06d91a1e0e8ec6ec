"""The page of all collections that are described: a table of what their manifests say, and of what they do not."""

from __future__ import annotations

from pathlib import Path

from .card import table
from .errors import RecipeError
from .manifest import Collection
from .recipe import folders

FACTS = (
    "licence", "provider_terms", "citation", "modality", "platform", "bands", "dtype", "gsd_m", "layout", "splits",
    "count",
)  # fmt: skip
MAY_LACK = ("provider_terms", "splits")  # not every collection has them
HEAD = (
    "name", "collection", "modality", "platform", "licence", "role", "images", "splits", "m per pixel", "bands",
    "labels", "verified", "not known",
)  # fmt: skip


def page(folder: Path | None = None) -> str:
    """The page, as Markdown, of the manifests in a folder; without one, of those that come with datakit."""
    folder = folder or next(iter(folders("manifests")), Path("manifests"))
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise RecipeError(f"{folder}: no manifest there")
    rows = [row(Collection.load(path)) for path in paths]
    lines = [
        "# Collections",
        "",
        f"{len(rows)} public collections that a recipe can name. None is copied here: fetch each from its publisher.",
        "`make docs` writes this page from `manifests/`; [adding one](adding_a_collection.md) is one more file there.",
        "",
        "Verified: how many of the facts that have a value name the page that they were read on. Not known: facts for",
        "which no page was found; the rest of a manifest holds without them. A licence in quotes is in the publisher's",
        "own words. Counts are the publisher's; `datakit check` compares them with what lies on disk.",
        "",
        *table([HEAD, *rows]),
    ]
    return "\n".join(lines) + "\n"


def row(about: Collection) -> tuple[str, ...]:
    """One collection, a cell a column."""
    stated = [name for name in FACTS if _known(about, name)]
    paged = [name for name in stated if any(fact.partition(".")[0] == name for fact in about.facts)]
    quoted = " " in about.licence and about.licence not in ("Public Domain",)
    return (
        f"`{about.name}`",
        f"[{about.title}]({about.homepage})" if about.homepage else about.title,
        about.modality,
        about.platform or "",
        f'"{" ".join(about.licence.split())}"' if quoted else about.licence,
        about.role,
        "" if about.count is None else f"{about.count:,}",
        ", ".join(_split(name, spec.count) for name, spec in about.splits.items()),
        _metres(about.gsd_m),
        _bands(about.bands),
        ", ".join(dict.fromkeys(labels.kind for labels in about.layout.labels)),
        f"{len(paged)} of {len(stated)}",
        ", ".join(name for name in FACTS if not _known(about, name) and name not in MAY_LACK),
    )


def _known(about: Collection, name: str) -> bool:
    return getattr(about, name) not in (None, "", "unstated", {})


def _split(name: str, count: int | None) -> str:
    return name if count is None else f"{name} {count:,}"


def _metres(gsd_m: tuple[float, float] | None) -> str:
    if gsd_m is None:
        return ""
    return f"{gsd_m[0]:g}" if gsd_m[0] == gsd_m[1] else f"{gsd_m[0]:g} to {gsd_m[1]:g}"


def _bands(bands: tuple[str, ...]) -> str:
    return ", ".join(bands) if len(bands) <= 4 else f"{len(bands)}: {', '.join(bands[:3])}, …"
