"""What a source is (licence, counts, layout) and what a build left."""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator

from .errors import ShardError
from .remote import Root, root_of
from .sample import Spec
from .validate import load_yaml, wrong_fields

NO_LABEL = 255  # level of seg.png where nothing is labelled


def _is_glob(glob: str) -> str:
    try:
        _pattern(glob)
    except re.error as exc:
        raise ValueError(f"{glob} is not a glob: {exc}") from None
    return glob


Glob = Annotated[str, AfterValidator(_is_glob)]


class ClassFolders(Spec):
    """The name of the folder that an image lies in is its class."""

    kind: Literal["class_folders"] = "class_folders"
    level: int = Field(1, ge=1, description="1: the folder itself, 2: the one above it, …")
    skip: tuple[str, ...] = Field((), description="folders that are no class, as the one of unlabelled images")


class DotaText(Spec):
    """One text file an image: `x1 y1 … x4 y4 class difficult`, after header lines `imagesource:…`, `gsd:…`."""

    kind: Literal["dota"] = "dota"
    path: str = "{dir}/../labelTxt/{stem}.txt"


class VocXml(Spec):
    """One Pascal VOC XML file an image: bndbox, or robndbox/polygon corners where there are any."""

    kind: Literal["voc"] = "voc"
    path: str = "{dir}/../Annotations/{stem}.xml"


class CocoJson(Spec):
    """One COCO file for many images; an image is found by `file_name`, relative to `images`."""

    kind: Literal["coco"] = "coco"
    path: str = Field(description="the JSON file, within the collection")
    images: str = Field("", description="folder within the collection that file_name is relative to")
    split: str = Field("", pattern=r"^[A-Za-z0-9_]*$", description="of the images that it lists")
    downsampled: str = Field("", description="the same, of images reduced for `view: downsampled`, where it is there")


class Twin(Spec):
    """The camera's own JPEG of the same shot, beside a RAW: boxes refer to it as it is shown."""

    kind: Literal["twin"] = "twin"
    path: str = "{dir}/{stem}.JPG"


class GeoJson(Spec):
    """GeoJSON: one file an image, or (with `image`) one file for many.

    coordinates: map: of the file's own CRS, WGS 84 where it names none (RFC 7946); pixel: x, y in px of the image.
    """

    kind: Literal["geojson"] = "geojson"
    path: str
    coordinates: Literal["map", "pixel"] = "map"
    image: str = Field("", description="property that names the image's file; empty: the path tells it")
    images: str = Field("", description="with `image`: folder within the collection that the names are relative to")
    bounds: str = Field("", description="property with xmin,ymin,xmax,ymax in px, used instead of the geometry")
    category: str = Field("", description="property that gives the class")
    categories: dict[str, str] = Field({}, description="class names of the property's values, where they are codes")
    default: str = Field("object", description="class where the property is absent")


class MaskRaster(Spec):
    """One raster an image, of its size as stored or as shown, whose levels (or colours) are classes: `seg.png`."""

    kind: Literal["mask"] = "mask"
    path: str
    classes: dict[int, str] = Field({}, description="names of the classes by level in seg.png, 0 to 254")
    colours: dict[int, tuple[int, int, int]] = Field({}, description="level in seg.png by colour, of colour masks")
    ignore: tuple[int, ...] = Field((), description="levels of the raster that mean no label: 255 in seg.png")
    threshold: int | None = Field(
        None, gt=0, le=255, description="of colour masks that are not pure: levels from this on are 255, others 0"
    )

    @field_validator("classes", "colours")
    @classmethod
    def _levels_are_of_classes(cls, by_level: dict[int, Any]) -> dict[int, Any]:
        if wrong := [level for level in by_level if not 0 <= level < NO_LABEL]:
            how = "give the class another level by its colour, as in colours: {1: [255, 255, 255]}"
            raise ValueError(f"a class has a level from 0 to 254, not {wrong[0]}: 255 in seg.png is no label; {how}")
        return by_level

    @field_validator("colours")
    @classmethod
    def _colours_differ(cls, colours: dict[int, tuple[int, int, int]]) -> dict[int, tuple[int, int, int]]:
        if len(set(colours.values())) < len(colours):
            raise ValueError("two levels have the same colour")
        return colours


class MaskSource(Spec):
    """Where the mask of one image lies and what its levels mean: what a record's `mask` holds as JSON."""

    file: dict[str, Any]  # the fields of a `files.File`
    source: str = ""  # whose folder it lies in, if it is not the image's own source
    ignore: tuple[int, ...] = ()
    classes: dict[int, str] = {}
    colours: dict[int, tuple[int, int, int]] = {}  # by level
    threshold: int | None = None

    def to_json(self) -> str:
        """JSON {file, levels: null (levels stay as they are), colours: {"r,g,b": level} or null, ignore, classes}."""
        by_colour = {",".join(map(str, colour)): level for level, colour in self.colours.items()}
        rest = {"source": self.source, "ignore": self.ignore, "classes": self.classes, "threshold": self.threshold}
        return json.dumps({"file": self.file, "levels": None, "colours": by_colour or None, **rest})

    @classmethod
    def from_json(cls, text: str) -> MaskSource:
        """What `to_json` wrote."""
        try:
            plain = json.loads(text)
            if plain.pop("levels") is not None:
                raise ValueError("levels: expected null")
            by_colour = plain.pop("colours") or {}
            colours = {level: tuple(map(int, colour.split(","))) for colour, level in by_colour.items()}
            return cls(colours=colours, **plain)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            keys = "file, levels, colours, ignore, classes"
            raise ShardError(f"expected the JSON of a mask with {keys}, found {text!r:.80}: {exc}") from None


class FmowJson(Spec):
    """fMoW's JSON beside each image: category and box, gsd in metres, timestamp."""

    kind: Literal["fmow"] = "fmow"
    path: str = "{dir}/{stem}.json"


class Captions(Spec):
    """RSICD's JSON for many images: `images` with `filename` and `sentences` (`raw`)."""

    kind: Literal["captions"] = "captions"
    path: str = Field(description="the JSON file, within the collection")
    images: str = Field("", description="folder within the collection that filename is relative to")


Labels = Annotated[
    ClassFolders | DotaText | VocXml | CocoJson | Twin | GeoJson | MaskRaster | FmowJson | Captions,
    Field(discriminator="kind"),
]


class Layout(Spec):
    """Which files of a collection are images and which are labels. Globs over names; `**` crosses folders.

    Names are paths below the collection's folder; a member of an archive is named as if it were unpacked beside it.
    """

    images: tuple[Glob, ...]
    ignore: tuple[Glob, ...] = Field(
        (), description="files, archives and folders (with a / at the end) not even listed"
    )
    label_files: tuple[Glob, ...] = ()
    labels: tuple[Labels, ...] = ()

    def ignores(self, name: str) -> bool:
        """Whether a file, or a folder (with a / at the end), is left alone."""
        return matches(self.ignore, name)

    def kind(self, name: str) -> Literal["image", "label", ""]:
        """What a file is, by its name: an image, a label file, or neither. Labels go first."""
        if matches(self.label_files, name):
            return "label"
        return "image" if matches(self.images, name) else ""


class Split(Spec):
    """The images of one split: the globs or the lists that tell it, and how many the publisher counts."""

    images: tuple[Glob, ...] = ()
    lists: tuple[Glob, ...] = Field((), description="text files that name the split's images, one a line")
    count: int | None = Field(None, ge=0)
    bytes: int | None = Field(None, ge=0, description="of its files, as published")


class ListFile(Spec):
    """A text file of the publisher that tells splits: its lines that are not empty, and its digest."""

    lines: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Collection(Spec):
    """A public collection. What could not be verified is null; `facts` gives the page of each fact."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]{0,23}$")
    title: str
    version: str | None = None
    homepage: str
    licence: str = Field(description='SPDX name, the publisher\'s own words, or "unstated"')
    provider_terms: str | None = Field(None, description="terms of whoever took the pictures")
    citation: str | None = None
    modality: Literal["optical", "multispectral", "hyperspectral", "sar", "infrared", "elevation"]
    platform: Literal["satellite", "aerial", "uav", "oblique", "mixed"] | None = None
    bands: tuple[str, ...] = Field(min_length=1)
    dtype: str | None = None
    gsd_m: tuple[float, float] | None = Field(None, description="finest and coarsest, metres per pixel")
    layout: Layout
    splits: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], Split] = {}
    count: int | None = Field(None, ge=0, description="images in all, as published")
    versions: dict[str, dict[str, int]] = Field(
        {}, description='counts of other published versions, by split; "all" is the total'
    )
    lists: dict[str, ListFile] = Field({}, description="the publisher's lists that a build reads, as published")
    role: Literal["pretrain", "evaluation"] = "pretrain"
    acquisition: re.Pattern[str] | None = Field(
        None, description="of a name; its group is the same for the products of one acquisition, here and in its twins"
    )
    place: re.Pattern[str] | None = Field(
        None, description="of a name; its group is the same for pictures of one place at several dates"
    )
    same_images_as: tuple[str, ...] = ()
    derived_from: tuple[str, ...] = ()
    twin_of: tuple[str, ...] = ()
    facts: dict[str, str] = {}
    note: str = ""

    @field_validator("acquisition", "place")
    @classmethod
    def _has_one_group(cls, pattern: re.Pattern[str] | None) -> re.Pattern[str] | None:
        if pattern is None or pattern.groups == 1:
            return pattern
        raise ValueError(f"{pattern.pattern} must have one group, around what is the same")

    def names_of(self, name: str) -> list[str]:
        """Names that an image of another collection with the same images may have here: in the folders of the globs."""
        file = name.rpartition("/")[2]
        places = [glob.rpartition("/")[::2] for glob in self.layout.images]
        fixed = [f"{folder}/{file}".lstrip("/") for folder, last in places if not re.search(r"[*?\[]", folder)]
        likely = [each for each in dict.fromkeys(fixed) if self.kind(each) == "image"]
        return [*likely, *([name] if name not in likely else [])]

    def kind(self, name: str) -> Literal["image", "label", ""]:
        """What a file is, by its name: an image, a label file (lists of splits are some), or neither."""
        is_list = any(matches(spec.lists, name) for spec in self.splits.values())
        return "label" if is_list else self.layout.kind(name)

    def split_of(self, name: str) -> str:
        """The split that an image is in by the globs, or ""; lists may tell more (`sources.lists`)."""
        return next((split for split, spec in self.splits.items() if matches(spec.images, name)), "")

    @classmethod
    def load(cls, path: Path) -> Collection:
        """The collection described at `path`, or RecipeError with every field that is wrong."""
        return load_yaml(cls, path)


class Shard(Spec):
    """One tar of a build."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str


class SourceLeft(Spec):
    """What a build took from one source, and on what terms."""

    name: str
    title: str
    version: str | None
    homepage: str
    licence: str
    provider_terms: str | None
    samples: int
    bytes: int
    mean_bytes: float
    mean_psnr_db: float | None
    unmatched: int = Field(description="files that are neither image nor label of the layout")


class Count(Spec):
    """Records that came into a stage from one source, that left it, and that were dropped by reason."""

    stage: str
    source: str
    came: int
    left: int
    made: int = Field(description="records made of those that left: more than those where images are sliced")
    dropped: dict[str, int]


FORMAT = 1


class Manifest(Spec):
    """What a build left: `manifest.json`, written last, so that a folder that has one is whole."""

    format: Literal[1] = 1
    name: str
    title: str
    recipe: dict[str, Any]
    recipe_digest: str
    versions: dict[str, str]
    sources: tuple[SourceLeft, ...]
    missing: tuple[str, ...] = Field(description="sources of the recipe that were not on disk")
    samples: int
    members: tuple[str, ...] = Field(description="member of every sample, in the order they lie in a shard")
    shards: tuple[Shard, ...]
    counts: tuple[Count, ...]
    files: dict[str, str] = Field(description="sha256 of what else the build left")
    seal: str = Field("", description="sha256 of the text of all else here; empty in builds that had none yet")

    def sealed(self) -> Manifest:
        """The same with its seal, by which a change is seen."""
        bare = self.model_copy(update={"seal": ""})
        return self.model_copy(update={"seal": hashlib.sha256(bare.to_json().encode()).hexdigest()})

    def to_json(self) -> str:
        """The text of manifest.json: the same for the same build."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"

    @classmethod
    def load(cls, path: str | Root) -> Manifest:
        """The manifest of the build at `path`, a path or a URL: its folder, or its manifest.json."""
        at = root_of(path)
        try:
            at = at / "manifest.json" if at.is_dir() else at
            if not at.exists():
                todo = "A build that did not finish has none: run `datakit build` again"
                raise ShardError(f"{at}: no such file. {todo}")
            plain = json.loads(at.read_bytes())
            found = plain.get("format", "unknown") if isinstance(plain, dict) else "unknown"
            if found != FORMAT:
                raise ShardError(f"{at}: manifest format {found}; this version reads {FORMAT}. Update datakit")
            return cls.model_validate(plain)
        except OSError as exc:
            raise ShardError(f"{at}: {exc.strerror}. Let the user that runs this read it") from None
        except ValueError as exc:
            wrong = "; ".join(wrong_fields(cls, exc).values()) if isinstance(exc, ValidationError) else str(exc)
            raise ShardError(f"{at}: not a whole manifest ({wrong}). Build the set again to rewrite it") from None


def matches(globs: tuple[str, ...], name: str) -> bool:
    """Whether a name is one of those that any of these globs means."""
    return any(_pattern(glob).fullmatch(name) for glob in globs)


@lru_cache(maxsize=4096)
def _pattern(glob: str) -> re.Pattern[str]:
    """A glob as a pattern: `**/` is any folders or none, `*` and `?` stay in a folder, [ab] is either, [!a] others."""
    parts = re.findall(r"\*\*/|\*\*|\[[^]/]+]|.", glob, re.DOTALL)
    return re.compile("".join(map(_spelled, parts)), re.DOTALL)


def _spelled(part: str) -> str:
    if len(part) > 2 and part[0] == "[":
        others = part[1] == "!" and len(part) > 3
        letters = re.sub(r"([^\w-])", r"\\\1", part[2 if others else 1 : -1]).replace("--", r"-\-")
        return f"[^/{letters}]" if others else f"[{letters}]"
    return {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part) or re.escape(part)
