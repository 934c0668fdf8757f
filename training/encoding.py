"""A folder of images to latents, by the VAE of a base model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from ..deepinv_core.models.base_model import BaseModel
from .buckets import buckets, find_images
from .latents import LatentCache, encode_folder
from .workers import Workers

PIXELS: Final = 2 * 1024**2
"""Pixels encoded at once: two images of 1024², or several hundred small ones."""

SHARD_VALUES: Final = 2**26
"""Latent values in a shard, 128 MB: 256 images of 1024² in 16 channels."""

SHARD_IMAGES: Final = 4096
"""Latents in a shard at most, so that little is lost when the encoding is interrupted."""


def vae_fingerprint(model: BaseModel) -> str:
    """Tells a VAE from others: names, shapes and values of its parameters and buffers, and how latents are scaled."""
    digest = hashlib.sha256(repr((model.scale, model.shift)).encode())
    for name, tensor in sorted(model.vae.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def require_images(images: Path, side: int) -> None:
    """Refuse a folder without images or a side that can't be; errors as :func:`.latents.encode_folder`."""
    buckets([], side)
    find_images(images)


def latents_of_folder(
    images: Path,
    cache: Path,
    model: BaseModel,
    side: int,
    workers: Workers,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatentCache:
    """Encode a folder once, in half precision; the first process does, the others wait, and end where it is stopped.

    Args:
        images: the folder.
        cache: folder for the latents; what is there already is kept.
        model: whose VAE encodes.
        side: side in pixels of the square whose area the images are cropped to.
        workers: the processes.
        progress: called with the images done and in all; may raise to interrupt.

    Raises:
        DeepInvError: as :func:`.latents.encode_folder`.
    """
    fingerprint = vae_fingerprint(model)
    stopped: KeyboardInterrupt | None = None
    if workers.rank == 0:
        values = model.info.channels * (side / 8) ** 2
        try:
            encode_folder(
                images,
                cache,
                lambda pixels: model.encode(pixels).half(),
                vae_fingerprint=fingerprint,
                side=side,
                batch=max(1, PIXELS // max(1, side) ** 2),
                shard_size=int(min(SHARD_IMAGES, max(16, SHARD_VALUES // values))),
                seed=0,
                progress=progress,
            )
        except KeyboardInterrupt as interrupt:
            stopped = interrupt
    if workers.any(stopped is not None):
        raise stopped or KeyboardInterrupt
    return LatentCache.open(cache, vae_fingerprint=fingerprint, side=side)
