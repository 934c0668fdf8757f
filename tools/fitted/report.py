"""What docs/fitted.md and fitted/tables.md show of the measurements: tables between their markers, and a picture.

    python -m comfyui_deepinv.tools.fitted.report

:mod:`guided` and :mod:`carry` write the rows.
"""

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

DOCS: Final = Path(__file__).parents[2] / "docs"

OWN: Final = "own fit"
"""What :mod:`carry` calls a model's own."""


def _best_other(judged: list[Row], own: Row) -> Row:
    """The best of the methods without a solver that cost no more, of any number of steps."""
    others = [r for r in judged if r["method"] in METHODS and r["nfe"] <= own["nfe"] and r["steps"] <= own["nfe"]]
    return max(others, key=lambda row: row["latent_snr_db"])


def guided(rows: list[Row]) -> str:
    """A line for each layout, cfg, N and K: dB and the noise's deviation, fitted and the best other at that cost."""
    lines = []
    for own in rows:
        if own["method"] == "fitted":
            place = own["layout"], own["cfg"]
            other = _best_other([row for row in rows if (row["layout"], row["cfg"]) == place], own)
            refine = "" if other["refine"] is None else f", K = {other['refine']}"
            beside = f"{_shown(other)}, {other['method']}{refine}, {other['steps']} steps"
            numbers = (f"{own['cfg']:g}", str(own["steps"]), str(own["nfe"]))
            lines.append([own["layout"], *numbers, f"**{_shown(own)}**", beside])
    return "\n".join(markdown(("layout", "cfg", "N", "NFE", "fitted", "best other at that cost"), lines))


def _shown(row: Row) -> str:
    return f"{row['latent_snr_db']:.1f} ({row['noise_std']:.2f})"


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


def main(docs: Path = DOCS) -> None:
    """Draw the coefficients and put the tables of what was measured into the pages."""
    folder = docs / "fitted"
    plot_coefficients(folder / "coefficients.png")
    parts = {"included": included()}
    for name, shown in {"guided": guided, "carry": carried}.items():
        rows = [row for row in read_rows(folder / f"{name}.jsonl") if "part" not in row]
        parts |= {name: shown(rows)} if rows else {}
    for page in (docs / "fitted.md", folder / "tables.md"):
        fill(page, parts)


if __name__ == "__main__":
    main()
