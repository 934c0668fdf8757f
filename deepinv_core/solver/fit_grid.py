"""Where a walk's error comes from, and the grid that shares it out evenly among the steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ..flow import CountedVelocity, Velocity, norm
from ..integrator import Progress, integrate
from ..inversion import latent_snr
from .fit import fit_walk
from .fitted_walk import FittedRule, Predict, Walk

DAMPING: Final = 0.7
"""Of a move towards the even grid: the errors' dependence on the grid is only known about."""


def trip_evaluations(steps: int, refine: int) -> int:
    """Evaluations that :func:`round_trip` makes for each sample."""
    return 1 + steps * (refine + 3)


@dataclass(frozen=True)
class Trip:
    """A walk there and back.

    Attributes:
        snr: latent SNR of each sample in dB, ``[B]``.
        noise: ``z_N``.
        residual: ``|eps - v(z_{i+1}, sigma_{i+1})| / |eps|``, mean over steps and samples.
        errors: what each step's error has become when the way back has reached the image, ``[N]``: root mean squares
            over the samples, by :func:`round_trip`'s estimate.
    """

    snr: Tensor
    noise: Tensor
    residual: float
    errors: Tensor

    @property
    def level(self) -> float:
        """Mean latent SNR, dB."""
        return float(self.snr.mean())


@torch.no_grad()
def round_trip(velocity: Velocity, latents: Tensor, walk: Walk, predict: Predict | None = None) -> Trip:
    """Walk up, with a network's guess where that is one of the walk's features, and back with Euler.

    Step i leaves the error ``h_i d_i``, ``d_i = eps_i - v(z_{i+1}, sigma_{i+1})``, which the way back below it shrinks
    or stretches. By how much is read off the errors accumulated above it, which go through the same steps:
    ``E_i = (step back of E_{i+1}) + h_i d_i``.
    """
    up = integrate(velocity, latents, walk.sigmas, FittedRule((walk,), predict), keep_trajectory=True)
    grid, path = walk.sigmas.tolist(), up.trajectory
    v = CountedVelocity(velocity)
    back = path[-1]
    left, residual = [0.0] * walk.steps, [0.0] * walk.steps
    kept = [1.0] * walk.steps  # of an error above step i, what is left of it below
    above: Tensor | None = None
    for i in reversed(range(walk.steps)):
        v.step, h = i, grid[i + 1] - grid[i]
        there = v(path[i + 1], grid[i + 1])
        taken = there if above is None else v(back, grid[i + 1])
        eps = (path[i + 1] - path[i]) / h
        own = h * (eps - there)
        back = back - h * taken
        error = back - path[i]
        if above is not None:
            kept[i] = float(norm(error - own).square().mean() / norm(above).square().mean().clamp_min(1e-30)) ** 0.5
        left[i] = float(norm(own).square().mean()) ** 0.5
        residual[i] = float((norm(eps - there) / norm(eps).clamp_min(1e-30)).mean())
        above = error
    v.raise_if_not_finite()
    errors = torch.tensor(left, dtype=torch.float64)
    errors[1:] *= torch.tensor(kept[:-1], dtype=torch.float64).cumprod(0)
    return Trip(latent_snr(back, latents).cpu(), up.z, sum(residual) / walk.steps, errors)


def fit_on_grids(
    velocity: Velocity,
    latents: Tensor,
    judged: Tensor,
    sigmas: Tensor,
    refine: int,
    rounds: int,
    *,
    predict: Predict | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> list[tuple[Walk, Trip]]:
    """A walk fitted on a grid, then on each of the grids that ``rounds`` of the search lead to; one step moves none.

    Args:
        velocity: as :func:`.fit.fit_walk` takes it, like ``latents``, ``refine``, ``predict`` and ``callback``.
        latents: to fit on.
        judged: each walk's round trip is of these, and the next grid shares out its errors.
        sigmas: the first grid, ascending ``[N + 1]``.
        refine: K.
        rounds: of the search.
        predict: a network.
        callback: called after each step of a fit.
    """
    found: list[tuple[Walk, Trip]] = []
    for _ in range(1 + (rounds if len(sigmas) > 2 else 0)):
        walk = fit_walk(velocity, latents, sigmas, refine, predict=predict, callback=callback)
        trip = round_trip(velocity, judged, walk, predict)
        sigmas = even_grid(sigmas, trip.errors, refine)
        found.append((walk, trip))
    return found


def even_grid(sigmas: Tensor, errors: Tensor, refine: int) -> Tensor:
    """The grid moved so that the steps' errors come out alike (equidistribution, de Boor 1973), its ends kept.

    Args:
        sigmas: ascending ``[N + 1]``.
        errors: of each step on it, ``[N]``, as :attr:`Trip.errors`; taken to grow with h to the power ``3 + refine``.
        refine: K.
    """
    h = sigmas.diff()
    density = errors.clamp_min(1e-30) ** (1 / (3 + refine)) / h
    density = density / (density * h).sum() * (sigmas[-1] - sigmas[0])
    share = torch.cat([torch.zeros(1, dtype=torch.float64), (density**DAMPING * h).cumsum(0)])
    wanted = np.linspace(0, float(share[-1]), len(sigmas))
    moved = torch.from_numpy(np.interp(wanted, share.numpy(), sigmas.numpy()))
    moved[0], moved[-1] = sigmas[0], sigmas[-1]
    return moved
