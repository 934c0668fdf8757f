r"""The fitted solver (ours): on a fixed grid each step is a linear combination of what is known, with fitted scalars.

Known before step i are its features, ``F_i = (eps_{i-1}, ..., eps_{i-H}, z_i, z_0)``: the last H results, the latent
and the clean latent. Before the first step the velocity at the photo, :func:`..methods.implicit.first_known`, stands
for the history. The step, with K further evaluations:

    x_0     = sum_f a_f F_f                                 the guess
    g_k     = v(z_i + h x_k, sigma_{i+1})                   an evaluation, k = 0 ... K; its change is u_k = g_k - x_k
    x_{k+1} = base_k + sum_{j<=k} b_kj u_j + sum_f c_kf F_f
    eps_i   = x_{K+1}

About ten numbers a step at K = 0, the same for every photo. ``base_k`` is g_k, but for two corrections with a weight of
each photo's own: :func:`damping` at K = 0, and from the second evaluation of a step on Anderson's mixture of all of
them, so that with b = c = 0 a step is extrapolated Uni-Inv or Anderson's. It is Euler that samples back. What fits the
numbers is in :mod:`.fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from ..errors import DeepInvError
from ..flow import CountedVelocity, per_sample, relative_error
from ..integrator import Advance, Rule, Step
from ..methods.implicit import Known, Point, first_known
from ..schedule import custom_grid

SAME_SIGMA: Final = 1e-5
"""By how much a grid may differ from the fitted one: SIGMAS are float32."""

HISTORY: Final = 3
"""H: on the included models 2 costs up to 1.5 dB at 16 steps, 4 gains nothing."""

MOST_STEPS, MOST_REFINE = 1000, 50


class Features(NamedTuple):
    """What is known before a step: the tensors, and the column of the coefficients that each belongs to."""

    columns: list[int]
    tensors: list[Tensor]


Predict = Callable[[Point], Tensor]
"""A network's guess."""


def features(point: Point, history: int, predict: Predict | None = None) -> Features:
    """``F_i``, and after them the guess of a network if there is one.

    In the first step the latent is the clean one, which counts once.

    Args:
        point: with the last results as its history.
        history: H.
        predict: the network.
    """
    tensors = [known.velocity for known in reversed(point.history[-history:])]
    columns = list(range(len(tensors)))
    if point.z is not point.latent_clean:
        columns, tensors = [*columns, history], [*tensors, point.z]
    columns, tensors = [*columns, history + 1], [*tensors, point.latent_clean]
    if predict is None:
        return Features(columns, tensors)
    seen = point.history[-max(1, point.step.index) :]  # the evaluation before the first step is for that step alone
    return Features([*columns, -1], [*tensors, predict(point._replace(history=seen))])


def combine(coefficients: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """``sum_k c_k x_k``."""
    total = coefficients[0] * tensors[0]
    for c, x in zip(coefficients[1:], tensors[1:], strict=True):
        total = torch.add(total, x, alpha=c)
    return total


def mixture(weights: Sequence[Tensor], points: Sequence[Tensor]) -> Tensor:
    """``p_0 - sum_j w_j (p_0 - p_j)``, a weight ``[B]`` for each point but the first."""
    total = points[0]
    for w, p in zip(weights, points[1:], strict=True):
        total = total - per_sample(w.to(p.dtype), p) * (points[0] - p)
    return total


def anderson_weights(changes: Sequence[Tensor]) -> list[Tensor]:
    """Weights ``[B]`` of all earlier points that make the mixture of their changes least (Anderson 1965).

    Args:
        changes: ``u_k`` of this step's points, newest first.
    """
    newest, older = changes[0], changes[1:]
    if not older:
        return []
    found = [newest, *(newest - u for u in older)]
    row, column = torch.triu_indices(len(found), len(found)).tolist()
    upper = _on_cpu([_dot(found[i], found[j]) for i, j in zip(row, column, strict=True)])
    gram = upper.new_zeros(len(newest), len(found), len(found))
    gram[:, row, column] = gram[:, column, row] = upper
    products, wanted = gram[:, 1:, 1:], gram[:, 0, 1:]
    ridge = 1e-6 * gram[:, 0, 0] + 1e-14 * products.diagonal(dim1=-2, dim2=-1).amax(-1) + 1e-30
    products = products + torch.diag_embed(ridge[:, None].expand(-1, len(older)))
    if not bool(torch.isfinite(products).all()):  # the caller's velocity says where
        return [newest.new_zeros(len(newest)) for _ in older]
    return list(torch.linalg.solve(products, wanted[..., None])[..., 0].to(newest).unbind(1))


LARGE: Final = 0.2
"""Size of a change, relative to the evaluation, above which it is damped. Damping smaller ones costs 1 to 4 dB at 16
steps of an analytic mixture, and they blow up nothing."""


def damping(change: Tensor, before: Tensor, guess: Sequence[float], new: Tensor) -> Tensor:
    """The weight ``[B]`` of ``x_0`` beside ``g_0`` where a photo's changes are large and alternate from step to step.

    An extrapolated guess, ``sum_k a_k eps_{i-1-k}``, carries the errors of the last steps on, and an evaluation takes
    m times an error, m an eigenvalue of ``h J``. A change that grows by rho a step therefore tells
    ``m = rho / sum_k a_k rho^-k``, and the fixed point lies ``m / (1 - m)`` changes beyond ``g_0``. On a few photos of
    a hundred this keeps the walk from blowing up; on the others it is next to nothing.

    Args:
        change: ``u_0``.
        before: that of the step before.
        guess: the coefficients a of the last results, newest first.
        new: ``g_0``.
    """
    dots = [_dot(change, before), _dot(before, before), _dot(change, change), _dot(new, new)]
    along, square, own, whole = _on_cpu(dots).unbind(1)
    rho = (along / square.clamp_min(1e-30)).clamp(-2.0, -1e-3)
    growth = sum((a * rho**-k for k, a in enumerate(guess)), torch.zeros_like(rho))
    damped = (growth > 1e-3) & (own > LARGE**2 * whole)
    m = torch.where(damped, rho / growth.clamp_min(1e-3), 0.0)
    return (-m / (1 - m)).to(change)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample, ``[B]``."""
    return (a * b).flatten(1).sum(1)


def _on_cpu(values: Sequence[Tensor]) -> Tensor:
    """Values ``[B]`` as the columns of one tensor, float64 on the CPU: MPS has none, and one transfer is enough."""
    return torch.stack(list(values), 1).cpu().double()


@dataclass(frozen=True)
class Walk:
    """The coefficients of one grid and one K, float64 on the CPU.

    Attributes:
        sigmas: the grid, ascending ``[N + 1]``.
        guess: a, ``[N, H + 2]``; zero for what isn't known yet.
        result: b and c after each evaluation, ``[N, K + 1, K + 1 + H + 2]``: the changes, newest first, then the
            features.
        predicted: whether a network's guess is one more feature, the last: H + 3 of them.
    """

    TENSORS: ClassVar[tuple[str, ...]] = ("sigmas", "guess", "result")

    sigmas: Tensor
    guess: Tensor
    result: Tensor
    predicted: bool = False

    def named(self) -> dict[str, Tensor]:
        """Its tensors as files call them."""
        return {f"{name}_{self.steps}_{self.refine}": getattr(self, name) for name in self.TENSORS}

    @classmethod
    def of(cls, named: Mapping[str, Tensor], steps: int, refine: int) -> Walk:
        """The walk whose tensors a file has.

        Raises:
            DeepInvError: a grid that no walk can have.
            KeyError: a tensor is missing.
        """
        sigmas, guess, result = (named[f"{name}_{steps}_{refine}"].detach().cpu().double() for name in cls.TENSORS)
        return cls(custom_grid(sigmas), guess, result)

    def plain(self) -> dict[str, Any]:
        """Its numbers as JSON values, for :meth:`read`."""
        return {name: _rounded(getattr(self, name).tolist()) for name in self.TENSORS}

    @classmethod
    def read(cls, values: object) -> Walk:
        """The walk that :meth:`plain` was made of; its width says whether a network's guess is among its features.

        Raises:
            DeepInvError: it can't be one.
        """
        try:
            made = {name: torch.tensor(values[name], dtype=torch.float64) for name in cls.TENSORS}  # type: ignore[index]
        except (TypeError, ValueError, KeyError, RuntimeError, OverflowError) as error:
            raise DeepInvError(
                f"a closing fit has no usable numbers ({error!s:.80}): train the solver again"
            ) from error
        sigmas, guess, result = made.values()
        steps, width = sigmas.numel() - 1, guess.shape[-1] if guess.ndim == 2 else 0
        refine = result.shape[1] - 1 if result.ndim == 3 else -1
        fits = guess.shape == (steps, width) and result.shape == (steps, refine + 1, refine + 1 + width)
        finite = all(bool(one.isfinite().all()) for one in made.values())
        sized = sigmas.ndim == 1 and 0 < steps <= MOST_STEPS and 0 <= refine <= MOST_REFINE
        if not (sized and fits and finite and width in (HISTORY + 2, HISTORY + 3)):
            shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in made.items())
            raise DeepInvError(f"a closing fit can't be of {shapes:.200}: train the solver again")
        return cls(custom_grid(sigmas), guess, result, predicted=width == HISTORY + 3)

    @property
    def steps(self) -> int:
        """N."""
        return len(self.sigmas) - 1

    @property
    def refine(self) -> int:
        """K."""
        return self.result.shape[1] - 1

    @property
    def history(self) -> int:
        """H."""
        return self.guess.shape[1] - 2 - self.predicted

    @property
    def damped(self) -> bool:
        """Whether its steps are damped: where they begin with an extrapolation, and end with one evaluation."""
        return self.refine == 0 and not self.predicted

    def begins_with(self, grid: Sequence[float]) -> bool:
        """Whether ``grid`` is this walk's, or a beginning of it."""
        own = self.sigmas[: len(grid)]
        return len(own) == len(grid) and bool((own - own.new_tensor(grid)).abs().max() <= SAME_SIGMA)


def _rounded(values: Any) -> Any:
    """Nested lists of numbers to eight digits: float32 has no more."""
    return [_rounded(one) for one in values] if isinstance(values, list) else float(f"{values:.8g}")


class Seen:
    """The evaluations of one step: their changes and the points whose mixture is the base, both newest first."""

    def __init__(self, before: Tensor | None, guess: Sequence[float]) -> None:
        """``before`` is the last step's change where the step is damped by it, ``guess`` as in :func:`damping`."""
        self._before, self._guess = before, guess
        self.changes: list[Tensor] = []
        self.points: list[Tensor] = []

    def add(self, x: Tensor, new: Tensor) -> list[Tensor]:
        """Take in the evaluation ``new`` at x; returns the points' weights."""
        self.changes.insert(0, new - x)
        self.points.insert(0, new)
        if self._before is None:
            return anderson_weights(self.changes)
        self.points.append(x)
        return [damping(self.changes[0], self._before, self._guess, new)]


class _State(NamedTuple):
    walk: Walk
    guess: list[list[float]]
    result: list[list[list[float]]]
    latent_clean: Tensor
    known: tuple[Known, ...] = ()
    change: Tensor | None = None


@dataclass(frozen=True)
class FittedRule:
    """The step rule of fitted walks; the grid says which of them.

    Attributes:
        walks: to choose from, all with the same K.
        predict: the network whose guess is a feature of those that are ``predicted``.
        alone: the rule on any other grid; None refuses it.
    """

    walks: tuple[Walk, ...]
    predict: Predict | None = None
    alone: Rule | None = None

    def start(self, z: Tensor, grid: Sequence[float], carried: Mapping[str, Tensor]) -> Any:
        """The walk whose grid this is, or begins with this.

        Raises:
            DeepInvError: there is none, and no other rule.
        """
        found = min((w for w in self.walks if w.begins_with(grid)), key=lambda w: w.steps, default=None)
        if found is None and self.alone is not None:
            return self.alone.start(z, grid, carried)
        if found is None:
            steps = ", ".join(str(walk.steps) for walk in self.walks)
            raise DeepInvError(
                f"the solver was fitted on grids of its own, for steps {steps}, and these {len(grid) - 1} steps from "
                f"{grid[0]:.4g} to {grid[-1]:.4g} are none of them: take one of these step counts and leave sigmas out "
                "(DeepInv Invert takes the grid by itself, and its sigmas output carries it), or fit a solver for "
                "these steps, without a search for a grid where it is to be the model's own"
            )
        return _State(found, found.guess.tolist(), found.result.tolist(), z)

    def step(self, v: CountedVelocity, z: Tensor, step: Step, state: Any) -> Advance:
        """Guess, evaluate K + 1 times, go."""
        if not isinstance(state, _State):
            assert self.alone is not None
            return self.alone.step(v, z, step, state)
        i, h, walk = step.index, step.h, state.walk
        known = state.known or (first_known(v, z, step),)
        predict = self.predict if walk.predicted else None
        columns, tensors = features(Point(z, state.latent_clean, step, known), walk.history, predict)
        guess = [state.guess[i][column] for column in columns]
        x = combine(guess, tensors)
        seen = Seen(state.change if walk.damped else None, guess[: len(known)])
        residual = None
        for row in state.result[i]:
            new = v(z + h * x, step.sigma_next)
            residual = relative_error(new, x)
            weights = seen.add(x, new)
            fitted = [*row[: len(seen.changes)], *(row[walk.refine + 1 :][column] for column in columns)]
            x = mixture(weights, seen.points) + combine(fitted, [*seen.changes, *tensors])
        known = (*known, Known(step.sigma_next, x))[-walk.history :]
        return Advance(z + h * x, state._replace(known=known, change=seen.changes[0]), residual)
