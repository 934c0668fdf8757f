"""Ways back that keep to the inversion's own trajectory: for edits that keep a layout or a background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..flow import CountedVelocity
from ..integrator import Advance, Rule, Step


@dataclass(frozen=True)
class Anchored:
    """After ``rule``'s step, ``z_i <- (1 - weight)*z_i + weight*z*_i`` on the noisy part of the way back.

    ``z*_i`` is the inversion's latent at the same sigma. Weight 1/2 on the first half is the assisted reconstruction of
    DeepInv's released code (arXiv 2601.01487); the code pairs it with the latent one step noisier.

    Attributes:
        rule: the way back.
        trajectory: the inversion's latents ``[N + 1, B, C, ...]``, image first.
        weight: in [0, 1].
        share: of the steps, from the noise.
    """

    rule: Rule
    trajectory: torch.Tensor
    weight: float
    share: float

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> Any:
        """The inner rule's state."""
        return self.rule.start(z, grid, carried)

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: Any) -> Advance:
        """The inner rule's step, then the pull."""
        advance = self.rule.step(v, z, step, state)
        if len(self.trajectory) - 2 - step.index >= self.share * (len(self.trajectory) - 1):
            return advance
        return advance._replace(z=torch.lerp(advance.z, self.trajectory[step.index].to(z), self.weight))


@dataclass(frozen=True)
class Masked:
    """After ``rule``'s step, the inversion's own latent outside the mask: the background comes back exactly.

    Attributes:
        rule: the way back.
        trajectory: the inversion's latents ``[N + 1, B, C, ...]``, image first.
        mask: broadcastable to a latent; 1 where it is edited, 0 where it is kept.
    """

    rule: Rule
    trajectory: torch.Tensor
    mask: torch.Tensor

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> Any:
        """The inner rule's state."""
        return self.rule.start(z, grid, carried)

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: Any) -> Advance:
        """The inner rule's step, then the background."""
        advance = self.rule.step(v, z, step, state)
        return advance._replace(z=torch.lerp(self.trajectory[step.index].to(z), advance.z, self.mask.to(z)))
