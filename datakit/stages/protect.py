"""Nothing that resembles a held-out evaluation image gets through, and a certificate says what was compared.

A held-out list holds how the images of an evaluation set look, whole and through the grid of a recipe, and where they
lie; it holds no pixels, so it may be shared. `datakit protect sign` makes one. By a recipe with `contain` it writes a
second file beside it, with points and small gray pictures, by which parts are found.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from ..errors import RecipeError
from ..hamming import near_between
from ..looks import CANNOT_SEE, PLACES, TILE, Ints, Likeness, Looks, among, chance, words
from ..sample import SCHEMA, Spec

FORMAT = 1
ABOUT = b"datakit.heldout"
ENTRY = pa.schema([("name", pa.string()), *((n, SCHEMA.field(n).type) for n in ("window", *TILE, "footprint"))])
NO_LIST = "no evaluation set was checked"
SHOWN = 240  # held-out entries whose thumbnails a certificate holds
PARTS = ".parts"  # suffix of the file beside a list that tells how parts of its images look
CROPS = (
    "crops and shifts that show less than `contain.share` of either picture, or differ in scale by more than 2; "
    "those of pictures with few points (water, fields without a mark), or of lists without a file of parts"
)
SHARE_OFF = 0.02  # of shares, which a fit to points tells


class Contain(Spec):
    """When a tile and a held-out image share a part: points of both agree on one place, and then the pixels do."""

    share: float = Field(0.5, gt=0, le=1, description="the least share of the tile, or of the image, that both show")
    points: int = Field(8, ge=6, description="points that must agree")
    correlation: float = Field(0.8, ge=0.3, le=1, description="of the pixels of that part, at a common scale")


class Protect(Likeness):
    """Held-out lists, and when a record is too close to an image of theirs; flips and rotations are always found."""

    VERSION: ClassVar[int] = 2

    lists: tuple[Path, ...] = Field((), description="files that `datakit protect sign` made")
    footprints: bool = Field(True, description="drop what overlaps a held-out image on the map, too")
    footprint_share: float = Field(
        0.01, gt=0, le=1, description="overlap of less than this of the smaller footprint is no overlap"
    )

    contain: Contain | None = Field(None, description="drop what shares a part with a held-out image, too")

    def digest(self, *more: str) -> str:
        plain = self.model_copy(update={"lists": ()})
        files = [*self.lists, *(path for path in self.parts() if path)]
        return super(Protect, plain).digest(*more, *map(held_digest, files))

    def parts(self) -> list[Path | None]:
        """Beside each list the file that tells how parts look; None: there is none, or it is not asked for."""
        files = [path.with_name(path.name + PARTS) for path in self.lists]
        return [path if self.contain and path.is_file() else None for path in files]

    def read(self) -> list[HeldOut]:
        """The lists; RecipeError names the one that cannot be read."""
        return [HeldOut.load(path) for path in self.lists]

    def find(self, looks: Looks, held: HeldOut) -> Matches:
        """Which pictures look like an entry of a list: the nearest of each, in order of rows.

        A signature within the radius is a candidate; thumbnails must agree. A flat one needs equal pixels.
        """
        entries = held.looks
        flat, theirs = looks.flat(self.flat_entropy_bits), entries.flat(self.flat_entropy_bits)
        mine, its = np.flatnonzero(~flat), np.flatnonzero(~theirs)
        pairs = near_between(entries.signatures[its].ravel(), looks.signatures[mine, 0], self.radius_bits)
        entry, place, row = its[pairs[:, 0] // PLACES], pairs[:, 0] % PLACES, mine[pairs[:, 1]]
        alike = entries.agree(entry, looks, row, place, self.thumbnail_levels)
        refused = np.unique(row[~alike])
        bits = np.bitwise_count(entries.signatures[entry, place] ^ looks.signatures[row, 0]).astype(np.int32)
        pixels = _equal_pixels(entries.digests, looks.digests)
        found = Matches(
            np.concatenate([row[alike], pixels[:, 1]]),
            np.concatenate([entry[alike], pixels[:, 0]]),
            np.concatenate([place[alike], np.zeros(len(pixels), np.int64)]).astype(np.int8),
            np.concatenate([bits[alike], np.zeros(len(pixels), np.int32)]),
            refused,
        )
        return found.nearest()


class Matches(NamedTuple):
    """Rows that match entries of a list."""

    row: Ints
    entry: Ints
    place: NDArray[np.int8]  # how the entry is turned to look like the row
    bits: NDArray[np.int32]
    refused: Ints  # rows whose signature matched and whose thumbnail did not

    def nearest(self) -> Matches:
        """The nearest entry of each row, the first of several, in order of rows."""
        keys: tuple[NDArray[Any], ...] = (self.place, self.entry, self.bits, self.row)
        order = np.lexsort(keys)
        return self.of(order[np.flatnonzero(np.diff(self.row[order], prepend=-1))])

    def only(self, rows: Ints) -> Matches:
        """Those of certain rows."""
        some = self.of(np.flatnonzero(np.isin(self.row, rows)))
        return some._replace(refused=self.refused[np.isin(self.refused, rows)])

    def of(self, which: Ints) -> Matches:
        """Some of them, by number."""
        return Matches(self.row[which], self.entry[which], self.place[which], self.bits[which], self.refused)


def _equal_pixels(one: NDArray[np.bytes_], other: NDArray[np.bytes_]) -> Ints:
    """Pairs (of one, of other) whose digests are equal, the first of one for each of other: (M, 2)."""
    known, first = np.unique(one, return_index=True)
    if not len(known):
        return np.zeros((0, 2), np.int64)
    rows = among(words(known), words(other))
    rows = rows[other[rows] != b""]
    place = np.minimum(np.searchsorted(known, other[rows]), len(known) - 1)
    same = known[place] == other[rows]
    return np.stack([first[place[same]], rows[same]], axis=1).astype(np.int64)


@dataclass(frozen=True)
class HeldOut:
    """A held-out list: the images of an evaluation set, each whole (window null) and in tiles."""

    about: dict[str, Any]  # name, title, version, split, files, images, tiles, unsigned, grid, narrow, levels, versions
    entries: pa.Table  # ENTRY
    digest: str = ""  # of the file

    @classmethod
    def load(cls, path: Path) -> HeldOut:
        """The list at `path`; RecipeError where it is not one."""
        what = f"protect: {path}"
        try:
            table = pq.read_table(path)
        except FileNotFoundError:
            raise RecipeError(f"{what}: no such file. Make it with `datakit protect sign DIR -o {path}`") from None
        except (OSError, pa.ArrowException) as exc:
            raise RecipeError(f"{what}: not a held-out list ({exc}). Make it with `datakit protect sign`") from None
        text = (table.schema.metadata or {}).get(ABOUT)
        about = json.loads(text) if text else {}
        if about.get("format") != FORMAT:
            found = about.get("format", "none")
            raise RecipeError(
                f"{what}: format {found}; this version reads {FORMAT}. Make it with `datakit protect sign`"
            )
        return cls(about, table.replace_schema_metadata(None), held_digest(path))

    def save(self, path: Path) -> None:
        """Write the list, aside first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        table = self.entries.replace_schema_metadata({ABOUT: json.dumps({"format": FORMAT, **self.about})})
        aside = path.with_name(f"{path.name}.part")
        pq.write_table(table, aside, compression="zstd")
        aside.replace(path)

    @property
    def who(self) -> str:
        """Name of the set, with the split."""
        return ":".join(text for text in (self.about["name"], self.about["split"]) if text)

    @cached_property
    def looks(self) -> Looks:
        return Looks.of(self.entries)

    @cached_property
    def spelled(self) -> list[str]:
        """The entries in words: set, file, window."""
        names, windows = (self.entries.column(name).to_pylist() for name in ("name", "window"))
        ends = ["@" + ",".join(map(str, window)) if window else "" for window in windows]
        return [f"{self.who}/{name}{end}" for name, end in zip(names, ends, strict=True)]

    def footprints(self) -> tuple[Ints, NDArray[np.float64]]:
        """Whole images that have a place: their entries (M,), and lon, lat of their corners (M, 8)."""
        whole = [n for n, window in enumerate(self.entries.column("window").to_pylist()) if not window]
        corners = self.entries.column("footprint").to_pylist()
        placed = [n for n in whole if corners[n] and len(corners[n]) == 8]
        return np.array(placed, np.int64), np.array([corners[n] for n in placed], np.float64).reshape(-1, 8)

    def flat_files(self, entropy_bits: float) -> list[str]:
        """Files whose whole picture is flat: only equal pixels protect them."""
        whole = np.array([not window for window in self.entries.column("window").to_pylist()], bool)
        rows = np.flatnonzero(whole & self.looks.flat(entropy_bits))
        return sorted(self.entries.column("name").take(pa.array(rows)).to_pylist())


def held_digest(path: Path) -> str:
    """blake2b of a list's bytes."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:40]
    except OSError as exc:
        advice = f"Make it with `datakit protect sign DIR -o {path}`"
        raise RecipeError(f"protect: {path}: {exc.strerror}. {advice}") from None


def certificate(
    spec: Protect,
    lists: Sequence[HeldOut],
    compared: dict[str, int],
    matches: list[dict[str, Any]],
    levels: bool = False,
    parts: dict[str, int] | None = None,
) -> dict[str, Any]:
    """What protect.json says. compared: of the build, images, tiles, those placed, flat, and refused by thumbnails.

    levels: the digests of the build are of the levels of all bands. parts: tiles of which parts were looked up, and
    those of too few points; None: the recipe does not ask for it.
    """
    if not lists:
        return {"statement": NO_LIST, "lists": [], "compared": {}, "matches": [], "cannot_see": list(CANNOT_SEE)}
    a_pair = chance(spec.radius_bits) * PLACES * sum(len(held.looks) for held in lists)
    gone = len({match["key"] for match in matches})
    return {
        "statement": f"{gone} images or tiles resembled held-out images of {', '.join(h.who for h in lists)}, "
        f"{'or shared a part with one, ' if parts and parts['tiles'] else ''}or lay where they lie, or are other "
        "products of an acquisition that one of these is of; they are not in this set. What a comparison of this kind "
        "cannot see is listed below.",
        "lists": [_of_list(spec, n, held, levels) for n, held in enumerate(lists)],
        "radius_bits": spec.radius_bits,
        "orientations": PLACES,
        "thumbnail_levels": spec.thumbnail_levels,
        "flat_entropy_bits": spec.flat_entropy_bits,
        "compared": compared,
        "random_matches_expected": {
            "note": "of pictures that have nothing in common, by their signatures alone; thumbnails must agree besides",
            "images": compared["images"] * a_pair,
            "tiles": compared["tiles"] * a_pair,
        },
        **({} if parts is None or spec.contain is None else {"parts": {**parts, **spec.contain.model_dump()}}),
        "matches": matches,
        "cannot_see": list(CANNOT_SEE if not parts or not parts["tiles"] else (CROPS, *CANNOT_SEE[1:])),
        "thumbnails": thumbnails(lists, [match["held_out"] for match in matches]),
    }


def thumbnails(lists: Sequence[HeldOut], names: Sequence[str]) -> dict[str, str]:
    """The (8, 8, 3) uint8 of entries as base64, by their names in words; of so many names, evenly over all."""
    wanted = sorted({*names})
    some = {*wanted[:: -(-len(wanted) // SHOWN) or 1]}
    return {
        name: base64.b64encode(held.entries.column("thumbnail")[n].as_py()).decode()
        for held in lists
        for n, name in enumerate(held.spelled)
        if name in some
    }


def _of_list(spec: Protect, number: int, held: HeldOut, levels: bool) -> dict[str, Any]:
    """A list as the certificate names it: what it is, and what of it could not be protected."""
    flat = held.flat_files(spec.flat_entropy_bits)
    places, _ = held.footprints()
    note = "flat pictures are recognised by equal pixels alone; unsigned files not at all"
    if held.about.get("levels", False) != levels:
        kinds = ("all bands' levels", "the picture that is shown")
        ours, its = kinds if levels else kinds[::-1]
        note = f"flat pictures are not recognised: digests here are of {ours}, those of the list of {its}; sign it "
        note += "with --recipe of this build; unsigned files are not recognised either"
    told = {} if spec.contain is None else {"parts": bool(spec.parts()[number])}
    return {
        **held.about,
        **told,
        "blake2b": held.digest,
        "footprints": len(places) if spec.footprints else 0,
        "not_protected": {
            "flat": flat,
            "unsigned": held.about["unsigned"],
            "note": note,
        },
    }
