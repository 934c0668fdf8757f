"""Stable Diffusion 3, as diffusers has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from .base_info import BaseInfo, describe_geometry

FAMILY: Final = "sd3"
CLASS: Final = "SD3Transformer2DModel"


def predict(
    transformer: torch.nn.Module,
    z: torch.Tensor,
    sigma: torch.Tensor,
    context: torch.Tensor,
    pooled: torch.Tensor,
    guidance: torch.Tensor | None = None,
) -> torch.Tensor:
    """See :data:`.transformer.FAMILIES`; the timestep is ``1000*sigma``, and there is no guidance input."""
    v: torch.Tensor = transformer(z, context, pooled, sigma * 1000, return_dict=False)[0]
    return v


def takes_guidance(config: Mapping[str, Any]) -> bool:
    """Whether the distilled guidance value is an input."""
    return False


def longest_side(config: Mapping[str, Any]) -> int:
    """Side in latent pixels that there are positions for; 0 where any will do."""
    return int(config.get("pos_embed_max_size", 0) * config.get("patch_size", 1))


def identity(config: Mapping[str, Any]) -> BaseInfo:
    """Of a transformer of this configuration."""
    return describe_geometry(
        FAMILY,
        channels=config["in_channels"],
        hidden=config["num_attention_heads"] * config["attention_head_dim"],
        depth=(config["num_layers"], 0),
        context=config["joint_attention_dim"],
        pooled=config["pooled_projection_dim"],
    )
