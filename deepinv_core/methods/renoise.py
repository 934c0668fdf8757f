"""Averaged fixed-point iterates: ReNoise (arXiv 2403.14602) and FTEdit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..flow import relative_error
from .entry import Cost, Entry, refine_option
from .implicit import FixedPointMap, Implicit, TargetEuler


@dataclass(frozen=True)
class Averaged:
    """Fixed-point iteration whose result is the mean of its last ``window`` velocities, the guess's own among them.

    ReNoise: 9 iterations, evaluations 8 to 10; FTEdit: 3, all but the guess. With fewer iterations than the window is
    long, all velocities count.

    Attributes:
        refine: iterations.
        window: velocities in the mean; 0 for one an iteration.
    """

    refine: int = refine_option()
    window: int = 0

    def __call__(self, fixed_point: FixedPointMap, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Iterate and average."""
        velocities, residual = [eps], None
        for _ in range(self.refine):
            new = fixed_point(eps)
            residual, eps = relative_error(new, eps), new
            velocities = [*velocities, eps][-(self.window or self.refine) :]
        return torch.stack(velocities).mean(0), residual


RENOISE = Entry(
    "renoise", "ReNoise", Implicit(TargetEuler(), Averaged(9, window=3)), cost=Cost(1, refine=1), source="2403.14602"
)
FTEDIT = Entry("ftedit", "FTEdit averaging", Implicit(TargetEuler(), Averaged(3)), cost=Cost(1, refine=1))
