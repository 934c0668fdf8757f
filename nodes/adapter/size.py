"""A word on a picture's size before a model works on it."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch

from .progress import tell

OWN_SIDE = "deepinv_side"
"""Attachment of a MODEL that knows pictures of about one size alone: their side in pixels."""

USUAL = 1024 * 1024
"""Pixels that SD3.5, FLUX.1 and their like are made for."""

LARGE = 1.5
"""Share of :data:`USUAL` from which a word is said."""

SIDES = (0.75, 1.5)
"""A side of a picture over that of a model that knows one size: the included models saw 96 to 192 pixels."""


def pixels(model: Any, latent: torch.Tensor) -> tuple[int, int]:
    """Width and height of the picture of a latent ``[B, C, ..., H, W]``."""
    factor = getattr(model.model.latent_format, "spacial_downscale_ratio", 8)
    return latent.shape[-1] * factor, latent.shape[-2] * factor


def wrong_size(model: Any, latent: torch.Tensor) -> str:
    """What is wrong with a picture's size for a model that knows one alone; "" where nothing is."""
    width, height = pixels(model, latent)
    own = model.attachments.get(OWN_SIDE)
    if not own or all(SIDES[0] <= side / own <= SIDES[1] for side in (width, height)):
        return ""
    low, high = (round(share * own) for share in SIDES)
    return (
        f"the photo is {width}x{height} pixels and this model knows only {low} to {high} a side: the result will be "
        f"poor; scale the photo to {own}x{own} before VAE Encode"
    )


def own_size(model: Any, latent: torch.Tensor) -> list[str]:
    """How small the pictures of a model are that knows one size, and where the rest of a photo is, for the report."""
    own = model.attachments.get(OWN_SIDE)
    if not own or wrong_size(model, latent):
        return []
    return [
        f"this model's pictures are {own}x{own} pixels: photos are cut to a square at their middle, and scaled to it"
    ]


def warn_of_size(model: Any, latent: torch.Tensor) -> list[str]:
    """What is to be expected of a picture's size, for the report; told on the node that runs at once."""
    width, height = pixels(model, latent)
    share = width * height / USUAL
    wrong = wrong_size(model, latent)
    said = [wrong] if wrong else own_size(model, latent)
    if OWN_SIDE not in model.attachments and share > LARGE and latent.ndim == 4:
        needed, free = (
            amount / 2**30
            for amount in (
                model.model.memory_required(list(latent.shape)),
                comfy.model_management.get_free_memory(model.load_device),
            )
        )
        said.append(
            f"the photo is {width}x{height} pixels, {share:.1f} times 1024x1024: each evaluation takes more than "
            f"{share:.1f} times as long, and about {needed:.1f} GiB beside the weights ({free:.1f} are free); scale it "
            "down if that is too much"
        )
    for line in said:
        tell(line)
    return said
