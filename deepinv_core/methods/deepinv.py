"""DeepInv (arXiv 2601.01487): a trained network corrects the noise of target-sigma Euler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..flow import CountedVelocity
from .implicit import Point, TargetEuler

Solver = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""``(velocity e, latent z_i, latent_clean z_0, sigma_{i+1}) -> eps*``: a network with its conditioning bound."""


@dataclass(frozen=True)
class Corrected:
    """``eps* = e + g_phi(e, z_i, z_0, sigma_{i+1}, c)`` with ``e = v(z_i, sigma_{i+1}, c)`` (Sec. 3). One base evaluation."""

    solver: Solver
    uses_history: bool = False

    def __call__(self, v: CountedVelocity, point: Point) -> torch.Tensor:
        """Target-sigma Euler's noise, corrected by the network."""
        e = TargetEuler()(v, point)
        return self.solver(e, point.z, point.latent_clean, point.step.sigma_next).to(e.dtype)
