"""RF-Solver (arXiv 2411.04746): the second-order midpoint rule, the same both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..flow import CountedVelocity
from ..integrator import Advance, Step
from .entry import Cost, Entry


@dataclass(frozen=True)
class Midpoint:
    """``z <- z + h * v(z + h/2 * v(z, sigma), sigma + h/2)``. NFE 2N, order 2."""

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> None:
        """Nothing to remember."""

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: Any) -> Advance:
        """Half a step, then the whole one with the velocity found there."""
        half = step.h / 2
        middle = z + half * v(z, step.sigma)
        return Advance(z + step.h * v(middle, step.sigma + half))


RF_SOLVER = Entry(
    "rf_solver", "RF-Solver, midpoint", Midpoint(), Midpoint(), cost=Cost(2), cost_back=Cost(2), source="2411.04746"
)
