"""Anderson-accelerated fixed points, from target-sigma Euler's guess or from an extrapolated one (ours)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..flow import CountedVelocity, norm, per_sample
from .entry import Cost, Entry, refine_option, tolerance_option
from .implicit import FixedPointMap, Implicit, Point, TargetEuler, first_known, iterate
from .uni_inv import Extrapolated


@dataclass(frozen=True)
class Anderson:
    """Fixed-point iteration accelerated by the last two iterates (Anderson, m = 1), ``refine`` evaluations.

    With residuals ``f = g(eps) - eps``, the next point is ``g - gamma*(g - g_last)``, gamma the least-squares
    weight of each sample, regularised by ``ridge * |f|^2``; where a residual grew, the plain step is taken.
    """

    refine: int = refine_option()
    tolerance: float = tolerance_option()
    ridge: float = 1e-6

    def __call__(self, fixed_point: FixedPointMap, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Iterate."""
        last: tuple[torch.Tensor, torch.Tensor] | None = None

        def mix(eps: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
            nonlocal last
            f = g - eps
            mixed = g if last is None else self._mix(g, f, *last)
            last = (g, f)
            return mixed

        return iterate(fixed_point, eps, self.refine, self.tolerance, mix)

    def _mix(self, g: torch.Tensor, f: torch.Tensor, g_last: torch.Tensor, f_last: torch.Tensor) -> torch.Tensor:
        df = f - f_last
        size = norm(f)
        gamma = (f * df).flatten(1).sum(1) / (
            norm(df).square() + self.ridge * size.square() + torch.finfo(f.dtype).tiny
        )
        gamma = torch.where(size > norm(f_last), 0, gamma)
        return g - per_sample(gamma, g) * (g - g_last)


@dataclass(frozen=True)
class ExtrapolatedFromFirst:
    """:class:`.uni_inv.Extrapolated`, but the walk's first velocity is that of :func:`.implicit.first_known`.

    Free after it. Better than the other where iterations follow; without them it is not.
    """

    uses_history: bool = False

    def __call__(self, v: CountedVelocity, point: Point) -> torch.Tensor:
        """Guess; one evaluation in the first step."""
        return Extrapolated()(v, point) if point.history else first_known(v, point.z, point.step).velocity


ANDERSON = Entry(
    "anderson", "Anderson-accelerated fixed point", Implicit(TargetEuler(), Anderson(3)), cost=Cost(1, refine=1)
)
ANDERSON_EXTRAPOLATED = Entry(
    "anderson_extrapolated",
    "Anderson from an extrapolated guess",
    Implicit(ExtrapolatedFromFirst(), Anderson(3)),
    cost=Cost(0, refine=1, once=1),
)
