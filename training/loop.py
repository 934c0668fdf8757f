"""The training loop: stages of passes, each pass a batch carried through its steps; resumed exactly where it stood."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.integrator import Progress
from ..deepinv_core.memory import enough_memory
from ..deepinv_core.models.base_info import BaseInfo
from ..deepinv_core.solver import bind, save_solver
from .budget import Budget, Position, Schedule
from .latents import LatentCache
from .objectives import Bound, FastObjective, Grid, Objective, Walk
from .plot import PLOT, plot
from .recipes import FastRecipe, PaperRecipe, Recipe, Stage
from .state import STATS, add_line, require_due, require_same, save_state
from .trainee import SolverTrainee
from .validation import Checks, Latents, validate_baselines, validate_solver
from .workers import Workers

if TYPE_CHECKING:
    from ..deepinv_core.solver import Network

log = logging.getLogger(__name__)

REPORT_PASSES = 25
SAVE_SECONDS = 120.0
GROWN = ("grown_left", "grown_right")


@dataclass(frozen=True)
class Base:
    """The frozen base model a solver is trained for.

    Attributes:
        info: its identity.
        bind: names of latents to the base under their prompts; evaluated without gradient, never changed.
        grid: sigmas as the base is sampled.
        device: where latents go.
    """

    info: BaseInfo
    bind: Callable[[tuple[str, ...]], Bound]
    grid: Grid
    device: torch.device


class Event(NamedTuple):
    """What the progress callback is given after each step: share done, seconds used and left, last loss, the stage.

    ``rows`` holds the validation just made, at the end of a stage.
    """

    fraction: float
    seconds: float
    left: float
    loss: float
    stage: str
    rows: list[dict[str, Any]]


@dataclass
class Trained:
    """A finished training: the averaged network, a summary for its file, every loss and validation on the way."""

    network: Network
    summary: dict[str, Any]
    losses: list[tuple[int, float]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


class Training:
    """One training run; see :func:`train`."""

    def __init__(
        self,
        base: Base,
        cache: LatentCache,
        network: Network,
        recipe: Recipe,
        folder: Path,
        budget: Budget,
        *,
        seed: int = 0,
        checks: Checks | None = None,
        progress: Callable[[Event], None] = lambda event: None,
        workers: Workers | None = None,
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        self._base, self._cache, self._recipe, self._folder = base, cache, recipe, folder
        self._seed, self._checks, self._progress = seed, checks or Checks(), progress
        self._workers, self._save_seconds = workers or Workers(), save_seconds
        if recipe.batch % self._workers.world:
            raise DeepInvError(
                f"batch {recipe.batch} can't be shared by {self._workers.world} processes: use a multiple"
            )
        self._stages = recipe.stages()
        self._schedule = Schedule(self._stages, budget, recipe.batch)
        self._trainee = SolverTrainee(network, recipe, self._workers.wrap, split=self._workers.world == 1)
        self._objective = make_objective(recipe, base, seed, self._autocast(), self._workers)
        self._position = Position()
        self._walk: Walk | None = None
        self._walk_state: tuple[dict[str, Any], dict[str, Tensor]] | None = None
        self._trained = Trained(self._trainee.average, {})
        self._fresh = True
        self._lines = self._counted = 0
        self._stopped: BaseException | None = None
        self._saved = self._began = time.monotonic()

    def _autocast(self) -> AbstractContextManager[None]:
        device = self._base.device.type
        return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from what :func:`.state.load_state` read."""
        metadata, tensors = state["metadata"], state["tensors"]
        require_same(
            self._folder,
            metadata,
            {"recipe": self._recipe.to_dict(), "seed": self._seed, "base": asdict(self._base.info)},
        )
        self._position = Position(**{**metadata["position"], "progress": tuple(metadata["position"]["progress"])})
        self._lines = metadata["lines"]
        self._trained.losses = [(int(images), float(loss)) for images, loss in metadata["losses"]]
        self._trained.rows = metadata["rows"]
        begun = self._stages[: self._position.stage + (not metadata["fresh"])]
        due = [sum(stage.grow[side] for stage in begun) for side in (0, 1)]
        grown = [metadata["network"].get(name, 0) - getattr(self._trainee.network.config, name, 0) for name in GROWN]
        require_due(self._folder, self._position, len(self._stages), grown, due)
        if any(grown):
            self._trainee.grow(*grown)
            self._trainee.train_all()
        if begun and begun[-1].only_new:  # the optimizer that was saved is of these blocks
            self._trainee.train_new(*begun[-1].grow)
        self._trainee.restore(tensors)
        walk = {
            name: self._workers.share(value)
            for name, value in tensors.items()
            if name.startswith("walk.") and value.ndim
        }
        self._walk_state = (metadata["walk"], walk) if metadata["walk"] else None
        self._fresh = metadata["fresh"]

    @property
    def network(self) -> Network:
        """The average of the weights as it is now; it goes on changing."""
        return self._trainee.average

    @property
    def evaluations(self) -> int:
        """Base evaluations spent so far, of one image each."""
        return self._position.evaluations

    def run(self) -> Trained:
        """Train to the end of the budget."""
        try:
            enough_memory(self._run, "train this solver")
        finally:
            self._trainee.unwrap()
        self._trained.summary = self.summary()
        return self._trained

    def _run(self) -> None:
        if not self._trained.rows:
            self._validate("before training", self._baseline_rows())
        while self._position.stage < len(self._stages):
            stage = self._stages[self._position.stage]
            self._enter(stage)
            for batch in self._batches(stage):
                if self._walk_state is None:  # a walk that was interrupted is finished first
                    self._position.progress = self._agreed()
                    if self._position.progress[0] >= 1 and self._position.stage_passes:
                        break
                self._pass(stage, *batch)
            rows = self._solver_rows()  # before the stage counts as done: an interrupt in here is resumed here
            self._position.stage += 1
            self._position.stage_passes, self._fresh = 0, True
            self._validate(stage.name, rows)
            self._save()
            if self._workers.rank == 0 and self._trained.rows:
                plot(self._trained.losses, self._trained.rows, self._folder / PLOT)

    def _agreed(self) -> tuple[float, float]:
        self._tick()
        if self._workers.any(self._stopped is not None):
            self._save()
            raise self._stopped or KeyboardInterrupt
        stage, overall = self._workers.agree(*self._schedule.progress(self._position))
        return stage, overall

    def _enter(self, stage: Stage) -> None:
        def preparing(done: int, total: int) -> None:
            self._tick()
            self._call(self._event(f"{stage.name}: labels {done} of {total}"))

        # Before the network grows: an interrupt in here is resumed as the beginning of the stage.
        spent = self._objective.enter(
            stage, self._trainee.average, self._cache, self._folder, fresh=self._fresh, progress=preparing
        )
        if not self._fresh:
            return
        if any(stage.grow):
            self._trainee.grow(*stage.grow)
        if stage.only_new:
            self._trainee.train_new(*stage.grow)
        elif any(stage.grow) or (self._position.stage and self._stages[self._position.stage - 1].only_new):
            self._trainee.train_all()
        self._tick()
        self._position.evaluations += spent
        self._position.began = self._schedule.used(self._position)
        self._fresh = False

    def _batches(self, stage: Stage) -> Iterator[tuple[Tensor, tuple[str, ...]]]:
        passes = self._position.passes
        for batch in self._objective.batches(stage, self._cache, self._recipe.batch, self._seed, passes):
            rows = self._workers.share(torch.arange(len(batch.latents)))
            latents = batch.latents[rows].to(self._base.device, torch.float32)
            yield latents, tuple(batch.names[int(row)] for row in rows)

    def _pass(self, stage: Stage, clean: Tensor, names: tuple[str, ...]) -> None:
        walk = self._objective.begin(stage, self._position.passes, clean, names)
        if self._walk_state is not None:
            walk.restore(*self._walk_state)
            self._walk_state = None
        bound = self._base.bind(names)
        lr = self._recipe.lr * self._recipe.lr_factor(stage, *self._position.progress)
        while not walk.done:
            for loss in self._objective.losses(walk, self._trainee.model, bound):
                warm = min(1.0, (self._trainee.updates + 1) / max(1, self._recipe.warmup))
                self._trainee.update(loss, len(clean), lr * warm)
            self._walk = None if walk.done else walk
            if not walk.done:
                self._step_done(stage)
        self._position.passes += 1
        self._position.stage_passes += 1
        self._position.images += self._recipe.batch
        self._step_done(stage)

    def _step_done(self, stage: Stage) -> None:
        self._tick()
        position, spent = self._position, self._objective.evaluations
        position.evaluations += (spent - self._counted) * self._workers.world
        self._counted = spent
        between = self._walk is None
        if between and position.passes % REPORT_PASSES == 0:
            loss, skipped = self._note_loss(), int(self._trainee.skipped)
            self._report({"stage": stage.name, "loss": loss, "lr": self._trainee.lr, "skipped": skipped})
        if time.monotonic() - self._saved >= self._save_seconds and (between or self._workers.world == 1):
            self._save()
        self._call(self._event(stage.name))

    def _event(self, stage: str) -> Event:
        seconds = self._position.seconds
        overall = min(1.0, self._schedule.progress(self._position)[1])
        left = seconds * (1 - overall) / max(overall, 1e-9)
        loss = self._trained.losses[-1][1] if self._trained.losses else float("nan")
        return Event(overall, seconds, left, loss, stage, [])

    def _call(self, event: Event) -> None:
        """The callback may end the training by raising: all is saved first. Several processes end after the pass."""
        try:
            self._progress(event)
        except BaseException as error:
            if self._workers.world > 1:
                self._stopped = error
                return
            self._save()
            raise

    def _tick(self) -> None:
        now = time.monotonic()
        self._position.seconds += now - self._began
        self._began = now

    def _note_loss(self) -> float:
        loss = self._workers.mean(self._trainee.mean_loss(self._objective.broken))
        if not math.isnan(loss):
            self._trained.losses.append((self._position.images, round(loss, 6)))
        return loss

    def _held_out(self) -> Latents:
        found, left = [], self._checks.images
        for batch in self._cache.held_out(self._checks.batch):
            latents = batch.latents[:left].to(self._base.device, torch.float32)
            if len(latents):
                found.append((latents, self._base.bind(batch.names[: len(latents)])))
            left -= len(latents)
        return found

    def _baseline_rows(self) -> list[dict[str, Any]]:
        if self._workers.rank:
            return []
        self._tick()
        return validate_baselines(self._held_out(), self._base.grid, self._checks, self._validating)

    def _solver_rows(self) -> list[dict[str, Any]]:
        if self._workers.rank:
            return []
        self._tick()
        network = self._trainee.average
        return validate_solver(
            lambda bound: bind(network, bound.context, bound.pooled),
            self._held_out(),
            self._base.grid,
            self._checks,
            self._validating,
        )

    def _validating(self, progress: Progress) -> None:
        self._began = time.monotonic()  # the minutes are for training alone: short stages would have none left
        self._call(self._event("validation"))

    def _validate(self, name: str, rows: list[dict[str, Any]]) -> None:
        self._began = time.monotonic()
        if self._walk is None and self._trainee.updates:
            self._note_loss()
        place = {"stage": name, "images": self._position.images, "seconds": round(self._position.seconds, 1)}
        rows = [{**place, **row} for row in rows]
        self._trained.rows += rows
        for row in rows:
            self._report({"validation": row})
        overall = min(1.0, self._position.progress[1])
        self._call(Event(overall, self._position.seconds, 0.0, float("nan"), name, rows))

    def _report(self, line: dict[str, Any]) -> None:
        if self._workers.rank:
            return
        position = self._position
        place = {"passes": position.passes, "images": position.images, "seconds": round(position.seconds, 1)}
        line = {**place, "updates": self._trainee.updates, "evaluations": position.evaluations, **line}
        add_line(self._folder / STATS, line, fresh=not self._lines)
        self._lines += 1
        log.info("%s", line)

    def summary(self) -> dict[str, Any]:
        """What the solver's file says of its training."""
        position, last = self._position, self._stages[max(0, self._position.stage - 1)].name
        return {
            **self._recipe.to_dict(),
            "seed": self._seed,
            "images_seen": position.images,
            "images_trained_on": self._cache.train,
            "base_evaluations": position.evaluations,
            "updates": self._trainee.updates,
            "skipped": int(self._trainee.skipped),
            "seconds": round(position.seconds, 1),
            "validation": [row for row in self._trained.rows if row["stage"] in (last, "before training")],
        }

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._workers.rank:
            return
        self._tick()
        walk, tensors = (self._walk.metadata(), self._walk.tensors()) if self._walk else self._walk_state or (None, {})
        metadata = {
            "recipe": self._recipe.to_dict(),
            "seed": self._seed,
            "base": asdict(self._base.info),
            "network": self._trainee.network.config.to_dict(),
            "position": asdict(self._position),
            "fresh": self._fresh,
            "losses": self._trained.losses,
            "rows": self._trained.rows,
            "lines": self._lines,
            "walk": walk,
        }
        save_state(self._folder, {**self._trainee.tensors(), **tensors}, metadata)
        save_solver(
            self._folder / "solver.safetensors", self._trainee.average, base=self._base.info, training=self.summary()
        )


def make_objective(
    recipe: Recipe, base: Base, seed: int, autocast: AbstractContextManager[None], workers: Workers
) -> Objective:
    """The recipe at work."""
    if isinstance(recipe, FastRecipe):
        return FastObjective(recipe, base.grid, seed, autocast)
    from .paper import PaperObjective

    assert isinstance(recipe, PaperRecipe)
    return PaperObjective(recipe, base, seed, autocast, workers)
