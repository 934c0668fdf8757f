"""The cases that are compared: every method of the catalogue, with its K, and the trained solvers of both recipes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ..deepinv_core.methods import METHODS, Method, Options, make_method
from ..deepinv_core.methods.entry import Kept
from ..deepinv_core.models.embedded import solver_file
from ..deepinv_core.solver import Solver

Group = Kept | Literal["assisted"]

GROUPS: Final[dict[Group, str]] = {
    "pure": "pure: the noise alone",
    "+z_0": "+z_0: the noise and the clean latent",
    "+pair": "+pair: the last two latents",
    "assisted": "assisted: the trajectory, half of it blended in on the noisy half of the way back",
    "exact": "exact: the trajectory",
}
"""What the way back reads, from the least to the most: results of two groups are never compared."""


@dataclass(frozen=True)
class Case:
    """A line of the comparison.

    Attributes:
        method: id of :data:`METHODS`.
        refine: K, None for the method's default.
        solver: the solver used, ``fitted`` or one of the recipe ``fast`` or ``paper``; "" without one.
        assisted: whether the way back is that of DeepInv's released test code, which blends the trajectory in.

    >>> Case("anderson", 2).label, Case("deepinv", 0, "fast").label
    ('anderson K=2', 'fast K=0')
    """

    method: str
    refine: int | None = None
    solver: str = ""
    assisted: bool = False

    @property
    def label(self) -> str:
        """Name in tables."""
        name = self.solver + (" mixed" if self.method == "deepinv_mixed" else "") if self.solver else self.method
        k = "" if self.refine is None else f" K={self.refine}"
        return name + k + (", assisted" if self.assisted else "")

    def method_of(self, solver: Solver | None = None, seed: int = 0) -> Method:
        """The method itself, with its solver under a prompt; the seed is RF-Inversion's."""
        return make_method(self.method, Options(refine=self.refine, seed=seed), solver=solver)

    def cost(self, steps: int) -> int:
        """Base evaluations of an inversion of N steps."""
        entry = METHODS[self.method]
        k = entry.refine if self.refine is None else self.refine
        return entry.cost(steps, k or 0)

    @property
    def group(self) -> Group:
        """What its way back reads besides the noise."""
        return "assisted" if self.assisted else METHODS[self.method].kept


CASES: Final = (
    *(Case(name) for name in ("euler", "euler_source", "easyinv")),
    Case("fixed_point", 3),
    *(Case("anderson", k) for k in (1, 2, 3)),
    Case("renoise", 9),
    Case("ftedit", 3),
    *(Case(name) for name in ("rf_solver", "fireflow")),
    *(Case(name, 1) for name in ("uni_inv", "uni_inv_2")),
    *(Case("anderson_extrapolated", k) for k in (2, 3)),
    *(Case("deepinv", k, "fitted") for k in (0, 1, 2)),
    *(Case("deepinv", k, "paper") for k in (0, 1)),
    Case("deepinv_mixed", 0, "paper"),
    *(Case("deepinv", k, "fast") for k in (0, 1, 2)),
    Case("deepinv_mixed", 0, "fast"),
    Case("rf_inversion"),
    Case("leapfrog"),
    Case("euler", assisted=True),
    Case("deepinv_mixed", 0, "paper", assisted=True),
    Case("deepinv", 0, "fast", assisted=True),
    Case("direct_alignment"),
)
"""Every method at least once; of those that iterate the K that are at equal cost to another's."""

CONVERGED: Final = (Case("anderson_extrapolated", 15), Case("deepinv", 15, "fast"))
"""Iterated until nothing changes, from two guesses: what the others are on the way to, for the noise's health alone."""

FEW: Final = ("uni_inv K=1", "uni_inv_2 K=1", "fireflow", "anderson K=2", "fitted K=0", "fast K=0")
"""Those also measured off the images, sizes and prompts that solvers were trained for."""


def solver_files(kind: str) -> dict[str, Path]:
    """Solvers at hand for an embedded model, by name: those beside this file, else those that are shipped."""
    shipped = {"fitted": solver_file(kind, "fitted"), "paper": None, "fast": solver_file(kind)}
    beside = {name: Path(__file__).parent / "solvers" / f"{name}_{kind}.safetensors" for name in shipped}
    found = {name: beside[name] if beside[name].is_file() else path for name, path in shipped.items()}
    return {name: Path(path) for name, path in found.items() if path}
