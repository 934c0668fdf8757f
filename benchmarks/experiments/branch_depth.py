"""Experiment 2: where do additional blocks help? None, right branch, left branch, both (the paper's Table 4)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from .. import plots, tables
from ..cases import Case
from ..store import Row
from .common import PAPER, Scale, Setup, trained, untrained
from .experiment import Experiment, Report, as_json

STEPS: Final = (1, 5, 10, 25, 50)
BASE: Final = replace(PAPER, rounds=0, last_sweeps=4, last_always=True)
RECIPES: Final = {
    "none": replace(BASE, grow_right=0),
    "right": replace(BASE, grow_right=1),
    "left": replace(BASE, grow_right=0, grow_left=1),
    "both": replace(BASE, grow_right=1, grow_left=1),
}


def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> Row:
    """Train and measure."""
    return trained(setup, RECIPES[variant], scale, seed, STEPS)


def draw(report: Report, path: Path) -> None:
    """Quality over N, and each seed's gain from growth at the two largest."""
    variants = tables.by_variant(report)
    made, panels = plots.figure(2, title="Branch depth: one more block, and where")
    plots.by_steps(panels[0], report)
    panels[0].set_title("after training, mean and range of the seeds")
    without = {row["seed"]: row for row in variants.pop("none")}
    for number, rows in enumerate(variants.values()):
        for place, steps in enumerate(STEPS[-2:]):
            at = STEPS.index(steps)
            pairs = [(row, without[row["seed"]]) for row in rows if row["seed"] in without]
            gains = [row["final"][at]["snr"] - none["final"][at]["snr"] for row, none in pairs]
            marker = {"marker": "so"[place], "color": f"C{number + 1}", "label": f"N = {steps}" if not number else None}
            panels[1].scatter([number + 0.2 * place - 0.1] * len(gains), gains, **marker)
    panels[1].axhline(0, color="grey", linewidth=0.8)
    panels[1].margins(y=0.35)
    panels[1].set_xticks(range(len(variants)), list(variants))
    panels[1].set(ylabel="latent SNR over no growth, dB", title="each seed against its own run without growth")
    panels[1].legend(fontsize="small")
    plots.save(made, path)


SETTINGS: Final = {"recipes": as_json(RECIPES)}
TABLE: Final = partial(tables.by_seeds, what="blocks added", extra=["updates", "parameters"])
FIXED: Final = {"baseline": lambda setup, scale: untrained(setup, scale.images, STEPS, {"Euler": Case("euler")})}
EXPERIMENT: Final = Experiment("branch_depth", Scale(9000), tuple(RECIPES), SETTINGS, measure, draw, TABLE, FIXED)
