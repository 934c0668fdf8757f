"""Inputs of our nodes are what their schema says, whoever sends them.

ComfyUI compares numbers with their limits only where they are typed in, not where they come through a link, and NaN
passes; older versions take any text for an item of a menu.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from ..deepinv_core.errors import DeepInvError

OPEN_MENUS = ("solver_name", "inversion_name", "prompt")
"""Menus that don't list all that they take, files that come and words in any order: their nodes look for themselves."""


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, with its plain inputs checked before it runs.

    Raises:
        DeepInvError: by ``execute``, for a number that is none or out of range, a menu's item that isn't in it, a text
            that is none, or a plain value where something has to be connected.
    """
    run = node.execute.__func__
    known = functools.cache(node.define_schema)  # ComfyUI's own copy is locked while a node runs

    @functools.wraps(run)
    def execute(cls: type[io.ComfyNode], **values: Any) -> Any:
        schema = known()
        for one in schema.inputs:
            given = values.get(one.id)
            for value in given if schema.is_input_list and isinstance(given, list) else [given]:
                unset = value is None and (one.optional or one.id not in values)
                if not unset and (wanted := _problem(one, value)):
                    raise DeepInvError(f"{one.id} is {_shown(value)}: {wanted} is accepted")
        return run(cls, **values)

    node.execute = classmethod(execute)
    return node


UNLINKED: Any = object()
"""Default of an input in ``validate_inputs``: nothing is connected to it. What is connected is None there."""


def queued(node: type[io.ComfyNode], check: Callable[[], object], **values: Any) -> bool | str:
    """What a node's ``validate_inputs`` returns when a workflow is queued: True, or the sentence a person sees.

    Args:
        node: whose plain inputs ``values`` are; those that come through a link are None.
        check: raises what else can be known by then.
        values: of the inputs that ``validate_inputs`` names, whose limits ComfyUI then leaves to it.
    """
    for one in node.define_schema().inputs:
        value = values.get(one.id)
        if value is not None and (wanted := _problem(one, value)):
            return f"{one.id} is {_shown(value)}: {wanted} is accepted"
    try:
        check()
    except DeepInvError as error:
        return str(error)
    return True


def _shown(value: object) -> str:
    plain = value is None or isinstance(value, (str, int, float, list, dict))
    return ascii(value)[:80] if plain else f"a {type(value).__name__}"


def _problem(one: Any, value: Any) -> str:
    """What is accepted, where the value is something else; empty where it is right."""
    if isinstance(one, io.Combo.Input):
        options = one.options or []
        listed = any(type(option) is type(value) and option == value for option in options)
        known = listed or (one.id in OPEN_MENUS and isinstance(value, str))
        return "" if known else f"one of {', '.join(map(str, options))}"
    if isinstance(one, io.String.Input):
        return "" if isinstance(value, str) else "text"
    if isinstance(one, (io.Int.Input, io.Float.Input)):
        whole = isinstance(one, io.Int.Input)
        right = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
        low = -math.inf if one.min is None else one.min
        high = math.inf if one.max is None else one.max
        within = right and math.isfinite(value) and low <= value <= high
        return "" if within else f"{'an integer' if whole else 'a number'} from {low} to {high}"
    if isinstance(one, io.Boolean.Input):
        return "" if isinstance(value, bool) else "true or false"
    return "" if _CONNECTED.get(one.io_type, _is_object)(value) else f"a connected {one.io_type}"


def _is_object(value: object) -> bool:
    """No value that JSON can write into a workflow in the place of a connection."""
    return value is not None and not isinstance(value, (str, int, float, list, dict))


def is_conditioning(value: object) -> bool:
    """Whether it is built as ComfyUI's CONDITIONING is."""
    if not isinstance(value, list) or not value:
        return False
    pairs = all(isinstance(item, (list, tuple)) and len(item) == 2 for item in value)
    return pairs and all(_is_object(tokens) and isinstance(extras, dict) for tokens, extras in value)


_CONNECTED: dict[str, Callable[[Any], bool]] = {
    "LATENT": lambda value: isinstance(value, dict) and hasattr(value.get("samples"), "shape"),
    "CONDITIONING": is_conditioning,
}
"""The types that are made of lists and dictionaries; all others are objects."""
