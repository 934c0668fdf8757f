"""Held-out images: photographs of the test split, of which 64 lie beside this file, and the four that are shipped.

``held_out.zip`` is made by ``tools.garments.pack``; its photographs are the "clothing dataset" of Alexey Grigorev and
contributors (CC0 1.0, licence inside).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from ..deepinv_core import demo
from ..deepinv_core.models.embedded import image_size, load_prompts
from ..tools.garments.photos import fitted

CLASSES, COLOURS = (tuple(words) for _, words in load_prompts().groups)
IMAGE_SIZE: Final = image_size()

HELD_OUT: Final = Path(__file__).with_name("held_out.zip")

SHAPES: Final = ((128, 128), (128, 192), (192, 128), (192, 192), (96, 128))
"""Height and width in pixels of the photographs; solvers were trained at 128x128."""


@dataclass(frozen=True)
class Images:
    """A set of images ``[B, 3, H, W]`` in [0, 1], and the class of each; none where they have none."""

    name: str
    pixels: Tensor
    classes: tuple[str, ...] = ()


def held_out(archive: Path, count: int) -> Images:
    """The first ``count`` of the test split in a fixed random order."""
    pixels, garments = fitted(archive, "test", IMAGE_SIZE, count)
    return Images("test", pixels, tuple(CLASSES[int(row)] for row in garments))


def photographs(height: int = IMAGE_SIZE, width: int = IMAGE_SIZE) -> Images:
    """The shipped photographs, scaled and cut to a shape."""
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return Images("photos", demo.photographs(side)[:, :, top : top + height, left : left + width])
