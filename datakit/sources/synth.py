"""The embedded collections: look-alikes of public collections, made on the spot, with planted truth beside them.

`make` writes the folders of seven collections (opticalrs), or of AODRaw (see `synth_raw`), in the layouts of their
manifests, and `truth.json`, which says of every file what it is and what becomes of it. `check` scores a finished build
of the first against it; `build` itself never reads it.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import SourceError
from . import synth_imagenet, synth_raw
from .land import noise
from .scenes import Box, Scene
from .synth_check import check, not_covered
from .synth_plant import plant
from .synth_world import World, geotiff, jpeg, slanted, tiff

__all__ = ["check", "make", "not_covered"]

CLASSES = {  # folders of Million-AID, and the kind of scene drawn for each
    "agriculture_land/arable_land/dry_field": "farmland",
    "agriculture_land/woodland/orchard": "orchard",
    "agriculture_land/grassland/meadow": "meadow",
    "agriculture_land/woodland/forest": "forest",
    "residential_land/detached_house": "houses",
    "residential_land/apartment": "blocks",
    "industrial_land/factory_area/works": "works",
    "transportation_land/port_area/pier": "port",
    "unutilized_land/desert": "desert",
    "unutilized_land/rock_land": "rock",
    "unutilized_land/ice_land": "snow",
    "water_area/river": "river",
    "water_area/lake": "lake",
    "water_area/beach": "coast",
}
# Sides that a grid of 512 px covers without two windows that are nearly the same: 512, or over by at least 96.
SIDES_PX = (256, 320, 384, 448, 512, 640, 704, 768, 900)
DOTA = (
    ("port", 1536, 1100), ("houses", 1024, 1024), ("blocks", 1200, 900), ("works", 1400, 1300), ("port", 1024, 1700),
    ("houses", 1640, 1200), ("coast", 900, 1230), ("river", 1100, 1100), ("works", 980, 1500), ("blocks", 2400, 1180),
    ("farmland", 1300, 960), ("houses", 900, 900), ("coast", 1664, 1024), ("blocks", 1150, 1150),
)  # fmt: skip
INRIA_KINDS = ("houses", "blocks", "farmland", "works", "river", "forest", "meadow", "orchard")
UCMERCED = {
    "agricultural": "farmland", "buildings": "blocks", "harbor": "port", "forest": "forest", "beach": "coast",
    "denseresidential": "houses", "river": "river", "storagetanks": "works",
}  # fmt: skip
FMOW = {
    "airport": "works", "crop_field": "farmland", "port": "port", "office_building": "blocks", "lake_or_pond": "lake",
    "single-unit_residential": "houses",
}  # fmt: skip


def make(kind: str, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Writes the embedded collection `kind` (see KINDS) below a folder; gives its truth, as in truth.json."""
    if kind not in KINDS:
        raise SourceError(f"no embedded collection {kind!r}; there are: {', '.join(KINDS)}")
    if folder.exists() and any(folder.iterdir()) and not (folder / "truth.json").exists():
        raise SourceError(f"{folder}: not empty, and not made by `datakit synth`; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    truth = KINDS[kind](folder, seed)
    (folder / "truth.json").write_text(json.dumps(truth, indent=1, sort_keys=True) + "\n")
    return truth


def _aodraw(folder: Path, seed: int) -> dict[str, Any]:
    files = sorted(synth_raw.make(folder, seed), key=lambda entry: (entry["source"], entry["name"]))
    return {"kind": "aodraw", "seed": seed, "files": files, "heldout": []}


def _opticalrs(folder: Path, seed: int) -> dict[str, Any]:
    world = World(folder, seed)
    for collection in (_million_aid, _dota, _inria, _ucmerced, _fmow_rgb, _eurosat_ms, _hrsid):
        collection(world)
    held_out = plant(world)
    world.pack()
    files = sorted(world.truth, key=lambda entry: (entry["source"], entry["name"]))
    return {"kind": "opticalrs", "seed": seed, "files": files, "heldout": held_out}


def _million_aid(world: World) -> None:
    """Class folders of JPEG, of many sizes."""
    for i, (folder, kind) in enumerate(CLASSES.items()):
        for j in range(6):
            name = f"train/{folder}/{folder.rsplit('/', 1)[-1]}_{j}.jpg"
            width, height = SIDES_PX[(5 * i + 2 * j) % 9], SIDES_PX[(2 * i + 5 * j + 3) % 9]
            pixels = world.scene("million_aid", name, kind, (width, height)).pixels
            data = jpeg(pixels, (75, 82, 88, 92)[(i + j) % 4], progressive=j == 2)
            world.show("million_aid", name, pixels, data)


def _dota(world: World) -> None:
    """Large PNG scenes, each with its oriented boxes in a text file."""
    for i, (kind, width, height) in enumerate(DOTA):
        name = f"train/images/P{i:04d}.png"
        scene = world.scene("dota", name, kind, (width, height))
        world.show("dota", name, scene.pixels)
        world.put("dota", f"train/labelTxt/P{i:04d}.txt", dota_text(scene), what="label_file", expect="label")


def dota_text(scene: Scene) -> bytes:
    """Boxes as DOTA writes them: eight coordinates, the class, and whether it is difficult."""

    def line(box: Box, difficult: int) -> str:
        return " ".join([*(f"{v:.1f}" for xy in box.corners for v in xy), box.label, str(difficult)])

    lines = [line(box, int(i % 17 == 16)) for i, box in enumerate(scene.boxes)]
    return ("\n".join(["imagesource:GoogleEarth", "gsd:0.3", *lines]) + "\n").encode()


def _inria(world: World) -> None:
    """Georeferenced scenes, tiled and striped, some seen only in part; their label rasters are no imagery."""
    layouts: tuple[dict[str, Any], ...] = (
        {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "lzw"},
        {"blockysize": 16},
        {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "jpeg", "photometric": "ycbcr"},
        {"blockysize": 1, "compress": "deflate", "zlevel": 1},
    )
    parts = (
        "",
        "",
        "",
        "",
        "",
        "",
        "",
        "",
        "nodata",
        "nodata",
        "nodata",
        "black",
        "white",
        "ringing",
        "alpha",
        "white",
    )
    for i, part in enumerate(parts):
        city = ("austin", "vienna", "tyrol-w", "kitsap")[i % 4]
        name = f"AerialImageDataset/train/images/{city}{i + 1}.tif"
        size = ((700, 800), (1024, 1024), (1150, 900), (1200, 1160), (900, 1408), (1600, 700))[i % 6]
        scene = world.scene("inria", name, INRIA_KINDS[i % 8], size)
        place = (400_000 + 3_000.0 * i, 5_300_000 + 2_000.0 * i, 0.3)
        layout = layouts[i % 4] if not part else layouts[i % 2]
        pixels, options, facts = _seen_in_part(scene, part, world.rng("inria", name, "part"))
        world.show("inria", name, pixels, geotiff(pixels, place, **layout, **options), **facts)
        roofs = geotiff((scene.roofs * np.uint8(255))[..., None], place, compress="lzw")
        world.put("inria", name.replace("/images/", "/gt/"), roofs, what="label_raster", expect="label")


def _seen_in_part(scene: Scene, part: str, rng: np.random.Generator) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Pixels, options of the GeoTIFF and truth of a scene whose border is nodata, transparent, or a collar."""
    height, width = scene.pixels.shape[:2]
    if not part:
        return scene.pixels, {}, {}
    corners, mask = slanted((width, height), rng.uniform(0.68, 0.8), rng.uniform(9, 24) * rng.choice((-1, 1)))
    facts = {"what": part if part in ("nodata", "alpha") else "collar", "valid_polygon": corners}
    if part == "alpha":
        rgba = np.dstack([scene.pixels, mask * np.uint8(255)])
        return rgba, {"photometric": "rgb", "alpha": "yes"}, facts
    pixels = np.where(mask[..., None], scene.pixels, np.uint8(255 if part == "white" else 0))
    if part == "ringing":
        pixels = np.asarray(Image.open(io.BytesIO(jpeg(pixels, 60))))
        facts["how"] = "black, through JPEG of quality 60"
    return pixels, {"nodata": 0} if part == "nodata" else {}, facts


def _ucmerced(world: World) -> None:
    """An archive of small TIFFs in class folders."""
    world.archives["ucmerced"] = ("UCMerced_LandUse.zip", {})
    for folder, kind in UCMERCED.items():
        for j in range(5):
            name = f"UCMerced_LandUse/Images/{folder}/{folder}{j:02d}.tif"
            pixels = world.scene("ucmerced", name, kind, (256, 256)).pixels
            world.show("ucmerced", name, pixels, tiff(pixels))


def _fmow_rgb(world: World) -> None:
    """JPEGs by category and place, each with its metadata; one has a twin made of other bands."""
    for i, (category, kind) in enumerate(FMOW.items()):
        for j in range(2):
            stem = f"train/{category}/{category}_{j}/{category}_{j}_0"
            name = f"{stem}_rgb.jpg"
            size = (SIDES_PX[(i + 4 * j) % 9], SIDES_PX[(4 * i + j + 2) % 9])
            pixels = world.scene("fmow_rgb", name, kind, size).pixels
            world.show("fmow_rgb", name, pixels)
            _side_car(world, stem + "_rgb.json", category, size)
    half = world.again("fmow_rgb", name)[::2, ::2, ::-1][..., ::-1]
    world.put("fmow_rgb", f"{stem}_msrgb.jpg", jpeg(half), what="twin", expect="unmatched", twin_of=name)
    _side_car(world, stem + "_msrgb.json", category, size)


def _side_car(world: World, name: str, category: str, size: tuple[int, int]) -> None:
    """What fMoW says of an image: resolution, date and a box."""
    width, height = size
    box = [width // 4, height // 4, width // 2, height // 2]
    said = {
        "gsd": 0.5,
        "timestamp": "2016-03-05T10:42:11Z",
        "bounding_boxes": [{"ID": 0, "category": category, "box": box}],
    }
    world.put("fmow_rgb", name, json.dumps(said, indent=1).encode(), what="label_file", expect="label")


def _eurosat_ms(world: World) -> None:
    """Thirteen bands of 16 bits: what an optical set must leave out."""
    for i, folder in enumerate(("AnnualCrop", "Forest", "River", "SeaLake") * 2):
        name = f"EuroSAT_MS/{folder}/{folder}_{i + 1}.tif"
        rng = world.rng("eurosat_ms", name)
        land = noise(rng, (64, 64), 20)
        levels = [1200 + 250 * b % 2100 + 300 * land + 90 * noise(rng, (64, 64), 8) for b in range(13)]
        pixels = np.clip(np.dstack(levels), 1, 10_000).astype(np.uint16)
        data = geotiff(pixels, (500_000 + 640.0 * i, 5_400_000.0, 10.0))
        world.show("eurosat_ms", name, pixels, data, what="multispectral", expect="modality")


def _hrsid(world: World) -> None:
    """Radar: speckle, dark sea, bright ships, and their COCO file."""
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for i in range(6):
        name = f"P{i + 1:04d}_0_800_0_800.jpg"
        rng = world.rng("hrsid", name)
        sea = np.exp(0.5 * noise(rng, (800, 800), 200)) * 28
        images.append({"id": i, "file_name": name, "width": 800, "height": 800})
        for x, y in rng.integers(40, 700, (5, 2)).tolist():
            width, height = (int(v) for v in rng.integers(12, 46, 2))
            sea[y : y + height, x : x + width] = 210
            box = {"image_id": i, "category_id": 1, "bbox": [x, y, width, height], "area": width * height}
            notes.append({"id": len(notes), "iscrowd": 0, **box})
        speckled = np.clip(sea * rng.gamma(3, 1 / 3, sea.shape), 0, 255).astype(np.uint8)
        world.show("hrsid", f"HRSID_JPG/JPEGImages/{name}", speckled, jpeg(speckled), what="sar", expect="modality")
    coco = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "ship"}]}
    name = "HRSID_JPG/annotations/train_test2017.json"
    world.put("hrsid", name, json.dumps(coco).encode(), what="label_file", expect="label")


KINDS = {"opticalrs": _opticalrs, "imagenet_s": synth_imagenet.make, "aodraw": _aodraw}
