"""EasyInv's mixing (arXiv 2408.05159), which DeepInv's released code applies too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..flow import CountedVelocity
from ..integrator import Advance, Rule, Step
from .entry import Entry
from .implicit import Implicit, TargetEuler


def mix(
    z: torch.Tensor, z_next: torch.Tensor, step: Step, eta: float = 0.9, begin: float = 0.05, length: float = 0.35
) -> torch.Tensor:
    """``eta*z_{i+1} + (1-eta)*z_i`` for ``begin*N < i < (begin+length)*N``, else ``z_{i+1}``.

    The values are EasyInv's for SD3.
    """
    if begin * step.count < step.index < (begin + length) * step.count:
        return eta * z_next + (1 - eta) * z
    return z_next


@dataclass(frozen=True)
class Mixed:
    """``rule``'s step, then :func:`mix`.

    No evaluations of its own; the round trip is not of any order, since the latent is deliberately held back.
    """

    rule: Rule

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> Any:
        """The inner rule's state."""
        return self.rule.start(z, grid, carried)

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: Any) -> Advance:
        """The inner rule's step, then the mix inside the window."""
        advance = self.rule.step(v, z, step, state)
        return advance._replace(z=mix(z, advance.z, step))


EASYINV = Entry("easyinv", "EasyInv", Mixed(Implicit(TargetEuler())), source="2408.05159")
