"""The core's two directions as ComfyUI's samplers, and the inverted noise as ComfyUI's NOISE."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import comfy.model_management
import comfy.samplers
import torch

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.integrator import Rule, integrate
from ...deepinv_core.inversion import Inversion, invert, reconstruct, with_residual
from ...deepinv_core.methods import Method
from .latents import as_taken, require_one_stream
from .models import SolverHandle, model_info
from .progress import tell
from .sampling import SEED, Call, CoreSampler, Prompt, prompted, run_inside
from .velocity import GuiderVelocity, checked_grid, is_flow

STOCHASTIC = re.compile("ancestral|sde|lcm|ddpm|seeds|sa_solver")
"""In the names of ComfyUI's samplers that draw noise."""

UNI_PC_END = 2e-3
"""ComfyUI's uni_pc writes 0.001 for 0 into the SIGMAS that it is given, which stay in the cache."""


def run_inversion(
    model: Any,
    latent: torch.Tensor,
    sigmas: torch.Tensor,
    prompt: Prompt,
    make_method: Callable[[slice], Method],
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
        prompt: usually the empty one.
        make_method: builds the method for some rows of the batch, once the models are on their device.
        solver: loaded beside the model, so that both fit or take turns.
        keep_trajectory: keep every latent.
        measure_residual: N more evaluations, counted apart.

    Raises:
        DeepInvError: a latent or sigmas that don't suit the model, guidance without a negative prompt, a model output
            that is not finite.
    """
    latent = as_taken(model, latent)
    checked_grid(model.get_model_object("model_sampling"), sigmas)
    fingerprint = model_info(model).fingerprint

    def part(call: Call, rows: slice) -> Inversion:
        velocity, method = call.velocity, make_method(rows)
        asked = call.require_memoryless(velocity, call.latent, rows)
        inversion = invert(
            velocity,
            call.latent,
            call.grid,
            method,
            keep_trajectory=keep_trajectory or measure_residual,
            callback=call.callback,
            model=fingerprint,
        )
        if measure_residual:
            inversion = with_residual(velocity, inversion, drop_trajectory=not keep_trajectory)
        return replace(inversion, nfe=inversion.nfe + asked).to("cpu")

    def run(call: Call) -> tuple[torch.Tensor, Inversion]:
        inversion = call.in_parts(part, Inversion.join)
        return inversion.noise, replace(inversion, prompt=prompt.positive)

    guider = prompted(model, prompt)
    if solver is not None:
        guider.model_patcher.set_additional_models("deepinv_solver", [solver.patcher])
    return run_inside(guider, latent, sigmas, run, len(sigmas) - 1)[1]


def require_same_model(model: Any, inversion: Inversion) -> None:
    """Refuse an inversion that was made with another architecture, or by what predicts something else.

    Raises:
        DeepInvError: the fingerprints differ.
    """
    own = model_info(model)
    if inversion.model and not own.known_as(inversion.model):
        raise DeepInvError(
            f"the inversion was made with another model (fingerprint {inversion.model}, this one has "
            f"{own.fingerprint}): connect the model it was made with"
        )


def refuse_stochastic(sampler: Any) -> None:
    """Refuse a sampler of ComfyUI's that adds noise of its own on the way, after which no photo comes back.

    Raises:
        DeepInvError: it is one. Samplers of other packs are let through.
    """
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "").removeprefix("sample_")
    options = getattr(sampler, "extra_options", {})
    amount = options.get("eta", 1.0) * options.get("s_noise", 1.0) if STOCHASTIC.search(name) else 0.0
    if amount or options.get("s_churn", 0.0):
        raise DeepInvError(
            f"the sampler {name} adds new noise at each step, so that the photo can't come back: connect the sampler "
            "output of the node that this noise is from, or a deterministic sampler such as euler"
        )


def _sampler_of(noise_frame: FrameType | None) -> Any:
    """The SAMPLER beside which a NOISE is asked, None where it can't be told.

    ComfyUI passes a NOISE the latent alone and a SAMPLER no word of its NOISE, so it is read where
    SamplerCustomAdvanced, and the samplers of other packs after it, keep it: in a variable of that name.
    """
    caller = None if noise_frame is None else noise_frame.f_back
    return None if caller is None else caller.f_locals.get("sampler")


class InvertedNoise:
    """ComfyUI's NOISE made of an inverted latent.

    A sampler scales noise and latent together, ``x = a*noise + b(latent)``; this undoes that, so that the
    sampler starts exactly at ``z_N`` whatever the model's convention and the first sigma.
    """

    def __init__(self, model: Any, inversion: Inversion, sigma_start: float) -> None:
        self.seed = SEED
        self._inversion = inversion
        self._sigma = sigma_start
        self._sampling = model.get_model_object("model_sampling")
        self._latent_format = model.model.latent_format

    def _described(self, latent: torch.Tensor) -> str:
        """A latent in a person's words."""
        factor = getattr(self._latent_format, "spacial_downscale_ratio", 8)
        count = "1 picture" if len(latent) == 1 else f"{len(latent)} pictures"
        return f"{count} of {latent.shape[-1] * factor}x{latent.shape[-2] * factor} pixels, {latent.shape[1]} channels"

    def generate_noise(self, input_latent: dict[str, Any]) -> torch.Tensor:
        """The noise for the LATENT given to the sampler, raw, on the CPU.

        Raises:
            DeepInvError: a latent of another shape or of several streams, or a stochastic sampler.
        """
        refuse_stochastic(_sampler_of(inspect.currentframe()))
        require_one_stream(input_latent["samples"])
        z, latent = self._inversion.noise, input_latent["samples"].float().cpu()
        if latent.shape != z.shape:
            raise DeepInvError(
                f"the noise is that of {self._described(z)}, latent_image that of {self._described(latent)}: connect "
                "the latent that was inverted"
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


class ReconstructionSampler(CoreSampler):
    """ComfyUI's SAMPLER that walks an inversion back by the rule that matches it."""

    def __init__(self, inversion: Inversion) -> None:
        self._inversion = inversion

    def walk(self, call: Call) -> torch.Tensor:
        """Noise in, photo out."""
        require_same_model(call.guider.model_patcher, self._inversion)
        if call.noise.shape != self._inversion.noise.shape or not call.noise.any():
            raise DeepInvError(
                f"the way back was given a noise of shape {list(call.noise.shape)} with values up to "
                f"{float(call.noise.abs().max()):g}, which is not the inverted one of shape "
                f"{list(self._inversion.noise.shape)}: connect the noise output of the node that this sampler is from"
            )
        grid, wanted = call.grid, self._inversion.sigmas
        same = grid.shape == wanted.shape and torch.allclose(grid[1:], wanted[1:], atol=1e-5)
        if not same or abs(grid[0] - wanted[0]) > UNI_PC_END:
            raise DeepInvError(
                f"the sigmas given to the way back ({len(grid) - 1} steps from {grid[-1]:.4f}) are not those of the "
                f"inversion ({len(wanted) - 1} steps from {wanted[-1]:.4f}): connect DeepInv Invert's sigmas output"
            )
        return call.in_parts(self._walk_part, torch.cat)

    def _walk_part(self, call: Call, rows: slice) -> torch.Tensor:
        sampling, inversion = call.model_sampling, self._inversion.rows(rows)
        inpaint = comfy.samplers.KSamplerX0Inpaint(call.guider, call.sigmas)
        inpaint.latent_image, inpaint.noise = call.latent, call.noise
        velocity = GuiderVelocity(call.guider, inpaint, {**call.extra_args, "denoise_mask": call.mask})
        call.require_memoryless(GuiderVelocity(call.guider, call.guider, call.extra_args), call.latent, rows)
        at_start = self.max_denoise(call.guider, call.sigmas)
        x = sampling.noise_scaling(call.sigmas[0], call.noise, call.latent, at_start)
        z = x if is_flow(sampling) else x * (1 - float(call.grid[-1]))
        return reconstruct(velocity, replace(inversion, noise=z).to(z.device), callback=call.callback).latent


def _tell_of_mask(call: Call) -> None:
    """Say on the node that a plain pair of samplers walks the whole picture."""
    if call.mask is not None:
        tell("the latent's noise mask is not used here: DeepInv Invert and DeepInv Edit obey it")


class PlainInversionSampler(CoreSampler):
    """An inversion method as ComfyUI's SAMPLER: takes the photo as latent_image, gives the noise as the latent."""

    def __init__(self, make_method: Callable[[slice], Method], solver: SolverHandle | None) -> None:
        self._make_method, self._solver = make_method, solver

    def walk(self, call: Call) -> torch.Tensor:
        """Photo in, noise out."""
        _tell_of_mask(call)
        if self._solver is not None:
            model = call.guider.model_patcher
            self._solver.check(model)
            comfy.model_management.load_models_gpu([model, self._solver.patcher])

        def part(call: Call, rows: slice) -> torch.Tensor:
            velocity, method = call.velocity, self._make_method(rows)
            call.require_memoryless(velocity, call.latent, rows)
            return invert(velocity, call.latent, call.grid, method, callback=call.callback).noise

        return call.in_parts(part, torch.cat)


class PlainWayBack(CoreSampler):
    """The matching way back as ComfyUI's SAMPLER: takes the noise as latent_image, gives the photo."""

    def __init__(self, rule: Rule, photo: torch.Tensor | None = None, *, reads_photo: bool = False) -> None:
        """``photo`` is the raw latent of the photo, for a rule that reads it."""
        self._rule, self._photo, self._reads_photo = rule, photo, reads_photo

    def walk(self, call: Call) -> torch.Tensor:
        """Noise in, photo out."""
        _tell_of_mask(call)
        if not call.latent.any():
            raise DeepInvError("latent_image is empty: connect the noise there, the latent of the sampler that made it")
        clean = self._clean(call)

        def part(call: Call, rows: slice) -> torch.Tensor:
            velocity, carried = call.velocity, {} if clean is None else {"latent_clean": clean[rows]}
            call.require_memoryless(velocity, torch.zeros_like(call.latent), rows)
            grid = call.grid.flip(0)
            return integrate(velocity, call.latent, grid, self._rule, carried=carried, callback=call.callback).z

        return call.in_parts(part, torch.cat)

    def _clean(self, call: Call) -> torch.Tensor | None:
        """The photo in model space; None where the rule doesn't read it."""
        if not self._reads_photo:
            return None
        if self._photo is None or self._photo.shape != call.latent.shape:
            seen = (
                "none is connected" if self._photo is None else f"one of shape {list(self._photo.shape)} is connected"
            )
            raise DeepInvError(
                f"this way back reads the photo's latent, of shape {list(call.latent.shape)}, and {seen}: connect the "
                "latent that was inverted to the latent input of the node that this sampler is from"
            )
        photo: torch.Tensor = call.guider.inner_model.process_latent_in(self._photo.to(call.latent))
        return photo
