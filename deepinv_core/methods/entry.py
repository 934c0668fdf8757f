"""What a method is: rules up and back, what they cost and which options they have; its entry in the list of methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Literal

from ..integrator import Rule
from .explicit import Euler

Kept = Literal["pure", "+z_0", "+pair", "exact"]
"""What the way back reads besides the noise: nothing, the clean latent, the last two latents, the trajectory."""


@dataclass(frozen=True)
class Cost:
    """Base evaluations of a walk: N steps of ``each + refine * K``, and ``once`` more in all.

    Under guidance each counts twice.

    >>> str(Cost(1, 1, 1)), Cost(1, 1, 1)(16, 2)
    ('N(K+1)+1', 49)
    """

    each: int = 1
    refine: int = 0
    once: int = 0

    def __call__(self, steps: int, refine: int = 0) -> int:
        """The evaluations of ``steps`` steps with ``refine`` refine steps each."""
        return steps * (self.each + self.refine * refine) + self.once

    def __str__(self) -> str:
        k = f"{self.refine if self.refine > 1 else ''}K" if self.refine else ""
        factor = k or (str(self.each) if self.each > 1 else "")
        steps = f"N({k}+{self.each})" if k and self.each else f"{factor}N"
        return f"{steps}{self.once:+d}" if self.once else steps


@dataclass(frozen=True)
class Option:
    """A number that a method can be given; a field of its rule, declared with :func:`option`.

    Attributes:
        default: the method's own value; its type, int or float, is the option's.
        low: least value.
        high: largest value.
        help: what it does, a sentence or two.
        step: in which a form changes it.
    """

    default: int | float
    low: int | float
    high: int | float
    help: str
    step: float = 0.01

    @property
    def kind(self) -> str:
        """What it takes, in words."""
        return "an integer" if isinstance(self.default, int) else "a number"

    def accepts(self, value: object) -> bool:
        """Whether it is a number of this kind and within the range."""
        kinds = int if isinstance(self.default, int) else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high


def option(default: int | float, low: int | float, high: int | float, text: str, step: float = 0.01) -> Any:
    """A field of a rule that is an option of the method; ``text`` is its help, the rest as in :class:`Option`."""
    return field(default=default, metadata={"option": Option(default, low, high, text, step)})


def refine_option(default: int = 3, least: int = 1) -> Any:
    """K."""
    text = (
        "K, evaluations a step that improve the first guess: each makes the photo come back more exactly and costs "
        "another N evaluations."
    )
    return option(default, least, 1000, text)


def tolerance_option() -> Any:
    """Relative fixed-point residual at which iterating stops; above 0 one number a step is copied to the host."""
    text = (
        "Stop refining a step once its relative residual is this small, saving time on easy steps. 0 always does all K."
    )
    return option(0.0, 0.0, 1.0, text, step=0.0001)


def options_of(rule: Any) -> dict[str, Option]:
    """The options among a rule's fields, and those of the parts it is made of, with its values as their defaults."""
    found: dict[str, Option] = {}
    for one in fields(rule):
        value = getattr(rule, one.name)
        if "option" in one.metadata:
            found[one.name] = replace(one.metadata["option"], default=value)
        elif is_dataclass(value):
            found |= options_of(value)
    return found


def with_values(rule: Any, values: Mapping[str, Any]) -> Any:
    """A rule with other values in its fields, and in those of the parts it is made of, by the fields' names."""
    changed = {}
    for one in fields(rule):
        value = getattr(rule, one.name)
        if one.name in values:
            changed[one.name] = values[one.name]
        elif is_dataclass(value):
            changed[one.name] = with_values(value, values)
    return replace(rule, **changed)


EULER_BACK = Euler()


@dataclass(frozen=True)
class Entry:
    """A method in the list.

    Attributes:
        id: as files, nodes and the command line name it.
        title: name for people.
        up: the inversion's rule. Its options are fields, see :func:`option`.
        back: the rule of the way back.
        cost: base evaluations of the inversion.
        cost_back: of the way back.
        source: arXiv number of the paper, where it is not in the title.
        kept: what the way back needs besides the noise.
        uses_solver: whether ``up`` needs a solver, in a field of this name.
        note: what else there is to say of its cost, after it.
    """

    id: str
    title: str
    up: Rule
    back: Rule = EULER_BACK
    cost: Cost = Cost()
    cost_back: Cost = Cost()
    source: str = ""
    kept: Kept = "pure"
    uses_solver: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        """Title and source."""
        return f"{self.title} ({self.source})" if self.source else self.title

    @property
    def price(self) -> str:
        """Cost for people."""
        return f"{self.cost} {self.note}" if self.note else str(self.cost)

    @cached_property
    def options(self) -> dict[str, Option]:
        """Its options by name, of both ways."""
        return options_of(self.up) | options_of(self.back)

    @property
    def refine(self) -> int | None:
        """K by default; None where there are no iterations."""
        return int(self.options["refine"].default) if "refine" in self.options else None
