"""RF-Inversion (arXiv 2410.10792): flows controlled towards a fixed noise on the way up, z_0 on the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..flow import CountedVelocity
from ..integrator import Advance, Step
from .entry import Entry, option


@dataclass(frozen=True)
class TowardsNoise:
    """``v + gamma*((n - z)/(1 - sigma) - v)`` at the source sigma; n one noise for the whole batch. NFE N.

    ``gamma`` 0 is source-sigma Euler, 1 a straight line to ``n`` whatever the model says.
    """

    gamma: float = option(
        0.5,
        0.0,
        1.0,
        "How strongly the way up is pulled towards one random noise: 0 leaves it to the model. Paper: 0.5.",
    )
    seed: int = option(0, 0, 2**64 - 1, "Which noise it pulls towards.")

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Draw n from the seed, on the CPU so that every device gets the same."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn((1, *z.shape[1:]), generator=generator, dtype=torch.float32).to(z)

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: torch.Tensor) -> Advance:
        """Euler step of the controlled velocity."""
        unconditional = v(z, step.sigma)
        towards = (state - z) / (1 - step.sigma)
        return Advance(z + step.h * torch.lerp(unconditional, towards, self.gamma), state)


@dataclass(frozen=True)
class TowardsImage:
    """The way back: ``v + eta*((z - z_0)/sigma - v)`` for the first ``eta_share`` of the steps, Euler after. NFE N.

    The straight line from z_0 through z has velocity ``(z - z_0)/sigma``, so ``eta`` 1 pulls back to the photo.
    """

    eta: float = option(
        0.9, 0.0, 1.0, "How strongly the way back is pulled towards the photo: more keeps more of it. Paper: 0.9."
    )
    eta_share: float = option(
        0.25, 0.0, 1.0, "On which share of the way back eta acts, from the noise. Paper: a quarter."
    )

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The clean latent that the inversion kept."""
        return carried["latent_clean"].to(z)

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: torch.Tensor) -> Advance:
        """Euler step of the controlled velocity."""
        velocity = v(z, step.sigma)
        if step.count - 1 - step.index < self.eta_share * step.count:
            velocity = torch.lerp(velocity, (z - state) / step.sigma, self.eta)
        return Advance(z + step.h * velocity, state)


RF_INVERSION = Entry("rf_inversion", "RF-Inversion", TowardsNoise(), TowardsImage(), source="2410.10792", kept="+z_0")
