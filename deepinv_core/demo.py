"""The demo: photographs through every method on an embedded model, as a report and a contact sheet."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .images import contact_sheet, difference_picture, load_photo, noise_picture, save_png
from .integrator import Callback
from .inversion import Inversion, reconstruct
from .methods import METHODS, Options, make_method
from .models.base_model import BaseModel
from .models.embedded import PHOTOS_FOLDER, load_embedded
from .runs import Run, bound_solver, choose_method, run
from .schedule import uniform_grid

PHOTOS = {"chelsea": "dog", "rocket": "ship", "coffee": "frog", "astronaut": "horse"}
"""scikit-image's photographs, none seen in training, and the class each is edited to."""

EDIT_CFG = 4.0

SHEET_TITLES = ("source", "the VAE's best", "inverted noise", "reconstruction", "difference x5", "edit by class")


def run_demo(
    output: Path, *, kind: str = "sd3", steps: int = 16, progress: Callable[[str], Callback | None] = lambda name: None
) -> dict[str, Any]:
    """Run every method on the shipped photographs; write ``contact_sheet.png`` into ``output``, made if missing.

    ``progress`` gives the callback for a method by its id. The report has the model, the photos, and a row a method as
    :func:`..runs.run` gives it.
    """
    began = time.perf_counter()
    model = load_embedded(kind)
    photos = torch.cat([load_photo(PHOTOS_FOLDER / f"{name}.png", side=model.image_size)[0] for name in PHOTOS])
    solver = bound_solver(model, None)
    grid = uniform_grid(steps)
    model.velocity("")(model.encode(photos), 1.0)  # the first call is slow (memory, kernels): keep it out of the table
    runs = {}
    for name in METHODS:
        if solver is not None or not METHODS[name].uses_solver:
            method = make_method(name, solver=solver)
            runs[name] = run(model, photos, method, grid, progress=_both_ways(progress(name)))
    best = choose_method(None, Options(), solver).id
    edits = edit_by_class(model, runs["anderson"].inversion)
    save_png(_sheet(photos, runs[best], edits), output / "contact_sheet.png")
    return {
        "model": model.name,
        "photos": list(PHOTOS),
        "edits": PHOTOS,
        "edit_method": "anderson",
        "best": best,
        "seconds_total": round(time.perf_counter() - began, 1),
        "runs": [result.report for result in runs.values()],
    }


def _both_ways(callback: Callback | None) -> Callable[[str], Callback | None]:
    return lambda stage: callback


def edit_by_class(model: BaseModel, inversion: Inversion) -> torch.Tensor:
    """Each photo of an inversion sampled back under the class it is to become; ``[B, 3, 64, 64]`` in [0, 1]."""
    backs = []
    for noise, target in zip(inversion.noise.split(1), PHOTOS.values(), strict=True):
        backs.append(reconstruct(model.velocity(target, cfg=EDIT_CFG), replace(inversion, noise=noise)).latent)
    return model.decode(torch.cat(backs))


def _sheet(photos: torch.Tensor, best: Run, edits: torch.Tensor) -> Any:
    rows = [
        (photo, ceiling, noise_picture(noise), back, difference_picture(photo, back), edit)
        for photo, ceiling, noise, back, edit in zip(
            photos, best.ceiling, best.inversion.noise, best.images, edits, strict=True
        )
    ]
    return contact_sheet(rows, SHEET_TITLES)
