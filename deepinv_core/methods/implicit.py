"""The implicit-step family: everything that is sampled back with Euler.

The exact inverse of an Euler sampling step is the fixed point ``eps = v(z_i + h*eps, sigma_{i+1})``.
Methods differ in two choices only, and any guess goes with any iteration: the guess of ``eps``
(:class:`TargetEuler`, those of :mod:`.uni_inv` and :mod:`.anderson`, a solver's) and what follows it (nothing,
:class:`.fixed_point.Picard`, :class:`.renoise.Averaged`, :class:`.anderson.Anderson`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import torch

from ..flow import CountedVelocity, per_sample, relative_error
from ..integrator import Advance, Step


class Known(NamedTuple):
    """A velocity already paid for: ``velocity`` at flow time ``sigma``."""

    sigma: float
    velocity: torch.Tensor


class Point(NamedTuple):
    """Where a guess is made: latent ``z`` at ``step.sigma``, the clean latent, and the last velocities, newest last."""

    z: torch.Tensor
    latent_clean: torch.Tensor
    step: Step
    history: tuple[Known, ...]

    def slope(self) -> torch.Tensor | None:
        """Change of the velocity with sigma between the last two known ones; None where there is only one."""
        if len(self.history) < 2:
            return None
        before, last = self.history[-2:]
        return (last.velocity - before.velocity) / (last.sigma - before.sigma)


class Guess(Protocol):
    """A first ``eps`` for the step. ``uses_history`` asks for one evaluation at the start of the walk."""

    @property
    def uses_history(self) -> bool:
        """See the class."""
        ...

    def __call__(self, v: CountedVelocity, point: Point) -> torch.Tensor:
        """Guess ``v(z_{i+1}, sigma_{i+1})``."""
        ...


@dataclass(frozen=True)
class TargetEuler:
    """``v(z_i, sigma_{i+1})``: this step's latent, the target's sigma ("DDIM inversion noise"). One evaluation."""

    uses_history: bool = False

    def __call__(self, v: CountedVelocity, point: Point) -> torch.Tensor:
        """Guess by one evaluation."""
        return v(point.z, point.step.sigma_next)


FIRST_SIGMA: Final = 0.2
"""Where a walk that needs one evaluation to start from makes it: at z_0 and the first target's sigma, but no further.

At the smallest sigma the velocity says little of the noise that is to come, and far from the image's own sigma the
model is asked for what it never saw. On the embedded model, predictors trained for the same time gave 2 steps back 2.7
dB worse from the source's sigma than with this limit, and 16 steps 1.4 dB worse; without a limit 2 steps were worse.
Without training it matters little between 0.1 and 0.32. The first step's residual decides the whole round trip.
"""


def first_known(v: CountedVelocity, z: torch.Tensor, step: Step) -> Known:
    """The velocity a walk starts from, :data:`FIRST_SIGMA`; one evaluation."""
    sigma = min(step.sigma_next, max(FIRST_SIGMA, step.sigma))
    return Known(sigma, v(z, sigma))


FixedPointMap = Callable[[torch.Tensor], torch.Tensor]
"""``eps -> v(z_i + h*eps, sigma_{i+1})``, one evaluation a call."""


class Iteration(Protocol):
    """What follows the guess: ``(map, eps) -> (eps, residual [B] of the last point evaluated, or None)``.

    Where the residual rose in the end, both are those of the best point evaluated.
    """

    def __call__(self, fixed_point: FixedPointMap, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Improve ``eps``."""
        ...


class Done:
    """Which samples of a batch have reached the tolerance; they keep what they have."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._mask: torch.Tensor | None = None

    def keep(self, old: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        """``new`` where a sample goes on, else ``old``."""
        if self._mask is None or old is None:
            return new
        return torch.where(per_sample(self._mask, new), old, new)

    def update(self, residual: torch.Tensor) -> bool:
        """Whether all have reached it, given the last residuals ``[B]``."""
        if self._tolerance <= 0:
            return False
        reached = residual <= self._tolerance
        self._mask = reached if self._mask is None else self._mask | reached
        return bool(self._mask.all())


class Best:
    """The iterate of each sample whose residual was the smallest, to go back to where the last one measured rose.

    Where residuals fall to the end, the last update is what an iteration ends with, as without it.
    """

    def __init__(self) -> None:
        self._eps: torch.Tensor | None = None
        self._residual = torch.empty(0)

    def see(self, eps: torch.Tensor, residual: torch.Tensor) -> None:
        """An iterate and the residual ``[B]`` measured at it."""
        if self._eps is None:
            self._eps, self._residual = eps, residual
            return
        better = residual <= self._residual
        self._eps = torch.where(per_sample(better, eps), eps, self._eps)
        self._residual = torch.where(better, residual, self._residual)

    def or_last(self, eps: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The last update ``eps`` and the last ``residual``, or the best iterate and its residual where that is less.

        A residual that is NaN counts as one that rose.
        """
        if self._eps is None or residual is None:
            return eps, residual
        fell = residual <= self._residual
        return torch.where(per_sample(fell, eps), eps, self._eps), torch.where(fell, residual, self._residual)


def iterate(
    fixed_point: FixedPointMap,
    eps: torch.Tensor,
    times: int,
    tolerance: float,
    update: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Evaluate the map ``times`` times, each time at ``update(eps, g)``, ``g`` being the map at ``eps``.

    With a ``tolerance`` above 0 a sample whose relative residual reaches it is left alone, and the iteration ends when
    all have; that test copies one number to the host each time.

    Returns:
        The last update, or the best iterate where the last residual is larger; and the residual ``[B]`` that goes with
        it, None without an evaluation.
    """
    residual, done, best = None, Done(tolerance), Best()
    for _ in range(times):
        g = fixed_point(eps)
        latest = relative_error(g, eps)
        updated = update(eps, g)
        residual = done.keep(residual, latest)
        best.see(eps, residual)
        eps = done.keep(eps, updated)
        if done.update(latest):
            break
    return best.or_last(eps, residual)


class _State(NamedTuple):
    latent_clean: torch.Tensor
    history: tuple[Known, ...]


@dataclass(frozen=True)
class Implicit:
    """``z_{i+1} = z_i + h*eps`` with ``eps`` from a guess and an iteration; without one the guess itself."""

    guess: Guess
    iteration: Iteration | None = None

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> _State:
        """The initial latent is the clean one; no velocity is known yet."""
        return _State(z, ())

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: _State) -> Advance:
        """Guess, iterate, go."""
        history = state.history
        if self.guess.uses_history and not history:
            history = (Known(step.sigma, v(z, step.sigma)),)
        eps = self.guess(v, Point(z, state.latent_clean, step, history))
        residual = None
        if self.iteration is not None:
            eps, residual = self.iteration(lambda e: v(z + step.h * e, step.sigma_next), eps)
        known = (*history, Known(step.sigma_next, eps))[-2:]
        return Advance(z + step.h * eps, _State(state.latent_clean, known), residual)
