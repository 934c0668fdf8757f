"""Lists and dictionaries of tensors and plain values as named tensors and a plan in JSON, for a file to hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from .checkpoint import DTYPES
from .errors import DeepInvError

DEEPEST: Final = 8
"""Levels that are read; what ComfyUI nests has three."""

PLAIN: Final = (bool, int, float, str, type(None))


def storable(value: Any) -> bool:
    """Whether a file can hold it: finite tensors, plain values, and lists and dictionaries of them."""
    if isinstance(value, Tensor):
        return value.dtype in DTYPES.values() and bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(storable, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(storable, value))
    return isinstance(value, PLAIN)


def flatten(value: Any, name: str) -> tuple[Any, dict[str, Tensor]]:
    """The plan of a :func:`storable` value, and its tensors by names that begin with ``name``."""
    if isinstance(value, Tensor):
        return {"tensor": name}, {name: value}
    if isinstance(value, dict):
        parts = {key: flatten(one, f"{name}.{key}") for key, one in value.items()}
        return {"dict": {key: plan for key, (plan, _) in parts.items()}}, _merged(parts.values())
    if isinstance(value, (list, tuple)):
        rows = [flatten(one, f"{name}.{number}") for number, one in enumerate(value)]
        return {"list": [plan for plan, _ in rows]}, _merged(rows)
    return {"value": value}, {}


def restore(plan: Any, tensors: Mapping[str, Tensor], deepest: int = DEEPEST) -> Any:
    """What :func:`flatten` took apart; tuples are lists.

    Raises:
        DeepInvError: no such plan, or a tensor that isn't there.
    """
    kind, part = next(iter(plan.items())) if isinstance(plan, dict) and len(plan) == 1 else ("", None)
    if deepest > 0 and kind == "dict" and isinstance(part, dict):
        return {key: restore(one, tensors, deepest - 1) for key, one in part.items()}
    if deepest > 0 and kind == "list" and isinstance(part, list):
        return [restore(one, tensors, deepest - 1) for one in part]
    if kind == "tensor" and isinstance(part, str) and part in tensors:
        return tensors[part]
    if kind == "value" and isinstance(part, PLAIN):
        return part
    raise DeepInvError(f"{ascii(plan)[:60]} is no part of a prompt or a mask")


def _merged(parts: Any) -> dict[str, Tensor]:
    return {name: tensor for _, tensors in parts for name, tensor in tensors.items()}
