"""The COCO files of a set of camera RAW: of each split those images that the set holds, with the ids as published."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .boxes import DECIMALS, fills, slice_coco
from .files import File
from .manifest import CocoJson
from .recipe import Recipe
from .remote import Root
from .sources.formats import named
from .sources.scan import label_bytes, label_index

Coco = dict[str, Any]
Place = tuple[str, tuple[int, int]]  # name of an image, left and top of a window of it
COLUMNS = ["source", "name", "window", "key", "width", "height"]


def coco_files(
    recipe: Recipe, roots: Mapping[str, Root], labels: Mapping[str, str], work: Path, sidecars: Iterable[Path]
) -> dict[str, Coco]:
    """COCO by the name of the file that it goes into; none but of sets of camera RAW.

    labels: digest of the label files of each source. sidecars: tables of the records of the shards. An image has the
    key of its sample beside what the collection's own file says of it.
    """
    found: dict[str, Coco] = {}
    if recipe.view is None:
        return found
    table = pa.concat_tables(pq.read_table(path, columns=COLUMNS) for path in sidecars)
    for source in recipe.sources:
        if source.name not in roots:
            continue
        ours = samples_of(table, source.name)
        index = label_index(work / "labels" / f"{labels[source.name]}.parquet")
        for label in source.collection.layout.labels:
            if isinstance(label, CocoJson) and (coco := coco_of(recipe, label, roots[source.name], index, ours)):
                among = f"{source.name}-" if len(recipe.sources) > 1 else ""
                found[f"{recipe.name}-{among}{label.split or 'all'}.coco.json"] = coco
                if recipe.view == "slices":
                    whole = full_frames(label, roots[source.name], index, coco)
                    found[f"{recipe.name}-{among}{label.split or 'all'}.full.coco.json"] = whole
    return found


def told(
    recipe: Recipe, roots: Mapping[str, Root], labels: Mapping[str, str], work: Path, names: list[str]
) -> list[str]:
    """What the card says of the annotations."""
    if not names:
        return []
    lines = [
        f"Annotations in COCO's form, each image with the key of its sample: {', '.join(f'`{n}`' for n in names)}."
    ]
    for source in recipe.sources if recipe.view == "downsampled" else ():
        index = label_index(work / "labels" / f"{labels[source.name]}.parquet") if source.name in roots else {}
        cocos = [label for label in source.collection.layout.labels if isinstance(label, CocoJson)]
        if not all(is_reduced(recipe, label, index) for label in cocos):
            what = "boxes of the full images, made smaller by the exact ratio, and none is left out for its size"
            lines.append(f"The annotations of {source.name} are **not the published ones** of reduced images: {what}.")
    return lines


def samples_of(table: pa.Table, source: str) -> dict[Place, dict[str, Any]]:
    """The samples of a source by their place."""
    rows = (row for row in table.to_pylist() if row["source"].partition("/")[0] == source)
    return {(row["name"], tuple((row["window"] or (0, 0))[:2])): row for row in rows}


def is_reduced(recipe: Recipe, label: CocoJson, index: Mapping[str, File]) -> bool:
    """Whether a set has the published annotations of images at a third."""
    return recipe.view == "downsampled" and label.downsampled in index


def coco_of(
    recipe: Recipe, label: CocoJson, root: Root, index: dict[str, File], ours: dict[Place, dict[str, Any]]
) -> Coco | None:
    """The annotations of one file, of the samples that a set has; None where the file is not there."""
    published = is_reduced(recipe, label, index)
    data = label_bytes(root, index, label.downsampled if published else label.path)
    if data is None:
        return None
    coco: Coco = json.loads(data)
    names = {image["id"]: named(f"{label.images or '.'}/{image['file_name']}") for image in coco["images"]}
    ours = {(place[0].removesuffix(".npy"), place[1]): row for place, row in ours.items()} | ours
    names = {n: name if (name, (0, 0)) in ours else name.rpartition(".")[0] for n, name in names.items()}
    how = recipe.slice.published if recipe.slice else None
    if how is None:
        place = {n: (name, (0, 0)) for n, name in names.items()}
        return kept(coco, place, ours, scaled=recipe.view == "downsampled" and not published)
    coco["images"] = [image for image in coco["images"] if fills(image["width"], image["height"], how.size_px)]
    sliced = slice_coco(coco, how.size_px, how.gap_px, how.iof, suffix=".JPG" if recipe.domain == "srgb" else ".npy")
    windows = {i["id"]: (names[i["ori_id"]], (i["x_start"], i["y_start"])) for i in sliced["images"]}
    return kept(sliced, windows, ours, scaled=False)


def full_frames(label: CocoJson, root: Root, index: dict[str, File], sliced: Coco) -> Coco:
    """The annotations of the images that slices are of, as the collection has them: what merged slices are held to."""
    coco: Coco = json.loads(label_bytes(root, index, label.path) or b"{}")
    whose = {image["ori_id"] for image in sliced["images"]}
    images = [image for image in coco["images"] if image["id"] in whose]
    notes = [note for note in coco["annotations"] if note["image_id"] in whose]
    return {**coco, "images": images, "annotations": notes}


def kept(coco: Coco, place: Mapping[Any, Place], ours: Mapping[Place, dict[str, Any]], scaled: bool) -> Coco:
    """The images of a COCO that are samples, each with its key, and their annotations; ids stay as they are.

    scaled: boxes and sizes become those of the samples, by the exact ratio of the sides.
    """
    images, factors = [], {}
    for image in coco["images"]:
        row = ours.get(place[image["id"]])
        if row is None:
            continue
        factors[image["id"]] = (row["width"] / image["width"], row["height"] / image["height"]) if scaled else (1, 1)
        size = {"width": row["width"], "height": row["height"]} if scaled else {}
        images.append({**image, **size, "key": row["key"]})
    notes = [note for note in coco["annotations"] if note["image_id"] in factors]
    if scaled:
        notes = [_scaled(note, *factors[note["image_id"]]) for note in notes]
    return {**coco, "images": images, "annotations": notes}


def _scaled(note: dict[str, Any], across: float, down: float) -> dict[str, Any]:
    """An annotation in px of a smaller image; its outline is left out, as AODRaw's are empty."""
    x, y, width, height = note["bbox"]
    bbox = [round(v, DECIMALS) for v in (x * across, y * down, width * across, height * down)]
    return {**note, "bbox": bbox, "area": round(bbox[2] * bbox[3], DECIMALS), "segmentation": []}
