"""Experiment 4: lambda_1, lambda_2 and k on a grid: what the fused label's weights are worth.

lambda_1 weighs the self label in the noisy part of the trajectory, lambda_2 = 1 - lambda_1 the stored one; the share k
next to the image has the stored label alone. A seed's cells all go on from one solver that has been through round 0.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Final

import torch

from ...deepinv_core.solver import Network
from .. import plots, tables
from ..store import Row
from .common import PAPER, TRAINED, Scale, Setup, round_trips, train, trained
from .experiment import Experiment, Report, as_json

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
RECIPES: Final = {
    name: replace(ROUND_1, weight_self=weight, weight_stored=1 - weight, switch=switch)
    for (weight, switch), name in CELLS.items()
}


@lru_cache(maxsize=1)
def _round_0(setup: Setup, scale: Scale, seed: int) -> Network:
    return train(setup, ROUND_0, scale, seed)[0]


def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> Row:
    """Go on from round 0's solver, and measure; the variant without a cell is that solver itself."""
    network = copy.deepcopy(_round_0(setup, scale, seed)).requires_grad_(True)
    if variant != BEFORE:
        return trained(setup, RECIPES[variant], scale, seed, STEPS, start=network)
    return {"evaluations": 0, "final": round_trips(setup, STEPS, TRAINED, network, images=scale.images)}


def draw(report: Report, path: Path) -> None:
    """The gain over round 0's solver, a map a step count."""
    title = "Latent SNR gained since round 0, dB, mean of the seeds"
    made, panels = plots.figure(len(STEPS), title=title, size=(5.4, 3.8))
    variants, columns = tables.by_variant(report), (*SWITCHES, 1.0)
    for at, (steps, panel) in enumerate(zip(STEPS, panels, strict=True)):
        before = {row["seed"]: row["final"][at]["snr"] for row in variants[BEFORE]}
        values = torch.full((len(WEIGHTS), len(columns)), float("nan"))
        for (row, weight), (column, switch) in product(enumerate(WEIGHTS), enumerate(columns)):
            runs = variants[CELLS.get((weight, switch), CELLS[0.7, 1.0])]
            gains = [run["final"][at]["snr"] - before[run["seed"]] for run in runs]
            values[row, column] = sum(gains) / len(gains)
            half = "" if len(gains) < 2 else f"\n±{(max(gains) - min(gains)) / 2:.1f}"
            panel.text(column, row, f"{values[row, column]:+.1f}{half}", ha="center", va="center", fontsize="small")
        panel.imshow(values, cmap="RdYlGn", vmin=-16, vmax=16, aspect="auto")
        panel.set_xticks(range(len(columns)), [f"{switch:g}" for switch in columns])
        panel.set_yticks(range(len(WEIGHTS)), [f"{weight:g} / {1 - weight:g}" for weight in WEIGHTS])
        panel.set(xlabel="k", title=f"N = {steps}")
        panel.grid(False)
    panels[0].set_ylabel("lambda_1 / lambda_2")
    plots.save(made, path)


SETTINGS: Final = {"round_0": ROUND_0.to_dict(), "recipes": as_json(RECIPES)}
TABLE: Final = partial(tables.by_seeds, what="lambda_1 / lambda_2, k", extra=["skipped"])
EXPERIMENT: Final = Experiment(
    "label_weights", Scale(4000, images=24), (BEFORE, *RECIPES), SETTINGS, measure, draw, TABLE
)
