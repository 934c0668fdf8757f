"""Images grouped into aspect-ratio buckets, and read for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps
from torch import Tensor

from ..deepinv_core.errors import DeepInvError
from ..deepinv_core.images import to_tensor
from ..deepinv_core.photo_file import open_photo, shown_size

MAX_ASPECT: Final = 4
"""No bucket is longer than this many times its other side; longer images lose their ends to the centre crop."""

MULTIPLE: Final = 16
"""What both sides of a bucket are multiples of, in pixels."""

Size = tuple[int, int]
"""Height and width in pixels."""


def buckets(sizes: Sequence[Size], side: int) -> list[Size]:
    """The bucket of each image: the one nearest to its aspect ratio.

    The buckets are, for each height, the largest width whose area is at most ``side * side``, and the largest square;
    all sides are multiples of :data:`MULTIPLE`, no aspect is beyond :data:`MAX_ASPECT`.

    Args:
        sizes: height and width of each image in pixels.
        side: side in pixels of the square whose area no bucket exceeds.

    Returns:
        Height and width of each image's bucket in pixels; of two equally near ones the larger, then the less high.

    Raises:
        DeepInvError: a side smaller than :data:`MULTIPLE`, or an image without pixels.
    """
    if side < MULTIPLE:
        raise DeepInvError(f"side {side} can't hold a bucket: choose at least {MULTIPLE} pixels")
    choices = _choices(side)
    nearest: dict[Size, Size] = {}
    for size in sizes:
        if min(size) < 1:
            raise DeepInvError(f"an image of {size[1]}x{size[0]} pixels has no aspect: leave it out")
        if size not in nearest:
            nearest[size] = min(choices, key=lambda choice: _distance(size, choice))
    return [nearest[size] for size in sizes]


def _choices(side: int) -> list[Size]:
    square = side // MULTIPLE * MULTIPLE
    heights = range(MULTIPLE, MAX_ASPECT * side + 1, MULTIPLE)
    fitting = {(height, side * side // height // MULTIPLE * MULTIPLE) for height in heights} | {(square, square)}
    return sorted(size for size in fitting if 0 < max(size) <= MAX_ASPECT * min(size))


def _distance(size: Size, choice: Size) -> tuple[float, int, int]:
    """Ratio of the two aspects, at least 1; integers up to one division, so the same on every machine."""
    low, high = sorted((size[0] * choice[1], size[1] * choice[0]))
    return high / low, -choice[0] * choice[1], choice[0]


def image_size(path: Path) -> Size:
    """Height and width in pixels as the image is shown, from the file's head; DeepInvError if it can't be read."""
    width, height = shown_size(path)
    return height, width


def read_image(path: Path, bucket: Size) -> Tensor:
    """Read an image the way the paper's protocol has it: centre crop to the bucket's aspect, then a plain resize.

    The bucket is height and width in pixels, the image float ``[1, 3, H, W]`` in [0, 1]; errors as
    :func:`~..deepinv_core.photo_file.open_photo`.
    """
    return to_tensor(ImageOps.fit(open_photo(path).image, (bucket[1], bucket[0]), Image.Resampling.LANCZOS))
