"""Held-out images: a fixed choice of the test split, and scikit-image's photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ..deepinv_core.demo import PHOTOS
from ..deepinv_core.images import load_photo
from ..deepinv_core.models.embedded import PHOTOS_FOLDER, image_size, load_prompts
from ..tools.embedded.data import load_split, upsample

CLASSES: Final = load_prompts().words
IMAGE_SIZE: Final = image_size()

CHOICE: Final = 3
"""Seed of the choice from the test split."""

SHAPES: Final = ((64, 64), (64, 96), (96, 64), (128, 128), (64, 128))
"""Height and width in pixels of the photographs; models and solvers were trained at 64x64."""


@dataclass(frozen=True)
class Images:
    """A set of images ``[B, 3, H, W]`` in [0, 1], and the class of each; none where they have none."""

    name: str
    pixels: Tensor
    classes: tuple[str, ...] = ()


def held_out(archive: Path, count: int) -> Images:
    """The first ``count`` of the test split in a fixed random order."""
    test = load_split(archive, "test")
    chosen = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(CHOICE))[:count]
    return Images("test", upsample(test.images[chosen]), tuple(CLASSES[int(label)] for label in test.labels[chosen]))


def photographs(height: int = IMAGE_SIZE, width: int = IMAGE_SIZE) -> Images:
    """scikit-image's four photographs, scaled and cut to a shape; they are of no class the models know."""
    side = max(height, width)
    pixels = torch.cat([load_photo(PHOTOS_FOLDER / f"{name}.png", side=side)[0] for name in PHOTOS])
    top, left = (side - height) // 2, (side - width) // 2
    return Images("photos", pixels[:, :, top : top + height, left : left + width])
