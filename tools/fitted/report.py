"""What docs/fitted.md shows of the measurements: its tables, between their markers, and its picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from ...benchmarks.store import Row, read_rows
from ...benchmarks.tables import fill
from ...benchmarks.tables import table as markdown
from ...deepinv_core.atomic import replacing
from ...deepinv_core.methods import METHODS
from ...deepinv_core.models.embedded import LAYOUTS, solver_file
from ...deepinv_core.solver import load_solver
from ...deepinv_core.solver.fitted import FittedTable

PAGE: Final = Path(__file__).parents[2] / "docs" / "fitted.md"

OWN: Final = "own fit"
"""What carry.py calls a model's own."""


def _best_other(judged: list[Row], own: Row) -> Row:
    """The best of the methods without a solver that cost no more, of any number of steps."""
    others = [r for r in judged if r["method"] in METHODS and r["nfe"] <= own["nfe"] and r["steps"] <= own["nfe"]]
    return max(others, key=lambda row: row["latent_snr_db"])


def _at_cost(rows: list[Row], steps: int, k: int, grid: str) -> tuple[Row, Row]:
    """The fitted row, and the best beside it."""
    judged = [row for row in rows if row.get("grid") == grid]
    own = next(r for r in judged if r["method"] == "fitted" and (r["steps"], r["refine"]) == (steps, k))
    return own, _best_other(judged, own)


def _name(row: Row) -> str:
    refine = f", K = {row['refine']}" if row["refine"] is not None else ""
    return f"{row['method']}{refine}, {row['steps']} steps"


def _walks(rows: list[Row]) -> list[tuple[int, int]]:
    """N and K of what was fitted, by K."""
    found = {(row["refine"], row["steps"]) for row in rows if row.get("method") == "fitted"}
    return [(n, k) for k, n in sorted(found)]


def _shown(row: Row) -> str:
    return f"{row['latent_snr_db']:.1f} ({row['noise_std']:.2f})"


def table(rows: list[Row]) -> str:
    """A line for each N and K: dB and the noise's deviation, fitted and the best other at that cost, on both grids."""
    lines = []
    for n, k in _walks(rows):
        (own, other), (plain, rest) = (_at_cost(rows, n, k, grid) for grid in ("best", "uniform"))
        beside = f"{_shown(other)}, {_name(other)}"
        uniform = f"{plain['latent_snr_db']:.1f}", f"{rest['latent_snr_db']:.1f}, {_name(rest)}"
        lines.append([str(n), str(own["nfe"]), f"**{_shown(own)}**", beside, *uniform])
    head = (
        "N",
        "NFE",
        "fitted, best grid",
        "best other at that cost, its best grid",
        "fitted, uniform",
        "other, uniform",
    )
    return "\n".join(markdown(head, lines))


def guided(found: dict[tuple[str, str], list[Row]]) -> str:
    """The same under guidance, of each layout and cfg, on the best grids alone."""
    lines = []
    for (layout, cfg), rows in found.items():
        for n, k in _walks(rows):
            own, other = _at_cost(rows, n, k, "best")
            lines.append(
                [layout, cfg, str(n), str(own["nfe"]), f"**{_shown(own)}**", f"{_shown(other)}, {_name(other)}"]
            )
    return "\n".join(markdown(("layout", "cfg", "N", "NFE", "fitted", "best other at that cost"), lines))


def included() -> str:
    """The included models' own fits on held-out samples, a line for each N, each K beside the best without a solver."""
    lines: dict[int, list[str]] = {}
    for layout in LAYOUTS:
        rows = (load_solver(solver_file(layout, "fitted") or "").training or {})["rows"]
        for n in sorted({row["steps"] for row in rows}):
            levels = [(row["latent_snr_db"], max(row["free"].values())) for row in rows if row["steps"] == n]
            own, free = (" / ".join(f"{level:.1f}" for level in one) for one in zip(*levels, strict=True))
            lines.setdefault(n, [str(n)]).extend((own, free))
    head = [title for layout in LAYOUTS for title in (f"{layout}, K = 0 / 1 / 2", "best free")]
    return "\n".join(markdown(("N", *head), [*lines.values()]))


def carried(rows: list[Row]) -> str:
    """A line for each model and solver: dB, and in brackets the best without a solver at that cost; bold above it."""
    walks = sorted({(row["refine"], row["steps"]) for row in rows if row["solver"]})
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["solver"]:
            free = _best_other([one for one in rows if one["on"] == row["on"]], row)["latent_snr_db"]
            level = f"{row['latent_snr_db']:.1f}"
            level = f"**{level}**" if row["latent_snr_db"] > free else level
            moved = f"{row['moved']:.1%}" if row.get("moved") else ""
            line = lines.setdefault((row["on"], row["solver"]), [row["on"], row["solver"], moved, *[""] * len(walks)])
            line[3 + walks.index((row["refine"], row["steps"]))] = f"{level} ({free:.1f})"
    head = [f"N = {n}, K = {k}" for k, n in walks]
    ordered = sorted(lines, key=lambda key: (key[0], key[1] != OWN, key[1]))
    return "\n".join(markdown(("model", "solver of", "velocity moved", *head), [lines[key] for key in ordered]))


def noise_table(rows: list[Row]) -> str:
    """What the noise looks like at K = 0 beside the best methods of that cost, each on its best grid."""
    lines = []
    names = ("fitted", "fireflow", "uni_inv_2", "anderson_extrapolated")
    judged = [row for row in rows if row.get("grid") == "best" and row["method"] in names]
    for n in sorted({row["steps"] for row in judged}):
        for name in names:
            row = min((r for r in judged if (r["method"], r["steps"]) == (name, n)), key=lambda r: r["refine"] or 0)
            numbers = (f"{row[f'noise_{key}']:.3f}" for key in ("std", "neighbour", "channels"))
            lines.append([str(n), name, *numbers])
    return "\n".join(markdown(("N", "method", "deviation", "neighbours", "channels"), lines))


def plot(found: dict[str, list[Row]], path: Path) -> None:
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
    """Draw the pictures and put the tables into the page."""
    files = {
        path.stem: [row for row in read_rows(path) if "part" not in row] for path in sorted(folder.glob("*.jsonl"))
    }
    found: dict[str, list[Row]] = {name: files[name] for name in LAYOUTS if name in files}
    parts = {"included": included()} | {name: table(rows) for name, rows in found.items()}
    parts |= {f"{name} noise": noise_table(rows) for name, rows in found.items()}
    if found:
        plot(found, folder / "curves.png")
    plot_coefficients(folder / "coefficients.png")
    layout_cfg = {(name.split("_")[0], name.split("_cfg")[1]): rows for name, rows in files.items() if "_cfg" in name}
    parts |= {"guided": guided(layout_cfg)} if layout_cfg else {}
    parts |= {"carried": carried(files["carry"])} if "carry" in files else {}
    fill(page, parts)
