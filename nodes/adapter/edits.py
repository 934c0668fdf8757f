"""The core's edits where ComfyUI expects a sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ...deepinv_core.editing import Hold, edit, flow_edit
from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.integrator import Callback
from ...deepinv_core.inversion import Inversion, Reconstruction
from .models import Conditioning, model_info
from .velocity import GuiderVelocity, checked_grid, own_sigmas, preview
from .ways import check_latent


class Prompt(NamedTuple):
    """A prompt with its guidance: positive, negative (None where cfg is 1) and cfg."""

    positive: Conditioning
    negative: Conditioning | None
    cfg: float


class PairGuider(comfy.samplers.CFGGuider):
    """A guider with a second prompt; ``side`` says which one predicts."""

    side = "target"

    def set_prompts(self, **prompts: Prompt) -> None:
        """Prompts by side.

        Raises:
            DeepInvError: guidance without a negative prompt.
        """
        self.guidance = {name: prompt.cfg for name, prompt in prompts.items()}
        for name, prompt in prompts.items():
            if prompt.negative is None and not math.isclose(prompt.cfg, 1.0):
                raise DeepInvError(
                    f"the {name} cfg is {prompt.cfg} but no negative conditioning is connected: "
                    "connect one, or set cfg to 1"
                )
            negative = prompt.positive if prompt.negative is None else prompt.negative
            self.inner_set_conds({f"{name} positive": prompt.positive, f"{name} negative": negative})

    def predict_noise(  # noqa: D102 - ComfyUI's interface
        self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict[str, Any] | None = None, seed: Any = None
    ) -> torch.Tensor:
        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            self.conds[f"{self.side} negative"],
            self.conds[f"{self.side} positive"],
            self.guidance[self.side],
            model_options=model_options or {},
            seed=seed,
        )

    def velocity(self, side: str, extra_args: dict[str, Any]) -> GuiderVelocity:
        """The velocity under a side's prompt, while this guider runs."""

        def denoise(x: torch.Tensor, sigma: torch.Tensor, **arguments: Any) -> torch.Tensor:
            self.side = side
            return self(x, sigma, **arguments)

        return GuiderVelocity(self, denoise, extra_args, cfg=self.guidance[side])


Walk = Callable[[PairGuider, dict[str, Any], torch.Tensor, Callback | None], Reconstruction]
"""``(guider, extra_args, latent in model space, callback) -> result``: a function of the core, bound."""


class WalkSampler(comfy.samplers.Sampler):
    """Runs a walk of the core inside a guider; ``nfe`` is what it cost."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self.nfe = 0

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
        result = self._walk(model_wrap, extra_args, latent_image, preview(callback))
        self.nfe = result.nfe
        return result.latent


def run_walk(
    model: Any, latent: torch.Tensor, sigmas: torch.Tensor, prompts: dict[str, Prompt], walk: Walk, steps: int
) -> tuple[torch.Tensor, int]:
    """Run a walk with ComfyUI's model management around it: the raw latent it ends with, and its NFE."""
    guider = PairGuider(model.clone())
    guider.set_prompts(**prompts)
    sampler = WalkSampler(walk)
    result = guider.sample(
        torch.zeros_like(latent),
        latent,
        sampler,
        sigmas,
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
    )
    return result.cpu(), sampler.nfe


def run_edit(model: Any, inversion: Inversion, target: Prompt, hold: Hold) -> tuple[torch.Tensor, int]:
    """Sample an inversion back under a prompt: the raw latent, and the NFE.

    Raises:
        DeepInvError: an inversion of another model, or what :func:`..deepinv_core.editing.edit` refuses.
    """
    require_same_model(model, inversion)

    def walk(
        guider: PairGuider, extra_args: dict[str, Any], latent: torch.Tensor, callback: Callback | None
    ) -> Reconstruction:
        here = inversion.to(latent.device)
        return edit(guider.velocity("target", extra_args), here, hold, callback=callback)

    empty, sigmas = torch.zeros_like(inversion.noise), own_sigmas(model, inversion.sigmas)
    steps = max(1, math.ceil(hold.strength * inversion.steps))
    return run_walk(model, empty, sigmas, {"target": target}, walk, steps)


def run_flow_edit(
    model: Any,
    latent: torch.Tensor,
    source: Prompt,
    target: Prompt,
    sigmas: torch.Tensor,
    *,
    skip: float,
    refine: int,
    seed: int,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, int]:
    """FlowEdit on a raw latent.

    Raises:
        DeepInvError: a latent or sigmas that don't suit the model, or what :func:`..deepinv_core.editing.flow_edit`
            refuses.
    """
    check_latent(model, latent)
    grid = checked_grid(model.get_model_object("model_sampling"), sigmas)

    def walk(
        guider: PairGuider, extra_args: dict[str, Any], clean: torch.Tensor, callback: Callback | None
    ) -> Reconstruction:
        return flow_edit(
            guider.velocity("source", extra_args),
            guider.velocity("target", extra_args),
            clean,
            grid,
            skip=skip,
            refine=refine,
            seed=seed,
            mask=mask,
            callback=callback,
        )

    count = max(1, round((1 - skip) * (len(grid) - 1)))
    return run_walk(model, latent, sigmas, {"source": source, "target": target}, walk, count)


def require_same_model(model: Any, inversion: Inversion) -> None:
    """Refuse an inversion that was made with another architecture.

    Raises:
        DeepInvError: the fingerprints differ.
    """
    own = model_info(model).fingerprint
    if inversion.model and inversion.model != own:
        raise DeepInvError(
            f"the inversion was made with another model (fingerprint {inversion.model}, this one has {own}): "
            "connect the model it was made with"
        )
