"""Direct alignment (arXiv 2605.02417): an exact way back for target-sigma Euler, given its trajectory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..flow import CountedVelocity
from ..integrator import Advance, Step
from .entry import Entry
from .implicit import Implicit, TargetEuler


@dataclass(frozen=True)
class Aligned:
    """``z_i = z_{i+1} - h*v(z_{i+1} + Delta_i, sigma_{i+1})`` with ``Delta_i = z_i - z_{i+1}`` of the inversion. NFE N.

    On the inversion's own path the velocity is evaluated exactly where the inversion evaluated it, so the
    step undoes it up to rounding; off the path (another prompt) the offset carries over.
    """

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Every offset, ``[N, B, ...]``, from the kept trajectory ``[N + 1, B, ...]`` (image first)."""
        trajectory = carried["trajectory"].to(z)
        return trajectory[:-1] - trajectory[1:]

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: torch.Tensor) -> Advance:
        """One evaluation, at the latent moved by its offset."""
        return Advance(z + step.h * v(z + state[step.index], step.sigma), state)


DIRECT_ALIGNMENT = Entry(
    "direct_alignment", "Direct alignment", Implicit(TargetEuler()), Aligned(), source="2605.02417", kept="exact"
)
