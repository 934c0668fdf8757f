"""The closing fit: a predictor's guess as one more feature of fitted steps, kept where it beats the network alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from ..deepinv_core.flow import Velocity
from ..deepinv_core.memory import in_parts
from ..deepinv_core.solver import Predictor
from ..deepinv_core.solver.fit import fit_evaluations, fit_walk
from .trainee import with_closing
from .validation import held_out, validate_solver

if TYPE_CHECKING:
    from ..deepinv_core.solver.fitted_walk import Walk
    from .base_model import Base
    from .latents import LatentCache
    from .run import Run
    from .validation import Checks

CLOSING: Final = "closing fit"
"""Of the validation's rows, in the place of a stage."""


def close(run: Run, photos: int, base: Base, latents: LatentCache, checks: Checks) -> None:
    """Give the trained network the fits that do better than it does alone on held-out images, and save it.

    Args:
        run: at its end.
        photos: of the training, to fit on; 0 for no fit.
        base: the base model.
        latents: to fit on, and those held out.
        checks: a fit for each N and K of them.
    """
    network, held = run.trainee.average, held_out(latents, checks, run.workers)
    if not photos or not held or any(row["stage"] == CLOSING for row in run.rows):
        return
    walks, asked = _fits(run, photos, base, latents, checks)
    closed: Any = copy.copy(network)  # of the same tensors
    closed.config = with_closing(network.config, _plain(walks))
    levels = [validate_solver(one, held, base, checks, run.validating) for one in (network, closed)]
    better = [after["latent_snr_db"] > before["latent_snr_db"] for before, after in zip(*levels, strict=True)]
    run.trainee.close(_plain(walk for walk, kept in zip(walks, better, strict=True) if kept))
    run.position.evaluations += asked
    run.validated(CLOSING, [pair[kept] for pair, kept in zip(zip(*levels, strict=True), better, strict=True)])
    run.save()


def _fits(run: Run, photos: int, base: Base, latents: LatentCache, checks: Checks) -> tuple[list[Walk], int]:
    """A fit for each N and K, in the order of :func:`.validation.validate_solver`; and the base evaluations."""
    batch = next(latents.batches(photos, run.seed))
    clean = batch.latents.to(base.device, torch.float32)
    velocity, predict = _InParts(base.condition(batch.names).velocity, base), Predictor(run.trainee.average).predict
    walks, asked = [], 0
    for steps in checks.steps:
        for refine in checks.refine:
            grid = base.grid(steps, clean)
            walks.append(fit_walk(velocity, clean, grid, refine, predict=predict, callback=run.closing))
            asked += len(clean) * velocity.cost * fit_evaluations(steps, refine, predicted=True)
    return walks, asked


def _plain(walks: Iterable[Walk]) -> list[dict[str, Any]]:
    return [walk.plain() for walk in walks]


class _InParts:
    """A velocity that is asked for fewer latents at once where memory runs out."""

    def __init__(self, velocity: Velocity, base: Base) -> None:
        self._velocity, self._base = velocity, base
        self.sigma_min, self.cost = velocity.sigma_min, velocity.cost

    def __call__(self, z: Tensor, sigma: float) -> Tensor:
        return in_parts(len(z), lambda rows: self._velocity(z[rows], sigma), torch.cat, self._base.free)
