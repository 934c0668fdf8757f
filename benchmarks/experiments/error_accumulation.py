"""Experiment 5: how far is the solver's noise from the base model's own, at each step, as training goes on?

The base's own is that of trajectories whose noise is known exactly, see :mod:`.trajectory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from ...deepinv_core.solver import Network
from .. import plots, tables
from ..store import Row
from .common import PAPER, Scale, Setup, train
from .experiment import Experiment, Report
from .trajectory import exact_trajectory, step_errors

STEPS: Final = (10, 50)
IMAGES: Final = 16
SHARES: Final = (0.05, 0.15, 0.4, 0.7, 1.0)
"""Of the training, where the errors are measured."""
KINDS: Final = {
    "local": "to the exact noise,\neach step from the exact latent",
    "along": "to the exact noise,\nalong the solver's own inversion",
    "own": "to the velocity that the way back will use,\nalong the solver's own inversion",
}


def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> Row:
    """Train by the whole recipe, and measure on the way."""
    moments: list[Row] = []

    def watch(network: Network, evaluations: int) -> None:
        moments.append({"evaluations": evaluations, "errors": errors(setup, scale, network)})

    network, costs = train(setup, PAPER, scale, seed, watch=watch, shares=SHARES[:-1])
    watch(network, costs["evaluations"])
    return {**costs, "moments": moments}


def errors(setup: Setup, scale: Scale, network: Network | None = None) -> dict[str, Any]:
    """Errors of each step, by N; of Euler's guess, an untrained solver's, without a network."""
    images = min(IMAGES, scale.images)
    return {str(steps): step_errors(setup, network, exact_trajectory(setup, steps, images)) for steps in STEPS}


def draw(report: Report, path: Path) -> None:
    """Error over steps, a line a moment, the range of the seeds around it."""
    title = "Squared error of the noise, mean and range of the seeds"
    made, panels = plots.figure(len(KINDS), len(STEPS), title=title)
    kinds = [(steps, kind) for steps in STEPS for kind in KINDS]
    for panel, (steps, kind) in zip(panels, kinds, strict=True):
        places, untrained = range(1, steps + 1), report["baseline"][str(steps)][kind]
        panel.plot(places, untrained, color="grey", linestyle=":", label="untrained (Euler)")
        for number, share in enumerate(SHARES):
            values = torch.tensor([row["moments"][number]["errors"][str(steps)][kind] for row in report["rows"]])
            part = number / (len(SHARES) - 1)
            colour = (0.9 - 0.9 * part, 0.35, 0.1 + 0.8 * part)
            plots.seeds_line(panel, places, values, colour, f"{share:.0%} of training")
        title = f"N = {steps}, {KINDS[kind]}"
        panel.set(yscale="log", xlabel="step, from the image", ylabel="squared error", title=title)
    panels[0].legend(fontsize="small")
    plots.save(made, path)


def table(report: Report) -> str:
    """Squared errors in thousandths at each moment: means over steps, of the noise, and of the round trip."""
    lines = []
    for steps in STEPS:
        lines.append(_line("0 (Euler)", steps, [report["baseline"][str(steps)]]))
        for number, share in enumerate(SHARES):
            found = [row["moments"][number]["errors"][str(steps)] for row in report["rows"]]
            lines.append(_line(f"{share:.0%}", steps, found))
    head = ["training", "N", "local", "inverting", "own, first half", "own, second half"]
    return "\n".join(tables.table([*head, "noise z_N", "z_0 after sampling back"], lines))


def _line(moment: str, steps: int, found: Sequence[dict[str, Any]]) -> list[str]:
    half = steps // 2
    columns = (
        [sum(one["local"]) / steps for one in found],
        [sum(one["along"]) / steps for one in found],
        [sum(one["own"][:half]) / half for one in found],
        [sum(one["own"][half:]) / (steps - half) for one in found],
        [one["latent"][-1] for one in found],
        [one["back"] for one in found],
    )
    return [moment, str(steps), *(tables.spread([1000 * value for value in column]) for column in columns)]


SETTINGS: Final = {"recipe": PAPER.to_dict(), "steps": STEPS, "shares": SHARES, "error_images": IMAGES}
EXPERIMENT: Final = Experiment(
    "error_accumulation", Scale(11000), ("all rounds",), SETTINGS, measure, draw, table, {"baseline": errors}
)
