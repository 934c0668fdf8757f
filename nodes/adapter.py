"""Everything of ComfyUI that this pack touches, and the only module that imports it.

The core sees a velocity; ComfyUI has a guider that predicts the denoised latent. Going through the guider
keeps LoRA, ControlNet, fp8 and GGUF weights and model patches working, and the user's model is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import torch

from ..deepinv_core.adapters.transformer import describe_geometry
from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.integrator import Callback, Progress, integrate
from ..deepinv_core.inversion import Inversion, invert, with_residual
from ..deepinv_core.methods import Method, way_back
from ..deepinv_core.methods.deepinv import Solver, bind
from ..deepinv_core.schedule import custom_grid
from ..deepinv_core.solver import BaseInfo, LoadedSolver, load_solver, require_base

SOLVER_FOLDER = "deepinv"
SCHEDULERS: list[str] = list(comfy.samplers.SCHEDULER_NAMES)

Conditioning = list[list[Any]]
"""ComfyUI's CONDITIONING: ``[[tokens [1, T, W], {"pooled_output": [1, P], ...}], ...]``."""


def register_folders() -> None:
    """Make ``models/deepinv`` known to ComfyUI."""
    folder_paths.add_model_folder_path(SOLVER_FOLDER, str(Path(folder_paths.models_dir) / SOLVER_FOLDER))


# -- sigma: ComfyUI's to the core's flow time and back -----------------------------------------------------------------


def is_flow(model_sampling: Any) -> bool:
    """Whether the model's sigma is the flow time already; else it is k-diffusion's, in [0, inf)."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def to_flow_time(model_sampling: Any, sigmas: torch.Tensor) -> torch.Tensor:
    """ComfyUI's sigmas to flow time, float64 on the CPU: themselves for flow models, else ``s / (1 + s)``."""
    values = sigmas.double().cpu()
    return values if is_flow(model_sampling) else values / (1 + values)


def checked_grid(model_sampling: Any, sigmas: torch.Tensor) -> torch.Tensor:
    """ComfyUI's SIGMAS as the core's ascending grid, refused with a sentence where unusable."""
    most = to_flow_time(model_sampling, torch.as_tensor(float(model_sampling.sigma_max)))
    return custom_grid(to_flow_time(model_sampling, sigmas), sigma_max=max(1.0, float(most)))


def descending(sigmas: torch.Tensor) -> torch.Tensor:
    """ComfyUI's direction, whichever way the SIGMAS came."""
    return sigmas.flip(0) if len(sigmas) > 1 and sigmas[0] < sigmas[-1] else sigmas


def schedule(model: Any, scheduler: str, steps: int) -> torch.Tensor:
    """The sigmas ComfyUI would sample this model with: its own schedule and shift, descending ``[N + 1]``."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps).cpu()


class GuiderVelocity:
    """A guider in mid-run as the core's velocity: ``v = (z - denoised) / sigma``.

    For noise-prediction models ``sigma_k = sigma / (1 - sigma)`` and ``x = z * (1 + sigma_k)`` first (method.md).
    """

    def __init__(self, guider: Any, denoise: Callable[..., torch.Tensor], extra_args: dict[str, Any]) -> None:
        sampling = guider.inner_model.model_sampling
        self._denoise, self._extra_args = denoise, extra_args
        self._flow = is_flow(sampling)
        self.sigma_min = float(to_flow_time(sampling, torch.as_tensor(float(sampling.sigma_min))))
        self.cost = 1 if math.isclose(getattr(guider, "cfg", 1.0), 1.0) else 2

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """Velocity at ``z [B, C, ...]``; one guider call."""
        own = sigma if self._flow else sigma / (1 - sigma)
        x = z if self._flow else z * (1 + own)
        denoised = self._denoise(x, torch.full((len(x),), own, device=x.device, dtype=x.dtype), **self._extra_args)
        return (z - denoised) / sigma


def _preview(callback: Callable[..., None] | None) -> Callback | None:
    if callback is None:
        return None

    def report(progress: Progress) -> None:
        callback(progress.done - 1, progress.denoised, progress.z, progress.total)

    return report


# -- the way up --------------------------------------------------------------------------------------------------------


class InversionSampler(comfy.samplers.Sampler):
    """Runs the core's inversion where ComfyUI expects a sampler, so that it loads, offloads and cleans up.

    ``inversion`` holds the result afterwards, on the CPU. The returned latent is the noise.
    """

    def __init__(self, make_method: Callable[[], Method], *, keep_trajectory: bool, measure_residual: bool, model: str):
        self._make_method, self._keep, self._measure, self._model = make_method, keep_trajectory, measure_residual, model
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
            callback=_preview(callback),
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
    _check_latent(model, latent)
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
        raise DeepInvError("the inversion did not run: another node replaced the sampling of this model; remove its patch")
    return sampler.inversion


def _check_latent(model: Any, latent: torch.Tensor) -> None:
    wanted = model.model.latent_format.latent_channels
    if latent.ndim < 4 or latent.numel() == 0:
        raise DeepInvError(f"the latent has shape {list(latent.shape)}: a non-empty batch [B, {wanted}, H, W] is needed")
    if latent.shape[1] != wanted:
        raise DeepInvError(
            f"the latent has {latent.shape[1]} channels, this model takes {wanted}: encode with the VAE that belongs to it"
        )


# -- the way back ------------------------------------------------------------------------------------------------------


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
        return integrate(velocity, z, wanted.flip(0), rule, carried=carried, callback=_preview(callback)).z


# -- models and solvers ------------------------------------------------------------------------------------------------


def model_info(model: Any) -> BaseInfo:
    """The identity of a MODEL, the same as the diffusers adapter gives the same architecture."""
    base = model.model
    config, channels = base.model_config.unet_config, base.latent_format.latent_channels
    if config.get("image_model") == "flux":
        return describe_geometry(
            "flux",
            channels=channels,
            hidden=config["hidden_size"],
            depth=(config["depth"], config["depth_single_blocks"]),
            context=config["context_in_dim"],
            pooled=config["vec_in_dim"] or 0,
        )
    if "context_embedder_config" in config:
        return describe_geometry(
            "sd3",
            channels=channels,
            hidden=64 * config["depth"],
            depth=(config["depth"], 0),
            context=config["context_embedder_config"]["params"]["in_features"],
            pooled=config.get("adm_in_channels") or 0,
        )
    sizes = sorted(value for value in config.values() if isinstance(value, int) and not isinstance(value, bool))
    return describe_geometry(type(base).__name__.lower(), channels=channels, hidden=0, depth=sizes, context=0, pooled=0)


class _Managed(torch.nn.Module):
    """A network as ComfyUI's patcher wants it: a module whose ``device`` it may set."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.device = torch.device("cpu")


class SolverHandle:
    """DEEPINV_SOLVER: a loaded solver under ComfyUI's model management."""

    def __init__(self, loaded: LoadedSolver, name: str) -> None:
        self.loaded, self.name = loaded, name
        self.patcher = comfy.model_patcher.ModelPatcher(
            _Managed(loaded.solver.eval().requires_grad_(False)),
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )

    def check(self, model: Any) -> None:
        """Refuse a model the solver was not trained for, saying what differs."""
        require_base(self.loaded.base, model_info(model), self.name)

    def bound(self, conditioning: Conditioning) -> Solver:
        """The solver under a prompt, as the step rule calls it; on its device once the sampler runs."""
        tokens, extras = conditioning[0]
        device = self.patcher.load_device
        pooled = extras.get("pooled_output")
        return bind(self.loaded.solver, tokens.to(device), None if pooled is None else pooled.to(device))


def solver_names() -> list[str]:
    """Solver files in ``models/deepinv``."""
    return [name for name in folder_paths.get_filename_list(SOLVER_FOLDER) if name.endswith(".safetensors")]


def solver_path(name: str) -> str:
    """Path of a solver file by its name in the menu.

    Raises:
        DeepInvError: it is gone.
    """
    path = folder_paths.get_full_path(SOLVER_FOLDER, name)
    if path is None:
        raise DeepInvError(f"there is no solver {name!r} in models/{SOLVER_FOLDER}: put its .safetensors file there")
    return path


def load_solver_handle(path: str | Path) -> SolverHandle:
    """Read a solver file for use in a graph."""
    return SolverHandle(load_solver(path), Path(path).name)


def load_flow_model(state: dict[str, torch.Tensor], *, heads: int, shift: float | None) -> Any:
    """A diffusion model from weights, through ComfyUI's own loader.

    Args:
        state: diffusers' parameter names, which the loader converts.
        heads: attention heads. ComfyUI up to 0.3.75 takes every FLUX to have 24; there the configuration is
            corrected before ComfyUI builds the model from it.
        shift: the schedule's shift to sample with, None to leave the model's own.
    """
    converted = comfy.model_detection.convert_diffusers_mmdit(dict(state), "")
    config = comfy.model_detection.model_config_from_unet(converted, "")
    if config.unet_config.get("num_heads", heads) == heads:
        model = comfy.sd.load_diffusion_model_state_dict(converted)
    else:
        config.unet_config["num_heads"] = heads
        config.set_inference_dtype(torch.float32, None)
        base = config.get_model(converted, "")
        base.load_model_weights(converted, "")
        management = comfy.model_management
        model = comfy.model_patcher.ModelPatcher(base, management.get_torch_device(), management.unet_offload_device())
    if shift is not None:

        class Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
            pass

        sampling = Sampling(model.model.model_config)
        sampling.set_parameters(shift=shift, multiplier=1000)
        model.add_object_patch("model_sampling", sampling)
    return model


def load_tiny_vae(state: dict[str, torch.Tensor], model: Any, gain: float) -> Any:
    """A TAESD-shaped VAE whose raw latents are ``gain`` times the model's, as ComfyUI's VAE for that model."""
    latent_format = model.model.latent_format
    scale = torch.tensor(latent_format.scale_factor * gain)
    return comfy.sd.VAE(sd={**state, "vae_scale": scale, "vae_shift": torch.tensor(latent_format.shift_factor)})
