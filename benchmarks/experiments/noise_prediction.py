r"""Experiment 6: beyond rectified flow. The same methods and solver on a model that predicts noise.

    python -m comfyui_deepinv.benchmarks.experiments.noise_model cifar10_jpeg.zip runs/noise --steps 6000
    python -m comfyui_deepinv.benchmarks.experiments.noise_prediction cifar10_jpeg.zip docs/experiments \
        --base runs/noise/model.safetensors

Two base models of one architecture, on the same latents: the embedded SD3 model, which predicts a velocity, and the
one of ``noise_model``, which predicts noise under Stable Diffusion 1.5's schedule and is turned into a velocity by
``v = (z - denoised)/sigma``. Each is sampled on its own grid: uniform in sigma, and uniform in the timestep. Three
questions: does the round trip work, is the order of the methods the same, and what does a solver gain?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch

from ..records import method_label
from .common import Experiment, Report, Scale, Setup, main_with_file, of_steps, round_trips, train
from .drawing import by_variant, figure, markdown, save_figure, spread
from .noise_model import load_noise_base
from .short import FAST, PREDICTOR

STEPS: Final = (2, 4, 8, 16, 50)
METHODS: Final = (
    ("euler", None),
    ("easyinv", None),
    ("uni_inv", 1),
    ("uni_inv_2", 1),
    ("fireflow", None),
    ("rf_solver", None),
    ("anderson", 1),
    ("anderson", 2),
    ("anderson_extrapolated", 2),
)
RIVALS: Final = ("uni_inv K=1", "uni_inv_2 K=1", "fireflow")
"""The methods that cost N + 1 evaluations, as the solver with K = 0."""

VARIANTS: Final = {"flow": "velocity (rectified flow)", "noise": "noise prediction"}


def experiment(file: Path) -> Experiment:
    """The experiment with the weights of a noise-prediction model, read when they are needed."""
    model = cache(lambda: load_noise_base(file))

    def on(setup: Setup, variant: str) -> Setup:
        return replace(setup, model=model()) if variant == "noise" else setup

    def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> dict[str, Any]:
        mine = on(setup, variant)
        trained = train(mine, FAST, scale.evaluations, seed, config=PREDICTOR)
        trips = {
            str(k): round_trips(mine, STEPS, network=trained.network, refine=k, images=scale.images) for k in (0, 1)
        }
        return {**trained.costs(), "round_trips": trips}

    def baseline(setup: Setup, scale: Scale) -> dict[str, dict[str, Any]]:
        return {
            variant: {
                method_label(name, k): round_trips(
                    on(setup, variant), STEPS, method=name, refine=k, images=scale.images
                )
                for name, k in METHODS
            }
            for variant in VARIANTS
        }

    return Experiment(
        name="noise_prediction",
        doc=__doc__ or "",
        scale=Scale(evaluations=32_000),
        variants=tuple(VARIANTS),
        settings={"recipe": FAST.to_dict(), "predictor": PREDICTOR.to_dict()},
        measure=measure,
        draw=draw,
        table=table,
        baseline=baseline,
        options=" --base runs/noise/model.safetensors",
    )


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, ties in the order given: 1 for the same order, -1 for the opposite one.

    Example:
        >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
        0.5
    """
    ranks = [torch.tensor(values).argsort(stable=True).argsort().double() for values in (a, b)]
    count = len(a)
    return round(1 - 6 * float((ranks[0] - ranks[1]).square().sum()) / (count * (count**2 - 1)), 2)


def _solver(report: Report, variant: str, k: str, steps: int) -> list[float]:
    return [of_steps(row["round_trips"][k], steps) for row in by_variant(report)[variant]]


def table(report: Report) -> str:
    """Latent SNR in dB on both bases, the order's correlation, and the solver's gain over its best rival."""
    parts = []
    for variant, name in VARIANTS.items():
        lines = [
            [f"*{method}*", *(f"{of_steps(rows, n):.1f}" for n in STEPS)]
            for method, rows in report["baseline"][variant].items()
        ]
        for k in ("0", "1"):
            lines.append([f"our solver K={k}", *(spread(_solver(report, variant, k, n)) for n in STEPS)])
        parts.append(markdown([name, *(f"N = {n}" for n in STEPS)], lines))
    flow, noise = (report["baseline"][variant] for variant in VARIANTS)
    pairs = [[[of_steps(rows, n) for rows in base.values()] for base in (flow, noise)] for n in STEPS]
    lines = [["rank correlation of the methods", *(f"{rank_correlation(*pair):.2f}" for pair in pairs)]]
    for variant, name in VARIANTS.items():
        for rival in RIVALS:
            rows = report["baseline"][variant][rival]
            gains = [[snr - of_steps(rows, n) for snr in _solver(report, variant, "0", n)] for n in STEPS]
            lines.append([f"{name}: solver K=0 over {rival}", *map(spread, gains)])
    parts.append(markdown(["", *(f"N = {n}" for n in STEPS)], lines))
    return "\n\n".join(parts)


def draw(report: Report, path: Path) -> None:
    """Latent SNR over N on each base."""
    made, axes = figure(2, title="The same methods on two kinds of base model: latent SNR of round trips", share_y=True)
    for panel, (variant, name) in zip(axes, VARIANTS.items(), strict=True):
        for number, (method, rows) in enumerate(report["baseline"][variant].items()):
            line = ("--", ":")[number % 2]
            panel.plot(STEPS, [of_steps(rows, n) for n in STEPS], ls=line, color=f"C{number}", lw=1.3, label=method)
        for k, colour in (("0", "black"), ("1", "dimgrey")):
            snr = torch.tensor([_solver(report, variant, k, n) for n in STEPS])
            panel.plot(STEPS, snr.mean(1), color=colour, marker="o", markersize=4, label=f"our solver K={k}")
            panel.fill_between(STEPS, snr.amin(1), snr.amax(1), color=colour, alpha=0.2, linewidth=0)
        panel.set(xscale="log", xlabel="steps N", title=name)
        panel.set_xticks(STEPS, [str(n) for n in STEPS])
        panel.minorticks_off()
    axes[0].set_ylabel("latent SNR, dB")
    axes[1].legend(fontsize="small", loc="upper left", ncol=2)
    save_figure(made, path)


EXPERIMENT: Final = experiment(Path("runs/noise/model.safetensors"))


if __name__ == "__main__":
    main_with_file("--base", experiment)
