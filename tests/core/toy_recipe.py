"""A recipe as a new file of training/recipes would hold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from comfyui_deepinv.deepinv_core.solver import Predictor
from comfyui_deepinv.training.recipes.base import Recipe, Stage
from comfyui_deepinv.training.recipes.objective import Objective
from comfyui_deepinv.training.walk import MicroBatch, Walk


@dataclass(frozen=True)
class ToyRecipe(Recipe):
    """The first velocity, predicted from nothing.

    Attributes:
        power: of the error.
    """

    name: ClassVar[str] = "toy"
    about: ClassVar[str] = "for tries."
    solver: ClassVar[type[Predictor]] = Predictor
    large: ClassVar[dict[str, Any]] = {"batch": 2}

    batch: int = 4
    power: float = 1.0

    def stages(self) -> list[Stage]:
        """One."""
        return [Stage("toy", 1, 1, (2,), evaluations=1)]

    def lr_factor(self, stage: Stage, progress: float, overall: float) -> float:
        """Constant."""
        return 1.0

    def objective(self, base: Any, seed: int, workers: object) -> Objective:
        """The file's own."""
        return ToyObjective(self, base, seed)


class ToyObjective(Objective):
    """A step of half the way, towards what the base says there."""

    def __init__(self, recipe: ToyRecipe, base: Any, seed: int) -> None:
        super().__init__(base, seed, recipe.batch)
        self._power = recipe.power

    def begin(self, stage: Stage, number: int, clean: torch.Tensor, names: tuple[str, ...]) -> Walk:
        """One step."""
        return Walk(number, [0.0, 0.5, 1.0], 1, [MicroBatch(clean, names, self.base, clean)])

    def loss(self, walk: Walk, part: MicroBatch, model: Any) -> torch.Tensor:
        """The mean error."""
        with self.asking(walk, part) as velocity:
            part.eps = velocity(part.z, walk.step.sigma_next)
        sigma = torch.full((len(part.z),), 0.5)
        given = {"last": part.eps, "slope": None, "latent": part.z, "latent_clean": part.clean, "sigma": sigma}
        return (model(**given, sigma_last=sigma, h=sigma) - part.eps).abs().pow(self._power).mean()
