"""The photographs the included model is trained on: what each is called, and crops of any size from them.

The data is a zip of ``SPLIT/CLASS/NAME.jpg`` with the splits ``train``, ``validation`` and ``test``: 4,933 photographs
of garments on floors, beds and hangers (the "clothing dataset" of Alexey Grigorev and contributors, CC0 1.0).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

GARMENTS: Final = ("t-shirt", "longsleeve", "shirt", "jacket", "dress", "skirt", "pants", "shorts", "shoes", "hat")
"""The words for garments, in the order of their rows."""

COLOURS: Final = (
    "black",
    "white",
    "grey",
    "beige",
    "brown",
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
)
"""The words for colours, in the order of their rows."""

MERGED: Final = {"polo": "t-shirt", "outwear": "jacket", "blazer": "jacket", "hoodie": "jacket"}
"""Classes of the data that go under another's word: a classifier can't tell them apart at this size."""

LEFT_OUT: Final = ("undershirt",)
"""Classes no word is learned from (half of them pass for t-shirts); the VAE sees them all the same."""

LONGEST: Final = 1.5
"""Long side over short side that a photograph is cut to."""

NONE: Final = -1
"""The label of a photograph that has no word."""


@dataclass(frozen=True)
class Photos:
    """Photographs of one split.

    Attributes:
        names: ``CLASS/NAME.jpg``.
        images: ``[3, h, w]`` uint8 each.
        garments: index into :data:`GARMENTS` each, :data:`NONE` for what is left out, ``[N]``.
    """

    names: list[str]
    images: list[Tensor]
    garments: Tensor

    def to(self, device: torch.device | str) -> Photos:
        """The same with the images on a device."""
        return Photos(self.names, [image.to(device) for image in self.images], self.garments)


def read_split(archive: Path, split: str) -> Photos:
    """All photographs of a split, in the order of their names."""
    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.startswith(f"{split}/") and not name.endswith("/"))
        encoded = {name.removeprefix(f"{split}/"): files.read(name) for name in names}
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(_decoded, encoded.values()))
    classes = [name.split("/")[0] for name in encoded]
    labels = [NONE if one in LEFT_OUT else GARMENTS.index(MERGED.get(one, one)) for one in classes]
    return Photos(list(encoded), images, torch.tensor(labels))


def _decoded(file: bytes) -> Tensor:
    return torch.from_numpy(np.array(cut(Image.open(io.BytesIO(file))))).permute(2, 0, 1)


def cut(image: Image.Image) -> Image.Image:
    """A photograph without what is longer than :data:`LONGEST` at its ends."""
    image = image.convert("RGB")
    longest = round(LONGEST * min(image.size))
    x, y = max(0, image.width - longest) // 2, max(0, image.height - longest) // 2
    return image.crop((x, y, image.width - x, image.height - y))


def centre_crops(photos: Photos, height: int, width: int) -> Tensor:
    """The largest middle part of each photograph with this aspect, ``[N, 3, height, width]`` in [0, 1]."""
    return torch.stack([crop(image, height, width, 1.0, 0.5, 0.5) for image in photos.images])


def random_crops(
    photos: Photos, rows: Tensor, height: int, width: int, generator: torch.Generator, *, zoom: float = 1.3
) -> Iterator[Tensor]:
    """A random part of each photograph named by ``rows``, mirrored half of the time, ``[3, height, width]`` in [0, 1].

    ``zoom`` is how much smaller than the largest part it may be.
    """
    scale = 1 + (zoom - 1) * torch.rand(len(rows), generator=generator)
    place = torch.rand(len(rows), 2, generator=generator)
    mirrored = torch.rand(len(rows), generator=generator) < 0.5
    for row, z, (y, x), mirror in zip(rows.tolist(), scale.tolist(), place.tolist(), mirrored.tolist(), strict=True):
        part = crop(photos.images[row], height, width, z, y, x)
        yield part.flip(-1) if mirror else part


def crop(image: Tensor, height: int, width: int, zoom: float, y: float, x: float) -> Tensor:
    """A part of ``image [3, h, w]`` (uint8) resized to ``[3, height, width]`` in [0, 1].

    ``zoom`` 1 is the largest part of that aspect; ``y`` and ``x`` in [0, 1] place it.
    """
    scale = max(height / image.shape[1], width / image.shape[2]) * zoom
    h, w = min(image.shape[1], round(height / scale)), min(image.shape[2], round(width / scale))
    top, left = round(y * (image.shape[1] - h)), round(x * (image.shape[2] - w))
    part = image[None, :, top : top + h, left : left + w].float() / 255
    return F.interpolate(part, (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


def colours(images: Tensor) -> Tensor:
    """The colour of the middle of ``images [N, 3, H, W]`` in [0, 1], as indices into :data:`COLOURS`, ``[N]``.

    The median of the middle third, named by its hue, saturation and brightness.
    """
    height, width = images.shape[-2:]
    top, bottom, left, right = round(0.344 * height), round(0.656 * height), round(0.344 * width), round(0.656 * width)
    red, green, blue = images[..., top:bottom, left:right].flatten(2).contiguous().median(-1).values.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    saturation, some = chroma / value.clamp_min(1e-6), chroma.clamp_min(1e-6)
    hue = torch.where(value == green, (blue - red) / some + 2, (red - green) / some + 4)
    hue = 60 * torch.where(value == red, (green - blue) / some % 6, hue)

    found = torch.full_like(value, COLOURS.index("pink"), dtype=torch.long)

    def name(where: Tensor, colour: str) -> None:
        found[where] = COLOURS.index(colour)

    for limit, colour in ((300, "purple"), (262, "blue"), (165, "green"), (68, "yellow"), (42, "orange")):
        name(hue < limit, colour)
    reddish, earthy = (hue < 15) | (hue >= 345), (hue >= 15) & (hue < 42)
    name(earthy & (value < 0.6), "brown")
    name(earthy & (value >= 0.6) & (saturation < 0.42), "beige")
    name(reddish, "red")
    name(reddish & (saturation < 0.55) & (value > 0.55), "pink")
    name(reddish & (saturation < 0.4) & (value <= 0.55), "brown")
    dull = (saturation < 0.3) & (hue >= 20) & (hue < 60)
    name(dull, "beige")
    name(dull & (value < 0.5), "brown")
    faint = (saturation < 0.13) | ((saturation < 0.28) & (value < 0.4) & (hue >= 250) & (hue < 345))
    name(faint, "grey")
    name(faint & (value > 0.72), "white")
    name(value < 0.22, "black")
    return found
