"""What a training is started with, by the names of its recipe and of its preset; for every door alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.solver import Config
from .recipes import Recipe, make_recipe


def recipe_for(name: str, preset_name: str, settings: Mapping[str, Any]) -> Recipe:
    """A recipe with the settings that suit a preset, and those given; errors as :func:`.recipes.make_recipe`."""
    recipe = make_recipe(name)
    return recipe.with_settings(**{**({} if preset_name == "tiny" else recipe.large), **settings})


def geometry(name: str, preset_name: str, *, channels: int, context_width: int, pooled_width: int) -> Config:
    """A preset's network for a base model, of the kind that the recipe trains.

    Args:
        name: of the recipe.
        preset_name: ``"paper"``, ``"compact"`` or ``"tiny"``.
        channels: of the base model's latent.
        context_width: of its prompt tokens; a predictor reads none.
        pooled_width: of its pooled prompt, 0 for none.

    Raises:
        DeepInvError: an unknown preset, or a width out of range.
    """
    kind = make_recipe(name).solver.config_type
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
