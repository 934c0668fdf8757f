"""The shipped photographs, and moves that a comparison has to find."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

PHOTOS = sorted((Path(__file__).parents[2] / "deepinv_core" / "embedded" / "photos").glob("*.jpg"))


def moved(photo: torch.Tensor, right: float, down: float, zoom: float) -> torch.Tensor:
    """The photo ``[3, H, W]`` moved and enlarged about its middle, edges repeated."""
    height, width = photo.shape[-2:]
    theta = torch.tensor([[1 / zoom, 0, -2 * right / width / zoom], [0, 1 / zoom, -2 * down / height / zoom]])
    grid = F.affine_grid(theta[None], [1, 3, height, width], align_corners=False)
    return F.grid_sample(photo[None], grid, mode="bicubic", padding_mode="border", align_corners=False)[0].clamp(0, 1)
