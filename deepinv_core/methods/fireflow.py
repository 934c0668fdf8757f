"""FireFlow (arXiv 2412.07517): the midpoint rule at the price of Euler, the same both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..flow import CountedVelocity
from ..integrator import Advance, Step
from .entry import Cost, Entry


@dataclass(frozen=True)
class ReusedMidpoint:
    """Midpoint whose half step uses the midpoint velocity of the step before. NFE N + 1, order 2."""

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """No velocity yet: the first step evaluates one."""
        return None

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: torch.Tensor | None) -> Advance:
        """Half a step with the old velocity, then the whole one with the new."""
        half = step.h / 2
        velocity = v(z, step.sigma) if state is None else state
        middle = v(z + half * velocity, step.sigma + half)
        return Advance(z + step.h * middle, middle)


FIREFLOW = Entry(
    "fireflow",
    "FireFlow",
    ReusedMidpoint(),
    ReusedMidpoint(),
    cost=Cost(once=1),
    cost_back=Cost(once=1),
    source="2412.07517",
)
