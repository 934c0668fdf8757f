"""What DeepInv Train Solver does, from its inputs to the solver."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..deepinv_core import checkpoint, verdict
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.names import safe_name
from ..deepinv_core.solver import LoadedSolver
from ..training.base_model import Base
from ..training.budget import Budget
from ..training.latents import LatentCache, from_tensors
from ..training.lock import locked
from ..training.loop import Trained
from ..training.loop import train as train_solver
from ..training.recipes import Recipe, make_recipe
from ..training.run import Event
from ..training.state import FILE, SOLVER
from ..training.validation import Checks, step_counts, table
from . import adapter

log = logging.getLogger(__name__)

BATCH_PIXELS = 4 * 128 * 128
"""Latent pixels in a batch at most, where the user sets none: four images of 1024 x 1024."""


@dataclass(frozen=True)
class TrainInputs:
    """The node's inputs that are plain values; 0 for the recipe's own number."""

    recipe: str
    preset: str
    name: str
    minutes: float
    images: int = 0
    resume: bool = True
    batch: int = 0
    lr: float = 0.0
    seed: int = 0
    validation_images: int = 4
    validation_steps: str = "4,8"


class Outcome(NamedTuple):
    """The node's outputs: the solver, the losses in order, the report."""

    solver: adapter.SolverHandle
    losses: list[float]
    report: str


def run(
    inputs: TrainInputs,
    model: Any,
    latents: Sequence[dict[str, Any]],
    conditionings: Sequence[adapter.Conditioning],
    vae: Any | None,
) -> Outcome:
    """Train, or go on with a training.

    Raises:
        DeepInvError: any input that can't be used, a name that is taken, too little memory, a disk that refuses.
    """
    name = safe_name(inputs.name)
    folder = adapter.training_folder(name)
    budget = Budget(images=inputs.images) if inputs.images else Budget(minutes=inputs.minutes)
    checks = Checks(step_counts(inputs.validation_steps), refine=(0,), images=inputs.validation_images)
    found = adapter.in_model_space(model, latents)
    cache = _serve(found)
    prompts = adapter.Prompts(conditionings, [len(latent) for latent in found])
    largest = max((latent.shape[1:] for latent in found), key=math.prod)
    recipe = _recipe(inputs, largest)
    if recipe.solver.reads_prompt:
        prompts.require_one_length()
    network = recipe.network(inputs.preset, inputs.seed, largest[0], *prompts.widths)

    def train(base: Base, decode: adapter.Decode | None) -> Trained:
        watch = _Watch(decode)
        return train_solver(
            base,
            cache,
            network,
            recipe,
            folder,
            budget,
            seed=inputs.seed,
            resume=True,
            checks=replace(checks, batch=min(checks.images, recipe.batch), decode=watch.decode),
            progress=watch,
        )

    with locked(folder, "training a solver"):
        _require_resumable(folder, name, cache, resume=inputs.resume)
        try:
            trained = adapter.run_training(model, vae, prompts, network, (recipe.batch, *largest), train)
        except OSError as error:
            raise DeepInvError(
                f"{folder} can't be written ({error}): free space on the disk, or use another name"
            ) from error
        except BaseException:
            if (folder / FILE).exists():
                log.warning("the training of %r stopped; run it again with resume on to go on: %s", name, folder / FILE)
            raise
    solver = adapter.SolverHandle(LoadedSolver(trained.network, adapter.model_info(model), trained.summary), name)
    report = _describe(trained, cache, folder, recipe, inputs)
    if any(latent.get("noise_mask") is not None for latent in latents):
        report += "\nthe latents' noise masks were not used: a solver is trained on whole pictures"
    if recipe.solver.reads_prompt and any(len(prompt) > 1 for prompt in prompts.distinct):
        report += "\nof combined prompts the solver reads the first alone; the model reads all"
    return Outcome(solver, [loss for _, loss in trained.losses], report)


def _serve(found: Sequence[Tensor]) -> LatentCache:
    count = sum(map(len, found))
    if count < 2:
        raise DeepInvError(
            f"{count} latent came: at least 2 are needed, one to train on and one to check with; some hundreds are good"
        )
    return from_tensors(found)


def _recipe(inputs: TrainInputs, largest: torch.Size) -> Recipe:
    given = {name: value for name, value in (("batch", inputs.batch), ("lr", inputs.lr)) if value}
    recipe = make_recipe(inputs.recipe, inputs.preset, **given)
    most = max(1, BATCH_PIXELS // math.prod(largest[1:]))
    if inputs.batch or recipe.batch <= most:
        return recipe
    return replace(recipe, batch=most)


def require_free(name: str, *, resume: bool) -> None:
    """Refuse a name that no folder can have, or that is taken and not to be resumed.

    Raises:
        DeepInvError: it is one.
    """
    folder = adapter.training_folder(safe_name(name))
    training, solver = ((folder / file).exists() for file in (FILE, SOLVER))
    if solver and not training:
        raise DeepInvError(f"output/deepinv/{name} holds a solver but no training to go on with: choose another name")
    if training and not resume:
        raise DeepInvError(
            f"a training named {name!r} is in output/deepinv and is left as it is: choose another name, or turn "
            "resume on to go on with it"
        )


def _require_resumable(folder: Path, name: str, cache: LatentCache, *, resume: bool) -> None:
    """Refuse a name that is taken and not to be resumed, or was trained on other latents."""
    require_free(name, resume=resume)
    solver = folder / SOLVER
    if not (folder / FILE).exists():
        return
    before = checkpoint.read_metadata(solver, kind="solver")["training"] if solver.exists() else None
    if before is not None and before["images_trained_on"] != cache.train:
        raise DeepInvError(
            f"the training {name!r} had {before['images_trained_on']} latents to train on, now there are "
            f"{cache.train}: connect those it was started with, or choose another name"
        )


class _Watch:
    """The training's progress on the node, with the last picture of a validation: the photo, then what came back."""

    def __init__(self, decode: Any | None) -> None:
        self._decode, self._progress = decode, adapter.TrainingProgress()
        self._seen: deque[Tensor] = deque(maxlen=2)

    @property
    def decode(self) -> Any | None:
        """Latents to images, remembered; None without a VAE."""
        return self._remember if self._decode else None

    def _remember(self, latents: Tensor) -> Tensor:
        images: Tensor = self._decode(latents)  # type: ignore[misc]
        self._seen.append(images[0])
        return images

    def __call__(self, event: Event) -> None:
        """Show an event."""
        picture = None
        if event.rows and len(self._seen) == 2:
            back, photo = self._seen
            picture = torch.cat([photo, back], dim=-1)
        self._progress(event, picture)


def _describe(trained: Trained, cache: LatentCache, folder: Path, recipe: Recipe, inputs: TrainInputs) -> str:
    """The report."""
    summary = trained.summary
    worth = verdict.of_solver(summary["validation"])
    lines = [
        worth or "Not judged: the validation has no method without a solver to compare with.",
        f"{inputs.recipe} recipe, {inputs.preset} solver, batches of {recipe.batch}: "
        f"{summary['images_seen']} images seen in {summary['seconds'] / 60:.1f} min, "
        f"{summary['base_evaluations']} base evaluations, "
        f"{summary['updates']} updates ({summary['skipped']} skipped)",
        f"{cache.train} latents trained on, {cache.holdout} held out",
        "latent SNR in dB of the round trip of held-out latents, noise alone; in brackets the evaluations to invert:",
        table(summary["validation"]),
        f"files: {folder}",
    ]
    psnr = [row for row in summary["validation"] if row["method"] == "deepinv" and "psnr_to_vae" in row]
    if psnr:
        text = ", ".join(f"{row['psnr_to_vae']:.1f} dB at {row['steps']} steps" for row in psnr)
        lines.insert(-1, f"image PSNR of the solver against the VAE's own decode: {text}")
    lines += trained.notes
    if not trained.added:
        lines.append("it was finished before, and nothing was added: train longer under another name")
    return "\n".join(lines)
