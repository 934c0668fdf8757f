"""A LATENT as a model takes it; what it can't take is refused before any work, with the node that is likely wrong."""

from __future__ import annotations

from typing import Any

import torch

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.models.transformer import require_fitting
from .models import longest_side

SHAPES = {1: "[B, {}, length]", 2: "[B, {}, H, W]", 3: "[B, {}, frames, H, W]"}
"""Latents by a latent format's dimensions."""

STREAMS = (
    "the latent has more than one stream ({}), as a video with its sound: connect one of them, which "
    "LTXVSeparateAVLatent takes apart, or an image's latent by VAE Encode"
)


def as_taken(model: Any, samples: Any) -> torch.Tensor:
    """The samples of a LATENT as ComfyUI's own sampler takes them: an image is one frame of a video model.

    Args:
        model: MODEL.
        samples: ``[B, C, ...]``.

    Raises:
        DeepInvError: more than one stream, or as :func:`check_latent`.
    """
    require_one_stream(samples)
    if model.model.latent_format.latent_dimensions == 3 and samples.ndim == 4:
        samples = samples.unsqueeze(2)
    check_latent(model, samples)
    return samples


def require_one_stream(samples: Any) -> None:
    """Refuse what ComfyUI's audio and video models have, a NestedTensor.

    Raises:
        DeepInvError: it is one.
    """
    if samples.is_nested:
        shapes = ", ".join(str(list(stream.shape)) for stream in samples.unbind())
        raise DeepInvError(STREAMS.format(shapes))


def check_latent(model: Any, latent: torch.Tensor) -> None:
    """Refuse a latent that is empty or not finite, or has other axes, channels or a larger size than the model takes.

    Raises:
        DeepInvError: it is.
    """
    taken = model.model.latent_format
    wanted, axes = taken.latent_channels, taken.latent_dimensions + 2
    shape = SHAPES[taken.latent_dimensions].format(wanted)
    if axes == 3:
        raise DeepInvError(
            f"this model takes latents {shape}, which is sound or a solid: connect one of images or video"
        )
    if latent.ndim == 3 and latent.shape[1] == 1:
        raise DeepInvError(STREAMS.format("packed by ComfyUI"))
    if axes == 4 and latent.ndim == 5:
        raise DeepInvError(
            f"the latent has shape {list(latent.shape)}, a video's, and this model takes images {shape}: encode with "
            "the VAE that belongs to it (those of Wan and Qwen-Image give five axes)"
        )
    if latent.ndim != axes or latent.numel() == 0:
        raise DeepInvError(f"the latent has shape {list(latent.shape)}: a non-empty batch {shape} is needed")
    if latent.shape[1] != wanted:
        raise DeepInvError(
            f"the latent has {latent.shape[1]} channels, this model takes {wanted}: "
            "encode with the VAE that belongs to it"
        )
    require_fitting(latent.shape, longest_side(model))
    if not bool(torch.isfinite(latent).all()):
        raise DeepInvError("the latent holds NaN or infinity: encode the image again, with a float32 VAE if need be")
