"""The core's edits where ComfyUI expects a sampler."""

from __future__ import annotations

import math
from typing import Any

import comfy.samplers
import torch
from comfy_execution.graph_utils import ExecutionBlocker

from ...deepinv_core.editing import EditOptions, edit, flow_edit, flow_steps, plan
from ...deepinv_core.inversion import Inversion, Reconstruction
from ...deepinv_core.memory import rows_of
from ...deepinv_core.verdict import Change, change
from .latents import check_latent
from .samplers import require_same_model
from .sampling import Call, Prompt, prompted, run_inside
from .velocity import GuiderVelocity, checked_grid, own_sigmas

SIDE = ("positive", "negative")


class PairGuider(comfy.samplers.CFGGuider):
    """A guider with two prompts, each called a side."""

    conds: dict[str, Any]

    def set_prompts(self, **prompts: Prompt) -> None:
        """Prompts by side.

        Raises:
            DeepInvError: guidance without a negative prompt.
        """
        self._cfg = {side: prompt.cfg for side, prompt in prompts.items()}
        for side, prompt in prompts.items():
            self.inner_set_conds({f"{side} positive": prompt.positive, f"{side} negative": prompt.away(side)})

    def inner_sample(
        self,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        device: Any,
        sampler: Any,
        sigmas: torch.Tensor,
        denoise_mask: torch.Tensor | None,
        callback: Any,
        disable_pbar: bool,
        seed: int | None,
        **more: Any,
    ) -> torch.Tensor:
        """As ComfyUI's, which gives a negative prompt what its positive one brings for it, by these names alone."""
        photo = self.inner_model.process_latent_in(latent_image) if latent_image.any() else latent_image
        around = {"latent_image": photo, "denoise_mask": denoise_mask, "seed": seed, **more}
        self.fitted: dict[str, Any] = {}
        for side in self._cfg:
            conds = {name: self.conds[f"{side} {name}"] for name in SIDE}
            ready = comfy.samplers.process_conds(self.inner_model, noise, conds, device, **around)
            self.fitted |= {f"{side} {name}": ready[name] for name in SIDE}
        self.conds = {}
        rest = (sampler, sigmas, denoise_mask, callback, disable_pbar, seed)
        result: torch.Tensor = super().inner_sample(noise, latent_image, device, *rest, **more)
        return result

    def velocity(self, side: str, extra_args: dict[str, Any]) -> GuiderVelocity:
        """The velocity under a side's prompt, while this guider runs."""

        def denoise(x: torch.Tensor, sigma: torch.Tensor, **arguments: Any) -> torch.Tensor:
            self.conds |= {name: self.conds[f"{side} {name}"] for name in SIDE}
            self.set_cfg(self._cfg[side])
            return self(x, sigma, **arguments)

        return GuiderVelocity(self, denoise, extra_args, cfg=self._cfg[side])


def run_edit(
    model: Any, inversion: Inversion, target: Prompt, hold: EditOptions, *, ask: bool = True
) -> tuple[torch.Tensor, int]:
    """Sample an inversion back under a prompt: the raw latent, and the NFE.

    Args:
        model: MODEL the inversion was made with.
        inversion: of the photo.
        target: the prompt.
        hold: what ties the edit to the photo.
        ask: whether a patched model is asked if it remembers; not where that was done.

    Raises:
        DeepInvError: an inversion of another model, or what :func:`..deepinv_core.editing.edit` refuses.
    """
    require_same_model(model, inversion)
    plan(inversion, hold)

    def part(call: Call, rows: slice) -> Reconstruction:
        own, velocity = inversion.rows(rows).to(call.latent.device), call.velocity
        asked = call.require_memoryless(velocity, call.latent, rows) if ask else 0
        result = edit(velocity, own, hold.rows(rows), callback=call.callback)
        return result._replace(nfe=result.nfe + asked)

    sigmas = own_sigmas(model, inversion.sigmas)
    steps = max(1, math.ceil(hold.strength * inversion.steps))
    guider = prompted(model, target, "target")
    return run_inside(
        guider, _photo(model, inversion), sigmas, lambda call: call.in_parts(part, Reconstruction.join), steps
    )


def changed(model: Any, latent: torch.Tensor, photo: torch.Tensor, mask: torch.Tensor | None) -> Change:
    """By how much a raw latent differs from the photo's, raw too: :func:`~...deepinv_core.verdict.change`."""
    inside = model.model.process_latent_in
    return change(inside(latent.float().cpu()), inside(photo.float().cpu()), mask)


def kept_photo(model: Any, inversion: Inversion) -> torch.Tensor | None:
    """The inverted latent, raw, where the inversion kept it."""
    trajectory = inversion.carried.get("trajectory")
    clean = inversion.carried.get("latent_clean") if trajectory is None else trajectory[0]
    return None if clean is None else model.model.process_latent_out(clean)


def _photo(model: Any, inversion: Inversion) -> torch.Tensor:
    """The inverted latent, raw, which some models read beside the noise; an empty one where it was not kept."""
    photo = kept_photo(model, inversion)
    return torch.zeros_like(inversion.noise) if photo is None else photo


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
    """FlowEdit on a raw latent as :func:`.latents.as_taken` gives it.

    Raises:
        DeepInvError: a latent or sigmas that don't suit the model, or what :func:`..deepinv_core.editing.flow_edit`
            refuses.
    """
    check_latent(model, latent)
    grid = checked_grid(model.get_model_object("model_sampling"), sigmas)
    count = flow_steps(len(grid) - 1, skip, refine)
    guider = PairGuider(model.clone())
    guider.set_prompts(source=source, target=target)

    def part(call: Call, rows: slice) -> Reconstruction:
        towards = guider.velocity("target", call.extra_args)
        asked = call.require_memoryless(towards, call.latent, rows)
        result = flow_edit(
            guider.velocity("source", call.extra_args),
            towards,
            call.latent,
            grid,
            skip=skip,
            refine=refine,
            seed=seed,
            mask=rows_of(mask, rows),
            callback=call.callback,
        )
        return result._replace(nfe=result.nfe + asked)

    def run(call: Call) -> Reconstruction:
        guider.conds = dict(guider.fitted)
        return call.in_parts(part, Reconstruction.join)

    return run_inside(guider, latent, sigmas, run, count)


def blocked() -> Any:
    """An output that was not asked for: what is connected to it does not run."""
    return ExecutionBlocker(None)
