"""Every inversion method by its id. A new one is a file with an :class:`.entry.Entry`, and its line in the list."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ..errors import DeepInvError
from ..integrator import Rule
from .anderson import ANDERSON, ANDERSON_EXTRAPOLATED
from .deepinv import DEEPINV, DEEPINV_MIXED
from .direct_alignment import DIRECT_ALIGNMENT
from .easyinv import EASYINV
from .entry import Entry, Kept, Option, with_values
from .euler import EULER, EULER_SOURCE
from .fireflow import FIREFLOW
from .fixed_point import FIXED_POINT
from .leapfrog import LEAPFROG
from .renoise import FTEDIT, RENOISE
from .rf_inversion import RF_INVERSION
from .rf_solver import RF_SOLVER
from .uni_inv import UNI_INV, UNI_INV_2

if TYPE_CHECKING:
    from ..solver.kind import Solver

METHODS: Final[dict[str, Entry]] = {
    entry.id: entry
    for entry in (
        EULER,
        EULER_SOURCE,
        EASYINV,
        FIXED_POINT,
        ANDERSON,
        RENOISE,
        FTEDIT,
        RF_INVERSION,
        RF_SOLVER,
        FIREFLOW,
        UNI_INV,
        UNI_INV_2,
        ANDERSON_EXTRAPOLATED,
        LEAPFROG,
        DIRECT_ALIGNMENT,
        DEEPINV,
        DEEPINV_MIXED,
    )
}

BEST_TRAINING_FREE: Final = "anderson_extrapolated"
"""What is used where nobody chose and there is no solver: of the methods whose noise alone gives the photo back,
the most accurate at few steps and many on the embedded models."""

NO_REFINE: Final = Option(0, 0, 0, "")
"""K of a method without iterations."""

Options = dict[str, float | None]
"""Values by an option's name, as in ``Options(refine=2, tolerance=1e-3)``; None is a method's own default."""


@dataclass(frozen=True)
class Method:
    """A chosen method: its id, the values of its options, what its way back needs, and both rules."""

    id: str
    options: Options
    kept: Kept
    up: Rule
    back: Rule


def describe(method: str) -> Entry:
    """The entry of a method id.

    Raises:
        DeepInvError: unknown id; the nearest one is named.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise DeepInvError(f"unknown method {ascii(method)[:60]}: {hint}Known are {', '.join(METHODS)}")
    return METHODS[method]


def known_options() -> dict[str, Option]:
    """Every option by name, as the first method with it declares it; where there is no other, its help says so."""
    found: dict[str, Option] = {}
    for entry in METHODS.values():
        for name, one in entry.options.items():
            if name not in found:
                text = one.help
                alone = not any(name in other.options for other in METHODS.values() if other is not entry)
                found[name] = replace(one, help=f"Only for {entry.id}: {text[0].lower()}{text[1:]}") if alone else one
    return found


def method_values(method: str, given: Mapping[str, Any]) -> Options:
    """The values of a method's options: those given, the others by default; ``refine`` is 0 without iterations.

    Other methods' options are checked and left out.

    Raises:
        DeepInvError: unknown method, an option that no method has, a value that isn't accepted, or refine steps for a
            method without iterations.
    """
    entry, known = describe(method), known_options()
    if unknown := [name for name in given if name not in known]:
        raise DeepInvError(
            f"unknown method option {ascii(unknown[0])[:60]}: {', '.join(known)} are known; a newer version of this "
            "pack may have more, update it"
        )
    own = {"refine": NO_REFINE, **entry.options}
    if given.get("refine") and own["refine"] is NO_REFINE:
        takers = ", ".join(other.id for other in METHODS.values() if other.refine is not None)
        raise DeepInvError(
            f"method '{method}' has no iterations, so it takes no refine steps: leave them out, or use {takers}"
        )
    for name, one in {**known, **own}.items():
        value = given.get(name)
        if value is not None and not one.accepts(value):
            raise DeepInvError(
                f"{name} is {ascii(value)[:60]}: '{method}' needs at least {one.low} and at most {one.high}, "
                f"{one.kind}; its default is {one.default}"
            )
    return {name: one.default if given.get(name) is None else given[name] for name, one in own.items()}


def make_method(method: str, options: Options | None = None, *, solver: Solver | None = None) -> Method:
    """Build a method by id; options that are left out or None stay with its defaults.

    Raises:
        DeepInvError: unknown id, an option's value that isn't accepted, or no solver where one is needed.
    """
    entry, values = describe(method), method_values(method, options or {})
    if entry.uses_solver and solver is None:
        raise DeepInvError(
            f"method '{method}' needs a trained solver and none was given: load one trained for this model, "
            f"or take '{BEST_TRAINING_FREE}', the most accurate method that needs no training"
        )
    up = with_values(entry.up, {**values, "solver": solver})
    return Method(method, values, entry.kept, up, with_values(entry.back, values))


def way_back(method: str, options: Mapping[str, Any]) -> Rule:
    """The rule that samples back what ``method`` inverted; needs no solver."""
    return with_values(describe(method).back, method_values(method, options))


def method_table() -> list[list[str]]:
    """The list for people: a heading, and for each method its id, name, cost in NFE, what is kept, and K."""
    rows = [[e.id, e.name, e.price, e.kept, "" if e.refine is None else str(e.refine)] for e in METHODS.values()]
    return [["id", "method", "cost in NFE", "kept", "K"], *rows]
