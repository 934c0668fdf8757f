"""Two small tables that let the solver take any resolution: token positions and area averages.

Both are computed on the CPU for the size at hand (a few thousand values), so they are the same on every device, and
MPS, which has neither float64 nor adaptive pooling to sizes that don't divide, needs no path of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import TransformerConfig


def token_positions(config: TransformerConfig, height: int, width: int) -> Tensor:
    """Sine-cosine positions of a latent's tokens, diffusers' SD3 table cut to the centre.

    Within ``config.pos_table`` tokens a side they equal ``PatchEmbed.cropped_pos_embed``. Beyond it the positions of
    both axes are compressed by one factor, so that the longer axis just fills the range known from training.

    Args:
        config: The solver's configuration.
        height: Latent height in latent pixels; a rest of a patch counts as a whole one.
        width: Latent width.

    Returns:
        ``[1, rows * columns, hidden]``, float32, on the CPU. The first half of the last axis is the column's sine and
        cosine, the second half the row's.
    """
    rows, columns = -(-height // config.patch_size), -(-width // config.patch_size)
    squeeze = max(1.0, rows / config.pos_table, columns / config.pos_table)
    row = _axis(config, rows, squeeze)[:, None].expand(-1, columns, -1)
    column = _axis(config, columns, squeeze)[None].expand(rows, -1, -1)
    return torch.cat([column, row], dim=-1).flatten(0, 1)[None]


def _axis(config: TransformerConfig, count: int, squeeze: float) -> Tensor:
    """Sine and cosine of ``count`` tokens along one axis: ``[count, hidden / 2]``."""
    start = (config.pos_table - count / squeeze) // 2
    index = start + torch.arange(count, dtype=torch.float64, device="cpu") / squeeze
    return sines(index * (config.pos_base / config.pos_table), config.hidden // 2)


def sines(coordinates: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of coordinates at ``width / 2`` frequencies from 1 down to nearly 1/10000.

    ``[n]`` float64 to ``[n, width]`` float32; the width is even.
    """
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float64, device=coordinates.device) / half
    angles = coordinates[:, None] / 10000.0**exponent
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def unpatchify(tokens: Tensor, patch_size: int, height: int, width: int) -> Tensor:
    """Tokens ``[B, rows * columns, p * p * C]`` to ``[B, C, height, width]``; what exceeds it at the edges is cut."""
    p, channels = patch_size, tokens.shape[-1] // patch_size**2
    patches = tokens.unflatten(1, (-(-height // p), -(-width // p))).unflatten(-1, (p, p, channels))
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)[..., :height, :width]


def area_matrix(size: int, cells: int) -> Tensor:
    """Weights that average ``size`` pixels onto ``cells`` cells of equal, possibly fractional, width.

    Unlike adaptive pooling the windows don't overlap: a pixel on a border is shared in proportion, so a shift of the
    image moves the averages smoothly at every resolution. With fewer pixels than cells, cells repeat pixels.

    ``[cells, size]``, float32, on the CPU; each row sums to 1.
    """
    pixel = torch.arange(size, dtype=torch.float64, device="cpu")
    edge = torch.arange(cells + 1, dtype=torch.float64, device="cpu")[:, None] * (size / cells)
    overlap = torch.minimum(edge[1:], pixel + 1) - torch.maximum(edge[:-1], pixel)
    weights = overlap.clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).float()
