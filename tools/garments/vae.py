"""Train the included model's VAE: 16 channels, factor 8, from FLUX.2's tiny VAE.

    python -m comfyui_deepinv.tools.garments.vae garments256.zip runs/vae --start taef2.safetensors --steps 6000

The start is ``taef2_encoder.pth`` and ``taef2_decoder.pth`` of github.com/madebyollin/taesd (MIT) in one file,
``encoder.N…`` and ``decoder.N…``. Its ``pool`` branches are dropped, which ComfyUI 0.3.75 doesn't know, its 32 channels
are projected onto their sixteen leading principal components, and both halves are trained on. Progress goes to
``RUN/stats.jsonl``, ``RUN/state.pt`` resumes, ``RUN/vae.safetensors`` holds the averaged weights (half precision) in
ComfyUI's TAESD names.
"""

from __future__ import annotations

import json
import math
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ...deepinv_core.metrics import psnr
from .photos import Photos, centre_crops, random_crops, read_split
from .run_folder import RunFolder, begin, run_parser
from .trainee import Recorder, Trainee

CHANNELS = 16
SIDE = 128

HALVED = 20
"""One step in so many is decoded at half size."""

FLOOR = 1e-4
"""Mean squared error that is good enough: 40 dB."""


def from_tiny_flux2(file: Path) -> tuple[AutoencoderTiny, dict[str, Tensor]]:
    """A VAE of 16 channels with taef2's weights where the shapes agree, and taef2's two 32-channel convolutions."""
    vae = AutoencoderTiny(latent_channels=CHANNELS)
    own, found, bottleneck = vae.state_dict(), {}, {}
    for name, value in load_file(file).items():
        half, number, rest = name.split(".", 2)
        ours = f"{half}.layers.{int(number) - (half == 'decoder')}.{rest}"
        if ".pool." in name:
            continue
        if own[ours].shape == value.shape:
            found[ours] = value.float()
        else:
            bottleneck[ours] = value.float()
    vae.load_state_dict(found, strict=False)
    return vae, bottleneck


def load_vae(path: Path) -> tuple[AutoencoderTiny, float]:
    """A VAE that :func:`save` wrote, and its gain: raw latent = gain x latent of unit variance."""
    vae = AutoencoderTiny(latent_channels=CHANNELS)
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        gain = float(json.loads(file.metadata()["latent_gain"]))
    names = {}
    for name in vae.state_dict():
        side, _, index, rest = name.split(".", 3)
        names[name] = weights[f"taesd_{side}.{int(index) + (side == 'decoder')}.{rest}"]
    vae.load_state_dict(names)
    return vae.eval().requires_grad_(False), gain


def start_from(file: Path, images: Tensor) -> AutoencoderTiny:
    """The VAE to begin with: taef2, narrowed on ``images``, or one of this script's."""
    with safe_open(file, "pt") as weights:
        ours = "latent_gain" in (weights.metadata() or {})
    if ours:
        return load_vae(file)[0].train().requires_grad_(True)
    vae, bottleneck = from_tiny_flux2(file)
    project(vae, bottleneck, images)
    return vae


@torch.no_grad()
def project(vae: AutoencoderTiny, bottleneck: dict[str, Tensor], images: Tensor) -> None:
    """Narrow the bottleneck to the sixteen leading principal components of its latents of ``images``."""
    last, first = vae.encoder.layers[-1], vae.decoder.layers[0]
    features = vae.encoder.layers[:-1](images)
    wide = F.conv2d(features, bottleneck["encoder.layers.14.weight"], bottleneck["encoder.layers.14.bias"], padding=1)
    flat = wide.transpose(0, 1).flatten(1).double()
    mean = flat.mean(1)
    components = torch.linalg.eigh(torch.cov(flat))[1].flip(1)[:, :CHANNELS].T.float()  # [16, 32]
    narrow = torch.einsum("cd,dikl->cikl", components, bottleneck["encoder.layers.14.weight"])
    last.weight.copy_(narrow)
    last.bias.copy_(components @ (bottleneck["encoder.layers.14.bias"] - mean.float()))
    weight = bottleneck["decoder.layers.0.weight"]
    first.weight.copy_(torch.einsum("odkl,cd->ockl", weight, components))
    first.bias.add_(torch.einsum("odkl,d->o", weight, mean.float()))


def encode(vae: AutoencoderTiny, images: Tensor) -> Tensor:
    """Images ``[B, 3, H, W]`` in [0, 1] to raw latents ``[B, 16, H/8, W/8]``."""
    latents: Tensor = vae.encoder.layers(images)
    return latents


def decode(vae: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Raw latents to images about [0, 1], not clipped."""
    images: Tensor = vae.decoder.layers(torch.tanh(latents / 3) * 3)
    return images


def loss_of(vae: AutoencoderTiny, images: Tensor, *, halved: bool) -> Tensor:
    """Reconstruction error of one batch: the logarithm of each picture's, as PSNR has it.

    ``halved`` decodes the latents at half size, against the picture at half size: latents that scale as pictures do
    are easier for the flow models to learn (2502.09509).
    """
    latents = encode(vae, images)
    if halved:
        latents, images = F.avg_pool2d(latents, 2), F.avg_pool2d(images, 2)
    error = (decode(vae, latents).float() - images).square().mean((1, 2, 3))
    return (error + FLOOR).log().mean()


@torch.no_grad()
def held_out_psnr(vae: AutoencoderTiny, images: Tensor) -> float:
    """Mean PSNR in dB of encode and decode."""
    found = [psnr(decode(vae, encode(vae, part)).clamp(0, 1), part) for part in images.split(50)]
    return float(torch.cat(found).mean())


def to_comfy_names(vae: AutoencoderTiny) -> dict[str, Tensor]:
    """Diffusers' parameter names to TAESD's, the ones ComfyUI's VAE loader recognises (``taesd_encoder.N...``).

    TAESD counts the decoder's leading clamp, which diffusers applies outside its list.
    """
    out = {}
    for name, value in vae.state_dict().items():
        side, _, index, rest = name.split(".", 3)
        out[f"taesd_{side}.{int(index) + (side == 'decoder')}.{rest}"] = value.half().contiguous()
    return out


@torch.no_grad()
def save(folder: RunFolder, vae: AutoencoderTiny, images: Tensor) -> None:
    """Write ``vae.safetensors``, with the gain that makes the latents of ``images`` of unit variance."""
    gain = float(torch.cat([encode(vae, part) for part in images.split(50)]).std())
    metadata = {"latent_gain": json.dumps(round(gain, 4)), "image_size": json.dumps(SIDE)}
    folder.save_weights("vae", to_comfy_names(vae), metadata)


class Pool:
    """Random crops of 128 px, cut and scaled once, from which each step takes smaller parts."""

    def __init__(self, photos: Photos, copies: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.arange(len(photos.images)).repeat(copies)
        self._crops = random_crops(photos, rows, SIDE, SIDE, generator, zoom=1.4).to(device)

    def draw(self, count: int, side: int) -> Tensor:
        """``[count, 3, side, side]`` in [0, 1], at places that are multiples of the VAE's factor."""
        device = self._crops.device
        row = torch.randint(len(self._crops), (count,), device=device)
        corner = 8 * torch.randint((SIDE - side) // 8 + 1, (2, count, 1), device=device)
        y, x = corner + torch.arange(side, device=device)
        parts = self._crops[row[:, None, None], :, y[:, :, None], x[:, None, :]]  # [count, side, side, 3]
        return parts.permute(0, 3, 1, 2).float() / 255


def train(folder: RunFolder, vae: AutoencoderTiny, pool: Pool, photos: Photos, check: Tensor, args: Namespace) -> None:
    """Train on from where the run stands, in bf16 autocast, for ``args.steps`` or until ``args.seconds``."""
    torch.backends.cudnn.benchmark = True
    trainee = Trainee(vae, weight_decay=1e-4, decay=0.999)
    done = trainee.resume(folder)
    middle = centre_crops(photos.take(torch.arange(0, len(photos.images), 16)), SIDE, SIDE).to(args.device)

    def step(halved: bool) -> None:
        def loss() -> Tensor:
            with torch.autocast(args.device, torch.bfloat16):
                return loss_of(vae, pool.draw(args.batch, args.side), halved=halved)

        trainee.step(loss)

    def check_and_save() -> dict[str, float]:
        trainee.save(folder, done)
        save(folder, trainee.average, middle)
        quality = round(held_out_psnr(trainee.average, check), 3)
        return {"step": done, "images": done * args.batch, "loss": trainee.mean_loss(), "validation_psnr": quality}

    record = Recorder(on=args.device == "cuda")
    whole, half = record(lambda: step(False)), record(lambda: step(True))
    folder.report({"validation_psnr": round(held_out_psnr(trainee.average, check), 3)})
    while (share := max(done / args.steps, folder.seconds / args.seconds)) < 1:
        trainee.prepare(done, args.lr * min(1, (done + 1) / 200) * 0.5 * (1 + math.cos(math.pi * share)))
        (half if done % HALVED == 0 else whole)()
        done += 1
        if done % 100 == 0 and args.device == "cuda":
            torch.cuda.synchronize()  # or the seconds would be those of the queue
        if done % args.every == 0:
            folder.report(check_and_save())
    folder.report({"done": True, **check_and_save()})


def options(parser: ArgumentParser) -> None:
    """What a training of the VAE can be told."""
    parser.add_argument(
        "--start", type=Path, required=True, help="taef2.safetensors, or a vae.safetensors to go on with"
    )
    parser.add_argument("--steps", type=int, default=40000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--side", type=int, default=64, help="pixels of a side of what a step sees")
    parser.add_argument("--copies", type=int, default=5, help="crops cut of each photograph")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--every", type=int, default=5000, help="steps between checks")


def main() -> None:
    """Command line; see the module's docstring."""
    parser = run_parser(__doc__)
    options(parser)
    args, folder = begin(parser)
    photos = read_split(args.data, "train")
    check = centre_crops(read_split(args.data, "validation"), SIDE, SIDE).to(args.device)
    vae = start_from(args.start, check[::4].cpu()).to(args.device, memory_format=torch.channels_last)
    train(folder, vae, Pool(photos, args.copies, args.device), photos, check, args)


if __name__ == "__main__":
    main()
