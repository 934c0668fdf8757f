"""Train an embedded rectified-flow model on the latents of the embedded VAE, class names as prompts.

    python -m comfyui_deepinv.tools.embedded.flow_model sd3  cifar10_jpeg.zip runs/sd3  --steps 12000
    python -m comfyui_deepinv.tools.embedded.flow_model flux cifar10_jpeg.zip runs/flux --steps 9000

``z = (1-s)*z_0 + s*e``, loss ``|v(z, s, c) - (e - z_0)|^2``, sigma logit-normal(0, 1) for three samples
in four and uniform for the fourth, the class replaced by the empty prompt for one in ten.
The step's randomness comes from the seed and the step number alone, so a resumed run is the same run.
Progress goes to ``RUN/stats.jsonl``; ``RUN/model.safetensors`` holds the EMA weights, half precision.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import load_file, save_file

from ...deepinv_core.atomic import replacing
from ...deepinv_core.models.transformer import predict
from .data import Split, load_split, upsample
from .run_folder import RunFolder, Trainee, begin, run_parser
from .spec import (
    CLASSES,
    CONTEXT_TOKENS,
    CONTEXT_WIDTH,
    FLUX_CONFIG,
    POOLED_WIDTH,
    SD3_CONFIG,
)
from .vae import encode, patch_transform

log = logging.getLogger(__name__)

NULL_CLASS = len(CLASSES)

Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor, dict[str, torch.Tensor], torch.Generator], torch.Tensor]
"""What a base model is trained by: ``(model, z0, label, prompts, generator)`` to a mean squared error."""


def make_prompts(seed: int = 0) -> dict[str, torch.Tensor]:
    """Fixed random stand-ins for text encodings: one row a class, the last the empty prompt.

    Returns ``context [11, 4, 64]`` and ``pooled [11, 64]``, float16-exact, of unit variance.
    """
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(NULL_CLASS + 1, CONTEXT_TOKENS, CONTEXT_WIDTH, generator=generator)
    pooled = torch.randn(NULL_CLASS + 1, POOLED_WIDTH, generator=generator)
    return {"context": context.half(), "pooled": pooled.half()}


@torch.no_grad()
def latents_of(split: Split, transform: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Every image and its mirror: ``[2, N, 16, 8, 8]`` in model space, half precision."""
    straight, mirrored = [], []
    for part in split.images.split(1000):
        images = upsample(part)
        straight.append(encode(images, *transform).half())
        mirrored.append(encode(images.flip(-1), *transform).half())
    return torch.stack([torch.cat(straight), torch.cat(mirrored)])


def cached_latents(archive: Path) -> dict[str, torch.Tensor]:
    """``train`` and ``test``, each as :func:`latents_of` gives them; encoded once, kept beside the archive."""
    cache = archive.parent / "latents.safetensors"
    if not cache.exists():
        train = load_split(archive, "train")
        transform = patch_transform(train)
        with replacing(cache) as temporary:
            splits = {"train": latents_of(train, transform)}
            save_file({**splits, "test": latents_of(load_split(archive, "test"), transform)}, temporary)
    return load_file(cache)


def sample_sigma(count: int, generator: torch.Generator) -> torch.Tensor:
    """The training distribution of sigma, ``[count]``."""
    normal = torch.randn(count, generator=generator).sigmoid()
    uniform = torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < 0.25, uniform, normal).clamp(1e-4, 1.0)


def flow_loss(
    model: nn.Module,
    z0: torch.Tensor,
    label: torch.Tensor,
    prompts: dict[str, torch.Tensor],
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean squared velocity error of one batch, in bf16 autocast."""
    sigma = sample_sigma(len(z0), generator)
    noise = torch.randn(z0.shape, generator=generator)
    s = sigma.view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        context, pooled = prompts["context"][label].float(), prompts["pooled"][label].float()
        v = predict(model, (1 - s) * z0 + s * noise, sigma, context, pooled)
    return F.mse_loss(v.float(), noise - z0)


@torch.no_grad()
def evaluate(
    loss: Loss, model: nn.Module, latents: torch.Tensor, labels: torch.Tensor, prompts: dict[str, torch.Tensor]
) -> float:
    """Mean loss over the given latents ``[N, 16, 8, 8]`` with fixed noise and true classes."""
    generator = torch.Generator().manual_seed(123)
    losses = [
        loss(model, z.float(), y, prompts, generator)
        for z, y in zip(latents.split(500), labels.split(500), strict=True)
    ]
    return round(float(torch.stack(losses).mean()), 5)


def base_parser(doc: str | None, *, kinds: tuple[str, ...] = (), steps: int) -> argparse.ArgumentParser:
    """The parser of a base model's training script, what :func:`fit` reads."""
    parser = run_parser(doc, kinds=kinds)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    return parser


def fit(model: nn.Module, loss_of: Loss, args: argparse.Namespace, folder: RunFolder) -> nn.Module:
    """Train a base model from the run's arguments, resumed where it stood; returns its moving average."""
    latents = cached_latents(args.data)
    labels = {name: load_split(args.data, name).labels for name in ("train", "test")}
    chosen = torch.Generator().manual_seed(7)  # the splits are sorted by class: check on a random part of each
    rows_train = torch.randperm(len(labels["train"]), generator=chosen)[:4000]
    rows_test = torch.randperm(len(labels["test"]), generator=chosen)[:4000]
    prompts = make_prompts()
    folder.save_weights("prompts", prompts)
    log.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    trainee = Trainee(model, optimizer, decay=0.9995)

    for step in range(trainee.resume(folder), args.steps):
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        rows = torch.randint(len(labels["train"]), (args.batch,), generator=generator)
        flip = torch.randint(2, (args.batch,), generator=generator)
        z0 = latents["train"][flip, rows].float()
        dropped = torch.rand(args.batch, generator=generator) < 0.1
        label = torch.where(dropped, NULL_CLASS, labels["train"][rows])
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        loss = loss_of(model, z0, label, prompts, generator)
        trainee.step(loss, step, args.lr * min(1, (step + 1) / 500) * cosine)
        if (step + 1) % 1000 == 0 or step + 1 == args.steps:
            checks = {
                f"{name}_loss": evaluate(loss_of, trainee.average, latents[name][0, rows], labels[name][rows], prompts)
                for name, rows in (("train", rows_train), ("test", rows_test))
            }
            counts = {"step": step + 1, "images": (step + 1) * args.batch}
            folder.report({**counts, "loss": trainee.mean_loss(), **checks})
            trainee.save(folder, step + 1)
            folder.save_weights("model", {name: value.half() for name, value in trainee.average.state_dict().items()})
    return trainee.average


def main() -> None:
    """Command line; see the module's docstring."""
    args, folder = begin(base_parser(__doc__, kinds=("sd3", "flux"), steps=16000))
    sd3 = args.kind == "sd3"
    model: nn.Module = SD3Transformer2DModel(**SD3_CONFIG) if sd3 else FluxTransformer2DModel(**FLUX_CONFIG)
    fit(model, flow_loss, args, folder)


if __name__ == "__main__":
    main()
