"""Leapfrog, the rule behind BDIA (arXiv 2307.10829) and BELM (arXiv 2410.07273): reversible from two latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..flow import CountedVelocity
from ..integrator import Advance, Step
from .entry import Cost, Entry


class _Pair(NamedTuple):
    sigma: float
    z: torch.Tensor


@dataclass(frozen=True)
class Leapfrog:
    """``z_{i+1} = z_{i-1} + (sigma_{i+1} - sigma_{i-1}) * v(z_i, sigma_i)``; the first step is target-sigma Euler.

    NFE N; order 2 on a uniform grid.
    """

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> _Pair | None:
        """No latent before the first."""
        return None

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: _Pair | None) -> Advance:
        """Jump over ``z`` from the latent before it."""
        here = _Pair(step.sigma, z)
        if state is None:
            return Advance(z + step.h * v(z, step.sigma_next), here)
        return Advance(state.z + (step.sigma_next - state.sigma) * v(z, step.sigma), here)


@dataclass(frozen=True)
class LeapfrogBack:
    """The same rule downwards, from the pair ``z_N``, ``z_{N-1}``: exact up to rounding. NFE N - 1."""

    def start(
        self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]
    ) -> torch.Tensor | _Pair:
        """The last latent but one, which the inversion kept."""
        return carried["previous"].to(z)

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: torch.Tensor | _Pair) -> Advance:
        """The first step is free: its result is the kept latent."""
        here = _Pair(step.sigma, z)
        if isinstance(state, torch.Tensor):
            return Advance(state, here)
        return Advance(state.z + (step.sigma_next - state.sigma) * v(z, step.sigma), here)


LEAPFROG = Entry(
    "leapfrog", "Leapfrog (BDIA / BELM)", Leapfrog(), LeapfrogBack(), cost_back=Cost(once=-1), kept="+pair"
)
