"""Is a picture in a build already? Asked of what the build left: images and tiles, in any orientation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .engine import Engine
from .errors import DatakitError, ShardError, SourceError
from .hamming import scan
from .looks import BACK, PLACES, SCENE, TILE, TURNS, Looks
from .manifest import Collection, Layout, Manifest
from .remote import Root
from .sample import Window, make_key
from .samples import Samples
from .signing import Signed, any_images, files_at, sign
from .stages.cut import Cut, Sign
from .stages.dedup import Dedup
from .stages.slice import Grid, Slice
from .validate import validate

LEVELS = (("tile", TILE), ("image", SCENE))


class Hit(NamedTuple):
    """A record of a build that a picture looks like."""

    key: str
    level: str  # "image" or "tile"
    bits: int  # distance of the signatures
    turned: str  # how it is flipped or rotated to look like the picture, "" = not at all
    equal: bool  # pixel for pixel; in a build of tiles that keep levels, these in all bands


class Query:
    """A build, loaded to be asked. Loading reads its signatures, 16 B a sample; a question then takes milliseconds."""

    def __init__(self, out: str | Root) -> None:
        recipe = Manifest.load(out).recipe
        plain = {name: recipe.get(name) or {} for name in ("dedup", "slice", "cut")}
        self.spec = validate(Dedup, plain["dedup"], "manifest.json: dedup")
        self.cut = validate(Cut, plain["cut"], "manifest.json: cut")
        grid = plain["slice"].get("grid") or {"size_px": 512}
        gsd_m = plain["slice"].get("gsd_m")
        self.slice = Slice(grid=validate(Grid, grid, "manifest.json: slice.grid"), gsd_m=gsd_m)
        self.sources = {source["name"]: source["collection"] for source in recipe["sources"]}
        self.samples = Samples(out)
        try:
            self.signatures = {
                level: np.concatenate([_first(piece, names[0]) for _, piece in self.samples.pieces([names[0]])])
                for level, names in LEVELS
            }
        except ValueError as exc:
            raise ShardError(f"{self.samples.where}: {exc}. Build the set again to rewrite it") from None

    def ask(self, looks: Looks, levels: tuple[str, ...], radius_bits: int | None = None) -> list[Hit]:
        """What one picture looks like, nearest first: images once each, and tiles. looks: of the picture alone."""
        radius = self.spec.radius_bits if radius_bits is None else radius_bits
        hits: set[Hit] = set()
        for level, names in LEVELS:
            if level not in levels:
                continue
            rows, places, bits = scan(self.signatures[level], looks.signatures[0], radius)
            found = self.samples.read(rows, ["key", "source", "name", *names])
            theirs = Looks.of(found, names)
            back = np.array(BACK)[places]
            alike = theirs.agree(
                np.arange(len(rows)), looks, np.zeros(len(rows), np.int64), back, self.spec.thumbnail_levels
            )
            equal = theirs.digests == looks.digests[0]
            flat = theirs.flat(self.spec.flat_entropy_bits) | looks.flat(self.spec.flat_entropy_bits)[0]
            for n in np.flatnonzero(equal | (alike & ~flat)).tolist():
                row = found.slice(n, 1).to_pylist()[0]
                key = row["key"] if level == "tile" else make_key(row["source"], row["name"])
                hits.add(Hit(key, level, int(bits[n]), TURNS[back[n]], bool(equal[n]) and not back[n]))
        nearest: dict[tuple[str, str], Hit] = {}
        for hit in sorted(hits, key=lambda h: (not h.equal, h.bits, h.level, h.key, h.turned)):
            nearest.setdefault((hit.level, hit.key), hit)
        return list(nearest.values())

    def sign(self, path: Path, window: Window | None = None, source: str = "") -> Signed:
        """How an image looks, or a window of it; SourceError where it cannot be read.

        Where the build reduces images to a ground sampling distance, this one is reduced as it would be there: if its
        own is told by its place, or is that of its `source`; an image of an unknown one stays as it is.
        source: of the build, whose bands the image has; plain pictures need none.
        """
        if source and source not in self.sources:
            raise SourceError(f"{source}: no source of this build; there are {', '.join(self.sources)}")
        about = validate(Collection, self.sources[source], "manifest.json: sources") if source else None
        any_name = about and about.model_copy(update={"layout": Layout(images=("**",))})
        images = any_images("query", any_name)
        signed = sign(images, path.parent, files_at(path), self.slice, Sign.as_in(self.cut), Engine(0), window)
        if not signed.records.num_rows:
            why = "; ".join(reason for _, reason in signed.unsigned) or "not an image by its name"
            raise SourceError(f"{path}: {why}. Give an image or another window; of other bands, --source too")
        return signed

    def spell(
        self, path: Path, window: Window | None = None, radius_bits: int | None = None, source: str = ""
    ) -> list[dict[str, Any]]:
        """Answers about an image and its tiles, or about a window of it, as plain data; one that says so if none is."""
        records = self.sign(path, window, source).records
        asked: list[tuple[Any, list[Hit]]] = []
        if window is None:
            asked.append((None, self.ask(Looks.of(records.slice(0, 1), SCENE), ("image", "tile"), radius_bits)))
        known = any(hits for _, hits in asked)  # a known image has no strange tiles
        for n, tile in enumerate(records.column("window").to_pylist()):
            levels = ("image", "tile") if window else ("tile",)
            if tile and not known:
                asked.append((tile, self.ask(Looks.of(records.slice(n, 1), TILE), levels, radius_bits)))
        image = {"image": str(path)}
        found = [{**image, "window": tile, "found": True, **hit._asdict()} for tile, hits in asked for hit in hits]
        return found or [{**image, "window": list(window) if window else None, "found": False}]


def _first(table: pa.Table, name: str) -> NDArray[np.uint64]:
    """The signature of the picture as it is, from a column of 8 each: (N,)."""
    column = table.column(name).combine_chunks()
    values: NDArray[np.uint64] = column.flatten().to_numpy()
    if len(values) != PLACES * len(column):
        raise ValueError("some samples have no signatures: they were built with measure: false")
    return values.reshape(-1, PLACES)[:, 0].copy()


def window_of(text: str) -> Window:
    """A window from `left,top,width,height`."""
    numbers = text.split(",")
    if len(numbers) != 4 or not all(n.strip().isdecimal() for n in numbers) or not min(map(int, numbers[2:])):
        raise DatakitError(f"--window {text}: write LEFT,TOP,WIDTH,HEIGHT in px, as in 0,512,512,512")
    return Window(*map(int, numbers))
