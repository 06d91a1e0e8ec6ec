"""The card of a set: README.md in Hugging Face's form, from the numbers of the manifest."""

from __future__ import annotations

from collections.abc import Iterable

import yaml

from .manifest import Manifest

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
TEXT, WHOLE, REAL = {"dtype": "string"}, {"dtype": "int64"}, {"dtype": "float64"}
FIELDS: dict[str, tuple[dict[str, str], str]] = {  # of the JSON, in its order: type and meaning
    "source": (TEXT, "collection that it comes from"),
    "name": (TEXT, "file within the collection"),
    "licences": (TEXT, "JSON list of the licences of the collection"),
    "width": (WHOLE, "px of this image"),
    "height": (WHOLE, "px of this image"),
    "image_width": (WHOLE, "px of the image that it is a window of"),
    "image_height": (WHOLE, "px of the image that it is a window of"),
    "window": ({"list": "int64"}, "left, top, width, height in px of that image"),
    "crs": (TEXT, 'EPSG:n or WKT of its place, "" where there is none'),
    "transform": ({"list": "float64"}, "6 numbers: x = t0 col + t1 row + t2, y = t3 col + t4 row + t5"),
    "gcps": (TEXT, 'JSON list of ground control points [col, row, x, y, z], "" where there are none'),
    "footprint": (TEXT, "JSON list of lon, lat of the four corners (WGS 84), [] where unknown"),
    "gsd_m": (REAL, "metres per pixel, -1.0 where unknown"),
    "acquired": (TEXT, 'date, "" where unknown'),
    "split": (TEXT, 'split of the collection, "" where there is none'),
    "label": (TEXT, 'class of the image, "" where there is none'),
    "boxes": (TEXT, "JSON list of boxes in px of this image"),
}


def text(manifest: Manifest) -> str:
    """The card of a build."""
    about = manifest.recipe.get("about") or "Built with datakit."
    lines = ["---", front(manifest).strip(), "---", "", f"# {manifest.title or manifest.name}", "", about.strip(), ""]
    if manifest.missing:
        lines += [f"Collections of the recipe that were not at hand: {', '.join(manifest.missing)}.", ""]
    lines += ["## Sources and licences", "", *table(source_rows(manifest)), ""]
    terms = [f"- {s.name}: {' '.join(s.provider_terms.split())}" for s in manifest.sources if s.provider_terms]
    if terms:
        lines += ["Terms of those who took the pictures:", "", *terms, ""]
    unstated = sum(s.samples for s in manifest.sources if s.licence == "unstated")
    lines += [f"{unstated:,} of {manifest.samples:,} samples come from collections that state no licence.", ""]
    lines += ["## What came in and what went", "", *table(count_rows(manifest)), ""]
    image = manifest.members[0]
    lines += [
        "`dropped.parquet` holds every record that was left out, with its reason; `samples.parquet` every one kept.",
        "",
        "## Reading it",
        "",
        f"Plain WebDataset: `<key>.{image}` and `<key>.json`; any reader of tars will do.",
        "",
        "```python",
        "import webdataset",
        f'for sample in webdataset.WebDataset("{urls(manifest)}", shardshuffle=False).decode("pil"):',
        f'    sample["{image}"], sample["json"]["source"]',
        "```",
        "",
        "Fields of the JSON, the same in every sample:",
        "",
        *table([("field", "what"), *((f"`{name}`", words) for name, (_, words) in FIELDS.items())]),
        "",
    ]
    return "\n".join(lines)


def front(manifest: Manifest) -> str:
    """YAML front matter: licence, size, files."""
    splits = sorted({s.split for s in manifest.shards})
    files = [{"split": s or "unsplit", "path": f"{manifest.name}-{s or 'unsplit'}-*.tar"} for s in splits]
    size = next((name for most, name in SIZES if manifest.samples < most), "n>10M")
    plain = {
        "license": "other",
        "license_name": "per-source",
        "pretty_name": manifest.title or manifest.name,
        "size_categories": [size],
        "tags": ["webdataset"],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"features": features(manifest.members[0])},
    }
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def features(image: str) -> list[dict[str, object]]:
    """What Hugging Face datasets need not guess: columns of the samples and their types."""
    struct = [{"name": name, **kind} for name, (kind, _) in FIELDS.items()]
    return [
        {"name": image, "dtype": "image"},
        {"name": "json", "struct": struct},
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]


def source_rows(manifest: Manifest) -> Iterable[tuple[str, ...]]:
    yield ("source", "collection", "licence", "samples", "kB a tile", "PSNR dB")
    for s in manifest.sources:
        link = f"[{s.title}]({s.homepage})" if s.homepage else s.title
        psnr = "" if s.mean_psnr_db is None else f"{s.mean_psnr_db:.1f}"
        kb = f"{s.mean_bytes / 1e3:.1f}" if s.samples else ""
        yield (s.name, link, s.licence, f"{s.samples:,}", kb, psnr)


def count_rows(manifest: Manifest) -> Iterable[tuple[str, ...]]:
    yield ("stage", "source", "in", "out", "dropped")
    for c in manifest.counts:
        out = f"{c.left:,}" if c.left == c.made else f"{c.left:,} as {c.made:,} tiles"
        yield (c.stage, c.source, f"{c.came:,}", out, ", ".join(f"{k} {n:,}" for k, n in c.dropped.items()))


def table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    clean = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *body)]
    lines = ["| " + " | ".join(row) + " |" for row in clean]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def urls(manifest: Manifest) -> str:
    """The first split's shards, as WebDataset spells them."""
    first = [s.name for s in manifest.shards if s.split == manifest.shards[0].split]
    if len(first) == 1:
        return first[0]
    stem = first[0].rsplit("-", 1)[0]
    return f"{stem}-{{000000..{len(first) - 1:06d}}}.tar"
