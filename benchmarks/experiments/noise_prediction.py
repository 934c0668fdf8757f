"""Experiment 6: beyond rectified flow. The same methods and solver on a model that predicts noise.

It is given the weights that :mod:`...tools.garments.noise_model` makes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from scipy.stats import spearmanr

from ...tools.garments.noise_model import load_noise_base
from .. import plots, tables
from ..cases import Case
from ..store import Row
from .common import FAST, PREDICTOR, Scale, Setup, of_steps, round_trips, train
from .experiment import Experiment, Report

STEPS: Final = (2, 4, 8, 16, 50)
RIVALS: Final = (Case("uni_inv", 1), Case("uni_inv_2", 1), Case("fireflow"))
"""The methods that cost N + 1 evaluations, as the solver with K = 0."""
OTHERS: Final = (Case("rf_solver"), Case("anderson", 1), Case("anderson", 2), Case("anderson_extrapolated", 2))
METHODS: Final = (Case("euler"), Case("easyinv"), *RIVALS, *OTHERS)

VARIANTS: Final = {"flow": "velocity (rectified flow)", "noise": "noise prediction"}


@cache
def _on(setup: Setup, variant: str) -> Setup:
    return setup if variant == "flow" else replace(setup, model=load_noise_base(setup.more_weights("noise model")))


def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> Row:
    """Train on one base, and send photographs there and back, K = 0 and 1."""
    mine = _on(setup, variant)
    network, costs = train(mine, FAST, scale, seed, config=PREDICTOR)
    cases = {str(k): Case("deepinv", k) for k in (0, 1)}
    trips = {k: round_trips(mine, STEPS, case, network, images=scale.images) for k, case in cases.items()}
    return {**costs, "round_trips": trips}


def baseline(setup: Setup, scale: Scale) -> dict[str, dict[str, Any]]:
    """The methods without a network, on both bases."""
    return {
        variant: {e.label: round_trips(_on(setup, variant), STEPS, e, images=scale.images) for e in METHODS}
        for variant in VARIANTS
    }


def _solver(report: Report, variant: str, k: str, steps: int) -> list[float]:
    return [of_steps(row["round_trips"][k], steps) for row in tables.by_variant(report)[variant]]


def table(report: Report) -> str:
    """Latent SNR in dB on both bases, the order's correlation, and the solver's gain over its best rival."""
    bases, columns, lines = report["baseline"], [f"N = {n}" for n in STEPS], []
    for variant, name in VARIANTS.items():
        found = {f"*{method}*": [f"{of_steps(rows, n):.1f}" for n in STEPS] for method, rows in bases[variant].items()}
        for k in ("0", "1"):
            found[f"our solver K={k}"] = [tables.spread(_solver(report, variant, k, n)) for n in STEPS]
        lines += [*tables.table([name, *columns], [[method, *cells] for method, cells in found.items()]), ""]
    pairs = [[[of_steps(rows, n) for rows in base.values()] for base in bases.values()] for n in STEPS]
    gains = [["rank correlation of the methods", *(f"{spearmanr(*pair).statistic:.2f}" for pair in pairs)]]
    for variant, name in VARIANTS.items():
        for rival in RIVALS:
            theirs = bases[variant][rival.label]
            over = [[snr - of_steps(theirs, n) for snr in _solver(report, variant, "0", n)] for n in STEPS]
            gains.append([f"{name}: solver K=0 over {rival.label}", *map(tables.spread, over)])
    return "\n".join([*lines, *tables.table(["", *columns], gains)])


def draw(report: Report, path: Path) -> None:
    """Latent SNR over N on each base."""
    title = "The same methods on two kinds of base model: latent SNR of round trips"
    made, panels = plots.figure(2, title=title, share_y=True)
    for panel, (variant, name) in zip(panels, VARIANTS.items(), strict=True):
        for number, (method, rows) in enumerate(report["baseline"][variant].items()):
            line = {"linestyle": ("--", ":")[number % 2], "color": f"C{number}", "linewidth": 1.3}
            panel.plot(STEPS, [of_steps(rows, n) for n in STEPS], label=method, **line)
        for k, colour in (("0", "black"), ("1", "dimgrey")):
            snr = torch.tensor([_solver(report, variant, k, n) for n in STEPS]).T
            plots.seeds_line(panel, STEPS, snr, colour, f"our solver K={k}", marker=4)
        panel.set_title(name)
        plots.step_axis(panel, STEPS)
    panels[0].set_ylabel("latent SNR, dB")
    panels[1].legend(fontsize="small", loc="upper left", ncol=2)
    plots.save(made, path)


SETTINGS: Final = {"recipe": FAST.to_dict(), "predictor": PREDICTOR.to_dict()}
EXPERIMENT: Final = Experiment(
    "noise_prediction", Scale(32000), tuple(VARIANTS), SETTINGS, measure, draw, table, {"baseline": baseline}
)
