"""What the experiments work with: photographs as latents, a training of so many base evaluations, round trips."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ...deepinv_core import checkpoint
from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.inversion import latent_snr
from ...deepinv_core.models.base_model import BaseModel
from ...deepinv_core.models.embedded import load_embedded
from ...deepinv_core.solver import Config, CorrectorConfig, Network, PredictorConfig, Solver
from ...tools.garments.flow_model import WIDTH
from ...tools.garments.photos import fitted
from ...tools.garments.vae import CHANNELS
from ...training.base_model import Base, Conditioned
from ...training.budget import Budget
from ...training.latents import from_tensors
from ...training.loop import train as train_solver
from ...training.recipes import FastRecipe, PaperRecipe, Recipe
from ...training.run import Event
from ...training.validation import Checks
from ..cases import Case
from ..measure import there_and_back
from ..photos import CLASSES, IMAGE_SIZE
from ..store import Row

TRAINED: Final = Case("deepinv", 0)
"""A trained solver, without iterations after its guess."""

KIND: Final = "experiment_latents"
SPLITS: Final = {"train": 4096, "test": 256}
"""Photographs of each, at most."""

_WIDTHS: Final = {"channels": CHANNELS, "context_width": WIDTH, "pooled_width": WIDTH}
CORRECTOR: Final = replace(CorrectorConfig.preset("tiny", **_WIDTHS), heads=2, layers_left=1, layers_right=1)
"""The paper's network for the experiments: 0.4 M parameters, an evaluation a third of the embedded model's."""

PREDICTOR: Final = replace(PredictorConfig.preset("tiny", channels=CHANNELS), heads=2)
"""Ours, half as wide as the shipped one: an evaluation costs about as many FLOPs as :data:`CORRECTOR`'s."""

PAPER: Final = PaperRecipe(batch=8, lr=1e-3, eps=1e-8, average=0.995, rounds=1, sweeps=1, label_images=32)
"""The paper's recipe in small. Batch, learning rate and AdamW's eps are for a network of this size (1e-5 is for 909 M
parameters), the average is over the last 200 updates, and one round of stored labels follows round 0 instead of three
of two sweeps each. The curriculum, its passes and all weights are the recipe's own."""

FAST: Final = FastRecipe(batch=32, warmup=100, average=0.99, checks=1, closing=0)
"""Ours for a minute or two: a smaller batch than the recipe's, and an average over fewer updates."""


@dataclass(frozen=True)
class Scale:
    """How large an experiment is run: base evaluations of one training, test photographs, a training a seed."""

    evaluations: int
    images: int = 32
    seeds: tuple[int, ...] = (0, 1, 2)
    config: Config = CORRECTOR


@dataclass(frozen=True)
class Photos:
    """Latents ``[n, 16, 16, 16]`` in model space, float32, and their classes ``[n]``."""

    latents: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Setup:
    """The frozen base model, photographs of an archive to train on and others to measure with."""

    model: BaseModel
    train: Photos
    test: Photos
    archive: Path
    weights: Path | None = None

    def more_weights(self, what: str) -> Path:
        """The file of one more network, for the experiments that need one; an error where none was named."""
        if self.weights is None:
            raise DeepInvError(f"the {what} is missing: name its file, --weights FILE")
        return self.weights

    def conditioned(self, labels: Tensor | None = None, cfg: float = 1.0) -> Conditioned:
        """The base model under classes, a row a photograph, or under the empty prompt; and the prompt itself."""
        names = [] if labels is None else [CLASSES[int(label)] for label in labels]
        prompt = self.model.prompts(names or ("",))
        return Conditioned(self.model.velocity(names or "", cfg=cfg), prompt.context, prompt.pooled)

    def base(self, classes: bool = False) -> Base:
        """The base model for a training: under the empty prompt, or under each photograph's own class."""

        def under(names: tuple[str, ...]) -> Conditioned:  # they are row numbers
            return self.conditioned(self.train.labels[torch.tensor([int(name) for name in names])] if classes else None)

        return Base(self.model.info, under, self.model.grid, torch.device("cpu"))


def load_setup(archive: Path, latents: Path | None = None, weights: Path | None = None) -> Setup:
    """The embedded SD3 model, and the same photographs for every experiment; ``latents`` keeps them encoded."""
    model = load_embedded("sd3")
    if latents is not None and latents.exists():
        tensors = checkpoint.load(latents, kind=KIND)[0]
    else:
        tensors = {}
        for split, most in SPLITS.items():
            pixels, tensors[f"{split}.labels"] = fitted(archive, split, IMAGE_SIZE, most)
            tensors[f"{split}.latents"] = torch.cat([model.encode(part) for part in pixels.split(64)])
        if latents is not None:
            checkpoint.save(latents, tensors, checkpoint.header(KIND))
    train, test = (Photos(*(tensors[f"{split}.{name}"] for name in ("latents", "labels"))) for split in SPLITS)
    return Setup(model, train, test, archive, weights)


def train(
    setup: Setup,
    recipe: Recipe,
    scale: Scale,
    seed: int,
    *,
    config: Config | None = None,
    start: Network | None = None,
    classes: bool = False,
    watch: Callable[[Network, int], None] | None = None,
    shares: Sequence[float] = (),
) -> tuple[Network, Row]:
    """Train a solver by a recipe; returns it with averaged weights, and what it cost.

    Args:
        setup: the base model and the photographs.
        recipe: its settings.
        scale: the base evaluations to be spent.
        seed: of the network's weights, the order of the photographs and the walks.
        config: the network; None for the scale's.
        start: a network to go on from; it is changed. None for a new one.
        classes: whether each photograph is under its own class; else all are under the empty prompt.
        watch: called with the averaged network and the evaluations spent, at the first step past each of ``shares``.
        shares: of the evaluations, ascending.
    """
    torch.manual_seed(seed)
    network, waiting, watching = start or (config or scale.config).build(), list(shares), 0.0

    def progress(event: Event) -> None:
        nonlocal watching
        while watch is not None and waiting and event.evaluations >= round(waiting[0] * scale.evaluations):
            began = time.monotonic()
            waiting.pop(0)
            watch(event.average, event.evaluations)
            watching += time.monotonic() - began

    base, photos = setup.base(classes), from_tensors([setup.train.latents], holdout=0)
    budget, checks = Budget(evaluations=scale.evaluations), Checks(steps=(), images=0)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        done = train_solver(
            base, photos, network, recipe, Path(folder), budget, seed=seed, checks=checks, progress=progress
        )
    costs = {"parameters": sum(parameter.numel() for parameter in done.network.parameters())}
    costs |= {"evaluations": done.summary["base_evaluations"], "updates": done.summary["updates"]}
    seconds = round(time.monotonic() - began - watching, 1)
    return done.network, {**costs, "skipped": done.summary["skipped"], "training_seconds": seconds}


def trained(setup: Setup, recipe: Recipe, scale: Scale, seed: int, steps: Sequence[int], **more: Any) -> Row:
    """What :func:`train` cost, and round trips at K = 0 as ``final``."""
    network, costs = train(setup, recipe, scale, seed, **more)
    return {**costs, "final": round_trips(setup, steps, TRAINED, network, images=scale.images)}


def solver_of(conditioned: Conditioned, network: Network | None) -> Solver | None:
    """A network under the prompt of a base; None for none."""
    return None if network is None else conditioned.solver(network)


def round_trips(
    setup: Setup, steps: Sequence[int], case: Case, network: Network | None = None, *, images: int = 32
) -> list[Row]:
    """Invert the first test photographs and sample them back, under the empty prompt, nothing kept but the noise.

    Returns:
        A row for each step count: ``steps``, ``nfe`` of the inversion, and :func:`mean_snr` as ``snr``.
    """
    conditioned, clean = setup.conditioned(), setup.test.latents[:images]
    method, rows = case.method_of(solver_of(conditioned, network)), []
    for count in steps:
        trip = there_and_back(conditioned.velocity, clean, setup.model.grid(count, clean), method)
        rows.append({"steps": count, "nfe": trip.inversion.nfe, "snr": mean_snr(trip.back.latent, clean)})
    return rows


def untrained(setup: Setup, images: int, steps: Sequence[int], cases: Mapping[str, Case]) -> dict[str, list[Row]]:
    """Round trips of methods without a network, by name."""
    return {name: round_trips(setup, steps, case, images=images) for name, case in cases.items()}


def mean_snr(latent: Tensor, clean: Tensor) -> float:
    """Mean latent SNR in dB."""
    return round(float(latent_snr(latent, clean).double().mean()), 3)


def watched(setup: Setup, steps: Sequence[int], images: int) -> tuple[list[Row], Callable[[Network, int], None]]:
    """A list, and what adds round trips at K = 0 to it when a training says so; see :func:`train`."""
    curve: list[Row] = []

    def watch(network: Network, evaluations: int) -> None:
        points = round_trips(setup, steps, TRAINED, network, images=images)
        curve.extend({"evaluations": evaluations, **point} for point in points)

    return curve, watch


def of_steps(rows: Sequence[Row], steps: int, name: str = "snr") -> float:
    """A figure of the row of a step count."""
    return next(row[name] for row in rows if row["steps"] == steps)
