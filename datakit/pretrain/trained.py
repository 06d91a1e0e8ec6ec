"""What a run has trained, from one of its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..errors import RecipeError
from ..validate import validate
from . import checkpoint
from .objective import Encoder, MeanStd
from .recipe import Pretrain


@dataclass(frozen=True)
class Trained:
    """A module with the weights of a step, the running mean of them where the run kept one."""

    recipe: Pretrain
    module: nn.Module
    numbers: MeanStd
    step: int

    @classmethod
    def load(cls, path: Path) -> Trained:
        """From a checkpoint of `datakit pretrain`. ShardError where it is none."""
        state = checkpoint.load(path)
        recipe = validate(Pretrain, state["recipe"], str(path))
        module = recipe.objective.build()
        module.load_state_dict(state["model"])
        if state["ema"]:
            module.load_state_dict({**module.state_dict(), **state["ema"]})
        mean, std = state["numbers"]
        return cls(recipe, module.eval(), (mean, std), state["step"])

    def encoder(self) -> Encoder:
        return self.recipe.objective.encoder(self.module, self.numbers)

    def export(self, path: Path, form: str = "") -> None:
        """Write what other programs load. RecipeError where the objective has no such form."""
        forms = self.recipe.objective.forms
        if form and form not in forms:
            raise RecipeError(f"format {form}: {self.recipe.objective.kind} is exported as {', '.join(forms)}")
        self.recipe.objective.export(self.module, path, self.numbers, form or forms[0])
