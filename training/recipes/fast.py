"""The recipe ``fast``, ours: a predictor trained at every step count at once, one base evaluation a training step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...deepinv_core.flow import CountedVelocity
from ...deepinv_core.memory import in_parts
from ...deepinv_core.methods.anderson import Anderson
from ...deepinv_core.methods.implicit import first_known
from ...deepinv_core.solver import Predictor, Solver
from ..base_model import Base
from ..latent_order import derived_seed
from ..walk import MicroBatch, Walk
from .base import Recipe, Stage
from .objective import Objective

if TYPE_CHECKING:
    from ...deepinv_core.solver import Network
    from ..workers import Workers


@dataclass(frozen=True)
class FastRecipe(Recipe):
    """A predictor, trained on walks of every step count.

    Attributes:
        steps: step counts N drawn for the walks, with a chance of 1 / N: each then has the same number of updates.
        short: share of the walks that end after a few steps. The first steps carry most of the round trip's error
            and come once a walk, so they are trained more often than the others.
        short_steps: the longest of those.
        refined: share of the walks that go on from a refined noise, as inverting with K = 1 or 2 does.
        own: share of the walks that go up a way that the base has come down from white noise by as many Euler steps:
            its velocities are exact labels, of noise that is white.
        closing: photos that the closing fit is made on in the end, :mod:`..closing`; 0 for none. For the N and K that
            are validated, in about N(6K + 23) evaluations of each photo for each grid.
        closing_rounds: grids beside the model's own that are tried for it.
        floor: share of the learning rate left at the end of its cosine.
        checks: stages, for a validation after each.
    """

    name: ClassVar[str] = "fast"
    about: ClassVar[str] = "ours, the better solver; it costs one evaluation more than there are steps."
    solver: ClassVar[type[Solver]] = Predictor
    large: ClassVar[Mapping[str, Any]] = {"batch": 8, "lr": 2e-4, "closing_rounds": 1}

    batch: int = 64
    lr: float = 1.5e-3
    weight_decay: float = 0.01
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.99)
    steps: tuple[int, ...] = (2, 3, 4, 6, 8, 12, 16, 25, 50)
    short: float = 0.3
    short_steps: int = 4
    refined: float = 0.0
    own: float = 0.0
    closing: int = 4
    closing_rounds: int = 3
    warmup: int = 200
    floor: float = 0.02
    checks: int = 8

    def stages(self) -> list[Stage]:
        """Equal parts."""
        cost = len(self.steps) / sum(1 / steps for steps in self.steps)
        names = [f"part {k + 1} of {self.checks}" for k in range(self.checks)]
        return [Stage(name, 100, cost, self.steps, evaluations=cost + 1) for name in names]

    def lr_factor(self, stage: Stage, progress: float, overall: float) -> float:
        """A cosine over the whole training."""
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, overall)))

    def objective(self, base: Base, seed: int, workers: Workers) -> FastObjective:
        """See :class:`FastObjective`."""
        return FastObjective(self, base, seed, workers)


class FastObjective(Objective):
    """The predictor's label is the one base evaluation that the method spends at the predicted point anyway.

    ``L = rms((eps_hat - v(z_i + h*eps_hat, sigma_{i+1})) / h)``, the mean over the batch: divided by h, steps of all
    sizes weigh alike, and the root keeps the first step, whose error is the largest, from drowning the others.
    """

    keep: ClassVar[int] = 2

    def __init__(self, recipe: FastRecipe, base: Base, seed: int, workers: Workers) -> None:
        super().__init__(base, seed, recipe.batch)
        self._recipe, self._workers = recipe, workers
        self.closing, self.closing_rounds = recipe.closing, recipe.closing_rounds

    def begin(self, stage: Stage, number: int, clean: Tensor, names: tuple[str, ...]) -> Walk:
        """Draw the step count, and whether to end early."""
        generator = torch.Generator().manual_seed(derived_seed(self._seed, "walk", number))
        chances = torch.tensor([1 / steps for steps in stage.steps])
        steps = stage.steps[int(torch.multinomial(chances, 1, generator=generator))]
        short = float(torch.rand((), generator=generator)) < self._recipe.short
        last = int(torch.randint(1, self._recipe.short_steps + 1, (), generator=generator)) if short else steps
        grid = self.base.grid(steps, clean).tolist()
        if self._drawn("own", number) < self._recipe.own:
            clean, path = self._own_path(number, grid, clean, names)
            return Walk(number, grid, steps, [MicroBatch(clean, names, self.base, clean, path=path)])
        return Walk(number, grid, min(last, steps), [MicroBatch(clean, names, self.base, clean)])

    def loss(self, walk: Walk, part: MicroBatch, model: Network) -> Tensor:
        """The label is the base's answer where the guess leads, refined in some of the walks."""
        step = walk.step
        with self.asking(walk, part) as velocity:
            known = () if part.history else (first_known(velocity, part.z, step),)
        with self.autocast:
            eps = Predictor(model).predict(part.point(step, *known))
        if part.path is not None:
            part.eps = part.path[step.index].to(part.z)
            self.evaluations += part.conditioned.velocity.cost * len(part.z)  # of the way down, which may be gone twice
        else:
            with self.asking(walk, part) as velocity:
                iterate = Anderson(1 + self._refinements(walk.number))
                part.eps, _ = iterate(lambda e: velocity(part.z + step.h * e, step.sigma_next), eps.detach())
        return (((eps - part.eps) / step.h).square().flatten(1).mean(1) + 1e-3).sqrt().mean()

    @torch.no_grad()
    def _own_path(self, number: int, grid: list[float], clean: Tensor, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Where white noise of clean's shape leads, and the velocities of the way there; see :class:`MicroBatch`."""
        generator = torch.Generator().manual_seed(derived_seed(self._seed, "own path", number))
        whole = torch.randn((self._batch, *clean.shape[1:]), generator=generator)
        noise = grid[-1] * whole[self._workers.rank :: self._workers.world]

        def sample(rows: slice) -> tuple[Tensor, Tensor]:
            velocity = CountedVelocity(self.base.condition(names[rows]).velocity)
            z = noise[: len(clean)][rows].to(clean)
            path: list[Tensor] = []
            for i in reversed(range(len(grid) - 1)):
                velocity.step = i
                v = velocity(z, grid[i + 1])
                z = z - (grid[i + 1] - grid[i]) * v
                path.insert(0, v.cpu())
            self.broken.note(velocity)
            return z, torch.stack(path)

        def join(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
            return torch.cat([z for z, _ in parts]), torch.cat([path for _, path in parts], 1)

        return in_parts(len(clean), sample, join, self.base.free)

    def _drawn(self, what: str, number: int) -> float:
        generator = torch.Generator().manual_seed(derived_seed(self._seed, what, number))
        return float(torch.rand((), generator=generator))

    def _refinements(self, number: int) -> int:
        generator = torch.Generator().manual_seed(derived_seed(self._seed, "refine", number))
        refined = float(torch.rand((), generator=generator)) < self._recipe.refined
        return int(torch.randint(1, 3, (), generator=generator)) if refined else 0
