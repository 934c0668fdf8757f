"""Fréchet distance between two sets of images (arXiv 1706.08500), by torchmetrics, on a backbone of choice."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from ...deepinv_core.errors import DeepInvError
from .clip import load_clip
from .dino import load_dino
from .sources import locate

BACKBONES: Final = ("inception", "clip", "dino")
"""What :func:`load_backbone` takes. Only ``inception`` gives the FID of the literature."""


class Inception(nn.Module):
    """FID's Inception v3, by torch-fidelity through torchmetrics; pooled features ``[B, 2048]``."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.num_features = 2048
        from torchmetrics.image.fid import NoTrainInceptionV3  # takes a second

        try:
            self._network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))
        except ModuleNotFoundError as error:
            raise DeepInvError(f"{error}".splitlines()[0] + " Or give another backbone: clip or dino") from error
        except Exception as error:  # whatever the bytes make the unpickler raise
            raise DeepInvError(
                f"{str(file)!r} could not be read as FID's Inception ({type(error).__name__}): store it again"
            ) from error

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1]."""
        return self._network((images.clamp(0, 1) * 255).round().byte())


def load_backbone(name: str, path: str | Path | None = None) -> nn.Module:
    """One of :data:`BACKBONES`: images ``[B, 3, H, W]`` in [0, 1] to features ``[B, D]``; ``num_features`` is D."""
    if name not in BACKBONES:
        raise DeepInvError(f"there is no FID backbone {name!r}: choose {', '.join(BACKBONES)}")
    if name == "inception":
        return Inception(locate(name, path))
    return load_clip(path) if name == "clip" else load_dino(path)


def fid(backbone: nn.Module, real: Tensor, fake: Tensor, *, batch: int = 32) -> float:
    """Fréchet distance between the features of two sets of images ``[B, 3, H, W]`` in [0, 1], two or more each."""
    if min(len(real), len(fake)) < 2:
        raise DeepInvError(f"FID of {len(real)} and {len(fake)} images: at least two each are needed, better thousands")
    from torchmetrics.image.fid import FrechetInceptionDistance  # takes a second

    device = next(backbone.parameters()).device
    metric = FrechetInceptionDistance(feature=backbone, normalize=True).to(device)
    for images, is_real in ((real, True), (fake, False)):
        for some in images.split(batch):
            metric.update(some.to(device), real=is_real)
    return float(metric.compute())
