"""Uni-Inv (UniEdit-Flow, arXiv 2504.13109): the last step's velocity as the guess; and the last two, extrapolated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..flow import CountedVelocity
from .entry import Cost, Entry
from .fixed_point import Picard
from .implicit import Implicit, Point


@dataclass(frozen=True)
class LastVelocity:
    """The velocity the last step ended with. Free."""

    uses_history: bool = True

    def __call__(self, v: CountedVelocity, point: Point) -> torch.Tensor:
        """Guess without an evaluation."""
        return point.history[-1].velocity


@dataclass(frozen=True)
class Extrapolated:
    """Linear extrapolation in sigma of the last two velocities (ours); ``2*v_i - v_{i-1}`` on a uniform grid. Free."""

    uses_history: bool = True

    def __call__(self, v: CountedVelocity, point: Point) -> torch.Tensor:
        """Guess without an evaluation; in the first step there is one velocity only, and it is taken as it is."""
        last, slope = point.history[-1], point.slope()
        return last.velocity if slope is None else last.velocity + (point.step.sigma_next - last.sigma) * slope


COST = Cost(0, refine=1, once=1)
UNI_INV = Entry("uni_inv", "Uni-Inv (UniEdit-Flow)", Implicit(LastVelocity(), Picard(1)), cost=COST)
UNI_INV_2 = Entry("uni_inv_2", "Uni-Inv, extrapolated guess", Implicit(Extrapolated(), Picard(1)), cost=COST)
