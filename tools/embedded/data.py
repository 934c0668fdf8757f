"""CIFAR-10 as photographs for the embedded model: a zip of JPEGs to uint8 tensors, cached."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .spec import CLASSES, IMAGE_SIZE


class Split(NamedTuple):
    """One split: ``images`` uint8 ``[N, 3, 32, 32]``, ``labels`` int64 ``[N]``."""

    images: torch.Tensor
    labels: torch.Tensor


def load_split(archive: Path, split: str) -> Split:
    """Read ``train`` or ``test`` from the zip (``SPLIT/CLASS/*.jpg``), in name order; cached beside it."""
    cache = archive.parent / f"{archive.stem}_{split}.npz"
    if not cache.exists():
        images, labels = [], []
        with zipfile.ZipFile(archive) as opened:
            for name in sorted(n for n in opened.namelist() if n.startswith(f"{split}/") and n.endswith(".jpg")):
                labels.append(CLASSES.index(name.split("/")[1]))
                images.append(np.asarray(Image.open(io.BytesIO(opened.read(name))).convert("RGB")))
        np.savez(cache, images=np.stack(images), labels=np.array(labels))
    with np.load(cache) as stored:
        pixels = torch.from_numpy(stored["images"]).permute(0, 3, 1, 2).contiguous()
        return Split(pixels, torch.from_numpy(stored["labels"]).long())


def upsample(images: torch.Tensor) -> torch.Tensor:
    """Uint8 ``[B, 3, 32, 32]`` to float ``[B, 3, 64, 64]`` in [0, 1], bicubic, rounded to 8 bit as a file would be."""
    big = F.interpolate(images.float(), size=IMAGE_SIZE, mode="bicubic", align_corners=False)
    return big.round_().clamp_(0, 255).div_(255)
