"""What the embedded models are trained as; whoever loads them reads it from the metadata of their files."""

from __future__ import annotations

from typing import Any, Final

CLASSES: Final = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""CIFAR-10's classes; a class name is a prompt, the empty prompt is row ``len(CLASSES)``."""

IMAGE_SIZE: Final = 64
"""Side of a training image in pixels (CIFAR's 32 upsampled by two)."""

LATENT_CHANNELS: Final = 16

LATENT_GAIN: Final = 0.3
"""Raw VAE latent = ``LATENT_GAIN`` x model-space latent.

The TAESD decoder starts with ``3*tanh(x/3)``; the gain keeps its input in the nearly linear part.
"""

CONTEXT_TOKENS: Final = 4
CONTEXT_WIDTH: Final = 64
POOLED_WIDTH: Final = 64

SD3_CONFIG: Final[dict[str, Any]] = {
    "sample_size": 64,
    "patch_size": 2,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_layers": 3,
    "attention_head_dim": 64,
    "num_attention_heads": 3,
    "caption_projection_dim": 192,
    "joint_attention_dim": CONTEXT_WIDTH,
    "pooled_projection_dim": POOLED_WIDTH,
    "pos_embed_max_size": 32,
    "qk_norm": "rms_norm",
}
"""``diffusers.SD3Transformer2DModel`` arguments. ComfyUI wants hidden = 64 x depth = 64 x heads."""

FLUX_CONFIG: Final[dict[str, Any]] = {
    "patch_size": 1,
    "in_channels": 4 * LATENT_CHANNELS,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 128,
    "num_attention_heads": 2,
    "joint_attention_dim": CONTEXT_WIDTH,
    "pooled_projection_dim": POOLED_WIDTH,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}
"""``diffusers.FluxTransformer2DModel`` arguments, in FLUX.1-schnell's layout (no guidance input)."""

VAE_CONFIG: Final[dict[str, Any]] = {"latent_channels": LATENT_CHANNELS}
"""``diffusers.AutoencoderTiny`` arguments (TAESD's shape, what ComfyUI loads as a tiny VAE)."""
