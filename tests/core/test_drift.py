"""Shift, zoom and colour of a picture against a photo, on known ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from comfyui_deepinv.deepinv_core.drift import drift
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.images import load_photo

from .moved_photos import PHOTOS, moved


@pytest.mark.parametrize("file", PHOTOS, ids=lambda file: file.stem)
@pytest.mark.parametrize(
    ("right", "down", "zoom"), [(0, 0, 1), (3, -2, 1), (0.5, 0.25, 1), (-7.25, 4.75, 1), (1.5, 0, 1.02), (0, -2, 0.97)]
)
def test_a_known_move_is_found_to_a_quarter_of_a_pixel(file: Path, right: float, down: float, zoom: float) -> None:
    photo = load_photo(file, side=192)[0][0]
    found = drift(photo, moved(photo, right, down, zoom))
    assert abs(found.right - right) < 0.25
    assert abs(found.down - down) < 0.25
    assert abs(found.zoom - zoom) < 0.003
    assert found.certainty > 0.8


@pytest.mark.parametrize("file", PHOTOS[:2], ids=lambda file: file.stem)
def test_an_edit_of_the_middle_does_not_hide_a_move(file: Path) -> None:
    photo, other = (load_photo(one, side=192)[0][0] for one in (file, PHOTOS[2]))
    edited = moved(photo, 2.0, -1.0, 1.0)
    edited[:, 60:130, 60:130] = other[:, 60:130, 60:130]
    found = drift(photo, edited)
    assert abs(found.right - 2) < 0.25
    assert abs(found.down + 1) < 0.25


def test_another_colour_is_no_move() -> None:
    photo = load_photo(PHOTOS[0], side=128)[0][0]
    tinted = (photo * torch.tensor([0.9, 1.0, 1.0]).view(3, 1, 1)).flip(0)
    found = drift(photo, tinted)
    assert max(abs(found.right), abs(found.down)) < 0.25
    assert abs(found.zoom - 1) < 0.003
    expected = (255 * (tinted - photo).mean((1, 2))).tolist()
    assert found.colour == pytest.approx(expected, abs=0.01)


def test_a_large_photo_is_measured_in_its_own_pixels() -> None:
    photo = load_photo(PHOTOS[0], side=192)[0]
    large = F.interpolate(photo, (768, 768), mode="bicubic", antialias=True)[0].clamp(0, 1)
    found = drift(large, moved(large, 6.0, -3.0, 1.0))
    assert abs(found.right - 6) < 0.5
    assert abs(found.down + 3) < 0.5


def test_other_pictures_are_no_match() -> None:
    one, other = (load_photo(file, side=128)[0][0] for file in PHOTOS[:2])
    assert drift(one, other).certainty < 0.5


def test_what_can_not_be_measured_is_refused() -> None:
    with pytest.raises(DeepInvError, match="from 32 on"):
        drift(torch.rand(3, 16, 64), torch.rand(3, 16, 64))
    with pytest.raises(DeepInvError, match="both must be one"):
        drift(torch.rand(3, 64, 64), torch.rand(3, 64, 48))
