"""PIE-Bench's metrics, by the names and the rules of its published evaluation.

- Background (``..._unedit_part``): both images times ``1 - mask``, black where edited, averaged over the whole frame;
  None where there is no background. PSNR, SSIM and MSE by torchmetrics on [0, 1]; LPIPS-SqueezeNet.
- ``structure_distance``: of the whole images, see :mod:`..networks.dino`.
- CLIP ViT-L/14: the source image and prompt, the edited image and target prompt, and the same with the edited image
  times the mask.

PSNR of two backgrounds that are identical is infinite; here it is 100 dB, as in the rest of this pack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ...deepinv_core.metrics import PSNR_CAP
from ..networks.clip import load_clip
from ..networks.dino import load_dino
from ..networks.squeeze import load_lpips_squeeze
from .pie_data import Item, decode_mask

METRICS: Final = {
    "structure_distance": ("Structure ×10³ ↓", 1e3),
    "psnr_unedit_part": ("PSNR ↑", 1.0),
    "lpips_unedit_part": ("LPIPS ×10³ ↓", 1e3),
    "mse_unedit_part": ("MSE ×10⁴ ↓", 1e4),
    "ssim_unedit_part": ("SSIM ×10² ↑", 1e2),
    "clip_similarity_source_image": ("CLIP source", 1.0),
    "clip_similarity_target_image": ("CLIP whole ↑", 1.0),
    "clip_similarity_target_image_edit_part": ("CLIP edited ↑", 1.0),
}
"""The published evaluation's eight, with the heading and the factor its tables print them with."""

NEEDS: Final = {
    "clip": tuple(name for name in METRICS if name.startswith("clip")),
    "dino": ("structure_distance",),
    "lpips_squeeze": ("lpips_unedit_part",),
}
"""Which metrics need which backbone."""


class PieMetrics:
    """The chosen metrics with their backbones loaded."""

    def __init__(self, names: Sequence[str], paths: dict[str, Path | None], device: torch.device | str = "cpu") -> None:
        """Load what the metrics of these names need, from ``paths`` or else from the user's caches, or refuse."""
        from torchmetrics.functional import image, mean_squared_error  # takes a second

        self.names, self._device = tuple(names), torch.device(device)
        needed = {name for name, users in NEEDS.items() if set(users) & set(names)}
        self.clip = load_clip(paths.get("clip")).to(device) if "clip" in needed else None
        self.dino = load_dino(paths.get("dino")).to(device) if "dino" in needed else None
        path = paths.get("lpips_squeeze")
        self.lpips = load_lpips_squeeze(path).to(device) if "lpips_squeeze" in needed else None
        self._background: dict[str, Callable[[Tensor, Tensor], Any]] = {
            "psnr_unedit_part": lambda a, b: image.peak_signal_noise_ratio(a, b, data_range=1.0).clamp_max(PSNR_CAP),
            "ssim_unedit_part": lambda a, b: image.structural_similarity_index_measure(a, b, data_range=1.0),
            "mse_unedit_part": mean_squared_error,
            "lpips_unedit_part": lambda a, b: self.lpips and self.lpips(a, b),
        }

    @torch.no_grad()
    def __call__(self, source: Tensor, edited: Tensor, item: Item) -> dict[str, float | None]:
        """Measure an edit of a photo, both ``[1, 3, 512, 512]`` in [0, 1] from bytes.

        A number for each metric, None for a background metric where the mask covers everything.
        """
        source, edited = (image.to(self._device).contiguous() for image in (source, edited))
        mask = decode_mask(item.mask, side=source.shape[-1]).to(self._device)
        return {name: self._value(name, source, edited, mask, item) for name in self.names}

    def _value(self, name: str, source: Tensor, edited: Tensor, mask: Tensor, item: Item) -> float | None:
        if measured := self._background.get(name):
            there = bool((mask == 0).any())
            return float(measured(edited * (1 - mask), source * (1 - mask))) if there else None
        if name == "structure_distance":
            assert self.dino is not None
            return self.dino.structure_distance(source, edited)
        assert self.clip is not None
        if name == "clip_similarity_source_image":
            return self.clip.score(source, item.source)
        region = mask if name.endswith("_edit_part") else torch.ones_like(mask)
        return self.clip.score(edited * region, item.target)
