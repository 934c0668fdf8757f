"""Verdicts, on real inversions that deserve them."""

from __future__ import annotations

import pytest
import torch

from comfyui_deepinv.deepinv_core import verdict
from comfyui_deepinv.deepinv_core.drift import Drift, drift
from comfyui_deepinv.deepinv_core.images import load_photo
from comfyui_deepinv.deepinv_core.inversion import invert, reconstruct
from comfyui_deepinv.deepinv_core.methods import Options, make_method
from comfyui_deepinv.deepinv_core.metrics import compare
from comfyui_deepinv.deepinv_core.models.base_model import BaseModel
from comfyui_deepinv.deepinv_core.models.embedded import load_embedded
from comfyui_deepinv.deepinv_core.schedule import uniform_grid

from .test_drift import PHOTOS, moved


@pytest.fixture(scope="module")
def model() -> BaseModel:
    return load_embedded("sd3")


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return torch.cat([load_photo(file, side=64)[0] for file in PHOTOS])


@pytest.mark.parametrize(
    ("method", "refine", "steps", "word"),
    [
        ("anderson_extrapolated", None, 16, "Good"),
        ("anderson", None, 8, "Good"),
        ("fireflow", None, 16, "Good"),
        ("anderson", None, 4, "Good"),
        ("anderson", None, 2, "Fair"),
        ("fireflow", None, 4, "Fair"),
        ("euler", None, 4, "Poor"),
        ("fixed_point", None, 4, "Poor"),
        ("uni_inv_2", None, 4, "Poor"),
        ("direct_alignment", None, 4, "Good"),
    ],
)
def test_the_word_is_what_the_way_back_then_shows(
    model: BaseModel, photos: torch.Tensor, method: str, refine: int | None, steps: int, word: str
) -> None:
    velocity, latent = model.velocity(""), model.encode(photos)
    inversion = invert(velocity, latent, uniform_grid(steps), make_method(method, Options(refine=refine)))
    said = verdict.of_inversion(inversion)
    images = model.decode(reconstruct(velocity, inversion).latent)
    numbers = compare(photos, images, model.decode(latent))
    shown = verdict.of_comparison(numbers)
    assert said.startswith(f"{word}:")
    assert said.count("\n") == 0
    # As Compare sees it: the same word, or its neighbour where the estimate was careful.
    grades = ["Poor", "Fair", "Good"]
    assert abs(grades.index(shown.split(":")[0]) - grades.index(word)) <= (word == "Fair")
    if word != "Good":
        assert "steps" in said


def test_guidance_and_strong_noise_are_said(model: BaseModel, photos: torch.Tensor) -> None:
    latent = model.encode(photos[:1])
    inversion = invert(model.velocity(""), latent, uniform_grid(2), make_method("anderson"))
    assert "`cfg` 1 inverts best" in verdict.of_inversion(inversion, cfg=4.0)
    assert float(inversion.noise.std()) > 1


def test_a_comparison_says_what_the_vae_would_allow() -> None:
    said = verdict.of_comparison({"psnr": 17.2, "psnr_vae": 31.1, "psnr_to_vae": 17.4})
    assert said.startswith("Poor: the photo comes back at 17 dB, the VAE alone would allow 31. ")
    assert "more steps" in said
    assert verdict.of_comparison({"psnr": 31.0, "psnr_vae": 31.1, "psnr_to_vae": 60.0}).startswith("Good")
    assert verdict.of_comparison({"psnr": 27.0}).startswith("Fair")


def test_drift_is_said_where_a_person_sees_it() -> None:
    photo = load_photo(PHOTOS[0], side=128)[0][0]
    assert verdict.of_drift(drift(photo, photo)) == ""
    assert "shifted by 2.0 pixels" in verdict.of_drift(drift(photo, moved(photo, 2.0, 0.0, 1.0)))
    assert "enlarged by 2.0 %" in verdict.of_drift(drift(photo, moved(photo, 0.0, 0.0, 1.02)))
    assert "recoloured (red +2" in verdict.of_drift(
        drift(photo, (photo + torch.tensor([0.1, 0, 0]).view(3, 1, 1)).clamp(0, 1))
    )
    unsure = Drift(right=9.0, down=0.0, zoom=1.0, colour=(0.0, 0.0, 0.0), certainty=0.1)
    assert verdict.of_drift(unsure) == ""
