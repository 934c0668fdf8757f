r"""Experiment 5: how far is the solver's noise from the base model's own, at each step, as training goes on?

    python -m comfyui_deepinv.benchmarks.experiments.error_accumulation cifar10_jpeg.zip docs/experiments

The base's own noise is that of trajectories whose noise is known exactly (:mod:`.trajectory`). Against it, the local
error is that of each step taken from the exact latent; inverting, the errors of the steps before add up. The third
error is against the velocity at the latent that the solver's step leads to, by which the step back misses: a solver
may take another way than the base's and come back all the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from .common import PAPER, Experiment, Report, Scale, Setup, main, train
from .drawing import by_variant, figure, markdown, save_figure, spread
from .trajectory import exact_trajectory, step_errors

if TYPE_CHECKING:
    from ...deepinv_core.solver import Network

STEPS: Final = (10, 50)
IMAGES: Final = 16
SHARES: Final = (0.05, 0.15, 0.4, 0.7, 1.0)
"""Of the training, where the errors are measured."""
KINDS: Final = {
    "local": "to the exact noise,\neach step from the exact latent",
    "along": "to the exact noise,\nalong the solver's own inversion",
    "own": "to the velocity that the way back will use,\nalong the solver's own inversion",
}
VARIANT: Final = "all rounds"


def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> dict[str, Any]:
    """Train by the whole recipe, and measure on the way."""
    moments: list[dict[str, Any]] = []

    def watch(network: Network, evaluations: int) -> None:
        moments.append({"evaluations": evaluations, "errors": errors(setup, scale, network)})

    marks = [round(scale.evaluations * share) for share in SHARES[:-1]]
    done = train(setup, PAPER, scale.evaluations, seed, config=scale.config, watch=watch, marks=marks)
    watch(done.network, done.evaluations)
    return {**done.costs(), "moments": moments}


def errors(setup: Setup, scale: Scale, network: Network | None) -> dict[str, Any]:
    """Errors of each step, by N."""
    images = min(IMAGES, scale.images)
    return {str(steps): step_errors(setup, network, exact_trajectory(setup, steps, images)) for steps in STEPS}


def baseline(setup: Setup, scale: Scale) -> dict[str, Any]:
    """Euler's guess: what an untrained solver gives."""
    return errors(setup, scale, None)


def draw(report: Report, path: Path) -> None:
    """Error over steps, a line a moment, the range of the seeds around it."""
    made, axes = figure(len(KINDS), rows=2, title="Squared error of the noise, mean and range of the seeds")
    (rows,) = by_variant(report).values()
    for line, steps in enumerate(STEPS):
        for column, (kind, what) in enumerate(KINDS.items()):
            panel = axes[len(KINDS) * line + column]
            places = list(range(1, steps + 1))
            panel.plot(
                places, report["baseline"][str(steps)][kind], color="grey", linestyle=":", label="untrained (Euler)"
            )
            for number, share in enumerate(SHARES):
                values = torch.tensor([row["moments"][number]["errors"][str(steps)][kind] for row in rows])
                colour = (0.9 - 0.9 * number / (len(SHARES) - 1), 0.35, 0.1 + 0.8 * number / (len(SHARES) - 1))
                panel.plot(places, values.mean(0), color=colour, label=f"{share:.0%} of training")
                panel.fill_between(places, values.amin(0), values.amax(0), color=colour, alpha=0.2, linewidth=0)
            panel.set(yscale="log", xlabel="step, from the image", ylabel="squared error", title=f"N = {steps}, {what}")
    axes[0].legend(fontsize="small")
    save_figure(made, path)


def table(report: Report) -> str:
    """Squared errors in thousandths at each moment: means over steps, of the noise, and of the round trip."""
    (rows,) = by_variant(report).values()
    lines = [_line("0 (Euler)", steps, [report["baseline"][str(steps)]]) for steps in STEPS]
    for number, share in enumerate(SHARES):
        for steps in STEPS:
            lines.append(_line(f"{share:.0%}", steps, [row["moments"][number]["errors"][str(steps)] for row in rows]))
    lines.sort(key=lambda line: int(line[1]))
    head = ["training", "N", "local", "inverting", "own, first half", "own, second half"]
    return markdown([*head, "noise z_N", "z_0 after sampling back"], lines)


def _line(moment: str, steps: int, found: list[dict[str, Any]]) -> list[str]:
    """Squared errors in thousandths."""
    half = steps // 2
    columns = (
        [sum(one["local"]) / steps for one in found],
        [sum(one["along"]) / steps for one in found],
        [sum(one["own"][:half]) / half for one in found],
        [sum(one["own"][half:]) / (steps - half) for one in found],
        [one["latent"][-1] for one in found],
        [one["back"] for one in found],
    )
    return [moment, str(steps), *(spread([1000 * value for value in column]) for column in columns)]


EXPERIMENT: Final = Experiment(
    name="error_accumulation",
    doc=str(__doc__),
    scale=Scale(evaluations=11000),
    variants=(VARIANT,),
    settings={"recipe": PAPER.to_dict(), "steps": STEPS, "shares": SHARES, "error_images": IMAGES},
    measure=measure,
    baseline=baseline,
    draw=draw,
    table=table,
)

if __name__ == "__main__":
    main(EXPERIMENT)
