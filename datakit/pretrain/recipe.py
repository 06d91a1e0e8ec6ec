"""A pretraining recipe: what is trained, on what, for how long and how. Its fields are the YAML keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from ..errors import RecipeError
from ..recipe import folders, put, with_base
from ..sample import Spec
from ..stream import Mix
from ..validate import wrong_fields
from .masking import MaskedAutoencoder, SelectiveMaskedAutoencoder
from .raw_distill import RawDistillation

Kinds = Annotated[MaskedAutoencoder | SelectiveMaskedAutoencoder | RawDistillation, Field(discriminator="kind")]
Share = Annotated[float, Field(ge=0, le=1)]


class Budget(Spec):
    """How long: so many samples seen, or so many times the set."""

    samples: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_of_them(self) -> Budget:
        if (self.samples is None) == (self.epochs is None):
            raise ValueError("give samples or epochs, one of them")
        return self

    def of(self, epoch: int) -> int:
        """In samples, where an epoch has so many."""
        return self.samples if self.samples is not None else round((self.epochs or 0) * epoch)


class Optimiser(Spec):
    """AdamW, whose rate rises over `warmup`, a share of the run, and falls as a cosine to `least_rate`."""

    base_rate: float = Field(gt=0, description="for steps of 256 samples; the rate is in proportion to the batch")
    rate_factor: Literal["one", "target_by_mask", "mask_by_target"] = Field(
        "one", description="of SelectiveMAE, by its ratios: target_by_mask as released, mask_by_target as the paper"
    )
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.05, ge=0, description="of matrices; biases, norms and vectors have none")
    warmup: float = Field(0.0, ge=0, lt=1)
    least_rate: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0, description="largest norm of all gradients together")

    @model_validator(mode="after")
    def _betas_are_shares(self) -> Optimiser:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: {list(self.betas)}: from 0, below 1")
        return self


class Prune(Spec):
    """InfoBatch (Qin et al., ICLR 2024): an epoch leaves out a share of the samples whose loss was below the mean."""

    ratio: float = Field(0.5, gt=0, lt=1, description="of the samples below the mean; the others count for them")
    until: float = Field(0.875, gt=0, le=1, description="share of the run, after which no sample is left out")


class Feeding(Spec):
    """How samples are read; see `datakit.stream.Loader`."""

    threads: int | None = Field(None, gt=0)
    prefetch: int = Field(2, gt=0)
    repeats: int = Field(1, gt=0)
    repeat_window: int = Field(64, gt=0)
    block_bytes: int | None = Field(None, gt=0)
    max_bad_share: Share = 0.01
    cache: str | None = None


class Pretrain(Spec):
    """What a run does. Defaults need not be written."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$", description="of the folder that the run is kept in")
    about: str = ""
    seed: int = Field(0, ge=0)
    data: str | tuple[str, ...] | dict[str, float] = Field(description="shards: one set, tars, or sets by weight")
    overlay: tuple[str, ...] = Field((), description="files that drop, keep or weigh samples")
    licence: tuple[str, ...] | None = Field(None, description="only samples under one of these, see `licences`")
    held_out: tuple[str, ...] = Field(
        ("aodraw:test",),
        description="splits that training must not see, as source:split",
    )
    objective: Kinds
    budget: Budget
    batch: int = Field(gt=0, description="samples of a step, of all ranks together")
    micro_batch: int | None = Field(None, gt=0, description="samples of a rank at once (default: all of its part)")
    optimiser: Optimiser
    prune: Prune | None = None
    ema: float | None = Field(None, gt=0, lt=1, description="decay of a running mean of the weights, a step")
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    compile: bool = False
    feeding: Feeding = Feeding()
    log_every: int = Field(20, gt=0, description="steps")
    pictures_every: int | None = Field(None, gt=0, description="steps")
    checkpoint_every: int = Field(1000, gt=0, description="steps")
    keep: int = Field(2, gt=0, description="checkpoints, the last ones")
    max_nonfinite: int = Field(10, ge=0, description="steps that may be skipped for a loss that is no number")

    @model_validator(mode="after")
    def _fits(self) -> Pretrain:
        if self.prune and self.feeding.repeats > 1:
            raise ValueError("prune: scores are by epoch, in which each sample comes once: set feeding.repeats to 1")
        factors = self.objective.rate_factors()
        if self.optimiser.rate_factor not in factors:
            has = ", ".join(factors)
            raise ValueError(f"optimiser.rate_factor: {self.optimiser.rate_factor}: {self.objective.kind} has {has}")
        return self

    @classmethod
    def load(cls, path: str | Path, changes: Mapping[str, Any] | None = None) -> Pretrain:
        """The recipe at `path`, or of that name among the bundled ones; RecipeError with every field that is wrong.

        changes: values by dotted key, as `--set` gives them. `base` names a recipe beside it that this one changes.
        """
        path = find(Path(path))
        plain = with_base(path)
        for key, value in (changes or {}).items():
            put(plain, key, value)
        try:
            return cls.model_validate(plain)
        except ValidationError as exc:
            lines = [f"  {line}" for line in wrong_fields(cls, exc).values()]
            raise RecipeError("\n".join([f"{path}: {len(lines)} wrong", *lines])) from None

    @property
    def source(self) -> str | Sequence[str] | Mix:
        """What a loader reads from."""
        return Mix(self.data) if isinstance(self.data, dict) else self.data

    @property
    def peak_rate(self) -> float:
        """The learning rate after the warm-up."""
        from .schedule import PER

        factor = self.objective.rate_factors()[self.optimiser.rate_factor]
        return self.optimiser.base_rate * self.batch / PER * factor


def find(path: Path) -> Path:
    """A recipe file: `path` itself, or the bundled one of that name."""
    if path.is_file():
        return path
    bundled = {p.stem: p for folder in folders("recipes") for p in (folder / "pretrain").glob("*.yaml")}
    if path.parent in (Path(), Path("recipes/pretrain")) and path.suffix in ("", ".yaml") and path.stem in bundled:
        return bundled[path.stem]
    raise RecipeError(f"{path}: no such file; bundled for pretraining are {', '.join(sorted(bundled))}")
