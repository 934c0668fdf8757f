"""The implicit-step family: everything that is sampled back with Euler.

The exact inverse of an Euler sampling step is the fixed point ``eps = v(z_i + h*eps, sigma_{i+1})``.
Methods differ in two choices only, and any guess goes with any iteration:

====================  =======================  =====================================
method                guess                    iteration
====================  =======================  =====================================
Euler, target sigma   :class:`TargetEuler`     none
fixed point / AIDI    :class:`TargetEuler`     :class:`Picard` K
Anderson              :class:`TargetEuler`     :class:`Anderson` K
ReNoise               :class:`TargetEuler`     :class:`Averaged` K = 9, evaluations 8-10
FTEdit                :class:`TargetEuler`     :class:`Averaged` K = 3, the three iterates
Uni-Inv               :class:`LastVelocity`    :class:`Picard` 1
extrapolated Uni-Inv  :class:`Extrapolated`    :class:`Picard` 1
Anderson, ours        :class:`Extrapolated`    :class:`Anderson` K
DeepInv, the paper    a trained corrector      :class:`Anderson` K (K = 0 is the paper)
DeepInv, ours         a trained predictor      :class:`Anderson` K + 1
====================  =======================  =====================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import torch

from ..flow import CountedVelocity, norm, per_sample, relative_error
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

    def part(self, rows: slice) -> Point:
        """Some rows of it."""
        history = tuple(Known(known.sigma, known.velocity[rows]) for known in self.history)
        return Point(self.z[rows], self.latent_clean[rows], self.step, history)

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


@dataclass(frozen=True)
class LastVelocity:
    """The velocity the last step ended with (Uni-Inv, UniEdit-Flow, arXiv 2504.13109). Free."""

    uses_history: bool = True

    def __call__(self, v: CountedVelocity, point: Point) -> torch.Tensor:
        """Guess without an evaluation."""
        return point.history[-1].velocity


@dataclass(frozen=True)
class Extrapolated:
    """Linear extrapolation in sigma of the last two velocities (ours); ``2*v_i - v_{i-1}`` on a uniform grid. Free."""

    uses_history: bool = True

    def __call__(self, v: CountedVelocity, point: Point) -> torch.Tensor:
        """Guess without an evaluation; in the first step there is one velocity only, and it is taken as it is."""
        last, slope = point.history[-1], point.slope()
        return last.velocity if slope is None else last.velocity + (point.step.sigma_next - last.sigma) * slope


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


@dataclass(frozen=True)
class ExtrapolatedFromFirst:
    """The same (ours), but the walk's first velocity is that of :func:`first_known`. Free after it.

    Better than :class:`Extrapolated` where iterations follow; without them it is not.
    """

    uses_history: bool = False

    def __call__(self, v: CountedVelocity, point: Point) -> torch.Tensor:
        """Guess; one evaluation in the first step."""
        return Extrapolated()(v, point) if point.history else first_known(v, point.z, point.step).velocity


FixedPointMap = Callable[[torch.Tensor], torch.Tensor]
"""``eps -> v(z_i + h*eps, sigma_{i+1})``, one evaluation a call."""


class Iteration(Protocol):
    """What follows the guess: ``(map, eps) -> (eps, residual [B] of the last point evaluated, or None)``."""

    def __call__(self, fixed_point: FixedPointMap, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Improve ``eps``."""
        ...


@dataclass(frozen=True)
class Picard:
    """Plain fixed-point iteration, ``count`` evaluations (AIDI, arXiv 2309.04907).

    With a ``tolerance`` above 0 a sample whose relative residual reaches it is left alone, and the iteration
    ends when all have; that test copies one number to the host each time, so it is off by default.
    """

    count: int
    tolerance: float = 0.0

    def __call__(self, fixed_point: FixedPointMap, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Iterate."""
        residual, done = None, _Done(self.tolerance)
        for _ in range(self.count):
            new = fixed_point(eps)
            latest = relative_error(new, eps)
            eps, residual = done.keep(eps, new), done.keep(residual, latest)
            if done.update(latest):
                break
        return eps, residual


@dataclass(frozen=True)
class Averaged:
    """Fixed-point iteration whose result is the mean of a window of its velocities.

    ReNoise (arXiv 2403.14602): ``count`` 9, evaluations 8 to 10 (1 = the guess's own); FTEdit: 3, 2 to 4.
    """

    count: int
    first: int
    last: int

    def __call__(self, fixed_point: FixedPointMap, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Iterate and average."""
        window = [eps] if self.first <= 1 else []
        residual = None
        for number in range(2, self.count + 2):
            new = fixed_point(eps)
            residual, eps = relative_error(new, eps), new
            if self.first <= number <= self.last:
                window.append(eps)
        return torch.stack(window).mean(0), residual


@dataclass(frozen=True)
class Anderson:
    """Fixed-point iteration accelerated by the last two iterates (Anderson, m = 1), ``count`` evaluations.

    With residuals ``f = g(eps) - eps``, the next point is ``g - gamma*(g - g_last)``, gamma the least-squares
    weight of each sample, regularised by ``ridge * |f|^2``; where a residual grew, the plain step is taken.
    """

    count: int
    tolerance: float = 0.0
    ridge: float = 1e-6

    def __call__(self, fixed_point: FixedPointMap, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Iterate."""
        residual, done = None, _Done(self.tolerance)
        last: tuple[torch.Tensor, torch.Tensor] | None = None
        for _ in range(self.count):
            g = fixed_point(eps)
            f = g - eps
            latest = relative_error(g, eps)
            mixed = g if last is None else self._mix(g, f, *last)
            last = (g, f)
            eps, residual = done.keep(eps, mixed), done.keep(residual, latest)
            if done.update(latest):
                break
        return eps, residual

    def _mix(self, g: torch.Tensor, f: torch.Tensor, g_last: torch.Tensor, f_last: torch.Tensor) -> torch.Tensor:
        df = f - f_last
        size = norm(f)
        gamma = (f * df).flatten(1).sum(1) / (
            norm(df).square() + self.ridge * size.square() + torch.finfo(f.dtype).tiny
        )
        gamma = torch.where(size > norm(f_last), 0, gamma)
        return g - per_sample(gamma, g) * (g - g_last)


class _Done:
    """Which samples of a batch have reached the tolerance; they keep what they have."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._mask: torch.Tensor | None = None

    def keep(self, old: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        if self._mask is None or old is None:
            return new
        return torch.where(per_sample(self._mask, new), old, new)

    def update(self, residual: torch.Tensor) -> bool:
        if self._tolerance <= 0:
            return False
        reached = residual <= self._tolerance
        self._mask = reached if self._mask is None else self._mask | reached
        return bool(self._mask.all())


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
