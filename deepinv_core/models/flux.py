"""FLUX.1, as diffusers has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from .base_info import BaseInfo, describe_geometry

FAMILY: Final = "flux"
CLASS: Final = "FluxTransformer2DModel"


def predict(
    transformer: torch.nn.Module,
    z: torch.Tensor,
    sigma: torch.Tensor,
    context: torch.Tensor,
    pooled: torch.Tensor,
    guidance: torch.Tensor | None = None,
) -> torch.Tensor:
    """See :data:`.transformer.FAMILIES`; 2x2 latent patches are tokens with (0, row, column) ids."""
    b, c, h, w = z.shape
    tokens = z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)
    sides = (torch.arange(side // 2, device=z.device, dtype=torch.float32) for side in (h, w))  # bf16 counts to 256
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    image_ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).view(-1, 3)
    text_ids = image_ids.new_zeros(context.shape[1], 3)
    v = transformer(tokens, context, pooled, sigma, image_ids, text_ids, guidance, return_dict=False)[0]
    return v.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def takes_guidance(config: Mapping[str, Any]) -> bool:
    """Whether the distilled guidance value is an input: of FLUX.1-dev it is."""
    return bool(config["guidance_embeds"])


def longest_side(config: Mapping[str, Any]) -> int:
    """Any side will do: positions are rotary."""
    return 0


def identity(config: Mapping[str, Any]) -> BaseInfo:
    """Of a transformer of this configuration."""
    return describe_geometry(
        FAMILY,
        channels=config["in_channels"] // 4,
        hidden=config["num_attention_heads"] * config["attention_head_dim"],
        depth=(config["num_layers"], config["num_single_layers"]),
        context=config["joint_attention_dim"],
        pooled=config["pooled_projection_dim"],
    )
