"""DeepInv: a trained network gives the step's noise, before the base model is asked or after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..flow import CountedVelocity
from ..solver.file import role_of
from .implicit import Point, TargetEuler, first_known

if TYPE_CHECKING:
    from ..solver.file import Network
    from ..solver.network import DeepInvSolver
    from ..solver.predictor import DeepInvPredictor


@dataclass(frozen=True)
class Corrected:
    """The paper (arXiv 2601.01487): ``eps* = e + g_phi(e, z_i, z_0, sigma_{i+1}, c)``, ``e = v(z_i, sigma_{i+1}, c)``.

    One base evaluation a step.

    Attributes:
        network: the corrector, or what wraps it for distributed training.
        context: prompt tokens ``[1, T, W]`` or one row a sample; None for a network without them.
        pooled: pooled prompt ``[1, P]``, as context.
        evaluations: base evaluations that complete the guess: none.
    """

    network: DeepInvSolver
    context: torch.Tensor | None
    pooled: torch.Tensor | None
    evaluations: int = 0
    uses_history: bool = False

    def __call__(self, v: CountedVelocity, point: Point) -> torch.Tensor:
        """Target-sigma Euler's noise, corrected by the network."""
        return self.corrected(v, TargetEuler()(v, point), point)

    def corrected(self, v: CountedVelocity, e: torch.Tensor, point: Point) -> torch.Tensor:
        """:meth:`correct`, as many rows at a time as there is memory for."""
        return v.in_chunks(len(e), lambda rows: self.part(rows).correct(e[rows], point.part(rows)))

    def part(self, rows: slice) -> Corrected:
        """The same for some rows of a batch."""
        context, pooled = (one if one is None or len(one) == 1 else one[rows] for one in (self.context, self.pooled))
        return replace(self, context=context, pooled=pooled)

    def correct(self, e: torch.Tensor, point: Point) -> torch.Tensor:
        """``eps*`` from an ``e`` that is already there."""
        time = _times(point, point.step.sigma_next)
        return self.network(
            velocity=e,
            latent=point.z,
            latent_clean=point.latent_clean,
            sigma=time,
            context=self.context,
            pooled=self.pooled,
        )


@dataclass(frozen=True)
class Predicted:
    """Ours: the network guesses from the last velocities, and the base model is evaluated at the predicted point.

    In the first step the velocity known is that of :func:`.implicit.first_known`: one evaluation for the whole walk,
    and each step needs one more to complete its guess.

    Attributes:
        network: the predictor, or what wraps it for distributed training.
        evaluations: base evaluations that complete the guess: one.
    """

    network: DeepInvPredictor
    evaluations: int = 1
    uses_history: bool = False

    def __call__(self, v: CountedVelocity, point: Point) -> torch.Tensor:
        """A guess; free, but for one evaluation in the first step."""
        history = point.history or (first_known(v, point.z, point.step),)
        point = point._replace(history=history)
        return v.in_chunks(len(point.z), lambda rows: self.predict(point.part(rows)))

    def predict(self, point: Point) -> torch.Tensor:
        """The guess from the velocities in ``point.history``."""
        last = point.history[-1]
        return self.network(
            last=last.velocity,
            slope=point.slope(),
            latent=point.z,
            latent_clean=point.latent_clean,
            sigma=_times(point, point.step.sigma_next),
            sigma_last=_times(point, last.sigma),
            h=_times(point, point.step.h),
        )


Solver = Corrected | Predicted
"""A network with its conditioning bound, as the step rule calls it."""


def bind(network: Network, context: torch.Tensor | None, pooled: torch.Tensor | None) -> Solver:
    """A solver network as a guess; a corrector under a prompt, context ``[1, T, W]`` and pooled ``[1, P]``."""
    if role_of(network.config) == "predictor":
        return Predicted(network)  # type: ignore[arg-type]
    return Corrected(network, context, pooled)  # type: ignore[arg-type]


def _times(point: Point, value: float) -> torch.Tensor:
    return torch.full((len(point.z),), value, device=point.z.device, dtype=torch.float32)
