"""The photographs the included model is trained on: what each is called, and crops of any size from them.

The data is a zip of ``SPLIT/CLASS/NAME.jpg`` with the splits ``train``, ``validation`` and ``test``: 4,933 photographs
of garments on floors, beds and hangers (the "clothing dataset" of Alexey Grigorev and contributors, CC0 1.0).
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...deepinv_core.images import to_tensor

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

HUES: Final = (-15.0, 15.0, 42.0, 68.0, 165.0, 262.0, 300.0, 345.0)
"""Where red, orange, yellow, green, blue, purple and pink begin, in degrees, and where pink ends."""

NONE: Final = -1
"""The label of a photograph that has no word."""


@dataclass(frozen=True)
class Photos:
    """Photographs of one split.

    Attributes:
        names: ``CLASS/NAME.jpg``.
        images: in RGB, cut to :data:`LONGEST`.
        garments: index into :data:`GARMENTS` each, :data:`NONE` for what is left out, ``[N]``.
    """

    names: list[str]
    images: list[Image.Image]
    garments: Tensor

    def take(self, rows: Tensor) -> Photos:
        """Those of ``rows``."""
        chosen = rows.tolist()
        return Photos([self.names[row] for row in chosen], [self.images[row] for row in chosen], self.garments[rows])

    def worded(self) -> Photos:
        """Those that have a word."""
        return self.take((self.garments != NONE).nonzero()[:, 0])


def read_split(archive: Path, split: str) -> Photos:
    """All photographs of a split, in the order of their names."""
    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.startswith(f"{split}/") and not name.endswith("/"))
        encoded = {name.removeprefix(f"{split}/"): files.read(name) for name in names}
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(_decoded, encoded.values()))
    return Photos(list(encoded), images, torch.tensor([label(name) for name in encoded]))


def label(name: str) -> int:
    """The garment of a photograph by its file, ``…CLASS/NAME.jpg``: index into :data:`GARMENTS`, or :data:`NONE`."""
    kind = name.split("/")[-2]
    return NONE if kind in LEFT_OUT else GARMENTS.index(MERGED.get(kind, kind))


def some(names: Iterable[str], count: int | None = None) -> list[str]:
    """The first photographs that have a word in a fixed random order, the same out of any copy of the data."""
    worded = [name for name in names if name.endswith((".jpg", ".webp")) and label(name) != NONE]
    return sorted(worded, key=lambda name: zlib.crc32(name.rsplit(".", 1)[0].encode()))[:count]


def fitted(archive: Path, split: str, side: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The middles of :func:`some` photographs, resized as the commands do it, and their garments.

    Returns:
        ``[N, 3, side, side]`` in [0, 1], and ``[N]``.
    """
    with zipfile.ZipFile(archive) as files:
        names = some((name for name in files.namelist() if name.startswith(f"{split}/")), count)
        images = [Image.open(io.BytesIO(files.read(name))).convert("RGB") for name in names]
    tensors = [to_tensor(ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)) for image in images]
    return torch.cat(tensors), torch.tensor([label(name) for name in names])


def _decoded(file: bytes) -> Image.Image:
    return cut(Image.open(io.BytesIO(file)))


def cut(image: Image.Image) -> Image.Image:
    """A photograph without what is longer than :data:`LONGEST` at its ends."""
    image = image.convert("RGB")
    longest = round(LONGEST * min(image.size))
    x, y = max(0, image.width - longest) // 2, max(0, image.height - longest) // 2
    return image.crop((x, y, image.width - x, image.height - y))


def centre_crops(photos: Photos, height: int, width: int) -> Tensor:
    """The largest middle part of each photograph with this aspect, ``[N, 3, height, width]`` in [0, 1]."""
    return torch.stack([crop(image, height, width, 1.0, 0.5, 0.5) for image in photos.images]) / 255


def random_crops(
    photos: Photos, rows: Tensor, height: int, width: int, generator: torch.Generator, *, zoom: float = 1.3
) -> Tensor:
    """A random part of each photograph named by ``rows``, mirrored half of the time, ``[N, 3, height, width]`` uint8.

    ``zoom`` is how much smaller than the largest part it may be.
    """
    scale = 1 + (zoom - 1) * torch.rand(len(rows), generator=generator)
    place = torch.rand(len(rows), 2, generator=generator)
    mirrored = torch.rand(len(rows), generator=generator) < 0.5

    def part(row: int, z: float, y: float, x: float, mirror: bool) -> Tensor:
        made = crop(photos.images[row], height, width, z, y, x)
        return made.flip(-1) if mirror else made

    with ThreadPoolExecutor() as pool:
        return torch.stack(list(pool.map(part, rows.tolist(), scale.tolist(), *place.T.tolist(), mirrored.tolist())))


def crop(image: Image.Image, height: int, width: int, zoom: float, y: float, x: float) -> Tensor:
    """A part of a picture resized, as ComfyUI resizes a photo (Lanczos), ``[3, height, width]`` uint8.

    ``zoom`` 1 is the largest part of that aspect; ``y`` and ``x`` in [0, 1] place it.
    """
    scale = max(height / image.height, width / image.width) * zoom
    h, w = min(image.height, height / scale), min(image.width, width / scale)
    top, left = y * (image.height - h), x * (image.width - w)
    box = (left, top, left + w, top + h)
    part = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(part)).permute(2, 0, 1)


def recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """``images [N, 3, H, W]`` in [0, 1] whose middle is blue, green, purple or pink, in another colour each.

    Seven in ten photographs of the data are black, white, grey, beige or blue, and orange, yellow, green and purple
    are one in a hundred each. What has about the middle's hue is turned to another one, drawn evenly from all, and made
    lighter or darker with it, so that a yellow is not the olive of a dark blue; the rest stays. Reds and browns are
    left, as floors have their hue, and so are faint colours.
    """
    hue, saturation, value = (part[:, None, None] for part in _middle(images))
    turned = (hue > 75) & (hue < 345) & (saturation > 0.28) & (value > 0.26)
    h, s, v = _hue(images)
    draw = torch.rand(4, len(images), 1, 1, generator=generator).to(images)
    edges = torch.tensor(HUES, device=images.device)
    band = (draw[3] * (len(HUES) - 1)).long()
    aim = torch.lerp(edges[band], edges[band + 1], draw[0])
    bright, strong = 0.4 + 0.5 * draw[1], 0.45 + 0.45 * draw[2]
    away = (h - hue + 180) % 360 - 180
    mask = torch.exp(-((away / 30) ** 4)) * ((s - 0.08) / 0.12).clamp(0, 1) * turned
    new_v = v.clamp_min(1e-4) ** (bright.log() / value.clamp(0.05, 0.97).log()).clamp(0.35, 2)
    new_s = s.clamp_min(1e-4) ** (strong.log() / saturation.clamp(0.1, 0.97).log()).clamp(0.4, 2)
    made = _rgb((aim + away) % 360, new_s.clamp(0, 1), new_v.clamp(0, 1))
    return torch.lerp(images, made, mask[:, None])


def _middle(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`_hue` of the median of each picture's middle third, ``[N]`` each."""
    height, width = images.shape[-2:]
    middle = images[..., round(0.344 * height) : round(0.656 * height), round(0.344 * width) : round(0.656 * width)]
    medians = middle.flatten(2).contiguous().median(-1).values
    hue, saturation, value = (part[:, 0, 0] for part in _hue(medians[..., None, None]))
    return hue, saturation, value


def _hue(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in degrees, saturation and value, ``[N, H, W]`` each."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    some = chroma.clamp_min(1e-6)
    hue = torch.where(value == green, (blue - red) / some + 2, (red - green) / some + 4)
    return 60 * torch.where(value == red, (green - blue) / some % 6, hue), chroma / value.clamp_min(1e-6), value


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The way back, ``[N, 3, H, W]``."""
    places = (torch.stack([5 + hue / 60, 3 + hue / 60, 1 + hue / 60], 1)) % 6
    depth = torch.minimum(places, 4 - places).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * depth)


def colours(images: Tensor) -> Tensor:
    """The colour of the middle of ``images [N, 3, H, W]`` in [0, 1], as indices into :data:`COLOURS`, ``[N]``.

    The median of the middle third, named by its hue, saturation and brightness.
    """
    hue, saturation, value = _middle(images)
    found = torch.full_like(value, COLOURS.index("pink"), dtype=torch.long)

    def name(where: Tensor, colour: str) -> None:
        found[where] = COLOURS.index(colour)

    for limit, colour in zip(HUES[:1:-1][1:], ("purple", "blue", "green", "yellow", "orange"), strict=True):
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
