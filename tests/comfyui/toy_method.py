"""A method is added, and this is what DeepInv Invert's menu then shows: one line of JSON.

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


def main(comfyui: str) -> None:
    """Add it, and say what the node's menu and inputs are."""
    install_repairs()
    load_comfyui(Path(comfyui))
    METHODS[LAZY.id] = LAZY
    from comfyui_deepinv.nodes.invert import DeepInvInvert

    inputs = {one.id: one for one in DeepInvInvert.define_schema().inputs}
    method, laziness = inputs["method"], inputs["laziness"]
    found = {"options": method.options, "tooltip": method.tooltip}
    found |= {"laziness": [laziness.default, laziness.min, laziness.max, laziness.tooltip]}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
