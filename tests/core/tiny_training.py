"""Trainings small enough for a test: the embedded SD3 model on 8x8 latents, and solvers of one narrow head."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.models.embedded import load_embedded
from comfyui_deepinv.deepinv_core.solver import CorrectorConfig, PredictorConfig
from comfyui_deepinv.training.base_model import Base, Conditioned
from comfyui_deepinv.training.budget import Budget
from comfyui_deepinv.training.latents import LatentCache, from_tensors
from comfyui_deepinv.training.loop import Trained
from comfyui_deepinv.training.loop import train as train_solver
from comfyui_deepinv.training.recipes import FastRecipe, Recipe
from comfyui_deepinv.training.run import Event
from comfyui_deepinv.training.state import FILE, STATS
from comfyui_deepinv.training.validation import Checks

CORRECTOR = replace(
    CorrectorConfig.preset("tiny", channels=16, context_width=64, pooled_width=64),
    heads=1,
    head_dim=16,
    image_channels=1,
    image_grid=2,
    image_width=16,
)
PREDICTOR = replace(PredictorConfig.preset("tiny", channels=16), heads=1, head_dim=16, layers=1)
FAST = FastRecipe(batch=2, steps=(2, 3), short=0.0, checks=2, warmup=3, closing_rounds=1)
CHECKS = Checks(steps=(2,), refine=(0,), images=1)


class Watched:
    """A velocity that counts the latents it is asked for, and answers NaN to the calls in ``broken``."""

    sigma_min, cost = 0.0, 1

    def __init__(self, velocity: Callable[[torch.Tensor, float], torch.Tensor], broken: tuple[int, ...] = ()) -> None:
        self.velocity, self.broken = velocity, broken
        self.calls = self.rows = 0

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """Asked once more."""
        self.calls += 1
        self.rows += len(z)
        v = self.velocity(z, sigma)
        return v * torch.nan if self.calls in self.broken else v


@cache
def embedded() -> Any:
    return load_embedded("sd3")


def base(broken: tuple[int, ...] = ()) -> tuple[Base, Watched]:
    """The embedded model, and the velocity that it is asked through."""
    model = embedded()
    empty, watched = model.condition(""), Watched(model.velocity(""), broken)
    conditioned = Conditioned(watched, empty.context, empty.pooled)
    return Base(model.info, lambda names: conditioned, model.grid, torch.device("cpu")), watched


def solver(config: Any, seed: int = 0) -> Any:
    """A solver whose output layer isn't zero any more."""
    torch.manual_seed(seed)
    network = config.build()
    torch.nn.init.normal_(network.proj_out.weight, std=0.02)
    return network


def images(count: int = 10, seed: int = 0) -> LatentCache:
    """Latents, one of ten or more of them held out."""
    latents = torch.randn((count, 16, 8, 8), generator=torch.Generator().manual_seed(seed))
    return from_tensors([latents], holdout=0.01)


class Stopped(Exception):
    """Raised by a test's progress callback."""


def train(
    folder: Path,
    recipe: Recipe,
    budget: Budget,
    config: Any,
    *,
    stop: Callable[[Event], bool] = lambda event: False,
    resume: bool = False,
    **options: Any,
) -> Trained:
    """Train to the end, or to the event at which ``stop`` is true."""

    def progress(event: Event) -> None:
        if stop(event):
            raise Stopped(event.stage)

    folder.mkdir(exist_ok=True)
    base_model = options.pop("base", None) or base()[0]
    assert (folder / FILE).exists() or not resume
    return train_solver(
        *(base_model, images(), solver(config), recipe, folder, budget),
        **{"resume": resume, "checks": CHECKS, "progress": progress, **options},
    )


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All that the last state holds."""
    return checkpoint.load(folder / FILE, kind="training")[0]


def metadata(folder: Path) -> dict[str, Any]:
    """What the last state says."""
    return checkpoint.read_metadata(folder / FILE, kind="training")


def assert_same_training(one: Path, two: Path) -> None:
    """Weights, average, optimizer, losses, validations and report lines are equal, bit for bit; times aside."""
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    kept = ("passes", "images", "evaluations", "stage")
    states = [metadata(folder) for folder in (one, two)]
    assert [states[0]["position"][name] for name in kept] == [states[1]["position"][name] for name in kept]
    assert states[0]["losses"] == states[1]["losses"]
    assert report(one) == report(two)


def report(folder: Path) -> list[dict[str, Any]]:
    """The report lines without their times."""
    lines = [json.loads(line) for line in (folder / STATS).read_text().splitlines()]
    for line in lines:
        for part in (line, line.get("validation", {})):
            part.pop("seconds", None)
    return lines
