"""FlowEdit (arXiv 2412.08629): an edit without an inversion, by the difference of two velocities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..flow import CountedVelocity, Velocity
from ..integrator import Advance, Step


@dataclass(frozen=True)
class FlowEdit:
    """``z_edit += dsigma*(v(z_tar, target) - v(z_src, source))``, one fresh noise n a step shared by both.

    ``z_src = (1 - sigma)*z_0 + sigma*n`` and ``z_tar = z_edit + z_src - z_0``. Walked down from a sigma below 1 (the
    skipped steps); on the last ``refine`` steps z_tar itself is sampled under the target alone. Two evaluations a
    step, one in the last ones; with guidance twice that.

    Attributes:
        source: velocity under the source prompt; the integrator's is the target's.
        refine: last steps sampled plainly.
        seed: of the noises.
    """

    source: Velocity
    refine: int = 0
    seed: int = 0

    def start(self, z: torch.Tensor, carried: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """``z`` is z_0, and the edit begins there."""
        return z

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: torch.Tensor) -> Advance:
        """One step of the edit; ``state`` is z_0."""
        sampled = step.index < self.refine
        if sampled and step.index < min(self.refine, step.count) - 1:  # z is z_tar since the first of these steps
            return Advance(z + step.h * v(z, step.sigma), state)
        noise = self._noise(z, step.index)
        source = (1 - step.sigma) * state + step.sigma * noise
        target = z + source - state
        if sampled:
            return Advance(target + step.h * v(target, step.sigma), state)
        difference = v(target, step.sigma) - v.of(self.source, source, step.sigma)
        return Advance(z + step.h * difference, state)

    def _noise(self, like: torch.Tensor, index: int) -> torch.Tensor:
        """Of the step alone, drawn on the CPU so that every device gets the same."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)
