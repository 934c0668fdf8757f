"""The predictor (ours, beyond arXiv 2601.01487): the network guesses first, the base model is asked where it leads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import DeepInvError
from ..flow import CountedVelocity
from ..integrator import Rule
from ..methods.anderson import Anderson
from ..methods.entry import Cost
from ..methods.implicit import Implicit, Point, first_known
from .config import TransformerConfig, size
from .fitted_walk import FittedRule, Walk
from .kind import Network, Solver


@dataclass(frozen=True, kw_only=True)
class PredictorConfig(TransformerConfig):
    """Geometry of the predictor, a single-stream transformer.

    It reads no prompt: the velocities it is given carry it, so one geometry fits every base model of its channels.
    The presets have the corrector's names: ``paper`` is as wide and deep as the released network, ``compact`` keeps
    the same bounds in FLOPs, ``tiny`` is for the embedded model.

    Attributes:
        layers: Blocks.
        closing: walks in which the guess is a feature of a fitted step, each for a grid and a K, the best first, as
            JSON values (:meth:`.fitted_walk.Walk.plain`): no tensors, so that their digits don't depend on the
            network's dtype.
    """

    role: ClassVar[str] = "predictor"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"heads": 24, "head_dim": 64, "layers": 11},
        "compact": {"heads": 12, "head_dim": 64, "layers": 12},
        "tiny": {"heads": 4, "head_dim": 32, "layers": 4, "pos_table": 4, "pos_base": 4},
    }

    layers: int = size(1, 128)
    closing: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.closing, list | tuple):
            raise DeepInvError(f"Solver setting closing is {self.closing!r:.60}: a list of closing fits is accepted.")
        object.__setattr__(self, "closing", tuple(self.closing))
        _ = self.walks

    @cached_property
    def walks(self) -> tuple[Walk, ...]:
        """The closing fit."""
        return tuple(map(Walk.read, self.closing))

    def to_dict(self) -> dict[str, Any]:
        """Without a closing fit as versions wrote it that knew none, and can read it."""
        found = super().to_dict()
        return found if self.closing else {name: value for name, value in found.items() if name != "closing"}

    def build(self) -> Network:
        """A fresh network of this geometry."""
        from .predictor_network import PredictorNetwork  # brings diffusers, which takes seconds

        return PredictorNetwork(self)


@dataclass(frozen=True)
class Predictor(Solver):
    """The guess from the last velocities, then one evaluation at the point it predicts.

    In the first step the velocity known is that of :func:`..methods.implicit.first_known`: one evaluation for the
    whole walk.
    """

    config_type: ClassVar[type[PredictorConfig]] = PredictorConfig
    cost: ClassVar[Cost] = Cost(1, refine=1, once=1)
    uses_history: ClassVar[bool] = False

    def rule(self, refine: int, tolerance: float = 0.0) -> Rule:
        """1 + ``refine`` Anderson iterations from the guess, or the closing fit's step where it has the grid."""
        alone = Implicit(self, Anderson(1 + refine, tolerance))
        walks = () if tolerance else tuple(walk for walk in self._walks if walk.refine == refine)
        return FittedRule(walks, self.predict, alone) if walks else alone

    def grid(self, steps: int, refine: int) -> Tensor | None:
        """The closing fit's, the first of these N and K; None without one."""
        return next((walk.sigmas for walk in self._walks if (walk.steps, walk.refine) == (steps, refine)), None)

    @property
    def _walks(self) -> tuple[Walk, ...]:
        config = getattr(self.network, "config", None)
        return config.walks if isinstance(config, PredictorConfig) else ()

    def __call__(self, v: CountedVelocity, point: Point) -> Tensor:
        """A guess; free, but for one evaluation in the first step."""
        history = point.history or (first_known(v, point.z, point.step),)
        point = point._replace(history=history)
        return self.predict(point)

    def predict(self, point: Point) -> Tensor:
        """The guess from the velocities in ``point.history``."""

        def times(value: float) -> Tensor:
            return torch.full((len(point.z),), value, device=point.z.device, dtype=torch.float32)

        last = point.history[-1]
        return self.network(
            last=last.velocity,
            slope=point.slope(),
            latent=point.z,
            latent_clean=point.latent_clean,
            sigma=times(point.step.sigma_next),
            sigma_last=times(last.sigma),
            h=times(point.step.h),
        )
