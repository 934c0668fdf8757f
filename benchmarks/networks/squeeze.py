"""LPIPS v0.1 with SqueezeNet 1.1, the network PIE-Bench measures with; plain torch, weights as in :mod:`.sources`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from ...deepinv_core import checkpoint
from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.lpips import Lpips, filled, read_state_dict, torchmetrics_heads
from .sources import locate

KIND: Final = "lpips_squeeze"
"""Kind of the tensor file, see :mod:`..deepinv_core.checkpoint`."""

WIDTHS: Final = (64, 128, 256, 384, 384, 512, 512)
"""Channels of the seven stages."""


class Fire(nn.Module):
    """SqueezeNet's module (arXiv 1602.07360): a 1 x 1 layer, then 1 x 1 and 3 x 3 side by side, each with a ReLU."""

    def __init__(self, channels: int, squeezed: int, out: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, out // 2, 1)
        self.expand3x3 = nn.Conv2d(squeezed, out // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, H, W]`` to ``[B, out, H, W]``."""
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1).relu()


class SqueezeLpips(Lpips):
    """:class:`~..deepinv_core.lpips.Lpips` on SqueezeNet 1.1's seven stages, named as torchvision names them."""

    title: ClassVar[str] = "LPIPS-SqueezeNet"
    stages: ClassVar[tuple[int, ...]] = (0, 2, 5, 8, 10, 11, 12, 13)

    def __init__(self) -> None:
        nn.Module.__init__(self)
        first = (nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), _pool(), Fire(64, 16, 128), Fire(128, 16, 128))
        middle = (_pool(), Fire(128, 32, 256), Fire(256, 32, 256), _pool())
        last = (Fire(256, 48, 384), Fire(384, 48, 384), Fire(384, 64, 512), Fire(512, 64, 512))
        self.features = nn.Sequential(*first, *middle, *last)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in WIDTHS)


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def load_lpips_squeeze(path: str | Path | None = None) -> SqueezeLpips:
    """LPIPS-SqueezeNet, float32, of one tensor file or as torch hub stores it, with torchmetrics' linear layers.

    Raises:
        DeepInvError: absent or damaged; the linear layers are missing where torchmetrics is.
    """
    file = locate("lpips_squeeze", path)
    if file.suffix == ".safetensors":
        return filled(SqueezeLpips, checkpoint.load(file, kind=KIND)[0], file)
    heads = torchmetrics_heads("squeeze")
    if not heads.is_file():
        raise DeepInvError(f"LPIPS-SqueezeNet's linear layers, {str(heads)!r}, do not exist: install torchmetrics")
    linear = read_state_dict(heads)
    named = {f"heads.{i}.weight": linear.get(f"lin{i}.model.1.weight") for i in range(len(WIDTHS))}
    return filled(SqueezeLpips, dict(read_state_dict(file)) | named, file)
