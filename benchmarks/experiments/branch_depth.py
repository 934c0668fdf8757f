r"""Experiment 2: where do additional blocks help? None, right branch, left branch, both (the paper's Table 4).

    python -m comfyui_deepinv.benchmarks.experiments.branch_depth cifar10_jpeg.zip docs/experiments

All variants go through round 0, then through the same last passes at T = 50: the first trains the new blocks alone
(without growth: all weights), the others everything at a tenth of the learning rate. So "none" is trained as long as
the grown ones are. There are more of these passes than in the recipe, for the blocks to have their chance.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from .common import PAPER, Experiment, Report, Scale, Setup, main, round_trips, train
from .drawing import by_variant, figure, plot_by_steps, save_figure, steps_table

STEPS: Final = (1, 5, 10, 25, 50)
BASE: Final = replace(PAPER, rounds=0, last_sweeps=4, last_always=True)
RECIPES: Final = {
    "none": replace(BASE, grow_right=0),
    "right": replace(BASE, grow_right=1),
    "left": replace(BASE, grow_right=0, grow_left=1),
    "both": replace(BASE, grow_right=1, grow_left=1),
}


def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> dict[str, Any]:
    """Train and measure."""
    done = train(setup, RECIPES[variant], scale.evaluations, seed, config=scale.config)
    parameters = sum(parameter.numel() for parameter in done.network.parameters())
    final = round_trips(setup, STEPS, network=done.network, images=scale.images)
    return {**done.costs(), "parameters": parameters, "final": final}


def baseline(setup: Setup, scale: Scale) -> dict[str, list[dict[str, Any]]]:
    """What needs no training."""
    return {"Euler": round_trips(setup, STEPS, method="euler", images=scale.images)}


def draw(report: Report, path: Path) -> None:
    """Quality over N, and each seed's gain from growth at the two largest."""
    made, axes = figure(2, title="Branch depth: one more block, and where")
    plot_by_steps(axes[0], report)
    axes[0].set_title("after training, mean and range of the seeds")
    axes[0].legend(fontsize="small")
    grown = {name: rows for name, rows in by_variant(report).items() if name != "none"}
    without = {row["seed"]: row for row in by_variant(report)["none"]}
    for number, rows in enumerate(grown.values()):
        for place, steps in enumerate(STEPS[-2:]):
            at = STEPS.index(steps)
            pairs = [(row, without[row["seed"]]) for row in rows if row["seed"] in without]
            gains = [row["final"][at]["snr"] - none["final"][at]["snr"] for row, none in pairs]
            marker = {"marker": "so"[place], "color": f"C{number + 1}", "label": f"N = {steps}" if not number else None}
            axes[1].scatter([number + 0.2 * place - 0.1] * len(gains), gains, **marker)
    axes[1].axhline(0, color="grey", linewidth=0.8)
    axes[1].margins(y=0.35)
    axes[1].set_xticks(range(len(grown)), list(grown))
    axes[1].set(ylabel="latent SNR over no growth, dB", title="each seed against its own run without growth")
    axes[1].legend(fontsize="small")
    save_figure(made, path)


def table(report: Report) -> str:
    """Latent SNR in dB by N."""
    return steps_table(report, "blocks added", extra="parameters")


EXPERIMENT: Final = Experiment(
    name="branch_depth",
    doc=str(__doc__),
    scale=Scale(evaluations=9000),
    variants=tuple(RECIPES),
    settings={"recipes": {name: recipe.to_dict() for name, recipe in RECIPES.items()}},
    measure=measure,
    baseline=baseline,
    draw=draw,
    table=table,
)

if __name__ == "__main__":
    main(EXPERIMENT)
