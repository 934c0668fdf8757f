"""What is compared: every method of the catalogue, with its K, and the trained solvers of both recipes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final, Literal

from ..deepinv_core.embedded.model import solver_file
from ..deepinv_core.methods import METHODS
from ..deepinv_core.methods.registry import Kept

Group = Kept | Literal["assisted"]

GROUPS: Final[dict[Group, str]] = {
    "pure": "pure: the noise alone",
    "+z_0": "+z_0: the noise and the clean latent",
    "+pair": "+pair: the last two latents",
    "assisted": "assisted: the trajectory, half of it blended in on the noisy half of the way back",
    "exact": "exact: the trajectory",
}
"""What the way back reads, from the least to the most: results of two groups are never compared."""


def method_label(name: str, refine: int | None) -> str:
    """A method and its K, for people.

    Example:
        >>> method_label("anderson", 2)
        'anderson K=2'
    """
    return name if refine is None else f"{name} K={refine}"


@dataclass(frozen=True)
class Entry:
    """A line of the comparison.

    Attributes:
        method: id of :data:`METHODS`.
        refine: K, None for the method's default.
        solver: recipe of the solver used, ``fast`` or ``paper``; "" without one.
        assisted: whether the way back is that of DeepInv's released test code, which blends the trajectory in.
    """

    method: str
    refine: int | None = None
    solver: str = ""
    assisted: bool = False

    @property
    def label(self) -> str:
        """Name in tables."""
        name = self.solver + (" mixed" if self.method == "deepinv_mixed" else "") if self.solver else self.method
        return method_label(name, self.refine) + (", assisted" if self.assisted else "")

    @property
    def group(self) -> Group:
        """What its way back reads besides the noise."""
        return "assisted" if self.assisted else METHODS[self.method].kept


ENTRIES: Final = (
    Entry("euler"),
    Entry("euler_source"),
    Entry("easyinv"),
    Entry("fixed_point", 3),
    Entry("anderson", 1),
    Entry("anderson", 2),
    Entry("anderson", 3),
    Entry("renoise", 9),
    Entry("ftedit", 3),
    Entry("rf_solver"),
    Entry("fireflow"),
    Entry("uni_inv", 1),
    Entry("uni_inv_2", 1),
    Entry("anderson_extrapolated", 2),
    Entry("anderson_extrapolated", 3),
    Entry("deepinv", 0, "paper"),
    Entry("deepinv", 1, "paper"),
    Entry("deepinv_mixed", 0, "paper"),
    Entry("deepinv", 0, "fast"),
    Entry("deepinv", 1, "fast"),
    Entry("deepinv", 2, "fast"),
    Entry("deepinv_mixed", 0, "fast"),
    Entry("rf_inversion"),
    Entry("leapfrog"),
    Entry("euler", assisted=True),
    Entry("deepinv_mixed", 0, "paper", assisted=True),
    Entry("deepinv", 0, "fast", assisted=True),
    Entry("direct_alignment"),
)
"""Every method at least once; of those that iterate the K that are at equal cost to another's."""

CONVERGED: Final = (Entry("anderson_extrapolated", 15), Entry("deepinv", 15, "fast"))
"""Iterated until nothing changes, from two guesses: what the others are on the way to, for the noise's health alone."""

FEW: Final = tuple(
    entry
    for entry in ENTRIES
    if entry.label in ("uni_inv K=1", "uni_inv_2 K=1", "fireflow", "anderson K=2", "fast K=0")
)
"""Those also measured off the images, sizes and prompts that solvers were trained for."""


def solver_files(kind: str) -> dict[str, Path]:
    """Solvers at hand for an embedded model, by recipe: the shipped ``fast`` one, ``paper`` where there is one."""
    fast = solver_file(kind)
    paper = Path(str(resources.files(__package__))) / "solvers" / f"paper_{kind}.safetensors"
    files = {"fast": Path(fast) if fast else None, "paper": paper if paper.is_file() else None}
    return {name: path for name, path in files.items() if path is not None}
