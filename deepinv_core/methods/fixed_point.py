"""Plain fixed-point iteration (AIDI, arXiv 2309.04907)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..flow import relative_error
from .entry import Cost, Entry, refine_option, tolerance_option
from .implicit import Best, Done, FixedPointMap, Implicit, TargetEuler


@dataclass(frozen=True)
class Picard:
    """``eps <- v(z_i + h*eps, sigma_{i+1})``, ``refine`` times.

    With a ``tolerance`` above 0 a sample whose relative residual reaches it is left alone, and the iteration
    ends when all have; that test copies one number to the host each time, so it is off by default.
    """

    refine: int = refine_option()
    tolerance: float = tolerance_option()

    def __call__(self, fixed_point: FixedPointMap, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Iterate."""
        residual, done, best = None, Done(self.tolerance), Best()
        for _ in range(self.refine):
            new = fixed_point(eps)
            latest = relative_error(new, eps)
            residual = done.keep(residual, latest)
            best.see(eps, residual)
            eps = done.keep(eps, new)
            if done.update(latest):
                break
        return best.or_last(eps, residual)


FIXED_POINT = Entry("fixed_point", "Fixed point / AIDI", Implicit(TargetEuler(), Picard(3)), cost=Cost(1, refine=1))
