"""RAW distillation as an objective: a student sees what a camera would have recorded of the picture its teacher sees.

After AODRaw (Li et al., CVPR 2025, section on pretraining): unprocessing as an augmentation, a teacher trained on sRGB,
features distilled. Its code, parameters and losses are not published; what is chosen here is ours, and in the recipe.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import RecipeError
from ..sample import Spec
from ..stream.augment import IMAGENET, Views
from ..stream.batch import Batch
from ..views import FULL_SCALE, View, view_of
from .backbone import COLOURS, Backbone
from .develop import check, develop, mosaic_px
from .distil import Distiller, FeatureLoss, Goals, LogitLoss, maps_and_logits, unreached
from .formats import FORMS, write_student
from .objective import Augment, Encoder, Loading, MeanAndStd, MeanStd, Objective
from .unprocess import Camera, Range, Raw, sample_params, unprocess

SHOWN = 6  # samples of a picture
Points = tuple[tuple[float, float], ...]


class Curriculum(Spec):
    """What changes over the run: values at shares of it, straight lines in between."""

    noise: Points = Field(((0.0, 1.0),), description="[share, factor of the noise's deviation]")
    exposure: tuple[tuple[float, Range], ...] = Field((), description="[share, [least, most]]; else the camera's own")

    @model_validator(mode="after")
    def _in_order(self) -> Curriculum:
        for name, points in (("noise", self.noise), ("exposure", self.exposure)):
            shares = [share for share, _ in points]
            if shares != sorted({*shares}) or any(not 0 <= share <= 1 for share in shares):
                raise ValueError(f"{name}: {shares}: shares of the run from 0 to 1, each larger than the one before")
        if not self.noise or min(factor for _, factor in self.noise) < 0:
            raise ValueError("noise: a point at least, and factors of 0 or more")
        if any(not 0 < low <= high for _, (low, high) in self.exposure):
            raise ValueError("exposure: least and most, above 0")
        return self

    def noise_at(self, progress: float) -> float:
        shares, factors = np.array(self.noise).T
        return float(np.interp(progress, shares, factors))

    def exposure_at(self, progress: float) -> Range | None:
        """Lines are those of the logarithm."""
        if not self.exposure:
            return None
        shares = [share for share, _ in self.exposure]
        ends = [[math.log(each[n]) for _, each in self.exposure] for n in (0, 1)]
        low, high = (math.exp(float(np.interp(progress, shares, end))) for end in ends)
        return low, max(low, high)


class Teacher(Backbone):
    """A frozen model of timm's that sees the picture in sRGB, normalised as timm tells."""

    weights: str = Field(description="a file of a state dict or of safetensors, a folder that `export` wrote, or: timm")
    image_px: int | None = Field(None, gt=0, description="default: the student's")


class RawDistillation(Objective):
    """A student that sees RAW learns from a teacher that sees sRGB, and from labels; each loss has its weight."""

    forms: ClassVar[tuple[str, ...]] = FORMS

    kind: Literal["raw_distill"]
    student: Backbone
    teacher: Teacher | None = None
    image_px: int = Field(224, gt=0, description="side of what the student sees")
    view: str | View | None = Field(
        "aodraw_downsampled", description="of RAW, by name or its fields; null: the picture itself, as a baseline"
    )
    pairs: bool = Field(
        False,
        description="the RAW of the shards and the JPEG beside it, of builds with domain: both; none is unprocessed",
    )
    packed: Literal["crop", "stem"] = Field(
        "crop", description="four planes of half the size: of a crop of twice the side, or with half the stem's stride"
    )
    camera: Camera = Camera()
    curriculum: Curriculum = Curriculum()
    features: FeatureLoss | None = FeatureLoss()
    logits: LogitLoss | None = None
    labels: float = Field(1.0, ge=0, description="weight of the cross-entropy of labels; 0: none are read")
    classes: int = Field(1000, ge=0, description="of the student's last layer")
    class_names: tuple[str, ...] | None = Field(None, description="where labels are names: in the order of the classes")
    augment: Augment = Augment(scale=(0.08, 1.0))
    normalise: Literal["imagenet"] | MeanAndStd = "imagenet"

    @model_validator(mode="after")
    def _fits(self) -> RawDistillation:
        try:
            self.checked()
        except RecipeError as exc:
            raise ValueError(str(exc)) from None
        return self

    def checked(self) -> list[str]:
        """Parameters that no loss reaches. RecipeError for what does not fit together."""
        if self.features is None and self.logits is None and not self.labels:
            raise RecipeError("losses: features, logits or labels: one at least")
        if (self.teacher is None) != (self.features is None and self.logits is None):
            raise RecipeError("teacher: features and logits are a teacher's; give all of them, or `features: null` too")
        if self.features and len(self.features.of_teacher or self.features.stages) != len(self.features.stages):
            raise RecipeError("features.of_teacher: as many stages as the student's")
        if self.goals.head and not self.classes:
            raise RecipeError("classes: logits and labels want classes")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise RecipeError(f"class_names: {len(self.class_names)} of {self.classes} classes")
        if self.pairs and (self.shown is None or self.halved or any(self.augment.view(self.image_px).colours)):
            raise RecipeError("pairs: of a view, with `packed: crop`, and without changes of colours")
        bands, _ = self.bands, self.crop_px
        if isinstance(self.normalise, MeanAndStd) and len(self.normalise.mean) != bands:
            raise RecipeError(f"normalise: {len(self.normalise.mean)} means for {bands} bands")
        with torch.device("meta"):
            module = self.distiller(load=False)
            seen = torch.zeros(2, bands, self.seen_px, self.seen_px)
            pictures = torch.zeros(2, 3, self.taught_px, self.taught_px) if self.teacher else None
            labels = torch.zeros(2, dtype=torch.long) if self.labels else None
            return unreached(module, seen, pictures, labels)

    @property
    def goals(self) -> Goals:
        return Goals(self.features, self.logits, self.labels)

    @property
    def shown(self) -> View | None:
        """The view; None for the picture itself."""
        return None if self.view is None else check(view_of(self.view))

    @property
    def bands(self) -> int:
        return 3 if self.shown is None else self.shown.bands

    @property
    def halved(self) -> bool:
        """Whether the student sees half of `image_px`, through a stem of half the stride."""
        return self.packed == "stem" and self.shown is not None and self.shown.planes == "packed"

    @property
    def seen_px(self) -> int:
        """The side of what goes into the student."""
        if self.halved and self.image_px % 2:
            raise RecipeError(f"image_px: {self.image_px}: even, for a stem of half the stride")
        return self.image_px // 2 if self.halved else self.image_px

    @property
    def taught_px(self) -> int:
        return (self.teacher.image_px if self.teacher else None) or self.image_px

    @property
    def crop_px(self) -> int:
        """The side of the crops that both see."""
        crop = self.seen_px if self.shown is None else mosaic_px(self.shown, self.seen_px)
        if self.shown is not None and crop % 2:
            raise RecipeError(f"image_px: {self.image_px}: mosaics of {crop} px are not of an even side")
        return crop

    def student_model(self, load: bool) -> nn.Module:
        stride = self.student.half_stride(self.image_px) if self.halved else None
        made = self.student.loaded if load else self.student.made
        return made(self.seen_px, self.classes if self.goals.head else 0, self.bands, stride)

    def teacher_model(self, load: bool) -> nn.Module:
        """RecipeError where its classes are not the student's, and its logits are to be learnt."""
        if self.teacher is None:
            raise RecipeError("teacher: there is none")
        if not load:
            return self.teacher.made(self.taught_px, self.classes if self.logits else 0)
        found = self.teacher.loaded(self.taught_px, None)
        if self.logits is not None and found.num_classes != self.classes:
            raise RecipeError(f"logits: the teacher has {found.num_classes} classes, the student {self.classes}")
        return found

    def distiller(self, load: bool) -> Distiller:
        student = self.student_model(load)
        teach = None if self.teacher is None else lambda: self.teacher_model(load)
        return Distiller(student, self.goals, self.widths(), teach)

    def widths(self) -> list[tuple[int, int]]:
        """Channels of the maps that are compared, of student and teacher. RecipeError where their grids differ."""
        if self.features is None or self.teacher is None:
            return []
        own, other = zip(*self.features.pairs, strict=True)
        with torch.device("meta"):
            student, teacher = self.student_model(False), self.teacher_model(False)
            seen = torch.zeros(1, self.bands, self.seen_px, self.seen_px)
            ours, _ = maps_and_logits(student.eval(), seen, own, False)
            pictures = torch.zeros(1, 3, self.taught_px, self.taught_px)
            theirs, _ = maps_and_logits(teacher.eval(), pictures, other, False)
        for (n, a), (m, b) in zip(zip(own, ours, strict=True), zip(other, theirs, strict=True), strict=True):
            if a.shape[2:] != b.shape[2:]:
                raise RecipeError(
                    f"features: stage {n} of {self.student.model} is {a.shape[2]} x {a.shape[3]} of {self.seen_px} px, "
                    f"stage {m} of {self.teacher.model} {b.shape[2]} x {b.shape[3]} of {self.taught_px} px: "
                    "compare others, or change image_px, teacher.image_px or packed"
                )
        return [(a.shape[1], b.shape[1]) for a, b in zip(ours, theirs, strict=True)]

    def build(self) -> Distiller:
        module = self.distiller(load=True)
        idle = {*self.checked()}
        for name, one in module.named_parameters():
            one.requires_grad_(name not in idle)
        return module

    def loading(self) -> Loading:
        columns = ("label",) if self.labels else ()
        if self.pairs and self.shown is not None:
            raw = self.shown.model_copy(update={"dtype": "uint16"})
            views = Views((self.augment.view(self.seen_px),), None)
            return Loading(views, (*columns, "twin"), self.class_names, raw)
        return Loading(Views((self.augment.view(self.crop_px),), None), columns, self.class_names)

    @property
    def numbers(self) -> MeanStd:
        """What the view's numbers are normalised by, as shares of its `top`."""
        if isinstance(self.normalise, MeanAndStd):
            return self.normalise.mean, self.normalise.std
        bands = range(3) if self.bands == 3 else COLOURS
        mean, std = ([of[n] for n in bands] for of in IMAGENET)
        return mean, std

    def recorded(self, pictures: Tensor, progress: float, generator: torch.Generator) -> Raw:
        """What a camera would have recorded of pictures, at this place of the curriculum."""
        exposure = self.curriculum.exposure_at(progress)
        camera = self.camera if exposure is None else self.camera.model_copy(update={"exposure": exposure})
        params = sample_params(generator, len(pictures), camera)
        variance = self.curriculum.noise_at(progress) ** 2
        params = replace(params, shot=params.shot * variance, read=params.read * variance)
        return unprocess(pictures, params, generator)

    def seen(self, pictures: Tensor, progress: float, generator: torch.Generator) -> Tensor:
        """What the student sees of crops (B, 3, crop_px, crop_px) uint8: its view, as shares of its top."""
        if self.shown is None:
            return resized(pictures, self.seen_px)
        return develop(self.recorded(pictures, progress, generator), self.shown) / self.shown.top

    def losses(self, model: nn.Module, batch: Batch, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        with torch.no_grad():
            pictures, levels = self.both(batch, progress, generator)
            seen = normalised(levels, self.numbers)
            taught = None
            if self.teacher is not None:
                about = self.teacher.about
                taught = normalised(resized(pictures, self.taught_px), (about["mean"], about["std"]))
        labels = self.labels_of(batch).to(seen.device, non_blocking=True) if self.labels else None
        return model(seen, taught, labels)  # type: ignore[no-any-return]

    def both(self, batch: Batch, progress: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) uint8, and what the student sees of the same crops, as shares of its view's top."""
        if not self.pairs:
            pictures = checked_pictures(batch.images)
            return pictures, self.seen(pictures, progress, generator)
        twins = checked_pictures(batch["twin"]).to(batch.images.device, non_blocking=True)
        return twins, batch.images.float() / FULL_SCALE

    def labels_of(self, batch: Batch) -> Tensor:
        """Numbers of classes, -1 where there is none. RecipeError for others."""
        labels = batch.labels
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            raise RecipeError("labels: these are no numbers: give their names, in the order of classes, as class_names")
        if len(labels) and int(labels.max()) >= self.classes:
            raise RecipeError(f"labels: class {int(labels.max())} of {self.classes}: give classes")
        return labels.long()

    def pictures(
        self, module: nn.Module, batch: Batch, progress: float, generator: torch.Generator, numbers: MeanStd
    ) -> NDArray[np.uint8]:
        """A row a sample: the picture, and what the student sees of it."""
        crops, seen = (of[:SHOWN] for of in self.both(batch, progress, generator))
        seen = torch.stack([seen[:, 0], seen[:, [1, -1]].mean(1), seen[:, 2]], 1) if self.bands == 4 else seen
        made = torch.cat([resized(crops, self.seen_px), seen], 3).clamp(0, 1)
        return (made * 255).round().byte().permute(0, 2, 3, 1).flatten(0, 1).cpu().numpy()

    def encoder(self, module: nn.Module, numbers: MeanStd) -> Encoder:
        """Of what the view makes, as shares of its top."""
        return Encoder(Tokens(module.student), self.seen_px, self.numbers, self.augment.interpolation)  # type: ignore[arg-type]

    def export(self, module: nn.Module, path: Path, numbers: MeanStd, form: str) -> None:
        shown = None if self.shown is None else self.shown.model_dump(mode="json")
        mean, std = self.numbers
        about = {"view": shown, "mean": mean, "std": std, "input_size": [self.bands, self.seen_px, self.seen_px]}
        write_student(path, module.student, form, about, self.augment.interpolation)  # type: ignore[arg-type]


class Tokens(nn.Module):
    """The mean of the last map and its positions: (B, C, H, W) to (B, 1 + L, D)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        (last,), _ = maps_and_logits(self.model, images, (-1,), False)
        tokens = last.flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(1, keepdim=True), tokens], 1)


def checked_pictures(images: Tensor) -> Tensor:
    """Crops as the loader gives them; RecipeError unless they are 8-bit pictures in RGB."""
    if images.dtype != torch.uint8 or images.shape[1] != 3:
        raise RecipeError(f"data: {images.shape[1]} bands of {images.dtype}: what is unprocessed is sRGB of 8 bits")
    return images


def resized(pictures: Tensor, side_px: int) -> Tensor:
    """Pictures of 0..1 with such sides: (B, 3, H, W) uint8 -> float32. Smoothed where they become smaller."""
    levels = pictures.float() / 255
    if pictures.shape[-1] == side_px:
        return levels
    size = (side_px, side_px)
    if pictures.shape[-1] % side_px == 0:
        return F.interpolate(levels, size, mode="area")
    return F.interpolate(levels, size, mode="bilinear", antialias=True, align_corners=False)


def normalised(levels: Tensor, numbers: MeanStd) -> Tensor:
    mean, std = (torch.tensor(of, device=levels.device)[:, None, None] for of in numbers)
    return (levels - mean) / std
