"""The recipes by name. A recipe is a file with its settings and its objective, and a line of the list below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...deepinv_core.errors import DeepInvError
from .base import Recipe, Stage
from .fast import FastRecipe
from .paper import PaperRecipe

RECIPES: Final[Mapping[str, type[Recipe]]] = {kind.name: kind for kind in (FastRecipe, PaperRecipe)}


def make_recipe(name: str, preset: str = "tiny", /, **settings: Any) -> Recipe:
    """A recipe by name, with the settings that suit a preset of its solver, and those given.

    Raises:
        DeepInvError: an unknown recipe or setting, or a value that can't be.
    """
    if name not in RECIPES:
        raise DeepInvError(f"no recipe is called {name!r}: use one of {', '.join(RECIPES)}")
    kind = RECIPES[name]
    return kind.with_settings(**{**({} if preset == "tiny" else kind.large), **settings})
