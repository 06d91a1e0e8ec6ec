"""Cut large images into windows: on a grid, or at random."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt, model_validator

from .. import boxes, place, scales
from ..columns import Columns
from ..image import COLOURS
from ..rules import LargerThan, LongerThan, SmallerThan
from ..sample import Part, Sample, Spec, Window, from_table, key_id, make_key, to_table
from ..windows import crops_per_area, grid, scattered

__all__ = ["Grid", "Random", "Slice", "grid"]

SAME_GSD = 0.01  # share by which an image may be finer and still pass as it is
MAX_SCALE = 1024  # sums over the px of the source are 64-bit integers
MAX_WINDOWS = 1 << 18  # of one image: a header that promises more is a lie or a bomb


class Grid(Spec):
    """Windows of one size that cover the image; the last of a row is moved back. Images no larger pass whole."""

    size_px: int = Field(gt=0)
    gap_px: int = Field(0, ge=0, description="overlap of neighbours")

    @model_validator(mode="after")
    def _moves_on(self) -> Grid:
        if self.gap_px >= self.size_px:
            raise ValueError(f"gap_px ({self.gap_px}) must be less than size_px ({self.size_px})")
        return self

    def windows(self, sample: Sample) -> list[Window]:
        if max(sample.width, sample.height) <= self.size_px:
            return []
        step = self.size_px - self.gap_px
        if (sample.width // step + 1) * (sample.height // step + 1) > MAX_WINDOWS:
            raise ValueError(f"over {MAX_WINDOWS} windows")
        return grid(sample.width, sample.height, self.size_px, self.gap_px)


class Random(Spec):
    """Square windows at random places, as OpticalRS-13M (arXiv 2406.11933) cuts scenes: sides of 64 to 1024 px.

    The paper gives the range and no more: law, number of crops and overlap are our choice.
    """

    side_px: tuple[int, int] = Field((64, 1024), description="shortest and longest side")
    law: Literal["log_uniform", "uniform"] = "log_uniform"
    crops: Literal["per_area"] | PositiveInt = Field("per_area", description="windows an image, or as many as its area")
    max_overlap_share: float = Field(0.25, ge=0, le=1)
    whole_if_side_at_most_px: int = Field(512, ge=0, description="images whose longer side is this pass whole")
    min_valid_share: float = Field(0.5, ge=0, le=1, description="windows less valid are dropped after `cut`")
    seed: int = 0

    @model_validator(mode="after")
    def _range_is_one(self) -> Random:
        if not 0 < self.side_px[0] <= self.side_px[1]:
            raise ValueError(f"side_px {list(self.side_px)} must be two positive sizes, the shorter first")
        return self

    def windows(self, sample: Sample) -> list[Window]:
        if max(sample.width, sample.height) <= self.whole_if_side_at_most_px:
            return []
        crops = self.crops
        if crops == "per_area":
            crops = crops_per_area(sample.width, sample.height, self.side_px, self.law)
        if crops > MAX_WINDOWS:
            raise ValueError(f"over {MAX_WINDOWS} windows")
        spelled = json.dumps([self.seed, sample.source, sample.name])
        rng = np.random.Generator(np.random.PCG64(int(hashlib.blake2b(spelled.encode()).hexdigest(), 16)))
        size = (sample.width, sample.height)
        return scattered(rng, size, self.side_px, self.law, crops, self.max_overlap_share)


class Published(Spec):
    """Windows as AODRaw publishes them: on even pixels, and only those that show a box by at least a share of it."""

    size_px: int = Field(1280, gt=0, multiple_of=2)
    gap_px: int = Field(300, ge=0, description="overlap of neighbours")
    iof: float = Field(0.4, gt=0, le=1, description="share of a box inside, below which it is a region to ignore")
    keep_empty: bool = Field(False, description="keep windows without a box, too")

    def windows(self, sample: Sample) -> list[Window]:
        found = grid(sample.width, sample.height, self.size_px, self.gap_px, even=True)
        return [w for w in found if boxes.fills(sample.width - w.left, sample.height - w.top, self.size_px)]


class Slice(Spec):
    """Windows of each image, as records of their own; boxes and places follow.

    With `gsd_m`, images are first reduced to that many metres a pixel, by area: windows are in px of the result. Images
    within 1 % of it, coarser ones and those of an unknown distance stay at their own scale: see rule `gsd`. Rules over
    sizes (`smaller_than`, `longer_than`, `larger_than`) hold for an image as it is, and again once it is reduced.
    """

    VERSION: ClassVar[int] = 2
    grid: Grid | None = None
    random: Random | None = None
    published: Published | None = Field(None, description="as AODRaw's slices; set by `view: slices`")
    third: bool = Field(False, description="whole images at a third, as AODRaw reduces; set by `view: downsampled`")
    gsd_m: float | None = Field(None, gt=0, description="finer images are reduced to this, metres per pixel")

    @model_validator(mode="after")
    def _one_way(self) -> Slice:
        if [self.grid, self.random, self.published, self.third or None].count(None) != 3:
            raise ValueError("give either grid or random")
        if self.gsd_m and (self.published or self.third):
            raise ValueError("gsd_m: camera RAW has no ground sampling distance")
        return self

    def digest(self, *more: str) -> str:
        """min_valid_share is applied after `cut`: changing it moves no window, so it is in no digest."""
        random = self.random and self.random.model_copy(update={"min_valid_share": 0.0})
        return super(Slice, self.model_copy(update={"random": random})).digest(*more)

    def __call__(self, records: pa.Table, part: Part) -> pa.Table:
        return to_table(tile for sample in from_table(records) for tile in self.tiles(sample))

    def scale(self, sample: Sample) -> float:
        """Px of an image that a px of its windows spans; 1.0: it stays as it is. ValueError where it cannot be so."""
        if self.gsd_m is None or not sample.gsd_m or sample.gsd_m < 0:
            return 1.0
        scale = self.gsd_m / sample.gsd_m
        if scale > MAX_SCALE:
            raise ValueError(f"over {MAX_SCALE} px to one of {self.gsd_m} m: its gsd_m would be {sample.gsd_m}")
        return scale if scale > 1 + SAME_GSD else 1.0

    def tiles(self, sample: Sample) -> list[Sample]:
        """The windows of an image, or the image itself."""
        if self.third:
            return [one_third(sample)]
        if self.published:
            return as_published(sample, self.published)
        way = self.grid or self.random
        try:
            scale = self.scale(sample)
            whole = reduced(sample, scale)
            windows = way.windows(whole) if way else []
        except ValueError as exc:
            return [sample.drop("larger_than", str(exc))]
        if scale != 1 and (reason := self.refused(sample, whole)):
            return [sample.drop(reason, f"{whole.width} x {whole.height} px at {self.gsd_m} m")]
        if not windows:
            return [whole if scale == 1 else shown(whole)]
        shapes = boxes.by_window(boxes.loads(whole.boxes), windows)
        ours = windows if scale == 1 else [scales.in_source(w, scale, sample.width, sample.height) for w in windows]
        places = place.footprints(sample, ours)
        return [cut_out(whole, *each) for each in zip(ours, shapes, places, windows, strict=True)]

    def refused(self, sample: Sample, whole: Sample) -> str:
        """Why an image is left out once it is reduced: where less than half a px is left of a side; or ""."""
        return "smaller_than" if 2 * min(sample.width, sample.height) < whole.scale else ""


class Reducing(Slice):
    """A slice that holds what it reduces to the rules over sizes, which have seen the size before."""

    sizes: tuple[Annotated[SmallerThan | LongerThan | LargerThan, Field(discriminator="rule")], ...] = ()

    def refused(self, sample: Sample, whole: Sample) -> str:
        size = Columns(pa.table({"width": [whole.width], "height": [whole.height]}))
        reason = next((rule.reason for rule in self.sizes if rule.matches(size)[0]), "")
        return reason or super().refused(sample, whole)


def one_third(sample: Sample) -> Sample:
    """An image reduced as AODRaw reduces: to a third of its sides, rounded down, boxes by what that exactly is."""
    if sample.bands == COLOURS:  # a published array, which is at a third already
        return replace(sample, scale=3.0)
    width, height = sample.width // 3, sample.height // 3
    if not width or not height:
        return sample.drop("smaller_than", f"{sample.width} x {sample.height} px, of which a third is left")
    shapes = boxes.scaled(boxes.loads(sample.boxes), width / sample.width, height / sample.height)
    return replace(sample, width=width, height=height, scale=3.0, bands=COLOURS, boxes=boxes.dumps(shapes))


def as_published(sample: Sample, how: Published) -> list[Sample]:
    """The windows of an image, with what they show; which of them show nothing is for `cut` to drop."""
    windows = how.windows(sample)
    if not windows:
        size = f"{sample.width} x {sample.height} px fill {boxes.MIN_IMAGE_SHARE} of no window"
        return [sample.drop("smaller_than", size)]
    shapes = boxes.by_window(boxes.loads(sample.boxes), windows, how.iof)
    return [cut_out(sample, window, each, ()) for window, each in zip(windows, shapes, strict=True)]


def shown(whole: Sample) -> Sample:
    """A reduced image with what it shows of its boxes: its last px may end before the ground that they lie on."""
    inside = boxes.through(boxes.loads(whole.boxes), Window(0, 0, whole.width, whole.height))
    return replace(whole, boxes=boxes.dumps(inside))


def reduced(sample: Sample, scale: float) -> Sample:
    """A whole image at a scale, as a record: the same ground in fewer px."""
    if scale == 1:
        return sample
    width, height = scales.reduced_size(sample.width, sample.height, scale)
    transform, gcps = place.shifted(sample, Window(0, 0, width, height), scale)
    return replace(
        sample,
        width=width,
        height=height,
        scale=scale,
        gsd_m=None if sample.gsd_m is None else sample.gsd_m * scale,
        transform=transform,
        gcps=gcps,
        boxes=boxes.dumps(boxes.scaled(boxes.loads(sample.boxes), 1 / scale)),
    )


def cut_out(
    sample: Sample, window: Window, shapes: list[boxes.Box], footprint: place.Footprint, exact: Window | None = None
) -> Sample:
    """A window of an image as a record of its own. exact: where it lies in the reduced image, if `sample` is one."""
    key = make_key(sample.source, sample.name, window)
    exact = exact or window
    transform, gcps = place.shifted(sample, exact)
    return replace(
        sample,
        key=key,
        id=key_id(key),
        width=exact.width,
        height=exact.height,
        window=window,
        transform=transform,
        gcps=gcps,
        footprint=footprint,
        boxes=boxes.dumps(shapes),
    )
