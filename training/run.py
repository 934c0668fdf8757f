"""Where a training stands: what is counted, told and saved on its way."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..deepinv_core.integrator import Progress
from ..deepinv_core.models.base_info import BaseInfo
from .budget import Position, Schedule
from .recipes.base import Recipe, Stage
from .state import STATS, add_line, save_run
from .trainee import SolverTrainee
from .walk import Walk
from .workers import Workers

if TYPE_CHECKING:
    from ..deepinv_core.solver import Network
    from .recipes.objective import Objective

log = logging.getLogger(__name__)

REPORT_PASSES = 25


class Event(NamedTuple):
    """What the progress callback is given after each step.

    Attributes:
        fraction: share of the training done.
        seconds: used.
        left: seconds left.
        loss: the last one reported.
        stage: its name, and what is done in it.
        evaluations: base evaluations spent, of one image each.
        average: the moving average of the weights; it goes on changing.
        rows: the validation just made, at the end of a stage.
    """

    fraction: float
    seconds: float
    left: float
    loss: float
    stage: str
    evaluations: int
    average: Network
    rows: Sequence[dict[str, Any]] = ()


@dataclass
class Run:
    """A training between its beginning and its end.

    Attributes:
        folder: of its state, its report and its solver.
        recipe: its settings.
        seed: of everything random in it.
        base: the base model's identity.
        images: that it trains on.
        schedule: the stages' shares of the budget.
        trainee: the network.
        workers: this process and the others; the first writes.
        progress: called with each event; ends the training by raising, after all is saved.
        save_seconds: the state is saved as often.
        position: where it stands.
        fresh: whether the stage at hand has yet to begin.
        losses: images seen, and the mean loss since the entry before.
        rows: validations.
        lines: written to the report.
        micro_batch: images of this process whose gradient is computed at once; 0 before it is known.
        walk: that is on its way.
        stored_walk: the same as it was interrupted, before it is taken up.
        notes: what is told in the end.
    """

    folder: Path
    recipe: Recipe
    seed: int
    base: BaseInfo
    images: int
    schedule: Schedule
    trainee: SolverTrainee
    workers: Workers
    progress: Callable[[Event], None]
    save_seconds: float
    position: Position = field(default_factory=Position)
    fresh: bool = True
    losses: list[tuple[int, float]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    lines: int = 0
    micro_batch: int = 0
    walk: Walk | None = None
    stored_walk: tuple[dict[str, Any], dict[str, Tensor]] | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._counted = 0
        self._stopped: BaseException | None = None
        self._saved = self._began = time.monotonic()

    def micro_batch_found(self, size: int) -> None:
        """Report how many images are computed at once."""
        if size != self.micro_batch:
            self.micro_batch = size
            self.report({"micro_batch": size})
        self._began = time.monotonic()

    def tell_of_overshoot(self, seconds: float) -> None:
        """Say beforehand, and in the end, that the budget will not do; an update takes so many seconds."""
        if said := self.schedule.overshoot(self.position, seconds):
            self.notes.append(said)
            if not self.workers.rank:
                log.warning("%s", said)

    def begin(self, stage: Stage, evaluations: int) -> None:
        """Begin a stage that so many base evaluations have prepared, unless it had begun when it was interrupted."""
        if not self.fresh:
            return
        if any(stage.grow):
            self.trainee.grow(*stage.grow)
        if stage.only_new:
            self.trainee.train_new(*stage.grow)
        elif any(stage.grow) or not self.trainee.trains_all:
            self.trainee.train_all()
        self._tick()
        self.position.evaluations += evaluations
        self.position.began = self.schedule.used(self.position)
        self.fresh = False

    def goes_on(self) -> bool:
        """Whether the stage has another pass; all processes end it, or the training, together."""
        if self.stored_walk is not None:  # a walk that was interrupted is finished first
            return True
        self._tick()
        if self.workers.any(self._stopped is not None):
            self.save()
            raise self._stopped or KeyboardInterrupt
        stage, overall = map(self.workers.agree, self.schedule.progress(self.position))
        self.position.progress = stage, overall
        return self.position.progress[0] < 1 or not self.position.stage_passes

    def take_up(self, walk: Walk) -> None:
        """Put a walk that has just begun to where it was interrupted."""
        if self.stored_walk is not None:
            walk.restore(*self.stored_walk)
            self.stored_walk = None

    def step_done(self, stage: Stage, walk: Walk, objective: Objective, micro_batch: int) -> None:
        """Count a step, with the last of a walk the pass; report and save now and then."""
        self._tick()
        self.micro_batch_found(micro_batch)
        position, between = self.position, walk.done
        position.evaluations += (objective.evaluations - self._counted) * self.workers.world
        self._counted = objective.evaluations
        self.walk = None if between else walk
        if between:
            position.passes += 1
            position.stage_passes += 1
            position.images += self.recipe.batch
        if between and position.passes % REPORT_PASSES == 0:
            loss, skipped = self._note_loss(objective), int(self.trainee.skipped)
            self.report({"stage": stage.name, "loss": loss, "lr": self.trainee.lr, "skipped": skipped})
        if time.monotonic() - self._saved >= self.save_seconds and (between or self.workers.world == 1):
            self.save()
        self._tell(self._event(stage.name))

    def stage_done(self, stage: Stage, rows: list[dict[str, Any]], objective: Objective) -> None:
        """The stage counts as done with its validation: an interrupt in there is resumed there."""
        self.position.stage += 1
        self.position.stage_passes, self.fresh = 0, True
        self._began = time.monotonic()
        if self.trainee.updates:
            self._note_loss(objective)
        self.validated(stage.name, rows)
        self.save()

    def validated(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Report a validation."""
        self._began = time.monotonic()
        place = {"stage": name, "images": self.position.images, "seconds": round(self.position.seconds, 1)}
        rows = [{**place, **row} for row in rows]
        self.rows += rows
        for row in rows:
            self.report({"validation": row})
        done, seconds = min(1.0, self.position.progress[1]), self.position.seconds
        self._tell(Event(done, seconds, 0.0, math.nan, name, self.position.evaluations, self.trainee.average, rows))

    def preparing(self, stage: Stage) -> Callable[[int, int], None]:
        """Tells how far the stage's preparation is."""

        def tell(done: int, total: int) -> None:
            self._tick()
            self._tell(self._event(f"{stage.name}: labels {done} of {total}"))

        return tell

    def closing(self, progress: Progress) -> None:
        """The callback of a closing fit; the minutes are for training here too."""
        self._began = time.monotonic()
        self._tell(self._event("closing fit"))

    def validating(self, progress: Progress) -> None:
        """The callback of a validation's walks. The minutes are for training alone: short stages would have none."""
        self._began = time.monotonic()
        self._tell(self._event("validation"))

    def report(self, line: dict[str, Any]) -> None:
        """Add a line to the report, with the place it is of."""
        if self.workers.rank:
            return
        position = self.position
        place = {"passes": position.passes, "images": position.images, "seconds": round(position.seconds, 1)}
        line = {**place, "updates": self.trainee.updates, "evaluations": position.evaluations, **line}
        add_line(self.folder / STATS, line, fresh=not self.lines)
        self.lines += 1
        log.info("%s", line)

    def save(self) -> None:
        """Save the state and the solver; the first process does."""
        self._saved = time.monotonic()
        if not self.workers.rank:
            self._tick()
            save_run(self)

    def _event(self, stage: str) -> Event:
        done, seconds = min(1.0, self.schedule.progress(self.position)[1]), self.position.seconds
        left, loss = seconds * (1 - done) / max(done, 1e-9), self.losses[-1][1] if self.losses else math.nan
        return Event(done, seconds, left, loss, stage, self.position.evaluations, self.trainee.average)

    def _tell(self, event: Event) -> None:
        """The callback may end the training by raising: all is saved first. Several processes end after the pass."""
        try:
            self.progress(event)
        except BaseException as error:
            if self.workers.world > 1:
                self._stopped = error
                return
            self.save()
            raise

    def _tick(self) -> None:
        now = time.monotonic()
        self.position.seconds += now - self._began
        self._began = now

    def _note_loss(self, objective: Objective) -> float:
        loss = self.workers.mean(self.trainee.mean_loss(objective.broken))
        if not math.isnan(loss):
            self.losses.append((self.position.images, round(loss, 6)))
        return loss
