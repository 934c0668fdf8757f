"""Where a walk makes the host wait for the device, as torch's own sync debug mode sees it."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ...deepinv_core.flow import Velocity
from ...deepinv_core.inversion import invert
from ...deepinv_core.methods import Method
from ...deepinv_core.models.embedded import load_embedded
from ...deepinv_core.runs import best_grid
from .agreement import STEPS, cases, on, photographs
from .run import Run

SAID: Final = "synchronizing CUDA operation"
"""In the warning."""

ROOT: Final = Path(__file__).parents[2]


def measure(run: Run) -> None:
    """A row a method: waits within the loop, and in all; on a device without such a mode the walks alone."""
    steps = 4 if run.small else STEPS
    model = load_embedded("sd3")
    latents = photographs(model, 1).to(run.device)
    on(model, run.device)
    for case in cases(model):
        grid = best_grid(model, case.solver, case.method, steps, latents)
        waits, loop = counted(run, model.velocity(""), latents, grid, case.method)
        places = dict(Counter(waits[:loop])) if run.cuda else {}
        numbers = {"in_loop": loop, "in_all": len(waits)} if run.cuda else {"in_loop": None, "in_all": None}
        run.put("syncs", {"method": case.name, "steps": steps, **numbers, "places": places})


def counted(run: Run, velocity: Velocity, latents: Tensor, grid: Tensor, method: Method) -> tuple[list[str], int]:
    """Where an inversion waited, in order, and how many of these were before the loop's end."""
    invert(velocity, latents, grid, method)  # what is set up once may wait
    ends = [0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def waits() -> list[str]:
            return [f"{_place(one.filename)}:{one.lineno}" for one in caught if SAID in str(one.message)]

        if run.cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            invert(velocity, latents, grid, method, callback=lambda _: ends.append(len(waits())))
        finally:
            if run.cuda:
                torch.cuda.set_sync_debug_mode("default")
        return waits(), ends[-1]


def _place(file: str) -> str:
    path = Path(file)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
