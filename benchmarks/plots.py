"""Figures: what all of them share, and the benchmark's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ..deepinv_core.atomic import replacing
from ..deepinv_core.images import contact_sheet, save_png
from .cases import CASES
from .measure import Suite
from .photos import photographs
from .results import Results, front, points, trained
from .store import Row
from .tables import by_variant

TITLES: Final = {"sd3": "SD3 layout", "flux": "FLUX layout"}

SHOWN: Final = {
    "euler": "tab:gray",
    "easyinv": "tab:olive",
    "renoise K=9": "tab:brown",
    "uni_inv K=1": "tab:cyan",
    "fireflow": "tab:blue",
    "rf_solver": "tab:purple",
    "anderson_extrapolated K=3": "tab:green",
    "fitted K=0": "black",
    "fitted K=1": "dimgrey",
    "fitted K=2": "darkgrey",
    "paper K=0": "tab:pink",
    "fast K=0": "tab:red",
    "fast K=1": "orangered",
    "fast K=2": "darkorange",
}
"""Lines with a colour and a name; the other pure methods are drawn in light grey."""


def figure(
    columns: int, rows: int = 1, *, title: str, size: tuple[float, float] = (5.4, 4.2), share_y: bool = False
) -> tuple[Any, list[Any]]:
    """A figure without a window system, and its panels row by row; ``size`` is a panel's, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only where something is drawn
    from matplotlib.figure import Figure

    made = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    FigureCanvasAgg(made)
    made.suptitle(title)
    panels = made.subplots(rows, columns, squeeze=False, sharey=share_y).ravel().tolist()
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return made, panels


def save(made: Any, path: Path, dpi: int = 90) -> None:
    """Write a PNG whole or not at all."""
    with replacing(path) as temporary:
        made.savefig(temporary, format="png", dpi=dpi)


def step_axis(panel: Any, steps: Sequence[int]) -> None:
    """A logarithmic axis with a mark at each N."""
    panel.set(xscale="log", xlabel="steps N")
    panel.set_xticks(steps, [str(count) for count in steps])
    panel.minorticks_off()


def seeds_line(panel: Any, x: Iterable[float], values: Tensor, colour: Any, label: str | None, marker: int = 0) -> None:
    """The mean of ``[seeds, points]`` over the seeds, and their range around it; ``marker`` is a size, 0 for none."""
    x, style = list(x), {"marker": "o", "markersize": marker} if marker else {}
    panel.plot(x, values.mean(0), color=colour, label=label, **style)
    panel.fill_between(x, values.amin(0), values.amax(0), color=colour, alpha=0.2, linewidth=0)


def by_steps(panel: Any, report: Row) -> None:
    """Latent SNR over N of a report of :func:`.tables.by_seeds`; in grey what needs no training."""
    steps = [point["steps"] for point in report["rows"][0]["final"]]
    for number, (name, rows) in enumerate(by_variant(report).items()):
        values = torch.tensor([[point["snr"] for point in row["final"]] for row in rows])
        seeds_line(panel, steps, values, f"C{number}", name, marker=4)
    for line, (name, rows) in zip((":", "--", "-."), report["baseline"].items(), strict=False):
        snr = [row["snr"] for row in rows]
        panel.plot([row["steps"] for row in rows], snr, color="grey", linestyle=line, label=name)
    step_axis(panel, steps)
    panel.set_ylabel("latent SNR, dB")
    panel.legend(fontsize="small")


def curve(panel: Any, curves: Sequence[Sequence[Row]], steps: int, colour: str, label: str) -> None:
    """Latent SNR at one N over base evaluations spent: the mean over the curves of seeds, and their range."""
    chosen = [[point for point in one if point["steps"] == steps] for one in curves]
    count = min(map(len, chosen))
    snr, spent = (
        torch.tensor([[float(point[name]) for point in points[:count]] for points in chosen])
        for name in ("snr", "evaluations")
    )
    seeds_line(panel, spent.mean(0).tolist(), snr, colour, label, marker=3)


def pareto(rows: Mapping[str, Sequence[Row]], path: Path, title: str) -> None:
    """Quality against cost, a panel a model; each point is drawn as its N."""
    made, panels = figure(len(rows), title=title, size=(6.6, 6.2))
    for panel, (model, mine) in zip(panels, rows.items(), strict=True):
        _pareto_panel(panel, mine)
        panel.set_title(TITLES[model])
        panel.set_xlabel("base evaluations there and back, the solver's FLOPs included")
    panels[0].set_ylabel("latent SNR of the round trip, dB (95 % interval as a bar)")
    handles = {line.get_label(): line for panel in panels for line in panel.get_legend_handles_labels()[0]}
    style = {"loc": "outside lower center", "ncols": 3 * len(rows), "fontsize": 9, "frameon": False}
    made.legend(handles.values(), handles.keys(), **style)
    save(made, path, dpi=110)


def _pareto_panel(panel: Any, rows: Sequence[Row]) -> None:
    found = points(rows)
    for label in dict.fromkeys(point.case for point in found):
        mine = [point for point in found if point.case == label]
        x, y = [point.cost for point in mine], [point.snr for point in mine]
        if label not in SHOWN:
            panel.plot(x, y, color="0.85", linewidth=1, zorder=1)
            continue
        colour = SHOWN[label]
        panel.plot(x, y, color=colour, label=label, **_style(label))
        panel.errorbar(x, y, [point.width for point in mine], fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.5)
        for point in mine:
            panel.scatter(point.cost, point.snr, s=95, color="white", zorder=3, linewidths=0)
            text = {"color": colour, "fontsize": 7.5, "ha": "center", "va": "center", "zorder": 4}
            panel.text(point.cost, point.snr, str(point.steps), **text)
    best = front(found)
    line = {"where": "post", "color": "0.2", "linewidth": 5, "alpha": 0.1, "zorder": 0, "label": "front"}
    panel.step([point.cost for point in best], [point.snr for point in best], **line)
    panel.set_xscale("log")
    ticks = [2**power for power in range(1, 10)]
    panel.set_xticks(ticks, map(str, ticks))
    panel.minorticks_off()
    panel.set_ylim(bottom=max(-10, min(-3, *(point.snr - 2 for point in found))))


def _style(label: str) -> dict[str, Any]:
    return {"linewidth": 2, "linestyle": "-"} if trained(label) else {"linewidth": 1.1, "linestyle": "--"}


def whiteness(results: Results, path: Path) -> None:
    """Standard deviation and neighbour correlation of the noise over N, a row a model."""
    white = {
        "noise_std": ("standard deviation (white noise: 1)", 1),
        "noise_neighbour": ("correlation of neighbours (white noise: 0)", 0),
    }
    title = "How white the inverted noise is: test images, CFG 1, empty prompt"
    made, panels = figure(len(white), len(results.models), title=title, size=(6.6, 4.2))
    kinds = [(model, metric) for model in results.models for metric in white]
    for panel, (model, metric) in zip(panels, kinds, strict=True):
        rows = [row for row in results.trips(model) if metric in row]
        for label, colour in SHOWN.items():
            mine = sorted((row["steps"], row[metric][0]) for row in rows if row["entry"] == label)
            if mine:
                panel.plot(*zip(*mine, strict=True), color=colour, marker=".", label=label, **_style(label))
        panel.axhline(white[metric][1], color="0.3", linewidth=0.8)
        panel.set_title(f"{TITLES[model]}: {white[metric][0]}")
        step_axis(panel, results.steps)
    handles, labels = panels[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    save(made, path, dpi=110)


PICTURED: Final = ("euler", "easyinv", "uni_inv K=1", "fireflow", "anderson_extrapolated K=2", "fitted K=0", "fast K=0")
"""A column of reconstructions each."""


def reconstructions(suite: Suite, path: Path, steps: int = 4) -> None:
    """The included photographs and what comes back of them, a column a method."""
    ready = suite.prepare(photographs())
    columns, titles = [ready.images.pixels, ready.ceiling], ["photo", "the VAE's best"]
    for case in (case for case in CASES if case.label in PICTURED and suite.has(case, steps)):
        trip = suite.trip(case, ready.latent, steps)
        columns.append(suite.model.decode(trip.back.latent))
        titles.append(f"{case.label}: {trip.inversion.nfe} NFE")
    save_png(contact_sheet(list(zip(*columns, strict=True)), titles, cell=170), path)
