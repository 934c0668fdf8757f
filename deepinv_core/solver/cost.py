"""What networks cost: FLOPs of one evaluation, by torch's counter on the meta device, so without weights or memory.

A multiplication and its addition count as two. Only matrix products, convolutions and attention are counted; all else
is under a percent of them. On the meta device attention runs as its two matrix products, so it is counted in full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..errors import DeepInvError
from ..flow import CountedVelocity
from ..integrator import Step
from ..models.transformer import FAMILIES
from .config import Config
from .kinds import bind

SD3_MEDIUM: Final[Mapping[str, Any]] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
"""``transformer/config.json`` of stabilityai/stable-diffusion-3-medium-diffusers."""

SD35_MEDIUM: Final[Mapping[str, Any]] = {
    **SD3_MEDIUM,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
"""``transformer/config.json`` of stabilityai/stable-diffusion-3.5-medium."""

FLUX1: Final[Mapping[str, Any]] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
"""``transformer/config.json`` of black-forest-labs/FLUX.1-dev; schnell's differs by its missing guidance input."""

TEXT_TOKENS: Final[Mapping[str, int]] = {"sd3": 77 + 256, "flux": 512}
"""Prompt tokens: SD3's from CLIP and T5, FLUX.1's from T5."""


def count_flops(call: Callable[[], object]) -> int:
    """FLOPs of what ``call`` runs, without gradient."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


class _Free:
    """A base model that costs nothing."""

    sigma_min, cost = 0.0, 1

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        return z


def solver_flops(config: Config, *, height: int, width: int, context_tokens: int = 0) -> int:
    """FLOPs that a solver adds to a step; sizes are the latent's, prompt tokens are for a kind that reads them."""
    with torch.device("meta"):
        z = torch.empty(1, config.channels, height, width)
        context = torch.empty(1, context_tokens, getattr(config, "context_width", 0))
        pooled = torch.empty(1, getattr(config, "pooled_width", 0))
        rule = bind(config.build(), context, pooled).rule(0)
        velocity, step = CountedVelocity(_Free()), Step(0, 1, 0.0, 1.0)
        return count_flops(lambda: rule.step(velocity, z, step, rule.start(z, (0.0, 1.0), {})))


def transformer_flops(
    family: str,
    config: Mapping[str, Any],
    *,
    height: int,
    width: int,
    context_tokens: int | None = None,
) -> int:
    """FLOPs of one evaluation of a base model, CFG 1.

    Args:
        family: ``sd3`` or ``flux``.
        config: arguments of diffusers' transformer: :data:`SD3_MEDIUM`, :data:`SD35_MEDIUM`, :data:`FLUX1`, or an
            embedded model's (``transformer.config``).
        height: of the latent, in latent pixels, even.
        width: of the latent, even.
        context_tokens: prompt tokens; None for the released models' (:data:`TEXT_TOKENS`).

    Raises:
        DeepInvError: another family.
    """
    import diffusers

    if family not in FAMILIES:
        raise DeepInvError(f"the family is {family!r}: {' and '.join(FAMILIES)} are accepted")
    tokens = TEXT_TOKENS[family] if context_tokens is None else context_tokens
    with torch.device("meta"):
        transformer = getattr(diffusers, FAMILIES[family].CLASS)(**config)
        transformer.to("meta")  # diffusers 0.31 leaves the positions on the CPU
        channels = config["in_channels"] // (4 if family == "flux" else 1)
        z, sigma = torch.empty(1, channels, height, width), torch.empty(1)
        context = torch.empty(1, tokens, config["joint_attention_dim"])
        pooled = torch.empty(1, config["pooled_projection_dim"])
        guidance = sigma if config.get("guidance_embeds") else None
        return count_flops(lambda: FAMILIES[family].predict(transformer, z, sigma, context, pooled, guidance))
