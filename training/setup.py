"""What a training is started with, by the names of its recipe and of its preset; for every door alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.models.base_model import BaseModel
from ..deepinv_core.solver import Config, CorrectorConfig, PredictorConfig
from .loop import Base
from .objectives import Bound
from .recipes import Recipe, make_recipe

LARGE: Final[Mapping[str, Mapping[str, Any]]] = {"fast": {"batch": 8, "lr": 2e-4}, "paper": {}}
"""Settings by recipe for networks above ``tiny``, whose images are large too; the recipes' own fit ``tiny``."""


def recipe_for(name: str, preset_name: str, settings: Mapping[str, Any]) -> Recipe:
    """A recipe with the settings that suit a preset, and those given; errors as :func:`.recipes.make_recipe`."""
    return make_recipe(name, **{**({} if preset_name == "tiny" else LARGE.get(name, {})), **settings})


def geometry(name: str, preset_name: str, *, channels: int, context_width: int, pooled_width: int) -> Config:
    """A preset's network for a base model: a predictor for the fast recipe, a corrector for the paper's.

    Args:
        name: of the recipe.
        preset_name: ``"paper"``, ``"compact"`` or ``"tiny"``.
        channels: of the base model's latent.
        context_width: of its prompt tokens; a predictor reads none.
        pooled_width: of its pooled prompt, 0 for none.

    Raises:
        DeepInvError: an unknown preset, or a width out of range.
    """
    kind = PredictorConfig if name == "fast" else CorrectorConfig
    return kind.preset(preset_name, channels=channels, context_width=context_width, pooled_width=pooled_width)


def step_counts(text: str) -> tuple[int, ...]:
    """``"2,4,8"`` as numbers, each once.

    Raises:
        DeepInvError: anything but whole numbers from 1 to 1000 with commas between them.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 5 and 1 <= int(part) <= 1000 for part in parts):
        raise DeepInvError(
            f"the validation steps are {text[:60]!r}: whole numbers from 1 to 1000 with commas between them are "
            "accepted, as in 2,4,8"
        )
    return tuple(dict.fromkeys(map(int, parts)))


def base_of(model: BaseModel) -> Base:
    """The base model under the empty prompt at CFG 1, which a solver is trained with."""
    empty = model.condition("")
    bound = Bound(model.velocity(""), empty.context.to(model.device), empty.pooled.to(model.device))
    return Base(model.info, lambda names: bound, model.grid, model.device)
