r"""Experiment 7: empty prompt against the true class, at inversion and at training: what comes back, and of what class.

    python -m comfyui_deepinv.benchmarks.experiments.prompts cifar10_jpeg.zip docs/experiments \
        --classifier runs/classifier/classifier.safetensors

Solvers of our recipe are trained under the empty prompt, or under each photograph's own class; each is then used under
both. A round trip has a prompt on each way and a guidance scale; null-text optimisation, which tunes the empty prompt
so that guided sampling follows the inversion, has something to mend under guidance only, so trips at CFG 1 and at a
real CFG are both measured. The classifier is ``tools.embedded.classifier``'s, trained on photographs alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...deepinv_core.adapters.transformer import Conditioning, TransformerVelocity
from ...deepinv_core.embedded.spec import CLASSES
from ...deepinv_core.inversion import invert, latent_snr, reconstruct
from ...deepinv_core.methods import Method, Options, make_method
from ...deepinv_core.solver import bind
from ...tools.embedded.classifier import load_classifier
from ...training.loop import Base
from ...training.objectives import Bound
from ..records import method_label
from .common import Experiment, Report, Scale, Setup, main_with_file, mean_and_ci, train
from .drawing import by_variant, figure, markdown, save_figure, spread
from .short import FAST, PREDICTOR

STEPS: Final = (4, 16)
GUIDED: Final = 4.0
"""The real CFG, as in the benchmark."""

VARIANTS: Final = ("empty", "true")
WITHOUT: Final = (("euler", None), ("uni_inv", 1), ("anderson_extrapolated", 3))


@dataclass(frozen=True)
class Trip:
    """Prompt and guidance up, and down: ``empty`` or ``true``."""

    up: str
    cfg_up: float
    back: str
    cfg_back: float

    @property
    def label(self) -> str:
        """For people."""
        sides = ((self.up, self.cfg_up), (self.back, self.cfg_back))
        return " → ".join(prompt if cfg == 1 else f"{prompt}, CFG {cfg:g}" for prompt, cfg in sides)


TRIPS: Final = (
    Trip("empty", 1.0, "empty", 1.0),
    Trip("true", 1.0, "true", 1.0),
    Trip("true", GUIDED, "true", GUIDED),
    Trip("empty", 1.0, "true", GUIDED),
    Trip("true", 1.0, "true", GUIDED),
)
"""The first two are the question at CFG 1; the third is a round trip under guidance; the last two invert without
guidance and sample with it, which is where null-text optimisation would act."""


class ClassSetup(Setup):
    """A setup whose prompt ``true`` is each photograph's own class."""

    def classes(self, labels: Tensor, cfg: float = 1.0) -> Bound:
        """The base under the classes of a batch, a row a photograph."""
        rows = [self.model.condition(CLASSES[int(label)]) for label in labels]
        prompt = Conditioning(torch.cat([row.context for row in rows]), torch.cat([row.pooled for row in rows]))
        empty = None if cfg == 1 else self.model.condition("")
        return Bound(TransformerVelocity(self.model.transformer, prompt, empty, cfg=cfg), prompt.context, prompt.pooled)

    def under(self, prompt: str, labels: Tensor, cfg: float = 1.0) -> Bound:
        """The base under ``empty`` or ``true``; guidance away from the empty prompt does nothing under itself."""
        return self.classes(labels, cfg) if prompt == "true" else self.bound("")

    def base(self, prompt: str = "") -> Base:
        """For training; the photographs' names are their row numbers."""
        if prompt != "true":
            return super().base(prompt)
        labels = self.train.labels
        return Base(
            self.model.info,
            lambda names: self.classes(labels[torch.tensor([int(name) for name in names])]),
            self.model.grid,
            torch.device("cpu"),
        )


def trips(setup: ClassSetup, classifier: nn.Module, method: Any, images: int) -> list[dict[str, Any]]:
    """Every trip at every step count: latent SNR, and the share in which the classifier sees the true class."""
    clean, labels = setup.test.latents[:images], setup.test.labels[:images]
    rows = []
    for steps in STEPS:
        grid = setup.model.grid(steps, clean)
        for trip in TRIPS:
            up, back = setup.under(trip.up, labels, trip.cfg_up), setup.under(trip.back, labels, trip.cfg_back)
            made: Method = method(up)
            latent = reconstruct(back.velocity, invert(up.velocity, clean, grid, made)).latent
            quality = mean_and_ci(latent_snr(latent, clean), "snr")
            rows.append(
                {"steps": steps, "trip": trip.label, **quality, "seen": seen(setup, classifier, latent, labels)}
            )
    return rows


def seen(setup: Setup, classifier: nn.Module, latent: Tensor, labels: Tensor) -> float:
    """Share of latents in whose decode the classifier sees the class."""
    with torch.no_grad():
        found = torch.cat([classifier(setup.model.decode(part)).argmax(1) for part in latent.split(64)])
    return round(float((found == labels).double().mean()), 4)


def experiment(file: Path) -> Experiment:
    """The experiment with a classifier's weights, read when they are needed."""
    classifier = cache(lambda: load_classifier(file))

    def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> dict[str, Any]:
        mine = ClassSetup(setup.model, setup.train, setup.test)
        prompt = "true" if variant == "true" else ""
        trained = train(mine, FAST, scale.evaluations, seed, config=PREDICTOR, prompt=prompt)

        def method(bound: Bound) -> Method:
            return make_method("deepinv", Options(refine=0), solver=bind(trained.network, bound.context, bound.pooled))

        return {**trained.costs(), "trips": trips(mine, classifier(), method, scale.images)}

    def baseline(setup: Setup, scale: Scale) -> dict[str, Any]:
        mine = ClassSetup(setup.model, setup.train, setup.test)
        clean, labels = setup.test.latents[: scale.images], setup.test.labels[: scale.images]
        found = []
        for name, k in WITHOUT:
            made = make_method(name, Options(refine=k))
            rows = trips(mine, classifier(), lambda bound, made=made: made, scale.images)
            found.append({"method": method_label(name, k), "trips": rows})
        return {"seen_in_the_vae_s_decode": seen(setup, classifier(), clean, labels), "methods": found}

    return Experiment(
        name="prompts",
        doc=__doc__ or "",
        scale=Scale(evaluations=8_000, images=64),
        variants=VARIANTS,
        settings={"cfg": GUIDED, "recipe": FAST.to_dict(), "predictor": PREDICTOR.to_dict()},
        measure=measure,
        draw=draw,
        table=table,
        baseline=baseline,
        options=" --classifier runs/classifier/classifier.safetensors",
    )


def _lines(report: Report, steps: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By method or training prompt, then by trip: the rows of a step count, one a seed."""
    runs = {f"*{row['method']}*": [row] for row in report["baseline"]["methods"]}
    runs |= {f"solver trained under {name}": rows for name, rows in by_variant(report).items()}
    return {
        name: {
            trip.label: [
                one for row in rows for one in row["trips"] if (one["steps"], one["trip"]) == (steps, trip.label)
            ]
            for trip in TRIPS
        }
        for name, rows in runs.items()
    }


def table(report: Report) -> str:
    """Latent SNR in dB, and in percent how often the class is seen, of each trip."""
    parts = []
    for steps in STEPS:
        lines = []
        for name, by_trip in _lines(report, steps).items():
            cells = []
            for rows in by_trip.values():
                share = 100 * sum(row["seen"] for row in rows) / len(rows)
                cells.append(f"{spread([row['snr'] for row in rows])}; {share:.0f} %")
            lines.append([name, *cells])
        parts.append(markdown([f"N = {steps}", *(trip.label for trip in TRIPS)], lines))
    return "\n\n".join(parts)


def draw(report: Report, path: Path) -> None:
    """Bars of both figures, a group a trip."""
    made, axes = figure(2, rows=2, title="Prompts: round trips under the empty prompt and the true class", height=3.6)
    ceiling = report["baseline"]["seen_in_the_vae_s_decode"]
    for column, steps in enumerate(STEPS):
        lines = _lines(report, steps)
        for panel, key, scale in ((axes[column], "snr", 1), (axes[2 + column], "seen", 100)):
            for number, (name, by_trip) in enumerate(lines.items()):
                heights = [scale * sum(row[key] for row in rows) / len(rows) for rows in by_trip.values()]
                places = [place + 0.16 * (number - (len(lines) - 1) / 2) for place in range(len(TRIPS))]
                panel.bar(places, heights, width=0.15, color=f"C{number}", label=name.strip("*"))
            panel.set_xticks(range(len(TRIPS)), [trip.label.replace(" → ", "\n→ ") for trip in TRIPS], fontsize=7)
        axes[column].set(title=f"N = {steps}", ylabel="latent SNR, dB")
        axes[2 + column].axhline(100 * ceiling, color="grey", linestyle="--")
        axes[2 + column].set(
            ylabel="true class seen, %", ylim=(0, 100), title="dashed: in the VAE's decode of the photos"
        )
    axes[0].legend(fontsize="small", loc="upper right")
    save_figure(made, path)


EXPERIMENT: Final = experiment(Path("runs/classifier/classifier.safetensors"))


if __name__ == "__main__":
    main_with_file("--classifier", experiment)
