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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from ..errors import DeepInvError
from ..flow import CountedVelocity, per_sample, relative_error
from ..integrator import Advance, Rule, Step
from ..methods.entry import Cost
from ..methods.implicit import first_known
from ..schedule import custom_grid
from .config import Config, size
from .kind import Network, Solver, Under

SAME_SIGMA: Final = 1e-5
"""By how much a grid may differ from the fitted one: SIGMAS are float32."""

SAME_PROMPT: Final = 0.05
"""By how much the mark of a prompt may differ, relative: encoders run in half precision too."""

HISTORY: Final = 3
"""H: on the included models 2 costs up to 1.5 dB at 16 steps, 4 gains nothing."""

MOST_STEPS, MOST_REFINE = 1000, 50


class Features(NamedTuple):
    """What is known before a step: the tensors, and the column of the coefficients that each belongs to."""

    columns: list[int]
    tensors: list[Tensor]


def features(z: Tensor, latent_clean: Tensor, known: Sequence[Tensor], history: int) -> Features:
    """``F_i``; in the first step ``z`` is the clean latent, which counts once.

    Args:
        z: ``z_i``.
        latent_clean: ``z_0``.
        known: the last results, newest first.
        history: H.
    """
    last = list(known[:history])
    columns, tensors = list(range(len(last))), last
    if z is not latent_clean:
        columns, tensors = [*columns, history], [*tensors, z]
    return Features([*columns, history + 1], [*tensors, latent_clean])


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


def damping(change: Tensor, before: Tensor, guess: Sequence[float]) -> Tensor:
    """The weight ``[B]`` of ``x_0`` beside ``g_0`` where a photo's changes alternate from step to step.

    An extrapolated guess, ``sum_k a_k eps_{i-1-k}``, carries the errors of the last steps on, and an evaluation takes
    m times an error, m an eigenvalue of ``h J``. A change that grows by rho a step therefore tells
    ``m = rho / sum_k a_k rho^-k``, and the fixed point lies ``m / (1 - m)`` changes beyond ``g_0``. On a few photos of
    a hundred this keeps the walk from blowing up; on the others it is next to nothing.

    Args:
        change: ``u_0``.
        before: that of the step before.
        guess: the coefficients a of the last results, newest first.
    """
    along, square = _on_cpu([_dot(change, before), _dot(before, before)]).unbind(1)
    rho = (along / square.clamp_min(1e-30)).clamp(-2.0, -1e-3)
    growth = sum((a * rho**-k for k, a in enumerate(guess)), torch.zeros_like(rho))
    m = torch.where(growth > 1e-3, rho / growth.clamp_min(1e-3), 0.0)
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
    """

    sigmas: Tensor
    guess: Tensor
    result: Tensor

    def named(self) -> dict[str, Tensor]:
        """Its tensors as files call them."""
        return {f"{one.name}_{self.steps}_{self.refine}": getattr(self, one.name) for one in fields(self)}

    @classmethod
    def of(cls, named: Mapping[str, Tensor], steps: int, refine: int) -> Walk:
        """The walk whose tensors a file has.

        Raises:
            DeepInvError: a grid that no walk can have.
            KeyError: a tensor is missing.
        """
        found = {one.name: named[f"{one.name}_{steps}_{refine}"].detach().cpu().double() for one in fields(cls)}
        return cls(**{**found, "sigmas": custom_grid(found["sigmas"])})

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
        return self.guess.shape[1] - 2

    def begins_with(self, grid: Sequence[float]) -> bool:
        """Whether ``grid`` is this walk's, or a beginning of it."""
        own = self.sigmas[: len(grid)]
        return len(own) == len(grid) and bool((own - torch.tensor(grid)).abs().max() <= SAME_SIGMA)


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
        return [damping(self.changes[0], self._before, self._guess)]


class _State(NamedTuple):
    walk: Walk
    guess: list[list[float]]
    result: list[list[list[float]]]
    latent_clean: Tensor
    known: tuple[Tensor, ...] = ()
    change: Tensor | None = None


@dataclass(frozen=True)
class FittedRule:
    """The step rule of fitted walks; the grid says which of them.

    Attributes:
        walks: to choose from, all with the same K.
    """

    walks: tuple[Walk, ...]

    def start(self, z: Tensor, grid: Sequence[float], carried: Mapping[str, Tensor]) -> _State:
        """The walk whose grid this is, or begins with this.

        Raises:
            DeepInvError: there is none.
        """
        found = min((w for w in self.walks if w.begins_with(grid)), key=lambda w: w.steps, default=None)
        if found is None:
            steps = ", ".join(str(walk.steps) for walk in self.walks)
            raise DeepInvError(
                f"the solver was fitted on grids of its own, for steps {steps}, and these {len(grid) - 1} steps from "
                f"{grid[0]:.4g} to {grid[-1]:.4g} are none of them: take one of these step counts and leave sigmas out "
                "(DeepInv Invert takes the grid by itself, and its sigmas output carries it), or fit a solver for "
                "these steps, without a search for a grid where it is to be the model's own"
            )
        return _State(found, found.guess.tolist(), found.result.tolist(), z)

    def step(self, v: CountedVelocity, z: Tensor, step: Step, state: _State) -> Advance:
        """Guess, evaluate K + 1 times, go."""
        i, h, walk = step.index, step.h, state.walk
        known = state.known or (first_known(v, z, step).velocity,)
        columns, tensors = features(z, state.latent_clean, known, walk.history)
        guess = [state.guess[i][column] for column in columns]
        x = combine(guess, tensors)
        seen = Seen(state.change if walk.refine == 0 else None, guess[: len(known)])
        residual = None
        for row in state.result[i]:
            new = v(z + h * x, step.sigma_next)
            residual = relative_error(new, x)
            weights = seen.add(x, new)
            fitted = [*row[: len(seen.changes)], *(row[walk.refine + 1 + column] for column in columns)]
            x = mixture(weights, seen.points) + combine(fitted, [*seen.changes, *tensors])
        known = (x, *known)[: walk.history]
        return Advance(z + h * x, state._replace(known=known, change=seen.changes[0]), residual)


@dataclass(frozen=True, kw_only=True)
class FittedConfig(Config):
    """What a file of fitted walks holds.

    Attributes:
        walks: N and K of each.
        history: H.
    """

    role: ClassVar[str] = "fitted"

    walks: tuple[tuple[int, int], ...]
    history: int = size(1, 8, HISTORY)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            walks = tuple((steps, refine) for steps, refine in self.walks)
        except (TypeError, ValueError):
            walks = ()
        whole = all(type(number) is int for walk in walks for number in walk)
        limits = whole and all(0 < steps <= MOST_STEPS and 0 <= refine <= MOST_REFINE for steps, refine in walks)
        if not walks or not limits or len(set(walks)) < len(walks):
            raise DeepInvError(
                f"Solver setting walks is {self.walks!r:.60}: pairs of steps (1 to {MOST_STEPS}) and refine steps (0 "
                f"to {MOST_REFINE}) are accepted, each once; fit the solver again."
            )
        object.__setattr__(self, "walks", walks)

    def build(self) -> FittedTable:
        """A table of zeros."""
        return FittedTable(self)


class FittedTable(Network):
    """Fitted walks as the tensors of a solver file, float32."""

    config: FittedConfig

    def __init__(self, config: FittedConfig) -> None:
        super().__init__()
        self.config = config
        width = config.history + 2
        for steps, refine in config.walks:
            result = torch.zeros(steps, refine + 1, refine + 1 + width)
            blank = Walk(torch.zeros(steps + 1), torch.zeros(steps, width), result)
            for name, values in blank.named().items():
                self.register_buffer(name, values)

    @classmethod
    def of(cls, walks: Sequence[Walk], channels: int) -> FittedTable:
        """A table of these walks, for a latent of ``channels``."""
        pairs = tuple((walk.steps, walk.refine) for walk in walks)
        table = cls(FittedConfig(channels=channels, walks=pairs, history=walks[0].history))
        for walk in walks:
            for name, values in walk.named().items():
                table.get_buffer(name).copy_(values)
        return table

    def walks(self, refine: int) -> tuple[Walk, ...]:
        """The walks with K = ``refine``.

        Raises:
            DeepInvError: a grid that no walk can have.
        """
        tensors = self.state_dict()
        return tuple(Walk.of(tensors, steps, k) for steps, k in self.config.walks if k == refine)


@dataclass(frozen=True)
class Fitted(Solver):
    """A solver of fitted walks: N(K+1)+1 evaluations, on the grid of its own that it has for each N and K."""

    config_type: ClassVar[type[FittedConfig]] = FittedConfig
    cost: ClassVar[Cost] = Cost(1, refine=1, once=1)

    def rule(self, refine: int, tolerance: float = 0.0) -> Rule:
        """The step with K = ``refine``.

        Raises:
            DeepInvError: nothing was fitted for this K, or a tolerance: the number of evaluations is fixed.
        """
        if tolerance:
            raise DeepInvError(
                f"tolerance is {tolerance:g}, but a fitted solver makes the same evaluations in each step: set it to 0"
            )
        walks = self._table.walks(refine)
        if not walks:
            known = sorted({k for _, k in self._table.config.walks})
            raise DeepInvError(
                f"refine is {refine}, and the solver was fitted for refine {', '.join(map(str, known))}: take one of "
                "these, or fit a solver for this one too"
            )
        return FittedRule(walks)

    @classmethod
    def cautions(cls, training: Mapping[str, Any], under: Under) -> list[str]:
        """Guidance or a prompt that it was not fitted for."""
        fitted, found = training.get("under"), []
        if not isinstance(fitted, dict):
            return []
        for name, now in (("cfg", under.cfg), ("guidance", under.guidance)):
            before = fitted.get(name)
            if isinstance(before, int | float) and now is not None and abs(before - now) > 1e-3:
                found.append(f"the solver was fitted at {name} {before:g}, and this is {now:g}: fit one for that too")
        before = fitted.get("mark")
        if under.prompt and isinstance(before, list) and len(before) == len(under.prompt):
            off, size = torch.dist(torch.tensor(before), torch.tensor(under.prompt)), torch.tensor(before).norm()
            if off > SAME_PROMPT * size:
                found.append("the solver was fitted under another prompt: it may be less exact here")
        return found

    def grid(self, steps: int, refine: int) -> Tensor | None:
        """The grid it was fitted on; None where it has none, which its rule refuses."""
        return next((walk.sigmas for walk in self._table.walks(refine) if walk.steps == steps), None)

    @property
    def _table(self) -> FittedTable:
        table: Any = self.network
        return table
