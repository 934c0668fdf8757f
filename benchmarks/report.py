"""The tables and figures of docs/benchmark.md, from results.jsonl: every number there is computed here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ..deepinv_core.methods import METHODS
from . import plots
from .entries import ENTRIES, FEW, GROUPS, Entry
from .photos import SHAPES
from .plan import Plan, Settings, run
from .plots import TITLES
from .results import Point, Results, best_within, front, goals, load, points, trained, verdict
from .store import Row
from .tables import METRICS, WHITENESS, by_steps, costs, fill, folded, interval, metrics, table

BUDGETS: Final = (4, 8, 16, 32, 64, 128)
"""Base evaluations there and back."""

USABLE: Final = 10.0
"""dB below which a round trip is of no use: more than a tenth of the latent's energy is wrong."""

DETAILED: Final = (4, 8, 50)
"""N whose every metric is shown."""


def measure(settings: Settings, folder: Path, command: str) -> None:
    """Measure what ``folder/benchmark/results.jsonl`` lacks, and show it: ``deepinv bench`` without further options."""
    plan, inside = Plan(settings), folder / "benchmark"
    run(plan, inside / "results.jsonl", command)
    plots.reconstructions(plan.suite(settings.kinds[0]), inside / "reconstructions.png")
    write_page(folder)


def write_page(folder: Path) -> None:
    """Fill the tables of ``benchmark.md`` in the folder, and draw into ``benchmark/``, which holds results.jsonl.

    Raises:
        DeepInvError: no finished run there; a file can't be written.
    """
    inside = folder / "benchmark"
    results = load(inside / "results.jsonl")
    main, guided = ({model: rows(model) for model in results.models} for rows in (results.main, results.guided))
    plots.pareto(main, inside / "pareto.png", "Quality against cost: CFG 1, empty prompt, held-out test images, pure")
    title = f"Quality against cost: CFG {results.about['cfg']:g}, the true class as prompt, pure"
    plots.pareto(guided, inside / "pareto_cfg.png", title)
    plots.whiteness(results, inside / "noise.png")
    fill(folder / "benchmark.md", parts(results))


def parts(results: Results) -> dict[str, str]:
    """What the page shows, by the name of its place."""
    about = results.about
    lines: dict[str, Iterable[str]] = {
        "methods": [str(len({entry.method for entry in _measured(results)}))],
        "steps": [", ".join(map(str, results.steps))],
        "images": [str(about["images"])],
        "command": ["```sh", about["command"], "```"],
        "budgets": _budgets(results),
        "keeping": _keeping(results),
        "verdicts": _verdicts(results),
        "latent SNR": _latent_snr(results),
        "guidance": _guidance(results),
        "guided SNR": _guided_snr(results),
        "whitest": _whitest(results),
        "whiteness": _whiteness(results),
        "time and memory": _time_and_memory(results),
        "off training": _off_training(results),
        "goals": _goals(results),
        "solvers": _solvers(results),
        "machine": [_machine(results)],
    }
    return {name: "\n".join(some).strip("\n") for name, some in lines.items()}


def _measured(results: Results) -> list[Entry]:
    labels = {row["entry"] for model in results.models for row in results.trips(model)}
    return [entry for entry in ENTRIES if entry.label in labels]


def _budgets(results: Results) -> list[str]:
    """The best pure method for what can be spent, with a solver and without."""
    kinds = ("with the included solver", "without a solver")
    head = [
        "base evaluations there and back",
        *(f"{TITLES[model]}, {kind}" for model in results.models for kind in kinds),
    ]
    lines = [[f"at most {budget}"] for budget in BUDGETS]
    for model in results.models:
        found = points(results.main(model))
        for some in (found, [point for point in found if not trained(point.entry)]):
            for line, budget in zip(lines, BUDGETS, strict=True):
                line.append(str(best_within(some, budget) or "–"))
    return table(head, lines)


def _keeping(results: Results) -> Iterator[str]:
    """What those reach that keep more than the noise and give the photo back."""
    for entry in _measured(results):
        if entry.group in ("+pair", "exact"):
            rows = [row for model in results.models for row in results.main(model) if row["entry"] == entry.label]
            low = min(row["latent_snr_db"][0] for row in rows)
            yield (
                f"- `{entry.label}` ({GROUPS[entry.group]}) has {low:.0f} dB or more at every N from "
                f"{results.steps[0]} to {results.steps[-1]} for the evaluations of Euler. It gives *this* photo back; "
                "that says nothing of the noise, see [below](#is-the-noise-noise)."
            )


def _verdicts(results: Results) -> Iterator[str]:
    """How each pure method stands to the front, and the front itself."""
    fronts = {}
    for model in results.models:
        found = [point for point in points(results.main(model)) if point.snr >= USABLE]
        fronts[model] = found, [point for point in found if not trained(point.entry)]
    lines = []
    for entry in _measured(results):
        if entry.group == "pure":
            cells = []
            for model, (everything, untrained) in fronts.items():
                there = not entry.solver or entry.solver in results.about["solvers"][model]
                found = everything if entry.solver else untrained
                cells.append(_verdict(entry.label, found) if there else "no solver of this recipe")
            lines.append([f"`{entry.label}`", METHODS[entry.method].cost, *cells])
    yield from table(["method", "cost up", *(TITLES[model] for model in results.models)], lines)
    yield ""
    for model, (everything, _) in fronts.items():
        best = [
            [f"{point.cost:.1f}", f"`{point.entry}`", str(point.steps), f"{point.snr:.1f} ± {point.width:.1f}"]
            for point in front(everything)
        ]
        head = ["base evaluations there and back", "method", "N", "latent SNR, dB"]
        yield from folded(f"{TITLES[model]}: the whole front", table(head, best))


def _verdict(label: str, found: Sequence[Point]) -> str:
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


def _latent_snr(results: Results) -> Iterator[str]:
    for model in results.models:
        rows, photos = results.main(model), results.main(model, "photos")
        yield from (f"### {TITLES[model]}", "", *by_steps(rows), "")
        yield from folded("Base evaluations there + back (in brackets: there, with the solver's FLOPs)", costs(rows))
        for steps in results.among(DETAILED):
            shown = metrics(_at(rows, steps), results.ceiling(model), METRICS)
            yield from folded(f"Every metric at N = {steps}, the VAE's ceiling on top", shown)
        yield from folded("The same on scikit-image's four photographs: latent SNR", by_steps(photos))
        shown = metrics(_at(photos, 8), results.ceiling(model, "photos"), METRICS)
        yield from folded("scikit-image's four photographs: every metric at N = 8", shown)


def _at(rows: Iterable[Row], steps: int) -> list[Row]:
    return [row for row in rows if row["steps"] == steps]


def _guidance(results: Results) -> Iterator[str]:
    """The best under guidance beside the best without, and what is left of the solvers' lead, trained at CFG 1."""
    for model in results.models:
        plain, guided = points(results.trips(model)), points(results.guided(model))
        pairs = [f"N = {n}: {_best_at(guided, n)} (CFG 1: {_best_at(plain, n)})" for n in results.among((8, 16, 50))]
        yield f"- {TITLES[model]}, the best pure method at " + "; ".join(pairs) + "."
        for solver, other in (("fast K=0", "uni_inv K=1"), ("paper K=0", "euler")):
            leads = []
            for n in results.among((4, 8, 16)):
                at_cfg, at_1 = (_lead(rows, solver, other, n) for rows in (results.guided(model), results.trips(model)))
                if at_cfg and at_1:
                    leads.append(f"N = {n}: {at_cfg} ({at_1})")
            if leads:
                what = f"`{solver}` over `{other}` in dB, in brackets at CFG 1, where it was trained"
                yield f"- {TITLES[model]}, {what}: " + "; ".join(leads) + "."


def _lead(rows: Iterable[Row], better: str, worse: str, steps: int) -> str:
    snr = {row["entry"]: row["latent_snr_db"][0] for row in _at(rows, steps) if "failed" not in row}
    return f"{snr[better] - snr[worse]:+.1f}" if better in snr and worse in snr else ""


def _best_at(found: Iterable[Point], steps: int) -> str:
    best = max((point for point in found if point.steps == steps), key=lambda point: point.snr)
    return f"`{best.entry}` {best.snr:.1f} dB"


def _guided_snr(results: Results) -> Iterator[str]:
    for model in results.models:
        title = f"{TITLES[model]}: latent SNR at CFG {results.about['cfg']:g}"
        yield from folded(title, by_steps(results.guided(model)))


def _whitest(results: Results) -> Iterator[str]:
    """The best round trip's noise beside the whitest, by the distance of its deviation and correlation from 1 and 0."""
    for steps in results.among((4,)):
        for model in results.models:
            rows = [row for row in _at(results.trips(model), steps) if row["kept"] == "pure" and "failed" not in row]
            best = max(rows, key=lambda row: float(row["latent_snr_db"][0]))
            whitest = min(rows, key=lambda row: abs(row["noise_std"][0] - 1) + abs(row["noise_neighbour"][0]))
            first, second = (
                f"`{row['entry']}` ({row['latent_snr_db'][0]:.1f} dB) with a standard deviation of "
                f"{row['noise_std'][0]:.2f} and neighbours correlated by {row['noise_neighbour'][0]:.2f}"
                for row in (best, whitest)
            )
            both = f"the best round trip is {first}; the whitest noise is that of {second}"
            yield f"- {TITLES[model]}, N = {steps}: {both}."


def _whiteness(results: Results) -> Iterator[str]:
    columns = {"latent_snr_db": METRICS["latent_snr_db"], **WHITENESS}
    for model in results.models:
        free = [*results.trips(model), *results.converged(model)]
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
    off, sizes = results.about["off_steps"], [f"{width}x{height}" for height, width in SHAPES]
    for model in results.models:
        by_size = {size: results.trips(model, images="photos", size=size) for size in sizes}
        columns = {f"{size}, N = {n}": _snr(rows, n) for size, rows in by_size.items() for n in off}
        yield from folded(f"{TITLES[model]}: other sizes and shapes", _side_by_side(columns))
        columns = {f"N = {n}": _snr(results.trips(model), n) for n in results.about["new_steps"]}
        yield from folded(f"{TITLES[model]}: other step counts", _side_by_side(columns))
        columns = {f"N = {n}": _snr(results.trips(model, prompt="class"), n) for n in off}
        for n in off:
            swapped = results.where("swapped", model=model, steps=n)
            columns[f"to dog, N = {n}"] = {row["entry"]: row["agreement_db"] for row in swapped}
        title = (
            f"{TITLES[model]}: under the true class, CFG 1; and sampled back as a dog: nearness of the edit to "
            "that from a converged inversion (Anderson K = 15)"
        )
        yield from folded(title, _side_by_side(columns))


def _snr(rows: Iterable[Row], steps: int) -> dict[str, list[float]]:
    return {row["entry"]: row["latent_snr_db"] for row in _at(rows, steps) if "failed" not in row}


def _side_by_side(columns: dict[str, dict[str, list[float]]]) -> list[str]:
    labels = [entry.label for entry in FEW if any(entry.label in cells for cells in columns.values())]
    lines = [[f"`{label}`", *(interval(cells.get(label), ".1f") for cells in columns.values())] for label in labels]
    return table(["", *columns], lines)


def _goals(results: Results) -> list[str]:
    """What was asked of the solvers, and what was seen."""
    found = {
        model: {(row["claim"], row["steps"]): row for row in goals(results.main(model))} for model in results.models
    }
    lines = []
    for (claim, steps), first in found[results.models[0]].items():
        cells = []
        for rows in found.values():
            row = rows.get((claim, steps))
            met = row is not None and row["seen_db"] >= row["wanted_db"]
            cells.append("–" if row is None else f"{row['seen_db']:+.1f} {'yes' if met else '**no**'}")
        lines.append([claim, str(steps), f"{first['wanted_db']:+.0f}", *cells])
    return table(["claim", "N", "wanted", *(TITLES[model] for model in results.models)], lines)


def _solvers(results: Results) -> Iterator[str]:
    for model, solvers in results.about["solvers"].items():
        for name, solver in solvers.items():
            yield (
                f"- **{name}** on the {TITLES[model]}: {solver['parameters']:,} parameters, "
                f"{solver['share']:.0%} of a base evaluation in FLOPs"
                + (f", {solver['images_seen']:,} images seen" if "images_seen" in solver else "")
                + (f" in {solver['seconds'] / 60:.0f} minutes of one CPU core" if "seconds" in solver else "")
                + (f", {solver['base_evaluations']:,} base evaluations" if "base_evaluations" in solver else "")
                + "."
            )


def _machine(results: Results) -> str:
    about = results.about
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    minutes = f"{about['seconds'] / 60:.0f} minutes of wall time, whatever else the machine did included"
    return f"- {about['machine']}, {about['threads']} thread(s), {versions}; {minutes}."
