"""The models that solvers are fitted to and the photographs that judge them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from torch import Tensor

from ...benchmarks.photos import HELD_OUT, IMAGE_SIZE
from ...deepinv_core import checkpoint
from ...deepinv_core.flow import Velocity
from ...deepinv_core.models.base_info import BaseInfo
from ...deepinv_core.models.embedded import diffusers_names, load_embedded, load_prompts, load_transformer
from ...deepinv_core.models.transformer import TransformerVelocity, base_info
from ..garments.photos import GARMENTS, fitted

GUIDED: Final = "t-shirt"
"""The prompt under guidance. A fit needs one prompt, so the photographs are those that it is true of; no garment has
more in the test split."""

ROOT: Final = Path(__file__).parents[2]

OLDER: Final = ROOT / "tests" / "data" / "models_0_1_0"
"""The models of the first edition, of 64 px and CIFAR-10's classes, without their VAE."""

OLDER_VAE: Final = "e73933c~1:deepinv_core/embedded/weights/vae.safetensors"
"""Where the repository's history has it."""


@dataclass(frozen=True)
class Subject:
    """A model under a prompt, and clean latents of photographs that it never saw.

    Attributes:
        velocity: the model.
        info: its identity.
        latents: ``[B, C, H, W]``.
    """

    velocity: Velocity
    info: BaseInfo
    latents: Tensor


def photographs(count: int, prompt: str = "", height: int = IMAGE_SIZE, width: int = IMAGE_SIZE) -> Tensor:
    """The middles of held-out photographs, of the garment that the prompt names if it does, ``[B, 3, H, W]``."""
    side = max(height, width)
    pixels, garments = fitted(HELD_OUT, "test", side)
    chosen = pixels[garments == GARMENTS.index(prompt)] if prompt else pixels
    top, left = (side - height) // 2, (side - width) // 2
    return chosen[:count, :, top : top + height, left : left + width]


def load(
    layout: str,
    count: int,
    device: str = "cpu",
    *,
    prompt: str = "",
    cfg: float = 1.0,
    size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE),
    change: Callable[[torch.nn.Module], None] = lambda transformer: None,
) -> Subject:
    """An included model, with what ``change`` does to its weights, and ``count`` photographs of height and width."""
    model = load_embedded(layout)
    latents = model.encode(photographs(count, prompt, *size))
    change(model.transformer)
    model.transformer.to(device)
    return Subject(model.velocity(prompt, cfg=cfg), model.info, latents.to(device))


@torch.no_grad()
def load_older(layout: str, count: int) -> Subject:
    """A model of the first edition; the photographs are as coarse as those that it learned, 32 px scaled to 64."""
    import diffusers  # takes seconds

    with TemporaryDirectory() as folder:
        path = Path(folder, "vae.safetensors")
        path.write_bytes(subprocess.run(["git", "show", OLDER_VAE], cwd=ROOT, capture_output=True, check=True).stdout)
        weights, made = checkpoint.load(path, kind="vae")
    vae = diffusers.AutoencoderTiny(**made["config"])
    vae.load_state_dict(diffusers_names({name: value.float() for name, value in weights.items()}))
    pixels = torch.nn.functional.interpolate(photographs(count, "", 32, 32), size=64, mode="bicubic").clamp(0, 1)
    transformer = load_transformer(OLDER / f"{layout}.safetensors")
    velocity = TransformerVelocity(transformer, load_prompts(OLDER / "prompts.safetensors")(""))
    return Subject(velocity, base_info(transformer), vae.encode(pixels * 2 - 1).latents / made["latent_gain"])
