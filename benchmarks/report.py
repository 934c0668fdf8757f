"""docs/benchmark.md and its plots, from results.jsonl: every number on the page is computed here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..deepinv_core.atomic import replacing
from ..deepinv_core.methods import METHODS
from . import plots
from .appendix import appendix
from .entries import ENTRIES, GROUPS, Entry
from .plots import TITLES
from .results import Point, Results, best_within, front, load, points, trained, verdict
from .tables import HEALTH, METRICS, by_steps, costs, folded, metrics, table

BUDGETS: Final = (4, 8, 16, 32, 64, 128)
"""Base evaluations there and back."""

USABLE: Final = 10.0
"""dB below which a round trip is of no use: more than a tenth of the latent's energy is wrong."""

DETAILED: Final = (4, 8, 50)
"""N whose every metric is shown."""


def write_page(folder: Path) -> None:
    """Write ``benchmark.md`` into the folder and its plots into ``benchmark/``, which holds results.jsonl.

    Raises:
        DeepInvError: no finished run there; a file can't be written.
    """
    inside = folder / "benchmark"
    results = load(inside / "results.jsonl")
    tests = {model: [row for row in results.trips(model) if row["steps"] in results.steps] for model in results.models}
    plots.pareto(tests, inside / "pareto.png", "Quality against cost: CFG 1, empty prompt, held-out test images, pure")
    guided = {model: results.guided(model) for model in results.models}
    title = f"Quality against cost: CFG {results.about['cfg']:g}, the true class as prompt, pure"
    plots.pareto(guided, inside / "pareto_cfg.png", title)
    plots.health(results, inside / "noise.png")
    with replacing(folder / "benchmark.md") as temporary:
        temporary.write_text("\n".join(page(results, inside)) + "\n", encoding="utf-8")


def page(results: Results, inside: Path) -> Iterator[str]:
    """The page's lines."""
    about = results.about
    methods = len({entry.method for entry in _measured(results)})
    yield from (
        "# The benchmark: every inversion method, side by side",
        "",
        f"{methods} methods, the trained solvers among them, on the same models, images, grid and machine, at N = "
        f"{', '.join(map(str, results.steps))} steps. One command measures it and writes this page:",
        "",
        "```sh",
        about["command"],
        "```",
        "",
        "A round trip is the inversion of a photo to noise and the way back to the photo. Its quality here is the "
        "**latent SNR** in dB (the inversion's own error, the VAE left out; 10 dB more is a tenth of the squared "
        "error). "
        "Its cost is counted in **evaluations of the base model, there and back**; a solver's own FLOPs count as their "
        "share of an evaluation. Numbers are means over images ± half the 95 % confidence interval.",
        "",
    )
    yield from _reading(results)
    yield from (
        "## Quality against cost",
        "",
        "Each number in the plot is an N. Higher and further left is better. Solid lines use a trained solver, dashed "
        "ones do not, light grey are the other methods of the tables below.",
        "",
        "![Latent SNR against base evaluations, CFG 1](benchmark/pareto.png)",
        "",
    )
    if (inside / "reconstructions.png").exists():
        yield from (
            "What it looks like at 4 steps, on photographs that no model or solver has seen (and whose like they have "
            "not seen either, so that the VAE itself loses much):",
            "",
            "![Reconstructions at 4 steps by method](benchmark/reconstructions.png)",
            "",
        )
    yield from _each_method(results)
    yield from _tables(results)
    yield from _guidance(results)
    yield from _noise(results)
    yield from appendix(results, inside)


def _measured(results: Results) -> list[Entry]:
    labels = {row["entry"] for model in results.models for row in results.trips(model)}
    return [entry for entry in ENTRIES if entry.label in labels]


def _reading(results: Results) -> Iterator[str]:
    yield from ("## In short: which method when", "")
    head = ["base evaluations there and back", *(TITLES[m] + w for m in results.models for w in (
        ", with the included solver", ", without a solver"))]  # fmt: skip
    lines = []
    for budget in BUDGETS:
        cells = []
        for model in results.models:
            found = points([row for row in results.trips(model) if row["steps"] in results.steps])
            for some in (found, [point for point in found if not trained(point.entry)]):
                cells.append(str(best_within(some, budget) or "–"))
        lines.append([f"at most {budget}", *cells])
    yield from ("The best pure method (the noise alone gives the photo back) for what you can spend:", "")
    yield from (*table(head, lines), "")
    yield from ("If you may keep more than the noise:", "")
    for group in ("+pair", "exact"):
        for label in [entry.label for entry in _measured(results) if entry.group == group]:
            low = min(
                row["latent_snr_db"][0]
                for model in results.models
                for row in results.trips(model)
                if row["entry"] == label and row["steps"] in results.steps
            )
            yield (
                f"- `{label}` ({GROUPS[group]}) has {low:.0f} dB or more at every N from {results.steps[0]} to "
                f"{results.steps[-1]} for the evaluations of Euler. It gives *this* photo back; that says nothing of "
                "the noise, see [below](#is-the-noise-noise)."
            )
    yield ""


def _each_method(results: Results) -> Iterator[str]:
    yield from ("## When to use each method", "")
    yield (
        "The front is made of the pure round trips that nothing exceeds at no more cost. For methods without a solver "
        "it is the front among those, so that it answers for a model that has no solver. Where a method is nowhere on "
        f"it, its nearest point and what is better there are named. Round trips below {USABLE:g} dB are of no use and "
        "are left out."
    )
    yield ""
    fronts = {}
    for model in results.models:
        found = points([row for row in results.trips(model) if row["steps"] in results.steps])
        found = [point for point in found if point.snr >= USABLE]
        fronts[model] = found, [point for point in found if not trained(point.entry)]
    lines = []
    for entry in _measured(results):
        if entry.group != "pure":
            continue
        cells = []
        for model in results.models:
            found = fronts[model][0 if entry.solver else 1]
            there = not entry.solver or entry.solver in results.about["solvers"][model]
            cells.append(_verdict(entry.label, found) if there else "no solver of this recipe")
        lines.append([f"`{entry.label}`", METHODS[entry.method].cost, *cells])
    yield from table(["method", "cost up", *(TITLES[model] for model in results.models)], lines)
    yield ""
    for model in results.models:
        best = [
            [f"{point.cost:.1f}", f"`{point.entry}`", str(point.steps), f"{point.snr:.1f} ± {point.width:.1f}"]
            for point in front(fronts[model][0])
        ]
        head = ["base evaluations there and back", "method", "N", "latent SNR, dB"]
        yield from folded(f"{TITLES[model]}: the whole front", table(head, best))


def _verdict(label: str, found: list[Point]) -> str:
    if not any(point.entry == label for point in found):
        return f"below {USABLE:g} dB at every N"
    seen = verdict(label, found)
    if seen.rival is None:
        return f"**on the front** at N = {', '.join(map(str, seen.on_front))}"
    near, rival = seen.nearest, seen.rival
    return (
        f"nearest at N = {near.steps}: {near.snr:.1f} dB for {near.cost:.1f}; `{rival.entry}` at N = {rival.steps}: "
        f"{rival.snr:.1f} for {rival.cost:.1f}"
    )


def _tables(results: Results) -> Iterator[str]:
    yield from ("## Latent SNR by N", "")
    yield (
        f"{results.about['images']} images of the test split, CFG 1, empty prompt. Grouped by what the way back reads; "
        "results of two groups are not comparable. Bold: the best of its group."
    )
    yield ""
    for model in results.models:
        rows = [row for row in results.trips(model) if row["steps"] in results.steps]
        yield from (f"### {TITLES[model]}", "", *by_steps(rows), "")
        yield from folded("Base evaluations there + back (in brackets: there, with the solver's FLOPs)", costs(rows))
        for steps in results.among(DETAILED):
            some = [row for row in rows if row["steps"] == steps]
            shown = metrics(some, results.ceiling(model), METRICS)
            yield from folded(f"Every metric at N = {steps}, the VAE's ceiling on top", shown)
        photos = [row for row in results.trips(model, images="photos") if row["steps"] in results.steps]
        yield from folded("The same on scikit-image's four photographs: latent SNR", by_steps(photos))
        some = [row for row in photos if row["steps"] == 8]
        shown = metrics(some, results.ceiling(model, "photos"), METRICS)
        yield from folded("scikit-image's four photographs: every metric at N = 8", shown)


def _guidance(results: Results) -> Iterator[str]:
    cfg = results.about["cfg"]
    yield from (f"## At a real guidance, CFG {cfg:g}", "")
    yield (
        f"Both ways under each image's true class, the negative prompt empty, two evaluations a call; "
        f"{results.about['cfg_images']} test images. scikit-image's photographs are of no class the models know, so "
        "they have no row here."
    )
    yield ""
    for model in results.models:
        pairs = []
        for steps in results.among((8, 16, 50)):
            plain = _best_at(points(results.trips(model)), steps)
            guided = _best_at(points(results.guided(model)), steps)
            pairs.append(f"N = {steps}: {guided} (CFG 1: {plain})")
        yield f"- {TITLES[model]}, the best pure method at " + "; ".join(pairs) + "."
        yield from _solvers_under_guidance(results, model)
    yield from ("", "![Latent SNR against base evaluations, real CFG](benchmark/pareto_cfg.png)", "")
    for model in results.models:
        yield from folded(f"{TITLES[model]}: latent SNR at CFG {cfg:g}", by_steps(results.guided(model)))


def _solvers_under_guidance(results: Results, model: str) -> Iterator[str]:
    """What is left of the solvers' lead, which were trained at CFG 1."""
    for solver, other in (("fast K=0", "uni_inv K=1"), ("paper K=0", "euler")):
        leads = []
        for steps in results.among((4, 8, 16)):
            margins = []
            for rows in (results.trips(model), results.guided(model)):
                snr = {row["entry"]: row["latent_snr_db"][0] for row in rows if row["steps"] == steps and "nfe" in row}
                if solver in snr and other in snr:
                    margins.append(f"{snr[solver] - snr[other]:+.1f}")
            if len(margins) == 2:
                leads.append(f"N = {steps}: {margins[1]} ({margins[0]})")
        if leads:
            yield (
                f"- {TITLES[model]}, `{solver}` over `{other}` in dB, in brackets at CFG 1, where it was trained: "
                + "; ".join(leads)
                + "."
            )


def _best_at(found: list[Point], steps: int) -> str:
    best = max((point for point in found if point.steps == steps), key=lambda point: point.snr)
    return f"`{best.entry}` {best.snr:.1f} dB"


def _noise(results: Results) -> Iterator[str]:
    values = 16 * 8 * 8
    pairs = 16 * 2 * 8 * 7
    yield from ("## Is the noise noise?", "")
    yield (
        "An edit starts from the noise, and the models were trained to start from white Gaussian noise. White "
        f"noise of this size has a standard deviation of 1 ± {(1 / (2 * values)) ** 0.5:.2f}, an excess kurtosis of "
        f"0 ± {(24 / values) ** 0.5:.2f} and a correlation of neighbours of 0 ± {pairs**-0.5:.3f} (one sigma, one "
        "image)."
    )
    yield from ("", "![Standard deviation and neighbour correlation of the noise over N](benchmark/noise.png)", "")
    for steps in results.among((4,)):
        for model in results.models:
            yield _whiteness(results, model, steps)
    yield (
        "\nAt few steps Euler's step has more than one inverse: iterated until nothing changes, the two guesses of the "
        "last rows (K = 15) can end at different noises, and both give the photo back. The one that gives it back "
        "better need not be the whiter one. For an edit, weigh the two."
    )
    yield ""
    for model in results.models:
        for steps in results.among((4, 16)):
            some = [row for row in [*results.trips(model), *results.converged(model)] if row["steps"] == steps]
            columns = {"latent_snr_db": METRICS["latent_snr_db"], **HEALTH}
            yield from folded(f"{TITLES[model]}, CFG 1: the noise at N = {steps}", metrics(some, None, columns))
            some = [row for row in results.guided(model) if row["steps"] == steps]
            title = f"{TITLES[model]}, CFG {results.about['cfg']:g}: the noise at N = {steps}"
            yield from folded(title, metrics(some, None, columns))


def _whiteness(results: Results, model: str, steps: int) -> str:
    """The best round trip's noise beside that of the whitest, by the distance of its deviation from 1."""
    rows = [row for row in results.trips(model) if row["steps"] == steps and row["kept"] == "pure"]
    rows = [row for row in rows if "failed" not in row]
    best = max(rows, key=lambda row: float(row["latent_snr_db"][0]))
    whitest = min(rows, key=lambda row: abs(row["noise_std"][0] - 1) + abs(row["noise_neighbour"][0]))
    texts = [
        f"`{row['entry']}` ({row['latent_snr_db'][0]:.1f} dB) with a standard deviation of {row['noise_std'][0]:.2f} "
        f"and neighbours correlated by {row['noise_neighbour'][0]:.2f}"
        for row in (best, whitest)
    ]
    return (
        f"- {TITLES[model]}, N = {steps}: the best round trip is {texts[0]}; the whitest noise is that of {texts[1]}."
    )
