"""The demo: photographs through every method on an embedded model, as a report and a contact sheet."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from .editing import DIALS, EditOptions, edit
from .images import contact_sheet, difference_picture, load_photo, noise_picture, save_png
from .integrator import Callback
from .inversion import Inversion
from .methods import METHODS, Options, make_method
from .metrics import psnr
from .models.base_model import BaseModel
from .models.embedded import PHOTOS_FOLDER, image_size, load_embedded
from .runs import FITTED, Run, best_grid, bound_solver, choose_method, run

PHOTOS: Final = {
    "longsleeve": ("red longsleeve", "blue t-shirt"),
    "dress": ("green dress", "pink skirt"),
    "t-shirt": ("blue t-shirt", "orange dress"),
    "pants": ("black pants", "white shorts"),
}
"""The shipped photographs, none seen in training, and what each is edited to: another colour, another garment."""

SHEET_TITLES: Final = (
    *("source", "the VAE's best", "inverted noise", "reconstruction", "difference x5"),
    *("another colour", "another garment"),
)
CELL: Final = 192
"""Pixels of a picture's side on the sheet."""


def photograph(name: str) -> Path:
    """The file of a shipped photograph."""
    return PHOTOS_FOLDER / f"{name}.jpg"


def photographs(side: int) -> torch.Tensor:
    """All of them, ``[4, 3, side, side]`` in [0, 1]."""
    return torch.cat([load_photo(photograph(name), side=side)[0] for name in PHOTOS])


def run_demo(
    output: Path, *, kind: str = "sd3", steps: int = 16, progress: Callable[[str], Callback | None] = lambda name: None
) -> dict[str, Any]:
    """Run every method on the shipped photographs; write ``contact_sheet.png`` into ``output``, made if missing.

    The fitted solver runs on its own grid, where it was fitted for so many steps; the others on the uniform one.

    ``progress`` gives the callback for a method by its id. The report has the model, the photos, a row a method as
    :func:`..runs.run` gives it, and each edit with what of the photo was kept, PSNR in dB against the VAE's best.
    """
    began = time.perf_counter()
    model = load_embedded(kind)
    photos = photographs(image_size())
    solver = bound_solver(model, None)
    best = choose_method(None, Options(), solver).id
    latents = model.encode(photos)
    model.velocity("")(latents, 1.0)  # the first call is slow (memory, kernels): keep it out of the table
    methods = {name: (name, solver) for name, entry in METHODS.items() if solver or not entry.uses_solver}
    if model.fit_path:
        methods[FITTED] = "deepinv", bound_solver(model, None, fitted=True)
    runs = {}
    for name, (method, own) in methods.items():
        made, watched = make_method(method, solver=own), _both_ways(progress(name))
        grid = best_grid(model, own, made, steps, latents)
        runs[name] = run(model, photos, made, grid, keep_trajectory=name == best, progress=watched)
    targets = zip(*PHOTOS.values(), strict=True)
    colours, garments = (edited(model, runs[best].inversion, list(prompts)) for prompts in targets)
    kept = torch.stack([psnr(images, runs[best].ceiling) for images in (colours, garments)], 1)
    save_png(_sheet(photos, runs[best], (colours, garments), kept), output / "contact_sheet.png")
    return {
        "model": model.name,
        "photos": list(PHOTOS),
        "edits": {
            photo: [{"prompt": prompt, "kept_db": round(float(db), 2)} for prompt, db in zip(prompts, row, strict=True)]
            for (photo, prompts), row in zip(PHOTOS.items(), kept, strict=True)
        },
        "best": best,
        "seconds_total": round(time.perf_counter() - began, 1),
        "runs": [result.report | {"method": name} for name, result in runs.items()],
    }


def _both_ways(callback: Callback | None) -> Callable[[str], Callback | None]:
    return lambda stage: callback


def edited(model: BaseModel, inversion: Inversion, prompts: list[str]) -> torch.Tensor:
    """Each photo of an inversion sampled back under its prompt, at DeepInv Edit's defaults; in [0, 1]."""
    hold = EditOptions(DIALS.strength, DIALS.anchor)
    return model.decode(edit(model.velocity(prompts, cfg=DIALS.cfg), inversion, hold).latent)


def _sheet(photos: torch.Tensor, best: Run, edits: tuple[torch.Tensor, torch.Tensor], kept: torch.Tensor) -> Any:
    """A row a photo, with PSNR in dB of what can be told in it: against the photo, and of edits against the VAE's."""
    close = torch.stack([psnr(best.ceiling, photos), psnr(best.images, photos)], 1)
    rows, captions = [], []
    for i, (name, prompts) in enumerate(PHOTOS.items()):
        noise, difference = noise_picture(best.inversion.noise[i]), difference_picture(photos[i], best.images[i])
        rows.append((photos[i], best.ceiling[i], noise, best.images[i], difference, edits[0][i], edits[1][i]))
        told = [f"{prompt}, {db:.1f} dB kept" for prompt, db in zip(prompts, kept[i].tolist(), strict=True)]
        ceiling, back = (f"{db:.1f} dB" for db in close[i].tolist())
        captions.append((name, ceiling, "", back, "", *told))
    return contact_sheet(rows, SHEET_TITLES, cell=CELL, captions=captions)
