"""Socket types of this pack, and schema arguments that only newer versions of ComfyUI know."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from comfy_api.latest import io

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
