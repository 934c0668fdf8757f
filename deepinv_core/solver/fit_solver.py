"""Fit a solver: samples of the model, for each N and K the walk on the best grid found, judged on samples held out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ..errors import DeepInvError
from ..flow import Velocity
from ..integrator import Progress, integrate
from ..inversion import invert, latent_snr, reconstruct
from ..memory import in_parts
from ..methods import METHODS, Options, make_method
from ..methods.fireflow import ReusedMidpoint
from ..models.base_info import BaseInfo
from .fit import fit_evaluations
from .fit_grid import Trip, fit_on_grids, trip_evaluations
from .fit_state import FitState
from .fitted import FittedConfig, FittedTable
from .fitted_walk import Walk

DRAW_STEPS: Final = 10
"""Of the samples, by FireFlow's rule. N Euler steps would make smoother pictures than photos are, and a fit on those
loses 3 to 5 dB at 4 steps; between 8 and 60 steps of this rule there is no difference."""

ROWS_PIXELS: Final = 128 * 128

LEVEL: Final = 80.0
"""dB above which round trips count as alike."""


@dataclass(frozen=True)
class FitPlan:
    """What is fitted, and from what.

    Attributes:
        walks: N and K of each walk.
        shape: of a latent, ``(C, H, W)`` or ``(C, F, H, W)``.
        samples: how many the coefficients are fitted on.
        held_out: how many more they are judged on.
        rounds: of the search for a grid; 0 fits on the model's own.
        seed: of the samples' noise.
    """

    walks: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]
    samples: int = 3
    held_out: int = 2
    rounds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        FittedConfig(channels=self.shape[0], walks=self.walks)
        for name, least in (("samples", 1), ("held_out", 1), ("rounds", 0)):
            if getattr(self, name) < least:
                raise DeepInvError(f"{name} is {getattr(self, name)}: at least {least} is needed")

    @property
    def draw_evaluations(self) -> int:
        """Evaluations that the samples take."""
        return (self.samples + self.held_out) * (DRAW_STEPS + 1) + 1

    def walk_evaluations(self, steps: int, refine: int) -> int:
        """Evaluations that one walk takes, at most."""
        fit = self.samples * fit_evaluations(steps, refine) + self.held_out * trip_evaluations(steps, refine)
        free = sum(METHODS[n].cost(steps, k or 0) + METHODS[n].cost_back(steps) for n, k in free_methods(refine))
        return fit * (1 + self.rounds) + self.held_out * free * (1 + bool(self.rounds))

    def evaluations(self) -> int:
        """Evaluations that all takes, at most, each of one sample; under guidance each is two of the model's."""
        return self.draw_evaluations + sum(self.walk_evaluations(*walk) for walk in self.walks)


def pairs(steps: str, refine: str) -> tuple[tuple[int, int], ...]:
    """Every N with every K of two lists such as ``4,8``.

    Raises:
        DeepInvError: no such lists.
    """
    found = []
    for name, text in (("steps", steps), ("refine", refine)):
        words = text.replace(",", " ").split()
        if not words or not all(word.isdecimal() for word in words):
            raise DeepInvError(f"{name} is {text!r:.60}: whole numbers are accepted, commas between, such as 4,8,16")
        found.append(tuple(dict.fromkeys(map(int, words))))
    return tuple((n, k) for n in found[0] for k in found[1])


def free_methods(refine: int) -> list[tuple[str, int | None]]:
    """The training-free methods that cost as much as a fitted walk with K = ``refine``, and their K."""
    return [("anderson_extrapolated", refine + 1)] if refine else [("uni_inv_2", 1), ("fireflow", None)]


class FitEvent(NamedTuple):
    """What the callback is given after each call of the model.

    Attributes:
        done: evaluations so far.
        total: evaluations in all, at most.
        left: seconds left, about; 0 where that isn't known yet.
        doing: in words.
        denoised: the samples as they are, ``[B, C, ...]``, while they are drawn; else None.
    """

    done: int
    total: int
    left: float
    doing: str
    denoised: Tensor | None = None


@dataclass(frozen=True)
class FitBase:
    """The model that a solver is fitted to, under the prompt that inversions will use.

    Attributes:
        velocity: takes up to ``rows`` latents on ``device``.
        grid: ``steps`` to the model's own grid, ascending.
        info: what the file says of the model.
        under: ``cfg``, ``guidance`` and the prompt's ``mark`` for the record, JSON values.
        device: of the model.
        rows: how many latents at once.
    """

    velocity: Velocity
    grid: Callable[[int], Tensor]
    info: BaseInfo
    under: dict[str, Any] = field(default_factory=dict)
    device: torch.device | str = "cpu"
    rows: int = 1


@dataclass(frozen=True)
class Fit:
    """What a fit has made: the walks, and a row of figures for each, JSON values.

    A row has ``steps``, ``refine``, ``nfe``, ``own_grid`` (whether another than the model's was found better),
    ``latent_snr_db``, ``noise_std`` and ``residual`` of the held-out samples' round trip, ``free``, the same samples'
    dB by the training-free methods that cost as much, each on the better grid of both, and ``used``: False where one
    of those is better.
    """

    plan: FitPlan
    base: FitBase
    walks: tuple[Walk, ...]
    rows: tuple[dict[str, Any], ...]
    evaluations: int
    seconds: float

    def network(self) -> FittedTable:
        """The tensors of a solver file: the walks that are used.

        Raises:
            DeepInvError: none is.
        """
        used = [walk for walk, row in zip(self.walks, self.rows, strict=True) if row["used"]]
        if not used:
            raise DeepInvError(
                "the fit is no better than training-free methods at any step count asked for, so there is no solver "
                "to save; fit for other step counts, or invert with these methods:\n" + fit_table(self.rows)
            )
        return FittedTable.of(used, self.base.info.channels)

    def summary(self) -> dict[str, Any]:
        """What the file says of it, JSON values."""
        plan = {name: value for name, value in asdict(self.plan).items() if name != "walks"}
        spent = {"base_evaluations": self.evaluations, "seconds": round(self.seconds, 1)}
        return {**plan, "shape": list(self.plan.shape), "under": self.base.under, "rows": list(self.rows), **spent}


def fit_table(rows: tuple[dict[str, Any], ...] | list[dict[str, Any]]) -> str:
    """The rows as text: evaluations, dB of the fit, of the best training-free method, and whether the fit is used."""
    lines = [f"{'steps':>5} {'K':>2} {'NFE':>4} {'fitted':>7} {'noise':>6}  best training-free at that cost"]
    for row in rows:
        name, db = max(row["free"].items(), key=lambda one: one[1])
        note = "" if row["used"] else "; it is better, so the fit isn't used"
        fitted = f"{row['latent_snr_db']:>7.1f} {row['noise_std']:>6.2f}"
        lines.append(f"{row['steps']:>5} {row['refine']:>2} {row['nfe']:>4} {fitted}  {db:.1f} {name}{note}")
    return "\n".join(lines)


class _Batched:
    """A velocity that takes latents from the CPU, some rows at a time, and says how far the fit is."""

    def __init__(self, base: FitBase, total: int, callback: Callable[[FitEvent], None] | None) -> None:
        self._base, self._total, self._callback = base, total, callback
        self._began, self._rows = time.perf_counter(), base.rows
        self.sigma_min, self.done, self.made, self.asked = base.velocity.sigma_min, 0, 0, 0
        self.doing = ""

    @property
    def cost(self) -> int:
        return self._base.velocity.cost

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def __call__(self, z: Tensor, sigma: float) -> Tensor:
        parts, at = [], 0
        while at < len(z):
            parts.append(self._some(z[at : at + self._rows], sigma))
            at += len(parts[-1])
        return torch.cat(parts)

    def _some(self, z: Tensor, sigma: float) -> Tensor:
        def ask(rows: slice) -> Tensor:
            return self._base.velocity(z[rows].to(self._base.device), sigma).to(z)

        def joined(parts: Sequence[Tensor]) -> Tensor:  # asked for where memory ran out: ask for no more again
            self._rows = max(map(len, parts))
            return torch.cat(list(parts))

        v = in_parts(len(z), ask, joined)
        self.done, self.made, self.asked = self.done + len(z), self.made + len(z), self.asked + len(z) * self.cost
        self.tell()
        return v

    def tell(self, denoised: Tensor | None = None) -> None:
        if self._callback is not None:
            each = self.seconds / max(1, self.made)
            left = each * max(0, self._total - self.done) if self.made > self._base.rows else 0.0
            self._callback(FitEvent(min(self.done, self._total), self._total, left, self.doing, denoised))


def rows_for(shape: Sequence[int]) -> int:
    """How many latents ``(C, ...)`` a model is asked for at once: as many pixels as one of 1024 x 1024 has."""
    return max(1, ROWS_PIXELS // math.prod(shape[1:]))


@torch.no_grad()
def seconds_each(base: FitBase, plan: FitPlan) -> float:
    """Seconds that an evaluation of one latent takes; measured by two, the first to warm up."""
    v, z, sigma = _Batched(base, 1, None), torch.randn((base.rows, *plan.shape)), float(base.grid(1)[-1])
    v(z, sigma)
    began = time.perf_counter()
    v(z, sigma)  # its answer comes on the CPU, so it is done then
    return (time.perf_counter() - began) / base.rows


def estimate(plan: FitPlan, each: float) -> str:
    """What a fit will cost, in words."""
    walks = len(plan.walks)
    count, pictures = plan.evaluations(), plan.evaluations() / sum(steps for steps, _ in plan.walks) * walks
    shown = f"{each * count / 60:.1f} min" if each * count >= 60 else f"{each * count:.0f} s"
    return f"at most {count} evaluations, about {shown}: as long as {pictures:.0f} pictures of as many steps"


@torch.no_grad()
def fit_solver(
    base: FitBase, plan: FitPlan, state: FitState, callback: Callable[[FitEvent], None] | None = None
) -> Fit:
    """Fit, or go on with a fit.

    Args:
        base: the model.
        plan: what to fit.
        state: where each finished walk is kept; a fit that was stopped goes on from it.
        callback: called after each call of the model; what it raises ends the fit, and ``state`` has all before.

    Raises:
        DeepInvError: a model that gave NaN or infinity, too little memory, or a state of another fit.
    """
    v = _Batched(base, plan.evaluations(), callback)
    samples = _samples(v, base, plan, state)
    for steps, refine in plan.walks:
        if (steps, refine) not in state.walks:
            v.doing = f"{steps} steps, K = {refine}"
            walk, row = _fitted(v, samples, base.grid(steps), plan, refine)
            state.spent(v.asked, v.seconds)
            state.add(walk, row)
        v.done = plan.draw_evaluations + sum(
            plan.walk_evaluations(*walk) for walk in plan.walks[: plan.walks.index((steps, refine)) + 1]
        )
    v.tell()
    state.spent(v.asked, v.seconds)
    chosen = [state.walks[walk] for walk in plan.walks]
    walks, rows = tuple(walk for walk, _ in chosen), tuple(row for _, row in chosen)
    return Fit(plan, base, walks, rows, state.evaluations, state.seconds)


def _samples(v: _Batched, base: FitBase, plan: FitPlan, state: FitState) -> Tensor:
    """Clean latents of the model, ``[samples + held_out, C, ...]``, kept in the state."""
    generator = torch.Generator().manual_seed(plan.seed)
    grid = base.grid(DRAW_STEPS).flip(0)
    z = grid[0].item() * torch.randn((plan.samples + plan.held_out, *plan.shape), generator=generator)
    v.doing = "samples of the model"

    def show(progress: Progress) -> None:
        v.tell(progress.denoised)

    state.open(plan, base, v(z[:1], grid[0].item()))
    if state.samples is not None:
        return state.samples
    samples = integrate(v, z, grid, ReusedMidpoint(), callback=show).z
    state.spent(v.asked, v.seconds)
    state.set_samples(samples)
    return samples


def _fitted(
    v: _Batched, samples: Tensor, model_grid: Tensor, plan: FitPlan, refine: int
) -> tuple[Walk, dict[str, Any]]:
    """The walk on the best grid found, and its row."""
    drawn, held_out = samples[: plan.samples], samples[plan.samples :]
    found = fit_on_grids(v, drawn, held_out, model_grid, refine, plan.rounds)
    walk, trip = max(found, key=lambda one: one[1].level)
    grids = [model_grid] if walk is found[0][0] else [model_grid, walk.sigmas]
    return walk, _row(walk, trip, _free(v, held_out, grids, refine), own_grid=len(grids) > 1)


def _free(v: _Batched, latents: Tensor, grids: list[Tensor], refine: int) -> dict[str, float]:
    """What the training-free methods reach, in dB, each on its best grid."""
    best = {}
    for name, k in free_methods(refine):
        method = make_method(name, Options(refine=k))
        inversions = (invert(v, latents, grid, method) for grid in grids)
        best[name] = max(float(latent_snr(reconstruct(v, one).latent, latents).mean()) for one in inversions)
    return best


def _row(walk: Walk, trip: Trip, free: dict[str, float], *, own_grid: bool) -> dict[str, Any]:
    return {
        "steps": walk.steps,
        "refine": walk.refine,
        "nfe": walk.steps * (walk.refine + 1) + 1,
        "own_grid": own_grid,
        "latent_snr_db": trip.level,
        "noise_std": float(trip.noise.std()),
        "residual": trip.residual,
        "free": free,
        "used": min(trip.level, LEVEL) >= min(max(free.values()), LEVEL),
    }
