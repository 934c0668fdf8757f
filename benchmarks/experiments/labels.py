r"""Experiment 3: which label teaches the solver? The denoising label, the self label, and the two fused.

    python -m comfyui_deepinv.benchmarks.experiments.labels cifar10_jpeg.zip docs/experiments

The first three variants go twice through the curriculum, without growth; all spend the same base evaluations, those for
stored labels included. Denoising label: the velocities of sampling back from the noise that the round's solver gives,
unmixed, alone. Self label: the velocity at the predicted point. Fused: the recipe's, a round of self labels and one of
both. The last variant goes once through the curriculum, on denoising labels that the untrained solver, so Euler
inversion, made.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from PIL import Image
from torch import Tensor

from ...deepinv_core.inversion import invert, reconstruct
from .common import PAPER, Experiment, Report, Scale, Setup, bound_method, main, round_trips, train
from .drawing import by_variant, figure, save_figure, steps_table
from .trajectory import exact_trajectory, step_errors

if TYPE_CHECKING:
    from ...deepinv_core.solver import Network

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


def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> dict[str, Any]:
    """Train and measure; the first seed's reconstructions are kept as pictures."""
    network = (done := train(setup, RECIPES[variant], scale.evaluations, seed, config=scale.config)).network
    exact = exact_trajectory(setup, ERROR_STEPS, min(ERROR_IMAGES, scale.images))
    row = {**done.costs(), "final": round_trips(setup, STEPS, network=network, images=scale.images)}
    row["errors"] = step_errors(setup, network, exact)
    return row if seed != scale.seeds[0] else {**row, "pictures": pictures(setup, network)}


def baseline(setup: Setup, scale: Scale) -> dict[str, list[dict[str, Any]]]:
    """What needs no training."""
    return {"Euler": round_trips(setup, STEPS, method="euler", images=scale.images)}


def extras(setup: Setup, scale: Scale) -> dict[str, Any]:
    """What the plot shows beside the trainings: Euler's errors, its pictures, and the VAE's own decode."""
    exact = exact_trajectory(setup, ERROR_STEPS, min(ERROR_IMAGES, scale.images))
    ceiling = strip(setup.model.decode(setup.test.latents[:PICTURES]))
    return {"errors": step_errors(setup, None, exact), "pictures": pictures(setup, None), "ceiling": ceiling}


def pictures(setup: Setup, network: Network | None) -> str:
    """The first test photographs after a round trip, by Euler without a network."""
    velocity, clean = setup.bound().velocity, setup.test.latents[:PICTURES]
    method = bound_method(setup, network, "deepinv" if network else "euler")
    inversion = invert(velocity, clean, setup.model.grid(PICTURE_STEPS, clean), method)
    return strip(setup.model.decode(reconstruct(velocity, inversion).latent))


def strip(images: Tensor) -> str:
    """Images ``[B, 3, H, W]`` in [0, 1] below each other, as a PNG in base64."""
    pixels = (torch.cat(list(images), 1).permute(1, 2, 0) * 255).round().to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def draw(report: Report, path: Path) -> None:
    """Errors along the trajectory, and the reconstructions side by side."""
    made, axes = figure(4, title="Labels", height=5.2)
    variants = by_variant(report)
    kinds = {"local": "from the exact latent", "along": "inverting", "own": "inverting, to what the way back uses"}
    for panel, (kind, what) in zip(axes, kinds.items(), strict=False):
        found = {name: [row["errors"][kind] for row in rows] for name, rows in variants.items()}
        _draw_errors(panel, report["extras"]["errors"][kind], found)
        panel.set(yscale="log", xlabel="step, from the image", ylabel="squared error of the noise")
        panel.set_title(f"N = {ERROR_STEPS}, {what}")
    axes[0].legend(fontsize="small")
    columns = {"VAE": report["extras"]["ceiling"], "Euler": report["extras"]["pictures"]}
    columns |= {name: rows[0]["pictures"] for name, rows in variants.items()}
    decoded = [torch.from_numpy(_decoded(text)) for text in columns.values()]
    side = decoded[0].shape[1]
    axes[3].imshow(torch.cat(decoded, 1).numpy(), interpolation="nearest")
    axes[3].set_xticks(
        [side * (k + 0.5) for k in range(len(columns))], [textwrap.fill(name, 12) for name in columns], fontsize=7
    )
    axes[3].set_yticks([])
    axes[3].grid(False)
    axes[3].set_title(f"round trips, N = {PICTURE_STEPS}")
    save_figure(made, path)


def _draw_errors(panel: Any, euler: Sequence[float], errors: dict[str, list[list[float]]]) -> None:
    places = list(range(1, len(euler) + 1))
    panel.plot(places, euler, color="grey", linestyle=":", label="Euler")
    for number, (name, found) in enumerate(errors.items()):
        values = torch.tensor(found)
        panel.plot(places, values.mean(0), color=f"C{number}", label=name)
        panel.fill_between(places, values.amin(0), values.amax(0), color=f"C{number}", alpha=0.2, linewidth=0)


def _decoded(text: str) -> Any:
    import numpy as np

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).copy()


def table(report: Report) -> str:
    """Latent SNR in dB by N."""
    return steps_table(report, "label")


EXPERIMENT: Final = Experiment(
    name="labels",
    doc=str(__doc__),
    scale=Scale(evaluations=10000),
    variants=tuple(RECIPES),
    settings={"recipes": {n: r.to_dict() for n, r in RECIPES.items()}, "error_steps": ERROR_STEPS},
    measure=measure,
    baseline=baseline,
    extras=extras,
    draw=draw,
    table=table,
)

if __name__ == "__main__":
    main(EXPERIMENT)
