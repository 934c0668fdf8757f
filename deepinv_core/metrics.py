"""How close two images are: PSNR, SSIM, LPIPS, and the comparison a quality report shows.

Images are float ``[B, 3, H, W]`` in [0, 1]; a metric gives one value per image, ``[B]``.

PSNR and SSIM equal torchmetrics' to rounding (a test holds them to it). They are written out because its SSIM takes
10 s for a 1024 x 1024 pair in float64 on one CPU core where :func:`ssim` takes 1 s, and in float32 is off by 1e-4 in
bright flat areas.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import DeepInvError
from .lpips import SMALLEST_SIDE as LPIPS_SMALLEST_SIDE
from .lpips import Lpips, load_lpips, lpips_available

PSNR_CAP: Final = 100.0
"""dB: what :func:`compare` reports at most; JSON has no infinity for identical images."""

SSIM_SMALLEST_SIDE: Final = 11
"""Pixels: SSIM's Gaussian window."""


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, ``-10 log10(mean((a - b)^2))``, over all pixels and channels of an image.

    ``[B]`` float64 in dB, higher is closer; infinity where the two are identical.

    Raises:
        DeepInvError: Another shape, integers, NaN, values outside [0, 1].

    Example:
        >>> import torch
        >>> psnr(torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.6)).round(decimals=4).tolist()
        [20.0]
    """
    _check_pair(a, b)
    return -10 * (_double(a) - _double(b)).square().mean(dim=(1, 2, 3)).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): 11 x 11 Gaussian window of deviation 1.5, K = (0.01, 0.03).

    Per channel, the borders mirrored, averaged over channels and pixels: ``[B]`` float64 in [-1, 1], 1 where the two
    are identical.

    Raises:
        DeepInvError: As :func:`psnr`; a side below :data:`SSIM_SMALLEST_SIDE`.

    Example:
        >>> import torch
        >>> image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> ssim(image, image).round(decimals=4).tolist()
        [1.0]
    """
    _check_pair(a, b)
    if min(a.shape[-2:]) < SSIM_SMALLEST_SIDE:
        raise DeepInvError(
            f"SSIM of an image of {a.shape[-1]} x {a.shape[-2]} pixels: at least {SSIM_SMALLEST_SIDE} x "
            f"{SSIM_SMALLEST_SIDE} are needed; enlarge both images, or use PSNR"
        )
    a, b = _double(a), _double(b)
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = (_window_mean(x) for x in (a, b, a * a, b * b, a * b))
    variances = (mean_aa - mean_a**2).clamp_min(0) + (mean_bb - mean_b**2).clamp_min(0)
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    structure = (2 * (mean_ab - mean_a * mean_b) + 0.03**2) / (variances + 0.03**2)
    return (luminance * structure).mean(dim=(1, 2, 3))


@torch.no_grad()
def perceptual(a: Tensor, b: Tensor, *, network: Lpips | None = None) -> Tensor | None:
    """LPIPS-AlexNet, ``[B]`` float32, 0 where the two are identical, lower is closer; None without weights.

    Args:
        a: Both sides at least 31 pixels.
        b: The same shape.
        network: The loaded network, for many calls; without it :func:`.lpips.load_lpips` is asked each time.

    Raises:
        DeepInvError: As :func:`psnr`; images too small; weights that are named but unusable.
    """
    _check_pair(a, b)
    if network is None:
        if not lpips_available():
            return None
        network = load_lpips()
    device = next(network.parameters()).device
    return network(a.to(device, torch.float32), b.to(device, torch.float32)).to(a.device)


def compare(photo: Tensor, result: Tensor, vae_decode: Tensor, *, network: Lpips | None = None) -> dict[str, float]:
    """What a quality report shows: the result against the photo, next to what the VAE alone allows.

    Args:
        photo: The photos ``[B, 3, H, W]`` in [0, 1], both sides at least :data:`SSIM_SMALLEST_SIDE` pixels.
        result: The reconstructions or edits, same shape.
        vae_decode: The photos encoded and decoded by the VAE, same shape: the ceiling of any reconstruction.
        network: The loaded LPIPS network, for many calls.

    Returns:
        Means over the batch, finite: ``psnr``, ``ssim`` (result and photo), ``psnr_vae``, ``ssim_vae`` (VAE's decode
        and photo), ``psnr_to_vae`` (result and VAE's decode); ``lpips`` and ``lpips_vae`` only where weights are at
        hand and the images have at least 31 x 31 pixels. Each image's PSNR is capped at :data:`PSNR_CAP`.

    Raises:
        DeepInvError: As :func:`psnr` and :func:`ssim`; LPIPS weights that are named but unusable.
    """
    _check_pair(photo, result, "photo", "result")
    _check_pair(photo, vae_decode, "photo", "vae_decode")
    report = {
        "psnr": psnr(result, photo),
        "ssim": ssim(result, photo),
        "psnr_vae": psnr(vae_decode, photo),
        "ssim_vae": ssim(vae_decode, photo),
        "psnr_to_vae": psnr(result, vae_decode),
    }
    if min(photo.shape[-2:]) >= LPIPS_SMALLEST_SIDE and (network or lpips_available()):
        network = network or load_lpips()
        for key, image in {"lpips": result, "lpips_vae": vae_decode}.items():
            distance = perceptual(image, photo, network=network)
            assert distance is not None
            report[key] = distance
    return {
        key: float((values.clamp_max(PSNR_CAP) if key.startswith("psnr") else values).mean())
        for key, values in report.items()
    }


def _window_mean(x: Tensor) -> Tensor:
    """Mean under the Gaussian window around each pixel; one axis after the other, as shifted sums."""
    radius = SSIM_SMALLEST_SIDE // 2
    weights = torch.arange(-radius, radius + 1, dtype=torch.float64).div(1.5).square().div(-2).exp()
    weights = weights / weights.sum()
    height, width = x.shape[-2:]
    x = F.pad(x, (radius,) * 4, mode="reflect")
    x = sum((w * x[..., i : i + width] for i, w in enumerate(weights.tolist())), x.new_zeros(()))
    return sum((w * x[..., i : i + height, :] for i, w in enumerate(weights.tolist())), x.new_zeros(()))


def _double(image: Tensor) -> Tensor:
    """Float64 on the image's device, or on the CPU where the device has none."""
    return image.cpu().double() if image.device.type == "mps" else image.double()


def _check_pair(a: Tensor, b: Tensor, name_a: str = "first", name_b: str = "second") -> None:
    for name, image in ((name_a, a), (name_b, b)):
        if image.ndim != 4 or image.shape[1] != 3 or image.numel() == 0:
            raise DeepInvError(
                f"the {name} image has shape {list(image.shape)}: [B, 3, H, W] is needed; "
                "ComfyUI's [B, H, W, 3] becomes that by image.movedim(-1, 1)"
            )
        if not image.is_floating_point():
            raise DeepInvError(f"the {name} image is {image.dtype}: floats in [0, 1] are needed; divide bytes by 255")
        low, high = (float(value) for value in image.aminmax())
        if not (low >= 0 and high <= 1):  # NaN fails both
            raise DeepInvError(
                f"the {name} image has values from {low:g} to {high:g}: finite values in [0, 1] are needed; "
                "clamp it, bring [-1, 1] there by (image + 1) / 2, or divide bytes by 255"
            )
    if a.shape != b.shape:
        raise DeepInvError(
            f"the {name_a} image has shape {list(a.shape)}, the {name_b} {list(b.shape)}: the same is needed; "
            "resize or crop one to the other"
        )
