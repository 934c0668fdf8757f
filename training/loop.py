"""The training loop: stages of passes, each pass a batch carried through its steps; resumed exactly where it stood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.memory import enough_memory
from .accumulation import Accumulation
from .base_model import Base
from .budget import Budget, Schedule
from .closing import close
from .latents import LatentCache
from .plot import PLOT, plot
from .recipes.base import Recipe
from .run import Event, Run
from .state import resume_run, summary
from .trainee import SolverTrainee
from .validation import Checks, held_out, validate_baselines, validate_solver
from .walk import Walk
from .workers import Workers

if TYPE_CHECKING:
    from ..deepinv_core.solver import Network

SAVE_SECONDS = 120.0


@dataclass
class Trained:
    """A finished training.

    Attributes:
        network: the averaged weights, with their closing fit where the recipe makes one.
        summary: what the solver's file says of the training.
        losses: images seen, and the mean loss since the entry before.
        rows: validations.
        added: images seen since it was begun or resumed.
        notes: what else the user is to be told.
    """

    network: Network
    summary: dict[str, Any]
    losses: list[tuple[int, float]]
    rows: list[dict[str, Any]]
    added: int
    notes: list[str]


def train(
    base: Base,
    latents: LatentCache,
    network: Network,
    recipe: Recipe,
    folder: Path,
    budget: Budget,
    *,
    seed: int = 0,
    resume: bool = False,
    checks: Checks | None = None,
    progress: Callable[[Event], None] = lambda event: None,
    workers: Workers | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> Trained:
    """Train a solver to the end of a budget.

    Args:
        base: the frozen base model.
        latents: to train on, and those held out.
        network: what is trained, of the recipe's kind of solver; changed in place.
        recipe: its settings.
        folder: for the state, the report and the solver, which are saved on the way.
        budget: how long.
        seed: of everything random.
        resume: go on with the training in the folder where there is one; else what is there is written over.
        checks: what is validated after each stage.
        progress: called after each step and each validation; ends the training by raising, after all is saved.
        workers: the processes that train together.
        save_seconds: the state is saved as often, and after each stage.

    Raises:
        DeepInvError: a network of another kind, a batch that can't be shared, a state that is damaged or of another
            training, too little memory for a single image, too many updates that were not finite, or a disk that
            refuses. What ``progress`` raises passes through.
    """
    workers, checks = workers or Workers(), checks or Checks()
    if recipe.batch % workers.world:
        raise DeepInvError(f"batch {recipe.batch} can't be shared by {workers.world} processes: use a multiple")
    trainee = SolverTrainee(network, recipe, workers)
    schedule = Schedule(recipe.stages(), budget, recipe.batch)
    run = Run(folder, recipe, seed, base.info, latents.train, schedule, trainee, workers, progress, save_seconds)
    if resume:
        resume_run(run)  # refuses what the training was not started with
    role, wanted = network.config.role, recipe.solver.config_type.role
    if role != wanted:
        raise DeepInvError(f"recipe {recipe.name!r} trains a {wanted}, this is a {role}: take another recipe for it")
    begun = run.position.images
    enough_memory(lambda: _loop(run, trainee, recipe, base, latents, checks, workers), "train this solver")
    added, whole = run.position.images - begun, recipe.batch // workers.world
    if added and run.micro_batch < whole:
        run.notes.append(f"batches of {whole} were computed {run.micro_batch} at a time: there is memory for no more")
    return Trained(trainee.average, summary(run), run.losses, run.rows, added, run.notes)


def _loop(
    run: Run,
    trainee: SolverTrainee,
    recipe: Recipe,
    base: Base,
    latents: LatentCache,
    checks: Checks,
    workers: Workers,
) -> None:
    """From where the run stands to the end of the last stage, and the closing fit."""
    stages, objective = recipe.stages(), recipe.objective(base, run.seed, workers)
    accumulation = Accumulation(recipe.batch // workers.world, workers, base.free)

    def gradient(walk: Walk) -> Tensor:
        return trainee.accumulate(objective.losses(walk, trainee.network))

    if run.position.stage < len(stages):
        trial = recipe.objective(base, run.seed, workers)
        seconds = accumulation.find(trial, trainee, stages[run.position.stage], latents.largest(accumulation.size))
        run.micro_batch_found(accumulation.size)
        run.tell_of_overshoot(seconds)
    if not run.rows:
        before = validate_baselines(held_out(latents, checks, workers), base, checks, run.validating)
        run.validated("before training", before)

    rows = []
    for stage in stages[run.position.stage :]:
        evaluations = objective.enter(
            stage, trainee.average, latents, run.folder, fresh=run.fresh, progress=run.preparing(stage)
        )
        run.begin(stage, evaluations)
        for batch in objective.batches(stage, latents, run.position.passes):
            if not run.goes_on():
                break
            clean, names = workers.share(batch.latents), batch.names[workers.rank :: workers.world]
            walk = objective.begin(stage, run.position.passes, clean.to(base.device, torch.float32), names)
            run.take_up(walk)
            walk.split(accumulation.size)
            lr = recipe.lr * recipe.lr_factor(stage, *run.position.progress)
            while not walk.done:
                for _ in range(objective.updates(walk)):
                    trainee.step(accumulation.run(walk, gradient), lr)
                    trainee.follow()
                objective.go(walk)
                run.step_done(stage, walk, objective, accumulation.size)
        rows = validate_solver(trainee.average, held_out(latents, checks, workers), base, checks, run.validating)
        run.stage_done(stage, rows, objective)
        if run.rows:
            plot(run.losses, run.rows, run.folder / PLOT)
    close(run, objective, base, latents, checks, rows)
