"""Everything of ComfyUI's inside that this pack touches, and the only place that imports it.

The core sees a velocity; ComfyUI has a guider that predicts the denoised latent. Going through the guider
keeps LoRA, ControlNet, fp8 and GGUF weights and model patches working, and the user's model is never changed.
"""

from .edits import blocked, changed, kept_photo, run_edit, run_flow_edit
from .files import inversion_names, inversion_path, new_inversion_path, offer_photos
from .fitting import latent_shape, run_fit, under
from .latents import as_taken, decoded, require_vae, there_and_back
from .models import (
    Conditioning,
    SolverHandle,
    load_flow_model,
    load_solver_handle,
    load_tiny_vae,
    model_info,
    new_solver_path,
    register_folders,
    solver_names,
    solver_path,
    training_folder,
)
from .patches import QUESTIONS, patch_names
from .preview import fit_preview
from .progress import TrainingProgress, tell
from .prompts import Prompts, same_prompt
from .samplers import (
    InvertedNoise,
    PlainInversionSampler,
    PlainWayBack,
    ReconstructionSampler,
    require_same_model,
    run_inversion,
)
from .sampling import Prompt
from .size import OWN_SIDE, own_size, warn_of_size, wrong_size
from .training import Decode, in_model_space, run_training
from .velocity import SCHEDULERS, core_grid, levels, own_sigmas, schedule
