r"""Fitted solvers under guidance, beside methods without a solver: writes ``docs/fitted/guided.jsonl``.

    python -m comfyui_deepinv.tools.fitted.guided [sd3 flux]

A fit knows one prompt: photographs of one garment are inverted under its name. Grids are chosen on the model's own
samples, a fitted walk's and a method's alike; the photographs only judge. Stopped, the command goes on.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from ...benchmarks.store import Key, Measure, Row, Store
from ...deepinv_core.models.embedded import LAYOUTS
from ...deepinv_core.schedule import uniform_grid
from ...deepinv_core.solver.fit_solver import FitBase, FitPlan, fit_solver
from ...deepinv_core.solver.fit_state import FitState
from .judge import FREE, Judge
from .subjects import GUIDED, ROOT, Subject, load

STEPS: Final = (8, 16)
CFGS: Final = (2.0, 4.0)
REFINE: Final = (0, 1, 2)


def measure(subject: Callable[[], Subject], steps: int) -> list[Row]:
    """Fit a model for one N on grids of its own, and judge; then the methods beside."""
    rows: list[Row] = []
    model, state = subject(), FitState()
    plan = FitPlan(tuple((steps, k) for k in REFINE), tuple(model.latents.shape[1:]))
    fit = fit_solver(FitBase(model.velocity, uniform_grid, model.info, rows=8), plan, state)
    assert state.samples is not None
    judge = Judge(model, state.samples, rows.append)
    for k in REFINE:
        judge.fitted(fit, steps, k)
    for name, refine in FREE:
        judge.free(name, refine, steps, [walk.sigmas for walk in fit.walks])
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layouts", nargs="*", default=LAYOUTS, metavar="LAYOUT")
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "fitted" / "guided.jsonl")
    args = parser.parse_args(arguments)
    store = Store(args.output, ("layout", "cfg", "steps"))
    store.begin("python -m comfyui_deepinv.tools.fitted.guided", {"photos": args.photos, "prompt": GUIDED})
    units: dict[Key, Measure] = {}
    for layout in args.layouts:
        for cfg in CFGS:
            subject = partial(load, layout, args.photos, prompt=GUIDED, cfg=cfg)
            units |= {(layout, cfg, steps): partial(measure, subject, steps) for steps in STEPS}
    store.measure(units)


if __name__ == "__main__":
    main()
