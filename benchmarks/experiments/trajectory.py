"""Trajectories whose noise is known exactly, and how far a solver's is from it at each step.

A photograph is inverted with a well converged fixed-point iteration, and its noise is sampled back with Euler. On the
way back ``z_i = z_{i+1} - h_i*v(z_{i+1}, sigma_{i+1})`` holds to rounding, so the noise that a perfect inversion of
its end would give at step i is the velocity that was used there: the fixed point itself, whether or not iterating
finds it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...deepinv_core.flow import CountedVelocity
from ...deepinv_core.integrator import Step
from ...deepinv_core.inversion import invert
from ...deepinv_core.methods.implicit import Point
from ...deepinv_core.solver import Corrector, Network
from ..cases import Case
from .common import Setup


class Exact(NamedTuple):
    """A trajectory of sampling, image first, ``sigmas`` ascending ``[N + 1]``.

    Attributes:
        latents: z_i, ``[N + 1, B, C, h, w]``.
        noise: eps_i of the step from z_i to z_{i+1}, ``[N, B, C, h, w]``.
        guess: ``v(z_i, sigma_{i+1})``, what a corrector is given at z_i, ``[N, B, C, h, w]``.
    """

    sigmas: list[float]
    latents: Tensor
    noise: Tensor
    guess: Tensor

    def steps(self) -> list[Step]:
        """The steps, image first."""
        count = len(self.sigmas) - 1
        return [Step(i, count, self.sigmas[i], self.sigmas[i + 1]) for i in range(count)]


@lru_cache(maxsize=4)
@torch.no_grad()
def exact_trajectory(setup: Setup, steps: int, images: int) -> Exact:
    """The trajectory in N steps that ends near the first test photographs."""
    velocity, clean = setup.conditioned().velocity, setup.test.latents[:images]
    grid = setup.model.grid(steps, clean)
    z = invert(velocity, clean, grid, Case("anderson", 8).method_of()).noise
    counted, sigmas = CountedVelocity(velocity), grid.tolist()
    latents, noise = [z], []
    for i in reversed(range(steps)):
        noise.append(counted(z, sigmas[i + 1]))
        z = z - (sigmas[i + 1] - sigmas[i]) * noise[-1]
        latents.append(z)
    latents, noise = latents[::-1], noise[::-1]
    guess = [counted(latents[i], sigmas[i + 1]) for i in range(steps)]
    counted.raise_if_not_finite()
    return Exact(sigmas, torch.stack(latents), torch.stack(noise), torch.stack(guess))


@torch.no_grad()
def step_errors(setup: Setup, network: Network | None, exact: Exact) -> dict[str, Any]:
    """Mean squared errors of a corrector's noise against the exact one, image first; None for Euler's own guess.

    Returns:
        ``local``: each step taken from the exact z_i, ``[N]``; ``along``: on the inversion's own way from z_0, where
        the errors of the steps before are carried on, ``[N]``; ``own``: on that way, the noise against the velocity
        at the latent that it leads to, by which a step back would miss, ``[N]``; ``latent``: of z_{i+1} on that way,
        ``[N]``; ``back``: of z_0 after sampling back from where that way ends.
    """
    conditioned = setup.conditioned()
    solver = None if network is None else Corrector(network, conditioned.context, conditioned.pooled)
    clean, z = exact.latents[0], exact.latents[0]
    velocity, local, along, own, latent = CountedVelocity(conditioned.velocity), [], [], [], []
    for step in exact.steps():
        i = step.index
        guess, eps = exact.guess[i], velocity(z, step.sigma_next)
        if solver is not None:
            guess = solver.correct(guess, Point(exact.latents[i], clean, step, ()))
            eps = solver.correct(eps, Point(z, clean, step, ()))
        z = z + step.h * eps
        local.append(_mse(guess, exact.noise[i]))
        along.append(_mse(eps, exact.noise[i]))
        own.append(_mse(eps, velocity(z, step.sigma_next)))
        latent.append(_mse(z, exact.latents[i + 1]))
    velocity.raise_if_not_finite()
    for step in reversed(exact.steps()):
        z = z - step.h * velocity(z, step.sigma_next)
    return {"local": local, "along": along, "own": own, "latent": latent, "back": _mse(z, clean)}


def _mse(a: Tensor, b: Tensor) -> float:
    return float(f"{float((a.double() - b.double()).square().mean()):.4g}")
