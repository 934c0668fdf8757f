"""EasyInv's mixing (arXiv 2408.05159), which DeepInv's released code applies too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..flow import CountedVelocity
from ..integrator import Advance, Rule, Step


@dataclass(frozen=True)
class Mixed:
    """After ``rule``'s step, ``z_{i+1} <- eta*z_{i+1} + (1-eta)*z_i`` for ``start*N < i < (start+length)*N``.

    The values are EasyInv's for SD3. No evaluations of its own; the round trip is not of any order, since
    the latent is deliberately held back.
    """

    rule: Rule
    eta: float = 0.9
    begin: float = 0.05
    length: float = 0.35

    def start(self, z: torch.Tensor, carried: Mapping[str, torch.Tensor]) -> Any:
        """The inner rule's state."""
        return self.rule.start(z, carried)

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: Any) -> Advance:
        """The inner rule's step, then the mix inside the window."""
        advance = self.rule.step(v, z, step, state)
        if self.begin * step.count < step.index < (self.begin + self.length) * step.count:
            return advance._replace(z=self.eta * advance.z + (1 - self.eta) * z)
        return advance
