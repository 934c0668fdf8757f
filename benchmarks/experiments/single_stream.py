"""A generic transformer with the corrector's inputs: one stream of tokens, nothing known of inversion in its shape.

What the dual branch is compared with: the prompt's tokens and patches of ``(e, z_i, z_0)`` side by side, through
plain transformer blocks modulated by the timestep and the pooled prompt (DiT, arXiv 2212.09748).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings, PatchEmbed
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero
from torch import Tensor, nn

from ...deepinv_core.solver import CorrectorConfig, Network
from ...deepinv_core.solver.grids import token_positions, unpatchify


@dataclass(frozen=True)
class SingleStreamConfig(CorrectorConfig):
    """A corrector's inputs and width, and ``layers`` blocks; of the sizes of its branches none is read."""

    layers: int = 1

    def build(self) -> Network:
        """A fresh network of this geometry."""
        return SingleStreamSolver(self)


class Block(nn.Module):
    """Attention and feed-forward, modulated by the step."""

    def __init__(self, config: SingleStreamConfig) -> None:
        super().__init__()
        self.norm1 = AdaLayerNormZero(config.hidden)
        self.attn = Attention(config.hidden, heads=config.heads, dim_head=config.head_dim, bias=True)
        self.norm2 = nn.LayerNorm(config.hidden, elementwise_affine=False, eps=1e-6)
        self.ff = FeedForward(config.hidden, activation_fn="gelu-approximate")

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """Tokens ``[B, T, hidden]`` and the step's embedding ``[B, hidden]`` to tokens."""
        normed, gate, shift_ff, scale_ff, gate_ff = self.norm1(tokens, emb=embedding)
        tokens = tokens + gate[:, None] * self.attn(normed)
        normed = self.norm2(tokens) * (1 + scale_ff[:, None]) + shift_ff[:, None]
        return tokens + gate_ff[:, None] * self.ff(normed)


class SingleStreamSolver(Network):
    """Corrects the base's velocity as the dual-branch network does; its output layer starts at zero too."""

    config: SingleStreamConfig

    def __init__(self, config: SingleStreamConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden
        self.pos_embed = PatchEmbed(
            patch_size=config.patch_size, in_channels=3 * config.channels, embed_dim=dim, pos_embed_type=None
        )
        self.context_embedder = nn.Linear(config.context_width, dim)
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(dim, config.pooled_width)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.norm_out = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(dim, config.patch_size**2 * config.channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(
        self,
        *,
        velocity: Tensor,
        latent: Tensor,
        latent_clean: Tensor,
        sigma: Tensor,
        context: Tensor,
        pooled: Tensor,
    ) -> Tensor:
        """The corrected velocity, with the dual-branch network's arguments; ``[B, C, H, W]``."""
        batch, _, height, width = velocity.shape
        embedding = self.time_text_embed(sigma * 1000, pooled.expand(batch, -1))
        patches = self.pos_embed(torch.cat([velocity, latent, latent_clean], dim=1))
        patches = patches + token_positions(self.config, height, width).to(patches)
        prompt = self.context_embedder(context).expand(batch, -1, -1)
        tokens = torch.cat([prompt, patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens, embedding)
        out = self.proj_out(self.norm_out(tokens[:, prompt.shape[1] :], embedding))
        return velocity + unpatchify(out, self.config.patch_size, height, width)
