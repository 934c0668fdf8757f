"""Load the models this pack ships: two small rectified-flow models of photographs and their VAE."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from ..adapters.base_model import BaseModel
from ..adapters.transformer import Conditioning, base_info
from ..errors import DeepInvError
from ..schedule import uniform_grid
from .spec import CLASSES, FLUX_CONFIG, IMAGE_SIZE, LATENT_GAIN, SD3_CONFIG, VAE_CONFIG

KINDS = {"sd3": SD3_CONFIG, "flux": FLUX_CONFIG}


def weights_path(name: str) -> Path:
    """Path of a shipped weights file, ``sd3``, ``flux``, ``vae`` or ``prompts``.

    Raises:
        DeepInvError: the file is missing (an incomplete installation).
    """
    path = Path(str(resources.files(__package__))) / "weights" / f"{name}.safetensors"
    if not path.is_file():
        raise DeepInvError(f"{path} is missing: this installation of DeepInv is incomplete; install it again")
    return path


def solver_file(kind: str) -> str | None:
    """Path of the solver shipped for an embedded model, None where there is none."""
    path = Path(str(resources.files(__package__))) / "weights" / f"solver_{kind}.safetensors"
    return str(path) if path.is_file() else None


def prompt_row(name: str) -> int:
    """Row of a class name in the prompt table; the empty prompt is the last.

    Raises:
        DeepInvError: not a class of the embedded model.
    """
    wanted = name.strip().lower()
    if not wanted:
        return len(CLASSES)
    if wanted not in CLASSES:
        raise DeepInvError(f"the embedded model knows no {name!r}: its prompts are {', '.join(CLASSES)}, or empty")
    return CLASSES.index(wanted)


def load_prompts() -> Callable[[str], Conditioning]:
    """The prompts as a function: a class name, or "", to context ``[1, 4, 64]`` and pooled ``[1, 64]``, float32."""
    table = checkpoint.load_weights(weights_path("prompts"))

    def encode(name: str) -> Conditioning:
        row = prompt_row(name)
        return Conditioning(table["context"][row : row + 1].float(), table["pooled"][row : row + 1].float())

    return encode


def load_embedded(kind: str = "sd3") -> BaseModel:
    """The embedded model of a layout, ``sd3`` or ``flux``, on the CPU in float32.

    Raises:
        DeepInvError: another kind, or an incomplete installation.
    """
    if kind not in KINDS:
        raise DeepInvError(f"there is no embedded model {kind!r}: choose {' or '.join(KINDS)}")
    import diffusers

    build: Any = diffusers.SD3Transformer2DModel if kind == "sd3" else diffusers.FluxTransformer2DModel
    transformer = _filled(build(**KINDS[kind]), checkpoint.load_weights(weights_path(kind)))
    vae = _filled(
        diffusers.AutoencoderTiny(**VAE_CONFIG), _diffusers_names(checkpoint.load_weights(weights_path("vae")))
    )
    return BaseModel(
        name=f"demo-{kind}",
        info=base_info(transformer),
        transformer=transformer,
        vae=vae,
        scale=1 / LATENT_GAIN,
        shift=0.0,
        condition=load_prompts(),
        grid=lambda steps, latent: uniform_grid(steps),
        solver_path=solver_file(kind),
        image_size=IMAGE_SIZE,
    )


def _filled(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    module.load_state_dict({name: value.float() for name, value in weights.items()})
    return module.eval().requires_grad_(False)


def _diffusers_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """TAESD's names, as ComfyUI wants them in the file, to diffusers' (which counts no leading clamp)."""
    out = {}
    for name, value in weights.items():
        side, index, rest = name.split(".", 2)
        side = side.removeprefix("taesd_")
        out[f"{side}.layers.{int(index) - (side == 'decoder')}.{rest}"] = value
    return out
