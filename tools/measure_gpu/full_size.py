"""Steps, fits and trainings of full-size shapes with random weights: seconds and memory."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from ...benchmarks.full_size import FullSize, training_step
from ...deepinv_core.flow import CountedVelocity, Velocity
from ...deepinv_core.integrator import Step
from ...deepinv_core.models.transformer import Conditioning, TransformerVelocity, base_info
from ...deepinv_core.schedule import uniform_grid
from ...deepinv_core.solver import Solver, bind
from ...deepinv_core.solver.fit_solver import FitBase, FitPlan, fit_solver, seconds_each
from ...deepinv_core.solver.fit_state import FitState
from ...deepinv_core.solver.fitted import HISTORY, FittedTable, Walk
from ...training.base_model import Base, Conditioned
from ...training.recipes import Stage, make_recipe
from ...training.trainee import SolverTrainee
from ...training.workers import Workers
from .run import DTYPE, Run, random_weights, weights_gb

REPEATS, WARM_UP = 10, 2
LEAST: Final = 3
"""Repeats that are made however short the time is."""

STEPS: Final = 10
"""Of the walk that one step is timed of."""

SOLVERS: Final = {
    "fitted": None,
    "predictor, compact": ("fast", "compact", 1),
    "corrector, released size": ("paper", "paper", 1),
    "released recipe (the same, CFG)": ("paper", "paper", 2),
}
"""Recipe, preset and batch: CFG doubles it. None is the fitted solver, which has no network."""

FITS: Final = (4, 8, 16)
"""Step counts N of the fits, at K = 0; the first is measured."""

UPDATES: Final = 10_000
"""Whose hours are projected."""


def conditioning(run: Run, base: FullSize, batch: int = 1) -> Conditioning:
    """A random prompt, a row a sample."""
    shapes = (batch, base.tokens, base.config["joint_attention_dim"]), (batch, base.config["pooled_projection_dim"])
    context, pooled = (torch.randn(shape, device=run.device, dtype=DTYPE) for shape in shapes)
    return Conditioning(context, pooled)


def latents(run: Run, base: FullSize, batch: int = 1) -> Tensor:
    """Random ones."""
    return torch.randn(batch, base.channels, base.side, base.side, device=run.device)


def plain_walk() -> Walk:
    """A fitted walk of K = 0 whose coefficients are extrapolated Uni-Inv's: what they are costs nothing."""
    guess, result = torch.zeros(STEPS, HISTORY + 2), torch.zeros(STEPS, 1, 1 + HISTORY + 2)
    guess[:, 0], guess[1:, 0], guess[1:, 1] = 1, 2, -1
    return Walk(uniform_grid(STEPS), guess, result)


def solver(run: Run, base: FullSize, name: str) -> tuple[Solver, int]:
    """One of :data:`SOLVERS` under a random prompt, and the batch it is run at."""
    if (found := SOLVERS[name]) is None:
        return bind(FittedTable.of([plain_walk()], base.channels), None, None), 1
    recipe, preset, batch = found
    with torch.device("meta"):
        network: Any = base.solver(recipe, "tiny" if run.small else preset).build()
    prompt = conditioning(run, base, batch)
    return bind(random_weights(network, run.device), prompt.context, prompt.pooled), batch  # type: ignore[arg-type]


def step_call(run: Run, base: FullSize, bound: Solver, batch: int) -> Callable[[], object]:
    """A step in the middle of a walk: one base evaluation, and what the solver adds."""
    velocity = CountedVelocity(TransformerVelocity(run.transformer(base), conditioning(run, base, batch)))
    z, rule, grid = latents(run, base, batch), bound.rule(0), uniform_grid(STEPS).tolist()
    state = rule.start(z, grid, {})
    for i in range(2):
        state = rule.step(velocity, z, Step(i, STEPS, grid[i], grid[i + 1]), state).state
    return lambda: rule.step(velocity, z, Step(2, STEPS, grid[2], grid[3]), state)


@torch.no_grad()
def steps(run: Run, base: FullSize) -> None:
    """A row for one evaluation of the base and for each solver's step; all in turn, the ratio taken within a turn."""
    transformer = run.transformer(base)
    velocity, z = TransformerVelocity(transformer, conditioning(run, base)), latents(run, base)
    calls: dict[str, Callable[[], object]] = {"base alone": lambda: velocity(z, 0.6)}
    weights = {"base alone": weights_gb(transformer)}
    for name in SOLVERS:
        bound, batch = solver(run, base, name)
        calls[name] = step_call(run, base, bound, batch)
        weights[name] = weights["base alone"] + (weights_gb(bound.network) if SOLVERS[name] else 0.0)  # type: ignore[arg-type]
    times: dict[str, list[float]] = {name: [] for name in calls}
    working: dict[str, float | None] = {}
    for turn in range(WARM_UP + REPEATS):
        if turn >= WARM_UP + LEAST and run.left < 0:
            break
        for name, call in calls.items():
            seconds, working[name] = run.clock(call)
            times[name].append(seconds)
    alone = times["base alone"][WARM_UP:]
    for name in calls:
        mine = times[name][WARM_UP:]
        ratios = [a / b for a, b in zip(mine, alone, strict=True)]
        row: dict[str, Any] = {"base": base.name, "what": name, "ms_step": 1000 * statistics.median(mine)}
        row |= {"ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}
        took = working[name]
        run.put("steps", {**row, "peak_gb": None if took is None else weights[name] + took, "repeats": len(mine)})


class Enough(Exception):
    """The time for a fit is over."""


class Asked:
    """A velocity that counts what it is asked, and ends a fit in time."""

    def __init__(self, velocity: Velocity, run: Run) -> None:
        self._velocity, self._run = velocity, run
        self.sigma_min, self.cost, self.count = velocity.sigma_min, velocity.cost, 0

    def __call__(self, z: Tensor, sigma: float) -> Tensor:
        """Evaluate."""
        if self.count and self._run.left < 0:
            raise Enough
        self.count += len(z)
        return self._velocity(z, sigma)


def fit(run: Run, base: FullSize) -> None:
    """A row of a fit at N = 4, as far as the time goes, then one for each N: seconds from what an evaluation took."""
    transformer = run.transformer(base)
    velocity = Asked(TransformerVelocity(transformer, conditioning(run, base)), run)
    model = FitBase(velocity, uniform_grid, base_info(transformer), device=run.device)
    plan = FitPlan(((FITS[0], 0),), tuple(latents(run, base).shape[1:]), rounds=0)
    searched = replace(plan, rounds=FitPlan.rounds)
    each = seconds_each(model, plan)  # warms up
    if not run.small and each * searched.evaluations() < run.left:
        plan = searched
    velocity.count = 0

    def fitted() -> None:
        try:
            fit_solver(model, plan, FitState())
            whole.append(True)
        except Enough:
            pass

    whole: list[bool] = []
    seconds, _ = run.clock(fitted)
    row = {"base": base.name, "steps": FITS[0], "search": bool(plan.rounds), "seconds": seconds}
    spent = {"evaluations": velocity.count, "at_most": plan.evaluations(), "ms_evaluation": 1000 * each}
    run.put("fit", {**row, **spent, "whole": bool(whole)})
    for n in FITS:
        projected: dict[str, Any] = {"base": base.name, "steps": n}
        for kind, rounds in (("", 0), ("search_", FitPlan.rounds)):
            count = replace(plan, walks=((n, 0),), rounds=rounds).evaluations()
            projected |= {f"{kind}evaluations": count, f"{kind}minutes": count * seconds / velocity.count / 60}
        run.put("fit projected", projected)


def training(run: Run, base: FullSize) -> None:
    """A row of the recipe ``fast`` at its batch: updates along a walk of average length, and the hours of many."""
    recipe = make_recipe("fast", "tiny" if run.small else "compact", **({"batch": 2} if run.small else {}))
    transformer, prompt = run.transformer(base), conditioning(run, base)
    conditioned = Conditioned(TransformerVelocity(transformer, prompt), prompt.context.float(), prompt.pooled.float())
    trained = Base(base_info(transformer), lambda names: conditioned, lambda n, latent: uniform_grid(n), run.device)
    objective = recipe.objective(trained, 0, Workers())
    with torch.device(run.device):
        trainee = SolverTrainee(base.solver("fast", "tiny" if run.small else "compact").build(), recipe)
    clean, names = latents(run, base, recipe.batch), tuple(map(str, range(recipe.batch)))
    length = round(training_step("fast")[2])
    made = 0

    def carry(most: int) -> int:
        stage = Stage("measured", 1, most, (most,))
        walk = next(w for n in itertools.count() if (w := objective.begin(stage, n, clean, names)).last == most)
        while not walk.done and (run.left > 0 or walk.index < 2):
            trainee.step(trainee.accumulate(objective.losses(walk, trainee.network)), recipe.lr)
            trainee.follow()
            objective.go(walk)
            run.wait()  # or the time left would be that of a queue not begun
        return walk.index

    def measured() -> None:
        nonlocal made
        made = carry(length)

    carry(1)
    before = run.held()
    seconds, took = run.clock(measured)
    row = {"base": base.name, "batch": recipe.batch, "updates": made, "updates_second": made / seconds}
    row |= {"training_steps_second": made * recipe.batch / seconds, "hours": UPDATES * seconds / made / 3600}
    others = sum(weights_gb(one) for one in run.others(base))
    row["peak_gb"] = None if took is None else before / 1e9 + took - others
    run.put("training", row)
