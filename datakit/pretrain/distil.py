"""A student that learns from a frozen teacher's features and logits, and from labels: the module and its losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import RecipeError
from ..sample import Spec

VARIANCE = 1e-6  # below which a channel's is taken for none
Maps = list[Tensor]  # (B, C, h, w), one a stage


class FeatureLoss(Spec):
    """How far maps of features are apart."""

    weight: float = Field(1.0, gt=0)
    distance: Literal["mse", "cosine"] = "mse"
    stages: tuple[int, ...] = Field((-1,), min_length=1, description="of the student's maps; -1 is the last")
    of_teacher: tuple[int, ...] | None = Field(None, description="stages of the teacher (default: the same)")

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Stages of student and teacher that are compared."""
        return list(zip(self.stages, self.of_teacher or self.stages, strict=True))


class LogitLoss(Spec):
    """Kullback-Leibler divergence of the teacher's classes from the student's (Hinton et al., arXiv 1503.02531)."""

    weight: float = Field(1.0, gt=0)
    temperature: float = Field(1.0, gt=0, description="both sides' logits are divided by it; the loss has its square")


@dataclass(frozen=True)
class Goals:
    """What is learnt: losses that are None or 0 are not made."""

    features: FeatureLoss | None
    logits: LogitLoss | None
    labels: float

    @property
    def head(self) -> bool:
        """Whether anything asks for logits."""
        return self.logits is not None or self.labels > 0


def maps_and_logits(model: nn.Module, images: Tensor, stages: Sequence[int], head: bool) -> tuple[Maps, Tensor | None]:
    """Maps of these stages before the last norm, and logits where they are asked for; one forward."""
    try:
        last, maps = model.forward_intermediates(images, indices=list(stages) or [-1], output_fmt="NCHW")  # type: ignore[operator]
    except AssertionError as exc:
        raise RecipeError(f"features.stages: {list(stages)}: {exc}") from None
    return maps if stages else [], model.forward_head(last) if head else None  # type: ignore[operator]


def whitened(maps: Tensor) -> Tensor:
    """Each channel with mean 0 and variance 1 over the batch and all positions, (B, C, h, w) float32.

    Over batch and positions, and not over the channels of each position as a LayerNorm: a few channels of a ConvNeXt
    are many times larger than the rest, all over the picture, and the loss would be about these alone.
    """
    variance, mean = torch.var_mean(maps.float(), (0, 2, 3), correction=0, keepdim=True)
    return (maps.float() - mean) * (variance + VARIANCE).rsqrt()


def apart(student: Tensor, teacher: Tensor, distance: str) -> Tensor:
    """Of maps (B, C, h, w), (B,): mean square, or one less the cosine of each position's channels."""
    if distance == "cosine":
        return (1 - F.cosine_similarity(student.float(), teacher, dim=1)).mean((1, 2))
    return (student.float() - teacher).square().mean((1, 2, 3))


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of logits (B, K), times the temperature's square: (B,)."""
    of_student = F.log_softmax(student.float() / temperature, 1)
    of_teacher = F.log_softmax(teacher.float() / temperature, 1)
    return (of_teacher.exp() * (of_teacher - of_student)).sum(1) * temperature**2


class Distiller(nn.Module):
    """A student, and layers of 1 x 1 that give its maps the teacher's width where that is another.

    teach: makes the teacher, when it is first asked: who only exports a student needs no weights of its teacher. It is
    no part of the module: not of its state, and never in training.
    """

    def __init__(
        self, student: nn.Module, goals: Goals, widths: Sequence[tuple[int, int]], teach: Callable[[], nn.Module] | None
    ) -> None:
        super().__init__()
        self.student, self.goals = student, goals
        layers: list[nn.Module] = [nn.Identity() if a == b else nn.Conv2d(a, b, 1) for a, b in widths]
        self.projections = nn.ModuleList(layers)
        self._teach = teach
        self._teacher: tuple[nn.Module, ...] = ()  # in a tuple, where a module does not look for its parts

    def forward(self, seen: Tensor, pictures: Tensor | None, labels: Tensor | None) -> dict[str, Tensor]:
        """Losses of each sample, (B,), by name. seen: what the student sees; pictures: what the teacher does."""
        goals, pairs = self.goals, self.goals.features.pairs if self.goals.features else []
        maps, logits = maps_and_logits(self.student, seen, [own for own, _ in pairs], goals.head)
        losses: dict[str, Tensor] = {}
        if pictures is not None:
            with torch.no_grad():
                teacher = self.teacher(pictures.device)
                known, told = maps_and_logits(teacher, pictures, [n for _, n in pairs], goals.logits is not None)
            if goals.features is not None:
                layers = zip(self.projections, maps, known, strict=True)
                each = [apart(layer(own), whitened(other), goals.features.distance) for layer, own, other in layers]
                losses["features"] = torch.stack(each).mean(0)
            if goals.logits is not None and logits is not None and told is not None:
                losses["logits"] = divergence(logits, told, goals.logits.temperature)
        if labels is not None and logits is not None:
            losses["labels"] = F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=-1)
        weights = {"features": goals.features, "logits": goals.logits}
        parts = [of * getattr(weights.get(name), "weight", goals.labels) for name, of in losses.items()]
        return {"loss": torch.stack(parts).sum(0), **{name: of.detach() for name, of in losses.items()}}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def teacher(self, device: torch.device) -> nn.Module:
        """The teacher, on the device. Making it changes none of torch's random numbers."""
        if self._teach is None:
            raise ValueError("there is no teacher")
        if not self._teacher:
            with torch.random.fork_rng(devices=[]):
                self._teacher = (self._teach().eval().requires_grad_(False).to(device),)
        found: nn.Module = self._teacher[0]
        return found


def unreached(module: Distiller, *inputs: Any) -> list[str]:
    """Names of parameters that no loss depends on; works on the meta device."""
    module.train()
    module(*inputs)["loss"].sum().backward()
    return [name for name, one in module.named_parameters() if one.grad is None]
