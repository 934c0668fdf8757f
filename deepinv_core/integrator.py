"""One loop for both directions: a grid, a step rule, and what is counted on the way.

Inversion and sampling differ only in the grid's direction and the rule (methods/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from .flow import CountedVelocity, Velocity


@dataclass(frozen=True)
class Step:
    """One interval of the grid, seen from where ``z`` is.

    Attributes:
        index: the interval ``[sigma_i, sigma_{i+1}]``, counted from the image: i.
        count: number of intervals N.
        sigma: flow time of ``z``.
        sigma_next: flow time it goes to.
    """

    index: int
    count: int
    sigma: float
    sigma_next: float

    @property
    def h(self) -> float:
        """Signed step ``sigma_next - sigma``: positive when inverting, negative when sampling."""
        return self.sigma_next - self.sigma


class Advance(NamedTuple):
    """What a rule returns: the next latent, its state, and the fixed-point residual ``[B]`` if it has one."""

    z: torch.Tensor
    state: Any = None
    residual: torch.Tensor | None = None


class Rule(Protocol):
    """A step rule. All memory is in the state that is passed in and returned; a rule itself never changes."""

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> Any:
        """State before the first step.

        ``grid`` has the ``N + 1`` flow times to walk, from where ``z`` is; ``carried`` is what the inversion kept, and
        empty on the way up.
        """
        ...

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: Any) -> Advance:
        """Go from ``step.sigma`` to ``step.sigma_next``."""
        ...


class Progress(NamedTuple):
    """What the callback is given after each step: steps done of total, sigma reached, latent, denoised estimate."""

    done: int
    total: int
    sigma: float
    z: torch.Tensor
    denoised: torch.Tensor


Callback = Callable[[Progress], None]


class Integration(NamedTuple):
    """Result of :func:`integrate`.

    ``trajectory`` is every latent from the start to the end, ``[N + 1]`` of them, if kept. ``residual``
    has one ``[B]`` (or None) a step, in the order walked. ``previous`` is the last latent but one.
    """

    z: torch.Tensor
    previous: torch.Tensor
    nfe: int
    residual: list[torch.Tensor | None]
    trajectory: list[torch.Tensor]


@torch.no_grad()
def integrate(
    velocity: Velocity,
    z: torch.Tensor,
    sigmas: torch.Tensor,
    rule: Rule,
    *,
    carried: Mapping[str, torch.Tensor] | None = None,
    keep_trajectory: bool = False,
    callback: Callback | None = None,
) -> Integration:
    """Carry ``z`` along ``sigmas`` by ``rule``, without gradient.

    Args:
        velocity: the base model, conditioning bound.
        z: latent at ``sigmas[0]``, ``[B, C, ...]``; the state is kept in its dtype, at least float32.
        sigmas: float64 ``[N + 1]``, ascending to invert, descending to sample.
        rule: the step rule.
        carried: what the way back needs besides the noise.
        keep_trajectory: keep every latent.
        callback: called after each step.

    Raises:
        DeepInvError: the model returned NaN or infinity (step and sigma are named).
    """
    grid = sigmas.tolist()
    count = len(grid) - 1
    inverting = grid[-1] > grid[0]
    counted = CountedVelocity(velocity)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    state = rule.start(z, grid, carried or {})
    trajectory = [z] if keep_trajectory else []
    residuals: list[torch.Tensor | None] = []
    previous = z
    for k in range(count):
        index = k if inverting else count - 1 - k
        step = Step(index, count, grid[k], grid[k + 1])
        counted.step = index
        z_next, state, residual = rule.step(counted, z, step, state)
        residuals.append(residual)
        previous, z = z, z_next
        if keep_trajectory:
            trajectory.append(z)
        if callback is not None:
            callback(Progress(k + 1, count, step.sigma_next, z, z - step.sigma_next / step.h * (z - previous)))
    counted.raise_if_not_finite()
    return Integration(z, previous, counted.nfe, residuals, trajectory)
