"""The predictor: a network that guesses a step's noise before the base model is asked (ours, beyond arXiv 2601.01487).

The paper evaluates the base at z_i and corrects afterwards. Here the network guesses first, from velocities already
paid for, and the evaluation is spent at the predicted point, ``ε_i = v(z_i + h·ε̂, σ_{i+1})``, which contracts the
guess's error. ``ε̂ = v_last + (σ_{i+1} − σ_last)·a·slope + h·g_φ``: between the last velocity and its linear
extrapolation, by a learned gate a, plus a correction that scales with the step, so that one network serves all N.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import PatchEmbed, TimestepEmbedding, Timesteps
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero
from torch import Tensor, nn

from ..errors import DeepInvError
from ..flow import per_sample
from .grids import token_positions, unpatchify
from .kind import Network

if TYPE_CHECKING:
    from .predictor import PredictorConfig

TIMES = 3
"""Scalars the network is conditioned on: σ_{i+1}, h and σ_{i+1} − σ_last."""

SLOPE_SCALE, SLOPE_LIMIT = 0.2, 4.0
"""Slopes enter the network times the scale and clamped: they are about 5 times a velocity, far more near σ = 0."""


class Block(nn.Module):
    """A transformer block modulated by the step, from diffusers' parts (DiT's adaLN-Zero, arXiv 2212.09748).

    A depthwise convolution of the token map stands in front of the attention: a velocity depends on its neighbourhood
    most, which also carries over to sizes that were not trained on.
    """

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.local = nn.Conv2d(config.hidden, config.hidden, 3, padding=1, groups=config.hidden)
        self.norm1 = AdaLayerNormZero(config.hidden)
        self.attn = Attention(config.hidden, heads=config.heads, dim_head=config.head_dim, bias=True)
        self.norm2 = nn.LayerNorm(config.hidden, elementwise_affine=False, eps=1e-6)
        self.ff = FeedForward(config.hidden, activation_fn="gelu-approximate")
        nn.init.zeros_(self.norm1.linear.weight)
        nn.init.zeros_(self.norm1.linear.bias)

    def forward(self, tokens: Tensor, embedding: Tensor, rows: int) -> Tensor:
        """Tokens ``[B, rows * columns, hidden]`` and the step's embedding ``[B, hidden]`` to tokens."""
        tokens = tokens + self.local(tokens.unflatten(1, (rows, -1)).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        normed, gate, shift_ff, scale_ff, gate_ff = self.norm1(tokens, emb=embedding)
        tokens = tokens + gate[:, None] * self.attn(normed)
        normed = self.norm2(tokens) * (1 + scale_ff[:, None]) + shift_ff[:, None]
        return tokens + gate_ff[:, None] * self.ff(normed)


class PredictorNetwork(Network):
    """Guesses the noise of one inversion step.

    ``proj_out`` starts at zero and the gate at 0.88, so a fresh network is nearly linear extrapolation.

    Attributes:
        config: The geometry.
    """

    config: PredictorConfig

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden
        self.pos_embed = PatchEmbed(
            patch_size=config.patch_size, in_channels=4 * config.channels, embed_dim=dim, pos_embed_type=None
        )
        self.time_proj = Timesteps(64, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(64 * TIMES + 1, dim)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.norm_out = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(dim, config.patch_size**2 * config.channels)
        self.gate = nn.Linear(dim, 1)
        for linear, bias in ((self.norm_out.linear, 0.0), (self.proj_out, 0.0), (self.gate, 2.0)):
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, bias)

    def forward(
        self,
        *,
        last: Tensor,
        slope: Tensor | None,
        latent: Tensor,
        latent_clean: Tensor,
        sigma: Tensor,
        sigma_last: Tensor,
        h: Tensor,
    ) -> Tensor:
        """The guess ε̂ for a step from σ_i to σ_{i+1}.

        Inputs of any float dtype are cast to the network's; all must be on its device.

        Args:
            last: The newest known velocity, ``[B, C, H, W]``, or ``[B, C, F, H, W]`` for video: each frame is guessed
                by itself.
            slope: Change of the velocity with σ between the last two known ones, of last's shape; None in the steps
                that know only one.
            latent: z_i, of last's shape.
            latent_clean: z_0, of last's shape.
            sigma: σ_{i+1} in [0, 1] (0 = image, 1 = noise), ``[B]``.
            sigma_last: Flow time of ``last``, ``[B]``.
            h: σ_{i+1} − σ_i, ``[B]``.

        Returns:
            ε̂, of last's shape and dtype; the sum is made in last's dtype.

        Raises:
            DeepInvError: A shape that doesn't fit the network or the other inputs.
        """
        known = torch.zeros_like(last) if slope is None else slope
        self._check(last, slope=known, latent=latent, latent_clean=latent_clean)
        frames = last.shape[2] if last.ndim == 5 else 1
        ahead = sigma - sigma_last
        times = torch.stack([sigma, h, ahead], -1).float()
        waves = self.time_proj(times.flatten() * 1000.0).unflatten(0, times.shape).flatten(1)
        flag = torch.full_like(times[:, :1], float(slope is not None))
        embedding = self.time_embed(torch.cat([waves, flag], -1).to(self.dtype))
        bounded = (known * SLOPE_SCALE).clamp(-SLOPE_LIMIT, SLOPE_LIMIT)
        stacked = torch.cat([x.to(self.dtype) for x in (last, bounded, latent, latent_clean)], dim=1)
        if last.ndim == 5:
            stacked = stacked.transpose(1, 2).flatten(0, 1)
        correction = self._correction(stacked, embedding.repeat_interleave(frames, dim=0))
        if last.ndim == 5:
            correction = correction.unflatten(0, (len(last), frames)).transpose(1, 2)
        gate = self.gate(embedding)[:, 0].sigmoid().to(last.dtype)
        guess = last + per_sample(ahead.to(last.dtype) * gate, last) * known
        return guess + per_sample(h.to(last.dtype), last) * correction.to(last.dtype)

    def _correction(self, stacked: Tensor, embedding: Tensor) -> Tensor:
        """g_φ: ``[B, 4C, H, W]`` and ``[B, hidden]`` to ``[B, C, H, W]``; an odd rest of a patch repeats the edge."""
        p, (height, width) = self.config.patch_size, stacked.shape[-2:]
        rows, columns = -(-height // p), -(-width // p)
        padded = F.pad(stacked, (0, columns * p - width, 0, rows * p - height), mode="replicate")
        tokens = self.pos_embed(padded) + token_positions(self.config, height, width).to(stacked.device, stacked.dtype)
        for block in self.blocks:
            tokens = block(tokens, embedding, rows)
        return unpatchify(self.proj_out(self.norm_out(tokens, embedding)), p, height, width)

    def _check(self, last: Tensor, **others: Tensor) -> None:
        if last.ndim not in (4, 5) or last.shape[1] != self.config.channels or 0 in last.shape:
            raise DeepInvError(
                f"The solver got a velocity of shape {list(last.shape)}: it takes [batch, {self.config.channels}, "
                "height, width], or with a frame axis before height; use the solver of this base model."
            )
        for name, x in others.items():
            if x.shape != last.shape:
                raise DeepInvError(
                    f"The solver got {name} of shape {list(x.shape)}: "
                    f"the velocity's shape, {list(last.shape)}, is accepted."
                )
