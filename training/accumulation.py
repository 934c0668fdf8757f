"""Gradient accumulation: as many images of a batch at a time as there is memory for, found by trying."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.memory import ADVICE, brief, out_of_memory
from .latents import Batch
from .walk import Walk
from .workers import Workers

if TYPE_CHECKING:
    from .recipes.base import Stage
    from .recipes.objective import Objective
    from .trainee import SolverTrainee

log = logging.getLogger(__name__)

T = TypeVar("T")


class Accumulation:
    """How many images of a batch have their gradient computed at once.

    All processes compute as many, for each waits for the others' gradients: where one runs out of memory, all halve.

    Attributes:
        size: images of this process in a micro-batch, at most.
    """

    def __init__(self, batch: int, workers: Workers, free: Callable[[], None]) -> None:
        """``batch`` is this process's part of a batch, ``free`` hands unused memory back."""
        self.size, self._workers, self._free = batch, workers, free

    def find(self, objective: Objective, trainee: SolverTrainee, stage: Stage, batch: Batch) -> float:
        """Find the size by the gradient of a batch's first step, which is thrown away; errors as :meth:`run`.

        ``objective`` is one of its own: what it asks of the base model counts nowhere.

        Returns:
            The seconds that it took at that size.
        """
        began = 0.0
        clean = batch.latents.to(objective.base.device, torch.float32)

        def trial(walk: Walk) -> Tensor:
            nonlocal began
            began = time.perf_counter()
            coming = () if trainee.optimizer.state else trainee.parameters
            _moments = [torch.empty_like(weight) for weight in coming for _ in range(2)]  # AdamW's, from update 1 on
            return trainee.accumulate(objective.losses(walk, trainee.network))

        float(self.run(objective.begin(stage, 0, clean, batch.names), trial))  # all of it is done by then
        trainee.forget()
        return time.perf_counter() - began

    def run(self, walk: Walk, compute: Callable[[Walk], T]) -> T:
        """What ``compute`` returns of a walk, in micro-batches of at most ``size``; halved where memory runs out.

        Raises:
            DeepInvError: memory ran out at a single image. What else ``compute`` raises passes through.
        """
        while True:
            said = ""
            try:
                result = compute(walk)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                said = brief(error)
            if not self._workers.any(bool(said)):
                return result
            # Here, and not above: within ``except`` the error would hold what its frames do.
            self._halve(said or "in another process")
            walk.split(self.size)

    def _halve(self, said: str) -> None:
        self._free()
        if self.size == 1:
            raise DeepInvError(f"there is not enough memory for one image at a time ({said}): {ADVICE}")
        half, text = (self.size + 1) // 2, "there is not enough memory for %d images at a time (%s): going on with %d"
        log.warning(text, self.size, said, half)
        self.size = half
