"""diffusers' SD3 and FLUX.1 transformers as a velocity of the core's convention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Final

import torch

from ..errors import DeepInvError
from . import flux, sd3
from .base_info import BaseInfo

FAMILIES: Final = {family.FAMILY: family for family in (sd3, flux)}
"""A module a family: its class in diffusers, how it predicts, what it takes, its identity.

``predict(transformer, z, sigma, context, pooled, guidance)`` is one forward pass, with gradient where that is on: the
velocity in the network's dtype, of ``z [B, C, H, W]``, H and W even, ``sigma [B]``, ``context [B, T, W]``,
``pooled [B, P]``, and ``guidance [B]`` for a FLUX with that input. Both predict ``eps - z_0`` themselves, so nothing is
divided by sigma.
"""


@dataclass(frozen=True)
class Conditioning:
    """A prompt as the base model takes it.

    Attributes:
        context: text tokens ``[1, T, W]``.
        pooled: pooled text ``[1, P]``.
        guidance: FLUX.1-dev's distilled guidance value; ignored by models without that input.
    """

    context: torch.Tensor
    pooled: torch.Tensor
    guidance: float = 1.0


def family_of(transformer: torch.nn.Module) -> ModuleType:
    """The family of a transformer, of :data:`FAMILIES`.

    Raises:
        DeepInvError: another architecture.
    """
    name = type(transformer).__name__
    classes = {family.CLASS: family for family in FAMILIES.values()}
    if name not in classes:
        raise DeepInvError(f"the transformer is a {name}: {' and '.join(classes)} are supported; use the ComfyUI node")
    return classes[name]


def require_fitting(shape: Sequence[int], longest: int) -> None:
    """Refuse a latent ``[B, C, ..., H, W]`` longer than the latent pixels that the model knows; 0 for any.

    Raises:
        DeepInvError: it is longer.
    """
    if longest and max(shape[-2:]) > longest:
        raise DeepInvError(
            f"the picture is {8 * shape[-1]}x{8 * shape[-2]} pixels, this model takes {8 * longest}x{8 * longest} at "
            "most: scale it down"
        )


class TransformerVelocity:
    """``v(z, sigma)`` of a frozen transformer under one prompt, with classifier-free guidance if asked."""

    def __init__(
        self,
        transformer: torch.nn.Module,
        positive: Conditioning,
        negative: Conditioning | None = None,
        *,
        cfg: float = 1.0,
        sigma_min: float = 1e-3,
    ) -> None:
        """Bind a prompt.

        Args:
            transformer: diffusers' ``SD3Transformer2DModel`` or ``FluxTransformer2DModel``; not changed.
            positive: the prompt.
            negative: what guidance moves away from; needed unless ``cfg`` is 1.
            cfg: guidance scale; 1 costs one evaluation a call, any other value two, in one batch.
            sigma_min: see :class:`~..flow.Velocity`; 1/1000 is the smallest sigma ComfyUI's tables have at shift 1.

        Raises:
            DeepInvError: an unknown architecture, or guidance without a negative prompt.
        """
        if cfg != 1 and negative is None:
            raise DeepInvError(f"cfg is {cfg} but there is no negative prompt: give one, or set cfg to 1")
        self._family, config = family_of(transformer), getattr(transformer, "config", {})
        self._transformer = transformer
        self._longest = self._family.longest_side(config)
        self._takes_guidance = self._family.takes_guidance(config)
        weight = next(transformer.parameters())
        prompts = (positive,) if cfg == 1 or negative is None else (positive, negative)
        self._context = [prompt.context.to(weight) for prompt in prompts]
        self._pooled = [prompt.pooled.to(weight) for prompt in prompts]
        self._dtype, self._guidance, self._cfg = weight.dtype, positive.guidance, cfg
        self.sigma_min = sigma_min
        self.cost = len(prompts)

    @torch.no_grad()
    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """``z [B, C, H, W]``, H and W even, to a velocity of the same shape, in the network's dtype."""
        if z.ndim != 4 or z.shape[-1] % 2 or z.shape[-2] % 2:
            raise DeepInvError(f"the latent has shape {list(z.shape)}: [B, C, H, W] with even H and W is needed")
        require_fitting(z.shape, self._longest)
        batch = torch.cat([z.to(self._dtype)] * self.cost)
        context = torch.cat([one.expand(len(z), -1, -1) for one in self._context])
        pooled = torch.cat([one.expand(len(z), -1) for one in self._pooled])
        time = torch.full((len(batch),), sigma, device=z.device, dtype=torch.float32)
        guidance = torch.full_like(time, self._guidance) if self._takes_guidance else None
        v: torch.Tensor = self._family.predict(self._transformer, batch, time, context, pooled, guidance)
        if self.cost == 1:
            return v
        conditional, unconditional = v.chunk(2)
        return torch.lerp(unconditional, conditional, self._cfg)


def base_info(transformer: torch.nn.Module) -> BaseInfo:
    """The identity of a diffusers transformer."""
    found: BaseInfo = family_of(transformer).identity(transformer.config)
    return found
