"""Experiment 2: where do additional blocks help? None, right branch, left branch, both (the paper's Table 4).

All variants go through round 0, then through the same last passes at T = 50: the first trains the new blocks alone
(without growth: all weights), the others everything at a tenth of the learning rate. So "none" is trained as long as
the grown ones are. There are more of these passes than in the recipe, for the blocks to have their chance.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from .. import plots, tables
from ..store import Row
from .common import PAPER, Setup, round_trips, train
from .experiment import Experiment, Report, Scale, as_json, by_variant

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
    done = train(setup, RECIPES[variant], scale.evaluations, seed, config=scale.config)
    final = round_trips(setup, STEPS, network=done.network, images=scale.images)
    return {**done.costs, "parameters": done.parameters, "final": final}


def baseline(setup: Setup, scale: Scale) -> dict[str, Any]:
    """What needs no training."""
    return {"Euler": round_trips(setup, STEPS, method="euler", images=scale.images)}


def draw(report: Report, path: Path) -> None:
    """Quality over N, and each seed's gain from growth at the two largest."""
    variants = by_variant(report)
    made, panels = plots.figure(2, title="Branch depth: one more block, and where")
    plots.by_steps(panels[0], variants, report["baseline"])
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


def table(report: Report) -> str:
    """Latent SNR in dB by N."""
    return tables.by_seeds(by_variant(report), report["baseline"], "blocks added", ["updates", "parameters"])


EXPERIMENT: Final = Experiment(
    "branch_depth",
    Scale(evaluations=9000),
    tuple(RECIPES),
    {"recipes": as_json(RECIPES)},
    measure,
    draw,
    table,
    {"baseline": baseline},
)
