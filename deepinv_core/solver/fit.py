r"""Fit the coefficients of a walk (:mod:`.fitted_walk`) by least squares, on a model's own samples; no label, no photo.

The exact inverse of a step is the fixed point ``x = v(z_i + h x, sigma_{i+1})``, so what a step leaves of
``d(x) = x - v(z_i + h x, sigma_{i+1})`` is all that the round trip misses. Samples are carried up the walk with the
coefficients found so far, and each step's are those that make d least, in one Gauss-Newton step from a training-free
method's (the guess of extrapolated Uni-Inv, then the evaluation itself):

    d(x + sum_k c_k f_k)  =  d(x) + sum_k c_k (f_k - h J f_k),      J the Jacobian of v.

A J f is a difference of two evaluations: one more for each feature, none for a change u_k, as the evaluation that
follows it has it already. The sums over all values of all samples leave about ten unknowns a step, one system for all
samples. As each step sees the samples where the walk has brought them, errors that would add up are fitted away, and
the ridge hardly matters: a fit on the exact path, blind to that, loses up to 15 dB with a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ..flow import CountedVelocity, Velocity, norm, per_sample
from ..integrator import Progress, Step
from ..methods.implicit import Known, Point, first_known
from .fitted_walk import HISTORY, Features, Predict, Seen, Walk, combine, features, mixture

RIDGE: Final = 1e-6
"""Relative to each feature's own square; from 1e-3 to 1e-8 the round trip changes by less than 0.5 dB."""

SECANT: Final = 0.3
"""Length of a difference for J f, relative to the guess; 0.1 gives the same."""


def fit_evaluations(steps: int, refine: int, *, predicted: bool = False) -> int:
    """Evaluations that :func:`fit_walk` makes for each sample, at most."""
    return 1 + steps * (1 + HISTORY + 2 + predicted + 2 * (refine + 1))


@torch.no_grad()
def fit_walk(
    velocity: Velocity,
    latents: Tensor,
    sigmas: Tensor,
    refine: int = 0,
    *,
    predict: Predict | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> Walk:
    """The coefficients for a grid, from a few clean latents.

    Args:
        velocity: the base model under the prompt and the guidance that inversions will use.
        latents: clean latents that look like photos, ``[S, C, ...]``; on the CPU where memory is short, with a
            velocity that takes them from there.
        sigmas: the grid, ascending ``[N + 1]``.
        refine: K.
        predict: a network, whose guess is one more feature, and what the fit begins from in place of the extrapolation.
        callback: called after each step.

    Raises:
        DeepInvError: the model returned NaN or infinity.
    """
    grid = sigmas.double().tolist()
    count, width = len(grid) - 1, HISTORY + 2 + (predict is not None)
    guess = torch.zeros(count, width, dtype=torch.float64)
    result = torch.zeros(count, refine + 1, refine + 1 + width, dtype=torch.float64)
    walk = Walk(sigmas.double(), guess, result, predict is not None)
    latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
    v, z = CountedVelocity(velocity), latents
    known: tuple[Known, ...] = ()
    change: Tensor | None = None
    for i in range(count):
        v.step = i
        step = Step(i, count, grid[i], grid[i + 1])
        known = known or (first_known(v, z, step),)
        at = features(Point(z, latents, step, known), HISTORY, predict)
        fit = _StepFit(v, z, step, at, width)
        before = grid[i] - grid[i - 1] if i > 1 else 0.0
        x = fit.guess(_begin_from(len(at.tensors), step.h / before if before else 0.0, predict is not None), guess[i])
        seen = Seen(change if walk.damped else None, guess[i, : len(known)].tolist())
        for k in range(refine + 1):
            x = fit.result(x, seen, result[i, k])
        z, change = z + step.h * x, seen.changes[0]
        known = (*known, Known(step.sigma_next, x))[-HISTORY:]
        if callback is not None:
            callback(Progress(i + 1, count, step.sigma_next, z, z - step.sigma_next * x))
    v.raise_if_not_finite()
    return walk


def _begin_from(count: int, ahead: float, predicted: bool) -> list[float]:
    """The coefficients of ``count`` features that a step's fit begins with.

    ``ahead`` is the step's length over the last one's, 0 where the guess can't be extrapolated. A network's guess, the
    last feature, stands alone.
    """
    if predicted:
        return [*[0.0] * (count - 1), 1.0]
    return [1 + ahead, -ahead, *[0.0] * count][:count]


@dataclass
class _StepFit:
    """One step's features f and their effects ``f - h J f`` on d, to which each evaluation adds its own.

    ``width`` is the number of features that a step can have.
    """

    v: CountedVelocity
    z: Tensor
    step: Step
    known: Features
    width: int

    def __post_init__(self) -> None:
        self.effects: list[Tensor] = []
        self.defects: list[Tensor] = []

    def _evaluate(self, x: Tensor) -> Tensor:
        return self.v(self.z + self.step.h * x, self.step.sigma_next)

    def guess(self, prior: list[float], coefficients: Tensor) -> Tensor:
        """``x_0``; fills its coefficients.

        Args:
            prior: coefficients of the features that the fit begins from.
            coefficients: ``[H + 2]``.
        """
        tensors = self.known.tensors
        x = combine(prior, tensors)
        v = self._evaluate(x)
        for f in tensors:
            length = SECANT * norm(x) / norm(f)
            length = per_sample(torch.where((length > 0) & length.isfinite(), length, 1.0), f)
            self.effects.append(f - (self._evaluate(x + length * f) - v) / length)
        found = least_squares(self.effects, v - x)
        coefficients[self.known.columns] = torch.tensor(prior, dtype=torch.float64) + found
        return combine(coefficients[self.known.columns].tolist(), tensors)

    def result(self, x: Tensor, seen: Seen, coefficients: Tensor) -> Tensor:
        """``x_{k+1}`` from ``x_k``; fills its coefficients.

        Args:
            x: ``x_k``.
            seen: the step's evaluations, to which this one is added.
            coefficients: ``[K + 1 + H + 2]``.
        """
        new = self._evaluate(x)
        weights = seen.add(x, new)
        defect = new - self._evaluate(new)
        change = seen.changes[0]
        self.effects.insert(0, change + defect)  # u - h J u, the second term from v(new) - new
        self.defects.insert(0, defect)
        defects = [defect, -change] if len(seen.points) > len(self.defects) else self.defects  # damped: of g_0 and x_0
        found = least_squares(self.effects, -mixture(weights, defects))
        count, first = len(seen.changes), len(coefficients) - self.width
        coefficients[:count] = found[:count]
        coefficients[first:][self.known.columns] = found[count:]
        return mixture(weights, seen.points) + combine(found.tolist(), [*seen.changes, *self.known.tensors])


def least_squares(effects: list[Tensor], wanted: Tensor) -> Tensor:
    """Scalars c with ``sum_k c_k effects_k`` nearest to ``wanted``, all ``[B, ...]``; float64 on the CPU."""
    count = len(effects)
    products, aimed = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for sample in range(len(wanted)):  # one by one: as float64 all at once would take memory
        rows = torch.stack([effect[sample].flatten().cpu().double() for effect in effects])
        products += rows @ rows.T
        aimed += rows @ wanted[sample].flatten().cpu().double()
    if not bool(torch.isfinite(products).all() and torch.isfinite(aimed).all()):  # the caller's velocity says where
        return torch.zeros_like(aimed)
    scale = products.diagonal().clamp_min(torch.finfo(torch.float64).tiny).rsqrt()
    normal = products * scale[:, None] * scale + (RIDGE + 1e-14) * torch.eye(count, dtype=torch.float64)
    return scale * torch.linalg.solve(normal, scale * aimed)
