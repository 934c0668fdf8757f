"""What every recipe has: its settings by name, the stages it goes through, and the objective that it trains on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.solver import Network, Solver

if TYPE_CHECKING:
    from ..base_model import Base
    from ..workers import Workers
    from .objective import Objective


@dataclass(frozen=True)
class Stage:
    """A part of a training: its own share of the budget, learning rate and labels.

    Attributes:
        name: for reports.
        passes: batches carried through all their steps, at the recipe's full length; scaled to the budget.
        cost: solver updates of one pass on average; passes times cost is the stage's share of the time.
        steps: step counts N to draw from.
        labels: round whose stored labels are trained on; 0 for none (paper).
        relabel: store them before the stage, from the network as it is then (paper).
        prepare: what that costs, in solver updates of a whole batch.
        evaluations: base evaluations of one pass, of each image, on average; the stage's share of a budget in them.
        prepare_evaluations: what ``relabel`` costs, in base evaluations of a whole batch.
        grow: ``(left, right)`` blocks to add before it (paper).
        only_new: train the added blocks alone (paper).
        lr_scale: factor on the recipe's learning rate.
    """

    name: str
    passes: float
    cost: float
    steps: tuple[int, ...]
    labels: int = 0
    relabel: bool = False
    prepare: float = 0.0
    evaluations: float = 0.0
    prepare_evaluations: float = 0.0
    grow: tuple[int, int] = (0, 0)
    only_new: bool = False
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Recipe(ABC):
    """How a solver is trained: every number of it, as a setting with its unit; a subclass a recipe.

    Attributes:
        name: of the recipe, in files, commands and nodes.
        about: what a user is told of it, to choose one.
        solver: the kind of solver that it trains.
        large: settings for networks above ``tiny``, whose images are large too; the defaults fit ``tiny``.
        batch: images in a batch, over all processes.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.
        eps: AdamW's.
        betas: AdamW's.
        clip: largest norm of the gradient of all weights; the released code has none.
        average: decay of the weights' moving average a step, which is what is saved; 0 for none.
        warmup: updates until the learning rate is full.
        max_skipped: updates skipped for a loss or gradient that is not finite, before training stops with an error.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    solver: ClassVar[type[Solver]]
    large: ClassVar[Mapping[str, Any]] = {}

    batch: int = 4
    lr: float = 1e-5
    weight_decay: float = 1e-4
    eps: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    average: float = 0.999
    warmup: int = 0
    max_skipped: int = 50

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The stages in order."""

    @abstractmethod
    def lr_factor(self, stage: Stage, progress: float, overall: float) -> float:
        """Factor on ``lr`` at ``progress`` in [0, 1) of a stage and ``overall`` of the training."""

    @abstractmethod
    def objective(self, base: Base, seed: int, workers: Workers) -> Objective:
        """What it trains on."""

    def network(self, preset: str, seed: int, channels: int, context_width: int, pooled_width: int) -> Network:
        """A new network of its kind, on the CPU; sizes and errors as of :meth:`.Config.preset`."""
        sizes = {"channels": channels, "context_width": context_width, "pooled_width": pooled_width}
        config = self.solver.config_type.preset(preset, **sizes)
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return config.build()

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values, with the recipe's name."""
        return {"recipe": self.name, **{name: _plain(value) for name, value in asdict(self).items()}}

    @classmethod
    def with_settings(cls, **settings: Any) -> Recipe:
        """The recipe, with some settings changed.

        Raises:
            DeepInvError: an unknown setting, or a value that can't be.
        """
        known = [field.name for field in fields(cls)]
        for setting, value in settings.items():
            if setting not in known:
                raise DeepInvError(f"recipe {cls.name!r} has no setting {setting!r}: it has {', '.join(known)}")
            default = getattr(cls(), setting)
            if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(default, int) and value < 0):
                raise DeepInvError(f"{setting} is {value}: a number from 0 on is accepted (default {default})")
        made = cls(**settings)
        if made.batch < 1 or not made.lr > 0:
            raise DeepInvError(f"batch is {made.batch} and lr {made.lr}: both must be above 0")
        return made


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value
