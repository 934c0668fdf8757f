"""Experiment 3: which label teaches the solver? The denoising label, the self label, and the two fused."""

from __future__ import annotations

import base64
import io
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...deepinv_core.images import to_image
from ...deepinv_core.solver import Network
from .. import plots, tables
from ..cases import Case
from ..measure import there_and_back
from ..store import Row
from .common import PAPER, TRAINED, Scale, Setup, round_trips, solver_of, train, untrained
from .experiment import Experiment, Report, as_json
from .trajectory import exact_trajectory, step_errors

STEPS: Final = (1, 5, 10, 25, 50)
ERROR_STEPS: Final = 25
ERROR_IMAGES: Final = 16
PICTURE_STEPS: Final = 10
PICTURES: Final = 5
BASE: Final = replace(PAPER, grow_right=0)
RECIPES: Final = {
    "denoising label": replace(BASE, start_round=1, rounds=2, switch=1.0, interpolation=0.0),
    "self label": replace(BASE, rounds=0, curriculum=BASE.curriculum * 2),
    "fused label": BASE,
    "denoising label, one round": replace(BASE, start_round=1, switch=1.0, interpolation=0.0),
}


def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> Row:
    """Train and measure; the first seed's reconstructions are kept as pictures."""
    network, costs = train(setup, RECIPES[variant], scale, seed)
    row = {**costs, "final": round_trips(setup, STEPS, TRAINED, network, images=scale.images)}
    row["errors"] = errors(setup, scale, network)
    return row if seed != scale.seeds[0] else {**row, "pictures": pictures(setup, network)}


def errors(setup: Setup, scale: Scale, network: Network | None) -> Row:
    """Errors of each step; of Euler's own without a network."""
    return step_errors(setup, network, exact_trajectory(setup, ERROR_STEPS, min(ERROR_IMAGES, scale.images)))


def extras(setup: Setup, scale: Scale) -> dict[str, Any]:
    """What the plot shows beside the trainings: Euler's errors, its pictures, and the VAE's own decode."""
    ceiling = strip(setup.model.decode(setup.test.latents[:PICTURES]))
    return {"errors": errors(setup, scale, None), "pictures": pictures(setup, None), "ceiling": ceiling}


def pictures(setup: Setup, network: Network | None) -> str:
    """The first test photographs after a round trip, by Euler without a network."""
    conditioned, clean = setup.conditioned(), setup.test.latents[:PICTURES]
    method = Case("deepinv" if network else "euler").method_of(solver_of(conditioned, network))
    trip = there_and_back(conditioned.velocity, clean, setup.model.grid(PICTURE_STEPS, clean), method)
    return strip(setup.model.decode(trip.back.latent))


def strip(images: Tensor) -> str:
    """Images ``[B, 3, H, W]`` in [0, 1] below each other, as a PNG in base64."""
    buffer = io.BytesIO()
    to_image(torch.cat(list(images), 1)).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def draw(report: Report, path: Path) -> None:
    """Errors along the trajectory, and the reconstructions side by side."""
    made, panels = plots.figure(4, title="Labels", size=(5.4, 5.2))
    variants, euler = tables.by_variant(report), report["extras"]["errors"]
    kinds = {"local": "from the exact latent", "along": "inverting", "own": "inverting, to what the way back uses"}
    for panel, (kind, what) in zip(panels, kinds.items(), strict=False):
        places = range(1, len(euler[kind]) + 1)
        panel.plot(places, euler[kind], color="grey", linestyle=":", label="Euler")
        for number, (name, rows) in enumerate(variants.items()):
            plots.seeds_line(panel, places, torch.tensor([row["errors"][kind] for row in rows]), f"C{number}", name)
        panel.set(yscale="log", xlabel="step, from the image", ylabel="squared error of the noise")
        panel.set_title(f"N = {ERROR_STEPS}, {what}")
    panels[0].legend(fontsize="small")
    columns = {"VAE": report["extras"]["ceiling"], "Euler": report["extras"]["pictures"]}
    columns |= {name: rows[0]["pictures"] for name, rows in variants.items()}
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in columns.values()]
    panels[3].imshow(np.concatenate(decoded, 1), interpolation="nearest")
    ticks = [decoded[0].shape[1] * (k + 0.5) for k in range(len(columns))]
    panels[3].set_xticks(ticks, [textwrap.fill(name, 12) for name in columns], fontsize=7)
    panels[3].set(yticks=[], title=f"round trips, N = {PICTURE_STEPS}")
    panels[3].grid(False)
    plots.save(made, path)


SETTINGS: Final = {"recipes": as_json(RECIPES), "error_steps": ERROR_STEPS}
TABLE: Final = partial(tables.by_seeds, what="label", extra=["updates"])
FIXED: Final = {
    "baseline": lambda setup, scale: untrained(setup, scale.images, STEPS, {"Euler": Case("euler")}),
    "extras": extras,
}
EXPERIMENT: Final = Experiment("labels", Scale(10000), tuple(RECIPES), SETTINGS, measure, draw, TABLE, FIXED)
