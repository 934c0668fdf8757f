"""A batch on its way from image to noise, in the micro-batches that its gradient is summed up from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.integrator import Step
from ..deepinv_core.methods.implicit import Known, Point
from .base_model import Base, Conditioned


@dataclass
class MicroBatch:
    """Images of a batch whose part of the gradient is computed at once.

    Attributes:
        clean: latents z_0 ``[B, C, ...]``.
        names: of the latents.
        base: the frozen base model.
        z: latents now.
        history: velocities known at the latents walked through, newest last.
        first: what the base answered when the step began, shared by all updates of the step; None before.
        eps: what the step is taken along, as the last update left it.
        path: where the way is known beforehand, the velocity of every step of it, ``[N, B, C, ...]`` on the CPU.
    """

    clean: Tensor
    names: tuple[str, ...]
    base: Base
    z: Tensor
    history: tuple[Known, ...] = ()
    first: Tensor | None = None
    eps: Tensor | None = None
    path: Tensor | None = None

    @cached_property
    def conditioned(self) -> Conditioned:
        """The base model under the prompts of the images."""
        return self.base.condition(self.names)

    def point(self, step: Step, *known: Known) -> Point:
        """Where the images are, with velocities known besides their history."""
        return Point(self.z, self.clean, step, (*self.history, *known))

    def rows(self, rows: slice) -> MicroBatch:
        """Some of the images, at the beginning of their step."""
        history = tuple(Known(known.sigma, known.velocity[rows]) for known in self.history)
        path = None if self.path is None else self.path[:, rows]
        return MicroBatch(self.clean[rows], self.names[rows], self.base, self.z[rows], history, path=path)

    def go(self, step: Step, keep: int) -> None:
        """Take the step along ``eps`` and remember the last ``keep`` velocities."""
        assert self.eps is not None, "no update has left a direction"
        eps = self.eps.nan_to_num(0.0, 0.0, 0.0)  # its update is skipped; the walk goes on, and can be saved
        self.z = self.z + step.h * eps
        known = (*self.history, Known(step.sigma_next, eps))
        self.history = known[len(known) - keep :]
        self.first = self.eps = None


@dataclass
class Walk:
    """A batch and where it is on the way; it can be stored and taken up between any two steps.

    Attributes:
        number: the pass, counted over the whole training; with the seed it gives all that is random in the walk.
        grid: sigmas, ascending.
        last: steps to walk, at most ``len(grid) - 1``.
        parts: the batch's micro-batches; one with all of it at first.
        index: steps walked.
    """

    number: int
    grid: list[float]
    last: int
    parts: list[MicroBatch]
    index: int = 0

    @property
    def done(self) -> bool:
        """Whether all steps are walked."""
        return self.index >= self.last

    @property
    def step(self) -> Step:
        """The next step."""
        return Step(self.index, len(self.grid) - 1, self.grid[self.index], self.grid[self.index + 1])

    @property
    def size(self) -> int:
        """Images in the batch."""
        return sum(len(part.z) for part in self.parts)

    @property
    def z(self) -> Tensor:
        """The batch's latents now."""
        return torch.cat([part.z for part in self.parts])

    def split(self, most: int) -> None:
        """Into micro-batches of at most so many images; what was computed of the next step is forgotten."""
        self.parts = [
            part.rows(slice(at, at + most)) for part in self.parts for at in range(0, len(part.z), max(1, most))
        ]

    def go(self, keep: int) -> None:
        """Take the step with every image; each remembers its last ``keep`` velocities."""
        for part in self.parts:
            part.go(self.step, keep)
        self.index += 1

    def tensors(self) -> dict[str, Tensor]:
        """What :meth:`restore` needs, with :meth:`metadata`."""
        found = {"walk.z": self.z}
        for k, known in enumerate(zip(*(part.history for part in self.parts), strict=True)):
            found[f"walk.velocity.{k}"] = torch.cat([one.velocity for one in known])
        return found

    def metadata(self) -> dict[str, Any]:
        """See :meth:`tensors`; JSON-able."""
        return {"index": self.index, "sigmas": [known.sigma for known in self.parts[0].history]}

    def restore(self, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go to where a walk of the same pass had been stored; this one has just begun, and isn't split.

        Raises:
            DeepInvError: what was stored is of another walk.
        """
        (whole,) = self.parts
        names = [f"walk.velocity.{k}" for k in range(len(metadata["sigmas"]))]
        fits = [name in tensors and tensors[name].shape == whole.z.shape for name in ("walk.z", *names)]
        if metadata["index"] >= self.last or not all(fits) or len(tensors) != len(fits):
            raise DeepInvError(
                f"the training state stands at step {metadata['index']} of {self.last} with {len(tensors)} "
                "latents that don't fit: it is damaged; train into a new folder"
            )
        device = whole.z.device
        self.index, whole.z = int(metadata["index"]), tensors["walk.z"].to(device)
        whole.history = tuple(
            Known(float(sigma), tensors[name].to(device)) for sigma, name in zip(metadata["sigmas"], names, strict=True)
        )
