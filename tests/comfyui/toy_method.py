"""A method as someone would add it, and what DeepInv Invert's menu then shows: one line of JSON.

python tests/comfyui/toy_method.py COMFYUI
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from import_cost import load_comfyui
from run_comfyui import install_repairs

from comfyui_deepinv.deepinv_core.integrator import Advance
from comfyui_deepinv.deepinv_core.methods import METHODS, Cost, Entry, option


@dataclass(frozen=True)
class Lazy:
    """Half a step, asked at both ends."""

    laziness: float = option(0.25, 0.0, 2.0, "How much of each step is left out.")

    def start(self, z: Any, grid: Any, carried: Any) -> None:
        """Nothing to remember."""

    def step(self, v: Any, z: Any, step: Any, state: Any) -> Advance:
        """Two evaluations."""
        mean = (v(z, step.sigma) + v(z, step.sigma_next)) / 2
        return Advance(z + (1 - self.laziness) * step.h * mean)


LAZY = Entry("lazy", "Lazy steps", Lazy(), cost=Cost(2), source="2600.00000")


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
