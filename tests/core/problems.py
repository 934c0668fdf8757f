"""Flows whose velocity is known exactly."""

from __future__ import annotations

import torch

from comfyui_deepinv.deepinv_core.solver import Corrector, Predictor

ZERO = Corrector(lambda *, velocity, **inputs: velocity, None, None)
"""A solver that corrects nothing."""

FLAT = Predictor(lambda *, last, **inputs: last)
"""A solver that guesses that nothing changes."""


class GaussianMixture:
    """Rectified flow of a mixture of isotropic Gaussians: the exact marginal velocity at any sigma.

    ``z_0 ~ sum_k w_k N(mu_k, s_k^2)``; given component k, ``z_sigma`` is Gaussian with mean
    ``(1-sigma) mu_k`` and variance ``(1-sigma)^2 s_k^2 + sigma^2``, and ``E[eps - z_0 | z]`` follows.
    """

    sigma_min = 0.0
    cost = 1

    def __init__(self, shape: tuple[int, ...] = (2, 4, 4), seed: int = 0, spread: float = 0.5) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.means = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
        self.spreads = torch.tensor([spread, 1.2 * spread, 0.8 * spread], dtype=torch.float64)
        self.log_weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
        self.calls: list[float] = []

    def sample(self, count: int, seed: int = 1) -> torch.Tensor:
        """Clean latents ``[count, ...]``, float64."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.randint(3, (count,), generator=generator)
        noise = torch.randn((count, *self.means.shape[1:]), generator=generator, dtype=torch.float64)
        return self.means[k] + self.spreads[k].view(-1, 1, 1, 1) * noise

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """Exact velocity in float64."""
        self.calls.append(sigma)
        away = z.double()[:, None] - (1 - sigma) * self.means  # [B, K, ...]
        variance = ((1 - sigma) * self.spreads) ** 2 + sigma**2
        squared = away.flatten(2).square().sum(2)
        log_p = self.log_weights - squared / (2 * variance) - away[0, 0].numel() / 2 * variance.log()
        v = variance.view(-1, 1, 1, 1)
        s2 = self.spreads.view(-1, 1, 1, 1) ** 2
        component = (sigma - (1 - sigma) * s2) / v * away - self.means
        return (log_p.softmax(1).view(*log_p.shape, 1, 1, 1) * component).sum(1)
