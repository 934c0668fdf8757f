"""The core's two directions as ComfyUI's samplers, and the inverted noise as ComfyUI's NOISE."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.integrator import Rule, integrate
from ...deepinv_core.inversion import Inversion, invert, with_residual
from ...deepinv_core.methods import Method, way_back
from .models import Conditioning, SolverHandle, model_info
from .velocity import GuiderVelocity, checked_grid, is_flow, preview


class InversionSampler(comfy.samplers.Sampler):
    """Runs the core's inversion where ComfyUI expects a sampler, so that it loads, offloads and cleans up.

    ``inversion`` holds the result afterwards, on the CPU. The returned latent is the noise.
    """

    def __init__(
        self, make_method: Callable[[], Method], *, keep_trajectory: bool, measure_residual: bool, model: str
    ) -> None:
        self._make_method, self._model = make_method, model
        self._keep, self._measure = keep_trajectory, measure_residual
        self.inversion: Inversion | None = None

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
        velocity = GuiderVelocity(model_wrap, model_wrap, extra_args)
        inversion = invert(
            velocity,
            latent_image,
            checked_grid(model_wrap.inner_model.model_sampling, sigmas),
            self._make_method(),
            keep_trajectory=self._keep or self._measure,
            callback=preview(callback),
            model=self._model,
        )
        if self._measure:
            inversion = with_residual(velocity, inversion, drop_trajectory=not self._keep)
        self.inversion = inversion.to("cpu")
        return inversion.noise


def run_inversion(
    model: Any,
    latent: torch.Tensor,
    sigmas: torch.Tensor,
    positive: Conditioning,
    negative: Conditioning | None,
    cfg: float,
    make_method: Callable[[], Method],
    *,
    solver: SolverHandle | None = None,
    keep_trajectory: bool = False,
    measure_residual: bool = False,
) -> Inversion:
    """Invert a latent with ComfyUI's model management around it.

    Args:
        model: the user's MODEL; not changed.
        latent: raw latent of a LATENT, ``[B, C, ...]``.
        sigmas: ComfyUI's sigmas, either direction.
        positive: conditioning, usually the empty prompt.
        negative: what guidance moves away from; needed where ``cfg`` is not 1.
        cfg: guidance scale.
        make_method: builds the method once the models are on their device.
        solver: loaded beside the model, so that both fit or take turns.
        keep_trajectory: keep every latent.
        measure_residual: N more evaluations, counted apart.

    Raises:
        DeepInvError: a latent or sigmas that don't suit the model, guidance without a negative prompt, a model output
            that is not finite.
    """
    check_latent(model, latent)
    checked_grid(model.get_model_object("model_sampling"), sigmas)
    working = model.clone()
    if solver is not None:
        working.set_additional_models("deepinv_solver", [solver.patcher])
    guider = comfy.samplers.CFGGuider(working)
    if math.isclose(cfg, 1.0):
        guider.set_conds(positive, positive)
    elif negative is None:
        raise DeepInvError(f"cfg is {cfg} but no negative conditioning is connected: connect one, or set cfg to 1")
    else:
        guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    sampler = InversionSampler(
        make_method,
        keep_trajectory=keep_trajectory,
        measure_residual=measure_residual,
        model=model_info(model).fingerprint,
    )
    callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
    guider.sample(
        torch.zeros_like(latent),
        latent,
        sampler,
        sigmas,
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
    )
    if sampler.inversion is None:
        raise DeepInvError(
            "the inversion did not run: another node replaced the sampling of this model; remove its patch"
        )
    return sampler.inversion


def check_latent(model: Any, latent: torch.Tensor) -> None:
    """Refuse an empty latent, or one with other channels than the model takes."""
    wanted = model.model.latent_format.latent_channels
    if latent.ndim < 4 or latent.numel() == 0:
        raise DeepInvError(
            f"the latent has shape {list(latent.shape)}: a non-empty batch [B, {wanted}, H, W] is needed"
        )
    if latent.shape[1] != wanted:
        raise DeepInvError(
            f"the latent has {latent.shape[1]} channels, this model takes {wanted}: "
            "encode with the VAE that belongs to it"
        )


class InvertedNoise:
    """ComfyUI's NOISE made of an inverted latent.

    A sampler scales noise and latent together, ``x = a*noise + b(latent)``; this undoes that, so that the
    sampler starts exactly at ``z_N`` whatever the model's convention and the first sigma.
    """

    def __init__(self, model: Any, inversion: Inversion, sigma_start: float) -> None:
        self.seed = inversion.options.seed
        self._inversion = inversion
        self._sigma = sigma_start
        self._sampling = model.get_model_object("model_sampling")
        self._latent_format = model.model.latent_format

    def generate_noise(self, input_latent: dict[str, Any]) -> torch.Tensor:
        """The noise for the LATENT given to the sampler, raw, on the CPU."""
        z, latent = self._inversion.noise, input_latent["samples"].float().cpu()
        if latent.shape != z.shape:
            raise DeepInvError(
                f"the inverted noise has shape {list(z.shape)} but latent_image has {list(latent.shape)}: "
                "connect the latent that was inverted"
            )
        if torch.count_nonzero(latent) > 0:  # ComfyUI leaves an empty latent unshifted
            latent = self._latent_format.process_in(latent)
        flow = float(self._inversion.sigmas[-1])
        x = z if is_flow(self._sampling) else z / (1 - flow)
        sigma = torch.tensor([self._sigma])
        most = float(self._sampling.sigma_max)
        at_start = math.isclose(most, self._sigma, rel_tol=1e-5) or self._sigma > most
        offset = self._sampling.noise_scaling(sigma, torch.zeros_like(x), latent, at_start)
        gain = self._sampling.noise_scaling(sigma, torch.ones_like(x), torch.zeros_like(x), at_start)
        return (x - offset) / gain


class ReconstructionSampler(comfy.samplers.Sampler):
    """ComfyUI's SAMPLER that walks an inversion back by the rule that matches it."""

    def __init__(self, inversion: Inversion) -> None:
        self._inversion = inversion

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
        sampling = model_wrap.inner_model.model_sampling
        grid = checked_grid(sampling, sigmas)
        wanted = self._inversion.sigmas
        if grid.shape != wanted.shape or not torch.allclose(grid, wanted, atol=1e-5):
            raise DeepInvError(
                f"the sigmas given to the way back ({len(grid) - 1} steps from {grid[-1]:.4f}) are not those of the "
                f"inversion ({len(wanted) - 1} steps from {wanted[-1]:.4f}): connect DeepInv Invert's sigmas output"
            )
        inpaint = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        inpaint.latent_image, inpaint.noise = latent_image, noise
        velocity = GuiderVelocity(model_wrap, inpaint, {**extra_args, "denoise_mask": denoise_mask})
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, self.max_denoise(model_wrap, sigmas))
        z = x if is_flow(sampling) else x * (1 - float(grid[-1]))
        rule = way_back(self._inversion.method, self._inversion.options)
        carried = {name: value.to(z.device) for name, value in self._inversion.carried.items()}
        return integrate(velocity, z, wanted.flip(0), rule, carried=carried, callback=preview(callback)).z


class PlainInversionSampler(comfy.samplers.Sampler):
    """An inversion method as ComfyUI's SAMPLER: takes the photo as latent_image, gives the noise as the latent."""

    def __init__(self, make_method: Callable[[], Method], solver: SolverHandle | None) -> None:
        self._make_method, self._solver = make_method, solver

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
        if self._solver is not None:
            self._solver.check(model_wrap.model_patcher)
            comfy.model_management.load_models_gpu([model_wrap.model_patcher, self._solver.patcher])
        grid = checked_grid(model_wrap.inner_model.model_sampling, sigmas)
        velocity = GuiderVelocity(model_wrap, model_wrap, extra_args)
        return invert(velocity, latent_image, grid, self._make_method(), callback=preview(callback)).noise


class PlainWayBack(comfy.samplers.Sampler):
    """The matching way back as ComfyUI's SAMPLER: takes the noise as latent_image, gives the photo."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule

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
        grid = checked_grid(model_wrap.inner_model.model_sampling, sigmas)
        velocity = GuiderVelocity(model_wrap, model_wrap, extra_args)
        return integrate(velocity, latent_image, grid.flip(0), self._rule, callback=preview(callback)).z
