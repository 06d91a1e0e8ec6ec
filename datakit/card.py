"""The card of a set: README.md in Hugging Face's form, from the numbers of the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import yaml

from .bands import Band, Sums
from .licences import UNSTATED
from .manifest import Manifest
from .tally import Tally

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
TIFF = "tif"
HUB = (  # SPDX names that Hugging Face's hub has, in its letters
    "mit", "apache-2.0", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nd-4.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-permissive-1.0",
    "cdla-permissive-2.0",
)  # fmt: skip
ABOUT = "Built with datakit."
DECODED = {  # what no picture library reads: how Python does
    TIFF: (
        "import rasterio",
        '    with rasterio.MemoryFile(sample["tif"]) as memory, memory.open() as raster:',
        '        levels = raster.read()  # (bands, H, W), in the order of sample["json"]["bands"]',
    ),
    "raw": (
        "from datakit import codec",
        '    mosaic = codec.decode(sample["raw"])  # (H, W) uint16; levels are in sample["json"]["camera"]',
    ),
    "npy": ("", '    planes = sample["npy"]  # (4 or 3, h, w) float32'),
}
TEXT, WHOLE, REAL = {"dtype": "string"}, {"dtype": "int64"}, {"dtype": "float64"}
FIELDS: dict[str, tuple[dict[str, str], str]] = {  # of the JSON, in its order: type and meaning
    "source": (TEXT, "collection that it comes from"),
    "name": (TEXT, "file within the collection"),
    "licences": (TEXT, "JSON list: of the collection, of others that label the same image, of exact duplicates"),
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
    "label_source": (TEXT, 'source of the label, if an exact duplicate brought it; "" = its own'),
    "boxes_source": (TEXT, 'source of the boxes, if an exact duplicate brought them; "" = its own'),
    "also": (TEXT, "JSON list of its exact duplicates: key, source, label, number of boxes, licences"),
    "gsd_from": (TEXT, 'what tells gsd_m: transform, side_car, labels, manifest; "" where unknown'),
    "gsd_range_m": ({"list": "float64"}, "finest and coarsest of the collection, metres per pixel, -1.0 where unknown"),
    "scale": (REAL, "px of that image that a px of this one spans; 1.0: as it was"),
    "captions": (TEXT, "JSON list of sentences about the image"),
    "bands": (TEXT, "JSON list of the bands of that image, in its order; a tif has all of them"),
    "dtype": (TEXT, "type of its levels; those of a tif are as they were"),
    "narrowed": (TEXT, 'JSON of the bands and the levels that became 0 and 255 of the 8-bit picture, "" where kept'),
    "mask_classes": (TEXT, "JSON of the names of the classes in seg.png by level, {} where there are none"),
    "tags": (TEXT, "JSON list of the conditions of the whole image: light, weather"),
    "image_id": (TEXT, 'its id in the COCO file of the collection, "" where none tells tags or split'),
    "camera": (TEXT, 'JSON of a RAW: pattern, levels, white balance, matrix, exposure; "" of others'),
    "pair_shift_px": (REAL, "largest shift of RAW and JPEG, px of the image, -1.0 where not measured"),
}


def text(manifest: Manifest, found: dict[str, dict[str, Any]], tally: Tally) -> str:
    """The card of a build. found: what protect.json and dedup.json say; tally: of its records."""
    about = manifest.recipe.get("about") or ABOUT
    taken = manifest.recipe.get("include_evaluation")
    if taken:
        about = f"**It includes evaluation data: {', '.join(taken)}.** {about.strip()}"
    lines = [
        "---",
        front(manifest, [*tally.by_licence()]).strip(),
        "---",
        "",
        f"# {manifest.title or manifest.name}",
        "",
        about.strip(),
        "",
    ]
    if "coco" in found:
        lines += [*found["coco"]["lines"], ""]
    if manifest.missing:
        lines += [f"Collections of the recipe that were not at hand: {', '.join(manifest.missing)}.", ""]
    lines += ["## Sources and licences", "", *table(source_rows(manifest)), ""]
    terms = [f"- {s.name}: {' '.join(s.provider_terms.split())}" for s in manifest.sources if s.provider_terms]
    if terms:
        lines += ["Terms of those who took the pictures:", "", *terms, ""]
    lines += [*licences(manifest, tally), ""]
    lines += ["## Means and deviations", "", *levels(tally.bands), ""]
    lines += ["## What came in and what went", "", *table(count_rows(manifest)), ""]
    lines += [
        "`dropped.parquet` holds every record that was left out, with its reason; `samples.parquet` every one kept.",
        "",
        "## Duplicates and held-out images",
        "",
        *alike(found),
        "",
        "## Reading it",
        "",
        *reading(manifest),
        "",
        "Fields of the JSON, the same in every sample:",
        "",
        *table([("field", "what"), *((f"`{name}`", words) for name, (_, words) in FIELDS.items())]),
        "",
    ]
    citations = [f"- {name}: {citation}" for name, citation in cited(manifest).items()]
    lines += ["## Citation", "", *citations, ""] if citations else []
    return "\n".join(lines)


def cited(manifest: Manifest) -> dict[str, str]:
    """How the collections that samples come from are cited, by source, in the order of the recipe; each but once."""
    recipe, there = manifest.recipe, {source.name.partition("/")[0] for source in manifest.sources if source.samples}
    sources = recipe.get("sources") or [{**recipe, "name": source.name} for source in manifest.sources]
    found: dict[str, str] = {}
    for source in sources:
        citation = " ".join((source["collection"].get("citation") or "").split())
        if source["name"] in there and citation and citation not in found.values():
            found[source["name"]] = citation
    return found


def licences(manifest: Manifest, tally: Tally) -> Iterator[str]:
    """How many samples are under which licence, counted over their records."""
    unstated = sum(s.samples for s in manifest.sources if s.licence == UNSTATED)
    yield f"{unstated:,} of {manifest.samples:,} samples come from collections that state no licence."
    yield "\n" + "\n".join(table([("licence", "samples"), *((k, f"{n:,}") for k, n in tally.by_licence().items())]))
    yield "\n`licences` of a sample has that of its collection, those of collections that label the same image, and"
    yield "those of copies with equal pixels that it was kept instead of; it counts under each of them."


def levels(sums: Sums) -> Iterator[str]:
    """Mean and deviation of each band, by source and of all."""
    bands = [*sums.bands()]
    if not bands:
        yield "None were measured."
        return
    yield from table(band_rows(bands))
    what = "levels of the source" if sums.levels else "the picture, before it was encoded"
    yield f"\nIn levels, over the valid pixels of all samples, of {what}. `datakit stats` counts with overlays."
    if sums.unmeasured:
        yield f"{sums.unmeasured:,} samples were not measured."


def band_rows(bands: Iterable[Band]) -> Iterator[tuple[str, ...]]:
    """Means and deviations as rows: a row for the bands of a source that have one type and as many pixels."""
    yield ("source", "bands", "type", "samples", "valid pixels", "mean", "deviation")
    for (source, dtype, samples, pixels), group in groupby(bands, lambda b: (b.source, b.dtype, b.samples, b.pixels)):
        mine = [*group]
        mean = ", ".join(f"{b.mean:.2f}" for b in mine)
        deviation = ", ".join(f"{b.deviation:.2f}" for b in mine)
        yield (source or "all", ", ".join(b.band for b in mine), dtype, f"{samples:,}", f"{pixels:,}", mean, deviation)


def alike(found: dict[str, dict[str, Any]]) -> Iterable[str]:
    """What was compared, and what such a comparison cannot see."""
    yield f"Held-out images: {found['protect']['statement']}"
    dedup = found.get("dedup")
    if dedup:
        images, tiles = (dedup[level]["duplicates"] for level in ("images", "tiles"))
        goes = f"{sum(dedup['goes'].values()):,} tiles, those of {images:,} whole images and {tiles:,} single ones,"
        what = "would go as duplicates; all are still here" if dedup["action"] == "report" else "went as duplicates"
        how = f"a signature within {dedup['radius_bits']} bits of that of a kept one and a like thumbnail"
        if dedup["equal_levels"]:
            how = "equal levels in all bands"
        if dedup["signature"] == "cnn":
            how += f"; of single tiles, CNN vectors ({dedup['model']}) of a cosine of {dedup['cosine']} or more"
        yield f"\nDuplicates: {goes} {what}: {how}."
        if dedup.get("kept_by_decision"):
            yield f"A person kept {dedup['kept_by_decision']:,} of them all the same."
        if dedup.get("conflicts"):
            yield f"Exact duplicates disagreed on {len(dedup['conflicts']):,} labels or boxes: see `dedup.json`."
        if dedup["twins"] or dedup["beyond_series"]:
            yield f"Besides, {dedup['twins']:,} images are products of an acquisition that is here in another form, and"
            yield f"{dedup['beyond_series']:,} tiles are further dates of a place."
    else:
        yield "\nDuplicates: none were looked for."
    if found.get("decisions"):
        yield f"\nOf the records that a person decided on (`decisions.json`): {found['decisions']['said']}."
    yield "\nNot seen by signatures of whole pictures:\n"
    yield from (f"- {what}" for what in found["protect"]["cannot_see"])


def front(manifest: Manifest, names: Sequence[str] = ()) -> str:
    """YAML front matter: licence, size, files. names: of licences that samples are under; one may be the hub's own."""
    known = names[0].lower() if len(names) == 1 else ""
    licence = {"license": known} if known in HUB else {"license": "other", "license_name": "per-source"}
    splits = sorted({s.split for s in manifest.shards})
    files = [{"split": s or "unsplit", "path": f"{manifest.name}-{s or 'unsplit'}-*.tar"} for s in splits]
    size = next((name for most, name in SIZES if manifest.samples < most), "n>10M")
    plain = {
        **licence,
        "pretty_name": manifest.title or manifest.name,
        "size_categories": [size],
        "tags": ["webdataset"],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"features": features(*manifest.members)},
    }
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def features(image: str, *members: str) -> list[dict[str, object]]:
    """What Hugging Face datasets need not guess: columns of the samples and their types. members: beside the image."""
    struct = [{"name": name, **kind} for name, (kind, _) in FIELDS.items()]
    kinds = {"seg.png": "image", "txt": "string", "jpg": "image"}
    more: list[dict[str, object]] = [{"name": member, "dtype": kinds[member]} for member in members if member in kinds]
    return [
        {"name": image, "dtype": "binary" if image in DECODED else "image"},  # many bands are no picture to Pillow
        {"name": "json", "struct": struct},
        *more,
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]


def reading(manifest: Manifest) -> Iterable[str]:
    """How to read it, in Python."""
    image, *others = manifest.members
    names = [f"`<key>.{member}`" for member in manifest.members]
    yield f"Plain WebDataset: {', '.join(names[:-1])} and {names[-1]}; any reader of tars will do."
    if "seg.png" in others:
        yield "\n`seg.png`: the class of every pixel, 255 where none is given; `mask_classes` of the JSON names them."
    if image == TIFF:
        yield "\nThe images are TIFF of all bands, with their levels as they were."
    modules, *lines = DECODED.get(image, ("", f'    sample["{image}"], sample["json"]["source"]'))
    yield from ("", "```python", "import webdataset", *[modules] * bool(modules))
    decode = ".decode()" if image in DECODED else '.decode("pil")'
    yield f'for sample in webdataset.WebDataset("{urls(manifest)}", shardshuffle=False){decode}:'
    yield from lines
    yield "```"


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
