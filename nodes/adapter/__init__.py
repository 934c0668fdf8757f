"""Everything of ComfyUI's inside that this pack touches, and the only place that imports it.

The core sees a velocity; ComfyUI has a guider that predicts the denoised latent. Going through the guider
keeps LoRA, ControlNet, fp8 and GGUF weights and model patches working, and the user's model is never changed.
"""

from .models import (
    Conditioning,
    SolverHandle,
    load_flow_model,
    load_solver_handle,
    load_tiny_vae,
    model_info,
    register_folders,
    solver_names,
    solver_path,
)
from .velocity import SCHEDULERS, descending, schedule
from .ways import InvertedNoise, ReconstructionSampler, run_inversion

__all__ = [
    "SCHEDULERS",
    "Conditioning",
    "InvertedNoise",
    "ReconstructionSampler",
    "SolverHandle",
    "descending",
    "load_flow_model",
    "load_solver_handle",
    "load_tiny_vae",
    "model_info",
    "register_folders",
    "run_inversion",
    "schedule",
    "solver_names",
    "solver_path",
]
