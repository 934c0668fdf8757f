"""The scripts that train the next included model: each runs, on a few pictures, and goes on where it stood."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from comfyui_deepinv.tools.garments import flow_model, latents, photos, vae

SPLITS = ("train", "validation", "test")
PAINTS = {"red": (200, 20, 30), "blue": (30, 60, 200), "white": (240, 240, 238), "black": (15, 14, 16)}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of each of four colours a class, portrait, as the data's zip has them."""
    path = tmp_path_factory.mktemp("garments") / "data.zip"
    with zipfile.ZipFile(path, "w") as files:
        for split in SPLITS:
            for name in ("dress", "polo", "undershirt"):
                for number, paint in enumerate(PAINTS.values()):
                    encoded = io.BytesIO()
                    Image.new("RGB", (192, 400), paint).save(encoded, "JPEG")
                    files.writestr(f"{split}/{name}/{number:04d}.jpg", encoded.getvalue())
    return path


def run(monkeypatch: pytest.MonkeyPatch, main: object, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    main()  # type: ignore[operator]


def test_words_colours_and_crops(archive: Path) -> None:
    found = photos.read_split(archive, "train")
    assert [photos.GARMENTS[label] if label >= 0 else "" for label in found.garments.tolist()] == (
        ["dress"] * 4 + ["t-shirt"] * 4 + [""] * 4
    )
    assert found.images[0].size == (192, 288)  # cut to 3:2
    middles = photos.centre_crops(found, 128, 176)
    assert middles.shape == (12, 3, 128, 176)
    assert [photos.COLOURS[index] for index in photos.colours(middles[:4])] == list(PAINTS)


@pytest.mark.parametrize(
    ("paint", "colour"),
    [
        ((128, 128, 130), "grey"),
        ((215, 190, 160), "beige"),
        ((90, 55, 30), "brown"),
        ((230, 120, 20), "orange"),
        ((235, 215, 40), "yellow"),
        ((40, 140, 60), "green"),
        ((110, 50, 170), "purple"),
        ((240, 120, 180), "pink"),
        ((240, 160, 160), "pink"),
    ],
)
def test_a_colour_is_named_as_a_person_would(paint: tuple[int, int, int], colour: str) -> None:
    picture = (torch.tensor(paint) / 255).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    assert photos.COLOURS[int(photos.colours(picture))] == colour


def test_narrowing_keeps_the_leading_components() -> None:
    """A 32-channel bottleneck whose latents have 16 dimensions loses nothing but at the edges."""
    torch.manual_seed(0)
    model = vae.AutoencoderTiny(latent_channels=16)
    narrow = torch.randn(16, 64, 3, 3) / 24
    spread = torch.linalg.qr(torch.randn(32, 16))[0]
    back = torch.randn(64, 32, 3, 3)
    bottleneck = {
        "encoder.layers.14.weight": torch.einsum("dc,cikl->dikl", spread, narrow),
        "encoder.layers.14.bias": torch.randn(32),
        "decoder.layers.0.weight": back,
    }
    images = torch.rand(8, 3, 64, 64)
    first = model.decoder.layers[0]
    bias = first.bias.clone()
    with torch.no_grad():
        features = model.encoder.layers[:-1](images)
        wide = torch.nn.functional.conv2d(
            features, bottleneck["encoder.layers.14.weight"], bottleneck["encoder.layers.14.bias"], padding=1
        )
        expected = torch.nn.functional.conv2d(wide, back, bias)
        vae.project(model, bottleneck, images)
        found = torch.nn.functional.conv2d(vae.encode(model, images), first.weight, first.bias)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_from_photographs_to_samples(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = tmp_path / "start.safetensors"
    save_file(vae.to_comfy_names(vae.AutoencoderTiny(latent_channels=16)), start, {"latent_gain": "1.0"})
    common = (archive, tmp_path / "vae", "--start", start, "--batch", 2, "--copies", 1)
    run(monkeypatch, vae.main, *common, "--steps", 1)
    run(monkeypatch, vae.main, *common, "--steps", 2)  # goes on
    made = tmp_path / "vae" / "vae.safetensors"
    lines = [json.loads(line) for line in (tmp_path / "vae" / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line] == [1, 2]

    monkeypatch.setattr(latents, "SIZES", {(128, 128): 1, (96, 64): 2})
    run(monkeypatch, latents.main, archive, tmp_path / "latents", "--vae", made)
    tensors = load_file(tmp_path / "latents" / "latents.safetensors")
    assert tensors["96x64.latents"].shape == (16, 16, 12, 8)
    assert set(tensors["check.test.garments"].tolist()) == {
        photos.GARMENTS.index("t-shirt"),
        photos.GARMENTS.index("dress"),
    }

    monkeypatch.setattr(flow_model, "SD3_CONFIG", {**flow_model.SD3_CONFIG, "num_layers": 1})
    file = tmp_path / "latents" / "latents.safetensors"
    run(monkeypatch, flow_model.main, "sd3", file, tmp_path / "sd3", "--steps", 2, "--batch", 4)
    weights = load_file(tmp_path / "sd3" / "model.safetensors")
    model = flow_model.build("sd3")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    garment, colour = torch.tensor([0, -1]), torch.tensor([-1, 3])
    drawn = flow_model.sample(model, flow_model.make_prompts(), garment, colour, steps=2, size=(8, 12))
    assert drawn.shape == (2, 16, 8, 12)
    assert torch.isfinite(drawn).all()
