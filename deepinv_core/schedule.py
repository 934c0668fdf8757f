"""Grids of sigma: ascending float64 ``[N + 1]`` from 0 (image) to at most 1 (noise).

The shifts are those of ``diffusers.FlowMatchEulerDiscreteScheduler``; only the checks are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .errors import DeepInvError


def uniform_grid(steps: int) -> torch.Tensor:
    """``sigma_i = i / N``."""
    return torch.linspace(0, 1, _checked_steps(steps) + 1, dtype=torch.float64)


def shifted_grid(steps: int, shift: float = 3.0) -> torch.Tensor:
    """The uniform grid under ``sigma <- shift*sigma / (1 + (shift - 1)*sigma)``; SD3 uses 3 (arXiv 2403.03206)."""
    if not (math.isfinite(shift) and shift > 0):
        raise DeepInvError(f"shift is {shift}: a positive number is needed (1 = uniform, SD3 uses 3)")
    return _from_diffusers(steps, shift=shift)


def resolution_grid(steps: int, image_tokens: int) -> torch.Tensor:
    """FLUX.1's grid: the shift ``exp(mu)`` grows linearly in mu with the number of 2x2 latent patches.

    ``mu`` is 0.5 at 256 tokens (256 px) and 1.15 at 4096 (1024 px), as the FLUX.1 release defines it.
    """
    mu = 0.5 + (1.15 - 0.5) * (image_tokens - 256) / (4096 - 256)
    return _from_diffusers(steps, use_dynamic_shifting=True, mu=mu)


def custom_grid(sigmas: Sequence[float] | torch.Tensor, *, sigma_max: float = 1.0) -> torch.Tensor:
    """Check a given grid and return it ascending; a descending one (ComfyUI's SIGMAS) is turned around.

    Raises:
        DeepInvError: fewer than two values, NaN, one outside [0, ``sigma_max``], or not strictly monotone (the first
            place is named).
    """
    grid = torch.as_tensor(sigmas, dtype=torch.float64).flatten().cpu()
    if grid.numel() < 2:
        raise DeepInvError(f"the sigma grid has {grid.numel()} value(s): at least two are needed, one step")
    if not bool(torch.isfinite(grid).all()):
        raise DeepInvError("the sigma grid contains NaN or infinity: give finite values between 0 and 1")
    if grid[0] > grid[-1]:
        grid = grid.flip(0)
    if grid[0] < 0 or grid[-1] > sigma_max + 1e-6:
        raise DeepInvError(
            f"the sigma grid runs from {grid[0]:g} to {grid[-1]:g}: this model takes values from 0 to {sigma_max:g}"
        )
    flat = (grid.diff() <= 0).nonzero()
    if len(flat):
        i = int(flat[0])
        raise DeepInvError(
            f"the sigma grid is not strictly monotone: {grid[i]:g} is followed by {grid[i + 1]:g}; "
            "remove repeated values"
        )
    return grid


def _checked_steps(steps: int) -> int:
    if steps < 1:
        raise DeepInvError(f"steps is {steps}: at least 1 is needed; 16 is a good start")
    return steps


def _from_diffusers(steps: int, *, mu: float | None = None, **config: float | bool) -> torch.Tensor:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    descending = uniform_grid(steps)[1:].flip(0).numpy()  # an array: diffusers 0.31 computes with it as it is
    scheduler.set_timesteps(sigmas=descending, mu=mu)
    return scheduler.sigmas.double().flip(0)
