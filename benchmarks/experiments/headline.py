r"""Experiment 9: the paper's headline in our setting, on the embedded SD3 model.

    python -m comfyui_deepinv.benchmarks.experiments.headline cifar10_jpeg.zip docs/experiments

The paper: SSIM 40.435 % above EasyInv and 9887.5 % faster than ReNoise, with 50 steps on SD3. Here: SSIM at 50 steps of
the shipped solvers and EasyInv, with the noise alone and with the trajectory blended in on the way back, as the
released test code does; NFE and time of each method at the quality that ReNoise has; and the base evaluations that
both recipes train for until they are equally good, from short trainings of networks of equal cost.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from ...deepinv_core.editing import edit
from ...deepinv_core.embedded.spec import CONTEXT_TOKENS, SD3_CONFIG
from ...deepinv_core.inversion import invert, latent_snr, reconstruct
from ...deepinv_core.methods import Options, make_method
from ...deepinv_core.metrics import ssim
from ...deepinv_core.solver import Config, bind, load_solver
from ...deepinv_core.solver.cost import solver_flops, transformer_flops
from ...tools.embedded.data import load_split, upsample
from ...training.recipes import Recipe
from ..entries import Entry, solver_files
from ..measure import ASSISTED as ASSISTED_BACK
from .common import CORRECTOR, PAPER, Experiment, Report, Scale, Setup, main, round_trips, train
from .drawing import by_variant, draw_curve, figure, markdown, save_figure, spread
from .short import FAST, PREDICTOR

if TYPE_CHECKING:
    from ...deepinv_core.solver import Network

STEPS: Final = (2, 4, 8, 16, 50)
LAST: Final = 50
SLOW: Final = "renoise K=9"
STRONG: Final = (SLOW, "easyinv", "paper K=0", "fast K=0")

ENTRIES: Final = (
    Entry("easyinv"),
    Entry("euler"),
    Entry("uni_inv", 1),
    Entry("fireflow"),
    Entry("anderson_extrapolated", 2),
    Entry("deepinv", 0, "paper"),
    Entry("deepinv_mixed", 0, "paper"),
    Entry("deepinv", 1, "paper"),
    Entry("deepinv", 0, "fast"),
    Entry("deepinv", 1, "fast"),
    Entry("renoise", 9),
)
ASSISTED: Final = (
    Entry("easyinv", assisted=True),
    Entry("euler", assisted=True),
    Entry("deepinv_mixed", 0, "paper", assisted=True),
    Entry("deepinv", 0, "fast", assisted=True),
)

RECIPES: Final[dict[str, tuple[Recipe, Config]]] = {"paper": (PAPER, CORRECTOR), "fast": (FAST, PREDICTOR)}
CURVE_STEPS: Final = (4, 8, 16)
CURVE_IMAGES: Final = 16
POINTS: Final = 10
REPEATS: Final = 2
SIDE: Final = 8
LONG_RUNS: Final = Path(__file__).absolute().parents[2] / "docs" / "training"
"""Reports of the trainings of the shipped solvers, where the documentation is at hand."""


class Bench:
    """The base, the shipped solvers, and the photographs their results are compared with."""

    def __init__(self, setup: Setup, archive: Path, images: int) -> None:
        self.setup, self.clean = setup, setup.test.latents[:images]
        self.photos = upsample(load_split(archive, "test").images[setup.test.rows[:images]])
        self.bound = setup.bound()
        self._solvers = {name: load_solver(file, expect=setup.model.info) for name, file in solver_files("sd3").items()}
        sizes = {"height": SIDE, "width": SIDE, "context_tokens": CONTEXT_TOKENS}
        base = transformer_flops("sd3", SD3_CONFIG, **sizes)
        self.shares = {name: solver_flops(one.config, **sizes) / base for name, one in self._solvers.items()}

    def run(self, entry: Entry, steps: int) -> dict[str, Any]:
        """A round trip: quality, base evaluations, cost with the solver's FLOPs, seconds of one core to invert."""
        solver = None
        if entry.solver:
            solver = bind(self._solvers[entry.solver].solver, self.bound.context, self.bound.pooled)
        method = make_method(entry.method, Options(refine=entry.refine), solver=solver)
        grid = self.setup.model.grid(steps, self.clean)
        seconds = []
        for _ in range(REPEATS if steps < LAST else 1):
            began = time.process_time()
            inversion = invert(self.bound.velocity, self.clean, grid, method, keep_trajectory=entry.assisted)
            seconds.append(time.process_time() - began)
        if entry.assisted:
            latent = edit(self.bound.velocity, inversion, ASSISTED_BACK).latent
        else:
            latent = reconstruct(self.bound.velocity, inversion).latent
        images, ceiling = self.setup.model.decode(latent), self.setup.model.decode(self.clean)
        return {
            "entry": entry.label,
            "steps": steps,
            "nfe": inversion.nfe,
            "cost": round(inversion.nfe + steps * self.shares.get(entry.solver, 0.0), 2),
            "seconds": round(min(seconds), 3),
            "snr": _mean(latent_snr(latent, self.clean)),
            "ssim": _mean(ssim(images, self.photos)),
            "ssim_to_vae": _mean(ssim(images, ceiling)),
        }

    def vae(self) -> float:
        """SSIM of the VAE alone against the photographs: the ceiling."""
        return _mean(ssim(self.setup.model.decode(self.clean), self.photos))


def _mean(values: Tensor) -> float:
    return round(float(values.mean()), 4)


def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> dict[str, Any]:
    """Train by one recipe, with round trips on the way, the untrained network's first."""
    recipe, config = RECIPES[variant]
    curve: list[dict[str, Any]] = []

    def watch(network: Network, evaluations: int) -> None:
        points = round_trips(setup, CURVE_STEPS, network=network, refine=0, images=min(CURVE_IMAGES, scale.images))
        curve.extend({"evaluations": evaluations, **point} for point in points)

    torch.manual_seed(seed)
    watch(config.build().eval(), 0)
    marks = [round(scale.evaluations * (k / POINTS) ** 2) for k in range(1, POINTS + 1)]
    trained = train(setup, recipe, scale.evaluations, seed, config=config, watch=watch, marks=marks)
    return {**trained.costs(), "curve": curve}


def long_runs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Curves of the shipped solvers' trainings at K = 0, from their reports; empty where there is no report."""
    found = {}
    for name, file in (("paper", "paper_sd3.jsonl"), ("fast", "solver_sd3.jsonl")):
        lines = (folder / file).read_text(encoding="utf-8").splitlines() if (folder / file).exists() else []
        rows = [(line["evaluations"], line["validation"]) for line in map(json.loads, lines) if "validation" in line]
        found[name] = [
            {"evaluations": evaluations, "steps": row["steps"], "snr": row["latent_snr_db"]}
            for evaluations, row in rows
            if row["method"] == "deepinv" and row["refine"] == 0
        ]
    return found


def experiment(archive: Path) -> Experiment:
    """The experiment on the photographs of an archive."""

    def baseline(setup: Setup, scale: Scale) -> dict[str, Any]:
        bench = Bench(setup, archive, scale.images)
        rows = [bench.run(entry, steps) for entry in ENTRIES for steps in STEPS]
        rows += [bench.run(entry, LAST) for entry in ASSISTED]
        return {"rows": rows, "ssim_of_the_vae": bench.vae(), "long_runs": long_runs(LONG_RUNS)}

    return Experiment(
        name="headline",
        doc=__doc__ or "",
        scale=Scale(evaluations=8_000),
        variants=tuple(RECIPES),
        settings={
            "recipes": {name: [recipe.to_dict(), config.to_dict()] for name, (recipe, config) in RECIPES.items()}
        },
        measure=measure,
        draw=draw,
        table=table,
        baseline=baseline,
    )


def at_quality(rows: Sequence[dict[str, Any]], level: float, cost: str) -> float | None:
    """What a method costs at a latent SNR, between its step counts: linear in dB, logarithmic in the cost.

    None where the level lies outside the method's measured curve.
    """
    points = sorted((row["steps"], row["snr"], row[cost]) for row in rows)
    for (_, low, cheap), (_, high, dear) in pairwise(points):
        if low <= level <= high:
            share = (level - low) / (high - low) if high > low else 0.0
            return math.exp(math.log(cheap) + share * (math.log(dear) - math.log(cheap)))
    return None


def evaluations_to(curve: Sequence[dict[str, Any]], steps: int, level: float) -> float | None:
    """Base evaluations after which a training's curve first has a latent SNR, linear between points; None: never."""
    points = [(point["evaluations"], point["snr"]) for point in curve if point["steps"] == steps]
    if points and points[0][1] >= level:
        return float(points[0][0])
    for (before, low), (after, high) in pairwise(points):
        if low < level <= high:
            return before + (level - low) / (high - low) * (after - before)
    return None


def by_entry(report: Report) -> dict[str, list[dict[str, Any]]]:
    """The rows of each method, without the assisted ones."""
    rows = [row for row in report["baseline"]["rows"] if "assisted" not in row["entry"]]
    return {name: [row for row in rows if row["entry"] == name] for name in dict.fromkeys(row["entry"] for row in rows)}


def table(report: Report) -> str:
    """SSIM against EasyInv; cost at ReNoise's quality; training cost to equal quality."""
    return "\n\n".join((_ssim_table(report), _renoise_table(report), _training_table(report)))


def _ssim_table(report: Report) -> str:
    """SSIM to the photo, in brackets over EasyInv's with the same way back; latent SNR at the last step count."""
    rows = report["baseline"]["rows"]
    found = {(row["entry"], row["steps"]): row for row in rows}
    lines = []
    for name in dict.fromkeys(row["entry"] for row in rows):
        easy = "easyinv, assisted" if "assisted" in name else "easyinv"
        cells = []
        for steps in STEPS:
            row, other = found.get((name, steps)), found.get((easy, steps))
            cells.append(f"{row['ssim']:.4f} ({_over(row['ssim'], other['ssim'])})" if row and other else "")
        last = found[name, LAST]
        lines.append([name, *cells, f"{last['snr']:.1f} dB, {last['nfe']}, {last['seconds']:.1f} s"])
    ceiling = report["baseline"]["ssim_of_the_vae"]
    gains = [f"{ceiling:.4f} ({_over(ceiling, found['easyinv', steps]['ssim'])})" for steps in STEPS]
    lines.append(["*the VAE alone*", *gains, ""])
    return markdown(["SSIM to the photo", *(f"N = {n}" for n in STEPS), f"latent SNR, NFE, time at N = {LAST}"], lines)


def _over(ssim: float, other: float) -> str:
    return f"{100 * (ssim / other - 1):+.1f} %"


def _renoise_table(report: Report) -> str:
    methods = by_entry(report)
    slow = methods.pop(SLOW)
    head = ["ReNoise at", *(f"N = {row['steps']}: {row['snr']:.1f} dB, {row['nfe']} NFE" for row in slow)]
    lines = []
    for name, rows in methods.items():
        cells = []
        for row in slow:
            cost, seconds = (at_quality(rows, row["snr"], key) for key in ("cost", "seconds"))
            if cost is None or seconds is None:
                first = rows[0]
                more = f"≥ {row['nfe'] / first['cost']:.1f} × fewer, ≥ {row['seconds'] / first['seconds']:.1f} × faster"
                cells.append(more if first["snr"] > row["snr"] else "not reached")
            else:
                cells.append(f"{row['nfe'] / cost:.1f} × fewer, {row['seconds'] / seconds:.1f} × faster")
        lines.append([name, *cells])
    return markdown(head, lines)


def _training_table(report: Report) -> str:
    curves = {name: [row["curve"] for row in rows] for name, rows in by_variant(report).items()}
    lines = []
    for steps in CURVE_STEPS:
        for owner in RECIPES:
            ends = [[p["snr"] for p in curve if p["steps"] == steps][-1] for curve in curves[owner]]
            level = sum(ends) / len(ends)
            needs = [_needs([evaluations_to(curve, steps, level) for curve in curves[name]]) for name in RECIPES]
            lines.append([str(steps), f"{level:.1f} dB, where {owner} ends", *needs])
        long = report["baseline"]["long_runs"]
        best = max((point["snr"] for point in long["paper"] if point["steps"] == steps), default=None)
        if best is not None:
            cells = [_needs([evaluations_to(long[name], steps, best)], long[name]) for name in RECIPES]
            lines.append([str(steps), f"{best:.1f} dB, the paper's best in the long runs", *cells])
    return markdown(["N", "latent SNR to reach", *(f"evaluations, {name}" for name in RECIPES)], lines)


def _needs(found: Sequence[float | None], curve: Sequence[dict[str, Any]] = ()) -> str:
    reached = [value for value in found if value is not None]
    if not reached:
        return "never"
    if curve and reached[0] == curve[0]["evaluations"]:
        return f"at most {reached[0]:,.0f}, its first check"
    rest = "" if len(reached) == len(found) else f", {len(reached)} of {len(found)} seeds"
    return f"{spread(reached, 0)}{rest}"


def draw(report: Report, path: Path) -> None:
    """SSIM over N, quality against time, quality against training."""
    made, axes = figure(3, title="The headline in our setting")
    for number, (name, rows) in enumerate(by_entry(report).items()):
        style = {"color": f"C{number % 10}", "lw": 2.4 if name in STRONG else 1, "ls": "--" if number > 9 else "-"}
        axes[0].plot([row["steps"] for row in rows], [row["ssim"] for row in rows], marker=".", label=name, **style)
        axes[1].plot([row["seconds"] for row in rows], [row["snr"] for row in rows], marker=".", **style)
    axes[0].axhline(report["baseline"]["ssim_of_the_vae"], color="grey", ls=":", label="the VAE alone")
    axes[0].set(xscale="log", xlabel="steps N", ylabel="SSIM to the photo", title="colours as in the middle")
    axes[0].set_xticks(STEPS, [str(n) for n in STEPS])
    axes[0].minorticks_off()
    axes[0].legend(fontsize="x-small", ncol=2)
    axes[1].set(xscale="log", xlabel="seconds of one core to invert", ylabel="latent SNR, dB", title="N = 2 to 50")
    for number, (name, rows) in enumerate(by_variant(report).items()):
        for steps in CURVE_STEPS:
            draw_curve(axes[2], [row["curve"] for row in rows], steps, f"C{number}", f"{name}, N = {steps}")
    for line, dashes in zip(axes[2].get_lines(), (":", "--", "-") * len(RECIPES), strict=False):
        line.set_linestyle(dashes)
    axes[2].set(xlabel="base evaluations of training", ylabel="latent SNR, dB", title="both recipes in training")
    axes[2].set_ylim(top=axes[2].get_ylim()[1] * 1.3)
    axes[2].legend(fontsize="small", loc="upper left", ncol=2)
    save_figure(made, path)


EXPERIMENT: Final = experiment(Path("cifar10_jpeg.zip"))


def run(given: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("data", type=Path)
    args, _ = parser.parse_known_args(given)
    main(experiment(args.data), given)


if __name__ == "__main__":
    run()
