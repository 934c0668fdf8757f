"""Socket types of this pack, and schema arguments that only newer versions of ComfyUI know."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..deepinv_core.methods import known_options
from . import adapter

CATEGORY = "DeepInv"

Solver = io.Custom("DEEPINV_SOLVER")
InversionType = io.Custom("DEEPINV_INVERSION")

ADVANCED: dict[str, Any] = (
    {"advanced": True} if "advanced" in inspect.signature(io.Int.Input.__init__).parameters else {}
)
"""Folds an input away in the front ends that can (0.9.2 and later)."""


def schema_extras(**extras: Any) -> dict[str, Any]:
    """Those of the given ``io.Schema`` arguments the running version has."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return {name: value for name, value in extras.items() if name in known}


def seed_input(tooltip: str, name: str = "seed", **more: Any) -> io.Input:
    """A seed that stays as it is between runs."""
    most = 0xFFFFFFFFFFFFFFFF
    settings: dict[str, Any] = {"default": 0, "min": 0, "max": most, "control_after_generate": False, **more}
    return io.Int.Input(name, optional=True, tooltip=tooltip, **settings)


def name_input(default: str) -> io.Input:
    """Under which name a file is saved."""
    tooltip = "Name of the file, without .safetensors. A number is added where the name is taken."
    return io.String.Input("name", default=default, tooltip=tooltip)


def saved(path: Path, more: str = "") -> io.NodeOutput:
    """What a node that saves returns: the name, and a sentence; web/shown.js puts the file into the menus."""
    said = ui.PreviewText(f"saved as {path.name} in {path.parent}; the menus have it now, or once you press R{more}")
    return io.NodeOutput(path.name, ui={**said.as_dict(), "deepinv_saved": [str(path)]})


def file_state(path: str | Path) -> str:
    """What changes when a file does, for ``fingerprint_inputs``."""
    state = Path(path).stat()
    return f"{path}:{state.st_mtime_ns}:{state.st_size}"


def own(name: str, meaning: str = "own", value: int = -1) -> dict[str, Any]:
    """The label of an input one of whose values has a meaning; the id stays."""
    return {"display_name": f"{name.replace('_', ' ')} ({value}: {meaning})"}


def option_input(name: str, *, after: str = "", **changed: Any) -> io.Input:
    """The input of a method's option as its rule declares it, with ``after`` added to its help."""
    option = known_options()[name]
    tooltip = f"{option.help} {after}".strip()
    settings: dict[str, Any] = {"default": option.default, "min": option.low, "max": option.high, **ADVANCED, **changed}
    if name == "seed":
        return seed_input(tooltip, **ADVANCED)
    if isinstance(option.default, int):
        return io.Int.Input(name, optional=True, tooltip=tooltip, **settings)
    return io.Float.Input(name, optional=True, tooltip=tooltip, step=option.step, round=False, **settings)


def share_input(name: str, default: float, *, least: float = 0.0, most: float = 1.0, **more: Any) -> io.Input:
    """A number between 0 and 1, unless it says otherwise, in hundredths."""
    return io.Float.Input(name, default=default, min=least, max=most, step=0.01, **more)


def cfg_input(name: str, default: float, **more: Any) -> io.Input:
    """The scale of classifier-free guidance."""
    return io.Float.Input(name, default=default, min=0.0, max=30.0, step=0.1, **more)


def scheduler_input() -> io.Input:
    """Spacing of the noise levels."""
    return io.Combo.Input(
        "scheduler",
        options=adapter.SCHEDULERS,
        default="simple",
        optional=True,
        tooltip="Spacing of the noise levels; the shift is the model's own. simple suits flow models.",
        **ADVANCED,
    )
