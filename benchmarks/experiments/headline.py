"""Experiment 9: the paper's headline in our setting: SSIM against EasyInv, time against ReNoise, cost of training."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch

from ...deepinv_core.inversion import latent_snr
from ...deepinv_core.metrics import ssim
from ...deepinv_core.solver import Config
from ...training.recipes import Recipe
from .. import plots, tables
from ..cases import Case
from ..measure import open_suite
from ..photos import held_out
from ..store import Row
from .common import CORRECTOR, FAST, PAPER, PREDICTOR, Scale, Setup, train, watched
from .experiment import Experiment, Report

STEPS: Final = (2, 4, 8, 16, 50)
LAST: Final = 50
SLOW: Final = "renoise K=9"
STRONG: Final = (SLOW, "easyinv", "paper K=0", "fast K=0")

FREE: Final = (Case("easyinv"), Case("euler"), Case("uni_inv", 1), Case("fireflow"))
MIXED: Final = Case("deepinv_mixed", 0, "paper")
SOLVERS: Final = (Case("deepinv", 0, "paper"), MIXED, Case("deepinv", 1, "paper"), Case("deepinv", 0, "fast"))
CASES: Final = (*FREE, Case("anderson_extrapolated", 2), *SOLVERS, Case("deepinv", 1, "fast"), Case("renoise", 9))
ASSISTED: Final = tuple(replace(case, assisted=True) for case in (*FREE[:2], MIXED, SOLVERS[-1]))

RECIPES: Final[dict[str, tuple[Recipe, Config]]] = {"paper": (PAPER, CORRECTOR), "fast": (FAST, PREDICTOR)}
CURVE_STEPS: Final = (4, 8, 16)
CURVE_IMAGES: Final = 16
POINTS: Final = 10
REPEATS: Final = 2


def baseline(setup: Setup, scale: Scale) -> dict[str, Any]:
    """Round trips of the shipped solvers and other methods: quality, base evaluations, seconds of one core up."""
    suite, clean = open_suite("sd3"), setup.test.latents[: scale.images]
    photos = held_out(setup.archive, scale.images).pixels
    ceiling = suite.model.decode(clean)

    def measured(case: Case, steps: int) -> Row:
        repeats = REPEATS if steps < LAST else 1
        trips = [suite.trip(case, clean, steps, clock=time.process_time) for _ in range(repeats)]
        latent, nfe = trips[0].back.latent, trips[0].inversion.nfe
        images = suite.model.decode(latent)
        quality = {"snr": latent_snr(latent, clean), "ssim": ssim(images, photos), "ssim_to_vae": ssim(images, ceiling)}
        cost = round(nfe + steps * suite.share(case.solver), 2)
        row = {"entry": case.label, "steps": steps, "nfe": nfe, "cost": cost}
        row["seconds"] = round(min(trip.seconds[0] for trip in trips), 3)
        return row | {name: round(float(values.mean()), 4) for name, values in quality.items()}

    rows = [measured(case, steps) for case in CASES if suite.has(case) for steps in STEPS]
    rows += [measured(case, LAST) for case in ASSISTED if suite.has(case)]
    ssim_of_the_vae = round(float(ssim(ceiling, photos).mean()), 4)
    return {"rows": rows, "ssim_of_the_vae": ssim_of_the_vae}


def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> Row:
    """Train by one recipe, with round trips on the way, the untrained network's first."""
    recipe, config = RECIPES[variant]
    curve, watch = watched(setup, CURVE_STEPS, min(CURVE_IMAGES, scale.images))
    torch.manual_seed(seed)
    watch(config.build().eval(), 0)
    shares = [(k / POINTS) ** 2 for k in range(1, POINTS + 1)]
    _, costs = train(setup, recipe, scale, seed, config=config, watch=watch, shares=shares)
    return {**costs, "curve": curve}


def at_quality(rows: Sequence[Row], level: float, cost: str) -> float | None:
    """What a method costs at a latent SNR, linear in dB and logarithmic in the cost; None off its measured curve."""
    curve = [(math.log(row[cost]), row["snr"]) for row in sorted(rows, key=lambda row: row["steps"])]
    found = _first_at(curve, level)
    return None if found is None else math.exp(found)


def evaluations_to(curve: Sequence[Row], steps: int, level: float) -> float | None:
    """Base evaluations after which a training's curve first has a latent SNR, linear between points; None: never."""
    points = [(point["evaluations"], point["snr"]) for point in curve if point["steps"] == steps]
    return float(points[0][0]) if points and points[0][1] >= level else _first_at(points, level)


def _first_at(curve: Sequence[tuple[float, float]], level: float) -> float | None:
    """Where a curve of x and SNR first rises to a level, linear between points; None where it never does."""
    for (before, low), (after, high) in pairwise(curve):
        if low <= level <= high:
            return before + (level - low) / max(high - low, 1e-12) * (after - before)
    return None


def by_case(report: Report) -> dict[str, list[Row]]:
    """The rows of each method, without the assisted ones."""
    rows = [row for row in report["baseline"]["rows"] if "assisted" not in row["entry"]]
    return {name: [row for row in rows if row["entry"] == name] for name in dict.fromkeys(row["entry"] for row in rows)}


def table(report: Report) -> str:
    """SSIM against EasyInv; cost at ReNoise's quality; training cost to equal quality."""
    return "\n\n".join("\n".join(part(report)) for part in (_ssim_table, _renoise_table, _training_table))


def _ssim_table(report: Report) -> list[str]:
    """SSIM to the photo, in brackets over EasyInv's with the same way back; latent SNR at the last step count."""
    rows = report["baseline"]["rows"]
    found = {(row["entry"], row["steps"]): row for row in rows}

    def shown(value: float, easy: Row) -> str:
        return f"{value:.4f} ({100 * (value / easy['ssim'] - 1):+.1f} %)"

    lines = []
    for name in dict.fromkeys(row["entry"] for row in rows):
        easy = "easyinv, assisted" if "assisted" in name else "easyinv"
        pairs = [(found.get((name, n)), found.get((easy, n))) for n in STEPS]
        last = found[name, LAST]
        cells = [shown(row["ssim"], other) if row and other else "" for row, other in pairs]
        lines.append([name, *cells, f"{last['snr']:.1f} dB, {last['nfe']}, {last['seconds']:.1f} s"])
    ceiling = report["baseline"]["ssim_of_the_vae"]
    lines.append(["*the VAE alone*", *(shown(ceiling, found["easyinv", n]) for n in STEPS), ""])
    head = ["SSIM to the photo", *(f"N = {n}" for n in STEPS), f"latent SNR, NFE, time at N = {LAST}"]
    return tables.table(head, lines)


def _renoise_table(report: Report) -> list[str]:
    methods = by_case(report)
    slow = methods.pop(SLOW)
    lines = []
    for name, rows in methods.items():
        cells = []
        for row in slow:
            cost, seconds = (at_quality(rows, row["snr"], key) for key in ("cost", "seconds"))
            sign, first = "", rows[0]
            if cost is None or seconds is None:
                sign, cost, seconds = "≥ ", first["cost"], first["seconds"]
            faster = f"{sign}{row['nfe'] / cost:.1f} × fewer, {sign}{row['seconds'] / seconds:.1f} × faster"
            cells.append("not reached" if sign and first["snr"] <= row["snr"] else faster)
        lines.append([name, *cells])
    return tables.table(
        ["ReNoise at", *(f"N = {row['steps']}: {row['snr']:.1f} dB, {row['nfe']} NFE" for row in slow)], lines
    )


def _training_table(report: Report) -> list[str]:
    curves = {name: [row["curve"] for row in rows] for name, rows in tables.by_variant(report).items()}
    lines = []
    for steps in CURVE_STEPS:
        for owner in RECIPES:
            ends = [[p["snr"] for p in curve if p["steps"] == steps][-1] for curve in curves[owner]]
            level = sum(ends) / len(ends)
            needs = [_needs([evaluations_to(curve, steps, level) for curve in curves[name]]) for name in RECIPES]
            lines.append([str(steps), f"{level:.1f} dB, where {owner} ends", *needs])
    return tables.table(["N", "latent SNR to reach", *(f"evaluations, {name}" for name in RECIPES)], lines)


def _needs(found: Sequence[float | None]) -> str:
    reached = [value for value in found if value is not None]
    if not reached:
        return "never"
    return tables.spread(reached, 0) + ("" if len(reached) == len(found) else f", {len(reached)} of {len(found)} seeds")


def draw(report: Report, path: Path) -> None:
    """SSIM over N, quality against time, quality against training."""
    made, (left, middle, right) = plots.figure(3, title="The headline in our setting")
    for number, (name, rows) in enumerate(by_case(report).items()):
        style = {"color": f"C{number % 10}", "lw": 2.4 if name in STRONG else 1, "ls": "--" if number > 9 else "-"}
        left.plot([row["steps"] for row in rows], [row["ssim"] for row in rows], marker=".", label=name, **style)
        middle.plot([row["seconds"] for row in rows], [row["snr"] for row in rows], marker=".", **style)
    left.axhline(report["baseline"]["ssim_of_the_vae"], color="grey", ls=":", label="the VAE alone")
    plots.step_axis(left, STEPS)
    left.set(ylabel="SSIM to the photo", title="colours as in the middle")
    left.legend(fontsize="x-small", ncol=2)
    middle.set(xscale="log", xlabel="seconds of one core to invert", ylabel="latent SNR, dB", title="N = 2 to 50")
    for number, (name, rows) in enumerate(tables.by_variant(report).items()):
        for steps in CURVE_STEPS:
            plots.curve(right, [row["curve"] for row in rows], steps, f"C{number}", f"{name}, N = {steps}")
    for line, dashes in zip(right.get_lines(), (":", "--", "-") * len(RECIPES), strict=False):
        line.set_linestyle(dashes)
    right.set(xlabel="base evaluations of training", ylabel="latent SNR, dB", title="both recipes in training")
    right.set_ylim(top=right.get_ylim()[1] * 1.3)
    right.legend(fontsize="small", loc="upper left", ncol=2)
    plots.save(made, path)


SETTINGS: Final = {"recipes": {name: [one.to_dict() for one in both] for name, both in RECIPES.items()}}
EXPERIMENT: Final = Experiment(
    "headline", Scale(8000), tuple(RECIPES), SETTINGS, measure, draw, table, {"baseline": baseline}
)
