r"""Fitted solvers beside the training-free methods: writes ``docs/fitted/NAME.jsonl``, of which docs/fitted.md is made.

    python -m comfyui_deepinv.tools.fitted.measure measure --models sd3 --device cuda
    python -m comfyui_deepinv.tools.fitted.measure measure --models sd3 --steps 8 16 --cfg 4 --photos 8
    python -m comfyui_deepinv.tools.fitted.measure report

Grids are chosen on the model's own samples, a fitted walk's and a training-free method's alike; the photographs only
judge. Under guidance only the best grids are measured, into ``NAME_cfgCFG.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ...benchmarks.measure import SHIFTS
from ...deepinv_core.atomic import replacing
from ...deepinv_core.inversion import invert, latent_snr, reconstruct
from ...deepinv_core.methods import METHODS, Method, Options, make_method
from ...deepinv_core.models.embedded import LAYOUTS
from ...deepinv_core.schedule import shifted_grid, uniform_grid
from ...deepinv_core.solver import bind
from ...deepinv_core.solver.fit_solver import LEVEL, Fit, FitBase, FitPlan, fit_solver
from ...deepinv_core.solver.fit_state import FitState
from ...deepinv_core.solver.fitted import FittedTable
from .report import write
from .subjects import GUIDED, Subject, load

STEPS: Final = (4, 8, 16)
REFINE: Final = (0, 1, 2)

FREE: Final[tuple[tuple[str, int | None], ...]] = (
    ("uni_inv_2", 1),
    ("fireflow", None),
    *(("anderson_extrapolated", k) for k in (1, 2, 3)),
)
"""The best of the methods beside at each cost, and their K; see docs/benchmark.md for all."""


@dataclass
class Measuring:
    """One model's measurement; every row goes to ``put`` as it is made."""

    subject: Subject
    photos: Tensor
    samples: Tensor
    put: Callable[[dict[str, Any]], None]

    def level(self, latents: Tensor, grid: Tensor, method: Method) -> tuple[Tensor, Tensor]:
        """Latent SNR of each round trip in dB, no more than :data:`LEVEL`, and the noise."""
        found = invert(self.subject.velocity, latents, grid, method)
        back = reconstruct(self.subject.velocity, found).latent
        return latent_snr(back, latents).clamp_max(LEVEL), found.noise

    def row(self, name: str, refine: int | None, grid: Tensor, method: Method, nfe: int, which: str) -> None:
        """Judge on the photographs."""
        began = time.perf_counter()
        snr, noise = self.level(self.photos, grid, method)
        numbers = {"method": name, "refine": refine, "steps": len(grid) - 1, "nfe": nfe, "grid": which}
        levels = {"latent_snr_db": float(snr.mean()), "median": float(snr.median()), "least": float(snr.min())}
        spent = {"seconds": round(time.perf_counter() - began, 2), "sigmas": [round(s, 5) for s in grid.tolist()]}
        self.put({**numbers, **levels, **whiteness(noise), **spent})

    def fitted(self, fit: Fit, steps: int, refine: int, which: str = "best") -> None:
        """A row of a fit's walk."""
        place = fit.plan.walks.index((steps, refine))
        walk, channels = fit.walks[place], self.subject.info.channels
        solver = bind(FittedTable.of([walk], channels), None, None)
        method = make_method("deepinv", Options(refine=refine), solver=solver)
        self.row("fitted", refine, walk.sigmas, method, solver.cost(steps, refine), which)

    def free(self, name: str, k: int | None, grids: list[Tensor], which: str = "best") -> None:
        """A row of a training-free method on the grid that is best on the samples."""
        method, nfe = make_method(name, Options(refine=k)), METHODS[name].cost(len(grids[0]) - 1, k or 0)

        def level(grid: Tensor) -> float:
            return float(self.level(self.samples, grid, method)[0].mean())

        self.row(name, k, max(grids, key=level) if len(grids) > 1 else grids[0], method, nfe, which)


def whiteness(noise: Tensor) -> dict[str, float]:
    """Standard deviation, and correlations of neighbouring pixels and of channels (root mean square), 0 for white."""
    z = noise.double()
    apart = [(z[..., 1:] * z[..., :-1]).mean(), (z[..., 1:, :] * z[..., :-1, :]).mean()]
    channels = torch.corrcoef(z.transpose(0, 1).flatten(1)) - torch.eye(z.shape[1], device=z.device)
    return {
        "noise_std": float(z.std()),
        "noise_neighbour": float(sum(apart) / 2 / z.var()),
        "noise_channels": float(channels.square().sum() / (z.shape[1] * (z.shape[1] - 1))) ** 0.5,
    }


def measure(subject: Subject, device: str, n: int, put: Callable[[dict[str, Any]], None], *, uniform: bool) -> None:
    """Fit ``n`` steps on a grid of their own, and on the uniform one, and judge; then the methods beside."""
    base = FitBase(subject.velocity, uniform_grid, subject.info, device=device, rows=8)
    photos = subject.latents
    plan, state = FitPlan(tuple((n, k) for k in REFINE), tuple(photos.shape[1:])), FitState()
    fits = {"best": fit_solver(base, plan, state)}
    assert state.samples is not None
    if uniform:
        fits["uniform"] = fit_solver(base, replace(plan, rounds=0), FitState())
    one = Measuring(subject, photos, state.samples.to(device), put)
    grids = [
        uniform_grid(n),
        *(shifted_grid(n, shift) for shift in SHIFTS),
        *(walk.sigmas for walk in fits["best"].walks),
    ]
    for which, fit in fits.items():
        for k in REFINE:
            one.fitted(fit, n, k, which)
        for name, k_ in FREE:
            one.free(name, k_, grids if which == "best" else grids[:1], which)
        for row in fit.rows:
            put({"fit": which, "evaluations": fit.evaluations, **row})


def _keep(path: Path, steps: int, rows: list[dict[str, Any]]) -> None:
    """Put the rows of a step count in the place of those that the file has of it."""
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in before if json.loads(line)["steps"] != steps]
    with replacing(path) as temporary:
        temporary.write_text("\n".join([*kept, *map(json.dumps, rows)]) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("measure", "report"))
    parser.add_argument("--models", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--cfg", type=float, default=1.0, help=f"with the prompt {GUIDED!r}, on photographs of it")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[2] / "docs" / "fitted")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    guided = args.cfg != 1
    for name in args.models if args.do == "measure" else ():
        subject = load(name, args.photos, args.device, prompt=GUIDED if guided else "", cfg=args.cfg)
        for n in args.steps:
            rows: list[dict[str, Any]] = []
            measure(subject, args.device, n, rows.append, uniform=not guided)
            _keep(args.output / f"{name}{f'_cfg{args.cfg:g}' if guided else ''}.jsonl", n, rows)
            sys.stdout.write(f"{name}, {n} steps: {len(rows)} rows\n")
    if args.do == "report":
        write(args.output)


if __name__ == "__main__":
    main()
