"""A recipe at work: what a batch is carried through, and the loss of each of its updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ...deepinv_core.flow import CountedVelocity
from ..base_model import Base
from ..latents import Batch, LatentCache
from ..walk import MicroBatch, Walk

if TYPE_CHECKING:
    from ...deepinv_core.solver import Network
    from .base import Stage


class Broken:
    """The first place at which the base model's answer was not finite; kept on the device until it is asked for."""

    def __init__(self) -> None:
        self._step: Tensor | None = None
        self._sigma: Tensor | None = None

    def note(self, velocity: CountedVelocity) -> None:
        """Look at the answers of one more step; no host sync."""
        for finite, step, sigma in velocity.answers():
            if self._step is None or self._sigma is None:
                self._step = torch.full((), -1.0, device=finite.device)
                self._sigma = torch.full((), -1.0, device=finite.device)
            known = finite | (self._step >= 0)
            self._step = torch.where(known, self._step, float(step))
            self._sigma = torch.where(known, self._sigma, sigma)

    def __str__(self) -> str:
        if self._step is None or self._sigma is None or self._step < 0:
            return "all that the base model returned was finite: lower the learning rate"
        return (
            f"the base model returned NaN or infinity, first at step {int(self._step)}, sigma "
            f"{float(self._sigma):.4f}: use float32 or bfloat16 weights"
        )


class Objective(ABC):
    """What a recipe trains on; a subclass a recipe.

    Attributes:
        keep: velocities that a walk remembers.
        closing: photos that the trained network is fitted on in the end, :mod:`..closing`; 0 for a kind that can't be.
        closing_rounds: of that fit's search for a grid.
        base: the frozen base model.
        evaluations: base evaluations of the walks so far in this process, of one image each, times the cost under
            guidance.
        broken: what became of them.
    """

    keep: ClassVar[int] = 0
    closing: int = 0
    closing_rounds: int = 0

    def __init__(self, base: Base, seed: int, batch: int) -> None:
        self.base, self._seed, self._batch = base, seed, batch
        self.evaluations = 0
        self.broken = Broken()

    @property
    def autocast(self) -> AbstractContextManager[None]:
        """The precision that the network is trained in."""
        device = self.base.device.type
        return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")

    def enter(
        self,
        stage: Stage,
        average: Network,
        latents: LatentCache,
        folder: Path,
        *,
        fresh: bool,
        progress: Callable[[int, int], None],
    ) -> int:
        """Prepare a stage that begins (``fresh``), or that is resumed, from the network's average as it is now.

        ``progress`` is called with what is prepared and what is to be; it may raise, to be called again on resuming.

        Returns:
            Base evaluations that preparing it takes, over all processes, made now or before an interruption.
        """
        return 0

    def batches(self, stage: Stage, latents: LatentCache, start: int) -> Iterator[Batch]:
        """The stage's batches from pass ``start`` on; the same on every process."""
        return latents.batches(self._batch, self._seed, start)

    @abstractmethod
    def begin(self, stage: Stage, number: int, clean: Tensor, names: tuple[str, ...]) -> Walk:
        """The walk of pass ``number``."""

    def updates(self, walk: Walk) -> int:
        """Solver updates at the walk's next step, all from the same latents."""
        return 1

    @abstractmethod
    def loss(self, walk: Walk, part: MicroBatch, model: Network) -> Tensor:
        """The mean loss of a micro-batch at the walk's next step; what the step will be taken along is left in it."""

    def losses(self, walk: Walk, model: Network) -> Iterator[Tensor]:
        """What each micro-batch has in the mean loss of the batch; a gradient is to be taken before the next."""
        for part in walk.parts:
            yield self.loss(walk, part, model) * (len(part.z) / walk.size)

    def go(self, walk: Walk) -> None:
        """Take the step that all updates have been made at."""
        walk.go(self.keep)

    @contextmanager
    def asking(self, walk: Walk, part: MicroBatch) -> Iterator[CountedVelocity]:
        """The base model under a micro-batch's prompts, without gradient; what it is asked counts."""
        velocity = CountedVelocity(part.conditioned.velocity)
        velocity.step = walk.index
        with torch.no_grad():
            yield velocity
        self.evaluations += velocity.nfe * len(part.z)
        self.broken.note(velocity)
