"""The benchmark's pictures: quality against cost, the noise's health, and the reconstructions themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..deepinv_core.atomic import replacing
from ..deepinv_core.images import contact_sheet, save_png
from .data import photographs
from .entries import Entry
from .measure import Suite, walk
from .records import Row
from .results import Results, front, points, trained

SHOWN: Final = {
    "euler": "tab:gray",
    "easyinv": "tab:olive",
    "renoise K=9": "tab:brown",
    "uni_inv K=1": "tab:cyan",
    "fireflow": "tab:blue",
    "rf_solver": "tab:purple",
    "anderson_extrapolated K=3": "tab:green",
    "paper K=0": "tab:pink",
    "fast K=0": "tab:red",
    "fast K=1": "orangered",
    "fast K=2": "darkorange",
}
"""Lines with a colour and a name; the other pure methods are drawn in light grey."""

TITLES: Final = {"sd3": "SD3 layout", "flux": "FLUX layout"}


def figure(columns: int, rows: int = 1, height: float = 6.2) -> tuple[Any, Any]:
    """An empty figure of ``[rows, columns]`` panels, without a window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(6.6 * columns, height * rows), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots(rows, columns, squeeze=False)


def save(made: Any, path: Path) -> None:
    """Write a PNG whole or not at all."""
    with replacing(path) as temporary:
        made.savefig(temporary, format="png", dpi=110)


def pareto(rows: Mapping[str, Sequence[Row]], path: Path, title: str) -> None:
    """Quality against cost, a panel a model; each point is drawn as its N."""
    made, (panels,) = figure(len(rows))
    for panel, (model, mine) in zip(panels, rows.items(), strict=True):
        _pareto_panel(panel, mine)
        panel.set_title(TITLES[model])
        panel.set_xlabel("base evaluations there and back, the solver's FLOPs included")
    panels[0].set_ylabel("latent SNR of the round trip, dB (95 % interval as a bar)")
    handles = {line.get_label(): line for panel in panels for line in panel.get_legend_handles_labels()[0]}
    made.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3 * len(rows), fontsize=9, frameon=False
    )
    made.suptitle(title)
    save(made, path)


def _pareto_panel(panel: Any, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    found = points(rows)
    for label in dict.fromkeys(point.entry for point in found):
        mine = [point for point in found if point.entry == label]
        x, y = [point.cost for point in mine], [point.snr for point in mine]
        if label not in SHOWN:
            panel.plot(x, y, color="0.85", linewidth=1, zorder=1)
            continue
        colour, own = SHOWN[label], trained(label)
        panel.plot(x, y, color=colour, linewidth=2 if own else 1.1, linestyle="-" if own else "--", label=label)
        panel.errorbar(x, y, [point.width for point in mine], fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.5)
        for point in mine:
            panel.scatter(point.cost, point.snr, s=95, color="white", zorder=3, linewidths=0)
            panel.text(
                point.cost, point.snr, str(point.steps), color=colour, fontsize=7.5, ha="center", va="center", zorder=4
            )
    best = front(found)
    panel.step(
        [point.cost for point in best],
        [point.snr for point in best],
        where="post",
        color="0.2",
        linewidth=5,
        alpha=0.1,
        zorder=0,
        label="front",
    )
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator([2, 4, 8, 16, 32, 64, 128, 256, 512]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    panel.grid(alpha=0.25)
    panel.set_ylim(bottom=max(-10, min(-3, *(point.snr - 2 for point in found))))


HEALTH: Final = {
    "noise_std": "standard deviation (white noise: 1)",
    "noise_neighbour": "correlation of neighbours (white noise: 0)",
}


def health(results: Results, path: Path) -> None:
    """Standard deviation and neighbour correlation of the noise over N, a row a model."""
    made, grid = figure(len(HEALTH), len(results.models), 4.2)
    for panels, model in zip(grid, results.models, strict=True):
        for panel, (metric, title) in zip(panels, HEALTH.items(), strict=True):
            _health_panel(panel, results.trips(model), metric)
            panel.set_title(f"{TITLES[model]}: {title}")
    grid[-1][0].set_xlabel("N")
    grid[-1][1].set_xlabel("N")
    handles, labels = grid[0][0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    made.suptitle("How white the inverted noise is: test images, CFG 1, empty prompt")
    save(made, path)


def _health_panel(panel: Any, rows: Sequence[Row], metric: str) -> None:
    from matplotlib.ticker import NullLocator

    for label, colour in SHOWN.items():
        mine = sorted((row["steps"], row[metric][0]) for row in rows if row["entry"] == label and metric in row)
        if mine:
            line = {"linewidth": 2, "linestyle": "-"} if trained(label) else {"linewidth": 1.1, "linestyle": "--"}
            panel.plot(*zip(*mine, strict=True), color=colour, marker=".", label=label, **line)
    panel.axhline(1 if metric == "noise_std" else 0, color="0.3", linewidth=0.8)
    panel.set_xscale("log")
    panel.set_xticks([1, 2, 4, 8, 16, 25, 50], labels=["1", "2", "4", "8", "16", "25", "50"], minor=False)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.grid(alpha=0.25)


PICTURED: Final = (
    ("euler", None, ""),
    ("easyinv", None, ""),
    ("uni_inv", 1, ""),
    ("fireflow", None, ""),
    ("anderson_extrapolated", 2, ""),
    ("deepinv", 0, "fast"),
    ("deepinv", 1, "fast"),
)
"""Method, K and solver of a column of reconstructions."""


def reconstructions(suite: Suite, path: Path, steps: int = 4) -> None:
    """The included photographs and what comes back of them, a column a method."""
    ready = suite.prepare(photographs())
    columns, titles = [ready.images.pixels, ready.ceiling], ["photo", "the VAE's best"]
    for name in PICTURED:
        entry = Entry(*name)
        if suite.has(entry):
            there = walk(suite, entry, ready.latent, steps)
            columns.append(suite.model.decode(there.back.latent))
            titles.append(f"{entry.label}: {there.inversion.nfe} NFE")
    save_png(contact_sheet(list(zip(*columns, strict=True)), titles, cell=170), path)
