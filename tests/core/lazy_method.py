"""A method as someone would add it: what its file has, a rule with its option, and an entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfyui_deepinv.deepinv_core.integrator import Advance
from comfyui_deepinv.deepinv_core.methods import Cost, Entry, option


@dataclass(frozen=True)
class Lazy:
    """Leaves a share of each step out."""

    laziness: float = option(0.25, 0.0, 2.0, "How much of each step is left out.")

    def start(self, z: Any, grid: Any, carried: Any) -> None:
        """Nothing to remember."""

    def step(self, v: Any, z: Any, step: Any, state: Any) -> Advance:
        """Two evaluations."""
        mean = (v(z, step.sigma) + v(z, step.sigma_next)) / 2
        return Advance(z + (1 - self.laziness) * step.h * mean)


LAZY = Entry("lazy", "Lazy steps", Lazy(), cost=Cost(2), source="2600.00000")
