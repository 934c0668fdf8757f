"""Euler's explicit step: the way back of most methods, and the plainest inversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..flow import CountedVelocity
from ..integrator import Advance, Step


@dataclass(frozen=True)
class Euler:
    """``z <- z + h * v(z, sigma)``: downwards it is Euler sampling, upwards inversion at the source sigma."""

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> None:
        """Nothing to remember."""

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: Any) -> Advance:
        """One evaluation, where ``z`` is."""
        return Advance(z + step.h * v(z, step.sigma))
