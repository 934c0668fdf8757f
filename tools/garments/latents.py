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

from ..embedded.run_folder import begin, run_parser
from .photos import NONE, Photos, centre_crops, colours, random_crops, read_split
from .vae import SIDE, encode, load_vae

SIZES: Final = {
    (128, 128): 12,
    (176, 128): 3,
    (192, 128): 2,
    (128, 176): 2,
    (128, 192): 1,
    (96, 128): 1,
    (128, 96): 1,
    (96, 96): 1,
    (192, 192): 1,
}
"""Height and width in pixels, and how many crops of each photograph."""

CHECKED: Final = 600
"""Photographs of the train split that are checked beside the held-out ones."""


class Encoder:
    """Pictures to latents of unit variance, colours measured on the way."""

    def __init__(self, file: Path, device: str) -> None:
        vae, self._gain = load_vae(file)
        self._vae = vae.to(device, memory_format=torch.channels_last)
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 3, H, W]`` in [0, 1] to latents ``[B, 16, H/8, W/8]`` (half) and colours ``[B]``."""
        with torch.autocast(self._device, torch.bfloat16, enabled=self._device != "cpu"):
            latents = encode(self._vae, images.contiguous(memory_format=torch.channels_last)).float()
        return (latents / self._gain).half().cpu(), colours(images).to("cpu", torch.int8)

    def all(self, images: list[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
        """The same, 256 at a time."""
        parts = [self(torch.stack(list(images[at : at + 256]))) for at in range(0, len(images), 256)]
        return torch.cat([z for z, _ in parts]), torch.cat([c for _, c in parts])


def encode_crops(photos: Photos, encoder: Encoder, seed: int) -> dict[str, Tensor]:
    """Random crops of every photograph that has a word, at each size."""
    worded = (photos.garments != NONE).nonzero()[:, 0]
    found = {}
    for (height, width), count in SIZES.items():
        generator = torch.Generator().manual_seed(seed + 1000 * height + width)
        rows = worded.repeat(count)
        latents, colour = [], []
        for part in rows.split(256):
            z, c = encoder(torch.stack(list(random_crops(photos, part, height, width, generator))))
            latents.append(z)
            colour.append(c)
        name = f"{height}x{width}"
        found[f"{name}.latents"], found[f"{name}.colours"] = torch.cat(latents), torch.cat(colour)
        found[f"{name}.garments"] = photos.garments[rows].to(torch.int8)
    return found


def encode_middles(photos: Photos, encoder: Encoder, name: str) -> dict[str, Tensor]:
    """The middle crop of every photograph that has a word."""
    worded = (photos.garments != NONE).nonzero()[:, 0]
    chosen = Photos([], [photos.images[int(row)] for row in worded], photos.garments[worded])
    z, c = encoder.all(centre_crops(chosen, SIDE, SIDE))
    return {f"{name}.latents": z, f"{name}.colours": c, f"{name}.garments": chosen.garments.to(torch.int8)}


def main() -> None:
    """Command line; see the module's docstring."""
    parser = run_parser(__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    args, folder = begin(parser)
    encoder = Encoder(args.vae, args.device)
    train = read_split(args.data, "train").to(args.device)
    found = encode_crops(train, encoder, args.seed)
    some = torch.randperm(len(train.images), generator=torch.Generator().manual_seed(7))[:CHECKED].tolist()
    checked = Photos([], [train.images[row] for row in some], train.garments[some])
    found |= encode_middles(checked, encoder, "check.train")
    for split in ("validation", "test"):
        found |= encode_middles(read_split(args.data, split).to(args.device), encoder, f"check.{split}")
    folder.save_weights("latents", found)
    square = found["128x128.latents"].float()
    deviations = [round(float(value), 3) for value in square.transpose(0, 1).flatten(1).std(1)]
    folder.report({"crops": len(square), "std": round(float(square.std()), 4), "std_by_channel": deviations})


if __name__ == "__main__":
    main()
