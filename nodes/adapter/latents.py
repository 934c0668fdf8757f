"""A LATENT as a model takes it; what it can't take is refused before any work, with the node that is likely wrong."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import torch

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.models.transformer import require_fitting
from .models import longest_side

SHAPES = {1: "[B, {}, length]", 2: "[B, {}, H, W]", 3: "[B, {}, frames, H, W]"}
"""Latents by a latent format's dimensions."""

OTHER_THAN_PICTURES = {
    **dict.fromkeys(("StableAudio1", "StableAudio3", "ACEStep", "ACEStep15", "MiniMaxMusic3"), "sound"),
    **dict.fromkeys(("Hunyuan3Dv2", "Hunyuan3Dv2_1", "TripoSplat", "Trellis2"), "solids"),
    **dict.fromkeys(("RT_DETR_v4", "SAM3", "DepthAnything3"), "what is seen in a picture"),
    "MiniMaxH3": "video and sound in one",
}
"""What comes out of ComfyUI's model classes that make neither images nor videos."""

FROM_PICTURES = tuple(
    getattr(comfy.model_sampling, name)
    for name in ("IMG_TO_IMG", "IMG_TO_IMG_FLOW")
    if hasattr(comfy.model_sampling, name)
)
"""Sampling that begins with a picture."""

STREAMS = (
    "the latent has more than one stream ({}), as a video with its sound: connect one of them, which "
    "LTXVSeparateAVLatent takes apart, or an image's latent by VAE Encode"
)


def as_taken(model: Any, samples: Any) -> torch.Tensor:
    """The samples of a LATENT as ComfyUI's own sampler takes them: an image is one frame of a video model.

    Raises:
        DeepInvError: more than one stream, or as :func:`require_noise` and :func:`check_latent`.
    """
    require_noise(model)
    require_one_stream(samples)
    if model.model.latent_format.latent_dimensions == 3 and samples.ndim == 4:
        samples = samples.unsqueeze(2)
    check_latent(model, samples)
    inside = model.model.process_latent_in(samples[:1])
    if inside.shape[1:] != samples.shape[1:]:
        raise DeepInvError(
            f"this model ({type(model.model).__name__}) packs a latent {list(samples.shape)} as {list(inside.shape)}, "
            "from which core's samplers can't start either: connect the model that it refines the pictures of"
        )
    return samples


def require_noise(model: Any) -> None:
    """Refuse a model that makes no images or videos, or makes them from no noise.

    Raises:
        DeepInvError: it is one.
    """
    name = type(model.model).__name__
    if name in OTHER_THAN_PICTURES:
        raise DeepInvError(
            f"this model ({name}) makes {OTHER_THAN_PICTURES[name]}: connect one that makes images or videos"
        )
    if isinstance(model.get_model_object("model_sampling"), FROM_PICTURES):
        raise DeepInvError(
            f"this model ({name}) makes a picture from another and not from noise, so that there is none to find: "
            "connect a model that starts from noise"
        )


def require_vae(vae: Any, latent: torch.Tensor) -> None:
    """Refuse a VAE that can't decode a latent ``[B, C, ...]``.

    Raises:
        DeepInvError: it takes another number of channels.
    """
    taken = getattr(vae, "latent_channels", latent.shape[1])
    if taken != latent.shape[1]:
        raise DeepInvError(
            f"the VAE takes latents of {taken} channels, the photo's have {latent.shape[1]}: connect the model's own"
        )


def decoded(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    """Raw latents as IMAGE ``[B, H, W, C]``, the frames of videos one after the other as core's VAE Decode has them."""
    images: torch.Tensor = vae.decode(latent)
    return images.flatten(0, -4)


def there_and_back(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """IMAGE ``[B, H, W, 3]`` encoded and decoded, each by itself: a video's VAE takes a batch for its frames."""
    video = getattr(vae, "latent_dim", 2) == 3
    return decoded(vae, torch.cat([vae.encode(part) for part in images.split(1 if video else len(images))]))


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
