"""The fitted solver (ours): walks of :mod:`.fitted_walk`, each for a grid, as a kind of solver and its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from ..errors import DeepInvError
from ..integrator import Rule
from ..methods.entry import Cost
from .config import Config, size
from .fitted_walk import HISTORY, MOST_REFINE, MOST_STEPS, FittedRule, Walk
from .kind import Network, Solver, Under

SAME_PROMPT: Final = 0.05
"""By how much the mark of a prompt may differ, relative: encoders run in half precision too."""


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
