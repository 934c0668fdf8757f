"""Inputs of our nodes are what their schema says, whoever sends them.

ComfyUI compares numbers with their limits only where they are typed in, not where they come through a link, and NaN
passes; older versions take any text for an item of a menu.
"""

from __future__ import annotations

import functools
import math
import numbers
from typing import Any

from comfy_api.latest import io

from ..deepinv_core.errors import DeepInvError

OF_FILES = ("solver_name", "inversion_name")
"""Menus of files, which change: their nodes look for themselves."""


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, with its plain inputs checked before it runs.

    Raises:
        DeepInvError: by ``execute``, for a number that is none or out of range, a menu's item that isn't in it, or a
            text that is none.
    """
    run = node.execute.__func__  # type: ignore[attr-defined]
    known = functools.cache(node.define_schema)  # ComfyUI's own copy is locked while a node runs

    @functools.wraps(run)
    def execute(cls: type[io.ComfyNode], **values: Any) -> Any:
        schema = known()
        for one in schema.inputs:
            given = values.get(one.id)
            for value in given if schema.is_input_list and isinstance(given, list) else [given]:
                if value is not None and (wanted := _problem(one, value)):
                    raise DeepInvError(f"{one.id} is {ascii(value)[:80]}: {wanted} is accepted")
        return run(cls, **values)

    node.execute = classmethod(execute)  # type: ignore[assignment,method-assign]
    return node


def _problem(one: Any, value: Any) -> str:
    """What is accepted, where the value is something else; empty where it is right."""
    if isinstance(one, io.Combo.Input):
        options = one.options or []
        known = one.id in OF_FILES or any(type(option) is type(value) and option == value for option in options)
        return "" if known else f"one of {', '.join(map(str, options))}"
    if isinstance(one, io.String.Input):
        return "" if isinstance(value, str) else "text"
    if isinstance(one, (io.Int.Input, io.Float.Input)):
        whole = isinstance(one, io.Int.Input)
        right = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
        low = -math.inf if one.min is None else one.min
        high = math.inf if one.max is None else one.max
        if not right or not math.isfinite(value) or not low <= value <= high:
            return f"{'an integer' if whole else 'a number'} from {low} to {high}"
    return ""
