"""Models and solvers under ComfyUI's management."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import folder_paths
import torch

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.memory import rows_of
from ...deepinv_core.models.base_info import BaseInfo, describe_geometry
from ...deepinv_core.models.embedded import LAYOUTS, solver_file
from ...deepinv_core.names import free_path
from ...deepinv_core.solver import KINDS, LoadedSolver, Solver, bind, load_solver, require_base
from .files import require_no_way_out

SOLVER_FOLDER = "deepinv"

PREDICTIONS = {"EPS": "noise", "V_PREDICTION": "v", "CONST": "flow"}
"""By the name of the class of ``comfy.model_sampling``; the others go by that name."""

Conditioning = list[list[Any]]
"""ComfyUI's CONDITIONING: ``[[tokens [1, T, W], {"pooled_output": [1, P], ...}], ...]``."""


def register_folders() -> None:
    """Make ``models/deepinv`` known to ComfyUI."""
    folder_paths.add_model_folder_path(SOLVER_FOLDER, str(Path(folder_paths.models_dir) / SOLVER_FOLDER))


def _prediction(model: Any) -> str:
    """What a MODEL predicts, as its sampling says, a node's before it included: the class that makes it an image."""
    sampling = type(model.get_model_object("model_sampling"))
    name: str = next(kind.__name__ for kind in sampling.__mro__ if "calculate_denoised" in vars(kind))
    return PREDICTIONS.get(name, name.lower())


def model_info(model: Any) -> BaseInfo:
    """The identity of a MODEL, the same as the diffusers adapter gives the same architecture."""
    base, predicts = model.model, _prediction(model)
    config, channels = base.model_config.unet_config, base.latent_format.latent_channels
    if config.get("image_model") == "flux":
        return describe_geometry(
            "flux",
            channels=channels,
            hidden=config["hidden_size"],
            depth=(config["depth"], config["depth_single_blocks"]),
            context=config["context_in_dim"],
            pooled=config["vec_in_dim"] or 0,
            predicts=predicts,
        )
    if "context_embedder_config" in config:
        return describe_geometry(
            "sd3",
            channels=channels,
            hidden=64 * config["depth"],
            depth=(config["depth"], 0),
            context=config["context_embedder_config"]["params"]["in_features"],
            pooled=config.get("adm_in_channels") or 0,
            predicts=predicts,
        )
    sizes = sorted(value for value in config.values() if isinstance(value, int) and not isinstance(value, bool))
    name, unknown = type(base).__name__.lower(), {"hidden": 0, "context": 0, "pooled": 0}
    return describe_geometry(name, channels=channels, depth=sizes, predicts=predicts, **unknown)


def longest_side(model: Any) -> int:
    """Side in latent pixels that a MODEL has positions for (SD3's table of them), 0 where it takes any."""
    network = model.model.diffusion_model
    if getattr(network, "pos_embed", None) is None or not getattr(network, "pos_embed_max_size", None):
        return 0
    return int(network.pos_embed_max_size * network.patch_size)


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

    def grid(self, steps: int, refine: int) -> torch.Tensor | None:
        """The grid it inverts best on, in flow time; None where any will do."""
        return bind(self.loaded.solver, None, None).grid(steps, refine)

    @property
    def reads_prompt(self) -> bool:
        """Whether it reads the prompt that it inverts under."""
        return KINDS[self.loaded.role].reads_prompt

    def bound(self, conditioning: Conditioning | None, rows: slice) -> Solver:
        """The solver under the prompt of some rows of a batch, as the step rule calls it.

        Raises:
            DeepInvError: no prompt for a solver that reads one.
        """
        if not self.reads_prompt:
            return bind(self.loaded.solver, None, None)
        if conditioning is None:
            raise DeepInvError(
                f"{self.name!r} reads the prompt it inverts under, and none is connected: connect the empty prompt"
            )
        tokens, extras = conditioning[0]
        found = (rows_of(one, rows) for one in (tokens, extras.get("pooled_output")))
        return bind(self.loaded.solver, *(one if one is None else one.to(self.patcher.load_device) for one in found))


def included_solvers() -> dict[str, str]:
    """Path of each solver that comes with the pack, by its name in the menu."""
    found = {f"included: {layout}": solver_file(layout) for layout in LAYOUTS}
    found |= {f"included: {layout}, fitted": solver_file(layout, "fitted") for layout in LAYOUTS}
    return {name: path for name, path in found.items() if path}


def solver_names() -> list[str]:
    """Solver files in ``models/deepinv``, then those that come with the pack."""
    files = [name for name in folder_paths.get_filename_list(SOLVER_FOLDER) if name.endswith(".safetensors")]
    return [*files, *included_solvers()]


def solver_path(name: str) -> str:
    """Path of a solver file by its name in the menu.

    ComfyUI's list is the limit: what it shows of the folder, links that the user put there included, can be read; no
    other name leads anywhere.

    Raises:
        DeepInvError: it is gone.
    """
    included = included_solvers().get(name)
    path = included or (folder_paths.get_full_path(SOLVER_FOLDER, name) if name in solver_names() else None)
    if path is None:
        raise DeepInvError(
            f"there is no solver {name!a:.120} in models/{SOLVER_FOLDER}: put its .safetensors file there"
        )
    return path


def new_solver_path(name: str) -> Path:
    """Where a solver of that name is saved in ``models/deepinv``: a number follows where the name is taken."""
    return free_path(Path(folder_paths.get_folder_paths(SOLVER_FOLDER)[0]), name)


def training_folder(name: str) -> Path:
    """The folder of a training, ``output/deepinv/NAME``; it may not exist yet.

    Raises:
        DeepInvError: it, or what is in it, is a link out of ``output/deepinv``.
    """
    folder = Path(folder_paths.get_output_directory()) / SOLVER_FOLDER / name
    require_no_way_out(folder, folder.parent)
    return folder


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
