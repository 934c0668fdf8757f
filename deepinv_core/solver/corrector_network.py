"""The dual-branch solver network g_φ of DeepInv (arXiv 2601.01487), from diffusers' MMDiT blocks.

``ε* = e + g_φ(e, z_i, z_0, σ_{i+1}, c)`` with ``e = v(z_i, σ_{i+1}, c)``. Submodules carry the
released network's names. Two limits of the released code are lifted: any latent size and aspect, and any base model's
prompt widths.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings, PatchEmbed
from diffusers.models.normalization import AdaLayerNormContinuous
from torch import Tensor, nn

from ..errors import DeepInvError
from .grids import area_matrix, token_positions, unpatchify
from .kind import Network

if TYPE_CHECKING:
    from .corrector import CorrectorConfig

TIMESTEPS = 1000.0
"""The timestep of the embedding is σ times this."""


class CorrectorNetwork(Network):
    """Corrects the noise of one inversion step.

    ``proj_out`` starts at zero, so a fresh solver returns the velocity it is given: target-σ Euler inversion.

    Attributes:
        config: The geometry; replaced by :meth:`grow`.
    """

    config: CorrectorConfig

    def __init__(self, config: CorrectorConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(dim, max(config.pooled_width, 1))
        self.time_text_embed2 = CombinedTimestepTextProjEmbeddings(dim, config.image_width)
        self.pos_embed1 = self._patch_embed()
        self.pos_embed2 = self._patch_embed()
        if config.context_width:
            self.context_embedder = nn.Linear(config.context_width, dim)
        else:
            self.null_context = nn.Parameter(torch.zeros(1, 1, dim))
        self.pool_conv = nn.Conv2d(config.channels, config.image_channels, kernel_size=1)
        self.pool_full = nn.Linear(config.image_channels * config.image_grid**2, config.image_width)
        last_left, last_right = config.layers_left - 1, config.layers_right - 1
        self.blocks = nn.ModuleList([self._block(i == last_left) for i in range(config.layers_left)])
        self.blocks_img = nn.ModuleList([self._block(i == last_right) for i in range(config.layers_right)])
        self.norm_out = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
        self.norm_out_img = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
        self.combined_block = self._block(True)
        self.proj_out = nn.Linear(dim, config.patch_size**2 * config.channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def _block(self, last: bool) -> JointTransformerBlock:
        """A joint block; the last of a branch drops its context output."""
        # The head size is passed as one head's: diffusers 0.29 took the whole width here (see released.py).
        return JointTransformerBlock(
            self.config.hidden, self.config.heads, attention_head_dim=self.config.head_dim, context_pre_only=last
        )

    def _patch_embed(self) -> PatchEmbed:
        """The patch projection alone; positions are computed for the size at hand (``grids.token_positions``)."""
        return PatchEmbed(
            patch_size=self.config.patch_size,
            in_channels=self.config.channels,
            embed_dim=self.config.hidden,
            pos_embed_type=None,
        )

    def forward(
        self,
        *,
        velocity: Tensor,
        latent: Tensor,
        latent_clean: Tensor,
        sigma: Tensor,
        context: Tensor | None,
        pooled: Tensor | None,
    ) -> Tensor:
        """The corrected noise ε* of a step from σ_i to σ_{i+1} (arXiv 2601.01487, the solver's residual form).

        Inputs of any float dtype are cast to the network's; all must be on its device.

        Args:
            velocity: e = v(z_i, σ_{i+1}, c), ``[B, C, H, W]``, or ``[B, C, F, H, W]`` for video: each frame is
                corrected by itself.
            latent: z_i, of velocity's shape.
            latent_clean: z_0, of velocity's shape.
            sigma: σ_{i+1} in [0, 1] (0 = image, 1 = noise), ``[B]``, ``[1]`` or a scalar.
            context: Prompt tokens ``[B, T, context_width]`` or ``[1, ...]``; ignored when context_width is 0.
            pooled: Pooled prompt ``[B, pooled_width]`` or ``[1, ...]``; ignored when pooled_width is 0.

        Returns:
            ε* = e + g_φ(...), of velocity's shape and dtype; the sum is made in velocity's dtype.

        Raises:
            DeepInvError: A shape that doesn't fit the network or the other inputs.
        """
        self._check(velocity, latent, latent_clean)
        batch, frames = velocity.shape[0], velocity.shape[2] if velocity.ndim == 5 else 1
        sigma = _spread("sigma", sigma.reshape(-1), (), batch, frames, torch.float32)
        if self.config.pooled_width == 0:
            pooled = velocity.new_zeros(1, 1)
        pooled = _spread("pooled", pooled, (max(self.config.pooled_width, 1),), batch, frames, self.dtype)
        if self.config.context_width == 0:
            tokens = self.null_context.expand(batch * frames, -1, -1)
        else:
            context = _spread("context", context, (None, self.config.context_width), batch, frames, self.dtype)
            tokens = self.context_embedder(context)
        e, z, z_0 = (self._fold(x) for x in (velocity, latent, latent_clean))
        correction = self._correction(e, z, z_0, sigma * TIMESTEPS, tokens, pooled)
        if velocity.ndim == 5:
            correction = correction.unflatten(0, (batch, frames)).transpose(1, 2)
        return velocity + correction.to(velocity.dtype)

    def _correction(
        self, e: Tensor, z: Tensor, z_0: Tensor, timestep: Tensor, context: Tensor, pooled: Tensor
    ) -> Tensor:
        """g_φ on checked 4-D inputs in the network's dtype; ``timestep`` is σ·1000, ``context`` is embedded."""
        height, width = e.shape[-2:]
        positions = token_positions(self.config, height, width).to(e.device, e.dtype)
        left = right = self._tokens(self.pos_embed1, e) + positions
        content = self._tokens(self.pos_embed2, z) + positions
        temb = self.time_text_embed(timestep, pooled)
        temb_image = self.time_text_embed2(timestep, self._pooled_image(z_0))
        left = self._branch(self.blocks, self.config.grown_left, left, context, temb)
        right = self._branch(self.blocks_img, self.config.grown_right, right, content, temb_image)
        left = self.norm_out(left, temb)
        _, combined = self.combined_block(left, self.norm_out_img(right, temb_image), temb_image)
        return unpatchify(self.proj_out(left + combined), self.config.patch_size, height, width)

    @staticmethod
    def _branch(blocks: nn.ModuleList, grown: int, h: Tensor, context: Tensor, temb: Tensor) -> Tensor:
        """Runs one branch: ``h ← h + block(h)``, the released second residual; grown blocks: ``h ← block(h)``."""
        last = len(blocks) - 1
        for index, block in enumerate(blocks):
            context, out = block(h, context, temb)
            h = out if last - grown <= index < last else h + out
        return h

    def _pooled_image(self, z_0: Tensor) -> Tensor:
        """z_0 ``[B, C, H, W]`` to a vector ``[B, image_width]``: 1x1 convolution, averages over cells, linear."""
        image = self.pool_conv(z_0)
        grid = self.config.image_grid
        if image.shape[-2:] != (grid, grid):
            rows, columns = (area_matrix(side, grid).to(image.device, image.dtype) for side in image.shape[-2:])
            image = rows @ image @ columns.T
        return self.pool_full(image.flatten(1))

    def _tokens(self, embed: nn.Module, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, tokens, hidden]``; an odd rest is padded to a whole patch by repeating the edge."""
        pad_h, pad_w = (-side % self.config.patch_size for side in x.shape[-2:])
        return embed(F.pad(x, (0, pad_w, 0, pad_h), mode="replicate") if pad_h or pad_w else x)

    def _fold(self, x: Tensor) -> Tensor:
        """Casts to the network's dtype and folds frames into the batch: ``[B, C, F, H, W]`` to ``[B·F, C, H, W]``."""
        x = x.to(self.dtype)
        return x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x

    def _check(self, velocity: Tensor, latent: Tensor, latent_clean: Tensor) -> None:
        if velocity.ndim not in (4, 5) or velocity.shape[1] != self.config.channels or 0 in velocity.shape:
            raise DeepInvError(
                f"The solver got a velocity of shape {list(velocity.shape)}: it takes [batch, {self.config.channels}, "
                "height, width], or with a frame axis before height; use the solver of this base model."
            )
        for name, x in (("latent", latent), ("latent_clean", latent_clean)):
            if x.shape != velocity.shape:
                raise DeepInvError(
                    f"The solver got {name} of shape {list(x.shape)}: "
                    f"the velocity's shape, {list(velocity.shape)}, is accepted."
                )

    def grow(self, *, right: int = 1, left: int = 0) -> list[nn.Parameter]:
        """Adds blocks without changing what the network computes (the paper's last training round; Table 4: right).

        New blocks go directly before their branch's last one, which stays the last because it alone has no context
        output. A new block's modulation starts at zero, so it returns tokens and context as it got them. In the
        released network a block's output is added to its input once more (``h ← h + block(h)``); an inserted identity
        would then double ``h`` and change everything after it. A grown block therefore is ``h ← block(h)`` with the
        usual inner residuals, and the configuration counts the grown blocks (``grown_right``, ``grown_left``). The
        gates of a zero modulation have a gradient, so training moves a new block from its first step.

        Args:
            right: Blocks to add to the right (content) branch.
            left: Blocks to add to the left (prior) branch, where the paper finds that they hurt.

        Returns:
            The new blocks' parameters, on the network's device and in its dtype, for an optimizer of their own.

        Raises:
            DeepInvError: A negative number, or more layers than a configuration may have.
        """
        if right < 0 or left < 0:
            raise DeepInvError(f"grow(right={right}, left={left}): use numbers of 0 and above.")
        config = self.config
        self.config = replace(
            config,
            layers_left=config.layers_left + left,
            layers_right=config.layers_right + right,
            grown_left=config.grown_left + left,
            grown_right=config.grown_right + right,
        )
        new = [(self.blocks, self._identity_block()) for _ in range(left)]
        new += [(self.blocks_img, self._identity_block()) for _ in range(right)]
        for branch, block in new:
            branch.insert(len(branch) - 1, block)
        return [parameter for _, block in new for parameter in block.parameters()]

    def _identity_block(self) -> JointTransformerBlock:
        block = self._block(last=False).to(self.device, self.dtype).train(self.training)
        norms: Iterable[nn.Linear] = (block.norm1.linear, block.norm1_context.linear)
        for linear in norms:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        return block


def _spread(
    name: str, x: Tensor | None, inner: tuple[int | None, ...], batch: int, frames: int, dtype: torch.dtype
) -> Tensor:
    """Checks ``x`` against ``[batch or 1, *inner]`` (None: any), repeats it to ``[batch·frames, *inner]``."""
    shape = None if x is None else tuple(x.shape)
    fits = shape is not None and len(shape) == 1 + len(inner) and shape[0] in (1, batch)
    if x is None or not fits or any(want not in (None, side) for want, side in zip(inner, x.shape[1:], strict=True)):
        wanted = [batch, *("any" if side is None else side for side in inner)]
        raise DeepInvError(
            f"The solver got {name} of shape {None if shape is None else list(shape)}: it takes {wanted} "
            "or the same with batch 1; use the prompt and the solver of this base model."
        )
    x = x.to(dtype).expand(batch, *x.shape[1:])
    return x if frames == 1 else x.repeat_interleave(frames, dim=0)
