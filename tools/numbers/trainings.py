"""A short training of each recipe, as tensors, for comparing bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch

from ...deepinv_core import checkpoint
from ...tests.core.tiny_training import CHECKS, CORRECTOR, PREDICTOR, base, images, solver, tensors
from ...training.budget import Budget
from ...training.loop import train
from ...training.recipes import FastRecipe, PaperRecipe

RECIPES = {
    "fast": (FastRecipe(batch=2, steps=(2, 3), checks=1, warmup=2), PREDICTOR),
    "paper": (
        PaperRecipe(batch=2, curriculum=((2, 2),), rounds=2, sweeps=1, step_updates=2, label_steps=2, label_images=2),
        CORRECTOR,
    ),
}


def trained(folder: Path, recipe: str) -> dict[str, torch.Tensor]:
    """All of the solver's file and of the training's state; the generator that torch shares is disturbed before."""
    settings, config = RECIPES[recipe]
    folder.mkdir()
    network = solver(config)
    torch.manual_seed(torch.seed())
    train(base()[0], images(), network, settings, folder, Budget(images=16), checks=CHECKS)
    written, metadata = checkpoint.load(folder / "solver.safetensors", kind="solver")
    assert metadata["training"]["updates"] > 4 and metadata["training"]["skipped"] == 0
    return {f"{recipe}: solver.{name}": value for name, value in written.items()} | {
        f"{recipe}: state.{name}": value for name, value in tensors(folder).items()
    }
