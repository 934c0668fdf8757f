"""Experiment 7: empty prompt against the true class, at inversion and at training: what comes back, and of what class.

It is given the weights of the classifier of :mod:`...tools.garments`, which was trained on photographs alone.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from ...deepinv_core.solver import Network
from ...tools.garments.classifier import Classifier, load_classifier, named
from .. import plots, tables
from ..cases import Case
from ..measure import there_and_back
from ..store import Row
from .common import FAST, PREDICTOR, TRAINED, Scale, Setup, mean_snr, solver_of, train
from .experiment import Experiment, Report

STEPS: Final = (4, 16)
GUIDED: Final = 4.0
"""The real CFG, as in the benchmark."""

VARIANTS: Final = ("empty", "true")
WITHOUT: Final = (Case("euler"), Case("uni_inv", 1), Case("anderson_extrapolated", 3))

TRIPS: Final = (
    (("empty", 1.0), ("empty", 1.0)),
    (("true", 1.0), ("true", 1.0)),
    (("true", GUIDED), ("true", GUIDED)),
    (("empty", 1.0), ("true", GUIDED)),
    (("true", 1.0), ("true", GUIDED)),
)
"""Prompt and guidance up, and down. The first two are the question at CFG 1; the third is a round trip under guidance;
the last two invert without guidance and sample with it, which is where null-text optimisation would act."""

LABELS: Final = [
    " → ".join(prompt if cfg == 1 else f"{prompt}, CFG {cfg:g}" for prompt, cfg in sides) for sides in TRIPS
]


@cache
def classifier(setup: Setup) -> Classifier:
    """The classifier; raises as :meth:`Setup.more_weights`."""
    return load_classifier(setup.more_weights("classifier"))


def trips(setup: Setup, case: Case, images: int, network: Network | None = None) -> list[Row]:
    """Every trip at every step count: latent SNR, and the share in which the classifier sees the true class."""
    clean, labels = setup.test.latents[:images], setup.test.labels[:images]
    rows = []
    for steps in STEPS:
        grid = setup.model.grid(steps, clean)
        for label, sides in zip(LABELS, TRIPS, strict=True):
            up, back = (setup.conditioned(labels if prompt == "true" else None, cfg) for prompt, cfg in sides)
            method = case.method_of(solver_of(up, network))
            latent = there_and_back(up.velocity, clean, grid, method, down=back.velocity).back.latent
            row = {"steps": steps, "trip": label, "snr": mean_snr(latent, clean)}
            rows.append({**row, "seen": seen(setup, latent, labels)})
    return rows


def seen(setup: Setup, latent: Tensor, labels: Tensor) -> float:
    """Share of latents in whose decode the classifier sees the class."""
    return round(float((named(classifier(setup), setup.model.decode(latent)) == labels).float().mean()), 4)


def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> Row:
    """Train under one prompt, and use the solver under both."""
    network, costs = train(setup, FAST, scale, seed, config=PREDICTOR, classes=variant == "true")
    return {**costs, "trips": trips(setup, TRAINED, scale.images, network)}


def baseline(setup: Setup, scale: Scale) -> dict[str, Any]:
    """The methods without a network, and how often the class is seen without an inversion."""
    clean, labels = setup.test.latents[: scale.images], setup.test.labels[: scale.images]
    found = [{"method": case.label, "trips": trips(setup, case, scale.images)} for case in WITHOUT]
    return {"seen_in_the_vae_s_decode": seen(setup, clean, labels), "methods": found}


def _lines(report: Report, steps: int) -> dict[str, list[list[Row]]]:
    """By method or training prompt: the rows of each trip at a step count, one a seed."""
    runs = {f"*{row['method']}*": [row] for row in report["baseline"]["methods"]}
    runs |= {f"solver trained under {name}": rows for name, rows in tables.by_variant(report).items()}
    wanted = [(steps, label) for label in LABELS]
    return {
        name: [[one for row in rows for one in row["trips"] if (one["steps"], one["trip"]) == key] for key in wanted]
        for name, rows in runs.items()
    }


def _mean(rows: list[Row], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def table(report: Report) -> str:
    """Latent SNR in dB, and in percent how often the class is seen, of each trip."""
    lines = []
    for steps in STEPS:
        cells = []
        for name, by_trip in _lines(report, steps).items():
            snr, shares = ([[row[key] for row in rows] for rows in by_trip] for key in ("snr", "seen"))
            both = zip(snr, shares, strict=True)
            cells.append([name, *(f"{tables.spread(db)}; {100 * sum(share) / len(share):.0f} %" for db, share in both)])
        lines += [*tables.table([f"N = {steps}", *LABELS], cells), ""]
    return "\n".join(lines[:-1])


def draw(report: Report, path: Path) -> None:
    """Bars of both figures, a group a trip."""
    title = "Prompts: round trips under the empty prompt and the true class"
    made, panels = plots.figure(2, 2, title=title, size=(5.4, 3.6))
    labels = [label.replace(" → ", "\n→ ") for label in LABELS]
    for column, steps in enumerate(STEPS):
        lines = _lines(report, steps)
        for panel, key, scale in ((panels[column], "snr", 1), (panels[2 + column], "seen", 100)):
            for number, (name, by_trip) in enumerate(lines.items()):
                heights = [scale * _mean(rows, key) for rows in by_trip]
                places = [place + 0.16 * (number - (len(lines) - 1) / 2) for place in range(len(TRIPS))]
                panel.bar(places, heights, width=0.15, color=f"C{number}", label=name.strip("*"))
            panel.set_xticks(range(len(TRIPS)), labels, fontsize=7)
        panels[column].set(title=f"N = {steps}", ylabel="latent SNR, dB")
        below, dashed = panels[2 + column], "dashed: in the VAE's decode of the photos"
        below.axhline(100 * report["baseline"]["seen_in_the_vae_s_decode"], color="grey", linestyle="--")
        below.set(ylabel="true class seen, %", ylim=(0, 100), title=dashed)
    panels[0].legend(fontsize="small", loc="upper right")
    plots.save(made, path)


SETTINGS: Final = {"cfg": GUIDED, "recipe": FAST.to_dict(), "predictor": PREDICTOR.to_dict()}
EXPERIMENT: Final = Experiment(
    "prompts", Scale(8000, images=64), VARIANTS, SETTINGS, measure, draw, table, {"baseline": baseline}
)
