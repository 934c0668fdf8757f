"""Whether a whole picture has moved: shift, zoom and change of colour of an edit against its photo.

Editors that draw the whole picture anew shift, zoom or recolour it without anyone noticing. The registration compares
edges, not brightness, so that a garment of another colour counts as the same place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, optimize
from torch import Tensor

from .errors import DeepInvError

Array = NDArray[np.float64]

LARGEST_SIDE: Final = 384
"""Pixels that a picture is registered at; a larger one is reduced first, and the shift scaled back."""

BLUR: Final = 1.5
"""Standard deviation in pixels by which edges are blurred, so that a search finds its way down to them."""

SMALLEST_SIDE: Final = 32
"""Pixels: below it there are too few edges to register."""


@dataclass(frozen=True)
class Drift:
    """How a result lies against its photo.

    Attributes:
        right: pixels that its content has moved to the right.
        down: pixels that it has moved down.
        zoom: factor by which it is larger, about the middle.
        colour: mean change of red, green and blue, in levels of 255.
        certainty: correlation of the edges when registered, up to 1; below about 0.3 shift and zoom mean little.
    """

    right: float
    down: float
    zoom: float
    colour: tuple[float, float, float]
    certainty: float


def drift(photo: Tensor, result: Tensor) -> Drift:
    """Register ``result`` on ``photo``, both ``[3, H, W]`` in [0, 1].

    A phase correlation gives the shift to a pixel, a least-squares search over shift and zoom the rest.

    Raises:
        DeepInvError: pictures of different sizes, or too small.
    """
    if photo.shape != result.shape or photo.ndim != 3:
        raise DeepInvError(f"the pictures are {list(photo.shape)} and {list(result.shape)}: both must be one [3, H, W]")
    if min(photo.shape[-2:]) < SMALLEST_SIDE:
        raise DeepInvError(f"a side is {min(photo.shape[-2:])} pixels: drift is measured from {SMALLEST_SIDE} on")
    change = 255 * (result.double() - photo.double()).mean((1, 2))
    factor = min(1.0, LARGEST_SIDE / max(photo.shape[-2:]))
    fixed, moved = (_edges(picture, factor) for picture in (photo, result))
    down, right = _whole_pixels(fixed, moved)
    found = optimize.least_squares(
        _misfit, [down, right, 0.0], loss="soft_l1", x_scale=[1, 1, 0.01], args=(fixed, moved)
    )
    down, right, log_zoom = (float(value) for value in found.x)
    certainty = float(np.corrcoef(fixed.ravel(), _returned(moved, found.x).ravel())[0, 1])
    red, green, blue = change.tolist()
    return Drift(right / factor, down / factor, float(np.exp(log_zoom)), (red, green, blue), certainty)


def _edges(picture: Tensor, factor: float) -> Array:
    """Strength of the edges ``[H, W]``, of unit variance, reduced by ``factor``."""
    grey: Array = torch.as_tensor(picture).double().mean(0).cpu().numpy()
    if factor < 1:
        grey = ndimage.zoom(ndimage.gaussian_filter(grey, 0.5 / factor), factor, order=1)
    edges: Array = np.sqrt(ndimage.gaussian_gradient_magnitude(grey, BLUR) + 1e-4)
    return (edges - edges.mean()) / max(float(edges.std()), 1e-6)


def _whole_pixels(fixed: Array, moved: Array) -> tuple[float, float]:
    """Shift ``(down, right)`` at the peak of the phase correlation, within a quarter of each side."""
    spectrum = np.fft.rfft2(moved) * np.conj(np.fft.rfft2(fixed))
    peaks = np.fft.irfft2(spectrum / np.maximum(np.abs(spectrum), 1e-9), s=fixed.shape)
    near = [np.abs(np.fft.fftfreq(side, 1 / side)) <= side / 4 for side in fixed.shape]
    peaks = np.where(near[0][:, None] & near[1], ndimage.gaussian_filter(peaks, 1, mode="wrap"), -np.inf)
    place = np.unravel_index(int(np.argmax(peaks)), peaks.shape)
    down, right = (np.fft.fftfreq(side, 1 / side)[index] for side, index in zip(fixed.shape, place, strict=True))
    return float(down), float(right)


def _returned(moved: Array, parameters: Array) -> Array:
    """``moved`` brought back by ``(down, right, log zoom)``, at the photo's pixels."""
    zoom = float(np.exp(parameters[2]))
    middle = (np.array(moved.shape) - 1) / 2
    offset = middle + np.asarray(parameters[:2]) - zoom * middle
    back: Array = ndimage.affine_transform(moved, [zoom, zoom], offset, order=1, mode="nearest")
    return back


def _misfit(parameters: Array, fixed: Array, moved: Array) -> Array:
    return (_returned(moved, parameters) - fixed).ravel()
