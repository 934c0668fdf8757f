"""Milliseconds a step, training speed and peak memory of full-size shapes with random weights, on one device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from ..deepinv_core.adapters.transformer import Conditioning, TransformerVelocity, base_info
from ..deepinv_core.flow import CountedVelocity
from ..deepinv_core.integrator import Step
from ..deepinv_core.schedule import uniform_grid
from ..deepinv_core.solver import Config, bind
from ..training.loop import Base, make_objective
from ..training.objectives import Bound
from ..training.recipes import Stage
from ..training.setup import recipe_for
from ..training.trainee import SolverTrainee
from ..training.workers import Workers

if TYPE_CHECKING:
    from .full_size import FullSize

REPEATS: Final = 10
WARM_UP: Final = 2
TRAINING_WALK: Final = 4
"""Steps of the walk whose updates are timed."""

DTYPE: Final = torch.bfloat16


def measure(base: FullSize, solvers: Sequence[tuple[str, str]], device: torch.device) -> list[dict[str, Any]]:
    """A row for the base, the first solver under CFG, and each solver, timed in turn; then each one's training."""
    from .full_size import solver_name, training_step

    transformer = random_weights(base.transformer(), device)
    calls: dict[str, Callable[[], object]] = {"base alone": step_call(base, transformer, None, 1)}
    networks = {one: base.solver(*one) for one in solvers}
    calls[solver_name(*solvers[0], cfg=True)] = step_call(base, transformer, networks[solvers[0]], 2)
    for one, config in networks.items():
        calls[solver_name(*one)] = step_call(base, transformer, config, 1)
    times, peaks = timed(calls, device)
    alone = statistics.median(times["base alone"])
    rows = []
    for name, values in times.items():
        middle = statistics.median(values)
        rows.append({"what": name, "ms_step": _short(middle), "ratio": _short(middle / alone), "peak_gb": peaks[name]})
    del calls
    by_name = {row["what"]: row for row in rows}
    for (recipe, preset), config in networks.items():
        row = by_name[solver_name(recipe, preset)]
        try:
            rate, peak = training_rate(base, transformer, recipe, preset, config, device)
        except torch.cuda.OutOfMemoryError:
            row["note"] = "training does not fit this device"
        else:
            row["training_steps_second"] = _short(rate)
            row["training_images_second"] = _short(rate / training_step(recipe)[2])
            row["training_peak_gb"] = peak
        clear(device)
    return rows


def random_weights(module: nn.Module, device: torch.device, dtype: torch.dtype = DTYPE) -> nn.Module:
    """A network of the meta device with small random weights on ``device``."""
    module = module.to(dtype).to_empty(device=device).requires_grad_(False).eval()
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


def step_call(base: FullSize, transformer: nn.Module, config: Config | None, batch: int) -> Callable[[], object]:
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
    calls: dict[str, Callable[[], object]], device: torch.device
) -> tuple[dict[str, list[float]], dict[str, float | None]]:
    """Milliseconds of each call, all in turn, and the most memory each held, in GB (CUDA only)."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    peaks: dict[str, float | None] = {}
    for repeat in range(WARM_UP + REPEATS):
        for name, call in calls.items():
            reset_peak(device)
            seconds = clock(call, device)
            peaks[name] = peak_gb(device)
            if repeat >= WARM_UP:
                times[name].append(seconds * 1000)
    return times, peaks


def clock(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's queue empty before and after."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def training_rate(
    base: FullSize,
    transformer: nn.Module,
    recipe_name: str,
    preset: str,
    config: Config,
    device: torch.device,
) -> tuple[float, float | None]:
    """Trajectory steps of images a second, at the recipe's batch and its own precision, and the peak in GB."""
    recipe = recipe_for(recipe_name, preset, {})
    prompt = conditioning(base, 1, device)
    bound = Bound(TransformerVelocity(transformer, prompt), prompt.context.float(), prompt.pooled.float())
    trained = Base(base_info(transformer), lambda names: bound, lambda steps, latent: uniform_grid(steps), device)
    cuda = device.type == "cuda"
    autocast = torch.autocast("cuda", DTYPE) if cuda else nullcontext()
    objective = make_objective(recipe, trained, 0, autocast, Workers())
    with torch.device(device):
        trainee = SolverTrainee(config.build(), recipe)
    clean: Tensor = torch.randn(recipe.batch, base.channels, base.side, base.side, device=device)
    stage = Stage("measured", 1, TRAINING_WALK, (TRAINING_WALK,))

    def carry(number: int) -> int:
        walk = objective.begin(stage, number, clean, tuple(map(str, range(recipe.batch))))
        while not walk.done:
            for loss in objective.losses(walk, trainee.model, bound):
                trainee.update(loss, recipe.batch, recipe.lr)
        return walk.index

    carry(0)
    reset_peak(device)
    steps = [0]

    def both() -> None:
        steps[0] = carry(1) + carry(2)

    seconds = clock(both, device)
    return steps[0] * recipe.batch / seconds, peak_gb(device)


def synchronize(device: torch.device) -> None:
    """Wait for a CUDA device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Begin to watch the most memory held."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float | None:
    """The most memory held since, in GB; None without CUDA."""
    return _short(torch.cuda.max_memory_allocated(device) / 1e9) if device.type == "cuda" else None


def clear(device: torch.device) -> None:
    """Give freed memory back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _short(value: float) -> float:
    return float(f"{value:.4g}")
