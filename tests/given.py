"""What lies in a reader's folders before a page begins: small scenes, sets, photos, and lists of classes."""

from __future__ import annotations

import re
from pathlib import Path

from pages import blocks
from PIL import Image
from worlds import geotiff, scene

CLASSES = ("Beach", "Farmland", "Forest")
KINDS = ("coast", "farmland", "forest")


def scenes(folder: Path) -> None:
    """Five pictures: GeoTIFF with boxes in one, class folders, and one that is too small."""
    geotiff(folder / "north/a.tif", scene(1, 700, 560, "port"))
    geotiff(folder / "north/b.tif", scene(2, 520, 400, "forest"))
    (folder / "north/labelTxt").mkdir()
    (folder / "north/labelTxt/a.txt").write_text("gsd:0.5\n10 10 40 10 40 30 10 30 ship 0\n")
    (folder / "south").mkdir()
    Image.fromarray(scene(3, 420, 300, "houses")).save(folder / "south/c.jpg", quality=92)
    Image.fromarray(scene(4, 320, 320, "river")).save(folder / "south/d.png")
    Image.new("RGB", (40, 40), (90, 120, 60)).save(folder / "south/thumbnail.png")


def classes(folder: Path) -> None:
    """Class folders as AID's, and lists of them in the folder above."""
    lines: list[str] = []
    for number, (name, kind) in enumerate(zip(CLASSES, KINDS, strict=True)):
        (folder / name).mkdir(parents=True)
        for n in range(4):
            Image.fromarray(scene(50 + 10 * number + n, 64, 64, kind)).save(folder / name / f"{name.lower()}_{n}.jpg")
            lines.append(f"{folder.name}/{name}/{name.lower()}_{n}.jpg {number}")
    for name in ("aid_20_train.txt", "resisc_10_train.txt"):
        (folder.parent / name).write_text("\n".join(lines[::2]) + "\n")
    (folder.parent / "resisc_10_test.txt").write_text("\n".join(lines[1::2]) + "\n")


def held_out(folder: Path) -> None:
    """An evaluation set of one picture, which is in the scenes, too."""
    folder.mkdir(parents=True)
    Image.fromarray(scene(4, 320, 320, "river")).save(folder / "P0003.png")


def home(folder: Path) -> None:
    """A home with scenes, an evaluation set, and classes."""
    scenes(folder / "scenes")
    held_out(folder / "dota/val")
    classes(folder / "AID")


def harbours() -> None:
    """The files of the tree that the page on adding a collection shows."""
    (tree,) = [block.text for block in blocks("docs/adding_a_collection.md") if "data/harbours/" in block.text][:1]
    names = re.findall(r"\S+/\S+\.\w+", tree)
    assert len(names) == 5
    for n, name in enumerate(names):
        path = Path("data/harbours") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.fromarray(scene(n, 150, 140, "port")).save(path)
        else:
            path.write_text("gsd:0.5\n10 10 40 10 40 30 10 30 ship 0\n")
