"""Milliseconds a step, training speed and peak memory of full-size shapes with random weights, on one device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from ..deepinv_core.flow import CountedVelocity
from ..deepinv_core.integrator import Step
from ..deepinv_core.models.transformer import Conditioning, TransformerVelocity, base_info
from ..deepinv_core.schedule import uniform_grid
from ..deepinv_core.solver import Config, bind
from ..training.base_model import Base, Conditioned
from ..training.recipes import Stage, make_recipe
from ..training.trainee import SolverTrainee
from ..training.workers import Workers

if TYPE_CHECKING:
    from ..benchmarks.full_size import FullSize

REPEATS: Final = 10
WARM_UP: Final = 2
TRAINING_WALK: Final = 4
"""Steps of the walk whose updates are timed."""

DTYPE: Final = torch.bfloat16


def measure(
    base: FullSize, solvers: Mapping[str, tuple[str, str]], guided: str, device: torch.device
) -> list[dict[str, Any]]:
    """A row for the base, the first solver under CFG, and each solver, timed in turn; then each one's training.

    Args:
        base: the shape.
        solvers: recipe and preset, by name.
        guided: name of the first one's row under CFG.
        device: where it runs.
    """
    transformer = random_weights(base.transformer(), device)
    configs = {name: base.solver(*one) for name, one in solvers.items()}
    first = next(iter(configs.values()))
    calls = {"base alone": step_call(base, transformer, None), guided: step_call(base, transformer, first, batch=2)}
    calls |= {name: step_call(base, transformer, config) for name, config in configs.items()}
    times, peaks = timed(calls, device)
    alone = times["base alone"]
    rows = {
        name: {"what": name, "ms_step": ms, "ratio": ms / alone, "peak_gb": peaks[name]} for name, ms in times.items()
    }
    del calls
    for name, (recipe, preset) in solvers.items():
        try:
            rate, peak = training_rate(base, transformer, recipe, preset, configs[name], device)
        except torch.cuda.OutOfMemoryError:
            rows[name]["note"] = "training does not fit this device"
        else:
            rows[name] |= {"training_steps_second": rate, "training_peak_gb": peak}
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return list(rows.values())


def random_weights(module: nn.Module, device: torch.device) -> nn.Module:
    """A network of the meta device with small random weights on ``device``, bf16."""
    module = module.to(DTYPE).to_empty(device=device).requires_grad_(False).eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(std=0.02)
    return module


def conditioning(base: FullSize, batch: int, device: torch.device) -> Conditioning:
    """A random prompt, a row a sample."""
    shapes = (batch, base.tokens, base.config["joint_attention_dim"]), (batch, base.config["pooled_projection_dim"])
    context, pooled = (torch.randn(shape, device=device, dtype=DTYPE) for shape in shapes)
    return Conditioning(context, pooled)


def step_call(base: FullSize, transformer: nn.Module, config: Config | None, batch: int = 1) -> Callable[[], object]:
    """One inversion step: a base evaluation, and what a solver adds."""
    device = next(transformer.parameters()).device
    prompt = conditioning(base, batch, device)
    velocity = CountedVelocity(TransformerVelocity(transformer, prompt))
    z = torch.randn(batch, base.channels, base.side, base.side, device=device)
    if config is None:
        return lambda: velocity(z, 0.6)
    with torch.device("meta"):
        network: Any = config.build()
    solver = bind(random_weights(network, device), prompt.context, prompt.pooled)  # type: ignore[arg-type]
    rule, grid = solver.rule(0), [i / 10 for i in range(11)]
    state = rule.start(z, grid, {})
    for i in range(2):  # it knows two velocities then, as in most steps
        state = rule.step(velocity, z, Step(i, 10, grid[i], grid[i + 1]), state).state
    return lambda: rule.step(velocity, z, Step(2, 10, grid[2], grid[3]), state)


@torch.no_grad()
def timed(
    calls: Mapping[str, Callable[[], object]], device: torch.device
) -> tuple[dict[str, float], dict[str, float | None]]:
    """Median milliseconds of each call, all in turn, and the most memory each held, in GB (CUDA only)."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    peaks: dict[str, float | None] = {}
    for _ in range(WARM_UP + REPEATS):
        for name, call in calls.items():
            seconds, peaks[name] = clock(call, device)
            times[name].append(seconds * 1000)
    return {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}, peaks


def clock(call: Callable[[], object], device: torch.device) -> tuple[float, float | None]:
    """Seconds of one call, the device's queue empty before and after, and the most memory held, in GB (CUDA only)."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, torch.cuda.max_memory_allocated(device) / 1e9 if cuda else None


def training_rate(
    base: FullSize,
    transformer: nn.Module,
    recipe_name: str,
    preset: str,
    config: Config,
    device: torch.device,
) -> tuple[float, float | None]:
    """Trajectory steps of images a second, at the recipe's batch and its own precision, and the peak in GB."""
    recipe = make_recipe(recipe_name, preset)
    prompt = conditioning(base, 1, device)
    conditioned = Conditioned(TransformerVelocity(transformer, prompt), prompt.context.float(), prompt.pooled.float())
    trained = Base(base_info(transformer), lambda names: conditioned, lambda steps, latent: uniform_grid(steps), device)
    objective = recipe.objective(trained, 0, Workers())
    with torch.device(device):
        trainee = SolverTrainee(config.build(), recipe)
    clean: Tensor = torch.randn(recipe.batch, base.channels, base.side, base.side, device=device)
    stage = Stage("measured", 1, TRAINING_WALK, (TRAINING_WALK,))

    def carry(number: int) -> int:
        walk = objective.begin(stage, number, clean, tuple(map(str, range(recipe.batch))))
        while not walk.done:
            for _ in range(objective.updates(walk)):
                trainee.step(trainee.accumulate(objective.losses(walk, trainee.network)), recipe.lr)
                trainee.follow()
            objective.go(walk)
        return walk.index

    carry(0)
    steps: list[int] = []
    seconds, peak = clock(lambda: steps.extend([carry(1), carry(2)]), device)
    return sum(steps) * recipe.batch / seconds, peak
