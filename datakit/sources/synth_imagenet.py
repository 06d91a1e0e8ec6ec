"""A small look-alike of ImageNet-1k and ImageNet-S: class folders, official tars, lists, masks of all three variants.

Classes are nested as the real ones are, two of the five merges are there, some validation images have another class
than in ImageNet, and one image is in the test set of one variant and in the validation set of another.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import ids
from .imagenet_s import MERGED, SEMI, list_names

OF_50 = ("n01443537", "n02504458", "n07749582")
OF_300 = (*OF_50, "n02690373")
OF_919 = (*OF_300, "n02808440", "n03594945", "n04355933")
CLASSES = {"50": OF_50, "300": OF_300, "919": OF_919}  # of each variant
ALL = (*OF_919, "n03000684", "n04356056", "n04493381")  # of ImageNet: one is in no variant, two are merged
PER_CLASS = {"train": 6, SEMI: 2, "validation": 3, "test": 4}  # images
OTHER_CLASS = 5  # one validation image in so many has another class than ImageNet says
IGNORED_PX = 2  # rim of an object
IGNORE = 1000
SIDES_PX = (48, 60, 75, 90)
Ids = NDArray[np.int64]


class Look:
    """The look-alike under way."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.truth: list[dict[str, Any]] = []
        self.images: dict[str, bytes] = {}  # by path in the class folders: train/WNID/STEM.JPEG, val/…
        self.objects: dict[str, tuple[str, Ids]] = {}  # by stem: class, and 1 in the object, 2 on its rim
        self.numbers = iter(self.rng.permutation(np.arange(1, 50_001)).tolist())

    def put(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def image(self, split: str, wnid: str, imagenet_wnid: str, stem: str) -> None:
        """Draw an object of the class's own colour and shape, and remember where it is."""
        width, height = (int(self.rng.choice(SIDES_PX)) for _ in range(2))
        y, x = np.mgrid[:height, :width]
        across, down = self.rng.uniform(0.3, 0.7, 2) * (width, height)
        radius = self.rng.uniform(0.15, 0.4) * min(width, height)
        corner = 2 + 2 * (ALL.index(wnid) % 2)  # of the norm: round or nearly square
        apart = (np.abs(x - across) ** corner + np.abs(y - down) ** corner) ** (1 / corner)
        where = np.where(apart < radius, 1, np.where(apart < radius + IGNORED_PX, 2, 0))
        pixels = self.rng.integers(0, 90, (height, width, 3)).astype(np.uint8)
        colour = np.random.default_rng(ALL.index(wnid)).integers(120, 255, 3)
        pixels[where > 0] = colour + self.rng.integers(-15, 1, (int((where > 0).sum()), 3))
        self.objects[stem] = wnid, where
        self.images[f"{split}/{imagenet_wnid}/{stem}.JPEG"] = self.encoded(pixels)

    def encoded(self, pixels: NDArray[np.uint8]) -> bytes:
        """A JPEG; now and then one of the kinds that ImageNet has a few of: gray, CMYK, a PNG under the name."""
        out, kind = io.BytesIO(), len(self.images) % 23
        picture = Image.fromarray(pixels)
        if kind == 7:
            picture.save(out, "PNG")
        else:
            picture.convert({3: "L", 5: "CMYK"}.get(kind, "RGB")).save(out, "JPEG", quality=90)
        return out.getvalue()

    def mask(self, stem: str, variant: str) -> Ids:
        """The mask of an image in a variant."""
        wnid, where = self.objects[stem]
        number = sorted(CLASSES[variant]).index(wnid) + 1
        return np.where(where == 1, number, np.where(where == 2, IGNORE, 0))


def make(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Write the look-alike below a folder; gives its truth: every image, with what becomes of it in each variant."""
    look = Look(folder, seed)
    train = _train(look)
    held = _val(look)
    for name, data in look.images.items():
        look.put(f"imagenet/{name}", data)
    _tars(look)
    versions = {"1k": {"classes": len(ALL), "train": _count(look, "train"), "val": _count(look, "val")}}
    lists: dict[str, dict[str, Any]] = {}
    for variant in CLASSES:
        versions[variant], said = _variant(look, variant, train, held)
        lists |= said
    look.put("ImageNet-S/data/published.json", json.dumps({"versions": versions, "lists": lists}, indent=1).encode())
    files = [{"source": "imagenet_s", "name": name, "expect": name.partition("/")[0]} for name in sorted(look.images)]
    return {"kind": "imagenet_s", "seed": seed, "files": files, "versions": versions}


def _count(look: Look, split: str) -> int:
    return sum(name.startswith(f"{split}/") for name in look.images)


def _train(look: Look) -> dict[str, list[str]]:
    """Training images by class of ImageNet."""
    made: dict[str, list[str]] = {}
    for wnid in ALL:
        numbers = look.rng.choice(30_000, PER_CLASS["train"], replace=False).tolist()
        made[wnid] = [f"{wnid}_{number}" for number in numbers]
        for stem in made[wnid]:
            look.image("train", MERGED.get(wnid, wnid), wnid, stem)
    return made


def _val(look: Look) -> dict[str, list[tuple[str, str]]]:
    """Validation images by class of the largest variant: (ImageNet's class, stem)."""
    held: dict[str, list[tuple[str, str]]] = {}
    sources = {**{wnid: wnid for wnid in OF_919}, **{one: MERGED[one] for one in ALL if one in MERGED}}
    for wnid in OF_919:
        own = [one for one, other in sources.items() if other == wnid]
        for n in range(PER_CLASS["validation"] + PER_CLASS["test"]):
            stem = f"ILSVRC2012_val_{next(look.numbers):08d}"
            imagenet_wnid = ALL[int(look.rng.integers(len(ALL)))] if n % OTHER_CLASS == 1 else own[n % len(own)]
            look.image("val", wnid, imagenet_wnid, stem)
            held.setdefault(wnid, []).append((imagenet_wnid, stem))
    stem = f"ILSVRC2012_val_{next(look.numbers):08d}"
    look.image("val", OF_919[0], "n03000684", stem)  # of ImageNet-1k alone
    return held


def _variant(
    look: Look, variant: str, train: dict[str, list[str]], held: dict[str, list[tuple[str, str]]]
) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
    """Lists and masks of a variant; gives its counts, and lines and sha256 of its lists."""
    wnids, names = sorted(CLASSES[variant]), list_names(variant)
    of = {
        wnid: [one for one in ALL if MERGED.get(one, one) == wnid and (variant == "919" or one == wnid)]
        for wnid in wnids
    }
    semi = [(wnid, stem) for wnid in wnids for stem in sorted(train[of[wnid][-1]])[: PER_CLASS[SEMI]]]
    parts: dict[str, list[tuple[str, str, str]]] = {"validation": [], "test": []}
    for wnid in wnids:
        cut = PER_CLASS["validation"] - (variant != "919" and wnid == wnids[0])  # one is in test here, not there
        for n, (imagenet_wnid, stem) in enumerate(held[wnid]):
            parts["validation" if n < cut else "test"].append((imagenet_wnid, stem, wnid))
    lines = {
        split: [f"{one}/{stem}.JPEG {wnid}/{stem}.JPEG" for one, stem, wnid in some] for split, some in parts.items()
    }
    lines["classes"] = wnids
    lines[SEMI] = [f"{wnid}/{stem}.JPEG {wnid}/{stem}.png" for wnid, stem in semi]
    said = {}
    for what, name in names.items():
        data = "\n".join(lines[what]).encode()  # without an end to the last line, as the official ones
        look.put(f"ImageNet-S/data/{name}", data)
        said[name] = {"lines": len(lines[what]), "sha256": hashlib.sha256(data).hexdigest()}
    masks = {f"validation-segmentation/{wnid}/{stem}.png": stem for _, stem, wnid in parts["validation"]}
    masks |= {f"{SEMI}-segmentation/{wnid}/{stem}.png": stem for wnid, stem in semi}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, stem in sorted(masks.items()):
            info = zipfile.ZipInfo(f"ImageNetS{variant}/{name}")
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, ids.encode(look.mask(stem, variant)))
    look.put(f"annotations/ImageNetS{variant}-{hashlib.md5(out.getvalue()).hexdigest()}.zip", out.getvalue())
    for _, stem, wnid in parts["test"]:
        look.put(f"truth/ImageNetS{variant}/test-segmentation/{wnid}/{stem}.png", ids.encode(look.mask(stem, variant)))
    counts = {split: len(some) for split, some in parts.items()}
    trained = sum(len(train[one]) for some in of.values() for one in some)
    return {"classes": len(wnids), "train": trained, SEMI: len(semi), **counts}, said


def _tars(look: Look) -> None:
    """The official archives: a tar of tars, a flat tar, and the development kit with the classes of val."""
    import scipy.io

    inner = {}
    for wnid in ALL:
        mine = {Path(name).name: data for name, data in look.images.items() if name.startswith(f"train/{wnid}/")}
        inner[f"{wnid}.tar"] = tar_of(mine)
    look.put("imagenet_tars/ILSVRC2012_img_train.tar", tar_of(inner))
    val = {Path(name).name: (Path(name).parent.name, data) for name, data in look.images.items() if name[:4] == "val/"}
    look.put("imagenet_tars/ILSVRC2012_img_val.tar", tar_of({name: val[name][1] for name in sorted(val)}))
    of = {int(name[15:23]): wnid for name, (wnid, _) in val.items()}
    numbers = {wnid: n for n, wnid in enumerate(reversed(ALL), 1)}  # the kit's own: in no order of the classes
    truth = "".join(f"{numbers[of.get(n, ALL[0])]}\n" for n in range(1, 50_001))
    synsets = np.array(
        [(numbers[wnid], wnid, 0) for wnid in numbers] + [(len(ALL) + 1, "n00001740", 2)],
        [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)],
    )
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    kit = {"readme.txt": b"A look-alike.\n", "data/meta.mat": _undated(meta.getvalue())}
    kit["data/ILSVRC2012_validation_ground_truth.txt"] = truth.encode()
    packed = tar_of({f"ILSVRC2012_devkit_t12/{name}": data for name, data in kit.items()})
    look.put("imagenet_tars/ILSVRC2012_devkit_t12.tar.gz", gzip.compress(packed, mtime=0))


def _undated(mat: bytes) -> bytes:
    """A MAT-file without the date in the 116 bytes of text that it begins with."""
    return b"MATLAB 5.0 MAT-file".ljust(116) + mat[116:]


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar of files, in their order, without dates."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()
