"""A base model that is ready to invert with: encode, decode, condition, grid, velocity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..errors import DeepInvError
from .base_info import BaseInfo
from .transformer import Conditioning, TransformerVelocity


@dataclass(frozen=True)
class BaseModel:
    """Transformer, VAE and prompts behind one small interface.

    Attributes:
        name: for reports.
        info: family, latent channels and the fingerprint of the transformer's geometry.
        transformer: the frozen network.
        vae: diffusers' AutoencoderKL or AutoencoderTiny.
        scale: model latent = ``(raw - shift) * scale``.
        shift: see ``scale``.
        condition: prompt text to its encoding; "" is the empty prompt.
        grid: ``(steps, latent [B, C, H, W]) -> sigmas`` as this model is sampled.
        solver_path: the solver shipped for it, if any.
        fit_path: the fitted one, likewise.
        image_size: side in pixels the model was trained at when it has only one, else None.
        velocity_class: how its transformer's answer becomes a velocity.
    """

    velocity_class: ClassVar[type[TransformerVelocity]] = TransformerVelocity

    name: str
    info: BaseInfo
    transformer: torch.nn.Module
    vae: Any
    scale: float
    shift: float
    condition: Callable[[str], Conditioning]
    grid: Callable[[int, torch.Tensor], torch.Tensor]
    solver_path: str | None = None
    fit_path: str | None = None
    image_size: int | None = None

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.transformer.parameters()).device

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1] to model-space latents ``[B, C, H/8, W/8]``, float32.

        A KL autoencoder gives the mean of its posterior, so that the same photo gives the same latent.
        """
        height, width = images.shape[-2:]
        if height % 16 or width % 16:
            raise DeepInvError(f"the image is {width}x{height}: both sides must be multiples of 16; crop it")
        pixels = images.to(self.device, self.vae.dtype) * 2 - 1
        encoded = self.vae.encode(pixels)
        raw = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (raw.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Model-space latents ``[B, C, H, W]`` to images ``[B, 3, 8H, 8W]`` in [0, 1], float32, on the CPU."""
        raw = latents.to(self.device, torch.float32) / self.scale + self.shift
        images = self.vae.decode(raw.to(self.vae.dtype), return_dict=False)[0]
        return ((images.float() + 1) / 2).clamp(0, 1).cpu()

    def prompts(self, texts: Sequence[str]) -> Conditioning:
        """Prompts of one length, a row a text: context ``[B, T, W]`` and pooled ``[B, P]``."""
        rows = [self.condition(text) for text in texts]
        return Conditioning(torch.cat([row.context for row in rows]), torch.cat([row.pooled for row in rows]))

    def velocity(
        self, prompt: str | Sequence[str] = "", *, cfg: float = 1.0, negative: str = ""
    ) -> TransformerVelocity:
        """The velocity under a prompt, or one a latent; with ``cfg`` other than 1 two base evaluations a call."""
        away = self.condition(negative) if cfg != 1 else None
        towards = self.condition(prompt) if isinstance(prompt, str) else self.prompts(prompt)
        return self.velocity_class(self.transformer, towards, away, cfg=cfg)
