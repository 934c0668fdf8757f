"""DeepInv (arXiv 2601.01487): a trained network corrects the noise of target-sigma Euler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from ..flow import CountedVelocity
from .implicit import Point, TargetEuler

Solver = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""``(velocity e, latent z_i, latent_clean z_0, sigma_{i+1}) -> eps*``: a network with its conditioning bound."""


class SolverNetwork(Protocol):
    """A solver network as :class:`..solver.DeepInvSolver` is called."""

    def __call__(
        self,
        *,
        velocity: torch.Tensor,
        latent: torch.Tensor,
        latent_clean: torch.Tensor,
        sigma: torch.Tensor,
        context: torch.Tensor | None,
        pooled: torch.Tensor | None,
    ) -> torch.Tensor:
        """All batched, sigma ``[B]`` in [0, 1]."""
        ...


def bind(network: SolverNetwork, context: torch.Tensor | None, pooled: torch.Tensor | None) -> Solver:
    """A network with its conditioning, context ``[1, T, W]`` and pooled ``[1, P]``, as the step rule calls it."""

    @torch.no_grad()
    def solver(e: torch.Tensor, z: torch.Tensor, z_0: torch.Tensor, sigma: float) -> torch.Tensor:
        time = torch.full((len(z),), sigma, device=z.device, dtype=torch.float32)
        return network(velocity=e, latent=z, latent_clean=z_0, sigma=time, context=context, pooled=pooled)

    return solver


@dataclass(frozen=True)
class Corrected:
    """``eps* = e + g_phi(e, z_i, z_0, sigma_{i+1}, c)`` with ``e = v(z_i, sigma_{i+1}, c)``. One base evaluation."""

    solver: Solver
    uses_history: bool = False

    def __call__(self, v: CountedVelocity, point: Point) -> torch.Tensor:
        """Target-sigma Euler's noise, corrected by the network."""
        e = TargetEuler()(v, point)
        return self.solver(e, point.z, point.latent_clean, point.step.sigma_next).to(e.dtype)
