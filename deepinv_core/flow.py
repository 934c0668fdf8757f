"""The convention every module shares, and the model as the core sees it.

sigma is the flow time: 0 = image, 1 = noise, ``z_sigma = (1 - sigma) * z_0 + sigma * eps``. A base model
gives the velocity ``v(z, sigma) ~ eps - z_0 = dz/dsigma``. Sampling walks sigma down, inversion walks it up;
``h`` below is always ``sigma_next - sigma``, so it is positive when inverting and negative when sampling.
"""

from __future__ import annotations

from typing import Protocol

import torch

from .errors import DeepInvError


class Velocity(Protocol):
    """A base model with its conditioning bound: ``v = velocity(z, sigma)``.

    Attributes:
        sigma_min: smallest sigma the model may be evaluated at; below it sigma is raised to it, in both
            directions alike (at 0 a denoiser's ``(z - denoised) / sigma`` is 0/0).
        cost: base evaluations one call makes: 1, or 2 under classifier-free guidance.
    """

    @property
    def sigma_min(self) -> float:
        """See the class."""
        ...

    @property
    def cost(self) -> int:
        """See the class."""
        ...

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """Velocity at latent ``z`` ``[B, C, ...]`` and flow time ``sigma``; same shape as ``z``."""
        ...


class CountedVelocity:
    """A velocity that counts its base evaluations and remembers where its output was not finite.

    The check costs no device-to-host copy until :meth:`raise_if_not_finite`, which the integrator calls
    once at the end.
    """

    def __init__(self, velocity: Velocity) -> None:
        self._velocity = velocity
        self._finite: list[torch.Tensor] = []
        self._places: list[tuple[int, float]] = []
        self.nfe = 0
        self.step = 0

    def __call__(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """Evaluate at ``max(sigma, sigma_min)``; the result has ``z``'s dtype, whatever the network's is."""
        return self.of(self._velocity, z, sigma)

    def of(self, velocity: Velocity, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """The same for another velocity, counted with this one's: FlowEdit walks under two prompts."""
        sigma = max(sigma, velocity.sigma_min)
        v = velocity(z, sigma).to(z.dtype)
        self.nfe += velocity.cost
        self._finite.append(torch.isfinite(v).all())
        self._places.append((self.step, sigma))
        return v

    def answers(self) -> list[tuple[torch.Tensor, int, float]]:
        """Whether each answer was finite, on the device, with its step and sigma."""
        return [(finite, *place) for finite, place in zip(self._finite, self._places, strict=True)]

    def raise_if_not_finite(self) -> None:
        """Raise ``DeepInvError`` naming the first step and sigma at which the model gave NaN or infinity."""
        if not self._finite:
            return
        finite = torch.stack(self._finite).tolist()
        if not all(finite):
            step, sigma = self._places[finite.index(False)]
            raise DeepInvError(
                f"the model returned NaN or infinity at step {step}, sigma {sigma:.4f}: a finite velocity is needed; "
                "try float32 or bfloat16 weights, or a lower cfg"
            )


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Reshape ``[B]`` so that it multiplies a batch shaped ``like`` ``[B, ...]``."""
    return values.view(-1, *([1] * (like.ndim - 1)))


def norm(x: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of each sample: ``[B, ...]`` to ``[B]``."""
    return x.flatten(1).norm(dim=1)


def relative_error(x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """``|x - reference| / |reference|`` of each sample, ``[B]``; 0 where both are 0."""
    return norm(x - reference) / norm(reference).clamp_min(torch.finfo(x.dtype).tiny)
