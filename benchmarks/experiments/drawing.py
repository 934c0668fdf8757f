"""How the experiments' results are drawn and tabulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...deepinv_core.atomic import replacing
from ..tables import table
from .common import Report


def by_variant(report: Report) -> dict[str, list[dict[str, Any]]]:
    """The rows of each variant, in the order measured."""
    names = dict.fromkeys(row["variant"] for row in report["rows"])
    return {name: [row for row in report["rows"] if row["variant"] == name] for name in names}


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and range over seeds: ``12.3 (12.1–12.6)``."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(table(head, rows))


def figure(columns: int, *, title: str, rows: int = 1, height: float = 4.2, share_y: bool = False) -> tuple[Any, Any]:
    """A figure in the pages' style, and its axes as a flat list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(5.4 * columns, height * rows), layout="constrained")
    FigureCanvasAgg(made)
    made.suptitle(title)
    axes = made.subplots(rows, columns, squeeze=False, sharey=share_y).ravel().tolist()
    for one in axes:
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    return made, axes


def save_figure(made: Any, path: Path) -> None:
    """Write or replace a PNG."""
    with replacing(path) as temporary:
        made.savefig(temporary, format="png", dpi=90)


def plot_by_steps(axes: Any, report: Report, key: str = "final") -> None:
    """Latent SNR over N, a line a variant with the range of its seeds; the baselines in grey.

    Args:
        axes: to draw on.
        report: whose rows have a list of round trips under ``key``, and whose baseline is such lists by name.
        key: see ``report``.
    """
    steps: list[int] = []
    for number, (name, rows) in enumerate(by_variant(report).items()):
        steps = [point["steps"] for point in rows[0][key]]
        values = torch.tensor([[point["snr"] for point in row[key]] for row in rows])
        axes.plot(steps, values.mean(0), color=f"C{number}", marker="o", markersize=4, label=name)
        axes.fill_between(steps, values.amin(0), values.amax(0), color=f"C{number}", alpha=0.2, linewidth=0)
    for line, (name, points) in zip((":", "--", "-."), dict(report["baseline"] or {}).items(), strict=False):
        axes.plot([p["steps"] for p in points], [p["snr"] for p in points], color="grey", linestyle=line, label=name)
    axes.set(xscale="log", xlabel="steps N", ylabel="latent SNR, dB")
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.minorticks_off()


def draw_curve(axes: Any, curves: Sequence[list[dict[str, Any]]], steps: int, colour: str, name: str) -> None:
    """The mean over seeds of one step count's points, and their range."""
    chosen = [[point for point in curve if point["steps"] == steps] for curve in curves]
    count = min(map(len, chosen))
    snr = torch.tensor([[point["snr"] for point in points[:count]] for points in chosen])
    spent = torch.tensor([[float(point["evaluations"]) for point in points[:count]] for points in chosen]).mean(0)
    axes.plot(spent, snr.mean(0), color=colour, marker="o", markersize=3, label=name)
    axes.fill_between(spent, snr.amin(0), snr.amax(0), color=colour, alpha=0.2, linewidth=0)


def steps_table(report: Report, what: str, key: str = "final", extra: str = "") -> str:
    """Latent SNR by N of each variant, mean and range over seeds, and of the baselines; with the cost of training.

    ``extra`` names one more figure of the rows.
    """
    lines = []
    costs = ["evaluations", "updates", *([extra] if extra else [])]
    steps = [point["steps"] for point in report["rows"][0][key]]
    for name, points in report["baseline"].items():
        lines.append([f"*{name}*", *(f"{point['snr']:.1f}" for point in points), *("0" for _ in costs)])
    for name, rows in by_variant(report).items():
        columns = zip(*(row[key] for row in rows), strict=True)
        cells = [spread([point["snr"] for point in points]) for points in columns]
        means = [round(sum(row[cost] for row in rows) / len(rows)) for cost in costs]
        lines.append([name, *cells, *(f"{mean:,}" for mean in means)])
    return markdown([what, *(f"N = {n}" for n in steps), "base evaluations", *costs[1:]], lines)
