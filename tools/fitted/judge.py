"""How a solver or a method does on a model's held-out photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from ...benchmarks.measure import candidate_grids, there_and_back
from ...benchmarks.quality import whiteness
from ...benchmarks.store import Row
from ...deepinv_core.inversion import latent_snr
from ...deepinv_core.methods import METHODS, Method, Options, make_method
from ...deepinv_core.solver import bind
from ...deepinv_core.solver.fit_solver import LEVEL, Fit
from ...deepinv_core.solver.fitted import FittedTable
from .subjects import Subject

FREE: Final[tuple[tuple[str, int | None], ...]] = (
    ("uni_inv_2", 1),
    ("fireflow", None),
    *(("anderson_extrapolated", k) for k in (1, 2, 3)),
)
"""The best of the methods without a solver at each cost, and their K; the benchmark has all."""


@dataclass(frozen=True)
class Judge:
    """Round trips of a model's photographs; every row goes to ``put``.

    Attributes:
        subject: the model and its photographs.
        samples: of its own, on which grids are chosen.
    """

    subject: Subject
    samples: Tensor
    put: Callable[[Row], None]

    def level(self, latents: Tensor, grid: Tensor, method: Method) -> tuple[Tensor, Tensor]:
        """Latent SNR of each round trip in dB, no more than :data:`LEVEL`, and the noise."""
        trip = there_and_back(self.subject.velocity, latents, grid, method)
        return latent_snr(trip.back.latent, latents).clamp_max(LEVEL), trip.inversion.noise

    def row(self, name: str, refine: int | None, grid: Tensor, method: Method, nfe: int) -> None:
        """Judge on the photographs."""
        snr, noise = self.level(self.subject.latents, grid, method)
        numbers = {"method": name, "refine": refine, "steps": len(grid) - 1, "nfe": nfe}
        levels = {"latent_snr_db": float(snr.mean()), "median": float(snr.median()), "least": float(snr.min())}
        seen = {name: float(value.mean()) for name, value in whiteness(noise).items()}
        self.put({**numbers, **levels, **seen, "sigmas": [round(s, 5) for s in grid.tolist()]})

    def fitted(self, fit: Fit, steps: int, refine: int) -> None:
        """A row of a fit's walk."""
        walk = fit.walks[fit.plan.walks.index((steps, refine))]
        solver = bind(FittedTable.of([walk], self.subject.info.channels), None, None)
        method = make_method("deepinv", Options(refine=refine), solver=solver)
        self.row("fitted", refine, walk.sigmas, method, solver.cost(steps, refine))

    def free(self, name: str, refine: int | None, steps: int, fitted: Sequence[Tensor]) -> None:
        """A row of a method without a solver, on the grid that is best on the samples; ``fitted`` are tried too."""
        method = make_method(name, Options(refine=refine))
        best = max(
            candidate_grids(steps, fitted), key=lambda grid: float(self.level(self.samples, grid, method)[0].mean())
        )
        self.row(name, refine, best, method, METHODS[name].cost(steps, refine or 0))
