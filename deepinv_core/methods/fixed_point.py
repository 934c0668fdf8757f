"""Plain fixed-point iteration (AIDI, arXiv 2309.04907)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .entry import Cost, Entry, refine_option, tolerance_option
from .implicit import FixedPointMap, Implicit, TargetEuler, iterate


@dataclass(frozen=True)
class Picard:
    """``eps <- v(z_i + h*eps, sigma_{i+1})``, ``refine`` times; see :func:`.implicit.iterate` for the tolerance."""

    refine: int = refine_option()
    tolerance: float = tolerance_option()

    def __call__(self, fixed_point: FixedPointMap, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Iterate."""
        return iterate(fixed_point, eps, self.refine, self.tolerance, lambda _, new: new)


FIXED_POINT = Entry("fixed_point", "Fixed point / AIDI", Implicit(TargetEuler(), Picard(3)), cost=Cost(1, refine=1))
