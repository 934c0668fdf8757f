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
from ..deepinv_core.solver.fit import fit_evaluations
from ..deepinv_core.solver.fit_grid import fit_on_grids, trip_evaluations
from .validation import held_out, validate_baselines, validate_solver

if TYPE_CHECKING:
    from ..deepinv_core.solver import Network
    from ..deepinv_core.solver.fitted_walk import Walk
    from .base_model import Base
    from .latents import LatentCache
    from .recipes.objective import Objective
    from .run import Run
    from .validation import Checks

CLOSING: Final = "closing fit"
"""Of the validation's rows, in the place of a stage."""

VARIANTS: Final = 2
"""Of a fit: with the network's guess, and without it."""


def close(
    run: Run, objective: Objective, base: Base, latents: LatentCache, checks: Checks, alone: list[dict[str, Any]]
) -> None:
    """Give the trained network the fits that do better than it does alone on held-out images, and save it.

    For each N and K of the checks; on the model's grid, and on the best of others where that is better still, where the
    methods that need no training are then asked too.

    Args:
        run: at its end.
        objective: says how many photos of the training to fit on, 0 for no fit, and how many grids to try.
        base: the base model.
        latents: to fit on, and those held out.
        checks: what is validated.
        alone: what these say of the network alone; empty where they have not been asked since it came to its end.
    """
    network, held = run.trainee.average, held_out(latents, checks, run.workers)
    if not objective.closing or not held or any(row["stage"] == CLOSING for row in run.rows):
        return
    fits = _fits(run, objective, base, latents, checks)
    tried = [network, *(_with(network, walks) for walks in fits)]
    rows = [alone] if alone else []
    rows += [validate_solver(one, held, base, checks, run.validating) for one in tried[len(rows) :]]
    kept: list[Walk] = []
    best, grids = [], []
    for at in range(len(rows[0])):
        levels = [row[at]["latent_snr_db"] for row in rows]
        on_model, anywhere = (max(some, key=levels.__getitem__) for some in (range(1 + VARIANTS), range(len(rows))))
        best.append(rows[anywhere][at])
        kept += [fits[one - 1][at] for one in dict.fromkeys((anywhere, on_model)) if one]
        grids += [fits[anywhere - 1][at].sigmas] if anywhere > VARIANTS else []
    run.trainee.close(_with(network, kept).config)
    rivals = validate_baselines(held, base, checks, run.validating, grids) if grids else []
    run.validated(CLOSING, [*best, *_better(rivals, run.rows)])
    run.save()


def _better(rivals: Iterable[dict[str, Any]], before: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each method and N the best row of those on other grids, where it is above that on the model's."""
    found = {(row["method"], row["refine"], row["steps"]): row for row in before if row["method"] != "deepinv"}
    better = {}
    for row in rivals:
        key = (row["method"], row["refine"], row["steps"])
        if row["latent_snr_db"] > found[key]["latent_snr_db"]:
            found[key] = better[key] = row
    return list(better.values())


def _fits(run: Run, objective: Objective, base: Base, latents: LatentCache, checks: Checks) -> list[list[Walk]]:
    """Fits for each N and K, in the order of :func:`.validation.validate_solver`.

    With the network and without it, on the model's grid; then, where there is a search for one, on the best grid.
    """
    batch = next(latents.batches(objective.closing, run.seed))
    clean = batch.latents.to(base.device, torch.float32)
    velocity = _InParts(base.condition(batch.names).velocity, base)
    on_model, on_own = [], []
    for predict in (partial(_predict, run.trainee.average, base), None):
        walks = []
        for steps, refine in product(checks.steps, checks.refine):
            grid, rounds = base.grid(steps, clean), objective.closing_rounds
            found = fit_on_grids(velocity, clean, clean, grid, refine, rounds, predict=predict, callback=run.closing)
            asked = fit_evaluations(steps, refine, predicted=predict is not None) + trip_evaluations(steps, refine)
            run.position.evaluations += len(found) * len(clean) * velocity.cost * asked
            walks.append((found[0][0], max(found, key=lambda one: one[1].level)[0]))
        on_model.append([one for one, _ in walks])
        on_own.append([one for _, one in walks])
    return on_model + (on_own if objective.closing_rounds else [])


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
