"""The corrector: DeepInv as published (arXiv 2601.01487). The base model is asked first, the network corrects it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from ..errors import DeepInvError
from ..flow import CountedVelocity
from ..integrator import Rule
from ..methods.anderson import Anderson
from ..methods.entry import Cost
from ..methods.implicit import Implicit, Point, TargetEuler
from .config import TransformerConfig, size
from .kind import Network, Solver

IMAGE_POOLS: Final = ("adaptive", "linear")


@dataclass(frozen=True, kw_only=True)
class CorrectorConfig(TransformerConfig):
    """Geometry of g_φ, the paper's dual-branch network.

    The presets: ``paper``, the released geometry, 5 + 5 joint blocks of width 1536; ``compact``, under 15 % of one
    SD3.5-medium evaluation and 3 % of one of FLUX.1; ``tiny``, for the embedded model.

    Attributes:
        context_width: Width of the prompt tokens; 0 for a base model without them (a learned token takes their place).
        pooled_width: Width of the pooled prompt vector; 0 for a base model without one.
        layers_left: Joint blocks of the left (prior) branch, grown ones included.
        layers_right: Joint blocks of the right (content) branch, grown ones included; independent of the left's.
        grown_left: How many of the left blocks, directly before its last, were added by growth.
        grown_right: The same of the right branch.
        image_pool: How z_0 becomes the pooled image. ``"linear"``: the released way, one channel over a fixed map of
            ``image_grid``² latent pixels (a latent of another size is averaged onto that map). ``"adaptive"``:
            ``image_channels`` channels, each averaged onto ``image_grid``² cells whatever the resolution and aspect.
        image_channels: Channels of the 1x1 convolution in front of the pooling; 1 with ``"linear"``.
        image_grid: Cells per side of the pooled image.
        image_width: Width of the pooled-image vector.
    """

    role: ClassVar[str] = "corrector"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "heads": 24,
            "head_dim": 64,
            "layers_left": 5,
            "layers_right": 5,
            "image_width": 2048,
            "pos_base": 512,
        },
        "compact": {"heads": 10, "head_dim": 64, "layers_left": 3, "layers_right": 4, "image_width": 640},
        "tiny": {
            "heads": 3,
            "head_dim": 32,
            "layers_left": 1,
            "layers_right": 2,
            "image_channels": 8,
            "image_grid": 4,
            "image_width": 64,
            "pos_table": 32,
            "pos_base": 32,
        },
    }

    context_width: int = size(0, 65536)
    pooled_width: int = size(0, 65536)
    layers_left: int = size(1, 128)
    layers_right: int = size(1, 128)
    grown_left: int = size(0, 127, 0)
    grown_right: int = size(0, 127, 0)
    image_pool: str = "adaptive"
    image_channels: int = size(1, 256, 16)
    image_grid: int = size(1, 1024, 8)
    image_width: int = size(1, 65536, 512)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_pool not in IMAGE_POOLS:
            raise DeepInvError(
                f"Solver setting image_pool is {self.image_pool!r}: use one of {', '.join(IMAGE_POOLS)}."
            )
        if self.image_pool == "linear" and self.image_channels != 1:
            raise DeepInvError(
                f"image_pool 'linear' has one channel, not {self.image_channels}: set image_channels to 1."
            )
        for side in ("left", "right"):
            grown, layers = getattr(self, f"grown_{side}"), getattr(self, f"layers_{side}")
            if grown >= layers:
                raise DeepInvError(f"grown_{side} is {grown} of {layers} layers: the last layer is never a grown one.")

    def build(self) -> Network:
        """A fresh network of this geometry."""
        from .corrector_network import CorrectorNetwork  # brings diffusers, which takes seconds

        return CorrectorNetwork(self)


@dataclass(frozen=True)
class Corrector(Solver):
    """``eps* = e + g_phi(e, z_i, z_0, sigma_{i+1}, c)`` with ``e = v(z_i, sigma_{i+1}, c)``."""

    config_type: ClassVar[type[CorrectorConfig]] = CorrectorConfig
    cost: ClassVar[Cost] = Cost(1, refine=1)
    reads_prompt: ClassVar[bool] = True
    uses_history: ClassVar[bool] = False

    def rule(self, refine: int, tolerance: float = 0.0) -> Rule:
        """The paper's step, K = 0; its noise is where ``refine`` Anderson iterations start."""
        return Implicit(self, Anderson(refine, tolerance) if refine else None)

    def __call__(self, v: CountedVelocity, point: Point) -> Tensor:
        """Target-sigma Euler's noise, corrected by the network."""
        return self.correct(TargetEuler()(v, point), point)

    def correct(self, e: Tensor, point: Point) -> Tensor:
        """``eps*`` from an ``e`` that is already there."""
        sigma = torch.full((len(e),), point.step.sigma_next, device=e.device, dtype=torch.float32)
        return self.network(
            velocity=e,
            latent=point.z,
            latent_clean=point.latent_clean,
            sigma=sigma,
            context=self.context,
            pooled=self.pooled,
        )
