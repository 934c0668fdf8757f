"""A walk of the core where ComfyUI expects a sampler, so that ComfyUI loads, offloads and cleans up around it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import comfy.samplers
import latent_preview
import torch

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.integrator import Callback, Progress
from ...deepinv_core.memory import in_parts, rows_of
from .latents import check_latent, require_noise
from .models import Conditioning
from .patches import require_memoryless
from .velocity import GuiderVelocity, checked_grid, conditioned_on, descending, give_back

T = TypeVar("T")

SEED = 0
"""For models that add noise of their own to a reference image: the same in both directions."""


class Prompt(NamedTuple):
    """A prompt with its guidance: positive, negative (None where cfg is 1) and cfg."""

    positive: Conditioning
    negative: Conditioning | None = None
    cfg: float = 1.0

    def away(self, name: str = "") -> Conditioning:
        """What guidance moves away from; the positive where there is none. ``name`` is for the message.

        Raises:
            DeepInvError: guidance without a negative prompt.
        """
        if self.negative is None and not math.isclose(self.cfg, 1.0):
            what = f"the {name} cfg" if name else "cfg"
            raise DeepInvError(
                f"{what} is {self.cfg:g} but no negative conditioning is connected: connect the empty prompt as "
                "negative, or set it to 1"
            )
        return self.positive if self.negative is None else self.negative


def prompted(model: Any, prompt: Prompt, name: str = "") -> Any:
    """A guider of a clone of the model under a prompt.

    Raises:
        DeepInvError: guidance without a negative prompt.
    """
    guider = comfy.samplers.CFGGuider(model.clone())
    guider.set_conds(prompt.positive, prompt.away(name))
    guider.set_cfg(prompt.cfg)
    return guider


class Call(NamedTuple):
    """What ComfyUI gives a sampler: latent and noise in model space, sigmas in the model's own terms."""

    guider: Any
    sigmas: torch.Tensor
    extra_args: dict[str, Any]
    callback: Callback | None
    noise: torch.Tensor
    latent: torch.Tensor
    mask: torch.Tensor | None

    @property
    def model_sampling(self) -> Any:
        """The model's sigma convention."""
        return self.guider.inner_model.model_sampling

    @property
    def grid(self) -> torch.Tensor:
        """The sigmas as the core's ascending grid."""
        return checked_grid(self.model_sampling, self.sigmas)

    @property
    def velocity(self) -> GuiderVelocity:
        """The guider as the core's velocity."""
        return GuiderVelocity(self.guider, self.guider, self.extra_args)

    def require_memoryless(self, velocity: GuiderVelocity, latent: torch.Tensor, rows: slice) -> int:
        """:func:`.patches.require_memoryless` for the batch's first rows, which stand for all."""
        return 0 if rows.start else require_memoryless(self.guider.model_patcher, velocity, latent, self.grid)

    def in_parts(self, walk: Callable[[Call, slice], T], join: Callable[[list[T]], T]) -> T:
        """:func:`~...deepinv_core.memory.in_parts` of a walk, which is given the call of some rows and the rows."""
        count = len(self.latent)

        def run(rows: slice) -> T:
            noise, latent, mask = self.noise[rows], self.latent[rows], rows_of(self.mask, rows)
            with conditioned_on(self.guider, rows, count):
                return walk(self._replace(noise=noise, latent=latent, mask=mask), rows)

        return in_parts(count, run, join, give_back)


class CoreSampler(comfy.samplers.Sampler):
    """ComfyUI's SAMPLER that runs a walk of the core; subclasses say which. Takes sigmas in either direction."""

    def walk(self, call: Call) -> torch.Tensor:
        """The latent that the walk ends with."""
        raise NotImplementedError

    def sample(  # noqa: D102 - ComfyUI's interface
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        require_noise(model_wrap.model_patcher)
        check_latent(model_wrap.model_patcher, latent_image)
        report = preview(callback)
        call = Call(model_wrap, descending(sigmas), extra_args, report, noise, latent_image, denoise_mask)
        return self.walk(call)


def preview(callback: Callable[..., None] | None) -> Callback | None:
    """ComfyUI's sampler callback (progress bar, preview of the denoised estimate, interrupt) as the core's."""
    if callback is None:
        return None

    def report(progress: Progress) -> None:
        callback(progress.done - 1, progress.denoised, progress.z, progress.total)

    return report


class _Once(CoreSampler):
    """Runs a function in a guider's place for a sampler and keeps what it returns beside the latent."""

    def __init__(self, run: Callable[[Call], tuple[torch.Tensor, Any]]) -> None:
        self._run = run
        self.results: list[Any] = []

    def walk(self, call: Call) -> torch.Tensor:
        latent, result = self._run(call)
        self.results.append(result)
        return latent


def run_inside(
    guider: Any,
    latent: torch.Tensor,
    sigmas: torch.Tensor,
    run: Callable[[Call], tuple[torch.Tensor, T]],
    steps: int | None = None,
) -> tuple[torch.Tensor, T]:
    """Call a function once with ComfyUI's model management around it.

    Args:
        guider: of a clone of the user's MODEL.
        latent: raw latent ``[B, C, ...]``.
        sigmas: ComfyUI's, descending.
        run: returns a latent in model space and anything else.
        steps: of its progress bar and preview; None for neither.

    Returns:
        Both, the latent raw and on the CPU.

    Raises:
        DeepInvError: it was not called. What it raises passes through.
    """
    sampler = _Once(run)
    callback = None if steps is None else latent_preview.prepare_callback(guider.model_patcher, steps)
    raw = guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, callback=callback, seed=SEED)
    if not sampler.results:
        raise DeepInvError("nothing ran: another node replaced the sampling of this model; remove its patch")
    return raw.cpu(), sampler.results[0]
