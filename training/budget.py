"""How long a training goes on, where it stands, and the share of the budget that each stage has."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..deepinv_core.errors import DeepInvError
from .recipes import Stage


@dataclass(frozen=True)
class Budget:
    """How long to train: images carried through (each pass counts its batch), or minutes; one of the two.

    Validation is not counted in the minutes.
    """

    images: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        values = [value for value in (self.images, self.minutes) if value is not None]
        if len(values) != 1 or not 0 < values[0] < math.inf:
            raise DeepInvError(
                f"the budget is {self.images} images, {self.minutes} minutes: give one of the two, above 0"
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
        began: seconds spent when the stage's first pass began.
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

    def __init__(self, stages: list[Stage], budget: Budget, batch: int) -> None:
        self._by_time = budget.minutes is not None
        weights = [stage.passes * stage.cost + stage.prepare if self._by_time else stage.passes for stage in stages]
        self._length = (budget.minutes or 0) * 60 if self._by_time else (budget.images or 0) / batch
        ends = [sum(weights[: k + 1]) / sum(weights) * self._length for k in range(len(weights))]
        self._ends = [round(end, 6) for end in ends]  # whole passes stay whole

    def progress(self, position: Position) -> tuple[float, float]:
        """Share of the stage and of the whole that is done."""
        used = position.seconds if self._by_time else position.passes
        begin = self._ends[position.stage - 1] if position.stage else 0.0
        if self._by_time:
            begin = max(begin, position.began)  # after the labels; a stage that is late has what is left of its time
        length = max(self._ends[position.stage] - begin, 1e-9)
        return (used - begin) / length, used / self._length
