"""Photographs to tensors and back, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .atomic import replacing
from .errors import DeepInvError
from .photo_file import open_photo

MAX_PIXELS = 1024 * 1024
"""A photo for a full-size model is scaled down to this many pixels at most, as the paper's protocol has it."""


def load_photo(path: str | Path, *, side: int | None = None) -> tuple[torch.Tensor, str]:
    """Read a photo the way the model wants it.

    Args:
        path: any image Pillow reads, taken as :func:`.photo_file.open_photo` says.
        side: centre-crop to a square and resize to this side in pixels; None keeps the aspect, limits the
            area to 1024 x 1024 and crops both sides to multiples of 16.

    Returns:
        float ``[1, 3, H, W]`` in [0, 1], and a sentence for the report that says what was done.

    Raises:
        DeepInvError: no such file, or not an image.
    """
    if not Path(path).is_file():
        raise DeepInvError(f"no such file: {str(path)!r}, check the name and the folder")
    image, notes = open_photo(Path(path))
    size = f"{image.width}x{image.height}"
    if side is not None:
        image = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    else:
        scale = min(1.0, (MAX_PIXELS / (image.width * image.height)) ** 0.5)
        width, height = (max(16, int(edge * scale) // 16 * 16) for edge in image.size)
        longest = MAX_PIXELS // min(width, height) // 16 * 16  # a line of pixels loses its ends
        width, height = min(width, longest), min(height, longest)
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    done = f"{size} px, centre-cropped and resized to {image.width}x{image.height} px"
    return to_tensor(image), "; ".join((done, *notes))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB image to float ``[1, 3, H, W]`` in [0, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]


def to_image(tensor: torch.Tensor) -> Image.Image:
    """Float ``[3, H, W]`` in [0, 1] (clamped) to an image."""
    pixels = (tensor.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels)


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all.

    Raises:
        DeepInvError: the file can't be written.
    """
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def noise_picture(latent: torch.Tensor) -> torch.Tensor:
    """The first three channels of a latent ``[C, h, w]`` as a picture ``[3, h, w]``, grey = 0, +-3 spans the range."""
    return latent[:3].float().cpu() / 6 + 0.5


def difference_picture(a: torch.Tensor, b: torch.Tensor, gain: float = 5.0) -> torch.Tensor:
    """``|a - b|`` amplified, ``[3, H, W]``."""
    return ((a - b).abs() * gain).clamp(0, 1)


def contact_sheet(
    rows: Sequence[Sequence[torch.Tensor]],
    titles: Sequence[str],
    *,
    cell: int = 160,
    captions: Sequence[Sequence[str]] = (),
) -> Image.Image:
    """A labelled grid of pictures.

    Pictures are ``[3, h, w]`` in [0, 1], of any size; each is scaled to fit its cell, smoothly unless it is enlarged a
    whole number of times. ``captions`` are what stands below each, a row a row.
    """
    gap, letters = 8, max(10, cell // 16)
    top, below = letters + 2 * gap, letters + 4 if captions else 0
    width, height = cell + gap, cell + gap + below
    sheet = Image.new("RGB", (gap + len(titles) * width, top + len(rows) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(letters)
    for column, title in enumerate(titles):
        draw.text((gap + column * width, gap), title, "black", font)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            image = to_image(picture)
            scale = cell / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            whole = scale > 1 and scale.is_integer()
            scaled = image.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)
            sheet.paste(scaled, (gap + c * width, top + r * height))
            if captions:
                draw.text((gap + c * width, top + r * height + cell + 1), captions[r][c], "black", font)
    return sheet
