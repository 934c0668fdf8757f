"""Patches on a MODEL that remember what they were asked: an inversion asks in another order than sampling does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import torch

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.flow import relative_error
from ...deepinv_core.memory import out_of_memory
from .velocity import COUNTER, GuiderVelocity

QUESTIONS = 4
NEAR = 0.94
"""Share of a sigma at which the neighbouring question is asked: near enough for a cache to take it for the same."""

TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Relative difference that two answers to one question may have, by the network's type; what kernels differ by."""

EXACTLY = 1e-3
"""The same for other types."""

UNCHANGED = ("model_sampling",)
"""Objects of a model that core's own nodes replace without touching its answers to a sigma."""


def patch_names(patcher: Any) -> list[str]:
    """What is patched into a MODEL besides weights (LoRAs, types) and its schedule, by name."""
    options = patcher.model_options
    inside = options.get("transformer_options", {})
    functions = [value for key, value in options.items() if key != "transformer_options"]
    functions += [inside.get(key, {}) for key in ("patches", "patches_replace")]
    wrapped = [by_key for kind in (patcher.wrappers, inside.get("wrappers", {})) for by_key in kind.values()]
    keys = {key for by_key in wrapped for key in by_key} | {*patcher.injections, *patcher.object_patches}
    named = {str(key) for key in keys - {None, COUNTER, *UNCHANGED}}
    return sorted(named | {_name(function) for group in functions for function in _callables(group)})


def _callables(group: Any) -> Iterator[Callable[..., Any]]:
    if isinstance(group, dict):
        group = list(group.values())
    if isinstance(group, (list, tuple)):
        for one in group:
            yield from _callables(one)
    elif callable(group):
        yield group


def _name(function: Callable[..., Any]) -> str:
    """The class or function that made it: a node's name, for most."""
    return str(getattr(function, "__qualname__", type(function).__name__)).partition(".")[0]


def require_memoryless(patcher: Any, velocity: GuiderVelocity, latent: torch.Tensor, grid: torch.Tensor) -> int:
    """Ask a patched model the same question twice, with others between: its answers have to be the same.

    In the middle of the walk, at its noisy end (which a cache can't answer from memory), near the middle, and in the
    middle again (which it would answer from the neighbour's).

    Args:
        patcher: of the MODEL; without patches nothing is asked.
        velocity: the guider's.
        latent: clean latent of the walk.
        grid: its sigmas, ascending.

    Returns:
        The base evaluations spent.

    Raises:
        DeepInvError: the answers differ, or a patch fails.
    """
    names = patch_names(patcher)
    if not names:
        return 0
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0)).to(latent)
    middle, end = float(grid[len(grid) // 2]), float(grid[-1])
    answers, spent = [], 0
    for sigma in (middle, end, NEAR * middle, middle):
        asked = max(sigma, velocity.sigma_min)
        try:
            answers.append(velocity((1 - asked) * latent + asked * noise, asked).float())
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:
            if isinstance(error, DeepInvError) or out_of_memory(error):
                raise
            raise _refusal(names, f"fails when it is asked out of order ({type(error).__name__})") from error
        spent += velocity.cost
    first, again = answers[0], answers[-1]
    network = patcher.model
    allowed = TOLERANCE.get(network.manual_cast_dtype or network.get_dtype(), EXACTLY)
    apart = float(relative_error(again, first).max())
    if apart > allowed:  # NaN is no memory: the walk says at which step it comes
        raise _refusal(names, f"answers the same question otherwise after another one, by {apart:.1%}")
    return spent


def _refusal(names: list[str], what: str) -> DeepInvError:
    which = f"the patch {names[0]} on the model" if len(names) == 1 else f"a patch on the model ({', '.join(names)})"
    return DeepInvError(
        f"{which} {what}: it remembers its last steps, as caches that skip some do, and no photo comes back so. Bypass "
        "its node, here and on the way back"
    )
