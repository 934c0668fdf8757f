"""Train an included rectified-flow model on latents of garments, under prompts of words.

    python -m comfyui_deepinv.tools.garments.flow_model sd3  runs/latents/latents.safetensors runs/sd3
    python -m comfyui_deepinv.tools.garments.flow_model flux runs/latents/latents.safetensors runs/flux

``z = (1-s)*z_0 + s*e``, loss ``|v(z, s, c) - (e - z_0)|^2``, sigma logit-normal(0, 1) for three samples in four and
uniform for the fourth. A prompt is two rows, one for the garment and one for the colour; each is replaced by the row
that stands for none in a part of the samples, both in one of ten. Progress goes to ``RUN/stats.jsonl``;
``RUN/model.safetensors`` holds the averaged weights, half precision.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from ...deepinv_core.models.transformer import family_of
from .photos import COLOURS, GARMENTS
from .run_folder import RunFolder, begin, run_parser
from .trainee import Recorder, Trainee
from .vae import CHANNELS, SIDE

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

ALLOWED: Final = 1.0
"""Validation loss over training loss up to which weights are kept: photographs of the validation split are 3.5 % easier
than those of the training split for a model that has seen each of them a few times only."""

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
        weights = torch.ones(len(self.latents), device=device)
        for labels in (self.garments, self.colours):
            weights *= torch.bincount(labels).float().pow(-BALANCE)[labels]
        self._below = (weights.double().cumsum(0) / weights.double().sum()).float()

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, garments and colours, a part of the words left out."""
        device = self._below.device
        rows = torch.searchsorted(self._below, torch.rand(count, device=device)).clamp_max(len(self.latents) - 1)
        chance = torch.rand(3, count, device=device)
        wordless = chance[0] < NO_WORDS
        garments = self.garments[rows].masked_fill(wordless | (chance[1] < NO_GARMENT), -1)
        colours = self.colours[rows].masked_fill(wordless | (chance[2] < NO_COLOUR), -1)
        return self.latents[rows].float(), garments, colours


def sample_sigma(count: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """The training distribution of sigma, ``[count]``."""
    normal = torch.randn(count, generator=generator, device=device).sigmoid()
    uniform = torch.rand(count, generator=generator, device=device)
    mixed = torch.where(torch.rand(count, generator=generator, device=device) < 0.25, uniform, normal)
    return mixed.clamp(1e-4, 1.0)


def velocity_error(
    model: nn.Module,
    z0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    prompt: tuple[Tensor, Tensor],
    teacher: nn.Module | None = None,
) -> Tensor:
    """Mean squared velocity error of one batch, in bf16 autocast; against a teacher's velocity where there is one."""
    s = sigma.view(-1, 1, 1, 1)
    z, known = (1 - s) * z0 + s * noise, noise - z0
    with torch.autocast(z0.device.type, torch.bfloat16):
        v = family_of(model).predict(model, z, sigma, *prompt)
        if teacher is not None:
            with torch.no_grad():
                known = family_of(teacher).predict(teacher, z, sigma, *prompt)
    return F.mse_loss(v.float(), known.float())


@torch.no_grad()
def evaluate(error: Callable[..., Tensor], model: nn.Module, crops: Crops, prompts: dict[str, Tensor]) -> float:
    """Mean loss over all of ``crops`` with fixed noise and their true words."""
    generator = torch.Generator(crops.latents.device).manual_seed(123)
    total = torch.zeros((), device=crops.latents.device)
    for rows in torch.arange(len(crops.latents)).split(200):
        prompt = condition(prompts, crops.garments[rows], crops.colours[rows])
        z0 = crops.latents[rows].float()
        noise = torch.randn(z0.shape, generator=generator, device=z0.device)
        sigma = sample_sigma(len(z0), z0.device, generator)
        total += error(model, z0, noise, sigma, prompt) * len(rows)
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
            v = family_of(model).predict(model, torch.cat([z, z]), sigma, context, pooled).float()
        with_words, without = v.chunk(2)
        z = z - torch.lerp(without, with_words, cfg) / steps
    return z


def build(kind: str) -> nn.Module:
    """A transformer of this layout with fresh weights."""
    made: nn.Module = SD3Transformer2DModel(**SD3_CONFIG) if kind == "sd3" else FluxTransformer2DModel(**FLUX_CONFIG)
    return made


class Run:
    """One base model in training, from the run's arguments, resumed where it stood."""

    def __init__(
        self, model: nn.Module, args: Any, folder: RunFolder, error: Callable[..., Tensor] = velocity_error
    ) -> None:
        self.args, self.folder, self._plain = args, folder, error
        self.prompts = {name: value.to(args.device) for name, value in make_prompts().items()}
        folder.save_weights("prompts", self.prompts)
        model = model.to(args.device)
        if args.start:
            model.load_state_dict({name: value.float() for name, value in load_file(args.start).items()})
        log.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
        self.trainee = Trainee(model, weight_decay=0.02, decay=1 - 1 / min(2000, 1 + args.steps // 10))
        self.done = self.trainee.resume(folder)
        self._error = error
        if args.teacher:
            teacher = build("sd3").to(args.device).requires_grad_(False)
            teacher.load_state_dict({name: value.float() for name, value in load_file(args.teacher).items()})
            self._error = partial(velocity_error, teacher=teacher)

    def compile(self) -> None:
        """Have the model's error compiled for 128 px and for the batch, before the data is there.

        A compiler that can't is done without, with its reason in the log.
        """
        side, count, device = SIDE // 8, self.args.batch, self.args.device
        compiled = torch.compile(self._plain, dynamic=False)
        none = torch.full((count,), -1, device=device)
        z0 = torch.randn(count, CHANNELS, side, side, device=device)
        prompt = condition(self.prompts, none, none)
        try:
            for _ in range(2):
                sigma = sample_sigma(count, z0.device)
                compiled(self.trainee.model, z0, torch.randn_like(z0), sigma, prompt).backward()
        except Exception:
            log.exception("not compiled")
        else:
            self._error = compiled

    def _step(self, crops: Crops) -> None:
        height, width = crops.latents.shape[-2:]
        main = height == width == SIDE // 8
        count = round(self.args.batch * (SIDE // 8) ** 2 / (height * width))

        def loss() -> Tensor:
            z0, garments, colours = crops.draw(count)
            prompt = condition(self.prompts, garments, colours)
            sigma = sample_sigma(count, z0.device)
            error = self._error if main or self.args.teacher else self._plain
            return error(self.trainee.model, z0, torch.randn_like(z0), sigma, prompt)

        self.trainee.step(loss)

    def _check(self, checks: dict[str, Crops]) -> dict[str, Any]:
        losses = {
            f"{name}_loss": evaluate(self._plain, self.trainee.average, crops, self.prompts)
            for name, crops in checks.items()
        }
        general = losses.get("validation_loss", 0) <= ALLOWED * losses["train_loss"]
        if general or self.done < self.args.every:
            weights = {name: value.half() for name, value in self.trainee.average.state_dict().items()}
            self.folder.save_weights("model", weights)
        self.trainee.save(self.folder, self.done)
        return {"step": self.done, "loss": self.trainee.mean_loss(), **losses, "kept": general}

    def train(self, tensors: dict[str, Tensor]) -> None:
        """Train until the steps or the seconds are over; the rate falls as a cosine of whichever is further."""
        args = self.args
        names = sorted({name.split(".")[0] for name in tensors if not name.startswith("check")})
        sizes = [Crops(tensors, name, args.device) for name in names]
        shares = torch.tensor([float(len(crops.latents)) for crops in sizes])
        order = torch.multinomial(shares, args.steps, replacement=True, generator=torch.Generator().manual_seed(7))
        checks = {
            name.split(".")[1]: Crops(tensors, name.removesuffix(".latents"), args.device)
            for name in tensors
            if name.startswith("check") and name.endswith(".latents")
        }
        record = Recorder(on=args.device == "cuda" and not args.plain)
        steps = [record(partial(self._step, crops)) for crops in sizes]
        began, end = time.time(), args.until or math.inf
        while (share := max(self.done / args.steps, (time.time() - began) / (end - began))) < 1:
            cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))
            self.trainee.prepare(self.done, args.lr * min(1, (self.done + 1) / 500) * cosine)
            steps[int(order[self.done])]()
            self.done += 1
            if args.device == "cuda" and self.done % 50 == 0:
                torch.cuda.synchronize()  # or the seconds would be those of the queue
            if self.done % args.every == 0:
                self.folder.report(self._check(checks))
        self.folder.report({"done": True, **self._check(checks)})


def base_parser(doc: str | None, *, kinds: tuple[str, ...] = (), steps: int) -> argparse.ArgumentParser:
    """The parser of a base model's training script: what :class:`Run` reads."""
    parser = run_parser(doc, kinds=kinds)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--start", type=Path, help="a model.safetensors to begin with, as after the VAE has changed")
    parser.add_argument(
        "--teacher",
        type=Path,
        help="a model.safetensors of sd3 to learn from: its velocity has no noise, unlike e - z_0",
    )
    parser.add_argument("--every", type=int, default=2000, help="steps between checks")
    parser.add_argument("--plain", action="store_true", help="on a GPU, neither compile nor record steps")
    parser.add_argument("--after", type=Path, action="append", default=[], help="a file to wait for")
    parser.add_argument("--until", type=float, default=0, help="be done by then, in seconds as `date +%%s` has it")
    return parser


def main() -> None:
    """Command line; see the module's docstring."""
    args, folder = begin(base_parser(__doc__, kinds=("sd3", "flux"), steps=40000))
    run = Run(build(args.kind), args, folder)
    if args.device == "cuda" and not args.plain and not args.teacher:
        run.compile()
    while not all(file.exists() for file in (Path(args.data), *args.after)):
        time.sleep(0.2)
    run.train(load_file(Path(args.data)))


if __name__ == "__main__":
    main()
