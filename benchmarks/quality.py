"""What a round trip is worth, per image: latent and pixel errors, perceptual metrics, and how white the noise is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from scipy.special import stdtrit
from torch import Tensor

from ..deepinv_core.inversion import latent_snr
from ..deepinv_core.lpips import SMALLEST_SIDE, Lpips
from ..deepinv_core.metrics import PSNR_CAP, perceptual, psnr, ssim

SCALES: Final = (0.0448, 0.2856, 0.3001)
"""Exponents of MS-SSIM's finest scales (Wang et al. 2003): all five need 161 pixels, three need 41."""

PerImage = dict[str, Tensor]
"""A value an image ``[B]``, by metric."""


def against_photo(
    images: Tensor, photos: Tensor, network: Lpips | None, names: Sequence[str] = ("psnr", "ssim", "ms_ssim", "mse")
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


def losses(back: Tensor, latent: Tensor, images: Tensor, ceiling: Tensor) -> PerImage:
    """What the inversion alone lost: in the latent, and in pixels against the VAE's decode of the latent."""
    return {
        "latent_snr_db": latent_snr(back, latent),
        "latent_mse": (back.double() - latent.double()).square().flatten(1).mean(1),
        "psnr_to_vae": psnr(images, ceiling).clamp_max(PSNR_CAP),
        "ssim_to_vae": ssim(images, ceiling),
    }


def whiteness(noise: Tensor) -> PerImage:
    """How far a noise ``[B, C, H, W]`` is from white Gaussian noise, which has 1, 0 and 0.

    ``noise_std``, ``noise_kurtosis`` (excess), and ``noise_neighbour``, the correlation of horizontal and vertical
    neighbours.
    """
    x = noise.double()
    centred = (x - x.mean(dim=(1, 2, 3), keepdim=True)).flatten(1)
    variance = centred.square().mean(1)
    pairs = ((x[..., 1:], x[..., :-1]), (x[..., 1:, :], x[..., :-1, :]))
    together = torch.stack([(a * b).flatten(1).sum(1) for a, b in pairs]).sum(0)
    alone = torch.stack([((a.square() + b.square()) / 2).flatten(1).sum(1) for a, b in pairs]).sum(0)
    return {
        "noise_std": variance.sqrt(),
        "noise_kurtosis": centred.pow(4).mean(1) / variance.square() - 3,
        "noise_neighbour": together / alone,
    }


def summary(values: PerImage) -> dict[str, list[float]]:
    """Mean over images and half the width of its 95 % confidence interval, by metric; rounded to 5 digits.

    Example:
        >>> import torch
        >>> summary({"x": torch.tensor([1.0, 2.0, 3.0, 4.0])})
        {'x': [2.5, 2.0543]}
    """
    return {
        name: [float(f"{value:.5g}") for value in (float(one.double().mean()), half_width(one.double()))]
        for name, one in values.items()
    }


def half_width(values: Tensor) -> float:
    """Half of Student's 95 % confidence interval of the mean of ``[B]`` values; 0 for one value."""
    count = len(values)
    if count < 2:
        return 0.0
    return student(count - 1) * float(values.std()) / math.sqrt(count)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    return float(stdtrit(freedom, 0.975))
