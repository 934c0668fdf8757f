"""What a kind of solver is. A kind is one file with a :class:`Solver`, listed in :mod:`.kinds`; nothing else knows it.

The file has the kind's settings and presets (a :class:`.config.Config`), what these build (a :class:`Network`) and the
step rule that uses it. Settings and tensors are all that a solver file holds of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import DeepInvError
from ..integrator import Rule
from ..methods.entry import Cost
from .config import Config


class Network(nn.Module):
    """The tensors of a solver: a network, or a table of coefficients as buffers.

    Attributes:
        config: what it was built from; every tensor's name and shape follows from it.
    """

    config: Config

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it is stored and computes in."""
        return self._first().dtype

    @property
    def device(self) -> torch.device:
        """The device it is on."""
        return self._first().device

    def _first(self) -> Tensor:
        return next(chain(self.parameters(), self.buffers()))

    def grow(self, *, right: int = 1, left: int = 0) -> list[nn.Parameter]:
        """Adds blocks without changing what is computed, where the kind can; returns the new parameters.

        Raises:
            DeepInvError: a kind that doesn't grow.
        """
        raise DeepInvError(f"a {self.config.role} doesn't grow: take a corrector, or leave growth out")


class Under(NamedTuple):
    """What an inversion is made under.

    Attributes:
        cfg: scale of the guidance.
        guidance: FLUX's, None where the model takes none.
        prompt: the prompt's :func:`mark`; empty where it isn't known.
    """

    cfg: float = 1.0
    guidance: float | None = None
    prompt: tuple[float, ...] = ()


def mark(context: Tensor) -> tuple[float, ...]:
    """A few numbers by which a prompt's tokens ``[1, T, W]`` are known again, in any dtype."""
    return tuple(round(value, 3) for value in context.float().mean((0, 1))[:16].tolist())


@dataclass(frozen=True)
class Solver(ABC):
    """A solver under a prompt, as the method ``deepinv`` uses it; a subclass a kind.

    Attributes:
        config_type: the kind's settings, which name its role in files.
        cost: base evaluations of an inversion.
        reads_prompt: whether it needs ``context`` and ``pooled``.
        network: the :class:`Network`, or what wraps it for distributed training.
        context: prompt tokens ``[1, T, W]`` or one row a sample; None for a kind or a base model without them.
        pooled: pooled prompt ``[1, P]``, as context.
    """

    config_type: ClassVar[type[Config]]
    cost: ClassVar[Cost]
    reads_prompt: ClassVar[bool] = False

    network: Callable[..., Tensor]
    context: Tensor | None = None
    pooled: Tensor | None = None

    @abstractmethod
    def rule(self, refine: int, tolerance: float = 0.0) -> Rule:
        """The whole step, with what follows the solver's own guess.

        Args:
            refine: K, further evaluations a step.
            tolerance: relative fixed-point residual at which they stop; 0 for never.
        """

    @classmethod
    def cautions(cls, training: Mapping[str, Any], under: Under) -> list[str]:
        """What speaks against its use here, each a sentence for a report; none for a kind that takes anything.

        Args:
            training: its training summary.
            under: how it is used.
        """
        return []

    def grid(self, steps: int, refine: int) -> Tensor | None:
        """The sigmas it inverts best on, ascending float64 ``[steps + 1]``; None where any grid will do."""
        return None
