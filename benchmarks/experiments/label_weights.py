r"""Experiment 4: lambda_1, lambda_2 and k on a grid: what the fused label's weights are worth.

    python -m comfyui_deepinv.benchmarks.experiments.label_weights cifar10_jpeg.zip docs/experiments

A seed's cells all go on from one solver that has been through round 0, and train one round of stored labels. lambda_1
weighs the self label in the noisy part of the trajectory, lambda_2 = 1 - lambda_1 the stored one; the share k next to
the image has the stored label alone. At k = 1 the weights have no part, so there is one cell; lambda_1 = 1 and k = 0 is
the self label alone.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from ...training.recipes import PaperRecipe
from .common import PAPER, Experiment, Report, Scale, Setup, main, round_trips, train
from .drawing import by_variant, figure, markdown, save_figure, spread

if TYPE_CHECKING:
    from ...deepinv_core.solver import Network

STEPS: Final = (5, 10, 25, 50)
WEIGHTS: Final = (1.0, 0.7, 0.3, 0.0)
SWITCHES: Final = (0.0, 0.25, 0.5)
ROUND_0: Final = replace(PAPER, rounds=0, grow_right=0)
ROUND_1: Final = replace(PAPER, start_round=1, grow_right=0, label_images=16)
CELLS: Final = {
    **{(weight, switch): f"{weight:g} / {1 - weight:g}, k = {switch:g}" for switch in SWITCHES for weight in WEIGHTS},
    (0.7, 1.0): "k = 1",
}
BEFORE: Final = "after round 0"


def recipe(weight: float, switch: float) -> PaperRecipe:
    """A cell's."""
    return replace(ROUND_1, weight_self=weight, weight_stored=1 - weight, switch=switch)


RECIPES: Final = {name: recipe(*cell) for cell, name in CELLS.items()}


@lru_cache(maxsize=1)
def _round_0(setup: Setup, scale: Scale, seed: int) -> Network:
    return train(setup, ROUND_0, scale.evaluations, seed, config=scale.config).network


def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> dict[str, Any]:
    """Go on from round 0's solver, and measure; the variant without a cell is that solver itself."""
    start = copy.deepcopy(_round_0(setup, scale, seed)).requires_grad_(True)
    if variant == BEFORE:
        return {"evaluations": 0, "final": round_trips(setup, STEPS, network=start, images=scale.images)}
    done = train(setup, RECIPES[variant], scale.evaluations, seed, start=start)
    losses = {"skipped": done.skipped, "losses": [loss for _, loss in done.losses]}
    return {**done.costs(), **losses, "final": round_trips(setup, STEPS, network=done.network, images=scale.images)}


def draw(report: Report, path: Path) -> None:
    """The gain over round 0's solver, a map a step count."""
    made, axes = figure(len(STEPS), title="Latent SNR gained since round 0, dB, mean of the seeds", height=3.8)
    variants = by_variant(report)
    for at, (steps, panel) in enumerate(zip(STEPS, axes, strict=True)):
        columns = (*SWITCHES, 1.0)
        values = torch.full((len(WEIGHTS), len(columns)), float("nan"))
        for row, weight in enumerate(WEIGHTS):
            for column, switch in enumerate(columns):
                name = CELLS.get((weight, switch), CELLS[(0.7, 1.0)])
                gains = _gains(variants, name, at)
                values[row, column] = sum(gains) / len(gains)
                text = f"{values[row, column]:+.1f}" + (
                    "" if len(gains) < 2 else f"\n±{(max(gains) - min(gains)) / 2:.1f}"
                )
                panel.text(column, row, text, ha="center", va="center", fontsize="small")
        panel.imshow(values, cmap="RdYlGn", vmin=-16, vmax=16, aspect="auto")
        panel.set_xticks(range(len(columns)), [f"{switch:g}" for switch in columns])
        panel.set_yticks(range(len(WEIGHTS)), [f"{weight:g} / {1 - weight:g}" for weight in WEIGHTS])
        panel.set(xlabel="k", title=f"N = {steps}")
        panel.grid(False)
    axes[0].set_ylabel("lambda_1 / lambda_2")
    save_figure(made, path)


def _gains(variants: dict[str, list[dict[str, Any]]], name: str, at: int) -> list[float]:
    """By seed, of the step count at that place."""
    before = {row["seed"]: row["final"][at]["snr"] for row in variants[BEFORE]}
    return [row["final"][at]["snr"] - before[row["seed"]] for row in variants[name]]


def table(report: Report) -> str:
    """Latent SNR in dB by N, the updates that were not finite, and how unsteady the loss was."""
    lines = []
    for name, rows in by_variant(report).items():
        columns = zip(*(row["final"] for row in rows), strict=True)
        cells = [spread([point["snr"] for point in points]) for points in columns]
        skipped = "" if name == BEFORE else str(sum(row["skipped"] for row in rows))
        spent = round(sum(row["evaluations"] for row in rows) / len(rows))
        lines.append([name, *cells, f"{spent:,}", skipped])
    head = ["lambda_1 / lambda_2, k", *(f"N = {n}" for n in STEPS), "base evaluations", "updates skipped"]
    return markdown(head, lines)


EXPERIMENT: Final = Experiment(
    name="label_weights",
    doc=str(__doc__),
    scale=Scale(evaluations=4000, images=24),
    variants=(BEFORE, *RECIPES),
    settings={"round_0": ROUND_0.to_dict(), "recipes": {name: one.to_dict() for name, one in RECIPES.items()}},
    measure=measure,
    draw=draw,
    table=table,
)

if __name__ == "__main__":
    main(EXPERIMENT)
