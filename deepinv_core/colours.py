"""Pixels as a file keeps them, to the 8-bit sRGB picture that a viewer shows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

BACKGROUND: Final = "white"
"""What shows through where a picture is transparent."""

MAX_PROFILE: Final = 2**24
"""Bytes of a colour profile; a larger one counts as broken."""

SAME: Final = 2
"""Levels of 255: a profile that moves no colour by more is sRGB under another name."""

OUTSIDE: Final = 0.01
"""Share of a grey image's values that may lie outside its range, as an overshoot or a highlight does."""

_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT, _UNSIGNED = 262, 258, 339, 1  # TIFF 6.0
_STRIP: Final = 2**22  # pixels handled at once


class Shown(NamedTuple):
    """An RGB image, and what was done to it besides decoding, a phrase each."""

    image: Image.Image
    notes: tuple[str, ...]


def to_srgb(image: Image.Image) -> Shown:
    """The decoded image as 8-bit sRGB without transparency.

    Grey of more than 8 bits is scaled from its full scale, colours are converted from an embedded ICC profile, and
    what is transparent shows :data:`BACKGROUND`.

    Raises:
        ValueError: grey values that are not finite, or that fit no scale.
    """
    notes: list[str] = []
    profile = image.info.get("icc_profile")
    image, alpha = _without_alpha(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image, scale = _to_8_bits(image)
        notes.append(f"grey values read as 0 to {scale:g}")
    if profile:
        image, note = _from_profile(image, profile)
        notes += [note] if note else []
    image = image.convert("RGB")
    if alpha is not None:
        image.paste(BACKGROUND, mask=ImageChops.invert(alpha))
        notes.append(f"transparency laid over {BACKGROUND}")
    return Shown(image, tuple(notes))


def _without_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The opaque picture, and its alpha in 8 bits where anything is transparent."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16") and isinstance(key, int):  # a PNG's one transparent grey
        levels = np.concatenate([strip != key for strip in _strips(image)])
        alpha = Image.fromarray(levels.astype(np.uint8) * 255)
    elif key is not None or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.upper())  # divides by alpha
        if image.mode not in ("LA", "RGBA"):
            image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert(image.mode[:-1])
    else:
        return image.convert("RGB") if image.mode == "P" else image, None
    return image, alpha if alpha.histogram()[255] < image.width * image.height else None


def _strips(image: Image.Image) -> Iterator[NDArray[Any]]:
    """The values ``[h, W]`` of some rows after the other: a copy of them all would need as much memory again."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield np.asarray(image.crop((0, top, image.width, min(image.height, top + rows))))


def _to_8_bits(image: Image.Image) -> tuple[Image.Image, float]:
    """Grey of 16 or 32 bits, or of floats, in 8 bits, and the value that is white."""
    tags = getattr(image, "tag_v2", None) or {_SAMPLE_FORMAT: (0,)}
    unsigned = image.mode == "I" and tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED
    kind = np.dtype(np.uint32) if unsigned else None  # Pillow reads them as signed
    stated = _stated_scale(image, tags.get(_BITS, (16,))[0])
    scale = _fitting_scale(image, kind) if stated is None else stated
    inverted = tags.get(_PHOTOMETRIC, 1) == 0  # "WhiteIsZero"
    grey = Image.new("L", image.size)
    top = 0
    for strip in _strips(image):
        levels = (strip.view(kind) if kind else strip).astype(np.float64) * (255 / scale)
        levels = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        grey.paste(Image.fromarray(255 - levels if inverted else levels), (0, top))
        top += len(strip)
    return grey, scale


def _stated_scale(image: Image.Image, bits: int) -> float | None:
    """The value that is white where the file says it; 32 bits hold anything."""
    if image.mode.startswith("I;16") or image.format == "PNG":
        return 2.0 ** (12 if bits == 12 else 16) - 1
    return 2.0**15 - 1 if image.mode == "I" and bits == 16 else None  # signed


def _fitting_scale(image: Image.Image, kind: np.dtype[np.uint32] | None) -> float:
    """The smallest usual full scale that holds the values, but for a few highlights of a float picture."""
    floats = image.mode == "F"
    scales = (1.0, 255.0, 65535.0) if floats else (255.0, 65535.0, 2.0 ** (32 if kind else 31) - 1)
    least, most, below, above = np.inf, -np.inf, 0, 0
    for strip in _strips(image):
        values = strip.view(kind) if kind else strip
        if not np.isfinite(values).all():
            raise ValueError("its grey values are not all finite numbers")
        least, most = min(least, float(values.min())), max(most, float(values.max()))
        below += int((values < 0).sum())
        above += int((values > 1).sum())
    few = OUTSIDE * image.width * image.height
    if below > few or most > scales[-1]:
        accepted = " or ".join(f"{one:g}" for one in scales)
        raise ValueError(f"its grey values run from {least:g} to {most:g}: from 0 to {accepted} is accepted")
    return 1.0 if floats and above <= few else next(scale for scale in scales if most <= scale)


def _from_profile(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """The image in sRGB, and what was done: nothing where the profile says sRGB."""
    from PIL import ImageCms  # here: the library it loads takes longer than the rest of the pack

    try:
        if len(profile) > MAX_PROFILE:
            raise ValueError
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() == "RGB" and image.mode != "RGB":
            image = image.convert("RGB")
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        if image.mode == "RGB" and not _moves(transform):
            return image, ""
        in_place = image.mode == "RGB"
        converted = ImageCms.applyTransform(image, transform, inPlace=in_place)
        name = ascii(source.profile.profile_description or "unnamed")[1:-1][:60].strip()
        return converted or image, f"colours converted to sRGB from the profile {name}"
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image, "a broken colour profile ignored"


def _moves(transform: Any) -> bool:
    """Whether a transform from RGB to RGB changes any colour by more than :data:`SAME`."""
    from PIL import ImageCms  # here: the library it loads takes longer than the rest of the pack

    levels = np.linspace(0, 255, 9).astype(np.uint8)
    probe = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(9, 81, 3)
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(probe), transform))
    return bool((np.abs(moved.astype(int) - probe) > SAME).any())
