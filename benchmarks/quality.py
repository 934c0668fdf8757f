"""What a round trip is worth, per image: latent and pixel errors, perceptual metrics, and how white the noise is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..deepinv_core.lpips import SMALLEST_SIDE, Lpips
from ..deepinv_core.metrics import PSNR_CAP, perceptual, psnr, ssim

SCALES: Final = (0.0448, 0.2856, 0.3001)
"""Exponents of MS-SSIM's finest scales (Wang et al. 2003): all five need 161 pixels, three need 41."""

PerImage = dict[str, Tensor]
"""A value an image ``[B]``, by metric."""


def against_photo(
    images: Tensor, photos: Tensor, network: Lpips | None, names: Sequence[str] = ("psnr", "ssim")
) -> PerImage:
    """Images against the photos, both ``[B, 3, H, W]`` in [0, 1]; LPIPS too where there is its network."""
    measures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "psnr": lambda a, b: psnr(a, b).clamp_max(PSNR_CAP),
        "ssim": ssim,
        "ms_ssim": ms_ssim,
        "mse": lambda a, b: (a.double() - b.double()).square().mean(dim=(1, 2, 3)),
    }
    values = {name: measures[name](images, photos) for name in names if name in measures}
    if network is not None and min(photos.shape[-2:]) >= SMALLEST_SIDE:
        distance = perceptual(images, photos, network=network)
        assert distance is not None
        values["lpips"] = distance
    return values


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Torchmetrics' multi-scale SSIM over :data:`SCALES`, rescaled to 1; images ``[B, 3, H, W]`` to ``[B]``."""
    from torchmetrics.functional import image  # takes a second

    betas, both = tuple(scale / sum(SCALES) for scale in SCALES), (a.double(), b.double())
    return image.multiscale_structural_similarity_index_measure(*both, data_range=1.0, betas=betas, reduction="none")


def whiteness(noise: Tensor) -> PerImage:
    """How far a noise ``[B, C, H, W]`` is from white Gaussian noise, which has 1, 0 and 0.

    ``noise_std``; ``noise_neighbour``, the correlation of horizontal and vertical neighbours; ``noise_channels``, the
    root mean square of the channels' correlations with each other.
    """
    x = noise.double()
    pairs = ((x[..., 1:], x[..., :-1]), (x[..., 1:, :], x[..., :-1, :]))
    together = torch.stack([(a * b).flatten(1).sum(1) for a, b in pairs]).sum(0)
    alone = torch.stack([((a.square() + b.square()) / 2).flatten(1).sum(1) for a, b in pairs]).sum(0)
    channels = F.normalize(x.flatten(2) - x.flatten(2).mean(-1, keepdim=True), dim=-1)
    between = (channels @ channels.mT).tril(-1).square().sum((1, 2))
    return {
        "noise_std": x.flatten(1).std(1, correction=0),
        "noise_neighbour": together / alone,
        "noise_channels": (2 * between / max(1, x.shape[1] * (x.shape[1] - 1))).sqrt(),
    }


def set_whiteness(noise: Tensor, photos: Tensor) -> dict[str, float]:
    """Measures of arXiv 2410.23530, of the noise ``[B, C, h, w]`` of photos ``[B, 3, 8 h, 8 w]`` together; 1 for white.

    ``noise_smooth``: its standard deviation where the photos are smooth, neighbours differing by less than 0.025; left
    out where they nowhere are. ``noise_patches``: mean of the 20 largest correlations, over the photos, of values in
    patches of 8 x 8, over that of white noise.
    """
    steps = F.pad(photos.diff(dim=-1).abs(), (0, 1)) + F.pad(photos.diff(dim=-2).abs(), (0, 0, 0, 1))
    smooth = noise.movedim(1, -1)[F.max_pool2d((steps / 2).amax(1), 8) < 0.025]

    def level(z: Tensor) -> float:
        features = F.unfold(z.double(), 8, stride=8).movedim(-1, 0).mT  # patches, values, photos
        top = [torch.corrcoef(one).triu(1).abs().flatten().topk(20).values for one in features]
        return float(torch.stack(top).mean())

    found = {"noise_smooth": float(smooth.std())} if len(smooth) else {}
    if len(noise) > 1:
        white = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
        found["noise_patches"] = level(noise) / level(white)
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def summary(values: PerImage) -> dict[str, list[float]]:
    """Mean over images and half the width of its 95 % confidence interval, by metric; rounded to 5 digits."""
    return {
        name: [float(f"{value:.5g}") for value in (float(one.double().mean()), half_width(one.double()))]
        for name, one in values.items()
    }


def half_width(values: Tensor) -> float:
    """Half of the 95 % interval of the mean of ``[B]`` values, by bootstrap with a fixed seed; 0 for one value."""
    drawn = torch.randint(len(values), (4000, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = values[drawn].mean(1).quantile(values.new_tensor([0.025, 0.975]))
    return float(high - low) / 2
