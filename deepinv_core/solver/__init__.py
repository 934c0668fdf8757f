"""The learned solver g_φ: its network, presets, file format and the import of released weights.

The network needs ``diffusers``, which is imported when the network's class is first asked for, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import PREDICTORS, PRESETS, PredictorConfig, SolverConfig, predictor_preset, preset
from .file import BaseInfo, LoadedSolver, build, fingerprint, load_solver, require_base, role_of, save_solver
from .released import from_released

if TYPE_CHECKING:
    from .network import DeepInvSolver
    from .predictor import DeepInvPredictor

__all__ = [
    "PREDICTORS",
    "PRESETS",
    "BaseInfo",
    "DeepInvPredictor",
    "DeepInvSolver",
    "LoadedSolver",
    "PredictorConfig",
    "SolverConfig",
    "build",
    "fingerprint",
    "from_released",
    "load_solver",
    "predictor_preset",
    "preset",
    "require_base",
    "role_of",
    "save_solver",
]


def __getattr__(name: str) -> Any:
    if name == "DeepInvSolver":
        from .network import DeepInvSolver

        return DeepInvSolver
    if name == "DeepInvPredictor":
        from .predictor import DeepInvPredictor

        return DeepInvPredictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
