"""Live previews of a model in its own colours: ComfyUI draws them by factors of the latents of SD3 and of FLUX."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def fit_preview(model: Any, vae: Any, photos: torch.Tensor) -> None:
    """Give the latent format of a MODEL the colours of its latents, by least squares on photos.

    ComfyUI takes a previewer by the model's latent format, of which each model has its own, so no other is touched.

    Args:
        model: MODEL just made.
        vae: its VAE.
        photos: IMAGE ``[B, H, W, 3]`` in [0, 1], sides that the VAE takes.
    """
    latents = model.model.process_latent_in(vae.encode(photos)).float().cpu()
    colours = F.adaptive_avg_pool2d(photos.movedim(-1, 1), latents.shape[-2:]) * 2 - 1
    values, wanted = (maps.movedim(1, -1).flatten(0, -2) for maps in (latents, colours))
    found = torch.linalg.lstsq(F.pad(values, (0, 1), value=1.0), wanted).solution
    own = model.model.latent_format
    own.latent_rgb_factors, own.latent_rgb_factors_bias = found[:-1].tolist(), found[-1].tolist()
    own.latent_rgb_factors_reshape = own.taesd_decoder_name = None
