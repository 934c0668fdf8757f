"""The models that come with the pack, as a user loads them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_deepinv.deepinv_core.demo import PHOTOS
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.images import load_photo
from comfyui_deepinv.deepinv_core.inversion import invert, latent_snr, reconstruct
from comfyui_deepinv.deepinv_core.methods import Options, make_method
from comfyui_deepinv.deepinv_core.metrics import psnr
from comfyui_deepinv.deepinv_core.models import embedded
from comfyui_deepinv.deepinv_core.schedule import uniform_grid
from comfyui_deepinv.tools.embedded.spec import CLASSES, VAE_CONFIG

KINDS = ("sd3", "flux")


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest):
    return embedded.load_embedded(request.param)


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return torch.cat([load_photo(embedded.PHOTOS_FOLDER / f"{name}.png", side=64)[0] for name in PHOTOS])


def test_they_stay_small() -> None:
    names = ("sd3", "flux", "vae", "prompts")
    assert sum(embedded.weights_path(name).stat().st_size for name in names) <= 25 * 2**20


def test_weights_are_trained_and_finite(model) -> None:
    for parameter in model.transformer.parameters():
        assert bool(torch.isfinite(parameter).all()) and not parameter.requires_grad
    assert (model.info.family, model.info.channels) in {("sd3", 16), ("flux", 16)}


def test_latents_are_scaled_for_a_flow(model, photos) -> None:
    latent = model.encode(photos)
    assert latent.shape == (len(photos), 16, 8, 8) and 0.6 < float(latent.std()) < 1.6


def test_the_encoder_is_the_linear_transform_it_is_said_to_be(model, photos) -> None:
    a, b = photos[:1], photos[1:2]
    mixed = model.encode(0.3 * a + 0.7 * b)
    assert torch.allclose(mixed, 0.3 * model.encode(a) + 0.7 * model.encode(b), atol=1e-4)


def test_vae_ceiling_on_photographs_no_model_saw(model, photos) -> None:
    """scikit-image's photographs are much sharper than the 32 px data; docs/embedded_model.md has the test split."""
    soft = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(photos, 2), scale_factor=2, mode="bicubic")
    soft = soft.clamp(0, 1)
    assert float(psnr(model.decode(model.encode(soft)), soft).mean()) > 30


def test_any_size_in_multiples_of_16(model) -> None:
    image = torch.rand(2, 3, 48, 112)
    assert model.decode(model.encode(image)).shape == image.shape
    with pytest.raises(DeepInvError, match="multiples of 16"):
        model.encode(torch.rand(1, 3, 60, 64))


def test_a_worthy_opponent(model, photos) -> None:
    """Euler at 8 steps loses at least 10 dB against Anderson at 50: there is something to invert."""
    latent, velocity = model.encode(photos), model.velocity("")

    def snr(method: str, steps: int, k: int | None = None) -> float:
        inversion = invert(velocity, latent, uniform_grid(steps), make_method(method, Options(refine=k)))
        return float(latent_snr(reconstruct(velocity, inversion).latent, latent).mean())

    assert snr("anderson", 50, 3) > snr("euler", 8) + 10
    assert snr("anderson", 16, 3) > max(40, snr("euler", 16) + 15)


def test_class_names_are_prompts(model) -> None:
    z = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = [model.velocity(name)(z, 0.8) for name in (*CLASSES, "")]
    for i, one in enumerate(seen):
        assert all(not torch.allclose(one, other, atol=1e-3) for other in seen[:i])
    assert torch.equal(model.velocity(" Cat ")(z, 0.8), model.velocity("cat")(z, 0.8))
    with pytest.raises(DeepInvError, match="knows no 'unicorn'"):
        model.velocity("unicorn")


def test_words_of_several_groups_make_a_prompt() -> None:
    """As a model of garments and colours has them: in any order, either alone, with words between that say nothing."""
    groups = [("garment", ["dress", "t-shirt"]), ("colour", ["red", "blue", "grey"])]
    tensors = {f"{name}.context": torch.randn(len(words) + 1, 1, 8) for name, words in groups}
    tensors |= {f"{name}.pooled": torch.randn(len(words) + 1, 8) for name, words in groups}
    prompts = embedded.Prompts(tensors, groups, ["a", "the"])
    assert prompts.words == ("dress", "t-shirt", "red", "blue", "grey")
    for text, rows in {
        "red dress": (0, 0),
        "the DRESS a blue": (0, 1),
        "t-shirt": (1, 3),
        "grey": (2, 2),
        "": (2, 3),
    }.items():
        found = prompts(text)
        assert torch.equal(
            found.context,
            torch.stack([tensors["garment.context"][rows[0]], tensors["colour.context"][rows[1]]], 1)[0][None],
        )
        assert torch.allclose(
            found.pooled[0] * 2**0.5, tensors["garment.pooled"][rows[0]] + tensors["colour.pooled"][rows[1]]
        )
    for text, word in {
        "red hat": "knows no 'red hat': its prompts are dress",
        "red blue dress": "has red and blue: give one",
    }.items():
        with pytest.raises(DeepInvError, match=word):
            prompts(text)


def test_the_files_say_what_they_are() -> None:
    assert embedded.image_size() == embedded.load_embedded("flux").image_size == 64
    for layout in KINDS:
        made = embedded.describe_part(layout)
        assert (
            embedded.load_embedded(layout).transformer.config["num_attention_heads"]
            == made["config"]["num_attention_heads"]
        )


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(DeepInvError, match="choose sd3 or flux"):
        embedded.load_embedded("sdxl")


def a_dataset(folder: Path) -> Path:
    """A zip in the data's form, 16 pictures a class and split."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        for split in ("train", "test"):
            for name in CLASSES:
                for i in range(16):
                    pixels = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
                    path = folder / "one.jpg"
                    Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(path)
                    archive.write(path, f"{split}/{name}/{i:04}.jpg")
    return folder / "data.zip"


def test_training_scripts_run_and_their_files_fit_the_package(tmp_path: Path, monkeypatch) -> None:
    from diffusers import AutoencoderTiny, SD3Transformer2DModel
    from safetensors.torch import load_file

    from comfyui_deepinv.tools.embedded import flow_model, vae
    from comfyui_deepinv.tools.embedded.spec import SD3_CONFIG

    archive = a_dataset(tmp_path)
    monkeypatch.setattr("sys.argv", ["vae", str(archive), str(tmp_path / "vae"), "--steps", "2", "--batch", "2"])
    vae.main()
    weights = load_file(tmp_path / "vae" / "vae.safetensors")
    shipped = load_file(embedded.weights_path("vae"))
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in shipped.items()}
    codec = AutoencoderTiny(**VAE_CONFIG)
    codec.load_state_dict({k: v.float() for k, v in embedded.diffusers_names(weights).items()})

    run = tmp_path / "flow"
    monkeypatch.setattr("sys.argv", ["flow", "sd3", str(archive), str(run), "--steps", "2", "--batch", "4"])
    flow_model.main()
    SD3Transformer2DModel(**SD3_CONFIG).load_state_dict(
        {k: v.float() for k, v in load_file(run / "model.safetensors").items()}
    )
    assert "test_loss" in (run / "stats.jsonl").read_text()


def test_constructed_encoder_is_its_formula() -> None:
    from diffusers import AutoencoderTiny

    from comfyui_deepinv.tools.embedded.spec import LATENT_GAIN
    from comfyui_deepinv.tools.embedded.vae import construct_encoder, encode

    torch.manual_seed(0)
    weight, bias = 0.2 * torch.randn(16, 48), torch.randn(16)
    codec = AutoencoderTiny(**VAE_CONFIG)
    construct_encoder(codec, weight, bias)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(codec.encoder(images * 2 - 1) / LATENT_GAIN, encode(images, weight, bias), atol=1e-5)
