"""DeepInv (arXiv 2601.01487): each step by a solver, trained or fitted, of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from ..errors import DeepInvError
from ..flow import CountedVelocity
from ..integrator import Advance, Rule, Step
from .easyinv import Mixed
from .entry import Cost, Entry, refine_option, tolerance_option

if TYPE_CHECKING:
    from ..solver.kind import Solver


@dataclass(frozen=True)
class DeepInv:
    """The solver's own rule for K, :meth:`..solver.kind.Solver.rule`; K = 0 is the paper.

    Attributes:
        solver: under its prompt; None until the method is made.
        refine: K.
        tolerance: where iterating stops.
    """

    solver: Solver | None = None
    refine: int = refine_option(0, least=0)
    tolerance: float = tolerance_option()

    @cached_property
    def _rule(self) -> Rule:
        if self.solver is None:
            raise DeepInvError("no solver was given: build the method with make_method")
        return self.solver.rule(self.refine, self.tolerance)

    def start(self, z: torch.Tensor, grid: Sequence[float], carried: Mapping[str, torch.Tensor]) -> Any:
        """The state of the solver's rule."""
        return self._rule.start(z, grid, carried)

    def step(self, v: CountedVelocity, z: torch.Tensor, step: Step, state: Any) -> Advance:
        """The step of the solver's rule."""
        return self._rule.step(v, z, step, state)


COST = Cost(1, refine=1, once=1)
NOTE = f"(paper's recipe: {Cost(1, refine=1)}), + N solver"
DEEPINV = Entry("deepinv", "DeepInv", DeepInv(), cost=COST, source="2601.01487", uses_solver=True, note=NOTE)
DEEPINV_MIXED = Entry(
    "deepinv_mixed",
    "DeepInv with EasyInv's mixing (released code)",
    Mixed(DeepInv()),
    cost=COST,
    uses_solver=True,
    note=NOTE,
)
