"""Train an included rectified-flow model on latents of garments, under prompts of words.

    python -m comfyui_deepinv.tools.garments.flow_model sd3  runs/latents/latents.safetensors runs/sd3  --steps 14000
    python -m comfyui_deepinv.tools.garments.flow_model flux runs/latents/latents.safetensors runs/flux --steps 14000

``z = (1-s)*z_0 + s*e``, loss ``|v(z, s, c) - (e - z_0)|^2``, sigma logit-normal(0, 1) for three samples in four and
uniform for the fourth. A prompt is two rows, one for the garment and one for the colour; each is replaced by the row
that stands for none in a part of the samples, both in one of ten. The step's randomness comes from the seed and the
step number alone, so a resumed run is the same run. Progress goes to ``RUN/stats.jsonl``; ``RUN/model.safetensors``
holds the averaged weights, half precision.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from ...deepinv_core.models.transformer import predict
from ..embedded.run_folder import RunFolder, Trainee, begin, run_parser
from .photos import COLOURS, GARMENTS
from .vae import CHANNELS

log = logging.getLogger(__name__)

WIDTH: Final = 64
"""Of a row of the prompt, and of the pooled prompt."""

SD3_CONFIG: Final[dict[str, Any]] = {
    "sample_size": 64,
    "patch_size": 2,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_layers": 4,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "caption_projection_dim": 256,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "pos_embed_max_size": 32,
    "qk_norm": "rms_norm",
}
"""ComfyUI wants hidden = 64 x depth = 64 x heads."""

FLUX_CONFIG: Final[dict[str, Any]] = {
    "patch_size": 1,
    "in_channels": 4 * CHANNELS,
    "num_layers": 1,
    "num_single_layers": 5,
    "attention_head_dim": 128,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}
"""FLUX.1-schnell's layout (no guidance input)."""

NO_WORDS, NO_GARMENT, NO_COLOUR = 0.1, 0.1, 0.15
"""Shares of the samples without both words, and of the others without the one or the other."""

BALANCE: Final = 0.35
"""A crop is drawn in proportion to (how many share its garment)^-BALANCE, and likewise its colour."""


def make_prompts(seed: int = 0) -> dict[str, Tensor]:
    """Fixed random stand-ins for text encodings: a row of context and of pooled a word, the last of each kind for none.

    Returns ``garment.context [11, 64]``, ``colour.context [13, 64]`` and the same of ``pooled``, float16-exact.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = {"garment": len(GARMENTS) + 1, "colour": len(COLOURS) + 1}
    return {
        f"{kind}.{part}": torch.randn(size, WIDTH, generator=generator).half()
        for kind, size in sizes.items()
        for part in ("context", "pooled")
    }


def condition(prompts: dict[str, Tensor], garments: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
    """Labels ``[B]`` (-1 for none) to context ``[B, 2, 64]`` and pooled ``[B, 64]``."""
    rows = {"garment": garments, "colour": colours}
    context = torch.stack([prompts[f"{kind}.context"][index] for kind, index in rows.items()], 1)
    pooled = torch.stack([prompts[f"{kind}.pooled"][index] for kind, index in rows.items()], 1)
    return context.float(), pooled.float().sum(1) / math.sqrt(2)


class Crops:
    """Latents of one size on the device, drawn with the balance above."""

    def __init__(self, tensors: dict[str, Tensor], name: str, device: str) -> None:
        self.latents = tensors[f"{name}.latents"].to(device)
        self.garments = tensors[f"{name}.garments"].to(device, torch.long)
        self.colours = tensors[f"{name}.colours"].to(device, torch.long)
        self._weights = torch.ones(len(self.latents), device=device)
        for labels in (self.garments, self.colours):
            self._weights *= torch.bincount(labels).float().pow(-BALANCE)[labels]

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, garments and colours, a part of the words left out."""
        rows = torch.multinomial(self._weights, count, replacement=True, generator=generator)
        chance = torch.rand(3, count, device=rows.device, generator=generator)
        wordless = chance[0] < NO_WORDS
        garments = self.garments[rows].masked_fill(wordless | (chance[1] < NO_GARMENT), -1)
        colours = self.colours[rows].masked_fill(wordless | (chance[2] < NO_COLOUR), -1)
        return self.latents[rows].float(), garments, colours


def sample_sigma(count: int, generator: torch.Generator) -> Tensor:
    """The training distribution of sigma, ``[count]``."""
    device = generator.device
    normal = torch.randn(count, generator=generator, device=device).sigmoid()
    uniform = torch.rand(count, generator=generator, device=device)
    mixed = torch.where(torch.rand(count, generator=generator, device=device) < 0.25, uniform, normal)
    return mixed.clamp(1e-4, 1.0)


def flow_loss(model: nn.Module, z0: Tensor, prompt: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    """Mean squared velocity error of one batch, in bf16 autocast."""
    sigma = sample_sigma(len(z0), generator)
    noise = torch.randn(z0.shape, generator=generator, device=z0.device)
    s = sigma.view(-1, 1, 1, 1)
    with torch.autocast(z0.device.type, torch.bfloat16):
        v = predict(model, (1 - s) * z0 + s * noise, sigma, *prompt)
    return F.mse_loss(v.float(), noise - z0)


@torch.no_grad()
def evaluate(model: nn.Module, crops: Crops, prompts: dict[str, Tensor]) -> float:
    """Mean loss over all of ``crops`` with fixed noise and their true words."""
    generator = torch.Generator(crops.latents.device).manual_seed(123)
    total = torch.zeros((), device=crops.latents.device)
    for rows in torch.arange(len(crops.latents)).split(200):
        prompt = condition(prompts, crops.garments[rows], crops.colours[rows])
        total += flow_loss(model, crops.latents[rows].float(), prompt, generator) * len(rows)
    return round(float(total) / len(crops.latents), 5)


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: dict[str, Tensor],
    garments: Tensor,
    colours: Tensor,
    *,
    cfg: float = 3.0,
    steps: int = 30,
    seed: int = 0,
    size: tuple[int, int] = (16, 16),
) -> Tensor:
    """Latents of unit variance ``[B, 16, *size]`` for labels ``[B]`` (-1 for none), Euler on a uniform grid."""
    generator = torch.Generator(garments.device).manual_seed(seed)
    z = torch.randn(len(garments), CHANNELS, *size, generator=generator, device=garments.device)
    none = torch.full_like(garments, -1)
    context, pooled = condition(prompts, torch.cat([garments, none]), torch.cat([colours, none]))
    for i in range(steps, 0, -1):
        sigma = torch.full((2 * len(z),), i / steps, device=z.device)
        with torch.autocast(z.device.type, torch.bfloat16):
            v = predict(model, torch.cat([z, z]), sigma, context, pooled).float()
        with_words, without = v.chunk(2)
        z = z - torch.lerp(without, with_words, cfg) / steps
    return z


def build(kind: str) -> nn.Module:
    """A transformer of this layout with fresh weights."""
    made: nn.Module = SD3Transformer2DModel(**SD3_CONFIG) if kind == "sd3" else FluxTransformer2DModel(**FLUX_CONFIG)
    return made


def train(kind: str, tensors: dict[str, Tensor], args: Any, folder: RunFolder) -> nn.Module:
    """Train a base model from the run's arguments, resumed where it stood; returns its moving average."""
    names = sorted({name.split(".")[0] for name in tensors if not name.startswith("check")})
    sizes = [Crops(tensors, name, args.device) for name in names]
    shares = torch.tensor([float(len(crops.latents)) for crops in sizes])
    checks = {split: Crops(tensors, f"check.{split}", args.device) for split in ("train", "validation", "test")}
    prompts = {name: value.to(args.device) for name, value in make_prompts().items()}
    folder.save_weights("prompts", prompts)
    model = build(kind).to(args.device)
    if args.start:
        model.load_state_dict({name: value.float() for name, value in load_file(args.start).items()})
    log.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.02, betas=(0.9, 0.99), fused=True)
    trainee = Trainee(model, optimizer, decay=0.9995)
    done = trainee.resume(folder)

    def check() -> dict[str, float]:
        losses = {f"{name}_loss": evaluate(trainee.average, crops, prompts) for name, crops in checks.items()}
        folder.save_weights("model", {name: value.half() for name, value in trainee.average.state_dict().items()})
        trainee.save(folder, done)
        return {"step": done, "images": done * args.batch, "loss": trainee.mean_loss(), **losses}

    while (share := max(done / args.steps, folder.seconds / args.seconds)) < 1:
        generator = torch.Generator(args.device).manual_seed(args.seed * 1_000_003 + done)
        which = int(torch.multinomial(shares, 1, generator=torch.Generator().manual_seed(args.seed * 7919 + done)))
        z0, garments, colours = sizes[which].draw(args.batch, generator)
        loss = flow_loss(model, z0, condition(prompts, garments, colours), generator)
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))
        trainee.step(loss, done, args.lr * min(1, (done + 1) / 500) * cosine)
        done += 1
        if done % args.every == 0:
            folder.report(check())
    folder.report({"done": True, **check()})
    return trainee.average


def main() -> None:
    """Command line; see the module's docstring."""
    parser = run_parser(__doc__, kinds=("sd3", "flux"))
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--start", type=Path, help="a model.safetensors to begin with, as after the VAE has changed")
    parser.add_argument("--every", type=int, default=1000, help="steps between checks")
    args, folder = begin(parser)
    train(args.kind, load_file(Path(args.data)), args, folder)


if __name__ == "__main__":
    main()
