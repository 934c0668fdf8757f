"""How long a training goes on, where it stands, and the share of the budget that each stage has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..deepinv_core.errors import DeepInvError
from .recipes.base import Stage


@dataclass(frozen=True)
class Budget:
    """How long to train; one of the three.

    Attributes:
        images: carried through; each pass counts its batch.
        minutes: of training, validation not counted.
        evaluations: of the base, of one image each, those for stored labels included; the last pass is finished.
    """

    images: int | None = None
    minutes: float | None = None
    evaluations: int | None = None

    def __post_init__(self) -> None:
        values = [value for value in (self.images, self.minutes, self.evaluations) if value is not None]
        if len(values) != 1 or not 0 < values[0] < math.inf:
            raise DeepInvError(
                f"the budget is {self.images} images, {self.minutes} minutes, {self.evaluations} base evaluations: "
                "give one of the three, above 0"
            )


@dataclass
class Position:
    """Where a training stands.

    Attributes:
        stage: index of the stage.
        stage_passes: passes done in it.
        passes: passes done.
        images: images carried through.
        seconds: spent training, over all processes that resumed it.
        evaluations: base evaluations spent, of one image each.
        began: seconds or evaluations, whichever the budget counts, spent when the stage's first pass began.
        progress: of the stage, and overall, when the pass began.
    """

    stage: int = 0
    stage_passes: int = 0
    passes: int = 0
    images: int = 0
    seconds: float = 0.0
    evaluations: int = 0
    began: float = 0.0
    progress: tuple[float, float] = (0.0, 0.0)


class Schedule:
    """The share of the budget each stage has, and how much of it is used."""

    def __init__(self, stages: Sequence[Stage], budget: Budget, batch: int) -> None:
        self._budget, self._stages, self._batch = budget, stages, batch
        if budget.minutes is not None:
            self._length: float = budget.minutes * 60
        else:
            self._length = budget.evaluations or (budget.images or 0) / batch
        weights = [self._weight(stage, stage.passes) for stage in stages]
        ends = [sum(weights[: k + 1]) / sum(weights) * self._length for k in range(len(weights))]
        self._ends = [round(end, 6) for end in ends]  # whole passes stay whole

    def _weight(self, stage: Stage, passes: float) -> float:
        """What passes of a stage and its preparation take: updates for minutes, evaluations of a batch, or passes."""
        if self._budget.minutes is not None:
            return passes * stage.cost + stage.prepare
        if self._budget.evaluations is not None:
            return passes * stage.evaluations + stage.prepare_evaluations
        return passes

    def used(self, position: Position) -> float:
        """What is spent of the budget, in its unit; passes for images."""
        if self._budget.minutes is not None:
            return position.seconds
        return position.evaluations if self._budget.evaluations is not None else position.passes

    def overshoot(self, position: Position, seconds: float) -> str:
        """What to say of a budget without room for a pass of each stage: each has one all the same.

        A sentence, or nothing where there is room; ``seconds`` are an update's.
        """
        left = self._stages[position.stage + (position.stage_passes > 0) :]
        least = sum(self._weight(stage, 1) for stage in left)
        budget, before = self._budget, self.used(position)
        if budget.minutes is not None:
            given, least = f"{budget.minutes:g} min", before + least * seconds
            taken = f"about {least / 60:.2g} min, as the first update took {seconds:.2g} s"
        elif budget.evaluations is not None:
            given, least = f"{budget.evaluations} base evaluations", before + least * self._batch
            taken = f"about {least:.0f}"
        else:
            given, least = f"{budget.images} images", before + least
            taken = f"{least * self._batch:.0f}, in batches of {self._batch}"
        no_room = f"a budget of {given} has no room for a pass of each of the {len(self._stages)} stages"
        return f"{no_room}: the training will take {taken}" if left and least > self._length else ""

    def progress(self, position: Position) -> tuple[float, float]:
        """Share of the stage and of the whole that is done."""
        if position.stage >= len(self._ends):
            return 1.0, 1.0
        used = self.used(position)
        begin = self._ends[position.stage - 1] if position.stage else 0.0
        if self._budget.images is None:
            begin = max(begin, position.began)  # after the labels; a stage that is late has what is left of its share
        length = max(self._ends[position.stage] - begin, 1e-9)
        return (used - begin) / length, used / self._length
