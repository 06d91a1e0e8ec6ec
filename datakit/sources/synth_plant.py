"""What is planted among the scenes: damage, oddities, files that are no imagery, copies, crops and leaks."""

from __future__ import annotations

import struct
import zlib
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from .land import noise
from .scenes import draw
from .synth_world import Pixels, World, geotiff, jpeg, png, saved, slanted, tiff

AID, FARM, TOWN = "train/", "train/agriculture_land/arable_land/dry_field/", "train/residential_land/detached_house/"
WORKS = "train/industrial_land/factory_area/works/"
PLACE = (700_000.0, 5_200_000.0, 0.3)
TILE_PX = 512  # images up to this size are tiles themselves
FLIPS = ("left-right", "up-down", "turned 90", "turned 180", "turned 270", "transposed", "transversed")


def plant(world: World) -> list[dict[str, Any]]:
    """Plants all of it; gives the images of the make-believe evaluation set, and which of them leaked."""
    _damaged(world)
    _blank(world)
    _odd_jpegs(world)
    _odd_pngs(world)
    _odd_tiffs(world)
    _no_imagery(world)
    _copies(world)
    _large_copies(world)
    _crops(world)
    return _held_out(world)


def _damaged(world: World) -> None:
    """Files that cannot be read, of each format."""
    whole = jpeg(draw(world.rng("damaged"), "farmland", 480, 480).pixels)
    for name, what, data in (
        ("dry_field_20", "corrupt_truncated", whole[: len(whole) // 2]),
        ("dry_field_21", "corrupt_truncated", whole[:120]),
        ("dry_field_22", "zero_bytes", b""),
        ("dry_field_23", "text_as_jpg", b"<html><body>404: no such image</body></html>\n"),
    ):
        world.put("million_aid", f"{FARM}{name}.jpg", data, what=what, expect="unreadable")
    big = draw(world.rng("damaged", "big"), "river", 1100, 1030).pixels
    lost = {"what": "corrupt_truncated", "expect": "unreadable"}
    world.put("dota", "train/images/P0020.png", png(big)[:1_000_000], **lost)
    tiled = geotiff(big, PLACE, tiled=True, blockxsize=256, blockysize=256)
    world.put("inria", "AerialImageDataset/train/images/chicago20.tif", tiled[: len(tiled) * 3 // 5], **lost)
    small = tiff(big[:256, :256])
    world.put("ucmerced", "UCMerced_LandUse/Images/river/river90.tif", small[: len(small) // 2], **lost)


def _blank(world: World) -> None:
    """Pictures of one colour: gray is flat, black and white are nothing but collar."""
    for name, level, expect in (
        ("desert_20", 128, "flat"),
        ("desert_21", 0, "valid_share"),
        ("desert_22", 255, "valid_share"),
    ):
        pixels = np.full((400, 400, 3), level, np.uint8)
        world.show("million_aid", f"train/unutilized_land/desert/{name}.jpg", pixels, what="blank", expect=expect)
    nothing = np.zeros((700, 700, 3), np.uint8)
    name = "AerialImageDataset/train/images/chicago21.tif"
    world.show("inria", name, nothing, geotiff(nothing, PLACE, nodata=0), what="blank", expect="valid_share")


def _odd_jpegs(world: World) -> None:
    """Sizes, modes and names that a reader must get right or refuse."""
    rng = world.rng("odd jpegs")
    scene = [
        draw(rng, kind, 420, 420).pixels for kind in ("houses", "meadow", "river", "orchard", "coast", "works", "lake")
    ]
    folder = f"{AID}residential_land/apartment/apartment_"

    def add(number: int, pixels: Pixels, data: bytes | None = None, **facts: Any) -> None:
        world.show("million_aid", f"{folder}{number}.jpg", pixels, data, **facts)

    add(20, scene[0], png(scene[0]), what="png_as_jpg")
    add(21, scene[1][:300, :48], what="tiny", expect="smaller_than")
    add(22, scene[1][:1, :1], what="tiny", expect="smaller_than")
    strip = np.asarray(Image.fromarray(draw(rng, "farmland", 700, 80).pixels))
    add(23, strip, what="strip", expect="longer_than")
    add(24, scene[2], saved(Image.fromarray(scene[2]).convert("CMYK"), "JPEG"), what="cmyk", expect="bands")
    add(25, scene[3], saved(Image.fromarray(scene[3]).convert("L"), "JPEG"), what="gray", expect="bands")
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by a quarter to the right
    shown = scene[4][:300]
    add(26, shown, jpeg(np.rot90(shown), exif=turned), what="exif_turned")


def _odd_pngs(world: World) -> None:
    """Palette, alpha, 16 bits, gray, animation, and a header of 4 gigapixels."""
    rng, folder = world.rng("odd pngs"), "train/images/P00"
    kinds = ("blocks", "farmland", "river", "houses", "coast")
    scene = [
        draw(rng, kind, w, h).pixels
        for kind, (w, h) in zip(kinds, ((900, 700), (1024, 760), (500, 460), (460, 500), (480, 400)), strict=True)
    ]
    indexed = Image.fromarray(scene[0]).quantize(200, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    world.show("dota", f"{folder}21.png", scene[0], saved(indexed, "PNG", compress_level=1), what="palette")
    corners, mask = slanted((1024, 760), 0.78, -14)
    clear = np.dstack([scene[1], mask * np.uint8(255)])
    world.show("dota", f"{folder}22.png", clear, what="alpha", valid_polygon=corners)
    deep = scene[2][..., 1].astype(np.uint16) * 257
    world.show("dota", f"{folder}23.png", deep, what="16-bit", expect="dtype")
    world.show("dota", f"{folder}24.png", scene[3][..., 1], what="gray", expect="bands")
    later = [Image.fromarray(np.roll(scene[4], 9 * k, 1)) for k in (1, 2)]
    moving = png(scene[4], save_all=True, append_images=later, duration=100)
    world.show("dota", f"{folder}25.png", scene[4], moving, what="animated", expect="frames")
    world.put("dota", f"{folder}26.png", _huge_png(), what="huge_header", expect="larger_than")


def _huge_png() -> bytes:
    """A PNG that says 100,000 x 40,000 px and holds almost nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 40_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(4096))) + chunk(b"IEND", b"")
    )


def _odd_tiffs(world: World) -> None:
    """Sixteen bits, and an infrared composite that has three bands but is no picture."""
    folder, rng = "AerialImageDataset/train/images/chicago", world.rng("odd tiffs")
    deep = draw(rng, "works", 700, 640).pixels.astype(np.uint16) * 40
    world.show("inria", f"{folder}22.tif", deep, geotiff(deep, PLACE), what="16-bit", expect="dtype")
    seen = draw(rng, "meadow", 640, 640).pixels
    nir = np.clip(150 + 30 * noise(rng, (640, 640), 60), 30, 225).astype(np.uint8)
    false = np.dstack([nir, seen[..., 0], seen[..., 1]])
    data = geotiff(false, PLACE, ("nir", "red", "green"), photometric="minisblack")
    world.show("inria", f"{folder}23.tif", false, data, what="infrared", expect="bands")


def _no_imagery(world: World) -> None:
    """Previews, label rasters and notes that no glob of the layouts matches."""
    small = draw(world.rng("previews"), "houses", 160, 160).pixels
    for source, name in (
        ("million_aid", "preview.png"), ("million_aid", "previews/dry_field_0_thumb.jpg"), ("dota", "preview.png"),
        ("dota", "train/images/P0001_thumb.jpg"), ("inria", "AerialImageDataset/preview.png"),
        ("ucmerced", "preview.png"), ("fmow_rgb", "train/airport/airport_0/airport_0_0_thumb.jpg"),
    ):  # fmt: skip
        data = png(small) if name.endswith("png") else jpeg(small)
        world.put(source, name, data, what="preview", expect="unmatched")
    labels = (small // 64).max(2).astype(np.uint8)
    for name in ("P0001_instance_color_RGB.png", "P0002_instance_id_RGB.png"):
        world.put("dota", f"train/masks/{name}", png(labels), what="label_raster", expect="unmatched")
    world.put("ucmerced", "UCMerced_LandUse/readme.txt", b"21 classes\n", what="note", expect="unmatched")


def _copy(world: World, source: str, name: str, pixels: Pixels, **facts: Any) -> None:
    """A copy under another name, and which it is of."""
    reason = "duplicate_scene" if max(pixels.shape[:2]) > TILE_PX else "duplicate"
    world.show(source, name, pixels, what="copy", expect_dedup=reason, **facts)


def _halved(pixels: Pixels) -> Pixels:
    picture = Image.fromarray(pixels)
    return np.asarray(picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS))


def _copies(world: World) -> None:
    """Copies of whole images: equal bytes, JPEG of quality 50, half the size, and turned or flipped."""
    for i, (kind, name, copy) in enumerate((
        ("exact", f"{FARM}dry_field_0.jpg", "train/crop_field/crop_field_90/crop_field_90_0_rgb.jpg"),
        ("exact", f"{AID}transportation_land/port_area/pier/pier_1.jpg", "train/port/port_90/port_90_0_rgb.jpg"),
        ("jpeg50", f"{WORKS}works_0.jpg", "train/airport/airport_90/airport_90_0_rgb.jpg"),
        ("jpeg50", f"{AID}water_area/river/river_3.jpg", "train/port/port_91/port_91_0_rgb.jpg"),
        ("half size", f"{AID}residential_land/apartment/apartment_0.jpg", "train/port/port_92/port_92_0_rgb.jpg"),
        ("half size", f"{AID}water_area/lake/lake_0.jpg", "train/airport/airport_91/airport_91_0_rgb.jpg"),
    )):  # fmt: skip
        pixels: Pixels = world.again("million_aid", name)
        of = {"source": "million_aid", "name": name}
        if kind == "exact":
            data = (world.folder / "million_aid" / name).read_bytes()
        else:
            pixels = _halved(pixels) if kind == "half size" else pixels
            data = jpeg(pixels, 50 if kind == "jpeg50" else 85 + i)
        _copy(world, "fmow_rgb", copy, pixels, data=data, how=kind, copy_of=of)
    name = f"{TOWN}detached_house_2.jpg"
    pixels = world.again("million_aid", name)
    for i, how in enumerate(FLIPS):
        turned = Image.fromarray(pixels).transpose(Image.Transpose(_TRANSPOSE[how]))
        of = {"source": "million_aid", "name": name}
        _copy(world, "million_aid", f"{TOWN}detached_house_{30 + i}.jpg", np.asarray(turned), how=how, copy_of=of)


_TRANSPOSE = {
    "left-right": Image.Transpose.FLIP_LEFT_RIGHT, "up-down": Image.Transpose.FLIP_TOP_BOTTOM,
    "turned 90": Image.Transpose.ROTATE_90, "turned 180": Image.Transpose.ROTATE_180,
    "turned 270": Image.Transpose.ROTATE_270, "transposed": Image.Transpose.TRANSPOSE,
    "transversed": Image.Transpose.TRANSVERSE,
}  # fmt: skip


def _large_copies(world: World) -> None:
    """Copies of scenes larger than a tile, in other collections and formats."""
    name = "train/images/P0001.png"
    pixels = world.again("dota", name)
    of = {"source": "dota", "name": name}
    data = geotiff(pixels, PLACE, compress="lzw")
    _copy(
        world,
        "inria",
        "AerialImageDataset/train/images/chicago30.tif",
        pixels,
        data=data,
        how="equal pixels",
        copy_of=of,
    )
    name = "train/images/P0007.png"
    pixels = world.again("dota", name)
    of, copy = {"source": "dota", "name": name}, f"{AID}water_area/river/river_30.jpg"
    _copy(world, "million_aid", copy, pixels, data=jpeg(pixels, 50), how="jpeg50", copy_of=of)


def _crops(world: World) -> None:
    """Parts of scenes, which no signature of a whole image can find."""
    for i, name in enumerate((
        f"{AID}unutilized_land/rock_land/rock_land_1.jpg", f"{AID}agriculture_land/woodland/orchard/orchard_2.jpg",
        f"{AID}water_area/beach/beach_3.jpg", f"{AID}agriculture_land/grassland/meadow/meadow_4.jpg",
        f"{TOWN}detached_house_5.jpg",
    )):  # fmt: skip
        pixels = world.again("million_aid", name)
        height, width = (round(0.55 * side) for side in pixels.shape[:2])
        left, top = (pixels.shape[1] - width) * i // 5, (pixels.shape[0] - height) * (4 - i) // 5
        facts: dict[str, Any] = {"what": "crop", "how": "crop", "crop_of": {"source": "million_aid", "name": name}}
        copy = str(PurePosixPath(name).with_stem(f"{PurePosixPath(name).stem.rsplit('_', 1)[0]}_4{i}"))
        world.show(
            "million_aid",
            copy,
            pixels[top : top + height, left : left + width],
            crop_px=[left, top, width, height],
            **facts,
        )


def _held_out(world: World) -> list[dict[str, Any]]:
    """Six images of a make-believe evaluation set, beside the collections; four of them leaked."""
    folder = world.folder / "heldout"
    folder.mkdir(exist_ok=True)
    sizes = ((400, 400), (512, 480), (480, 512), (736, 704), (400, 400), (704, 640))
    kinds = ("port", "works", "houses", "farmland", "river", "blocks")
    scenes = [
        draw(world.rng("heldout", str(i)), kind, *size).pixels
        for i, (kind, size) in enumerate(zip(kinds, sizes, strict=True))
    ]
    files = [jpeg(pixels, 95) for pixels in scenes]
    for i, data in enumerate(files):
        (folder / f"scene_{i}.jpg").write_bytes(data)
    leaks: tuple[tuple[str, str, Pixels, bytes | None, str], ...] = (
        ("million_aid", f"{AID}transportation_land/port_area/pier/pier_60.jpg", scenes[0], files[0], "exact"),
        ("fmow_rgb", "train/airport/airport_60/airport_60_0_rgb.jpg", scenes[1], jpeg(scenes[1], 50), "jpeg50"),
        ("million_aid", f"{TOWN}detached_house_60.jpg", _halved(scenes[2]), None, "half size"),
        ("dota", "train/images/P0060.png", np.rot90(scenes[3]), None, "turned 90"),
    )
    for i, (source, name, pixels, encoded, how) in enumerate(leaks):
        reason = "protected_scene" if max(pixels.shape[:2]) > TILE_PX else "protected"
        facts = {"what": "leak", "leak_of": f"heldout/scene_{i}.jpg", "how": how, "expect_protect": reason}
        world.show(source, name, pixels, encoded, **facts)
    return [{"name": f"heldout/scene_{i}.jpg", "leaks": i < len(leaks)} for i in range(len(scenes))]
