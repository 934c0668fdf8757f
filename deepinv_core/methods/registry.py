"""Every inversion method by its id: the rule up, the matching rule back, and what the way back needs."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ..errors import DeepInvError
from ..integrator import Rule
from .direct_alignment import Aligned
from .easyinv import Mixed
from .explicit import Euler
from .fireflow import ReusedMidpoint
from .implicit import (
    Anderson,
    Averaged,
    Extrapolated,
    ExtrapolatedFromFirst,
    Implicit,
    LastVelocity,
    Picard,
    TargetEuler,
)
from .leapfrog import Leapfrog, LeapfrogBack
from .rf_inversion import TowardsImage, TowardsNoise
from .rf_solver import Midpoint

if TYPE_CHECKING:
    from ..solver.kind import Solver

Kept = Literal["pure", "+z_0", "+pair", "exact"]
"""What the way back reads besides the noise: nothing, the clean latent, the last two latents, the trajectory."""


@dataclass(frozen=True)
class Options:
    """The settings a method may read; each says which ones do in :class:`Info`.

    Attributes:
        refine: K, evaluations a step after the guess; None takes the method's default.
        tolerance: relative fixed-point residual at which iterating stops (0 = never, no host sync).
        gamma: RF-Inversion's pull towards its noise on the way up.
        eta: RF-Inversion's pull towards z_0 on the way back.
        eta_share: share of the way back, from the noise end, on which eta acts.
        seed: RF-Inversion's noise.
    """

    refine: int | None = None
    tolerance: float = 0.0
    gamma: float = 0.5
    eta: float = 0.9
    eta_share: float = 0.25
    seed: int = 0


@dataclass(frozen=True)
class Info:
    """A method in the catalogue.

    Attributes:
        title: name for people, with its source.
        cost: base evaluations of an inversion of N steps, for people; the integrator counts the real ones.
        kept: what its way back needs.
        up: ``(options, K, solver) -> Rule``.
        back: ``options -> Rule``.
        refine: default K, or None where the method has no iterations.
        uses_solver: whether it needs a trained solver.
    """

    title: str
    cost: str
    kept: Kept
    up: Callable[[Options, int, Solver | None], Rule]
    back: Callable[[Options], Rule] = field(default=lambda options: Euler())
    refine: int | None = None
    uses_solver: bool = False


def _averaged(k: int, first: int) -> Averaged:
    return Averaged(k, max(1, first), k + 1)


def _deepinv(options: Options, k: int, solver: Solver | None) -> Rule:
    if solver is None:
        raise DeepInvError(
            "method 'deepinv' needs a trained solver and none was given: load one trained for this model, "
            "or take 'anderson_extrapolated', the most accurate method that needs no training"
        )
    return solver.rule(k, options.tolerance)


SOLVER_COST = "N(K+1)+1 (paper's recipe: N(K+1)), + N solver"
"""The fast recipe's guess starts from the velocity at the photo: one evaluation more for the whole walk."""

METHODS: dict[str, Info] = {
    "euler": Info("Euler at the target sigma (DDIM inversion)", "N", "pure", lambda o, k, s: Implicit(TargetEuler())),
    "euler_source": Info("Euler at the source sigma", "N", "pure", lambda o, k, s: Euler()),
    "easyinv": Info("EasyInv (2408.05159)", "N", "pure", lambda o, k, s: Mixed(Implicit(TargetEuler()))),
    "fixed_point": Info(
        "Fixed point / AIDI",
        "N(K+1)",
        "pure",
        lambda o, k, s: Implicit(TargetEuler(), Picard(k, o.tolerance)),
        refine=3,
    ),
    "anderson": Info(
        "Anderson-accelerated fixed point",
        "N(K+1)",
        "pure",
        lambda o, k, s: Implicit(TargetEuler(), Anderson(k, o.tolerance)),
        refine=3,
    ),
    "renoise": Info(
        "ReNoise (2403.14602)", "N(K+1)", "pure", lambda o, k, s: Implicit(TargetEuler(), _averaged(k, k - 1)), refine=9
    ),
    "ftedit": Info(
        "FTEdit averaging", "N(K+1)", "pure", lambda o, k, s: Implicit(TargetEuler(), _averaged(k, 2)), refine=3
    ),
    "rf_inversion": Info(
        "RF-Inversion (2410.10792)",
        "N",
        "+z_0",
        lambda o, k, s: TowardsNoise(o.gamma, o.seed),
        lambda o: TowardsImage(o.eta, o.eta_share),
    ),
    "rf_solver": Info(
        "RF-Solver, midpoint (2411.04746)", "2N", "pure", lambda o, k, s: Midpoint(), lambda o: Midpoint()
    ),
    "fireflow": Info(
        "FireFlow (2412.07517)", "N+1", "pure", lambda o, k, s: ReusedMidpoint(), lambda o: ReusedMidpoint()
    ),
    "uni_inv": Info(
        "Uni-Inv (UniEdit-Flow)",
        "KN+1",
        "pure",
        lambda o, k, s: Implicit(LastVelocity(), Picard(k, o.tolerance)),
        refine=1,
    ),
    "uni_inv_2": Info(
        "Uni-Inv, extrapolated guess",
        "KN+1",
        "pure",
        lambda o, k, s: Implicit(Extrapolated(), Picard(k, o.tolerance)),
        refine=1,
    ),
    "anderson_extrapolated": Info(
        "Anderson from an extrapolated guess",
        "KN+1",
        "pure",
        lambda o, k, s: Implicit(ExtrapolatedFromFirst(), Anderson(k, o.tolerance)),
        refine=3,
    ),
    "leapfrog": Info("Leapfrog (BDIA / BELM)", "N", "+pair", lambda o, k, s: Leapfrog(), lambda o: LeapfrogBack()),
    "direct_alignment": Info(
        "Direct alignment (2605.02417)", "N", "exact", lambda o, k, s: Implicit(TargetEuler()), lambda o: Aligned()
    ),
    "deepinv": Info("DeepInv (2601.01487)", SOLVER_COST, "pure", _deepinv, refine=0, uses_solver=True),
    "deepinv_mixed": Info(
        "DeepInv with EasyInv's mixing (released code)",
        SOLVER_COST,
        "pure",
        lambda o, k, s: Mixed(_deepinv(o, k, s)),
        refine=0,
        uses_solver=True,
    ),
}


BEST_TRAINING_FREE = "anderson_extrapolated"
"""What is used where nobody chose and there is no solver: of the methods whose noise alone gives the photo back,
the most accurate at few steps and many on the embedded models."""


@dataclass(frozen=True)
class Method:
    """A chosen method: its id, options with K resolved, and both rules."""

    id: str
    options: Options
    kept: Kept
    up: Rule
    back: Rule


def describe(method: str) -> Info:
    """The catalogue entry of a method id.

    Raises:
        DeepInvError: unknown id; the nearest one is named.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise DeepInvError(f"unknown method '{method}': {hint}Known are {', '.join(METHODS)}")
    return METHODS[method]


def make_method(method: str, options: Options | None = None, *, solver: Solver | None = None) -> Method:
    """Build a method by id.

    Args:
        method: an id of :data:`METHODS`.
        options: settings; K stays with the method's default when None, and must be None where there are no iterations.
        solver: the bound network, for ``deepinv`` only.

    Raises:
        DeepInvError: unknown id, K out of range, tolerance negative, or no solver for ``deepinv``.
    """
    info = describe(method)
    options = options or Options()
    k = resolve_refine(method, options.refine)
    if not options.tolerance >= 0:
        raise DeepInvError(f"tolerance is {options.tolerance}: 0 (never stop early) or a positive number is needed")
    return Method(method, replace(options, refine=k), info.kept, info.up(options, k, solver), info.back(options))


def resolve_refine(method: str, refine: int | None) -> int:
    """K for a method: the given one checked, or its default (0 where it has no iterations)."""
    default = describe(method).refine
    if refine is None:
        return default or 0
    if default is None:
        takers = ", ".join(name for name, info in METHODS.items() if info.refine is not None)
        raise DeepInvError(
            f"method '{method}' has no iterations, so it takes no refine steps: leave them out, or use {takers}"
        )
    least = 0 if METHODS[method].uses_solver else 1
    if refine < least:
        raise DeepInvError(f"refine is {refine}: '{method}' needs at least {least}; its default is {default}")
    return refine


def way_back(method: str, options: Options) -> Rule:
    """The rule that samples back what ``method`` inverted; needs no solver."""
    return describe(method).back(options)


def options_from(values: dict[str, Any]) -> Options:
    """Options from a file's JSON, refusing unknown names and values that can't be.

    Raises:
        DeepInvError: a name this version does not know, or a value that no method takes.
    """
    if not isinstance(values, dict):
        raise DeepInvError(f"the method's options are a {type(values).__name__}: an object of settings is accepted")
    unknown = set(values) - set(Options.__dataclass_fields__)
    if unknown:
        raise DeepInvError(
            f"unknown method option {sorted(unknown)[0][:60]!a}: the file is from a newer version; update this pack"
        )
    for name, value in values.items():
        whole = name in ("refine", "seed")
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        limit = 2**64 if name == "seed" else 1 if name == "eta_share" else 2**31
        if (value is not None or name != "refine") and not (number and 0 <= value <= limit - (name == "seed")):
            kind = "an integer" if whole else "a number"
            raise DeepInvError(f"method option {name} is {ascii(value)[:60]}: {kind} from 0 to {limit} is accepted")
    return Options(**values)
