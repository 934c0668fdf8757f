"""A MODEL as what a solver is fitted to: it runs inside a sampler, so that ComfyUI loads, offloads and cleans up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
import torch

from ...deepinv_core.solver.fit_solver import Fit, FitBase, FitEvent, FitPlan, estimate, fit_solver, seconds_each
from ...deepinv_core.solver.fit_state import FitState
from ...deepinv_core.solver.kind import Under, mark
from .latents import as_taken
from .models import Conditioning, model_info
from .progress import tell
from .sampling import Call, Prompt, prompted, run_inside
from .velocity import checked_grid, conditioned_on, schedule

FLUX_GUIDANCE = 3.5
"""What ComfyUI takes where a conditioning has none."""


def under(model: Any, conditioning: Conditioning, cfg: float) -> Under:
    """What an inversion by this MODEL under this prompt is made under."""
    tokens, extras = conditioning[0]
    config = model.model.model_config.unet_config
    guided = config.get("image_model") == "flux" and config.get("guidance_embed")
    return Under(cfg, extras.get("guidance", FLUX_GUIDANCE if guided else None), mark(tokens))


def latent_shape(model: Any, width: int, height: int, latent: dict[str, Any] | None) -> tuple[int, ...]:
    """Of a latent as the model takes it, ``(C, ...)``: of these pixels, or that of the given latent.

    Raises:
        DeepInvError: a latent that the model doesn't take.
    """
    if latent is None:
        taken = model.model.latent_format
        factor = getattr(taken, "spacial_downscale_ratio", 8)
        samples = torch.zeros(1, taken.latent_channels, height // factor, width // factor)
    else:
        samples = latent["samples"]
    return tuple(as_taken(model, samples).shape[1:])


class _Rows:
    """A guider in mid-run as a velocity of as many latents as it was given, or fewer."""

    def __init__(self, call: Call) -> None:
        self._guider, self._velocity, self._most = call.guider, call.velocity, len(call.latent)

    @property
    def sigma_min(self) -> float:
        return self._velocity.sigma_min

    @property
    def cost(self) -> int:
        return self._velocity.cost

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        with conditioned_on(self._guider, slice(0, len(z)), self._most):
            return self._velocity(z, max(sigma, self.sigma_min))


class FitProgress:
    """A fit's progress on its node: the bar, a line of text, the samples as they appear; and ComfyUI's interrupt."""

    def __init__(self, model: Any, total: int) -> None:
        self._bar, self._device = comfy.utils.ProgressBar(total), model.load_device
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self._sent = 0.0

    def __call__(self, event: FitEvent) -> None:
        """Show an event."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        preview = None
        if event.denoised is not None and self._previewer is not None:
            shown = event.denoised[:1].to(self._device)
            preview = self._previewer.decode_latent_to_preview_image("JPEG", shown)
        self._bar.update_absolute(event.done, event.total, preview)
        if event.done == event.total or time.monotonic() - self._sent > 1:
            self._sent = time.monotonic()
            minutes, seconds = divmod(int(event.left), 60)
            left = f", {minutes} min {seconds:02} s left" if event.left else ""
            tell(f"{event.doing}: {event.done / event.total:.0%}{left}")


def run_fit(model: Any, prompt: Prompt, plan: FitPlan, rows: int, state: FitState, say: Callable[[str], None]) -> Fit:
    """Fit with ComfyUI's model management around it.

    Args:
        model: the user's MODEL; not changed.
        prompt: what inversions will be made under.
        plan: what to fit.
        rows: how many latents at once.
        state: what was done before.
        say: is given the estimate before it begins.

    Raises:
        DeepInvError: a shape, a model or a prompt that doesn't fit. What :func:`~...fit_solver.fit_solver` raises.
    """
    now = under(model, prompt.positive, prompt.cfg)
    known = {"cfg": now.cfg, "guidance": now.guidance, "mark": list(now.prompt)}
    sampling = model.get_model_object("model_sampling")

    def grid(steps: int) -> torch.Tensor:
        return checked_grid(sampling, schedule(model, "simple", steps))

    def run(call: Call) -> tuple[torch.Tensor, Fit]:
        velocity = _Rows(call)
        call.require_memoryless(call.velocity, call.latent, slice(0, len(call.latent)))
        base = FitBase(velocity, grid, model_info(model), known, call.latent.device, len(call.latent))
        say(estimate(plan, seconds_each(base, plan)))
        return call.latent, fit_solver(base, plan, state, FitProgress(model, plan.evaluations()))

    blank = torch.zeros((min(rows, plan.samples + plan.held_out), *plan.shape))
    return run_inside(prompted(model, prompt), blank, schedule(model, "simple", 4), run)[1]
