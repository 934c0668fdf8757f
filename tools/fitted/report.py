"""What docs/fitted.md shows of the measurements: its tables, between their markers, and its picture."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Final

from ...deepinv_core.atomic import replacing
from ...deepinv_core.models.embedded import LAYOUTS, solver_file
from ...deepinv_core.solver import load_solver
from ...deepinv_core.solver.fitted import FittedTable

PAGE: Final = Path(__file__).parents[2] / "docs" / "fitted.md"

ANDERSON: Final = ("anderson", "anderson_extrapolated")


def _rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of each model's file."""
    files = sorted(folder.glob("*.jsonl"))
    return {path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in files}


def _at_cost(rows: list[dict[str, Any]], steps: int, k: int, grid: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fitted row, and the best of the others that cost no more, of any number of steps."""
    judged = [row for row in rows if row.get("grid") == grid]
    own = next(r for r in judged if r["method"] == "fitted" and (r["steps"], r["refine"]) == (steps, k))
    others = [r for r in judged if r["method"] != "fitted" and r["nfe"] <= own["nfe"] and r["steps"] <= own["nfe"]]
    return own, max(others, key=lambda row: row["latent_snr_db"])


def _name(row: dict[str, Any]) -> str:
    refine = f", K = {row['refine']}" if row["refine"] is not None else ""
    return f"{row['method']}{refine}, {row['steps']} steps"


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each N and K: dB and the noise's deviation, fitted and the best other at that cost, on both grids."""
    judged = [row for row in rows if row.get("method") == "fitted"]
    lines = [
        "| N | NFE | fitted, best grid | best other at that cost, its best grid | fitted, uniform | other, uniform |",
        "|---|---|---|---|---|---|",
    ]
    for k in sorted({row["refine"] for row in judged}):
        for n in sorted({row["steps"] for row in judged}):
            (own, other), (plain, rest) = (_at_cost(rows, n, k, grid) for grid in ("best", "uniform"))
            shown = f"{own['latent_snr_db']:.1f} ({own['noise_std']:.2f})"
            beside = f"{other['latent_snr_db']:.1f} ({other['noise_std']:.2f}), {_name(other)}"
            lines.append(
                f"| {n} | {own['nfe']} | **{shown}** | {beside} | {plain['latent_snr_db']:.1f} "
                f"| {rest['latent_snr_db']:.1f}, {_name(rest)} |"
            )
    return "\n".join(lines)


def noise_table(rows: list[dict[str, Any]]) -> str:
    """What the noise looks like at K = 0 beside the best methods of that cost, each on its best grid."""
    lines = ["| N | method | deviation | neighbours | channels |", "|---|---|---|---|---|"]
    names = ("fitted", "fireflow", "uni_inv_2", "anderson_extrapolated")
    judged = [row for row in rows if row.get("grid") == "best" and row["method"] in names]
    for n in sorted({row["steps"] for row in judged}):
        for name in names:
            row = min((r for r in judged if (r["method"], r["steps"]) == (name, n)), key=lambda r: r["refine"] or 0)
            numbers = " | ".join(f"{row[f'noise_{key}']:.3f}" for key in ("std", "neighbour", "channels"))
            lines.append(f"| {n} | {name} | {numbers} |")
    return "\n".join(lines)


def plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """DB over evaluations, each method on its best grid, a panel a model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(found), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (model, rows) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        judged = [row for row in rows if row.get("grid") == "best"]
        for key in dict.fromkeys((row["method"], row["refine"]) for row in judged):
            line = sorted((r["nfe"], r["latent_snr_db"]) for r in judged if (r["method"], r["refine"]) == key)
            ours = key[0] == "fitted"
            label = f"{key[0]}, K = {key[1]}" if key[1] is not None else key[0]
            style = {"marker": "o", "linewidth": 2.2} if ours else {"linewidth": 0.9, "linestyle": "--"}
            axes.plot(*zip(*line, strict=True), label=label, **style)
        axes.set(xscale="log", xlabel="evaluations of the base model", ylabel="latent SNR, dB", title=model)
        axes.legend(fontsize="x-small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def plot_coefficients(path: Path, steps: int = 16) -> None:
    """The included fits' coefficients at K = 0 over sigma, a panel a model, beside those of methods without a fit.

    Adams' are those of the polynomial through the last two or three results, at the sigma that is aimed at.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, layout in zip(figure.subplots(1, len(LAYOUTS), sharey=True), LAYOUTS, strict=True):
        table = load_solver(solver_file(layout, "fitted") or "").solver
        assert isinstance(table, FittedTable)
        walk = next(walk for walk in table.walks(0) if walk.steps == steps)
        sigmas, history = walk.sigmas, walk.history
        for k in range(history):
            (line,) = axes.plot(sigmas[k + 2 :], walk.guess[k + 1 :, k], marker="o", markersize=3, label=f"a{k + 1}")
            for order, style in ((2, ":"), (3, "--")):
                at = range(order + 1, steps + 1)
                weights = [_extrapolation(sigmas[i - order : i + 1].tolist()) for i in at]
                if k < order:
                    axes.plot(sigmas[order + 1 :], [w[k] for w in weights], style, color=line.get_color(), linewidth=1)
        for k, name in enumerate(("z_i", "z_0")):
            axes.plot(sigmas[2:], walk.guess[1:, history + k], linewidth=1, label=f"a of {name}")
        axes.plot(sigmas[1:], 1 + walk.result[:, 0, 0], color="black", linewidth=1, label="1 + b, of the change")
        axes.axhline(1, color="grey", linewidth=0.6)  # Uni-Inv's guess: the last result
        axes.set(xlabel="sigma aimed at", title=f"{layout}, N = {steps}, K = 0", ylim=(-4, 4))
        axes.legend(fontsize="x-small", ncols=2)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _extrapolation(sigmas: list[float]) -> list[float]:
    """Lagrange weights at the last of ``sigmas`` of values at the others, the newest value's first."""
    *known, aimed = sigmas
    weights = [math.prod((aimed - other) / (own - other) for other in known if other != own) for own in known]
    return weights[::-1]


def write(folder: Path, page: Path = PAGE) -> None:
    """Draw the pictures and put the tables into the page, each between ``<!-- NAME -->`` and ``<!-- end -->``."""
    found = _rows(folder)
    plot(found, folder / "curves.png")
    plot_coefficients(folder / "coefficients.png")
    text = page.read_text(encoding="utf-8")
    for model, rows in found.items():
        for name, made in ((model, table(rows)), (f"{model} noise", noise_table(rows))):
            text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{made}\n\g<2>", text, flags=re.DOTALL)
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
