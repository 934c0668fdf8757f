"""Structure distance (Splice, arXiv 2201.00424), as PIE-Bench's published evaluation computes it.

The keys of the last layer of DINO ViT-B/8, all heads together, are compared by cosine, each token with each; the
distance is the mean squared difference of two images' ``[T, T]`` matrices. Two things of the published code shape its
numbers and are kept: pixels are fed as 0 to 255 where the normalisation expects 0 to 1, and images are scaled to 224
by bilinear sampling without antialiasing (torchvision 0.13, which it pins; from 0.17 on the same call antialiases).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...deepinv_core.errors import DeepInvError
from .sources import locate, pretrained

SIDE: Final = 224
LAYERS: Final = 12
PATCH: Final = 8
_MEAN: Final = (0.485, 0.456, 0.406)
_STD: Final = (0.229, 0.224, 0.225)


class Dino(nn.Module):
    """DINO ViT-B/8, which measures structure distance by its keys."""

    def __init__(self, vit: Any) -> None:
        """Take transformers' ``ViTModel``; only one of 12 layers on patches of 8 of a 224 x 224 image."""
        super().__init__()
        config = vit.config
        seen = (config.num_hidden_layers, config.patch_size, config.image_size)
        if seen != (LAYERS, PATCH, SIDE):
            raise DeepInvError(
                f"the DINO network has {seen[0]} layers and patches of {seen[1]} on {seen[2]} pixels: {LAYERS}, "
                f"{PATCH} and {SIDE} are needed, facebook/dino-vitb8"
            )
        self.vit = vit.eval().requires_grad_(False)
        # one name from transformers 5 on, the other before
        self._key = [one for name, one in vit.named_modules() if name.endswith((".k_proj", ".key"))][-1]

    @torch.no_grad()
    def structure_distance(self, a: Tensor, b: Tensor) -> float:
        """Two images ``[1, 3, H, W]`` in [0, 1], square as PIE-Bench's are: their structure distance, 0 or more."""
        if a.shape != b.shape or a.shape[-1] != a.shape[-2]:
            raise DeepInvError(
                f"structure distance of images {list(a.shape)} and {list(b.shape)}: "
                "two square ones of one size are needed"
            )
        first, second = self.self_similarity(torch.cat([a, b]) * 255)
        return float(F.mse_loss(first, second))

    @torch.no_grad()
    def self_similarity(self, pixels: Tensor) -> Tensor:
        """Pixels ``[B, 3, H, W]`` in [0, 255] to the cosine of the last layer's keys ``[B, T, T]``."""
        scaled = F.interpolate(pixels.to(self.vit.device), (SIDE, SIDE), mode="bilinear", align_corners=False)
        keys: list[Tensor] = []
        hook = self._key.register_forward_hook(lambda module, inputs, output: keys.append(output))
        try:
            self.vit(pixel_values=_normalised(scaled))
        finally:
            hook.remove()
        length = keys[0].norm(dim=-1, keepdim=True)
        return keys[0] @ keys[0].mT / (length @ length.mT).clamp_min(1e-8)


def _normalised(images: Tensor) -> Tensor:
    mean, std = (images.new_tensor(one).view(3, 1, 1) for one in (_MEAN, _STD))
    return (images - mean) / std


def load_dino(path: str | Path | None = None) -> Dino:
    """DINO ViT-B/8 from a transformers folder, float32; errors as :func:`locate`, :func:`pretrained` and the class."""
    from transformers import ViTModel  # takes seconds

    return Dino(pretrained(ViTModel, locate("dino", path), "dino", add_pooling_layer=False))
