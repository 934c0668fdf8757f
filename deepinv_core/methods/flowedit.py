"""FlowEdit (arXiv 2412.08629): an edit without an inversion, by the difference of two velocities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..flow import CountedVelocity, Velocity
from ..integrator import Advance, Step


@dataclass(frozen=True)
class FlowEdit:
    """``z_edit += dsigma*(v(z_tar, target) - v(z_src, source))``, one fresh noise n a step shared by both.

    The images of a batch share it too. ``z_src = (1 - sigma)*z_0 + sigma*n`` and ``z_tar = z_edit + z_src - z_0``.
    Walked down from a sigma below 1 (the skipped steps); on the last ``refine`` steps z_tar itself is sampled under
    the target alone. Two evaluations a step, one in the last ones; with guidance twice that.

    Attributes:
        source: velocity under the source prompt; the integrator's is the target's.
        refine: last steps sampled plainly.
        seed: of the noises.
        mask: 1 where the photo is edited and 0 where it comes back as it was, broadcastable to a latent; None for
            all of it.
    """

    source: Velocity
    refine: int = 0
    seed: int = 0
    mask: torch.Tensor | None = None

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """``z`` is z_0, and the edit begins there."""
        return z

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: torch.Tensor) -> Advance:
        """One step of the edit; ``state`` is z_0."""
        if step.index < self.refine:
            return self._sampled(v, z, step, state)
        source = self._noised(state, step.sigma, step.index)
        target = z + source - state
        difference = v(target, step.sigma) - v.of(self.source, source, step.sigma)
        return Advance(self._kept(z + step.h * difference, state), state)

    def _sampled(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: torch.Tensor) -> Advance:
        """One of the last steps: the first of them makes z_tar of the edit, and from there on z is z_tar."""
        first = min(self.refine, step.count) - 1
        if step.index == first:
            z = z + self._noised(state, step.sigma, first) - state
        background = state if self.mask is None else self._noised(state, step.sigma_next, first)
        return Advance(self._kept(z + step.h * v(z, step.sigma), background), state)

    def _kept(self, z: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
        """``z`` with the photo outside the mask."""
        return z if self.mask is None else torch.lerp(background, z, self.mask.to(z))

    def _noised(self, clean: torch.Tensor, sigma: float, index: int) -> torch.Tensor:
        """The photo at a sigma, with the noise of a step."""
        return (1 - sigma) * clean + sigma * self._noise(clean, index)

    def _noise(self, like: torch.Tensor, index: int) -> torch.Tensor:
        """Of the step alone, drawn on the CPU: one for every device, and for every image, which comes out as alone."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)
        return torch.randn((1, *like.shape[1:]), generator=generator, dtype=torch.float32).to(like)
