"""The tables and figures of the benchmark's pages, from results.jsonl: every number there is computed here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from ..deepinv_core.methods import METHODS, method_table
from ..deepinv_core.solver.fit_solver import LEVEL
from . import plots
from .cases import CASES, FEW, Case
from .plan import Plan, Settings, run
from .plots import TITLES
from .results import GOALS, REFERENCES, Results, best_within, front, points, trained, verdict
from .store import Row
from .tables import METRICS, WHITENESS, by_steps, fill, folded, interval, metrics, table

BUDGETS: Final = (4, 8, 16, 32, 64, 128)
"""Base evaluations there and back."""

PAGES: Final = ("benchmark.md", "benchmark/tables.md")
"""What is read first, and the tables behind it; a part stands in each page that has a place for it."""

USABLE: Final = 10.0
"""dB below which a round trip is of no use: more than a tenth of the latent's energy is wrong."""

DETAILED: Final = 8
"""N whose every metric is shown."""

LISTED: Final = 16
"""N of the list of methods."""


def measure(settings: Settings, folder: Path, command: str) -> None:
    """Measure what ``folder/benchmark/results.jsonl`` lacks, and show it: ``deepinv bench`` without further options."""
    plan, inside = Plan(settings), folder / "benchmark"
    run(plan, inside / "results.jsonl", command)
    plots.reconstructions(plan.suite(settings.kinds[0]), inside / "reconstructions.png")
    write_page(folder)


def write_page(folder: Path) -> None:
    """Fill :data:`PAGES` and ``methods.md`` in the folder, and draw into ``benchmark/``, where results.jsonl is."""
    inside = folder / "benchmark"
    results = Results(inside / "results.jsonl")
    best, guided = ({model: rows(model) for model in results.models} for rows in (results.best, results.guided))
    plots.pareto(best, inside / "pareto.png", "Quality against cost: CFG 1, empty prompt, held-out test images, pure")
    title = f"Quality against cost: CFG {results.about['cfg']:g}, the true class as prompt, pure"
    plots.pareto(guided, inside / "pareto_cfg.png", title)
    plots.whiteness(results, inside / "noise.png")
    shown = parts(results)
    for page in PAGES:
        fill(folder / page, shown)
    fill(folder / "methods.md", {"list": "\n".join(listed_methods(results))})


def listed_methods(results: Results) -> list[str]:
    """The list of methods, with what each gives by default on the four photographs and the first model."""
    found = {row["entry"]: row for row in _at(results.main(results.models[0], "photos"), LISTED)}
    head, *lines = method_table()
    for line, entry in zip(lines, METHODS.values(), strict=True):
        row = found.get(Case(entry.id, entry.refine, "fast" if entry.uses_solver else "").label, {})
        line[0] = f"`{entry.id}`"
        line += [interval(row.get(name, [None])[0], ".1f") for name in ("latent_snr_db", "psnr_to_vae")]
    return table([*head, "latent SNR, dB", "PSNR to the VAE's decode, dB"], lines)


def parts(results: Results) -> dict[str, str]:
    """What the pages show, by the name of its place."""
    about = results.about
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    machine = f"{about['machine']}, {about['threads']} thread(s), {versions}"
    lines: dict[str, Iterable[str]] = {
        "methods": [str(len({case.method for case in _measured(results)}))],
        "steps": [", ".join(map(str, results.steps))],
        "images": [str(about["images"])],
        "command": ["```sh", about["command"], "```"],
        "budgets": _budgets({model: results.best(model) for model in results.models}),
        "leapfrog": [_least(results, "leapfrog")],
        "direct alignment": [_least(results, "direct_alignment")],
        "verdicts": _verdicts(results),
        "latent SNR": _latent_snr(results),
        "guided budgets": _budgets({model: results.guided(model) for model in results.models}),
        "guided SNR": _guided_snr(results),
        "whiteness": _whiteness(results),
        "time and memory": _time_and_memory(results),
        "off training": _off_training(results),
        "goals": _goals(results),
        "solvers": _solvers(results),
        "machine": [f"{machine}; {about['seconds'] / 60:.0f} minutes"],
    }
    return {name: "\n".join(some).strip("\n") for name, some in lines.items()}


def _measured(results: Results) -> list[Case]:
    labels = {row["entry"] for model in results.models for row in results.trips(model)}
    return [case for case in CASES if case.label in labels]


def _budgets(rows: Mapping[str, Iterable[Row]]) -> list[str]:
    """The best pure method for what can be spent, with a solver and without, by model."""
    head, lines = ["base evaluations there and back"], [[f"at most {budget}"] for budget in BUDGETS]
    for model, mine in rows.items():
        found = points(mine)
        free = [point for point in found if not trained(point.case)]
        for some, kind in ((found, "with the included solver"), (free, "without a solver")):
            head.append(f"{TITLES[model]}, {kind}")
            for line, budget in zip(lines, BUDGETS, strict=True):
                line.append(str(best_within(some, budget) or "–"))
    return table(head, lines)


def _least(results: Results, label: str) -> str:
    """A method's least latent SNR over all N and models, in dB."""
    rows = [row for model in results.models for row in results.main(model) if row["entry"] == label]
    return f"{min((row['latent_snr_db'][0] for row in rows), default=0):.0f}"


def _verdicts(results: Results) -> Iterator[str]:
    """How each pure method stands to the front (without a solver: to the front of such), and the front itself."""
    fronts = {}
    for model in results.models:
        found = [point for point in points(results.best(model)) if point.snr >= USABLE]
        fronts[model] = found, [point for point in found if not trained(point.case)]
    lines = []
    for case in _measured(results):
        if case.group == "pure":
            cells = []
            for model, (everything, untrained) in fronts.items():
                found = everything if case.solver else untrained
                if case.solver and case.solver not in results.about["solvers"][model]:
                    cells.append("no solver of this recipe")
                elif any(point.case == case.label for point in found):
                    cells.append(verdict(case.label, found))
                else:
                    cells.append(f"below {USABLE:g} dB at every N")
            lines.append([f"`{case.label}`", METHODS[case.method].price, *cells])
    yield from [*table(["method", "cost up", *(TITLES[model] for model in results.models)], lines), ""]
    for model, (everything, _) in fronts.items():
        best = [
            [f"{point.cost:.1f}", f"`{point.case}`", str(point.steps), f"{point.snr:.1f} ± {point.width:.1f}"]
            for point in front(everything)
        ]
        head = ["base evaluations there and back", "method", "N", "latent SNR, dB"]
        yield from folded(f"{TITLES[model]}: the whole front", table(head, best))


def _latent_snr(results: Results) -> Iterator[str]:
    for model in results.models:
        rows = results.main(model)
        yield from (f"### {TITLES[model]}", "", *by_steps(rows), "")
        for images, title in (("photos", "the demo's four photographs"), ("samples", "the model's own samples")):
            if other := results.main(model, images):
                yield from folded(f"The same on {title}", by_steps(other))
        shown = metrics(_at(rows, DETAILED), results.ceiling(model), METRICS)
        yield from folded(f"Every metric at N = {DETAILED}, the VAE's ceiling on top", shown)


def _at(rows: Iterable[Row], steps: int) -> list[Row]:
    return [row for row in rows if row["steps"] == steps]


def _snr(rows: Iterable[Row], steps: int) -> dict[str, list[float]]:
    return {row["entry"]: row["latent_snr_db"] for row in _at(rows, steps) if "failed" not in row}


def _guided_snr(results: Results) -> Iterator[str]:
    for model in results.models:
        title = f"{TITLES[model]}: latent SNR at CFG {results.about['cfg']:g}"
        yield from folded(title, by_steps(results.guided(model)))


def _whiteness(results: Results) -> Iterator[str]:
    columns = {"latent_snr_db": METRICS["latent_snr_db"], **WHITENESS}
    for model in results.models:
        converged = [row for label in REFERENCES for row in results.where("round_trip", model=model, entry=label)]
        free = [*results.trips(model), *converged]
        for steps in results.among((4, 16)):
            for cfg, rows in ((1, free), (results.about["cfg"], results.guided(model))):
                title = f"{TITLES[model]}, CFG {cfg:g}: the noise at N = {steps}"
                yield from folded(title, metrics(_at(rows, steps), None, columns))


def _time_and_memory(results: Results) -> Iterator[str]:
    timed = results.about["timed_steps"]
    for model in results.models:
        ratios = {(row["entry"], row["steps"]): row for row in results.where("timing", model=model)}
        lines = []
        for row in results.where("memory", model=model):
            found = [ratios[row["entry"], n][way] for n in timed for way in ("up_ratio", "both_ratio")]
            cells = [f"{middle:.2f} ({low:.2f}–{high:.2f})" for middle, low, high in found]
            held = [f"{row[name] / 1024:.0f} KiB" for name in ("peak_bytes", "kept_bytes")]
            lines.append([f"`{row['entry']}`", *cells, *held])
        head = ["", *(f"{way}, N = {n}" for n in timed for way in ("there", "both ways")), "peak", "kept"]
        yield from folded(f"{TITLES[model]}: time over Euler's, peak and kept memory", table(head, lines))


def _off_training(results: Results) -> Iterator[str]:
    off = results.about["off_steps"]
    for model in results.models:
        sizes = dict.fromkeys(row["size"] for row in results.where("round_trip", model=model, images="photos"))
        by_size = {size: results.trips(model, images="photos", size=size) for size in sizes}
        columns = {f"{size}, N = {n}": _snr(rows, n) for size, rows in by_size.items() for n in off}
        yield from folded(f"{TITLES[model]}: other sizes and shapes", _side_by_side(columns))
        columns = {f"N = {n}": _snr(results.trips(model), n) for n in results.about["new_steps"]}
        yield from folded(f"{TITLES[model]}: other step counts", _side_by_side(columns))


def _side_by_side(columns: Mapping[str, dict[str, list[float]]]) -> list[str]:
    labels = [label for label in FEW if any(label in cells for cells in columns.values())]
    lines = [[f"`{label}`", *(interval(cells.get(label), ".1f") for cells in columns.values())] for label in labels]
    return table(["", *columns], lines)


def _goals(results: Results) -> Iterator[str]:
    """What was asked of the solvers, and what was seen: a table a model, a column an N."""
    steps = [n for n in results.steps if any(n in margins for *_, margins in GOALS)]
    for model in results.models:
        best = results.best(model)
        lines = [
            [claim, *(_margin(_snr(best, n), better, others, margins.get(n)) for n in steps)]
            for claim, better, others, margins in GOALS
        ]
        yield from [*table([TITLES[model], *(f"N = {n}" for n in steps)], lines), ""]


def _margin(snr: Mapping[str, list[float]], better: str, others: Iterable[str], wanted: float | None) -> str:
    level = {label: min(mean, LEVEL) for label, (mean, _) in snr.items()}
    rivals = [level[label] for label in others if label in level]
    if wanted is None or better not in level or not rivals:
        return ""
    seen = level[better] - max(rivals)
    return (f"{seen:+.1f}" if seen >= wanted else f"**{seen:+.1f}**") + f" ({wanted:g})"


def _solvers(results: Results) -> list[str]:
    lines = []
    for model, solvers in results.about["solvers"].items():
        for name, solver in solvers.items():
            size = [f"{solver['parameters']:,}", f"{solver['share']:.0%}"]
            seen = [f"{solver[key]:,}" if key in solver else "" for key in ("images_seen", "base_evaluations")]
            minutes = f"{solver['seconds'] / 60:.0f}" if "seconds" in solver else ""
            lines.append([f"**{name}**, {TITLES[model]}", *size, *seen, minutes])
    head = ["solver", "parameters", "FLOPs of a base evaluation", "images seen", "base evaluations"]
    return table([*head, "minutes of one CPU core"], lines)
