"""Experiment 1: does the paper's curriculum of step counts pay? T = 1 only, T = 50 only, the whole progression."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from .. import plots, tables
from ..cases import Case
from ..store import Row
from .common import PAPER, Scale, Setup, trained, untrained, watched
from .experiment import Experiment, Report, as_json

STEPS: Final = (1, 2, 5, 10, 25, 50)
CURVE_STEPS: Final = (5, 50)
CURVE_IMAGES: Final = 12
POINTS: Final = 6
BASELINES: Final = {"Euler": Case("euler"), "Uni-Inv (N + 1)": Case("uni_inv")}

ONE_ROUND: Final = replace(PAPER, rounds=0, grow_right=0)
RECIPES: Final = {
    "T = 1 only": replace(ONE_ROUND, curriculum=((1, 100),)),
    "T = 50 only": replace(ONE_ROUND, curriculum=((50, 100),)),
    "progression": ONE_ROUND,
    "progression, cycled": replace(ONE_ROUND, curriculum=tuple((t, p / 4) for t, p in PAPER.curriculum) * 4),
    "progression, all rounds": PAPER,
}
"""The single-stage variants have 100 passes at full length, so that their learning rate falls as T = 50's does."""


def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> Row:
    """Train, with round trips on the way and at the end."""
    curve, watch = watched(setup, CURVE_STEPS, min(CURVE_IMAGES, scale.images))
    shares = [k / POINTS for k in range(1, POINTS + 1)]
    return {**trained(setup, RECIPES[variant], scale, seed, STEPS, watch=watch, shares=shares), "curve": curve}


def draw(report: Report, path: Path) -> None:
    """Convergence at two step counts, and the final quality over all."""
    made, panels = plots.figure(3, title="Curriculum: latent SNR of round trips, mean and range of the seeds")
    for steps, panel in zip(CURVE_STEPS, panels, strict=False):
        for number, (name, rows) in enumerate(tables.by_variant(report).items()):
            plots.curve(panel, [row["curve"] for row in rows], steps, f"C{number}", name)
        panel.set(xlabel="base evaluations spent", ylabel="latent SNR, dB", title=f"N = {steps} during training")
    plots.by_steps(panels[-1], report)
    panels[-1].set_title("after training")
    plots.save(made, path)


SETTINGS: Final = {"recipes": as_json(RECIPES), "curve_steps": CURVE_STEPS}
TABLE: Final = partial(tables.by_seeds, what="trained on", extra=["updates"])
FIXED: Final = {"baseline": lambda setup, scale: untrained(setup, scale.images, STEPS, BASELINES)}
EXPERIMENT: Final = Experiment("curriculum", Scale(16000), tuple(RECIPES), SETTINGS, measure, draw, TABLE, FIXED)
