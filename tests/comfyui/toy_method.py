"""A method and a recipe are added, and this is what the nodes' menus then show: one line of JSON.

python tests/comfyui/toy_method.py COMFYUI
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from import_cost import load_comfyui
from run_comfyui import install_repairs

from comfyui_deepinv.deepinv_core.methods import METHODS
from comfyui_deepinv.tests.core.lazy_method import LAZY
from comfyui_deepinv.tests.core.toy_recipe import ToyRecipe
from comfyui_deepinv.training.recipes import RECIPES


def main(comfyui: str) -> None:
    """Add them, and say what the nodes' menus and inputs are."""
    install_repairs()
    load_comfyui(Path(comfyui))
    METHODS[LAZY.id] = LAZY
    RECIPES[ToyRecipe.name] = ToyRecipe
    from comfyui_deepinv.nodes.invert import DeepInvInvert
    from comfyui_deepinv.nodes.train import DeepInvTrainSolver

    inputs = {one.id: one for one in DeepInvInvert.define_schema().inputs}
    method, laziness = inputs["method"], inputs["laziness"]
    found = {"options": method.options, "tooltip": method.tooltip}
    found |= {"laziness": [laziness.default, laziness.min, laziness.max, laziness.tooltip]}
    recipe = next(one for one in DeepInvTrainSolver.define_schema().inputs if one.id == "recipe")
    found |= {"recipes": recipe.options, "about": recipe.tooltip}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
