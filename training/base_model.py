"""The frozen base model as a training sees it: identity, sigmas, and its velocity under the prompts of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..deepinv_core.flow import Velocity
from ..deepinv_core.memory import free_memory
from ..deepinv_core.models.base_info import BaseInfo
from ..deepinv_core.models.base_model import BaseModel
from ..deepinv_core.solver import Solver, bind

if TYPE_CHECKING:
    from ..deepinv_core.solver import Network

Grid = Callable[[int, Tensor], Tensor]
"""``(steps, latent) -> sigmas`` as the base model is sampled."""


class Conditioned(NamedTuple):
    """A base model under the prompts of some images: its velocity, and the prompts as a corrector reads them."""

    velocity: Velocity
    context: Tensor | None
    pooled: Tensor | None

    def solver(self, network: Network) -> Solver:
        """A network as a solver under the same prompts."""
        return bind(network, self.context, self.pooled)


@dataclass(frozen=True)
class Base:
    """The frozen base model a solver is trained for.

    Attributes:
        info: its identity.
        condition: names of latents to the base under their prompts; evaluated without gradient, never changed.
        grid: sigmas as the base is sampled.
        device: where latents go.
        free: hands back memory that nothing holds any more, when it has run out.
    """

    info: BaseInfo
    condition: Callable[[tuple[str, ...]], Conditioned]
    grid: Grid
    device: torch.device
    free: Callable[[], None] = free_memory


def base_of(model: BaseModel) -> Base:
    """The base model under the empty prompt at CFG 1, which a solver is trained with."""
    empty = model.condition("")
    conditioned = Conditioned(model.velocity(""), empty.context.to(model.device), empty.pooled.to(model.device))
    return Base(model.info, lambda names: conditioned, model.grid, model.device)
