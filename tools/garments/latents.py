"""Encode crops of the photographs once: what the flow models are trained on.

    python -m comfyui_deepinv.tools.garments.latents garments256.zip runs/latents --vae runs/vae/vae.safetensors

Writes ``RUN/latents.safetensors``: for each size of :data:`SIZES` latents of random crops of the train split, mirrored
half of the time, in half precision and of about unit variance, with their garments and with the colours measured on the
very crop; and the middle crops of each split, to check with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from .photos import Photos, centre_crops, colours, random_crops, read_split, recoloured
from .run_folder import begin, run_parser
from .vae import SIDE, encode, load_vae

SIZES: Final = {
    (128, 128): 20,
    (176, 128): 2,
    (192, 128): 2,
    (128, 176): 1,
    (128, 192): 1,
    (96, 128): 1,
    (128, 96): 1,
    (96, 96): 1,
    (192, 192): 1,
}
"""Height and width in pixels, and how many crops of each photograph."""

RECOLOURED: Final = 0.5
"""Share of the crops that are recoloured where that can be done, see :func:`.photos.recoloured`."""

CHECKED: Final = 600
"""Photographs of the train split that are checked beside the held-out ones."""


class Encoder:
    """Pictures to latents of unit variance, colours measured on the way."""

    def __init__(self, file: Path, device: str) -> None:
        vae, self._gain = load_vae(file)
        self._vae = vae.to(device, memory_format=torch.channels_last)
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 3, H, W]`` in [0, 1] to latents ``[B, 16, H/8, W/8]`` (half) and colours ``[B]``."""
        images = images.to(self.device)
        with torch.autocast(self.device, torch.bfloat16):
            latents = encode(self._vae, images.contiguous(memory_format=torch.channels_last)).float()
        return (latents / self._gain).half().cpu(), colours(images).to("cpu", torch.int8)


def cut_crops(photos: Photos, seed: int, share: float = 1.0) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """Random crops of every photograph, at each size: pictures ``[N, 3, H, W]`` uint8, and the photographs' rows.

    ``share`` is the part of them that is made.
    """
    found = {}
    for (height, width), count in SIZES.items():
        generator = torch.Generator().manual_seed(seed + 1000 * height + width)
        rows = torch.arange(len(photos.images)).repeat(count)
        rows = rows[torch.randperm(len(rows), generator=generator)[: round(share * len(rows))]]
        found[height, width] = random_crops(photos, rows, height, width, generator), rows
    return found


def encode_crops(
    photos: Photos, crops: dict[tuple[int, int], tuple[Tensor, Tensor]], encoder: Encoder, seed: int
) -> dict[str, Tensor]:
    """Latents, garments and colours of crops, a part of them recoloured."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for (height, width), (pictures, rows) in crops.items():
        encoded = []
        for part in pictures.split(256):
            images = part.to(encoder.device).float() / 255
            again = (torch.rand(len(part), generator=generator) < RECOLOURED).view(-1, 1, 1, 1).to(images.device)
            encoded.append(encoder(torch.where(again, recoloured(images, generator), images)))
        name = f"{height}x{width}"
        found[f"{name}.latents"], found[f"{name}.colours"] = (torch.cat(part) for part in zip(*encoded, strict=True))
        found[f"{name}.garments"] = photos.garments[rows].to(torch.int8)
    return found


def encode_middles(photos: Photos, encoder: Encoder, name: str) -> dict[str, Tensor]:
    """The middle crop of every photograph."""
    encoded = [encoder(part) for part in centre_crops(photos, SIDE, SIDE).split(256)]
    z, c = (torch.cat(part) for part in zip(*encoded, strict=True))
    return {f"{name}.latents": z, f"{name}.colours": c, f"{name}.garments": photos.garments.to(torch.int8)}


def encode_all(
    train: Photos, others: dict[str, Photos], crops: dict[tuple[int, int], tuple[Tensor, Tensor]], encoder: Encoder
) -> dict[str, Tensor]:
    """Everything a flow model is trained on and checked with; all photographs have words."""
    found = encode_crops(train, crops, encoder, 0)
    some = torch.randperm(len(train.images), generator=torch.Generator().manual_seed(7))[:CHECKED]
    for split, photos in {"train": train.take(some), **others}.items():
        found |= encode_middles(photos, encoder, f"check.{split}")
    return found


def main() -> None:
    """Command line; see the module's docstring."""
    parser = run_parser(__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0, help="part of the crops that is made")
    args, folder = begin(parser)
    train = read_split(args.data, "train").worded()
    others = {split: read_split(args.data, split).worded() for split in ("validation", "test")}
    others = {split: photos for split, photos in others.items() if photos.images}
    found = encode_all(train, others, cut_crops(train, args.seed, args.share), Encoder(args.vae, args.device))
    folder.save_weights("latents", found)
    square = found["128x128.latents"].float()
    deviations = [round(float(value), 3) for value in square.transpose(0, 1).flatten(1).std(1)]
    folder.report({"crops": len(square), "std": round(float(square.std()), 4), "std_by_channel": deviations})


if __name__ == "__main__":
    main()
