"""What a training step is: a batch of latents carried along the grid, one step at a time, with a loss at each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.flow import CountedVelocity, Velocity
from ..deepinv_core.integrator import Step
from ..deepinv_core.methods.anderson import Anderson
from ..deepinv_core.methods.implicit import Known, Point, first_known
from ..deepinv_core.solver import Predictor
from .latent_order import derived_seed
from .latents import Batch, LatentCache
from .recipes import FastRecipe, Stage

if TYPE_CHECKING:
    from ..deepinv_core.solver import Network


class Bound(NamedTuple):
    """A base model under the prompts of a batch: its velocity, and the prompt as a corrector reads it."""

    velocity: Velocity
    context: Tensor | None
    pooled: Tensor | None


@dataclass
class Walk:
    """A batch on its way from image to noise; it can be stored and taken up between any two steps.

    Attributes:
        number: the pass, counted over the whole training; with the seed it gives all that is random in the walk.
        clean: latents z_0 ``[B, C, ...]``.
        names: of the latents.
        grid: sigmas, ascending.
        last: steps to walk, at most ``len(grid) - 1``.
        z: latents now.
        index: steps walked.
        history: velocities known at the latents walked through, newest last.
    """

    number: int
    clean: Tensor
    names: tuple[str, ...]
    grid: list[float]
    last: int
    z: Tensor
    index: int = 0
    history: tuple[Known, ...] = ()

    @property
    def done(self) -> bool:
        """Whether all steps are walked."""
        return self.index >= self.last

    def point(self, *known: Known) -> Point:
        """Where the walk is, with velocities known besides its history."""
        i = self.index
        step = Step(i, len(self.grid) - 1, self.grid[i], self.grid[i + 1])
        return Point(self.z, self.clean, step, (*self.history, *known))

    def tensors(self) -> dict[str, Tensor]:
        """What :meth:`restore` needs, with :meth:`metadata`."""
        return {"walk.z": self.z} | {f"walk.velocity.{k}": known.velocity for k, known in enumerate(self.history)}

    def metadata(self) -> dict[str, Any]:
        """See :meth:`tensors`; JSON-able."""
        return {"index": self.index, "sigmas": [known.sigma for known in self.history]}

    def restore(self, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go to where a walk of the same pass had been stored.

        Raises:
            DeepInvError: what was stored is of another walk.
        """
        device, names = self.z.device, [f"walk.velocity.{k}" for k in range(len(metadata["sigmas"]))]
        fits = [name in tensors and tensors[name].shape == self.z.shape for name in ("walk.z", *names)]
        if metadata["index"] >= self.last or not all(fits) or len(tensors) != len(fits):
            raise DeepInvError(
                f"the training state stands at step {metadata['index']} of {self.last} with {len(tensors)} "
                "latents that don't fit: it is damaged; train into a new folder"
            )
        self.index, self.z = int(metadata["index"]), tensors["walk.z"].to(device)
        self.history = tuple(
            Known(float(sigma), tensors[f"walk.velocity.{k}"].to(device)) for k, sigma in enumerate(metadata["sigmas"])
        )

    def go(self, eps: Tensor, keep: int) -> None:
        """Take the step along ``eps`` and keep that many velocities."""
        step = self.point().step
        eps = eps.nan_to_num(0.0, 0.0, 0.0)  # its update is skipped; the walk goes on, and can be saved
        self.z = self.z + step.h * eps
        known = (*self.history, Known(step.sigma_next, eps))
        self.history = known[len(known) - keep :]
        self.index += 1


Share = Callable[[slice], Tensor]
"""The part that some rows of a batch have in its loss: the parts of all rows sum up to it."""


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


Grid = Callable[[int, Tensor], Tensor]
"""``(steps, latent) -> sigmas`` as the base model is sampled."""


class Objective(Protocol):
    """A recipe at work."""

    evaluations: int
    """Base evaluations of the walks so far in this process, of one image each, times the cost under guidance."""

    broken: Broken
    """What became of them."""

    def enter(
        self,
        stage: Stage,
        average: Network,
        cache: LatentCache,
        folder: Path,
        *,
        fresh: bool,
        progress: Callable[[int, int], None],
    ) -> int:
        """Prepare a stage that begins, or that is resumed.

        Args:
            stage: the stage.
            average: the network's average as it is now.
            cache: the training data.
            folder: the run's.
            fresh: the stage begins.
            progress: called with what is prepared and what is to be; may raise, to be called again on resuming.

        Returns:
            Base evaluations that preparing it takes, over all processes, made now or before an interruption.
        """
        ...

    def batches(self, stage: Stage, cache: LatentCache, batch: int, seed: int, start: int) -> Iterator[Batch]:
        """The stage's batches from pass ``start`` on; the same on every process."""
        ...

    def begin(self, stage: Stage, number: int, clean: Tensor, names: tuple[str, ...]) -> Walk:
        """The walk of pass ``number``."""
        ...

    def losses(self, walk: Walk, model: Network, bound: Bound) -> Iterator[Share]:
        """Losses of the walk's next step, one an update, each with the model as the update before left it.

        Each has to be asked for all rows, in order, before the next; a call with the first row begins it anew. When
        the last is done, the walk has gone the step.
        """
        ...


class FastObjective:
    """Ours: the predictor's label is the one base evaluation that the method spends at the predicted point anyway.

    ``L = rms((eps_hat - v(z_i + h*eps_hat, sigma_{i+1})) / h)``, the mean over the batch: divided by h, steps of all
    sizes weigh alike, and the root keeps the first step, whose error is the largest, from drowning the others.
    """

    def __init__(self, recipe: FastRecipe, grid: Grid, seed: int, autocast: AbstractContextManager[None]) -> None:
        self._recipe, self._grid, self._seed, self._autocast = recipe, grid, seed, autocast
        self.evaluations = 0
        self.broken = Broken()

    def enter(self, *stage: object, **options: object) -> int:
        """Nothing to prepare."""
        return 0

    def batches(self, stage: Stage, cache: LatentCache, batch: int, seed: int, start: int) -> Iterator[Batch]:
        """All images in the cache's order."""
        return cache.batches(batch, seed, start)

    def begin(self, stage: Stage, number: int, clean: Tensor, names: tuple[str, ...]) -> Walk:
        """Draw the step count, and whether to end early."""
        generator = torch.Generator().manual_seed(derived_seed(self._seed, "walk", number))
        chances = torch.tensor([1 / steps for steps in stage.steps])
        steps = stage.steps[int(torch.multinomial(chances, 1, generator=generator))]
        short = float(torch.rand((), generator=generator)) < self._recipe.short
        last = int(torch.randint(1, self._recipe.short_steps + 1, (), generator=generator)) if short else steps
        return Walk(number, clean, names, self._grid(steps, clean).tolist(), min(last, steps), clean)

    def losses(self, walk: Walk, model: Network, bound: Bound) -> Iterator[Share]:
        """One loss a step."""
        step, z = walk.point().step, walk.z
        first = CountedVelocity(bound.velocity)
        with torch.no_grad():
            point = walk.point(*() if walk.history else (first_known(first, z, step),))
        refined = Anderson(1 + self._refine(walk.number))
        labels: list[Tensor] = []
        asked: list[tuple[CountedVelocity, int]] = []

        def share(rows: slice) -> Tensor:
            if rows.start == 0:
                labels.clear()
                asked[:] = [(first, len(z))]
            here, velocity = point.part(rows), CountedVelocity(bound.velocity, rows, len(z))
            velocity.step = step.index
            with self._autocast:
                eps = Predictor(model).predict(here)
            with torch.no_grad():
                label, _ = refined(lambda e: velocity(here.z + step.h * e, step.sigma_next), eps.detach())
            labels.append(label)
            asked.append((velocity, len(label)))
            loss = (((eps - label) / step.h).square().flatten(1).mean(1) + 1e-3).sqrt().mean()
            return loss * (len(label) / len(z))

        yield share
        for velocity, count in asked:
            self.evaluations += velocity.nfe * count
            self.broken.note(velocity)
        walk.go(torch.cat(labels), keep=2)

    def _refine(self, number: int) -> int:
        generator = torch.Generator().manual_seed(derived_seed(self._seed, "refine", number))
        refined = float(torch.rand((), generator=generator)) < self._recipe.refined
        return int(torch.randint(1, 3, (), generator=generator)) if refined else 0
