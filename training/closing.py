"""The closing fit: a predictor's guess as one more feature of fitted steps, kept where it beats the network alone.

A network that is not trained enough is no good feature to begin a fit from: fitted steps without it are tried too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from ..deepinv_core.flow import Velocity
from ..deepinv_core.memory import in_parts
from ..deepinv_core.methods.implicit import Known, Point
from ..deepinv_core.solver import Predictor
from ..deepinv_core.solver.fit import fit_evaluations, fit_walk
from .validation import held_out, validate_solver

if TYPE_CHECKING:
    from ..deepinv_core.solver import Network
    from ..deepinv_core.solver.fitted_walk import Walk
    from .base_model import Base
    from .latents import LatentCache
    from .run import Run
    from .validation import Checks

CLOSING: Final = "closing fit"
"""Of the validation's rows, in the place of a stage."""


def close(run: Run, photos: int, base: Base, latents: LatentCache, checks: Checks, alone: list[dict[str, Any]]) -> None:
    """Give the trained network the fits that do better than it does alone on held-out images, and save it.

    Args:
        run: at its end.
        photos: of the training, to fit on; 0 for no fit.
        base: the base model.
        latents: to fit on, and those held out.
        checks: a fit for each N and K of them.
        alone: what these say of the network alone; empty where they have not been asked since it came to its end.
    """
    network, held = run.trainee.average, held_out(latents, checks, run.workers)
    if not photos or not held or any(row["stage"] == CLOSING for row in run.rows):
        return
    fits: list[list[Walk]] = _fits(run, photos, base, latents, checks)
    tried = [network, *(_with(network, walks) for walks in fits)]
    rows = [alone] if alone else []
    rows += [validate_solver(one, held, base, checks, run.validating) for one in tried[len(rows) :]]
    best = [max(range(len(tried)), key=lambda one: rows[one][at]["latent_snr_db"]) for at in range(len(rows[0]))]
    run.trainee.close(_with(network, [fits[one - 1][at] for at, one in enumerate(best) if one]).config)
    run.validated(CLOSING, [rows[one][at] for at, one in enumerate(best)])
    run.save()


def _fits(run: Run, photos: int, base: Base, latents: LatentCache, checks: Checks) -> list[list[Walk]]:
    """Fits for each N and K, in the order of :func:`.validation.validate_solver`: with the network, and without it."""
    batch = next(latents.batches(photos, run.seed))
    clean = batch.latents.to(base.device, torch.float32)
    velocity, found = _InParts(base.condition(batch.names).velocity, base), []
    for predict in (partial(_predict, run.trainee.average, base), None):
        walks = []
        for steps, refine in product(checks.steps, checks.refine):
            grid = base.grid(steps, clean)
            walks.append(fit_walk(velocity, clean, grid, refine, predict=predict, callback=run.closing))
            asked = fit_evaluations(steps, refine, predicted=predict is not None)
            run.position.evaluations += len(clean) * velocity.cost * asked
        found.append(walks)
    return found


def _with(network: Network, walks: Iterable[Walk]) -> Network:
    """The network, of the same tensors, with a closing fit of these walks."""
    made, plain = copy.copy(network), [walk.plain() for walk in walks]
    made.config = type(network.config).from_dict({**network.config.to_dict(), "closing": plain})
    return made


def _predict(network: Network, base: Base, point: Point) -> Tensor:
    """The network's guess; of fewer images at once where memory runs out."""

    def some(rows: slice) -> Tensor:
        history = tuple(Known(known.sigma, known.velocity[rows]) for known in point.history)
        return Predictor(network).predict(Point(point.z[rows], point.latent_clean[rows], point.step, history))

    return in_parts(len(point.z), some, torch.cat, base.free)


class _InParts:
    """A velocity that is asked for fewer latents at once where memory runs out."""

    def __init__(self, velocity: Velocity, base: Base) -> None:
        self._velocity, self._base = velocity, base
        self.sigma_min, self.cost = velocity.sigma_min, velocity.cost

    def __call__(self, z: Tensor, sigma: float) -> Tensor:
        return in_parts(len(z), lambda rows: self._velocity(z[rows], sigma), torch.cat, self._base.free)
