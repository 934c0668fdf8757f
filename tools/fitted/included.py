"""Fit the solvers that ship with the included models; run it again whenever a model's weights change.

    python -m comfyui_deepinv.tools.fitted.included [sd3 flux]

What was stopped goes on by the same command.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from ...cli.main import main as deepinv
from ...deepinv_core.models.by_name import DEMO_MODELS
from ...deepinv_core.models.embedded import FOLDER

RUNS: Final = Path(__file__).parents[2] / "runs"
"""Where a fit lies until it is done; no part of the repository."""

STEPS: Final = "2,4,8,16,25,50"
REFINE: Final = "0,1,2"


def main(layouts: list[str]) -> int:
    """Command line."""
    for name, layout in DEMO_MODELS.items():
        if layout not in (layouts or DEMO_MODELS.values()):
            continue
        path = Path(FOLDER) / "weights" / f"fitted_{layout}.safetensors"
        made = RUNS / path.name
        if status := deepinv(["fit", "--model", name, "--steps", STEPS, "--refine", REFINE, "--output", str(made)]):
            return status
        made.replace(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
