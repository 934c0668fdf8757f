"""The learned solver g_φ: its network, presets, file format and the import of released weights.

The network needs ``diffusers``, which is imported when the network's class is first asked for, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import PRESETS, SolverConfig, preset
from .file import BaseInfo, LoadedSolver, fingerprint, load_solver, require_base, save_solver
from .released import from_released

if TYPE_CHECKING:
    from .network import DeepInvSolver

__all__ = [
    "PRESETS",
    "BaseInfo",
    "DeepInvSolver",
    "LoadedSolver",
    "SolverConfig",
    "fingerprint",
    "from_released",
    "load_solver",
    "preset",
    "require_base",
    "save_solver",
]


def __getattr__(name: str) -> Any:
    if name == "DeepInvSolver":
        from .network import DeepInvSolver

        return DeepInvSolver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
