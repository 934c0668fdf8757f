"""A noise-prediction model of the embedded SD3 model's size, on the same photographs and latents.

    python -m comfyui_deepinv.tools.garments.noise_model runs/latents/latents.safetensors runs/noise --steps 6000

The same network and loop as :mod:`.flow_model`, but the network predicts the noise of
``x_t = sqrt(a_t)*z_0 + sqrt(1 - a_t)*e`` under Stable Diffusion 1.5's schedule (betas scaled-linear from 0.00085
to 0.012, 1000 timesteps), at the timesteps of the flow model's sigmas. k-diffusion's ``s = sqrt(1/a_t - 1)`` maps onto
the core's convention by ``sigma = s/(1 + s)``, ``z = z_k/(1 + s)``. ``RUN/model.safetensors`` holds the averaged
weights, half precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file

from ...deepinv_core import checkpoint
from ...deepinv_core.models import sd3
from ...deepinv_core.models.base_info import BaseInfo, fingerprint
from ...deepinv_core.models.base_model import BaseModel
from ...deepinv_core.models.embedded import load_embedded
from ...deepinv_core.models.transformer import Conditioning, TransformerVelocity
from .flow_model import SD3_CONFIG, Run, base_parser
from .run_folder import begin

TIMESTEPS = 1000


def signal_shares() -> torch.Tensor:
    """``a_t``, the share of the signal's variance at each timestep: float64 ``[1000]``, falling."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


LOG_SIGMAS = (1 / signal_shares() - 1).sqrt().log()
"""Logarithm of k-diffusion's sigma at each timestep, float64 ``[1000]``, rising."""


def flow_time(timestep: torch.Tensor) -> torch.Tensor:
    """The core's sigma of timesteps in [0, 999], interpolated in the logarithm as k-diffusion does; float64."""
    timestep = timestep.double().clamp(0, TIMESTEPS - 1)
    low = timestep.floor().long().clamp(max=TIMESTEPS - 2)
    return torch.lerp(LOG_SIGMAS[low], LOG_SIGMAS[low + 1], timestep - low).sigmoid()


def timestep_of(sigma: float) -> float:
    """The timestep in [0, 999] of the core's sigma: the inverse of :func:`flow_time`, clamped at both ends."""
    wanted = torch.logit(torch.tensor(sigma, dtype=torch.float64))
    low = int((wanted >= LOG_SIGMAS).sum().clamp(1, TIMESTEPS - 1)) - 1
    share = (wanted - LOG_SIGMAS[low]) / (LOG_SIGMAS[low + 1] - LOG_SIGMAS[low])
    return low + float(share.clamp(0, 1))


def timestep_grid(steps: int) -> torch.Tensor:
    """0, then the sigmas of N equally spaced timesteps up to the last: float64 ``[N + 1]``."""
    return torch.cat(
        [torch.zeros(1, dtype=torch.float64), flow_time(torch.arange(1, steps + 1) * TIMESTEPS / steps - 1)]
    )


def noise_error(
    model: nn.Module,
    z0: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    prompt: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Mean squared error of the noise that is predicted at the timesteps of ``sigma``, in bf16 autocast."""
    timestep = torch.searchsorted(LOG_SIGMAS.to(sigma.device), sigma.double().logit()).clamp_max(TIMESTEPS - 1)
    share = signal_shares().to(z0.device)[timestep].float().view(-1, 1, 1, 1)
    with torch.autocast(z0.device.type, torch.bfloat16):
        x = share.sqrt() * z0 + (1 - share).sqrt() * noise
        predicted = sd3.predict(model, x, timestep / TIMESTEPS, *prompt)
    return F.mse_loss(predicted.float(), noise)


class NoiseVelocity(TransformerVelocity):
    """The velocity of a noise-prediction transformer: ``(z - denoised)/sigma = (1 + s)*(e - z)``, s k-diffusion's."""

    def __init__(
        self,
        transformer: nn.Module,
        positive: Conditioning,
        negative: Conditioning | None = None,
        *,
        cfg: float = 1.0,
    ) -> None:
        """As the parent; guidance mixes the predicted noises, which is to mix the velocities."""
        super().__init__(transformer, positive, negative, cfg=cfg, sigma_min=float(flow_time(torch.zeros(()))))

    @torch.no_grad()
    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """``z [B, C, H, W]`` in the core's convention to a velocity of the same shape."""
        own = sigma / (1 - sigma)
        noise = super().__call__(z * (1 + own) / (1 + own**2) ** 0.5, timestep_of(sigma) / TIMESTEPS)
        return (1 + own) * (noise - z)


class NoiseBase(BaseModel):
    """A :class:`BaseModel` whose transformer predicts noise."""

    velocity_class: ClassVar[type[TransformerVelocity]] = NoiseVelocity


def noise_base(transformer: nn.Module) -> NoiseBase:
    """A noise-prediction transformer with the embedded model's VAE and prompts."""
    embedded = load_embedded("sd3")
    info = BaseInfo("sd3", embedded.info.channels, fingerprint({"noise": (1,), embedded.info.fingerprint: (1,)}))
    own = {"name": "noise-sd3", "info": info, "transformer": transformer, "solver_path": None}
    return NoiseBase(**{**vars(embedded), **own, "grid": lambda steps, latent: timestep_grid(steps)})


def load_noise_base(weights: Path) -> NoiseBase:
    """The model that the command above made."""
    transformer = SD3Transformer2DModel(**SD3_CONFIG)
    state = checkpoint.load(weights, kind=None)[0]
    transformer.load_state_dict({name: value.float() for name, value in state.items()})
    return noise_base(transformer.eval().requires_grad_(False))


def main() -> None:
    """Command line; see the module's docstring."""
    args, folder = begin(base_parser(__doc__, steps=6000))
    Run(SD3Transformer2DModel(**SD3_CONFIG), args, folder, noise_error).train(load_file(args.data))


if __name__ == "__main__":
    main()
